"""A worker: claims due runs and moves them, many at once, in one event loop.

Its lease is one row with a heartbeat; all the runs it owns hang on that.  When the heartbeat
cannot be written in time, the worker stops touching the outside before its lease is over, because
after that another worker may have its runs.  Waiting runs cost nothing: they are rows with a due
time; the worker sleeps until the next one, or until somebody wakes it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec
import structlog

from engine.clock import Clock, seconds
from engine.committer import Io
from engine.errors import LostOwnership, StoreError
from engine.ports import Claimed, Store, WorkerIdentity, Write
from engine.process import known_dead
from engine.runner import Runner

log = structlog.get_logger("turtles.worker")

LEASE_MS = seconds(15)
SAFETY_MS = seconds(3)
FAILING_MS = seconds(5)
_CLAIM = "claim"


class Lease:
    """The worker's own view of its lease."""

    def __init__(self, store: Store, io: Io, clock: Clock, identity: WorkerIdentity) -> None:
        self._store = store
        self._io = io
        self._clock = clock
        self.identity = identity
        self._until_ms = 0
        self.term = 0
        """Raised when the lease was over before it could be prolonged: whatever was claimed under
        it may be another worker's by now, however good the lease is since."""

    async def beat(self) -> None:
        """Prolong the lease; frees the runs of workers that are gone."""
        now_ms = self._clock.now_ms()
        until_ms = now_ms + LEASE_MS

        def work() -> int:
            self._store.workers.beat(self.identity, now_ms, lease_until_ms=until_ms)
            return self._store.workers.reap(now_ms, dead=known_dead)

        freed = await self._io(work)
        if self._until_ms and self._clock.now_ms() >= self._until_ms:
            self.term += 1
        self._until_ms = until_ms
        if freed:
            log.info("worker.reaped", runs=freed)

    @property
    def safe(self) -> bool:
        """Whether effects may still be started under this lease."""
        return self._clock.now_ms() < self._until_ms - SAFETY_MS

    async def retire(self) -> None:
        """Free everything this worker holds."""
        await self._io(lambda: self._store.workers.retire(self.identity.worker_id))


