"""Figures, each as a ratio against a baseline measured in the same run.

    python -m tests.benchmarks            about a minute
    python -m tests.benchmarks --quick    a few seconds; for CI, which prints and asserts nothing

- durable transitions per second through the whole engine (contracts, effects, journal) on SQLite
  with `synchronous` FULL and NORMAL, beside bare `sqlite3` writing rows of the same number and size
  with the same durability: one commit for each transition, and as many in a commit as we gathered;
- microseconds of one `decide`, beside one `send` of python-statemachine;
- start-up of `turtles --help`, beside `python -c pass`.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from engine import App, Call, Context, Event, Machine, State, effect, ensures, requires
from engine.decide import begin, decide
from engine.definition import Oracle
from engine.table import compile_table
from persistence import open_store

STEPS = 10


class Count(Context):
    """How far a run has come."""

    steps: int = 0
    total: int = 0


class Stepped(Event, tag="stepped"):
    """One step is done."""

    amount: int


@effect(idempotent=True)
async def step(context: Count, call: Call) -> Stepped:
    """Nothing outside: what is measured is the engine."""
    return Stepped(amount=context.steps + 1)


class Walk(Machine[Count]):
    """Ten durable steps, each with a guard, an action, a precondition and a postcondition."""

    walking = State(initial=True, effect=step)
    arrived = State(final=True)
    stepped = walking.to(arrived, cond="last") | walking.to(walking)

    def last(self, context: Count) -> bool:
        """Whether this is the last step."""
        return context.steps + 1 >= STEPS

    def on_stepped(self, context: Count, event: Stepped) -> Count:
        """Count it."""
        return self.but(context, steps=context.steps + 1, total=context.total + event.amount)

    @requires(stepped)
    def forwards(self, event: Stepped) -> bool:
        """Steps only go forwards."""
        return event.amount > 0

    @ensures(stepped)
    def counted(self, old: Count, new: Count, event: Stepped) -> bool:
        """Nothing is lost."""
        return new.total == old.total + event.amount


def main() -> int:
    """Print the figures; 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    runs, repeats = (60, 1) if quick else (300, 3)
    for synchronous in ("FULL", "NORMAL"):
        throughput(synchronous, runs, repeats)
    deciding(2_000 if quick else 20_000)
    starting(3 if quick else 11)
    return 0


