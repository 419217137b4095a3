"""The real engine over the real store, moved one decision at a time and without an event loop.

A `Spot` is everything there is at a moment: the database, the outside's ledger, the clock, what
was sent so far, and the call at which a worker stands (`Hand`), if one does.  `Bench` goes to a
spot and takes one action from there:

    start M C        a run is accepted                 clock N     time goes on to the Nth moment
    send E P         an event arrives                  move N      a worker takes run N and goes on
    again E P        the same event arrives again                  until a call has no answer yet
    child E P        a stand-in moves or ends          call A...   the call gets this answer
    cancel, pause, resume   somebody asks for it       crash N     the worker dies after its Nth
                                                                   commit in this move (0: before)

A worker that died leaves its runs owned; before the next action another one finds it dead, frees
what it held and takes over, as `Lease.beat` does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import structlog

from engine.app import App
from engine.codec import Codec
from engine.committer import DirectCommitter, InlineIo
from engine.control import CANCEL
from engine.decide import Decision
from engine.definition import Machine
from engine.desk import Job
from engine.effects import Effect
from engine.errors import LostOwnership, Refused
from engine.events import Event
from engine.ports import Claimed, InboxEvent, Store, WorkerIdentity
from engine.retry import Retry
from engine.table import Table
from engine.testing.clock import ManualClock
from engine.testing.faults import Crash
from engine.verification.marks import Marks
from engine.verification.oracles import Breach, check_ended, ended, standing
from engine.verification.outside import Asked, Choice, Outside, Paused
from engine.verification.snapshot import Fingerprint, Row, Rows, Snapshots
from engine.verification.telling import RememberingSecrets, ToldStore
from engine.worker import LEASE_MS
from engine.world import World

T = TypeVar("T")
End = Literal["ended", "paused", "dead", "lost"]
Transition = tuple[str, str, str]
COMMITS_MAX = 500
FOREVER_FROM = 1_000
OTHER = WorkerIdentity("w-other", "elsewhere", 1, "")
SELF = WorkerIdentity("w-bench", "here", 1, "")


@dataclass(frozen=True, slots=True)
class Hand:
    """A run in a worker's hands, at a call."""

    asked: Asked
    claimed: Claimed
    fresh: bool
    doubt: bool
    number: int
    commits: int
    """How many commits the move has made so far."""
    zombie: bool
    """Whether the worker lost the run earlier in this move."""

    def job(self) -> Job:
        """The run as the worker has it."""
        before = self.asked.job
        job = Job(before.table, before.run, self.claimed)
        job.fresh, job.doubt = self.fresh, self.doubt
        return job


@dataclass(frozen=True, slots=True)
class Spot:
    """A moment; `dead` means that the worker has just died."""

    saved: bytes
    now_ms: int
    done: Mapping[str, tuple[str, str]]
    sent: tuple[tuple[str, str, int], ...] = ()
    cancelled: bool = False
    paused: bool = False
    dead: bool = False
    ended: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    hand: Hand | None = None
    rows: Rows | None = None
    """What is stored then, if it was read."""


@dataclass(slots=True)
class Moved:
    """How a move ended, and the moments at which its worker could have died on the way."""

    end: End
    crashes: list[tuple[int, Fingerprint, Spot]]
    points: int
    """How many moments that were, known ones included."""
    took: list[Transition]
    """The transitions of the run's own machine that were made, in order."""


