"""Let programs of a sandbox listen on ports below 1024.

Programs inside have no capability, and the kernel keeps these ports for those that have one.  The
border is a setting of each network namespace, so it can be lowered for the sandbox's own, where
there is nothing but its own `lo`.  That takes rights over the namespace: a platform that runs as
root has them, another has not (`--disable-userns` makes the namespace belong to the outer of two
user namespaces, and no process with rights in it is left).

A thread changes its own network namespace only, so one that is made for this and ends is enough.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

__all__ = ["open_low_ports"]

_CLONE_NEWNET = 0x40000000
_BORDER = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_libc = ctypes.CDLL(None, use_errno=True)


def open_low_ports(pid: int) -> bool:
    """Lower the border in the network namespace of a process; whether that could be done."""
    done: list[bool] = []
    thread = threading.Thread(target=lambda: done.append(_lower(pid)), name="turtles-low-ports")
    thread.start()
    thread.join()
    return done == [True]


def _lower(pid: int) -> bool:
    try:
        ours = Path("/proc/thread-self/ns/net").stat()
        with Path(f"/proc/{pid}/ns/net").open("rb") as namespace:
            if os.fstat(namespace.fileno()).st_ino == ours.st_ino:
                return False  # never the host's
            if _libc.setns(namespace.fileno(), _CLONE_NEWNET):
                return False
        _BORDER.write_text("0")
    except OSError:
        return False
    return True
