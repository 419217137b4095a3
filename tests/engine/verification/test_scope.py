"""Values of every type, small first; contexts in which the invariants hold."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import pytest

from engine import Context, Event, Machine, Secret, State, invariant
from engine.table import compile_table
from engine.verification.scope import (
    Combinations,
    Hints,
    OutOfScope,
    contexts_of,
    hints_of,
    payloads_of,
    values_of,
)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Point(msgspec.Struct, frozen=True):
    x: int
    y: int = 7


class Pair(NamedTuple):
    left: bool
    right: int = 5


class Tree(msgspec.Struct, frozen=True):
    label: bool
    branches: tuple[Tree, ...] = ()
    parent: Tree | None = None


class Endless(msgspec.Struct, frozen=True):
    inner: Endless


class Even(msgspec.Struct, frozen=True):
    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError("odd")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (bool, [False, True]),
        (int, [1, 0, 2, 3, -1]),
        (str, ["a", "", "b"]),
        (type(None), [None]),
        (Colour, [Colour.RED, Colour.BLUE]),
        (Literal["x", 3], ["x", 3]),
        (bool | None, [False, None, True]),
        (Annotated[int, msgspec.Meta(ge=10, le=12)], [10, 11, 12]),
        (tuple[bool, ...], [(), (False,), (True,), (False, True)]),
        (tuple[bool, None], [(False, None), (True, None)]),
        (frozenset[bool], [frozenset(), {False}, {True}, {False, True}]),
        (dict[str, bool], [{}, {"a": False}, {"a": False, "": True}]),
        (Mapping[str, bool], [{}, {"a": False}, {"a": False, "": True}]),
        (Pair, [(False, 5), (True, 5), (False, 1), (False, 0)]),
        (Even, [Even(0), Even(2)]),
        (Decimal, [Decimal(n) for n in (1, 0, 2, 3, -1)]),
    ],
)
def test_small_values_come_first(kind, expected):
    assert list(values_of(kind, limit=len(expected))) == expected


def test_a_bool_is_no_number_and_every_value_comes_once():
    values = list(values_of(int | bool | None))
    assert [(type(v), v) for v in values] == list(dict.fromkeys((type(v), v) for v in values))
    assert {True, False, None, 2} <= set(values)


def test_a_secret_holds_what_its_type_says():
    assert [one.reveal() for one in values_of(Secret[bool])] == [False, True]


def test_structs_begin_with_their_defaults_and_differ_field_by_field():
    values = list(values_of(Point, limit=10))
    assert values[:3] == [Point(1, 7), Point(0, 7), Point(2, 7)]
    assert Point(1, 0) in values
    assert len(set(values)) == len(values) == 10


def test_hints_are_tried_and_only_named_fields_vary():
    hints = Hints(numbers=(41, 42, 43), names=frozenset({"x"}))
    values = list(values_of(Point, limit=100, hints=hints))
    assert {one.x for one in values} >= {41, 42, 43}
    assert {one.y for one in values} == {7}


def test_lengths_are_tried_where_the_code_asks_for_them():
    hints = Hints(numbers=(7,), names=frozenset({"len"}))
    assert max(map(len, values_of(tuple[int, ...], limit=99, hints=hints))) == 7
    assert max(map(len, values_of(str, hints=hints))) == 7
    silent = Hints(numbers=(7,), names=frozenset())
    assert max(map(len, values_of(tuple[int, ...], limit=99, hints=silent))) == 2


def test_recursive_types_end():
    assert Tree(True, (), None) in list(values_of(Tree, limit=50))
    with pytest.raises(OutOfScope, match="field inner"):
        list(values_of(Endless))


def test_an_unknown_type_is_named():
    with pytest.raises(OutOfScope, match="complex"):
        list(values_of(complex))


def test_combinations_are_all_of_them_if_they_fit():
    rows = Combinations([[1, 2], "ab", [0]], 10)
    assert rows.complete
    assert list(rows) == [(1, "a", 0), (2, "a", 0), (1, "b", 0), (2, "b", 0)]


def test_else_every_value_is_tried_alone_and_a_fixed_sample_of_the_rest():
    columns = [list(range(10)) for _ in range(6)]
    rows = Combinations(columns, 200)
    assert not rows.complete
    made = list(rows)
    assert 150 < len(set(made)) == len(made) <= 200 and made == list(Combinations(columns, 200))
    assert made[0] == (0,) * 6
    assert all(tuple(v if i == p else 0 for i in range(6)) in made for p in range(6)
               for v in range(10))  # fmt: skip
    assert any(sum(v != 0 for v in row) > 2 for row in made)


def test_one_wide_column_among_many_narrow_ones_is_quick():
    assert len(list(Combinations([[0]] * 200 + [[0, 1]], 5))) == 2


class Account(Context):
    limit: int
    owed: int = -5
    owner: str = "x"
    history: tuple[int, ...] = ()


class Spent(Event, tag="spent"):
    amount: int


class Card(Machine[Account]):
    unpaid = State(initial=True, waits=True)
    blocked = State(waits=True, invariant="is_overdrawn")
    closed = State(final=True)
    spent = unpaid.to(blocked, cond="too_much") | unpaid.to.itself()
    close = unpaid.to(closed) | blocked.to(closed)

    def too_much(self, context: Account, event: Spent) -> bool:
        return event.amount + context.owed > 1234

    @invariant
    def owes_within_reason(self, context: Account) -> bool:
        return context.owed >= 0

    @invariant
    def has_history(self, context: Account) -> bool:
        return len(context.history) == 2

    def is_overdrawn(self, context: Account) -> bool:
        return context.owed > context.limit


def test_contexts_hold_the_invariants_and_those_of_the_state():
    table = compile_table(Card)
    anywhere = list(contexts_of(table, limit=50))
    assert len(anywhere) == 50
    assert all(one.owed >= 0 and len(one.history) == 2 for one in anywhere)
    blocked = list(contexts_of(table, state="blocked", limit=50))
    assert blocked and all(one.owed > one.limit for one in blocked)
    assert anywhere == list(contexts_of(table, limit=50))


def test_payloads_and_literals_of_the_guards():
    table = compile_table(Card)
    assert {1233, 1234, 1235} <= set(hints_of(table).numbers)
    assert {1, 0, 1234, 1235} <= {one.amount for one in payloads_of(table, "spent")}
    assert list(payloads_of(table, "close")) == [None]


class Impossible(Machine[Account]):
    unpaid = State(initial=True, waits=True)
    closed = State(final=True)
    close = unpaid.to(closed)

    @invariant
    def never(self, context: Account) -> bool:
        return False


def test_invariants_that_nothing_small_fulfils_are_named():
    with pytest.raises(OutOfScope, match="machine Impossible: no small context"):
        list(contexts_of(compile_table(Impossible)))


def test_any_is_something():
    assert None in list(values_of(Any))
