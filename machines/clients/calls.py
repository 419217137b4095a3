"""`Calls` over HTTP: a signed request that somebody else has put together.

A request with a text for its body is signed like any other: over the exact bytes that are sent.
"""

from __future__ import annotations

import json
from typing import Any

import httpx

from machines.clients.ports import Credentials
from machines.clients.signing import headers as signed_headers
from machines.clients.transport import Transport, base_of, parsed

READ_SECONDS = 930.0
"""The longest execution there is (900 s), and time to answer."""


class HttpCalls:
    """Calls under one base URL; the transport's clock is the clock that signs."""

    def __init__(self, base_url: str, transport: Transport) -> None:
        self._base_url = base_of(base_url)
        self._transport = transport

    async def call(
        self,
        credentials: Credentials | None,
        method: str,
        path: str,
        *,
        name: str,
        body: dict[str, Any] | None = None,
        text: str | None = None,
        key: str | None = None,
    ) -> Any:
        """See `Calls.call`."""
        url = f"{self._base_url}{path}"
        sent = _bytes(body, text)
        headers = {} if text is None else {"Content-Type": "text/plain"}
        if credentials is not None:
            target = httpx.URL(url).raw_path.decode("ascii")
            ours_ms = self._transport.clock_ms() + credentials.offset_ms
            headers |= signed_headers(credentials, method, target, sent, ours_ms // 1000)
        if key is not None:
            headers["Idempotency-Key"] = key
        reply = await self._transport.request(
            method, url, call=name, body=sent, headers=headers, read_seconds=READ_SECONDS
        )
        return parsed(reply, name) if reply.body else {}


def _bytes(body: dict[str, Any] | None, text: str | None) -> bytes:
    if text is not None:
        return text.encode()
    return b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
