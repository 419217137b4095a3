"""Our side: the public API as a user has it, over a store url; see `peers.common` for the protocol.

    python -m tests.benchmarks.ours w1 '{"directory": "/tmp/x", "runs": 1000, "at_once": 200}'

`at_once` clients each start a run, wait for its outcome and start the next, in one event loop with
one worker.  `w1-profile` and `w2-profile` print tables of cProfile instead of a result; `w1-count`
counts what the driver was asked to do (slower, so never in the same process as a measurement).
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import io
import pstats
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import structlog

from engine import App
from engine.committer import InlineIo
from engine.ports import Query
from engine.world import World
from persistence import open_store
from tests.benchmarks.fleet import w6, w6_worker
from tests.benchmarks.growth import w4, w7
from tests.benchmarks.machines import Go, Half, Order, Walk
from tests.benchmarks.peers.common import (
    STEPS,
    Options,
    Watch,
    check,
    file_bytes,
    latencies,
    main,
    order,
    resident_bytes,
    stay,
    tell,
    threads,
)

Machines = list[Any]


def open_for(options: Options) -> Any:
    """The store that the options name."""
    url = options.url or f"sqlite:///{options.directory}/runs.db"
    if options.url:
        return open_store(url)
    return open_store(url, synchronous=options.synchronous)  # type: ignore[arg-type]


def working(
    options: Options, machines: Machines, body: Callable[[App], Awaitable[Any]], moved: Any = None
) -> Any:
    """What the body returns, in an app with a worker."""

    async def run() -> Any:
        store = open_for(options)
        async with App(machines, store=store, moved=moved) as app:
            result = await body(app)
        store.close()
        return result

    return asyncio.run(run())


async def each(count: int, at_once: int, call: Callable[[int], Awaitable[None]]) -> None:
    """Call with every number below `count`, so many at once."""
    numbers: Iterator[int] = iter(range(count))

    async def client() -> None:
        for number in numbers:
            await call(number)

    await asyncio.gather(*(client() for _ in range(min(at_once, count))))


WARM_RUNS = 500
"""Runs of W5 that wait before memory is first looked at: caches and pools have their size then."""


async def walk(app: App, number: int) -> None:
    """One whole run, checked."""
    run = await app.start(Walk, Order(**order(number)))
    outcome = await app.wait(run.run_id)
    if outcome.status != "completed":
        raise SystemExit(f"{run.run_id}: {outcome}")
    check(msgspec.structs.asdict(outcome.context))


def w1(options: Options) -> dict[str, Any]:
    """Throughput."""

    async def body(app: App) -> dict[str, Any]:
        await each(options.at_once, options.at_once, lambda number: walk(app, number))  # warm
        watch = Watch()
        await each(options.runs, options.at_once, lambda number: walk(app, number))
        return watch.throughput(options.runs)

    result: dict[str, Any] = working(options, [Walk], body)
    if not options.url:
        result["bytes_per_run"] = file_bytes(options.directory) / (options.runs + options.at_once)
    return result


def w2(options: Options) -> dict[str, Any]:
    """Latency: one run at a time."""

    async def body(app: App) -> dict[str, Any]:
        return latencies(await sample(app, options.runs))

    result: dict[str, Any] = working(options, [Walk], body)
    return result


async def sample(app: App, runs: int, *, warm: int = 5) -> list[float]:
    """Milliseconds of single runs, after some to warm up."""
    found = []
    for number in range(warm + runs):
        began = time.perf_counter()
        await walk(app, number)
        found.append((time.perf_counter() - began) * 1000)
    return found[warm:]


def profiled(options: Options, *, single: bool) -> None:
    """Where W1 or W2 spends its time: cProfile, by own time and with callees.

    The store is called in the loop's thread, because cProfile sees no other.
    """
    store = open_for(options)
    at_once = 1 if single else options.at_once

    async def body() -> None:
        async with App([Walk], store=store, world=World(io=InlineIo())) as app:
            await each(options.runs, at_once, lambda number: walk(app, number))

    profile = cProfile.Profile()
    profile.runcall(asyncio.run, body())
    store.close()
    for by in ("tottime", "cumulative"):
        text = io.StringIO()
        pstats.Stats(profile, stream=text).sort_stats(by).print_stats(40)
        print(text.getvalue())


def w1_count(options: Options) -> dict[str, Any]:
    """Commits and statements of W1, as SQLite's driver was given them."""
    import sqlalchemy as sa

    counts = {"commits": 0, "statements": 0}

    def traced(statement: str) -> None:
        counts["statements"] += 1
        counts["commits"] += statement.startswith("COMMIT")

    @sa.event.listens_for(sa.pool.Pool, "connect")
    def trace(connection: Any, _record: Any) -> None:
        connection.set_trace_callback(traced)

    w1(options)
    steps = (options.runs + options.at_once) * STEPS
    return {
        "steps_per_commit": steps / max(counts["commits"], 1),
        "statements_per_step": counts["statements"] / steps,
        **counts,
    }


