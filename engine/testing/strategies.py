"""From a type to a Hypothesis strategy; for the types of contexts and payloads.

::

    strategy_for(Refund)                          any refund
    strategy_for(Refund, near=near_of(context))   first such as the context suggests

What shrinks best stands first: symbolic values (`engine.verification.drawing.near_of`), then
boundary values, then any.  Nothing is filtered: what a type rules out is never drawn (`Annotated[
int, Meta(ge=1)]` gives no 0), so that no draw is wasted and shrinking stays simple.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NewType, TypeVar, Union, get_args, get_origin
from uuid import UUID

import msgspec
from hypothesis import strategies as st

from engine.secret import Secret
from engine.verification.drawing import INT64, Near
from engine.verification.values import DEPTH_MAX, OutOfScope, _fields, values_of

Strategy = st.SearchStrategy[Any]
SIZE_MAX = 3
TEXT_MAX = 8
EDGES = (0, 1, -1, INT64 - 1, -INT64)
NOTHING: Near = {}


def strategy_for(kind: Any, near: Near = NOTHING, *, depth: int = DEPTH_MAX) -> Strategy:
    """Values of a type.

    Args:
        kind: a class, or any annotation that msgspec can store.
        near: values by their class that are worth trying first.
        depth: how many structs may be inside one another.

    Raises:
        OutOfScope: names the type.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    inner: Callable[[Any], Strategy] = lambda one: strategy_for(one, near, depth=depth)  # noqa: E731
    if origin is Annotated:
        return _within(kind, near, depth)
    if isinstance(kind, NewType):
        return inner(kind.__supertype__)
    if hasattr(kind, "__value__"):  # type X = ...
        return inner(kind.__value__)
    if isinstance(kind, TypeVar):
        return inner(kind.__bound__ or Any)
    if origin in (Union, types.UnionType):
        return _any_of(kind, arguments, inner)
    if origin is Literal:
        return st.sampled_from(arguments)
    if kind is Secret or origin is Secret:
        wide = inner(arguments[0] if arguments else str).map(Secret)
        return _first(near.get(Secret, ()), wide)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _first(near.get(kind, ()), st.sampled_from(kind))
    plain = _PLAIN.get(kind)
    if plain is not None:
        return _first(near.get(kind, ()) if isinstance(kind, type) else (), plain)
    make = _COLLECTIONS.get(origin or kind)
    if make is not None:
        return _collection(make, arguments, inner, 0, SIZE_MAX)
    return _struct(kind, near, depth)


def _first(known: Sequence[Any], wide: Strategy) -> Strategy:
    return st.one_of(st.sampled_from(list(known)), wide) if known else wide


def _any_of(kind: Any, options: Sequence[Any], inner: Callable[[Any], Strategy]) -> Strategy:
    found, problem = [], None
    for option in options:
        try:
            found.append(inner(option))
        except OutOfScope as error:
            problem = error
    if not found:
        raise OutOfScope(f"type {kind}: {problem}")
    return st.one_of(found)


# -- constraints ----------------------------------------------------------------------------------


def _within(kind: Any, near: Near, depth: int) -> Strategy:
    bare, *metas = get_args(kind)
    limits = _limits(metas)
    if not limits:
        return strategy_for(bare, near, depth=depth)
    if bare is int:
        return _numbers(kind, limits, near)
    if bare is str and "pattern" not in limits:
        lengths = limits.get("min_length", 0), limits.get("max_length")
        return _first(_fitting(kind, near.get(str, ())), _texts(*lengths))
    if bare is str:
        text = st.from_regex(limits["pattern"])
        return text if not {"min_length", "max_length"} & set(limits) else _small(kind)
    make, origin = _COLLECTIONS.get(get_origin(bare) or bare), get_args(bare)
    if make is not None:
        least = limits.get("min_length", 0)
        most = limits.get("max_length", least + SIZE_MAX)
        inner: Callable[[Any], Strategy] = lambda one: strategy_for(one, near, depth=depth)  # noqa: E731
        return _collection(make, origin, inner, least, min(most, least + SIZE_MAX))
    return _small(kind)


