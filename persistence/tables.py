"""The tables, as SQLAlchemy Core metadata; `migrations/engine` must lead to exactly these.

::

    turtles_run          one row per run, rewritten at every step: keep it small
    turtles_transition   the journal; rows are only ever added
    turtles_effect       a view: what became of every decided effect, and the pending ones
    turtles_inbox        events for runs; a row is settled once, by one step
    turtles_worker       one lease per process, so a heartbeat costs one write
    turtles_machine_version   the shape of every machine version that has run here
    turtles_gone         what is remembered of a run that retention removed: key, end, digest
    turtles_limit        the limits of the whole fleet; turtles_slot and turtles_rate: who has what

A run's pending effect is in its row, and the transition that settles it says how it ended, so a
step costs one UPDATE and one INSERT.  What is usual is not said there (`turtles_effect` does): an
effect that was decided by the transition before, was called once, and is done.

`ready` says that the run was due when it was last looked at; `turtles_run_ready` is what claims
read, and due timers are promoted into it from `turtles_run_due`, so neither walks the other's rows.
Runs that need a slot or a token are in `turtles_run_limited`, so that no other claim walks them,
and those of them whose state's timer may come first in `turtles_run_overdue`.

The predicates of the partial indexes are literals: a planner cannot match a bound value with them.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()
# In the order of their bytes, whatever the database's language: so we compare them, too.
_ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

ACCEPTED: sa.ColumnElement[str] = sa.literal_column("'accepted'")

_RUN_STATUSES = (
    "status IN ('pending', 'running', 'waiting', 'paused',"
    " 'completed', 'failed', 'cancelled', 'quarantined')"
)
# SQLite numbers rows by itself only where the type is spelled INTEGER.
_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

run = sa.Table(
    "turtles_run",
    metadata,
    sa.Column("run_id", _ID, nullable=False),
    sa.Column("machine", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("entered_seq", sa.Integer, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("owner", sa.Text),
    sa.Column("due_ms", sa.BigInteger),
    sa.Column("ready", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
    sa.Column("tenant", sa.Text, nullable=False, server_default=""),
    sa.Column("limits", sa.Text),
    sa.Column("stalls", sa.Integer, nullable=False, server_default="0"),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
    sa.Column("ended_ms", sa.BigInteger),
    sa.Column("deadline_ms", sa.BigInteger),
    sa.Column("effect_seq", sa.Integer),
    sa.Column("effect_name", sa.Text),
    sa.Column("effect_attempts", sa.Integer),
    sa.Column("effect_calls", sa.Integer),
    sa.Column("effect_open", sa.Boolean),
    sa.Column("effect_next_ms", sa.BigInteger),
    sa.Column("effect_undo_of", sa.Text),
    sa.Column("effect_error", sa.Text),
    sa.Column("child", sa.Text),
    sa.Column("undo", sa.Text, nullable=False),
    sa.Column("closing", sa.Text),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("held_from", sa.Text),
    sa.Column("parent_id", sa.Text),
    sa.Column("parent", sa.Text),
    sa.Column("depth", sa.Integer, nullable=False),
    sa.Column("last_error", sa.Text),
    sa.Column("context", sa.LargeBinary, nullable=False),
    sa.Column("output", sa.LargeBinary),
    sa.PrimaryKeyConstraint("run_id", name="turtles_run_pk"),
    sa.UniqueConstraint("machine", "key", name="turtles_run_key"),
    sa.CheckConstraint(_RUN_STATUSES, name="turtles_run_status"),
)
_READY = sa.text("ready AND owner IS NULL AND limits IS NULL")
_LIMITED = sa.text("ready AND owner IS NULL AND limits IS NOT NULL")
_OVERDUE = sa.text(
    "ready AND owner IS NULL AND limits IS NOT NULL AND deadline_ms IS NOT NULL AND NOT effect_open"
)
_DUE = sa.text("due_ms IS NOT NULL AND owner IS NULL AND NOT ready")
_ENDED = sa.text("ended_ms IS NOT NULL")
_OWNED = sa.text("owner IS NOT NULL")
_HAS_PARENT = sa.text("parent_id IS NOT NULL")
sa.Index(
    "turtles_run_ready",
    run.c.tenant,
    run.c.priority.desc(),
    run.c.due_ms,
    sqlite_where=_READY,
    postgresql_where=_READY,
)
sa.Index(
    "turtles_run_limited",
    run.c.limits,
    run.c.tenant,
    run.c.priority.desc(),
    run.c.due_ms,
    sqlite_where=_LIMITED,
    postgresql_where=_LIMITED,
)
sa.Index("turtles_run_overdue", run.c.deadline_ms, sqlite_where=_OVERDUE, postgresql_where=_OVERDUE)
sa.Index("turtles_run_due", run.c.due_ms, sqlite_where=_DUE, postgresql_where=_DUE)
sa.Index("turtles_run_ended", run.c.ended_ms, sqlite_where=_ENDED, postgresql_where=_ENDED)
sa.Index("turtles_run_owner", run.c.owner, sqlite_where=_OWNED, postgresql_where=_OWNED)
sa.Index(
    "turtles_run_parent", run.c.parent_id, sqlite_where=_HAS_PARENT, postgresql_where=_HAS_PARENT
)
sa.Index("turtles_run_created", run.c.created_ms)

transition = sa.Table(
    "turtles_transition",
    metadata,
    sa.Column("run_id", _ID, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("payload", sa.LargeBinary),
    sa.Column("verdicts", sa.LargeBinary, nullable=False),
    sa.Column("context", sa.LargeBinary, nullable=False),
    sa.Column("effect_seq", sa.Integer),
    sa.Column("effect_name", sa.Text),
    sa.Column("effect_outcome", sa.Text),
    sa.Column("effect_attempts", sa.Integer),
    sa.Column("effect_calls", sa.Integer),
    sa.Column("effect_undo_of", sa.Text),
    sa.Column("effect_error", sa.Text),
    sa.PrimaryKeyConstraint("run_id", "seq", name="turtles_transition_pk"),
    sa.ForeignKeyConstraint(["run_id"], ["turtles_run.run_id"], name="turtles_transition_run"),
    sa.CheckConstraint("seq >= 1", name="turtles_transition_seq"),
)

views = sa.MetaData()
effect = sa.Table(
    "turtles_effect",
    views,
    sa.Column("run_id", _ID),
    sa.Column("seq", sa.Integer),
    sa.Column("name", sa.Text),
    sa.Column("status", sa.Text),
    sa.Column("attempts", sa.Integer),
    sa.Column("calls", sa.Integer),
    sa.Column("open", sa.Boolean),
    sa.Column("next_ms", sa.BigInteger),
    sa.Column("undo_of", sa.Text),
    sa.Column("last_error", sa.Text),
    sa.Column("closed_seq", sa.Integer),
)
EFFECT_VIEW = """
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

