"""Ways become simpler, never longer, show the same, and could come about."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import Call, Context, Event, GaveUp, Machine, NotDone, State, effect, invariant, seconds
from engine.errors import TurtlesError, UsageError
from engine.verification import simpler
from engine.verification.environment import Environment, payloads
from engine.verification.explore import Rig, explore
from engine.verification.outside import FAULTS
from engine.verification.reduce import is_minimal, reduced
from engine.verification.reduce import reduce as reduce_in_time
from engine.verification.reduce import reduce_way as reduce_way_in_time
from engine.verification.result import Scope, Step
from engine.verification.simplifying import weight_of
from persistence.store import open_store


class Money(Context):
    held: int = 0
    taken: int = 0
    name: str = ""
    tags: tuple[str, ...] = ()
    note: str | None = None


class Hold(Event, tag="hold"):
    amount: int
    why: str = ""


class Take(Event, tag="take"):
    amount: int
    parts: tuple[int, ...] = ()


class Billed(Event, tag="billed"):
    receipt: str


class NotBilled(GaveUp, tag="not_billed"):
    """The bill was given up."""


@effect()
async def bill(context: Money, call: Call) -> Billed:
    return Billed(receipt=call.key)


@bill.reconcile
async def find_bill(context: Money, call: Call) -> Billed | NotDone:
    return NotDone()


class Till(Machine[Money]):
    """Gives one more than it holds."""

    payloads = (NotBilled,)
    billing = State(initial=True, effect=bill, on_exhausted="not_billed")
    opened = State(waits=True, timeout=seconds(60), on_timeout="late")
    closed = State(final=True)
    billed = billing.to(opened)
    not_billed = billing.to(closed)
    hold = opened.to.itself(cond="is_there", on="add", internal=True)
    take = opened.to.itself(cond="is_covered", on="subtract", internal=True)
    late = opened.to(closed)

    def is_there(self, event: Hold) -> bool:
        return event.amount >= 0

    def is_covered(self, context: Money, event: Take) -> bool:
        return 0 < event.amount <= context.held - context.taken + 1

    def add(self, context: Money, event: Hold) -> Money:
        return self.but(context, held=context.held + event.amount)

    def subtract(self, context: Money, event: Take) -> Money:
        return self.but(context, taken=context.taken + event.amount)

    @invariant
    def never_more_than_held(self, context: Money) -> bool:
        return 0 <= context.taken <= context.held


# The machine that runs the tests may be slow; what is found must not depend on it.
reduce = partial(reduce_in_time, budget_seconds=30)
reduce_way = partial(reduce_way_in_time, budget_seconds=30)


def fresh() -> Any:
    return open_store("sqlite://")


def start(context: Money) -> Step:
    return ("start", "Till", msgspec.json.encode(context).decode())


def text(event: Event) -> str:
    return msgspec.json.encode(event).decode()


BILLED = ("billed", text(Billed(receipt="a long receipt")))
NOISY: tuple[Step, ...] = (
    start(Money(held=30, taken=7, name="somebody", tags=("x", "y"), note="remember")),
    ("move", 1), ("call", "lost", *BILLED), ("crash", 2), ("clock", 0),
    ("move", 1), ("call", "unknown"),
    ("clock", 0),
    ("move", 1), ("call", "told"),
    ("send", "hold", text(Hold(amount=12, why="for later")), 1),
    ("again", "hold", text(Hold(amount=12, why="for later")), 1),
    ("move", 1),
    ("send", "take", text(Take(amount=36, parts=(1, 2, 33))), 1),
    ("send", "hold", text(Hold(amount=0)), 1),
    ("move", 1),
)  # fmt: skip


def test_a_noisy_way_becomes_simple() -> None:
    found = reduce_way(Till, fresh, NOISY, "quarantined")
    assert found.minimal and found.tried < 1_000
    assert found.steps == (
        start(Money()),
        ("move", 1),
        ("call", "ok", "billed", text(Billed(receipt=""))),
        ("send", "take", text(Take(amount=1)), 1),
        ("move", 1),
    )
    assert "never_more_than_held" in found.problem


def test_it_is_the_same_each_time_and_stays_as_it_is() -> None:
    once = reduce(Till, fresh, NOISY, "quarantined")
    assert reduce(Till, fresh, NOISY, "quarantined") == once
    assert reduce(Till, fresh, once, "quarantined") == once
    assert is_minimal(Till, fresh, once, "quarantined")
    assert not is_minimal(Till, fresh, NOISY, "quarantined")


def test_a_way_that_shows_nothing_is_refused_and_not_minimal() -> None:
    with pytest.raises(UsageError, match="breaks nothing"):
        reduce(Till, fresh, NOISY[:5], "quarantined")
    with pytest.raises(UsageError, match=r"'fence'.*breaks quarantined"):
        reduce(Till, fresh, NOISY, "fence")
    with pytest.raises(UsageError, match="breaks nothing"):
        reduce(Till, fresh, (NOISY[0], ("move", 7)), "quarantined")
    assert not is_minimal(Till, fresh, NOISY[:5], "quarantined")


def test_what_one_change_makes_simpler_is_not_minimal() -> None:
    once = reduce(Till, fresh, NOISY, "quarantined")
    worse = [
        (start(Money(name="a")), *once[1:]),
        (*once[:2], ("call", "lost", *once[2][2:]), ("clock", 0), ("move", 1), ("call", "told"),
         *once[3:]),
        (*once[:3], ("send", "take", text(Take(amount=1, parts=(0,))), 1), once[4]),
        (*once, ("send", "hold", text(Hold(amount=0)), 1)),
        (*once[:3], ("clock", 0), *once[3:]),
    ]  # fmt: skip
    for way in worse:
        assert not is_minimal(Till, fresh, way, "quarantined"), way
        assert reduce(Till, fresh, way, "quarantined") == once


def test_time_that_is_over_gives_the_simplest_so_far() -> None:
    found = reduce_way(Till, fresh, NOISY, "quarantined", budget_seconds=0.0)
    assert found.steps == NOISY and not found.minimal
    some = reduce_way(Till, fresh, NOISY, "quarantined", budget_seconds=0.02)
    assert weight_of(some.steps) <= weight_of(NOISY)


# -- within what may come -------------------------------------------------------------------------


class Pay(Event, tag="pay"):
    total: int
    part: int


class Purse(Machine[Money]):
    """Keeps what does not fit."""

    opened = State(initial=True, waits=True)
    closed = State(final=True)
    pay = opened.to.itself(on="keep", cond="fits")
    close = opened.to(closed)

    def fits(self, event: Pay) -> bool:
        return event.total == 2 * event.part and event.total > 5

    def keep(self, context: Money, event: Pay) -> Money:
        return self.but(context, held=event.total)

    @invariant
    def little(self, context: Money) -> bool:
        return context.held < 6


class OfPurse(Environment):
    machine = Purse
    scope = Scope(messages=1)

    def contexts(self) -> Iterator[Money]:
        yield Money(name="first")
        yield Money(name="z")

    @payloads("pay")
    def pays(self, context: Money) -> Iterator[Pay]:
        yield Pay(total=1000, part=500)
        yield Pay(total=40, part=20)
        yield Pay(total=2000, part=1000)


def purse(amount: int) -> tuple[Step, ...]:
    return (
        ("start", "Purse", msgspec.json.encode(Money(name="first")).decode()),
        ("send", "pay", text(Pay(total=2 * amount, part=amount)), 1),
        ("move", 1),
    )


def test_an_environment_says_what_may_come() -> None:
    found = reduce_way(Purse, fresh, purse(500), "quarantined")
    assert found.minimal
    assert found.steps[0][2] == msgspec.json.encode(Money(name="z")).decode()
    assert found.steps[1][2] == text(Pay(total=40, part=20))


def test_first_contexts_that_were_given_are_the_only_ones() -> None:
    given = [Money(name="first"), Money(name="ab")]
    found = reduce(Purse, fresh, purse(500), "quarantined", contexts=given)
    assert found[0][2] == msgspec.json.encode(Money(name="ab")).decode()


class Lot(Context):
    price: int = 900
    owner: str = "x"


class Bid(Event, tag="bid"):
    price: int
    cents: int


class Auction(Machine[Lot]):
    """Takes a bid of just its price, and does not stand it."""

    opened = State(initial=True, waits=True)
    sold = State(final=True)
    bid = opened.to(sold, cond="is_it", on="fail")

    def is_it(self, context: Lot, event: Bid) -> bool:
        return context.price == event.price > 5 and event.cents == event.price - 3

    def fail(self, context: Lot, event: Bid) -> Lot:
        raise ValueError


def test_numbers_that_must_fit_one_another_become_less_together() -> None:
    way = (("start", "Auction", msgspec.json.encode(Lot()).decode()),
           ("send", "bid", text(Bid(price=900, cents=897)), 1), ("move", 1))  # fmt: skip
    found = reduce(Auction, fresh, way, "quarantined")
    assert msgspec.json.decode(found[0][2]) == {"price": 6, "owner": ""}
    assert msgspec.json.decode(found[1][2]) == {"event": "bid", "price": 6, "cents": 3}


class Weighed(Event, tag="weighed"):
    grams: int


class Sent(Event, tag="sent"):
    grams: int


@effect(idempotent=True)
async def weigh(context: Lot, call: Call) -> Weighed:
    return Weighed(grams=1)


@effect(idempotent=True)
async def send(context: Lot, call: Call) -> Sent:
    return Sent(grams=1)


class Parcel(Machine[Lot]):
    weighing = State(initial=True, effect=weigh)
    sending = State(effect=send)
    done = State(final=True)
    weighed = weighing.to(sending)
    sent = sending.to(done, on="note")

    def note(self, context: Lot, event: Sent) -> Lot:
        return self.but(context, price=context.price // event.grams)


def test_an_answer_is_not_handed_to_a_call_that_cannot_give_it() -> None:
    """Left out, `weighed` would leave its call to `sent`, and a quarantine that means nothing."""
    way = (("start", "Parcel", msgspec.json.encode(Lot()).decode()), ("move", 1),
           ("call", "ok", "weighed", text(Weighed(grams=7))),
           ("call", "ok", "sent", text(Sent(grams=0))))  # fmt: skip
    found = reduce(Parcel, fresh, way, "quarantined")
    assert [step[:3] for step in found] == [
        ("start", "Parcel", msgspec.json.encode(Lot(price=0, owner="")).decode()),
        ("move", 1), ("call", "ok", "weighed"), ("call", "ok", "sent"),
    ]  # fmt: skip


# -- progress -------------------------------------------------------------------------------------


class Pendulum(Machine[Money]):
    """To and fro for ever, once nobody has stopped it in time."""

    resting = State(initial=True, waits=True, timeout=seconds(1), on_timeout="push")
    to = State(timeout=seconds(1), on_timeout="tick")
    fro = State(timeout=seconds(1), on_timeout="tick")
    done = State(final=True)
    push = resting.to(to)
    stop = resting.to(done)
    tick = to.to(fro) | fro.to(done, cond="never") | fro.to(to)

    def never(self, context: Money) -> bool:
        return context.held > 1_000


def test_a_way_from_which_nothing_leads_on_ends_where_that_begins() -> None:
    zero = ("start", "Pendulum", msgspec.json.encode(Money(name="long")).decode())
    way = (zero, ("clock", 0), ("move", 1), ("clock", 0), ("move", 1), ("clock", 0))
    found = reduce_way(Pendulum, fresh, way, "stuck", liveness=True)
    least = ("start", "Pendulum", msgspec.json.encode(Money()).decode())
    assert found.minimal and "nothing leads to an end" in found.problem
    assert found.steps == (least, ("clock", 0))
    assert is_minimal(Pendulum, fresh, found.steps, "stuck", liveness=True)


# -- reports --------------------------------------------------------------------------------------


def test_failures_of_a_report_are_made_simpler_in_place() -> None:
    report = explore(Till, fresh(), budget_seconds=20, first_failure=True)
    before = report.failures[0]
    noisy = msgspec.structs.replace(before, steps=NOISY, problem="?")
    report.failures[:] = [noisy, msgspec.structs.replace(noisy, rule="fence")]
    reduced(report, fresh, budget_seconds=30)
    assert report.failures[0].steps == reduce(Till, fresh, NOISY, "quarantined")
    assert len(report.failures[0].steps) <= len(before.steps)
    assert report.failures[0].problem != "?"
    assert report.failures[1].steps == NOISY
    assert any(note.startswith("fence: its way could not be made simpler") for note in report.notes)


def test_a_budget_that_was_too_small_is_noted() -> None:
    report = explore(Till, fresh(), budget_seconds=20, first_failure=True)
    reduced(report, fresh, budget_seconds=0.0)
    assert any("not everything simpler was tried" in note for note in report.notes)


# -- any way there is -----------------------------------------------------------------------------


def wander(seed: int) -> tuple[Step, ...] | None:
    """Steps by chance, until the machine breaks its contract."""
    chance = random.Random(seed)
    rig = Rig(Till, fresh(), scope=Scope(messages=6, cancels=False))
    way: tuple[Step, ...] = (start(Money(held=chance.randrange(9))),)
    for _ in range(30):
        try:
            rig.walk.go(way)
        except (LookupError, TurtlesError):  # pragma: no cover - a way of options can be gone
            raise AssertionError(way) from None
        if rig.bench.hand is None and rig.checking.breaches():
            return way
        ready = [step for step in rig.options.next() if step[:2] != ("call", "permanent")]
        if not ready:
            return None
        way = (*way, chance.choice(ready))
    return None


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 10_000))
def test_ways_by_chance_all_become_the_simplest(seed: int) -> None:
    way = wander(seed)
    if way is None:
        return
    found = reduce_way(Till, fresh, way, "quarantined")
    assert found.minimal and weight_of(found.steps) <= weight_of(way)
    assert len(found.steps) <= len(way)
    assert not [step for step in found.steps if step[0] == "call" and step[1] in FAULTS]
    assert not [step for step in found.steps if step[0] in ("crash", "again")]
    assert is_minimal(Till, fresh, found.steps, "quarantined")


# -- simpler values -------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_what_is_simpler_is_lighter(value: Any) -> None:
    for path, node in simpler.nodes(value):
        for new in simpler.simpler(node):
            assert simpler.weight(new) < simpler.weight(node)
            assert simpler.weight(simpler.put(value, path, new)) < simpler.weight(value)
    assert simpler.weight(simpler.lowered(value, 1)) <= simpler.weight(value)


@pytest.mark.parametrize(("value", "expected"), [
    (None, []),
    (True, [None, False]),
    (7, [None, 0, 1, 3, 6]),
    (1, [None, 0]),
    (-5, [None, 0, 1, -2, -4, 5]),
    ("abc", [None, "", "a"]),
    ("a", [None, ""]),
    ([1, 2], [None, [2], [1]]),
    ({"x": 1}, [None, {}]),
])  # fmt: skip
def test_the_simplest_comes_first(value: Any, expected: list[Any]) -> None:
    assert list(simpler.simpler(value)) == expected


def test_equal_leaves_change_together_and_others_stay() -> None:
    value = {"a": 5, "b": [5, "5", 6], "c": True}
    assert simpler.everywhere(value, 5, 1) == {"a": 1, "b": [1, "5", 6], "c": True}
    assert simpler.everywhere(value, 1, 0) == value  # True is not 1
    assert simpler.lowered(value, 4) == {"a": 1, "b": [1, "5", 2], "c": True}
