"""Interleavings: two to four workers of the real engine over one store, under a seeded scheduler.

::

    report = schedules(Payment, lambda: open_store("sqlite://"), workers=3, budget_seconds=10)
    assert report.ok, report.failures

Each schedule begins with an empty store and plays to rest (`engine.verification.stage`); half of
them take turns at random, half by priorities (`engine.verification.scheduler`).  While it plays:

    two owners, run lost, fence, sequence       a run belongs to one worker; others change nothing
    ended run moved                             what has ended stays
    call by another, call without record        who calls has the run, and has said so before
    effect performed twice                      under one key, if it is not idempotent
    accepted twice, duplicate accepted          one key, one run; one key, one event
    endless, the engine raised                  faults have stopped, and there is no rest

and at its end the rules of the store's inspector, the journal folded and decided again, effects
against the ledger, and: every event was settled, in the order in which it was sent if one receipt
was there before the other was sent, and nothing is left that nobody will move.

A failure carries its schedule, shortened: `replay_schedule` makes the same picks again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import Any

import msgspec

from engine.definition import Machine
from engine.errors import TurtlesError, UsageError
from engine.events import Context
from engine.ports import Store
from engine.table import Table, compile_table
from engine.verification.bench import silence
from engine.verification.environment import Environment, environment_of
from engine.verification.oracles import Breach
from engine.verification.rest import AtRest
from engine.verification.scheduler import STRATEGIES, Chance, Strategy
from engine.verification.scope import contexts_of
from engine.verification.shortening import shortened
from engine.verification.stage import Stage
from engine.verification.standin import stand_in
from engine.verification.watched import Figures

__all__ = ["Replayed", "Schedule", "ScheduleFailure", "ScheduleReport", "replay_schedule",
           "schedules"]  # fmt: skip
WORKERS_MAX = 4
CONTEXTS = 2
REPEAT_ONE_IN = 100
SHORTENING_TRIES = 200


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """What a schedule needs to be the same again.

    Args:
        picks: every pick in order; they alone decide.
        seed, strategy: where the picks came from.
        workers, runs: how many there were.
    """

    seed: int
    strategy: Strategy
    workers: int
    runs: int
    picks: tuple[int, ...]


class ScheduleFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A property that does not hold, and the schedule that shows it.

    `trace`: who moved and what was done, in order.
    """

    rule: str
    problem: str
    schedule: Schedule
    trace: tuple[tuple[str, str], ...]
    found_after_ms: int


class Replayed(msgspec.Struct, frozen=True):
    """One schedule played again."""

    breaches: tuple[Breach, ...]
    trace: tuple[tuple[str, str], ...]


@dataclass
class ScheduleReport:
    """What was played, and what was found.

    Attributes:
        distinct: interleavings that differ in at least one step.
        switches: steps of actors in all.
        by_strategy: schedules of each.
        zombies, deaths: workers that froze until their lease was over; that died.
        lost: how often a worker was told that it had lost its run.
        duplicates: events sent again under their key.
        unfinished: schedules in which time might go on for ever (a machine that polls without end).
        mismatches: seeds of schedules that did not do the same when played again.
    """

    table: Table
    seed: int
    workers: int
    runs: int
    schedules: int = 0
    distinct: int = 0
    switches: int = 0
    by_strategy: dict[str, int] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)
    repeated: int = 0
    mismatches: list[int] = field(default_factory=list)
    failures: list[ScheduleFailure] = field(default_factory=list)
    took_seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.failures and not self.mismatches


def schedules(
    machine: type[Machine[Any]] | Table,
    store_factory: Callable[[], Store],
    *,
    known: Sequence[type[Machine[Any]] | Table] = (),
    workers: int = 2,
    budget_seconds: float = 5.0,
    seed: int = 0,
    contexts: Iterable[Context] = (),
    runs: int = 1,
    environment: Environment | None = None,
    schedules_max: int | None = None,
    first_failure: bool = False,
) -> ScheduleReport:
    """Play schedules until the time is over.

    Args:
        machine: whose runs are accepted.
        store_factory: makes a store in memory: `lambda: open_store("sqlite://")`.
        known: machines that it may start as children.
        workers: two to four.
        budget_seconds: stop then.
        seed: the same seed plays the same schedules.
        contexts: first contexts; by default those of the environment, else small ones.
        runs: so many runs share the workers.
        environment: what may arrive, said by the author.
        schedules_max: stop after so many.
        first_failure: stop at the first failure.

    Raises:
        UsageError: the store is a file, or a number is out of its range.
        OutOfScope: no small context fulfils the machine's invariants; give some.
    """
    if budget_seconds <= 0:
        raise UsageError(f"budget: expected more than 0 seconds, got {budget_seconds:g}")
    player = _Player(machine, store_factory, known, workers, runs, contexts, environment, seed)
    with silence():
        return player.play_all(budget_seconds, schedules_max, first_failure)


def replay_schedule(
    machine: type[Machine[Any]] | Table,
    store_factory: Callable[[], Store],
    schedule: Schedule,
    *,
    known: Sequence[type[Machine[Any]] | Table] = (),
    contexts: Iterable[Context] = (),
    environment: Environment | None = None,
) -> Replayed:
    """Play one schedule again; the arguments are those with which it was found."""
    player = _Player(machine, store_factory, known, schedule.workers, schedule.runs, contexts,
                     environment, schedule.seed)  # fmt: skip
    with silence():
        return player.play(Chance(schedule.seed, schedule.strategy, schedule.picks))


