"""What only the machine we run on can tell: the time of day, and random names.

The kernel may know neither; the runtime takes them from here, tests from `engine.testing`.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable


def new_run_id(now_ms: int) -> str:
    """`r` and 25 hex digits: 11 of time in milliseconds, 14 random."""
    return f"r{now_ms:011x}{secrets.token_hex(7)}"


ANSWER_MS_MAX = 1_000
"""An answer that took longer does not say what time it is, if there was another one before."""


def steady_ms() -> int:
    """Time since boot, sleep of the machine included; nobody can set it."""
    return time.clock_gettime_ns(_STEADY) // 1_000_000


_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    """The machine's own clock, until it follows a database's.

    Hosts that share a database compare times that each of them wrote: when a lease ends, when a
    run falls due.  So all of them go by the database's time.  It is asked for at every heartbeat;
    between two answers the time since boot is added, which no step of a host's clock changes.  The
    clock may be late by the time that the answer took, and is never ahead.
    """

    _ahead_ms: int | None = None  # of the class: a clock made from this one need not call it

    def now_ms(self) -> int:
        """Milliseconds since the epoch, UTC."""
        if self._ahead_ms is None:
            return time.time_ns() // 1_000_000
        return steady_ms() + self._ahead_ms

    def follow(self, ask: Callable[[], int | None]) -> None:
        """Go by what `ask` answers from now on."""
        asked_ms = steady_ms()
        told_ms = ask()
        answered_ms = steady_ms()
        if told_ms is None:
            return
        if self._ahead_ms is None or answered_ms - asked_ms <= ANSWER_MS_MAX:
            self._ahead_ms = told_ms - answered_ms

    async def sleep(self, duration_ms: int) -> None:
        """Wait on the event loop."""
        await asyncio.sleep(max(duration_ms, 0) / 1000)
