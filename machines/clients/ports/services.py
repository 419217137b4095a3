"""Services: programs that go on behind an address (platform-api.md, section 6)."""

from __future__ import annotations

from typing import Protocol

from engine.secret import Secret
from machines.clients.ports import Credentials, Record


class ServiceInfo(Record):
    """A service.

    Args:
        state: `starting`, `running`, `frozen`, `redeploying`, `failed` or `stopped`.
        reason: why it is in that state, if somebody else than its owner put it there.
        url: where visitors find it, while it runs.
        deployment: how often its bootstrap was begun; grows by one with each redeploy.
    """

    service_id: str
    name: str
    state: str
    reason: str
    url: str
    locked: bool
    deployment: int


class Answer(Record):
    """What a visitor of a service gets: the status, and the beginning of the text."""

    status: int
    text: str


class Services(Protocol):
    """Create, ask, change and destroy.  Ids or names go into `service_id`."""

    async def create(
        self,
        credentials: Credentials,
        *,
        name: str,
        ports: tuple[int, ...],
        bootstrap: str,
        network_mode: str,
        vcpu: int,
        unfreeze_on_demand: bool,
        key: str,
    ) -> ServiceInfo:
        """Create a service, or get again the one this key made."""

    async def service(self, credentials: Credentials, service_id: str) -> ServiceInfo:
        """One service, as it is now."""

    async def set_frozen(self, credentials: Credentials, service_id: str, *, frozen: bool) -> None:
        """Stop its processes, or let them go on; either twice is either once."""

    async def set_locked(self, credentials: Credentials, service_id: str, *, locked: bool) -> None:
        """Refuse, or allow, its destruction."""

    async def set_env(self, credentials: Credentials, service_id: str, env: Secret[str]) -> None:
        """Set or update variables of its vault, `NAME=value` a line; for what starts from now."""

    async def redeploy(self, credentials: Credentials, service_id: str, bootstrap: str) -> None:
        """Run its bootstrap again.  Not harmless to repeat: `deployment` tells whether it was."""

    async def visit(self, url: str, path: str) -> Answer:
        """Ask it something, as any visitor does; wakes one that is frozen and wants that."""

    async def destroy(self, credentials: Credentials, service_id: str) -> None:
        """End it for ever; one that is gone is no error."""