class _Player:
    def __init__(
        self,
        machine: type[Machine[Any]] | Table,
        store_factory: Callable[[], Store],
        known: Sequence[type[Machine[Any]] | Table],
        workers: int,
        runs: int,
        contexts: Iterable[Context],
        environment: Environment | None,
        seed: int,
    ) -> None:
        if not 1 <= workers <= WORKERS_MAX:
            raise UsageError(f"workers: expected 1 to {WORKERS_MAX}, got {workers}")
        if runs < 1:
            raise UsageError(f"runs: expected at least 1, got {runs}")
        table = machine if isinstance(machine, Table) else compile_table(machine)
        self.environment = environment or environment_of(table.machine)
        children = self.environment.stand_ins if self.environment else ()
        stands = {one.__name__: compile_table(one) for one in children}
        others: list[type[Machine[Any]] | Table] = [stand_in(one) for one in children]
        others += [one for one in known if _name(one) not in (table.name, *stands)]
        with silence():
            self.stage = Stage(table, [table, *others], store_factory(), workers=workers,
                               runs=runs, contexts=self._first(table, contexts),
                               environment=self.environment, children=stands)  # fmt: skip
        self.report = ScheduleReport(table, seed, workers, runs,
                                     figures=self.stage.watch.figures)  # fmt: skip
        self._rules: set[str] = set()
        self._at_rest = AtRest(self.stage, self.environment)

    def _first(self, table: Table, given: Iterable[Context]) -> list[Context]:
        found = list(given) or (list(self.environment.contexts()) if self.environment else [])
        return found or list(contexts_of(table, state=table.initial, limit=CONTEXTS))

    def play_all(
        self, budget_seconds: float, schedules_max: int | None, first_failure: bool
    ) -> ScheduleReport:
        """Schedules of every strategy in turn, until the time or the number is over."""
        report, began = self.report, perf_counter()
        seen: set[int] = set()
        while perf_counter() - began < budget_seconds and report.schedules != schedules_max:
            strategy = STRATEGIES[report.schedules % len(STRATEGIES)]
            seed = report.seed * 1_000_003 + report.schedules
            chance = Chance(seed, strategy)
            played = self.play(chance)
            report.schedules += 1
            report.switches += self.stage.scheduler.switches
            report.by_strategy[strategy] = report.by_strategy.get(strategy, 0) + 1
            seen.add(hash(played.trace))
            after_ms = round((perf_counter() - began) * 1000)
            schedule = self._schedule(seed, strategy, chance)
            self._note(played, schedule, after_ms)
            if report.schedules % REPEAT_ONE_IN == 0 or played.breaches:
                self._repeat(schedule, played)
            if report.failures and first_failure:
                break
        report.distinct = len(seen)
        report.failures = [self._shortened(failure) for failure in report.failures]
        report.took_seconds = perf_counter() - began
        return report

    def _schedule(self, seed: int, strategy: Strategy, chance: Chance) -> Schedule:
        return Schedule(seed=seed, strategy=strategy, workers=self.report.workers,
                        runs=self.report.runs, picks=tuple(chance.picks))  # fmt: skip

    def _note(self, played: Replayed, schedule: Schedule, after_ms: int) -> None:
        for breach in played.breaches:
            if breach.rule not in self._rules:
                self._rules.add(breach.rule)
                self.report.failures.append(
                    ScheduleFailure(rule=breach.rule, problem=breach.problem, schedule=schedule,
                                    trace=played.trace, found_after_ms=after_ms)
                )  # fmt: skip

    def _shortened(self, failure: ScheduleFailure) -> ScheduleFailure:
        """The same failure with fewer steps and turns."""
        seed, strategy = failure.schedule.seed, failure.schedule.strategy

        def play(picks: Sequence[int]) -> tuple[Replayed, Breach | None]:
            played = self.play(Chance(seed, strategy, picks))
            same = (breach for breach in played.breaches if breach.rule == failure.rule)
            return played, next(same, None)

        def weigh(picks: Sequence[int]) -> tuple[int, int] | None:
            played, breach = play(picks)
            turns = sum(one[0] != other[0] for one, other in pairwise(played.trace))
            return (len(played.trace), turns) if breach is not None else None

        picks = shortened(failure.schedule.picks, weigh, tries=SHORTENING_TRIES)
        played, breach = play(picks)
        if breach is None:
            return failure  # it does not repeat, which `mismatches` says
        return msgspec.structs.replace(
            failure, problem=breach.problem, trace=played.trace,
            schedule=msgspec.structs.replace(failure.schedule, picks=picks),
        )  # fmt: skip

    def _repeat(self, schedule: Schedule, played: Replayed) -> None:
        self.report.repeated += 1
        again = self.play(Chance(schedule.seed, schedule.strategy, schedule.picks))
        if again != played:
            self.report.mismatches.append(schedule.seed)

    def play(self, chance: Chance) -> Replayed:
        """One schedule, and what is wrong with it."""
        breaches = self.stage.play(chance)
        if not breaches:
            try:
                breaches = list(self._at_rest.breaches())
            except TurtlesError as error:
                breaches = [Breach("unreadable", str(error))]
        return Replayed(tuple(breaches), tuple(self.stage.scheduler.trace))


def _name(machine: type[Machine[Any]] | Table) -> str:
    return machine.name if isinstance(machine, Table) else machine.__name__
