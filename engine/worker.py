"""A worker: claims due runs and moves them, many at once, in one event loop.

Its lease is one row with a heartbeat; all the runs it owns hang on that.  When the heartbeat
cannot be written in time, the worker stops touching the outside before its lease is over, because
after that another worker may have its runs.  Waiting runs cost nothing: they are rows with a due
time; the worker sleeps until the next one, or until somebody wakes it.

A database that fails or is gone ends no loop of a worker; each tries again, with growing pauses
that differ from worker to worker::

    claim      pauses                      a claim of which nobody knows whether it happened may
                                           have given us runs: what we own without knowing is freed
    heartbeat  beats again soon, not at    the lease of whoever died is looked at when it ends, so
               the next regular beat       its runs go on within one lease
    a step     its run is looked at again, and given back; those of one failure together

A regular beat comes three times in a lease.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import msgspec
import structlog

from engine.clock import Clock, Follower, seconds
from engine.committer import Io
from engine.errors import LostOwnership, StoreError, StoreUnavailable, UsageError
from engine.limiting import Limiting
from engine.ports import Claimed, Store, WorkerIdentity, Write
from engine.process import known_dead
from engine.retry import Retry
from engine.runner import Runner

log = structlog.get_logger("turtles.worker")

LEASE_MS = seconds(15)
SAFETY_MS = seconds(3)
FAILING_MS = seconds(5)
AWAY_MS = seconds(30)
"""How long those who wait bear with a store that fails, and with a server that is gone."""
LEASE_SECONDS = (1.0, 3_600.0)
"""The shortest and the longest lease."""
_CLAIM = "claim"
AGAIN = Retry(first_ms=100, max_ms=2_000, jitter=0.5)
"""When to try again what the store refused; the worker's id makes the jitter."""
_RETURNED_MOST = 200


def lease_ms_of(lease_seconds: float) -> int:
    """The lease in milliseconds.

    Raises:
        UsageError: out of bounds.
    """
    least, most = LEASE_SECONDS
    if not least <= lease_seconds <= most:
        raise UsageError(
            f"lease_seconds: expected {least:g} to {most:g}, got {lease_seconds!r}. Short leases "
            "free the runs of a lost worker sooner; a worker that is held up longer loses them."
        )
    return seconds(lease_seconds)


