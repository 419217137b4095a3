"""Amounts: exact both ways, and nothing that is not an amount gets through."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import UsageError
from machines.platform.ledger.coins import COINS, format_coins, parse_coins

CURRENCIES = sorted(COINS)


@given(currency=st.sampled_from(CURRENCIES), atomic=st.integers(-(2**63), 2**63))
def test_what_is_printed_is_read_back(currency, atomic):
    text = format_coins(currency, atomic)
    assert parse_coins(currency, text) == parse_coins(currency, Decimal(text)) == atomic
    assert len(text.split(".")[1]) == COINS[currency].exponent
    assert "E" not in text


def test_small_amounts_are_not_printed_with_exponents():
    assert format_coins("BTC", 1) == "0.00000001"
    assert format_coins("BTC", 0) == "0.00000000"
    assert format_coins("DOGE", 10_000_000_000_000_002) == "100000000.00000002"
    assert format_coins("LTC", -5) == "-0.00000005"


@pytest.mark.parametrize(
    ("value", "atomic"),
    [
        ("1E-3", 100_000),
        ("0.100000000", 10_000_000),
        (2, 200_000_000),
        ("0", 0),
        (Decimal("1.5e1"), 1_500_000_000),
    ],
)
def test_forms_that_nodes_accept(value, atomic):
    assert parse_coins("BTC", value) == atomic


@pytest.mark.parametrize(
    "value",
    [
        "0.123456789",
        "0.1000000001",
        "",
        "1_0",
        "１",
        " 1",
        "1.",
        ".5",
        "NaN",
        "Infinity",
        "1e99",
        True,
        None,
        0.5,
        [],
        Decimal("NaN"),
    ],
)
def test_what_is_no_amount_is_refused(value):
    with pytest.raises(UsageError, match="amount"):
        parse_coins("BTC", value)


def test_monero_has_twelve_places():
    assert parse_coins("XMR", "1.001") == 1_001_000_000_000
    assert parse_coins("XMR", "4.52") == 4_520_000_000_000
