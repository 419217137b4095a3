"""`verify`: every phase over one machine, within one budget of time.

::

    found = verify(Payment, lambda: open_store("sqlite://"), budget_seconds=30, seed=7)
    assert found.exit_code == 0, list(lines(told(found)))     # words: engine.verification.report

One phase after the other::

    static       `lint`: the shape of the machine, its guards, effects, purity
    scope        `explore`: everything in a small scope, for at most six tenths of the time
    random       `sequences`: long lives and large values, for half of what is left
    schedules    `schedules`: several workers over one store, for the rest
    mutants      `mutate`, only if asked for; it takes its own time, after the budget
    doublecheck  only if asked for: the same exploration twice, which must be alike

When the scope was exhausted early, random and schedules do not use up the rest of the budget: a
quarter of the time that the scope took, and a second at least.  The budget is kept when nothing is
found; making a failure simpler takes at most two seconds more for each.

What the machine's own code or its environment raises ends a phase and is a `Trouble`, never the end
of the tool.  Simulated power loss tests the store, whatever the machine: it is no phase.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import msgspec

from engine.definition import Machine
from engine.errors import TurtlesError, UsageError
from engine.ports import Store
from engine.table import Table, compile_table
from engine.verification import lint as static
from engine.verification.coverage import Coverage, Transition
from engine.verification.environment import Environment, environment_of
from engine.verification.explore import explore, repeat
from engine.verification.mutants import MutationReport, mutate
from engine.verification.reduce import reduce_way
from engine.verification.result import Failure, Report, Scope
from engine.verification.scheduler import BrokenStage
from engine.verification.schedules import ScheduleFailure, ScheduleReport, schedules
from engine.verification.sequences import SequencesReport, sequences
from engine.verification.trouble import Trouble, trouble_of

__all__ = ["EXTRA_PHASES", "PHASES", "Doubled", "Found", "Tick", "Trouble", "Verification",
           "checked_budget", "new_seed", "verify", "worst"]  # fmt: skip
PHASES = ("static", "scope", "random", "schedules")
EXTRA_PHASES = ("mutants", "doublecheck")
SCOPE_SHARE = 0.6
AFTER_EXHAUSTION = 0.25
LEAST_SECONDS = 1.0
NOTHING_LEFT_SECONDS = 0.02
SIMPLER_SECONDS = 2.0
KILLED_PERCENT = 95
SEVERITY = (5, 3, 4, 70, 1, 6, 2, 0)
"""Exit codes, the one that counts first."""


class Tick(msgspec.Struct, frozen=True):
    """How far a verification is: told now and then, and with `done` at the end of each phase."""

    machine: str
    phase: str
    text: str
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A failure of one phase.

    `states`: where the runs were after each action of its way, as far as it could be gone again.
    """

    phase: str
    failure: Failure | ScheduleFailure
    states: tuple[str, ...] = ()


class Doubled(msgspec.Struct, frozen=True, kw_only=True):
    """Two explorations with one seed: states, executions and digest of each.

    `second` is None if there was no time to finish both.
    """

    scope: Scope
    first: tuple[int, int, int]
    second: tuple[int, int, int] | None
    took_seconds: float

    @property
    def alike(self) -> bool:
        """Whether nothing differs."""
        return self.second is None or self.first == self.second


