"""What the platform and its machine are doing: `/cluster`, `/stats`, `/pools` (wire facts, 12).

The documents speak of a cluster of hosts with containers kept warm.  Here is one host, and every
sandbox is made when it is asked for, so the words mean:

============  ==============================================================================
allocated     live sandboxes: of sessions, services and one-off executions that have not ended
spawning      those of them that are still being built
available     sandboxes of one vCPU that could be filled to their memory limit (2 GiB) with
              the memory that is free now; 0 while this machine cannot isolate.  An estimate
              of room, not a limit: a limit is what a key's tier says
total         allocated + available
pool_size     sandboxes kept warm: 0, the mode is `on_demand`
============  ==============================================================================

Counts are over all keys and name none.  Memory is in units of 10^9 bytes, as its names say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from machines.platform.context import PlatformContext
from machines.platform.documents import MEMORY_MIB_PER_VCPU
from machines.platform.sandbox.backend import MIB
from machines.platform.sessions import Sessions

POOL_ID = "local"
# Every sandbox is on the machine of the server; its real name is nobody's business.
_HOST = "localhost"
_NETWORK_MODES = ("zerotrust", "semitrusted")
_MEMINFO_LINE = re.compile(r"^(\w+):\s+(\d+) kB$", re.ASCII | re.MULTILINE)


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What the operating system says: memory, and load over 1, 5 and 15 minutes."""

    memory_total_bytes: int
    memory_available_bytes: int
    load: tuple[float, float, float]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The platform at one moment.  `live` counts live sandboxes by network mode.

    `services` are the semitrusted ones among them that belong to services.
    """

    machine: Machine
    live: Mapping[str, int]
    spawning: int
    services: int = 0
    can_isolate: bool
    uptime_seconds: int

    @property
    def allocated(self) -> int:
        """Live sandboxes."""
        return sum(self.live.values())

    @property
    def available(self) -> int:
        """Sandboxes of one vCPU that free memory has room for."""
        room = self.machine.memory_available_bytes // (MEMORY_MIB_PER_VCPU * MIB)
        return room if self.can_isolate else 0


class Cluster:
    """Reads the running platform.

    Args:
        context: database and clock.
        sessions: asked to end what is over before anything is counted.
        read: the machine; tests give their own.
    """

    def __init__(
        self,
        context: PlatformContext,
        sessions: Sessions,
        read: Callable[[], Machine] | None = None,
    ) -> None:
        self._context = context
        self._sessions = sessions
        self._read = read or read_machine
        self._started_ms = context.clock_ms()

    def start(self) -> None:
        """The platform serves from now on."""
        self._started_ms = self._context.clock_ms()

    def read(self, can_isolate: bool) -> Reading:
        """The platform now."""
        self._sessions.expire_due()
        with self._context.database.reading() as sql:
            live = {row["network_mode"]: int(row["live"]) for row in sql.all(_LIVE)}
            spawning = sql.scalar(_SPAWNING)
            services = sql.scalar(_SERVICES)
        # A clock that is set back must not show a platform from the future.
        uptime_ms = max(0, self._context.clock_ms() - self._started_ms)
        return Reading(
            machine=self._read(),
            live=live,
            spawning=int(spawning),
            services=int(services),
            can_isolate=can_isolate,
            uptime_seconds=uptime_ms // 1000,
        )


def read_machine() -> Machine:
    """Memory and load of this machine, from the kernel."""
    memory = dict(_MEMINFO_LINE.findall(Path("/proc/meminfo").read_text("ascii")))
    return Machine(
        memory_total_bytes=int(memory["MemTotal"]) * 1024,
        memory_available_bytes=int(memory["MemAvailable"]) * 1024,
        load=os.getloadavg(),
    )


def cluster_document(reading: Reading) -> dict[str, Any]:
    """The body of `GET /cluster`."""
    machine = reading.machine
    used_bytes = machine.memory_total_bytes - machine.memory_available_bytes
    return {
        "mode": "on_demand",
        "network_mode": "zerotrust",
        "pool_size": 0,
        "available": reading.available,
        "allocated": reading.allocated,
        "spawning": reading.spawning,
        "total_containers": reading.allocated,
        "network_breakdown": _network_breakdown(reading),
        "load_avg": _load(machine),
        "memory": {
            "used_gb": round(used_bytes / 1e9, 2),
            "available_gb": round(machine.memory_available_bytes / 1e9, 2),
            "used_percent": round(100 * used_bytes / machine.memory_total_bytes, 1),
        },
        "uptime_seconds": reading.uptime_seconds,
    }


def stats_document(reading: Reading) -> dict[str, Any]:
    """The body of `GET /stats`; its loads are strings on the wire."""
    load1, load5, load15 = reading.machine.load
    return {
        "containers": reading.allocated,
        "load_1min": f"{load1:.2f}",
        "load_5min": f"{load5:.2f}",
        "load_15min": f"{load15:.2f}",
        "uptime_seconds": reading.uptime_seconds,
    }


def pools_document(reading: Reading) -> dict[str, Any]:
    """The body of `GET /pools`: one pool, this machine."""
    total = reading.allocated + reading.available
    pool = {
        "id": POOL_ID,
        "status": "available" if reading.can_isolate else "unavailable",
        "host": _HOST,
        "total": total,
        "available": reading.available,
        "allocated": reading.allocated,
        "load_avg": _load(reading.machine),
    }
    return {
        "pools": [pool],
        "pool_count": 1,
        "total_capacity": total,
        "total_available": reading.available,
        "total_allocated": reading.allocated,
    }


def _network_breakdown(reading: Reading) -> dict[str, dict[str, int]]:
    shown = {}
    for mode in _NETWORK_MODES:
        allocated = reading.live.get(mode, 0)
        # The room is one: what the one kind takes, the other has no more.
        shown[mode] = {
            "total": allocated + reading.available,
            "available": reading.available,
            "allocated": allocated,
        }
    shown["semitrusted"]["services"] = reading.services
    return shown


def _load(machine: Machine) -> dict[str, float]:
    names = ("load1", "load5", "load15")
    return {name: round(load, 2) for name, load in zip(names, machine.load, strict=True)}


_LIVE = """
    SELECT network_mode, count(*) AS live FROM (
        SELECT network_mode FROM session WHERE state <> 'terminated'
        UNION ALL
        SELECT network_mode FROM execution WHERE state IN ('pending', 'running')
            AND session_id IS NULL AND service_id IS NULL
        UNION ALL
        SELECT network_mode FROM service
            WHERE state IN ('starting', 'running', 'frozen', 'redeploying')
    ) AS sandbox GROUP BY network_mode
"""
_SPAWNING = """
    SELECT (SELECT count(*) FROM session WHERE state = 'starting')
        + (SELECT count(*) FROM service WHERE state = 'starting')
"""
_SERVICES = """
    SELECT count(*) FROM service WHERE network_mode = 'semitrusted'
        AND state IN ('starting', 'running', 'frozen', 'redeploying')
"""
