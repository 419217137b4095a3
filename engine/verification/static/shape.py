"""Checks of states and edges as a graph: V001 to V003, V009, V015, V016."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from engine.contracts import contract_of
from engine.table import Place, Table
from engine.verification.static.children import machines_started
from engine.verification.static.finding import Finding
from engine.verification.static.subject import Subject, outcomes_of, shown

FOREVER_ATTEMPTS = 1_000_000


def closure(graph: Mapping[str, Iterable[str]], start: Iterable[str]) -> set[str]:
    """Everything that can be reached from `start`, and `start`."""
    seen = set(start)
    todo = list(seen)
    while todo:
        for target in graph.get(todo.pop(), ()):
            if target not in seen:
                seen.add(target)
                todo.append(target)
    return seen


def reached(table: Table) -> set[str]:
    """The states to which a path leads from the initial state, guards aside."""
    graph: dict[str, set[str]] = {}
    for edge in table.all_edges():
        graph.setdefault(edge.source, set()).add(edge.target)
    return closure(graph, [table.initial])


def check_graph(subject: Subject) -> Iterator[Finding]:
    """V001 unreachable, V002 dead end, V003 no path to a final state."""
    table = subject.table
    backwards: dict[str, set[str]] = {}
    for edge in table.all_edges():
        backwards.setdefault(edge.target, set()).add(edge.source)
    alive = reached(table)
    finishing = closure(backwards, [p.name for p in table.places.values() if p.final])
    for place in table.places.values():
        name = place.name
        if name not in alive:
            yield subject.at_state("V001", "error", name,
                f"no path leads from {table.initial} to {name}",
                "Add a transition to it, or remove it")  # fmt: skip
        if place.final:
            continue
        if not any(edge.target != name for edge in subject.leaving(name)):
            yield subject.at_state("V002", "error", name, f"{name} is not final and is never left",
                "Add a transition to another state, or final=True")  # fmt: skip
        elif name not in finishing:
            yield subject.at_state("V003", "error", name,
                f"no path leads from {name} to a final state", "Add one")  # fmt: skip


def check_waiting(subject: Subject) -> Iterator[Finding]:
    """V009: a state in which a run may stay for ever."""
    for place in subject.table.places.values():
        why = None if place.final or place.timeout is not None else _waits_for(subject, place)
        if why is not None:
            yield subject.at_state("V009", "warning", place.name,
                f"{place.name} has no timeout: {why}",
                "Add timeout= and on_timeout=, or say why it may wait for ever")  # fmt: skip


def _waits_for(subject: Subject, place: Place) -> str | None:
    if place.waits:
        return "if the awaited event is lost, the run waits for ever"
    if place.effect is not None:
        if outcomes_of(place.effect)[1]:
            return f"effect {place.effect.name} may answer Again() without end"
        if place.effect.retry.attempts >= FOREVER_ATTEMPTS:
            return f"effect {place.effect.name} is tried {place.effect.retry.attempts} times"
    if place.child is not None:
        unknown = sorted(machines_started(subject, place) - set(subject.tables))
        if unknown:
            return f"its child machine {unknown[0]} is not known here and may never end"
    return None


def check_timers(subject: Subject) -> Iterator[Finding]:
    """V015: an edge that stays does not start the state's time anew: it is up again at once."""
    for place in subject.table.places.values():
        for edge in subject.table.edges.get((place.name, place.on_timeout or ""), ()):
            if edge.stays and place.timeout is not None:
                yield subject.at_edge("V015", "error", edge,
                    f"{shown(edge)} stays in the state, whose time remains up: "
                    "the timer fires again at once, for ever",
                    "Lead to another state; to poll, use an effect with every=")  # fmt: skip


def check_contracts(subject: Subject) -> Iterator[Finding]:
    """V016: contracts attached to nothing, or only to what is never reached."""
    table = subject.table
    alive = reached(table)
    live = {
        c.name for e in table.all_edges() if e.source in alive for c in (*e.requires, *e.ensures)
    }
    known = {c.name for c in table.invariants}
    for place in table.places.values():
        for clause in place.invariants:
            if place.name not in alive:
                yield subject.at_line("V016", "warning", subject.file, clause.line,
                    f"invariant {clause.name} belongs to {place.name}, which is never reached",
                    "Make the state reachable, or remove both", method="shape")  # fmt: skip
    for base in table.machine.__mro__:
        for name, value in vars(base).items():
            contract = contract_of(value)
            if (
                contract is None
                or name in live | known
                or getattr(table.machine, name) is not value
            ):
                continue
            known.add(name)
            what = "no edge that can be taken" if contract[0] != "invariant" else "nothing"
            line = value.__code__.co_firstlineno if hasattr(value, "__code__") else 0
            yield subject.at_line("V016", "warning", subject.file, line,
                f"@{contract[0]} {name} is attached to {what}, so it is never evaluated",
                "Name the transitions it is about, or remove it", method="shape")  # fmt: skip
