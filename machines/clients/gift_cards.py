"""Gift cards over HTTP.  Nothing here is signed; the code travels in a body, never in a path.

::

    GET  /api/gift-cards/pricing           prices in cents, the limits of an amount
    POST /api/gift-cards/create            Idempotency-Key; the code in the first reply only
    GET  /api/gift-cards/{id}/status       of a card or a redemption; may hold a secret, once
    POST /api/gift-cards/redeem            Idempotency-Key; 200 with the key, 202 while asked
    POST /api/gift-cards/{id}/regenerate   a new secret; the old one is dead

Refusals of a card, which the wire facts name without codes (section 17)::

    402 too_little        404 unknown_code                      any other 4xx: other
    403 denied            409 unpaid, expired, reversed

A 4xx has taken nothing.  A 2xx that cannot be read may have: it is a lost reply.
"""

from __future__ import annotations

import json
from typing import Any, get_args

from engine.secret import Secret
from machines.clients.fields import Fields
from machines.clients.portal import clock_ahead_ms, read_invoice
from machines.clients.ports import Credentials, Currency, Rejected, ReplyLost
from machines.clients.ports.gift_cards import (
    CardRefused,
    CardStanding,
    CardStatus,
    KeyPrice,
    NewCard,
    PriceList,
    RedemptionStanding,
    RedemptionStatus,
    Refusal,
)
from machines.clients.replies import Reply, error_text, translate
from machines.clients.transport import Transport, base_of, parsed, segment

_CARD_STANDINGS: dict[str, CardStanding] = {one: one for one in get_args(CardStanding)}
_REDEMPTION_STANDINGS: dict[str, RedemptionStanding] = {
    one: one for one in get_args(RedemptionStanding)
}
_OF_CARDS: tuple[Refusal, ...] = ("unpaid", "expired", "reversed")
_BY_STATUS: dict[int, Refusal] = {402: "too_little", 403: "denied", 404: "unknown_code"}


