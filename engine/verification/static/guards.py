"""What guards decide, tried on all small contexts and payloads: V005, V006, V007, part of V013.

For each (state, event) with guards::

    contexts in which the invariants hold  x  payloads  x  moments
      -> which edges are enabled?   two: overlap    none: gap    never this one: dead

Values that the preconditions refuse count for neither overlaps nor gaps.  If no small context
fulfils the invariants, all are tried and overlaps and gaps are warnings: they may be unreachable.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from engine.table import Edge
from engine.verification.reading import Reading
from engine.verification.scope import (
    Combinations,
    Hints,
    OutOfScope,
    Space,
    contexts_space,
    hints_from,
    holds,
    payloads_space,
    plain,
)
from engine.verification.static.finding import Finding, Severity
from engine.verification.static.subject import Subject, own_outcomes, sent_by_engine, shown
from engine.verification.values import columns_of, made, values_of

CONTEXTS_MAX = 300
PAYLOADS_MAX = 300
VALUES_MAX = 3_000
MOMENT_MS = 1_700_000_000_000
"""A moment like those of real runs, besides the small ones."""
ALONE_FACTOR = 10
"""How many more values are tried before a guard is said to be never true."""
TWICE_MAX = 20

_TEXT_METHODS = frozenset({
    "split", "rsplit", "splitlines", "partition", "rpartition", "startswith", "endswith", "strip",
    "lstrip", "rstrip", "removeprefix", "removesuffix", "find", "rfind", "index", "count", "lower",
    "upper", "casefold", "isdigit", "isalpha", "isalnum", "encode", "decode", "match", "search",
    "fullmatch", "sha256", "fromhex", "fromisoformat",
})  # fmt: skip
"""Code that uses these looks at the form of texts, and few forms are tried."""
Row = dict[str, Any]


@dataclass(slots=True)
class _Seen:
    """What one (state, event) did on the small values; a row is the first that shows it."""

    rows: int = 0
    enabled: dict[int, Row] = field(default_factory=dict)
    chosen: set[int] = field(default_factory=set)
    both: dict[tuple[int, int], Row] = field(default_factory=dict)
    none: Row | None = None
    raised: dict[str, tuple[Edge, str, Row]] = field(default_factory=dict)
    fickle: dict[str, tuple[Edge, Row]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Scope:
    contexts: Space
    payloads: Space
    moments: Space
    limit: int
    whole: bool = True
    """Whether small values can make every answer of the guards (not: texts of a special form)."""

    @property
    def complete(self) -> bool:
        parts = (self.contexts, self.payloads, self.moments)
        return self.whole and all(p.complete for p in parts) and self._rows().complete

    def _rows(self) -> Combinations:
        parts = (self.contexts, self.payloads, self.moments)
        return Combinations([part.values for part in parts], self.limit, whole=True)

    def __iter__(self) -> Iterator[Row]:
        if self.contexts.values and self.payloads.values:
            for context, payload, now_ms in self._rows():
                yield {"context": context, "event": payload, "now_ms": now_ms}


def check_guards(subject: Subject) -> Iterator[Finding]:
    """All of the above."""
    for edges in subject.table.edges.values():
        last = next((i for i, edge in enumerate(edges) if not edge.guards), len(edges) - 1)
        for edge in edges[last + 1 :]:
            yield subject.at_edge("V007", "error", edge,
                f"never taken: {shown(edges[last])} has no guard and comes before it",
                "Put the edge without a guard last")  # fmt: skip
        tried = edges[: last + 1]
        if any(edge.guards for edge in tried):
            yield from _check_choice(subject, tried)


def _check_choice(subject: Subject, edges: tuple[Edge, ...]) -> Iterator[Finding]:
    try:
        scope = _scope(subject, edges, constrained=True)
    except OutOfScope:
        return  # V014 names the type
    seen = _try(edges, scope)
    yield from _trouble(subject, seen)
    if seen.raised:
        return
    yield from _dead(subject, edges, scope, seen)
    yield from _overlaps(subject, edges, scope, seen)
    yield from _gap(subject, edges, scope, seen)


def _scope(
    subject: Subject, edges: tuple[Edge, ...], *, constrained: bool, factor: int = 1
) -> _Scope:
    """Raises: OutOfScope."""
    reading = subject.reading(c.call for edge in edges for c in (*edge.guards, *edge.requires))
    hints = hints_from(reading)
    table, source, event = subject.table, edges[0].source, edges[0].event
    if constrained:
        contexts = contexts_space(table, source, CONTEXTS_MAX * factor, hints)
    else:
        contexts = _free_contexts(subject, hints, CONTEXTS_MAX * factor)
    payloads = payloads_space(table, event, PAYLOADS_MAX, hints)
    whole = not reading.names & _TEXT_METHODS
    return _Scope(contexts, payloads, _moments(reading, hints), VALUES_MAX * factor, whole)


def _free_contexts(subject: Subject, hints: Hints, limit: int) -> Space:
    kind = subject.table.context
    columns = columns_of(kind, hints)
    complete = Combinations(list(columns.values()), limit).complete
    return Space(tuple(made(kind, columns, limit)), complete, constrained=False)


def _moments(reading: Reading, hints: Hints) -> Space:
    if not _asks_time(reading):
        return Space((1,), complete=True)
    return Space((*values_of(int, hints=hints), MOMENT_MS), complete=True)


def _asks_time(reading: Reading) -> bool:
    return any("now_ms" in function.__code__.co_varnames for function in reading.functions)


def _try(edges: tuple[Edge, ...], scope: _Scope) -> _Seen:
    seen = _Seen()
    for row in scope:
        seen.rows += 1
        enabled = [i for i, edge in enumerate(edges) if _is_enabled(edge, row, seen)]
        for i in enabled:
            seen.enabled.setdefault(i, row)
        seen.chosen.update(enabled[:1])
        allowed = [i for i, edge in enumerate(edges) if all(holds(c, row) for c in edge.requires)]
        for pair in combinations([i for i in enabled if i in allowed], 2):
            seen.both.setdefault(pair, row)
        if not enabled and len(allowed) == len(edges) and seen.none is None:
            seen.none = row
    return seen


def _is_enabled(edge: Edge, row: Row, seen: _Seen) -> bool:
    for clause in edge.guards:
        try:
            answer = bool(clause.call(row))
            if seen.rows <= TWICE_MAX and bool(clause.call(row)) is not answer:
                seen.fickle.setdefault(clause.name, (edge, row))
        except Exception as error:  # noqa: BLE001 - the machine's code; reported as a finding
            if all(holds(c, row) for c in edge.requires):
                seen.raised.setdefault(clause.name, (edge, type(error).__name__, row))
            return False
        if not answer:
            return False
    return True


def _trouble(subject: Subject, seen: _Seen) -> Iterator[Finding]:
    for name, (edge, row) in seen.fickle.items():
        yield subject.at_edge("V013", "error", edge,
            f"guard {name} gave two answers for the same values",
            "Let it depend on context, event and now_ms only", method="checked",
            witness=_witness(subject, (edge,), row))  # fmt: skip
    for name, (edge, error, row) in seen.raised.items():
        yield subject.at_edge("V006", "error", edge,
            f"guard {name} raises {error}, so no edge is chosen and the run is quarantined",
            "Answer False there, or exclude the values with an invariant or @requires",
            method="checked", witness=_witness(subject, (edge,), row))  # fmt: skip


def _dead(
    subject: Subject, edges: tuple[Edge, ...], scope: _Scope, seen: _Seen
) -> Iterator[Finding]:
    for number, edge in enumerate(edges):
        if not edge.guards or number in seen.chosen:
            continue
        if number in seen.enabled:
            if scope.complete:
                yield subject.at_edge("V007", "error", edge,
                    "never taken: whenever its guard holds, an edge tried before it is taken",
                    "Put it first, or remove it", method="checked",
                    witness=_witness(subject, edges, seen.enabled[number]))  # fmt: skip
            continue
        yield from _never_true(subject, edge)


def _never_true(subject: Subject, edge: Edge) -> Iterator[Finding]:
    """Alone, it has fewer values and its own literals; first as a run may be, then freely."""
    alone = (edge,)
    scope = _scope(subject, alone, constrained=True, factor=ALONE_FACTOR)
    if _try(alone, scope).enabled:
        return
    free = _scope(subject, alone, constrained=False, factor=ALONE_FACTOR)
    tried = _try(alone, free)
    if tried.enabled:
        if scope.complete and scope.contexts.constrained:
            yield subject.at_edge("V007", "error", edge,
                f"never taken: the invariants of {edge.source} and of the machine exclude its "
                "guard", "Correct the guard or the invariant", method="checked")  # fmt: skip
        return
    severity: Severity = "error" if free.complete else "warning"
    how = (
        "is false for every small value"
        if free.complete
        else (f"was false for all of the {tried.rows} values tried (there are more)")
    )
    yield subject.at_edge("V007", severity, edge, f"guard {edge.guard_text} {how}",
        "Correct it, or remove the edge; if only large values make it true, say so in an ignore "
        "comment", method="checked")  # fmt: skip


def _overlaps(
    subject: Subject, edges: tuple[Edge, ...], scope: _Scope, seen: _Seen
) -> Iterator[Finding]:
    """One finding for each edge that overlaps with edges tried before it."""
    pairs: dict[int, list[int]] = {}
    for first, second in sorted(seen.both):
        if not _is_fallback(edges[second], edges[first]) and not _same(edges[first], edges[second]):
            pairs.setdefault(second, []).append(first)
    for second, firsts in pairs.items():
        other, ones = edges[second], [edges[first] for first in firsts]
        differ = any(one.target != other.target for one in ones)
        severity: Severity = "error" if differ and scope.contexts.constrained else "warning"
        how = "" if differ else " (same target, other actions)"
        names = " and ".join(one.guard_text for one in ones)
        yield subject.at_edge("V005", severity, other,
            f"{other.guard_text} may hold when {names} does{how}; the order of the lines decides",
            "Let one exclude the other (cond='b and not a'), or say in an ignore comment that "
            "the order is meant", method="checked",
            witness=_witness(subject, (ones[0], other), seen.both[firsts[0], second])
        )  # fmt: skip


def _is_fallback(later: Edge, earlier: Edge) -> bool:
    """Whether the later edge asks for less than the earlier: `a and b`, then `a`, then nothing."""
    return _conjuncts(later) < _conjuncts(earlier)


def _conjuncts(edge: Edge) -> set[str]:
    texts: set[str] = set()
    for clause in edge.guards:
        node = ast.parse(clause.name.strip(), mode="eval").body
        values = (
            node.values if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And) else [node]
        )
        texts.update(ast.unparse(value) for value in values)
    return texts


def _same(one: Edge, other: Edge) -> bool:
    names = [[getattr(c, "name", None) for c in e.ensures] for e in (one, other)]
    actions = [[_code(a) for a in e.actions] for e in (one, other)]
    return one.target == other.target and actions[0] == actions[1] and names[0] == names[1]


def _code(action: Any) -> Any:
    """The function behind a bound action."""
    for cell in getattr(action, "__closure__", None) or ():
        if callable(cell.cell_contents):
            function = getattr(cell.cell_contents, "__func__", cell.cell_contents)
            return getattr(function, "__code__", function)
    return action


def _gap(
    subject: Subject, edges: tuple[Edge, ...], scope: _Scope, seen: _Seen
) -> Iterator[Finding]:
    if seen.none is None:
        return
    place = subject.table.places[edges[0].source]
    event = edges[0].event
    option = sent_by_engine(place).get(event)
    if option == "on_child_moved":
        return  # a milestone that no guard takes is passed over; nothing waits for it
    fatal = option is not None or event in own_outcomes(place)
    result = "the run is quarantined" if fatal else "the event is refused"
    severity: Severity = "error" if fatal and scope.contexts.constrained else "warning"
    yield subject.at_edge("V006", severity, edges[-1],
        f"no guard of {place.name} takes every {event!r}: {result}",
        "Add a last edge without a guard, or refuse the values with @requires",
        method="checked", witness=_witness(subject, edges, seen.none))  # fmt: skip


def _witness(subject: Subject, edges: tuple[Edge, ...], row: Row) -> dict[str, Any]:
    """The values that the guards read, by name."""
    read = subject.reading([clause.call for edge in edges for clause in edge.guards])
    directly = {name for edge in edges for clause in edge.guards for name in clause.reads}
    found: dict[str, Any] = {}
    for holder in ("context", "event"):
        struct = row[holder]
        for name in getattr(struct, "__struct_fields__", ()):
            if name in read.names or (holder, name) in directly:
                found[f"{holder}.{name}"] = _pruned(plain(getattr(struct, name)), read.names)
    if _asks_time(read):
        found["now_ms"] = row["now_ms"]
    return found


def _pruned(value: Any, names: frozenset[str]) -> Any:
    """Without the fields inside that nobody reads."""
    if isinstance(value, dict):
        return {k: _pruned(v, names) for k, v in value.items() if k in names} or value
    if isinstance(value, list | tuple):
        return [_pruned(one, names) for one in value]
    return value
