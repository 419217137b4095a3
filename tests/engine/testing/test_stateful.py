"""Generated Hypothesis machines: what they find, how short it is, how they are extended."""

from __future__ import annotations

import unittest
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from engine import Again, Call, Context, Event, Machine, NotDone, Secret, State, effect, invariant
from engine import seconds as seconds_
from engine.testing import memory_store
from engine.testing.stateful import (
    MachineFailed,
    coverage_lines,
    machine_test,
    run_machine,
)
from engine.testing.strategies import strategy_for
from engine.verification.drawing import near_of
from engine.verification.environment import Environment, payloads
from engine.verification.explore import repeat
from engine.verification.reduce import is_minimal
from engine.verification.values import OutOfScope

SMALL = settings(max_examples=40, stateful_step_count=20, database=None, derandomize=True)
LARGE = settings(SMALL, max_examples=300, stateful_step_count=30)


class Jar(Context):
    coins: int = 0
    spent: int = 0


class Put(Event, tag="put"):
    coins: int


class Spend(Event, tag="spend"):
    coins: int


class Thanked(Event, tag="thanked"):
    """They said thanks."""


@effect()
async def thank(context: Jar, call: Call) -> Thanked | Again:
    return Thanked()


@thank.reconcile
async def find_thanks(context: Jar, call: Call) -> Thanked | NotDone:
    return NotDone()


def jar(slack: int = 0) -> type[Machine[Any]]:
    """Coins go in and out; `slack` many more than there are."""

    class Jars(Machine[Jar]):
        filling = State(initial=True, waits=True)
        thanking = State(effect=thank, timeout=seconds_(60), on_timeout="too_late")
        empty = State(final=True)
        forgotten = State(final=True, failure=True)
        put = filling.to.itself(cond="is_positive", on="add")
        spend = filling.to(thanking, cond="is_all", on="take") | filling.to.itself(
            cond="is_there", on="take"
        )
        thanked = thanking.to(empty)
        too_late = thanking.to(forgotten)

        def is_positive(self, context: Jar, event: Put) -> bool:
            return 0 < event.coins < 100

        def is_all(self, context: Jar, event: Spend) -> bool:
            return event.coins > 3 and event.coins == context.coins - context.spent

        def is_there(self, context: Jar, event: Spend) -> bool:
            return 0 < event.coins <= context.coins - context.spent + slack

        def add(self, context: Jar, event: Put) -> Jar:
            return self.but(context, coins=context.coins + event.coins)

        def take(self, context: Jar, event: Spend) -> Jar:
            return self.but(context, spent=context.spent + event.coins)

        @invariant
        def never_more_than_there_is(self, context: Jar) -> bool:
            return 0 <= context.spent <= context.coins

    return Jars


def test_sound_machine_passes_and_is_covered() -> None:
    kind = machine_test(jar())
    coverage = run_machine(kind, settings=LARGE)
    assert len(coverage.missing_transitions) <= 1
    told = list(coverage_lines(coverage))
    assert told[0] in ("transitions        5/5", "transitions        4/5")


def test_failure_is_made_minimal_and_says_how_to_go_it_again() -> None:
    machine = jar(slack=1)
    with pytest.raises(MachineFailed) as caught:
        run_machine(machine_test(machine), settings=LARGE)
    failure = caught.value.failure
    assert [step[0] for step in failure.steps] == ["start", "send", "move"]
    assert is_minimal(machine, memory_store, failure.steps, failure.rule)
    told = str(caught.value)
    assert told.startswith("safety: quarantined\n")
    assert "never_more_than_there_is" in told
    assert '2  spend arrives at run 1 {"event":"spend","coins":1}' in told
    assert "-> Jars filling (quarantined)" in told
    assert "replay  turtles verify Jars --replay tv1:" in told


def test_machine_that_never_rests_is_stuck() -> None:
    class Swing(Machine[Jar]):
        left = State(initial=True, timeout=seconds_(1), on_timeout="tick")
        right = State(timeout=seconds_(1), on_timeout="tick")
        rest = State(final=True)
        tick = left.to(right) | right.to(rest, cond="never") | right.to(left)

        def never(self, context: Jar) -> bool:
            return context.coins > 10**9

    with pytest.raises(MachineFailed, match=r"liveness: stuck") as caught:
        run_machine(machine_test(Swing), settings=SMALL)
    assert [step[0] for step in caught.value.failure.steps] == ["start"]


def test_rules_payloads_and_contexts_of_ones_own() -> None:
    seen: list[Any] = []

    class Mine(machine_test(jar())):  # type: ignore[misc]
        def contexts(self) -> Any:
            return st.just(Jar(coins=50))

        def payloads(self, event: str, context: Jar) -> Any:
            if event == "put":
                return st.builds(Put, coins=st.just(7))
            return super().payloads(event, context)

        @rule()
        def put_two(self) -> None:
            if self.takes("put"):
                self.send("put", Put(coins=2))

        def teardown(self) -> None:
            seen.extend(self.steps)
            super().teardown()

    run_machine(Mine, settings=SMALL)
    starts = {step[2] for step in seen if step[0] == "start"}
    assert starts == {'{"coins":50,"spent":0}'}
    texts = {step[2] for step in seen if step[:2] == ("send", "put")}
    assert {'{"event":"put","coins":7}', '{"event":"put","coins":2}'} <= texts


