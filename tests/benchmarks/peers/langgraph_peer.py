"""LangGraph with its SQLite saver: a chain of ten nodes, `durability="sync"`.

The default durability, "async", does not record a step before the next begins.  The saver itself
sets WAL; `synchronous` stays FULL.  One thread, which is its fastest.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Any, TypedDict

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
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt


class Data(TypedDict):
    """The four keys."""

    count: int
    total: int
    name: str
    done: bool


def node(data: Data) -> Data:
    """One durable step."""
    return pure(data)  # type: ignore[return-value]


def wait(data: Data) -> Data:
    """Until somebody resumes the graph."""
    interrupt("go")
    return data


def open_saver(options: Options) -> SqliteSaver:
    """A saver over a file."""
    raw = sqlite3.connect(f"{options.directory}/graph.db", check_same_thread=False)
    return SqliteSaver(raw)


def build(saver: SqliteSaver, *, waits: bool = False) -> Any:
    """The chain, with an interrupt in the middle if it waits."""
    graph = StateGraph(Data)
    names = [f"step-{number}" for number in range(STEPS)]
    for name in names:
        graph.add_node(name, node)
    if waits:
        graph.add_node("wait", wait)
        names.insert(HALF, "wait")
    for source, target in zip([START, *names], [*names, END], strict=True):
        graph.add_edge(source, target)
    return graph.compile(checkpointer=saver)


def invoke(graph: Any, thread_id: str, given: Any) -> Any:
    """Run a graph until it ends or waits."""
    config = {"configurable": {"thread_id": thread_id}}
    return graph.invoke(given, config, durability="sync")


def walk(graph: Any, number: int) -> None:
    """One whole run, checked."""
    check(invoke(graph, f"walk-{number}", order(number)))


def w1(options: Options) -> dict[str, Any]:
    """Throughput."""
    graph = build(open_saver(options))
    walk(graph, options.runs)
    watch = Watch()
    for number in range(options.runs):
        walk(graph, number)
    result = watch.throughput(options.runs)
    result["bytes_per_run"] = file_bytes(options.directory) / (options.runs + 1)
    return result


def w2(options: Options) -> dict[str, Any]:
    """Latency."""
    graph = build(open_saver(options))
    for number in range(5):
        walk(graph, options.runs + number)
    return latencies(
        [timed_ms(lambda number=number: walk(graph, number)) for number in range(options.runs)]
    )


def reach_waiting(graph: Any, count: int, name: str) -> None:
    """Bring runs to their middle."""
    for number in range(count):
        invoke(graph, f"{name}-{number}", order(number))


def w3_prepare(options: Options) -> None:
    """Runs in their middle."""
    reach_waiting(build(open_saver(options), waits=True), options.runs, "half")
    tell({"waiting": options.runs})
    stay()


def w3_recover(options: Options) -> dict[str, Any]:
    """`Command(resume=)` for each thread id, which the user must know."""
    graph = build(open_saver(options), waits=True)
    launched = time.monotonic() - options.spawned_at
    for number in range(options.runs):
        check(invoke(graph, f"half-{number}", Command(resume=number)))
    took = time.monotonic() - options.spawned_at
    return {"runs": options.runs, "launch_seconds": launched, "seconds": took}


def w5(options: Options) -> dict[str, Any]:
    """Runs that wait."""
    graph = build(open_saver(options), waits=True)
    reach_waiting(graph, 200, "warm")
    resident, many, began = resident_bytes(), threads(), time.perf_counter()
    reach_waiting(graph, options.runs, "half")
    waiting = time.perf_counter() - began
    return {
        "started_seconds": waiting,
        "waiting_seconds": waiting,
        "bytes_per_waiting": (resident_bytes() - resident) / options.runs,
        "threads_per_waiting": (threads() - many) / options.runs,
        "idle_cores": idle_cores(options.idle_seconds),
        "resident_bytes": resident_bytes(),
    }


if __name__ == "__main__":
    main({"w1": w1, "w2": w2, "w3-prepare": w3_prepare, "w3-recover": w3_recover, "w5": w5})
