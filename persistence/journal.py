"""Transitions: one row each, never changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from engine.contracts import Verdict
from engine.journal import Entry
from persistence import tables
from persistence.database import Database, Session

_t = tables.transition.c
_INSERT = sa.insert(tables.transition)
_READ = (
    sa.select(tables.transition)
    .where(_t.run_id == sa.bindparam("of"), _t.seq > sa.bindparam("after"))
    .order_by(_t.seq)
    .limit(sa.bindparam("most"))
)
_VERDICTS = msgspec.json.Decoder(tuple[Verdict, ...])


class SqlJournal:
    """`engine.ports.Journal` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self, run_id: str, *, after_seq: int = 0, limit: int = 10_000) -> list[Entry]:
        """Entries in order, encoded; none for an unknown run."""
        with self._database.reading() as sql:
            rows = sql.fetch(_READ, of=run_id, after=after_seq, most=limit)
        return [_entry(row) for row in rows]


def add_entries(sql: Session, entries: Sequence[tuple[Entry, int]]) -> None:
    """Append entries, each with the fence under which it was written (0 for an accepted run)."""
    sql.execute_many(_INSERT, [_row(entry, fence) for entry, fence in entries])


def _row(entry: Entry, fence: int) -> dict[str, Any]:
    return {
        "run_id": entry.run_id,
        "seq": entry.seq,
        "event": entry.event,
        "source": entry.source,
        "target": entry.target,
        "status": entry.status,
        "at_ms": entry.at_ms,
        "worker": entry.worker,
        "fence": fence,
        "payload": entry.payload,
        "verdicts": msgspec.json.encode(entry.verdicts),
        "context": entry.context,
    }


def _entry(row: sa.Row[Any]) -> Entry:
    return Entry(
        run_id=row.run_id,
        seq=row.seq,
        event=row.event,
        source=row.source,
        target=row.target,
        payload=row.payload,
        verdicts=_VERDICTS.decode(row.verdicts),
        context=row.context,
        status=row.status,
        at_ms=row.at_ms,
        worker=row.worker,
    )
