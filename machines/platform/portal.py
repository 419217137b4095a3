"""The portal: prices, invoices, payment status, a new secret for a lost one.

No call here is signed: a buyer has no key yet, and afterwards the invoice id, which nobody can
guess, is the capability.  `GET /payment/{id}/status` is a destructive read: the first reply that
says `completed` carries the secret, every later one carries null.  If that reply is lost, POST
`/payment/{id}/regenerate` makes a new secret and kills the old one.

An invoice with `extends` adds months to a key that exists.  Anybody may open and pay one; it shows
no secret and makes no new one, so paying for a key does not take it over.

`POST /api/checkout` is the older form of the same sale: `{tier, months, currency:"xmr"}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from machines.platform import invoices, keys
from machines.platform.checkout import (
    COIN,
    INVOICE,
    KEY_PAIR,
    PAYMENT_STATUS,
    SHORT_TEXT,
    TIER,
    currency_field,
    extension_fields,
    extension_order,
    idempotency_key,
    invoice_body,
    open_invoice,
    optional_text,
    refund_address_field,
    tier_and_months,
)
from machines.platform.context import CURRENCIES, PlatformContext
from machines.platform.gift_portal import gift_card_routes
from machines.platform.invoices import Invoice, Order
from machines.platform.ledger.coins import format_coins
from machines.platform.markup import write_page, write_xml, write_yaml
from machines.platform.misbehaviour import fault_routes
from machines.platform.pages import page_routes
from machines.platform.pricing import price_list
from machines.platform.replies import Problem, iso, reply
from machines.platform.unsigned import Unsigned, UnsignedRoute, read_object
from machines.platform.wallets.bitcoind import bitcoind_routes
from machines.platform.wallets.monero import monero_routes
from machines.platform.wire import TEXT, Schema, an_object, array, one_of
from persistence.database import Session

_PRIVATE = {"Cache-Control": "no-store"}


def build_money_routes(context: PlatformContext) -> list[BaseRoute]:
    """Portal, nodes and wallets; the fault route only when the configuration allows faults."""
    described = (*portal_calls(context), *page_routes(context), *gift_card_routes(context))
    routes: list[BaseRoute] = [UnsignedRoute(each) for each in described]
    routes += [*monero_routes(context), *bitcoind_routes(context)]
    if context.config.allow_faults:
        routes += fault_routes(context.database, context.clock_ms, context.blocks.judge)
    return routes


def portal_calls(context: PlatformContext) -> list[Unsigned]:
    """The portal's calls."""
    return [*_prices(Portal(context)), *_sales(Portal(context))]


def _prices(portal: Portal) -> list[Unsigned]:
    document = an_object(("quotes", "api"), quotes=array({"type": "object"}))
    forms: tuple[tuple[str, Any, str, Schema], ...] = (
        (".json", portal.pricing, "application/json", document),
        (".xml", portal.pricing_xml, "application/xml", document),
        (".yaml", portal.pricing_yaml, "application/yaml", document),
        ("", portal.pricing_page, "text/html", TEXT),
    )
    return [
        Unsigned(
            method="GET",
            path="/pricing-for-agents" + suffix,
            handler=handler,
            summary=f"What is sold and how to buy it ({media}).",
            tag="portal",
            answers={200: schema},
            media=media,
        )
        for suffix, handler, media, schema in forms
    ]


