"""Payment, edge by edge.  The invoice asks 1,000 units; nothing is sent from 29,500 ms on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.secret import Secret
from engine.table import compile_table
from machines.clients.ports import Currency, Invoice, SignedTransaction
from machines.flows.f03_payment import GENERATIONS_MAX, Payment
from machines.flows.money import STALL_MS, Leg
from machines.flows.purchase import (
    Activated,
    Declined,
    Delivery,
    Denied,
    FellShort,
    Followed,
    FollowResult,
    Invoiced,
    Issued,
    NotOffered,
    NoWallet,
    Priced,
    Proven,
    Purchase,
    RanOut,
    Receipt,
    Refunding,
    RefundSeen,
    Regenerated,
    SankAgain,
    SecretGone,
    SpendResult,
    Spent,
    Topped,
    Unproven,
    Watched,
)

BASE = Purchase(
    tier=1,
    months=1,
    currency=Currency.LTC,
    budget_cents=1_000,
    poll_ms=14,
    cut_ms=500,
    follow_ms=7_000,
    settle_ms=600,
    refund_ms=700,
    silence_ms=800,
    fee_atomic_max=50,
)
INVOICE = Invoice(
    invoice_id="inv-1",
    currency=Currency.LTC,
    address="shop",
    amount_atomic=1_000,
    price_cents=700,
    tier=1,
    months=1,
    expires_ms=30_000,
    confirmations_required=6,
)


def _in(duration_ms: int) -> Any:
    return lambda context, now_ms: now_ms + duration_ms


def _transaction(number: int, amount_atomic: int) -> SignedTransaction:
    return SignedTransaction(
        txid=f"t{number}",
        payload=Secret("bytes"),
        inputs=(f"in-{number}",),
        fee_atomic=10,
        amount_atomic=amount_atomic,
        address="shop",
    )


def _leg(number: int, status: Any, amount_atomic: int = 1_000, **changes: Any) -> Leg:
    fields: dict[str, Any] = {"received_before_atomic": 0}
    if status in ("sent", "deep"):
        fields |= {"txid": f"t{number}", "fee_atomic": 10,
                   "transaction": _transaction(number, amount_atomic)}  # fmt: skip
    if status == "deep":
        fields |= {"depth": 6}
    fields |= changes
    return Leg(number=number, amount_atomic=amount_atomic, status=status, **fields)


FAILS = {"status": "failed"}
WAITS = {"waits_for_cancel": True}
SETTLING = {"on_timeout": "no_settlement"}
PLACES: dict[str, dict[str, Any]] = {
    "pricing": {"status": "running", "due": _in(800), "sends": {"on_timeout": "nobody_answers"}},
    "invoicing": {"status": "running", "due": _in(800), "moved": True,
                  "sends": {"on_timeout": "nobody_answers", "on_exhausted": "no_wallet"}},
    "paying": {"status": "waiting", "child": True, "moved": True, **WAITS},
    "confirming": {"status": "waiting", "child": True, "moved": True, **WAITS},
    "settling": {"status": "running", "moved": True, **WAITS, "sends": {"on_timeout": "overdue"},
                 "due": lambda c, now_ms: max(30_000, now_ms) + 5 * 14},
    "topping_up": {"status": "waiting", "child": True, **WAITS},
    "expired_partial": {"status": "running", "due": _in(600), "sends": SETTLING, **WAITS},
    "late": {"status": "running", "due": _in(600), "sends": SETTLING, **WAITS},
    "refund_pending": {"status": "running", "due": _in(700), **WAITS,
                       "sends": {"on_timeout": "refund_overdue"}},
    "secret_lost": {"status": "running", "due": _in(600), "sends": SETTLING, **WAITS},
    "key_stored": {"status": "running", "due": _in(600), "moved": True, **WAITS,
                   "sends": {"on_timeout": "test_overdue", "on_exhausted": "unproven"}},
    "watching": {"status": "waiting", "child": True, **WAITS},
    "completed": {"status": "completed"},
    "delivered": {"status": "completed"},
    **dict.fromkeys(
        ("refunded", "over_budget", "not_offered", "unavailable", "price_changed",
         "invoice_refused", "wallet_refused", "unfunded", "expired_unpaid", "unconfirmed",
         "unsettled", "refund_disputed", "key_refused", "completed_at_risk"),
        FAILS,
    ),
}  # fmt: skip
OPEN, SENT, DEEP = (_leg(1, status) for status in ("open", "sent", "deep"))
DEAD = _leg(1, "dead", **{f: getattr(SENT, f) for f in ("txid", "fee_atomic", "transaction")})
UNSENT = _leg(1, "unsent")
ORDERED: dict[str, Any] = {"price_cents": 700, "invoice": INVOICE, "refund_address": "ours"}
PAYING = {**ORDERED, "legs": (OPEN,)}
CONFIRMING = {**ORDERED, "legs": (SENT,), "sent_ms": 9_000}
SETTLED = {**ORDERED, "legs": (DEEP,), "sent_ms": 9_000}
SECRET = Secret("sk")
STORED = {**SETTLED, "public_key": "pk", "secret_key": SECRET}
NEXT = _leg(2, "open", 50, received_before_atomic=950)
TOPPING = {**SETTLED, "legs": (DEEP, NEXT), "received_atomic": 950, "unmatched_atomic": 50}


# -- until something is paid --------------------------------------------------------------------


def _invoiced(to: str, *, now_ms: int = 10_000, address: str = "ours", given: Any = None,
              keeps: bool = False, reason: str = "", **changes: Any) -> dict[str, Any]:  # fmt: skip
    invoice = msgspec.structs.replace(INVOICE, **changes)
    gives: dict[str, Any] = {"invoice": invoice, "refund_address": address} if keeps else {}
    if to == "paying":
        gives |= {"legs": (OPEN,)}
    if reason:
        gives |= {"reason": reason}
    return {"state": "invoicing", "event": Invoiced(invoice=invoice, refund_address=address),
            "given": {"price_cents": 700, **(given or {})}, "to": to, "gives": gives,
            "now_ms": now_ms}  # fmt: skip


def _insane(asked: str, tier: int = 1, **changes: Any) -> dict[str, Any]:
    reason = f"the invoice asks {asked} for tier {tier}: not as ordered"
    if tier != 1:
        changes["tier"] = tier
    return _invoiced("invoice_refused", reason=reason, **changes)


BEFORE: list[dict[str, Any]] = [
    *({"state": "pricing", "event": Priced(price_cents=cents), "to": to,
       "gives": {"price_cents": cents} if cents else {}}
      for cents, to in [(1, "invoicing"), (1_000, "invoicing"), (1_001, "over_budget"),
                        (0, "over_budget")]),
    {"state": "pricing", "event": NotOffered(offers=3), "to": "not_offered",
     "gives": {"reason": "tier 1 for 1 months is none of 3 quotes"}},
    *({"state": state, "event": "nobody_answers", "to": "unavailable"}
      for state in ("pricing", "invoicing")),
    _invoiced("paying", keeps=True),
    _invoiced("paying", keeps=True, now_ms=29_499),
    _invoiced("paying", keeps=True, given={"amount_atomic_max": 1_000}),
    _invoiced("paying", keeps=True, given={"amount_atomic_max": None}),
    _invoiced("paying", keeps=True, amount_atomic=1) | {
        "gives": {"invoice": msgspec.structs.replace(INVOICE, amount_atomic=1),
                  "refund_address": "ours", "legs": (_leg(1, "open", 1),)}},
    _invoiced("expired_unpaid", keeps=True, now_ms=29_500),
    _invoiced("price_changed", price_cents=701, reason="quoted 700 cents, invoiced 701"),
    _invoiced("price_changed", price_cents=701, tier=2, reason="quoted 700 cents, invoiced 701"),
    _insane("1000 LTC", tier=2),
    _insane("1000 LTC", months=2),
    _insane("1000 BTC", currency=Currency.BTC),
    _insane("0 LTC", amount_atomic=0),
    _insane("-1 LTC", amount_atomic=-1),
    _insane("1000 LTC", given={"amount_atomic_max": 999}),
    _insane("1000 LTC", now_ms=29_500, given={"amount_atomic_max": 999}),
    _insane("1000 LTC", address="shop"),
    _invoiced("invoice_refused", reason="the invoice asks 1000 LTC for tier 1: not as ordered") | {
        "event": Invoiced(invoice=msgspec.structs.replace(INVOICE, address=""),
                          refund_address="ours")},
    {"state": "invoicing", "event": Declined(reason="closed"), "to": "invoice_refused",
     "gives": {"reason": "closed"}},
    {"state": "invoicing", "event": NoWallet(effect="open_invoice", reason="none", attempts=1),
     "to": "wallet_refused", "gives": {"reason": "none"}},
]  # fmt: skip

# -- legs ---------------------------------------------------------------------------------------


def _spent(kind: Any, state: str, transaction: Any = None, *, told: bool = True) -> Any:
    output = SpendResult(transaction=transaction, reason=f"was {state}") if told else None
    return kind(run_id="c", machine="Spend", state=state, succeeded=state == "broadcast",
                output=output)  # fmt: skip


def _paid(state: str, to: str, leg: Leg, transaction: Any = None, **more: Any) -> dict[str, Any]:
    gives = {"legs": (leg,), "reason": f"was {state}"}
    return {"state": "paying", "event": _spent(Spent, state, transaction), "given": PAYING,
            "to": to, "gives": gives, **more}  # fmt: skip


def _topped(state: str, to: str, leg: Leg, transaction: Any = None, **gives: Any) -> dict[str, Any]:
    told = {} if to == "confirming" else {"reason": f"was {state}", "unmatched_atomic": 0}
    return {"state": "topping_up", "event": _spent(Topped, state, transaction), "given": TOPPING,
            "to": to, "gives": {"legs": (DEEP, leg), **told, **gives}}  # fmt: skip


def _followed(state: str, depth: int | None, to: str, succeeded: bool = True,
              **gives: Any) -> dict[str, Any]:  # fmt: skip
    output = None if depth is None else FollowResult(depth=depth)
    event = Followed(run_id="c", machine="Confirmation", state=state, succeeded=succeeded,
                     output=output)  # fmt: skip
    return {"state": "confirming", "event": event, "given": CONFIRMING, "to": to, "gives": gives}


NOT_OURS = {"legs": (msgspec.structs.replace(OPEN, status="dead"),)}
SECOND = _leg(2, "sent", 50, received_before_atomic=950, unmatched_before_atomic=7)
SECOND_DEAD = msgspec.structs.replace(SECOND, status="dead")
FOLLOWED_BADLY = "following the payment ended as given_up"
LEGS: list[dict[str, Any]] = [
    {"state": "paying", "event": _spent(Spent, "broadcast", _transaction(1, 1_000)),
     "given": PAYING, "to": "confirming", "gives": {"legs": (SENT,), "sent_ms": 10_000}},
    _paid("conflicted", "settling", NOT_OURS["legs"][0]),
    _paid("conflicted", "settling", NOT_OURS["legs"][0], now_ms=29_999),
    _paid("conflicted", "settling", NOT_OURS["legs"][0], now_ms=31_000),
    _paid("unfunded", "unfunded", UNSENT),
    _paid("rejected", "wallet_refused", UNSENT),
    _paid("abandoned", "expired_unpaid", UNSENT),
    _paid("broadcast", "expired_unpaid", UNSENT),
    _paid("abandoned", "expired_unpaid", UNSENT) | {
        "event": _spent(Spent, "abandoned", told=False),
        "gives": {"legs": (UNSENT,), "reason": "the spend ended as abandoned"}},
    _paid("abandoned", "expired_unpaid", UNSENT, _transaction(1, 1_000)),
    _followed("deep_enough", 6, "settling", legs=(DEEP,)),
    _followed("deep_enough", 7, "settling", legs=(_leg(1, "deep", depth=7),)),
    *(_followed("given_up", depth, "unconfirmed", succeeded, reason=FOLLOWED_BADLY)
      for depth, succeeded in [(5, True), (6, False), (None, True), (None, False)]),
    _followed("replaced", None, "settling", False, legs=(DEAD,)),
    _followed("replaced", None, "settling", False, legs=(DEEP, SECOND_DEAD), unmatched_atomic=7)
    | {"given": {**TOPPING, "legs": (DEEP, SECOND)}},
    {"state": "settling", "event": SankAgain(number=1, confirmations=0), "given": SETTLED,
     "to": "confirming", "gives": {"legs": (_leg(1, "sent", depth=0),), "sent_ms": 10_000}},
    {"state": "settling", "event": SankAgain(number=1, confirmations=5), "given": SETTLED,
     "to": "confirming", "gives": {"legs": (_leg(1, "sent", depth=5),), "sent_ms": 10_000}},
    *({"state": "settling", "event": SankAgain(number=number, confirmations=confirmations),
       "given": SETTLED, "refused": "leg_is_ours"}
      for number, confirmations in [(2, 0), (1, 6), (1, -1)]),
    {"state": "settling", "event": FellShort(received_atomic=950), "given": SETTLED,
     "to": "topping_up", "gives": {"legs": (DEEP, NEXT), "received_atomic": 950,
                                   "unmatched_atomic": 50}},
    {"state": "settling", "event": FellShort(received_atomic=0),
     "given": {**SETTLED, "legs": (DEAD,)}, "to": "topping_up",
     "gives": {"legs": (DEAD, _leg(2, "open"))}},
    {"state": "settling", "event": FellShort(received_atomic=950), "given": SETTLED,
     "now_ms": 29_500, "to": "settling"},
    {"state": "settling", "event": FellShort(received_atomic=0), "given": SETTLED,
     "to": "settling"},
    {"state": "settling", "event": FellShort(received_atomic=-1), "given": SETTLED,
     "refused": "count_is_not_negative"},
    {"state": "settling", "event": FellShort(received_atomic=960),
     "given": {**SETTLED, "legs": (_leg(1, "deep", 1_000),), "unmatched_atomic": 7},
     "to": "topping_up",
     "gives": {"legs": (DEEP, _leg(2, "open", 40, received_before_atomic=960,
                                   unmatched_before_atomic=7)),
               "received_atomic": 960, "unmatched_atomic": 40}},
    _topped("broadcast", "confirming", _leg(2, "sent", 50, received_before_atomic=950),
            _transaction(2, 50), sent_ms=10_000),
    _topped("conflicted", "settling", msgspec.structs.replace(NEXT, status="dead")),
    *(_topped(state, "settling", msgspec.structs.replace(NEXT, status="unsent"),
              top_ups_closed=True) for state in ("unfunded", "rejected", "abandoned", "broadcast")),
]  # fmt: skip

# -- the key, or the money back -----------------------------------------------------------------

GONE = SecretGone(public_key="pk", received_atomic=1_000)
ISSUED = Issued(public_key="pk", secret_key=SECRET, received_atomic=1_000)
HELD = {"public_key": "pk", "received_atomic": 1_000}
KEPT = {"secret_key": SECRET, **HELD}
BOUGHT = msgspec.structs.replace(DEEP, transaction=None)
REFUND = {**SETTLED, "received_atomic": 1_000, "refund_base_atomic": 1_000}
WAITING = ("settling", "late", "expired_partial")
SHALLOW = {**SETTLED, "legs": (_leg(1, "sent", depth=5),)}
PARTLY = {**SETTLED, "legs": (_leg(1, "deep", 999),)}
NEW = Secret("new")
CARD = {**SETTLED, "goods": "card"}
ACTIVE = Activated(received_atomic=1_000)


def _ended(state: str, event: Any, **gives: Any) -> dict[str, Any]:
    given = {**STORED, "passphrase": Secret("open"), "reason": "earlier"}
    gives = {"legs": (BOUGHT,), "passphrase": None, "reason": "", **gives}
    return {"state": state, "event": event, "given": given, "to": "completed", "gives": gives}


END: list[dict[str, Any]] = [
    *({"state": state, "event": ACTIVE, "to": "delivered",
       "given": {**CARD, "passphrase": Secret("open"), "reason": "earlier"},
       "gives": {"legs": (BOUGHT,), "passphrase": None, "reason": "", "received_atomic": 1_000}}
      for state in WAITING),
    {"state": "settling", "event": Activated(received_atomic=1_007), "to": "delivered",
     "given": CARD, "gives": {"legs": (BOUGHT,), "received_atomic": 1_007, "overpaid_atomic": 7}},
    *({"state": state, "event": ACTIVE, "given": {**given, "goods": "card"},
       "refused": "payment_is_deep"} for state in WAITING for given in (SHALLOW, PARTLY)),
    *({"state": state, "event": ACTIVE, "given": SETTLED, "refused": "card_was_ordered"}
      for state in WAITING),
    *({"state": state, "event": event, "given": CARD, "refused": "key_was_ordered"}
      for state in WAITING for event in (ISSUED, GONE)),
    *({"state": state, "event": ISSUED, "given": SETTLED, "to": "key_stored", "gives": KEPT}
      for state in WAITING),
    *({"state": state, "event": GONE, "given": SETTLED, "to": "secret_lost", "gives": HELD}
      for state in WAITING),
    *({"state": state, "event": event, "given": given, "refused": "payment_is_deep"}
      for state in WAITING for event in (ISSUED, GONE) for given in (SHALLOW, PARTLY)),
    {"state": "settling", "given": SETTLED, "to": "key_stored",
     "event": msgspec.structs.replace(ISSUED, received_atomic=1_007),
     "gives": {**KEPT, "received_atomic": 1_007, "overpaid_atomic": 7}},
    {"state": "settling", "given": SETTLED, "to": "key_stored",
     "event": msgspec.structs.replace(ISSUED, received_atomic=999),
     "gives": {**KEPT, "received_atomic": 999}},
    {"state": "settling", "given": TOPPING | {"legs": (DEEP, _leg(2, "deep", 50))},
     "event": ISSUED, "to": "key_stored", "gives": KEPT},
    *({"state": "settling", "event": RanOut(received_atomic=received), "given": given, "to": to,
       "gives": {"received_atomic": received} if received else {}}
      for received, given, to in [
          (0, {**SETTLED, "legs": (DEAD,)}, "expired_unpaid"),
          (1, {**SETTLED, "legs": (DEAD,)}, "expired_unpaid"),
          (0, SETTLED, "late"), (1, SETTLED, "expired_partial"),
          (999, SETTLED, "expired_partial"), (1_000, SETTLED, "late")]),
    {"state": "settling", "event": RanOut(received_atomic=-1), "given": SETTLED,
     "refused": "count_is_not_negative"},
    {"state": "settling", "event": "overdue", "given": SETTLED, "to": "late"},
    {"state": "settling", "event": "overdue", "given": {**SETTLED, "legs": (DEAD,)},
     "to": "expired_unpaid"},
    *({"state": state, "event": Refunding(received_atomic=received), "given": SETTLED,
       "to": "refund_pending",
       "gives": {"received_atomic": received, "refund_base_atomic": received}}
      for state in ("late", "expired_partial") for received in (1, 400, 1_000)),
    *({"state": state, "event": Refunding(received_atomic=0), "given": SETTLED,
       "refused": "something_comes_back"} for state in ("late", "expired_partial")),
    *({"state": state, "event": "no_settlement", "given": SETTLED, "to": "unsettled"}
      for state in ("late", "expired_partial", "secret_lost")),
    *({"state": "refund_pending", "event": RefundSeen(refund_atomic=seen), "given": REFUND,
       "to": to, "gives": {"refund_atomic": seen}}
      for seen, to in [(910, "refunded"), (911, "refund_disputed"), (909, "refund_pending")]),
    {"state": "refund_pending", "event": "refund_overdue", "given": REFUND,
     "to": "refund_disputed"},
    {"state": "secret_lost", "event": Regenerated(public_key="pk", secret_key=NEW),
     "given": {**SETTLED, "generation": 1}, "to": "key_stored",
     "gives": {"public_key": "pk", "secret_key": NEW, "generation": 2}},
    _ended("key_stored", Proven(tier=1), proven=True),
    _ended("key_stored", Unproven(effect="prove_key", reason="silence", attempts=8)),
    _ended("key_stored", "test_overdue"),
    *({"state": "key_stored", "event": Denied(reason=reason),
       "given": {**STORED, "generation": generation}, "to": to,
       "gives": {"secret_key": None, "reason": reason}}
      for reason, generation, to in [
          ("invalid_key", 0, "secret_lost"),
          ("invalid_signature", GENERATIONS_MAX - 1, "secret_lost"),
          ("invalid_signature", GENERATIONS_MAX, "key_refused"),
          ("suspended", 0, "key_refused")]),
]  # fmt: skip


# -- watched after that -------------------------------------------------------------------------

WATCHED = {**STORED, "watch": True, "passphrase": Secret("open")}
UNPROVEN = Unproven(effect="prove_key", reason="silence", attempts=8)
TOPPED_UP, NOT_SENT = _leg(2, "deep", 50), _leg(3, "unsent", 50)
TWO = {"legs": (DEEP, TOPPED_UP, NOT_SENT), "unmatched_atomic": 50}


def _stored(event: Any, to: str, depth: int, **gives: Any) -> dict[str, Any]:
    leg = _leg(1, "deep", depth=depth)
    given = {**WATCHED, "legs": (leg,), "reason": "earlier"}
    bare = msgspec.structs.replace(leg, transaction=None)
    gives |= {"reason": "", **({"sent_ms": 10_000} if to == "watching" else
                               {"legs": (bare,), "passphrase": None})}  # fmt: skip
    return {"state": "key_stored", "event": event, "given": given, "to": to, "gives": gives}


def _watched(state: str, depth: int | None, to: str, leg: Leg, reason: str = "") -> dict[str, Any]:
    output = None if depth is None else FollowResult(depth=depth)
    event = Watched(run_id="c", machine="Confirmation", state=state,
                    succeeded=state == "deep_enough", output=output)  # fmt: skip
    bare = msgspec.structs.replace(leg, transaction=None)
    gives: dict[str, Any] = {"legs": (bare,), "passphrase": None}
    if reason:
        gives["reason"] = f"watching the payment ended as {reason} deep"
    return {"state": "watching", "event": event, "given": WATCHED, "to": to, "gives": gives}


def _lost(depth: int = 0) -> Leg:
    return msgspec.structs.replace(DEEP, status="lost", depth=depth)


WATCH: list[dict[str, Any]] = [
    *(_stored(event, to, depth, **({"proven": True} if isinstance(event, Proven) else {}))
      for event in (Proven(tier=1), UNPROVEN, "test_overdue")
      for depth, to in [(6, "watching"), (11, "watching"), (12, "completed")]),
    _watched("deep_enough", 12, "completed", _leg(1, "deep", depth=12)),
    _watched("deep_enough", 13, "completed", _leg(1, "deep", depth=13)),
    _watched("given_up", 11, "completed", _leg(1, "deep", depth=11), "given_up, 11"),
    _watched("given_up", 6, "completed", DEEP, "given_up, 6"),
    _watched("given_up", 5, "completed_at_risk", _lost(5), "given_up, 5"),
    _watched("replaced", 0, "completed_at_risk", _lost(), "replaced, 0"),
    _watched("replaced", None, "completed_at_risk", _lost(), "replaced, 0"),
    _watched("replaced", 0, "completed_at_risk", DEEP, "replaced, 0") | {"given": WATCHED | TWO} | {
        "gives": {"legs": (BOUGHT, msgspec.structs.replace(TOPPED_UP, status="lost", depth=0,
                                                           transaction=None), NOT_SENT),
                  "passphrase": None,
                  "reason": "watching the payment ended as replaced, 0 deep"}},
]  # fmt: skip


@pytest.mark.parametrize(
    "row", [*BEFORE, *LEGS, *END, *WATCH], ids=lambda row: f"{row['state']}-{row.get('to')}"
)
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(Payment, BASE, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(Payment, BASE, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(Payment, BASE, PLACES)


@pytest.mark.parametrize("dead", [True, False])
def test_the_child_follows_the_one_leg_that_is_on_its_way(run_in: Any, dead: bool) -> None:
    context = run_in(Payment, BASE, "confirming", **CONFIRMING).context
    if dead:
        replaced = _leg(2, "sent")
        context = msgspec.structs.replace(context, legs=(DEAD, replaced), stall_ms=77)
    child = compile_table(Payment).places["confirming"].child
    assert child is not None
    asked = dict(child({"context": context}).context)
    assert asked["transaction"] == context.legs[-1].transaction
    assert asked["stall_ms"] == (77 if dead else STALL_MS[Currency.LTC])
    assert asked["give_up_ms"] == 9_000 + 7_000
    assert (asked["required"], asked["depth"], asked["depth_max"]) == (6, 0, 0)


@pytest.mark.parametrize("topped_up", [False, True])
def test_the_child_watches_the_last_leg_that_paid(run_in: Any, topped_up: bool) -> None:
    """From where it was, to twice the depth that counts; its time begins now."""
    given = {**WATCHED, "sent_ms": 10_000, "stall_ms": 77, **(TWO if topped_up else {})}
    context = run_in(Payment, BASE, "watching", **given).context
    child = compile_table(Payment).places["watching"].child
    assert child is not None
    wanted = child({"context": context})
    assert wanted.machine == "Confirmation"
    assert dict(wanted.context) == {
        "currency": "LTC",
        "transaction": (TOPPED_UP if topped_up else DEEP).transaction,
        "required": 12,
        "poll_ms": 14,
        "stall_ms": 77,
        "since_ms": 10_000,
        "give_up_ms": 17_000,
        "passphrase": Secret("open"),
        "depth": 6,
        "depth_max": 6,
    }


def test_the_child_pays_the_leg_opened_last(run_in: Any) -> None:
    context = run_in(Payment, BASE, "topping_up", **TOPPING).context
    child = compile_table(Payment).places["topping_up"].child
    assert child is not None
    asked = dict(child({"context": context}).context)
    assert (asked["amount_atomic"], asked["address"]) == (50, "shop")
    assert (asked["pay_by_ms"], asked["fee_atomic_max"]) == (29_500, 50)


@pytest.mark.parametrize("missing", ["invoice", "secret_key", "public_key", ""])
def test_output(output_of: Any, missing: str) -> None:
    fields: dict[str, Any] = {**STORED, "legs": (DEEP, _leg(2, "dead"), _leg(3, "sent", 50))}
    if missing:
        fields[missing] = None
    told = output_of(Payment, BASE, **fields)
    expected = Receipt(
        public_key="pk",
        secret_key=SECRET,
        paid_cents=700,
        paid_atomic=1_050,
        fee_atomic=20,
        currency=Currency.LTC,
        txids=("t1", "t3"),
        tier=1,
        months=1,
        invoice_id="inv-1",
    )
    assert told == (None if missing else expected)


@pytest.mark.parametrize("missing", [{"invoice": None}, {"legs": (DEEP,)}, {}])
def test_output_for_a_card(output_of: Any, missing: dict[str, Any]) -> None:
    """Only once it is delivered: the bytes are gone then."""
    fields: dict[str, Any] = {**CARD, "legs": (BOUGHT, _leg(2, "dead")), **missing}
    expected = Delivery(
        paid_cents=700,
        paid_atomic=1_000,
        fee_atomic=10,
        currency=Currency.LTC,
        txids=("t1",),
        invoice_id="inv-1",
    )
    assert output_of(Payment, BASE, **fields) == (None if missing else expected)


def test_contracts_of_legs(verdicts: Any) -> None:
    """Each at its limit."""
    holds = verdicts(Payment, BASE)
    order = {"invoice": INVOICE}
    assert holds("one_leg_in_flight", legs=(SENT,))
    assert not holds("one_leg_in_flight", legs=(SENT, _leg(2, "open")))
    assert holds("legs_within_due", **order, legs=(DEEP,))
    assert not holds("legs_within_due", **order, legs=(_leg(1, "deep", 1_001),))
    assert holds("legs_within_due", **order, legs=(_leg(1, "deep", 1_001),), unmatched_atomic=1)
    assert holds("outflow_is_bounded", **order, legs=(_leg(1, "deep", 1_100, fee_atomic=50),))
    assert not holds("outflow_is_bounded", **order, legs=(_leg(1, "deep", 1_101),))
    assert not holds("outflow_is_bounded", **order, legs=(_leg(1, "deep", fee_atomic=51),))
    assert holds("legs_are_different_transactions", legs=(DEEP, _leg(2, "sent")))
    same_input = _leg(2, "sent", transaction=_transaction(1, 50))
    assert not holds("legs_are_different_transactions", legs=(DEEP, same_input))
    assert not holds("legs_are_different_transactions", legs=(DEEP, _leg(2, "sent", txid="t1")))
    assert holds("is_settled_on_chain", **SETTLED)
    assert not holds("is_settled_on_chain", **SHALLOW)
    assert not holds("is_settled_on_chain", **order, legs=(_leg(1, "sent", depth=6),))
    assert holds("paid_nothing", legs=(DEAD,)) and not holds("paid_nothing", legs=(SENT,))


def test_contracts_of_the_key(verdicts: Any) -> None:
    """Each at its limit."""
    holds = verdicts(Payment, BASE)
    order = {"invoice": INVOICE}
    assert holds("budget_is_respected") and holds("budget_is_respected", **order)
    assert holds("budget_is_respected", **order, budget_cents=700)
    assert not holds("budget_is_respected", **order, budget_cents=699)
    assert holds("no_key_without_depth", **STORED)
    assert not holds("no_key_without_depth", **SHALLOW, secret_key=SECRET)
    assert holds("no_key_without_depth", **SHALLOW)
    assert holds("holds_no_secret") and not holds("holds_no_secret", secret_key=SECRET)
    assert holds("holds_the_secret", **STORED) and not holds("holds_the_secret", public_key="pk")
    assert not holds("holds_the_secret", secret_key=SECRET)
    bought = {**STORED, "legs": (BOUGHT,)}
    assert holds("is_bought", **bought)
    unit = {"invoice": msgspec.structs.replace(INVOICE, amount_atomic=1),
            "legs": (msgspec.structs.replace(BOUGHT, amount_atomic=1),)}  # fmt: skip
    assert holds("is_bought", **{**bought, **unit})
    for wrong in (
        {"legs": (DEEP,)},
        {"legs": (msgspec.structs.replace(BOUGHT, amount_atomic=999),)},
        {"legs": (msgspec.structs.replace(BOUGHT, depth=5),)},
        {"secret_key": None},
        {"passphrase": Secret("open")},
        {"invoice": None, "legs": ()},
    ):
        assert not holds("is_bought", **{**bought, **wrong})
    lost = {**STORED, "legs": (msgspec.structs.replace(_lost(), transaction=None),)}
    assert holds("is_unpaid_for", **lost)
    assert holds("is_unpaid_for", **{**lost, "legs": (BOUGHT, *lost["legs"])})
    for wrong in (
        {"legs": (BOUGHT,)},
        {"legs": (_lost(),)},
        {"legs": ()},
        {"secret_key": None},
        {"public_key": None},
        {"passphrase": Secret("open")},
    ):
        assert not holds("is_unpaid_for", **{**lost, **wrong})
    delivered = {**CARD, "legs": (BOUGHT,)}
    assert holds("is_delivered", **delivered)
    for wrong in (
        {"goods": "key"},
        {"secret_key": SECRET},
        {"legs": (DEEP,)},
        {"legs": (msgspec.structs.replace(BOUGHT, amount_atomic=999),)},
        {"legs": (msgspec.structs.replace(BOUGHT, depth=5),)},
        {"passphrase": Secret("open")},
    ):
        assert not holds("is_delivered", **{**delivered, **wrong})
    assert holds("is_paid_back", refund_base_atomic=1_000, refund_atomic=910)
    assert not holds("is_paid_back", refund_base_atomic=1_000, refund_atomic=909)


def test_postconditions(ensured: Any) -> None:
    """Each at its limit."""
    after = ensured(Payment, BASE)
    old = msgspec.structs.replace(BASE, **PAYING)
    paid = "leg_paid_what_was_ordered"
    assert after(paid, old=old, **CONFIRMING)
    assert after(paid, old=old, **{**CONFIRMING, "legs": (UNSENT,)})
    assert not after(paid, old=old, **PAYING)
    assert not after(paid, old=old, **TOPPING)
    assert not after(paid, old=old, **CONFIRMING | {"invoice": None})
    for wrong in ({"amount_atomic": 999}, {"address": "thief"}):
        transaction = msgspec.structs.replace(_transaction(1, 1_000), **wrong)
        leg = msgspec.structs.replace(SENT, transaction=transaction)
        assert not after(paid, old=old, **{**CONFIRMING, "legs": (leg,)})
    gap = {"old": msgspec.structs.replace(BASE, **SETTLED),
           "event": FellShort(received_atomic=950)}  # fmt: skip
    assert after("top_up_is_the_gap", **gap, **TOPPING)
    assert after("top_up_is_the_gap", **gap, **SETTLED)
    for legs in ((DEEP, _leg(2, "open", 51)), (DEEP, NEXT, NEXT)):
        assert not after("top_up_is_the_gap", **gap, **{**TOPPING, "legs": legs})
    for base in (0, 1, 99, 100, 101, 1_000):
        assert after("refund_and_fee_are_the_payment", refund_base_atomic=base)
    watched = {"old": msgspec.structs.replace(BASE, **WATCHED)}
    changes: list[dict[str, Any]] = [
        {"legs": (SENT,)},
        {"legs": ()},
        {"legs": (DEEP, TOPPED_UP)},
        {"public_key": "other"},
        {"secret_key": NEW},
    ]
    assert after("watching_pays_nothing", **watched, **STORED)
    assert after("watching_pays_nothing", **watched, **{**STORED, "legs": (_lost(),)})
    for change in changes:
        assert not after("watching_pays_nothing", **watched, **{**STORED, **change})
    kept = {"event": ISSUED}
    assert after("secret_is_kept", **kept, secret_key=SECRET)
    assert not after("secret_is_kept", **kept, secret_key=NEW)
