"""Sessions: sandboxes that last from one command to the next, and the port to them.

Errors are those of `machines.clients.ports`, `Refusal` with the platform's code, and `NotFound`
for a session that has ended.  Source: platform-api.md section 5.
"""

from __future__ import annotations

from typing import Protocol

from machines.clients.ports import Credentials, Record
from machines.clients.ports.executions import NetworkMode


class SessionOrder(Record):
    """The session that is wanted."""

    shell: str
    network_mode: NetworkMode
    ttl_seconds: int
    vcpu: int


class SessionView(Record):
    """A session as the platform tells it; moments are on our clock, corrected by the offset.

    Args:
        status: `starting`, `running`, `frozen` or `terminated`.
        reason: why it is over: `deleted`, `expired`, `sandbox_died`, `platform_restarted`, ...
        expires_ms: when its time to live is over.
        idles_ms: when it will have been idle for fifteen minutes, unless something happens.
    """

    session_id: str
    status: str
    shell: str
    vcpu: int
    expires_ms: int
    idles_ms: int
    reason: str = ""


class CellEnd(Record):
    """The end of one command."""

    status: str
    stdout: str
    stderr: str
    exit_code: int | None
    duration_ms: int


class Sessions(Protocol):
    """The sessions of a key, every call signed."""

    async def create(
        self, credentials: Credentials, order: SessionOrder, *, key: str
    ) -> SessionView:
        """Create a session; the same `key` always gives the same one, as it is now."""

    async def look(self, credentials: Credentials, session_id: str) -> SessionView:
        """How it stands, ended ones included."""

    async def run(
        self, credentials: Credentials, session_id: str, command: str, *, timeout_ms: int, key: str
    ) -> CellEnd:
        """Run a command; the same `key` runs it once."""

    async def freeze(self, credentials: Credentials, session_id: str) -> SessionView:
        """Stop its processes and give its slots back; harmless to repeat."""

    async def unfreeze(self, credentials: Credentials, session_id: str) -> SessionView:
        """Let its processes go on; harmless to repeat."""

    async def extend(self, credentials: Credentials, session_id: str, seconds: int) -> SessionView:
        """Add to its time to live.  Repeated, it adds again."""

    async def boost(self, credentials: Credentials, session_id: str, vcpu: int) -> SessionView:
        """Give it so many vCPUs; harmless to repeat."""

    async def end(self, credentials: Credentials, session_id: str) -> SessionView:
        """End it; harmless to repeat."""
