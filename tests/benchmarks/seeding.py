# ruff: noqa: S608 - made of the names of our own tables and columns
"""Stores that have seen much, made by SQL out of one real run: for W4 and W7.

Clones are rows like any other: the same columns, indexes and checks, only cheaper than running a
million runs.  What is seeded passes the store's own inspector (a test sees to it).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.common import Options

_BATCH = 20_000
_SHIFTED = ("seq", "entered_seq", "effect_seq", "closed_seq")
"""Columns that count transitions of a run."""


class Seeder:
    """Statements in both dialects, over a connection of its own."""

    def __init__(self, connection: Any, *, postgresql: bool) -> None:
        self._connection = connection
        self._postgresql = postgresql

    def tables(self) -> list[str]:
        """Tables (no views) of which a row belongs to a run, runs first."""
        found = [
            name
            for name in ("turtles_run", "turtles_transition", "turtles_effect")
            if self.columns(name) and self._is_table(name)
        ]
        assert found[:2] == ["turtles_run", "turtles_transition"], found
        return found

    def columns(self, table: str) -> list[str]:
        """The names of a table's columns."""
        if self._postgresql:
            rows = self._all(
                "SELECT column_name FROM information_schema.columns "
                f"WHERE table_name = '{table}' ORDER BY ordinal_position"
            )
        else:
            rows = self._all(f"SELECT name FROM pragma_table_info('{table}')")
        return [row[0] for row in rows]

    def clone_run(self, run_id: str, count: int) -> None:
        """So many more runs like that one, with their journals."""
        for first in range(0, count, _BATCH):
            last = min(first + _BATCH, count)
            self._connection.execute("BEGIN")
            for table in self.tables():
                names = self.columns(table)
                number = "lpad(n::text, 12, '0')" if self._postgresql else "printf('%012d', n)"
                new_id = f"substr(run_id, 1, length(run_id) - 12) || {number}"
                values = ", ".join(new_id if name == "run_id" else name for name in names)
                self._connection.execute(
                    f"{self._numbers(first, last)} INSERT INTO {table} ({', '.join(names)}) "
                    f"SELECT {values} FROM numbers, {table} WHERE run_id = '{run_id}'"
                )
            self._connection.execute("COMMIT")

    def lengthen_run(self, run_id: str, to_seq: int) -> int:
        """Give a run that rests a long past; by how many transitions.

        Its last transition stays the last; the gap before it is filled with copies of the fifth.
        """
        ((seq,),) = self._all(f"SELECT seq FROM turtles_run WHERE run_id = '{run_id}'")
        more = to_seq - int(seq)
        if more <= 0:
            raise ValueError(f"run {run_id} is at {seq} already, wanted {to_seq}")
        for table in reversed(self.tables()):
            if table != "turtles_run":
                self._shift(table, run_id, seq, more)
                for first in range(0, more, _BATCH):
                    last = min(first + _BATCH, more)
                    self._fill(table, run_id, int(seq), first, last)
        self._shift("turtles_run", run_id, seq, more)
        return more

    def _shift(self, table: str, run_id: str, seq: int, more: int) -> None:
        names = [name for name in self.columns(table) if name in _SHIFTED]
        values = ", ".join(f"{name} = {name} + {more}" for name in names)
        self._connection.execute(
            f"UPDATE {table} SET {values} WHERE run_id = '{run_id}' AND seq = {seq}"
        )

    def _fill(self, table: str, run_id: str, seq: int, first: int, last: int) -> None:
        names = self.columns(table)
        shifted = {name: f"{name} + n + {seq} - 5" for name in names if name in _SHIFTED}
        values = ", ".join(shifted.get(name, name) for name in names)
        self._connection.execute("BEGIN")
        self._connection.execute(
            f"{self._numbers(first, last)} INSERT INTO {table} ({', '.join(names)}) "
            f"SELECT {values} FROM numbers, {table} WHERE run_id = '{run_id}' AND seq = 5"
        )
        self._connection.execute("COMMIT")

    def _numbers(self, first: int, last: int) -> str:
        if self._postgresql:
            return f"WITH numbers AS (SELECT generate_series({first}, {last - 1}) AS n)"
        return (
            f"WITH RECURSIVE numbers(n) AS (SELECT {first} UNION ALL "
            f"SELECT n + 1 FROM numbers WHERE n + 1 < {last})"
        )

    def settle(self) -> None:
        """What autovacuum or a checkpoint would have done by the time."""
        self._connection.execute(
            "VACUUM ANALYZE" if self._postgresql else "PRAGMA wal_checkpoint(TRUNCATE)"
        )

    def size_bytes(self) -> int:
        """The size of the database."""
        if self._postgresql:
            return int(self._all("SELECT pg_database_size(current_database())")[0][0])
        ((pages,),) = self._all("PRAGMA page_count")
        ((each,),) = self._all("PRAGMA page_size")
        return int(pages) * int(each)

    def _is_table(self, name: str) -> bool:
        if self._postgresql:
            query = f"SELECT 1 FROM pg_class WHERE relname = '{name}' AND relkind IN ('r', 'p')"
        else:
            query = f"SELECT 1 FROM sqlite_master WHERE name = '{name}' AND type = 'table'"
        return bool(self._all(query))

    def _all(self, query: str) -> list[Any]:
        return list(self._connection.execute(query).fetchall())


@contextmanager
def seeder(options: Options, name: str = "runs.db") -> Iterator[Seeder]:
    """A seeder of the store that the options name; nobody else may use it meanwhile."""
    if options.url:
        import psycopg

        with psycopg.connect(options.url, autocommit=True) as connection:
            yield Seeder(connection, postgresql=True)
        return
    path = Path(options.directory) / name
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("PRAGMA synchronous=OFF")
        yield Seeder(raw, postgresql=False)