@dataclass
class Verification:
    """What every phase found; a phase that was not asked for, or could not be, is None."""

    table: Table
    seed: int
    budget_seconds: float
    environment: Environment | None
    phases: tuple[str, ...]
    known: tuple[type[Machine[Any]], ...] = ()
    require_exhaustive: bool = False
    until: Transition | None = None
    static: static.Report | None = None
    scope: Report | None = None
    random: SequencesReport | None = None
    schedules: ScheduleReport | None = None
    mutants: MutationReport | None = None
    doubled: Doubled | None = None
    found: list[Found] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    took_seconds: float = 0.0

    @property
    def coverage(self) -> Coverage | None:
        """What the exploration touched, and what the random sequences added."""
        parts = [one.coverage for one in (self.scope, self.random) if one is not None]
        if not parts:
            return None
        whole = Coverage(self.table, parts[0].marks, parts[0].reasons)
        for part in parts:
            whole.transitions |= part.transitions
            whole.cells |= part.cells
            whole.visited |= part.visited
            whole.faults |= part.faults
            whole.seen |= part.seen
        return whole

    @property
    def mismatches(self) -> int:
        """How often the same way ended elsewhere."""
        reports = (self.scope, self.random, self.schedules)
        return sum(len(one.mismatches) for one in reports if one is not None)

    @property
    def exhausted(self) -> bool:
        """Whether nothing was left to try in the scope."""
        return self.scope is not None and self.scope.exhausted

    @property
    def exit_code(self) -> int:
        """See docs/verification.md; of several classes the first of `SEVERITY`."""
        return worst(self._codes())

    def _codes(self) -> Iterator[int]:
        if self.mismatches or (self.doubled is not None and not self.doubled.alike):
            yield 5
        for one in self.found:
            liveness = isinstance(one.failure, Failure) and one.failure.kind == "liveness"
            yield 5 if one.failure.rule == "replay" else 4 if liveness else 3
        for trouble in self.troubles:
            yield 70 if trouble.ours else 1
        if self.static is not None and not self.static.ok:
            yield 1
        if self.until is not None:
            yield 0 if self.scope is not None and self.scope.reached else 2
            return
        if self.require_exhaustive and "scope" in self.phases and not self.exhausted:
            yield 6
        coverage = self.coverage
        tried = coverage is not None or self.doubled is not None or not EXPLORING & set(self.phases)
        if not tried or (coverage is not None and not coverage.complete):
            yield 2
        if self.mutants is not None and self.mutants.judged:
            enough = 100 * self.mutants.killed >= KILLED_PERCENT * self.mutants.judged
            yield 0 if enough else 2


EXPLORING = {"scope", "random", "schedules"}
"""Phases of which at least one has to be made if one was asked for."""


def worst(codes: Iterable[int]) -> int:
    """The exit code that counts among several."""
    return min(codes, key=SEVERITY.index, default=0)


def new_seed() -> int:
    """A seed that nobody has chosen."""
    return random.SystemRandom().randrange(2**32)


def checked_budget(budget_seconds: float) -> float:
    """The budget, if it is one.

    Raises:
        UsageError: it is not a positive, finite number of seconds.
    """
    if not (math.isfinite(budget_seconds) and budget_seconds > 0):
        raise UsageError(f"budget: expected more than 0 seconds, got {budget_seconds:g}")
    return budget_seconds


def verify(
    machine: type[Machine[Any]] | Table,
    store_factory: Callable[[], Store],
    *,
    known: Iterable[type[Machine[Any]]] = (),
    environment: Environment | None = None,
    scope: Scope | None = None,
    budget_seconds: float = 30.0,
    seed: int | None = None,
    phases: Sequence[str] = PHASES,
    until: Transition | None = None,
    require_exhaustive: bool = False,
    mutant_seconds: float = 1.0,
    progress: Callable[[Tick], None] | None = None,
) -> Verification:
    """Verify one machine.

    Args:
        machine: the machine under test, or what it compiles to.
        store_factory: makes stores in memory: `lambda: open_store("sqlite://")`.
        known: machines that it may start as children.
        environment: what its outside may do; by default the one defined for it, if imported.
        scope: the bounds of the exploration; by default those of the environment.
        budget_seconds: for all phases but `mutants`.
        seed: everything that is chosen by chance follows from it; by default a new one.
        phases: which, of `PHASES` and `EXTRA_PHASES`; always in this module's order.
        until: only look for a way to this transition.
        require_exhaustive: whether an exploration that was not exhausted is exit code 6.
        mutant_seconds: for the exploration of each mutant.
        progress: told of a `Tick` now and then.

    Raises:
        UsageError: the budget is not positive, or there is no such phase.
    """
    table = machine if isinstance(machine, Table) else compile_table(machine)
    unknown = [one for one in phases if one not in (*PHASES, *EXTRA_PHASES)]
    if unknown or not phases:
        raise UsageError(f"phase {', '.join(map(repr, unknown)) or 'none'}: "
                         f"expected some of {', '.join((*PHASES, *EXTRA_PHASES))}")  # fmt: skip
    verification = Verification(
        table=table,
        seed=new_seed() if seed is None else seed,
        budget_seconds=checked_budget(budget_seconds),
        environment=environment or environment_of(table.machine),
        phases=tuple(one for one in (*PHASES, *EXTRA_PHASES) if one in phases),
        known=tuple(known),
        require_exhaustive=require_exhaustive,
        until=until,
    )
    return _Verifier(verification, store_factory, scope, mutant_seconds, progress).run()


