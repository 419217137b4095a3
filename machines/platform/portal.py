"""The portal: prices, invoices, payment status, a new secret for a lost one.

No call here is signed: a buyer has no key yet, and afterwards the invoice id, which nobody can
guess, is the capability.  `GET /payment/{id}/status` is a destructive read: the first reply that
says `completed` carries the secret, every later one carries null.  If that reply is lost, POST
`/payment/{id}/regenerate` makes a new secret and kills the old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from machines.platform import invoices, keys
from machines.platform.checkout import (
    currency_field,
    idempotency_key,
    invoice_body,
    open_invoice,
    optional_text,
    refund_address_field,
    tier_and_months,
)
from machines.platform.context import PlatformContext
from machines.platform.gift_portal import gift_card_routes
from machines.platform.invoices import Invoice, Order
from machines.platform.ledger.coins import format_coins
from machines.platform.markup import write_page, write_xml, write_yaml
from machines.platform.misbehaviour import fault_routes
from machines.platform.pricing import price_list
from machines.platform.replies import Problem, iso, parse_object, reply
from machines.platform.wallets.bitcoind import bitcoind_routes
from machines.platform.wallets.monero import monero_routes
from persistence.database import Session


def build_money_routes(context: PlatformContext) -> list[Route]:
    """Portal, nodes and wallets; the fault route only when the configuration allows faults."""
    routes = [*portal_routes(context), *gift_card_routes(context)]
    routes += [*monero_routes(context), *bitcoind_routes(context)]
    if context.config.allow_faults:
        routes += fault_routes(context.database, context.clock_ms)
    return routes


def portal_routes(context: PlatformContext) -> list[Route]:
    """The portal's routes."""
    portal = Portal(context)
    return [
        Route("/pricing-for-agents.json", portal.pricing, methods=["GET"]),
        Route("/pricing-for-agents.xml", portal.pricing_xml, methods=["GET"]),
        Route("/pricing-for-agents.yaml", portal.pricing_yaml, methods=["GET"]),
        Route("/pricing-for-agents", portal.pricing_page, methods=["GET"]),
        Route("/api/invoices", portal.create_invoice, methods=["POST"]),
        Route("/payment/{invoice_id}/status", portal.status, methods=["GET"]),
        Route("/payment/{invoice_id}/regenerate", portal.regenerate, methods=["POST"]),
    ]


class Portal:
    """Request handlers over one context."""

    def __init__(self, context: PlatformContext) -> None:
        self._context = context

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
        try:
            key = idempotency_key(request)
            order = self._order(parse_object(await request.body()))
            return self._open(order, key)
        except Problem as problem:
            return problem.response()

    async def status(self, request: Request) -> Response:
        """What the invoice is now; the secret with the first `completed`."""
        now_ms = self._context.clock_ms()
        with self._context.database.transaction() as sql:
            invoice = invoices.find(sql, request.path_params["invoice_id"])
            if invoice is None:
                return _unknown().response()
            invoice = invoices.evaluate(sql, self._context.config, invoice, now_ms)
            body = self._status_body(sql, invoice, now_ms)
        return reply(body, headers={"Cache-Control": "no-store"})

    async def regenerate(self, request: Request) -> Response:
        """A new secret for the invoice's key; the old one is dead."""
        now_ms = self._context.clock_ms()
        with self._context.database.transaction() as sql:
            invoice = invoices.find(sql, request.path_params["invoice_id"])
            if invoice is None:
                return _unknown().response()
            if invoice.public_key is None:
                return Problem(
                    409,
                    "not_completed",
                    f"the invoice is {invoice.state}; a key exists only once it is completed, "
                    "and none comes of an invoice for a gift card.",
                ).response()
            fresh = keys.regenerate(sql, invoice.public_key, now_ms)
        body = {
            "invoice_id": invoice.invoice_id,
            "public_key": invoice.public_key,
            "secret_key": fresh,
            "api_key": {"public_key": invoice.public_key, "secret_key": fresh},
        }
        return reply(body, headers={"Cache-Control": "no-store"})

    def _open(self, order: Order, key: str | None) -> Response:
        config, now_ms = self._context.config, self._context.clock_ms()
        with self._context.database.transaction() as sql:
            invoice, new = open_invoice(sql, config, order, key, now_ms)
        return reply(invoice_body(config, invoice, now_ms), 201 if new else 200)

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
        return body | _refund_fields(sql, invoice) | _key_fields(sql, invoice, now_ms)


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


def _unknown() -> Problem:
    return Problem(404, "not_found", "no such invoice. Check the id the portal returned.")
