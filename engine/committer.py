"""Group commit: starts, events and writes of many runs share one transaction.

Whatever is waiting when the last commit ends goes into the next one; there is no timer, so a run
that is alone pays nothing.  A caller's `write` returns after the commit that holds its write.  One
that has lost its run fails alone.  One run's order is kept, because a run has one write at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from engine.errors import StoreBusy
from engine.ports import Batch, Delivery, Receipt, Start, Started, Store, Write, Written

T = TypeVar("T")
BATCH_MAX = 500
BREATH = 16
"""So many commits in place, and the event loop has a turn."""


class Io(Protocol):
    """Runs a store's methods, one at a time."""

    in_place: bool
    """Whether the caller's thread makes the calls."""

    async def __call__(self, call: Callable[[], T]) -> T:
        """The result of the call."""

    def close(self) -> None:
        """Let go of whatever runs the calls."""


class ThreadIo:
    """One thread for the store, so that the event loop never waits for a disk."""

    in_place = False

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

    in_place = True

    async def __call__(self, call: Callable[[], T]) -> T:
        """The result of the call."""
        return call()

    def close(self) -> None:
        """Nothing to let go of."""


class HereIo:
    """Calls the store where it is, too, but what would have to wait goes to a thread.

    A commit to a local file takes less time than a thread's answer.  Only when another process
    holds the file longer than a moment does the call go on elsewhere, and the event loop with it.
    """

    in_place = True

    def __init__(self) -> None:
        self._patient: ThreadIo | None = None

    async def __call__(self, call: Callable[[], T]) -> T:
        """The result of the call, which `StoreBusy` says to have done nothing."""
        try:
            return call()
        except StoreBusy:
            self._patient = self._patient or ThreadIo()
            return await self._patient(call)

    def close(self) -> None:
        """Wait for the thread to end, if there is one."""
        if self._patient is not None:
            self._patient.close()


class Committer:
    """Gathers starts, events and writes, and commits them together.

    Args:
        alone: whether at most one run is in hand, so that nobody would share its commit; it is
            then made in place, where the store's calls are.
    """

    def __init__(self, store: Store, io: Io, alone: Callable[[], bool] = lambda: False) -> None:
        self._runs = store.runs
        self._io = io
        self._alone = alone
        self._in_place = 0
        self._starts: list[tuple[Start, asyncio.Future[Started]]] = []
        self._deliveries: list[tuple[Delivery, asyncio.Future[Receipt | None]]] = []
        self._writes: list[tuple[Write, asyncio.Future[Written]]] = []
        self._task: asyncio.Task[None] | None = None

    async def write(self, write: Write) -> Written:
        """Commit one write; returns when it is durable."""
        if self._idle and self._io.in_place and self._alone():
            self._in_place += 1
            if self._in_place % BREATH == 0:
                await asyncio.sleep(0)
            (written,) = await self._io(lambda: self._runs.commit([write]))
            return written
        written_later: Written = await self._share(self._writes, write)
        return written_later

    async def write_with(self, work: Callable[[Any], Write]) -> Written:
        """Commit one write in a transaction that also holds what `work` does; see `Runs`."""
        return await self._io(lambda: self._runs.commit_with(work))

    async def start(
        self, start: Start, accepted: Callable[[Started], None] = lambda started: None
    ) -> Started:
        """Accept one run; returns when it is durable.

        Args:
            accepted: told the answer, also when the caller has given up meanwhile.
        """
        future = self._ask(self._starts, start)
        future.add_done_callback(lambda done: _tell(done, accepted))
        answer: Started = await asyncio.shield(future)
        return answer

    async def deliver(self, delivery: Delivery) -> Receipt | None:
        """Accept one event; None if its run does not exist."""
        receipt: Receipt | None = await self._share(self._deliveries, delivery)
        return receipt

    @property
    def _idle(self) -> bool:
        return self._task is None and not self._writes

    async def _share(self, waiting: _Asked, one: Any) -> Any:
        return await self._ask(waiting, one)

    def _ask(self, waiting: _Asked, one: Any) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        waiting.append((one, future))
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        return future

    async def _drain(self) -> None:
        try:
            while self._starts or self._deliveries or self._writes:
                await self._commit(
                    _taken(self._starts), _taken(self._deliveries), _taken(self._writes)
                )
        finally:
            self._task = None

    async def _commit(self, starts: _Asked, deliveries: _Asked, writes: _Asked) -> None:
        batch = Batch(
            starts=tuple([one for one, _ in starts]),
            deliveries=tuple([one for one, _ in deliveries]),
            writes=tuple([one for one, _ in writes]),
        )
        everybody = [future for _, future in (*starts, *deliveries, *writes)]
        try:
            done = await self._io(lambda: self._runs.group(batch))
        except BaseException as error:  # noqa: BLE001 - handed to every waiting caller
            for future in everybody:
                if not future.done():
                    future.set_exception(error)
            return
        answers = (*done.started, *done.receipts, *done.written)
        for future, answer in zip(everybody, answers, strict=True):
            if not future.done():
                future.set_result(answer)


_Asked = list[tuple[Any, asyncio.Future[Any]]]


def _tell(done: asyncio.Future[Started], accepted: Callable[[Started], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        accepted(done.result())


def _taken(waiting: _Asked) -> _Asked:
    """The oldest of them, as many as one transaction takes."""
    taken = waiting[:BATCH_MAX]
    del waiting[:BATCH_MAX]
    return taken


class DirectCommitter(Committer):
    """Commits everything by itself, at once; needs no event loop where its `Io` needs none."""

    def __init__(self, store: Store, io: Io, alone: Callable[[], bool] = lambda: True) -> None:
        super().__init__(store, io, alone)
        self._inbox = store.inbox

    async def write(self, write: Write) -> Written:
        """Commit one write."""
        (written,) = await self._io(lambda: self._runs.commit([write]))
        return written

    async def start(
        self, start: Start, accepted: Callable[[Started], None] = lambda started: None
    ) -> Started:
        """Accept one run."""
        (started,) = await self._io(lambda: self._runs.start([start]))
        accepted(started)
        return started

    async def deliver(self, delivery: Delivery) -> Receipt | None:
        """Accept one event.

        Raises:
            UnknownRun: its run does not exist.
        """
        (receipt,) = await self._io(lambda: self._inbox.deliver([delivery]))
        return receipt
