"""An author says what the outside may do; the exploration keeps to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from engine import Call, Context, Event, Machine, NotDone, State, effect
from engine.errors import DefinitionError, UsageError
from engine.verification.environment import (
    Done,
    Environment,
    always,
    environment_of,
    payloads,
    sometimes,
)
from engine.verification.explore import explore
from engine.verification.result import Scope
from persistence.store import open_store


class Bill(Context):
    due_cents: int
    paid_cents: int = 0


class Paid(Event, tag="paid"):
    cents: int


@effect()
async def charge(context: Bill, call: Call) -> Paid:
    raise AssertionError("never called")


@charge.reconcile
async def find(context: Bill, call: Call) -> Paid | NotDone:
    raise AssertionError("never called")


class Till(Machine[Bill]):
    paying = State(initial=True, effect=charge)
    settled = State(final=True)
    short = State(final=True, failure=True)
    paid = paying.to(settled, cond="is_whole", on="count") | paying.to(short, on="count")

    def is_whole(self, context: Bill, event: Paid) -> bool:
        return event.cents == context.due_cents

    def count(self, context: Bill, event: Paid) -> Bill:
        return self.but(context, paid_cents=event.cents)


DUE = 48_611


class OfTill(Environment):
    machine = Till
    scope = Scope(messages=0, cancels=False)

    def contexts(self) -> Iterator[Bill]:
        yield Bill(due_cents=DUE)

    @payloads("paid")
    def pay(self, context: Bill, state: str) -> Iterator[Paid]:
        assert state == "paying"
        yield Paid(cents=context.due_cents)
        yield Paid(cents=context.due_cents - 1)

    @always
    def charged_once(self, done: tuple[Done, ...]) -> bool:
        return len(done) <= 1

    @sometimes
    def paid_in_full(self, context: Bill, status: str) -> bool:
        return status == "completed" and context.paid_cents == DUE


def test_payloads_that_fit_the_context_reach_every_transition() -> None:
    report = explore(Till, open_store("sqlite://"))
    assert isinstance(environment_of(Till), OfTill)
    assert report.exhausted and report.failures == [] and report.exit_code == 0
    assert report.coverage.missing_transitions == [] == report.coverage.missing_marks
    assert report.coverage.missing_faults == []


def another(**body: Any) -> Environment:
    """An environment that is not registered for the machine in place of `OfTill`."""
    kind = type("Another", (OfTill,), {"machine": Till, **body})
    OfTill.__init_subclass__()
    made: Environment = kind()
    return made


def test_a_claim_that_does_not_hold_is_a_failure_with_its_way() -> None:
    @always
    def never_paid(self: Any, context: Bill) -> bool:
        return context.paid_cents == 0

    report = explore(Till, open_store("sqlite://"), environment=another(never_paid=never_paid))
    assert [failure.rule for failure in report.failures] == ["always never_paid"]
    assert report.exit_code == 3 and len(report.failures[0].steps) == 3


def test_a_claim_that_raises_is_a_failure() -> None:
    @always
    def broken(self: Any, context: Bill) -> bool:
        raise KeyError("x")

    report = explore(Till, open_store("sqlite://"), environment=another(broken=broken))
    assert "raised KeyError" in report.failures[0].problem


def test_a_mark_that_is_never_seen_is_a_gap() -> None:
    @sometimes
    def overpaid(self: Any, context: Bill) -> bool:
        return context.paid_cents > context.due_cents

    report = explore(Till, open_store("sqlite://"), environment=another(overpaid=overpaid))
    assert report.coverage.missing_marks == ["overpaid"]
    assert report.exit_code == 2


def test_a_gap_with_a_reason_counts_as_covered_and_is_listed() -> None:
    class OnlyWhole(OfTill):
        machine = Till
        reasons = {"paying --paid--> short": "nobody pays less"}  # noqa: RUF012 - as its base

        @payloads("paid")
        def pay(self, context: Bill) -> Iterator[Paid]:  # type: ignore[override]
            yield Paid(cents=context.due_cents)

    OfTill.__init_subclass__()
    report = explore(Till, open_store("sqlite://"), environment=OnlyWhole())
    assert report.coverage.missing_transitions == []
    assert report.coverage.excused == {"paying --paid--> short": "nobody pays less"}


def test_an_environment_of_another_type_of_payload_is_refused() -> None:
    @payloads("paid")
    def pay(self: Any) -> Iterator[Any]:
        yield Bill(due_cents=1)

    with pytest.raises(DefinitionError, match="event paid carries Paid, got Bill"):
        explore(Till, open_store("sqlite://"), environment=another(pay=pay))


def test_an_environment_for_an_event_that_is_none_is_refused() -> None:
    @payloads("refunded")
    def refunds(self: Any) -> Iterator[Any]:
        yield None

    with pytest.raises(UsageError, match="'refunded', which is none of its events: paid"):
        explore(Till, open_store("sqlite://"), environment=another(refunds=refunds))


def test_a_parameter_of_another_name_is_refused_when_the_class_is_made() -> None:
    @payloads("paid")
    def pay(self: Any, moon: int) -> Iterator[Any]:
        yield None

    with pytest.raises(DefinitionError, match="environment Another: parameter 'moon' is none of"):
        another(pay=pay)


def test_without_a_machine_it_is_refused() -> None:
    with pytest.raises(DefinitionError, match="says nothing of its machine"):
        type("Homeless", (Environment,), {})
