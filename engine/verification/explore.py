"""Exhaustive exploration of a machine in a small scope, over the real engine and the real store.

::

    report = explore(Payment, open_store("sqlite://"), budget_seconds=10)
    assert report.ok, report.failures

From every moment (`bench.Spot`) every step of `options` is tried: every action, in every call of an
effect every answer, and a death of the worker after every commit and around every call; also during
recovery, without limit.  Moments with the same fingerprint are one state.  States are taken in the
order of their distance from the start, so the first way found to a failure is a shortest one.

A share of the ways is gone again from the very beginning, without snapshots; another fingerprint
at their end means that the exploration cannot be trusted (`report.mismatches`).

Bounds (`Scope`) and the environment are part of the answer: `EXHAUSTED` means within them.
"""

from __future__ import annotations

import random
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import msgspec

from engine.decide import Decision, decide
from engine.definition import Machine
from engine.desk import Job
from engine.errors import TurtlesError, UsageError
from engine.events import Context
from engine.ports import InboxEvent, Store
from engine.table import Table, compile_table
from engine.verification.bench import Bench, Hand, Moved, Spot, silence
from engine.verification.checking import Checking
from engine.verification.coverage import (
    CALL_FAULTS,
    DIED_AFTER,
    DIED_BEFORE,
    TWICE,
    Coverage,
    Transition,
)
from engine.verification.environment import Environment, environment_of
from engine.verification.lint import unhandled
from engine.verification.options import Options, Setting
from engine.verification.oracles import Breach
from engine.verification.outside import FAULTS, Choice
from engine.verification.result import Failure, Report, Scope, Step
from engine.verification.scope import contexts_of, hints_from, reads
from engine.verification.snapshot import Fingerprint
from engine.verification.standin import stand_in
from engine.verification.walk import Walk, take

__all__ = ["Failure", "Repeated", "Report", "Rig", "Scope", "explore", "repeat"]
REPEAT_ONE_IN = 100
LIVENESS_SECONDS = 10.0
ANOTHER_CONTEXT_EVERY = 200
TELL_EVERY_SECONDS = 0.2
FREE = frozenset({"clock", "child"})
"""Steps that come about by themselves, once faults have stopped and nobody sends anything."""


@dataclass(slots=True)
class _Node:
    number: int
    parent: int
    steps: tuple[Step, ...]
    depth: int
    spot: Spot | None
    """Dropped when the node has been expanded."""
    found: Fingerprint
    quiet: bool


def explore(
    machine: type[Machine[Any]] | Table,
    store: Store,
    *,
    known: Iterable[type[Machine[Any]]] = (),
    budget_seconds: float = 30.0,
    seed: int = 0,
    scope: Scope | None = None,
    contexts: Sequence[Context] = (),
    environment: Environment | None = None,
    first_failure: bool = False,
    until: Transition | None = None,
    progress: Callable[[Report], None] | None = None,
) -> Report:
    """Explore one machine.

    Args:
        machine: the machine under test, or what it compiles to.
        store: `persistence.open_store("sqlite://")`; what is in it is lost.
        known: machines that it may start as children.
        budget_seconds: stop then, and say what was left.
        seed: which ways are repeated from the beginning.
        scope: the bounds; by default those of the environment.
        contexts: first contexts to begin with, instead of the environment's or small ones.
        environment: what the outside may do; by default the one that was defined for the machine.
        first_failure: stop at the first failure.
        until: stop when this transition was made; `report.reached` is the way there.
        progress: told of the report now and then.

    Raises:
        UsageError: the store is a file, or the budget is not positive.
        OutOfScope: no small context fulfils the machine's invariants; give some.
    """
    if not budget_seconds > 0:
        raise UsageError(f"budget: expected more than 0 seconds, got {budget_seconds:g}")
    rig = Rig(machine, store, known=known, scope=scope, environment=environment, seed=seed)
    try:
        with silence():
            explorer = _Explorer(rig, progress)
            explorer.begin(contexts)
            return explorer.explore(budget_seconds, first_failure, until)
    finally:
        rig.bench.close()


class Repeated(msgspec.Struct, frozen=True):
    """One way gone again: what is wrong on it, and where the runs were after each action.

    Args:
        whole: whether it could be gone to its end.
    """

    breaches: tuple[Breach, ...]
    states: tuple[str, ...]
    whole: bool = True


