"""`Spend` in its environment: all of it, and what its properties are there to find."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.verification.environment import Done
from engine.verification.explore import explore
from machines.environments.spend import OfSpend
from machines.flows.f03w_wallet import (
    Cleared,
    Refused,
    Released,
    RivalBuried,
    Robbed,
    Seen,
    Short,
    Signed,
    Spend,
    SpendOrder,
)
from persistence.store import open_store

OF = OfSpend()
ORDER = next(iter(OF.contexts()))


def _signed(order: SpendOrder, now_ms: int = 0) -> list[Signed]:
    found = OF.payloads_of("signed_bytes", context=order, state="building", now_ms=now_ms)
    assert found is not None
    return found


GOOD, STOLEN = _signed(ORDER)
DEAR = Signed(transaction=msgspec.structs.replace(GOOD.transaction, fee_atomic=2))
SENT = msgspec.structs.replace(ORDER, transaction=GOOD.transaction)
BURIED = msgspec.structs.replace(SENT, tombstones=(GOOD.transaction.txid,))
BUILT = Done("build", "k1", GOOD)
CLEARED = Done("clear", "k4", Cleared())
ROBBED = Done("clear", "k4", Robbed())
SEEN = Done("hand_out", "k2", Seen(where="mempool", confirmations=0))
RIVAL = Done("watch_rival", "k5", RivalBuried(confirmations=1))
RELEASED = Done("release", "k3", Released())


def _broken(order: SpendOrder, state: str, *done: Done, status: str = "running") -> list[str]:
    return list(OF.broken(context=order, state=state, status=status, now_ms=0, done=done))


@pytest.mark.acceptance
def test_everything_is_explored_and_nothing_is_wrong() -> None:
    report = explore(Spend, open_store("sqlite://"), environment=OF, budget_seconds=60)
    assert (report.failures, report.mismatches) == ([], [])
    assert report.exhausted, f"{report.left} of {report.states} states left"
    assert report.exit_code == 0, (report.coverage.missing_faults, report.coverage.missing_marks)
    assert report.executions < 20_000


def test_no_answer_of_an_honest_wallet_quarantines(refused_outcomes: Any) -> None:
    assert refused_outcomes(OF) == []


def test_wallet_signs_as_ordered_and_for_a_thief() -> None:
    signed = [one.transaction for one in (GOOD, STOLEN)]
    assert [one.fee_atomic - ORDER.fee_atomic_max for one in signed] == [0, -1]
    assert [one.address for one in signed] == ["shop", "thief"]


def test_after_something_was_in_the_way_another_transaction_is_signed() -> None:
    [again] = _signed(msgspec.structs.replace(ORDER, unlocks=1))
    assert again.transaction.txid != GOOD.transaction.txid
    later = msgspec.structs.replace(ORDER, short_atomic=5)
    assert OF.payloads_of("short", context=later, state="building", now_ms=0) == []
    assert OF.payloads_of("short", context=ORDER, state="building", now_ms=0) == [
        Short(balance_atomic=ORDER.amount_atomic)
    ]


@pytest.mark.parametrize(
    ("order", "state", "status", "done"),
    [
        (ORDER, "building", "running", ()),
        (ORDER, "rejected", "failed", (Done("build", "k1", Refused(reason="no")),)),
        (SENT, "broadcasting", "running", (BUILT, CLEARED, SEEN)),
        (SENT, "conflicted", "failed", (BUILT, CLEARED, SEEN, RIVAL, RELEASED)),
        (SENT, "broadcast", "completed", (BUILT, ROBBED, RELEASED, BUILT, CLEARED, SEEN)),
    ],
)
def test_properties_hold(order: Any, state: str, status: str, done: Any) -> None:
    assert _broken(order, state, *done, status=status) == []


@pytest.mark.parametrize(
    ("rule", "order", "state", "status", "done"),
    [
        ("hands_out_only_what_was_cleared", SENT, "broadcast", "completed", (BUILT, SEEN)),
        (
            "hands_out_only_what_was_cleared",
            SENT,
            "broadcast",
            "completed",
            (BUILT, CLEARED, ROBBED, SEEN),
        ),
        ("hands_out_what_was_signed", ORDER, "broadcast", "completed", (BUILT, CLEARED, SEEN)),
        (
            "hands_out_what_was_signed",
            SENT,
            "broadcast",
            "completed",
            (Done("build", "k1", DEAR), CLEARED, SEEN),
        ),
        (
            "hands_out_what_was_signed",
            msgspec.structs.replace(ORDER, transaction=STOLEN.transaction),
            "broadcast",
            "completed",
            (Done("build", "k1", STOLEN), CLEARED, SEEN),
        ),
        ("what_is_buried_was_never_sent", BURIED, "signed", "running", (BUILT, ROBBED)),
        ("handed_out_is_never_disowned", SENT, "rejected", "failed", (BUILT, CLEARED, SEEN)),
        ("handed_out_is_never_disowned", SENT, "contested", "cancelled", (BUILT, CLEARED, SEEN)),
        ("ends_for_a_cause", ORDER, "abandoned", "failed", ()),
        ("ends_for_a_cause", ORDER, "unfunded", "failed", (BUILT,)),
        ("ends_for_a_cause", SENT, "conflicted", "failed", (BUILT, CLEARED, SEEN)),
        (
            "only_dead_bytes_are_released",
            SENT,
            "releasing",
            "running",
            (BUILT, CLEARED, SEEN, RELEASED),
        ),
    ],
)
def test_properties_can_fail(rule: str, order: Any, state: str, status: str, done: Any) -> None:
    assert _broken(order, state, *done, status=status) == [rule]
