"""The platform's own SQLite file: `platform.db` in a directory nobody else may read."""

from __future__ import annotations

import os
from pathlib import Path

from engine.errors import StoreReadOnly
from persistence.database import Database
from persistence.migrate import upgrade
from persistence.sqlite import SqliteDatabase

SCRIPT_LOCATION = "migrations/platform"


def open_platform_database(data_dir: Path | None) -> Database:
    """Open (and bring up to date) the platform's database; None keeps it in memory, for tests.

    Raises:
        SchemaMismatch: the file was written by a newer version.
        StoreError: the directory or the file cannot be used.
    """
    database = SqliteDatabase(_file(data_dir))
    try:
        upgrade(database, SCRIPT_LOCATION)
    except BaseException:
        database.close()
        raise
    return database


def _file(data_dir: Path | None) -> Path | None:
    if data_dir is None:
        return None
    file = data_dir / "platform.db"
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its -wal and -shm files the mode of the database file.
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StoreReadOnly(
            f"platform data directory {data_dir}: cannot be written ({error}). "
            "Give another with --data-dir, or correct its permissions."
        ) from error
    return file
