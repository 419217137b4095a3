"""The price table: 160 prices, two of them attested by the real service."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machines.platform.context import PlatformConfig
from machines.platform.pricing import (
    dollars,
    price_cents,
    price_list,
    quotes,
    restocking_fee_atomic,
)

DISCOUNTS = PlatformConfig().discount_percent


def test_the_two_attested_prices():
    assert price_cents(1, 1, DISCOUNTS) == 700
    assert price_cents(1, 3, DISCOUNTS) == 1953


def test_there_are_160_different_quotes():
    table = quotes(DISCOUNTS)
    assert len(table) == 160
    assert len({(quote.tier, quote.months) for quote in table}) == 160
    assert [quote.price_cents for quote in table if quote.months == 3] == [
        1953 * tier for tier in range(1, 33)
    ]


def test_limits_follow_the_tier():
    by_tier = {quote.tier: quote for quote in quotes(DISCOUNTS)}
    shown = {
        tier: (by_tier[tier].requests_per_minute, by_tier[tier].concurrency) for tier in by_tier
    }
    assert shown[1] == (7, 1)
    assert shown[4] == (28, 1)
    assert shown[5] == (35, 2)
    assert shown[8] == (56, 2)
    assert shown[16] == (112, 4)
    assert shown[32] == (224, 8)


def test_a_duration_that_is_not_sold_has_no_price():
    with pytest.raises(KeyError):
        price_cents(1, 2, DISCOUNTS)


@given(tier=st.integers(1, 32), months=st.sampled_from(sorted(DISCOUNTS)))
def test_a_price_is_exact_in_cents(tier, months):
    exact = Decimal(7) * tier * months * (100 - DISCOUNTS[months]) / 100
    assert Decimal(price_cents(tier, months, DISCOUNTS)) == exact * 100


@given(paid=st.integers(1, 2**63))
def test_the_restocking_fee_is_nine_percent_rounded_up(paid):
    fee = restocking_fee_atomic(paid)
    assert 0 <= 100 * fee - 9 * paid < 100


def test_the_published_table_holds_exact_numbers(world):
    body = json.loads(world.request("GET", "/pricing-for-agents.json").text, parse_float=Decimal)
    assert body["api"]["check_status"]["poll_interval_seconds"] == 14
    assert body["api"]["create_invoice"]["url"] == "/api/invoices"
    assert len(body["quotes"]) == 160
    assert body["quotes"][0]["total_price"] == Decimal("7.00")
    assert body["quotes"][1]["total_price"] == Decimal("19.53")
    assert all(quote["total_price"] * 100 == quote["price_cents"] for quote in body["quotes"])


@given(cents=st.integers(0, 2**63))
def test_dollars_have_two_places_and_lose_nothing(cents):
    assert dollars(cents) * 100 == cents
    assert f"{dollars(cents)}" == f"{cents // 100}.{cents % 100:02d}"


def test_the_price_list_follows_the_durations_sold():
    published = price_list({1: 0, 2: 50})
    assert [quote["total_price"] for quote in published["quotes"][:2]] == [Decimal("7.00")] * 2
    assert len(published["quotes"]) == 64
    assert price_list({})["quotes"] == []
