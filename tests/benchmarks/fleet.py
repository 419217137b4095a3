"""W6: so many worker processes over one store, and whether any work was done twice.

All runs are accepted first, by an app that does not work.  The workers have everything imported and
their store open when they are told to go; measured is from there to the end of the last run.  Each
counts the effects it performed: together they must be as many as there were steps.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from contextlib import closing
from typing import Any

from engine import App
from persistence import open_store
from tests.benchmarks import machines
from tests.benchmarks.machines import Order, Walk
from tests.benchmarks.peers.common import STEPS, Options, order

_OPEN = """
SELECT count(*) FROM turtles_run
WHERE status NOT IN ('completed', 'failed', 'cancelled', 'quarantined')
"""
_ENDED = "SELECT count(*) FROM turtles_run WHERE status = 'completed'"


def url_of(options: Options) -> str:
    """Of the store."""
    return options.url or f"sqlite:///{options.directory}/runs.db"


def w6(options: Options) -> dict[str, Any]:
    """Steps per second of `extra` workers."""
    asyncio.run(_accept(options))
    count = int(options.extra)
    command = [sys.executable, "-m", "tests.benchmarks.ours", "w6-worker", sys.argv[2]]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    for worker in workers:
        _said(worker)
    began = time.perf_counter()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    _until_ended(options)
    took = time.perf_counter() - began
    done = []
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()
        done.append(int(_said(worker)))
        worker.wait(60)
    if sum(done) != options.runs * STEPS:
        raise SystemExit(f"{sum(done)} effects performed for {options.runs * STEPS} steps: {done}")
    return {
        "workers": count,
        "steps_per_second": options.runs * STEPS / took,
        "effects_by_worker": done,
    }


def _said(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"worker {worker.pid} ended with {worker.wait(10)}")
    return line


async def _accept(options: Options) -> None:
    store = open_store(url_of(options))
    async with App([Walk], store=store, work=False) as app:
        for first in range(0, options.runs, 200):
            numbers = range(first, min(first + 200, options.runs))
            await asyncio.gather(*(app.start(Walk, Order(**order(n))) for n in numbers))
    store.close()


def _until_ended(options: Options) -> None:
    with closing(_connect(options)) as raw:
        while raw.execute(_OPEN).fetchone()[0]:
            time.sleep(0.02)
        ended = raw.execute(_ENDED).fetchone()[0]
    if ended != options.runs:
        raise SystemExit(f"{ended} of {options.runs} runs completed")


def _connect(options: Options) -> Any:
    if options.url:
        import psycopg

        return psycopg.connect(options.url, autocommit=True)
    import sqlite3

    return sqlite3.connect(f"{options.directory}/runs.db", isolation_level=None)


def w6_worker(options: Options) -> None:
    """One of them: works from `go` until its input is closed."""

    async def run() -> None:
        store = open_store(url_of(options))
        loop = asyncio.get_running_loop()
        print("ready", flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        async with App([Walk], store=store):
            await loop.run_in_executor(None, sys.stdin.read)
        store.close()

    asyncio.run(run())
    print(machines.CALLS, flush=True)
