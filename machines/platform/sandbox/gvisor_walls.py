"""Looking at the walls of a new gVisor sandbox from inside, before anything untrusted is let in.

`INSPECTION` runs inside and prints what it sees as JSON; `find_holes` compares that with what must
be seen.  Not the same as in walls.py: here the kernel inside is not the host's, and it, not the
programs, is what the host's kernel must hold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["INSPECTION", "find_holes"]

_OWN_PROCESSES = 5  # the relay, the agent, the doorman, the inspection, and one to spare
_NAMESPACES = ("user", "net", "ipc", "uts", "mnt")  # not pid: runsc's kernel traces its programs

INSPECTION = """
import json, os, socket

def can_write(path):
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    except OSError:
        return False
    return True

def status(pid):
    fields = dict(line.split(":", 1) for line in open("/proc/%s/status" % pid) if ":" in line)
    return {name: fields[name].strip() for name in ("CapEff", "CapBnd")}

print(json.dumps({
    "status": [status("self"), status("1")],
    "kernel": " ".join(os.uname()),
    "interfaces": [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line],
    "processes": sum(name.isdigit() for name in os.listdir("/proc")),
    "writable": [path for path in ("/x", "/usr/x", "/etc/passwd", "/run/turtles/agent.py")
                 if can_write(path)],
}))
"""


def find_holes(output: bytes, outside: Sequence[int]) -> list[str]:
    """Walls that are missing, in words; empty when all stand.

    `output`: what INSPECTION printed. `outside`: numbers of the sandbox's processes on the host.
    """
    try:
        return [*_inside(json.loads(output)), *_outside(outside)]
    except (ValueError, KeyError, TypeError, OSError) as error:
        return [f"its walls could not be inspected ({type(error).__name__}: {error})"]


def _inside(seen: Mapping[str, Any]) -> list[str]:
    capabilities = [int(value, 16) for status in seen["status"] for value in status.values()]
    host = Path("/proc/sys/kernel/osrelease").read_text().strip()
    checks = {
        f"capabilities {capabilities} instead of none": not any(capabilities),
        "the host's kernel answers inside": host not in seen["kernel"],
        f"network interfaces {seen['interfaces']}": seen["interfaces"] == ["lo"],
        f"{seen['processes']} processes are visible": seen["processes"] <= _OWN_PROCESSES,
        f"writable: {seen['writable']}": not seen["writable"],
    }
    return [hole for hole, stands in checks.items() if not stands]


def _outside(pids: Sequence[int]) -> list[str]:
    """gVisor's kernel on the host: other namespaces, a filter, another user."""
    kernels = [pid for pid in pids if "boot" in _words(pid)]
    if not kernels:
        return ["its kernel was not found among the host's processes"]
    holes = []
    for pid in kernels:
        status = _status(pid)
        shared = [name for name in _NAMESPACES if _namespace(pid, name) == _namespace("self", name)]
        holes += [f"its kernel shares the host's {name} namespace" for name in shared]
        if status["Seccomp"] != "2":
            holes.append("its kernel has no system call filter")
        if "0" in status["Uid"].split():
            holes.append("its kernel runs as the host's root")
    return holes


def _words(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _namespace(pid: int | str, name: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{name}").readlink())
