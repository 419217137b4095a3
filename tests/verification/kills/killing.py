"""Processes that are killed at exact boundaries: fork, live, SIGKILL, and whoever comes next.

::

    parent    an empty directory on a file system in memory
      |- fork: opens the store (migrations and all), works, SIGKILLs itself at boundary n
      |- fork: finds the dead one by /proc, checks, goes on; SIGKILLs itself at boundary m
      |- ...   as often as the seed wants
      `- fork: goes on to the end and checks everything

A boundary is a moment between two things that could be half done:

- before and after each writing method of the store, each call and each reconcile of an effect, and
  between a deed of the outside and its answer (`engine.testing.faults`);
- before each statement of a write transaction, its COMMIT included (SQLite's trace callback);
- after each file operation that SQLite makes: creations, writes, truncations and syncs of the
  database and its log, so in the middle of a commit or a checkpoint too (`power_loss.recorder`).

No exec, no threads: what is to be imported is there before the fork.  The identities of the workers
are real, and a lease is far from over when the next process comes: it must see that its owner is
dead.  The clock stands still meanwhile.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import shutil
import signal
import sqlite3
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from engine.testing import Boundary, CrashPlan
from persistence.store import open_store
from tests.verification.kills.life import Life
from tests.verification.kills.notes import NotedClock, Notes
from tests.verification.kills.tally import Sequence
from tests.verification.power_loss.disk import Operation
from tests.verification.power_loss.recorder import recorded

DATABASE, NOTES, BOUNDARIES = "runs.db", "notes", "boundaries"
AGAIN = 0.7
"""How likely a process that recovers is to be killed, too."""
SOON = 60
"""The boundary at which it is killed then, on the average."""
CHECKPOINT_PAGES = (100, 5, 30, 1_000)
"""After how many pages in its log SQLite copies them to the database; the first one's comes first.
Small, so that processes die in the middle of that, too."""
HANGS_SECONDS = 30


class KillPlan(CrashPlan):
    """Counts boundaries; at the one it was told, the process is no more."""

    def __init__(self, at: int | None, notes: Notes) -> None:
        super().__init__(at)
        self._notes = notes

    def pass_by(self, name: str) -> None:
        """A boundary is reached; it may be the last."""
        self.passed.append(Boundary(len(self.passed) + 1, name))
        if len(self.passed) == self.at:
            self._notes.write("died", str(self.at), name)
            os.kill(os.getpid(), signal.SIGKILL)


class _Files(list[Operation]):
    """In the place of a recording's list: each file operation is a boundary."""

    def __init__(self, plan: KillPlan) -> None:
        super().__init__()
        self._plan = plan

    def append(self, operation: Operation) -> None:
        self._plan.pass_by(f"after file operation {type(operation).__name__}")


def _statements(plan: KillPlan, checkpoint_pages: int) -> Callable[..., None]:
    """A listener that makes each statement of each write transaction a boundary."""

    def connected(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"PRAGMA wal_autocheckpoint={checkpoint_pages}")
        inside = False

        def traced(statement: str) -> None:
            nonlocal inside
            words = statement.split(None, 3)
            if words[:2] == ["BEGIN", "IMMEDIATE"]:
                inside = True
            elif inside:
                plan.pass_by(f"before {' '.join(words[:3])}")
                inside = words[0] not in ("COMMIT", "ROLLBACK")

        connection.set_trace_callback(traced)

    return connected


def file_system() -> Path:
    """Where files cost no disk; the ordinary place for temporary files when there is none."""
    memory = Path("/dev/shm")  # noqa: S108 - a file system in memory is what is wanted
    return memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


@contextmanager
def work_directory() -> Iterator[Path]:
    """A directory that is gone afterwards, with whatever a failure left in it."""
    made = Path(tempfile.mkdtemp(prefix="kills-", dir=file_system())).resolve()
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


class Killer:
    """Makes sequences in one directory, one at a time.

    Args:
        directory: empty, and left so.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._warm_up()

    def _warm_up(self) -> None:
        """Live once here, so that no child compiles its statements and machines anew."""
        notes = Notes()
        with recorded(self._directory):
            store = open_store(f"sqlite:///{self._directory / DATABASE}")
            asyncio.run(Life(store, notes, NotedClock(notes), CrashPlan(), None).live())
            store.close()  # before any fork: a child may not have its parent's connections
        self._clear(notes)

    def boundaries(self) -> list[str]:
        """Every boundary of a process that begins with nothing and is not killed, in order.

        Raises:
            AssertionError: something is wrong without any death.
        """
        self._process(None, None)
        notes = Notes(self._directory / NOTES)
        names = (self._directory / BOUNDARIES).read_text().splitlines()
        bad = notes.texts("bad")
        self._clear(notes)
        if bad:
            raise AssertionError(f"without any death: {bad}")
        return names

    def sequence(self, seed: int, number: int, count: int) -> Sequence:
        """Kill one process, and some of those that follow it.

        Args:
            seed: of everything after the first death.
            number: the boundary of the first death; above `count`, the seed chooses it.
            count: how many boundaries there are.
        """
        chance = random.Random(f"{seed}:{number}")
        first = number if number <= count else chance.randint(1, count)
        killed, problem, kills = *self._process(first, None), 0
        while killed:
            kills += 1
            at = round(chance.expovariate(1 / SOON)) + 1 if chance.random() < AGAIN else None
            killed, problem = self._process(at, f"{seed}:{number}:{chance.random()}")
        notes = Notes(self._directory / NOTES)
        deaths, bad = tuple(notes.texts("died")), notes.texts("bad")
        self._clear(notes)
        if kills != len(deaths):
            bad.append(f"{kills} processes were killed, {len(deaths)} of them by themselves")
        bad += [problem] if problem else []
        return Sequence(f"{seed}:{number}", deaths, tuple(bad))

    def _clear(self, notes: Notes) -> None:
        notes.close()
        for path in self._directory.iterdir():
            path.unlink()

    def _process(self, at: int | None, chance: str | None) -> tuple[bool, str]:
        """Fork a process; whether it was killed as planned, and else what was wrong."""
        child = os.fork()
        if child == 0:
            os._exit(self._lives(at, chance))
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            planned = number == signal.SIGKILL
            return planned, "" if planned else f"ended by {signal.Signals(number).name}"
        code = os.waitstatus_to_exitcode(status)
        return False, f"a process ended with {code}" if code else ""

    def _lives(self, at: int | None, chance: str | None) -> int:
        """What the child does; its exit code."""
        signal.alarm(HANGS_SECONDS)
        gc.disable()  # it would touch, and so copy, all pages of the parent
        notes = Notes(self._directory / NOTES)
        try:
            self._live(notes, at, None if chance is None else random.Random(chance))
        except BaseException:  # noqa: BLE001 - a child may not go back into the parent's code
            notes.write("bad", traceback.format_exc())
            return 1
        return 0

    def _live(self, notes: Notes, at: int | None, chance: random.Random | None) -> None:
        plan = KillPlan(at, notes)
        pages = CHECKPOINT_PAGES[0] if chance is None else chance.choice(CHECKPOINT_PAGES)
        sa.event.listen(sa.pool.Pool, "connect", _statements(plan, pages))
        with recorded(self._directory) as recording:
            recording.operations = _Files(plan)
            store = open_store(f"sqlite:///{self._directory / DATABASE}")
            asyncio.run(Life(store, notes, NotedClock(notes), plan, chance).live())
            store.close()
        if at is None:
            names = "\n".join(boundary.name for boundary in plan.passed)
            (self._directory / BOUNDARIES).write_text(names)
