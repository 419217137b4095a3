"""Spend, edge by edge."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.secret import Secret
from machines.clients.ports import Currency, SignedTransaction
from machines.flows.f03w_wallet import (
    Cleared,
    Funded,
    HeldBack,
    Locked,
    NotReleased,
    Refused,
    Released,
    RivalBuried,
    RivalGone,
    RivalSeen,
    Robbed,
    Seen,
    Short,
    Signed,
    Spend,
    SpendOrder,
    SpendReport,
    Unlocked,
)

ORDER = SpendOrder(
    currency=Currency.LTC,
    address="shop",
    amount_atomic=1_000,
    pay_by_ms=10_500,
    confirmations=6,
    poll_ms=14,
    fee_atomic_max=50,
    stuck_ms=700,
)
PAYS = SignedTransaction(
    txid="t1",
    payload=Secret("bytes"),
    inputs=("in-1",),
    fee_atomic=50,
    amount_atomic=1_000,
    address="shop",
)
WRONG: list[dict[str, Any]] = [
    {"address": "thief"},
    {"amount_atomic": 999},
    {"amount_atomic": 1_001},
    {"fee_atomic": 51},
    {"fee_atomic": -1},
    {"inputs": ()},
]
FAILS = {"status": "failed"}
PAY_BY = {"due": lambda c, now_ms: max(c.pay_by_ms, now_ms)}
HELD = {"status": "running", "waits_for_cancel": True}
HEARING = {**HELD, "due": lambda c, now_ms: now_ms + 700, "sends": {"on_timeout": "unheard"}}
PLACES: dict[str, dict[str, Any]] = {
    "building": {"status": "running", **PAY_BY, "sends": {"on_timeout": "too_late"}},
    "wallet_locked": {
        "status": "running",
        "due": lambda c, now_ms: min(now_ms + 14, 10_500),
        "sends": {"on_timeout": "try_again"},
    },
    "underfunded": {"status": "running", **PAY_BY, "sends": {"on_timeout": "too_late"}},
    "signed": {**HELD, **PAY_BY, "sends": {"on_timeout": "too_late"}},
    "broadcasting": HEARING,
    "repairing": HEARING,
    "stuck": HELD,
    "contested": HELD,
    "releasing": {
        "status": "running",
        "waits_for_cancel": True,
        "sends": {"on_exhausted": "not_released"},
    },
    "broadcast": {"status": "completed"},
    **dict.fromkeys(("unfunded", "rejected", "conflicted", "abandoned"), FAILS),
}


def _wrong(changes: dict[str, Any], now_ms: int) -> dict[str, Any]:
    transaction = msgspec.structs.replace(PAYS, **changes)
    reason = (
        f"the wallet signed {transaction.amount_atomic} with a fee of {transaction.fee_atomic}, "
        "ordered were 1000 with at most 50"
    )
    return {
        "state": "building",
        "event": Signed(transaction=transaction),
        "now_ms": now_ms,
        "to": "releasing",
        "gives": {"transaction": transaction, "fate": "rejected", "reason": reason},
    }


def _signed(now_ms: int, to: str, **gives: Any) -> dict[str, Any]:
    event = Signed(transaction=PAYS)
    gives = {"transaction": PAYS, **gives}
    return {"state": "building", "event": event, "now_ms": now_ms, "to": to, "gives": gives}


def _at(state: str, event: Any, to: str, now_ms: int = 10_000, **gives: Any) -> dict[str, Any]:
    given = {"transaction": PAYS, "reason": "so far"}
    return {"state": state, "event": event, "given": given, "now_ms": now_ms, "to": to,
            "gives": gives}  # fmt: skip


def _releasing(event: Any, **gives: Any) -> list[dict[str, Any]]:
    ends = {"conflicted": "conflicted", "rejected": "rejected", "abandoned": "abandoned"}
    given = {"transaction": PAYS, "reason": "so"}
    return [
        {"state": "releasing", "event": event, "given": {**given, "fate": fate}, "to": to,
         "gives": gives}
        for fate, to in ends.items()
    ] + [
        {"state": "releasing", "event": event,
         "given": {**given, "fate": "anew", "tombstones": ("t0",)}, "to": "building",
         "gives": {"transaction": None, "fate": "", "tombstones": ("t0", "t1"), **gives}}
    ]  # fmt: skip


LATE = "signed too late to be sent before the invoice expires"
STUCK = NotReleased(effect="release", reason="no answer", attempts=20)
ROWS: list[dict[str, Any]] = [
    _signed(10_499, "signed"),
    _signed(10_500, "signed"),
    _at("signed", Cleared(), "broadcasting", now_ms=10_499),
    _at("signed", Cleared(), "releasing", now_ms=10_500, fate="abandoned", reason=LATE),
    _at("signed", "too_late", "releasing", fate="abandoned", reason=LATE),
    _at("signed", Robbed(), "releasing", fate="anew",
        reason="an input was spent before anything was sent"),
    _at("broadcasting", HeldBack(reason="full"), "repairing", reason="full"),
    *(_at(state, "unheard", "stuck",
          reason="the node has not shown the bytes for 700 ms; so far")
      for state in ("broadcasting", "repairing")),
    *(_at(state, RivalSeen(confirmations=2), "contested", rivals=1,
          reason="another transaction spends an input, 2 deep")
      for state in ("broadcasting", "repairing", "stuck")),
    _at("contested", RivalGone(), "broadcasting", reason=""),
    *(_at(state, Seen(where="mempool", confirmations=0), "broadcast", reason="")
      for state in ("repairing", "stuck", "contested")),
    *(_wrong(changes, now_ms) for changes in WRONG for now_ms in (10_000, 10_500)),
    {"state": "building", "event": Signed(transaction=msgspec.structs.replace(PAYS, fee_atomic=0)),
     "to": "signed",
     "gives": {"transaction": msgspec.structs.replace(PAYS, fee_atomic=0)}},
    {"state": "building", "event": Locked(), "to": "wallet_locked",
     "gives": {"reason": "the wallet is locked"}},
    {"state": "building", "event": Locked(), "now_ms": 10_490, "to": "wallet_locked",
     "gives": {"reason": "the wallet is locked"}},
    {"state": "wallet_locked", "event": Unlocked(), "given": {"unlocks": 1, "reason": "locked"},
     "to": "building", "gives": {"unlocks": 2, "reason": ""}},
    {"state": "wallet_locked", "event": "try_again", "now_ms": 10_499, "to": "building"},
    {"state": "wallet_locked", "event": "try_again", "now_ms": 10_500, "to": "abandoned"},
    {"state": "building", "event": Short(balance_atomic=7), "to": "underfunded",
     "gives": {"short_atomic": 7, "reason": "7 spendable, 1000 and the fee needed"}},
    {"state": "underfunded", "event": Funded(balance_atomic=2_000), "given": {"reason": "short"},
     "to": "building", "gives": {"reason": ""}},
    *({"state": state, "event": Refused(reason="never"), "to": "rejected",
       "gives": {"reason": "never"}} for state in ("building", "wallet_locked")),
    {"state": "building", "event": "too_late", "to": "abandoned"},
    {"state": "underfunded", "event": "too_late", "to": "unfunded"},
    {"state": "broadcasting", "event": Seen(where="mempool", confirmations=0),
     "given": {"transaction": PAYS, "reason": "x"}, "to": "broadcast", "gives": {"reason": ""}},
    {"state": "contested", "event": RivalBuried(confirmations=6),
     "given": {"transaction": PAYS}, "to": "releasing",
     "gives": {"fate": "conflicted", "reason": "another transaction spent an input, 6 deep"}},
    {"state": "contested", "event": RivalBuried(confirmations=5),
     "given": {"transaction": PAYS}, "refused": "deep_enough"},
    *_releasing(Released()),
    *_releasing(STUCK, reason="so; inputs stay reserved: no answer"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['state']}-{row.get('to')}")
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(Spend, ORDER, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(Spend, ORDER, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(Spend, ORDER, PLACES)


def test_output(output_of: Any) -> None:
    told = output_of(Spend, ORDER, transaction=PAYS, reason="so")
    assert told == SpendReport(transaction=PAYS, reason="so")


def test_contracts(verdicts: Any) -> None:
    """Each at its limit."""
    holds = verdicts(Spend, ORDER)
    assert holds("amount_is_positive", amount_atomic=1)
    assert not holds("amount_is_positive", amount_atomic=0)
    assert holds("order_is_complete", confirmations=1, poll_ms=1)
    assert not holds("order_is_complete", confirmations=0)
    assert not holds("order_is_complete", poll_ms=0)
    assert holds("order_is_complete", stuck_ms=1)
    assert not holds("order_is_complete", stuck_ms=0)
    assert holds("holds_nothing") and not holds("holds_nothing", transaction=PAYS)
    assert holds("holds_bytes", transaction=PAYS) and not holds("holds_bytes")
    for changes in WRONG:
        assert not holds("holds_bytes", transaction=msgspec.structs.replace(PAYS, **changes))
