"""A store that several workers share, watched at every use.

`Peek` looks at rows without a transaction of the engine.  `Watch` is asked at each use of the store
and knows whom a run belonged to before it: only the owner changes a run, under its fence, at its
sequence number; nobody is given what somebody has; what has ended stays.  `Watched` is the store as
one process sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.app import App
from engine.clock import Clock
from engine.desk import Job
from engine.ports import Claimed, Store, WorkerIdentity, Write, Written
from engine.run import TERMINAL
from engine.verification.oracles import Breach
from engine.verification.scheduler import Actor, Chance, Scheduler
from engine.verification.snapshot import key_of


class Standing(NamedTuple):
    """A run's row, as far as ownership goes."""

    fence: int
    owner: str | None
    status: str
    seq: int


class Peek:
    """Looks into a database in memory, so that looking is no step of any schedule."""

    def __init__(self, store: Store) -> None:
        self._moments = store.moments

    def standing(self, run_id: str) -> Standing | None:
        """One run."""
        query = "SELECT fence, owner, status, seq FROM turtles_run WHERE run_id = ?"
        rows = self._moments.ask(query, (run_id,))
        return Standing(*rows[0]) if rows else None

    def owners(self) -> dict[str, str]:
        """The runs that somebody owns."""
        query = "SELECT run_id, owner FROM turtles_run WHERE owner IS NOT NULL"
        return dict(self._moments.ask(query))

    def due(self, now_ms: int) -> bool:
        """Whether anything is due, owned or not."""
        query = "SELECT 1 FROM turtles_run WHERE due_ms <= ? LIMIT 1"
        return bool(self._moments.ask(query, (now_ms,)))

    def next_ms(self, now_ms: int) -> int | None:
        """The next moment at which something falls due."""
        query = "SELECT min(due_ms) FROM turtles_run WHERE due_ms > ?"
        found: int | None = self._moments.ask(query, (now_ms,))[0][0]
        return found

    def pending(self, run_id: str) -> tuple[str | None, str | None, bool, int]:
        """Owner of a run, and key, openness and attempts of its pending effect."""
        rows = self._moments.ask(
            "SELECT owner, effect_seq, effect_name, effect_open, effect_attempts FROM turtles_run"
            " WHERE run_id = ?", (run_id,)
        )  # fmt: skip
        if not rows:
            return None, None, False, 0
        row = rows[0]
        key = None if row[2] is None else key_of(run_id, row[1], row[2])
        return row[0], key, bool(row[3]), row[4] or 0

    def inbox(self) -> dict[tuple[str, str], tuple[str, int | None]]:
        """Status and transition of every event, by run and key."""
        rows = self._moments.ask("SELECT run_id, key, status, consumed_seq FROM turtles_inbox")
        return {(run_id, key): (status, seq) for run_id, key, status, seq in rows}

    def resting(self, machines: Sequence[str]) -> list[str]:
        """The runs of these machines that wait for an event, and have none."""
        marks = ", ".join("?" * len(machines))
        rows = self._moments.ask(
            f"SELECT run_id FROM turtles_run r WHERE machine IN ({marks})"  # noqa: S608 - marks
            " AND status = 'waiting' AND due_ms IS NULL AND closing IS NULL AND NOT EXISTS"
            " (SELECT 1 FROM turtles_inbox i WHERE i.run_id = r.run_id AND i.status = 'accepted')"
            f" ORDER BY {self._moments.order}", tuple(machines)
        )  # fmt: skip
        return [row[0] for row in rows]

    def held(self) -> set[str]:
        """The runs that wait for a person."""
        query = "SELECT run_id FROM turtles_run WHERE status IN ('paused', 'quarantined')"
        return {row[0] for row in self._moments.ask(query)}

    def content(self) -> tuple[Any, ...]:
        """All that the rules of storage look at, without times and fences."""
        ask = self._moments.ask
        return (
            tuple(ask("SELECT run_id, state, status, seq, context, child, closing, owner,"
                      " parent_id, due_ms IS NULL, last_error FROM turtles_run")),
            tuple(ask("SELECT run_id, seq, event, source, target, status, context, payload"
                      " FROM turtles_transition")),
            tuple(ask("SELECT run_id, seq, name, status, open, calls > 0, closed_seq"
                      " FROM turtles_effect")),
            tuple(ask("SELECT run_id, key, event, status, consumed_seq FROM turtles_inbox")),
        )  # fmt: skip


@dataclass(eq=False)
class Worker:
    """One process that moves runs, and what is known of it.

    Attributes:
        job: the run it looked at last.
        holding: the run it was given and has not given up, as far as it knows.
        seen: the version of the store at which it last looked for work.
        lease_ms: the end of its lease, as the store has it.
        lapsed: its lease has been over since it was given its run.
        flight_ms: when a request was decided on, until it has reached the outside.
    """

    identity: WorkerIdentity
    app: App = field(init=False)
    actor: Actor = field(init=False)
    heart: Actor = field(init=False)
    work: Any = None
    job: Job | None = None
    holding: str | None = None
    idle: bool = True
    beating: bool = False
    seen: int = -1
    beaten_ms: int = 0
    lease_ms: int = 0
    lapsed: bool = False
    flight_ms: int | None = None

    @property
    def name(self) -> str:
        """Its id."""
        return self.identity.worker_id

    def begin(self, now_ms: int, lease_ms: int) -> None:
        """As after its start; without a lease it beats first."""
        lease: Any = self.app._lease
        lease._until_ms = self.lease_ms = lease_ms
        self.beaten_ms = now_ms if lease_ms else -1
        self.job = self.holding = self.flight_ms = None
        self.idle, self.beating, self.lapsed, self.seen = True, False, False, -1


