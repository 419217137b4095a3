"""Saving and restoring all that a store holds: what the explorer goes back with.

A store in memory is saved as SQLite serializes it.  A scratch database on a server is saved row by
row.  Nothing else may use either meanwhile, and what was in them is lost.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from engine.errors import UsageError
from persistence import tables
from persistence.database import Database
from persistence.sqlite import SqliteDatabase

SCRATCH = "turtles_scratch_"
"""How the name of a database begins whose content may be thrown away."""


class Moments(ABC):
    """`engine.ports.Moments` in SQL."""

    number: str
    """What numbers runs in the order in which they were accepted, in a query of `turtles_run r`."""
    order: str
    """What sorts them so."""

    @abstractmethod
    def save(self) -> bytes:
        """All that is stored now."""

    @abstractmethod
    def load(self, saved: bytes) -> None:
        """Go back to what was saved."""

    @abstractmethod
    def ask(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query with `?` marks, which disturbs nothing."""


def moments_of(database: Database) -> Moments:
    """The moments of a database in memory, or of a scratch database on a server.

    Raises:
        UsageError: it is another one, whose content may be worth something.
    """
    if isinstance(database, SqliteDatabase) and database.in_memory:
        return _Memory(database)
    if database.dialect == "postgresql" and (database.sa.url.database or "").startswith(SCRATCH):
        return _Server(database)
    raise UsageError(
        f"exploring needs a store in memory, because it throws away what the store holds; got "
        f'{database.name}. Give it persistence.open_store("sqlite://").'
    )


class _Memory(Moments):
    number = order = "r.rowid"

    def __init__(self, database: Database) -> None:
        self._driver: Any = database.sa.raw_connection().driver_connection

    def save(self) -> bytes:
        saved: bytes = self._driver.serialize()
        return saved

    def load(self, saved: bytes) -> None:
        self._driver.deserialize(saved)

    def ask(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._driver.execute(query, values).fetchall()
        return rows


class _Server(Moments):
    number = "row_number() OVER (ORDER BY r.depth, r.created_ms, r.run_id)"
    order = "r.depth, r.created_ms, r.run_id"

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tables = tables.metadata.sorted_tables
        self._inserts = {
            table.name: f"INSERT INTO {table.name} ({', '.join(table.c.keys())}) "  # noqa: S608
            f"VALUES ({', '.join(f':{name}' for name in table.c.keys())})"  # noqa: SIM118
            for table in self._tables
        }

    def save(self) -> bytes:
        with self._database.reading() as sql:
            rows = {
                table.name: [dict(row) for row in sql.all(f"SELECT * FROM {table.name}")]  # noqa: S608 - our own tables
                for table in self._tables
            }
        return pickle.dumps(rows)

    def load(self, saved: bytes) -> None:
        kept = pickle.loads(saved)  # noqa: S301 - made by `save` in this process
        with self._database.transaction() as sql:
            for table in reversed(self._tables):
                sql.run(f"DELETE FROM {table.name}")  # noqa: S608 - our own tables
            for table in self._tables:
                if kept[table.name]:
                    sql.run_many(self._inserts[table.name], kept[table.name])

    def ask(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        names = [f"v{place}" for place in range(len(values))]
        parts = query.split("?")
        text = parts[0] + "".join(f":{n}{rest}" for n, rest in zip(names, parts[1:], strict=True))
        with self._database.reading() as sql:
            rows = sql.all(text, **dict(zip(names, values, strict=True)))
        return [tuple(row.values()) for row in rows]
