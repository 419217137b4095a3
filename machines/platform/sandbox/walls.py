"""Looking at the walls of a new sandbox from inside, before anything untrusted is let in.

`INSPECTION` runs inside and prints what it sees as JSON; `find_holes` compares that with what must
be seen. At that moment nothing but our own code has run there, so the answer can be believed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["INSPECTION", "find_holes"]

_OWN_PROCESSES = 3  # bubblewrap's process 1, the agent, the inspection
_HOST_SETTINGS = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sysrq-trigger",
)
_NAMESPACES = ("user", "pid", "net", "ipc", "uts", "mnt")

INSPECTION = """
import json, os

def can_write(path):
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError:
        return False
    return True

status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(json.dumps({
    "status": {name: status[name].strip() for name in ("CapEff", "Seccomp", "NoNewPrivs")},
    "uid_map": open("/proc/self/uid_map").read().split(),
    "namespaces": {name: os.readlink("/proc/self/ns/" + name) for name in %(namespaces)r},
    "interfaces": [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line],
    "processes": sum(name.isdigit() for name in os.listdir("/proc")),
    "writable": [path for path in %(paths)r if can_write(path)],
}))
""" % {
    "namespaces": _NAMESPACES,
    "paths": _HOST_SETTINGS,
}


def find_holes(output: bytes, outside_pid: int) -> list[str]:
    """Walls that are missing, in words; empty when all stand.

    `output`: what INSPECTION printed. `outside_pid`: the number that the host gives the agent.
    """
    try:
        seen = json.loads(output)
        return [*_inside(seen), *_namespaces(seen["namespaces"]), *_outside(outside_pid)]
    except (ValueError, KeyError, TypeError, OSError) as error:
        return [f"its walls could not be inspected ({type(error).__name__}: {error})"]


def _inside(seen: Mapping[str, Any]) -> list[str]:
    status = seen["status"]
    checks = {
        f"capabilities {status['CapEff']} instead of none": int(status["CapEff"], 16) == 0,
        "no system call filter": status["Seccomp"] == "2",
        "new privileges can be gained": status["NoNewPrivs"] == "1",
        f"user map {seen['uid_map']} holds more than one user": seen["uid_map"][2:] == ["1"],
        f"network interfaces {seen['interfaces']}": seen["interfaces"] == ["lo"],
        f"{seen['processes']} processes are visible": seen["processes"] <= _OWN_PROCESSES,
        f"writable: {seen['writable']}": not seen["writable"],
    }
    return [hole for hole, stands in checks.items() if not stands]


def _namespaces(inside: Mapping[str, str]) -> list[str]:
    return [
        f"the host's {name} namespace is shared"
        for name in _NAMESPACES
        if inside[name] == os.readlink(f"/proc/self/ns/{name}")
    ]


def _outside(pid: int) -> list[str]:
    status = Path(f"/proc/{pid}/status").read_text()
    uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    return ["its root is the host's root"] if "0" in uids else []
