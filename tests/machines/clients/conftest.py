"""Servers made of one function, a clock that stands still, and a JSON-RPC node by the book."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from machines.clients import Transport

NOW_MS = 1_700_000_000_000


class ScriptedNode:
    """A JSON-RPC server: a result, an error or a function per method; every call is kept."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.calls: list[tuple[str, Any]] = []
        self.requests: list[httpx.Request] = []
        self.error_status = 500

    def error(self, method: str, code: int, message: str) -> None:
        """From now on, `method` answers with this RPC error."""
        self.answers[method] = httpx.Response(
            self.error_status,
            json={"result": None, "error": {"code": code, "message": message}, "id": "0"},
        )

    def named(self, method: str) -> list[Any]:
        """The parameters of every call of `method`."""
        return [params for name, params in self.calls if name == method]

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        body = json.loads(request.content)
        method = body.get("method") or request.url.path.rpartition("/")[2]
        params = body.get("params", body)
        self.calls.append((method, params))
        if method not in self.answers:
            raise AssertionError(f"unexpected call of {method} with {params}")
        answer = self.answers[method]
        answer = answer(params) if callable(answer) else answer
        if isinstance(answer, httpx.Response):
            return httpx.Response(answer.status_code, content=answer.content)
        if "method" not in body:
            return httpx.Response(200, json=answer)
        # As text, so that a test can place a number exactly as a node writes it.
        text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        return httpx.Response(200, content=b'{"result":' + text + b',"error":null,"id":"0"}')


@pytest.fixture
def node() -> ScriptedNode:
    return ScriptedNode()


@pytest.fixture
async def served() -> AsyncIterator[Callable[..., Transport]]:
    """Makes a transport whose network is one function from request to response."""
    made: list[Transport] = []

    def serve(handler: Callable[[httpx.Request], httpx.Response], **options: Any) -> Transport:
        network = httpx.MockTransport(handler)
        made.append(Transport(lambda: NOW_MS, network=network, **options))
        return made[-1]

    yield serve
    for transport in made:
        await transport.aclose()
