"""Removing what a dead platform process left: processes, cgroup directories, its directory.

`--die-with-parent` has usually ended the processes already; directories always stay. An owner that
still lives keeps its sandboxes, and a process is only killed when number, start time and boot are
those of the record.
"""

from __future__ import annotations

from pathlib import Path

from machines.platform.sandbox.cgroups import remove_groups, thaw_groups
from machines.platform.sandbox.processes import Identity, kill, wait_until_gone
from machines.platform.sandbox.records import read_record, remove_directory

__all__ = ["remove_orphan"]

_KILL_SECONDS = 2.0


def remove_orphan(directory: Path, me: Identity) -> bool:
    """Remove one sandbox's remains unless another living process owns it; whether it was removed.

    `me`: this process, whose own sandboxes the caller has left out.
    """
    record = read_record(directory)
    if record is not None:
        if record.is_of_this_boot():
            if record.owner != me and record.owner.is_alive():
                return False
            for identity in record.processes:
                kill(identity, wait_seconds=0)
            thaw_groups(record.cgroups)  # what was frozen when its owner died ends now
            wait_until_gone(list(record.processes), _KILL_SECONDS)
        if not remove_groups(record.cgroups):
            return False
    remove_directory(directory)
    return True
