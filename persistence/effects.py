"""Recorded effects, as the journal and the runs tell them: `turtles_effect` is a view of both.

::

    decided -> pending -+-> done        its outcome moved the run
                        +-> given_up    no attempt was left
                        +-> abandoned   the run went elsewhere before an outcome

The pending one is in its run's row; the transition that ends it says how.  `attempts` is what the
retry policy counts and begins anew when a run is resumed; `calls` counts every attempt there has
been.  The idempotency key is not kept, because it follows from run, seq and name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from engine.ids import idempotency_key
from engine.ports import EffectRecord, Write
from engine.run import Pending
from persistence import tables
from persistence.database import Database

_e = tables.effect.c
_READ = sa.select(tables.effect).where(_e.run_id == sa.bindparam("of")).order_by(_e.seq, _e.name)


class SqlEffects:
    """`engine.ports.Effects` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def read(self, run_id: str) -> list[EffectRecord]:
        """Every effect of a run, oldest first."""
        with self._database.reading() as sql:
            return [_record(row) for row in sql.fetch(_READ, of=run_id)]


PENDING_COLUMNS = (
    "effect_seq",
    "effect_name",
    "effect_attempts",
    "effect_calls",
    "effect_open",
    "effect_next_ms",
    "effect_undo_of",
    "effect_error",
)
_NONE = (None,) * len(PENDING_COLUMNS)
SETTLED_COLUMNS = (
    "effect_seq",
    "effect_name",
    "effect_outcome",
    "effect_attempts",
    "effect_calls",
    "effect_undo_of",
    "effect_error",
)
_UNSETTLED = (None,) * len(SETTLED_COLUMNS)


def pending_values(effect: Pending | None) -> Sequence[Any]:
    """What a run's row says of its pending effect, in the order of `PENDING_COLUMNS`."""
    if effect is None:
        return _NONE
    return (
        effect.seq,
        effect.name,
        effect.attempts,
        effect.calls,
        effect.open,
        effect.next_ms,
        effect.undo_of,
        effect.last_error,
    )


def pending_of(row: Any) -> Pending | None:
    """The pending effect that a run's row tells of."""
    if row.effect_name is None:
        return None
    return Pending(
        seq=row.effect_seq,
        name=row.effect_name,
        key=idempotency_key(row.run_id, row.effect_seq, row.effect_name),
        attempts=row.effect_attempts,
        open=row.effect_open,
        next_ms=row.effect_next_ms,
        undo_of=row.effect_undo_of,
        last_error=row.effect_error,
        calls=row.effect_calls,
    )


def settled_values(write: Write) -> Sequence[Any]:
    """How this transition ended the effect before it, in the order of `SETTLED_COLUMNS`.

    None is what is usual, as the view `turtles_effect` has it; that saves a tenth of a row.
    """
    before, after = write.before.effect, write.after.effect
    if before is None or (after is not None and after.key == before.key):
        return _UNSETTLED
    outcome = write.outcome or "abandoned"
    return (
        None if before.seq == write.before.seq else before.seq,
        before.name,
        None if outcome == "done" else outcome,
        None if before.attempts == 1 else before.attempts,
        None if before.calls == 1 else before.calls,
        before.undo_of,
        before.last_error,
    )


NO_SETTLED = _UNSETTLED


def _record(row: sa.Row[Any]) -> EffectRecord:
    return EffectRecord(
        run_id=row.run_id,
        seq=row.seq,
        name=row.name,
        key=idempotency_key(row.run_id, row.seq, row.name),
        attempts=row.attempts,
        open=row.open,
        next_ms=row.next_ms,
        status=row.status,
        undo_of=row.undo_of,
        last_error=row.last_error,
    )
