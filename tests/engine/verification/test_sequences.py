"""Random sequences: sound machines pass, defects are found, one seed says everything."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated, Any
from unittest.mock import patch

import msgspec
import pytest

import persistence.inbox
from engine import Again, Call, Context, Event, GaveUp, Machine, NotDone, State, effect, invariant
from engine import seconds as seconds_
from engine.errors import UsageError
from engine.testing import memory_store
from engine.verification.drawing import Drawing, near_of, parts_of
from engine.verification.environment import Environment, payloads
from engine.verification.explore import Rig, repeat
from engine.verification.result import Scope
from engine.verification.sequences import sequences
from engine.verification.tokens import read_token, token_of
from tests.verification.bugs.corpus import BUGS, Bug


class Funds(Context):
    held: int = 0
    taken: int = 0


class Hold(Event, tag="hold"):
    amount: Annotated[int, msgspec.Meta(ge=0)]


class Take(Event, tag="take"):
    amount: int


class Wired(Event, tag="wired"):
    reference: str


class NoWire(GaveUp, tag="no_wire"):
    """The wire was given up."""


@effect()
async def wire(context: Funds, call: Call) -> Wired | Again:
    return Wired(reference=call.key)


@wire.reconcile
async def find_wire(context: Funds, call: Call) -> Wired | NotDone:
    return NotDone()


class Safe(Machine[Funds]):
    """Money comes and goes; at the end all of it must have gone, to the last unit."""

    payloads = (NoWire,)
    opened = State(initial=True, waits=True)
    wiring = State(effect=wire, every=seconds_(1), on_exhausted="no_wire")
    closed = State(final=True)
    failed = State(final=True, failure=True)
    hold = opened.to.itself(cond="has_room", on="add")
    take = opened.to(wiring, cond="is_the_rest", on="subtract") | opened.to.itself(
        cond="is_covered", on="subtract"
    )
    wired = wiring.to(closed)
    no_wire = wiring.to(failed)

    def has_room(self, context: Funds, event: Hold) -> bool:
        return context.held + event.amount <= 10**12

    def is_the_rest(self, context: Funds, event: Take) -> bool:
        return 1_000 < event.amount == context.held - context.taken

    def is_covered(self, context: Funds, event: Take) -> bool:
        return 0 < event.amount < context.held - context.taken

    def add(self, context: Funds, event: Hold) -> Funds:
        return self.but(context, held=context.held + event.amount)

    def subtract(self, context: Funds, event: Take) -> Funds:
        return self.but(context, taken=context.taken + event.amount)

    @invariant
    def never_more_than_held(self, context: Funds) -> bool:
        return 0 <= context.taken <= context.held


def overdrawn() -> type[Machine[Any]]:
    """A twin of the same name: one unit too many may be taken, but only of more than 1,000."""

    def is_covered(self: Any, context: Funds, event: Take) -> bool:
        rest = context.held - context.taken
        return 0 < event.amount < rest or (rest > 1_000 and event.amount == rest + 1)

    return type("Safe", (Safe,), {"is_covered": is_covered, "__module__": __name__})


class Swing(Machine[Funds]):
    """Time drives it to and fro, and the way out never opens."""

    left = State(initial=True, timeout=seconds_(1), on_timeout="tick")
    right = State(timeout=seconds_(1), on_timeout="tick")
    rest = State(final=True)
    tick = left.to(right) | right.to(rest, cond="is_tired") | right.to(left)

    def is_tired(self, context: Funds) -> bool:
        return context.taken > 0 and context.held > context.taken + 10**6


def test_sound_machine_passes_and_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.verification.sequences.REPEAT_ONE_IN", 10)
    report = sequences(Safe, memory_store(), budget_seconds=20, sequences_max=250)
    assert report.ok and report.exit_code == 0, report.failures
    assert report.sequences == report.finished == 250
    assert report.coverage.missing_transitions == [] == report.coverage.missing_cells
    assert min(report.crashes, report.lost, report.duplicates, report.repeated) > 0
    assert report.steps > 5 * report.sequences and report.commits > report.sequences


def test_amounts_out_of_the_context_reach_what_small_values_do_not() -> None:
    """`is_the_rest` needs more than 1,000, and exactly what is left."""
    report = sequences(Safe, memory_store(), budget_seconds=20, sequences_max=150)
    assert ("opened", "take", "wiring") in report.coverage.transitions


def test_one_seed_says_everything() -> None:
    def once(seed: int) -> tuple[Any, ...]:
        report = sequences(Safe, memory_store(), budget_seconds=60, sequences_max=40, seed=seed)
        return report.digest, report.steps, report.commits, report.crashes, report.duplicates

    assert once(3) == once(3) != once(4)


def test_defect_far_from_small_values_is_found_and_its_way_shows_it_again() -> None:
    report = sequences(overdrawn(), memory_store(), budget_seconds=20, first_failure=True)
    (failure,) = report.failures
    assert (failure.kind, failure.rule, report.exit_code) == ("safety", "quarantined", 3)
    assert "never_more_than_held" in failure.problem
    token = read_token(token_of(report.table, failure))
    again = repeat(overdrawn(), memory_store(), token.steps)
    assert [breach.rule for breach in again.breaches] == ["quarantined"]
    assert repeat(Safe, memory_store(), token.steps).breaches == ()


def test_machine_that_never_comes_to_rest_is_stuck() -> None:
    report = sequences(Swing, memory_store(), budget_seconds=30, first_failure=True, steps_max=5)
    (failure,) = report.failures
    assert (failure.kind, failure.rule, report.exit_code) == ("liveness", "stuck", 4)
    again = repeat(Swing, memory_store(), failure.steps, liveness=True)
    assert [breach.rule for breach in again.breaches] == ["stuck"]


def test_defect_of_the_store_is_found() -> None:
    nobody_wakes = patch.object(persistence.inbox, "wake", lambda sql, runs: None)
    with nobody_wakes:
        report = sequences(Safe, memory_store(), budget_seconds=20, first_failure=True)
    (failure,) = report.failures
    assert failure.rule == "storage: stranded"
    assert repeat(Safe, memory_store(), failure.steps).breaches == ()


def test_machine_that_is_not_deterministic_contradicts_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.verification.sequences.REPEAT_ONE_IN", 1)
    dice = random.Random(1)

    class Fickle(Machine[Funds]):
        here = State(initial=True, waits=True)
        there = State(final=True)
        end = State(final=True)
        go = here.to(there, cond="by_chance") | here.to(end)

        def by_chance(self, context: Funds) -> bool:
            return dice.random() < 0.5

    report = sequences(Fickle, memory_store(), budget_seconds=20, sequences_max=60)
    assert report.exit_code in (3, 5) and not report.ok


def test_environment_bounds_what_arrives() -> None:
    amounts: set[int] = set()

    class Noted(Safe):
        def add(self, context: Funds, event: Hold) -> Funds:
            amounts.add(event.amount)
            return super().add(context, event)

    class OfNoted(Environment):
        machine = Noted

        @payloads("hold")
        def holds(self) -> Any:
            yield Hold(amount=5)
            yield Hold(amount=7)

    report = sequences(Noted, memory_store(), budget_seconds=20, sequences_max=60,
                       environment=OfNoted())  # fmt: skip
    assert report.ok and amounts == {5, 7}


def test_without_faults_nobody_dies() -> None:
    scope = Scope(messages=4, cancels=False, faults=False)
    report = sequences(Safe, memory_store(), budget_seconds=20, sequences_max=60, scope=scope)
    assert report.ok and (report.crashes, report.lost) == (0, 0)


@pytest.mark.parametrize("bad", [{"budget_seconds": 0}, {"steps_max": 0}])
def test_bounds_of_nothing_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected more than 0 seconds"):
        sequences(Safe, memory_store(), **bad)


def test_context_that_is_refused_is_said() -> None:
    with pytest.raises(UsageError, match="no first context was accepted"):
        sequences(Safe, memory_store(), contexts=[Funds(held=1, taken=2)])


def test_retry_policies_are_given_back() -> None:
    before = wire.retry
    sequences(Safe, memory_store(), sequences_max=3)
    assert wire.retry is before


def test_progress_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.verification.sequences.TELL_EVERY_SECONDS", 0)
    seen: list[int] = []
    sequences(Safe, memory_store(), sequences_max=5, progress=lambda r: seen.append(r.sequences))
    assert seen == [0, 1, 2, 3, 4]


# -- drawing --------------------------------------------------------------------------------------


class Inner(msgspec.Struct, frozen=True):
    count: int


class Outer(Context):
    total: int = 50
    part: int = 20
    name: str = "box"
    inner: Inner = Inner(count=9)
    tags: tuple[str, ...] = ("red",)


def test_what_is_near_a_context() -> None:
    near = near_of(Outer())
    assert {50, 20, 9, 30, 41, 51, 49, -50} <= set(near[int])
    assert near[int][:3] == [50, 20, 9], "the fields themselves come first"
    assert near[str] == ["box", "red"]
    assert near[Inner] == [Inner(count=9)]
    assert list(parts_of(None)) == []


def test_drawn_payloads_fit_their_type_and_their_context() -> None:
    rig = Rig(Safe, memory_store())
    drawing = Drawing(rig.bench.codec)
    drawing.chance = random.Random(5)
    context = Funds(held=4_321, taken=321)
    draw: Callable[[str], list[int]] = lambda event: [  # noqa: E731
        msgspec.json.decode(text)["amount"]
        for _ in range(300)
        if (text := drawing.payload(rig.table, event, context)) is not None
    ]
    holds, takes = draw("hold"), draw("take")
    rig.bench.close()
    assert min(holds) >= 0, "Meta(ge=0)"
    assert {4_000, 4_321, 4_322, 2**63 - 1, -(2**63), 0, -1} <= set(takes)


# -- planted bugs ---------------------------------------------------------------------------------

HANDFUL = (
    "no dedupe", "performed again, no reconcile", "fence ignored", "timer never armed",
    "parent told twice", "compensation skipped", "cancel ignores doubt", "retry lost",
    "dead workers keep their runs", "late events stay in ended runs", "sign error", "rounding up",
)  # fmt: skip


@pytest.mark.parametrize("bug", [one for one in BUGS if one.name in HANDFUL], ids=lambda b: b.name)
def test_planted_bug_is_found_by_chance(bug: Bug) -> None:
    """The whole corpus is for the explorer; chance finds nearly all of it, too."""
    with bug.planted():
        report = sequences(bug.broken, memory_store(), known=bug.known, budget_seconds=10,
                           first_failure=True)  # fmt: skip
        rules = {failure.rule for failure in report.failures}
        first = report.failures[0]
        liveness = first.kind == "liveness"
        again = repeat(bug.broken, memory_store(), first.steps, known=bug.known, liveness=liveness)
    assert rules & set(bug.rules)
    assert first.rule in [breach.rule for breach in again.breaches]


def test_every_name_of_the_handful_is_in_the_corpus() -> None:
    assert {bug.name for bug in BUGS} >= set(HANDFUL)
