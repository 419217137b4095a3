"""Pages: more time for a key, and an invoice to pay.  Nothing of a request is echoed unescaped."""

from __future__ import annotations

from typing import Any

import pytest

from machines.platform.ledger import mempool, wallets
from machines.platform.ledger.transaction import Output

DAY_MS = 86_400_000
MONTHS_MS = {1: 30 * DAY_MS}  # November 2023 to December


def pay(api: Any, address: str, amount_atomic: int) -> None:
    with api.database.transaction() as sql:
        output = Output(address, amount_atomic)
        payment = wallets.build(sql, "LTC", "payer", [output], api.now_ms)
        mempool.accept(sql, payment, api.now_ms)
    api.context.blocks.mine("LTC", 6)


async def order(api: Any, public_key: str, **changes: Any) -> Any:
    body = {"extends": public_key, "months": 1, "payment_method": "LTC", **changes}
    return await api.http.post("/api/invoices", json=body)


async def standing(api: Any, pair: tuple[str, str]) -> dict[str, Any]:
    told: dict[str, Any] = (await api.call(pair, "POST", "/keys/validate")).json()
    return told


@pytest.mark.parametrize("name", ["pk", "key"])
async def test_the_page_offers_every_duration_of_the_keys_tier(api: Any, name: str) -> None:
    pair = api.key(tier=2)
    page = await api.http.get(f"/keys/extend?{name}={pair[0]}")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-store"
    assert pair[0] in page.text
    for price in ("14.00 USD", "39.06 USD"):
        assert price in page.text
    assert pair[1] not in page.text


async def test_a_key_that_is_not_here_has_no_page(api: Any) -> None:
    for query in ("", "?pk="):
        answer = await api.http.get(f"/keys/extend{query}")
        assert (answer.status_code, answer.json()["field"]) == (400, "pk")
    answer = await api.http.get("/keys/extend", params={"pk": "<script>alert(1)</script>"})
    assert (answer.status_code, "<script>" in answer.text) == (404, False)


async def test_the_form_leads_to_an_invoice_that_extends_the_key(api: Any) -> None:
    pair = api.key(tier=1)
    fields = {"extends": pair[0], "months": "1", "payment_method": "LTC"}
    answer = await api.http.post("/keys/extend", data=fields)
    assert answer.status_code == 303
    page = await api.http.get(answer.headers["location"])
    invoice_id = answer.headers["location"].removeprefix("/pay/")
    invoice = (await api.http.get(f"/payment/{invoice_id}/status")).json()
    assert invoice["address"] in page.text
    assert f"{invoice['amount']} LTC" in page.text
    assert "<dd>pending</dd>" in page.text
    assert f"{pair[0]} by 1 months" in page.text
    pay(api, invoice["address"], invoice["amount_atomic"])
    assert "<dd>completed</dd>" in (await api.http.get(answer.headers["location"])).text
    assert (await standing(api, pair))["expires_at"] == "2024-01-14T22:13:20Z"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"extends": "unsb-pk-none", "months": "1", "payment_method": "LTC"}, 404),
        ({"months": "1", "payment_method": "LTC"}, 404),
        ({"months": "2", "payment_method": "LTC"}, 400),
        ({"months": "x" * 50, "payment_method": "LTC"}, 400),
        ({"months": "1", "payment_method": "<b>"}, 400),
    ],
)
async def test_a_wrong_form_is_refused(api: Any, fields: dict[str, str], status: int) -> None:
    pair = api.key()
    given = fields if status == 404 else {"extends": pair[0], **fields}
    assert (await api.http.post("/keys/extend", data=given)).status_code == status


async def test_an_odd_form_is_refused(api: Any) -> None:
    for body in (b"\xff=\xff", b"a=1&" * 30, b"", b"%00"):
        assert (await api.http.post("/keys/extend", content=body)).status_code in (400, 404)


async def test_an_extension_adds_months_before_the_expiry(api: Any) -> None:
    pair = api.key(tier=3)
    invoice = (await order(api, pair[0])).json()
    assert (invoice["extends"], invoice["tier_level"], invoice["months"]) == (pair[0], 3, 1)
    assert (invoice["price_cents"], invoice["extended"]) == (2100, False)
    pay(api, invoice["address"], invoice["amount_atomic"])
    for _ in range(3):  # asking again adds nothing
        told = (await api.http.get(invoice["status_url"])).json()
        assert (told["status"], told["extended"]) == ("completed", True)
        assert told["key_expires_at"] == "2024-01-14T22:13:20Z"
    assert (await standing(api, pair))["expires_at"] == "2024-01-14T22:13:20Z"


async def test_an_extension_of_an_expired_key_counts_from_now(api: Any) -> None:
    pair = api.key(tier=1)
    api.now_ms += 100 * DAY_MS
    assert (await standing(api, pair))["valid"] is False
    invoice = (await order(api, pair[0])).json()
    pay(api, invoice["address"], invoice["amount_atomic"])
    told = await standing(api, pair)
    assert (told["valid"], told["expires_at"]) == (True, "2024-03-22T22:13:20Z")
    assert (await api.call(pair, "GET", "/sessions")).status_code == 200


