"""Small scope of a machine: the contexts it may be in and the payloads that may arrive.

Most defects show with small values (the small-scope hypothesis), so checks and the explorer try
all small ones before any large one.  A context counts only if the machine's invariants hold in it,
and with `state=` those of that state: a run can be in no other.  To find such contexts one that
holds them all is built first, field by field, and the others differ from it as little as possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import msgspec

from engine.contracts import Clause
from engine.events import Context, Event
from engine.table import Table
from engine.verification.reading import Reading, reading_of, types_in
from engine.verification.values import (
    Combinations,
    Hints,
    OutOfScope,
    columns_of,
    made,
    values_of,
)

__all__ = ["Combinations", "Hints", "OutOfScope", "Space", "contexts_of", "contexts_space",
           "hints_from", "hints_of", "holds", "payloads_of", "payloads_space", "reads",
           "values_of"]  # fmt: skip
NUMBERS_MAX = 12
TEXTS_MAX = 16
ROUNDS_MAX = 12
PAIRS_MAX = 4_000


@dataclass(frozen=True, slots=True)
class Space:
    """Some values, and whether they are all there are in the small scope.

    `constrained`: the invariants hold in every one (for contexts).
    """

    values: tuple[Any, ...]
    complete: bool
    constrained: bool = True


def reads(table: Table, calls: Iterable[Any]) -> Reading:
    """What functions of a machine may read, of its own code."""
    kinds = types_in(table.context).union(*map(types_in, table.payloads.values()))
    return reading_of(calls, (table.machine, *kinds))


def hints_from(reading: Reading, *, all_fields: bool = False) -> Hints:
    """Hints out of the literals of some code; only the fields that it may read vary."""
    numbers = sorted(reading.numbers, key=abs)[:NUMBERS_MAX]
    near = [n + d for n in numbers for d in (0, -1, 1)]
    if near:  # one field may have to be above a literal, and another above that field
        near += [2 * max(near) + 2, 2 * min(near) - 2]
    return Hints(
        tuple(dict.fromkeys(near)), reading.texts[:TEXTS_MAX], None if all_fields else reading.names
    )


def hints_of(table: Table) -> Hints:
    """Hints out of all guards and contracts of a machine; every field varies."""
    clauses = [c for e in table.all_edges() for c in (*e.guards, *e.requires, *e.ensures)]
    clauses += [*table.invariants, *(c for p in table.places.values() for c in p.invariants)]
    return hints_from(reads(table, (clause.call for clause in clauses)), all_fields=True)


def holds(clause: Clause, values: dict[str, Any]) -> bool:
    """Whether a clause is true; one that raises is not."""
    try:
        return bool(clause.call(values))
    except Exception:  # noqa: BLE001 - the machine's code; whoever cares evaluates it himself
        return False


def payloads_of(
    table: Table, event: str, *, limit: int = 200, hints: Hints | None = None
) -> Iterator[Event | None]:
    """Payloads of an event, small first; None alone for an event that carries nothing.

    Raises:
        OutOfScope: names the field.
    """
    yield from payloads_space(table, event, limit, hints or hints_of(table)).values


def payloads_space(table: Table, event: str, limit: int, hints: Hints) -> Space:
    """`payloads_of`, and whether they are all."""
    kind = table.payloads.get(event)
    if kind is None:
        return Space((None,), complete=True)
    columns = columns_of(kind, hints)
    complete = Combinations(list(columns.values()), limit).complete
    return Space(tuple(made(kind, columns, limit)), complete)


def contexts_of(
    table: Table, *, state: str | None = None, limit: int = 200, hints: Hints | None = None
) -> Iterator[Context]:
    """Contexts in which the invariants hold, small first.

    Args:
        state: those of this state hold, too (where a run would start: `table.initial`).

    Raises:
        OutOfScope: names the field; or no small context fulfils the invariants.
    """
    space = contexts_space(table, state, limit, hints or hints_of(table))
    if not space.constrained:
        where = f"state {state} of {table.name}" if state else f"machine {table.name}"
        raise OutOfScope(
            f"{where}: no small context fulfils its invariants. "
            "Give one yourself, or loosen the invariants."
        )
    yield from space.values


def contexts_space(table: Table, state: str | None, limit: int, hints: Hints) -> Space:
    """`contexts_of`, and whether they are all; without the invariants if none fulfils them."""
    clauses = list(table.invariants)
    if state is not None:
        clauses += table.places[state].invariants
    columns = columns_of(table.context, hints)
    base = _settled(table, columns, clauses)
    if base is not None:
        columns = {name: _first(base[name], values) for name, values in columns.items()}
    found = made(table.context, columns, limit * 4 if clauses else limit)
    if base is not None:
        found = (one for one in found if all(holds(c, {"context": one}) for c in clauses))
    complete = Combinations(list(columns.values()), limit).complete
    return Space(tuple(islice(found, limit)), complete, base is not None)


def _first(value: Any, values: Sequence[Any]) -> list[Any]:
    return [value, *(one for one in values if one is not value)]


def _settled(
    table: Table, columns: dict[str, list[Any]], clauses: Sequence[Clause]
) -> dict[str, Any] | None:
    """The fields of a context in which all clauses hold: climbs by changing one field, or two."""
    first = {name: values[0] for name, values in columns.items()}
    reading = reads(table, (clause.call for clause in clauses))
    wider = {
        name: [first[name], *values]
        for name, values in columns_of(table.context, hints_from(reading)).items()
        if name in reading.names
    }
    best = first
    score = _score(table, best, clauses)
    for _ in range(ROUNDS_MAX):
        if score == len(clauses):
            return best
        better = next((row for row in _neighbours(wider, best)
                       if _score(table, row, clauses) > score), None)  # fmt: skip
        if better is None:
            return None
        best, score = better, _score(table, better, clauses)
    return best if score == len(clauses) else None


def _score(table: Table, fields: dict[str, Any], clauses: Sequence[Clause]) -> int:
    try:
        context = table.context(**fields)
    except Exception:  # noqa: BLE001 - the struct's own code; it refuses these values
        return -1
    return sum(holds(clause, {"context": context}) for clause in clauses)


def _neighbours(columns: dict[str, list[Any]], fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    wide = [name for name, values in columns.items() if len(values) > 1]
    for name in wide:
        for value in columns[name]:
            yield {**fields, name: value}
    pairs = (
        {**fields, a: x, b: y}
        for a, b in combinations(wide, 2)
        for x in columns[a]
        for y in columns[b]
    )
    yield from islice(pairs, PAIRS_MAX)


def plain(value: Any) -> Any:
    """A value as a witness shows it: JSON, secrets as `***`."""
    return msgspec.to_builtins(value, enc_hook=lambda _: "***", str_keys=True)
