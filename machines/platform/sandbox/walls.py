"""Looking at the walls of a new sandbox from inside, before anything untrusted is let in.

`INSPECTION` runs inside and prints what it sees as JSON; `find_holes` compares that with what must
be seen. At that moment nothing but our own code has run there, so the answer can be believed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["INSPECTION", "find_holes"]

_OWN_PROCESSES = 4  # bubblewrap's process 1, the agent, the doorman, the inspection
_HOST_SETTINGS = (
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sysrq-trigger",
)
_NAMESPACES = ("user", "pid", "net", "ipc", "uts", "mnt")

_SETTINGS_LINE = f"NAMESPACES, SETTINGS = {_NAMESPACES!r}, {_HOST_SETTINGS!r}"
INSPECTION = (
    _SETTINGS_LINE
    + """
import json, os

def can_write(path):
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError:
        return False
    return True

def status(pid):
    fields = dict(line.split(":", 1) for line in open("/proc/%s/status" % pid) if ":" in line)
    return {name: fields[name].strip() for name in ("CapEff", "Seccomp", "NoNewPrivs")}

print(json.dumps({
    "status": [status("self"), status("1")],
    "uid_map": open("/proc/self/uid_map").read().split(),
    "namespaces": {name: os.readlink("/proc/self/ns/" + name) for name in NAMESPACES},
    "interfaces": [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line],
    "processes": sum(name.isdigit() for name in os.listdir("/proc")),
    "writable": [path for path in SETTINGS if can_write(path)],
}))
"""
)


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
    capabilities = [int(status["CapEff"], 16) for status in seen["status"]]
    checks = {
        f"capabilities {capabilities} instead of none": not any(capabilities),
        "no system call filter": all(status["Seccomp"] == "2" for status in seen["status"]),
        "privileges can be gained": all(status["NoNewPrivs"] == "1" for status in seen["status"]),
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
        if inside[name] == str(Path(f"/proc/self/ns/{name}").readlink())
    ]


def _outside(pid: int) -> list[str]:
    status = Path(f"/proc/{pid}/status").read_text()
    uids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    return ["its root is the host's root"] if "0" in uids else []
