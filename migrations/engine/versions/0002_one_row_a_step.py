"""The pending effect moves into the run's row, and how it ended into the journal.

A step then costs one UPDATE and one INSERT.  `turtles_effect` becomes a view of both.  Runs get
what claims, limits and retention look at: `ready`, `priority`, `tenant`, `limits`, `ended_ms`.
Verdicts are kept without the values they saw, which the journal has in its contexts and payloads.
`turtles_gone` remembers what retention removes.
"""

from typing import Any

import msgspec
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def _run_columns() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("ready", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
        sa.Column("tenant", sa.Text, nullable=False, server_default=""),
        sa.Column("limits", sa.Text),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("effect_seq", sa.Integer),
        sa.Column("effect_name", sa.Text),
        sa.Column("effect_attempts", sa.Integer),
        sa.Column("effect_calls", sa.Integer),
        sa.Column("effect_open", sa.Boolean),
        sa.Column("effect_next_ms", sa.BigInteger),
        sa.Column("effect_undo_of", sa.Text),
        sa.Column("effect_error", sa.Text),
    )


def _transition_columns() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("effect_seq", sa.Integer),
        sa.Column("effect_name", sa.Text),
        sa.Column("effect_outcome", sa.Text),
        sa.Column("effect_attempts", sa.Integer),
        sa.Column("effect_calls", sa.Integer),
        sa.Column("effect_undo_of", sa.Text),
        sa.Column("effect_error", sa.Text),
    )


# In the order of their bytes, whatever the database's language: so we compare them, too.
_ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_TERMINAL = "('completed', 'failed', 'cancelled')"

_PENDING = """
UPDATE turtles_run SET (effect_seq, effect_name, effect_attempts, effect_calls, effect_open,
    effect_next_ms, effect_undo_of, effect_error) =
    (SELECT e.seq, e.name, e.attempts, e.calls, e.open, e.next_ms, e.undo_of, e.last_error
     FROM turtles_effect e WHERE e.run_id = turtles_run.run_id AND e.status = 'pending')
WHERE run_id IN (SELECT run_id FROM turtles_effect WHERE status = 'pending')
"""
_SETTLED = """
UPDATE turtles_transition SET (effect_seq, effect_name, effect_outcome, effect_attempts,
    effect_calls, effect_undo_of, effect_error) =
    (SELECT e.seq, e.name, e.status, e.attempts, e.calls, e.undo_of, e.last_error
     FROM turtles_effect e
     WHERE e.run_id = turtles_transition.run_id AND e.closed_seq = turtles_transition.seq)
WHERE EXISTS (SELECT 1 FROM turtles_effect e
    WHERE e.run_id = turtles_transition.run_id AND e.closed_seq = turtles_transition.seq)
"""
_VIEW = """
CREATE VIEW turtles_effect AS
SELECT run_id, coalesce(effect_seq, seq - 1) AS seq, effect_name AS name,
    coalesce(effect_outcome, 'done') AS status, coalesce(effect_attempts, 1) AS attempts,
    coalesce(effect_calls, 1) AS calls, (1 = 0) AS open, at_ms AS next_ms,
    effect_undo_of AS undo_of, effect_error AS last_error, seq AS closed_seq
FROM turtles_transition WHERE effect_name IS NOT NULL
UNION ALL
SELECT run_id, effect_seq, effect_name, 'pending', effect_attempts, effect_calls, effect_open,
    effect_next_ms, effect_undo_of, effect_error, NULL
FROM turtles_run WHERE effect_name IS NOT NULL
"""


def upgrade() -> None:
    """Move effects and verdicts to where they are kept now."""
    for column in _run_columns():
        op.add_column("turtles_run", column)
    for column in _transition_columns():
        op.add_column("turtles_transition", column)
    op.execute(_PENDING)
    op.execute(_SETTLED)
    op.execute(f"UPDATE turtles_run SET ended_ms = updated_ms WHERE status IN {_TERMINAL}")  # noqa: S608 - constants of this module
    op.drop_table("turtles_effect")
    op.execute(_VIEW)
    _compact_verdicts()
    _indexes()
    _gone()
    _limits()


