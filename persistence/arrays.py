"""Columns of values as PostgreSQL's binary arrays, made here because a driver's own way is slow.

A batch of 200 steps is some 10,000 values.  psycopg asks for a dumper for each of them; here a
column is packed at once, and one whose values are all the same (or all absent) costs next to
nothing.  The form is that of `array_send` in the server's source::

    int32 dimensions (1), int32 whether there are NULLs, int32 type of the items,
    int32 length, int32 first index (1), then each item: int32 bytes (-1 for NULL), its bytes
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

_NULL = b"\xff\xff\xff\xff"
_HEAD = struct.Struct("!iiIii")
_LENGTH = struct.Struct("!i")
_ITEM = {"INTEGER": struct.Struct("!ii"), "BIGINT": struct.Struct("!iq")}
_BYTES = {"INTEGER": 4, "BIGINT": 8}
_TRUE, _FALSE = b"\x00\x00\x00\x01\x01", b"\x00\x00\x00\x01\x00"


class TextArray(bytes):
    """A `text[]`."""


class IntegerArray(bytes):
    """An `int4[]`."""


class BigIntArray(bytes):
    """An `int8[]`."""


class BooleanArray(bytes):
    """A `bool[]`."""


class ByteaArray(bytes):
    """A `bytea[]`."""


# By the name of a type: the class of its arrays, and the server's number of the type.
_KINDS: dict[str, tuple[type[bytes], int]] = {
    "TEXT": (TextArray, 25),
    "INTEGER": (IntegerArray, 23),
    "BIGINT": (BigIntArray, 20),
    "BOOLEAN": (BooleanArray, 16),
    "BYTEA": (ByteaArray, 17),
}
OIDS: dict[type[bytes], int] = {
    TextArray: 1009,
    IntegerArray: 1007,
    BigIntArray: 1016,
    BooleanArray: 1000,
    ByteaArray: 1001,
}
"""The server's number of each array type."""


def packed(kind: str, values: Sequence[Any]) -> bytes:
    """A column of at least one value as the array of its kind.

    Args:
        kind: TEXT, INTEGER, BIGINT, BOOLEAN or BYTEA.
        values: of that kind, or None.

    Raises:
        OverflowError: an integer that the type cannot hold.
    """
    made, oid = _KINDS[kind]
    count, first = len(values), values[0]
    head = _HEAD.pack(1, 1, oid, count, 1)
    if values.count(first) == count:
        return made(head + _PACKERS[kind]((first,)) * count)
    return made(head + _PACKERS[kind](values))


def _texts(values: Sequence[str | None]) -> bytes:
    return _blobs([None if value is None else value.encode() for value in values])


def _blobs(values: Sequence[bytes | None]) -> bytes:
    parts: list[bytes] = []
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts.append(_LENGTH.pack(len(value)))
            parts.append(value)
    return b"".join(parts)


def _flags(values: Sequence[bool | None]) -> bytes:
    return b"".join([_NULL if value is None else _TRUE if value else _FALSE for value in values])


def _integers(kind: str) -> Callable[[Sequence[int | None]], bytes]:
    item, size = _ITEM[kind].pack, _BYTES[kind]

    def pack(values: Sequence[int | None]) -> bytes:
        try:
            return b"".join([_NULL if value is None else item(size, value) for value in values])
        except struct.error as error:
            raise OverflowError(f"an integer is too large for {kind}: {error}") from error

    return pack


_PACKERS: dict[str, Callable[[Sequence[Any]], bytes]] = {
    "TEXT": _texts,
    "BYTEA": _blobs,
    "BOOLEAN": _flags,
    "INTEGER": _integers("INTEGER"),
    "BIGINT": _integers("BIGINT"),
}
