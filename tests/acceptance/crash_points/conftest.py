"""A stage: one database, one outside, one clock, and processes that are killed on it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.app import App
from engine.cli.doctor import examine
from engine.ports import StoredRun
from persistence.store import SqlStore, open_store
from tests.acceptance.crash_points.machines import MACHINES, Outside
from tests.acceptance.crash_points.old import old_database
from tests.acceptance.crash_points.worker import SECRETS, ledger
from tests.postgres_server import PostgresServer, server

CHECKOUT = Path(__file__).resolve().parents[3]
EPOCH_MS = 1_700_000_000_000


@dataclass(frozen=True)
class Ended:
    """How a process ended: its answers, and its exit code (below 0: the signal's number)."""

    answers: list[Any]
    code: int
    errors: str

    @property
    def killed(self) -> bool:
        """Whether it died of SIGKILL."""
        return self.code == -signal.SIGKILL


class Stage:
    """What outlives the processes, and how to start one."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url, self.directory = url, directory
        self.outside: Outside = ledger(directory)
        self._processes: list[subprocess.Popen[str]] = []
        self.set_clock("+0")

    def set_clock(self, text: str) -> None:
        """`+MS`: the host's time and so much more; `=MS`: standing still.  Seen as a whole."""
        new = self.directory / "clock.new"
        new.write_text(text)
        new.replace(self.directory / "clock")

    def spawn(self, *steps: str, **environment: str) -> subprocess.Popen[str]:
        """Start a worker; keywords without the prefix TURTLES_TEST_."""
        settings = {f"TURTLES_TEST_{name.upper()}": value for name, value in environment.items()}
        # Compiling every module again would cost each process more than all it does.
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.acceptance.crash_points.worker",
             self.url, str(self.directory), *steps],
            cwd=CHECKOUT, env={**kept, **settings}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self._processes.append(process)
        return process

    def end(self, process: subprocess.Popen[str]) -> Ended:
        """Wait for its end."""
        try:
            out, errors = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return Ended([json.loads(line) for line in out.splitlines()], process.returncode, errors)

    def run(self, *steps: str, **environment: str) -> list[Any]:
        """Run a worker to its end; its answers."""
        ended = self.end(self.spawn(*steps, **environment))
        assert ended.code == 0, ended.errors[-2000:]
        return ended.answers

    def kill(self, where: str, *steps: str, **environment: str) -> list[Any]:
        """Run a worker that is killed there; what it had answered until then."""
        ended = self.end(self.spawn(*steps, kill_at=where, **environment))
        assert ended.killed, f"it never came to {where}: {ended.answers} {ended.errors[-2000:]}"
        return ended.answers

    def stopped(self, where: str, *steps: str, **environment: str) -> subprocess.Popen[str]:
        """Start a worker, and wait until it has stopped there."""
        process = self.spawn(*steps, stop_at=where, **environment)
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"it never came to {where}: {process.stderr.read()}"
        return process

    def close(self) -> None:
        """Leave no process behind, a stopped one neither."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.communicate()

    @asynccontextmanager
    async def app(self) -> AsyncIterator[App]:
        """An app that only looks."""
        store = open_store(self.url)
        yield App(MACHINES.values(), store, secrets=SECRETS, work=False)
        store.close()

    def look(self, name: str) -> StoredRun:
        """A run as it is stored, by `MACHINE/KEY`."""
        machine, _, key = name.partition("/")
        store = open_store(self.url)
        try:
            found = store.runs.get(store.runs.find(machine, key) or "")
        finally:
            store.close()
        assert found is not None, f"no run {name}"
        return found

    def with_store(self, ask: Callable[[SqlStore], Any]) -> Any:
        """Ask the store something."""
        store = open_store(self.url)
        try:
            return ask(store)
        finally:
            store.close()

    def events(self, name: str) -> list[str]:
        """The events of a run's journal, after its start."""
        run_id = self.look(name).run.run_id
        return self.with_store(
            lambda store: [entry.event for entry in store.journal.read(run_id)][1:]
        )

    def check(self) -> None:
        """`turtles doctor` finds nothing."""

        async def doctor() -> None:
            async with self.app() as app:
                found, runs = await examine(app)
                assert found == []
                assert runs > 0

        asyncio.run(doctor())


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A private server, started when the first test asks for it."""
    with server() as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    """A new database; when the test ends, `turtles doctor` must find nothing."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/runs.db"
    else:
        url = request.getfixturevalue("postgres").create_database()
    made = Stage(url, tmp_path)
    open_store(made.url).close()
    yield made
    made.close()
    made.check()


@pytest.fixture
def old_stage(tmp_path: Path) -> Iterator[Stage]:
    """A file that the release before this schema wrote, with runs in it."""
    old_database(tmp_path / "runs.db")
    made = Stage(f"sqlite:///{tmp_path}/runs.db", tmp_path)
    yield made
    made.close()
