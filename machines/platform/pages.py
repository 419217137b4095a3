"""Pages for people: pay for more time of a key, pay an invoice.

::

    GET  /keys/extend?pk=...   (the freeze page says key=)   the key's tier, expiry and prices
    POST /keys/extend          the form of that page         opens an invoice, leads to its page
    GET  /pay/{invoice_id}     address, amount and state of an invoice

Anybody may pay for a key, so the first page shows what a payer needs and nothing else.  The page
of an invoice never shows a secret, and opening it does not use up the one look at it.  Everything
that is not our own word is escaped.
"""

from __future__ import annotations

from html import escape
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from machines.platform import invoices, keys
from machines.platform.checkout import (
    COIN,
    extension_fields,
    extension_order,
    open_invoice,
    unknown_key,
)
from machines.platform.context import CURRENCIES, PlatformContext
from machines.platform.keys import KeyRow
from machines.platform.pricing import dollars, price_cents
from machines.platform.replies import Problem, bad_field, iso
from machines.platform.unsigned import BODY_BYTES_MAX, Unsigned, read_body
from machines.platform.wire import TEXT, an_object

_PRIVATE = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; form-action 'self'",
}
_FORM = "application/x-www-form-urlencoded"


def page_routes(context: PlatformContext) -> list[Unsigned]:
    """The pages."""
    pages = Pages(context)
    return [
        Unsigned(
            method="GET",
            path="/keys/extend",
            handler=pages.ask,
            summary="The page that sells more time for a key.",
            tag="pages",
            query={"pk": TEXT, "key": TEXT},
            answers={200: TEXT},
            media="text/html",
            refusals=frozenset({404}),
        ),
        Unsigned(
            method="POST",
            path="/keys/extend",
            handler=pages.order,
            summary="The form of that page: opens an invoice and leads to its page.",
            tag="pages",
            body=an_object(
                ("extends", "months", "payment_method"),
                extends=TEXT,
                months=TEXT,
                payment_method=COIN,
            ),
            body_media=_FORM,
            answers={303: TEXT},
            media="text/html",
            refusals=frozenset({404, 409}),
        ),
        Unsigned(
            method="GET",
            path="/pay/{invoice_id}",
            handler=pages.pay,
            summary="An invoice as a page.",
            tag="pages",
            answers={200: TEXT},
            media="text/html",
            refusals=frozenset({404}),
            deprecated=True,
        ),
    ]


class Pages:
    """Request handlers over one context."""

    def __init__(self, context: PlatformContext) -> None:
        self._context = context

    async def ask(self, request: Request) -> Response:
        """What more time costs, and a form to order it."""
        public_key = request.query_params.get("pk") or request.query_params.get("key")
        if not public_key:
            raise bad_field("pk", public_key, "a public key: /keys/extend?pk=unsb-pk-...")
        with self._context.database.reading() as sql:
            key = keys.find(sql, public_key)
        if key is None:
            raise unknown_key()
        return _page("Extend a key", self._offer(key))

    async def order(self, request: Request) -> Response:
        """Open an invoice for the chosen months and coin."""
        fields = _form(await read_body(request, BODY_BYTES_MAX))
        months = fields.get("months", "")
        wanted = {
            "extends": fields.get("extends"),
            "months": int(months) if _is_small_number(months) else months,
            "payment_method": fields.get("payment_method"),
        }
        config, now_ms = self._context.config, self._context.clock_ms()
        with self._context.database.transaction() as sql:
            order = extension_order(sql, wanted, config, now_ms)
            invoice, _ = open_invoice(sql, config, order, None, now_ms)
        answer = RedirectResponse(f"/pay/{invoice.invoice_id}", 303, headers=_PRIVATE)
        answer.headers["content-type"] = "text/html; charset=utf-8"
        return answer

    async def pay(self, request: Request) -> Response:
        """Where to pay what, and how far it is."""
        now_ms = self._context.clock_ms()
        with self._context.database.transaction() as sql:
            invoice = invoices.find(sql, request.path_params["invoice_id"])
            if invoice is None:
                raise Problem(404, "not_found", "no such invoice. Check the address of this page.")
            invoice = invoices.evaluate(sql, self._context.config, invoice, now_ms)
            extension = extension_fields(sql, invoice)
        rows = {
            "State": invoice.state,
            "Amount": f"{invoice.amount} {invoice.currency}",
            "Address": invoice.address,
            "Open until": iso(invoice.expires_ms),
            "Confirmations": f"{max(0, invoice.confirmations)} of "
            f"{self._context.config.confirmations[invoice.currency]}",
        }
        if extension:
            rows["Extends"] = f"{extension['extends']} by {extension['months']} months"
        link = f'<p><a href="{escape(invoice.payment_uri)}">Pay with a wallet</a></p>'
        return _page("Invoice", _definitions(rows) + link + _after(bool(extension)))

    def _offer(self, key: KeyRow) -> str:
        now_ms = self._context.clock_ms()
        rows = {
            "Key": key.public_key,
            "Tier": str(key.tier),
            "State": key.standing(now_ms),
            "Expires": iso(key.expires_ms),
        }
        if key.standing(now_ms) == "suspended":
            return _definitions(rows) + "<p>A suspended key cannot be extended.</p>"
        prices = self._context.config.discount_percent
        durations = "".join(
            f'<option value="{months}">{months} months: '
            f"{dollars(price_cents(key.tier, months, prices))} USD</option>"
            for months in sorted(prices)
        )
        coins = "".join(f"<option>{coin}</option>" for coin in CURRENCIES)
        return (
            f'{_definitions(rows)}<form method="post" action="/keys/extend">'
            f'<input type="hidden" name="extends" value="{escape(key.public_key)}">'
            f'<select name="months">{durations}</select>'
            f'<select name="payment_method">{coins}</select>'
            "<button>Pay for more time</button></form>"
            "<p>Programs: POST /api/invoices with extends, months and payment_method.</p>"
        )


def _after(extension: bool) -> str:
    if extension:
        return "<p>Once it is completed, the key has its new expiry.</p>"
    return (
        "<p>Once it is completed, ask /payment/&hellip;/status for the key; "
        "the secret is told once, and never on this page.</p>"
    )


def _definitions(rows: dict[str, str]) -> str:
    shown = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows.items()
    )
    return f"<dl>{shown}</dl>"


def _page(title: str, inner: str) -> Response:
    return HTMLResponse(
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"</head><body><h1>{escape(title)}</h1>{inner}</body></html>",
        headers=_PRIVATE,
    )


def _form(body: bytes) -> dict[str, str]:
    try:
        fields = parse_qs(body.decode(), max_num_fields=20)
    except ValueError as error:
        raise Problem(400, "invalid_request", f"body: not a form ({error}).") from error
    return {name: values[-1] for name, values in fields.items()}


def _is_small_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 4
