"""Gift cards over HTTP: prices, create, redeem, status, and the buyer's approval links.

Nothing here is signed.  The code redeems; the id of a redemption, which nobody can guess, reads its
key (the secret once, with the first reply that says `redeemed`) and replaces a lost secret; the id
of a card shows balance and history, never a key; a link in a letter decides.

The wire facts name the calls and little else, so these are choices of this server: the fields of
`create` (`amount_cents`, `payment_method`, `require_approval`, `email`), 402 too little on the
card, 404 unknown code or id, 403 denied, 409 unpaid or expired, 202 for `pending_approval`.  A
link opened shows a page with a button; only the button decides, because mail programs open links.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from machines.platform import gift_cards, keys
from machines.platform.checkout import (
    COIN,
    INVOICE,
    KEY_PAIR,
    MAYBE_TEXT,
    SHORT_TEXT,
    TIER,
    currency_field,
    idempotency_key,
    invoice_body,
    is_integer,
    open_invoice,
    optional_text,
    refund_address_field,
    tier_and_months,
)
from machines.platform.context import PlatformContext
from machines.platform.gift_cards import AMOUNT_CENTS_MAX, AMOUNT_CENTS_MIN, GiftCard, Redemption
from machines.platform.invoices import Order
from machines.platform.pricing import dollars, quotes
from machines.platform.replies import Problem, bad_field, iso, reply
from machines.platform.unsigned import Unsigned, read_object
from machines.platform.wire import BOOLEAN, INTEGER, TEXT, an_object, array, integer, one_of
from persistence.database import Session

_POLL_SECONDS = 14
_PRIVATE = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}


_REDEMPTION = an_object(
    ("id", "status", "balance_cents"),
    id=TEXT,
    status=one_of("pending_approval", "redeemed", "denied"),
    tier_level=INTEGER,
    months=INTEGER,
    price_cents=INTEGER,
    balance_cents=INTEGER,
    balance_usd={"type": "number"},
    public_key=TEXT,
    secret_key=MAYBE_TEXT,
    api_key=KEY_PAIR,
)
_CARD_OR_REDEMPTION = an_object(("id", "status"), id=TEXT, status=TEXT, balance_cents=INTEGER)
_NEW_CARD = {
    "allOf": [
        INVOICE,
        an_object(
            ("gift_card_id", "code", "amount_cents"),
            gift_card_id=TEXT,
            code=MAYBE_TEXT,
            amount_cents=INTEGER,
            require_approval=BOOLEAN,
        ),
    ]
}


def gift_card_routes(context: PlatformContext) -> list[Unsigned]:
    """The calls of gift cards; the letters only when the configuration allows faults."""
    shop = GiftShop(context)
    calls = [*_sale_calls(shop), *_redemption_calls(shop), *_decision_pages(shop)]
    if context.config.allow_faults:
        calls.append(
            Unsigned(
                method="GET",
                path="/_test/letters",
                handler=shop.letters,
                summary="What would have been mailed.",
                tag="tests",
            )
        )
    return calls


def _sale_calls(shop: GiftShop) -> list[Unsigned]:
    return [
        Unsigned(
            method="GET",
            path="/api/gift-cards/pricing",
            handler=shop.pricing,
            summary="Every price of the grid, in cents.",
            tag="gift cards",
            answers={200: an_object(("prices", "count"), prices=array({"type": "object"}))},
        ),
        Unsigned(
            method="POST",
            path="/api/gift-cards/create",
            handler=shop.create,
            summary="Order a gift card; the code is told once.",
            tag="gift cards",
            body=an_object(
                ("payment_method",),
                amount_cents=integer(AMOUNT_CENTS_MIN, AMOUNT_CENTS_MAX),
                amount=integer(AMOUNT_CENTS_MIN, AMOUNT_CENTS_MAX),
                payment_method=COIN,
                currency=COIN,
                email=SHORT_TEXT,
                refund_address=SHORT_TEXT,
                require_approval=BOOLEAN,
            ),
            answers={201: _NEW_CARD, 200: _NEW_CARD},
            refusals=frozenset({409}),
            repeatable=True,
        ),
    ]


def _redemption_calls(shop: GiftShop) -> list[Unsigned]:
    return [
        Unsigned(
            method="POST",
            path="/api/gift-cards/redeem",
            handler=shop.redeem,
            summary="Spend a card on a key.",
            tag="gift cards",
            body=an_object(
                ("code", "tier_level", "months"), code=TEXT, tier_level=TIER, months=INTEGER
            ),
            answers={200: _REDEMPTION, 202: _REDEMPTION},
            refusals=frozenset({402, 404, 409, 429}),
            repeatable=True,
        ),
        Unsigned(
            method="GET",
            path="/api/gift-cards/{gift_id}/status",
            handler=shop.status,
            summary="A redemption (the secret with the first `redeemed`), or a card.",
            tag="gift cards",
            answers={200: _CARD_OR_REDEMPTION},
            refusals=frozenset({404}),
        ),
        Unsigned(
            method="POST",
            path="/api/gift-cards/{gift_id}/regenerate",
            handler=shop.regenerate,
            summary="A new secret for the key of a redemption; the old one is dead.",
            tag="gift cards",
            answers={200: KEY_PAIR},
            refusals=frozenset({403, 404, 409}),
        ),
    ]


def _decision_pages(shop: GiftShop) -> list[Unsigned]:
    pages: list[Unsigned] = []
    for verb, decide in (("approve", shop.approve), ("deny", shop.deny)):
        asking = Unsigned(
            method="GET",
            path=f"/gift-cards/{verb}/{{token}}",
            handler=shop.ask,
            summary=f"The page behind the link to {verb} a redemption.",
            tag="gift cards",
            answers={200: TEXT},
            media="text/html",
            refusals=frozenset({404}),
        )
        deciding = msgspec.structs.replace(
            asking,
            method="POST",
            handler=decide,
            summary=f"The button of that page: {verb}.",
            refusals=frozenset({404, 409}),
        )
        pages += [asking, deciding]
    return pages


class GiftShop:
    """Request handlers over one context."""

    def __init__(self, context: PlatformContext) -> None:
        self._context = context

    async def pricing(self, _request: Request) -> Response:
        """Every price of the grid, in cents."""
        prices = [
            {"tier_level": quote.tier, "months": quote.months, "price_cents": quote.price_cents}
            for quote in quotes(self._context.config.discount_percent)
        ]
        body = {
            "currency": "USD",
            "unit": "cents",
            "minimum_amount_cents": AMOUNT_CENTS_MIN,
            "maximum_amount_cents": AMOUNT_CENTS_MAX,
            "prices": prices,
            "count": len(prices),
        }
        return reply(body)

    async def create(self, request: Request) -> Response:
        """Open an invoice for a card: 201 with the code; 200 and no code for a repeat."""
        context = self._context
        key = idempotency_key(request)
        order = _order(await read_object(request))
        now_ms = context.clock_ms()
        with context.database.transaction() as sql:
            invoice, new = open_invoice(sql, context.config, order, key, now_ms)
            if new:
                card, code = gift_cards.create(sql, context.codec, invoice, order, now_ms)
            else:
                card, code = gift_cards.of_invoice(sql, invoice), None
        body = invoice_body(context.config, invoice, now_ms) | {
            "gift_card_id": card.card_id,
            "code": code,
            "amount_cents": card.amount_cents,
            "require_approval": bool(card.needs_approval),
            "gift_card_status_url": f"/api/gift-cards/{card.card_id}/status",
        }
        return reply(body, 201 if new else 200, _PRIVATE)

    async def redeem(self, request: Request) -> Response:
        """Spend the card on a key: 200 with the key, or 202 while the buyer is asked."""
        context = self._context
        key = idempotency_key(request)
        body = await read_object(request)
        code = _code(body)
        wanted = tier_and_months(body, context.config)
        who, now_ms = request.client.host if request.client else "-", context.clock_ms()
        with context.database.transaction() as sql:
            gift_cards.require_patience(sql, who, now_ms)
            card = gift_cards.find_by_code(sql, context.codec, code)
            if card is None:
                gift_cards.count_wrong_code(sql, who, now_ms)
                return _unknown("gift card with this code").response()
            redemption = gift_cards.redeem(
                sql, context.codec, context.config, card, wanted, now_ms, key
            )
            shown = self._redemption_body(sql, redemption, now_ms)
        return reply(shown, 202 if redemption.state == "pending_approval" else 200, _PRIVATE)

    async def status(self, request: Request) -> Response:
        """A redemption, with its key once approved; or a card, with its balance."""
        gift_id, now_ms = request.path_params["gift_id"], self._context.clock_ms()
        with self._context.database.transaction() as sql:
            redemption = gift_cards.find_redemption(sql, gift_id)
            card = None if redemption else gift_cards.find(sql, gift_id)
            if redemption is not None:
                body = self._redemption_body(sql, redemption, now_ms)
            elif card is not None:
                body = self._card_body(sql, card, now_ms)
            else:
                return _unknown("redemption or gift card").response()
        return reply(body, headers=_PRIVATE)

    async def regenerate(self, request: Request) -> Response:
        """A new secret for the key of a redemption; the old one is dead."""
        gift_id, now_ms = request.path_params["gift_id"], self._context.clock_ms()
        with self._context.database.transaction() as sql:
            redemption = gift_cards.find_redemption(sql, gift_id)
            if redemption is None:
                return _unknown("redemption").response()
            if redemption.public_key is None:
                return _no_key(redemption).response()
            fresh = keys.regenerate(sql, redemption.public_key, now_ms)
        return reply({"id": gift_id, **_key_fields(redemption.public_key, fresh)}, headers=_PRIVATE)

    async def ask(self, request: Request) -> Response:
        """The page behind a link: what is asked for, and a button that decides."""
        with self._context.database.reading() as sql:
            found = gift_cards.find_by_token(sql, request.path_params["token"])
        if found is None:
            return _unknown("approval link").response()
        wish = f"tier {found.tier}, {found.months} months, {found.price_cents} cents"
        verb = "Approve" if request.url.path.startswith("/gift-cards/approve/") else "Deny"
        button = f'<form method="post"><button>{verb}</button></form>'
        waits = found.state == "pending_approval"
        return _page(f"A key is asked for: {wish}. It is {found.state}.", button if waits else "")

    async def approve(self, request: Request) -> Response:
        """The buyer agrees: the key is issued, for the redeemer to fetch."""
        return self._decide(request, approve=True)

    async def deny(self, request: Request) -> Response:
        """The buyer refuses: the price goes back to the card."""
        return self._decide(request, approve=False)

    async def letters(self, _request: Request) -> Response:
        """What would have been mailed; this platform sends no mail."""
        with self._context.database.reading() as sql:
            written = gift_cards.letters(sql, self._context.codec)
        return reply({"letters": written, "count": len(written)}, headers=_PRIVATE)

    def _decide(self, request: Request, *, approve: bool) -> Response:
        token, now_ms = request.path_params["token"], self._context.clock_ms()
        with self._context.database.transaction() as sql:
            found = gift_cards.decide(sql, token, approve, now_ms)
        return _page(f"The redemption is {found.state}.", "")

    def _redemption_body(self, sql: Session, redemption: Redemption, now_ms: int) -> dict[str, Any]:
        card = gift_cards.find(sql, redemption.card_id)
        left = card.balance_cents if card else 0
        body = {
            "id": redemption.redemption_id,
            "redemption_id": redemption.redemption_id,
            "status": redemption.state,
            "tier_level": redemption.tier,
            "months": redemption.months,
            "price_cents": redemption.price_cents,
            "balance_cents": left,
            "balance_usd": dollars(left),
            "created_at": iso(redemption.requested_ms),
            "status_url": f"/api/gift-cards/{redemption.redemption_id}/status",
            "poll_interval_seconds": _POLL_SECONDS,
        }
        if redemption.public_key is None:
            return body
        secret = keys.reveal_once(sql, redemption.public_key, now_ms)
        return body | _key_fields(redemption.public_key, secret)

    def _card_body(self, sql: Session, card: GiftCard, now_ms: int) -> dict[str, Any]:
        invoice = gift_cards.paid_by(sql, self._context.config, card, now_ms)
        paid = invoice.state == "completed"
        left = card.balance_cents if paid else 0
        history = [
            {
                "status": each.state,
                "tier_level": each.tier,
                "months": each.months,
                "price_cents": each.price_cents,
                "created_at": iso(each.requested_ms),
            }
            for each in gift_cards.redemptions(sql, card)
        ]
        return {
            "id": card.card_id,
            "gift_card_id": card.card_id,
            "status": card.standing(invoice),
            "invoice_status": invoice.state,
            "amount_cents": card.amount_cents,
            "balance_cents": left,
            "balance_usd": dollars(left),
            "require_approval": bool(card.needs_approval),
            "created_at": iso(card.created_ms),
            "redemptions": history,
        }


def _order(body: Mapping[str, Any]) -> Order:
    name = "amount_cents" if "amount_cents" in body or "amount" not in body else "amount"
    cents = body.get(name)
    if not is_integer(cents) or not AMOUNT_CENTS_MIN <= int(cents or 0) <= AMOUNT_CENTS_MAX:
        raise bad_field(name, cents, f"cents, from {AMOUNT_CENTS_MIN} to {AMOUNT_CENTS_MAX}")
    older = "currency" in body and "payment_method" not in body
    currency = currency_field(body, "currency" if older else "payment_method")
    asked = body.get("require_approval", False)
    if not isinstance(asked, bool):
        raise bad_field("require_approval", asked, "true or false")
    email = optional_text(body, "email")
    if (asked and email is None) or (email is not None and not _is_email(email)):
        raise bad_field("email", email, "the buyer's e-mail address (approval needs one)")
    return Order(
        tier=None,
        months=None,
        currency=currency,
        email=email,
        refund_address=refund_address_field(body, currency),
        gift_cents=cents,
        gift_needs_approval=asked,
    )


def _is_email(text: str) -> bool:
    name, at, host = text.partition("@")
    return bool(name and at and host) and "@" not in host and text.isprintable() and " " not in text


def _code(body: Mapping[str, Any]) -> str:
    code = body.get("code")
    if not isinstance(code, str) or not 0 < len(code) <= 200:
        # The value is not shown: it may be a code with a slip in it.
        raise bad_field("code", "(not shown)", "four words joined by '-'")
    return code


def _key_fields(public_key: str, secret: str | None) -> dict[str, Any]:
    return {
        "public_key": public_key,
        "secret_key": secret,
        "api_key": {"public_key": public_key, "secret_key": secret},
    }


def _no_key(redemption: Redemption) -> Problem:
    if redemption.state == "denied":
        return Problem(403, "denied", "the buyer denied this redemption; it has no key.")
    return Problem(409, "not_redeemed", f"it is {redemption.state}; there is no key yet.")


def _unknown(what: str) -> Problem:
    return Problem(404, "not_found", f"no such {what}. Check what the portal returned.")


def _page(sentence: str, form: str) -> Response:
    """A page of our own words only: nothing in it comes from a request."""
    return HTMLResponse(
        f"<!doctype html><title>Gift card</title><p>{sentence}</p>{form}", headers=_PRIVATE
    )
