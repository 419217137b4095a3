"""What a key costs: `7 * tier * months` dollars less the discount of the months, in cents.

With whole percents the price is an integer by construction (wire facts, section (i))::

    cents = 700 * tier * months * (100 - discount) / 100 = 7 * tier * months * (100 - discount)
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

TIERS = range(1, 33)


class Quote(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the price table: 32 tiers times the durations sold."""

    tier: int
    months: int
    price_cents: int
    requests_per_minute: int
    concurrency: int


def price_cents(tier: int, months: int, discount_percent: Mapping[int, int]) -> int:
    """US cents for a tier (1..32) and one of the durations sold.

    Raises:
        KeyError: the duration is not sold.
    """
    return 7 * tier * months * (100 - discount_percent[months])


def quotes(discount_percent: Mapping[int, int]) -> tuple[Quote, ...]:
    """Every quote, by tier and then by duration; 160 with the usual five durations."""
    return tuple(
        Quote(
            tier=tier,
            months=months,
            price_cents=price_cents(tier, months, discount_percent),
            requests_per_minute=7 * tier,
            concurrency=(tier - 1) // 4 + 1,
        )
        for tier in TIERS
        for months in sorted(discount_percent)
    )


def restocking_fee_atomic(paid_atomic: int) -> int:
    """The 9 % that is kept when a payment is sent back, rounded up to the atomic unit."""
    return -(-9 * paid_atomic // 100)