class HttpGiftCards:
    """`GiftCards` over one base URL."""

    def __init__(self, base_url: str, transport: Transport) -> None:
        self._base_url = base_of(base_url) + "/api/gift-cards"
        self._transport = transport

    async def prices(self) -> PriceList:
        """Every price, and the limits of an amount."""
        fields = await self._get("/pricing", "gift_cards.prices")
        return PriceList(
            minimum_cents=fields.integer("minimum_amount_cents"),
            maximum_cents=fields.integer("maximum_amount_cents"),
            prices=tuple(
                KeyPrice(
                    tier=one.integer("tier_level", "tier"),
                    months=one.integer("months"),
                    price_cents=one.integer("price_cents"),
                )
                for one in fields.items("prices")
            ),
        )

    async def create(
        self,
        *,
        amount_cents: int,
        currency: Currency,
        refund_address: str,
        require_approval: bool,
        email: str,
        key: str,
    ) -> NewCard:
        """Order a card, or get again the one this key ordered, then without its code."""
        call = "gift_cards.create"
        wanted: dict[str, Any] = {
            "amount_cents": amount_cents,
            "payment_method": currency.value,
            "refund_address": refund_address,
            "require_approval": require_approval,
        }
        if email:
            wanted["email"] = email
        reply = await self._transport.request(
            "POST",
            f"{self._base_url}/create",
            call=call,
            body=_encoded(wanted),
            headers={"Idempotency-Key": key},
        )
        fields = Fields(parsed(reply, call), call)
        code = fields.optional_text("code")
        ahead_ms = clock_ahead_ms(call, self._transport.clock_ms(), reply.server_ms)
        return NewCard(
            card_id=fields.text("gift_card_id"),
            code=Secret(code) if code else None,
            amount_cents=fields.integer("amount_cents"),
            invoice=read_invoice(fields, currency, ahead_ms, for_key=False),
        )

    async def card(self, card_id: str) -> CardStatus:
        """What has become of a card."""
        fields = await self._get(f"/{segment(card_id)}/status", "gift_cards.card")
        standing = _CARD_STANDINGS.get(fields.text("status"))
        if standing is None:
            raise fields.refusal(("status",), f"expected one of {', '.join(_CARD_STANDINGS)}")
        taken = [one for one in fields.items("redemptions") if one.text("status") != "denied"]
        return CardStatus(
            card_id=card_id,
            standing=standing,
            amount_cents=fields.integer("amount_cents"),
            balance_cents=_balance(fields),
            taken_cents=sum(one.integer("price_cents") for one in taken),
            pending=sum(one.text("status") == "pending_approval" for one in taken),
        )

    async def redeem(
        self, code: Secret[str], *, tier: int, months: int, key: str
    ) -> RedemptionStatus:
        """Spend a card on a key; the same key takes its price once."""
        call = "gift_cards.redeem"
        wanted = {"code": code.reveal(), "tier_level": tier, "months": months}
        reply = await self._transport.exchange(
            "POST",
            f"{self._base_url}/redeem",
            call=call,
            body=_encoded(wanted),
            headers={"Idempotency-Key": key},
        )
        if not 200 <= reply.status < 300:
            raise self._refused(reply, call)
        try:
            return _redemption(Fields(parsed(reply, call), call))
        except Rejected as error:
            raise ReplyLost(str(error)) from error

    def _refused(self, reply: Reply, call: str) -> Exception:
        """What a refusal of a card means: all 4xx but those that pass."""
        passing = reply.status in (401, 408, 425, 429)
        if passing or not 400 <= reply.status < 500:
            return translate(reply, call=call, repeatable=True, now_ms=self._transport.clock_ms())
        try:
            fields = Fields(reply.json(), call)
            said = {name: fields.get(name) for name in ("error", "message", "status")}
            balance: Any = fields.get("balance_cents")
        except (Rejected, ValueError):
            said, balance = {}, None
        known = isinstance(balance, int) and not isinstance(balance, bool) and balance >= 0
        return CardRefused(
            f"{call}: status {reply.status}: {error_text(said) or 'no explanation given'}",
            reason=_BY_STATUS.get(reply.status) or _conflict(said),
            balance_cents=balance if known else None,
        )

    async def redemption(self, redemption_id: str) -> RedemptionStatus:
        """What has become of a redemption.  A lost reply may have been the one with the secret."""
        return _redemption(
            await self._get(f"/{segment(redemption_id)}/status", "gift_cards.redemption")
        )

    async def regenerate(self, redemption_id: str) -> Credentials:
        """A new secret.  Safe to repeat: only the newest one lives."""
        call = "gift_cards.regenerate"
        url = f"{self._base_url}/{segment(redemption_id)}/regenerate"
        fields = Fields(await self._transport.request_json("POST", url, call=call), call)
        key = fields.inner("api_key") or fields
        return Credentials(
            public_key=key.text("public_key"), secret_key=Secret(key.text("secret_key"))
        )

    async def _get(self, path: str, call: str) -> Fields:
        url = f"{self._base_url}{path}"
        return Fields(await self._transport.request_json("GET", url, call=call), call)


def _redemption(fields: Fields) -> RedemptionStatus:
    standing = _REDEMPTION_STANDINGS.get(fields.text("status"))
    if standing is None:
        raise fields.refusal(("status",), f"expected one of {', '.join(_REDEMPTION_STANDINGS)}")
    key = fields.inner("api_key") or fields
    public_key, secret = key.optional_text("public_key"), key.optional_text("secret_key")
    if standing == "redeemed" and not public_key:
        raise fields.refusal(("public_key",), "expected the key of a redemption that is redeemed")
    return RedemptionStatus(
        redemption_id=fields.text("redemption_id", "id"),
        standing=standing,
        price_cents=fields.integer("price_cents"),
        balance_cents=_balance(fields),
        public_key=public_key,
        secret_key=Secret(secret) if secret else None,
    )


def _balance(fields: Fields) -> int:
    balance = fields.integer("balance_cents")
    if balance < 0:
        raise fields.refusal(("balance_cents",), "expected 0 or more")
    return balance


def _conflict(said: dict[str, Any]) -> Refusal:
    """409: by the card's own word if there is one, else by what the error is called."""
    texts = [one.lower() for one in said.values() if isinstance(one, str)]
    for reason in _OF_CARDS:
        if any(one == reason or one.endswith(f"_{reason}") for one in texts):
            return reason
    return "other"


def _encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()
