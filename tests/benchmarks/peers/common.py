"""What every contender shares: the step, the size of a run, and how a result is told.

A contender is a program::

    CONTENDER WORKLOAD OPTIONS      OPTIONS: one JSON object, see `Options`

that prints one JSON object as the last line of its output.  `w3-prepare` and `w5` print it when all
runs wait; the first then stays until it is killed.  Imported by programs of other virtual
environments: nothing here needs more than the standard library.
"""

from __future__ import annotations

import json
import resource
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

STEPS = 10
"""Durable steps of a run."""
HALF = STEPS // 2
"""After so many steps a run of W3 and W5 waits for its event."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one measurement is asked to do.

    Args:
        directory: an empty directory of its own, for SQLite files and the like.
        url: a PostgreSQL database of its own; None for SQLite in `directory`.
        runs: how many.
        at_once: how many runs are in flight together.
        synchronous: of SQLite: `FULL` or `NORMAL`; peers also know `shipped`, their own settings.
        spawned_at: `time.monotonic()` of whoever started this process.
        idle_seconds: how long W5 looks at a process with nothing to do.
        finished: how many finished runs W4 puts beside; how many steps W7 puts before.
        extra: what only this contender understands.
    """

    directory: str
    url: str | None = None
    runs: int = 100
    at_once: int = 16
    synchronous: str = "FULL"
    spawned_at: float = 0.0
    idle_seconds: float = 5.0
    finished: int = 0
    extra: str = ""


def pure(data: Mapping[str, Any]) -> dict[str, Any]:
    """The step: a pure function of a dict of four keys, about 55 bytes as JSON."""
    count = data["count"] + 1
    return {
        "count": count,
        "total": data["total"] + count,
        "name": data["name"],
        "done": count >= STEPS,
    }


def order(number: int) -> dict[str, Any]:
    """The first value of a run."""
    return {"count": 0, "total": 0, "name": f"run-{number:07}", "done": False}


def check(data: Mapping[str, Any]) -> None:
    """A run that computed something else was not measured."""
    if data["count"] != STEPS or data["total"] != sum(range(STEPS + 1)) or not data["done"]:
        raise SystemExit(f"a run of {STEPS} steps ended with {dict(data)}")


def main(workloads: Mapping[str, Callable[[Options], dict[str, Any] | None]]) -> None:
    """Run the workload that the command line names, and tell its result."""
    known = {field.name for field in fields(Options)}
    given = json.loads(sys.argv[2])
    options = Options(**{name: value for name, value in given.items() if name in known})
    result = workloads[sys.argv[1]](options)
    if result is not None:
        tell(result)


def tell(result: Mapping[str, Any]) -> None:
    """One JSON line, at once."""
    print(json.dumps(result), flush=True)


def stay() -> None:
    """Until somebody kills this process."""
    while True:
        time.sleep(3600)


class Watch:
    """Seconds of wall and processor since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._cpu = time.process_time()

    def seconds(self) -> float:
        """Wall time."""
        return time.perf_counter() - self._began

    def throughput(self, runs: int) -> dict[str, Any]:
        """The result of W1."""
        took, cpu = self.seconds(), time.process_time() - self._cpu
        return {
            "steps_per_second": runs * STEPS / took,
            "seconds": took,
            "cpu_ms_per_run": cpu / runs * 1000,
        }


def latencies(milliseconds: list[float]) -> dict[str, Any]:
    """The result of W2: single runs, one after another."""
    ordered = sorted(milliseconds)
    return {
        "p50_ms": ordered[len(ordered) // 2],
        "p95_ms": ordered[min(int(len(ordered) * 0.95), len(ordered) - 1)],
    }


def timed_ms(call: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1000


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def threads() -> int:
    """Threads of this process."""
    return len(list(Path("/proc/self/task").iterdir()))


def file_bytes(directory: str) -> int:
    """Bytes of every file beneath, once what SQLite's logs hold is in the databases."""
    for each in Path(directory).rglob("*.db"):
        raw = sqlite3.connect(each)
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        raw.close()
    return sum(each.stat().st_size for each in Path(directory).rglob("*") if each.is_file())


def idle_cores(seconds: float) -> float:
    """Cores that this process uses while its other threads have nothing to do."""
    cpu, began = time.process_time(), time.perf_counter()
    time.sleep(seconds)
    return (time.process_time() - cpu) / (time.perf_counter() - began)
