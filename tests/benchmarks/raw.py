"""The raw limits of the store: one INSERT and one UPDATE for each step, and nothing else.

No contracts, effects, leases, retries, inbox or errors: no engine, but the floor under one.  Same
step, same JSON, same durability; `at_once` is the number of runs whose steps share a commit.

    w1-driver   executemany over the driver (SQLite) or one set-based statement with binary arrays
                (psycopg): the group commit
    w1-core     the same through SQLAlchemy Core's executemany
    w2          one run at a time, a commit for the start and for each step: BEGIN, two statements,
                COMMIT over sqlite3; one fenced statement in autocommit over psycopg
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.common import (
    STEPS,
    Options,
    Watch,
    check,
    latencies,
    main,
    order,
    pure,
    timed_ms,
)

Row = dict[str, Any]
_TABLES = """
CREATE TABLE run (run_id TEXT PRIMARY KEY, state TEXT, seq INT, fence INT, context BLOB){end};
CREATE TABLE step (run_id TEXT, seq INT, event TEXT, source TEXT, target TEXT, at_ms BIGINT,
                   context BLOB, PRIMARY KEY (run_id, seq)){end};
"""
_START = "INSERT INTO run VALUES (?, 'walking', 0, 1, ?)"
_STEP = "INSERT INTO step VALUES (?, ?, 'stepped', 'walking', 'walking', 1, ?)"
_MOVE = "UPDATE run SET seq = ?, context = ? WHERE run_id = ? AND seq = ? AND fence = 1"


def waves(runs: int, at_once: int) -> Iterator[list[Row]]:
    """Groups of runs that move together; each is given `STEPS` times after its start."""
    for first in range(0, runs, at_once):
        yield [
            {"run_id": f"r{number:025}", "seq": 0, "data": order(number)}
            for number in range(first, min(first + at_once, runs))
        ]


def advance(rows: list[Row]) -> None:
    """One step of each."""
    for row in rows:
        row["data"] = pure(row["data"])
        row["seq"] += 1
        row["context"] = json.dumps(row["data"]).encode()


def move_all(
    options: Options, begin: Callable[[list[Row]], None], step: Callable[[list[Row]], None]
) -> dict[str, Any]:
    """W1: every wave from its start to its end."""
    watch = Watch()
    for rows in waves(options.runs, options.at_once):
        for row in rows:
            row["context"] = json.dumps(row["data"]).encode()
        begin(rows)
        for _ in range(STEPS):
            advance(rows)
            step(rows)
        for row in rows:
            check(row["data"])
    return watch.throughput(options.runs)


def one_by_one(
    options: Options, begin: Callable[[Row], None], step: Callable[[Row], None]
) -> dict[str, Any]:
    """W2: a commit for the start and for each step."""

    def whole(rows: list[Row]) -> None:
        rows[0]["context"] = json.dumps(rows[0]["data"]).encode()
        begin(rows[0])
        for _ in range(STEPS):
            advance(rows)
            step(rows[0])
        check(rows[0]["data"])

    found = [timed_ms(lambda rows=rows: whole(rows)) for rows in waves(options.runs, 1)]  # type: ignore[misc]
    return latencies(found)


# -- SQLite --------------------------------------------------------------------------------------


def connect(options: Options) -> sqlite3.Connection:
    """A file in WAL mode."""
    raw = sqlite3.connect(Path(options.directory) / "raw.db", isolation_level=None)
    raw.execute("PRAGMA journal_mode=WAL")
    raw.execute(f"PRAGMA synchronous={options.synchronous}")
    raw.executescript(_TABLES.format(end=" WITHOUT ROWID"))
    return raw


def sqlite_driver(options: Options) -> dict[str, Any]:
    """Group commit over the driver."""
    raw = connect(options)

    def begin(rows: list[Row]) -> None:
        raw.execute("BEGIN IMMEDIATE")
        raw.executemany(_START, [(row["run_id"], row["context"]) for row in rows])
        raw.execute("COMMIT")

    def step(rows: list[Row]) -> None:
        raw.execute("BEGIN IMMEDIATE")
        raw.executemany(_MOVE, [(r["seq"], r["context"], r["run_id"], r["seq"] - 1) for r in rows])
        raw.executemany(_STEP, [(r["run_id"], r["seq"], r["context"]) for r in rows])
        raw.execute("COMMIT")

    return move_all(options, begin, step)


def sqlite_single(options: Options) -> dict[str, Any]:
    """A commit for each step."""
    raw = connect(options)

    def begin(row: Row) -> None:
        raw.execute("BEGIN IMMEDIATE")
        raw.execute(_START, (row["run_id"], row["context"]))
        raw.execute("COMMIT")

    def step(row: Row) -> None:
        raw.execute("BEGIN IMMEDIATE")
        raw.execute(_MOVE, (row["seq"], row["context"], row["run_id"], row["seq"] - 1))
        raw.execute(_STEP, (row["run_id"], row["seq"], row["context"]))
        raw.execute("COMMIT")

    return one_by_one(options, begin, step)


# -- SQLAlchemy Core, both databases ---------------------------------------------------------------


def core(options: Options) -> dict[str, Any]:
    """Group commit through Core's executemany, statements built once."""
    import sqlalchemy as sa

    address = options.url or f"sqlite:///{options.directory}/raw.db"
    database = sa.create_engine(address.replace("postgresql:", "postgresql+psycopg:"))
    if not options.url:
        sa.event.listen(database, "connect", lambda raw, _record: prepare(raw, options))
    metadata = sa.MetaData()
    run = sa.Table(
        "run", metadata, sa.Column("run_id", sa.Text), sa.Column("state", sa.Text),
        sa.Column("seq", sa.Integer), sa.Column("fence", sa.Integer),
        sa.Column("context", sa.LargeBinary),
    )  # fmt: skip
    taken = sa.Table(
        "step", metadata, sa.Column("run_id", sa.Text), sa.Column("seq", sa.Integer),
        sa.Column("event", sa.Text), sa.Column("source", sa.Text), sa.Column("target", sa.Text),
        sa.Column("at_ms", sa.BigInteger), sa.Column("context", sa.LargeBinary),
    )  # fmt: skip
    start, insert = sa.insert(run), sa.insert(taken)
    move = (
        sa.update(run)
        .where(run.c.run_id == sa.bindparam("b_run"), run.c.seq == sa.bindparam("b_seq"))
        .where(run.c.fence == 1)
        .values(seq=sa.bindparam("b_next"), context=sa.bindparam("b_context"))
    )
    with database.begin() as sql:
        for statement in tables(options).split(";")[:2]:
            sql.exec_driver_sql(statement)
    connection = database.connect()
    unmoved = {"state": "walking", "seq": 0, "fence": 1}
    fixed = {"event": "stepped", "source": "walking", "target": "walking", "at_ms": 1}

    def begin(rows: list[Row]) -> None:
        given = [{"run_id": r["run_id"], "context": r["context"], **unmoved} for r in rows]
        connection.execute(start, given)
        connection.commit()

    def step(rows: list[Row]) -> None:
        connection.execute(
            move,
            [
                {"b_run": r["run_id"], "b_seq": r["seq"] - 1, "b_next": r["seq"],
                 "b_context": r["context"]}
                for r in rows
            ],
        )  # fmt: skip
        connection.execute(
            insert,
            [
                {"run_id": r["run_id"], "seq": r["seq"], "context": r["context"], **fixed}
                for r in rows
            ],
        )
        connection.commit()

    return move_all(options, begin, step)


