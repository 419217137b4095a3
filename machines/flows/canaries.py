"""Canaries: things of this host that code inside a sandbox must not reach.

::

    async with canaries.placed() as canary:      a port and an abstract socket answer a token
        ask the sandbox to reach canary.ask()
    canary.hits                                  connections that came, whatever the sandbox says

A folder is known by device and inode, this process by its number and start, a namespace by its
identity: nothing is written anywhere, so nothing is left behind, whenever this process dies.
Somebody else on this host who connects to the port while it is open counts as a hit; it is open
for the seconds of a probe, under a number that the kernel chose.

Canaries are of the host on which this process runs.  A platform on another host keeps its own
away from the sandbox just as well, or not: that is not seen from here.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from machines.flows.wall_probes import started_ticks

PLACES = ("/", "/etc", "/home", "/root", "/run", "/tmp", "/var")  # noqa: S108 - looked at, not used
NAMESPACES = ("ipc", "mnt", "net", "pid", "uts")


@dataclass
class Canary:
    """What a probe is told of the host, and how often the host was reached."""

    port: int
    socket: str
    token: str
    nonce: str
    places: dict[str, list[int]]
    process: tuple[int, int]
    namespaces: dict[str, str]
    hits: int = field(default=0)

    def ask(self) -> dict[str, Any]:
        """What `wall_probes.command` takes."""
        return {
            "nonce": self.nonce,
            "token": self.token,
            "port": self.port,
            "socket": self.socket,
            "places": self.places,
            "process": list(self.process),
            "namespaces": self.namespaces,
        }


class Canaries(Protocol):
    """Places canaries for as long as a probe takes."""

    def placed(self) -> AbstractAsyncContextManager[Canary]:
        """A canary that answers until it is left."""


class LocalCanaries:
    """`Canaries` of this host."""

    @asynccontextmanager
    async def placed(self) -> AsyncIterator[Canary]:
        """See `Canaries`.

        Raises:
            OSError: this host gives no port.
        """
        canary = _looked_around()

        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            canary.hits += 1
            writer.write(canary.token.encode())
            writer.close()

        by_port = await asyncio.start_server(answer, "127.0.0.1", 0)
        canary.port = by_port.sockets[0].getsockname()[1]
        try:
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listening.bind("\0" + canary.socket)
            by_name = await asyncio.start_unix_server(answer, sock=listening)
            try:
                yield canary
            finally:
                by_name.close()
        finally:
            by_port.close()


def _looked_around() -> Canary:
    return Canary(
        port=0,
        socket=f"turtles-canary-{secrets.token_hex(8)}",
        token=secrets.token_hex(16),
        nonce=secrets.token_hex(16),
        places=_identities(),
        process=(os.getpid(), started_ticks("self") or 0),
        namespaces=_namespaces(),
    )


def _identities() -> dict[str, list[int]]:
    found = {}
    for path in PLACES:
        try:
            seen = Path(path).stat()
        except OSError:
            continue
        found[path] = [seen.st_dev, seen.st_ino]
    return found


def _namespaces() -> dict[str, str]:
    found = {}
    for name in NAMESPACES:
        try:
            found[name] = str(Path(f"/proc/self/ns/{name}").readlink())
        except OSError:
            continue
    return found
