"""Redemption, edge by edge.  The key costs 700 cents."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.secret import Secret
from machines.flows.f03b_gift_card import AT_ONCE_MS, Redemption
from machines.flows.gift_card import (
    GENERATIONS_MAX,
    CardClaim,
    CardTurnedAway,
    Decided,
    KeyRefused,
    KeyUntested,
    NewSecret,
    Redeemed,
    Taken,
    Weighed,
)
from machines.flows.purchase import NotOffered, Proven


def _in(duration_ms: int) -> Any:
    return lambda context, now_ms: now_ms + duration_ms


FAILS = {"status": "failed"}
WAITS = {"waits_for_cancel": True}

CODE = Secret("four-words-joined-up")
QUIET = {"on_timeout": "nobody_answers"}
CLAIM = CardClaim(
    code=CODE,
    tier=1,
    months=1,
    budget_cents=700,
    poll_ms=14,
    approval_ms=600,
    settle_ms=500,
    silence_ms=800,
)
SILENT = {"on_timeout": "nobody_tells"}
HELD_PLACE = {"status": "waiting", "due": _in(AT_ONCE_MS), "moved": True, **WAITS}
PLACES: dict[str, dict[str, Any]] = {
    "checking_balance": {"status": "running", "due": _in(800), "moved": True, "sends": QUIET},
    "redeeming": {"status": "running", "due": _in(800), "moved": True, "sends": SILENT, **WAITS},
    "pending_approval": {"status": "running", "due": _in(600), "moved": True,
                         "sends": {"on_timeout": "approval_overdue"}},
    "approved": {**HELD_PLACE, "sends": {"on_timeout": "goes_on"}},
    "secret_lost": {"status": "running", "due": _in(500), "sends": {"on_timeout": "no_secret"},
                    **WAITS},
    "key_stored": {"status": "running", "due": _in(500), "moved": True, **WAITS,
                   "sends": {"on_timeout": "test_overdue", "on_exhausted": "untested"}},
    "redeemed": {"status": "completed"},
    **dict.fromkeys(
        ("over_budget", "not_offered", "unavailable", "unknown_code", "card_unpaid",
         "card_expired", "card_reversed", "too_little", "denied", "refused", "unanswered",
         "overcharged", "approval_timed_out", "unsettled", "key_refused"),
        FAILS,
    ),
}  # fmt: skip
WEIGHED: dict[str, Any] = {"price_cents": 700, "redemption_key": "k1"}
TAKEN: dict[str, Any] = {**WEIGHED, "redemption_id": "r1", "taken_cents": 700, "balance_cents": 300}
SECRET, NEW = Secret("sk"), Secret("new")
KEY: dict[str, Any] = {"public_key": "pk", "secret_key": SECRET}
STORED = {**TAKEN, **KEY}
WHOLE = Taken(redemption_id="r1", standing="redeemed", price_cents=700, balance_cents=300,
              public_key="pk", secret_key=SECRET)  # fmt: skip
DENIED = "the buyer of the card said no"


def _weighed(to: str, price: int, balance: int | None = None, reason: str = "", key: str = "k1",
             **more: Any) -> dict[str, Any]:  # fmt: skip
    gives: dict[str, Any] = {"price_cents": price} if price else {}
    gives |= {"redemption_key": key} if key else {}
    gives |= {"balance_cents": balance} if balance is not None else {}
    gives |= {"reason": reason} if reason else {}
    event = Weighed(price_cents=price, balance_cents=balance, redemption_key=more.pop("sent", key))
    return {"state": "checking_balance", "event": event, "to": to, "gives": gives, **more}


def _turned(state: str, why: Any, to: str, balance: int | None = None) -> dict[str, Any]:
    event = CardTurnedAway(why=why, detail="no", balance_cents=balance)
    given = {**WEIGHED, "balance_cents": 9} if state == "redeeming" else {}
    gives = {"reason": "no"} | ({} if balance is None else {"balance_cents": balance})
    return {"state": state, "event": event, "given": given, "to": to, "gives": gives}


def _taken(to: str, gives: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"state": "redeeming", "event": msgspec.structs.replace(WHOLE, **changes),
            "given": WEIGHED, "to": to,
            "gives": {"redemption_id": "r1", "balance_cents": 300, **gives}}  # fmt: skip


def _decided(to: str, standing: Any, gives: dict[str, Any], **key: Any) -> dict[str, Any]:
    return {"state": "pending_approval", "given": TAKEN, "to": to,
            "event": Decided(standing=standing, balance_cents=1_000, **key),
            "gives": {"balance_cents": 1_000, **gives}}  # fmt: skip


NO_KEY = {"public_key": None, "secret_key": None}
OVER = "701 cents were taken for a key of 700"
EVERY = [("unknown_code", "unknown_code"), ("unpaid", "card_unpaid"), ("expired", "card_expired"),
         ("reversed", "card_reversed")]  # fmt: skip
ROWS: list[dict[str, Any]] = [
    _weighed("redeeming", 700),
    _weighed("redeeming", 1),
    _weighed("redeeming", 700, 700),
    _weighed("redeeming", 700, key="", sent="k0", given={"redemption_key": "k0"}),
    _weighed("too_little", 700, 699, "the key costs 700 cents, the card holds 699"),
    _weighed("too_little", 700, 0, "the key costs 700 cents, the card holds 0"),
    _weighed("over_budget", 701, 5, "the key costs 701 cents, the budget is 700"),
    _weighed("over_budget", 0, None, "the key costs 0 cents, the budget is 700"),
    {"state": "checking_balance", "event": NotOffered(offers=3), "to": "not_offered",
     "gives": {"reason": "tier 1 for 1 months is none of 3 prices"}},
    {"state": "checking_balance", "event": "nobody_answers", "to": "unavailable"},
    {"state": "redeeming", "event": "nobody_tells", "given": WEIGHED, "to": "unanswered",
     "gives": {"reason": "the price may have left the card; the same redemption_key asks again"}},
    *(_turned(state, why, to) for state in ("checking_balance", "redeeming") for why, to in EVERY),
    *(_turned("redeeming", why, to, 0)
      for why, to in [("too_little", "too_little"), ("denied", "denied"), ("other", "refused")]),
    _taken("key_stored", {"taken_cents": 700, **KEY}),
    _taken("secret_lost", {"taken_cents": 700, "public_key": "pk"}, secret_key=None),
    *({"state": "redeeming", "given": WEIGHED, "refused": "key_comes_with_its_redemption",
       "event": msgspec.structs.replace(WHOLE, public_key=None, **key)}
      for key in ({}, {"secret_key": None})),
    _taken("pending_approval", {"taken_cents": 700}, standing="pending_approval", **NO_KEY),
    _taken("denied", {"reason": DENIED}, standing="denied", **NO_KEY),
    _taken("denied", {"reason": DENIED}, standing="denied", price_cents=701, **NO_KEY),
    _taken("overcharged", {"reason": OVER, **KEY}, price_cents=701),
    _taken("overcharged", {"reason": OVER.replace("701", "699"), **KEY}, price_cents=699),
    _taken("overcharged", {"reason": OVER}, price_cents=701, standing="pending_approval",
           **NO_KEY),
    *({"state": "redeeming", "given": WEIGHED, "refused": "key_comes_with_its_redemption",
       "event": msgspec.structs.replace(WHOLE, standing=standing, **key)}
      for standing in ("pending_approval", "denied")
      for key in ({}, {"public_key": None}, {"secret_key": None})),
    _decided("approved", "redeemed", KEY, **KEY),
    _decided("approved", "redeemed", {"public_key": "pk"}, public_key="pk"),
    _decided("denied", "denied", {"taken_cents": 0, "reason": DENIED}),
    {"state": "pending_approval", "given": TAKEN, "refused": "key_comes_with_its_redemption",
     "event": Decided(standing="denied", balance_cents=0, **KEY)},
    {"state": "pending_approval", "event": "approval_overdue", "given": TAKEN,
     "to": "approval_timed_out",
     "gives": {"reason": "nobody approved in time; 700 cents are held until somebody denies"}},
    {"state": "approved", "event": "goes_on", "given": STORED, "to": "key_stored"},
    {"state": "approved", "event": "goes_on", "given": {**STORED, "secret_key": None},
     "to": "secret_lost"},
    {"state": "secret_lost", "event": NewSecret(public_key="pk2", secret_key=NEW),
     "given": {**TAKEN, "generation": 1}, "to": "key_stored",
     "gives": {"public_key": "pk2", "secret_key": NEW, "generation": 2}},
    {"state": "secret_lost", "event": "no_secret", "given": TAKEN, "to": "unsettled",
     "gives": {"reason": "the portal gave no new secret in time"}},
    *({"state": "key_stored", "event": event, "given": {**STORED, "reason": "earlier"},
       "to": "redeemed", "gives": {"reason": "", **gives}}
      for event, gives in [
          (Proven(tier=1), {"proven": True}), ("test_overdue", {}),
          (KeyUntested(effect="try_key", reason="silence", attempts=8), {})]),
    *({"state": "key_stored", "event": KeyRefused(reason=reason),
       "given": {**STORED, "generation": generation}, "to": to,
       "gives": {"secret_key": None, "reason": reason}}
      for reason, generation, to in [
          ("invalid_key", 0, "secret_lost"),
          ("invalid_signature", GENERATIONS_MAX - 1, "secret_lost"),
          ("invalid_signature", GENERATIONS_MAX, "key_refused"),
          ("suspended", 0, "key_refused")]),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['state']}-{row.get('to')}")
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(Redemption, CLAIM, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(Redemption, CLAIM, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(Redemption, CLAIM, PLACES)


@pytest.mark.parametrize(
    "missing",
    [{"public_key": None}, {"secret_key": None}, {"taken_cents": 0}, {"balance_cents": None}, {}],
)
def test_what_the_agent_gets(output_of: Any, missing: dict[str, Any]) -> None:
    got = Redeemed(
        public_key="pk", secret_key=SECRET, paid_cents=700, balance_cents=300, redemption_id="r1"
    )
    assert output_of(Redemption, CLAIM, **{**STORED, **missing}) == (None if missing else got)


def test_contracts(verdicts: Any) -> None:
    """Each at its limit."""
    holds = verdicts(Redemption, CLAIM)
    for taken, good in [(0, True), (700, True), (701, False), (-1, False)]:
        assert holds("budget_is_respected", taken_cents=taken) is good
    for balance, good in [(None, True), (0, True), (-1, False)]:
        assert holds("is_never_overdrawn", balance_cents=balance) is good
    assert holds("has_a_key_to_ask_with", **WEIGHED)
    assert not holds("has_a_key_to_ask_with")
    assert not holds("has_a_key_to_ask_with", **TAKEN)
    assert holds("price_is_held", **TAKEN)
    assert holds("price_is_held", **TAKEN | {"taken_cents": 1, "price_cents": 1})
    for wrong in ({"redemption_id": ""}, {"taken_cents": 699},
                  {"taken_cents": 0, "price_cents": 0}):  # fmt: skip
        for rule, given in [("price_is_held", TAKEN), ("holds_no_secret", TAKEN),
                            ("holds_the_secret", STORED), ("is_bought", STORED)]:  # fmt: skip
            assert not holds(rule, **{**given, **wrong})
    assert holds("holds_no_secret", **TAKEN) and not holds("holds_no_secret", **STORED)
    assert holds("holds_the_secret", **STORED)
    for missing in KEY:
        assert not holds("holds_the_secret", **{**STORED, missing: None})
    assert holds("took_nothing", **WEIGHED)
    assert not holds("took_nothing", taken_cents=1) and not holds("took_nothing", secret_key=SECRET)
    assert holds("is_overcharged", redemption_id="r1") and not holds("is_overcharged")
    assert not holds("is_overcharged", **TAKEN)
    assert holds("is_bought", **STORED)
    assert not holds("is_bought", **{**STORED, "balance_cents": None})


def test_postconditions(ensured: Any) -> None:
    """Each at its limit."""
    after = ensured(Redemption, CLAIM)
    weighed = msgspec.structs.replace(CLAIM, **WEIGHED)
    assert after("one_price_is_taken", old=weighed, **TAKEN)
    assert after("one_price_is_taken", old=weighed, **WEIGHED)
    assert not after("one_price_is_taken", old=weighed, **TAKEN | {"taken_cents": 701})
    again = msgspec.structs.replace(CLAIM, **TAKEN)
    assert not after("one_price_is_taken", old=again, **TAKEN)
    assert after("given_key_is_used", old=CLAIM, **WEIGHED)
    assert after("given_key_is_used", old=weighed, **WEIGHED)
    assert not after("given_key_is_used", old=weighed, **WEIGHED | {"redemption_key": "other"})
    made = NewSecret(public_key="pk", secret_key=NEW)
    assert after("secret_is_kept", event=made, secret_key=NEW)
    assert not after("secret_is_kept", event=made, secret_key=SECRET)
