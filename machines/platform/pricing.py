"""What a key costs: `7 * tier * months` dollars less the discount of the months, in cents.

With whole percents the price is an integer by construction (wire facts, section (i))::

    cents = 700 * tier * months * (100 - discount) / 100 = 7 * tier * months * (100 - discount)

`price_list` is what the portal publishes, and the only place that says it: JSON, XML, YAML and
the page are four spellings of that one value (wire facts, section 14).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import msgspec

from machines.platform.context import CURRENCIES
from machines.platform.markup import Plain

TIERS = range(1, 33)
POLL_SECONDS = 14


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


def dollars(cents: int) -> Decimal:
    """US dollars with exactly two places, without a float in between."""
    return Decimal(cents).scaleb(-2)


def price_list(discount_percent: Mapping[int, int]) -> dict[str, Plain]:
    """What is sold and how to buy it: `api`, `payment_methods`, `quotes` (section 14)."""
    return {
        "api": {
            "create_invoice": {
                "method": "POST",
                "url": "/api/invoices",
                "content_type": "application/json",
                "params": ["tier_level", "months", "payment_method", "email", "refund_address"],
                "example": {"tier_level": 1, "months": 1, "payment_method": "LTC"},
            },
            "check_status": {
                "method": "GET",
                "url": "/payment/{invoice_id}/status",
                "poll_interval_seconds": POLL_SECONDS,
            },
        },
        "payment_methods": list(CURRENCIES),
        "quotes": [_published(quote) for quote in quotes(discount_percent)],
    }


def _published(quote: Quote) -> Plain:
    return {
        "tier": quote.tier,
        "duration": quote.months,
        "months": quote.months,
        "total_price": dollars(quote.price_cents),
        "price_cents": quote.price_cents,
        "rpm": quote.requests_per_minute,
        "concurrency": quote.concurrency,
    }
