"""Group commit: the writes of many runs share one transaction.

Whatever is waiting when the last commit ends goes into the next one; there is no timer, so a run
that is alone pays nothing.  A caller's `write` returns after the commit that holds its write.  One
that has lost its run fails alone.  One run's order is kept, because a run has one write at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from engine.ports import Runs, Write, Written

T = TypeVar("T")
BATCH_MAX = 200


class Io(Protocol):
    """Runs a store's methods, one at a time."""

    async def __call__(self, call: Callable[[], T]) -> T:
        """The result of the call."""

    def close(self) -> None:
        """Let go of whatever runs the calls."""


class ThreadIo:
    """One thread for the store, so that the event loop never waits for a disk."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="turtles-store")

    async def __call__(self, call: Callable[[], T]) -> T:
        """The result of the call, made in the store's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def close(self) -> None:
        """Wait for the thread to end."""
        self._thread.shutdown(wait=True)


class InlineIo:
    """Calls the store where it is: for stores in memory, and for tests that own the order."""

    async def __call__(self, call: Callable[[], T]) -> T:
        """The result of the call."""
        return call()

    def close(self) -> None:
        """Nothing to let go of."""


class Committer:
    """Gathers writes and commits them together."""

    def __init__(self, runs: Runs, io: Io) -> None:
        self._runs = runs
        self._io = io
        self._waiting: list[tuple[Write, asyncio.Future[Written]]] = []
        self._task: asyncio.Task[None] | None = None

    async def write(self, write: Write) -> Written:
        """Commit one write; returns when it is durable."""
        future: asyncio.Future[Written] = asyncio.get_running_loop().create_future()
        self._waiting.append((write, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
            writes = [write for write, _ in batch]
            try:
                results = await self._io(lambda writes=writes: self._runs.commit(writes))  # type: ignore[misc]
            except BaseException as error:  # noqa: BLE001 - handed to every waiting caller
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)


class DirectCommitter(Committer):
    """Commits every write by itself, at once; needs no event loop where its `Io` needs none."""

    async def write(self, write: Write) -> Written:
        """Commit one write."""
        (written,) = await self._io(lambda: self._runs.commit([write]))
        return written
