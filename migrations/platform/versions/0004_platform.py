"""Services, snapshots, images, vaults, the audit log, and the engine's own tables.

The life cycles of the platform are machines of the engine, and their journals stand beside the
rows they are about: so the engine's first schema is created here, by the engine's own migration.
Sessions and executions get new states and columns; SQLite cannot loosen a check in place, so both
are made anew with all their rows.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

from alembic import op

revision = "0004"
down_revision = "0003"

_SESSION = """
    CREATE TABLE session (
        session_id TEXT PRIMARY KEY,
        public_key TEXT NOT NULL REFERENCES api_key (public_key),
        shell TEXT NOT NULL,
        network_mode TEXT NOT NULL,
        vcpu INTEGER NOT NULL CHECK (vcpu BETWEEN 1 AND 8),
        state TEXT NOT NULL CHECK (state IN ('starting', 'running', 'frozen', 'terminated')),
        reason TEXT,
        created_ms INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL,
        last_active_ms INTEGER NOT NULL,
        ended_ms INTEGER,
        idempotency_key TEXT,
        digest TEXT NOT NULL,
        base_vcpu INTEGER NOT NULL CHECK (base_vcpu BETWEEN 1 AND vcpu),
        multiplexer TEXT,
        locked INTEGER NOT NULL DEFAULT 0 CHECK (locked IN (0, 1)),
        audited INTEGER NOT NULL DEFAULT 0 CHECK (audited IN (0, 1)),
        image_id TEXT,
        UNIQUE (public_key, idempotency_key),
        CHECK ((state = 'terminated') = (ended_ms IS NOT NULL))
    ) WITHOUT ROWID
    """
_EXECUTION = """
    CREATE TABLE execution (
        job_id TEXT PRIMARY KEY,
        public_key TEXT NOT NULL REFERENCES api_key (public_key),
        session_id TEXT REFERENCES session (session_id),
        language TEXT NOT NULL,
        network_mode TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN
            ('pending', 'running', 'completed', 'timeout', 'failed', 'cancelled', 'lost')),
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
        service_id TEXT,
        vcpu INTEGER NOT NULL DEFAULT 1 CHECK (vcpu BETWEEN 1 AND 8),
        artifacts TEXT,
        detected INTEGER NOT NULL DEFAULT 0 CHECK (detected IN (0, 1)),
        kept_bytes INTEGER NOT NULL DEFAULT 0 CHECK (kept_bytes >= 0),
        UNIQUE (public_key, idempotency_key),
        CHECK (session_id IS NULL OR service_id IS NULL),
        CHECK ((state IN ('completed', 'timeout')) = (exit_code IS NOT NULL))
    ) WITHOUT ROWID
    """
_INDEXES = (
    "CREATE INDEX session_live ON session (public_key) WHERE state <> 'terminated'",
    "CREATE INDEX execution_running ON execution (public_key, session_id) "
    "WHERE state IN ('pending', 'running')",
    "CREATE INDEX execution_session ON execution (session_id)",
)
_OLD_SESSION_COLUMNS = (
    "session_id, public_key, shell, network_mode, vcpu, state, reason, created_ms, expires_ms, "
    "last_active_ms, ended_ms, idempotency_key, digest"
)
_OLD_EXECUTION_COLUMNS = (
    "job_id, public_key, session_id, language, network_mode, state, started_ms, ended_ms, "
    "exit_code, stdout, stderr, duration_ms, truncated, oom, error, idempotency_key, digest"
)
_NEW_TABLES = (
    """
    CREATE TABLE service (
        service_id TEXT PRIMARY KEY,
        public_key TEXT NOT NULL REFERENCES api_key (public_key),
        name TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN
            ('starting', 'running', 'frozen', 'redeploying', 'failed', 'stopped', 'deleted')),
        reason TEXT,
        network_mode TEXT NOT NULL,
        vcpu INTEGER NOT NULL CHECK (vcpu BETWEEN 1 AND 8),
        ports TEXT NOT NULL,
        custom_domains TEXT NOT NULL,
        service_type TEXT,
        bootstrap TEXT,
        input_files TEXT,
        unfreeze_on_demand INTEGER NOT NULL CHECK (unfreeze_on_demand IN (0, 1)),
        show_freeze_page INTEGER NOT NULL CHECK (show_freeze_page IN (0, 1)),
        locked INTEGER NOT NULL DEFAULT 0 CHECK (locked IN (0, 1)),
        source_image TEXT,
        deployment INTEGER NOT NULL DEFAULT 1,
        created_ms INTEGER NOT NULL,
        last_active_ms INTEGER NOT NULL,
        ended_ms INTEGER,
        idempotency_key TEXT,
        digest TEXT NOT NULL,
        UNIQUE (public_key, idempotency_key),
        CHECK ((state = 'deleted') = (ended_ms IS NOT NULL))
    ) WITHOUT ROWID
    """,
    "CREATE UNIQUE INDEX service_name ON service (name) WHERE state <> 'deleted'",
    "CREATE INDEX service_live ON service (public_key) WHERE state <> 'deleted'",
    """
    CREATE TABLE service_domain (
        domain TEXT PRIMARY KEY,
        service_id TEXT NOT NULL REFERENCES service (service_id)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE service_vault (
        service_id TEXT PRIMARY KEY REFERENCES service (service_id),
        sealed TEXT NOT NULL,
        count INTEGER NOT NULL,
        updated_ms INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE service_log (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        service_id TEXT NOT NULL REFERENCES service (service_id),
        at_ms INTEGER NOT NULL,
        line TEXT NOT NULL
    )
    """,
    "CREATE INDEX service_log_service ON service_log (service_id, number)",
    """
    CREATE TABLE snapshot (
        snapshot_id TEXT PRIMARY KEY,
        public_key TEXT NOT NULL REFERENCES api_key (public_key),
        name TEXT,
        source_type TEXT NOT NULL CHECK (source_type IN ('session', 'service')),
        source_id TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('creating', 'ready', 'failed', 'deleted')),
        level TEXT CHECK (level IN ('files', 'files+vars', 'full')),
        lost TEXT NOT NULL DEFAULT '[]',
        size_bytes INTEGER,
        sha256 TEXT,
        hot INTEGER NOT NULL CHECK (hot IN (0, 1)),
        locked INTEGER NOT NULL DEFAULT 0 CHECK (locked IN (0, 1)),
        recipe TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        expires_ms INTEGER,
        idempotency_key TEXT,
        digest TEXT NOT NULL,
        UNIQUE (public_key, idempotency_key),
        CHECK ((status = 'ready') <= (size_bytes IS NOT NULL AND sha256 IS NOT NULL))
    ) WITHOUT ROWID
    """,
    "CREATE INDEX snapshot_owner ON snapshot (public_key, created_ms)",
    """
    CREATE TABLE image (
        image_id TEXT PRIMARY KEY,
        owner_key TEXT NOT NULL REFERENCES api_key (public_key),
        name TEXT,
        description TEXT,
        source_type TEXT NOT NULL,
        source_id TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('creating', 'ready', 'deleted')),
        visibility TEXT NOT NULL CHECK (visibility IN ('private', 'unlisted', 'public')),
        locked INTEGER NOT NULL DEFAULT 0 CHECK (locked IN (0, 1)),
        level TEXT CHECK (level IN ('files', 'files+vars', 'full')),
        lost TEXT NOT NULL DEFAULT '[]',
        size_bytes INTEGER,
        sha256 TEXT,
        recipe TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        idempotency_key TEXT,
        digest TEXT NOT NULL,
        UNIQUE (owner_key, idempotency_key),
        CHECK ((status = 'ready') <= (size_bytes IS NOT NULL AND sha256 IS NOT NULL))
    ) WITHOUT ROWID
    """,
    "CREATE INDEX image_owner ON image (owner_key, created_ms)",
    """
    CREATE TABLE image_trust (
        image_id TEXT NOT NULL REFERENCES image (image_id),
        public_key TEXT NOT NULL,
        granted_ms INTEGER NOT NULL,
        PRIMARY KEY (image_id, public_key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX image_trust_key ON image_trust (public_key)",
    """
    CREATE TABLE session_recording (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        session_id TEXT NOT NULL REFERENCES session (session_id),
        at_ms INTEGER NOT NULL,
        output BLOB NOT NULL
    )
    """,
    "CREATE INDEX session_recording_session ON session_recording (session_id, number)",
    """
    CREATE TABLE audit_entry (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        public_key TEXT NOT NULL REFERENCES api_key (public_key),
        at_ms INTEGER NOT NULL,
        action TEXT NOT NULL,
        client_ip TEXT NOT NULL,
        resource_type TEXT NOT NULL,
        resource_id TEXT,
        result TEXT NOT NULL CHECK (result IN ('success', 'failure')),
        status INTEGER NOT NULL
    )
    """,
    "CREATE INDEX audit_entry_key ON audit_entry (public_key, number)",
    """
    CREATE TABLE invoice_extension (
        invoice_id TEXT PRIMARY KEY REFERENCES invoice (invoice_id),
        public_key TEXT NOT NULL REFERENCES api_key (public_key),
        tier INTEGER NOT NULL CHECK (tier BETWEEN 1 AND 32),
        months INTEGER NOT NULL CHECK (months > 0),
        applied_ms INTEGER,
        key_expires_ms INTEGER,
        CHECK ((applied_ms IS NULL) = (key_expires_ms IS NULL))
    ) WITHOUT ROWID
    """,
)
_ENGINE_TABLES = ("effect", "inbox", "transition", "worker", "machine_version", "run")
_VERSIONS = Path(__file__).resolve().parent
_ENGINE = _VERSIONS.parents[1] / "engine" / "versions" / "0001_first.py"


def upgrade() -> None:
    """Add what is new; make sessions and executions anew."""
    _set_aside()
    for statement in (_SESSION, _EXECUTION, *_INDEXES):
        op.execute(statement)
    op.execute(
        f"INSERT INTO session ({_OLD_SESSION_COLUMNS}, base_vcpu) "  # noqa: S608 - our columns
        f"SELECT {_OLD_SESSION_COLUMNS}, vcpu FROM kept_session"
    )
    _put_back("execution", _OLD_EXECUTION_COLUMNS)
    _forget()
    for statement in _NEW_TABLES:
        op.execute(statement)
    _module(_ENGINE).upgrade()


def downgrade() -> None:
    """Drop it again.  Fails, changing nothing, where a session is frozen or a job is pending."""
    for table in _ENGINE_TABLES:
        op.execute(f"DROP TABLE turtles_{table}")
    for statement in reversed(_NEW_TABLES):
        words = statement.split()
        if words[:2] == ["CREATE", "TABLE"]:
            op.execute(f"DROP TABLE {words[2]}")
    _set_aside()
    for statement in _module(_VERSIONS / "0002_api.py")._STATEMENTS:
        if "api_request" not in statement:
            op.execute(statement)
    _put_back("session", _OLD_SESSION_COLUMNS)
    _put_back("execution", _OLD_EXECUTION_COLUMNS)
    _forget()


def _set_aside() -> None:
    for table in ("session", "execution"):
        op.execute(f"CREATE TEMP TABLE kept_{table} AS SELECT * FROM {table}")  # noqa: S608
    op.execute("DROP TABLE execution")
    op.execute("DROP TABLE session")


def _put_back(table: str, columns: str) -> None:
    op.execute(f"INSERT INTO {table} ({columns}) SELECT {columns} FROM kept_{table}")  # noqa: S608


def _forget() -> None:
    for table in ("session", "execution"):
        op.execute(f"DROP TABLE kept_{table}")


def _module(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"turtles_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
