"""Transitions: one row each, never changed.

An event's payload names the event again, which its row does already, so it is kept without
(`untagged`); whoever reads a row puts it back (`tagged`)::

    {"event":"paid","amount_atomic":5}    kept as    {"amount_atomic":5}
    {"event":"paid"}                                 {}
    {"amount_atomic":5}                               {"amount_atomic":5}    after a space
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from engine.contracts import pack, unpack
from engine.journal import Entry
from engine.ports import Write
from persistence import tables
from persistence.database import Database, Session
from persistence.effects import NO_SETTLED, SETTLED_COLUMNS, settled_values

_t = tables.transition.c
_INSERT = sa.insert(tables.transition)
_READ = (
    sa.select(tables.transition)
    .where(_t.run_id == sa.bindparam("of"), _t.seq > sa.bindparam("after"))
    .order_by(_t.seq)
    .limit(sa.bindparam("most"))
)
_COLUMNS = (
    "run_id",
    "seq",
    "event",
    "source",
    "target",
    "status",
    "at_ms",
    "worker",
    "fence",
    "payload",
    "verdicts",
    "context",
    *SETTLED_COLUMNS,
)


class SqlJournal:
    """`engine.ports.Journal` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self, run_id: str, *, after_seq: int = 0, limit: int = 10_000) -> list[Entry]:
        """Entries in order, encoded; none for an unknown run."""
        with self._database.reading() as sql:
            rows = sql.fetch(_READ, of=run_id, after=after_seq, most=limit)
        return [_entry(row) for row in rows]


def first_entry(sql: Session, run_id: str) -> Entry | None:
    """The entry with which a run began, encoded."""
    rows = sql.fetch(_READ, of=run_id, after=0, most=1)
    return _entry(rows[0]) if rows else None


def add_transitions(sql: Session, writes: Sequence[Write]) -> None:
    """Append the entries of these writes, each with what became of the effect before it."""
    sql.execute_rows(_INSERT, _COLUMNS, list(map(_of_write, writes)))


def add_first_entries(sql: Session, entries: Sequence[Entry]) -> None:
    """Append the entries with which runs begin."""
    sql.execute_rows(_INSERT, _COLUMNS, [(*_row(entry, 0), *NO_SETTLED) for entry in entries])


def _of_write(write: Write) -> tuple[Any, ...]:
    assert write.entry is not None
    return (*_row(write.entry, write.fence), *settled_values(write))


_TAG = b'{"event":"'


@lru_cache(maxsize=4096)
def _tag(event: str) -> bytes:
    return b'%s%s"' % (_TAG, event.encode())


def untagged(event: str, payload: Any) -> Any:
    """An encoded payload without the name of its event; `tagged` is the inverse, for any bytes."""
    tag = _tag(event)
    if payload.startswith(tag):
        rest = payload[len(tag) :]
        short = b"{}" if rest == b"}" else b"{" + rest[1:] if rest[:1] == b"," else payload
        return payload if short.startswith(_TAG) else short
    return (
        b" " + payload if payload[:1] in (b"{", b" ") and not payload.startswith(_TAG) else payload
    )


def tagged(event: str, stored: Any) -> Any:
    """The payload out of a row of the journal."""
    first = stored[:1]
    if first == b" ":
        return stored[1:]
    if first != b"{" or stored.startswith(_TAG):
        return stored
    return _tag(event) + (b"}" if stored == b"{}" else b"," + stored[1:])


def _row(entry: Entry, fence: int) -> tuple[Any, ...]:
    return (
        entry.run_id,
        entry.seq,
        entry.event,
        entry.source,
        entry.target,
        entry.status,
        entry.at_ms,
        entry.worker,
        fence,
        entry.payload and untagged(entry.event, entry.payload),
        pack(entry.verdicts),
        entry.context,
    )


def _entry(row: sa.Row[Any]) -> Entry:
    return Entry(
        run_id=row.run_id,
        seq=row.seq,
        event=row.event,
        source=row.source,
        target=row.target,
        payload=row.payload and tagged(row.event, row.payload),
        verdicts=unpack(row.verdicts),
        context=row.context,
        status=row.status,
        at_ms=row.at_ms,
        worker=row.worker,
    )


ADDING = (_INSERT, _COLUMNS, _of_write)
"""The statement that adds a transition, the names of its values, what makes them of a write."""