def repeat(
    machine: type[Machine[Any]] | Table,
    store: Store,
    steps: Sequence[Step],
    *,
    known: Iterable[type[Machine[Any]]] = (),
    environment: Environment | None = None,
    liveness: bool = False,
    as_far: bool = False,
) -> Repeated:
    """Go one way again, and say what is wrong on it.

    Args:
        liveness: also whether an end can still be reached from where it leads.
        as_far: a step that is not possible any more ends the way, as a mended machine may.

    Raises:
        UsageError: a step is not possible (any more), unless `as_far`.
    """
    scope = Scope(messages=0, cancels=False, faults=False) if liveness else None
    rig = Rig(machine, store, known=known, scope=scope, environment=environment)
    try:
        with silence():
            return _Explorer(rig, None).repeat(steps, liveness=liveness, as_far=as_far)
    finally:
        rig.bench.close()


class Rig:
    """One machine on a bench, in its environment, with everything that is counted about it.

    Args:
        as for `explore`.
    """

    def __init__(
        self,
        machine: type[Machine[Any]] | Table,
        store: Store,
        *,
        known: Iterable[type[Machine[Any]]] = (),
        scope: Scope | None = None,
        environment: Environment | None = None,
        seed: int = 0,
    ) -> None:
        self.table = machine if isinstance(machine, Table) else compile_table(machine)
        environment = environment or environment_of(self.table.machine)
        _check_events(self.table, environment)
        children = environment.stand_ins if environment else ()
        others = {one.__name__: one for one in (*known, *children)}
        others.pop(self.table.name, None)
        tables = {name: compile_table(one) for name, one in others.items()}
        stands = {one.__name__: tables[one.__name__] for one in children}
        played = {name: stand_in(one) if name in stands else one for name, one in others.items()}
        self.environment = environment
        self.scope = scope or (environment.scope if environment else Scope())
        marks = environment.properties("sometimes") if environment else ()
        self.coverage = Coverage(
            self.table,
            [name for name, _ in marks],
            environment.reasons if environment else {},
        )
        self.report = Report(self.table, self.scope, seed, self.coverage)
        self.report.stand_ins = tuple(stands)
        self.bench = Bench(
            [self.table, *played.values()],
            store,
            moved=self._moved,
            refused=self._refused,
            exact=[self.table.name, *stands] if environment else (),
            attempts=self.scope.attempts,
        )
        self.bench.captures = self.scope.faults
        left_out = self._left_out(list(others.values()))
        setting = Setting(self.table, self.scope, environment, left_out, stands)
        self.options = Options(self.bench, setting)
        self.checking = Checking(self.bench, setting, self.coverage)
        self.walk = Walk(self.bench)

    def _moved(self, decision: Decision) -> None:
        self.coverage.moved(decision)
        before, entry = decision.before, decision.entry
        if before is None or before.deadline_ms is None or entry.at_ms >= before.deadline_ms:
            return
        event = self.bench.app.tables[before.machine].places[before.state].on_timeout
        if entry.event == event and event not in self.options.external[before.machine]:
            self.bench.breaches.append(Breach("timer too early", f"{event} in {before.state}"))

    def _refused(self, job: Job, event: InboxEvent) -> None:
        self.coverage.refused(job.table.name, job.run.state, event.event)

    def _left_out(self, known: Sequence[type[Machine[Any]]]) -> frozenset[str]:
        """States whose author says that their effect never gives what they do not handle."""
        found = unhandled(self.table, known)
        for state, reason in found.items():
            self.report.notes.append(
                f"outcomes that {state} does not handle were left out (V011: {reason})"
            )
        return frozenset(found)

    def first_contexts(self, given: Sequence[Context]) -> list[Context]:
        """Those that were given, or the environment's, or the smallest."""
        own = list(self.environment.contexts()) if self.environment else []
        found = list(given) or own
        return found or list(contexts_of(self.table, state=self.table.initial, limit=1))


def _check_events(table: Table, environment: Environment | None) -> None:
    for event in environment.events() if environment else ():
        if event not in table.events:
            raise UsageError(
                f"environment of {table.name}: it has payloads for {event!r}, which is none of "
                f"its events: {', '.join(sorted(table.events))}."
            )


