"""`verify` as a function: its phases, its budget, and which exit code counts."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from engine import Context, Event, Machine, State, invariant
from engine.errors import UsageError
from engine.verification.environment import Environment, sometimes
from engine.verification.result import Failure, Scope
from engine.verification.trouble import trouble_of
from engine.verification.verify import Found, Tick, Verification, verify, worst
from persistence.store import open_store


class Count(Context):
    number: int = 0


class Add(Event, tag="add"):
    amount: int


class Steady(Machine[Count]):
    opened = State(initial=True, waits=True)
    closed = State(final=True)
    add = opened.to.itself(cond="few", on="grow")
    close = opened.to(closed)

    def few(self, context: Count, event: Add) -> bool:
        return 0 < event.amount < 3 and context.number < 3

    def grow(self, context: Count, event: Add) -> Count:
        return self.but(context, number=context.number + event.amount)


class Wrong(Steady):
    @invariant
    def small(self, context: Count) -> bool:
        return 0 <= context.number < 3


class Deep(Machine[Count]):
    """Only a long life finds what is wrong with it."""

    opened = State(initial=True, waits=True)
    closed = State(final=True)
    add = opened.to.itself(on="grow")
    close = opened.to(closed)

    def grow(self, context: Count) -> Count:
        return self.but(context, number=context.number + 1)

    @invariant
    def below_six(self, context: Count) -> bool:
        return 0 <= context.number < 6


ONE = Scope(messages=1)
TWO = Scope(messages=2)


def store() -> Any:
    return open_store("sqlite://")


def test_every_phase_in_turn_and_nothing_found() -> None:
    ticks: list[Tick] = []
    found = verify(Steady, store, budget_seconds=10, seed=3, scope=TWO, progress=ticks.append)
    assert found.exit_code == 0, (found.found, found.troubles)
    assert found.exhausted and found.random and found.random.sequences
    assert found.schedules and found.schedules.schedules
    assert found.static and found.mutants is None and found.doubled is None
    done = [tick.phase for tick in ticks if tick.done]
    assert done == ["static", "scope", "random", "schedules"]
    assert {tick.machine for tick in ticks} == {"Steady"}


MODULES = ("verify", "explore", "sequences", "schedules")
LOOK_SECONDS = 0.002


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Time goes on only when somebody looks at it."""
    ticks = itertools.count()

    def now() -> float:
        return next(ticks) * LOOK_SECONDS

    for module in MODULES:
        monkeypatch.setattr(f"engine.verification.{module}.perf_counter", now)
    return now


def test_small_machine_does_not_use_up_its_budget(slow_clock: Callable[[], float]) -> None:
    found = verify(Steady, store, budget_seconds=60, seed=3, scope=ONE)
    assert found.exhausted and slow_clock() < 10


@pytest.mark.parametrize("budget_seconds", [0.8, 1.6])
def test_budget_is_kept(budget_seconds: float, slow_clock: Callable[[], float]) -> None:
    found = verify(Steady, store, budget_seconds=budget_seconds, scope=Scope(messages=9), seed=3)
    assert not found.exhausted and found.random and found.schedules
    assert found.scope and found.scope.took_seconds <= 0.6 * budget_seconds + 5 * LOOK_SECONDS
    assert slow_clock() < 1.05 * budget_seconds + 30 * LOOK_SECONDS


@pytest.mark.parametrize("budget_seconds", [0, -1, float("nan"), float("inf")])
def test_budget_that_is_none_is_refused(budget_seconds: float) -> None:
    with pytest.raises(UsageError, match="more than 0 seconds"):
        verify(Steady, store, budget_seconds=budget_seconds)


def test_phase_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UsageError, match="phase 'luck': expected some of static, scope"):
        verify(Steady, store, phases=("scope", "luck"))
    with pytest.raises(UsageError, match="expected some of"):
        verify(Steady, store, phases=())


def test_same_seed_same_exploration_and_a_seed_of_its_own_otherwise() -> None:
    first, second = (
        verify(Steady, store, budget_seconds=9, seed=5, scope=ONE, phases=("scope",))
        for _ in range(2)
    )
    assert first.scope and second.scope and first.scope.digest == second.scope.digest
    seeds = {verify(Steady, store, phases=("static",)).seed for _ in range(3)}
    assert len(seeds) == 3


def test_failure_is_simple_told_once_and_has_the_states_on_its_way() -> None:
    found = verify(Wrong, store, budget_seconds=8, seed=1, scope=TWO)
    assert found.exit_code == 3
    rules = [one.failure.rule for one in found.found]
    assert rules.count("quarantined") == 1
    one = found.found[0]
    assert one.phase == "scope" and isinstance(one.failure, Failure)
    assert [step[0] for step in one.failure.steps] == ["start", "send", "send", "move"]
    assert one.states[-1] == "Wrong opened (quarantined)"


def test_long_lives_find_what_the_small_scope_does_not() -> None:
    found = verify(Deep, store, budget_seconds=10, seed=1, scope=ONE)
    assert found.scope and found.scope.ok
    assert [one.phase for one in found.found] == ["random"]
    failure = found.found[0].failure
    assert isinstance(failure, Failure) and found.exit_code == 3
    first = json.loads(failure.steps[0][2])["number"]
    assert first + [step[0] for step in failure.steps].count("send") == 6  # made minimal


