"""The front door: dates, the access log, and what an unexpected error shows."""

from __future__ import annotations

from typing import Any

import httpx
from structlog.testing import capture_logs

from machines.platform.app import FrontDoor, build_app, describe
from machines.platform.replies import Problem
from machines.platform.sandbox.fake import FakeBackend


async def test_the_access_log_names_routes_and_never_capabilities(api: Any) -> None:
    pair = api.key()
    with capture_logs() as lines:
        session_id = (await api.call(pair, "POST", "/sessions", {"ttl": 61})).json()["id"]
        await api.call(pair, "GET", f"/sessions/{session_id}?token=hidden-query")
        await api.http.get("/payment/hidden-invoice/status")
        await api.http.get("/hidden-path")
    routes = [line["route"] for line in lines if line["event"] == "request"]
    assert routes == [
        "/sessions",
        f"/sessions/{session_id[:17]}...",
        "/payment/{invoice_id}/status",
        "(none)",
    ]
    text = str(lines)
    assert "hidden" not in text
    assert session_id not in str(routes)
    assert pair[0] not in text
    assert pair[1] not in text
    assert "Bearer" not in text


async def test_an_unexpected_error_shows_nothing_but_is_logged_by_type(api: Any) -> None:
    async def broken(_scope: Any, _receive: Any, _send: Any) -> None:
        try:
            raise KeyError("hidden value")
        except KeyError as error:
            raise RuntimeError("hidden words") from error

    door = FrontDoor(broken, clock_ms=lambda: 0)
    transport = httpx.ASGITransport(app=door)
    async with httpx.AsyncClient(transport=transport, base_url="http://platform") as http:
        with capture_logs() as lines:
            answer = await http.get("/x")
    assert (answer.status_code, answer.json()["error"]) == (500, "internal_error")
    assert answer.headers["date"] == "Thu, 01 Jan 1970 00:00:00 GMT"
    failure = next(line for line in lines if line["event"] == "unexpected_error")
    assert failure["error"] == "RuntimeError < KeyError"
    assert any("test_app.py" in place for place in failure["where"])
    assert "hidden" not in str(lines) + answer.text


def test_our_own_messages_are_kept() -> None:
    assert describe(Problem(400, "x", "say this"))["error"] == "Problem: say this"


async def test_another_rate_limit_is_never_silent(api: Any) -> None:
    app = build_app(api.context, FakeBackend(), requests_per_minute_per_tier=700)
    transport = httpx.ASGITransport(app=app)
    with capture_logs() as lines:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://platform") as http,
        ):
            health = (await http.get("/health")).json()
    assert health["requests_per_minute_per_tier"] == 700
    assert "rate_limit_changed" in {line["event"] for line in lines}


async def test_faults_are_applied_only_when_allowed(api: Any) -> None:
    from machines.platform import misbehaviour

    with api.database.transaction() as sql:
        misbehaviour.inject(sql, "status", route="GET /health", code=503)
    assert (await api.http.get("/health")).status_code == 200
    app = build_app(api.context, FakeBackend(), allow_faults=True)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://platform") as http:
        assert (await http.get("/health")).status_code == 503
        assert (await http.get("/health")).status_code == 200


async def test_what_comes_from_inside_gets_no_wallet(api: Any) -> None:
    app = build_app(api.context, FakeBackend(), allow_faults=True, inside_port=7)
    for port, wanted in ((7, 403), (8, 401)):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url=f"http://platform:{port}"
        ) as http:
            refused = await http.post("/rpc/btc", json={"method": "getblockcount"})
            assert refused.status_code == wanted
            assert (await http.get("/health")).status_code == 200


async def test_a_socket_is_in_the_access_log_and_a_failed_one_too(api: Any) -> None:
    sent: list[Any] = []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if scope["path"] == "/broken":
            raise RuntimeError("hidden words")
        await send({"type": "websocket.accept" if scope["path"] == "/ok" else "websocket.close"})

    async def keep(message: Any) -> None:
        sent.append(message)

    async def nothing() -> Any:
        return {"type": "websocket.connect"}

    door = FrontDoor(app, clock_ms=lambda: 0)
    with capture_logs() as lines:
        for path in ("/ok", "/no", "/broken"):
            await door({"type": "websocket", "path": path, "headers": []}, nothing, keep)
    told = [(each["method"], each["status"]) for each in lines if each["event"] == "request"]
    assert told == [("WEBSOCKET", 101), ("WEBSOCKET", 403), ("WEBSOCKET", 0)]
    assert [each["type"] for each in sent] == ["websocket.accept", "websocket.close"]
    assert "hidden" not in str(lines)
