"""Exhaustive exploration of a machine in a small scope, over the real engine and the real store.

::

    report = explore(Payment, open_store("sqlite://"), budget_seconds=10)
    assert report.ok, report.failures

From every quiet moment (`bench.Spot`) every action is tried, and in every call of an effect every
answer, a death of the worker after every commit and around every call included; also during
recovery, without limit.  Moments with the same fingerprint are one state.  States are taken in the
order of their distance from the start, so the first way found to a failure is a shortest one.

A share of the ways is gone again from the very beginning, without snapshots; another fingerprint
at their end means that the exploration cannot be trusted (`report.mismatches`).

Bounds (`Scope`) are part of the answer: `EXHAUSTED` means within them.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal

import msgspec

from engine.control import CANCEL_EVENT
from engine.decide import Decision
from engine.definition import Machine
from engine.desk import Job
from engine.errors import TurtlesError, UsageError
from engine.events import Context
from engine.journal import Entry
from engine.ports import InboxEvent, Store
from engine.table import Table, compile_table
from engine.verification.bench import Bench, Spot, silence
from engine.verification.coverage import Coverage
from engine.verification.lint import lint
from engine.verification.oracles import (
    Breach,
    check_children,
    check_effects,
    check_journal,
    check_quarantine,
    check_storage,
    entries_of,
)
from engine.verification.outside import FAULTS, Asked, Choice, Judged, options
from engine.verification.result import Failure, Report, Scope, Step
from engine.verification.scope import contexts_of, hints_from, reads
from engine.verification.snapshot import Fingerprint, Row
from engine.verification.static.outcomes import is_external
from engine.verification.static.subject import Subject

__all__ = ["Failure", "Repeated", "Report", "Scope", "explore", "repeat"]
REPEAT_ONE_IN = 100
MOMENTS_MAX = 4
LIVENESS_SECONDS = 10.0
ANOTHER_CONTEXT_EVERY = 200
JOURNALS_KEPT = 5_000


@dataclass(slots=True)
class _Node:
    number: int
    parent: int
    steps: tuple[Step, ...]
    depth: int
    spot: Spot
    found: Fingerprint
    choices: tuple[Choice, ...] | None = None
    """None at a quiet moment; else the answers so far of the move that began at `spot`."""
    run: int = 0


def explore(
    machine: type[Machine[Any]],
    store: Store,
    *,
    known: Iterable[type[Machine[Any]]] = (),
    budget_seconds: float = 30.0,
    seed: int = 0,
    scope: Scope | None = None,
    contexts: Sequence[Context] = (),
    first_failure: bool = False,
) -> Report:
    """Explore one machine.

    Args:
        machine: the machine under test.
        store: `persistence.open_store("sqlite://")`; what is in it is lost.
        known: machines that it may start as children.
        budget_seconds: stop then, and say what was left.
        seed: which ways are repeated from the beginning.
        scope: the bounds.
        contexts: first contexts to begin with, instead of small ones.
        first_failure: stop at the first failure.

    Raises:
        UsageError: the store is a file, or the budget is not positive.
        OutOfScope: no small context fulfils the machine's invariants; give some.
    """
    if budget_seconds <= 0:
        raise UsageError(f"budget: expected more than 0 seconds, got {budget_seconds:g}")
    explorer = _Explorer(machine, store, tuple(known), scope or Scope(), seed)
    try:
        with silence():
            explorer.begin(contexts)
            return explorer.explore(budget_seconds, first_failure)
    finally:
        explorer.close()


class Repeated(msgspec.Struct, frozen=True):
    """One way gone again: what is wrong on it, and where the runs were after each action."""

    breaches: tuple[Breach, ...]
    states: tuple[str, ...]


def repeat(
    machine: type[Machine[Any]],
    store: Store,
    steps: Sequence[Step],
    *,
    known: Iterable[type[Machine[Any]]] = (),
    liveness: bool = False,
) -> Repeated:
    """Go one way again, and say what is wrong on it.

    Args:
        liveness: also whether an end can still be reached from where it leads.

    Raises:
        UsageError: a step is not possible (any more).
    """
    scope = Scope(messages=0, cancels=False, faults=False) if liveness else Scope()
    explorer = _Explorer(machine, store, tuple(known), scope, 0)
    try:
        with silence():
            return explorer.repeat(steps, liveness=liveness)
    finally:
        explorer.close()


class _Explorer:
    def __init__(
        self,
        machine: type[Machine[Any]],
        store: Store,
        known: tuple[type[Machine[Any]], ...],
        scope: Scope,
        seed: int,
    ) -> None:
        self.table = compile_table(machine)
        machines = list(dict.fromkeys((machine, *known)))
        self.coverage = Coverage(self.table)
        self.report = Report(self.table, scope, seed, self.coverage)
        self.bench = Bench(machines, store, moved=self._moved, refused=self._refused)
        self.judged = Judged(self.bench.codec.encode)
        self.scope = scope
        self.chance = random.Random(seed)  # noqa: S311 - which ways are repeated
        self.nodes: list[_Node] = []
        self.numbers: dict[Fingerprint, int] = {}
        self.queue: deque[int] = deque()
        self.edges: list[tuple[int, int]] = []
        self.settled: set[int] = set()
        self.probed: set[tuple[str, str]] = set()
        self.rules: set[str] = set()
        self.journals: dict[Any, tuple[list[Entry], list[Breach]]] = {}
        self.tried: set[str] = set()
        self.given = False
        self.states: list[str] = []
        self.now: _Node | None = None
        self.began = perf_counter()
        self.external = self._external()
        self.left_out = self._left_out(known)

    def close(self) -> None:
        """Leave the machines as they were."""
        self.bench.close()

    def _moved(self, decision: Decision) -> None:
        self.coverage.moved(decision)
        before, entry = decision.before, decision.entry
        if before is None or before.deadline_ms is None or entry.at_ms >= before.deadline_ms:
            return
        event = self.bench.app.tables[before.machine].places[before.state].on_timeout
        if entry.event == event and event not in self.external[before.machine]:
            self.bench.breaches.append(Breach("timer too early", f"{event} in {before.state}"))

    def _refused(self, job: Job, event: InboxEvent) -> None:
        self.coverage.refused(job.table.name, job.run.state, event.event)

    def _external(self) -> dict[str, list[str]]:
        """The events of each machine that somebody outside sends."""
        tables = self.bench.app.tables
        found: dict[str, list[str]] = {}
        for name, table in tables.items():
            subject = Subject(table, tables)
            events = [e.event for e in table.all_edges() if is_external(subject, e)]
            found[name] = [event for event in dict.fromkeys(events) if event != CANCEL_EVENT]
        return found

    def _left_out(self, known: Iterable[type[Machine[Any]]]) -> set[str]:
        """States whose author says that their effect never gives what they do not handle."""
        found = lint([self.table], known=known).ignored
        states = {one.finding.state: one.reason for one in found if one.finding.code == "V011"}
        for state, reason in states.items():
            if state is not None:
                self.report.notes.append(
                    f"outcomes that {state} does not handle were left out (V011: {reason})"
                )
        return {state for state in states if state is not None}

    # -- the search -----------------------------------------------------------------------------

    def begin(self, contexts: Sequence[Context]) -> None:
        """The first moments, one for each first context that was given, or a small one."""
        for context in contexts or contexts_of(self.table, state=self.table.initial, limit=1):
            self._begin(self.bench.codec.encode(context).decode())
        if not self.nodes:
            raise UsageError(
                f"machine {self.table.name}: no first context was accepted. Give one that "
                "fulfils the invariants of its initial state."
            )
        self.given = bool(contexts)

    def _begin(self, text: str) -> None:
        self.tried.add(text)
        self.bench.go(self.bench.empty)
        if self.bench.start(self.table.name, text):
            self.report.contexts += 1
            step = ("start", self.table.name, text)
            self._add(None, (step,), self.bench.spot(), self.bench.fingerprint())
        else:
            self.report.notes.append(f"a first context was refused: {text[:200]}")

    def _begin_another(self) -> bool:
        """Another first context, if transitions are missing that may need one."""
        missing = set(self.coverage.missing_transitions)
        if not missing or self.given or len(self.tried) >= self.scope.contexts:
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

    def explore(self, budget_seconds: float, first_failure: bool) -> Report:
        """Take states from the queue until it is empty or the time is over."""
        last, taken = self.began + budget_seconds, 0
        missing = len(self.coverage.all_transitions)
        while perf_counter() < last and (self.queue or self._begin_another()):
            if self.report.failures and (first_failure or not self.queue):
                break
            if not self.queue:
                continue
            taken += 1
            if taken % ANOTHER_CONTEXT_EVERY == 0:
                missing, before = len(self.coverage.missing_transitions), missing
                if missing == before:
                    self._begin_another()  # do not wait for the end of the first one's life
            node = self.nodes[self.queue.popleft()]
            self._repeat_some(node)
            self._expand(node)
        report = self.report
        self._check_progress()
        report.states, report.left = len(self.nodes), len(self.queue)
        report.commits = self.bench.commits
        report.depth = max(node.depth for node in self.nodes)
        report.took_seconds = perf_counter() - self.began
        return report

    def _add(
        self,
        parent: _Node | None,
        steps: tuple[Step, ...],
        spot: Spot,
        found: Fingerprint,
        *,
        fault: bool = False,
        choices: tuple[Choice, ...] | None = None,
        run: int = 0,
    ) -> None:
        number = self.numbers.get(found)
        if number is None:
            number = len(self.nodes)
            depth = parent.depth + 1 if parent else 0
            above = parent.number if parent else -1
            self.numbers[found] = number
            self.nodes.append(_Node(number, above, steps, depth, spot, found, choices, run))
            self.queue.append(number)
        if parent is not None and not fault:
            self.edges.append((parent.number, number))

    def _expand(self, node: _Node) -> None:
        if node.choices is None:
            self._expand_quiet(node)
        else:
            self._expand_call(node, node.choices)

    def _expand_quiet(self, node: _Node) -> None:
        self._go(node)
        self._check(node)
        if self._is_settled():
            self.settled.add(node.number)
        spot = self.bench.spot()
        for step in list(self._actions()):
            self._go(node, spot)
            if step[0] == "move":
                self._move(node, spot, step[1], ())
            else:
                self._act(step)
                self._arrive(node, (step,), fault=step[0] != "clock")
        self._probe(node, spot)

    def _go(self, node: _Node, spot: Spot | None = None) -> None:
        self.bench.go(spot or node.spot)

    def _act(self, step: Step) -> None:
        self.report.executions += 1
        bench = self.bench
        match step:
            case ("clock", moment):
                bench.wait(moment)
            case ("send", event, text, number):
                bench.send(event, text, number)
            case ("again", event, text, number):
                bench.send(event, text, number, again=True)
            case ("cancel",):
                bench.cancel()
            case _:
                raise UsageError(f"token: step {step!r} is not known")

    def _arrive(self, node: _Node, steps: tuple[Step, ...], *, fault: bool) -> None:
        self._note(node, steps)
        self._add(node, steps, self.bench.spot(), self.bench.fingerprint(), fault=fault)

    def _actions(self) -> Iterator[Step]:
        bench, spot = self.bench, self.bench._spot
        rows = bench.snapshots.runs()
        root = rows[0]
        for row in bench.due():
            yield ("move", row.number)
        for moment in range(min(len(bench.moments()), MOMENTS_MAX)):
            yield ("clock", moment)
        for sent in dict.fromkeys(spot.sent):
            yield ("again", *sent)
        if not root.live:
            return
        if len(spot.sent) < self.scope.messages:
            for row in rows:
                if row.live:
                    yield from self._messages("send", row)
        if self.scope.cancels and not spot.cancelled:
            yield ("cancel",)

    def _messages(self, kind: str, row: Row) -> Iterator[Step]:
        """Events from outside, with a payload for each way in which the state judges them."""
        stored = self.bench.store.runs.get(row.run_id)
        assert stored is not None
        found = self.bench.codec.open_run(stored.run)
        table, now_ms = self.bench.app.tables[row.machine], self.bench.clock.now_ms()
        for event in self.external[row.machine]:
            if (row.state, event) in table.edges:
                texts = self.judged.of(table, found, event, now_ms, outcome=False)
            elif kind == "send":
                continue  # refused now; that cell is probed, and the state does not change
            else:
                texts = [self.judged.first(table, event)]
            for text in texts:
                yield (kind, event, text, row.number)

    def _move(self, node: _Node, spot: Spot, run: int, choices: tuple[Choice, ...]) -> None:
        self.report.executions += 1
        moved = self.bench.move(run, choices, seen=self.numbers.__contains__)
        first = ("move", run)
        steps: tuple[Step, ...] = (("call", *choices[-1]),) if choices else (first,)
        fault = bool(choices) and choices[-1][0] in (*FAULTS, "arrives")
        self._note(node, steps)
        self.report.deaths += moved.points if self.scope.faults else 0
        if moved.end == "paused":
            self._add(node, steps, spot, self.bench.in_hand(), fault=fault,
                      choices=choices, run=run)  # fmt: skip
        else:
            dead = moved.end in ("dead", "lost")
            self.report.deaths += dead
            self._add(node, steps, self.bench.spot(dead=dead), self.bench.fingerprint(),
                      fault=fault)  # fmt: skip
        if self.scope.faults:
            for number, found, then in moved.crashes:
                self._add(node, (*steps, ("crash", number)), then, found, fault=True)

    def _expand_call(self, node: _Node, choices: tuple[Choice, ...]) -> None:
        self._go(node)
        self.bench.move(node.run, choices)
        asked = self.bench.outside.asked
        assert asked is not None
        for choice in self._answers(asked):
            self._go(node)
            self._move(node, node.spot, node.run, (*choices, choice))

    def _answers(self, asked: Asked) -> list[Choice]:
        found = options(asked, self.judged, self.bench.outside.done)
        state, table = asked.job.run.state, asked.job.table
        if table is self.table and state in self.left_out:
            found = [c for c in found if len(c) < 3 or not c[1] or (state, c[1]) in table.edges]
        if not self.scope.faults:
            found = [choice for choice in found if choice[0] not in FAULTS]
        row = self.bench.row(asked.call.run_id)
        is_root = asked.call.run_id == self.bench.root
        if row is not None and len(self.bench._spot.sent) < self.scope.messages:
            found += [(kind, event, text, str(number))
                      for kind, event, text, number in self._messages("arrives", row)]  # fmt: skip
        if is_root and self.scope.cancels and not self.bench._spot.cancelled:
            found.append(("arrives", "$cancel", "", "1"))
        return found

    def _probe(self, node: _Node, spot: Spot) -> None:
        """Every event of the machine once in every state that does not handle it."""
        self._go(node, spot)
        root = self.bench.snapshots.runs()[0]
        if root.status in ("paused", "quarantined") or root.closing or root.owner:
            return
        for event in self.table.events:
            cell = (root.state, event)
            if cell in self.probed or cell in self.table.edges:
                continue
            self.probed.add(cell)
            self._go(node, spot)
            self.bench.probe(event, self.judged.first(self.table, event))
            self.coverage.refused(self.table.name, *cell)
            self._note(node, (("probe", event, self.judged.first(self.table, event)),))

    # -- checks ---------------------------------------------------------------------------------

    def _check(self, node: _Node) -> None:
        bench = self.bench
        try:
            breaches = list(self._breaches())
        except TurtlesError as error:
            breaches = [Breach("unreadable", str(error))]
        bench.breaches += breaches
        self._note(node, ())

    def _breaches(self) -> Iterator[Breach]:
        bench = self.bench
        yield from check_storage(bench.store)
        effects = bench.snapshots.effects()
        for row in bench.snapshots.runs():
            table = bench.app.tables[row.machine]
            entries, breaches = self._journal(row, table)
            yield from check_quarantine(row, table)
            yield from breaches
            mine = [effect for effect in effects if effect.run_id == row.run_id]
            yield from check_effects(row, table, entries, mine, bench.outside.done)

    def _journal(self, row: Row, table: Table) -> tuple[list[Entry], list[Breach]]:
        """A journal and what is wrong with it; the same journal is decided again once."""
        key = (row.run_id, row.state, row.seq, self.bench.snapshots.journal(row.run_id))
        if key not in self.journals:
            if len(self.journals) >= JOURNALS_KEPT:
                self.journals.clear()
            entries = entries_of(self.bench.store, self.bench.codec, row)
            breaches = [*check_journal(row, table, entries), *check_children(entries, table)]
            self.journals[key] = entries, breaches
        return self.journals[key]

    def _note(self, node: _Node, steps: tuple[Step, ...]) -> None:
        for breach in self.bench.breaches:
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
        steps: list[Step] = []
        here: _Node | None = node
        while here is not None:
            steps = [*here.steps, *steps]
            here = self.nodes[here.parent] if here.parent >= 0 else None
        return tuple(steps)

    def _is_settled(self) -> bool:
        """Whether every run has ended, is held for a person, or awaits an event or a child."""
        rows = self.bench.snapshots.runs()
        live = {row.run_id for row in rows if row.live}
        for row in rows:
            if not row.live or row.status in ("paused", "quarantined"):
                continue
            place = self.bench.app.tables[row.machine].places[row.state]
            due = row.due_ms is not None and row.due_ms <= self.bench.clock.now_ms()
            waits = place.waits and row.closing is None and not due
            if row.owner is not None or not (waits or row.child in live):
                return False
        return True

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
            first = min(stuck, key=lambda node: (node.choices is not None, node.depth))
            self._go(first)
            row = self.bench.snapshots.runs()[0]
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
            found = self._walk(self.way(node))
        except (UsageError, LookupError):
            found = None
        if found != node.found:
            self.report.mismatches.append(self.way(node))

    def _walk(self, steps: Sequence[Step]) -> Fingerprint:
        """The state at the end of a way, gone without snapshots."""
        bench = self.bench
        bench.go(bench.empty)
        self.states = []
        breaches: list[Breach] = []
        found: Fingerprint = ()
        left = list(steps)
        while left:
            step = left.pop(0)
            if step[0] == "start":
                if not bench.start(step[1], step[2]):
                    raise LookupError("the first context is refused")
            elif step[0] == "probe":
                bench.probe(step[1], step[2])
            elif step[0] == "move":
                found = self._walk_move(step[1], left)
                breaches += bench.breaches
                self._remember_states()
                continue
            else:
                self._act(step)
            breaches += bench.breaches
            bench.go(bench.spot())
            found = bench.fingerprint()
            self._remember_states()
        bench.breaches = breaches
        return found

    def _walk_move(self, run: int, left: list[Step]) -> Fingerprint:
        bench = self.bench
        choices: list[Choice] = []
        while left and left[0][0] == "call":
            choices.append(tuple(left.pop(0)[1:]))
        crash_at = left.pop(0)[1] if left and left[0][0] == "crash" else None
        moved = bench.move(run, choices, crash_at=crash_at)
        if bench.outside.script or (crash_at is not None and moved.end != "dead"):
            raise LookupError(f"run {run} makes fewer calls or commits than it did")
        if moved.end == "paused":
            return bench.in_hand()
        found = bench.fingerprint()
        kept = bench.breaches
        bench.go(bench.spot(dead=moved.end in ("dead", "lost")))
        bench.breaches = kept
        return found

    def repeat(self, steps: Sequence[Step], *, liveness: bool) -> Repeated:
        """What is wrong along a way, and beyond it."""
        try:
            self._walk(steps)
        except (LookupError, ValueError, TurtlesError) as error:
            raise UsageError(
                f"token: a step is not possible any more ({type(error).__name__}: {error}); "
                "the machine has changed since"
            ) from error
        breaches = [*self.bench.breaches, *self._breaches()]
        if liveness and not breaches:
            self._add(None, tuple(steps), self.bench.spot(), self.bench.fingerprint())
            self.given = True
            report = self.explore(LIVENESS_SECONDS, True)
            breaches += [Breach(one.rule, one.problem) for one in report.failures]
        return Repeated(tuple(breaches), tuple(self.states))

    def _remember_states(self) -> None:
        rows = self.bench.snapshots.runs()
        self.states.append(", ".join(f"{row.machine} {row.state} ({row.status})" for row in rows))
