"""Any signed call: what goes over the wire, byte by byte."""

from __future__ import annotations

import hashlib
import hmac
from decimal import Decimal
from typing import Any

import httpx
import pytest

from engine.secret import Secret
from machines.clients.calls import HttpCalls
from machines.clients.ports import Credentials, NotFound
from machines.clients.transport import Transport

NOW_MS = 1_700_000_000_000
KEY = Credentials(public_key="unsb-pk-1", secret_key=Secret("unsb-sk-1"), offset_ms=5_000)


@pytest.fixture
def wire() -> Any:
    """The requests that were sent, and what is answered to them."""

    class Wire:
        def __init__(self) -> None:
            self.sent: list[httpx.Request] = []
            self.reply = httpx.Response(200, content=b'{"load": 0.5}')
            transport = Transport(lambda: NOW_MS, network=httpx.MockTransport(self.answer))
            self.calls = HttpCalls("http://platform/", transport)

        def answer(self, request: httpx.Request) -> httpx.Response:
            self.sent.append(request)
            return self.reply

    return Wire()


@pytest.mark.parametrize(
    ("options", "body", "kind"),
    [
        ({}, b"", None),
        ({"body": {}}, b"{}", "application/json"),
        ({"body": {"a": [1, "b"]}}, b'{"a":[1,"b"]}', "application/json"),
        ({"text": "é\n"}, "é\n".encode(), "text/plain; charset=utf-8"),
    ],
)
async def test_what_is_sent_is_what_was_signed(
    wire: Any, options: dict[str, Any], body: bytes, kind: str | None
) -> None:
    answer = await wire.calls.call(
        KEY, "POST", "/run?ttl=5&x=a%2Fb", name="run", key="k", **options
    )
    assert answer == {"load": Decimal("0.5")}
    (sent,) = wire.sent
    assert (sent.method, sent.url.raw_path, sent.content) == ("POST", b"/run?ttl=5&x=a%2Fb", body)
    assert sent.headers.get("content-type") == kind
    assert sent.headers["idempotency-key"] == "k"
    signed = b"1700000005:POST:/run?ttl=5&x=a%2Fb:" + body
    expected = hmac.new(b"unsb-sk-1", signed, hashlib.sha256).hexdigest()
    assert sent.headers["x-signature"] == expected
    assert "unsb-sk-1" not in repr(sent.headers)


async def test_without_a_key_nothing_is_signed(wire: Any) -> None:
    await wire.calls.call(None, "GET", "/health", name="healthCheck")
    (sent,) = wire.sent
    assert not {"authorization", "x-signature", "idempotency-key"} & set(sent.headers)


async def test_an_empty_reply_is_an_empty_object(wire: Any) -> None:
    wire.reply = httpx.Response(204)
    assert await wire.calls.call(KEY, "DELETE", "/jobs/1", name="deleteJob") == {}


async def test_a_refusal_names_the_tool(wire: Any) -> None:
    wire.reply = httpx.Response(404, content=b'{"error": "not_found"}')
    with pytest.raises(NotFound, match="getSession: status 404: not_found"):
        await wire.calls.call(KEY, "GET", "/sessions/x", name="getSession")
