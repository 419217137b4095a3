"""The fingerprint of a moment on the bench: what its future depends on, and nothing else.

Added to what is stored (`snapshot.fingerprint`) are the truth of the outside where somebody will
ask, and how far away the moments are that contexts name (fields called `..._ms`).

A machine that counts without end would have endless states: a whole number in a context that was
not there at the start, and is above all small ones in the machine's code, counts as "many".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from engine.control import CANCEL
from engine.table import Table
from engine.verification.scope import hints_of
from engine.verification.snapshot import EffectRow, Fingerprint, Row, Rows, fingerprint, left

SMALL_MAX = 20


@dataclass(frozen=True, slots=True)
class _Read:
    """A context: what counts of it, and the moments in it."""

    rest: bytes
    times: tuple[int, ...]


class Marks:
    """Fingerprints for one set of machines.

    Args:
        exact: names of machines in whose contexts every number counts, because their environment
            keeps them few.
    """

    def __init__(self, tables: Mapping[str, Table], exact: Sequence[str]) -> None:
        self._tables = tables
        self._timed = {name for name, table in tables.items() if _reads_the_time(table)}
        self._numbers = {n: _greatest(t) for n, t in tables.items() if n not in exact}
        self._known: dict[tuple[str, bytes], _Read] = {}
        self._first: set[Any] = set()

    def begin(self, context: str) -> None:
        """A first context: its numbers are the machine's own."""
        fields = msgspec.json.decode(context).values()
        self._first = {value for value in fields if type(value) is int}
        self._known.clear()

    def of(self, stored: Rows, now_ms: int, done: Mapping[str, tuple[str, str]]) -> Fingerprint:
        """What the future depends on, besides what was sent."""
        rows = stored.runs
        return (
            fingerprint(rows, stored.inbox, now_ms, lambda row: self._read(row).rest),
            tuple(self._truth(row, done) for row in rows if row.effect),
            _doubts(stored.effects, done),
            tuple(left(at, now_ms) for row in rows if row.live for at in self._read(row).times),
        )

    def moments(self, row: Row) -> tuple[int, ...]:
        """Moments in the context of a machine that looks at the clock."""
        return self._read(row).times if row.machine in self._timed else ()

    def _read(self, row: Row) -> _Read:
        key = (row.machine, row.context)
        if key not in self._known:
            times: list[int] = []
            fields = _without_times(msgspec.json.decode(row.context), times)
            most = self._numbers.get(row.machine)
            if most is not None:
                fields = {name: self._counted(value, most) for name, value in fields.items()}
            self._known[key] = _Read(msgspec.json.encode(fields), tuple(times))
        return self._known[key]

    def _counted(self, value: Any, most: int) -> Any:
        grown = type(value) is int and value > most and value not in self._first
        return most if grown else value

    def _truth(self, row: Row, done: Mapping[str, tuple[str, str]]) -> tuple[str, str] | None:
        """What the outside did under a pending effect's key, where anybody will ask."""
        places = self._tables[row.machine].places
        effect = places[row.undo_of].compensation if row.undo_of else places[row.state].effect
        if row.key is None or effect is None or (effect.idempotent and effect.ask is None):
            return None
        return done.get(row.key)


def _without_times(value: Any, times: list[int]) -> Any:
    """The same without the numbers called `..._ms`, which are added to `times`."""
    if isinstance(value, list):
        return [_without_times(one, times) for one in value]
    if not isinstance(value, dict):
        return value
    rest = {}
    for name, one in value.items():
        if name.endswith("_ms") and type(one) is int:
            times.append(one)
        else:
            rest[name] = _without_times(one, times)
    return rest


def _doubts(
    effects: Sequence[EffectRow], done: Mapping[str, tuple[str, str]]
) -> frozenset[tuple[str, str]]:
    """Where the record of effects and the ledger of the outside differ.

    Some of it is a defect and some is not; but two moments are not one when they differ here.
    What an event of the machine left behind is its author's decision, and no oracle asks for it.
    """
    return frozenset(
        (one.status, one.name)
        for one in effects
        if (one.status == "done" and one.key not in done)
        or (one.left_by == CANCEL and one.key in done)
    )


def _greatest(table: Table) -> int:
    """A number above the small ones with which a machine compares."""
    numbers = [n for n in hints_of(table).numbers if n <= SMALL_MAX]
    return max(numbers, default=3) + 1


def _reads_the_time(table: Table) -> bool:
    methods = (getattr(value, "__code__", None) for value in vars(table.machine).values())
    return any("now_ms" in code.co_varnames for code in methods if code is not None)
