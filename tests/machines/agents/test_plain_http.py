"""Plain signed HTTP: who may ask, what is answered."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from engine.secret import Secret
from machines.agents.plain_http import signed_routes

TOKEN, NOW = "a token", 1_700_000_000


def _headers(method: str, path: str, body: bytes, *, token: str = TOKEN, at: int = NOW) -> Any:
    signed = f"{at}:{method}:{path}:".encode() + body
    signature = hmac.new(token.encode(), signed, hashlib.sha256).hexdigest()
    return {"X-Timestamp": str(at), "X-Signature": signature}


@pytest.fixture
def http(bench: Any) -> Any:
    routes = signed_routes(bench.dispatcher, Secret(TOKEN), lambda: NOW * 1_000)
    network = httpx.ASGITransport(app=Starlette(routes=routes))
    return httpx.AsyncClient(transport=network, base_url="http://agents")


async def _call(http: Any, name: str, arguments: Any, **more: Any) -> httpx.Response:
    body = arguments if isinstance(arguments, bytes) else json.dumps(arguments).encode()
    headers = _headers("POST", f"/call/{name}", body) | more
    return await http.post(f"/call/{name}", content=body, headers=headers)


async def test_what_may_be_called_is_listed(bench: Any, http: Any) -> None:
    listed = await http.get("/call", headers=_headers("GET", "/call", b""))
    assert [one["name"] for one in listed.json()["tools"]] == [
        one.name for one in bench.dispatcher.offers
    ]


REFUSED: list[tuple[Any, str]] = [
    ({}, "does not fit"),
    (_headers("POST", "/call/get_prices", b"{}", token="another"), "does not fit"),
    (_headers("POST", "/call/get_price", b"{}"), "does not fit"),
    (_headers("POST", "/call/get_prices", b"{} "), "does not fit"),
    (_headers("GET", "/call/get_prices", b"{}"), "does not fit"),
    (_headers("POST", "/call/get_prices", b"{}", at=NOW - 301), "more than 300 s"),
    (_headers("POST", "/call/get_prices", b"{}", at=NOW + 301), "more than 300 s"),
    ({**_headers("POST", "/call/get_prices", b"{}"), "X-Timestamp": "x"}, "does not fit"),
]


async def test_a_request_without_the_token_is_refused(http: Any) -> None:
    for headers, words in REFUSED:
        answer = await http.post("/call/get_prices", content=b"{}", headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (401, "BadSignature")
        assert words in answer.json()["message"]
    for at in (NOW - 300, NOW + 300):
        fits = _headers("POST", "/call/get_prices", b"{}", at=at)
        answer = await http.post("/call/get_prices", content=b"{}", headers=fits)
        assert answer.status_code == 200


async def test_calls_and_their_errors(bench: Any, http: Any) -> None:
    prices = await _call(http, "get_prices", b"")
    assert (prices.status_code, len(prices.json()["prices"])) == (200, 160)
    for name, arguments, status in (
        ("get_prices", b"[", 400),
        ("get_prices", [], 400),
        ("nothing", {}, 400),
        ("provision_key", {"currency": "EUR"}, 400),
        ("getShells", {}, 409),
    ):
        answer = await _call(http, name, arguments)
        assert answer.status_code == status, answer.text
        assert answer.json()["message"]


async def test_an_idempotency_key_names_the_call(bench: Any, http: Any) -> None:
    asked = {"currency": "LTC"}
    one = await _call(http, "provision_key", asked, **{"Idempotency-Key": "k1"})
    two = await _call(http, "provision_key", asked, **{"Idempotency-Key": "k1"})
    assert one.json()["run_id"] == two.json()["run_id"]
    assert (two.json()["repeated"], two.json()["idempotency_key"]) == (True, "k1")
    assert bench.embedded.spends() == 1
    missing = await _call(http, "getSession", {"session_id": "none"})
    assert missing.status_code == 502, "what the platform says to us is not for our caller"
