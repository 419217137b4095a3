"""The portal over HTTP: invoices, payment status, the secret shown once, regeneration."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from xml.etree import ElementTree

import httpx
import pytest

from machines.platform import keys

CURRENCIES = ("BTC", "LTC", "DOGE", "XMR")
DEPTH = {"BTC": 3, "LTC": 6, "DOGE": 6, "XMR": 10}


@pytest.mark.parametrize("currency", CURRENCIES)
def test_buy_a_key_with_each_coin(world, currency):
    invoice = world.invoice(currency, tier_level=2, months=3)
    assert invoice["price_cents"] == 3906
    assert invoice["confirmations_required"] == DEPTH[currency]
    assert world.status(invoice)["status"] == "pending"

    world.send(currency, invoice["address"], invoice["amount_atomic"])
    seen = world.status(invoice)
    assert (seen["status"], seen["confirmations"]) == ("confirming", 0)
    world.mine(currency, DEPTH[currency] - 1)
    assert world.status(invoice)["status"] == "confirming"
    assert "public_key" not in world.status(invoice)
    world.mine(currency)

    first, second = world.status(invoice), world.status(invoice)
    assert first["status"] == second["status"] == "completed"
    assert first["secret_key"].startswith("unsb-sk-")
    assert first["api_key"] == {
        "public_key": first["public_key"],
        "secret_key": first["secret_key"],
    }
    assert second["public_key"] == first["public_key"]
    assert second["secret_key"] is None
    assert second["api_key"]["secret_key"] is None
    assert second["secret_viewed_at"] == first["secret_viewed_at"]
    (listed,) = world.report()["invoices"]
    assert listed["confirmed_spends"] == 1


def test_an_invoice_carries_what_a_payer_needs(world):
    invoice = world.invoice("LTC", tier_level=1, months=1)
    assert invoice["id"] == invoice["invoice_id"]
    assert invoice["amount"] == "0.08750000"
    assert invoice["amount_atomic"] == 8_750_000
    assert invoice["payment_uri"] == f"litecoin:{invoice['address']}?amount=0.08750000"
    assert invoice["expires_ms"] == world.now_ms + 3_600_000
    assert invoice["server_ms"] == world.now_ms
    parsed = datetime.fromisoformat(invoice["expires_at"])
    assert parsed == datetime.fromtimestamp(invoice["expires_ms"] / 1000, UTC)
    monero = world.invoice("XMR")
    assert monero["amount"] == "0.043750000000"
    assert monero["payment_uri"] == f"monero:{monero['address']}?tx_amount=0.043750000000"


def test_json_is_compact(world):
    text = world.request("GET", "/pricing-for-agents.json").text
    assert '": ' not in text
    assert ', "' not in text
    assert '"quotes":[' in text


FORMS = {
    ".json": "application/json",
    ".xml": "application/xml",
    ".yaml": "application/yaml",
    "": "text/html; charset=utf-8",
}


@pytest.mark.parametrize("suffix", FORMS)
def test_prices_are_published_in_four_forms_to_anybody(world, suffix):
    path = "/pricing-for-agents" + suffix
    answer = world.request("GET", path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, FORMS[suffix])
    for shown in ("/payment/{invoice_id}/status", "19.53", "3870.72", "DOGE"):
        assert shown in answer.text
    for hidden in ("unsb-", "rpc", "password"):
        assert hidden not in answer.text
    head = world.request("HEAD", path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == answer.headers[name]
    for method in ("POST", "PUT", "DELETE"):
        assert world.request(method, path).status_code == 405


def test_the_xml_says_what_the_json_says(world):
    published = world.request("GET", "/pricing-for-agents.json").json()
    written = world.request("GET", "/pricing-for-agents.xml").content
    root = ElementTree.fromstring(written)  # noqa: S314 - our own
    assert root.tag == "pricing"
    assert [each.text for each in root.iterfind("payment_methods/payment_method")] == list(
        CURRENCIES
    )
    assert root.findtext("api/check_status/poll_interval_seconds") == "14"
    assert [each.text for each in root.iterfind("api/create_invoice/params/param")] == published[
        "api"
    ]["create_invoice"]["params"]
    rows = [{cell.tag: float(cell.text) for cell in row} for row in root.iterfind("quotes/quote")]
    assert rows == published["quotes"]
    assert root.findtext("quotes/quote/total_price") == "7.00"


def test_the_page_shows_every_quote(world):
    page = world.request("GET", "/pricing-for-agents").text
    assert page.startswith("<!DOCTYPE html>\n<html")
    assert page.count("<tr>") == 161
    assert "<th>total_price</th>" in page


def test_the_same_idempotency_key_gives_the_same_invoice(world):
    first = world.invoice("BTC", key="run-1/4")
    world.now_ms += 60_000
    again = world.invoice("BTC", key="run-1/4")
    assert (again["id"], again["address"]) == (first["id"], first["address"])
    assert again["expires_ms"] == first["expires_ms"]
    assert world.invoice("BTC", key="run-1/5")["id"] != first["id"]
    assert world.invoice("BTC")["id"] != world.invoice("BTC")["id"]


def test_an_idempotency_key_with_another_body_is_refused(world):
    world.invoice("BTC", key="k")
    body = {"tier_level": 2, "months": 1, "payment_method": "BTC"}
    reply = world.request("POST", "/api/invoices", json=body, headers={"Idempotency-Key": "k"})
    assert reply.status_code == 409
    assert reply.json()["error"] == "idempotency_conflict"
    assert len(world.report()["invoices"]) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tier_level", 0),
        ("tier_level", 33),
        ("tier_level", "1"),
        ("tier_level", True),
        ("tier_level", None),
        ("months", 2),
        ("months", -1),
        ("months", [1]),
        ("payment_method", "ETH"),
        ("payment_method", "btc"),
        ("payment_method", None),
        ("refund_address", "nonsense"),
        ("refund_address", 7),
        ("email", ""),
    ],
)
def test_a_bad_field_is_named(world, field, value):
    body = {"tier_level": 1, "months": 1, "payment_method": "BTC"} | {field: value}
    reply = world.request("POST", "/api/invoices", json=body)
    assert reply.status_code == 400
    assert reply.json()["field"] == field
    assert field in reply.json()["message"]
    assert world.report()["invoices"] == []


def test_a_refund_address_of_another_coin_is_refused(world):
    foreign = world.own_address("LTC")
    body = {"tier_level": 1, "months": 1, "payment_method": "BTC", "refund_address": foreign}
    assert world.request("POST", "/api/invoices", json=body).status_code == 400


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"'])
def test_a_body_that_is_no_order_is_refused(world, body):
    assert world.request("POST", "/api/invoices", content=body).status_code == 400


def test_a_bad_idempotency_key_is_refused(world):
    body = {"tier_level": 1, "months": 1, "payment_method": "BTC"}
    for key in ("", "a b", "x" * 201):
        reply = world.request("POST", "/api/invoices", json=body, headers={"Idempotency-Key": key})
        assert reply.status_code == 400


def test_an_unknown_invoice_is_404(world):
    assert world.request("GET", "/payment/inv_none/status").status_code == 404
    assert world.request("POST", "/payment/inv_none/regenerate").status_code == 404


def test_regenerating_makes_the_old_secret_dead(world):
    invoice = world.invoice("BTC")
    refused = world.request("POST", f"/payment/{invoice['id']}/regenerate")
    assert refused.status_code == 409
    world.send("BTC", invoice["address"], invoice["amount_atomic"])
    world.mine("BTC", 3)
    old = world.status(invoice)
    fresh = world.request("POST", f"/payment/{invoice['id']}/regenerate").json()
    assert fresh["public_key"] == old["public_key"]
    assert fresh["secret_key"] != old["secret_key"]
    with world.database.reading() as sql:
        assert keys.secret(sql, fresh["public_key"]) == fresh["secret_key"]
    assert world.status(invoice)["secret_key"] is None


def test_regenerating_before_the_first_view_hides_the_first_secret(world):
    invoice = world.invoice("BTC")
    world.send("BTC", invoice["address"], invoice["amount_atomic"])
    world.mine("BTC", 3)
    fresh = world.request("POST", f"/payment/{invoice['id']}/regenerate").json()
    assert world.status(invoice)["secret_key"] is None
    with world.database.reading() as sql:
        assert keys.secret(sql, fresh["public_key"]) == fresh["secret_key"]


def test_64_racing_status_calls_get_the_secret_once(file_world):
    world = file_world
    invoice = world.invoice("BTC")
    world.send("BTC", invoice["address"], invoice["amount_atomic"])
    world.mine("BTC", 3)
    start, found = threading.Barrier(64), []

    async def poll() -> dict:
        transport = httpx.ASGITransport(app=world.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://portal") as http:
            return (await http.get(f"/payment/{invoice['id']}/status")).json()

    def race() -> None:
        start.wait()
        found.append(asyncio.run(poll()))

    threads = [threading.Thread(target=race) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply["status"] for reply in found] == ["completed"] * 64
    assert len({reply["public_key"] for reply in found}) == 1
    assert sum(reply["secret_key"] is not None for reply in found) == 1


def test_no_secret_lies_in_the_file_in_plain_text(file_world):
    world = file_world
    invoice = world.invoice("BTC")
    world.send("BTC", invoice["address"], invoice["amount_atomic"])
    world.mine("BTC", 3)
    secret = world.status(invoice)["secret_key"]
    assert secret
    for file in world.data_dir.iterdir():
        assert secret.encode() not in file.read_bytes()
