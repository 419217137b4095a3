"""Crashes in memory: the same life, the same checks, many more deaths a minute.

A `Crash` leaves the database as a killed process leaves it; the restart is a new app over the same
store, with the client's steps in another order and repeated (`life`).  Each sequence begins with
the empty database that was serialised once.

The first death of sequence NUMBER is at boundary NUMBER as long as there is such a boundary, so
every boundary of an undisturbed life is tried; after that, and for all later deaths, the seed
chooses.  The process itself lives on, so its workers are not known to be dead: the clock goes on to
the end of their lease.
"""

from __future__ import annotations

import asyncio
import random

from engine.testing import Crash, CrashPlan
from engine.verification.snapshot import Snapshots
from engine.worker import LEASE_MS
from persistence.store import open_store
from tests.verification.kills.life import Life
from tests.verification.kills.notes import NotedClock, Notes
from tests.verification.kills.tally import Sequence

AGAIN = 0.95
"""How likely a process that recovers dies, too."""
SOON = 15
"""The boundary at which it dies then, on the average."""


class Memory:
    """Makes sequences in one database in memory, one at a time."""

    def __init__(self) -> None:
        self._store = open_store("sqlite://")
        self._snapshots = Snapshots(self._store)
        self._empty = self._snapshots.save()
        self._loop = asyncio.Runner()

    def close(self) -> None:
        """The database is gone."""
        self._loop.close()
        self._store.close()

    def boundaries(self) -> list[str]:
        """Every boundary of a life without a death, in order.

        Raises:
            AssertionError: something is wrong without any death.
        """
        self._snapshots.load(self._empty)
        notes, plan = Notes(), CrashPlan()
        self._lives(notes, plan, None)
        if notes.all("bad"):
            raise AssertionError(f"without any death: {notes.texts('bad')}")
        return [boundary.name for boundary in plan.passed]

    def sequence(self, seed: int, number: int, count: int) -> Sequence:
        """Die once at a boundary, and as often as the seed wants afterwards.

        Args:
            seed, number: name the sequence, and are all it depends on.
            count: how many boundaries there are.
        """
        self._snapshots.load(self._empty)
        chance = random.Random(f"{seed}:{number}")
        notes = Notes()
        plan = CrashPlan(number if number <= count else chance.randint(1, count))
        order = None if number <= count else chance
        while not self._lives(notes, plan, order):
            NotedClock(notes).advance(LEASE_MS + 1)
            order = chance
            again = chance.random() < AGAIN
            plan = CrashPlan(round(chance.expovariate(1 / SOON)) + 1 if again else None)
        return Sequence(f"{seed}:{number}", tuple(notes.texts("died")), tuple(notes.texts("bad")))

    def _lives(self, notes: Notes, plan: CrashPlan, chance: random.Random | None) -> bool:
        """Whether the life ended by itself."""
        life = Life(self._store, notes, NotedClock(notes), plan, chance)
        try:
            self._loop.run(life.live())
        except Crash:
            last = plan.passed[-1]
            notes.write("died", str(last.number), last.name)
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            notes.write("bad", f"{type(error).__name__}: {error}")
        return True
