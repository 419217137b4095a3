"""Fees in whole units, the table of times, wallets by coin, and what the ports' errors become."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.clock import minutes
from engine.errors import OutcomeUnknown, Permanent, Transient
from machines.clients.ports import Currency, Rejected, ReplyLost, Unauthorized, Unavailable
from machines.flows.money import (
    CUT_MS,
    FEE_ATOMIC_MAX,
    STALL_MS,
    Leg,
    Wallets,
    asking,
    restocking_fee_atomic,
    watching,
)


@given(paid=st.integers(0, 10**19))
def test_the_fee_is_nine_percent_rounded_up_to_the_unit(paid: int) -> None:
    fee = restocking_fee_atomic(paid)
    assert type(fee) is int
    assert 0 <= 100 * fee - 9 * paid < 100


@given(paid=st.integers(0, 10**12))
def test_ten_times_the_payment_is_ten_times_the_refund_but_for_rounding(paid: int) -> None:
    once, tenfold = paid - restocking_fee_atomic(paid), 10 * paid - restocking_fee_atomic(10 * paid)
    assert 0 <= tenfold - 10 * once < 10


@pytest.mark.parametrize(("paid", "fee"), [(0, 0), (1, 1), (11, 1), (12, 2), (100, 9), (101, 10)])
def test_small_fees(paid: int, fee: int) -> None:
    assert restocking_fee_atomic(paid) == fee


def test_every_coin_has_its_times_and_its_fee() -> None:
    for table in (CUT_MS, STALL_MS, FEE_ATOMIC_MAX):
        assert set(table) == set(Currency)
    assert CUT_MS[Currency.BTC] == minutes(35)  # payments.md section 4
    assert STALL_MS[Currency.XMR] == minutes(45)


def test_a_coin_without_a_wallet_says_which_there_are() -> None:
    with pytest.raises(Permanent, match=r"no wallet for BTC; this program has: none"):
        Wallets({})[Currency.BTC]
    assert len(Wallets({})) == 0
    assert list(Wallets({})) == []


def test_a_lost_reply_is_unknown_unless_asking_twice_is_harmless() -> None:
    with pytest.raises(OutcomeUnknown, match="send: cut"), asking("send", repeatable=False):
        raise ReplyLost("cut")
    with pytest.raises(Transient, match="read: cut"), asking("read"):
        raise ReplyLost("cut")


def test_the_servers_wish_for_a_pause_is_kept() -> None:
    with pytest.raises(Transient) as caught, asking("read", repeatable=False):
        raise Unavailable("busy", kind="rate_limit", retry_after_ms=9_000)
    assert caught.value.retry_after_ms == 9_000


def test_refusals_are_the_callers_to_name_unless_only_watching() -> None:
    with pytest.raises(Rejected), asking("read"):
        raise Rejected("odd")
    with pytest.raises(Transient, match="read: odd"), watching("read"):
        raise Rejected("odd")
    with pytest.raises(Transient), watching("read"):
        raise Unauthorized("401", reason="expired")


@pytest.mark.parametrize(
    ("status", "in_flight", "live"),
    [
        ("open", True, True),
        ("sent", True, True),
        ("deep", False, True),
        ("dead", False, False),
        ("unsent", False, False),
    ],
)
def test_which_legs_count(status: str, in_flight: bool, live: bool) -> None:
    leg = Leg(number=1, amount_atomic=1, received_before_atomic=0, status=status)  # type: ignore[arg-type]
    assert (leg.in_flight, leg.live) == (in_flight, live)
