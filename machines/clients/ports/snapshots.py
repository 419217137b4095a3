"""Snapshots: what was in a session or service, kept by the platform (platform-api.md, 7)."""

from __future__ import annotations

from typing import Literal, Protocol

from machines.clients.ports import Credentials, Record

Kind = Literal["session", "service"]
"""What can be saved, and what can be made of a save."""


class SnapshotInfo(Record):
    """A snapshot.

    Args:
        level: how much of the source is in it: `files`, `files+vars` or `full`; empty until ready.
        lost: what of that could not be kept, by name.
    """

    snapshot_id: str
    status: str
    source_type: Kind
    source_id: str
    level: str
    lost: tuple[str, ...]
    locked: bool
    size_bytes: int


class CopyInfo(Record):
    """A session or service that was made of an archive."""

    kind: Kind
    copy_id: str
    state: str


class Restored(Record):
    """What holds again what a snapshot kept; it has the id it had before."""

    kind: Kind
    target_id: str
    level: str


class Snapshots(Protocol):
    """Save, write back, fork.  The same `key` makes one thing, however often it is asked for."""

    async def take(
        self,
        credentials: Credentials,
        *,
        source_type: Kind,
        source_id: str,
        name: str,
        hot: bool,
        ttl_seconds: int,
        key: str,
    ) -> SnapshotInfo:
        """Save a session or service that runs.  `ttl_seconds` 0 keeps it; `hot`: do not pause."""

    async def snapshot(self, credentials: Credentials, snapshot_id: str) -> SnapshotInfo:
        """One snapshot."""

    async def restore(self, credentials: Credentials, snapshot_id: str) -> Restored:
        """Write it back over its source.  What was written there since is gone."""

    async def clone(
        self, credentials: Credentials, snapshot_id: str, *, kind: Kind, name: str, key: str
    ) -> CopyInfo:
        """A new session, or a new service called `name`, that holds what was kept."""

    async def set_locked(self, credentials: Credentials, snapshot_id: str, *, locked: bool) -> None:
        """Refuse, or allow, its deletion."""

    async def remove(self, credentials: Credentials, snapshot_id: str) -> None:
        """Delete it; one that is gone is no error."""

    async def remove_copy(self, credentials: Credentials, kind: Kind, copy_id: str) -> None:
        """End a session or service that was made of it; one that is gone is no error."""
