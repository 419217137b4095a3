"""What flow 9 is asked for, and what moves it: one snapshot, and the orders it obeys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from engine.events import Event, GaveUp
from machines.clients.ports import Record
from machines.clients.ports.snapshots import CopyInfo, Kind
from machines.flows.errands import Errand, Order

Level = Literal["files", "files+vars", "full"]
RANKS: Mapping[str, int] = {"files": 1, "files+vars": 2, "full": 3}
"""How much of a source is kept: its files; what its interpreter had in memory; its processes."""

Cause = Literal["source_gone", "source_idle", "gone", "refused"]
"""Why the platform declines: the source has ended; it does not run now; the snapshot itself is
gone; anything else."""


class Restore(Order, tag="restore"):
    """Write the snapshot back over its source: what was written there since is undone."""


class Clone(Order, tag="clone"):
    """Make a session or service of its own of the snapshot; a service needs a name."""

    kind: Kind = "session"
    name: str = ""


class Lock(Order, tag="lock"):
    """Do not let it be deleted."""


class Unlock(Order, tag="unlock"):
    """Let it be deleted again."""


class Remove(Order, tag="remove"):
    """Delete it."""


class Keep(Order, tag="keep"):
    """Leave it on the platform, on purpose, and end."""


SnapshotOrder = Restore | Clone | Lock | Unlock | Remove | Keep


class Capture(Errand, kw_only=True):
    """Of what to take a snapshot, and what to do with it.

    Args:
        least_level: a snapshot that keeps less is of no use, and is removed.
        hot: do not pause the source while it is saved.
        snapshot_ttl_seconds: the platform deletes it after so long; 0: never.
        then: what to do when the script is done: keep it, remove it, or wait for messages.
        keep: leave what was made also when the run fails or is cancelled.
        taken_of: the source's id, as the platform told it.
        wanted: the kind and name of the clone that is being made.
    """

    source_type: Kind
    source_id: str
    name: str = ""
    least_level: Level = "files"
    hot: bool = False
    snapshot_ttl_seconds: int = 0
    script: tuple[SnapshotOrder, ...] = ()
    then: Literal["keep", "remove", "wait"] = "keep"
    keep: bool = False
    snapshot_id: str = ""
    taken_of: str = ""
    level: str = ""
    lost: tuple[str, ...] = ()
    size_bytes: int = 0
    locked: bool = False
    restores: int = 0
    wanted: Clone = Clone()
    clones: tuple[CopyInfo, ...] = ()


class SnapshotReport(Record):
    """What a finished run tells: what is kept where, and what was made of it."""

    snapshot_id: str
    level: str
    lost: tuple[str, ...]
    restores: int
    clones: tuple[CopyInfo, ...]
    reason: str


class Captured(Event, tag="captured"):
    """The snapshot is there."""

    snapshot_id: str
    source_id: str
    level: str
    lost: tuple[str, ...]
    size_bytes: int


class Declined(Event, tag="declined"):
    """The platform says that this cannot be."""

    cause: Cause
    detail: str


class RestoreDone(Event, tag="restored"):
    """The source holds again what was kept."""

    target_id: str


class Cloned(Event, tag="cloned"):
    """There is a session or service more."""

    copy: CopyInfo


class LockSet(Event, tag="lock_set"):
    """It is locked, or is not any more."""

    locked: bool


class Removed(Event, tag="removed_it"):
    """It is gone."""


class Barred(Event, tag="barred"):
    """The script asks to remove what is locked."""


class ClearedUp(Event, tag="cleared_up"):
    """What may have been made without our knowing is gone."""


class NotClearedUp(GaveUp, tag="not_cleared_up"):
    """Nobody can say whether something was made."""
