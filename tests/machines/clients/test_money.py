"""Amounts: exact both ways, and everything `Decimal` is too kind about refused."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machines.clients.money import format_amount, parse_amount, parse_cents, parse_number
from machines.clients.ports import Currency, Rejected

BTC, DOGE, XMR = Currency.BTC, Currency.DOGE, Currency.XMR


@given(st.sampled_from(Currency), st.integers(0, 2 * 10**19))
def test_round_trip(currency: Currency, atomic: int) -> None:
    text = format_amount(atomic, currency)
    assert parse_amount(text, currency) == atomic
    assert parse_number(Decimal(text), currency) == atomic
    assert len(text.partition(".")[2]) == currency.exponent


@pytest.mark.parametrize(
    ("text", "currency", "atomic"),
    [
        ("0.29", BTC, 29_000_000),
        ("1.001", XMR, 1_001_000_000_000),
        ("4.52", XMR, 4_520_000_000_000),
        ("100000000.00000001", DOGE, 10_000_000_000_000_001),
        ("0", BTC, 0),
    ],
)
def test_amounts_that_floats_get_wrong(text: str, currency: Currency, atomic: int) -> None:
    assert parse_amount(text, currency) == atomic


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1_000",
        "１.５",
        "1５",
        "0.1５",
        "1E-3",
        "1e3",
        "-1",
        "+1",
        " 1",
        "1 ",
        "1\n",
        "01",
        ".5",
        "5.",
        "1,5",
        "NaN",
        "Infinity",
        "0x1",
        "0.123456789",
        "1.000000000",
        "9" * 70,
        "9" * 41,
    ],
)
def test_refused_texts(text: str) -> None:
    with pytest.raises(Rejected):
        parse_amount(text, BTC)


@pytest.mark.parametrize("value", [0.5, True, None, [], b"1"])
def test_no_float_and_no_truth_value_is_an_amount(value: object) -> None:
    with pytest.raises(Rejected):
        parse_amount(value, BTC)  # type: ignore[arg-type]
    with pytest.raises(Rejected):
        parse_number(value, BTC)
    with pytest.raises(Rejected):
        format_amount(value, BTC)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-0.1", "1E+900000", "1E-9"])
def test_refused_numbers(value: str) -> None:
    with pytest.raises(Rejected):
        parse_number(Decimal(value), BTC)


def test_the_callers_decimal_context_has_no_say() -> None:
    with localcontext() as context:
        context.prec = 3
        assert parse_amount("12345.67890123", BTC) == 1_234_567_890_123
        assert format_amount(1_234_567_890_123, BTC) == "12345.67890123"


def test_small_amounts_are_written_without_exponent() -> None:
    assert format_amount(0, BTC) == "0.00000000"
    assert format_amount(1, XMR) == "0.000000000001"
    with pytest.raises(Rejected):
        format_amount(-1, BTC)


@pytest.mark.parametrize(
    ("value", "cents"), [(Decimal("7.0"), 700), (7, 700), ("19.53", 1953), (Decimal("19.53"), 1953)]
)
def test_cents(value: object, cents: int) -> None:
    assert parse_cents(value) == cents


def test_a_fraction_of_a_cent_is_refused() -> None:
    with pytest.raises(Rejected, match=r"19\.535"):
        parse_cents(Decimal("19.535"))
