"""Refusals keep the platform's code, and everything else means what it always does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from engine.secrets import Secret
from machines.clients import Transport
from machines.clients.ports import Credentials, NotFound, Rejected, ReplyLost, Unavailable
from machines.clients.ports.refusals import Refusal
from machines.clients.signed import Signed
from machines.clients.signing import sign

Serve = Callable[..., Transport]
KEY = Credentials(public_key="pk", secret_key=Secret("sk"), offset_ms=5_000)


def _answering(status: int, body: Any) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _request: httpx.Response(status, json=body)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, {"error": "bad_field"}, Refusal),
        (403, {}, Refusal),
        (409, {"error": "outcome_unknown", "message": "it may have run"}, Refusal),
        (503, {"error": "sandbox_unavailable"}, Refusal),
        (410, {"error": "session_terminated", "reason": "expired"}, NotFound),
        (404, {"error": "not_found"}, NotFound),
        (429, {"error": "concurrency_limit_reached"}, Unavailable),
        (503, {"error": "stopping"}, Unavailable),
        (500, {"error": "sandbox_died"}, ReplyLost),
    ],
)
async def test_what_a_status_means(served: Serve, status: int, body: Any, kind: type) -> None:
    signed = Signed("http://api.test", served(_answering(status, body)))
    with pytest.raises(kind) as caught:
        await signed.json(KEY, "POST", "/x", "the call", body={})
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"the call: status {status}")
    if isinstance(caught.value, Refusal):
        assert (caught.value.code, caught.value.status) == (body.get("error", "other"), status)


async def test_the_package_that_is_missing_is_told(served: Serve) -> None:
    body = {"error": "language_unavailable", "package": "gnucobol4"}
    with pytest.raises(Rejected) as caught:
        await Signed("http://api.test", served(_answering(400, body))).json(KEY, "GET", "/x", "c")
    assert isinstance(caught.value, Refusal) and caught.value.provides == "gnucobol4"


async def test_a_keyed_post_may_be_repeated(served: Serve) -> None:
    signed = Signed("http://api.test", served(_answering(500, {})))
    with pytest.raises(Unavailable):
        await signed.json(KEY, "POST", "/x", "c", body={}, key="once")


@pytest.mark.parametrize(
    ("body", "content", "kind"),
    [({"a": 1}, b'{"a":1}', "application/json"), ("é", "é".encode(), "text/plain; charset=utf-8")],
)
async def test_the_bytes_that_are_sent_are_signed(
    served: Serve, body: Any, content: bytes, kind: str
) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"ok": True})

    signed = Signed("http://api.test", served(answer))
    assert await signed.json(KEY, "POST", "/run?a=b%20c", "c", body=body, key="once") == {
        "ok": True
    }
    (request,) = seen
    assert (request.content, request.headers["content-type"]) == (content, kind)
    assert request.headers["idempotency-key"] == "once"
    at = int(request.headers["x-timestamp"])
    assert at == 1_700_000_005, "our clock and the offset"
    expected = sign(KEY.secret_key, "POST", "/run?a=b%20c", content, at)
    assert request.headers["x-signature"] == expected