class Worker:
    """Claims and moves runs until it is stopped.

    Args:
        versions: the machine versions this program knows; others are left alone.
        poll_ms: how long another process's event may stay unnoticed.
        capacity: runs in hand at once.
    """

    def __init__(
        self,
        *,
        store: Store,
        io: Io,
        clock: Clock,
        lease: Lease,
        versions: Callable[[], frozenset[str]],
        poll_ms: int = 250,
        capacity: int = 1_000,
    ) -> None:
        self._store = store
        self._io = io
        self._clock = clock
        self._lease = lease
        self._versions = versions
        self._poll_ms = poll_ms
        self._capacity = capacity
        self._wake = asyncio.Event()
        self._stopping = False
        self._jobs: set[asyncio.Task[None]] = set()
        self._in_hand: set[str] = set()
        self._until_ms = 0
        self._runner: Runner | None = None
        self._failing: dict[str, tuple[int, StoreError]] = {}

    def wake(self) -> None:
        """Something may be due: look now."""
        self._wake.set()

    def wake_by(self, due_ms: int | None) -> None:
        """Something will be due then: do not sleep longer."""
        if due_ms is not None and due_ms < self._until_ms:
            self._wake.set()

    def has(self, run_id: str) -> bool:
        """Whether this run is in hand."""
        return run_id in self._in_hand

    @property
    def alone(self) -> bool:
        """Whether at most one run is in hand."""
        return len(self._jobs) <= 1

    @property
    def taker(self) -> str | None:
        """The worker's id if it can take a new run at once."""
        busy = self._runner is None or self._stopping or len(self._jobs) >= self._capacity
        return None if busy or not self._lease.safe else self._lease.identity.worker_id

    def take(self, claimed: Claimed) -> None:
        """Move a run that was accepted as this worker's."""
        self._begin(msgspec.structs.replace(claimed, term=self._lease.term))

    def failure(self) -> StoreError | None:
        """The error with which the store has refused the same work for some seconds, if any."""
        limit_ms = self._clock.now_ms() - FAILING_MS
        return next((error for since, error in self._failing.values() if since <= limit_ms), None)

    def _failed(self, work: str, error: StoreError) -> None:
        self._failing.setdefault(work, (self._clock.now_ms(), error))

    def may_go_on(self, term: int | None = None) -> bool:
        """Whether the next step may be taken; with `term`, of a run that was claimed in it."""
        same = term is None or term == self._lease.term
        return not self._stopping and self._lease.safe and same

    async def claim(self, *, limit: int, run_id: str | None = None) -> list[Claimed]:
        """Take due runs, or one run by name."""
        now_ms, versions = self._clock.now_ms(), self._versions()
        worker_id, term = self._lease.identity.worker_id, self._lease.term
        found = await self._io(
            lambda: self._store.runs.claim(
                worker_id, now_ms, limit=limit, versions=versions, run_id=run_id
            )
        )
        return [msgspec.structs.replace(one, term=term) for one in found]

    async def serve(self, runner: Runner) -> None:
        """Work until `stop`."""
        self._runner = runner
        heart = asyncio.create_task(self._beats())
        try:
            while not self._stopping:
                self._wake.clear()
                try:
                    if not await self._take():
                        await self._pause()
                    self._failing.pop(_CLAIM, None)
                except StoreError as error:
                    self._failed(_CLAIM, error)
                    # Busy or full passes; whoever looks at a run meanwhile gets the same error.
                    log.warning("store.failed", reason=str(error))
                    await self._clock.sleep(self._poll_ms)
        finally:
            heart.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await heart

    async def _take(self) -> int:
        free = self._capacity - len(self._jobs)
        if free <= 0 or not self._lease.safe:
            return 0
        taken = await self.claim(limit=free)
        for claimed in taken:
            self._begin(claimed)
        return len(taken)

    def _begin(self, claimed: Claimed) -> None:
        assert self._runner is not None
        job = asyncio.create_task(self._move(self._runner, claimed))
        self._jobs.add(job)
        self._in_hand.add(claimed.run.run_id)
        job.add_done_callback(self._done)

    async def _move(self, runner: Runner, claimed: Claimed) -> None:
        run_id = claimed.run.run_id
        try:
            run = await runner.advance(claimed)
            self._failing.pop(run_id, None)
            self.wake_by(run.due_ms)
        except LostOwnership as error:
            self._failing.pop(run_id, None)
            log.warning("run.lost", run_id=claimed.run.run_id, reason=str(error))
        except StoreError as error:
            log.warning("run.stopped", run_id=run_id, reason=str(error))
            self._failed(run_id, error)
            await self._give_back(claimed)
        finally:
            self._in_hand.discard(run_id)

    async def _give_back(self, claimed: Claimed) -> None:
        """Free a run whose step the store refused; a live worker's lease would hold it for ever."""
        worker_id, run_id = self._lease.identity.worker_id, claimed.run.run_id

        def work() -> None:
            stored = self._store.runs.get(run_id)
            if stored and stored.owner == worker_id and stored.fence == claimed.fence:
                release = Write(
                    fence=claimed.fence,
                    before=stored.run,
                    after=stored.run,
                    release=True,
                    at_ms=self._clock.now_ms(),
                )
                self._store.runs.commit([release])

        while not self._stopping:  # a worker that stops gives back everything at once
            await self._clock.sleep(self._poll_ms)
            with contextlib.suppress(StoreError):
                await self._io(work)
                return

    def _done(self, job: asyncio.Task[None]) -> None:
        if len(self._jobs) >= self._capacity:
            self.wake()  # what was due had to wait for a place
        self._jobs.discard(job)
        if not job.cancelled() and job.exception() is not None:
            log.error("worker.job_failed", exc_info=job.exception())
            self.wake()

    async def _pause(self) -> None:
        now_ms, versions = self._clock.now_ms(), self._versions()
        due_ms = await self._io(lambda: self._store.runs.next_due_ms(versions))
        wait_ms = self._poll_ms if due_ms is None else min(due_ms - now_ms, self._poll_ms)
        if len(self._jobs) >= self._capacity or not self._lease.safe:
            wait_ms = self._poll_ms  # what is due cannot be taken; do not spin
        self._until_ms = now_ms + wait_ms
        waiting = [
            asyncio.create_task(self._wake.wait()),
            asyncio.create_task(self._clock.sleep(max(wait_ms, 1))),
        ]
        _, left = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()

    async def _beats(self) -> None:
        while not self._stopping:
            await self._clock.sleep(LEASE_MS // 3)
            try:
                await self._lease.beat()
            except StoreError as error:
                log.warning("worker.beat_missed", reason=str(error))

    async def stop(self, *, grace_ms: int) -> None:
        """Take no more work, let every run finish the step it is in, then go."""
        self._stopping = True
        self.wake()
        if self._jobs:
            _, late = await asyncio.wait(self._jobs, timeout=grace_ms / 1000)
            for job in late:
                job.cancel()
            if late:
                await asyncio.wait(late)