inbox = sa.Table(
    "turtles_inbox",
    metadata,
    sa.Column("number", _SERIAL, nullable=False),
    sa.Column("run_id", _ID, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("consumed_seq", sa.Integer),
    sa.Column("payload", sa.LargeBinary),
    sa.PrimaryKeyConstraint("number", name="turtles_inbox_pk"),
    sa.UniqueConstraint("run_id", "key", name="turtles_inbox_key"),
    sa.ForeignKeyConstraint(["run_id"], ["turtles_run.run_id"], name="turtles_inbox_run"),
    sa.CheckConstraint(
        "status IN ('accepted', 'applied', 'rejected')", name="turtles_inbox_status"
    ),
    sqlite_autoincrement=True,
)
_WAITING = sa.text("status = 'accepted'")
sa.Index(
    "turtles_inbox_waiting",
    inbox.c.run_id,
    inbox.c.number,
    sqlite_where=_WAITING,
    postgresql_where=_WAITING,
)

worker = sa.Table(
    "turtles_worker",
    metadata,
    sa.Column("worker_id", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("process_start", sa.Text, nullable=False),
    sa.Column("beat_ms", sa.BigInteger, nullable=False),
    sa.Column("lease_until_ms", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("worker_id", name="turtles_worker_pk"),
)

machine_version = sa.Table(
    "turtles_machine_version",
    metadata,
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("shape", sa.LargeBinary, nullable=False),
    sa.Column("first_ms", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("version", name="turtles_machine_version_pk"),
)

gone = sa.Table(
    "turtles_gone",
    metadata,
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
sa.Index("turtles_gone_removed", gone.c.removed_ms)

limit = sa.Table(
    "turtles_limit",
    metadata,
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

slot = sa.Table(
    "turtles_slot",
    metadata,
    sa.Column("limit_name", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("run_id", _ID),
    sa.Column("owner", sa.Text),
    sa.PrimaryKeyConstraint("limit_name", "tenant", "number", name="turtles_slot_pk"),
)
_TAKEN = sa.text("run_id IS NOT NULL")
sa.Index("turtles_slot_run", slot.c.run_id, sqlite_where=_TAKEN, postgresql_where=_TAKEN)

rate = sa.Table(
    "turtles_rate",
    metadata,
    sa.Column("limit_name", sa.Text, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("paid_until_us", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("limit_name", "tenant", name="turtles_rate_pk"),
)
