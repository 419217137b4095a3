"""Processes by number *and* start time, so that a recycled number is never signalled.

A pid alone means nothing after its process ended. `Identity` adds the start time from
/proc/PID/stat (field 22, clock ticks since boot); `kill` opens a pidfd first and compares then, so
that nothing can slip in between.
"""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Identity",
    "boot_id",
    "descendants",
    "identify",
    "kill",
    "resident_bytes",
    "wait_until_gone",
]

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Identity:
    """One process of this boot: its number and its start time in clock ticks since boot."""

    pid: int
    start_ticks: int

    def is_alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[19]) == self.start_ticks and fields[0] != "Z"


def identify(pid: int) -> Identity | None:
    """The identity of the process that has this number now, or None when there is none."""
    fields = _stat(pid)
    return None if fields is None else Identity(pid, int(fields[19]))


def boot_id() -> str:
    """A name for this boot of the machine: start times of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def kill(identity: Identity, wait_seconds: float = 2.0) -> bool:
    """SIGKILL that very process and wait until it ended. False when it was gone already."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    try:
        if not identity.is_alive():
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        select.select([descriptor], [], [], wait_seconds)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def descendants(pid: int) -> list[Identity]:
    """Children, their children and so on of `pid`, parents first."""
    found: list[Identity] = []
    queue = [pid]
    while queue:
        below = [each for child in _children(queue.pop(0)) if (each := identify(child))]
        found += below
        queue += [each.pid for each in below]
    return found


def _children(pid: int) -> list[int]:
    """Numbers of the children of all threads of `pid`; empty when it is gone."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
    children: list[int] = []
    for thread in threads:
        try:
            children += map(int, (thread / "children").read_text().split())
        except FileNotFoundError:
            if thread.exists():  # a kernel without CONFIG_PROC_CHILDREN
                return _children_by_scan(pid)
        except OSError:
            continue
    return children


def _children_by_scan(pid: int) -> list[int]:
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [each for each in numbers if (fields := _stat(each)) and int(fields[1]) == pid]


def resident_bytes(pid: int) -> int:
    """Resident memory of one process; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def wait_until_gone(identities: list[Identity], wait_seconds: float) -> bool:
    """Wait for the end of processes that are being killed by someone else."""
    limit = time.monotonic() + wait_seconds
    while any(identity.is_alive() for identity in identities):
        if time.monotonic() > limit:
            return False
        time.sleep(0.002)
    return True


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third (state) on; the name before may hold anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
