"""One worker of the chaos suite: a program that moves parcels until it is told to stop, or killed.

    python -m tests.acceptance.chaos.worker URL LEDGER NUMBER LEASE_SECONDS

Every worker says that it lives on a host of its own, so that nobody sees its process die: its
lease has to run out.  SIGUSR1 makes it read `LEDGER.clock.NUMBER` (seconds): by so much this
process's wall clock is off from then on, for everything in it that asks for the time of day.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import time
from pathlib import Path

import msgspec
import structlog

from engine import App
from engine.ports import WorkerIdentity
from engine.process import this_worker
from engine.world import World
from persistence.store import open_store
from tests.acceptance.chaos.machines import Label, Ledger, Parcel

_true_time, _true_time_ns = time.time, time.time_ns


def step_clock(seconds: int) -> None:
    """Set this process's wall clock forwards or back."""
    time.time = lambda: _true_time() + seconds
    time.time_ns = lambda: _true_time_ns() + seconds * 1_000_000_000


async def work(url: str, ledger: Path, number: str, lease_seconds: float) -> None:
    """Move what is due until SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    file = Path(f"{ledger}.clock.{number}")
    loop.add_signal_handler(signal.SIGUSR1, lambda: step_clock(int(file.read_text())))

    def identity() -> WorkerIdentity:
        return msgspec.structs.replace(this_worker(), host=f"host-{number}")

    store = open_store(url, busy_timeout_seconds=max(lease_seconds / 2, 1))
    try:
        async with App(
            [Parcel, Label],
            store,
            lease_seconds=lease_seconds,
            resources={Ledger: Ledger(ledger, number)},
            world=World(worker=identity),
        ):
            print("ready", flush=True)
            await stop.wait()
    finally:
        store.close()


def main() -> None:
    """Run one worker."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        processors=[structlog.processors.add_log_level, structlog.processors.TimeStamper(),
                    structlog.processors.KeyValueRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )  # fmt: skip
    url, ledger, number, lease_seconds = sys.argv[1:]
    asyncio.run(work(url, Path(ledger), number, float(lease_seconds)))


if __name__ == "__main__":
    main()
