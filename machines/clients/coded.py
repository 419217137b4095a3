"""Signed calls whose refusals keep the platform's own code, for clients whose flows need it.

As `machines.clients.signed`, but::

    400, 409, 403, ...            Refusal(code, provides), which is a Rejected
    410                           Over(reason), which is a NotFound
    503 `sandbox_unavailable`     Refusal: nothing will change until somebody repairs the platform

Every other status means what `machines.clients.replies` says.  Source: platform-api.md 1.6.
"""

from __future__ import annotations

import json
from typing import Any

import httpx

from machines.clients.ports import ClientError, Credentials
from machines.clients.ports.refusals import Over, Refusal
from machines.clients.replies import Reply, error_text, translate
from machines.clients.signing import headers as signed_headers
from machines.clients.transport import Transport, base_of, parsed

_TRANSLATED = frozenset({401, 404, 408, 425, 429})
"""Statuses below 500 that `translate` knows better."""


class Coded:
    """Calls under one base URL; the transport's clock is the clock that signs."""

    def __init__(self, base_url: str, transport: Transport) -> None:
        self.base_url = base_of(base_url)
        self.transport = transport

    async def json(
        self,
        credentials: Credentials,
        method: str,
        path: str,
        call: str,
        *,
        body: dict[str, Any] | str | None = None,
        key: str | None = None,
        read_seconds: float | None = None,
    ) -> Any:
        """The JSON of a 2xx reply, or the error that its status means.

        Args:
            path: below the base URL, with its query; ids in it went through `segment`.
            call: what this is, for logs and messages; no ids in it.
            body: an object, sent as compact JSON; a text, sent as it is; None, nothing.
            key: the `Idempotency-Key`: the same key does it once and answers the same.
        """
        url = f"{self.base_url}{path}"
        sent, kind = _encoded(body)
        now_seconds = (self.transport.clock_ms() + credentials.offset_ms) // 1000
        target = httpx.URL(url).raw_path.decode("ascii")
        headers = {**kind, **signed_headers(credentials, method, target, sent, now_seconds)}
        if key is not None:
            headers["Idempotency-Key"] = key
        reply = await self.transport.exchange(
            method, url, call=call, body=sent, headers=headers, read_seconds=read_seconds
        )
        if 200 <= reply.status < 300:
            return parsed(reply, call)
        repeatable = method != "POST" or key is not None
        raise refusal_of(reply, call, repeatable=repeatable, now_ms=self.transport.clock_ms())


def _encoded(body: dict[str, Any] | str | None) -> tuple[bytes, dict[str, str]]:
    if isinstance(body, str):
        return body.encode(), {"Content-Type": "text/plain; charset=utf-8"}
    return b"" if body is None else json.dumps(body, separators=(",", ":")).encode(), {}


def refusal_of(reply: Reply, call: str, *, repeatable: bool, now_ms: int) -> ClientError:
    """The error for a reply that is no 2xx, with the platform's code where it is a refusal."""
    data = _object(reply)
    said, code = error_text(data) or "no explanation given", _word(data, "error") or "other"
    message = f"{call}: status {reply.status}: {said}"
    if reply.status == 410:
        return Over(message, reason=_word(data, "reason") or "terminated")
    final = reply.status < 500 and reply.status not in _TRANSLATED
    if final or code == "sandbox_unavailable":
        return Refusal(
            message, code=code, status=reply.status, provides=_word(data, "package", limit=200)
        )
    return translate(reply, call=call, repeatable=repeatable, now_ms=now_ms)


def _object(reply: Reply) -> dict[str, Any]:
    try:
        data = reply.json()
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _word(data: dict[str, Any], name: str, *, limit: int = 60) -> str:
    value = data.get(name)
    return value[:limit] if isinstance(value, str) and value.isprintable() else ""
