"""`Payment` in its environment: all of it, and what its properties are there to find."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.decide import Decision, begin, decide
from engine.events import Event
from engine.run import Run
from engine.table import compile_table
from engine.verification.environment import Done
from engine.verification.explore import explore
from engine.verification.result import Scope
from machines.environments.payment import LONG_MS, PAUSE_MS, OfPayment
from machines.flows.f03_payment import Payment
from machines.flows.f03w_wallet import SpendOrder
from machines.flows.money import Leg
from machines.flows.purchase import (
    Followed,
    FollowResult,
    Invoiced,
    Priced,
    Purchase,
    Regenerated,
    SpendResult,
    Spent,
    Topped,
)
from persistence.store import open_store

OF = OfPayment()
ORDER = next(iter(OF.contexts()))
PRICED = Priced(price_cents=ORDER.budget_cents)
TABLE = compile_table(Payment)
NOBODY_CANCELS = Scope(contexts=1, messages=0, cancels=False)


def _given(event: str, context: Purchase, state: str, now_ms: int = PAUSE_MS) -> list[Any]:
    found = OF.payloads_of(event, context=context, state=state, now_ms=now_ms)
    assert found is not None
    return found


INVOICED: Invoiced = _given("invoiced", ORDER, "invoicing")[0]


@pytest.mark.acceptance
def test_everything_is_explored_and_nothing_is_wrong() -> None:
    """Without requests to stop, which are put off in most states and treble the work."""
    report = explore(Payment, open_store("sqlite://"), scope=NOBODY_CANCELS, budget_seconds=25)
    coverage = report.coverage
    assert (report.failures, report.mismatches) == ([], [])
    assert report.exhausted, f"{report.left} of {report.states} states left"
    assert (coverage.missing_transitions, coverage.missing_cells) == ([], [])
    assert coverage.missing_marks == ["cancelled_while_pricing"]
    assert report.executions < 12_000


def test_somebody_thinks_better_of_it() -> None:
    report = explore(Payment, open_store("sqlite://"), budget_seconds=1.5)
    assert report.ok, report.failures
    assert "cancelled_while_pricing" in report.coverage.seen


@pytest.mark.parametrize("failed", ["abandoned", "conflicted", "replaced"])
def test_units_that_are_found_after_a_top_up_failed_buy_the_key(failed: str) -> None:
    """The portal had counted one unit too few; then it counts all that was sent once."""
    run = _settling()
    run = _step(run, "fell_short", _given("fell_short", run.context, "settling")[0])
    assert (run.state, run.context.unmatched_atomic) == ("topping_up", 1)
    if failed == "replaced":
        run = _step(run, "topped", _spent(Topped, "broadcast", run.context))
        run = _step(run, "followed", _followed(failed, run.context))
    else:
        run = _step(run, "topped", _spent(Topped, failed, run.context))
    assert (run.state, run.context.unmatched_atomic) == ("settling", 0)
    [issued] = _given("issued", run.context, "late")
    run = _step(run, "issued", issued)
    assert (run.state, run.context.overpaid_atomic) == ("key_stored", 0)


def test_card_differs_in_what_comes() -> None:
    """Neither key nor secret, and the card itself only where a key would come."""
    _, card, _ = OF.contexts()
    paid = msgspec.structs.replace(_settling().context, goods=card.goods)
    for event in ("issued", "secret_gone", "refunding", "fell_short", "sank"):
        assert [_given(event, paid, "settling", now_ms) for now_ms in (PAUSE_MS, LONG_MS)] == [
            [], [],
        ], event  # fmt: skip
    early, late = (len(_given("activated", paid, "settling", ms)) for ms in (PAUSE_MS, LONG_MS))
    assert (early, late, len(_given("activated", paid, "late", LONG_MS))) == (1, 0, 1)
    assert _given("activated", _settling().context, "settling") == []


def test_portal_is_of_one_mind_about_time() -> None:
    """Nothing has run out before the invoice is over, and no key is sold afterwards."""
    context = _settling().context
    early, late = (
        {event: len(_given(event, context, "settling", now_ms)) for event in ("issued", "ran_out")}
        for now_ms in (PAUSE_MS, LONG_MS)
    )
    assert early == {"issued": 1, "ran_out": 0}
    assert late == {"issued": 0, "ran_out": 1}


INVOICE = Done("open_invoice", "k2", INVOICED)
PRICE = Done("fetch_price", "k1", PRICED)
PAID = msgspec.structs.replace(ORDER, invoice=INVOICED.invoice)
OTHER = msgspec.structs.replace(INVOICED.invoice, address="thief")
OPEN = Leg(number=1, amount_atomic=4, received_before_atomic=0)
SECRET = Regenerated(public_key="key", secret_key=_given("regenerated", ORDER, "")[0].secret_key)


def _regenerations(count: int) -> tuple[Done, ...]:
    return tuple(Done("regenerate", f"r{number}", SECRET) for number in range(count))


def _broken(context: Purchase, *done: Done) -> list[str]:
    values = {"state": "settling", "status": "running", "now_ms": 0}
    return list(OF.broken(context=context, done=done, **values))


@pytest.mark.parametrize(
    ("context", "done"),
    [(ORDER, ()), (ORDER, (PRICE,)), (PAID, (PRICE, INVOICE, *_regenerations(1)))],
)
def test_properties_hold(context: Any, done: Any) -> None:
    assert _broken(context, *done) == []


@pytest.mark.parametrize(
    ("rule", "context", "done"),
    [
        ("one_price_one_invoice", PAID, (PRICE, INVOICE, Done("open_invoice", "k3", INVOICED))),
        ("one_price_one_invoice", PAID, (INVOICE,)),
        (
            "pays_the_portals_invoice",
            msgspec.structs.replace(PAID, invoice=OTHER),
            (PRICE, INVOICE),
        ),
        ("secrets_are_asked_for_a_few_times", PAID, (PRICE, INVOICE, *_regenerations(2))),
        (
            "a_leg_follows_the_end_of_another",
            msgspec.structs.replace(PAID, legs=(OPEN, OPEN)),
            (PRICE, INVOICE),
        ),
    ],
)
def test_properties_can_fail(rule: str, context: Any, done: Any) -> None:
    assert _broken(context, *done) == [rule]


def _settling() -> Run:
    """A purchase of which one leg is deep."""
    begun = begin(TABLE, run_id="run", context=ORDER, now_ms=0)
    assert isinstance(begun, Decision)
    run = _step(begun.after, "priced", PRICED)
    run = _step(run, "invoiced", _given("invoiced", run.context, "invoicing")[0])
    run = _step(run, "spent", _spent(Spent, "broadcast", run.context))
    run = _step(run, "followed", _followed("deep_enough", run.context))
    assert run.state == "settling"
    return run


def _step(run: Run, event: str, payload: Event) -> Run:
    result = decide(TABLE, run, event, payload, PAUSE_MS)
    assert isinstance(result, Decision), result
    return result.after


def _spent(kind: Any, state: str, context: Purchase) -> Any:
    order = SpendOrder(
        currency=context.currency,
        address=INVOICED.invoice.address,
        amount_atomic=context.legs[-1].amount_atomic,
        pay_by_ms=LONG_MS,
        confirmations=context.required,
        poll_ms=PAUSE_MS,
        fee_atomic_max=1,
    )
    signed = dict(OF.ends_of("Spend", order, "building") or ())["broadcast"].transaction
    sent = state == "broadcast"
    output = SpendResult(transaction=signed if sent else None, reason="")
    return kind(run_id="child", machine="Spend", state=state, succeeded=sent, output=output)


def _followed(state: str, context: Purchase) -> Followed:
    deep = state == "deep_enough"
    output = FollowResult(depth=context.required if deep else 0)
    return Followed(
        run_id="child", machine="Confirmation", state=state, succeeded=deep, output=output
    )
