"""GiftCard, edge by edge.  The card is of 1,000 cents."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.secret import Secret
from engine.table import compile_table
from machines.clients.ports import Currency, Invoice
from machines.flows.f03b_gift_card import GiftCard
from machines.flows.gift_card import (
    CARDS_MAX,
    CardMade,
    CardOrder,
    CardPayment,
    CardReceipt,
    CardSeen,
    CodeGone,
    Limits,
    Paid,
)
from machines.flows.purchase import Declined, NoWallet


def _in(duration_ms: int) -> Any:
    return lambda context, now_ms: now_ms + duration_ms


FAILS = {"status": "failed"}
WAITS = {"waits_for_cancel": True}

ORDER = CardOrder(
    amount_cents=1_000,
    currency=Currency.LTC,
    budget_cents=1_000,
    passphrase=Secret("open"),
    amount_atomic_max=77,
    poll_ms=14,
    silence_ms=800,
    watch_ms=900,
)
INVOICE = Invoice(
    invoice_id="inv-1",
    currency=Currency.LTC,
    address="shop",
    amount_atomic=5,
    price_cents=1_000,
    tier=0,
    months=0,
    expires_ms=30_000,
    confirmations_required=6,
)
CODE = Secret("four-words-joined-up")
QUIET = {"on_timeout": "nobody_answers"}
PLACES: dict[str, dict[str, Any]] = {
    "checking_limits": {"status": "running", "due": _in(800), "sends": QUIET},
    "creating": {"status": "running", "due": _in(800),
                 "sends": {**QUIET, "on_exhausted": "no_wallet"}},
    "awaiting_payment": {"status": "waiting", "child": True, "moved": True, **WAITS},
    "active": {"status": "running", "due": _in(900), "moved": True,
               "sends": {"on_timeout": "watch_over"}},
    "issued": {"status": "completed"},
    "exhausted": {"status": "completed"},
    **dict.fromkeys(
        ("expired", "disputed", "over_budget", "below_minimum", "above_maximum", "unavailable",
         "order_refused", "wallet_refused", "code_lost", "unfunded", "expired_unpaid", "refunded",
         "payment_unsettled"),
        FAILS,
    ),
}  # fmt: skip
KEPT: dict[str, Any] = {"card_id": "c1", "code": CODE, "invoice": INVOICE, "refund_address": "ours"}
MADE = CardMade(card_id="c1", code=CODE, amount_cents=1_000, invoice=INVOICE, refund_address="ours")
PAID: dict[str, Any] = {**KEPT, "paid_cents": 1_000, "txids": ("t1",), "balance_cents": 1_000,
                        "passphrase": None}  # fmt: skip


def _limited(to: str, least: int, most: int, **more: Any) -> dict[str, Any]:
    return {"state": "checking_limits", "to": to,
            "event": Limits(minimum_cents=least, maximum_cents=most), **more}  # fmt: skip


def _made(to: str, reason: str = "", **changes: Any) -> dict[str, Any]:
    event = msgspec.structs.replace(MADE, **changes)
    gives = {"reason": reason} if reason else KEPT
    return {"state": "creating", "event": event, "to": to, "gives": gives}


def _ended(state: str, *, succeeded: bool = False, cents: int | None = None) -> Paid:
    output = None if cents is None else CardPayment(paid_cents=cents, txids=("t1",))
    return Paid(run_id="c", machine="Payment", state=state, succeeded=succeeded, output=output)


def _unpaid(state: str, to: str, **more: Any) -> dict[str, Any]:
    return {"state": "awaiting_payment", "event": _ended(state, **more), "given": KEPT, "to": to,
            "gives": {"reason": f"the payment ended as {state}"}}  # fmt: skip


def _seen(to: str, balance: int, taken: int, standing: Any = "active", pending: int = 0,
          **gives: Any) -> dict[str, Any]:  # fmt: skip
    event = CardSeen(standing=standing, balance_cents=balance, taken_cents=taken, pending=pending)
    return {"state": "active", "event": event, "given": {**PAID, "watch": True}, "to": to,
            "gives": gives}  # fmt: skip


RECEIPT = {f: PAID[f] for f in ("paid_cents", "txids", "balance_cents", "passphrase")}
DELIVERED = {"state": "awaiting_payment", "gives": {**RECEIPT, "reason": ""},
             "event": _ended("delivered", succeeded=True, cents=1_000)}  # fmt: skip
ONE_LOST = "the code of 1 card(s) was told in a reply that was lost; none was paid"
ROWS: list[dict[str, Any]] = [
    _limited("creating", 1_000, 1_000),
    _limited("creating", 1, 9_999),
    _limited("below_minimum", 1_001, 9_999,
             gives={"reason": "cards hold 1001 to 9999 cents, not 1000"}),
    _limited("below_minimum", 1_001, 999,
             gives={"reason": "cards hold 1001 to 999 cents, not 1000"}),
    _limited("above_maximum", 1, 999, gives={"reason": "cards hold 1 to 999 cents, not 1000"}),
    _limited("below_minimum", 0, 9_999, given={"amount_cents": 0},
             gives={"reason": "cards hold 0 to 9999 cents, not 0"}),
    _limited("creating", 0, 9_999, given={"amount_cents": 1}),
    _limited("over_budget", 1_001, 9_999, given={"budget_cents": 999},
             gives={"reason": "a card of 1000 cents, a budget of 999"}),
    *({"state": state, "event": "nobody_answers", "to": "unavailable"}
      for state in ("checking_limits", "creating")),
    _made("awaiting_payment"),
    _made("order_refused", "ordered 1000 cents, got 999 for 1000", amount_cents=999),
    _made("order_refused", "ordered 1000 cents, got 1001 for 1000", amount_cents=1_001),
    _made("order_refused", "ordered 1000 cents, got 1000 for 1001",
          invoice=msgspec.structs.replace(INVOICE, price_cents=1_001)),
    _made("order_refused", "ordered 1000 cents, got 999 for 999", amount_cents=999,
          invoice=msgspec.structs.replace(INVOICE, price_cents=999)),
    _made("order_refused", "ordered 1000 cents, got 1000 for 1000", card_id=""),
    _made("order_refused", "ordered 1000 cents, got 1000 for 1000", code=Secret("")),
    {"state": "creating", "event": CodeGone(card_id="c1"), "to": "creating",
     "gives": {"codes_lost": 1, "reason": ONE_LOST}},
    {"state": "creating", "event": CodeGone(card_id="c1"), "to": "creating",
     "given": {"codes_lost": CARDS_MAX - 2},
     "gives": {"codes_lost": CARDS_MAX - 1, "reason": ONE_LOST.replace("1", "2")}},
    {"state": "creating", "event": CodeGone(card_id="c1"), "to": "code_lost",
     "given": {"codes_lost": CARDS_MAX - 1},
     "gives": {"codes_lost": CARDS_MAX, "reason": ONE_LOST.replace("1", "3")}},
    {"state": "creating", "event": Declined(reason="closed"), "to": "order_refused",
     "gives": {"reason": "closed"}},
    {"state": "creating", "event": NoWallet(effect="order_card", reason="none", attempts=1),
     "to": "wallet_refused", "gives": {"reason": "none"}},
    DELIVERED | {"given": {**KEPT, "reason": "earlier"}, "to": "issued"},
    DELIVERED | {"given": {**KEPT, "reason": "earlier", "watch": True}, "to": "active"},
    _unpaid("delivered", "payment_unsettled"),
    _unpaid("refunded", "refunded"),
    _unpaid("refunded", "refunded", cents=1_000),
    _unpaid("unfunded", "unfunded"),
    _unpaid("wallet_refused", "wallet_refused"),
    _unpaid("expired_unpaid", "expired_unpaid"),
    *(_unpaid(state, "order_refused")
      for state in ("price_changed", "invoice_refused", "over_budget", "unavailable")),
    *(_unpaid(state, "payment_unsettled")
      for state in ("unsettled", "unconfirmed", "refund_disputed", "completed")),
    _seen("active", 300, 700, balance_cents=300),
    _seen("active", 1_000, 0),
    _seen("active", 0, 1_000, "exhausted", 1, balance_cents=0),
    _seen("active", 1_000, 0, "exhausted"),
    _seen("active", 0, 0, "unpaid", balance_cents=0),
    _seen("active", 999, 0, "reversed", balance_cents=999),
    _seen("exhausted", 0, 1_000, "exhausted", balance_cents=0),
    _seen("active", 0, 1_000, "active", balance_cents=0),
    _seen("expired", 0, 0, "expired", balance_cents=0,
          reason="the portal says that the card has expired"),
    *(_seen("disputed", balance, taken, standing,
            reason=f"{balance} cents left and {taken} taken of a card of 1000")
      for balance, taken, standing in [
          (300, 699, "active"), (300, 701, "active"), (1, 1_000, "exhausted"),
          (-1, 1_001, "active"), (1_001, -1, "active"), (1_001, 0, "unpaid"),
          (-1, 0, "expired")]),
    {"state": "active", "event": "watch_over", "given": PAID, "to": "issued"},
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['state']}-{row.get('to')}")
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(GiftCard, ORDER, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(GiftCard, ORDER, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(GiftCard, ORDER, PLACES)


def test_the_child_pays_the_card(run_in: Any) -> None:
    context = run_in(GiftCard, ORDER, "awaiting_payment", **KEPT).context
    child = compile_table(GiftCard).places["awaiting_payment"].child
    assert child is not None
    asked = child({"context": context})
    assert asked.machine == "Payment"
    assert dict(asked.context) == {
        "goods": "card", "tier": 0, "months": 0, "currency": "LTC", "offer": INVOICE,
        "price_cents": 1_000, "refund_address": "ours", "budget_cents": 1_000,
        "amount_atomic_max": 77, "passphrase": Secret("open"), "poll_ms": 14, "silence_ms": 800,
    }  # fmt: skip


@pytest.mark.parametrize("missing", [{"code": None}, {"paid_cents": 0}, {}])
def test_receipt(output_of: Any, missing: dict[str, Any]) -> None:
    told = CardReceipt(card_id="c1", code=CODE, amount_cents=1_000, paid_cents=1_000, txids=("t1",))
    assert output_of(GiftCard, ORDER, **{**PAID, **missing}) == (None if missing else told)


def test_contracts(verdicts: Any) -> None:
    """Each at its limit."""
    holds = verdicts(GiftCard, ORDER)
    assert holds("budget_is_respected", **PAID)
    assert not holds("budget_is_respected", **PAID | {"paid_cents": 1_001})
    for balance, good in [(None, True), (0, True), (1_000, True), (-1, False), (1_001, False)]:
        assert holds("is_never_overdrawn", balance_cents=balance) is good
    assert holds("paid_has_a_code") and holds("paid_has_a_code", **PAID)
    assert not holds("paid_has_a_code", paid_cents=1)
    assert not holds("paid_has_a_code", invoice=INVOICE)
    assert holds("codes_are_lost_a_few_times", codes_lost=CARDS_MAX)
    assert not holds("codes_are_lost_a_few_times", codes_lost=CARDS_MAX + 1)
    assert holds("has_no_code")
    assert not holds("has_no_code", code=CODE) and not holds("has_no_code", paid_cents=1)
    assert holds("holds_the_code", **KEPT)
    assert not holds("holds_the_code", code=CODE) and not holds("holds_the_code", invoice=INVOICE)
    assert holds("is_paid", **PAID)
    assert holds("is_paid", **PAID | {"amount_cents": 1, "paid_cents": 1})
    for wrong in ({"code": None}, {"passphrase": Secret("open")}, {"paid_cents": 999},
                  {"paid_cents": 0, "amount_cents": 0}):  # fmt: skip
        assert not holds("is_paid", **PAID | wrong)
    assert holds("is_used_up", **PAID | {"balance_cents": 0})
    assert not holds("is_used_up", **PAID | {"balance_cents": 1})
    assert not holds("is_used_up", **PAID | {"balance_cents": 0, "code": None})
    assert holds("paid_nothing")
    assert not holds("paid_nothing", paid_cents=1) and not holds("paid_nothing", txids=("t1",))


def test_postconditions(ensured: Any) -> None:
    """Each at its limit."""
    after = ensured(GiftCard, ORDER)
    delivered, refunded = DELIVERED["event"], _ended("refunded")
    assert after("all_or_nothing_was_paid", event=delivered, **PAID)
    assert not after("all_or_nothing_was_paid", event=delivered, **PAID | {"paid_cents": 999})
    assert after("all_or_nothing_was_paid", event=refunded)
    assert not after("all_or_nothing_was_paid", event=refunded, **PAID)
    old = msgspec.structs.replace(ORDER, **PAID)
    assert after("face_value_stays", old=old, **PAID | {"balance_cents": 3})
    assert not after("face_value_stays", old=old, **PAID | {"paid_cents": 999})
    assert not after("face_value_stays", old=old, **PAID | {"amount_cents": 999})
