"""Recorded effects: a row is made when the effect is decided and settled once.

::

    decided -> pending -+-> done        its outcome moved the run
                        +-> given_up    no attempt was left
                        +-> abandoned   the run went elsewhere before an outcome

`attempts` is what the retry policy counts and begins anew when a run is resumed; `calls` counts
every attempt there has been.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from engine.ports import EffectRecord, Write
from engine.run import Pending, Run
from persistence import tables
from persistence.database import Database, Session

_e = tables.effect.c
_INSERT = sa.insert(tables.effect)
_READ = sa.select(tables.effect).where(_e.run_id == sa.bindparam("of")).order_by(_e.seq, _e.name)
_PENDING = (
    _e.run_id == sa.bindparam("of"),
    _e.key == sa.bindparam("under"),
    _e.status == tables.PENDING,
)
_CLOSE = (
    sa.update(tables.effect)
    .where(*_PENDING)
    .values(status=sa.bindparam("outcome"), open=False, closed_seq=sa.bindparam("at_seq"))
)
_CHANGE = (
    sa.update(tables.effect)
    .where(*_PENDING)
    .values(
        attempts=sa.bindparam("tried"),
        calls=_e.calls + sa.bindparam("more"),
        open=sa.bindparam("is_open"),
        next_ms=sa.bindparam("at_ms"),
        last_error=sa.bindparam("error"),
    )
)


class SqlEffects:
    """`engine.ports.Effects` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self, run_id: str) -> list[EffectRecord]:
        """Every effect of a run, oldest first."""
        with self._database.reading() as sql:
            return [_record(row) for row in sql.fetch(_READ, of=run_id)]


def add_pending(sql: Session, runs: Sequence[Run]) -> None:
    """Record the effect of every run that has one."""
    sql.execute_many(_INSERT, [_row(run.run_id, run.effect) for run in runs if run.effect])


def settle_effects(sql: Session, writes: Sequence[Write]) -> None:
    """Close, change and add the effects of these writes, at most one write per run."""
    closed, changed, added = [], [], []
    for write in writes:
        before, after = write.before.effect, write.after.effect
        same = before is not None and after is not None and before.key == after.key
        if before is not None and not same:
            closed.append(_closing(write, before))
        if after is not None and not same:
            added.append(write.after)
        if before is not None and after is not None and same and before != after:
            changed.append(_changing(write.after.run_id, before, after))
    sql.execute_many(_CLOSE, closed)
    sql.execute_many(_CHANGE, changed)
    add_pending(sql, added)


def _closing(write: Write, effect: Pending) -> dict[str, Any]:
    return {
        "of": write.after.run_id,
        "under": effect.key,
        "outcome": write.outcome or "abandoned",
        "at_seq": write.after.seq,
    }


def _changing(run_id: str, before: Pending, after: Pending) -> dict[str, Any]:
    return {
        "of": run_id,
        "under": after.key,
        "tried": after.attempts,
        "more": max(after.attempts - before.attempts, 0),
        "is_open": after.open,
        "at_ms": after.next_ms,
        "error": after.last_error,
    }


def _row(run_id: str, effect: Pending) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "seq": effect.seq,
        "name": effect.name,
        "key": effect.key,
        "status": "pending",
        "attempts": effect.attempts,
        "calls": effect.attempts,
        "open": effect.open,
        "next_ms": effect.next_ms,
        "undo_of": effect.undo_of,
        "last_error": effect.last_error,
    }


def _record(row: sa.Row[Any]) -> EffectRecord:
    return EffectRecord(
        run_id=row.run_id,
        seq=row.seq,
        name=row.name,
        key=row.key,
        attempts=row.attempts,
        open=row.open,
        next_ms=row.next_ms,
        status=row.status,
        undo_of=row.undo_of,
        last_error=row.last_error,
    )
