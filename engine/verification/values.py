"""Values of every type, small ones first.

Whole numbers 1, 0, 2, 3, -1 and those of the hints; texts "a", "", "b" and those of the hints;
every member of an enum; None; collections of none, one and two; structs field by field::

    (first, first, first) -> one field differs -> two differ -> ...       (`Combinations`)

If all combinations fit the limit they are all made, and the space is complete; otherwise every
value of every field is tried alone and the rest of the limit is a fixed sample of the others.
The same arguments always give the same values in the same order.
"""

from __future__ import annotations

import dataclasses
import random
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from itertools import combinations, cycle, islice, pairwise, product, zip_longest
from math import prod
from typing import (
    Annotated,
    Any,
    Literal,
    NewType,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)
from uuid import UUID

import msgspec

from engine.errors import UsageError
from engine.secret import Secret

FIELD_VALUES_MAX = 48
INNER_VALUES_MAX = 24
DEPTH_MAX = 4
LENGTH_MAX = 200
SAMPLE_SEED = 13


class OutOfScope(UsageError):
    """Nothing is known about a type, or it contains itself without end."""


@dataclass(frozen=True, slots=True)
class Hints:
    """What makes values interesting.

    Args:
        numbers: whole numbers to be tried besides the small ones.
        texts: texts, likewise.
        names: only fields of these names vary, others keep their first value; None: all vary.
    """

    numbers: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    names: frozenset[str] | None = None

    def vary(self, name: str) -> bool:
        """Whether a field of this name takes more than its first value."""
        return self.names is None or name in self.names


NO_HINTS = Hints()


