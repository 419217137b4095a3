"""Guards tried on small values: the values for one state and event, and what the edges do on them.

A clause that does not come back is ended after `CALL_SECONDS` and remembered
(`engine.verification.static.watch`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

from engine.contracts import Clause
from engine.table import Edge
from engine.verification.reading import Reading
from engine.verification.scope import (
    Combinations,
    Hints,
    Space,
    contexts_space,
    hints_from,
    holds,
    payloads_space,
)
from engine.verification.static.subject import Subject
from engine.verification.static.watch import TookTooLong, Watch
from engine.verification.values import columns_of, made, values_of

CONTEXTS_MAX = 300
PAYLOADS_MAX = 300
VALUES_MAX = 3_000
MOMENT_MS = 1_700_000_000_000
"""A moment like those of real runs, besides the small ones."""
TWICE_MAX = 20
CALL_SECONDS = 2.0
"""So long one call of a guard or precondition may take."""

_TEXT_METHODS = frozenset({
    "split", "rsplit", "splitlines", "partition", "rpartition", "startswith", "endswith", "strip",
    "lstrip", "rstrip", "removeprefix", "removesuffix", "find", "rfind", "index", "count", "lower",
    "upper", "casefold", "isdigit", "isalpha", "isalnum", "encode", "decode", "match", "search",
    "fullmatch", "sha256", "fromhex", "fromisoformat",
})  # fmt: skip
"""Code that uses these looks at the form of texts, and few forms are tried."""
Row = dict[str, Any]


@dataclass(slots=True)
class Seen:
    """What one (state, event) did on the small values; a row is the first that shows it."""

    rows: int = 0
    enabled: dict[int, Row] = field(default_factory=dict)
    chosen: set[int] = field(default_factory=set)
    both: dict[tuple[int, int], Row] = field(default_factory=dict)
    none: Row | None = None
    raised: dict[str, tuple[Edge, str, Row]] = field(default_factory=dict)
    fickle: dict[str, tuple[Edge, Row]] = field(default_factory=dict)
    now: tuple[Clause, Edge, Row] | None = None
    hung: tuple[Clause, Edge, Row] | None = None


@dataclass(frozen=True, slots=True)
class Scope:
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


def scope_of(
    subject: Subject, edges: tuple[Edge, ...], *, constrained: bool, factor: int = 1
) -> Scope:
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
    return Scope(contexts, payloads, _moments(reading, hints), VALUES_MAX * factor, whole)


def _free_contexts(subject: Subject, hints: Hints, limit: int) -> Space:
    kind = subject.table.context
    columns = columns_of(kind, hints)
    complete = Combinations(list(columns.values()), limit).complete
    return Space(tuple(made(kind, columns, limit)), complete, constrained=False)


def _moments(reading: Reading, hints: Hints) -> Space:
    if not asks_time(reading):
        return Space((1,), complete=True)
    return Space((*values_of(int, hints=hints), MOMENT_MS), complete=True)


def asks_time(reading: Reading) -> bool:
    return any("now_ms" in function.__code__.co_varnames for function in reading.functions)


def tried_on(edges: tuple[Edge, ...], rows: Iterable[Row]) -> Seen:
    """What the edges did on some values; ends at a guard that does not come back."""
    seen = Seen()
    watch = Watch(limit_seconds=CALL_SECONDS)
    try:
        watch.run(partial(_try, edges, rows, seen, watch))
    except TookTooLong:
        seen.hung = seen.now
    return seen


def _try(edges: tuple[Edge, ...], rows: Iterable[Row], seen: Seen, watch: Watch) -> None:
    for row in rows:
        seen.rows += 1
        watch.again()
        enabled = [i for i, edge in enumerate(edges) if _is_enabled(edge, row, seen)]
        for i in enabled:
            seen.enabled.setdefault(i, row)
        seen.chosen.update(enabled[:1])
        allowed = [i for i, edge in enumerate(edges) if _is_allowed(edge, row, seen)]
        for pair in combinations([i for i in enabled if i in allowed], 2):
            seen.both.setdefault(pair, row)
        if not enabled and len(allowed) == len(edges) and seen.none is None:
            seen.none = row


def _is_allowed(edge: Edge, row: Row, seen: Seen) -> bool:
    for clause in edge.requires:
        seen.now = (clause, edge, row)
        if not holds(clause, row):
            return False
    return True


def _is_enabled(edge: Edge, row: Row, seen: Seen) -> bool:
    for clause in edge.guards:
        seen.now = (clause, edge, row)
        try:
            answer = bool(clause.call(row))
            if seen.rows <= TWICE_MAX and bool(clause.call(row)) is not answer:
                seen.fickle.setdefault(clause.name, (edge, row))
        except Exception as error:  # noqa: BLE001 - the machine's code; reported as a finding
            if _is_allowed(edge, row, seen):
                seen.raised.setdefault(clause.name, (edge, type(error).__name__, row))
            return False
        if not answer:
            return False
    return True