class Lease:
    """The worker's own view of its lease.

    Args:
        io: for the heartbeat; where it shares a thread with other calls, it waits for them.
        lease_ms: how long it lasts from one beat.
        limiting: is told the limits of the fleet at every beat.
    """

    def __init__(
        self,
        store: Store,
        io: Io,
        clock: Clock,
        identity: WorkerIdentity,
        *,
        lease_ms: int = LEASE_MS,
        limiting: Limiting | None = None,
    ) -> None:
        self._store = store
        self._io = io
        self._clock = clock
        self.identity = identity
        self.lease_ms = lease_ms
        self._limiting = Limiting() if limiting is None else limiting
        self._safety_ms = SAFETY_MS * lease_ms // LEASE_MS
        self._until_ms = 0
        self._other_ends_ms: int | None = None
        self.term = 0
        """Raised when the lease was over before it could be prolonged: whatever was claimed under
        it may be another worker's by now, however good the lease is since."""

    async def beat(self) -> int:
        """Prolong the lease, then free the runs of workers that are gone; how many those were.

        Raises:
            UsageError: another process works under this id.
        """
        await self._set_clock()
        now_ms = self._clock.now_ms()
        until_ms = now_ms + self.lease_ms
        workers = self._store.workers
        await self._io(lambda: workers.beat(self.identity, now_ms, lease_until_ms=until_ms))
        if self._until_ms and self._clock.now_ms() >= self._until_ms:
            self.term += 1
        self._until_ms = until_ms
        freed, others, limits = await self._io(
            lambda: (
                workers.reap(now_ms, dead=known_dead), workers.all(), self._store.limits.all()
            )
        )  # fmt: skip
        self._limiting.know(limits)
        ends = [end for worker, end in others if worker.worker_id != self.identity.worker_id]
        self._other_ends_ms = min(ends, default=None)
        if freed:
            log.info("worker.reaped", runs=freed)
        return freed

    async def _set_clock(self) -> None:
        """Go by the database's time where other hosts do."""
        clock = self._clock
        if isinstance(clock, Follower) and not self._store.local:
            await self._io(lambda: clock.follow(self._store.workers.time_ms))

    @property
    def safe(self) -> bool:
        """Whether effects may still be started under this lease."""
        return self._clock.now_ms() < self._until_ms - self._safety_ms

    @property
    def next_beat_ms(self) -> int:
        """How long to wait for the next beat: to the end of a lost worker's lease, if it is near.

        A live worker's lease ends later than the next regular beat.
        """
        regular_ms = self.lease_ms // 3
        if self._other_ends_ms is None:
            return regular_ms
        end_ms = self._other_ends_ms - self._clock.now_ms()
        return min(regular_ms, max(end_ms, self.lease_ms // 30))

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
        self._returning: dict[str, tuple[Claimed, asyncio.Future[None]]] = {}
        self._mender: asyncio.Task[None] | None = None
        self._starting: set[str] = set()
        self._claiming = 0
        self._unsure = False
        """Whether the store may have given us runs of which we were not told."""

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

    @contextlib.contextmanager
    def starting(self, run_id: str) -> Iterator[None]:
        """While the store is asked to accept a run as this worker's: it may, and not say so."""
        self._starting.add(run_id)
        try:
            yield
        except StoreError:
            self.doubt()
            raise
        finally:
            self._starting.discard(run_id)

    def doubt(self) -> None:
        """The store may have given us a run that nobody here has in hand."""
        self._unsure = True
        self.wake()

    def take(self, claimed: Claimed) -> None:
        """Move a run that was accepted as this worker's, under the term in which it was asked."""
        self._begin(claimed)

    def failure(self) -> StoreError | None:
        """The error with which the store has refused the same work for some seconds, if any."""
        now_ms = self._clock.now_ms()
        return next(
            (
                error
                for since, error in self._failing.values()
                if now_ms - since
                >= (AWAY_MS if isinstance(error, StoreUnavailable) else FAILING_MS)
            ),
            None,
        )

    def _failed(self, work: str, error: StoreError) -> None:
        self._failing.setdefault(work, (self._clock.now_ms(), error))

    def may_go_on(self, term: int | None = None) -> bool:
        """Whether the next step may be taken; with `term`, of a run that was claimed in it."""
        same = term is None or term == self._lease.term
        return not self._stopping and self._lease.safe and same

    async def claim(self, *, limit: int, run_id: str | None = None) -> list[Claimed]:
        """Take due runs, or one run by name; they are in hand until `let_go`."""
        now_ms, versions = self._clock.now_ms(), self._versions()
        worker_id, term = self._lease.identity.worker_id, self._lease.term
        self._claiming += 1
        try:
            found = await self._io(
                lambda: self._store.runs.claim(
                    worker_id, now_ms, limit=limit, versions=versions, run_id=run_id
                )
            )
        except StoreError:
            self.doubt()
            raise
        finally:
            self._claiming -= 1
        self._in_hand.update(one.run.run_id for one in found)
        return [msgspec.structs.replace(one, term=term) for one in found]

    def let_go(self, run_id: str) -> None:
        """A run that was claimed is no longer in hand."""
        self._in_hand.discard(run_id)

    async def _free_strays(self) -> None:
        """Free what the store gave us without our being told: nobody would ever move it."""
        if not self._unsure or self._claiming:
            return
        self._unsure = False
        kept = frozenset(self._in_hand | self._starting)
        workers, worker_id = self._store.workers, self._lease.identity.worker_id
        try:
            freed = await self._io(lambda: workers.free_strays(worker_id, kept))
        except StoreError:
            self._unsure = True
            raise
        if freed:
            log.warning("worker.strays_freed", runs=freed)

    async def serve(self, runner: Runner) -> None:
        """Work until `stop`."""
        self._runner = runner
        heart = asyncio.create_task(self._beats())
        failures = 0
        try:
            while not self._stopping:
                self._wake.clear()
                if heart.done():
                    heart.result()  # another process works under our id
                try:
                    await self._free_strays()
                    if not await self._take():
                        await self._pause()
                    self._failing.pop(_CLAIM, None)
                    failures = 0
                except StoreError as error:
                    self._failed(_CLAIM, error)
                    failures += 1
                    # Busy or full passes; whoever looks at a run meanwhile gets the same error.
                    log.warning("store.failed", reason=str(error))
                    await self._rest(failures)
        finally:
            heart.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await heart

    async def _rest(self, failures: int) -> None:
        """Wait after so many failures in a row; each worker for another time."""
        await self._clock.sleep(AGAIN.delay_ms(failures, self._lease.identity.worker_id))

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
            self.let_go(run_id)

    async def _give_back(self, claimed: Claimed) -> None:
        """Free a run whose step the store refused; a live worker's lease would hold it for ever."""
        given_back: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._returning[claimed.run.run_id] = (claimed, given_back)
        if self._mender is None:
            self._mender = asyncio.create_task(self._give_all_back())
        await given_back

    async def _give_all_back(self) -> None:
        failures = 1
        try:
            while self._returning and not self._stopping:  # who stops gives back all at once
                await self._rest(failures)
                some = list(self._returning.items())[:_RETURNED_MOST]
                try:
                    await self._io(lambda some=some: self._release([one for _, (one, _) in some]))  # type: ignore[misc]
                except StoreError as error:
                    failures += 1
                    log.warning("store.failed", reason=str(error))
                    continue
                failures = 1
                for run_id, (_, given_back) in some:
                    self._returning.pop(run_id)
                    _settle(given_back)
                self.wake()
        finally:
            self._mender = None
            if self._returning and not self._stopping:
                self.doubt()
            for _, given_back in self._returning.values():
                _settle(given_back)
            self._returning.clear()

    def _release(self, claimed: list[Claimed]) -> None:
        """Give up those that are still ours, whatever became of their last step."""
        releases = []
        for one in claimed:
            stored = self._store.runs.get(one.run.run_id)
            ours = stored is not None and stored.owner == self._lease.identity.worker_id
            if stored is not None and ours and stored.fence == one.fence:
                run, at_ms = stored.run, self._clock.now_ms()
                releases.append(
                    Write(
                        fence=one.fence,
                        before=run,
                        after=run,
                        release=True,
                        limits=one.limits,
                        held=one.limits is not None,
                        at_ms=at_ms,
                    )
                )
        self._store.runs.commit(releases)

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
        worker_id, beats, failures = self._lease.identity.worker_id, 0, 0
        while not self._stopping:
            if failures:
                await self._clock.sleep(
                    min(AGAIN.delay_ms(failures, worker_id), self._lease.next_beat_ms)
                )
            else:
                wait_ms = self._lease.next_beat_ms
                regular = Retry(first_ms=wait_ms, factor=1, max_ms=wait_ms, jitter=0.1)
                await self._clock.sleep(regular.delay_ms(beats, worker_id))
            beats += 1
            try:
                if await self._lease.beat():
                    self.wake()
                failures = 0
            except StoreError as error:
                failures += 1
                log.warning("worker.beat_missed", reason=str(error))
            except UsageError as error:
                log.error("worker.id_taken", reason=str(error))
                self.wake()
                raise

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


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
