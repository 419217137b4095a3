"""An ASGI application as the network: the embedded platform in this process, without sockets.

An application that fails in the middle of a request is, seen from outside, a connection that was
cut: the request may have happened.  So its exception becomes httpx's `ReadError`, which the
transport reports as `ReplyLost`.
"""

from __future__ import annotations

from typing import Any

import httpx


class InProcess(httpx.AsyncBaseTransport):
    """`network=` of a `Transport`: every request goes to `app`."""

    def __init__(self, app: Any) -> None:
        self._network = httpx.ASGITransport(app=app)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One request through the application."""
        try:
            return await self._network.handle_async_request(request)
        except Exception as error:
            raise httpx.ReadError("the application failed while it answered") from error

    async def aclose(self) -> None:
        """Nothing is open."""
        await self._network.aclose()
