"""A million runs that wait: what they cost the program that is to move them.

    python -m tests.acceptance.million [--runs 1000000] [--quick] [--postgresql [URL]]

Runs of `Nap` wait for timers spread over a day, all in one store: clones, by SQL, of one that was
started for real.  A worker in a process of its own opens that store; for comparison the same worker
opens one with nothing in it.  Printed, as JSON at the end:

- `start`: seconds to open the store and take a lease, and from the start of the process;
- `memory`: resident bytes per waiting run, over the empty store; `threads`, `idle` cores;
- `late`: how long after its time each run was woken that fell due while the worker looked on;
- `costs`: median microseconds of claim, next due, heartbeat, start and the like, on both stores;
- `outage`: 10,000 timers due at once while new runs come in: how many at once, how long new ones
  took, and that none is lost;
- `strangers`: the same costs for a worker that knows none of the waiting machines.

What is asserted is not time: no statement walks a table, no thread and under `MEMORY_BYTES_MAX` per
waiting run, all that was due has run, once, at most `CAPACITY` at a time, and new runs did not
wait for the whole backlog.

Exit codes: 0 all of it holds, 1 not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine import App, Context, Machine, State
from engine.clock import hours
from engine.errors import UnknownRun
from engine.ports import Delivery, Query, WorkerIdentity
from engine.process import this_worker
from engine.system import SystemClock
from engine.table import compile_table
from engine.world import World
from persistence import SqlStore, open_store
from persistence.database import Session
from tests.postgres_server import server

ROOT = Path(__file__).resolve().parents[2]
DAY_MS = hours(24)
IDLE_SECONDS = 4.0
"""How long the worker has nothing to do before the first timer is due."""
LOOK_SECONDS = 8.0
SLICE = 500
"""So many more are due at one moment, in the middle of the look."""
BACKLOG = 10_000
CAPACITY = 1_000
"""Runs in hand at once; the worker's own default."""
MEMORY_BYTES_MAX = 200
REPEATS = 30
BATCH = 50_000


class Alarm(Context):
    """When to wake, epoch milliseconds."""

    at_ms: int = 0


class Nap(Machine[Alarm]):
    """Sleeps until its time."""

    asleep = State(initial=True, timeout="rest", on_timeout="wake")
    awake = State(final=True)
    wake = asleep.to(awake)

    def rest(self, context: Alarm, now_ms: int) -> int:
        """How long is left, milliseconds."""
        return context.at_ms - now_ms


# -- the stores -------------------------------------------------------------------------------


class Shifted(SystemClock):
    """The machine's clock, so many milliseconds ahead: timers of another day are due now."""

    def __init__(self, ahead_ms: int) -> None:
        super().__init__()
        self._shift_ms = ahead_ms

    def now_ms(self) -> int:
        """Milliseconds since the epoch."""
        return super().now_ms() + self._shift_ms