def _sales(portal: Portal) -> list[Unsigned]:
    months = one_of_integers(*portal.months_sold)
    return [
        Unsigned(
            method="POST",
            path="/api/invoices",
            handler=portal.create_invoice,
            summary="Order a key, or more time for one (`extends`).",
            tag="portal",
            body=an_object(
                ("months", "payment_method"),
                tier_level=TIER,
                months=months,
                payment_method=COIN,
                email=SHORT_TEXT,
                refund_address=SHORT_TEXT,
                extends=SHORT_TEXT,
            ),
            answers={201: INVOICE, 200: INVOICE},
            refusals=frozenset({404, 409}),
            repeatable=True,
        ),
        Unsigned(
            method="POST",
            path="/api/checkout",
            handler=portal.checkout,
            summary="The older form of an order.",
            tag="portal",
            body=an_object(
                ("tier", "months", "currency"),
                tier=TIER,
                months=months,
                currency=one_of(*(name.lower() for name in CURRENCIES)),
            ),
            answers={201: _CHECKOUT, 200: _CHECKOUT},
            refusals=frozenset({409}),
            repeatable=True,
            deprecated=True,
        ),
        Unsigned(
            method="GET",
            path="/payment/{invoice_id}/status",
            handler=portal.status,
            summary="An invoice; the secret with the first `completed`.",
            tag="portal",
            answers={200: PAYMENT_STATUS},
            refusals=frozenset({404}),
        ),
        Unsigned(
            method="POST",
            path="/payment/{invoice_id}/regenerate",
            handler=portal.regenerate,
            summary="A new secret for the key of an invoice; the old one is dead.",
            tag="portal",
            answers={200: _NEW_SECRET},
            refusals=frozenset({404, 409}),
        ),
    ]


def one_of_integers(*values: int) -> Schema:
    """Schema of an integer out of a list."""
    return {"type": "integer", "enum": list(values)}


_CHECKOUT = an_object(
    ("payment_address", "amount", "currency", "checkout_url", "expires_at"),
    payment_address=TEXT,
    amount=TEXT,
    currency=TEXT,
    checkout_url=TEXT,
    expires_at=TEXT,
    status_url=TEXT,
)
_NEW_SECRET = an_object(
    ("public_key", "secret_key"), public_key=TEXT, secret_key=TEXT, api_key=KEY_PAIR
)


class Portal:
    """Request handlers over one context."""

    def __init__(self, context: PlatformContext) -> None:
        self._context = context

    @property
    def months_sold(self) -> list[int]:
        """The durations."""
        return sorted(self._context.config.discount_percent)

    async def pricing(self, _request: Request) -> Response:
        """The price table and how to buy."""
        return reply(price_list(self._context.config.discount_percent))

    async def pricing_xml(self, _request: Request) -> Response:
        """The same as XML."""
        document = price_list(self._context.config.discount_percent)
        return Response(write_xml("pricing", document), media_type="application/xml")

    async def pricing_yaml(self, _request: Request) -> Response:
        """The same as YAML (the media type of RFC 9512)."""
        document = price_list(self._context.config.discount_percent)
        return Response(write_yaml(document), media_type="application/yaml")

    async def pricing_page(self, _request: Request) -> Response:
        """The same as a page for people."""
        document = price_list(self._context.config.discount_percent)
        return Response(write_page("Pricing for agents", document), media_type="text/html")

    async def create_invoice(self, request: Request) -> Response:
        """Open an invoice: 201, or 200 with the same one when the key was used before."""
        key = idempotency_key(request)
        body = await read_object(request)
        invoice, new, extra, now_ms = self._open(body, key)
        shown = invoice_body(self._context.config, invoice, now_ms) | extra
        return reply(shown, 201 if new else 200)

    async def checkout(self, request: Request) -> Response:
        """The older form: lower-case coins, a page to pay at."""
        key = idempotency_key(request)
        invoice, new, _, _ = self._open(_older(await read_object(request)), key)
        body = {
            "id": invoice.invoice_id,
            "payment_address": invoice.address,
            "amount": invoice.amount,
            "currency": invoice.currency.lower(),
            "checkout_url": f"/pay/{invoice.invoice_id}",
            "status_url": f"/payment/{invoice.invoice_id}/status",
            "expires_at": iso(invoice.expires_ms),
        }
        return reply(body, 201 if new else 200)

    async def status(self, request: Request) -> Response:
        """What the invoice is now; the secret with the first `completed`."""
        now_ms = self._context.clock_ms()
        with self._context.database.transaction() as sql:
            invoice = _found(sql, request)
            invoice = invoices.evaluate(sql, self._context.config, invoice, now_ms)
            body = self._status_body(sql, invoice, now_ms)
        return reply(body, headers=_PRIVATE)

    async def regenerate(self, request: Request) -> Response:
        """A new secret for the invoice's key; the old one is dead."""
        now_ms = self._context.clock_ms()
        with self._context.database.transaction() as sql:
            invoice = _found(sql, request)
            if invoice.public_key is None:
                raise Problem(
                    409,
                    "not_completed",
                    f"the invoice is {invoice.state}; a key exists only once it is completed, and "
                    "none comes of an invoice for a gift card or for the extension of a key.",
                )
            fresh = keys.regenerate(sql, invoice.public_key, now_ms)
        body = {
            "invoice_id": invoice.invoice_id,
            "public_key": invoice.public_key,
            "secret_key": fresh,
            "api_key": {"public_key": invoice.public_key, "secret_key": fresh},
        }
        return reply(body, headers=_PRIVATE)

    def _open(
        self, body: Mapping[str, Any], key: str | None
    ) -> tuple[Invoice, bool, dict[str, Any], int]:
        config, now_ms = self._context.config, self._context.clock_ms()
        with self._context.database.transaction() as sql:
            if body.get("extends") is not None:
                order = extension_order(sql, body, config, now_ms)
            else:
                order = self._order(body)
            invoice, new = open_invoice(sql, config, order, key, now_ms)
            return invoice, new, extension_fields(sql, invoice), now_ms

    def _order(self, body: Mapping[str, Any]) -> Order:
        tier, months = tier_and_months(body, self._context.config)
        currency = currency_field(body)
        refund_address = refund_address_field(body, currency)
        return Order(
            tier=tier,
            months=months,
            currency=currency,
            email=optional_text(body, "email"),
            refund_address=refund_address,
        )

    def _status_body(self, sql: Session, invoice: Invoice, now_ms: int) -> dict[str, Any]:
        body = invoice_body(self._context.config, invoice, now_ms) | {
            "state": invoice.state,
            "confirmations": max(0, invoice.confirmations),
            "amount_due": invoice.amount,
            "amount_due_atomic": invoice.amount_atomic,
            "amount_received": format_coins(invoice.currency, invoice.received_atomic),
            "amount_received_atomic": invoice.received_atomic,
            "overpaid_atomic": invoice.overpaid_atomic,
            "tier": invoice.tier,
            "payments": [
                {
                    "txid": payment.txid,
                    "amount_atomic": payment.amount_atomic,
                    "confirmations": payment.confirmations,
                }
                for payment in invoices.payments(sql, invoice)
            ],
        }
        body |= _refund_fields(sql, invoice) | extension_fields(sql, invoice)
        return body | _key_fields(sql, invoice, now_ms)