def test_failure_in_a_rule_of_ones_own_is_reduced_too() -> None:
    machine = jar(slack=1)

    class Mine(machine_test(machine)):  # type: ignore[misc]
        @rule()
        def overdraw(self) -> None:
            if self.takes("spend"):
                self.send("spend", Spend(coins=1))

    with pytest.raises(MachineFailed) as caught:
        run_machine(Mine, settings=LARGE)
    again = repeat(machine, memory_store(), caught.value.failure.steps)
    assert [breach.rule for breach in again.breaches] == ["quarantined"]


def test_environment_says_what_arrives() -> None:
    amounts: set[int] = set()
    jars = jar()
    add = jars.add  # type: ignore[attr-defined]

    def noted(self: Any, context: Jar, event: Put) -> Jar:
        amounts.add(event.coins)
        found: Jar = add(self, context, event)
        return found

    jars.add = noted  # type: ignore[attr-defined]

    class OfJars(Environment):
        machine = jars

        @payloads("put")
        def puts(self) -> Any:
            yield Put(coins=5)

    run_machine(machine_test(jars, environment=OfJars()), settings=SMALL)
    assert amounts == {5}


def test_it_is_a_test_case_for_unittest_and_pytest() -> None:
    case = machine_test(jar(slack=1)).TestCase
    # The profile's number of lives finds it nearly always, which is not always.
    case.settings = settings(case.settings, max_examples=1000, derandomize=True)
    result = unittest.TestResult()
    case("runTest").run(result)
    ((_, trace),) = result.failures
    assert "replay  turtles verify Jars" in trace
    assert issubclass(machine_test(jar()).TestCase, unittest.TestCase)


def test_retry_policies_are_given_back() -> None:
    before = thank.retry
    run_machine(machine_test(jar()), settings=SMALL)
    assert thank.retry is before


def test_names_tell_shapes_apart() -> None:
    class Other(Machine[Jar]):
        there = State(initial=True, waits=True)
        gone = State(final=True)
        go = there.to(gone)

    assert machine_test(jar()).__name__ == machine_test(jar()).__name__
    assert machine_test(jar()).__name__ != machine_test(Other).__name__


# -- strategies -----------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Point(msgspec.Struct, frozen=True):
    x: int
    y: int = 0


class Picky(msgspec.Struct, frozen=True):
    number: int

    def __post_init__(self) -> None:
        if self.number > 3:
            raise ValueError("too large")


class Everything(Event, tag="everything"):
    number: Annotated[int, msgspec.Meta(ge=2, lt=10)]
    even: Annotated[int, msgspec.Meta(multiple_of=2)]
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=3)]
    code: Annotated[str, msgspec.Meta(pattern="^[a-c]+$")]
    colour: Colour
    word: Literal["a", "b"]
    either: int | str | None
    point: Point
    points: tuple[Point, ...]
    pair: tuple[int, str]
    some: Annotated[list[int], msgspec.Meta(min_length=1)]
    counts: dict[str, int]
    names: frozenset[str]
    secret: Secret[str]
    at: datetime
    price: Decimal
    share: float
    raw: bytes
    picky: Picky
    flag: bool = False


QUICK = settings(max_examples=60, database=None, deadline=None,
                 suppress_health_check=list(HealthCheck))  # fmt: skip


@QUICK
@given(strategy_for(Everything))
def test_whatever_is_drawn_is_of_its_type(value: Everything) -> None:
    plain = msgspec.to_builtins(value, enc_hook=lambda secret: secret.reveal())
    again = msgspec.convert(plain, Everything, dec_hook=lambda kind, found: Secret(found))
    assert again.number == value.number and value.picky.number <= 3
    assert value.at.tzinfo is UTC


@pytest.mark.parametrize("kind", [int, str, bool, bytes, int | None, list[Point], Colour, Any])
def test_every_plain_type_has_a_strategy(kind: Any) -> None:
    @QUICK
    @given(strategy_for(kind))
    def holds(value: Any) -> None:
        msgspec.to_builtins(value)

    holds()


def test_what_the_context_suggests_comes_first() -> None:
    near = near_of(Jar(coins=41, spent=6))
    found: list[int] = []

    @settings(QUICK, derandomize=True)
    @given(strategy_for(Spend, near))
    def draw(event: Spend) -> None:
        found.append(event.coins)

    draw()
    assert {41, 6, 35} & set(found)
    assert sum(coins in near[int] for coins in found) > len(found) // 5


def test_unknown_type_is_named() -> None:
    with pytest.raises(OutOfScope, match="type object_without_strategy"):
        strategy_for(type("object_without_strategy", (), {}))
    with pytest.raises(OutOfScope, match="type complex"):
        strategy_for(complex | memoryview)
