"""Looking for a planted bug, in the phase that is there for its kind, and what came of it.

::

    explorer     every order of events, faults and moments in a small scope; the way is made simpler
    static       lint, or python refuses the class
    schedules    interleavings of two workers and clients
    history      the oracles over the whole database, after every way of a few steps
    power loss   the power is lost under the store
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any
from unittest.mock import patch

from engine.definition import Machine
from engine.errors import DefinitionError
from engine.verification import schedules as interleaving
from engine.verification.bench import silence
from engine.verification.environment import environment_of
from engine.verification.explore import Failure, Rig, explore
from engine.verification.history import check_history
from engine.verification.lint import lint
from engine.verification.reduce import Reduced, reduce_way
from engine.verification.result import Step
from engine.verification.schedules import ScheduleFailure
from engine.verification.tokens import pytest_file
from persistence.store import open_store
from tests.verification.bugs import careless, seams, subjects
from tests.verification.bugs.corpus import BUGS, Bug
from tests.verification.bugs.schedule_bugs import SCHEDULE_BUGS, ScheduleBug
from tests.verification.power_loss.campaign import lose

BUDGET_SECONDS = 10.0
NORMAL_LOSSES = 10
TRIES = 3_000
"""So many schedules are played to shorten one, so that nothing shorter is left."""


@dataclass(frozen=True)
class Found:
    """The first property that did not hold, how soon, and the way there.

    Args:
        took_ms: until it was found.
        way: as it was found; () where there is none.
        failure: with the way made simpler.
        reduced: how it became simpler.
        test: the generated pytest file.
    """

    rule: str
    took_ms: int
    way: tuple[Any, ...] = ()
    failure: Failure | ScheduleFailure | None = None
    reduced: Reduced | None = None
    test: str = ""

    @property
    def steps(self) -> int:
        """Steps of the simpler way."""
        match self.failure:
            case Failure():
                return len(self.failure.steps)
            case ScheduleFailure():
                return len(self.failure.trace)
        return len(self.way)


NOTHING = "nothing"


@dataclass(frozen=True)
class Case:
    """A planted bug of any kind."""

    name: str
    what: str
    phase: str
    rules: tuple[str, ...]
    hunt: Callable[[], Found]
    bug: Bug | ScheduleBug | None = None


def cases() -> list[Case]:
    """The whole corpus."""
    return [
        *(Case(bug.name, bug.said, "explorer", bug.rules, partial(explored, bug), bug)
          for bug in BUGS),
        *(Case(name, _said(make), "static", rules, partial(checked, make))
          for name, make, rules in CARELESS),
        *(Case(bug.name, _said(bug.patches), "schedules", bug.rules,
               partial(interleaved, bug), bug)
          for bug in SCHEDULE_BUGS),
        Case(ORPHAN.name, ORPHAN.said, "history", ORPHAN.rules, partial(looked_back, ORPHAN)),
        Case("commits not synced", "SQLite acknowledges a commit before it is on the disk "
             "(`synchronous=NORMAL`).", "power loss", ("commits lost",), unplugged),
    ]  # fmt: skip


def _said(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip()


# -- the phases -----------------------------------------------------------------------------------


def explored(bug: Bug, *, machine: type[Machine[Any]] | None = None) -> Found:
    """Explore the broken machine until the first failure, and make its way simpler."""
    machine = machine or bug.broken
    with bug.planted():
        report = explore(
            machine,
            open_store("sqlite://"),
            known=bug.known,
            budget_seconds=BUDGET_SECONDS,
            first_failure=True,
        )
        took_ms = round(report.took_seconds * 1000)
        if not report.failures:
            gap = report.exhausted and not report.coverage.complete
            return Found("gap" if gap else NOTHING, took_ms)
        first = report.failures[0]
        reduced = reduce_way(
            machine,
            lambda: open_store("sqlite://"),
            first.steps,
            first.rule,
            known=bug.known,
            liveness=first.kind == "liveness",
            budget_seconds=BUDGET_SECONDS,
        )
    failure = Failure(kind=first.kind, rule=first.rule, problem=reduced.problem,
                      steps=reduced.steps, found_after_ms=first.found_after_ms)  # fmt: skip
    test = pytest_file(report.table, failure, bug.known, environment_of(machine))
    return Found(first.rule, took_ms, first.steps, failure, reduced, test)


def checked(make: Callable[[], type[Machine[Any]]]) -> Found:
    """Read the class, and lint it."""
    began = perf_counter()
    try:
        found = [one.code for one in lint([make()]).findings]
    except DefinitionError as error:
        found = [f"refused: {error}"]
    return Found(found[0] if found else NOTHING, round((perf_counter() - began) * 1000))


def interleaved(bug: ScheduleBug) -> Found:
    """Play schedules until the first failure."""
    with bug.planted(), patch.object(interleaving, "SHORTENING_TRIES", TRIES):
        report = interleaving.schedules(
            bug.machine,
            lambda: open_store("sqlite://"),
            known=bug.known,
            workers=bug.workers,
            budget_seconds=BUDGET_SECONDS,
            first_failure=True,
        )
    if not report.failures:
        return Found(NOTHING, round(report.took_seconds * 1000))
    first = report.failures[0]
    test = pytest_file(report.table, first, bug.known, environment_of(bug.machine))
    return Found(first.rule, first.found_after_ms, (), first, None, test)


def looked_back(bug: Bug) -> Found:
    """Go every way of a few steps, the shortest first, and look at the whole database."""
    began = perf_counter()
    with bug.planted(), silence():
        rig = Rig(bug.broken, open_store("sqlite://"), known=bug.known)
        context = rig.bench.codec.encode(rig.first_contexts(())[0]).decode()
        ways: deque[tuple[Step, ...]] = deque([(("start", rig.table.name, context),)])
        while ways and perf_counter() - began < BUDGET_SECONDS:
            way = ways.popleft()
            for rule in rules_after(rig, way):
                if rule in bug.rules:
                    return Found(rule, round((perf_counter() - began) * 1000), way)
            ways += [(*way, step) for step in rig.options.next()]
    return Found(NOTHING, round((perf_counter() - began) * 1000))


def rules_after(rig: Rig, way: Iterable[Step]) -> list[str]:
    """What is wrong with the database after a way.

    Raises:
        LookupError: it cannot be gone.
    """
    rig.walk.go(list(way))
    if rig.bench.hand is not None:
        return []
    return [one.rule for one in check_history(rig.bench.app, environments=()).findings]


def unplugged() -> Found:
    """Lose the power under a store that does not sync its commits."""
    began = perf_counter()
    with silence():
        tallies = lose(losses=NORMAL_LOSSES, seed="corpus", synchronous="NORMAL",
                       checkpoint_pages=1_000)  # fmt: skip
        lost = any(tally.lost for tally in tallies)
    return Found("commits lost" if lost else NOTHING, round((perf_counter() - began) * 1000))


ORPHAN = Bug("orphan child", subjects.Guardian, subjects.Guardian, ("orphan child",),
             (subjects.Waiter,), seams.orphan_left)  # fmt: skip
CARELESS: tuple[tuple[str, Callable[[], type[Machine[Any]]], tuple[str, ...]], ...] = (
    ("guard gap", careless.guard_gap, ("V006",)),
    ("guard overlap", careless.guard_overlap, ("V005",)),
    ("unreachable state", careless.unreachable_state, ("cannot be reached",)),
    ("no way to an end", careless.no_way_to_an_end, ("no path to a final state",)),
    ("waiting without timeout", careless.waiting_without_timeout, ("V009",)),
    ("polling without timeout", careless.polling_without_timeout, ("V009",)),
    ("unbounded recursion", careless.unbounded_recursion, ("V012",)),
    ("hot cycle", careless.hot_cycle, ("V008",)),
    ("edge behind another", careless.dead_edge, ("V007",)),
    ("clock in a guard", careless.clock_in_a_guard, ("V013",)),
    ("timer without end", careless.timer_without_end, ("on_timeout='tick' may stay",)),
    ("effect nobody can ask about", careless.effect_nobody_can_ask_about, ("neither idempotent",)),
    ("contract on no edge", careless.idle_contract, ("no event 'heavier'",)),
)
