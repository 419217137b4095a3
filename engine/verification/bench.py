"""The real engine over the real store, moved one decision at a time and without an event loop.

A `Spot` is everything there is at a quiet moment: the database, the outside's ledger, the clock,
and what was sent so far.  `Bench` goes to a spot and takes one action from there:

    start M C        a run is accepted                 clock N     time goes on to the Nth moment
    send E P         an event arrives                  move N      a worker takes run N; with the
    again E P        the same event arrives again                  answers of its calls (`outside`)
    cancel           somebody asks the run to stop     crash N     and dies after its Nth commit

A worker that died leaves its runs owned; before the next action another one finds it dead, frees
what it held and takes over, as `Lease.beat` does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import msgspec
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
from engine.ports import InboxEvent, Store, WorkerIdentity
from engine.retry import Retry
from engine.secrets import SecretsCodec
from engine.table import Table
from engine.testing.clock import ManualClock
from engine.testing.faults import Crash, CrashingStore, CrashPlan
from engine.verification.oracles import Breach, check_ended, ended, standing
from engine.verification.outside import Asked, Choice, Outside, Paused
from engine.verification.scope import hints_of
from engine.verification.snapshot import Fingerprint, Row, Snapshots, fingerprint, left
from engine.worker import LEASE_MS
from engine.world import World

T = TypeVar("T")
End = Literal["ended", "paused", "dead", "lost"]
COMMITS_MAX = 500
ATTEMPTS = 3
"""Retry policies are explored with at most so many attempts, a fixed delay and no jitter."""
FOREVER_FROM = 1_000
SMALL_MAX = 20
OTHER = WorkerIdentity("w-other", "elsewhere", 1, "")


@dataclass(frozen=True, slots=True)
class Spot:
    """A quiet moment; `dead` means that the worker has just died."""

    saved: bytes
    now_ms: int
    done: Mapping[str, tuple[str, str]]
    sent: tuple[tuple[str, str, int], ...] = ()
    cancelled: bool = False
    dead: bool = False
    ended: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(slots=True)
class Moved:
    """How a move ended, and the moments at which its worker could have died on the way."""

    end: End
    crashes: list[tuple[int, Fingerprint, Spot]]
    points: int
    """How many moments that were, known ones included."""


class _Recorder(CrashPlan):
    """Counts the commits of one move, and says when one has passed."""

    def __init__(self) -> None:
        super().__init__()
        self.committed: Callable[[], None] = lambda: None

    def around(self, name: str, call: Callable[[], T]) -> T:
        result = call()
        if name == "runs.commit":
            self.committed()
        return result


class Bench:
    """One engine, one store, one clock.

    Args:
        machines: every machine that may run.
        store: a store in memory; whatever is in it is lost.
        moved: told of every transition (also those of repeated prefixes).
        refused: told of every event that a run refused.
    """

    def __init__(
        self,
        machines: Iterable[type[Machine[Any]]],
        store: Store,
        *,
        moved: Callable[[Decision], None],
        refused: Callable[[Job, InboxEvent], None],
    ) -> None:
        self.store = store
        self.snapshots = Snapshots(store)
        self.clock = ManualClock(start_ms=0)
        self._recorder = _Recorder()
        self.app = App(
            machines,
            store,
            secrets=SecretsCodec(bytes(32)),
            world=self._world(),
            work=False,
            moved=moved,
        )
        self.codec: Codec = self.app.codec
        self.breaches: list[Breach] = []
        self.commits = 0
        self.root = ""
        self._seen: Callable[[Fingerprint], bool] = lambda found: True
        self._crashes: list[tuple[int, Fingerprint, Spot]] = []
        self._given: tuple[Choice, ...] = ()
        self._count = 0
        self._points = 0
        self._crash_at: int | None = None
        self._spot = Spot(b"", 0, {})
        self._timed = {name for name, table in self.app.tables.items() if _reads_the_time(table)}
        self._numbers = {name: _greatest(table) for name, table in self.app.tables.items()}
        self._cut: dict[tuple[str, bytes], bytes] = {}
        self._first: set[Any] = set()
        self._retries = [(effect, effect.retry) for effect in self._effects()]
        self._recorder.committed = self._committed
        self._spy(refused)
        for effect, retry in self._retries:
            effect.retry = _small(retry)
        run(self.app.open())
        self.empty = self.spot()

    def _world(self) -> World:
        recording: Any = lambda store: CrashingStore(store, self._recorder)  # noqa: E731
        return World(
            clock=self.clock,
            calls=self._outside(),
            store=recording,
            io=InlineIo(),
            committer=DirectCommitter,
            new_id=lambda now_ms: f"r{1:025d}",
        )

    def _outside(self) -> Outside:
        self.outside = Outside(
            encode=lambda payload: self.codec.encode(payload),
            decode=lambda kind, text: self.codec.decode(kind, text.encode(), "payload"),
            deliver=lambda event, text, number: self._deliver(
                event, text, int(number), again=False
            ),
            lose=self._lose,
            check=self._check_intent,
            breach=self._breach,
        )
        return self.outside

    def _spy(self, refused: Callable[[Job, InboxEvent], None]) -> None:
        runner: Any = self.app._runner
        performer, step, reject = runner._performer, runner._performer.step, runner._reject

        async def stepping(job: Job) -> None:
            self.outside.job = job
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

    def spot(self, *, dead: bool = False) -> Spot:
        """This moment."""
        return replace(
            self._spot,
            saved=self.snapshots.save(),
            now_ms=self.clock.now_ms(),
            done=dict(self.outside.done),
            dead=dead,
            ended=ended(self.snapshots.runs()),
        )

    def go(self, spot: Spot) -> None:
        """Go to a moment; a dead worker's runs are freed."""
        self._spot = spot
        self.breaches = []
        self.outside.done = dict(spot.done)
        self.clock.advance(spot.now_ms - self.clock.now_ms())
        self.snapshots.load(spot.saved)
        lease: Any = self.app._lease
        lease._until_ms = spot.now_ms + LEASE_MS
        if spot.dead:
            self.store.workers.reap(spot.now_ms, dead=lambda worker: True)
            run(self.app.beat())

    def fingerprint(self) -> Fingerprint:
        """What the future depends on, at this moment."""
        rows, now_ms = self.snapshots.runs(), self.clock.now_ms()
        known = tuple(self._truth(row) for row in rows if row.effect)
        times = tuple(left(at, now_ms) for row in rows if row.live for at in self._moments(row))
        return (
            fingerprint(rows, self.snapshots.inbox(), now_ms, self._counted),
            known,
            self._doubts(),
            times,
            tuple(sorted(self._spot.sent)),
            self._spot.cancelled,
        )

    def _counted(self, row: Row) -> bytes:
        """The context with every counter that has outgrown the machine's numbers cut off.

        A machine that counts without end would have endless states; whole numbers that were not
        there at the start and are above all small ones in the machine's code count as one.
        """
        key = (row.machine, row.context)
        if key not in self._cut:
            most = self._numbers[row.machine]
            fields = msgspec.json.decode(row.context)
            cut = {
                name: most if self._has_outgrown(value, most) else value
                for name, value in fields.items()
            }
            self._cut[key] = msgspec.json.encode(cut)
        return self._cut[key]

    def _has_outgrown(self, value: Any, most: int) -> bool:
        return type(value) is int and value > most and value not in self._first

    def _truth(self, row: Row) -> tuple[str, str] | None:
        """What the outside did under a pending effect's key, where anybody will ask."""
        places = self.app.tables[row.machine].places
        effect = places[row.undo_of].compensation if row.undo_of else places[row.state].effect
        if row.key is None or effect is None or (effect.idempotent and effect.ask is None):
            return None
        return self.outside.done.get(row.key)

    def _doubts(self) -> frozenset[tuple[str, str]]:
        """Where the record of effects and the ledger of the outside differ.

        Some of it is a defect and some is not; but two moments are not one when they differ here.
        """
        done = self.outside.done
        return frozenset(
            (one.status, one.name)
            for one in self.snapshots.effects()
            if (one.status == "done" and one.key not in done)
            or (one.status == "abandoned" and one.key in done)
        )

    def in_hand(self) -> Fingerprint:
        """The same while a worker stands at a call."""
        asked = self.outside.asked
        assert asked is not None
        job = asked.job
        waiting = tuple((event.event, event.payload) for event in job.inbox)
        role = self._role(job.run.run_id)
        return ("hand", asked.what, asked.effect.name, role, job.fresh, job.doubt, waiting,
                self.fingerprint())  # fmt: skip

    def _role(self, run_id: str) -> int:
        kept = [row for row in self.snapshots.runs() if row.live or row.parent_id is None]
        return next((i for i, row in enumerate(kept) if row.run_id == run_id), -1)

    def row(self, run_id: str) -> Row | None:
        """One run as it is stored."""
        return next((row for row in self.snapshots.runs() if row.run_id == run_id), None)

    def due(self) -> list[Row]:
        """The runs that a worker would take now."""
        now_ms = self.clock.now_ms()
        return [
            row
            for row in self.snapshots.runs()
            if row.due_ms is not None and row.due_ms <= now_ms and row.owner is None
        ]

    def moments(self) -> list[int]:
        """The moments to come at which something may change, soonest first."""
        now_ms = self.clock.now_ms()
        found = set()
        for row in self.snapshots.runs():
            if row.live and row.status not in ("paused", "quarantined"):
                times = [row.due_ms, row.deadline_ms, *self._moments(row)]
                times += [row.next_ms] if row.effect else []
                found |= {at for at in times if at is not None and at > now_ms}
        return sorted(found)

    def _moments(self, row: Row) -> list[int]:
        """Moments in the context of a machine that looks at the clock."""
        if row.machine not in self._timed:
            return []
        kind = self.app.tables[row.machine].context
        context = self.codec.decode(kind, row.context, "context")
        values = [getattr(context, name) for name in kind.__struct_fields__ if name.endswith("_ms")]
        return [value for value in values if isinstance(value, int)]

    # -- actions --------------------------------------------------------------------------------

    def start(self, machine: str, context: str) -> bool:
        """Accept a run; false when its machine refuses the context."""
        kind = self.app.tables[machine].context
        given = self.codec.decode(kind, context.encode(), "context")
        self._first = {value for value in msgspec.json.decode(context).values()
                       if type(value) is int}  # fmt: skip
        self._cut.clear()
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

    def probe(self, event: str, text: str) -> None:
        """An event for which the state has no use arrives, and changes nothing."""
        was = self.row(self.root)
        self._count, self._crash_at, self._seen = 0, None, lambda found: True
        self.outside.script = []
        self._recorder.committed = self._committed
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
        row = next((row for row in self.snapshots.runs() if row.number == number), None)
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

    def wait(self, moment: int) -> None:
        """Time goes on to one of the `moments`."""
        self.clock.advance_to(self.moments()[moment])
        run(self.app.beat())

    def move(
        self,
        number: int,
        choices: Iterable[Choice] = (),
        *,
        crash_at: int | None = None,
        seen: Callable[[Fingerprint], bool] = lambda found: True,
    ) -> Moved:
        """A worker takes a run and moves it until nothing is due, or a call has no answer yet.

        Args:
            number: the run's place in the order of acceptance.
            choices: the answers of its calls.
            crash_at: dies after its commit of this number.
            seen: whether a moment is known; what could follow a death there is kept if not.
        """
        self._given = tuple(choices)
        self.outside.script = list(self._given)
        self.outside.asked = None
        self._recorder.committed = self._committed
        self._crashes, self._count, self._crash_at, self._seen = [], 0, crash_at, seen
        self._points = 0
        if number not in [row.number for row in self.due()]:
            raise LookupError(f"run {number} is not due")
        end = self._guarded(lambda: self._advance(number))
        if end == "lost" and "zombie" not in [choice[0] for choice in self._given]:
            self._breach("run lost", "its own worker was told that another one has it")
        self._check_ended()
        return Moved(end, self._crashes, self._points)

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

    def _committed(self) -> None:
        self._count += 1
        self.commits += 1
        if self._count > COMMITS_MAX:
            self._breach("endless move", f"{COMMITS_MAX} steps in one move, and no end")
            raise Crash("endless")
        if not self.outside.script and self._crash_at is None:
            self._points += 1
            found = self.fingerprint()
            if not self._seen(found):
                self._crashes.append((self._count, found, self.spot(dead=True)))
        if self._count == self._crash_at:
            raise Crash(f"after commit {self._count}")

    def _lose(self, run_id: str) -> None:
        """Another worker takes the run, and still has it when this one comes back."""
        now_ms = self.clock.now_ms()
        self.store.workers.reap(now_ms, dead=lambda worker: True)
        self.store.workers.beat(OTHER, now_ms, lease_until_ms=now_ms + LEASE_MS)
        versions = frozenset(table.fingerprint for table in self.app.tables.values())
        if not self.store.runs.claim(
            OTHER.worker_id, now_ms, limit=1, versions=versions, run_id=run_id
        ):
            return  # it is not free: this worker still has it
        was = self.row(run_id)
        before = self._recorder.committed

        def written() -> None:
            self._recorder.committed = before
            if was is not None and not _unchanged(was, self.row(run_id)):
                self._breach("fence", "a worker that had lost the run changed it")
            before()

        self._recorder.committed = written

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
        self.breaches += check_ended(self.snapshots.runs(), self._spot.ended)


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


def _small(retry: Retry) -> Retry:
    attempts = retry.attempts if retry.attempts >= FOREVER_FROM else min(retry.attempts, ATTEMPTS)
    return Retry(attempts, retry.first_ms, 1.0, max(retry.max_ms, retry.first_ms), 0.0)


def _greatest(table: Table) -> int:
    """A number above the small ones with which a machine compares."""
    numbers = [n for n in hints_of(table).numbers if n <= SMALL_MAX]
    return max(numbers, default=3) + 1


def _reads_the_time(table: Table) -> bool:
    methods = (getattr(value, "__code__", None) for value in vars(table.machine).values())
    return any("now_ms" in code.co_varnames for code in methods if code is not None)


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