def throughput(synchronous: str, runs: int, repeats: int) -> None:
    """Transitions per second, interleaved with the raw limit of the same rows."""
    ours, alone, raw_one, raw_many = [], [], [], []
    for _ in range(repeats):
        ours.append(asyncio.run(engine_rate(synchronous, runs)))
        alone.append(asyncio.run(sequential_rate(synchronous, runs // 6)))
        raw_one.append(raw_rate(synchronous, runs * STEPS, per_commit=1))
        raw_many.append(raw_rate(synchronous, runs * STEPS, per_commit=50))
    many, one = statistics.median(raw_many), statistics.median(raw_one)
    rate, single = statistics.median(ours), statistics.median(alone)
    print(f"SQLite {synchronous}: transitions/s, {runs} runs of {STEPS} steps at once")
    print(f"  engine, runs at once          {rate:10,.0f}   {rate / many:6.3f} of raw, 50 a commit")
    print(
        f"  engine, one run after another {single:10,.0f}   {single / one:6.3f} of raw, 1 a commit"
    )
    print(f"  raw sqlite3, 50 a commit      {many:10,.0f}")
    print(f"  raw sqlite3, 1 a commit       {one:10,.0f}")


async def engine_rate(synchronous: str, runs: int) -> float:
    """Durable transitions per second of the engine."""
    with tempfile.TemporaryDirectory(prefix="turtles-bench-") as name:
        store = open_store(f"sqlite:///{name}/runs.db", synchronous=synchronous)  # type: ignore[arg-type]
        app = App([Walk], store=store)
        await app.open()
        for _ in range(runs):
            await app.start(Walk, Count())
        began = time.perf_counter()
        async with app:
            listed = await app.runs()
            for stored in listed:
                await app.wait(stored.run.run_id)
            while await app.settle():
                pass
        took = time.perf_counter() - began
        store.close()
    return runs * STEPS / took


async def sequential_rate(synchronous: str, runs: int) -> float:
    """Durable transitions per second when one run follows the other: start, wait, start."""
    with tempfile.TemporaryDirectory(prefix="turtles-bench-") as name:
        store = open_store(f"sqlite:///{name}/runs.db", synchronous=synchronous)  # type: ignore[arg-type]
        async with App([Walk], store=store) as app:
            began = time.perf_counter()
            for _ in range(runs):
                run = await app.start(Walk, Count())
                await app.wait(run.run_id)
            took = time.perf_counter() - began
        store.close()
    return runs * STEPS / took


_RAW_SCHEMA = """
CREATE TABLE run (run_id TEXT PRIMARY KEY, state TEXT, status TEXT, seq INT, fence INT,
                  due_ms INT, context BLOB) WITHOUT ROWID;
CREATE TABLE transition (run_id TEXT, seq INT, event TEXT, source TEXT, target TEXT, payload BLOB,
                         verdicts BLOB, context BLOB, at_ms INT,
                         PRIMARY KEY (run_id, seq)) WITHOUT ROWID;
CREATE TABLE effect (run_id TEXT, seq INT, name TEXT, key TEXT, attempts INT, status TEXT,
                     PRIMARY KEY (run_id, seq)) WITHOUT ROWID;
"""


def raw_rate(synchronous: str, transitions: int, *, per_commit: int) -> float:
    """The same rows written by bare sqlite3: update, insert, close an effect, open the next."""
    verdicts = b'[["last","guard",false,{"context.steps":4}],["forwards","requires",true,{}]]' * 2
    context, payload = b'{"steps":4,"total":10}', b'{"event":"stepped","amount":5}'
    with tempfile.TemporaryDirectory(prefix="turtles-raw-") as name:
        raw = sqlite3.connect(Path(name) / "raw.db", isolation_level=None)
        raw.execute("PRAGMA journal_mode=WAL")
        raw.execute(f"PRAGMA synchronous={synchronous}")
        raw.executescript(_RAW_SCHEMA)
        began = time.perf_counter()
        for first in range(0, transitions, per_commit):
            raw.execute("BEGIN IMMEDIATE")
            for number in range(first, min(first + per_commit, transitions)):
                run, seq = f"r{number // STEPS:025x}", number % STEPS
                if seq == 0:
                    row = (run, "walking", "running", 0, 0, 0, context)
                    raw.execute("INSERT INTO run VALUES (?,?,?,?,?,?,?)", row)
                raw.execute(
                    "UPDATE run SET seq=?, context=?, due_ms=? "
                    "WHERE run_id=? AND fence=0 AND seq=?",
                    (seq, context, number, run, max(seq - 1, 0)),
                )
                entry = (run, seq, "stepped", "walking", "walking", payload, verdicts, context, 1)
                raw.execute("INSERT INTO transition VALUES (?,?,?,?,?,?,?,?,?)", entry)
                raw.execute(
                    "UPDATE effect SET status='done' WHERE run_id=? AND seq=?", (run, seq - 1)
                )
                opened = (run, seq, "step", f"t{number:025x}", 1, "pending")
                raw.execute("INSERT INTO effect VALUES (?,?,?,?,?,?)", opened)
            raw.execute("COMMIT")
        took = time.perf_counter() - began
        raw.close()
    return transitions / took


def deciding(count: int) -> None:
    """Microseconds of one decision, and of one send of the library."""
    table = compile_table(Walk)
    begun = begin(table, run_id="r", context=Count(), now_ms=0)
    run, event = begun.after, Stepped(amount=1)  # type: ignore[union-attr]
    ours = per_call_us(lambda: decide(table, run, "stepped", event, 0), count)
    oracle = Oracle(Walk, "walking", Count(steps=-(10**9)))
    theirs = per_call_us(lambda: oracle.send("stepped", event, 0), count // 10)
    print(f"decide: {ours:.1f} us; python-statemachine, warm instance: {theirs:.1f} us")
    print(f"  ratio {ours / theirs:.3f}, with contracts judged and their values recorded")


def per_call_us(call: Callable[[], object], count: int) -> float:
    """Mean microseconds of a call."""
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count * 1e6


def starting(repeats: int) -> None:
    """Milliseconds of `turtles --help`, and of Python doing nothing."""
    ours, bare = [], []
    for _ in range(repeats):
        ours.append(milliseconds([sys.executable, "-m", "machines.cli", "--help"]))
        bare.append(milliseconds([sys.executable, "-c", "pass"]))
    ms, base = statistics.median(ours), statistics.median(bare)
    print(f"turtles --help: {ms:.0f} ms; python -c pass: {base:.0f} ms; ratio {ms / base:.1f}")


def milliseconds(command: list[str]) -> float:
    """Wall time of one process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1000


if __name__ == "__main__":
    sys.exit(main())
