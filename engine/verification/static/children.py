"""Which child runs a state starts, found by asking its `child=` method with small contexts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from engine.table import Child, Place
from engine.verification.scope import OutOfScope, contexts_space, hints_from
from engine.verification.static.finding import Finding
from engine.verification.static.subject import Subject

CONTEXTS_MAX = 60
DEPTH_FIELD_VALUES_MIN = 2


def machines_started(subject: Subject, place: Place) -> set[str]:
    """The names of the machines a state may start; also those that its code mentions by name."""
    if place.child is None:
        return set()
    mentioned = set(subject.reading([place.child]).texts) & set(subject.tables)
    return mentioned | {child.machine for _, child in _children(subject, place)}


def _children(subject: Subject, place: Place) -> Iterator[tuple[Any, Child]]:
    assert place.child is not None
    hints = hints_from(subject.reading([place.child]))
    try:
        space = contexts_space(subject.table, place.name, CONTEXTS_MAX, hints)
    except OutOfScope:
        return  # V014 says so
    for context in space.values:
        try:
            child = place.child({"context": context})
        except Exception:  # noqa: BLE001, S112 - contexts of no real run; what remains is enough
            continue
        if isinstance(child, Child):
            yield context, child


def counted_fields(subject: Subject, place: Place, machine: str) -> set[str]:
    """The number fields that always grow, or always shrink, from a run to its child."""
    steps: dict[str, set[int]] = {}
    for context, child in _children(subject, place):
        if child.machine != machine:
            continue
        for name, value in _fields(child.context).items():
            before = getattr(context, name, None)
            if type(value) is int and type(before) is int:
                steps.setdefault(name, set()).add((value > before) - (value < before))
    return {name for name, seen in steps.items() if seen in ({1}, {-1})}


def _fields(context: Any) -> Mapping[str, Any]:
    return context if isinstance(context, Mapping) else msgspec.structs.asdict(context)


def check_recursion(subject: Subject) -> Iterator[Finding]:
    """V012: a machine that starts itself, perhaps through others, without a bound on the depth.

    A bound is a whole number that always grows (or always shrinks) on the way down, and that a
    guard or precondition of one of the machines on the way reads.
    """
    for place in subject.table.places.values():
        for chain in _chains(subject, place):
            if not _is_bounded(subject, chain):
                way = " -> ".join([subject.table.name, *(machine for _, _, machine in chain)])
                yield subject.at_state("V012", "error", place.name,
                    f"{way}: no number grows on the way down that a guard looks at",
                    "Hand the child a depth (context.depth + 1), and refuse to go deeper than a "
                    "maximum with a guard", method="checked")  # fmt: skip


Link = tuple[Subject, Place, str]


def _chains(subject: Subject, place: Place) -> Iterator[tuple[Link, ...]]:
    """Ways from a state back to its own machine."""
    todo: list[tuple[Link, ...]] = [
        ((subject, place, machine),) for machine in sorted(machines_started(subject, place))
    ]
    while todo:
        chain = todo.pop()
        machine = chain[-1][2]
        if machine == subject.table.name:
            yield chain
        elif machine in subject.tables and machine not in [m for _, _, m in chain[:-1]]:
            inner = Subject(subject.tables[machine], subject.tables)
            for state in inner.table.places.values():
                todo += [
                    (*chain, (inner, state, started))
                    for started in sorted(machines_started(inner, state))
                ]


def _is_bounded(subject: Subject, chain: tuple[Link, ...]) -> bool:
    looked_at: set[str] = set()
    for one, _, _ in chain:
        edges = one.table.all_edges()
        clauses = [c.call for e in edges for c in (*e.guards, *e.requires)]
        looked_at |= one.reading(clauses).names
    return any(counted_fields(one, place, machine) & looked_at for one, place, machine in chain)
