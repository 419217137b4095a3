"""Which process a worker is, and whether such a process still lives on this host.

A lease only ends with time; but the process of a worker on the same host can be looked up, so that
a program that was killed and started again goes on at once.  A pid alone proves nothing, because
pids are used again: the kernel's start time of the process (`/proc/PID/stat`, field 22) and the
host's boot id complete it.
"""

from __future__ import annotations

import os
import secrets
import socket
from base64 import b32encode
from pathlib import Path

from engine.ports import WorkerIdentity


def this_worker() -> WorkerIdentity:
    """A new identity for a worker in this process: 50 random bits, in every entry it writes."""
    return WorkerIdentity(
        worker_id=f"w{b32encode(secrets.token_bytes(7)).decode()[:10].lower()}",
        host=host_id(),
        pid=os.getpid(),
        process_start=process_start(os.getpid()) or "",
    )


def host_id() -> str:
    """Names this host for as long as it is not rebooted, and this pid namespace within it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:13]
        namespace = Path("/proc/self/ns/pid").readlink().name
    except OSError:
        boot, namespace = "unknown", "unknown"
    return f"{socket.gethostname()}/{boot}/{namespace}"


def process_start(pid: int) -> str | None:
    """The start time of a process in clock ticks since boot; None when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else fields[19]


def known_dead(worker: WorkerIdentity) -> bool:
    """Whether the worker ran on this host and its process is certainly gone."""
    if worker.host != host_id() or not worker.process_start:
        return False
    return process_start(worker.pid) != worker.process_start