def downgrade() -> None:
    """Refused: the values that verdicts saw are gone."""
    raise RuntimeError("migration 0002 cannot be taken back; restore the backup made before it")


def _compact_verdicts() -> None:
    """`[{"clause": "last", "kind": "guard", "ok": false, ...}]` becomes `["g-last"]`."""
    connection, after = op.get_bind(), ("", 0)
    rows = sa.table(
        "turtles_transition", sa.column("run_id"), sa.column("seq"), sa.column("verdicts")
    )
    place = sa.tuple_(rows.c.run_id, rows.c.seq)
    page = sa.select(rows).order_by(rows.c.run_id, rows.c.seq).limit(1000)
    change = (
        sa.update(rows)
        .where(rows.c.run_id == sa.bindparam("of"), rows.c.seq == sa.bindparam("at"))
        .values(verdicts=sa.bindparam("short"))
    )
    while found := connection.execute(page.where(place > after)).fetchall():
        connection.execute(
            change, [{"of": row[0], "at": row[1], "short": _short(row[2])} for row in found]
        )
        after = (found[-1][0], found[-1][1])


def _short(verdicts: bytes) -> bytes:
    return msgspec.json.encode(
        [
            f"{one['kind'][0]}{'+' if one['ok'] else '-'}{one['clause']}"
            for one in msgspec.json.decode(verdicts)
        ]
    )


def _indexes() -> None:
    op.drop_index("turtles_run_due", "turtles_run")
    _index(
        "turtles_run_ready",
        ["tenant", sa.text("priority DESC"), "due_ms"],
        "ready AND owner IS NULL AND limits IS NULL",
    )
    limited = "ready AND owner IS NULL AND limits IS NOT NULL"
    _index(
        "turtles_run_limited",
        ["limits", "tenant", sa.text("priority DESC"), "due_ms"],
        limited,
    )
    _index(
        "turtles_run_overdue",
        ["deadline_ms"],
        f"{limited} AND deadline_ms IS NOT NULL AND NOT effect_open",
    )
    _index("turtles_run_due", ["due_ms"], "due_ms IS NOT NULL AND owner IS NULL AND NOT ready")
    _index("turtles_run_ended", ["ended_ms"], "ended_ms IS NOT NULL")


def _gone() -> None:
    op.create_table(
        "turtles_gone",
        sa.Column("run_id", _ID, nullable=False),
        sa.Column("machine", sa.Text, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("ended_ms", sa.BigInteger, nullable=False),
        sa.Column("removed_ms", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="turtles_gone_pk"),
        sa.UniqueConstraint("machine", "key", name="turtles_gone_key"),
    )
    op.create_index("turtles_gone_removed", "turtles_gone", ["removed_ms"])


def _limits() -> None:
    op.create_table(
        "turtles_limit",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("machine", sa.Text),
        sa.Column("state", sa.Text),
        sa.Column("per_tenant", sa.Boolean, nullable=False),
        sa.Column("slots", sa.Integer),
        sa.Column("rate_count", sa.Integer),
        sa.Column("rate_per_ms", sa.BigInteger),
        sa.Column("rate_burst", sa.Integer),
        sa.Column("declared_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="turtles_limit_pk"),
    )
    op.create_table(
        "turtles_slot",
        sa.Column("limit_name", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("run_id", _ID),
        sa.Column("owner", sa.Text),
        sa.PrimaryKeyConstraint("limit_name", "tenant", "number", name="turtles_slot_pk"),
    )
    taken = sa.text("run_id IS NOT NULL")
    op.create_index(
        "turtles_slot_run", "turtles_slot", ["run_id"], sqlite_where=taken, postgresql_where=taken
    )
    op.create_table(
        "turtles_rate",
        sa.Column("limit_name", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("paid_until_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("limit_name", "tenant", name="turtles_rate_pk"),
    )


def _index(name: str, columns: list[str | sa.TextClause], where: str) -> None:
    predicate = sa.text(where)
    op.create_index(
        name, "turtles_run", columns, sqlite_where=predicate, postgresql_where=predicate
    )
