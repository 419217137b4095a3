"""Random sequences over the real engine and the real store: long ways, and large values.

::

    report = sequences(Payment, open_store("sqlite://"), budget_seconds=10, seed=7)
    assert report.ok, report.failures

Where the explorer tries everything in a small scope, a sequence goes far out of it: many messages,
events in states that do not take them, payloads out of the context and at the edges of their types
(`drawing`).  Every sequence is one life::

    begin       a random first context
    live        some steps by chance; rare kinds, and what the coverage lacks, are preferred
                (a death in a move comes after a random commit; so do lost and late answers)
    finish      no more faults, nobody sends anything: every run must come to rest
                (`stuck` is believed only when no way at all leads to rest: `explore.repeat`)

All that must hold is checked at every quiet moment.  A failure's steps are those of the explorer,
so `repeat`, tokens and generated tests work alike; some ways are gone again to prove it.

The chance of sequence n is seeded by (seed, n): as many sequences with one seed are the same.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

import msgspec

from engine.definition import Machine
from engine.errors import TurtlesError, UsageError
from engine.events import Context
from engine.ports import Store
from engine.table import Table
from engine.verification.bench import silence
from engine.verification.chances import Chances
from engine.verification.coverage import Coverage
from engine.verification.environment import Environment, environment_of
from engine.verification.explore import Rig, repeat
from engine.verification.faulted import Faulted
from engine.verification.oracles import Breach
from engine.verification.result import Failure, Scope, Step
from engine.verification.scope import contexts_of
from engine.verification.walk import take

MESSAGES = 12
"""So many events from outside in one life, if the caller gives no scope."""
FINISH_STEPS_MAX = 400
LATE_STEPS = 3
"""So much happens at most in a life in which every run has ended."""
CONTEXTS_MAX = 12
REPEAT_ONE_IN = 100
TELL_EVERY_SECONDS = 0.2


@dataclass
class SequencesReport:
    """What was gone through, and what was found."""

    table: Table
    seed: int
    scope: Scope
    coverage: Coverage
    sequences: int = 0
    steps: int = 0
    commits: int = 0
    crashes: int = 0
    """Deaths of a worker, those in a call included."""
    lost: int = 0
    """Answers that were lost, and calls of which nobody knows whether they were done."""
    duplicates: int = 0
    finished: int = 0
    """Sequences at whose end everything came to rest."""
    repeated: int = 0
    mismatches: list[tuple[Step, ...]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    took_seconds: float = 0.0
    digest: int = 0
    """Of every step taken, in order; two alike runs have one."""

    @property
    def ok(self) -> bool:
        """Whether nothing was found, whatever was covered."""
        return not self.failures and not self.mismatches

    @property
    def exit_code(self) -> int:
        """0 nothing found, 3 safety, 4 liveness, 5 contradiction."""
        if self.mismatches:
            return 5
        kinds = {failure.kind for failure in self.failures}
        return 0 if not kinds else 3 if "safety" in kinds else 4


def sequences(
    machine: type[Machine[Any]] | Table,
    store: Store,
    *,
    known: Iterable[type[Machine[Any]]] = (),
    environment: Environment | None = None,
    scope: Scope | None = None,
    contexts: Sequence[Context] = (),
    budget_seconds: float = 10.0,
    seed: int = 0,
    steps_max: int = 30,
    sequences_max: int | None = None,
    first_failure: bool = False,
    progress: Callable[[SequencesReport], None] | None = None,
) -> SequencesReport:
    """Let a machine live many random lives.

    Args:
        machine: the machine under test, or what it compiles to.
        store: `persistence.open_store("sqlite://")`; what is in it is lost.
        known: machines that it may start as children.
        environment: what the outside may do; by default the one that was defined for the machine.
        scope: what may happen at all; by default much more than the explorer's.
        contexts: first contexts to begin with, instead of the environment's or small ones.
        budget_seconds: stop then.
        steps_max: steps in one life, before it is finished.
        sequences_max: stop after so many; with it, a seed says everything about the result.
        first_failure: stop at the first failure.
        progress: told of the report now and then.

    Raises:
        UsageError: the store is a file, a bound is not positive, or no first context is accepted.
        OutOfScope: no small context fulfils the machine's invariants; give some.
    """
    if not budget_seconds > 0 or steps_max < 1:
        raise UsageError(
            "budget and steps: expected more than 0 seconds and at least 1 step, "
            f"got {budget_seconds:g} and {steps_max}"
        )
    kind = machine.machine if isinstance(machine, Table) else machine
    environment = environment or environment_of(kind)
    scope = scope or wide_scope(environment)
    rig = Rig(machine, store, known=known, scope=scope, environment=environment, seed=seed)
    rig.bench.captures = False
    others = tuple(known)

    def leads_on(steps: Sequence[Step]) -> bool:
        found = repeat(machine, store, steps, known=others, environment=environment, liveness=True)
        return not found.breaches

    try:
        with silence():
            lives = _Lives(rig, contexts, seed, steps_max, leads_on)
            last = perf_counter() + budget_seconds
            lives.go_on(last, sequences_max, first_failure, progress)
            return lives.report
    finally:
        rig.bench.close()


def wide_scope(environment: Environment | None) -> Scope:
    """What may happen in a random life: all that is not ruled out, many messages."""
    given = environment.scope if environment else Scope()
    return msgspec.structs.replace(given, messages=MESSAGES, pauses=True)


class _Lives:
    def __init__(
        self,
        rig: Rig,
        contexts: Sequence[Context],
        seed: int,
        steps_max: int,
        leads_on: Callable[[Sequence[Step]], bool],
    ) -> None:
        self.rig = rig
        self.bench = rig.bench
        self.steps_max = steps_max
        self.leads_on = leads_on
        self.chances = Chances(rig)
        self.faulted = Faulted(rig)
        self.report = SequencesReport(rig.table, seed, rig.scope, rig.coverage)
        self.contexts = self._contexts(contexts)
        self.steps: list[Step] = []
        self.rules: set[str] = set()
        self.leading: set[tuple[str, ...]] = set()
        self.began = perf_counter()

    def _contexts(self, given: Sequence[Context]) -> list[str]:
        """Encoded first contexts; small ones if nobody says otherwise."""
        first = self.rig.first_contexts(given)
        if not given and not (self.rig.environment and list(self.rig.environment.contexts())):
            table = self.rig.table
            first += contexts_of(table, state=table.initial, limit=CONTEXTS_MAX)
        texts = [self.bench.codec.encode(one).decode() for one in first]
        return list(dict.fromkeys(texts))

    def go_on(
        self,
        last: float,
        sequences_max: int | None,
        first_failure: bool,
        progress: Callable[[SequencesReport], None] | None,
    ) -> None:
        """One life after another, until the time or the number is over."""
        report, told = self.report, self.began
        while (now := perf_counter()) < last and report.sequences != sequences_max:
            if first_failure and report.failures:
                break
            if progress is not None and now - told > TELL_EVERY_SECONDS:
                told = now
                progress(self._counted())
            self._live(random.Random(f"{report.seed}:{report.sequences}"))  # noqa: S311 - no secret
            report.sequences += 1
        self._counted()

    def _counted(self) -> SequencesReport:
        report = self.report
        report.commits = self.bench.commits
        report.took_seconds = perf_counter() - self.began
        return report

    # -- one life -------------------------------------------------------------------------------

    def _live(self, chance: random.Random) -> None:
        self.chances.begin(chance)
        self.steps = []
        if not self._begin(chance):
            return
        late = 0
        most = self.steps_max if self.chances.goal else chance.randint(1, self.steps_max)
        for _ in range(most):
            step = self.chances.next() if late <= LATE_STEPS else None
            if step is None:
                break
            if not self._take(step):
                return
            late += not any(row.live for row in self.bench.rows().runs)
        if self._finish() and not chance.randrange(REPEAT_ONE_IN):
            self._again()

    def _begin(self, chance: random.Random) -> bool:
        bench = self.bench
        if not self.contexts:
            raise UsageError(
                f"machine {self.rig.table.name}: no first context was accepted. Give one that "
                "fulfils the invariants of its initial state."
            )
        text = chance.choice(self.contexts)
        bench.go(bench.empty)
        if not bench.start(self.rig.table.name, text):
            self.contexts.remove(text)
            self.report.notes.append(f"a first context was refused: {text[:200]}")
            return False
        self.steps.append(("start", self.rig.table.name, text))
        return self._settled_down(dead=False)

    def _take(self, step: Step) -> bool:
        """Whether the life goes on: nothing is wrong."""
        bench, report = self.bench, self.report
        report.steps += 1
        report.digest = zlib.crc32(repr(step).encode(), report.digest)
        hand, crash_at = bench.hand, self.chances.crash_at(step)
        self.steps.append(step)
        self.faulted.before(step, hand)
        if step[0] == "move":
            end = bench.move(step[1], crash_at=crash_at).end
        elif step[0] == "call":
            end = bench.answer(step[1:], crash_at=crash_at).end
            report.lost += step[1] in ("lost", "unsent", "unknown")
        else:
            if step[0] == "probe":  # an ended run refuses it in the store, unseen by the runner
                self.rig.coverage.refused(self.rig.table.name, bench.rows().runs[0].state, step[1])
            take(bench, step)
            end = "ended"
            report.duplicates += step[0] == "again"
        dead = end in ("dead", "lost")
        report.crashes += dead
        if end == "dead" and crash_at is not None:
            self.steps.append(("crash", crash_at))
        self.faulted.after(step, crash_at if dead else None)
        return self._settled_down(dead=dead)

    def _settled_down(self, *, dead: bool) -> bool:
        """Go to the quiet moment after a step, and look whether all holds there."""
        bench = self.bench
        found = list(bench.breaches)
        if bench.hand is None:
            bench.go(bench.spot(dead=dead))
            found += bench.breaches
            if not found:
                found += self.rig.checking.breaches()
        bench.breaches = []
        for breach in found:
            self._fail("safety", breach, tuple(self.steps))
        return not found

    # -- its end --------------------------------------------------------------------------------

    def _finish(self) -> bool:
        """Without faults and messages everything comes to rest; false: it does not."""
        lived = tuple(self.steps)
        for _ in range(FINISH_STEPS_MAX):
            if self.bench.hand is None and self.rig.checking.is_settled():
                self.report.finished += 1
                return True
            step = self.chances.finishing()
            if step is None:
                break
            if not self._take(step):
                return False
        return self._leads_on(lived)

    def _leads_on(self, lived: tuple[Step, ...]) -> bool:
        """Whether some way leads to rest, although chance did not find it."""
        states = tuple(f"{row.machine} {row.state} {row.status}" for row in self.bench.rows().runs)
        if states in self.leading or "stuck" in self.rules:
            return False
        self.bench.go(self.bench.empty)  # the other bench has the same store
        if self.leads_on(lived):
            self.leading.add(states)
            return False
        self._fail("liveness", Breach("stuck",
            f"at the end of a life, in {'; '.join(states)}, nothing leads to an end or to a state "
            "that awaits an event"), lived)  # fmt: skip
        return False

    def _again(self) -> None:
        """The same way from the beginning ends in the same state."""
        self.report.repeated += 1
        found, steps = self.bench.fingerprint(), tuple(self.steps)
        try:
            same = self.rig.walk.go(steps) == found
        except (TurtlesError, LookupError):
            same = False
        if not same:
            self.report.mismatches.append(steps)

    def _fail(
        self, kind: Literal["safety", "liveness"], breach: Breach, steps: tuple[Step, ...]
    ) -> None:
        if breach.rule in self.rules:
            return
        self.rules.add(breach.rule)
        after_ms = round((perf_counter() - self.began) * 1000)
        self.report.failures.append(
            Failure(kind=kind, rule=breach.rule, problem=breach.problem, steps=steps,
                    found_after_ms=after_ms)
        )  # fmt: skip