class _Verifier:
    def __init__(
        self,
        verification: Verification,
        store_factory: Callable[[], Store],
        scope: Scope | None,
        mutant_seconds: float,
        progress: Callable[[Tick], None] | None,
    ) -> None:
        self.found = verification
        self.store_factory = store_factory
        self.scope = scope
        self.mutant_seconds = mutant_seconds
        self.progress = progress or (lambda tick: None)
        self.began = perf_counter()
        self.last = self.began + verification.budget_seconds
        self.overhead_seconds = 0.0
        self.options: dict[str, Any] = {
            "known": verification.known, "environment": verification.environment,
        }  # fmt: skip

    def run(self) -> Verification:
        """Every phase in turn."""
        for phase in self.found.phases:
            if self.found.troubles:
                self.found.skipped.append(phase)  # it would meet the same again
                continue
            self._tell(phase, "")
            try:
                getattr(self, f"_{phase}")()
            except (Exception, BrokenStage) as error:  # noqa: BLE001 - code of the author
                self.found.troubles.append(trouble_of(phase, error))
            self._tell(phase, "", done=True)
        self.found.took_seconds = perf_counter() - self.began
        return self.found

    def _tell(self, phase: str, text: str, *, done: bool = False) -> None:
        self.progress(Tick(self.found.table.name, phase, text, done))

    def _store(self) -> Store:
        return self.store_factory()

    # -- the phases -----------------------------------------------------------------------------

    def _static(self) -> None:
        self.found.static = static.lint([self.found.table], known=self.found.known)

    def _scope(self) -> None:
        found, asked = self.found, perf_counter()
        alone = found.until is not None or not {"random", "schedules"} & set(found.phases)
        left = self.last - asked
        budget_seconds = left if alone else min(left, SCOPE_SHARE * found.budget_seconds)
        if self._none_left("scope", budget_seconds):
            return
        report = explore(
            found.table, self._store(), scope=self.scope, seed=found.seed, until=found.until,
            budget_seconds=budget_seconds, progress=self._of_scope, **self.options,
        )  # fmt: skip
        self.overhead_seconds = perf_counter() - asked - report.took_seconds
        found.scope = report
        self._keep("scope", report.failures)

    def _of_scope(self, report: Report) -> None:
        self._tell("scope", f"{report.states:,} states, {report.left:,} left, "
                            f"{len(report.failures)} failures")  # fmt: skip

    def _random(self) -> None:
        found = self.found
        budget_seconds = self._share(2 if "schedules" in found.phases else 1)
        if self._none_left("random", budget_seconds):
            return
        report = sequences(
            found.table, self._store(), seed=found.seed, budget_seconds=budget_seconds,
            progress=lambda r: self._tell("random", f"{r.sequences:,} sequences, "
                                                    f"{len(r.failures)} failures"),
            **self.options,
        )  # fmt: skip
        found.random = report
        self._keep("random", report.failures)

    def _schedules(self) -> None:
        found = self.found
        budget_seconds = self._share(1)
        if self._none_left("schedules", budget_seconds):
            return
        report = schedules(
            found.table, self._store, seed=found.seed, budget_seconds=budget_seconds, **self.options
        )
        found.schedules = report
        known = {one.failure.rule for one in found.found}
        found.found += [Found(phase="schedules", failure=one)
                        for one in report.failures if one.rule not in known]  # fmt: skip

    def _share(self, among: int) -> float:
        """Seconds for one of the phases after the exploration."""
        found = self.found
        left = (self.last - perf_counter()) / among - self.overhead_seconds
        if found.scope is not None and found.exhausted:
            enough = max(LEAST_SECONDS, AFTER_EXHAUSTION * found.scope.took_seconds)
            left = min(left, enough)
        return left

    def _none_left(self, phase: str, budget_seconds: float) -> bool:
        if budget_seconds > NOTHING_LEFT_SECONDS:
            return False
        self.found.skipped.append(phase)
        return True

    def _mutants(self) -> None:
        found = self.found
        count = 0

        def each(fate: Any) -> None:
            nonlocal count
            count += 1
            self._tell("mutants", f"{count:,} mutants, the last one {fate.by}")

        found.mutants = mutate(found.table, self.store_factory, each=each,
                               budget_seconds=self.mutant_seconds, **self.options)  # fmt: skip

    def _doublecheck(self) -> None:
        """Twice the same; in the widest scope that can be exhausted twice in the time."""
        began = perf_counter()
        for scope in self._narrower():
            left = self.last - perf_counter()
            if left <= NOTHING_LEFT_SECONDS:
                break
            first = self._explored(scope, left / 3)
            if not first.exhausted:
                continue
            second = self._explored(scope, self.last - perf_counter() + LEAST_SECONDS)
            self.found.doubled = Doubled(
                scope=scope, first=_counts(first),
                second=_counts(second) if second.exhausted else None,
                took_seconds=perf_counter() - began,
            )  # fmt: skip
            return
        self.found.skipped.append("doublecheck")

    def _explored(self, scope: Scope, budget_seconds: float) -> Report:
        return explore(self.found.table, self._store(), scope=scope, seed=self.found.seed,
                       budget_seconds=budget_seconds, **self.options)  # fmt: skip

    def _narrower(self) -> Iterator[Scope]:
        environment = self.found.environment
        scope = self.scope or (environment.scope if environment else Scope())
        for changes in (
            {},
            {"messages": min(scope.messages, 1), "pauses": False},
            {"cancels": False},
            {"messages": 0, "contexts": 1},
            {"faults": False},
        ):
            narrower = msgspec.structs.replace(scope, **changes)
            if narrower != scope or not changes:
                yield narrower
            scope = narrower

    # -- failures -------------------------------------------------------------------------------

    def _keep(self, phase: str, failures: Sequence[Failure]) -> None:
        """Failures that no phase has found before, made simpler, with the states on their way."""
        known = {one.failure.rule for one in self.found.found}
        for failure in failures:
            if failure.rule not in known:
                simpler = self._simpler(failure)
                states = self._states(simpler)
                self.found.found.append(Found(phase=phase, failure=simpler, states=states))

    def _simpler(self, failure: Failure) -> Failure:
        try:
            found = reduce_way(
                self.found.table, self.store_factory, failure.steps, failure.rule,
                liveness=failure.kind == "liveness", budget_seconds=SIMPLER_SECONDS, **self.options,
            )  # fmt: skip
        except (TurtlesError, LookupError):
            return failure  # it does not come again so, which replaying its token will say
        return msgspec.structs.replace(failure, steps=found.steps, problem=found.problem)

    def _states(self, failure: Failure) -> tuple[str, ...]:
        try:
            return repeat(self.found.table, self._store(), failure.steps, **self.options).states
        except TurtlesError:
            return ()


def _counts(report: Report) -> tuple[int, int, int]:
    return (report.states, report.executions, report.digest)
