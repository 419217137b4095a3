"""JSON-RPC: what is the node's error, what is no answer, who is let in."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from engine.secrets import Secret
from machines.clients import Transport
from machines.clients.jsonrpc import JsonRpc, RpcError, RpcLogin
from machines.clients.ports import ClientError, Rejected, ReplyLost, Unauthorized, Unavailable

Serve = Callable[..., Transport]


def rpc(served: Serve, handler: Any, login: RpcLogin | None = None) -> JsonRpc:
    return JsonRpc(served(handler), "http://node.test/json_rpc", name="node", login=login)


def always(status: int, **options: Any) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _request: httpx.Response(status, **options)


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_an_error_body_is_the_nodes_error_whatever_the_status(
    served: Serve, status: int
) -> None:
    body = {"result": None, "error": {"code": -28, "message": "Loading\x00 index"}, "id": "0"}
    with pytest.raises(RpcError) as caught:
        await rpc(served, always(status, json=body)).call("getblockcount", [])
    assert (caught.value.code, caught.value.text) == (-28, "Loading  index")


async def test_an_odd_error_body_is_still_an_error(served: Serve) -> None:
    body = {"error": {"code": "x"}}
    with pytest.raises(RpcError) as caught:
        await rpc(served, always(200, json=body)).call("m", [])
    assert (caught.value.code, caught.value.text) == (0, "no message")


@pytest.mark.parametrize(
    ("status", "content", "expected", "kind"),
    [
        (500, b"Work queue depth exceeded", Unavailable, "overloaded"),
        (503, b"Work queue depth exceeded", Unavailable, "overloaded"),
        (429, b'{"error":"rate_limit_exceeded"}', Unavailable, "rate_limit"),
        (403, b"", Rejected, None),
        (200, b"<html>", ReplyLost, None),
        (200, b"[]", Rejected, None),
        (200, b"{}", Rejected, None),
    ],
)
async def test_no_usable_answer(
    served: Serve, status: int, content: bytes, expected: type[ClientError], kind: str | None
) -> None:
    with pytest.raises(expected) as caught:
        await rpc(served, always(status, content=content)).call("m", [])
    assert getattr(caught.value, "kind", None) == kind


async def test_a_null_result_is_a_result(served: Serve) -> None:
    assert (
        await rpc(served, always(200, json={"result": None, "error": None})).call("m", []) is None
    )


async def test_the_first_401_is_a_start_the_second_a_wrong_password(served: Serve) -> None:
    statuses = iter([401, 200, 401, 401])
    node = rpc(served, lambda _request: httpx.Response(next(statuses), json={"result": 1}))
    with pytest.raises(Unavailable) as caught:
        await node.call("m", [])
    assert caught.value.kind == "not_ready"
    assert await node.call("m", []) == 1
    with pytest.raises(Unavailable):
        await node.call("m", [])
    with pytest.raises(Unauthorized):
        await node.call("m", [])


async def test_basic_goes_out_at_once(served: Serve) -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Authorization"])
        return httpx.Response(200, json={"result": 1})

    login = RpcLogin("user", Secret("hunter2"), eager=True)
    await rpc(served, handler, login).call("m", [])
    assert seen == ["Basic " + base64.b64encode(b"user:hunter2").decode()]
    assert "hunter2" not in repr(login)


@pytest.mark.parametrize(
    ("challenge", "scheme"),
    [
        ('Digest qop="auth",algorithm=MD5,realm="monero-rpc",nonce="abc",stale=false', "Digest"),
        ('Basic realm="wallet"', "Basic"),
    ],
)
async def test_a_challenge_is_answered_with_its_own_scheme(
    served: Serve, challenge: str, scheme: str
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.headers.get("Authorization", "").startswith(scheme):
            return httpx.Response(200, json={"result": 1})
        return httpx.Response(401, headers={"WWW-Authenticate": challenge})

    login = RpcLogin("user", Secret("hunter2"), eager=False)
    assert await rpc(served, handler, login).call("m", []) == 1


async def test_a_refused_answer_ends_it(served: Serve) -> None:
    handler = always(401, headers={"WWW-Authenticate": 'Basic realm="wallet"'})
    login = RpcLogin("user", Secret("hunter2"), eager=False)
    with pytest.raises(Unavailable):
        await rpc(served, handler, login).call("m", [])


@pytest.mark.parametrize("params", [["open sesame", 30], {"password": "open sesame"}])
async def test_an_error_that_echoes_a_secret_is_blotted_out(served: Serve, params: Any) -> None:
    def echo(request: httpx.Request) -> httpx.Response:
        text = f"cannot use {request.content.decode()}"
        return httpx.Response(500, json={"error": {"code": -1, "message": text}})

    if isinstance(params, list):
        hidden: Any = [Secret(params[0]), *params[1:]]
    else:
        hidden = {name: Secret(value) for name, value in params.items()}
    with pytest.raises(RpcError) as caught:
        await rpc(served, echo).call("unlock", hidden)
    assert "***" in caught.value.text
    assert "sesame" not in caught.value.text