class Database:
    """Statements in both dialects, on a connection of our own."""

    def __init__(self, url: str) -> None:
        self.postgresql = url.startswith("postgresql")
        if self.postgresql:
            import psycopg

            self._driver: Any = psycopg.connect(url, autocommit=True)
        else:
            self._driver = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
            self._driver.execute("PRAGMA synchronous=OFF")

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *error: object) -> None:
        self._driver.close()

    def ask(self, query: str) -> list[Any]:
        """The rows of a statement."""
        cursor = self._driver.execute(query)
        return list(cursor.fetchall()) if cursor.description else []

    def count(self, which: str) -> int:
        """Runs that are so."""
        return int(self.ask(f"SELECT count(*) FROM turtles_run WHERE {which}")[0][0])  # noqa: S608

    def settle(self) -> None:
        """What autovacuum or a checkpoint would have done by the time."""
        self.ask("VACUUM ANALYZE" if self.postgresql else "PRAGMA wal_checkpoint(TRUNCATE)")

    def size_bytes(self) -> int:
        """The size of the database."""
        if self.postgresql:
            return int(self.ask("SELECT pg_database_size(current_database())")[0][0])
        ((pages,),) = self.ask("PRAGMA page_count")
        ((each,),) = self.ask("PRAGMA page_size")
        return int(pages) * int(each)

    def clone(self, run_id: str, first_ms: int, slice_ms: int, count: int) -> None:
        """So many runs like that one: `SLICE` due at `slice_ms`, the others over a day."""
        spread = f"{first_ms} + n * {step_ms(count)}"
        due = f"CASE WHEN n >= {count - SLICE} THEN {slice_ms} ELSE {spread} END"
        body = f"'{{\"at_ms\":' || ({due}) || '}}'"
        body = f"convert_to({body}, 'UTF8')" if self.postgresql else f"CAST({body} AS BLOB)"
        number = "lpad(n::text, 12, '0')" if self.postgresql else "printf('%012d', n)"
        values = {
            "run_id": f"substr(run_id, 1, length(run_id) - 12) || {number}",
            "context": body,
            "due_ms": due,
            "deadline_ms": due,
            "created_ms": "created_ms - n",
        }
        for start in range(0, count, BATCH):
            self.ask("BEGIN")
            for table in ("turtles_run", "turtles_transition"):
                names = self._columns(table)
                self.ask(
                    f"{self._numbers(start, min(start + BATCH, count))} "  # noqa: S608
                    f"INSERT INTO {table} ({', '.join(names)}) "
                    f"SELECT {', '.join(values.get(name, name) for name in names)} "
                    f"FROM numbers, {table} WHERE run_id = '{run_id}'"
                )
            self.ask("COMMIT")

    def _columns(self, table: str) -> list[str]:
        if self.postgresql:
            query = f"SELECT attname FROM pg_attribute WHERE attrelid = '{table}'::regclass "  # noqa: S608
            return [row[0] for row in self.ask(query + "AND attnum > 0 AND NOT attisdropped")]
        return [row[0] for row in self.ask(f"SELECT name FROM pragma_table_info('{table}')")]  # noqa: S608

    def _numbers(self, first: int, last: int) -> str:
        if self.postgresql:
            return f"WITH numbers AS (SELECT generate_series({first}, {last - 1}) AS n)"
        return (
            f"WITH RECURSIVE numbers(n) AS (SELECT {first} UNION ALL "  # noqa: S608
            f"SELECT n + 1 FROM numbers WHERE n + 1 < {last})"
        )


def step_ms(count: int) -> int:
    """From one timer to the next, when they are spread over a day."""
    return DAY_MS // max(count, 1) or 1


async def one_nap(url: str, at_ms: int) -> str:
    """A run that waits, started as any other; its id."""
    store = open_store(url)
    async with App([Nap], store, work=False) as app:
        run = await app.start(Nap, Alarm(at_ms=at_ms))
    store.close()
    return run.run_id


# -- a worker in a process of its own ---------------------------------------------------------


