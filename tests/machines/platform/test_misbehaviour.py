"""Faults on demand: what each does, that it is used up, and that it survives a restart."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import uvicorn

from engine.errors import UsageError
from machines.platform import misbehaviour
from machines.platform.misbehaviour import ReplyDropped

BODY = {"tier_level": 1, "months": 1, "payment_method": "BTC"}


def open_invoice(world, key="k"):
    headers = {"Idempotency-Key": key}
    return world.request("POST", "/api/invoices", json=BODY, headers=headers)


def test_a_route_is_refused_as_often_as_planned(world):
    world.fault("status", count=2, route="POST /api/*", code=503)
    assert [open_invoice(world).status_code for _ in range(3)] == [503, 503, 201]


def test_a_refusal_handles_nothing(world):
    world.fault("status", route="POST /api/invoices", code=429, retry_after=7)
    refused = open_invoice(world)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
    assert refused.json()["error"] == "rate_limit_exceeded"
    assert world.report()["invoices"] == []
    assert world.request("GET", "/pricing-for-agents.json").status_code == 200


def test_a_dropped_reply_leaves_the_deed_done(world):
    world.fault("drop_reply_after_commit", route="POST /api/invoices")
    with pytest.raises(ReplyDropped):
        open_invoice(world)
    (row,) = world.report()["invoices"]
    assert open_invoice(world).json()["id"] == row["invoice_id"]


def test_a_fault_may_wait_for_a_word_in_the_body(world):
    world.fault("drop_reply_after_commit", route="POST /rpc/*", contains='"sendrawtransaction"')
    invoice = world.invoice("LTC")
    raw = world.signed("LTC", invoice["address"], invoice["amount"])
    with pytest.raises(ReplyDropped):
        world.rpc("LTC", "sendrawtransaction", raw)
    assert world.rpc("LTC", "getrawmempool") == [world.rpc("LTC", "sendrawtransaction", raw)]


def test_over_a_socket_the_client_sees_a_broken_reply(file_world):
    """Through a real server: a protocol error at the client, the invoice in the database."""
    world = file_world
    world.fault("drop_reply_after_commit", route="POST /api/invoices")

    async def scenario() -> httpx.Response:
        config = uvicorn.Config(world.app, port=0, log_config=None, lifespan="off", ws="none")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - uvicorn offers a flag, no event
            await asyncio.sleep(0)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            headers = {"Idempotency-Key": "k"}
            with pytest.raises(httpx.RemoteProtocolError):
                await http.post("/api/invoices", json=BODY, headers=headers)
            again = await http.post("/api/invoices", json=BODY, headers=headers)
        server.should_exit = True
        await serving
        return again

    again = world.runner.run(scenario())
    assert again.status_code == 200
    (row,) = world.report()["invoices"]
    assert row["invoice_id"] == again.json()["id"]


def test_a_lost_secret_is_regenerated(world):
    """The reply that held the secret is dropped: it is gone, and regenerating brings another."""
    invoice = world.invoice("BTC")
    world.send("BTC", invoice["address"], invoice["amount_atomic"])
    world.mine("BTC", 3)
    world.fault("drop_reply_after_commit", route="GET /payment/*/status")
    with pytest.raises(ReplyDropped):
        world.status(invoice)
    assert world.status(invoice)["secret_key"] is None
    fresh = world.request("POST", f"/payment/{invoice['id']}/regenerate").json()
    assert fresh["secret_key"].startswith("unsb-sk-")


def test_plans_survive_a_restart(file_world):
    world = file_world
    world.fault("status", route="POST /api/invoices", code=503)
    world.restart()
    assert [open_invoice(world).status_code for _ in range(2)] == [503, 201]


def test_the_fault_route(world):
    def post(**body):
        return world.request("POST", "/_test/faults", json=body)

    assert post(name="status", route="GET /x", code=503, count=3).status_code == 200
    (plan,) = world.request("GET", "/_test/faults").json()["faults"]
    assert plan == {
        "name": "status",
        "arguments": {"route": "GET /x", "code": 503},
        "remaining": 3,
    }
    assert world.request("DELETE", "/_test/faults").json() == {"faults": []}
    invoice = world.invoice("LTC")
    assert post(name="expire_invoice").status_code == 200
    assert world.status(invoice)["status"] == "expired"
    bad = post(name="nonsense")
    assert (bad.status_code, bad.json()["error"]) == (400, "invalid_fault")
    assert "stall_blocks" in bad.json()["message"]


def test_the_fault_route_is_absent_unless_allowed(worlds):
    world = worlds(allow_faults=False)
    assert world.request("POST", "/_test/faults", json={}).status_code == 404


def test_a_stranger_pays_into_an_invoice(world):
    invoice = world.invoice("LTC")
    world.fault("pay_extra", invoice_id=invoice["id"], amount_atomic=1_000_000)
    assert world.status(invoice)["amount_received_atomic"] == 1_000_000
    world.send("LTC", invoice["address"], invoice["amount_atomic"])
    world.mine("LTC", 6)
    assert world.status(invoice)["overpaid_atomic"] == 1_000_000


def test_the_newest_invoice_is_meant_when_none_is_named(world):
    older, newer = world.invoice("LTC"), world.invoice("LTC")
    world.fault("expire_invoice")
    assert world.status(older)["status"] == "pending"
    assert world.status(newer)["status"] == "expired"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nonsense", {}),
        ("status", {"route": "GET /"}),
        ("status", {"code": 503}),
        ("status", {"route": "GET /", "code": "503"}),
        ("status", {"route": "GET /", "code": 503, "more": 1}),
        ("stall_blocks", {"count": 0}),
        ("stall_blocks", {"count": True}),
        ("stall_blocks", {"currency": 7}),
        ("reorg", {"currency": "ETH", "depth": 1}),
        ("reorg", {"currency": "BTC", "depth": 0}),
        ("reorg", {"currency": "BTC"}),
        ("evict", {}),
        ("lock_wallet", {"currency": "BTC"}),
        ("lock_wallet", {"currency": "BTC", "wallet": "none", "passphrase": "p"}),
        ("expire_invoice", {"invoice_id": "inv_none"}),
        ("undercount", {}),
    ],
)
def test_a_wrong_fault_is_named_and_does_nothing(world, name, arguments):
    with pytest.raises(UsageError, match="fault"):
        world.fault(name, **arguments)
    with world.database.reading() as sql:
        assert misbehaviour.planned(sql) == []


def test_requests_pass_untouched_when_nothing_is_planned(world):
    assert open_invoice(world).status_code == 201
