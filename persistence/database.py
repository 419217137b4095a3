"""What stands between our statements and a driver: `Database` and its transactions, `Session`.

Both the engine's store and the embedded platform stand on it.  A transaction of writes takes what
it needs (the write lock of SQLite, the rows it touches on PostgreSQL) and holds it until it ends::

    with database.transaction() as sql:
        row = sql.one("SELECT balance_atomic FROM wallet WHERE name = :name", name="payer")
        sql.run("UPDATE wallet SET ...", ...)

Statements go straight to the driver, inside a BEGIN and a COMMIT that are sent here; of SQLAlchemy
there is the pool and the compiler (`persistence.compiled`).  One class for each kind of database::

    persistence.sqlite        SqliteDatabase    a file, or memory
    persistence.postgresql    PgDatabase        a server, many workers

Foreign errors are translated there: a caller sees `StoreError` and its kinds, never a driver's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import sqlalchemy as sa

from engine.errors import UsageError
from engine.ports import Batch, Written
from persistence.compiled import DialectName, bound, plan_for, plan_rows

Synchronous = Literal["FULL", "NORMAL"]
Row = Mapping[str, Any]
Pooled = sa.PoolProxiedConnection


class Cursor(Protocol):
    """What both drivers answer a statement with."""

    @property
    def rowcount(self) -> int:
        """Rows changed."""

    @property
    def description(self) -> Any:
        """A sequence of columns, whose first items are their names; None without rows."""

    def fetchone(self) -> Any:
        """The next row, or None."""

    def __iter__(self) -> Iterator[Any]:
        """The rows."""


class Session(ABC):
    """Statements inside one transaction.  Parameters are named (`:name`); rows are mappings.

    Args:
        database: whose transaction it is.
        pooled: the connection in SQLAlchemy's pool; None where there is only one.
        send: sends a text with its values in order.
    """

    dialect: ClassVar[DialectName]

    def __init__(
        self,
        database: Database,
        pooled: Pooled | None,
        send: Callable[[str, Sequence[Any]], Cursor],
    ) -> None:
        self.database = database
        self._pooled = pooled
        self._send = send

    @abstractmethod
    def _say(self, statement: str, parameters: Mapping[str, Any]) -> Cursor:
        """Send a text that was written by hand, with its values by name."""

    @abstractmethod
    def _send_many(self, text: str, rows: Sequence[Sequence[Any]]) -> int:
        """Send a text once for each row of values; the number of rows changed in all."""

    @abstractmethod
    def run_many(self, statement: str, rows: Sequence[Mapping[str, Any]], /) -> None:
        """Execute a statement once for each row of parameters."""

    @abstractmethod
    def has_table(self, name: str) -> bool:
        """Whether there is a table of this name."""

    @abstractmethod
    def guard_schema(self) -> None:
        """Wait until nobody else changes the schema, and keep others waiting until the end."""

    @cached_property
    def connection(self) -> sa.Connection:
        """The same transaction as Core sees it: for Alembic, and for making tables."""
        pooled = self._pooled or self.database.sa.raw_connection()
        connection = sa.Connection(self.database.sa, pooled)
        connection.begin()  # sends nothing; else Alembic would begin and commit one of its own
        return connection

    def run(self, statement: str, /, **parameters: Any) -> int:
        """Execute a statement; the number of rows it changed."""
        return self._say(statement, parameters).rowcount

    def execute(self, statement: sa.Executable, /, **parameters: Any) -> int:
        """Execute a built statement; the number of rows it changed."""
        text, values = bound(plan_for(statement, None, self.dialect), parameters)
        return self._send(text, values).rowcount

    def execute_many(self, statement: sa.Executable, rows: Sequence[Mapping[str, Any]], /) -> int:
        """Execute a built statement once for each row; the number of rows changed in all."""
        if not rows:
            return 0
        columns = tuple(rows[0]) if isinstance(statement, sa.Insert) else None
        plan = plan_for(statement, columns, self.dialect)
        given = [{**plan.constants, **row} for row in rows] if plan.constants else rows
        values = list(map(plan.in_order, given))
        if len(values) == 1:  # half of the price
            return self._send(plan.text, values[0]).rowcount
        return self._send_many(plan.text, values)

    def execute_rows(
        self, statement: sa.Executable, names: tuple[str, ...], rows: Sequence[Sequence[Any]], /
    ) -> int:
        """The same for rows whose values are in the order of `names`, which costs a third."""
        if not rows:
            return 0
        text, order = plan_rows(statement, names, self.dialect)
        values = rows if order is None else list(map(order, rows))
        if len(values) == 1:
            return self._send(text, values[0]).rowcount
        return self._send_many(text, values)

    def fetch(self, statement: sa.Executable, /, **parameters: Any) -> list[Any]:
        """Every row of a built query, or of a built statement with RETURNING, by name."""
        plan = plan_for(statement, None, self.dialect)
        text, values = bound(plan, parameters)
        return list(map(plan.row, self._send(text, values)))

    def all(self, statement: str, /, **parameters: Any) -> list[Row]:
        """Every row of a query, or of a statement with RETURNING."""
        cursor = self._say(statement, parameters)
        if cursor.description is None:
            return []
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def one(self, statement: str, /, **parameters: Any) -> Row | None:
        """The first row of a query, or None."""
        rows = self.all(statement, **parameters)
        return rows[0] if rows else None

    def scalar(self, statement: str, /, **parameters: Any) -> Any:
        """The first column of the first row, or None."""
        row = self._say(statement, parameters).fetchone()
        return None if row is None else row[0]


class Database(ABC):
    """A database that is open.

    Raises:
        StoreError: one of its kinds, from any method, naming the database.
    """

    dialect: ClassVar[DialectName]
    name: str
    """As a person would name it; never with a password."""
    path: Path | None
    """Its file; None in memory and on a server."""
    in_memory: bool = False
    """Whether it is gone when it is closed."""
    sa: sa.Engine

    def transaction(self) -> AbstractContextManager[Session]:
        """One write transaction: commits when the block ends, rolls back when it raises."""
        return self._session(writes=True)

    def reading(self) -> AbstractContextManager[Session]:
        """A snapshot to read from, without the write lock."""
        return self._session(writes=False)

    def at_once(self, batch: Batch) -> list[Written] | None:
        """Commit a batch in a shorter way than a transaction, if there is one for it, else None."""
        del batch
        return None

    def close(self) -> None:
        """Close every connection that is not in use."""
        self.sa.dispose()

    @abstractmethod
    def _session(self, *, writes: bool) -> AbstractContextManager[Session]:
        """One transaction around a block."""


def open_database(
    url: str, *, synchronous: Synchronous = "FULL", busy_timeout_seconds: float = 10.0
) -> Database:
    """The database behind a url, whatever schema it has.

    Raises:
        UsageError: a url of another kind.
        StoreError: a server that does not let us in.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme in ("postgresql", "postgres", "postgresql+psycopg"):
        from persistence.postgresql import open_postgresql

        return open_postgresql(
            url, synchronous=synchronous, busy_timeout_seconds=busy_timeout_seconds
        )
    if scheme != "sqlite" or not separator or (rest and not rest.startswith("/")):
        shown = scheme if separator else "one without a scheme"
        raise UsageError(
            f"store url: expected sqlite:///path/to/file.db (or sqlite:// in memory) or "
            f"postgresql://user:password@host:port/database, got {shown}. "
            "Other databases are not supported in this version."
        )
    from persistence.sqlite import SqliteDatabase

    path = Path(rest[1:]).expanduser() if rest[1:] else None
    return SqliteDatabase(path, synchronous=synchronous, busy_timeout_seconds=busy_timeout_seconds)
