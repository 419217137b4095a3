"""What a semitrusted sandbox may reach, and how fast.

Denied unless allowed: a list of (host, port) pairs from the configuration, and the platform's own
names, which lead to the platform that runs the sandbox, whatever the world says they are; that is
what lets code inside create siblings.  A name is resolved here, once, and an address that is
private, loopback, link-local, multicast or reserved is refused, however it is written.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import UsageError
from machines.platform.replies import Problem

OWN_NAMES = ("api.unsandbox.com", "platform.turtles", "unsandbox.com")
MIB = 1024 * 1024

_HOST = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_.-]{0,251}[a-z0-9_])?|[0-9a-f:.]{2,45}")
_RULE = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Destination:
    """A host, or all names below one (`*.example.org`), and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        """As it is written in the configuration."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def covers(self, host: str, port: int) -> bool:
        """Whether it allows this host (lower case) and port."""
        if port != self.port:
            return False
        if self.host.startswith("*."):
            return host.endswith(self.host[1:]) and len(host) > len(self.host) - 1
        return host == self.host


def parse_destination(text: str) -> Destination:
    """`HOST:PORT`, `*.HOST:PORT` or `[ADDRESS]:PORT`.

    Raises:
        UsageError: another shape; says which are good.
    """
    found = _RULE.fullmatch(text.strip().lower())
    host = (found["six"] or found["host"]).rstrip(".") if found else ""
    port = int(found["port"]) if found else 0
    if not _HOST.fullmatch(host) or not 1 <= port <= 65535:
        raise UsageError(
            f"--egress-allow {text!r}: expected HOST:PORT such as example.org:443, "
            "*.example.org:443 or [2001:db8::1]:443"
        )
    return Destination(host, port)


@dataclass(frozen=True, kw_only=True)
class EgressPolicy:
    """Rules and limits of every semitrusted sandbox.

    Args:
        allow: what may be reached besides the platform itself.
        requests_per_second, burst: the token bucket of one sandbox; a CONNECT is one request.
        connections: open at once, per sandbox; more wait in the kernel's queue.
        bytes_max: of one exchange or tunnel, both ways together.
        header_seconds: from accepting to a complete request head.
        connect_seconds: for a name and a connection.
        idle_seconds: nothing moves either way.
        total_seconds: the longest exchange or tunnel.
        allow_private: private addresses may be dialled.  For tests with a loopback upstream.
    """

    allow: tuple[Destination, ...] = ()
    requests_per_second: float = 5.0
    burst: int = 20
    connections: int = 16
    bytes_max: int = 256 * MIB
    header_seconds: float = 10.0
    connect_seconds: float = 10.0
    idle_seconds: float = 60.0
    total_seconds: float = 3600.0
    allow_private: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.requests_per_second <= 10_000:
            raise UsageError(
                f"egress rate {self.requests_per_second}: expected more than 0, up to 10000"
            )
        if not 1 <= self.burst <= 100_000:
            raise UsageError(f"egress burst {self.burst}: expected 1 to 100000")

    def allows(self, host: str, port: int) -> bool:
        """Whether the configuration names this host (lower case) and port."""
        return any(one.covers(host, port) for one in self.allow)

    def dialable(self, addresses: Iterable[Address]) -> list[Address]:
        """Those that may be connected to."""
        return [one for one in addresses if self.allow_private or is_public(one)]


@dataclass(frozen=True, slots=True)
class PlatformAddress:
    """Where the platform itself listens; `certificate` when it speaks TLS."""

    host: str
    port: int
    certificate: Path | None = None

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports under which its own names can be reached."""
        return (80,) if self.certificate is None else (80, 443)


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet, also when it is wrapped in another."""
    for inner in _wrapped(address):
        if not is_public(inner):
            return False
    return address.is_global and not (
        address.is_multicast
        or address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_reserved
        or address.is_unspecified
    )


_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
_TRANSLATED_LOCALLY = ipaddress.ip_network("64:ff9b:1::/48")


def _wrapped(address: Address) -> list[Address]:
    """The IPv4 addresses to which an IPv6 address would lead."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[Address | None] = [address.ipv4_mapped, address.sixtofour]
    found += address.teredo or ()
    if address in _TRANSLATED or address in _TRANSLATED_LOCALLY:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in found if one is not None]


def denied(
    host: str, port: int, why: str, policy: EgressPolicy, own_ports: Iterable[int]
) -> Problem:
    """403 that names the host, and what may be reached."""
    own = [f"{name}:{number}" for name in OWN_NAMES for number in own_ports]
    allowed = [*own, *(str(one) for one in policy.allow)]
    return Problem(
        403,
        "egress_denied",
        f"{host}:{port}: {why}. Allowed from here: {', '.join(allowed) or 'nothing'}.",
        fields={"host": host, "port": port, "allowed": allowed},
    )


class TokenBucket:
    """How fast one sandbox may ask.  Time is an argument, in seconds."""

    def __init__(self, per_second: float, burst: int, now: float) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._tokens = float(burst)
        self._at = now

    def take(self, now: float) -> float:
        """0 when there was a token, else the seconds until there is one."""
        passed = max(0.0, now - self._at)
        self._tokens = min(self._burst, self._tokens + passed * self._per_second)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._per_second