@dataclass(slots=True)
class Figures:
    """What happened in all schedules together."""

    calls: int = 0
    commits: int = 0
    lost: int = 0
    zombies: int = 0
    deaths: int = 0
    duplicates: int = 0
    unfinished: int = 0


class Watch:
    """Sees every use of the store by anybody.

    Args:
        peek: looks at the rows before and after.
        clock: the one of all.
    """

    def __init__(self, peek: Peek, clock: Clock) -> None:
        self.peek = peek
        self.clock = clock
        self.figures = Figures()
        self.begin(Scheduler(Chance(0), lambda actor: None))

    def begin(self, scheduler: Scheduler) -> None:
        """As before the first use."""
        self.scheduler = scheduler
        self.breaches: list[Breach] = []
        self.version = 0
        self.said = ""
        self.dead: set[str] = set()

    def breach(self, rule: str, problem: str) -> None:
        """Something is wrong."""
        self.breaches.append(Breach(rule, problem))

    def changed(self, said: str) -> None:
        """Something may have become due."""
        self.said = said
        self.version += 1

    def claimed(self, worker: Worker | None, claim: Callable[[], list[Claimed]]) -> list[Claimed]:
        """A claim; nobody is given what somebody has."""
        owned = self.peek.owners()
        found = claim()
        self.said = "claim: " + (found[0].run.state if found else "nothing")
        for one in found:
            run_id, name = one.run.run_id, worker.name if worker else "a client"
            if run_id in owned:
                self.breach("two owners", f"{name} took run {run_id} from {owned[run_id]}")
            if worker is not None:
                worker.holding = run_id
                worker.lapsed = worker.lease_ms <= self.clock.now_ms()
        return found

    def committed(
        self, worker: Worker | None, writes: Sequence[Write], commit: Callable[[], list[Written]]
    ) -> list[Written]:
        """A commit; only the owner changes a run, under its fence, and nothing that has ended."""
        (write,) = writes
        was = self.peek.standing(write.before.run_id)
        (written,) = commit()
        self.said = f"commit: {write.after.state}{'' if written.ok else ' (refused)'}"
        self.figures.commits += 1
        if written.ok and was is not None and worker is not None:
            self.version += 1
            self._check(worker, write, was)
        return [written]

    def _check(self, worker: Worker, write: Write, was: Standing) -> None:
        if was.owner != worker.name or was.fence != write.fence:
            self.breach("fence", f"{worker.name} (fence {write.fence}) had lost the run to "
                                 f"{was.owner} (fence {was.fence}), and changed it")  # fmt: skip
        if was.seq != write.before.seq:
            self.breach("sequence", f"{worker.name} wrote upon seq {write.before.seq}, the run "
                                    f"was at {was.seq}")  # fmt: skip
        if was.status in TERMINAL:
            self.breach("ended run moved", f"it was {was.status}, {worker.name} changed it")

    def beaten(self, worker: Worker | None, lease_until_ms: int) -> None:
        """A lease was prolonged; others may move before dead workers are looked for."""
        self.said = "beat"
        if worker is not None:
            worker.lease_ms = lease_until_ms
            worker.lapsed = worker.lapsed or lease_until_ms <= self.clock.now_ms()
        self.scheduler.meanwhile()

    def reaped(self, now_ms: int, workers: Any) -> int:
        """A reap; others may move between its look at the leases and what it frees."""
        asked: list[str] = []

        def dead(worker: WorkerIdentity) -> bool:
            if not asked:
                asked.append(worker.worker_id)
                self.scheduler.meanwhile()
            return worker.worker_id in self.dead

        freed: int = workers.reap(now_ms, dead=dead)
        self.said = f"beat, freed {freed}"
        self.version += bool(freed)
        return freed


class _Noun:
    def __init__(self, watch: Watch, worker: Worker | None, inner: Any) -> None:
        self._watch, self._worker, self._inner = watch, worker, inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Runs(_Noun):
    def start(self, starts: Sequence[Any]) -> Any:
        self._watch.changed("start")
        return self._inner.start(starts)

    def claim(self, worker_id: str, now_ms: int, **how: Any) -> list[Claimed]:
        claim = self._inner.claim
        return self._watch.claimed(self._worker, lambda: claim(worker_id, now_ms, **how))

    def commit(self, writes: Sequence[Write]) -> list[Written]:
        commit = self._inner.commit
        return self._watch.committed(self._worker, writes, lambda: commit(writes))


class _Inbox(_Noun):
    def deliver(self, deliveries: Sequence[Any]) -> Any:
        self._watch.changed("deliver")
        return self._inner.deliver(deliveries)


class _Workers(_Noun):
    def beat(self, worker: WorkerIdentity, now_ms: int, *, lease_until_ms: int) -> None:
        self._inner.beat(worker, now_ms, lease_until_ms=lease_until_ms)
        self._watch.beaten(self._worker, lease_until_ms)

    def reap(self, now_ms: int, *, dead: Callable[[WorkerIdentity], bool]) -> int:
        return self._watch.reaped(now_ms, self._inner)


class Watched:
    """The shared store, as one process uses it; None: a client, which moves nothing."""

    def __init__(self, watch: Watch, worker: Worker | None, inner: Store) -> None:
        self._inner = inner
        self.runs = _Runs(watch, worker, inner.runs)
        self.inbox = _Inbox(watch, worker, inner.inbox)
        self.workers = _Workers(watch, worker, inner.workers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
