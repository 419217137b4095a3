"""Two processes over one file, a cap of three, and a ledger outside that counts for itself."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from persistence import open_store

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import asyncio, sqlite3, sys
from engine import App, Call, Context, Event, Limit, Machine, State, effect
from persistence import open_store

class Job(Context):
    number: int

class Made(Event, tag="made"):
    pass

def note(what):
    with sqlite3.connect("ledger.db", timeout=30) as ledger:
        ledger.execute("INSERT INTO call (what) VALUES (?)", (what,))
    ledger.close()

@effect(idempotent=True)
async def make(context: Job, call: Call) -> Made:
    note(1)
    await asyncio.sleep(0.005)
    note(-1)
    return Made()

class Work(Machine[Job]):
    making = State(initial=True, effect=make)
    over = State(final=True)
    made = making.to(over)

async def main():
    limits = [Limit("cap", machine=Work, state="making", slots=3)]
    async with App([Work], open_store("sqlite:///runs.db"), limits=limits) as app:
        runs = [await app.start(Work, Job(number=n), tenant=sys.argv[1]) for n in range(60)]
        for run in runs:
            assert (await app.wait(run.run_id, timeout_seconds=60)).status == "completed"
    assert app.store.inspector.findings() == []

asyncio.run(main())
"""


@pytest.mark.acceptance
def test_never_more_than_three_at_once(tmp_path: Path) -> None:
    ledger = sqlite3.connect(tmp_path / "ledger.db")
    ledger.execute("PRAGMA journal_mode=WAL")
    ledger.execute("CREATE TABLE call (number INTEGER PRIMARY KEY AUTOINCREMENT, what INTEGER)")
    ledger.commit()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", "from persistence import open_store; open_store('sqlite:///runs.db')"],
        cwd=tmp_path, env=environment, check=True, timeout=60,
    )  # fmt: skip
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, tenant], cwd=tmp_path, env=environment,
            stderr=subprocess.PIPE, text=True,
        )
        for tenant in ("a", "b")
    ]  # fmt: skip
    for program in programs:
        _, problems = program.communicate(timeout=100)
        assert program.returncode == 0, problems
    store = open_store(f"sqlite:///{tmp_path / 'runs.db'}")
    assert (store.inspector.findings(), store.limits.held()) == ([], [])
    store.close()
    inside = most = 0
    calls = [what for (what,) in ledger.execute("SELECT what FROM call ORDER BY number")]
    ledger.close()
    for what in calls:
        inside += what
        most = max(most, inside)
    assert (len(calls), inside, most) == (240, 0, 3)