# -- runs that wait ------------------------------------------------------------------------------


class Middle:
    """Counts the runs that have come to their middle, without keeping anything of them."""

    def __init__(self) -> None:
        self.count = 0
        self._wanted = 0
        self._reached = asyncio.Event()

    def moved(self, decision: Any) -> None:
        """Called by the app after every transition."""
        if decision.after.state == "waiting":
            self.count += 1
            if self.count == self._wanted:
                self._reached.set()

    async def reach(self, app: App, runs: int, at_once: int, *, name: str) -> float:
        """Start runs and return when all wait; the seconds until every start was durable."""
        self._wanted, self._reached = self.count + runs, asyncio.Event()
        began = time.perf_counter()

        async def start(number: int) -> None:
            await app.start(Half, Order(**order(number)), key=f"{name}-{number}")

        await each(runs, at_once, start)
        started = time.perf_counter() - began
        async with asyncio.timeout(1200):
            await self._reached.wait()
        return started


def w3_prepare(options: Options) -> None:
    """Bring runs to their middle, tell it, and stay until killed."""
    middle = Middle()

    async def body(app: App) -> None:
        await middle.reach(app, options.runs, options.at_once, name="half")
        tell({"waiting": middle.count})
        stay()

    working(options, [Half], body, middle.moved)


def w3_recover(options: Options) -> dict[str, Any]:
    """A new process: find the waiting runs, send each its event, wait for all."""

    async def body(app: App) -> dict[str, Any]:
        launched = time.monotonic() - options.spawned_at
        found = await app.runs(Query(statuses=("waiting",), limit=options.runs + 1))
        ids = [stored.run.run_id for stored in found]
        await each(len(ids), options.at_once, lambda number: send(app, ids[number], number))
        sent = time.monotonic() - options.spawned_at
        done = [await app.wait(run_id) for run_id in ids]
        took = time.monotonic() - options.spawned_at
        for outcome in done:
            check(msgspec.structs.asdict(outcome.context))
        return {
            "runs": len(done), "launch_seconds": launched, "sent_seconds": sent, "seconds": took
        }  # fmt: skip

    result: dict[str, Any] = working(options, [Half], body)
    return result


async def send(app: App, run_id: str, number: int) -> None:
    """The event that a run waits for."""
    await app.send(run_id, Go(number=number), key="go")


def w5(options: Options) -> dict[str, Any]:
    """Runs that wait: what each costs while nothing happens."""
    middle = Middle()

    async def body(app: App) -> dict[str, Any]:
        await middle.reach(app, WARM_RUNS, options.at_once, name="warm")
        gc.collect()
        resident, many = resident_bytes(), threads()
        began = time.perf_counter()
        started = await middle.reach(app, options.runs, options.at_once, name="half")
        waiting = time.perf_counter() - began
        gc.collect()
        await asyncio.sleep(0.5)
        cpu, began = time.process_time(), time.perf_counter()
        await asyncio.sleep(options.idle_seconds)
        idle = (time.process_time() - cpu) / (time.perf_counter() - began)
        return {
            "started_seconds": started,
            "waiting_seconds": waiting,
            "bytes_per_waiting": (resident_bytes() - resident) / options.runs,
            "threads_per_waiting": (threads() - many) / options.runs,
            "idle_cores": idle,
            "resident_bytes": resident_bytes(),
        }

    result: dict[str, Any] = working(options, [Half], body, middle.moved)
    if not options.url:
        stored = file_bytes(options.directory)
        result["stored_bytes_per_waiting"] = stored / (options.runs + WARM_RUNS)
    return result


def w5_fresh(options: Options) -> dict[str, Any]:
    """A new process over the store that W5 left: its memory and processor with all of them."""

    async def body(app: App) -> dict[str, Any]:
        launched = time.monotonic() - options.spawned_at
        await asyncio.sleep(0.5)
        cpu, began = time.process_time(), time.perf_counter()
        await asyncio.sleep(options.idle_seconds)
        idle = (time.process_time() - cpu) / (time.perf_counter() - began)
        return {
            "launch_seconds": launched, "idle_cores": idle, "resident_bytes": resident_bytes(),
            "threads": threads(),
        }  # fmt: skip

    result: dict[str, Any] = working(options, [Half], body)
    return result


def quiet() -> None:
    """Only what went wrong is said."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


WORKLOADS: dict[str, Callable[[Options], dict[str, Any] | None]] = {
    "w1": w1,
    "w1-profile": lambda options: profiled(options, single=False),
    "w2-profile": lambda options: profiled(options, single=True),
    "w1-count": w1_count,
    "w2": w2,
    "w3-prepare": w3_prepare,
    "w3-recover": w3_recover,
    "w5": w5,
    "w4": lambda options: w4(options, sample),
    "w5-fresh": w5_fresh,
    "w6": w6,
    "w6-worker": w6_worker,
    "w7": w7,
}

if __name__ == "__main__":
    quiet()
    main(WORKLOADS)
