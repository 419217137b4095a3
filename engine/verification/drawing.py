"""Payloads drawn at random: small values, boundary values, and what the run itself knows.

A guard such as `amount == held - taken` is never met by numbers out of the blue.  So a drawn field
takes, by chance, one of these::

    symbolic   a field of the run's context, one more or one less, its negative, the difference of
               two fields; a text, an enum member or a struct that the context holds
    small      what the explorer would try
    boundary   0, -1, 2**63 - 1, -2**63

What the payload's type does not allow (`Annotated[int, Meta(ge=1)]`) is not drawn.
"""

from __future__ import annotations

import random
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NewType, TypeVar, Union, get_args, get_origin

import msgspec

from engine.codec import Codec
from engine.errors import TurtlesError
from engine.events import Context
from engine.secret import Secret
from engine.table import Table
from engine.verification.scope import hints_of
from engine.verification.values import DEPTH_MAX, columns_of

INT64 = 2**63
BOUNDARY = (0, -1, INT64 - 1, -INT64)
PARTS_MAX = 24
DIFFERENT_MAX = 6
"""Fields whose differences are tried: all pairs of so many."""
SYMBOLIC, SMALL = 0.5, 0.9
"""Up to the first by chance symbolic, up to the second small, else a boundary value."""

Near = Mapping[type, Sequence[Any]]
"""Values that a context holds, or that are near them, by their type."""


def near_of(context: Context) -> dict[type, list[Any]]:
    """What is symbolic in this context, the plain fields first; each value once."""
    found: dict[type, list[Any]] = {}
    for part in parts_of(context):
        found.setdefault(type(part), []).append(part)
    numbers = list(dict.fromkeys(found.get(int, ())))
    some = numbers[:DIFFERENT_MAX]
    differences = [a - b for a in some for b in some if a > b]
    around = [one for n in numbers for one in (n + 1, n - 1, -n)]
    if numbers:
        found[int] = list(dict.fromkeys([*numbers, *differences, *around]))
    if str in found:
        found[str] = list(dict.fromkeys(found[str]))
    return found


def parts_of(value: Any) -> Iterator[Any]:
    """A struct's values all the way down, itself left out; at most `PARTS_MAX` of a collection."""
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            one = getattr(value, name)
            if one is not None and not isinstance(one, tuple | list | dict | set | frozenset):
                yield one
            yield from parts_of(one)
    elif isinstance(value, tuple | list):
        for one in value[:PARTS_MAX]:
            yield one
            yield from parts_of(one)


def arms_of(kind: Any) -> tuple[type, ...]:
    """The classes of which a value of an annotation may be."""
    origin = get_origin(kind)
    if origin is Annotated:
        return arms_of(get_args(kind)[0])
    if origin in (Union, types.UnionType):
        return tuple(arm for one in get_args(kind) for arm in arms_of(one))
    if isinstance(kind, NewType):
        return arms_of(kind.__supertype__)
    if hasattr(kind, "__value__"):  # type X = ...
        return arms_of(kind.__value__)
    if isinstance(kind, TypeVar):
        return arms_of(kind.__bound__) if kind.__bound__ else ()
    if kind is Secret or origin is Secret:
        return (Secret,)
    return (kind,) if isinstance(kind, type) else ()


class Drawing:
    """Draws payloads; `chance` is set anew for each sequence.

    Args:
        codec: writes and reads them as the store does.
    """

    def __init__(self, codec: Codec) -> None:
        self.chance = random.Random(0)  # noqa: S311 - test data, no secret
        self._codec = codec
        self._columns: dict[Any, dict[str, tuple[list[Any], tuple[type, ...]]]] = {}
        self._near: tuple[Context | None, dict[type, list[Any]]] = (None, {})

    def payload(self, table: Table, event: str, context: Context) -> str | None:
        """An encoded payload, "" for an event without one; None: nothing allowed was drawn."""
        kind = table.payloads.get(event)
        if kind is None:
            return ""
        if self._near[0] is not context:
            self._near = context, near_of(context)
        try:
            text = self._codec.encode(self._struct(table, kind, DEPTH_MAX))
            self._codec.decode(kind, text, "payload")
        except (TurtlesError, msgspec.MsgspecError, OverflowError, TypeError, ValueError):
            return None
        return text.decode()

    def _struct(self, table: Table, kind: type, depth: int) -> Any:
        columns = self._columns.get(kind)
        if columns is None:
            found = columns_of(kind, hints_of(table), depth)
            types_ = {field.name: field.type for field in msgspec.structs.fields(kind)}
            columns = {name: (found[name], arms_of(types_[name])) for name in found}
            self._columns[kind] = columns
        return kind(**{name: self._value(table, *one, depth) for name, one in columns.items()})

    def _value(self, table: Table, small: Sequence[Any], arms: tuple[type, ...], depth: int) -> Any:
        dice = self.chance.random()
        known = self._near[1]
        if dice < SYMBOLIC and arms:
            arm = self.chance.choice(arms)
            if known.get(arm):
                return self.chance.choice(known[arm])
            if issubclass(arm, msgspec.Struct) and depth > 1:
                return self._struct(table, arm, depth - 1)
        if dice >= SMALL and int in arms:
            return self.chance.choice(BOUNDARY)
        return self.chance.choice(small)
