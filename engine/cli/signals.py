"""One graceful stop: `run(main())` ends its coroutine on the first SIGINT or SIGTERM.

first signal   the coroutine is cancelled; its `async with` blocks finish what is in hand
second signal  the process ends at once (nothing is lost: the next start goes on)
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

from engine.cli.exits import INTERRUPTED, Interrupted

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SHOW_CURSOR = "\x1b[?25h"


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in an event loop of its own.

    Raises:
        Interrupted: a signal came, and the coroutine has come to a good end.
    """
    return asyncio.run(_stoppable(main))


async def _stoppable(main: Coroutine[Any, Any, T]) -> T:
    task = asyncio.ensure_future(main)
    asked: list[int] = []

    def on_signal(number: int) -> None:
        asked.append(number)
        if len(asked) > 1:
            _end_now()
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await task
    except asyncio.CancelledError:
        if asked:
            raise Interrupted(f"stopped by signal {asked[0]}") from None
        raise
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


def _end_now() -> None:
    if sys.stdout.isatty():
        sys.stdout.write(_SHOW_CURSOR + "\n")  # a live display may have hidden it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)
