"""One process with a store, that dies where it is told.

    python -m tests.acceptance.crash_points.worker URL DIRECTORY STEP...

Steps, in order; each prints its answer as one line of JSON::

    serve                       work in the background from here on, as `turtles work` does
    start:MACHINE/KEY[:WORD]    accept a run, its context's word as given
    send:MACHINE/KEY:EVENT:ID   give it an event under a key of its own
    cancel:MACHINE/KEY          ask it to stop
    settle                      move all that is due now, in the foreground
    wait:MACHINE/KEY            until it has ended
    drain                       until every run has ended; needs `serve`
    many:MACHINE:COUNT          accept so many runs, with the numbers from 0 as keys
    remove                      remove all runs that ended before now, two trees at a time
    forget                      forget them, and their keys
    left                        how many runs have not ended, and how many are in hand

A word `huge` makes a context that is too large to be kept.

The environment says what happens to it, each as `WORDS:COUNT`, at the COUNT-th boundary that has
all the words (see `statements`; `before effect run` and `after effect run` are the calls)::

    TURTLES_TEST_KILL_AT    SIGKILL to itself      TURTLES_TEST_STOP_AT    SIGSTOP to itself
    TURTLES_TEST_FAIL_AT    the statement fails as a lost connection does

In DIRECTORY are what outlives it: `ledger`, the outside's list of calls, appended and synced;
`clock`, which is `+MS` (the host's time and so much more) or `=MS` (a clock that stands still).
TURTLES_TEST_WALL_MS instead: the engine's own clock on a host whose time is wrong by so much.
TURTLES_TEST_HOST is another host's name, so that nobody can look up whether this process is alive;
TURTLES_TEST_BUSY_MS how long it waits for another's lock.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from engine.app import App
from engine.clock import Clock
from engine.errors import StoreError, TurtlesError
from engine.performing import OutsideCalls
from engine.ports import Query, StoredRun, WorkerIdentity
from engine.process import this_worker
from engine.secrets import SecretsCodec
from engine.system import SystemClock
from engine.testing import Boundary, CrashingCalls, CrashPlan
from engine.world import World
from persistence.store import open_store
from tests.acceptance.crash_points.machines import MACHINES, Basket, Outside
from tests.acceptance.crash_points.statements import EVERYWHERE, report_psycopg, report_statements

SECRETS = SecretsCodec(b"k" * 32)


class FileClock:
    """A clock that another process can set."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def now_ms(self) -> int:
        """The host's time and what the file adds, or the time in the file."""
        text = self._file.read_text()
        standing = text.startswith("=")
        return int(text[1:]) + (0 if standing else time.time_ns() // 1_000_000)

    async def sleep(self, duration_ms: int) -> None:
        """Until the clock has moved so far; looks at it every few milliseconds."""
        until_ms = self.now_ms() + duration_ms
        for left_ms in iter(lambda: max(until_ms - self.now_ms(), 0), 0):
            await asyncio.sleep(min(left_ms, 10) / 1_000)


class Fate(CrashPlan):
    """What the environment says will happen to this process."""

    def __init__(self) -> None:
        super().__init__()
        self._left: list[tuple[set[str], int, Callable[[], None]]] = []
        for name, deed in (("KILL", _kill), ("STOP", _stop), ("FAIL", _fail)):
            text = os.environ.get(f"TURTLES_TEST_{name}_AT")
            if text:
                words, _, count = text.partition(":")
                self._left.append((set(words.split()), int(count or 1), deed))

    def pass_by(self, name: str) -> None:
        """A boundary is reached; it may be one of those."""
        self.passed.append(Boundary(len(self.passed) + 1, name))
        there = {*name.split()}
        now = [one for one in self._left if one[0] <= there]
        self._left = [
            (words, count - (words <= there), deed)
            for words, count, deed in self._left
            if not (words <= there and count == 1)
        ]
        for _, count, deed in now:
            if count == 1:
                deed()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _fail() -> None:
    raise sqlite3.OperationalError("disk I/O error")


def clock_of(directory: Path) -> Clock:
    """The clock of the file; or the engine's own one, on a host whose time is wrong."""
    wrong_ms = os.environ.get("TURTLES_TEST_WALL_MS")
    if wrong_ms is None:
        return FileClock(directory / "clock")
    right = time.time_ns
    time.time_ns = lambda: right() + int(wrong_ms) * 1_000_000
    return SystemClock()


def append(file: Path, line: str) -> None:
    """Add a line to a file, durably."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{line}\n".encode())
    os.fsync(descriptor)
    os.close(descriptor)


def ledger(directory: Path) -> Outside:
    """The outside whose memory is in this directory."""
    file = directory / "ledger"
    return Outside(
        lambda line: append(file, line),
        lambda: file.read_text().splitlines() if file.exists() else [],
    )


def identity() -> WorkerIdentity:
    """This process; on a host of another name if it was told so."""
    host = os.environ.get("TURTLES_TEST_HOST")
    found = this_worker()
    return found if host is None else msgspec.structs.replace(found, host=host)


class Program:
    """An app and the steps it is given."""

    def __init__(self, url: str, directory: Path, *, serve: bool) -> None:
        self._fate = Fate()
        if url.startswith("sqlite"):
            report_statements(EVERYWHERE, self._fate)
        else:
            report_psycopg(self._fate)
        busy_ms = int(os.environ.get("TURTLES_TEST_BUSY_MS", "10000"))
        self._store = open_store(url, busy_timeout_seconds=busy_ms / 1_000)
        clock = FileClock(directory / "clock")
        world = World(clock=clock, calls=CrashingCalls(OutsideCalls(), self._fate), worker=identity)
        self._app = App(
            MACHINES.values(), self._store, resources={Outside: ledger(directory)},
            secrets=SECRETS, world=world, work=serve,
        )  # fmt: skip

    async def run(self, steps: list[str]) -> None:
        """Take every step, and print what came of it."""
        async with self._app:
            for step in steps:
                name, _, rest = step.partition(":")
                try:
                    answer = await getattr(self, f"_{name}")(*rest.split(":"))
                except TurtlesError as error:
                    answer = {"error": type(error).__name__, "reason": str(error)}
                _print(answer)
        self._store.close()

    def _id(self, name: str) -> str:
        machine, _, key = name.partition("/")
        found = self._store.runs.find(machine, key)
        assert found is not None, f"no run {name}"
        return found

    async def _serve(self, _nothing: str) -> Any:
        return None

    async def _start(self, name: str, word: str = "") -> Any:
        machine, _, key = name.partition("/")
        word = "x" * 300_000 if word == "huge" else word
        return await self._app.start(machine, Basket(word=word), key=key)

    async def _send(self, name: str, event: str, key: str) -> Any:
        return await self._app.send(self._id(name), event, key=key)

    async def _cancel(self, name: str) -> Any:
        return await self._app.cancel(self._id(name))

    async def _settle(self, _nothing: str) -> Any:
        await self._app.beat()
        return await self._app.settle()

    async def _wait(self, name: str) -> Any:
        outcome = await self._app.wait(self._id(name), timeout_seconds=60)
        return {"state": outcome.state, "status": outcome.status}

    async def _drain(self, _nothing: str) -> Any:
        async with asyncio.timeout(60):
            while True:
                try:
                    for stored in self._going():
                        await self._app.wait(stored.run.run_id)
                    return None
                except StoreError:  # who waits through an outage asks again
                    await asyncio.sleep(0.01)

    async def _remove(self, _nothing: str) -> Any:
        now_ms, after, removed = self._app.clock.now_ms(), None, 0
        while True:
            done = self._store.retention.remove(now_ms, now_ms, most=2, after=after)
            removed, after = removed + done.runs, done.after
            if after is None:
                return removed

    async def _forget(self, _nothing: str) -> Any:
        return self._store.retention.forget(self._app.clock.now_ms() + 1, most=100)

    async def _left(self, _nothing: str) -> Any:
        going = self._going()
        return {"left": len(going), "held": sum(one.owner is not None for one in going)}

    def _going(self) -> list[StoredRun]:
        return self._store.runs.select(
            Query(statuses=("pending", "running", "waiting"), limit=100_000)
        )

    async def _many(self, machine: str, count: str) -> Any:
        keys = [f"{number}" for number in range(int(count))]
        await asyncio.gather(*(self._app.start(machine, Basket(), key=key) for key in keys))
        return len(keys)


def _print(answer: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _, url, directory, *steps = sys.argv
    asyncio.run(Program(url, Path(directory), serve="serve" in steps).run(steps))
