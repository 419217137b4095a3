"""One SQLite file, opened the only way we open it: WAL, foreign keys, `BEGIN IMMEDIATE`.

`Database` is what both the engine's store and the embedded platform stand on.  A transaction
takes the write lock when it begins, so whatever it reads is still true when it commits::

    with database.transaction() as sql:
        row = sql.one("SELECT balance_atomic FROM wallet WHERE name = :name", name="payer")
        sql.run("UPDATE wallet SET ...", ...)

Statements go straight to the driver, inside a BEGIN and a COMMIT that are sent here; of SQLAlchemy
there is the pool (a file) and the compiler (`persistence.compiled`).  A database in memory has one
connection only, so its transactions take turns, and none can be begun within another::

    file      every transaction has a pooled connection of its own; SQLite keeps them apart
    memory    one connection, one transaction at a time, other threads wait

`synchronous` is `FULL` unless `NORMAL` is asked for by name: `NORMAL` survives the death of the
process but may lose the last commits when the machine loses power.

Foreign errors are translated here: a caller sees `StoreError` and its kinds, never a driver's.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import StaticPool

from engine.errors import (
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    UsageError,
)
from persistence.compiled import bound, plan_for

Synchronous = Literal["FULL", "NORMAL"]
Row = Mapping[str, Any]
Pooled = sa.PoolProxiedConnection


class Session:
    """Statements inside one transaction.  Parameters are named (`:name`); rows are mappings."""

    def __init__(
        self, database: Database, driver: sqlite3.Connection, pooled: Pooled | None
    ) -> None:
        self.database = database
        self._driver = driver
        self._pooled = pooled

    @cached_property
    def connection(self) -> sa.Connection:
        """The same transaction as Core sees it: for Alembic, and for making tables."""
        pooled = self._pooled or self.database.sa.raw_connection()
        connection = sa.Connection(self.database.sa, pooled)
        connection.begin()  # sends nothing; else Alembic would begin and commit one of its own
        return connection

    def run(self, statement: str, /, **parameters: Any) -> int:
        """Execute a statement; the number of rows it changed."""
        return self._driver.execute(statement, parameters).rowcount

    def run_many(self, statement: str, rows: Sequence[Mapping[str, Any]], /) -> None:
        """Execute a statement once for each row of parameters."""
        self._driver.executemany(statement, rows)

    def execute(self, statement: sa.Executable, /, **parameters: Any) -> int:
        """Execute a built statement; the number of rows it changed."""
        text, values = bound(plan_for(statement), parameters)
        return self._driver.execute(text, values).rowcount

    def execute_many(self, statement: sa.Executable, rows: Sequence[Mapping[str, Any]], /) -> int:
        """Execute a built statement once for each row; the number of rows changed in all."""
        if not rows:
            return 0
        columns = tuple(rows[0]) if isinstance(statement, sa.Insert) else None
        plan = plan_for(statement, columns)
        given = [{**plan.constants, **row} for row in rows] if plan.constants else rows
        values = list(map(plan.in_order, given))
        if len(values) == 1:  # half of the price
            return self._driver.execute(plan.text, values[0]).rowcount
        return self._driver.executemany(plan.text, values).rowcount

    def fetch(self, statement: sa.Executable, /, **parameters: Any) -> list[Any]:
        """Every row of a built query, or of a built statement with RETURNING, by name."""
        plan = plan_for(statement)
        text, values = bound(plan, parameters)
        return list(map(plan.row, self._driver.execute(text, values)))

    def all(self, statement: str, /, **parameters: Any) -> list[Row]:
        """Every row of a query, or of a statement with RETURNING."""
        cursor = self._driver.execute(statement, parameters)
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def one(self, statement: str, /, **parameters: Any) -> Row | None:
        """The first row of a query, or None."""
        rows = self.all(statement, **parameters)
        return rows[0] if rows else None

    def scalar(self, statement: str, /, **parameters: Any) -> Any:
        """The first column of the first row, or None."""
        row = self._driver.execute(statement, parameters).fetchone()
        return None if row is None else row[0]


class Database:
    """A SQLite file (or a private in-memory database when `path` is None).

    Args:
        path: the file; its directory must exist.
        synchronous: `FULL` (default) or `NORMAL`.
        busy_timeout_seconds: how long a transaction waits for another writer.

    Raises:
        StoreError: one of its kinds, from any method, naming the file.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        synchronous: Synchronous = "FULL",
        busy_timeout_seconds: float = 10.0,
    ) -> None:
        self.path = path
        self.name = str(path) if path else ":memory:"
        self._synchronous = synchronous
        self._busy_timeout_seconds = busy_timeout_seconds
        self.sa = self._create()
        self._turn = threading.RLock()
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

    def transaction(self) -> AbstractContextManager[Session]:
        """One write transaction: commits when the block ends, rolls back when it raises."""
        return self._session("BEGIN IMMEDIATE")

    def reading(self) -> AbstractContextManager[Session]:
        """A snapshot to read from, without the write lock."""
        return self._session("BEGIN")

    def close(self) -> None:
        """Close every connection that is not in use."""
        self.sa.dispose()

    @contextmanager
    def _session(self, begin: str) -> Iterator[Session]:
        try:
            if self._only is not None:
                with self._turn:
                    yield from _within(begin, Session(self, self._only, None), self._only)
            else:
                with closing(self.sa.raw_connection()) as pooled:
                    driver: Any = pooled.driver_connection
                    yield from _within(begin, Session(self, driver, pooled), driver)
        except sa.exc.DBAPIError as error:  # of what went through `Session.connection`
            raise translate(str(error.orig), self.name) from error
        except sqlite3.Error as error:
            raise translate(str(error), self.name) from error


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


def open_database(
    url: str, *, synchronous: Synchronous = "FULL", busy_timeout_seconds: float = 10.0
) -> Database:
    """The database behind a url, whatever schema it has.

    Raises:
        UsageError: a url of another kind.
    """
    scheme, separator, rest = url.partition("://")
    if scheme != "sqlite" or not separator or (rest and not rest.startswith("/")):
        shown = scheme if separator else "one without a scheme"
        raise UsageError(
            f"store url: expected sqlite:///path/to/file.db (or sqlite:// in memory), got {shown}. "
            "Other databases are not supported in this version."
        )
    path = Path(rest[1:]).expanduser() if rest[1:] else None
    return Database(path, synchronous=synchronous, busy_timeout_seconds=busy_timeout_seconds)


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
