"""What is on disk about each sandbox, so that the next platform process can clean up.

    ROOT/ (0700)  <sandbox_id>/ (0700)  record.json      who owns it, what to kill and remove

The record exists before the first process does (bubblewrap waits behind a gate until it is
written), and is replaced atomically. Its content is ours alone: nothing inside a sandbox can see
this directory.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from machines.platform.sandbox.processes import Identity, boot_id

__all__ = ["Record", "read_record", "remove_directory", "write_record"]

_RECORD = "record.json"


@dataclass(frozen=True, slots=True)
class Record:
    """Owner (the platform process), processes of the sandbox, its cgroup directories."""

    owner: Identity
    processes: tuple[Identity, ...] = ()
    cgroups: tuple[str, ...] = ()
    boot: str = field(default_factory=boot_id)

    def is_of_this_boot(self) -> bool:
        """Process numbers and start times of another boot mean nothing."""
        return self.boot == boot_id()


def write_record(directory: Path, record: Record) -> None:
    """Write atomically. Creates `directory` (0700) when needed."""
    directory.mkdir(mode=0o700, exist_ok=True)
    document = {
        "boot": record.boot,
        "owner": [record.owner.pid, record.owner.start_ticks],
        "processes": [[each.pid, each.start_ticks] for each in record.processes],
        "cgroups": list(record.cgroups),
    }
    fresh = directory / f"{_RECORD}.new"
    fresh.write_text(json.dumps(document))
    fresh.replace(directory / _RECORD)


def read_record(directory: Path) -> Record | None:
    """The record, or None when the owner died before it was written in full."""
    try:
        document = json.loads((directory / _RECORD).read_text())
        return Record(
            owner=Identity(*document["owner"]),
            processes=tuple(Identity(*each) for each in document["processes"]),
            cgroups=tuple(document["cgroups"]),
            boot=document["boot"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_directory(directory: Path) -> None:
    """Remove a sandbox's directory; nothing inside it is a symbolic link of a stranger."""
    shutil.rmtree(directory, ignore_errors=True)
