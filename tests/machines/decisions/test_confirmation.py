"""Confirmation, edge by edge."""

from __future__ import annotations

from typing import Any

import pytest

from engine.secret import Secret
from machines.clients.ports import Currency, SignedTransaction
from machines.flows.f03c_confirmation import (
    Confirmation,
    Evicted,
    Following,
    FollowReport,
    Mined,
    Pooled,
    RivalGone,
    RivalSeen,
    RivalWon,
    Sank,
    StalledFor,
)

TRANSACTION = SignedTransaction(
    txid="t1",
    payload=Secret("bytes"),
    inputs=("in-1",),
    fee_atomic=10,
    amount_atomic=1_000,
    address="shop",
)
FOLLOWING = Following(
    currency=Currency.LTC,
    transaction=TRANSACTION,
    required=6,
    poll_ms=14,
    stall_ms=500,
    since_ms=9_000,
    give_up_ms=12_000,
)
UNTIL_THE_END: dict[str, Any] = {
    "status": "running",
    "due": lambda c, now_ms: 12_000,
    "sends": {"on_timeout": "time_up"},
}
PLACES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("unseen", "mempool", "confirming", "contested", "reversed"), UNTIL_THE_END),
    "stalled": {**UNTIL_THE_END, "due": lambda c, now_ms: max(12_000, now_ms + 10 * 14)},
    "deep_enough": {"status": "completed"},
    "replaced": {"status": "failed"},
    "given_up": {"status": "failed"},
}
LIVE = ("unseen", "mempool", "confirming", "contested", "reversed", "stalled")
SINKS = ("unseen", "confirming", "stalled", "reversed")


def _mined(state: str, depth: int, *, depth_max: int = 0) -> dict[str, Any]:
    gives: dict[str, Any] = {"depth": depth, "block_hash": "b1", "since_ms": 9_900}
    if depth > depth_max:
        gives["depth_max"] = depth
    return {
        "state": state,
        "event": Mined(confirmations=depth, block_hash="b1", at_ms=9_900),
        "given": {"depth_max": depth_max},
        "to": "deep_enough" if depth >= 6 else "confirming",
        "gives": gives,
    }


def _from_any(state: str) -> list[dict[str, Any]]:
    stalls: dict[str, Any] = {"to": "stalled", "gives": {"stalls": 3}, "given": {"stalls": 2}}
    rows: list[dict[str, Any]] = [
        *(_mined(state, depth) for depth in (1, 5, 6, 7)),
        _mined(state, 6, depth_max=9),
        {"event": Mined(confirmations=0, block_hash="b1", at_ms=9_900),
         "refused": "is_in_a_block"},
        {"event": RivalWon(confirmations=6), "given": {"depth": 2, "depth_max": 2,
         "block_hash": "b0"}, "to": "replaced",
         "gives": {"rival_depth": 6, "depth": 0, "block_hash": None}},
        {"event": RivalWon(confirmations=5), "refused": "rival_is_deep"},
        {"event": "time_up", **stalls} if state != "stalled" else
        {"event": "time_up", "to": "given_up"},
    ]  # fmt: skip
    if state != "stalled":
        rows.append({"event": "time_up", **stalls, "now_ms": 11_990})
    if state not in ("stalled", "contested"):
        rows.append({"event": StalledFor(duration_ms=500), **stalls})
    return [{"state": state, **row} for row in rows]


def _sank(state: str, depth: int, before: int) -> dict[str, Any]:
    deep = {"depth": before, "depth_max": 5, "block_hash": "b0", "reversals": 1}
    gives: dict[str, Any] = {"block_hash": None, "since_ms": 9_900, "reversals": 2}
    if depth != before:
        gives["depth"] = depth
    return {
        "state": state,
        "event": Sank(confirmations=depth, at_ms=9_900),
        "given": deep,
        "to": "reversed",
        "gives": gives,
    }


ROWS = [
    *(row for state in LIVE for row in _from_any(state)),
    {"state": "unseen", "event": Pooled(at_ms=9_900), "to": "mempool",
     "gives": {"since_ms": 9_900}},
    {"state": "mempool", "event": Evicted(at_ms=9_900), "given": {"evictions": 1}, "to": "unseen",
     "gives": {"since_ms": 9_900, "evictions": 2}},
    *({"state": state, "event": RivalSeen(at_ms=9_900), "given": {"rivals": 1}, "to": "contested",
       "gives": {"since_ms": 9_900, "rivals": 2}} for state in ("unseen", "mempool", "reversed")),
    *({"state": state, "event": RivalSeen(at_ms=9_900), "given": {"depth": 1, "depth_max": 1},
       "refused": "nothing_of_ours_is_in_a_block"} for state in ("unseen", "mempool", "reversed")),
    {"state": "contested", "event": RivalGone(at_ms=9_900), "to": "unseen",
     "gives": {"since_ms": 9_900}},
    *(_sank(state, depth, 4) for state in SINKS
      for depth in (0, 4)),
    *({"state": state, "event": Sank(confirmations=depth, at_ms=9_900), "refused":
       "depth_did_not_rise", "given": {"depth": 2, "depth_max": 2}}
      for state in SINKS for depth in (-1, 3)),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['state']}-{row.get('to')}")
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(Confirmation, FOLLOWING, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(Confirmation, FOLLOWING, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(Confirmation, FOLLOWING, PLACES)


def test_output(output_of: Any) -> None:
    fields = {"depth": 1, "depth_max": 2, "reversals": 3, "stalls": 4, "rival_depth": 5}
    assert output_of(Confirmation, FOLLOWING, **fields) == FollowReport(**fields)


def test_contracts(verdicts: Any) -> None:
    """Each at its limit."""
    holds = verdicts(Confirmation, FOLLOWING)
    assert holds("depths_are_ordered", depth=0, depth_max=0)
    assert holds("depths_are_ordered", depth=2, depth_max=2)
    assert not holds("depths_are_ordered", depth=2, depth_max=1)
    assert not holds("depths_are_ordered", depth=-1)
    assert holds("order_is_complete", required=1, poll_ms=1, stall_ms=1)
    for field in ("required", "poll_ms", "stall_ms"):
        assert not holds("order_is_complete", **{field: 0})
    assert holds("has_required_depth", depth=6) and not holds("has_required_depth", depth=5)
    assert holds("rival_is_buried", rival_depth=6, depth=0)
    assert not holds("rival_is_buried", rival_depth=5, depth=0)
    assert not holds("rival_is_buried", rival_depth=6, depth=1)
