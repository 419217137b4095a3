"""Sessions, executions and the sliding window of requests."""

from alembic import op

revision = "0002"
down_revision = "0001"

_STATEMENTS = (
    """
    CREATE TABLE api_request (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        public_key TEXT NOT NULL,
        at_ms INTEGER NOT NULL
    )
    """,
    "CREATE INDEX api_request_window ON api_request (public_key, at_ms)",
    """
    CREATE TABLE session (
        session_id TEXT PRIMARY KEY,
        public_key TEXT NOT NULL REFERENCES api_key (public_key),
        shell TEXT NOT NULL,
        network_mode TEXT NOT NULL,
        vcpu INTEGER NOT NULL CHECK (vcpu BETWEEN 1 AND 8),
        state TEXT NOT NULL CHECK (state IN ('starting', 'running', 'terminated')),
        reason TEXT,
        created_ms INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL,
        last_active_ms INTEGER NOT NULL,
        ended_ms INTEGER,
        idempotency_key TEXT,
        digest TEXT NOT NULL,
        UNIQUE (public_key, idempotency_key),
        CHECK ((state = 'terminated') = (ended_ms IS NOT NULL))
    ) WITHOUT ROWID
    """,
    "CREATE INDEX session_live ON session (public_key) WHERE state <> 'terminated'",
    """
    CREATE TABLE execution (
        job_id TEXT PRIMARY KEY,
        public_key TEXT NOT NULL REFERENCES api_key (public_key),
        session_id TEXT REFERENCES session (session_id),
        language TEXT NOT NULL,
        network_mode TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN
            ('running', 'completed', 'timeout', 'failed', 'cancelled', 'lost')),
        started_ms INTEGER NOT NULL,
        ended_ms INTEGER,
        exit_code INTEGER,
        stdout TEXT,
        stderr TEXT,
        duration_ms INTEGER,
        truncated INTEGER NOT NULL DEFAULT 0,
        oom INTEGER NOT NULL DEFAULT 0,
        error TEXT,
        idempotency_key TEXT,
        digest TEXT NOT NULL,
        UNIQUE (public_key, idempotency_key),
        CHECK ((state IN ('completed', 'timeout')) = (exit_code IS NOT NULL))
    ) WITHOUT ROWID
    """,
    "CREATE INDEX execution_running ON execution (public_key, session_id) WHERE state = 'running'",
    "CREATE INDEX execution_session ON execution (session_id)",
)


def upgrade() -> None:
    """Create the API half of the platform."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Drop it again, children first."""
    for table in ("execution", "session", "api_request"):
        op.execute(f"DROP TABLE {table}")
