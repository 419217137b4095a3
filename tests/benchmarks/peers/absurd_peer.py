"""Absurd on PostgreSQL: a task of ten steps.

`at_once` workers, each a thread with a connection of its own that claims one task at a time, poll
0.25 s, its default (one client with concurrency and one connection is slower).  W2 spawns and works
in one thread, so that no poll is waited for, which flatters it; `w2-user` is as its user has it: a
worker in the background and `await_task_result`.  The schema comes out of the package `absurdctl`.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import psycopg
from absurd_sdk import Absurd, TaskContext
from absurdctl import BUNDLED_SCHEMA_SQL
from common import (
    HALF,
    STEPS,
    Options,
    Watch,
    check,
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

COUNT_DONE = "SELECT count(*) FROM absurd.t_bench WHERE state = 'completed'"
COUNT_WAITING = "SELECT count(*) FROM absurd.t_bench WHERE state = 'sleeping'"


def install(options: Options) -> None:
    """The schema, and the queue."""
    assert options.url is not None
    with psycopg.connect(options.url, autocommit=True) as raw:
        if raw.execute("SELECT to_regnamespace('absurd')").fetchone() == (None,):
            raw.execute(BUNDLED_SCHEMA_SQL)
    client = connect(options)
    if "bench" not in client.list_queues():
        client.create_queue("bench")
    client.close()


def connect(options: Options) -> Absurd:
    """A client that knows the tasks."""
    client = Absurd(options.url, queue_name="bench")

    @client.register_task(name="walk")
    def walk(data: dict[str, Any], context: TaskContext) -> dict[str, Any]:
        for number in range(STEPS):
            data = context.step(f"step-{number}", lambda data=data: pure(data))
        return data

    @client.register_task(name="half")
    def half(data: dict[str, Any], context: TaskContext) -> dict[str, Any]:
        for number in range(HALF):
            data = context.step(f"step-{number}", lambda data=data: pure(data))
        context.await_event(f"go-{data['name']}")
        for number in range(HALF, STEPS):
            data = context.step(f"step-{number}", lambda data=data: pure(data))
        return data

    return client


class Workers:
    """Threads that work until the block ends."""

    def __init__(self, options: Options, count: int) -> None:
        self._clients = [connect(options) for _ in range(count)]
        self._threads = [
            threading.Thread(target=each.start_worker, kwargs={"worker_id": f"w{n}"}, daemon=True)
            for n, each in enumerate(self._clients)
        ]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_error: object) -> None:
        for each in self._clients:
            each.stop_worker()
        for thread in self._threads:
            thread.join()


def until(options: Options, query: str, count: int) -> None:
    """Until the query counts so many."""
    with psycopg.connect(options.url or "", autocommit=True) as raw:
        while True:
            found = raw.execute(query).fetchone()  # type: ignore[arg-type]
            if found is not None and found[0] >= count:
                return
            time.sleep(0.05)


def database_bytes(options: Options) -> int:
    """The size of the database."""
    with psycopg.connect(options.url or "", autocommit=True) as raw:
        row = raw.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row is not None
    return int(row[0])


def w1(options: Options) -> dict[str, Any]:
    """Throughput: spawning is part of it, while the workers work."""
    install(options)
    client = connect(options)
    empty = database_bytes(options)
    with Workers(options, options.at_once):
        watch = Watch()
        for number in range(options.runs):
            client.spawn("walk", order(number))
        until(options, COUNT_DONE, options.runs)
        result = watch.throughput(options.runs)
    result["bytes_per_run"] = (database_bytes(options) - empty) / options.runs
    return result


def w2(options: Options) -> dict[str, Any]:
    """Latency without polling."""
    install(options)
    client = connect(options)

    def one(number: int) -> None:
        task = client.spawn("walk", order(number))
        client.work_batch()
        found: Any = client.fetch_task_result(task["task_id"])
        check(found.result)

    for number in range(5):
        one(number)
    return latencies(
        [timed_ms(lambda number=number: one(number)) for number in range(options.runs)]
    )


def w2_user(options: Options) -> dict[str, Any]:
    """Latency with a worker in the background."""
    install(options)
    client = connect(options)

    def one(number: int) -> None:
        task = client.spawn("walk", order(number))
        found: Any = client.await_task_result(task["task_id"])
        check(found.result)

    with Workers(options, 1):
        return latencies(
            [timed_ms(lambda number=number: one(number)) for number in range(options.runs)]
        )


def reach_waiting(options: Options, client: Absurd, first: int, count: int) -> float:
    """Bring runs to their middle; the seconds until all were spawned."""
    began = time.perf_counter()
    for number in range(first, first + count):
        client.spawn("half", order(number))
    spawned = time.perf_counter() - began
    until(options, COUNT_WAITING, first + count)
    return spawned


def w3_prepare(options: Options) -> None:
    """Runs in their middle."""
    install(options)
    client = connect(options)
    with Workers(options, options.at_once):
        reach_waiting(options, client, 0, options.runs)
        tell({"waiting": options.runs})
        stay()


def w3_recover(options: Options) -> dict[str, Any]:
    """Workers and events."""
    client = connect(options)
    with Workers(options, options.at_once):
        launched = time.monotonic() - options.spawned_at
        for number in range(options.runs):
            client.emit_event(f"go-{order(number)['name']}", {"number": number})
        sent = time.monotonic() - options.spawned_at
        until(options, COUNT_DONE, options.runs)
        took = time.monotonic() - options.spawned_at
    return {
        "runs": options.runs, "launch_seconds": launched, "sent_seconds": sent, "seconds": took,
    }  # fmt: skip


def w5(options: Options) -> dict[str, Any]:
    """Runs that wait."""
    install(options)
    client = connect(options)
    with Workers(options, options.at_once):
        reach_waiting(options, client, 0, 50)
        resident, many, began = resident_bytes(), threads(), time.perf_counter()
        started = reach_waiting(options, client, 50, options.runs)
        waiting = time.perf_counter() - began
        return {
            "started_seconds": started,
            "waiting_seconds": waiting,
            "bytes_per_waiting": (resident_bytes() - resident) / options.runs,
            "threads_per_waiting": (threads() - many) / options.runs,
            "idle_cores": idle_cores(options.idle_seconds),
            "resident_bytes": resident_bytes(),
        }


if __name__ == "__main__":
    main(
        {"w1": w1, "w2": w2, "w2-user": w2_user, "w3-prepare": w3_prepare,
         "w3-recover": w3_recover, "w5": w5}
    )  # fmt: skip
    os._exit(0)  # threads that poll
