"""The platform asked about itself over HTTP.  All but `/health` is signed.

Lists are cut: a platform that names more than `LISTED_MAX` things is listed so far, and a name is
one line of at most `NAME_CHARACTERS_MAX` printable characters.  Source: platform-api.md 4, 5, 12.
"""

from __future__ import annotations

from itertools import islice

from machines.clients.fields import Fields, objects
from machines.clients.ports import Credentials, Rejected
from machines.clients.ports.introspection import (
    ClusterReport,
    HealthReport,
    LanguageList,
    PoolReport,
    ShellList,
)
from machines.clients.signed import Signed
from machines.clients.transport import Transport, base_of, segment

HEALTH_SECONDS = 10.0
LISTED_MAX = 200
NAME_CHARACTERS_MAX = 64
PROBLEM_CHARACTERS_MAX = 300


class HttpFacilities:
    """`Facilities` over one base URL; the transport's clock is the clock that signs."""

    def __init__(self, base_url: str, transport: Transport) -> None:
        self._base_url = base_of(base_url)
        self._transport = transport
        self._signed = Signed(base_url, transport)

    async def health(self) -> HealthReport:
        """What `/health` tells."""
        call = "facilities.health"
        data = await self._transport.request_json(
            "GET", f"{self._base_url}/health", call=call, read_seconds=HEALTH_SECONDS
        )
        fields = Fields(data, call)
        return HealthReport(
            status=shown(fields.text("status")),
            problem=shown(fields.optional_text("sandbox_problem") or "", PROBLEM_CHARACTERS_MAX),
            enforcement=shown(fields.optional_text("enforcement") or ""),
        )

    async def languages(self, credentials: Credentials) -> LanguageList:
        """What `/languages` tells."""
        call = "facilities.languages"
        fields = Fields(await self._signed.json(credentials, "GET", "/languages", call), call)
        aliases = fields.get("aliases")
        pairs = aliases.items() if isinstance(aliases, dict) else ()
        return LanguageList(
            languages=_names(fields, "languages"),
            aliases=tuple(
                (shown(alias), shown(name))
                for alias, name in islice(pairs, LISTED_MAX)
                if isinstance(name, str) and alias
            ),
        )

    async def shells(self, credentials: Credentials) -> ShellList:
        """What `/shells` tells."""
        call = "facilities.shells"
        data = await self._signed.json(credentials, "GET", "/shells", call)
        return ShellList(shells=_names(Fields(data, call), "shells"))

    async def cluster(self, credentials: Credentials) -> ClusterReport:
        """What `/cluster` tells."""
        call = "facilities.cluster"
        fields = Fields(await self._signed.json(credentials, "GET", "/cluster", call), call)
        return ClusterReport(
            mode=shown(fields.text("mode")),
            available=_count(fields, "available"),
            allocated=_count(fields, "allocated"),
        )

    async def pools(self, credentials: Credentials) -> tuple[PoolReport, ...]:
        """What `/pools` tells."""
        call = "facilities.pools"
        data = await self._signed.json(credentials, "GET", "/pools", call)
        listed = objects(Fields(data, call).array("pools")[:LISTED_MAX], call)
        return tuple(
            PoolReport(
                pool_id=shown(one.text("id")),
                total=_count(one, "total"),
                available=_count(one, "available"),
            )
            for one in listed
        )

    async def network_mode(self, credentials: Credentials, session_id: str) -> str:
        """The promise of a session as the platform keeps it."""
        call = "facilities.network_mode"
        path = f"/sessions/{segment(session_id)}"
        fields = Fields(await self._signed.json(credentials, "GET", path, call), call)
        if fields.text("status", "state") == "terminated":
            return "terminated"
        return shown(fields.text("network_mode"))


def shown(text: str, characters_max: int = NAME_CHARACTERS_MAX) -> str:
    """One line of printable characters, cut: nothing in a name may reach a terminal or grow."""
    return "".join(one if one.isprintable() else "?" for one in text[:characters_max])


def _names(fields: Fields, name: str) -> tuple[str, ...]:
    listed = fields.array(name)[:LISTED_MAX]
    for one in listed:
        if not isinstance(one, str) or not one:
            raise fields.refusal((name,), f"expected names, got {type(one).__name__}")
    return tuple(shown(one) for one in listed)


def _count(fields: Fields, name: str) -> int:
    value = fields.integer(name)
    if not 0 <= value < 1 << 53:
        raise Rejected(f"field {name}: expected a count of 0 or more, got {value}")
    return value