def prepare(raw: Any, options: Options) -> None:
    """WAL, with the durability asked for."""
    raw.execute("PRAGMA journal_mode=WAL")
    raw.execute(f"PRAGMA synchronous={options.synchronous}")


def tables(options: Options) -> str:
    """The two tables in the database's own words."""
    if options.url:
        return _TABLES.format(end="").replace("BLOB", "BYTEA")
    return _TABLES.format(end=" WITHOUT ROWID")


# -- PostgreSQL over psycopg ----------------------------------------------------------------------

_SET_START = """
INSERT INTO run SELECT r, 'walking', 0, 1, c FROM unnest(%b::text[], %b::bytea[]) AS given(r, c)
"""
_SET_STEP = """
WITH given AS (
    SELECT * FROM unnest(%b::text[], %b::int4[], %b::bytea[]) AS given(r, s, c)
), own AS (
    UPDATE run SET seq = s, context = c FROM given
    WHERE run_id = r AND seq = s - 1 AND fence = 1 RETURNING run_id, seq, c
)
INSERT INTO step SELECT run_id, seq, 'stepped', 'walking', 'walking', 1, c FROM own
"""
_FENCED = """
WITH own AS (
    UPDATE run SET seq = %b, context = %b WHERE run_id = %b AND seq = %b AND fence = 1
    RETURNING run_id, seq, context
)
INSERT INTO step SELECT run_id, seq, 'stepped', 'walking', 'walking', 1, context FROM own
"""


def postgres(options: Options) -> Any:
    """A connection in autocommit: a statement is a transaction."""
    import psycopg

    assert options.url is not None
    raw = psycopg.connect(options.url, autocommit=True)
    raw.execute(tables(options))
    return raw


def psycopg_set(options: Options) -> dict[str, Any]:
    """Group commit: one set-based statement with binary arrays."""
    raw = postgres(options)

    def begin(rows: list[Row]) -> None:
        raw.execute(_SET_START, ([r["run_id"] for r in rows], [r["context"] for r in rows]))

    def step(rows: list[Row]) -> None:
        done = raw.execute(
            _SET_STEP,
            (
                [r["run_id"] for r in rows],
                [r["seq"] for r in rows],
                [r["context"] for r in rows],
            ),
        )
        assert done.rowcount == len(rows)

    return move_all(options, begin, step)


def psycopg_single(options: Options) -> dict[str, Any]:
    """One fenced statement for each step."""
    raw = postgres(options)

    def begin(row: Row) -> None:
        raw.execute("INSERT INTO run VALUES (%b, 'walking', 0, 1, %b)",
                    (row["run_id"], row["context"]))  # fmt: skip

    def step(row: Row) -> None:
        given = (row["seq"], row["context"], row["run_id"], row["seq"] - 1)
        assert raw.execute(_FENCED, given).rowcount == 1

    return one_by_one(options, begin, step)


WORKLOADS: dict[str, Callable[[Options], dict[str, Any] | None]] = {
    "w1-driver": lambda options: (psycopg_set if options.url else sqlite_driver)(options),
    "w1-core": core,
    "w2": lambda options: (psycopg_single if options.url else sqlite_single)(options),
}

if __name__ == "__main__":
    main(WORKLOADS)
