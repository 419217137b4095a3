"""Verifying several machines at once: one process for each, as many at a time as there are cores.

::

    smallest first, each with its part of the time that all cores have left

    [Discovery][Spend][Payment        ...]          Told, over a pipe: lines, JSON, JUnit, HTML
    [Authentication][Confirmation][Inception ...]   Ticks: progress

A machine that is exhausted early leaves its time to those after it.  One machine alone is verified
in this process.  A process that dies is a finding of its machine and does not end the others.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

from engine.cli.place import AppFactory, Place, opened

if TYPE_CHECKING:
    from engine.ports import Store
    from engine.table import Table
    from engine.verification.report import Told
    from engine.verification.verify import Tick

LEAST_SHARE_SECONDS = 0.5
START_SECONDS = 0.3
AGAIN_FACTOR = 2.0
OK, COVERAGE_GAP = 0, 2
"""About what starting a process and telling its answer take, of its share."""


Scratch = Callable[[], AbstractContextManager[str]]


class Stores:
    """Makes stores by the program's own factory; closes them all at its end.

    Args:
        scratch: gives the url of an empty database for each; by default they are in memory.
    """

    def __init__(self, factory: AppFactory, scratch: Scratch | None = None) -> None:
        self._factory = factory
        self._scratch = scratch
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()

    def __enter__(self) -> Stores:
        return self

    def __call__(self) -> Store:
        """A new store."""
        return self._loop.run_until_complete(self._open())

    async def _open(self) -> Store:
        url = self._scratch and self._stack.enter_context(self._scratch())
        place = Place(data_dir=None, url=url)
        app = await self._stack.enter_async_context(opened(self._factory, place))
        await app.stop()
        return app.store

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.run_until_complete(self._stack.aclose())
        self._loop.close()


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends the command as Ctrl-C does."""

    def on_signal(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A machine, and how it is to be verified.

    `subject` is its name on the command line; `options` are those of `verify`.
    """

    table: Table
    subject: str
    factory: AppFactory
    options: dict[str, Any] = field(default_factory=dict)
    scratch: Scratch | None = None

    @property
    def weight(self) -> float:
        """Roughly how much there is to do, beside other machines."""
        return math.sqrt(len(self.table.places) * len(self.table.events))

    def do(self, budget_seconds: float, progress: Callable[[Tick], None]) -> Told:
        """Verify it in this process."""
        from engine.verification.report import told
        from engine.verification.verify import verify

        with Stores(self.factory, self.scratch) as stores:
            found = verify(self.table, stores, budget_seconds=budget_seconds,
                           progress=progress, **self.options)  # fmt: skip
        return told(found, subject=self.subject)

    def died(self, budget_seconds: float, why: str) -> Told:
        """What is told of it when its process has ended without an answer."""
        from engine.verification.report import told
        from engine.verification.trouble import Trouble
        from engine.verification.verify import Verification

        known = self.options.get("known", ())
        found = Verification(self.table, self.options["seed"], budget_seconds, None, (), known)
        found.troubles.append(Trouble(phase="process", problem=why, ours=True))
        return told(found, subject=self.subject)


def cores() -> int:
    """How many processes may run at once here."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def do_all(
    jobs: Sequence[Job],
    budget_seconds: float,
    processes: int,
    progress: Callable[[Tick], None],
) -> list[Told]:
    """Verify every machine within one budget.

    Returns:
        In the order of `jobs`.
    """
    if len(jobs) == 1:
        return [jobs[0].do(budget_seconds, progress)]
    return _Pool(budget_seconds, processes, progress).run(jobs)


@dataclass(frozen=True, slots=True)
class _Running:
    """A job in its process, with its share in seconds and the moment when that is over."""

    job: Job
    process: Any
    share: float
    until: float


class _Pool:
    def __init__(
        self, budget_seconds: float, processes: int, progress: Callable[[Tick], None]
    ) -> None:
        self.last = perf_counter() + budget_seconds
        self.processes = processes
        self.progress = progress
        self.running: dict[Connection, _Running] = {}
        self.answers: dict[str, Told] = {}
        self.shares: dict[str, float] = {}

    def run(self, jobs: Sequence[Job]) -> list[Told]:
        """Start, listen, start the next; what had too little time has what the others left."""
        waiting = sorted(jobs, key=lambda job: job.weight)
        try:
            while waiting:
                self._round(waiting)
                waiting = self._short_of_time(jobs)
        finally:
            for running in self.running.values():
                running.process.terminate()
                running.process.join()
        return [self.answers[job.subject] for job in jobs]

    def _round(self, waiting: list[Job]) -> None:
        while waiting or self.running:
            while waiting and len(self.running) < self.processes:
                share = self._share(waiting)
                self._start(waiting.pop(0), share)
            for connection in wait(list(self.running)):
                self._hear(connection)  # type: ignore[arg-type]

    def _short_of_time(self, jobs: Sequence[Job]) -> list[Job]:
        """Those whose weight promised too little, as long as twice as much is left for each.

        A weight is a guess; the time that a machine had before is lost, so it must be much more.
        """
        short = [job for job in jobs if self._is_short(job)]
        left = self.last - perf_counter()
        while short:
            share = left * min(1.0, self.processes / len(short))
            worth = [job for job in short if share > AGAIN_FACTOR * self.shares[job.subject]]
            if len(worth) == len(short):
                break
            short = worth
        return sorted(short, key=lambda job: job.weight)

    def _is_short(self, job: Job) -> bool:
        answer = self.answers[job.subject]
        return answer.exit in (OK, COVERAGE_GAP) and answer.exhausted is False

    def _share(self, waiting: Sequence[Job]) -> float:
        """Seconds for the first that waits: by its weight, of what is not promised to others."""
        now = perf_counter()
        left = self.last - now
        promised = sum(max(one.until - now, 0.0) for one in self.running.values())
        free = min(self.processes, len(self.running) + len(waiting)) * left - promised
        share = free * waiting[0].weight / sum(job.weight for job in waiting)
        return max(min(share, left) - START_SECONDS, LEAST_SHARE_SECONDS)

    def _start(self, job: Job, share: float) -> None:
        context = get_context("fork")
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(there, job, share), daemon=True)
        process.start()
        there.close()
        self.shares[job.subject] = share
        self.running[here] = _Running(job, process, share, perf_counter() + share)

    def _hear(self, connection: Connection) -> None:
        from engine.verification.report import Told

        running = self.running[connection]
        subject = running.job.subject
        try:
            message = connection.recv()
        except EOFError:
            running.process.join()
            code = running.process.exitcode
            message = running.job.died(
                running.share, f"the process of {subject} ended by itself with code {code}"
            )
        if not isinstance(message, Told):
            self.progress(message)
            return
        self.answers[subject] = message
        del self.running[connection]
        connection.close()
        running.process.join()


def _child(connection: Connection, job: Job, budget_seconds: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        answer = job.do(budget_seconds, connection.send)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other machines go on
        answer = job.died(budget_seconds, f"{type(error).__name__}: {error}")
    connection.send(answer)
    connection.close()