def _older(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body of `/api/checkout` in the words of today; refusals then name today's fields."""
    currency = body.get("currency")
    return {
        "tier_level": body.get("tier"),
        "months": body.get("months"),
        "payment_method": currency.upper() if isinstance(currency, str) else currency,
    }


def _found(sql: Session, request: Request) -> Invoice:
    invoice = invoices.find(sql, request.path_params["invoice_id"])
    if invoice is None:
        raise Problem(404, "not_found", "no such invoice. Check the id the portal returned.")
    return invoice


def _key_fields(sql: Session, invoice: Invoice, now_ms: int) -> dict[str, Any]:
    if invoice.public_key is None:
        return {}
    secret = keys.reveal_once(sql, invoice.public_key, now_ms)
    row = keys.find(sql, invoice.public_key)
    viewed_ms = row.secret_viewed_ms if row else None
    return {
        "public_key": invoice.public_key,
        "secret_key": secret,
        "api_key": {"public_key": invoice.public_key, "secret_key": secret},
        "secret_viewed_at": iso(viewed_ms) if viewed_ms is not None else None,
    }


def _refund_fields(sql: Session, invoice: Invoice) -> dict[str, Any]:
    made = [
        {
            "txid": refund.txid,
            "amount": format_coins(invoice.currency, refund.refund_atomic),
            "amount_atomic": refund.refund_atomic,
            "fee_atomic": refund.fee_atomic,
            "confirmations": refund.confirmations,
            "address": invoice.refund_address,
        }
        for refund in invoices.refunds(sql, invoice)
    ]
    return {"refund": made[-1], "refunds": made} if made else {}