class Bench:
    """One engine, one store, one clock.

    Args:
        machines: every machine that may run, or what it compiles to.
        store: a store in memory; whatever is in it is lost.
        moved: told of every transition (also those of repeated prefixes).
        refused: told of every event that a run refused.
        exact: names of machines of which every number counts; see `marks`.
        attempts: retry policies have at most so many attempts, a fixed delay and no jitter.
    """

    def __init__(
        self,
        machines: Iterable[type[Machine[Any]] | Table],
        store: Store,
        *,
        moved: Callable[[Decision], None],
        refused: Callable[[Job, InboxEvent], None],
        exact: Sequence[str] = (),
        attempts: int = 3,
    ) -> None:
        self.store = store
        self.snapshots = Snapshots(store)
        self.clock = ManualClock(start_ms=0)
        self._told = moved
        self.app = App(
            machines,
            store,
            secrets=RememberingSecrets(bytes(32)),
            world=self._world(),
            work=False,
            moved=self._moved,
        )
        self.codec: Codec = self.app.codec
        self.marks = Marks(self.app.tables, exact)
        self.breaches: list[Breach] = []
        self.commits = 0
        self.root = ""
        self.captures = True
        """Whether the moments after commits are kept, to go on from as if the worker had died."""
        self._rows: Rows | None = None
        self._seen: Callable[[Fingerprint], bool] = lambda found: True
        self._crashes: list[tuple[int, Fingerprint, Spot]] = []
        self._took: list[Transition] = []
        self._count = 0
        self._points = 0
        self._number = 0
        self._zombie = False
        self._crash_at: int | None = None
        self._lost: tuple[str, Row] | None = None
        self._spot = Spot(b"", 0, {})
        self._hand: Hand | None = None
        self._printed: tuple[Any, Fingerprint] = (None, ())
        self._before: tuple[Claimed, bool, bool] | None = None
        self._retries = [(effect, effect.retry) for effect in self._effects()]
        self._spy(refused)
        for effect, retry in self._retries:
            effect.retry = _small(retry, attempts)
        run(self.app.open())
        self.empty = self.spot()

    def _world(self) -> World:
        watched: Any = lambda store: ToldStore(store, self)  # noqa: E731
        return World(
            clock=self.clock,
            calls=self._outside(),
            store=watched,
            io=InlineIo(),
            committer=DirectCommitter,
            new_id=lambda now_ms: f"r{1:025d}",
            worker=lambda: SELF,
        )

    def _outside(self) -> Outside:
        self.outside = Outside(
            decode=lambda kind, text: self.codec.decode(kind, text.encode(), "payload"),
            deliver=self._arrives,
            lose=self._lose,
            check=self._check_intent,
            breach=self._breach,
        )
        return self.outside

    def _arrives(self, event: str, text: str, number: str) -> None:
        self._deliver(event, text, int(number), again=False)

    def _spy(self, refused: Callable[[Job, InboxEvent], None]) -> None:
        runner: Any = self.app._runner
        performer, step, reject = runner._performer, runner._performer.step, runner._reject

        async def stepping(job: Job) -> None:
            self.outside.job = job
            claimed = Claimed(run=job.stored, fence=job.fence, inbox=job.inbox, stalls=0)
            self._before = claimed, job.fresh, job.doubt
            await step(job)

        async def rejecting(job: Job, event: InboxEvent, reason: str) -> None:
            refused(job, event)
            was = self.row(job.run.run_id)
            await reject(job, event, reason)
            if was is not None and not _unchanged(was, self.row(job.run.run_id)):
                self._breach("rejection changed the run", f"{event.event}: {reason}")

        performer.step, runner._reject = stepping, rejecting

    def _effects(self) -> Iterator[Effect]:
        found: dict[int, Effect] = {}
        for table in self.app.tables.values():
            for place in table.places.values():
                for effect in (place.effect, place.compensation):
                    if effect is not None:
                        found[id(effect)] = effect
        yield from found.values()

    def close(self) -> None:
        """Give the machines their retry policies back."""
        for effect, retry in self._retries:
            effect.retry = retry

    # -- where we are ---------------------------------------------------------------------------

    def rows(self) -> Rows:
        """What is stored now; read once after each change."""
        if self._rows is None:
            self._rows = self.snapshots.rows()
        return self._rows

    def watching(self, method: Callable[..., T]) -> Callable[..., T]:
        """The method, after which what is stored may be something else."""

        def watched(*given: Any, **named: Any) -> T:
            self._rows = None
            return method(*given, **named)

        return watched

    def spot(self, *, dead: bool = False) -> Spot:
        """This moment."""
        now = self._spot
        return Spot(
            self.snapshots.save(), self.clock.now_ms(), dict(self.outside.done), now.sent,
            now.cancelled, now.paused, dead, ended(self.rows().runs), self._hand, self._rows,
        )  # fmt: skip

    def go(self, spot: Spot) -> None:
        """Go to a moment; a dead worker's runs are freed."""
        self._spot, self._hand = spot, spot.hand
        self._rows = spot.rows
        self.breaches = []
        self.outside.done = dict(spot.done)
        self.clock.advance(spot.now_ms - self.clock.now_ms())
        self.snapshots.load(spot.saved)
        self._prolong()
        if spot.dead:
            self._rows = None
            self.store.workers.reap(spot.now_ms, dead=lambda worker: True)
            run(self.app.beat())

    def _prolong(self) -> None:
        """The worker's lease, as its heartbeat does: nothing else looks at the stored one here."""
        lease: Any = self.app._lease
        lease._until_ms = self.clock.now_ms() + LEASE_MS

    @property
    def sent(self) -> tuple[tuple[str, str, int], ...]:
        """Events from outside that were sent so far."""
        return self._spot.sent

    @property
    def cancelled(self) -> bool:
        """Whether somebody has asked the run to stop."""
        return self._spot.cancelled

    @property
    def paused(self) -> bool:
        """Whether somebody has paused the run."""
        return self._spot.paused

    @property
    def hand(self) -> Hand | None:
        """The call at which a worker stands."""
        return self._hand

    def fingerprint(self) -> Fingerprint:
        """What the future depends on, at this moment."""
        spot, rows, now_ms = self._spot, self.rows(), self.clock.now_ms()
        key = (rows, now_ms, spot.sent, spot.cancelled, spot.paused,
               tuple(self.outside.done.items()))  # fmt: skip
        if self._printed[0] != key:
            self._printed = (
                key,
                (
                    self.marks.of(rows, now_ms, self.outside.done),
                    tuple(sorted(spot.sent)),
                    spot.cancelled,
                    spot.paused,
                ),
            )
        quiet = self._printed[1]
        return quiet if self._hand is None else (self._in_hand(self._hand), quiet)

    def _in_hand(self, hand: Hand) -> Fingerprint:
        asked = hand.asked
        waiting = tuple((event.event, event.payload) for event in hand.claimed.inbox)
        role = self._role(asked.job.run.run_id)
        return (asked.what, asked.effect.name, role, hand.fresh, hand.doubt, hand.zombie, waiting)

    def _role(self, run_id: str) -> int:
        kept = [row for row in self.rows().runs if row.live or row.parent_id is None]
        return next((i for i, row in enumerate(kept) if row.run_id == run_id), -1)

    def row(self, run_id: str) -> Row | None:
        """One run as it is stored."""
        return next((row for row in self.rows().runs if row.run_id == run_id), None)

    def due(self) -> list[Row]:
        """The runs that a worker would take now."""
        now_ms = self.clock.now_ms()
        return [
            row
            for row in self.rows().runs
            if row.due_ms is not None and row.due_ms <= now_ms and row.owner is None
        ]

    def moments(self) -> list[int]:
        """The moments to come at which something may change, soonest first."""
        now_ms = self.clock.now_ms()
        found = set()
        for row in self.rows().runs:
            if row.live and row.status not in ("paused", "quarantined"):
                times = [row.due_ms, row.deadline_ms, *self.marks.moments(row)]
                times += [row.next_ms] if row.effect else []
                found |= {at for at in times if at is not None and at > now_ms}
        return sorted(found)

    # -- actions --------------------------------------------------------------------------------

    def start(self, machine: str, context: str) -> bool:
        """Accept a run; false when its machine refuses the context."""
        kind = self.app.tables[machine].context
        given = self.codec.decode(kind, context.encode(), "context")
        self.marks.begin(context)
        try:
            self.root = run(self.app.start(machine, given)).run_id
        except Refused:
            return False
        return True

    def send(self, event: str, text: str, number: int, *, again: bool = False) -> None:
        """An event arrives at a run, by its place in the order of acceptance."""
        self._message(event, text, number)  # what cannot be sent is no finding
        if again and (event, text, number) not in self._spot.sent:
            raise LookupError(f"event {event} was not sent before")
        self._guarded(lambda: self._deliver(event, text, number, again=again))

    def child(self, event: str, text: str, number: int) -> None:
        """A stand-in makes one move."""
        run_id, payload = self._message(event, text, number)
        seq = next(row.seq for row in self.rows().runs if row.number == number)
        key = f"s:{number}:{seq}:{event}"
        self._guarded(lambda: _ignore(run(self.app.send(run_id, payload, key=key))))

    def probe(self, event: str, text: str) -> None:
        """An event for which the state has no use arrives, and changes nothing."""
        was = self.row(self.root)
        self._begin_move(1, lambda found: True, None)
        self._guarded(lambda: self._probe(event, text))
        if was is not None and not _unchanged(was, self.row(self.root)):
            self._breach("rejection changed the run", f"event {event} in {was.state}")

    def _probe(self, event: str, text: str) -> None:
        self._deliver(event, text, 1, again=False)
        worker: Any = self.app._worker
        for claimed in run(worker.claim(limit=1, run_id=self.root)):
            run(self.app._runner.advance(claimed, effects=False))

    def _deliver(self, event: str, text: str, number: int, *, again: bool) -> None:
        if event == CANCEL:
            self.cancel()
            return
        run_id, payload = self._message(event, text, number)
        sent, one = self._spot.sent, (event, text, number)
        place = sent.index(one) if again else len(sent)
        receipt = run(self.app.send(run_id, payload, key=f"m:{place}:{event}"))
        if again and not receipt.duplicate:
            self._breach("duplicate accepted", f"event {event} was accepted again under its key")
        if not again:
            self._spot = replace(self._spot, sent=(*sent, one))

    def _message(self, event: str, text: str, number: int) -> tuple[str, Event | str]:
        row = next((row for row in self.rows().runs if row.number == number), None)
        if row is None:
            raise LookupError(f"there is no run {number}")
        table = self.app.tables[row.machine]
        kind = table.payloads.get(event)
        if event not in table.events:
            raise LookupError(f"machine {table.name} has no event {event}")
        payload = event if kind is None else self.codec.decode(kind, text.encode(), "payload")
        return row.run_id, payload

    def cancel(self) -> None:
        """Somebody asks the first run to stop."""
        self._guarded(lambda: _ignore(run(self.app.cancel(self.root))))
        self._spot = replace(self._spot, cancelled=True)

    def pause(self) -> None:
        """Somebody pauses the first run."""
        self._guarded(lambda: _ignore(run(self.app.pause(self.root))))
        self._spot = replace(self._spot, paused=True)

    def resume(self) -> None:
        """Somebody lets the first run go on."""
        self._guarded(lambda: _ignore(run(self.app.resume(self.root))))

    def wait(self, moment: int) -> None:
        """Time goes on to one of the `moments`."""
        self.clock.advance_to(self.moments()[moment])
        self._prolong()

    def move(
        self,
        number: int,
        choices: Iterable[Choice] = (),
        *,
        crash_at: int | None = None,
        seen: Callable[[Fingerprint], bool] = lambda found: True,
    ) -> Moved:
        """A worker takes a run and moves it until nothing is due, or it stands at a call.

        Args:
            number: the run's place in the order of acceptance.
            choices: the answers of its first calls, if they are known beforehand.
            crash_at: dies after its commit of this number in the move; 0: before the first one.
            seen: whether a moment is known; what could follow a death there is kept if not.
        """
        if number not in [row.number for row in self.due()]:
            raise LookupError(f"run {number} is not due")
        self._begin_move(number, seen, crash_at)
        self.outside.script = list(choices)
        return self._moved_to(self._guarded(lambda: self._advance(number)))

    def answer(
        self,
        choice: Choice,
        *,
        crash_at: int | None = None,
        seen: Callable[[Fingerprint], bool] = lambda found: True,
    ) -> Moved:
        """The call at which a worker stands gets an answer, and the worker goes on."""
        hand = self._hand
        if hand is None:
            raise LookupError("no worker stands at a call")
        self._begin_move(hand.number, seen, crash_at)
        self._count, self._zombie = hand.commits, hand.zombie
        if choice[0] == "arrives":
            self._arrives(choice[1], choice[2], choice[3])
            return Moved("paused", [], 0, [])
        self.outside.script = [choice]
        self._hand = None
        work = self.app._runner.go_on(hand.job())
        moved = self._moved_to(self._guarded(lambda: _ignore(run(work))))
        if self.outside.script:
            raise LookupError(f"the call does not take the answer {choice[0]} any more")
        return moved

    def _begin_move(
        self, number: int, seen: Callable[[Fingerprint], bool], crash_at: int | None
    ) -> None:
        self._number, self._seen, self._crash_at = number, seen, crash_at
        self._crashes, self._took, self._count, self._points = [], [], 0, 0
        self._zombie, self._lost = False, None
        self.outside.script, self.outside.asked = [], None

    def _moved_to(self, end: End) -> Moved:
        if end == "paused":
            self._hand = self._stopped_at()
        if end == "lost" and not self._zombie:
            self._breach("run lost", "its own worker was told that another one has it")
        self._check_ended()
        return Moved(end, self._crashes, self._points, self._took)

    def _stopped_at(self) -> Hand:
        asked = self.outside.asked
        assert asked is not None and self._before is not None
        claimed, fresh, doubt = self._before
        return Hand(asked, claimed, fresh, doubt, self._number, self._count, self._zombie)

    def _guarded(self, work: Callable[[], None]) -> End:
        """How some work of the engine ended; what it may not raise is a breach."""
        try:
            work()
        except Paused:
            return "paused"
        except Crash:
            return "dead"
        except LostOwnership:
            return "lost"
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            self._breach("the engine raised", f"{type(error).__name__}: {error}")
        return "ended"

    def _advance(self, number: int) -> None:
        worker: Any = self.app._worker
        due = self.due()
        which = next(row.run_id for row in due if row.number == number)
        chosen = {} if len(due) == 1 else {"run_id": which}
        for claimed in run(worker.claim(limit=1, **chosen)):
            run(self.app._runner.advance(claimed))

    def _moved(self, decision: Decision) -> None:
        entry = decision.entry
        self._took.append((entry.source, entry.event, entry.target))
        self._told(decision)

    def claimed(self) -> None:
        """A worker has claimed a run."""
        self._rows = None
        if self._crash_at == 0 and self._count == 0:
            raise Crash("with the run in hand")

    def committed(self) -> None:
        """A worker has committed a step."""
        self._rows = None
        self._count += 1
        self.commits += 1
        if self._lost is not None:
            run_id, was = self._lost
            if not _unchanged(was, self.row(run_id)):
                self._breach("fence", "a worker that had lost the run changed it")
        if self._count > COMMITS_MAX:
            self._breach("endless move", f"{COMMITS_MAX} steps in one move, and no end")
            raise Crash("endless")
        if self.captures and self._crash_at is None:
            self._points += 1
            found = self.fingerprint()
            if not self._seen(found):
                self._crashes.append((self._count, found, self.spot(dead=True)))
        if self._count == self._crash_at:
            raise Crash(f"after commit {self._count}")

    def _lose(self, run_id: str) -> None:
        """Another worker takes the run, and still has it when this one comes back."""
        self._zombie = True
        now_ms = self.clock.now_ms()
        self._rows = None
        self.store.workers.reap(now_ms, dead=lambda worker: True)
        self.store.workers.beat(OTHER, now_ms, lease_until_ms=now_ms + LEASE_MS)
        versions = frozenset(table.fingerprint for table in self.app.tables.values())
        if not self.store.runs.claim(
            OTHER.worker_id, now_ms, limit=1, versions=versions, run_id=run_id
        ):
            return  # it is not free: this worker still has it
        was = self.row(run_id)
        if was is not None:
            self._lost = run_id, was

    # -- checks ---------------------------------------------------------------------------------

    def _breach(self, rule: str, problem: str) -> None:
        self.breaches.append(Breach(rule, problem))

    def _check_intent(self, asked: Asked) -> None:
        """No call before the attempt is recorded, and under the recorded key."""
        row = self.row(asked.call.run_id)
        seen = None if row is None else (row.key, bool(row.open), row.attempts)
        if seen != (asked.call.key, True, asked.call.attempt):
            self._breach(
                "call without record",
                f"{asked.what} of effect {asked.effect.name}: attempt {asked.call.attempt} is "
                f"made, recorded is {'nothing' if seen is None else _said(seen, asked)}",
            )

    def _check_ended(self) -> None:
        self.breaches += check_ended(self.rows().runs, self._spot.ended)


def _ignore(_answer: object) -> None:
    """For work whose answer nobody needs."""


def _said(seen: tuple[str | None, bool, int], asked: Asked) -> str:
    key = "this key" if seen[0] == asked.call.key else "another key"
    return f"{key}, attempt {seen[2]}, {'open' if seen[1] else 'not open'}"


def _unchanged(was: Row, row: Row | None) -> bool:
    if row is None:
        return False
    same = (was.status, was.undo, was.effect, was.key, was.attempts, was.open, was.child)
    return standing(was) == standing(row) and same == (
        row.status, row.undo, row.effect, row.key, row.attempts, row.open, row.child
    )  # fmt: skip


def _small(retry: Retry, most: int) -> Retry:
    attempts = retry.attempts if retry.attempts >= FOREVER_FROM else min(retry.attempts, most)
    return Retry(attempts, retry.first_ms, 1.0, max(retry.max_ms, retry.first_ms), 0.0)


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never really waits."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    work.close()
    raise AssertionError("the engine waited for the event loop; exploring needs an inline store")


@contextmanager
def silence() -> Iterator[None]:
    """No log lines meanwhile: rendering them costs more than the steps they tell of."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)
