"""`Calls` over HTTP: a signed request that somebody else has put together."""

from __future__ import annotations

from typing import Any

from machines.clients.ports import Credentials
from machines.clients.signed import Signed
from machines.clients.transport import Transport, parsed

READ_SECONDS = 930.0
"""The longest execution there is (900 s), and time to answer."""


class HttpCalls:
    """Calls under one base URL; the transport's clock is the clock that signs."""

    def __init__(self, base_url: str, transport: Transport) -> None:
        self._signed = Signed(base_url, transport)

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
        reply = await self._signed.reply(
            credentials,
            method,
            path,
            name,
            body=body if text is None else text,
            key=key,
            read_seconds=READ_SECONDS,
        )
        return parsed(reply, name) if reply.body else {}
