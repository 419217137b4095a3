"""What a platform says of itself: its health, what it can run, how much room it has.

Values are as the platform claims them, checked for shape and cut to size, never believed beyond
that.  Source: platform-api.md sections 4 and 12.
"""

from __future__ import annotations

from typing import Protocol

from machines.clients.ports import Credentials, Record


class HealthReport(Record):
    """`/health`.  `problem` says why no sandbox can be opened; empty when one can."""

    status: str
    problem: str = ""
    enforcement: str = ""


class ShellList(Record):
    """`/shells`, in their order."""

    shells: tuple[str, ...]


class LanguageList(Record):
    """`/languages`: those that run now, and pairs of alias and language."""

    languages: tuple[str, ...]
    aliases: tuple[tuple[str, str], ...] = ()


class ClusterReport(Record):
    """`/cluster`: sandboxes that are there and that there is room for."""

    mode: str
    available: int
    allocated: int


class PoolReport(Record):
    """One pool of `/pools`."""

    pool_id: str
    total: int
    available: int


class Facilities(Protocol):
    """The API host, asked about itself."""

    async def health(self) -> HealthReport:
        """The platform's own word; any answer but a 2xx is an error.  Unsigned."""

    async def languages(self, credentials: Credentials) -> LanguageList:
        """What it can run now."""

    async def shells(self, credentials: Credentials) -> ShellList:
        """The shells and interpreters that a session may have."""

    async def cluster(self, credentials: Credentials) -> ClusterReport:
        """How much is in use, and how much room there is."""

    async def pools(self, credentials: Credentials) -> tuple[PoolReport, ...]:
        """The same by pool."""

    async def network_mode(self, credentials: Credentials, session_id: str) -> str:
        """What the platform says a session may reach; `terminated` when it has ended.

        Raises:
            NotFound: there is no such session.
        """