class Combinations:
    """Rows made of one value from each column, those that differ least from the first row first.

    Args:
        columns: the values of each column, none empty.
        limit: at most so many rows.
        whole: the columns themselves lack nothing, however long they are.
    """

    def __init__(
        self, columns: Sequence[Sequence[Any]], limit: int, *, whole: bool = False
    ) -> None:
        self.columns = columns
        self.limit = limit
        self._fits = prod(map(len, columns)) <= limit
        self.complete = self._fits and (whole or not any(map(_is_cut, columns)))
        """Whether the rows are all that small values can make."""
        self.wide = [i for i, column in enumerate(columns) if len(column) > 1]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        depth = len(self.wide) if self._fits else 1
        rows = (self._row(which) for n in range(depth + 1) for which in self._differing(n))
        return islice(rows if self._fits else self._sampled(rows), self.limit)

    def _differing(self, count: int) -> Iterator[dict[int, int]]:
        for places in combinations(self.wide, count):
            for picked in product(*(range(1, len(self.columns[p])) for p in places)):
                yield dict(zip(places, picked, strict=True))

    def _row(self, which: Mapping[int, int]) -> tuple[Any, ...]:
        return tuple(column[which.get(i, 0)] for i, column in enumerate(self.columns))

    def _sampled(self, rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        yield from rows
        chance = random.Random(SAMPLE_SEED)  # noqa: S311 - a fixed sample, no secret
        seen: set[tuple[tuple[int, int], ...]] = set()
        for _ in range(self.limit):
            count = min(chance.choice((2, 2, 3, 4, len(self.wide))), len(self.wide))
            places = chance.sample(self.wide, count)
            which = {p: chance.randrange(1, len(self.columns[p])) for p in sorted(places)}
            if len(which) > 1 and tuple(which.items()) not in seen:
                seen.add(tuple(which.items()))
                yield self._row(which)


def _is_cut(column: Sequence[Any]) -> bool:
    """Whether a column may lack values of its type, because it, or a struct in it, is full."""
    inner = any(isinstance(one, msgspec.Struct | tuple | list | dict) for one in column)
    return len(column) >= (INNER_VALUES_MAX if inner else FIELD_VALUES_MAX)


def values_of(
    kind: Any, *, limit: int = FIELD_VALUES_MAX, hints: Hints = NO_HINTS, depth: int = DEPTH_MAX
) -> Iterator[Any]:
    """Values of a type, small first, each once, at most `limit`.

    Args:
        kind: a class, or any annotation that msgspec can store.
        depth: how many structs may be inside one another.

    Raises:
        OutOfScope: names the type.
    """
    return islice(_distinct(_values(kind, hints, limit, depth)), limit)


def _distinct(values: Iterable[Any]) -> Iterator[Any]:
    seen: dict[Any, list[Any]] = {}
    for value in values:
        alike = seen.setdefault(type(value), [])
        if isinstance(value, msgspec.Struct) or value not in alike:
            alike.append(value)
            yield value


def _values(kind: Any, hints: Hints, limit: int, depth: int) -> Iterable[Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    inner = partial(_inner, hints=hints, depth=depth)
    if origin is Annotated:
        return _within(kind, hints, limit, depth)
    if isinstance(kind, NewType):
        return _values(kind.__supertype__, hints, limit, depth)
    if hasattr(kind, "__value__"):  # type X = ...
        return _values(kind.__value__, hints, limit, depth)
    if isinstance(kind, TypeVar):
        return _values(kind.__bound__ or Any, hints, limit, depth)
    if origin in (Union, types.UnionType):
        return _any_of(kind, arguments, inner)
    if origin is Literal:
        return arguments
    if kind is Secret or origin is Secret:
        return (Secret(value) for value in inner(arguments[0] if arguments else str))
    if origin in _COLLECTIONS or kind in _COLLECTIONS:
        return _collections(origin or kind, arguments, inner, _lengths(hints))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return list(kind)
    if kind in _LEAVES:
        return _LEAVES[kind](hints)
    fields = _fields(origin if isinstance(origin, type) else kind)
    if fields is not None:
        return _structs(kind, fields, hints, limit, depth)
    raise OutOfScope(
        f"type {getattr(kind, '__name__', kind)}: no small values are known for it. "
        "Use msgspec types: numbers, texts, enums, structs, collections of these, Secret."
    )


def _inner(kind: Any, hints: Hints, depth: int) -> list[Any]:
    limit = FIELD_VALUES_MAX if depth >= DEPTH_MAX - 1 else INNER_VALUES_MAX
    return list(values_of(kind, limit=limit, hints=hints, depth=depth))


def _any_of(kind: Any, options: Sequence[Any], inner: Callable[[Any], list[Any]]) -> Iterable[Any]:
    found, unknown = [], None
    for option in options:
        try:
            found.append(inner(option))
        except OutOfScope as error:
            unknown = error
    if not found:
        raise OutOfScope(f"type {kind}: {unknown}")
    absent = object()
    rows = zip_longest(*found, fillvalue=absent)
    return (value for row in rows for value in row if value is not absent)


def _within(kind: Any, hints: Hints, limit: int, depth: int) -> Iterator[Any]:
    """Values that fulfil the constraints of `Annotated[..., msgspec.Meta(...)]`."""
    bare, *metas = get_args(kind)
    numbers = [
        getattr(meta, bound, None)
        for meta in metas
        for bound in ("ge", "gt", "le", "lt", "min_length", "max_length", "multiple_of")
    ]
    near = [int(n) + d for n in numbers if n is not None for d in (0, 1, -1)]
    texts = tuple("a" * n for n in near if 0 <= n <= 100) if any(metas) else ()
    more = Hints((*hints.numbers, *near), (*hints.texts, *texts), hints.names)
    for value in _values(bare, more, limit, depth):
        try:
            msgspec.convert(msgspec.to_builtins(value), kind)
        except (msgspec.ValidationError, TypeError):
            continue
        yield value


def _collections(
    origin: Any,
    arguments: tuple[Any, ...],
    inner: Callable[[Any], list[Any]],
    lengths: Sequence[int],
) -> Iterator[Any]:
    """None, one and two of what is inside, and as many as the hints say."""
    make = _COLLECTIONS[origin]
    if make is tuple and arguments and arguments[-1] is not Ellipsis:
        yield from Combinations([inner(a) for a in arguments], FIELD_VALUES_MAX)
        return
    if make is tuple and arguments == ():
        arguments = (Any,) if origin is tuple else ()
    try:
        first = inner(arguments[0] if arguments else Any)
        second = inner(arguments[1]) if make is dict and arguments else first
    except OutOfScope:
        yield make()
        return
    if make is dict:
        for n in (0, 1, 2, *lengths):
            yield dict(zip(first, islice(cycle(second), n), strict=False))
        return
    yield make()
    yield from (make([one]) for one in first)
    yield from (make(pair) for pair in pairwise(first))
    yield from (make(islice(cycle(first), n)) for n in lengths)


def _lengths(hints: Hints) -> list[int]:
    """Lengths worth trying, where the code asks for one."""
    if not hints.vary("len"):
        return []
    return sorted({n for n in hints.numbers if 2 < n <= LENGTH_MAX})


_COLLECTIONS: dict[Any, Any] = {
    tuple: tuple, list: list, set: set, frozenset: frozenset, dict: dict,
    Sequence: list, Iterable: list, Mapping: dict,
}  # fmt: skip


def _structs(
    kind: Any, fields: Mapping[str, tuple[Any, Any]], hints: Hints, limit: int, depth: int
) -> Iterator[Any]:
    if depth <= 0:
        raise OutOfScope(f"type {kind.__name__}: more than {DEPTH_MAX} structs inside one another")
    columns = {
        name: field_values(name, one, default, hints, depth - 1)
        for name, (one, default) in fields.items()
    }
    # Some rows may be refused by the struct itself.
    return islice(made(kind, columns, 4 * limit), limit)


def made(kind: Any, columns: Mapping[str, Sequence[Any]], limit: int) -> Iterator[Any]:
    """Structs out of the values of each field; what the struct itself refuses is left out."""
    for row in Combinations(list(columns.values()), limit):
        try:
            yield kind(**dict(zip(columns, row, strict=True)))
        except Exception:  # noqa: BLE001, S112 - the struct's own code; it refuses these values
            continue


def columns_of(struct: type, hints: Hints, depth: int = DEPTH_MAX) -> dict[str, list[Any]]:
    """The values of each field of a struct, the default first.

    Raises:
        OutOfScope: names the field.
    """
    fields = _fields(struct)
    assert fields is not None
    return {n: field_values(n, k, default, hints, depth - 1) for n, (k, default) in fields.items()}


def field_values(name: str, kind: Any, default: Any, hints: Hints, depth: int) -> list[Any]:
    """The values of one field: its default, then those of its type.

    Raises:
        OutOfScope: names the field.
    """
    first = [] if default is _REQUIRED else [default()]
    if first and not hints.vary(name):
        return first
    limit = FIELD_VALUES_MAX if hints.vary(name) else 1
    try:
        rest = values_of(kind, limit=limit, hints=hints, depth=depth)
        found = [*_distinct([*first, *rest])][:FIELD_VALUES_MAX]
    except OutOfScope as error:
        if first:
            return first
        raise OutOfScope(f"field {name}: {error}") from error
    if not found:
        raise OutOfScope(f"field {name}: no small value fulfils its constraints")
    return found


_REQUIRED = object()


def _fields(kind: Any) -> dict[str, tuple[Any, Any]] | None:
    """Field name -> (type, maker of the default or `_REQUIRED`); None if it is no struct."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {f.name: (f.type, _default(f)) for f in msgspec.structs.fields(kind)}
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        return {f.name: (hints[f.name], _default(f)) for f in dataclasses.fields(kind) if f.init}
    if isinstance(kind, type) and hasattr(kind, "_field_defaults"):
        return {
            name: (one, partial(kind._field_defaults.get, name)
                   if name in kind._field_defaults else _REQUIRED)
            for name, one in get_type_hints(kind).items()
        }  # fmt: skip
    if isinstance(kind, type) and hasattr(kind, "__total__"):
        return {name: (one, _REQUIRED) for name, one in get_type_hints(kind).items()}
    return None


def _default(field: Any) -> Any:
    nothing = (msgspec.NODEFAULT, dataclasses.MISSING)
    if field.default_factory not in nothing:
        return field.default_factory
    if field.default not in nothing:
        return lambda: field.default
    return _REQUIRED


def _numbers(hints: Hints) -> Iterable[int]:
    return (1, 0, 2, 3, -1, *hints.numbers)


_DAY = datetime(2026, 1, 1, tzinfo=UTC)
_LEAVES: dict[Any, Callable[[Hints], Iterable[Any]]] = {
    int: _numbers,
    bool: lambda hints: (False, True),
    float: lambda hints: (1.0, 0.0, 0.5, -1.0, *map(float, hints.numbers)),
    str: lambda hints: ("a", "", "b", *hints.texts, *("a" * n for n in _lengths(hints))),
    bytes: lambda hints: (b"a", b"", *(t.encode() for t in hints.texts)),
    type(None): lambda hints: (None,),
    None: lambda hints: (None,),
    Any: lambda hints: (None, "a", 1),
    object: lambda hints: (None, "a", 1),
    Decimal: lambda hints: map(Decimal, _numbers(hints)),
    datetime: lambda hints: (_DAY, _DAY + timedelta(milliseconds=1)),
    date: lambda hints: (_DAY.date(), date(2026, 1, 2)),
    time: lambda hints: (time(0), time(12)),
    timedelta: lambda hints: (timedelta(0), timedelta(seconds=1)),
    UUID: lambda hints: (UUID(int=1), UUID(int=2)),
}
