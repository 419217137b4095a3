"""Bring a database to the schema this code was written for, through Alembic.

A *script location* is a directory of `migrations/` (`migrations/engine`, `migrations/platform`)
with an `env.py` and a `versions/` directory.  The usual case is that nothing is to be done, so it
is decided without importing Alembic: one query for the stored revision, one read of the version
files for the newest.

::

    stored == newest                 nothing to do
    stored is one of the older       run the missing migrations, all in one transaction
    stored is unknown here           SchemaMismatch: written by a newer version

Two processes may open a new database at once: the second waits for the write lock (PostgreSQL: an
advisory lock that ends with the transaction), and finds the work done.
"""

from __future__ import annotations

import re
import threading
from pathlib import Path

from engine.errors import SchemaMismatch, StoreError
from persistence.database import Database, Session

_REVISION = re.compile(r'^revision(?:\s*:[^=]+)?\s*=\s*"([^"]+)"', re.MULTILINE)
# Alembic keeps the environment it is running in a global.
_ONE_AT_A_TIME = threading.Lock()
_DOWN = re.compile(r'^down_revision(?:\s*:[^=]+)?\s*=\s*"([^"]+)"', re.MULTILINE)


def upgrade(database: Database, script_location: str) -> None:
    """Run every migration the database lacks.

    Args:
        database: any state from an empty file to the newest schema.
        script_location: `migrations/platform`, say, or an absolute directory.

    Raises:
        SchemaMismatch: the database was written by a newer version of this code.
        StoreError: a migration failed; nothing of it was kept.
    """
    with database.reading() as sql:
        if _is_current(sql, script_location, database.name):
            return
    with database.transaction() as sql:
        sql.guard_schema()
        if not _is_current(sql, script_location, database.name):
            _run_alembic(sql, script_location, database.name)


def current(database: Database, script_location: str) -> str | None:
    """The revision stored in the database, or None when it has no schema yet."""
    del script_location  # every database holds one schema; the argument keeps the calls alike
    with database.reading() as sql:
        return _stored(sql)


def head(script_location: str) -> str:
    """The newest revision this code knows.

    Raises:
        StoreError: no version files, or more than one newest.
    """
    known, older = _read_versions(script_location)
    newest = known - older
    if len(newest) != 1:
        raise StoreError(
            f"migrations {script_location}: expected one newest revision, found "
            f"{sorted(newest) or 'none'}. Reinstall, or give one of them the other as "
            "down_revision."
        )
    return newest.pop()


def revisions(script_location: str) -> set[str]:
    """Every revision this code knows."""
    return _read_versions(script_location)[0]


def directory(script_location: str) -> Path:
    """Where a script location is, in a checkout or in an installed wheel."""
    given = Path(script_location)
    if given.is_absolute():
        return given
    import migrations

    return Path(migrations.__file__ or ".").resolve().parent.parent / given


def _read_versions(script_location: str) -> tuple[set[str], set[str]]:
    revisions: set[str] = set()
    older: set[str] = set()
    for file in (directory(script_location) / "versions").glob("[!_]*.py"):
        text = file.read_text(encoding="utf-8")
        revisions.update(_REVISION.findall(text))
        older.update(_DOWN.findall(text))
    return revisions, older


def _stored(sql: Session) -> str | None:
    if not sql.has_table("alembic_version"):
        return None
    found: str | None = sql.scalar("SELECT version_num FROM alembic_version")
    return found


def _is_current(sql: Session, script_location: str, name: str) -> bool:
    stored = _stored(sql)
    newest = head(script_location)
    if stored is not None and stored not in _read_versions(script_location)[0]:
        raise SchemaMismatch(
            f"database {name}: schema revision {stored} is unknown here (the newest known is "
            f"{newest}); it was written by a newer version. Upgrade turtles, or use another "
            "data directory; nothing was changed."
        )
    return stored == newest


def _run_alembic(sql: Session, script_location: str, name: str) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(directory(script_location)).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = sql.connection
    try:
        with _ONE_AT_A_TIME:
            command.upgrade(config, "head")
    except CommandError as error:
        raise StoreError(f"database {name}: migration failed ({error})") from error
