"""Doors into a store from within a transaction that the caller began and the caller ends.

::

    with program.begin() as connection:                        # the caller's own SQLAlchemy engine
        connection.execute(insert(order)...)
        await app.start(Payment, Invoice(...), key=..., connection=connection)
                                                               # both, or neither

The run, or the event, is written over the caller's connection, so it is there exactly if the caller
commits.  What is refused, before anything is written:

- a connection that is closed, or has no transaction: whatever was written would be there at once,
  or never, whatever the caller did after;
- a connection to another database than the store's: the file is compared, or on a server the
  database and its tables;
- on SQLite, one that cannot have the write lock now (`StoreBusy`).

SQLAlchemy's default driver for SQLite begins its transaction at the first statement that writes,
as a deferred one: what the caller read before that is not under the lock.  The lock is taken here
by a statement that writes nothing.  It fails at once if another has written since the caller read.

Every door has a savepoint of its own: what it refuses leaves the caller's transaction as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import event

from engine.errors import StoreBusy, StoreError, UsageError
from engine.journal import Entry
from engine.ports import Delivery, Gone, Receipt, Start, Started, StoredRun
from persistence import sqlite, tables
from persistence.database import Cursor, Database, Session
from persistence.inbox import accept_deliveries
from persistence.journal import first_entry
from persistence.retention import find_gone
from persistence.runs import accept_runs, find_stored

T = TypeVar("T")
_LOCK = sa.update(tables.run).where(sa.text("1 = 0")).values(stalls=0)
# The server since its start, the database on it, and the table that its search path leads to.
_IDENTITY = (
    "SELECT pg_postmaster_start_time()::text || '/' || (SELECT oid FROM pg_database"
    " WHERE datname = current_database())::text || '/' ||"
    " coalesce(to_regclass('turtles_run')::oid::text, 'no table')"
)
_IN_TRANSACTION = (
    "SELECT pg_current_xact_id()::text",
    "SELECT pg_current_xact_id_if_assigned()::text",
)


class SqlDoors:
    """`engine.ports.Doors` over a connection of the caller.

    Raises:
        UsageError: no such connection, closed, without a transaction, or to another database.
        StoreBusy: the write lock is not to be had (SQLite).
    """

    def __init__(self, database: Database, connection: Any) -> None:
        self._database = database
        self._connection = _usable(database, connection)
        kind = _SqliteSession if database.dialect == "sqlite" else _PgSession
        self._sql = kind(database, self._connection)
        with self._translated():
            if database.dialect == "sqlite":
                _require_file(database, self._connection)
                _lock(database, self._connection)
            else:
                _require_server(database, self._connection)

    def start(self, start: Start) -> Started:
        """Accept a run; it is nobody's."""
        return self._apart(lambda: accept_runs(self._sql, [start])[0])

    def deliver(self, delivery: Delivery) -> Receipt | None:
        """Accept an event; None if its run does not exist."""
        return self._apart(lambda: accept_deliveries(self._sql, [delivery])[0])

    def get(self, run_id: str) -> StoredRun | None:
        """One run, encoded, as the transaction sees it."""
        return self._apart(lambda: find_stored(self._sql, run_id))

    def first(self, run_id: str) -> Entry | None:
        """The first entry of a run's journal, encoded."""
        return self._apart(lambda: first_entry(self._sql, run_id))

    def gone(self, run_id: str) -> Gone | None:
        """The run, if it has been removed."""
        return self._apart(lambda: find_gone(self._sql, run_id))

    def on_commit(self, call: Callable[[], None]) -> None:
        """Call this when the caller commits, just before it happens."""
        event.listen(self._connection, "commit", lambda _connection: call(), once=True)

    def _apart(self, work: Callable[[], T]) -> T:
        """In a savepoint; once more if another transaction took the same key meanwhile."""
        with self._translated():
            try:
                with self._connection.begin_nested():
                    return work()
            except sa.exc.IntegrityError:
                with self._connection.begin_nested():
                    return work()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.DBAPIError as error:
            raise _translate(self._database, error) from error