class _Explorer:
    def __init__(self, rig: Rig, progress: Callable[[Report], None] | None) -> None:
        self.rig = rig
        self.table = rig.table
        self.bench = rig.bench
        self.coverage = rig.coverage
        self.report = rig.report
        self.progress = progress
        self.chance = random.Random(rig.report.seed)  # noqa: S311 - which ways are repeated
        self.nodes: list[_Node] = []
        self.numbers: dict[Fingerprint, int] = {}
        self.queue: deque[int] = deque()
        self.edges: list[tuple[int, int]] = []
        self.settled: set[int] = set()
        self.probed: set[tuple[str, str]] = set()
        self.rules: set[str] = set()
        self.tried: set[str] = set()
        self.made: dict[Any, Transition | None] = {}
        self.given = False
        self.until: Transition | None = None
        self.began = perf_counter()

    # -- the search -----------------------------------------------------------------------------

    def begin(self, contexts: Sequence[Context]) -> None:
        """The first moments, one for each first context."""
        for context in self.rig.first_contexts(contexts):
            self._begin(self.bench.codec.encode(context).decode())
        if not self.nodes:
            raise UsageError(
                f"machine {self.table.name}: no first context was accepted. Give one that "
                "fulfils the invariants of its initial state."
            )
        self.given = bool(contexts) or self.rig.environment is not None

    def _begin(self, text: str) -> None:
        self.tried.add(text)
        self.bench.go(self.bench.empty)
        if self.bench.start(self.table.name, text):
            self.report.contexts += 1
            self._add(None, (("start", self.table.name, text),), self.bench.fingerprint())
        else:
            self.report.notes.append(f"a first context was refused: {text[:200]}")

    def _begin_another(self) -> bool:
        """Another first context, if transitions are missing that may need one."""
        missing = set(self.coverage.missing_transitions)
        if not missing or self.given or len(self.tried) >= self.rig.scope.contexts:
            return False
        edges = [e for e in self.table.all_edges() if (e.source, e.event, e.target) in missing]
        clauses = [clause.call for edge in edges for clause in (*edge.guards, *edge.requires)]
        hints = hints_from(reads(self.table, clauses))
        for context in contexts_of(self.table, state=self.table.initial, limit=40, hints=hints):
            text = self.bench.codec.encode(context).decode()
            if text not in self.tried:
                self._begin(text)
                return True
        return False

    def explore(
        self, budget_seconds: float, first_failure: bool, until: Transition | None
    ) -> Report:
        """Take states from the queue until it is empty or the time is over."""
        last, taken, told = self.began + budget_seconds, 0, self.began
        missing, self.until = len(self.coverage.all_transitions), until
        while (now := perf_counter()) < last and (self.queue or self._begin_another()):
            if self.report.reached or (self.report.failures and (first_failure or not self.queue)):
                break
            if not self.queue:
                continue
            if self.progress is not None and now - told > TELL_EVERY_SECONDS:
                told = now
                self.progress(self._counted())
            taken += 1
            if taken % ANOTHER_CONTEXT_EVERY == 0:
                missing, before = len(self.coverage.missing_transitions), missing
                if missing == before:
                    self._begin_another()  # do not wait for the end of the first one's life
            node = self.nodes[self.queue.popleft()]
            self._repeat_some(node)
            self._expand(node)
            node.spot = None
        self._check_progress()
        return self._counted()

    def _counted(self) -> Report:
        report = self.report
        report.states, report.left = len(self.nodes), len(self.queue)
        report.commits = self.bench.commits
        report.depth = max(node.depth for node in self.nodes)
        report.took_seconds = perf_counter() - self.began
        if report.complete_after_seconds is None and self.coverage.complete:
            report.complete_after_seconds = report.took_seconds
        return report

    def _add(
        self,
        parent: _Node | None,
        steps: tuple[Step, ...],
        found: Fingerprint,
        *,
        spot: Spot | None = None,
        dead: bool = False,
        fault: bool = False,
    ) -> None:
        """A state, if it is new; `spot`: what to keep of it, by default where the bench is."""
        number = self.numbers.get(found)
        if number is None:
            number = len(self.nodes)
            depth = parent.depth + 1 if parent else 0
            above = parent.number if parent else -1
            spot = spot or self.bench.spot(dead=dead)
            self.numbers[found] = number
            self.nodes.append(
                _Node(number, above, steps, depth, spot, found, quiet=spot.hand is None)
            )
            self.queue.append(number)
            self.report.digest = zlib.crc32(repr(found).encode(), self.report.digest)
        if parent is not None and not fault:
            self.edges.append((parent.number, number))

    def _expand(self, node: _Node) -> None:
        assert node.spot is not None
        self.bench.go(node.spot)
        if node.spot.hand is not None:
            self._expand_call(node, node.spot, node.spot.hand)
            return
        self._note(node, (), self.rig.checking.breaches())
        if self.rig.checking.is_settled():
            self.settled.add(node.number)
        spot = self.bench.spot()
        for step in list(self.rig.options.next()):
            self._try(node, spot, step)
        self._probe(node, spot)

    def _expand_call(self, node: _Node, spot: Spot, hand: Hand) -> None:
        zombies = 0
        for step in list(self.rig.options.next()):
            if step[1] == "zombie":  # one shows all, but for the coverage
                made = self._would_make(hand, step[1:])
                if zombies and not (made and self.coverage.lacks(made, CALL_FAULTS["zombie"])):
                    continue
                zombies += 1
            self._try(node, spot, step)

    def _try(self, node: _Node, spot: Spot, step: Step) -> None:
        self.report.executions += 1
        bench = self.bench
        bench.go(spot)
        if step[0] == "move":
            moved = bench.move(step[1], seen=self.numbers.__contains__)
            self._arrive_moved(node, step, moved, fault=False)
            self._die_before(spot, step, moved)
        elif step[0] == "call":
            choice: Choice = step[1:]
            moved = bench.answer(choice, seen=self.numbers.__contains__)
            self._arrive_moved(node, step, moved, fault=choice[0] in (*FAULTS, "arrives"))
            self._fault_in_call(spot.hand, choice)
        else:
            take(bench, step)
            self._note(node, (step,))
            self._add(node, (step,), bench.fingerprint(), fault=step[0] not in FREE)
            if step[0] == "again":
                self._came_twice(step[1])

    def _arrive_moved(self, node: _Node, step: Step, moved: Moved, *, fault: bool) -> None:
        self._note(node, (step,))
        dead = moved.end in ("dead", "lost")
        self.report.deaths += moved.points + dead
        self._add(node, (step,), self.bench.fingerprint(), dead=dead, fault=fault)
        for number, found, then in moved.crashes:
            self._add(node, (step, ("crash", number)), found, spot=then, fault=True)
        if moved.points:
            for transition in moved.took:
                self.coverage.failed(transition, DIED_AFTER)
        if self.until is not None and self.until in moved.took and not self.report.reached:
            self.report.reached = (*self.way(node), step)

    # -- faults at transitions ------------------------------------------------------------------

    def _die_before(self, spot: Spot, step: Step, moved: Moved) -> None:
        """A worker dies with the run in hand, once for each transition; another one makes it."""
        if not (moved.took and self.rig.scope.faults):
            return
        if not self.coverage.lacks(moved.took[0], DIED_BEFORE):
            return
        bench = self.bench
        bench.go(spot)
        bench.move(step[1], crash_at=0)
        bench.go(bench.spot(dead=True))
        self.report.deaths += 1
        if step[1] not in [row.number for row in bench.due()]:
            return  # nobody can take it any more; that it is stuck is found from where it died
        again = bench.move(step[1])
        if again.took[:1] == moved.took[:1]:
            self.coverage.failed(moved.took[0], DIED_BEFORE)

    def _fault_in_call(self, hand: Hand | None, choice: Choice) -> None:
        fault = CALL_FAULTS.get(choice[0])
        if fault is not None and hand is not None:
            made = self._would_make(hand, choice)
            if made is not None:
                self.coverage.failed(made, fault)

    def _would_make(self, hand: Hand, choice: Choice) -> Transition | None:
        """The transition to which the answer of a call leads."""
        job, event = hand.asked.job, choice[1]
        if job.table is not self.table or (job.run.state, event) not in self.table.edges:
            return None
        now_ms = hand.asked.call.now_ms
        key = job.run.state, job.stored.context, choice[1:], now_ms
        if key not in self.made:
            kind = self.table.payloads.get(event)
            decode = self.bench.codec.decode
            payload = None if kind is None else decode(kind, choice[2].encode(), "payload")
            result = decide(self.table, job.run, event, payload, now_ms, from_effect=True)
            self.made[key] = transition_of(result) if isinstance(result, Decision) else None
        return self.made[key]

    def _came_twice(self, event: str) -> None:
        """What the event did when it came first is what it could have done twice."""
        lacking = [one for one in self.coverage.all_transitions
                   if one[1] == event and self.coverage.lacks(one, TWICE)]  # fmt: skip
        if lacking:
            made = {(e[2], e[1], e[3]) for e in self.bench.snapshots.journal(self.bench.root)}
            for one in lacking:
                if one in made:
                    self.coverage.failed(one, TWICE)

    def _probe(self, node: _Node, spot: Spot) -> None:
        """Every event of the machine once in every state that does not handle it."""
        self.bench.go(spot)
        root = self.bench.rows().runs[0]
        if root.status in ("paused", "quarantined") or root.closing or root.owner:
            return
        if any(run_id == root.run_id for run_id, _, _ in self.bench.rows().inbox):
            return  # that would be applied first, and the event come to another state
        for event in self.table.events:
            cell = (root.state, event)
            if cell in self.probed or cell in self.table.edges:
                continue
            self.probed.add(cell)
            self.bench.go(spot)
            text = self.rig.options.payloads.first(self.table, event)
            self.bench.probe(event, text)
            self.coverage.refused(self.table.name, *cell)
            self._note(node, (("probe", event, text),))

    # -- failures -------------------------------------------------------------------------------

    def _note(self, node: _Node, steps: tuple[Step, ...], more: Iterable[Breach] = ()) -> None:
        for breach in (*self.bench.breaches, *more):
            self._fail("safety", breach.rule, breach.problem, (*self.way(node), *steps))
        self.bench.breaches = []

    def _fail(
        self,
        kind: Literal["safety", "liveness"],
        rule: str,
        problem: str,
        steps: tuple[Step, ...],
    ) -> None:
        if rule in self.rules:
            return
        self.rules.add(rule)
        after_ms = round((perf_counter() - self.began) * 1000)
        self.report.failures.append(
            Failure(kind=kind, rule=rule, problem=problem, steps=steps, found_after_ms=after_ms)
        )

    def way(self, node: _Node) -> tuple[Step, ...]:
        """The steps from the beginning to a state."""
        parts: list[tuple[Step, ...]] = []
        here: _Node | None = node
        while here is not None:
            parts.append(here.steps)
            here = self.nodes[here.parent] if here.parent >= 0 else None
        return tuple(step for part in reversed(parts) for step in part)

    def _check_progress(self) -> None:
        """Once faults stop, every state leads on to one that is settled."""
        back: dict[int, list[int]] = {}
        for source, target in self.edges:
            back.setdefault(target, []).append(source)
        todo = [*self.settled, *self.queue]
        good = set(todo)
        while todo:
            for source in back.get(todo.pop(), ()):
                if source not in good:
                    good.add(source)
                    todo.append(source)
        stuck = [node for node in self.nodes if node.number not in good]
        if stuck and not self.report.failures:
            first = min(stuck, key=lambda node: (not node.quiet, node.depth))
            self.rig.walk.go(self.way(first))
            row = self.bench.rows().runs[0]
            self._fail("liveness", "stuck",
                       f"from here on, in {row.state} ({row.status}), nothing leads to an end or "
                       f"to a state that awaits an event; so do {len(stuck)} states",
                       self.way(first))  # fmt: skip

    # -- repeating ------------------------------------------------------------------------------

    def _repeat_some(self, node: _Node) -> None:
        if self.chance.randrange(REPEAT_ONE_IN):
            return
        self.report.repeated += 1
        try:
            found = self.rig.walk.go(self.way(node))
        except (UsageError, LookupError):
            found = None
        if found != node.found:
            self.report.mismatches.append(self.way(node))

    def repeat(self, steps: Sequence[Step], *, liveness: bool, as_far: bool = False) -> Repeated:
        """What is wrong along a way, and beyond it."""
        walk, whole = self.rig.walk, True
        try:
            walk.go(steps)
        except (LookupError, ValueError, TurtlesError) as error:
            if not as_far or not walk.states:
                raise UsageError(
                    f"token: a step is not possible any more ({type(error).__name__}: {error}); "
                    "the machine has changed since"
                ) from error
            whole = False
        breaches = list(walk.breaches)
        if self.bench.hand is None:
            breaches += self.rig.checking.breaches()
        states = tuple(walk.states)
        if liveness and whole and not breaches:
            self._add(None, tuple(steps), self.bench.fingerprint())
            self.given = True
            report = self.explore(LIVENESS_SECONDS, first_failure=True, until=None)
            breaches += [Breach(one.rule, one.problem) for one in report.failures]
        return Repeated(tuple(breaches), states, whole)


def transition_of(decision: Decision) -> Transition:
    """What a decision counts as."""
    entry = decision.entry
    return entry.source, entry.event, entry.target
