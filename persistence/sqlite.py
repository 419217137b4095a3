"""One SQLite file, opened the only way we open it: WAL, foreign keys, `BEGIN IMMEDIATE`.

A transaction takes the write lock when it begins, so whatever it reads is still true when it
commits.  A database in memory has one connection only, so its transactions take turns, and none
can be begun within another::

    file      every transaction has a pooled connection of its own; SQLite keeps them apart
    memory    one connection, one transaction at a time, other threads wait

`synchronous` is `FULL` unless `NORMAL` is asked for by name: `NORMAL` survives the death of the
process but may lose the last commits when the machine loses power.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import StaticPool

from engine.errors import StoreBusy, StoreCorrupt, StoreError, StoreFull, StoreReadOnly
from persistence.database import Cursor, Database, Pooled, Session, Synchronous

HELD_WAIT_MS = 50


class SqliteSession(Session):
    """A transaction of SQLite, which reads `:name` itself."""

    dialect = "sqlite"

    def __init__(
        self, database: Database, driver: sqlite3.Connection, pooled: Pooled | None
    ) -> None:
        super().__init__(database, pooled, driver.execute)
        self._driver = driver

    def _say(self, statement: str, parameters: Mapping[str, Any]) -> Cursor:
        return self._driver.execute(statement, parameters)

    def _send_many(self, text: str, rows: Sequence[Sequence[Any]]) -> int:
        return self._driver.executemany(text, rows).rowcount

    def run_many(self, statement: str, rows: Sequence[Mapping[str, Any]], /) -> None:
        """Execute a statement once for each row of parameters."""
        self._driver.executemany(statement, rows)

    def has_table(self, name: str) -> bool:
        """Whether there is a table of this name."""
        query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = :name"
        return self.scalar(query, name=name) is not None

    def guard_schema(self) -> None:
        """Nothing to do: the transaction took the write lock when it began."""


class SqliteDatabase(Database):
    """A SQLite file (or a private in-memory database when `path` is None).

    Args:
        path: the file; its directory must exist.
        synchronous: `FULL` (default) or `NORMAL`.
        busy_timeout_seconds: how long a transaction waits for another writer.

    Raises:
        StoreError: one of its kinds, from any method, naming the file.
    """

    dialect = "sqlite"

    def __init__(
        self,
        path: Path | None,
        *,
        synchronous: Synchronous = "FULL",
        busy_timeout_seconds: float = 10.0,
    ) -> None:
        self.path = path
        self.name = str(path) if path else ":memory:"
        self.in_memory = path is None
        self._synchronous = synchronous
        self._busy_timeout_seconds = busy_timeout_seconds
        self.sa = self._create()
        self._turn = threading.RLock()
        self._held: tuple[int, Pooled] | None = None
        self._only: sqlite3.Connection | None = None
        if path is None:
            self._only = cast(sqlite3.Connection, self.sa.raw_connection().driver_connection)

    def _create(self) -> sa.Engine:
        # The driver's own transaction control is switched off; `_within` sends the BEGIN.
        arguments = {
            "check_same_thread": False,
            "timeout": self._busy_timeout_seconds,
            "isolation_level": None,
            "cached_statements": 512,
        }
        if self.path is None:
            database = sa.create_engine(
                "sqlite://",
                connect_args=arguments,
                poolclass=StaticPool,
                pool_reset_on_return=None,  # what is given back is in use all the same
            )
        else:
            database = sa.create_engine(
                sa.URL.create("sqlite", database=str(self.path)),
                connect_args=arguments,
                pool_size=2,
            )
            event.listen(database, "do_connect", self._make_private)
        event.listen(database, "connect", self._prepare)
        return database

    def _make_private(self, *_connecting: object) -> None:
        """Make the file for its owner alone; SQLite gives its log the mode of the file.

        What cannot be made is left to SQLite, which then says why.
        """
        assert self.path is not None
        with suppress(OSError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))

    def _prepare(self, connection: sqlite3.Connection, _record: object) -> None:
        cursor = connection.cursor()
        if self.path is None:
            cursor.execute("PRAGMA page_size=512")  # snapshots: a sixth of the bytes
        else:
            cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={self._synchronous}")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    def hold(self) -> None:
        """Keep a connection for the calling thread, which then waits for others only briefly."""
        if self._only is None and self._held is None:
            pooled = self.sa.raw_connection()
            cast(Any, pooled.driver_connection).execute(f"PRAGMA busy_timeout={HELD_WAIT_MS}")
            self._held = threading.get_ident(), pooled

    def close(self) -> None:
        """Close every connection that is not in use."""
        held, self._held = self._held, None
        if held is not None:
            held[1].invalidate()
        super().close()

    @contextmanager
    def _session(self, *, writes: bool) -> Iterator[Session]:
        begin = "BEGIN IMMEDIATE" if writes else "BEGIN"
        try:
            if self._only is not None:
                with self._turn:
                    yield from _within(begin, SqliteSession(self, self._only, None), self._only)
            elif (pooled := self._held_here()) is not None:
                driver: Any = pooled.driver_connection
                yield from _within(begin, SqliteSession(self, driver, pooled), driver)
            else:
                with closing(self.sa.raw_connection()) as pooled:
                    driver = pooled.driver_connection
                    yield from _within(begin, SqliteSession(self, driver, pooled), driver)
        except sa.exc.DBAPIError as error:  # of what went through `Session.connection`
            raise translate(str(error.orig), self.name) from error
        except sqlite3.Error as error:
            raise translate(str(error), self.name) from error

    def _held_here(self) -> Pooled | None:
        """The connection kept for this thread, unless a transaction is open on it."""
        if self._held is None or self._held[0] != threading.get_ident():
            return None
        busy = cast(Any, self._held[1].driver_connection).in_transaction
        return None if busy else self._held[1]


def _within(begin: str, session: Session, driver: sqlite3.Connection) -> Iterator[Session]:
    """One transaction around a block, whatever ends the block."""
    if driver.in_transaction:
        raise StoreError(
            f"database {session.database.name}: a transaction is open on its only connection "
            "already. End that one first."
        )
    try:
        driver.execute(begin)
        yield session
        driver.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # the first error is the one to tell
            if driver.in_transaction:  # SQLite itself rolls back when the disk is full
                driver.execute("ROLLBACK")
        raise


def translate(text: str, name: str) -> StoreError:
    """The store error that a driver's message means, with what to do about it."""
    lowered = text.lower()
    if "locked" in lowered or "busy" in lowered:
        return StoreBusy(
            f"database {name}: another process held the write lock too long ({text}). "
            "Stop the other process or try again; nothing was written."
        )
    if "malformed" in lowered or "not a database" in lowered:
        return StoreCorrupt(
            f"database {name}: not a readable SQLite database ({text}). "
            "Restore it from a backup, or move it away to begin anew; nothing was written."
        )
    if "full" in lowered:
        return StoreFull(
            f"database {name}: no space left to write ({text}). "
            "Free some space and run again; the last transition was not committed."
        )
    if "readonly" in lowered or "unable to open" in lowered or "permission" in lowered:
        return StoreReadOnly(
            f"database {name}: cannot be opened for writing ({text}). "
            "Check that its directory exists and is writable by this user."
        )
    if "disk i/o error" in lowered:
        return StoreFull(
            f"database {name}: the disk refused a write ({text}). "
            "Check free space, quota and the disk itself; the last transition was not committed."
        )
    return StoreError(f"database {name}: {text}")
