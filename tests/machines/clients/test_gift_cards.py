"""The wire of gift cards, reply by reply."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from engine.secret import Secret
from machines.clients import Transport
from machines.clients.gift_cards import HttpGiftCards
from machines.clients.ports import (
    Currency,
    NotFound,
    Rejected,
    ReplyLost,
    Unauthorized,
    Unavailable,
)
from machines.clients.ports.gift_cards import CardRefused, KeyPrice, RedemptionStatus

Serve = Callable[..., Transport]
CODE = "tiger-castle-rainbow-sunset"
CARD = {
    "id": "inv_1",
    "status": "pending",
    "payment_method": "LTC",
    "address": "rltc1",
    "amount": "0.62500000",
    "price_cents": 5000,
    "tier_level": None,
    "months": None,
    "expires_at": "2023-11-14T23:13:20Z",
    "gift_card_id": "gift_1",
    "code": CODE,
    "amount_cents": 5000,
    "brand_new_field": [1],
}
GOT = {
    "id": "redeem_1",
    "status": "redeemed",
    "tier_level": 1,
    "months": 3,
    "price_cents": 1953,
    "balance_cents": 3047,
    "api_key": {"public_key": "unsb-pk-1", "secret_key": "unsb-sk-1"},
}


class Shop:
    """Answers everything with one body and keeps the requests."""

    def __init__(self, body: Any, status: int = 200, **headers: str) -> None:
        self.requests: list[httpx.Request] = []
        self._response = (status, body, headers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        status, body, headers = self._response
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.Response(status, content=content, headers=headers)


def _cards(served: Serve, shop: Shop) -> HttpGiftCards:
    return HttpGiftCards("http://shop.test/", served(shop))


async def _create(served: Serve, shop: Shop, **changes: Any) -> Any:
    wanted: dict[str, Any] = {"amount_cents": 5000, "currency": Currency.LTC, "email": "",
                              "refund_address": "ours", "require_approval": False}  # fmt: skip
    return await _cards(served, shop).create(**(wanted | changes), key="run-1:3")


async def _redeem(served: Serve, shop: Shop) -> Any:
    return await _cards(served, shop).redeem(Secret(CODE), tier=1, months=3, key="run-1:5")


async def test_prices_are_cents(served: Serve) -> None:
    body = {
        "minimum_amount_cents": 700,
        "maximum_amount_cents": 9000,
        "prices": [{"tier_level": 1, "months": 3, "price_cents": 1953}],
    }
    listed = await _cards(served, Shop(body)).prices()
    assert (listed.minimum_cents, listed.maximum_cents) == (700, 9000)
    assert listed.prices == (KeyPrice(tier=1, months=3, price_cents=1953),)


async def test_card_and_its_invoice(served: Serve) -> None:
    shop = Shop(CARD, 201)
    made = await _create(served, shop, require_approval=True, email="buyer@example.org")
    assert (made.card_id, made.code, made.amount_cents) == ("gift_1", Secret(CODE), 5000)
    invoice = made.invoice
    assert (invoice.price_cents, invoice.amount_atomic) == (5000, 62_500_000)
    assert (invoice.tier, invoice.months, invoice.address) == (0, 0, "rltc1")
    (sent,) = shop.requests
    assert (sent.url.path, sent.headers["idempotency-key"]) == (
        "/api/gift-cards/create",
        "run-1:3",
    )
    assert json.loads(sent.content) == {
        "amount_cents": 5000,
        "payment_method": "LTC",
        "refund_address": "ours",
        "require_approval": True,
        "email": "buyer@example.org",
    }


async def test_repeat_of_an_order_has_no_code(served: Serve) -> None:
    shop = Shop({**CARD, "code": None})
    assert (await _create(served, shop)).code is None
    assert "email" not in json.loads(shop.requests[0].content)


@pytest.mark.parametrize(
    "wrong", [{"amount": "0"}, {"payment_method": "BTC"}, {"gift_card_id": None}]
)
async def test_order_whose_reply_is_odd_is_refused(served: Serve, wrong: Any) -> None:
    with pytest.raises(Rejected):
        await _create(served, Shop({**CARD, **wrong}))


async def test_card_as_its_buyer_sees_it(served: Serve) -> None:
    past = [
        {"status": "redeemed", "price_cents": 1953},
        {"status": "denied", "price_cents": 700},
        {"status": "pending_approval", "price_cents": 700},
    ]
    body = {"id": "gift_1", "status": "active", "amount_cents": 5000, "balance_cents": 2347,
            "redemptions": past}  # fmt: skip
    shop = Shop(body)
    seen = await _cards(served, shop).card("gift_1")
    assert (seen.standing, seen.amount_cents, seen.balance_cents) == ("active", 5000, 2347)
    assert (seen.taken_cents, seen.pending) == (2653, 1)
    assert shop.requests[0].url.path == "/api/gift-cards/gift_1/status"
    for wrong in ({"status": "new"}, {"balance_cents": -1}, {"redemptions": None}):
        with pytest.raises(Rejected):
            await _cards(served, Shop({**body, **wrong})).card("gift_1")


async def test_redeemed_with_the_key(served: Serve) -> None:
    shop = Shop(GOT)
    assert await _redeem(served, shop) == RedemptionStatus(
        redemption_id="redeem_1",
        standing="redeemed",
        price_cents=1953,
        balance_cents=3047,
        public_key="unsb-pk-1",
        secret_key=Secret("unsb-sk-1"),
    )
    (sent,) = shop.requests
    assert CODE not in str(sent.url) + str(sent.headers)
    assert json.loads(sent.content) == {"code": CODE, "tier_level": 1, "months": 3}
    assert sent.headers["idempotency-key"] == "run-1:5"


async def test_redemption_that_awaits_approval_has_no_key(served: Serve) -> None:
    body = {"id": "redeem_1", "status": "pending_approval", "price_cents": 1953,
            "balance_cents": 3047}  # fmt: skip
    for got in (
        await _redeem(served, Shop(body, 202)),
        await _cards(served, Shop(body)).redemption("redeem_1"),
    ):
        assert (got.standing, got.public_key, got.secret_key) == ("pending_approval", None, None)


@pytest.mark.parametrize(
    ("status", "body", "reason", "balance"),
    [
        (402, {"error": "insufficient_balance", "balance_cents": 699}, "too_little", 699),
        (402, b"<html>", "too_little", None),
        (402, {"balance_cents": -1}, "too_little", None),
        (402, {"balance_cents": True}, "too_little", None),
        (402, ["no"], "too_little", None),
        (403, {"error": "denied"}, "denied", None),
        (404, {"error": "not_found"}, "unknown_code", None),
        (409, {"error": "gift_card_unpaid", "status": "unpaid"}, "unpaid", None),
        (409, {"error": "gift_card_expired"}, "expired", None),
        (409, {"error": "conflict", "status": "reversed"}, "reversed", None),
        (409, {"error": "idempotency_conflict"}, "other", None),
        (400, {"error": "invalid_request", "message": "months"}, "other", None),
    ],
)
async def test_refusals_of_a_card_have_names(
    served: Serve, status: int, body: Any, reason: str, balance: int | None
) -> None:
    with pytest.raises(CardRefused) as refused:
        await _redeem(served, Shop(body, status))
    assert (refused.value.reason, refused.value.balance_cents) == (reason, balance)
    assert f"status {status}" in str(refused.value)
    assert CODE not in str(refused.value)


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, Unauthorized), (429, Unavailable), (503, Unavailable), (500, Unavailable),
     (302, Rejected)],
)  # fmt: skip
async def test_what_is_no_refusal_of_the_card(
    served: Serve, status: int, error: type[Exception]
) -> None:
    with pytest.raises(error) as raised:
        await _redeem(served, Shop({"error": "later"}, status))
    assert not isinstance(raised.value, CardRefused)


@pytest.mark.parametrize(
    "wrong",
    [{"status": "maybe"}, {"api_key": None}, {"price_cents": None}, {"balance_cents": -1},
     {"id": None}],
)  # fmt: skip
async def test_success_that_cannot_be_read_may_have_taken_the_price(
    served: Serve, wrong: Any
) -> None:
    with pytest.raises(ReplyLost):
        await _redeem(served, Shop({**GOT, **wrong}))
    with pytest.raises(ReplyLost):
        await _redeem(served, Shop(b"<html>"))


async def test_secret_that_was_told_before(served: Serve) -> None:
    body = {**GOT, "api_key": {"public_key": "unsb-pk-1", "secret_key": None}}
    got = await _cards(served, Shop(body)).redemption("redeem_1")
    assert (got.public_key, got.secret_key) == ("unsb-pk-1", None)


async def test_new_secret(served: Serve) -> None:
    shop = Shop({"id": "redeem_1", "api_key": {"public_key": "pk", "secret_key": "new"}})
    made = await _cards(served, shop).regenerate("redeem_1")
    assert (made.public_key, made.secret_key) == ("pk", Secret("new"))
    assert shop.requests[0].url.path == "/api/gift-cards/redeem_1/regenerate"
    with pytest.raises(NotFound):
        await _cards(served, Shop({"error": "not_found"}, 404)).regenerate("redeem_2")


async def test_neither_code_nor_secret_in_a_log(served: Serve) -> None:
    with capture_logs() as events:
        got = await _redeem(served, Shop(GOT))
        made = await _create(served, Shop(CARD))
    shown = f"{events!r} {got!r} {made!r}"
    assert CODE not in shown and "unsb-sk-1" not in shown
