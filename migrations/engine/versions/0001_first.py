"""Runs, their journal, effects, inboxes, workers and machine versions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# In the order of their bytes, whatever the database's language: so we compare them, too.
_ID = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_SERIAL = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create everything."""
    _run()
    _transition()
    _effect()
    _inbox()
    _worker()
    _machine_version()


def downgrade() -> None:
    """Drop everything, children first."""
    for name in ("machine_version", "worker", "inbox", "effect", "transition", "run"):
        op.drop_table(f"turtles_{name}")


def _index(name: str, table: str, columns: list[str], where: str, unique: bool = False) -> None:
    predicate = sa.text(where)
    op.create_index(
        name,
        table,
        columns,
        unique=unique,
        sqlite_where=predicate,
        postgresql_where=predicate,
    )


def _run() -> None:
    op.create_table(
        "turtles_run",
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
        sa.Column("stalls", sa.Integer, nullable=False, server_default="0"),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("updated_ms", sa.BigInteger, nullable=False),
        sa.Column("deadline_ms", sa.BigInteger),
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
        sa.CheckConstraint(
            "status IN ('pending', 'running', 'waiting', 'paused',"
            " 'completed', 'failed', 'cancelled', 'quarantined')",
            name="turtles_run_status",
        ),
    )
    _index("turtles_run_due", "turtles_run", ["due_ms"], "due_ms IS NOT NULL AND owner IS NULL")
    _index("turtles_run_owner", "turtles_run", ["owner"], "owner IS NOT NULL")
    _index("turtles_run_parent", "turtles_run", ["parent_id"], "parent_id IS NOT NULL")
    op.create_index("turtles_run_created", "turtles_run", ["created_ms"])


def _transition() -> None:
    op.create_table(
        "turtles_transition",
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
        sa.PrimaryKeyConstraint("run_id", "seq", name="turtles_transition_pk"),
        sa.ForeignKeyConstraint(["run_id"], ["turtles_run.run_id"], name="turtles_transition_run"),
        sa.CheckConstraint("seq >= 1", name="turtles_transition_seq"),
    )


def _effect() -> None:
    op.create_table(
        "turtles_effect",
        sa.Column("run_id", _ID, nullable=False),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("calls", sa.Integer, nullable=False),
        sa.Column("open", sa.Boolean, nullable=False),
        sa.Column("next_ms", sa.BigInteger, nullable=False),
        sa.Column("undo_of", sa.Text),
        sa.Column("last_error", sa.Text),
        sa.Column("closed_seq", sa.Integer),
        sa.PrimaryKeyConstraint("run_id", "seq", "name", name="turtles_effect_pk"),
        sa.UniqueConstraint("key", name="turtles_effect_key"),
        sa.ForeignKeyConstraint(["run_id"], ["turtles_run.run_id"], name="turtles_effect_run"),
        sa.CheckConstraint(
            "status IN ('pending', 'done', 'given_up', 'abandoned')", name="turtles_effect_status"
        ),
    )
    _index(
        "turtles_effect_pending", "turtles_effect", ["run_id"], "status = 'pending'", unique=True
    )


def _inbox() -> None:
    op.create_table(
        "turtles_inbox",
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
    _index("turtles_inbox_waiting", "turtles_inbox", ["run_id", "number"], "status = 'accepted'")


def _worker() -> None:
    op.create_table(
        "turtles_worker",
        sa.Column("worker_id", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("process_start", sa.Text, nullable=False),
        sa.Column("beat_ms", sa.BigInteger, nullable=False),
        sa.Column("lease_until_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("worker_id", name="turtles_worker_pk"),
    )


def _machine_version() -> None:
    op.create_table(
        "turtles_machine_version",
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("shape", sa.LargeBinary, nullable=False),
        sa.Column("first_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("version", name="turtles_machine_version_pk"),
    )
