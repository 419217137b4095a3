"""An application in this process behaves as one behind a socket."""

from __future__ import annotations

from typing import Any

import pytest

from machines.clients import Transport
from machines.clients.inprocess import InProcess
from machines.clients.ports import ReplyLost


async def call(app: Any) -> Any:
    transport = Transport(lambda: 0, network=InProcess(app))
    try:
        return await transport.request_json("POST", "http://app.test/x", call="a.call", body=b"{}")
    finally:
        await transport.aclose()


async def test_a_reply() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (scope["path"], (await receive())["body"]) == ("/x", b"{}")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b'{"a":1}'})

    assert await call(app) == {"a": 1}


@pytest.mark.parametrize("started", [True, False])
async def test_an_application_that_fails_is_a_cut_connection(started: bool) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("inside")

    with pytest.raises(ReplyLost) as caught:
        await call(app)
    assert "inside" not in str(caught.value)