def test_random_adds_to_the_coverage() -> None:
    scope = Scope(messages=0, cancels=False)
    alone = verify(Steady, store, budget_seconds=4, seed=1, scope=scope, phases=("scope",))
    both = verify(Steady, store, budget_seconds=4, seed=1, scope=scope, phases=("scope", "random"))
    assert alone.coverage and both.coverage
    assert alone.coverage.missing_transitions and not both.coverage.missing_transitions
    assert (alone.exit_code, both.exit_code) == (2, 0)


def test_mark_that_is_never_seen_is_a_gap() -> None:
    class Own(Steady):
        """Environments are registered for a class."""

    class Of(Environment):
        machine = Own

        @sometimes
        def never(self, context: Count) -> bool:
            return context.number > 99

    found = verify(Own, store, environment=Of(), budget_seconds=3, seed=1, scope=ONE)
    assert found.exit_code == 2 and found.coverage
    assert found.coverage.missing_marks == ["never"]


def test_exhaustion_may_be_required() -> None:
    found = verify(Steady, store, budget_seconds=0.1, scope=Scope(messages=9),
                   phases=("scope",), require_exhaustive=True)  # fmt: skip
    assert found.exit_code == 6
    found = verify(Steady, store, budget_seconds=9, scope=ONE, phases=("scope",),
                   require_exhaustive=True)  # fmt: skip
    assert found.exit_code == 0


def test_until_a_transition_is_reached() -> None:
    goal = ("opened", "close", "closed")
    found = verify(Steady, store, budget_seconds=5, phases=("scope",), until=goal)
    assert found.exit_code == 0 and found.scope and found.scope.reached
    none = verify(Steady, store, budget_seconds=5, phases=("scope",), until=goal,
                  scope=Scope(messages=0))  # fmt: skip
    assert none.exit_code == 2


def test_doublecheck_narrows_the_scope_until_it_can_be_exhausted_twice() -> None:
    found = verify(Steady, store, budget_seconds=3, scope=Scope(messages=9),
                   phases=("doublecheck",), seed=2)  # fmt: skip
    assert found.doubled is not None and found.doubled.alike and found.doubled.second
    assert found.doubled.scope.messages < 9
    assert found.exit_code == 0


def test_doublecheck_that_differs_is_not_deterministic() -> None:
    answers = iter(range(10**9))

    class Fickle(Steady):
        def few(self, context: Count, event: Add) -> bool:
            return next(answers) % 11 != 0

    found = verify(Fickle, store, budget_seconds=5, scope=ONE, phases=("doublecheck",), seed=2)
    assert found.doubled is not None and not found.doubled.alike
    assert found.exit_code == 5


def test_contract_that_decides_otherwise_is_not_deterministic() -> None:
    chance = random.Random(1)

    class Fickle(Steady):
        def few(self, context: Count, event: Add) -> bool:
            return chance.random() < 0.5

    found = verify(Fickle, store, budget_seconds=3, scope=TWO, phases=("scope",), seed=2)
    assert "replay" in [one.failure.rule for one in found.found]
    assert found.exit_code == 5


def test_what_the_author_s_code_raises_ends_the_phases_and_is_told() -> None:
    class Own(Steady):
        """Environments are registered for a class."""

    class Of(Environment):
        machine = Own

        def contexts(self) -> Any:
            raise ValueError("weather")

    found = verify(Own, store, environment=Of(), budget_seconds=3)
    assert found.exit_code == 1 and found.skipped == ["random", "schedules"]
    trouble = found.troubles[0]
    assert trouble.phase == "scope" and not trouble.ours
    assert "ValueError: weather" in trouble.problem and "test_verify.py:" in trouble.where


def test_what_turtles_itself_raises_is_told_as_that() -> None:
    def broken() -> Any:
        return open_store("sqlite://").nothing  # type: ignore[attr-defined]

    found = verify(Steady, broken, budget_seconds=3, phases=("scope",))
    assert found.exit_code == 1 and "test_verify.py" in found.troubles[0].where
    try:
        open_store("nowhere")
    except UsageError as error:
        assert not trouble_of("scope", error).ours
    try:
        import msgspec

        msgspec.json.decode(b"x")
    except msgspec.DecodeError as error:
        ours = trouble_of("scope", error.with_traceback(None))
        assert ours.ours and "report" in ours.problem


@pytest.mark.parametrize(
    ("codes", "expected"),
    [((), 0), ((0, 2), 2), ((2, 6), 6), ((1, 2), 1), ((3, 1), 3), ((4, 3), 3), ((3, 5), 5),
     ((1, 70), 70), ((4, 70), 4)],
)  # fmt: skip
def test_the_worst_class_counts(codes: tuple[int, ...], expected: int) -> None:
    assert worst(codes) == expected


@pytest.mark.parametrize(
    ("kind", "rule", "expected"),
    [("safety", "x", 3), ("liveness", "stuck", 4), ("safety", "replay", 5)],
)
def test_exit_code_by_class_of_failure(kind: Any, rule: str, expected: int) -> None:
    from engine.table import compile_table

    found = Verification(compile_table(Steady), 1, 1.0, None, ("scope",))
    failure = Failure(kind=kind, rule=rule, problem="p", steps=(), found_after_ms=0)
    found.found.append(Found(phase="scope", failure=failure))
    assert found.exit_code == expected
