"""The platform API over HTTP: keys, sandboxes, commands.  Every call but `/health` is signed.

The signature covers the exact bytes sent, so bodies are encoded once and signed as they are.
Creating a session and running a command carry an `Idempotency-Key`: the same key gives the same
session and runs the command once.  Source: platform-api.md sections 1, 4, 5, 10.
"""

from __future__ import annotations

from machines.clients.fields import Fields, objects, texts
from machines.clients.ports import (
    ClientError,
    Credentials,
    Execution,
    KeyInfo,
    NotFound,
    SessionInfo,
)
from machines.clients.signed import Signed
from machines.clients.transport import Transport, base_of, parsed, segment

HEALTH_SECONDS = 10.0
DATE_MS = 2_000
"""Below this, two clocks may be the same: a `Date` is up to a second old, and then travels."""
EXECUTE_SECONDS = 120.0


class HttpPlatform:
    """`Platform` over one base URL; the transport's clock is the clock that signs."""

    def __init__(self, base_url: str, transport: Transport) -> None:
        self._base_url = base_of(base_url)
        self._transport = transport
        self._signed = Signed(base_url, transport)

    async def healthy(self) -> bool:
        """Whether `/health` answers 200; no error, whatever else happens."""
        try:
            reply = await self._transport.exchange(
                "GET",
                f"{self._base_url}/health",
                call="platform.healthy",
                read_seconds=HEALTH_SECONDS,
            )
        except ClientError:
            return False
        return reply.status == 200

    async def sandbox_problem(self) -> str | None:
        """Why this platform cannot open sandboxes, with the remedy; None when it can."""
        call = "platform.sandbox_problem"
        reply = await self._transport.exchange(
            "GET", f"{self._base_url}/health", call=call, read_seconds=HEALTH_SECONDS
        )
        return Fields(parsed(reply, call), call).optional_text("sandbox_problem")

    async def clock_offset_ms(self) -> int:
        """The server's time less ours, as far as `Date`, which counts seconds, can tell."""
        reply = await self._transport.request(
            "GET",
            f"{self._base_url}/health",
            call="platform.clock_offset",
            read_seconds=HEALTH_SECONDS,
        )
        if reply.server_ms is None:
            return 0
        offset_ms = reply.server_ms - self._transport.clock_ms()
        return offset_ms if abs(offset_ms) > DATE_MS else 0

    async def validate_key(self, credentials: Credentials, *, offset_ms: int = 0) -> KeyInfo:
        """What the platform says of this key; a wrong secret is `Unauthorized`."""
        call = "platform.validate_key"
        reply = await self._signed.reply(
            credentials,
            "POST",
            "/keys/validate",
            call,
            body={},
            repeatable=True,
            offset_ms=offset_ms,
        )
        return _key_info(Fields(parsed(reply, call), call), credentials, reply.server_ms)

    async def create_session(
        self,
        credentials: Credentials,
        *,
        shell: str,
        network_mode: str,
        ttl_seconds: int,
        key: str,
        toolbox: bool = False,
    ) -> SessionInfo:
        """Create a sandbox, or get again the one this key created."""
        call = "platform.create_session"
        wanted = {"shell": shell, "network_mode": network_mode, "ttl": ttl_seconds}
        if toolbox:
            wanted["toolbox"] = True
        data = await self._signed.json(credentials, "POST", "/sessions", call, body=wanted, key=key)
        return _session(Fields(data, call))

    async def sessions(self, credentials: Credentials) -> tuple[SessionInfo, ...]:
        """The caller's sessions that have not ended."""
        call = "platform.sessions"
        data = await self._signed.json(credentials, "GET", "/sessions", call)
        listed = data if isinstance(data, list) else Fields(data, call).array("sessions")
        found = [_session(item) for item in objects(listed, call)]
        return tuple(session for session in found if session.status != "terminated")

    async def execute(
        self, credentials: Credentials, session_id: str, command: str, *, key: str
    ) -> Execution:
        """Run a command to its end; a non-zero exit code is no error."""
        call = "platform.execute"
        started_ms = self._transport.clock_ms()
        data = await self._signed.json(
            credentials,
            "POST",
            f"/sessions/{segment(session_id)}/execute",
            call,
            body={"command": command},
            key=key,
            read_seconds=EXECUTE_SECONDS,
        )
        return _execution(Fields(data, call), self._transport.clock_ms() - started_ms)

    async def delete_session(self, credentials: Credentials, session_id: str) -> None:
        """End a session; one that is already gone is no error."""
        path = f"/sessions/{segment(session_id)}"
        try:
            await self._signed.reply(credentials, "DELETE", path, "platform.delete_session")
        except NotFound:
            return

    async def languages(self, credentials: Credentials) -> tuple[str, ...]:
        """The names of the languages the platform can run now."""
        call = "platform.languages"
        data = await self._signed.json(credentials, "GET", "/languages", call)
        return tuple(texts(Fields(data, call).array("languages"), call))


def _key_info(fields: Fields, credentials: Credentials, server_ms: int | None) -> KeyInfo:
    valid = fields.boolean("valid")
    absent = None if valid else 0
    return KeyInfo(
        valid=valid,
        public_key=fields.optional_text("public_key") or credentials.public_key,
        tier=fields.integer("tier", default=absent),
        requests_per_minute=fields.integer("rate_per_minute", "rate_limit", default=absent),
        concurrency=fields.integer("concurrency", default=absent),
        reason=fields.optional_text("reason"),
        server_ms=server_ms,
    )


def _session(fields: Fields) -> SessionInfo:
    return SessionInfo(
        session_id=fields.text("session_id", "id"), status=fields.text("status", "state")
    )


def _execution(fields: Fields, measured_ms: int) -> Execution:
    return Execution(
        stdout=fields.optional_text("stdout", "output") or "",
        stderr=fields.optional_text("stderr") or "",
        exit_code=fields.integer("exit_code"),
        duration_ms=fields.integer(
            "duration_ms", "total_time_ms", "execution_time_ms", default=measured_ms
        ),
    )
