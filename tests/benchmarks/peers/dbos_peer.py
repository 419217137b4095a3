"""DBOS on SQLite and PostgreSQL: a workflow of ten steps, as its documentation writes them.

W1 calls the workflow from `at_once` threads, W2 from one.  Runs that wait are async workflows in
`recv_async`, because one thread each would be worse for it.  On SQLite DBOS leaves the journal
mode alone: `shipped` measures that (DELETE, FULL); `FULL` sets WAL on the file first, which a user
can do, and keeps its `synchronous=FULL`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from common import (
    HALF,
    STEPS,
    Options,
    Watch,
    check,
    file_bytes,
    idle_cores,
    latencies,
    main,
    order,
    pure,
    resident_bytes,
    stay,
    tell,
    threads,
    timed_ms,
)
from dbos import DBOS, DBOSConfig, SendMessage, SetWorkflowID

COUNTS = {"waiting": 0, "done": 0}


@DBOS.step()
def step(data: dict[str, Any]) -> dict[str, Any]:
    """One durable step."""
    return pure(data)


@DBOS.workflow()
def walk(data: dict[str, Any]) -> dict[str, Any]:
    """Ten of them."""
    for _ in range(STEPS):
        data = step(data)
    return data


@DBOS.step()
async def step_async(data: dict[str, Any]) -> dict[str, Any]:
    """One durable step."""
    return pure(data)


@DBOS.workflow()
async def half(data: dict[str, Any]) -> dict[str, Any]:
    """Five steps, a message from outside, five more."""
    for _ in range(HALF):
        data = await step_async(data)
    COUNTS["waiting"] += 1
    await DBOS.recv_async("go", timeout_seconds=100_000)
    for _ in range(HALF):
        data = await step_async(data)
    COUNTS["done"] += 1
    return data


def launch(options: Options) -> None:
    """DBOS with its defaults."""
    url = options.url
    if not url:
        path = f"{options.directory}/dbos.db"
        url = f"sqlite:///{path}"
        if options.synchronous != "shipped":
            raw = sqlite3.connect(path)
            raw.execute("PRAGMA journal_mode=WAL")
            raw.close()
    config: DBOSConfig = {
        "name": "bench",
        "system_database_url": url,
        "application_version": "bench",
        "log_level": "ERROR",
    }
    DBOS(config=config)
    DBOS.launch()


def w1(options: Options) -> dict[str, Any]:
    """Throughput."""
    launch(options)
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(lambda number: walk(order(number)), range(options.at_once)))
        watch = Watch()
        for done in pool.map(lambda number: walk(order(number)), range(options.runs)):
            check(done)
        result = watch.throughput(options.runs)
    DBOS.destroy()
    if not options.url:
        result["bytes_per_run"] = file_bytes(options.directory) / (options.runs + options.at_once)
    return result


def w2(options: Options) -> dict[str, Any]:
    """Latency."""
    launch(options)
    for number in range(5):
        walk(order(number))
    result = latencies(
        [
            timed_ms(lambda number=number: check(walk(order(number))))
            for number in range(options.runs)
        ]
    )
    DBOS.destroy()
    return result


async def reach_waiting(count: int, name: str) -> float:
    """Start runs and return when all wait; the seconds until all were started."""
    wanted, began = COUNTS["waiting"] + count, time.perf_counter()
    for number in range(count):
        with SetWorkflowID(f"{name}-{number}"):
            await DBOS.start_workflow_async(half, order(number))
    started = time.perf_counter() - began
    await reached("waiting", wanted)
    return started


async def reached(what: str, count: int) -> None:
    """Until so many are there."""
    while COUNTS[what] < count:  # noqa: ASYNC110 - counted in DBOS's own threads too
        await asyncio.sleep(0.02)


async def completed(count: int) -> int:
    """How many workflows have ended well, in the database."""
    found = await DBOS.list_workflows_async(
        status="SUCCESS", load_input=False, load_output=False, limit=count + 1
    )
    return len(found)


def w3_prepare(options: Options) -> None:
    """Runs in their middle."""

    async def run() -> None:
        launch(options)
        await reach_waiting(options.runs, "half")
        tell({"waiting": COUNTS["waiting"]})
        stay()

    asyncio.run(run())


def w3_recover(options: Options) -> dict[str, Any]:
    """DBOS recovers by itself at launch; messages go in one `send_bulk`."""

    async def run() -> dict[str, Any]:
        launch(options)
        launched = time.monotonic() - options.spawned_at
        names = [f"half-{number}" for number in range(options.runs)]
        await DBOS.send_bulk_async(
            [SendMessage(destination_id=name, message=1, topic="go") for name in names]
        )
        sent = time.monotonic() - options.spawned_at
        await reached("done", options.runs)
        while (ended := await completed(options.runs)) < options.runs:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        took = time.monotonic() - options.spawned_at
        for name in (names[0], names[-1]):
            handle: Any = await DBOS.retrieve_workflow_async(name)
            check(await handle.get_result())
        return {
            "runs": ended, "launch_seconds": launched, "sent_seconds": sent, "seconds": took,
        }  # fmt: skip

    return asyncio.run(run())


def w5(options: Options) -> dict[str, Any]:
    """Runs that wait."""

    async def run() -> dict[str, Any]:
        launch(options)
        await reach_waiting(200, "warm")
        resident, many, began = resident_bytes(), threads(), time.perf_counter()
        started = await reach_waiting(options.runs, "half")
        waiting = time.perf_counter() - began
        await asyncio.sleep(2)
        idle = await asyncio.to_thread(idle_cores, options.idle_seconds)
        tell(
            {
                "started_seconds": started,
                "waiting_seconds": waiting,
                "bytes_per_waiting": (resident_bytes() - resident) / options.runs,
                "threads_per_waiting": (threads() - many) / options.runs,
                "idle_cores": idle,
                "resident_bytes": resident_bytes(),
            }
        )
        import os

        os._exit(0)  # it would wait for what waits

    return asyncio.run(run())


if __name__ == "__main__":
    main({"w1": w1, "w2": w2, "w3-prepare": w3_prepare, "w3-recover": w3_recover, "w5": w5})