def memory_bytes() -> int:
    """Resident anonymous memory of this process: what it has, not what it has mapped."""
    status = Path("/proc/self/status").read_text()
    (line,) = [one for one in status.splitlines() if one.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


async def watch(url: str, spawned_at: float, first_ms: int) -> dict[str, Any]:
    """Open a store, idle for a while, then work while timers fall due; figures of this process."""
    ahead_ms = first_ms - SystemClock().now_ms() - int((IDLE_SECONDS + 1) * 1000)
    began = time.monotonic()
    store = open_store(url)
    async with App([Nap], store, world=World(clock=Shifted(ahead_ms))):
        opened = time.monotonic()
        after_open = memory_bytes()
        await asyncio.sleep(0.5)
        cpu, since = time.process_time(), time.monotonic()
        await asyncio.sleep(IDLE_SECONDS)
        idle = (time.process_time() - cpu) / (time.monotonic() - since)
        await asyncio.sleep(LOOK_SECONDS)
        figures = {
            "open_seconds": round(opened - began, 3),
            "from_process_start_seconds": round(opened - spawned_at, 3),
            "memory_after_open": after_open,
            "memory_at_end": memory_bytes(),
            "idle_cores": round(idle, 4),
            "threads": threading.active_count(),
            "tasks": len(asyncio.all_tasks()),
            "stopped_ms": SystemClock().now_ms() + ahead_ms,
        }
    store.close()
    return figures


def worker(url: str, first_ms: int) -> dict[str, Any]:
    """Run `watch` in a new process."""
    given = json.dumps([url, time.monotonic(), first_ms])
    done = subprocess.run(
        [sys.executable, "-m", "tests.acceptance.million", "--worker", given],
        cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def lateness(url: str, stopped_ms: int) -> dict[str, Any]:
    """How long after its time each run woke, milliseconds, and what should have and has not."""
    with Database(url) as database:
        rows = database.ask("SELECT at_ms, context FROM turtles_transition WHERE seq = 2")
        left = database.count(f"state = 'asleep' AND due_ms <= {stopped_ms - 1000}")
    late = sorted(at - msgspec.json.decode(bytes(body), type=Alarm).at_ms for at, body in rows)
    return {
        "woken": len(late),
        "p50_ms": statistics.median(late) if late else None,
        "max_ms": max(late, default=None),
        "early": sum(1 for one in late if one < 0),
        "left": left,
    }


# -- what single operations cost --------------------------------------------------------------


def operations(store: SqlStore, who: WorkerIdentity, version: str) -> dict[str, Callable[[], Any]]:
    """What a worker and its callers ask of a store, each on nothing that is due."""
    found = store.runs.select(Query(limit=1))
    run_id = found[0].run.run_id if found else "none"
    until_ms = SystemClock().now_ms() + DAY_MS

    def claim() -> Any:
        return store.runs.claim(who.worker_id, 1, limit=100, versions={version})

    def deliver() -> Any:
        one = Delivery(run_id="none", key="k", event="e", payload=None, at_ms=1)
        with contextlib.suppress(UnknownRun):
            store.inbox.deliver([one])

    return {
        "claim": claim,
        "next_due": lambda: store.runs.next_due_ms({version}),
        "beat": lambda: store.workers.beat(who, SystemClock().now_ms(), lease_until_ms=until_ms),
        "reap": lambda: store.workers.reap(1, dead=lambda _: False),
        "list": lambda: store.runs.select(Query(limit=100)),
        "list_one": lambda: store.runs.select(Query(limit=1)),
        "list_status": lambda: store.runs.select(Query(statuses=("waiting",), limit=100)),
        "list_failed": lambda: store.runs.select(Query(statuses=("failed",), limit=100)),
        "children": lambda: store.runs.select(Query(parent_id=run_id, limit=100)),
        "get": lambda: store.runs.get(run_id),
        "find": lambda: store.runs.find("Nap", "no such key"),
        "rested": lambda: store.runs.rested([run_id]),
        "journal": lambda: store.journal.read(run_id, after_seq=1),
        "effects": lambda: store.effects.read(run_id),
        "waiting": lambda: store.inbox.waiting(run_id),
        "deliver": deliver,
    }


def costs(url: str, version: str) -> dict[str, float]:
    """Median microseconds of each operation."""
    store, who = open_store(url), this_worker()
    store.workers.beat(who, SystemClock().now_ms(), lease_until_ms=SystemClock().now_ms() + DAY_MS)
    found = {}
    for name, work in operations(store, who, version).items():
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        found[name] = round(statistics.median(times) * 1e6, 1)
    store.workers.retire(who.worker_id)
    store.close()
    return found


def walks(url: str, version: str) -> list[str]:
    """Statements of those operations whose plan walks a whole table, with the plan."""
    said: dict[str, Any] = {}
    init = Session.__init__

    def listening(self: Any, database: Any, pooled: Any, send: Any) -> None:
        def noted(text: str, values: Any) -> Any:
            said.setdefault(text, values)
            return send(text, values)

        init(self, database, pooled, noted)

    store, who = open_store(url), this_worker()
    store.workers.beat(who, SystemClock().now_ms(), lease_until_ms=SystemClock().now_ms() + DAY_MS)
    Session.__init__ = listening  # type: ignore[method-assign]
    try:
        for work in operations(store, who, version).values():
            work()
    finally:
        Session.__init__ = init  # type: ignore[method-assign]
    store.workers.retire(who.worker_id)
    found = []
    for text, values in said.items():
        lines = explained(store, text, values)
        found += [f"{text}: {line}" for line in lines if walks_a_table(line)]
    store.close()
    return found


def explained(store: SqlStore, text: str, values: Any) -> list[str]:
    """The lines of a statement's plan."""
    verb = "EXPLAIN" if store.database.dialect == "postgresql" else "EXPLAIN QUERY PLAN"
    with store.database.reading() as sql:
        rows = [list(row) for row in sql._send(f"{verb} {text}", values)]
    return [str(row[-1]).strip() for row in rows]


def walks_a_table(line: str) -> bool:
    """Whether a line of a plan says that a large table is read from end to end."""
    large = ("turtles_run", "turtles_transition")  # the inbox is empty
    scan = line.startswith("SCAN ") or "Seq Scan on " in line
    table = line.partition("SCAN ")[2] or line.partition("Seq Scan on ")[2]
    return scan and table.split(" ")[0] in large and "USING" not in line


# -- after an outage --------------------------------------------------------------------------


async def outage(url: str, ahead_ms: int, backlog: int) -> dict[str, Any]:
    """Timers are overdue; a worker comes back, and another program starts new runs meanwhile."""
    clock = Shifted(ahead_ms)
    due = f"state = 'asleep' AND due_ms <= {clock.now_ms()}"
    with Database(url) as database:
        before, overdue = database.count("state = 'awake'"), database.count(due)
    assert overdue >= backlog, f"{overdue} overdue, expected {backlog} at {clock.now_ms()}"
    store, others = open_store(url), open_store(url)
    most = 0

    def moved(decision: Any) -> None:
        nonlocal most
        most = max(most, len(app._worker._jobs))

    began = time.perf_counter()
    took: list[float] = []
    lefts: list[int] = []
    app = App([Nap], store, world=World(clock=clock), moved=moved)
    async with app, App([Nap], others, world=World(clock=clock), work=False) as door:
        left = overdue
        while left:
            asked = time.perf_counter()
            run = await door.start(Nap, Alarm(at_ms=0))
            await door.wait(run.run_id, timeout_seconds=120)
            took.append(time.perf_counter() - asked)
            with Database(url) as database:
                left = database.count(due)
            lefts.append(left)
        seconds = time.perf_counter() - began
    with Database(url) as database:
        woken = database.count("state = 'awake'") - before - len(took)
        steps = int(database.ask("SELECT count(*) FROM turtles_transition WHERE seq >= 2")[0][0])
        twice = steps - database.count("state = 'awake'")
    for one in (store, others):
        one.close()
    return {
        "overdue": overdue,
        "woken": woken,
        "twice": twice,
        "seconds": round(seconds, 2),
        "most_at_once": most,
        "new_runs": len(took),
        "new_seconds_max": round(max(took), 3),
        "left_when_first_new_was_done": lefts[0],
    }


# -- all of it --------------------------------------------------------------------------------


def measure(full: str, empty: str, runs: int) -> dict[str, Any]:
    """Every figure of the two stores."""
    first_ms = SystemClock().now_ms() + 10 * DAY_MS
    began = time.perf_counter()
    for url, count in ((empty, 0), (full, runs)):
        run_id = asyncio.run(one_nap(url, first_ms + 5 * DAY_MS))
        with Database(url) as database:
            database.clone(run_id, first_ms, first_ms + int(LOOK_SECONDS * 500), count)
            database.settle()
            size = database.size_bytes()
    figures: dict[str, Any] = {"runs": runs, "filled_seconds": round(time.perf_counter() - began)}
    figures["bytes_per_waiting"] = round(size / runs)
    figures["beside_nothing"] = worker(empty, first_ms)
    figures["worker"] = found = worker(full, first_ms)
    figures["late"] = lateness(full, found["stopped_ms"])
    more = found["memory_at_end"] - figures["beside_nothing"]["memory_at_end"]
    figures["memory_bytes_per_waiting"] = round(more / runs, 2)
    known = compile_table(Nap).fingerprint
    figures["costs"] = compared(costs(empty, known), costs(full, known))
    figures["strangers"] = compared(costs(empty, "unknown"), costs(full, "unknown"))
    figures["walks"] = walks(full, known)
    backlog = min(BACKLOG, runs // 4)
    ahead_ms = first_ms + backlog * step_ms(runs) + 60_000 - SystemClock().now_ms()
    figures["outage"] = asyncio.run(outage(full, ahead_ms, backlog - SLICE))
    return figures


def compared(empty: dict[str, float], full: dict[str, float]) -> dict[str, list[float]]:
    """Each operation: microseconds in the empty store, in the full one, and their ratio."""
    return {name: [empty[name], full[name], round(full[name] / empty[name], 2)] for name in full}


def broken(figures: dict[str, Any]) -> list[str]:
    """What does not hold; nothing that depends on how fast this machine is."""
    late, after, found = figures["late"], figures["outage"], figures["worker"]
    threads = found["threads"] - figures["beside_nothing"]["threads"]
    rules = {
        "no thread for waiting runs": threads <= 0,
        "no task for waiting runs": found["tasks"] <= figures["beside_nothing"]["tasks"],
        "memory": figures["memory_bytes_per_waiting"] <= MEMORY_BYTES_MAX,
        "no statement walks a table": not figures["walks"],
        "all that was due has run": late["left"] == 0 and late["woken"] >= SLICE,
        "none was early": late["early"] == 0,
        "none was lost in the outage": after["woken"] >= after["overdue"],
        "none ran twice": after["twice"] == 0,
        "at most so many at once": after["most_at_once"] <= CAPACITY,
        "new runs do not wait for the backlog": after["left_when_first_new_was_done"] > 0,
    }
    return [name for name, holds in rules.items() if not holds]


def main() -> int:
    """Parse, measure, tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--quick", action="store_true", help="100,000 runs: half a minute")
    parser.add_argument("--postgresql", action="store_true", help="a private server, not SQLite")
    parser.add_argument("--directory", type=Path, help="where the SQLite files are made")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(asyncio.run(watch(*json.loads(options.worker)))))
        return 0
    runs = 100_000 if options.quick else options.runs
    with stores(options.postgresql, options.directory) as (full, empty):
        figures = measure(full, empty, runs)
    print("\n".join(f"{name}: {json.dumps(value)}" for name, value in figures.items()))
    faults = broken(figures)
    for fault in faults:
        print(f"does not hold: {fault}", file=sys.stderr)
    return 1 if faults else 0


@contextlib.contextmanager
def stores(postgresql: bool, directory: Path | None) -> Iterator[tuple[str, str]]:
    """The urls of two databases with nothing in them."""
    if postgresql:
        with server() as postgres:
            yield postgres.create_database(), postgres.create_database()
        return
    with tempfile.TemporaryDirectory(dir=directory, prefix="turtles-million-") as place:
        yield f"sqlite:///{place}/full.db", f"sqlite:///{place}/empty.db"


if __name__ == "__main__":
    sys.exit(main())
