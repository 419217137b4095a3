"""Sessions over HTTP, signed; creating one and running a command are keyed.

Moments come in the server's time and are given in ours: the credentials' offset is what our clock
was measured to lack.  Source: platform-api.md section 5.
"""

from __future__ import annotations

from typing import Any

from machines.clients.fields import Fields
from machines.clients.ports import Credentials
from machines.clients.ports.sessions import CellEnd, SessionOrder, SessionView
from machines.clients.signed import Signed
from machines.clients.transport import Transport, segment

IDLE_MS = 15 * 60 * 1000
"""A session without activity for so long is ended (paper, session lifecycle)."""
GRACE_SECONDS = 30.0
"""How much longer than a command's time limit its reply may take."""
BUILD_SECONDS = 60.0
"""How long making, freezing or resizing a sandbox may take."""


class HttpSessions:
    """`Sessions` over one base URL."""

    def __init__(self, base_url: str, transport: Transport) -> None:
        self._signed = Signed(base_url, transport)

    async def create(
        self, credentials: Credentials, order: SessionOrder, *, key: str
    ) -> SessionView:
        """Create a session, or get again the one this key created."""
        call = "sessions.create"
        wanted: dict[str, Any] = {
            "shell": order.shell,
            "network_mode": order.network_mode,
            "ttl": order.ttl_seconds,
        }
        if order.vcpu > 1:
            wanted["vcpu"] = order.vcpu
        data = await self._signed.json(
            credentials,
            "POST",
            "/sessions",
            call,
            body=wanted,
            key=key,
            read_seconds=BUILD_SECONDS,
        )
        return _view(Fields(data, call), credentials)

    async def look(self, credentials: Credentials, session_id: str) -> SessionView:
        """How it stands."""
        call = "sessions.look"
        data = await self._signed.json(credentials, "GET", _path(session_id), call)
        return _view(Fields(data, call), credentials)

    async def run(
        self, credentials: Credentials, session_id: str, command: str, *, timeout_ms: int, key: str
    ) -> CellEnd:
        """Run a command to its end; a non-zero exit code is no error."""
        call = "sessions.run"
        data = await self._signed.json(
            credentials,
            "POST",
            f"{_path(session_id)}/execute",
            call,
            body={"command": command, "timeout": timeout_ms},
            key=key,
            read_seconds=timeout_ms / 1000 + GRACE_SECONDS,
        )
        return _cell(Fields(data, call))

    async def freeze(self, credentials: Credentials, session_id: str) -> SessionView:
        """Freeze it."""
        return await self._change(credentials, session_id, "freeze", {})

    async def unfreeze(self, credentials: Credentials, session_id: str) -> SessionView:
        """Unfreeze it."""
        return await self._change(credentials, session_id, "unfreeze", {})

    async def extend(self, credentials: Credentials, session_id: str, seconds: int) -> SessionView:
        """Add to its time to live."""
        return await self._change(credentials, session_id, "extend", {"ttl": seconds})

    async def boost(self, credentials: Credentials, session_id: str, vcpu: int) -> SessionView:
        """Give it so many vCPUs."""
        return await self._change(credentials, session_id, "boost", {"vcpu": vcpu})

    async def end(self, credentials: Credentials, session_id: str) -> SessionView:
        """End it."""
        call = "sessions.end"
        data = await self._signed.json(credentials, "DELETE", _path(session_id), call)
        return _view(Fields(data, call), credentials)

    async def _change(
        self, credentials: Credentials, session_id: str, verb: str, body: dict[str, Any]
    ) -> SessionView:
        call = f"sessions.{verb}"
        data = await self._signed.json(
            credentials,
            "POST",
            f"{_path(session_id)}/{verb}",
            call,
            body=body,
            read_seconds=BUILD_SECONDS,
        )
        return _view(Fields(data, call), credentials)


def _path(session_id: str) -> str:
    return f"/sessions/{segment(session_id)}"


def _view(fields: Fields, credentials: Credentials) -> SessionView:
    active_ms = fields.moment_ms("last_activity_ms", "last_activity") - credentials.offset_ms
    return SessionView(
        session_id=fields.text("session_id", "id"),
        status=fields.text("status", "state"),
        shell=fields.optional_text("shell") or "",
        vcpu=fields.integer("vcpu", default=1),
        expires_ms=fields.moment_ms("expires_ms", "expires_at") - credentials.offset_ms,
        idles_ms=active_ms + IDLE_MS,
        reason=fields.optional_text("reason") or "",
    )


def _cell(fields: Fields) -> CellEnd:
    return CellEnd(
        status=fields.optional_text("status", "state") or "completed",
        stdout=fields.optional_text("stdout", "output") or "",
        stderr=fields.optional_text("stderr") or "",
        exit_code=fields.integer("exit_code") if fields.get("exit_code") is not None else None,
        duration_ms=fields.integer("duration_ms", "total_time_ms", default=0),
    )
