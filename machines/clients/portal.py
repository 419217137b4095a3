"""The portal over HTTP: prices, invoices, payment status, keys.  Nothing here is signed.

::

    GET  /pricing-for-agents.json        the quotes
    POST /api/invoices                   Idempotency-Key: the same key, the same invoice
    GET  /payment/{id}/status            destructive: the first `completed` holds the secret
    POST /payment/{id}/regenerate        a new secret, free; the old one is dead

What must be exact (amount, currency, address, times) is refused when it is missing or odd; unknown
fields are ignored.  Source: platform-api.md sections 14, 15, 18; payments.md section 4.
"""

from __future__ import annotations

import json
from typing import Any, get_args

from engine.secrets import Secret
from machines.clients.fields import Fields
from machines.clients.ports import (
    Credentials,
    Currency,
    Invoice,
    PaymentStatus,
    PortalStatus,
    Quote,
    Rejected,
)
from machines.clients.transport import Transport, base_of, parsed, segment

CLOCK_MS_MAX = 24 * 3600 * 1000
"""A clock that is further off than this is not corrected but reported."""

DATE_MS = 2_000
"""What the header `Date`, in whole seconds, and the way of the reply cannot tell apart."""

_STATUSES: dict[str, PortalStatus] = {status: status for status in get_args(PortalStatus)}


class HttpPortal:
    """`Portal` over one base URL."""

    def __init__(self, base_url: str, transport: Transport) -> None:
        self._base_url = base_of(base_url)
        self._transport = transport
        self._currencies: dict[str, Currency] = {}

    async def quotes(self) -> tuple[Quote, ...]:
        """Every price of the table."""
        call = "portal.quotes"
        url = f"{self._base_url}/pricing-for-agents.json"
        data = await self._transport.request_json("GET", url, call=call)
        return tuple(_quote(Fields(item, call)) for item in Fields(data, call).array("quotes"))

    async def create_invoice(
        self, *, tier: int, months: int, currency: Currency, refund_address: str, key: str
    ) -> Invoice:
        """Open an invoice, or get again the one this key opened."""
        call = "portal.create_invoice"
        wanted = {
            "tier_level": tier,
            "months": months,
            "payment_method": currency.value,
            "refund_address": refund_address,
        }
        reply = await self._transport.request(
            "POST",
            f"{self._base_url}/api/invoices",
            call=call,
            body=json.dumps(wanted, separators=(",", ":")).encode(),
            headers={"Idempotency-Key": key},
        )
        ahead_ms = clock_ahead_ms(call, self._transport.clock_ms(), reply.server_ms)
        invoice = read_invoice(Fields(parsed(reply, call), call), currency, ahead_ms)
        _require(call, "tier_level", tier, invoice.tier)
        _require(call, "months", months, invoice.months)
        self._currencies[invoice.invoice_id] = invoice.currency
        return invoice

    async def payment_status(self, invoice_id: str) -> PaymentStatus:
        """Read the status.  A lost reply may have been the one that held the secret."""
        call = "portal.payment_status"
        url = f"{self._base_url}/payment/{segment(invoice_id)}/status"
        reply = await self._transport.request("GET", url, call=call)
        fields = Fields(parsed(reply, call), call)
        server_ms = reply.server_ms or self._transport.clock_ms()
        return self._status(fields, invoice_id, fields.integer("server_ms", default=server_ms))

    async def regenerate_secret(self, invoice_id: str) -> Credentials:
        """A new secret for the invoice's key.  Safe to repeat: only the newest secret lives."""
        call = "portal.regenerate_secret"
        url = f"{self._base_url}/payment/{segment(invoice_id)}/regenerate"
        fields = Fields(await self._transport.request_json("POST", url, call=call), call)
        key = fields.inner("api_key") or fields
        return Credentials(
            public_key=key.text("public_key"), secret_key=Secret(key.text("secret_key"))
        )

    def _status(self, fields: Fields, invoice_id: str, server_ms: int) -> PaymentStatus:
        currency = self._currency(fields, invoice_id)
        _require("portal.payment_status", "invoice_id", invoice_id, fields.text("invoice_id", "id"))
        status = _STATUSES.get(fields.text("status"))
        if status is None:
            raise fields.refusal(("status",), f"expected one of {', '.join(_STATUSES)}")
        public_key, secret_key = _key(fields)
        refund = fields.inner("refund")
        return PaymentStatus(
            invoice_id=invoice_id,
            status=status,
            received_atomic=fields.amount("amount_received", currency=currency),
            due_atomic=fields.amount("amount_due", currency=currency),
            confirmations=fields.integer("confirmations", default=0),
            expires_ms=fields.moment_ms("expires_ms", "expires_at"),
            server_ms=server_ms,
            public_key=public_key,
            secret_key=secret_key,
            refund_txid=refund.optional_text("txid") if refund else None,
            refund_atomic=_refund_atomic(refund, currency),
        )

    def _currency(self, fields: Fields, invoice_id: str) -> Currency:
        # Piconero and satoshi texts look alike, so without the coin an amount means nothing.
        if fields.get("currency", "payment_method") is None and invoice_id in self._currencies:
            return self._currencies[invoice_id]
        return _currency(fields)


