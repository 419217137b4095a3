"""V008: a cycle that the engine goes round by itself, with nothing that slows or ends it.

::

    a (effect) --outcome--> b (effect) --outcome--> a        hot

An edge belongs to such a cycle if what moves the run along it is the state's own effect or child.
Left out are states that poll (`every=`: they move on news only), edges that a timer or somebody
outside takes, and edges with a budget: one whose guard, or that of an edge tried before it, reads
a field that an action on the cycle writes.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.table import Edge
from engine.verification.static.finding import Finding
from engine.verification.static.shape import closure
from engine.verification.static.subject import Subject, outcomes_of, own_outcomes


def check_loops(subject: Subject) -> Iterator[Finding]:
    """V008."""
    edges = [edge for edge in subject.table.all_edges() if _is_driven(subject, edge)]
    reported: set[frozenset[str]] = set()
    for edge in edges:
        ring = _ring(edges, edge)
        ring = [e for e in ring if not _has_budget(subject, e, ring)]
        states = frozenset(e.source for e in _ring(ring, edge)) if edge in ring else frozenset()
        if states and states not in reported:
            reported.add(states)
            way = " -> ".join([*sorted(states), min(states)])
            yield subject.at_edge("V008", "error", edge,
                f"the run goes round {way} as fast as its effects answer, without end",
                "Add every= to poll, a state with a timeout in between, or count the rounds in "
                "the context and guard the edge with a maximum")  # fmt: skip


def _is_driven(subject: Subject, edge: Edge) -> bool:
    """Whether the engine takes the edge without anybody outside and without waiting."""
    place = subject.table.places[edge.source]
    if place.every is not None:
        return False
    if place.effect is not None and not outcomes_of(place.effect)[2]:
        return edge.event != place.on_timeout
    return edge.event in own_outcomes(place) or edge.event in (place.on_exhausted, place.on_child)


def _ring(edges: list[Edge], edge: Edge) -> list[Edge]:
    """The edges that lie on a cycle through `edge`."""
    forwards: dict[str, set[str]] = {}
    backwards: dict[str, set[str]] = {}
    for one in edges:
        forwards.setdefault(one.source, set()).add(one.target)
        backwards.setdefault(one.target, set()).add(one.source)
    both = closure(forwards, [edge.target]) & closure(backwards, [edge.source])
    if edge.source not in both:
        return []
    return [one for one in edges if one.source in both and one.target in both]


def _has_budget(subject: Subject, edge: Edge, ring: list[Edge]) -> bool:
    tried = subject.table.edges[(edge.source, edge.event)]
    tried = tried[: tried.index(edge) + 1]
    read = subject.reading([clause.call for one in tried for clause in one.guards]).names
    written = subject.reading([action for one in ring for action in one.actions]).keywords
    return bool(read & written & set(subject.table.context.__struct_fields__))
