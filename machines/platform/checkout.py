"""What every sale has in common: the fields of an order, its idempotency key, its invoice.

The portal sells keys, more time for keys, and gift cards that buy keys later.  All are paid by the
same invoice, so all are asked for, refused, repeated and shown in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from machines.platform import extensions, invoices, keys
from machines.platform.context import CURRENCIES, PlatformConfig
from machines.platform.extensions import Extension
from machines.platform.invoices import Invoice, Order
from machines.platform.ledger.addresses import is_address
from machines.platform.pricing import TIERS, dollars
from machines.platform.replies import Problem, bad_field, iso
from machines.platform.wire import (
    BOOLEAN,
    INTEGER,
    TEXT,
    Schema,
    an_object,
    array,
    integer,
    one_of,
)
from persistence.database import Session

SHORT_TEXT: Schema = {"type": ["string", "null"], "maxLength": 200}
TIER: Schema = integer(1, 32)
COIN: Schema = one_of(*CURRENCIES)
MAYBE_INTEGER: Schema = {"type": ["integer", "null"]}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
INVOICE: Schema = an_object(
    ("id", "invoice_id", "status", "payment_method", "address", "amount", "payment_uri"),
    id=TEXT,
    invoice_id=TEXT,
    status=one_of(
        "pending",
        "partial",
        "confirming",
        "completed",
        "expired",
        "refund_pending",
        "refunded",
    ),
    payment_method=COIN,
    currency=COIN,
    address=TEXT,
    payment_address=TEXT,
    amount=TEXT,
    amount_atomic=INTEGER,
    amount_usd={"type": "number"},
    price_cents=INTEGER,
    tier_level=MAYBE_INTEGER,
    months=MAYBE_INTEGER,
    payment_uri=TEXT,
    confirmations_required=INTEGER,
    created_at=TEXT,
    expires_at=TEXT,
    status_url=TEXT,
    extends=TEXT,
)
KEY_PAIR: Schema = an_object(("public_key",), public_key=TEXT, secret_key=MAYBE_TEXT)
PAYMENT_STATUS: Schema = {
    "allOf": [
        INVOICE,
        an_object(
            ("confirmations", "amount_received"),
            confirmations=INTEGER,
            amount_due=TEXT,
            amount_received=TEXT,
            overpaid_atomic=INTEGER,
            payments=array(an_object(("txid",), txid=TEXT, confirmations=INTEGER)),
            public_key=TEXT,
            secret_key=MAYBE_TEXT,
            api_key=KEY_PAIR,
            extended=BOOLEAN,
        ),
    ]
}

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,200}", re.ASCII)


def open_invoice(
    sql: Session, config: PlatformConfig, order: Order, key: str | None, now_ms: int
) -> tuple[Invoice, bool]:
    """The invoice of an order, and whether it is new; the same one for a repeated key.

    Raises:
        Problem: 409, the key was used for another order.
    """
    known = invoices.find_by_key(sql, key) if key else None
    if known is None:
        return invoices.create(sql, config, order, key, now_ms), True
    if known.request_hash != order.fingerprint:
        raise Problem(
            409,
            "idempotency_conflict",
            "this Idempotency-Key opened an invoice with other content. Send the same "
            "body again, or a new key for a new invoice.",
        )
    return known, False


def invoice_body(config: PlatformConfig, invoice: Invoice, now_ms: int) -> dict[str, Any]:
    """An invoice as its buyer sees it (wire facts, section 15.1)."""
    return {
        "id": invoice.invoice_id,
        "invoice_id": invoice.invoice_id,
        "status": invoice.state,
        "payment_method": invoice.currency,
        "currency": invoice.currency,
        "address": invoice.address,
        "payment_address": invoice.address,
        "amount": invoice.amount,
        "amount_atomic": invoice.amount_atomic,
        "amount_usd": dollars(invoice.price_cents),
        "price_cents": invoice.price_cents,
        "tier_level": invoice.tier,
        "months": invoice.months,
        "payment_uri": invoice.payment_uri,
        "confirmations_required": config.confirmations[invoice.currency],
        "created_at": iso(invoice.created_ms),
        "expires_at": iso(invoice.expires_ms),
        "expires_ms": invoice.expires_ms,
        "server_ms": now_ms,
        "status_url": f"/payment/{invoice.invoice_id}/status",
    }


def extension_fields(sql: Session, invoice: Invoice) -> dict[str, Any]:
    """What an invoice for the extension of a key has beside; nothing for another one."""
    bought = extensions.find(sql, invoice.invoice_id)
    if bought is None:
        return {}
    fields = {"extends": bought.public_key, "tier_level": bought.tier, "months": bought.months}
    if bought.applied_ms is None or bought.key_expires_ms is None:
        return {**fields, "extended": False}
    # Whoever pays gets no secret: the key's owner has it.
    return {
        **fields,
        "extended": True,
        "key_expires_at": iso(bought.key_expires_ms),
        "public_key": bought.public_key,
        "secret_key": None,
        "api_key": {"public_key": bought.public_key, "secret_key": None},
    }


def extension_order(
    sql: Session, body: Mapping[str, Any], config: PlatformConfig, now_ms: int
) -> Order:
    """An order for more time of the key that `extends` names, at the price of its tier.

    Raises:
        Problem: 400 a field is wrong; 404 no such key; 409 it is suspended.
    """
    public_key = optional_text(body, "extends") or ""
    key = keys.find(sql, public_key)
    if key is None:
        raise unknown_key()
    if key.standing(now_ms) == "suspended":
        raise Problem(
            409,
            "key_suspended",
            "this key is suspended; more time would not make it work. Ask its seller.",
        )
    tier, months = tier_and_months({"tier_level": key.tier, **body}, config)
    if tier != key.tier:
        raise bad_field("tier_level", tier, f"the key's tier {key.tier}, or nothing")
    currency = currency_field(body)
    return Order(
        tier=None,
        months=None,
        currency=currency,
        email=optional_text(body, "email"),
        refund_address=refund_address_field(body, currency),
        extension=Extension(public_key=key.public_key, tier=tier, months=months),
    )


def unknown_key() -> Problem:
    """404 for a key that is not here.  The name is not said again: it may be a secret by slip."""
    return Problem(404, "not_found", "no such key here. Give the public key (unsb-pk-...).")


def tier_and_months(body: Mapping[str, Any], config: PlatformConfig) -> tuple[int, int]:
    """What is wanted of the price grid.

    Raises:
        Problem: 400, not in the grid.
    """
    tier: Any = body.get("tier_level")
    months: Any = body.get("months")
    if not is_integer(tier) or tier not in TIERS:
        raise bad_field("tier_level", tier, "an integer from 1 to 32")
    sold = config.discount_percent
    if not is_integer(months) or months not in sold:
        raise bad_field("months", months, f"one of {sorted(sold)}")
    return tier, months


def currency_field(body: Mapping[str, Any], name: str = "payment_method") -> str:
    """The coin to pay in.

    Raises:
        Problem: 400, a coin that is not taken.
    """
    currency = body.get(name)
    if not isinstance(currency, str) or currency not in CURRENCIES:
        raise bad_field(name, currency, f"one of {', '.join(CURRENCIES)}")
    return currency


def refund_address_field(body: Mapping[str, Any], currency: str) -> str | None:
    """Where money is sent back to, when given.

    Raises:
        Problem: 400, no address of that coin.
    """
    refund_address = optional_text(body, "refund_address")
    if refund_address is not None and not is_address(currency, refund_address):
        raise bad_field("refund_address", refund_address, f"an address of {currency}")
    return refund_address


def optional_text(body: Mapping[str, Any], name: str) -> str | None:
    """A short text, or None when absent or null.

    Raises:
        Problem: 400, something else.
    """
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= 200:
        raise bad_field(name, value, "a string of 1 to 200 characters, or nothing")
    return value


def idempotency_key(request: Request) -> str | None:
    """The request's idempotency key, or None.

    Raises:
        Problem: 400, malformed.
    """
    key = request.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise Problem(
            400, "invalid_request", "Idempotency-Key: expected 1 to 200 visible ASCII characters."
        )
    return key


def is_integer(value: object) -> bool:
    """Whether a JSON value is an integer; `true` is none."""
    return isinstance(value, int) and not isinstance(value, bool)