async def test_whoever_pays_gets_no_secret(api: Any) -> None:
    pair = api.key()
    invoice = (await order(api, pair[0])).json()
    pay(api, invoice["address"], invoice["amount_atomic"])
    status = await api.http.get(invoice["status_url"])
    assert status.json()["api_key"] == {"public_key": pair[0], "secret_key": None}
    assert "unsb-sk-" not in status.text
    refused = await api.http.post(f"/payment/{invoice['id']}/regenerate")
    assert (refused.status_code, refused.json()["error"]) == (409, "not_completed")
    assert (await api.call(pair, "GET", "/sessions")).status_code == 200
    with api.database.reading() as sql:  # nor was the one look at it used up
        assert sql.scalar("SELECT secret_viewed_ms FROM api_key") is None


async def test_an_unpaid_extension_extends_nothing(api: Any) -> None:
    pair = api.key()
    invoice = (await order(api, pair[0])).json()
    pay(api, invoice["address"], invoice["amount_atomic"] // 2)
    api.now_ms += 3_600_000
    told = (await api.http.get(invoice["status_url"])).json()
    assert (told["status"], told["extended"]) == ("expired", False)
    assert "public_key" not in told
    assert (await standing(api, pair))["expires_at"] == "2023-12-14T22:13:20Z"


async def test_what_cannot_be_extended_is_refused(api: Any) -> None:
    pair = api.key(tier=2)
    unknown = await order(api, "unsb-pk-none-none-none-none")
    assert (unknown.status_code, unknown.json()["error"]) == (404, "not_found")
    for changes, field in (
        ({"tier_level": 3}, "tier_level"), ({"months": 2}, "months"),
        ({"payment_method": "EUR"}, "payment_method"), ({"refund_address": "x"}, "refund_address"),
        ({"extends": 7}, "extends"), ({"extends": ""}, "extends"), ({"email": []}, "email"),
    ):  # fmt: skip
        answer = await order(api, pair[0], **changes)
        assert (answer.status_code, answer.json()["field"]) == (400, field)
    assert (await order(api, pair[0], tier_level=2)).status_code == 201
    with api.database.transaction() as sql:
        sql.run("UPDATE api_key SET status = 'suspended'")
    refused = await order(api, pair[0])
    assert (refused.status_code, refused.json()["error"]) == (409, "key_suspended")
    assert "<form" not in (await api.http.get(f"/keys/extend?pk={pair[0]}")).text


async def test_a_repeated_order_is_one_invoice(api: Any) -> None:
    pair, other = api.key(), api.key()
    body = {"extends": pair[0], "months": 1, "payment_method": "LTC"}
    once = {"Idempotency-Key": "one"}
    first = await api.http.post("/api/invoices", json=body, headers=once)
    again = await api.http.post("/api/invoices", json=body, headers=once)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["id"] == first.json()["id"]
    for changed in (
        {**body, "extends": other[0]},
        {"tier_level": 4, "months": 1, "payment_method": "LTC"},
    ):
        refused = await api.http.post("/api/invoices", json=changed, headers=once)
        assert refused.status_code == 409


async def test_the_page_of_an_invoice_shows_no_secret_and_uses_up_no_look(api: Any) -> None:
    body = {"tier_level": 1, "months": 1, "payment_method": "LTC"}
    invoice = (await api.http.post("/api/invoices", json=body)).json()
    pay(api, invoice["address"], invoice["amount_atomic"])
    for _ in range(2):
        page = await api.http.get(f"/pay/{invoice['id']}")
        assert "<dd>completed</dd>" in page.text
        assert "unsb-" not in page.text
    assert (await api.http.get(invoice["status_url"])).json()["secret_key"].startswith("unsb-sk-")
    assert (await api.http.get("/pay/inv_none")).status_code == 404


async def test_the_older_checkout_sells_the_same_key(api: Any) -> None:
    body = {"tier": 2, "months": 3, "currency": "ltc"}
    answer = await api.http.post("/api/checkout", json=body)
    made = answer.json()
    assert (answer.status_code, made["currency"]) == (201, "ltc")
    assert isinstance(made["amount"], str)
    page = await api.http.get(made["checkout_url"])
    assert made["payment_address"] in page.text
    invoice = (await api.http.get(made["status_url"])).json()
    assert invoice["price_cents"] == 3906
    pay(api, invoice["address"], invoice["amount_atomic"])
    told = (await api.http.get(made["status_url"])).json()
    assert (told["tier"], told["secret_key"][:8]) == (2, "unsb-sk-")
    for wrong in ({"tier": 0}, {"months": 2}, {"currency": "eur"}, {"currency": 7}):
        refused = await api.http.post("/api/checkout", json=body | wrong)
        assert refused.status_code == 400