def clock_ahead_ms(call: str, local_ms: int, server_ms: int | None) -> int:
    """How far our clock is ahead of the server's; below a second it is not known to be.

    Raises:
        Rejected: further than a day; nothing should be paid on such a clock.
    """
    if server_ms is None:
        return 0
    ahead_ms = local_ms - server_ms
    if abs(ahead_ms) > CLOCK_MS_MAX:
        raise Rejected(
            f"{call}: our clock is {ahead_ms // 1000} s ahead of the server's, at most "
            f"{CLOCK_MS_MAX // 1000} s can be corrected. Set the clock of this machine."
        )
    return ahead_ms if abs(ahead_ms) > DATE_MS else 0


def _quote(fields: Fields) -> Quote:
    return Quote(
        tier=fields.integer("tier"),
        months=fields.integer("duration", "months"),
        price_cents=fields.cents("total_price"),
        requests_per_minute=fields.integer("rpm"),
        concurrency=fields.integer("concurrency"),
    )


def read_invoice(
    fields: Fields, currency: Currency, ahead_ms: int, *, for_key: bool = True
) -> Invoice:
    """An invoice as the portal shows it, in the coin that was asked for.

    Args:
        ahead_ms: how far our clock is ahead of the server's.
        for_key: otherwise tier and months may be missing, and are 0.

    Raises:
        Rejected: something in it is missing or odd.
    """
    _require("invoice", "currency", currency, _currency(fields))
    amount_atomic = fields.amount("amount", currency=currency)
    if amount_atomic == 0:
        raise fields.refusal(("amount",), "expected more than zero")
    in_cents = fields.get("price_cents") is not None
    return Invoice(
        invoice_id=fields.text("id", "invoice_id"),
        currency=currency,
        address=fields.text("address", "payment_address"),
        amount_atomic=amount_atomic,
        price_cents=fields.integer("price_cents") if in_cents else fields.cents("amount_usd"),
        tier=fields.integer("tier_level", "tier", default=None if for_key else 0),
        months=fields.integer("months", default=None if for_key else 0),
        expires_ms=fields.moment_ms("expires_ms", "expires_at") + ahead_ms,
        confirmations_required=fields.integer(
            "confirmations_required", default=currency.confirmations
        ),
    )


def _currency(fields: Fields) -> Currency:
    name = fields.text("currency", "payment_method").upper()
    if name not in Currency.__members__:
        raise fields.refusal(("currency",), f"expected one of {', '.join(Currency.__members__)}")
    return Currency[name]


def _key(fields: Fields) -> tuple[str | None, Secret[str] | None]:
    key = fields.inner("api_key")
    public_key = (key and key.optional_text("public_key")) or fields.optional_text("public_key")
    secret = (key and key.optional_text("secret_key")) or fields.optional_text("secret_key")
    return public_key, Secret(secret) if secret else None


def _refund_atomic(refund: Fields | None, currency: Currency) -> int | None:
    if refund is None or refund.get("amount") is None:
        return None
    return refund.amount("amount", currency=currency)


def _require(call: str, name: str, expected: Any, seen: Any) -> None:
    if seen != expected:
        raise Rejected(f"{call}: field {name}: expected {expected!r}, the reply says {seen!r}")