class CallersSession(Session):
    """Statements over the caller's connection, by whatever driver it has."""

    def __init__(self, database: Database, connection: sa.Connection) -> None:
        def send(text: str, values: Sequence[Any]) -> Cursor:
            return _Answer(connection.exec_driver_sql(text, tuple(values)))

        super().__init__(database, None, send)
        self._connection = connection

    def execute(self, statement: sa.Executable, /, **parameters: Any) -> int:
        """Execute a built statement; the number of rows it changed."""
        return self._connection.execute(statement, parameters).rowcount

    def execute_many(self, statement: sa.Executable, rows: Sequence[Mapping[str, Any]], /) -> int:
        """Execute a built statement once for each row; the number of rows changed in all."""
        return self._connection.execute(statement, list(rows)).rowcount if rows else 0

    def execute_rows(
        self, statement: sa.Executable, names: tuple[str, ...], rows: Sequence[Sequence[Any]], /
    ) -> int:
        """The same for rows whose values are in the order of `names`."""
        return self.execute_many(statement, [dict(zip(names, row, strict=True)) for row in rows])

    def fetch(self, statement: sa.Executable, /, **parameters: Any) -> list[Any]:
        """Every row of a built query, by name."""
        return list(self._connection.execute(statement, parameters))

    def run_many(self, statement: str, rows: Sequence[Mapping[str, Any]], /) -> None:
        """Execute a statement once for each row of parameters."""
        if rows:
            self._connection.execute(sa.text(statement), list(rows))

    def has_table(self, name: str) -> bool:
        """Whether there is a table of this name."""
        return sa.inspect(self._connection).has_table(name)

    def guard_schema(self) -> None:
        """Refused: the schema is not changed in a transaction of somebody else.

        Raises:
            StoreError: always.
        """
        raise StoreError(
            f"database {self.database.name}: its schema cannot be changed in a caller's "
            "transaction. Run `turtles db upgrade`."
        )

    def _say(self, statement: str, parameters: Mapping[str, Any]) -> Cursor:
        return _Answer(self._connection.execute(sa.text(statement), dict(parameters)))

    def _send_many(self, text: str, rows: Sequence[Sequence[Any]]) -> int:
        return self._connection.exec_driver_sql(text, [tuple(row) for row in rows]).rowcount


class _SqliteSession(CallersSession):
    dialect = "sqlite"


class _PgSession(CallersSession):
    dialect = "postgresql"


class _Answer:
    """A result of SQLAlchemy, read as a driver's cursor is."""

    def __init__(self, result: sa.CursorResult[Any]) -> None:
        self._result = result

    @property
    def rowcount(self) -> int:
        return self._result.rowcount

    @property
    def description(self) -> Any:
        return [(key,) for key in self._result.keys()] if self._result.returns_rows else None  # noqa: SIM118 - not a mapping

    def fetchone(self) -> Any:
        return self._result.fetchone()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._result)


def _usable(database: Database, connection: Any) -> sa.Connection:
    if not isinstance(connection, sa.Connection):
        raise UsageError(
            f"connection=: expected a SQLAlchemy Connection in a transaction "
            f"(engine.begin(), session.connection()), got {type(connection).__name__}."
        )
    if connection.closed or connection.invalidated:
        raise UsageError(
            "connection=: it is closed. Give one that is in use, from `with engine.begin() as ...`."
        )
    if connection.dialect.name != database.dialect:
        raise _another(database, f"a database of {connection.dialect.name}")
    if not connection.in_transaction():
        raise _no_transaction()
    return connection


def _no_transaction() -> UsageError:
    return UsageError(
        "connection=: it has no transaction, so nothing could be taken back. Begin one: "
        "`with engine.begin() as connection:`, and not with isolation_level='AUTOCOMMIT'."
    )


def _another(database: Database, found: str) -> UsageError:
    return UsageError(
        f"connection=: it is to {found}, and the store is {database.name}. Runs can share a "
        "transaction only with rows of the same database."
    )


def _require_file(database: Database, connection: sa.Connection) -> None:
    if database.path is None:
        raise UsageError(
            "connection=: the store is in memory, where nobody else has a connection to it. "
            "Give the App a store in a file or on a server."
        )
    rows = connection.exec_driver_sql("PRAGMA database_list").all()
    file = next((row[2] for row in rows if row[1] == "main"), "")
    if not file or not _same(Path(file), database.path):
        raise _another(database, file or "a database in memory")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except FileNotFoundError:
        return False


def _lock(database: Database, connection: sa.Connection) -> None:
    """Take the write lock, and see that it is kept until the caller's transaction ends."""
    try:
        connection.execute(_LOCK)
    except sa.exc.OperationalError as error:
        if getattr(error.orig, "sqlite_errorname", "") != "SQLITE_BUSY_SNAPSHOT":
            raise
        raise StoreBusy(
            f"database {database.name}: this transaction has read, and another has written since, "
            "so it can never write. Roll it back and begin again, with a statement that writes "
            "(or BEGIN IMMEDIATE) before the first that reads."
        ) from error
    driver: Any = connection.connection.driver_connection
    if not driver.in_transaction:
        raise _no_transaction()


def _require_server(database: Database, connection: sa.Connection) -> None:
    with database.reading() as sql:
        ours = sql.scalar(_IDENTITY)
    theirs = connection.exec_driver_sql(_IDENTITY).scalar()
    if ours != theirs:
        raise _another(database, "another database, or another schema of it")
    begun, still = (connection.exec_driver_sql(one).scalar() for one in _IN_TRANSACTION)
    if begun != still:
        raise _no_transaction()


def _translate(database: Database, error: sa.exc.DBAPIError) -> StoreError:
    if database.dialect == "sqlite":
        return sqlite.translate(str(error.orig), database.name)
    from persistence.postgresql import translate

    return translate(error.orig, database.name)