def _limits(metas: Iterable[Any]) -> dict[str, Any]:
    names = ("ge", "gt", "le", "lt", "multiple_of", "min_length", "max_length", "pattern")
    found = {name: getattr(meta, name, None) for meta in metas for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _numbers(kind: Any, limits: Mapping[str, Any], near: Near) -> Strategy:
    step = int(limits.get("multiple_of", 1))
    least = max(limits.get("ge", -INT64), limits.get("gt", -INT64 - 1) + 1)
    most = min(limits.get("le", INT64 - 1), limits.get("lt", INT64) - 1)
    wide = st.integers(-(-least // step), most // step).map(lambda n: n * step)
    edges = [n for bound in (least, most) for n in (bound, bound + step, bound - step)]
    known = [*_fitting(kind, near.get(int, ())), *_fitting(kind, [*EDGES, *edges])]
    return _first(list(dict.fromkeys(known)), wide)


def _fitting(kind: Any, values: Iterable[Any]) -> list[Any]:
    """Of known values, those that a type allows."""
    return list(_allowed(kind, values))


def _allowed(kind: Any, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError:
            continue
        yield value


def _small(kind: Any) -> Strategy:
    """The explorer's values, where there is no better way to draw."""
    found = list(values_of(kind))
    if not found:
        raise OutOfScope(f"type {kind}: no small value fulfils its constraints")
    return st.sampled_from(found)


def _texts(least: int = 0, most: int | None = None) -> Strategy:
    most = max(least, TEXT_MAX) if most is None else most
    characters = st.characters(codec="utf-8")
    return st.text(characters, min_size=least, max_size=most)


# -- collections and structs ----------------------------------------------------------------------


def _collection(
    make: Any,
    arguments: tuple[Any, ...],
    inner: Callable[[Any], Strategy],
    least: int,
    most: int,
) -> Strategy:
    if make is tuple and arguments and arguments[-1] is not Ellipsis:
        return st.tuples(*map(inner, arguments))
    try:
        first = inner(arguments[0] if arguments else str)
        second = inner(arguments[1]) if make is dict and arguments else first
    except OutOfScope:
        if least:
            raise
        return st.builds(make)
    if make is dict:
        return st.dictionaries(first, second, min_size=least, max_size=most)
    if make in (set, frozenset):
        return st.sets(first, min_size=least, max_size=most).map(make)
    return st.lists(first, min_size=least, max_size=most).map(make)


def _struct(kind: Any, near: Near, depth: int) -> Strategy:
    fields = _fields(kind)
    if fields is None:
        raise OutOfScope(
            f"type {getattr(kind, '__name__', kind)}: no strategy is known for it. Use msgspec "
            "types: numbers, texts, enums, structs, collections of these, Secret."
        )
    if depth <= 0:
        raise OutOfScope(f"type {kind.__name__}: too many structs inside one another")
    parts = {name: _field(name, *one, near, depth - 1) for name, one in fields.items()}
    instead = next(iter(values_of(kind, limit=1)), None)

    def build(values: dict[str, Any]) -> Any:
        try:
            return kind(**values)
        except (ValueError, TypeError, msgspec.ValidationError):
            return instead  # the struct itself refuses these values

    return _first(near.get(kind, ()), st.fixed_dictionaries(parts).map(build))


def _field(name: str, kind: Any, default: Any, near: Near, depth: int) -> Strategy:
    try:
        return strategy_for(kind, near, depth=depth)
    except OutOfScope as error:
        if callable(default):
            return st.builds(default)
        raise OutOfScope(f"field {name}: {error}") from error


_COLLECTIONS: dict[Any, Any] = {
    tuple: tuple, list: list, set: set, frozenset: frozenset, dict: dict,
    Sequence: list, Iterable: list, Mapping: dict,
}  # fmt: skip
_WIDE_NUMBERS = st.integers(-INT64, INT64 - 1)
_PLAIN: dict[Any, Strategy] = {
    int: st.one_of(st.sampled_from(EDGES), st.integers(-3, 99), _WIDE_NUMBERS),
    bool: st.booleans(),
    float: st.one_of(
        st.sampled_from([0.0, 1.0, -1.0, 0.5]), st.floats(allow_nan=False, allow_infinity=False)
    ),
    str: st.one_of(st.sampled_from(["", "a", "b"]), _texts()),
    bytes: st.binary(max_size=TEXT_MAX),
    type(None): st.none(),
    None: st.none(),
    Any: st.sampled_from([None, "a", 1]),
    object: st.sampled_from([None, "a", 1]),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False, places=2),
    datetime: st.datetimes(timezones=st.just(UTC)),
    date: st.dates(),
    time: st.times(),
    timedelta: st.timedeltas(timedelta(days=-1_000), timedelta(days=1_000)),
    UUID: st.uuids(),
}
