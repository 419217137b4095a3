"""One measurement: a contender's process, what it said, and who else used the machine meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.benchmarks.contenders import ROOT, Contender

NO_SERVER = "no PostgreSQL here"
_TICKS = os.sysconf("SC_CLK_TCK")
_SUBREAPER = 36  # prctl(2): orphans of ours become our children, so that their time is told


class Server(Protocol):
    """What is used of `tests.postgres_server.PostgresServer`."""

    @property
    def pid(self) -> int:
        """The postmaster's."""

    def create_database(self) -> str:
        """A url."""

    def drop_database(self, name: str) -> None:
        """Remove it."""

    def run(self, statement: str, *values: Any, database: str = "postgres") -> list[Any]:
        """Rows."""


@dataclass
class Bench:
    """Runs contenders, each in a directory and a database of its own."""

    server: Server | None
    place: Path | None = None
    timeout_seconds: float = 900.0
    _databases: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)

    def measure(self, contender: Contender, workload: str, **options: Any) -> dict[str, Any]:
        """What the contender said, with `foreign_cores`; `failed` says why it said nothing."""
        if contender.missing:
            return {"failed": f"not installed: {contender.missing}"}
        if contender.database == "postgresql" and self.server is None:
            return {"failed": NO_SERVER}
        load = Load(self.server)
        try:
            with self._place(contender) as given:
                said = self._workload(contender, workload, {**given, **options})
                said |= self._told_by(given.get("url"))
        except MeasurementError as error:
            said = {"failed": str(error)}
        return {**said, **load.since()}

    def _workload(
        self, contender: Contender, workload: str, options: dict[str, Any]
    ) -> dict[str, Any]:
        if workload == "w3":
            with started(contender, "w3-prepare", options, self.timeout_seconds) as process:
                process.line()
                process.kill()
            return run(contender, "w3-recover", options, self.timeout_seconds)
        if workload == "w4":
            options = {**options, "extra": options.get("second_url", "")}
        said = run(contender, workload, options, self.timeout_seconds)
        if workload == "w5" and contender.ours:
            again = run(contender, "w5-fresh", options, self.timeout_seconds)
            said |= {f"fresh_{name}": value for name, value in again.items()}
        return said

    @contextlib.contextmanager
    def _place(self, contender: Contender) -> Iterator[dict[str, Any]]:
        with tempfile.TemporaryDirectory(
            prefix="turtles-bench-", dir=self.place, ignore_cleanup_errors=True
        ) as directory:
            given: dict[str, Any] = {
                "directory": directory,
                "at_once": contender.at_once,
                "synchronous": contender.synchronous,
                "extra": contender.extra,
            }
            urls = []
            if contender.database == "postgresql":
                assert self.server is not None
                urls = [self.server.create_database() for _ in range(2)]
                given |= {"url": urls[0], "second_url": urls[1]}
            try:
                yield given
            finally:
                for url in urls:
                    assert self.server is not None
                    self.server.drop_database(url.rsplit("/", 1)[1])

    def _told_by(self, url: str | None) -> dict[str, Any]:
        """Commits, as the database counted them."""
        if not url or self.server is None:
            return {}
        name = url.rsplit("/", 1)[1]
        rows = self.server.run("SELECT xact_commit FROM pg_stat_database WHERE datname = %s", name)
        return {"commits": int(rows[0][0])}


class MeasurementError(Exception):
    """A contender did not give a result; the message says what it said last."""


class Running:
    """A contender's process, the leader of a group of its own."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log

    def line(self) -> dict[str, Any]:
        """The next JSON object it prints."""
        assert self.process.stdout is not None
        for text in self.process.stdout:
            if text.startswith("{"):
                said: dict[str, Any] = json.loads(text)
                return said
        said_last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
        raise MeasurementError(f"failed: {''.join(said_last)[:400] or 'said nothing'}")

    def kill(self) -> None:
        """SIGKILL to all of the group, and nobody is left behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-self.process.pid, 0):
                pass


@contextlib.contextmanager
def started(
    contender: Contender, workload: str, options: Mapping[str, Any], timeout_seconds: float
) -> Iterator[Running]:
    """A contender at work; it is gone when the block ends."""
    log = Path(options["directory"]) / "stderr.log"
    given = {**options, "spawned_at": time.monotonic()}
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [*contender.command, workload, json.dumps(given)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT if contender.ours or contender.raw else options["directory"],
            start_new_session=True,
        )
    running = Running(process, log)
    alarm = threading.Timer(timeout_seconds, running.kill)
    alarm.daemon = True
    alarm.start()
    try:
        yield running
    finally:
        alarm.cancel()
        running.kill()


def run(
    contender: Contender, workload: str, options: Mapping[str, Any], timeout_seconds: float
) -> dict[str, Any]:
    """What a contender said."""
    with started(contender, workload, options, timeout_seconds) as running:
        said = running.line()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(20)
    return said


class Load:
    """The cores that others used since it was made: all that was busy, less what was ours."""

    def __init__(self, server: Server | None) -> None:
        self._server = server
        self._began = time.perf_counter()
        self._busy, self._ours = busy_seconds(), self._own_seconds()

    def since(self) -> dict[str, float]:
        """`foreign_cores`, `wall_seconds`."""
        wall = time.perf_counter() - self._began
        foreign = (busy_seconds() - self._busy) - (self._own_seconds() - self._ours)
        return {"foreign_cores": max(foreign / wall, 0.0), "wall_seconds": wall}

    def _own_seconds(self) -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        total = sum(each.ru_utime + each.ru_stime for each in used)
        return total + (server_seconds(self._server.pid) if self._server else 0.0)


def busy_seconds() -> float:
    """Processor time of everybody since boot, stolen time too."""
    fields = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _wait, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / _TICKS


def server_seconds(postmaster: int) -> float:
    """Processor time of a PostgreSQL server: itself, who lives under it, and who has ended."""
    total = 0
    for each in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = each.read_text().rsplit(")", 1)[1].split()
            if int(each.parent.name) == postmaster:
                total += sum(map(int, fields[11:15]))
            elif int(fields[1]) == postmaster:
                total += sum(map(int, fields[11:13]))
    return total / _TICKS
