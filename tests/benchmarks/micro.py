"""Two small figures: one decision, and the start of the command line."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from engine.decide import begin, decide
from engine.definition import Oracle
from engine.table import compile_table
from tests.benchmarks.machines import Order, Stepped, Walk


def deciding(count: int) -> tuple[float, float]:
    """Microseconds of one decision, and of one send of the library."""
    table = compile_table(Walk)
    begun = begin(table, run_id="r", context=Order(), now_ms=0)
    run, event = begun.after, Stepped(count=1, total=1, name="", done=False)  # type: ignore[union-attr]
    ours = per_call_us(lambda: decide(table, run, "stepped", event, 0), count)
    oracle = Oracle(Walk, "walking", Order())
    theirs = per_call_us(lambda: oracle.send("stepped", event, 0), count // 10)
    return ours, theirs


def per_call_us(call: Callable[[], object], count: int) -> float:
    """Mean microseconds of a call."""
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count * 1e6


def starting(repeats: int) -> tuple[float, float]:
    """Milliseconds of `turtles --help`, and of Python doing nothing."""
    ours, bare = [], []
    for _ in range(repeats):
        ours.append(milliseconds([sys.executable, "-m", "machines.cli", "--help"]))
        bare.append(milliseconds([sys.executable, "-c", "pass"]))
    return statistics.median(ours), statistics.median(bare)


def milliseconds(command: list[str]) -> float:
    """Wall time of one process."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1000
