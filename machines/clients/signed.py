"""Signed calls to the API host: encode once, sign those bytes, send them, read the reply.

Every client of a part of the API (sessions, executions, images, ...) is made of these.  The
signature covers the exact bytes sent.  Source: platform-api.md section 1.
"""

from __future__ import annotations

import json
from typing import Any

import httpx

from machines.clients.ports import Credentials
from machines.clients.replies import Reply
from machines.clients.signing import headers as signed_headers
from machines.clients.transport import Transport, base_of, parsed


class Signed:
    """Calls under one base URL; the transport's clock is the clock that signs."""

    def __init__(self, base_url: str, transport: Transport) -> None:
        self.base_url = base_of(base_url)
        self.transport = transport

    async def json(
        self, credentials: Credentials, method: str, path: str, call: str, **options: Any
    ) -> Any:
        """As `reply`, and its JSON."""
        return parsed(await self.reply(credentials, method, path, call, **options), call)

    async def reply(
        self,
        credentials: Credentials | None,
        method: str,
        path: str,
        call: str,
        *,
        body: dict[str, Any] | str | None = None,
        key: str | None = None,
        repeatable: bool | None = None,
        read_seconds: float | None = None,
        offset_ms: int = 0,
    ) -> Reply:
        """A 2xx reply, or the error that its status means.

        Args:
            credentials: whose key signs; None sends it unsigned.
            path: below the base URL, with its query; ids in it went through `segment`.
            call: what this is, for logs and messages; no ids in it.
            body: an object, sent as compact JSON; a text, sent as it is; None, nothing.
            key: the `Idempotency-Key`: the same key does it once and answers the same.
            repeatable: whether repeating is harmless; by default all but a POST without a key.
            offset_ms: added to our time beside the credentials' own offset.
        """
        url = f"{self.base_url}{path}"
        sent, headers = _encoded(body)
        if credentials is not None:
            ours_ms = self.transport.clock_ms() + credentials.offset_ms + offset_ms
            headers |= signed_headers(credentials, method, _target(url), sent, ours_ms // 1000)
        if key is not None:
            headers["Idempotency-Key"] = key
        return await self.transport.request(
            method,
            url,
            call=call,
            body=sent,
            headers=headers,
            repeatable=repeatable,
            read_seconds=read_seconds,
        )


def _encoded(body: dict[str, Any] | str | None) -> tuple[bytes, dict[str, str]]:
    if isinstance(body, str):
        return body.encode(), {"Content-Type": "text/plain; charset=utf-8"}
    return b"" if body is None else json.dumps(body, separators=(",", ":")).encode(), {}


def _target(url: str) -> str:
    """Path and query exactly as httpx puts them on the wire."""
    return httpx.URL(url).raw_path.decode("ascii")
