"""The portal's wire, reply by reply."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from engine.secrets import Secret
from machines.clients import HttpPortal, Transport
from machines.clients.ports import ClientError, Currency, NotFound, Rejected, ReplyLost, Unavailable

Serve = Callable[..., Transport]

INVOICE = {
    "id": "inv_1",
    "status": "pending",
    "payment_method": "XMR",
    "currency": "XMR",
    "address": "8abc",
    "amount": "0.043750000000",
    "amount_usd": "7.00",
    "tier_level": 1,
    "months": 1,
    "payment_uri": "monero:8abc?tx_amount=0.04375",
    "confirmations_required": 10,
    "created_at": "2023-11-14T22:13:20Z",
    "expires_at": "2023-11-14T23:13:20Z",
    "brand_new_field": [1],
}
STATUS = {
    "invoice_id": "inv_1",
    "currency": "XMR",
    "status": "confirming",
    "confirmations": 4,
    "confirmations_required": 10,
    "amount_due": "0.043750000000",
    "amount_received": "0.043750000000",
    "expires_at": "2023-11-14T23:13:20Z",
}
DATE = "Tue, 14 Nov 2023 22:13:30 GMT"


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


async def create(served: Serve, shop: Shop) -> Any:
    portal = HttpPortal("http://shop.test/", served(shop))
    return await portal.create_invoice(
        tier=1, months=1, currency=Currency.XMR, refund_address="8refund", key="run-1:3"
    )


async def status_of(served: Serve, body: Any, **headers: str) -> Any:
    return await HttpPortal("http://shop.test", served(Shop(body, **headers))).payment_status(
        "inv_1"
    )


async def test_quotes_are_integer_cents(served: Serve) -> None:
    body = (
        b'{"api":{},"quotes":[{"tier":1,"duration":1,"total_price":7.0,"rpm":7,"concurrency":1},'
        b'{"tier":1,"duration":3,"total_price":19.53,"rpm":7,"concurrency":1,"new":null}]}'
    )
    quotes = await HttpPortal("http://shop.test", served(Shop(body))).quotes()
    assert [(q.tier, q.months, q.price_cents) for q in quotes] == [(1, 1, 700), (1, 3, 1953)]
    assert {(q.requests_per_minute, q.concurrency) for q in quotes} == {(7, 1)}


async def test_create_invoice(served: Serve) -> None:
    shop = Shop(INVOICE, 201)
    invoice = await create(served, shop)
    (request,) = shop.requests
    assert (request.method, request.url.path) == ("POST", "/api/invoices")
    assert request.headers["Idempotency-Key"] == "run-1:3"
    assert "Authorization" not in request.headers
    assert json.loads(request.content) == {
        "tier_level": 1,
        "months": 1,
        "payment_method": "XMR",
        "refund_address": "8refund",
    }
    assert (invoice.invoice_id, invoice.address, invoice.currency) == (
        "inv_1",
        "8abc",
        Currency.XMR,
    )
    assert (invoice.amount_atomic, invoice.price_cents) == (43_750_000_000, 700)
    assert (invoice.tier, invoice.months, invoice.confirmations_required) == (1, 1, 10)
    assert invoice.expires_ms == 1_700_003_600_000


async def test_cents_and_milliseconds_win_over_their_texts(served: Serve) -> None:
    shop = Shop(INVOICE | {"price_cents": 701, "expires_ms": 1_700_000_000_123})
    invoice = await create(served, shop)
    assert (invoice.price_cents, invoice.expires_ms) == (701, 1_700_000_000_123)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"amount": None}, "amount"),
        ({"amount": 0.04375}, "amount"),
        ({"amount": "0.000000000000"}, "amount"),
        ({"amount": "4.3750E-2"}, "amount"),
        ({"amount": "0.0437500000001"}, "amount"),
        ({"address": ""}, "address"),
        ({"address": None}, "address"),
        ({"currency": "LTC"}, "currency"),
        ({"currency": "EUR"}, "currency"),
        ({"currency": None, "payment_method": None}, "currency"),
        ({"id": None}, "id"),
        ({"tier_level": 2}, "tier_level"),
        ({"months": 3}, "months"),
        ({"tier_level": True}, "tier_level"),
        ({"amount_usd": None}, "amount_usd"),
        ({"expires_at": None}, "expires_at"),
        ({"expires_at": "tomorrow"}, "expires_at"),
    ],
)
async def test_an_invoice_that_is_not_exact_is_rejected_by_field(
    served: Serve, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(Rejected, match=named):
        await create(served, Shop(INVOICE | change))


async def test_a_reply_of_another_shape_is_rejected(served: Serve) -> None:
    with pytest.raises(Rejected, match="expected a JSON object, got list"):
        await create(served, Shop([]))


async def test_status_before_completion(served: Serve) -> None:
    status = await status_of(served, STATUS, Date=DATE)
    assert (status.status, status.confirmations) == ("confirming", 4)
    assert status.received_atomic == status.due_atomic == 43_750_000_000
    assert (status.expires_ms, status.server_ms) == (1_700_003_600_000, 1_700_000_010_000)
    assert status.public_key is status.secret_key is status.refund_txid is None


KEY = {"public_key": "unsb-pk-1", "secret_key": "unsb-sk-secret"}


@pytest.mark.parametrize("keys", [{"api_key": KEY}, KEY, {"api_key": KEY, **KEY}])
async def test_the_first_completed_reply_holds_the_secret(
    served: Serve, keys: dict[str, Any]
) -> None:
    status = await status_of(served, STATUS | {"status": "completed"} | keys)
    assert status.public_key == "unsb-pk-1"
    assert status.secret_key == Secret("unsb-sk-secret")
    assert "unsb-sk" not in repr(status)


async def test_later_replies_hold_null(served: Serve) -> None:
    key = {"public_key": "unsb-pk-1", "secret_key": None}
    status = await status_of(served, STATUS | {"status": "completed", "api_key": key} | key)
    assert (status.public_key, status.secret_key) == ("unsb-pk-1", None)


async def test_refund(served: Serve) -> None:
    refund = {"txid": "aa", "amount": "0.010000000000"}
    status = await status_of(served, STATUS | {"status": "refunded", "refund": refund})
    assert (status.refund_txid, status.refund_atomic) == ("aa", 10_000_000_000)


async def test_without_a_date_our_clock_is_the_servers(served: Serve) -> None:
    assert (await status_of(served, STATUS)).server_ms == 1_700_000_000_000


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"status": "fine"}, "status"),
        ({"currency": None}, "currency"),
        ({"amount_received": None}, "amount_received"),
        ({"amount_due": "x"}, "amount_due"),
        ({"invoice_id": "inv_2"}, "invoice_id"),
        ({"confirmations": "4"}, "confirmations"),
        ({"secret_key": 7}, "secret_key"),
    ],
)
async def test_a_status_that_is_not_exact_is_rejected_by_field(
    served: Serve, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(Rejected, match=named):
        await status_of(served, STATUS | change)


async def test_a_status_without_currency_is_read_by_the_invoice_we_opened(served: Serve) -> None:
    replies = iter([INVOICE, {k: v for k, v in STATUS.items() if k != "currency"}])
    portal = HttpPortal(
        "http://shop.test", served(lambda _request: httpx.Response(200, json=next(replies)))
    )
    await portal.create_invoice(
        tier=1, months=1, currency=Currency.XMR, refund_address="8refund", key="k"
    )
    assert (await portal.payment_status("inv_1")).due_atomic == 43_750_000_000


async def test_regenerate(served: Serve) -> None:
    shop = Shop(KEY)
    credentials = await HttpPortal("http://shop.test", served(shop)).regenerate_secret("inv/1")
    assert shop.requests[0].url.raw_path == b"/payment/inv%2F1/regenerate"
    assert credentials.public_key == "unsb-pk-1"
    assert credentials.secret_key.reveal() == "unsb-sk-secret"


async def test_an_unusable_secret_is_named_but_not_shown(served: Serve) -> None:
    shop = Shop({"public_key": 5, "secret_key": "unsb-sk-secret"})
    with pytest.raises(Rejected, match="public_key") as caught:
        await HttpPortal("http://shop.test", served(shop)).regenerate_secret("inv_1")
    assert "unsb-sk" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(400, Rejected), (404, NotFound), (409, Rejected), (429, Unavailable), (503, Unavailable)],
)
async def test_refusals_of_a_keyed_write(
    served: Serve, status: int, expected: type[ClientError]
) -> None:
    with pytest.raises(expected, match="because"):
        await create(served, Shop({"error": "because"}, status))


async def test_a_failed_server_may_be_asked_again_only_with_a_key(served: Serve) -> None:
    with pytest.raises(Unavailable):
        await create(served, Shop({}, 500))
    with pytest.raises(ReplyLost):
        await HttpPortal("http://shop.test", served(Shop({}, 500))).regenerate_secret("inv_1")
