"""Snapshots over HTTP: every call signed, taking and cloning by key.

Source: platform-api.md, section 7.
"""

from __future__ import annotations

from typing import Literal, cast

from machines.clients.fields import Fields, texts
from machines.clients.ports import Credentials, NotFound, Rejected
from machines.clients.ports.snapshots import CopyInfo, Kind, Restored, SnapshotInfo
from machines.clients.signed import Signed
from machines.clients.transport import Transport, segment

ARCHIVE_SECONDS = 120.0
"""Packing and unpacking take their time."""


class HttpSnapshots:
    """`Snapshots` over one base URL."""

    def __init__(self, base_url: str, transport: Transport) -> None:
        self._signed = Signed(base_url, transport)

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
        """Save a session or service, or get again the snapshot that this key made."""
        call = "snapshots.take"
        wanted = {"source_type": source_type, "source_id": source_id, "hot": hot}
        data = await self._signed.json(
            credentials,
            "POST",
            "/snapshots",
            call,
            body=wanted | {"name": name, "ttl": ttl_seconds},
            key=key,
            read_seconds=ARCHIVE_SECONDS,
        )
        return _snapshot(Fields(data, call))

    async def snapshot(self, credentials: Credentials, snapshot_id: str) -> SnapshotInfo:
        """One snapshot."""
        call = "snapshots.snapshot"
        path = f"/snapshots/{segment(snapshot_id)}"
        return _snapshot(Fields(await self._signed.json(credentials, "GET", path, call), call))

    async def restore(self, credentials: Credentials, snapshot_id: str) -> Restored:
        """Write it back over its source; done twice, it is as done the second time."""
        call = "snapshots.restore"
        data = await self._signed.json(
            credentials,
            "POST",
            f"/snapshots/{segment(snapshot_id)}/restore",
            call,
            body={},
            repeatable=True,
            read_seconds=ARCHIVE_SECONDS,
        )
        fields = Fields(data, call)
        return Restored(
            kind=kind_of(fields, "type"),
            target_id=fields.text("session_id", "service_id", "id"),
            level=fields.optional_text("level") or "",
        )

    async def clone(
        self, credentials: Credentials, snapshot_id: str, *, kind: Kind, name: str, key: str
    ) -> CopyInfo:
        """A new session or service, or get again the one that this key made."""
        call = "snapshots.clone"
        data = await self._signed.json(
            credentials,
            "POST",
            f"/snapshots/{segment(snapshot_id)}/clone",
            call,
            body={"type": kind} | ({"name": name} if name else {}),
            key=key,
            read_seconds=ARCHIVE_SECONDS,
        )
        return copy_of(Fields(data, call), kind)

    async def set_locked(self, credentials: Credentials, snapshot_id: str, *, locked: bool) -> None:
        """Refuse, or allow, its deletion."""
        path = f"/snapshots/{segment(snapshot_id)}/{'lock' if locked else 'unlock'}"
        await self._signed.reply(
            credentials, "POST", path, "snapshots.set_locked", body={}, repeatable=True
        )

    async def remove(self, credentials: Credentials, snapshot_id: str) -> None:
        """Delete it; one that is gone is no error."""
        path = f"/snapshots/{segment(snapshot_id)}"
        await removed(self._signed, credentials, path, "snapshots.remove")

    async def remove_copy(self, credentials: Credentials, kind: Kind, copy_id: str) -> None:
        """End what was made of it; one that is gone is no error."""
        path = f"/{kind}s/{segment(copy_id)}"
        await removed(self._signed, credentials, path, "snapshots.remove_copy")


async def removed(signed: Signed, credentials: Credentials, path: str, call: str) -> None:
    """DELETE a path; 404 and 410 are no error."""
    try:
        await signed.reply(credentials, "DELETE", path, call)
    except NotFound:
        return


def kind_of(fields: Fields, *names: str) -> Kind:
    """`session` or `service`."""
    said = fields.text(*names)
    if said not in ("session", "service"):
        raise Rejected(f"{names[0]} {said!r}: expected 'session' or 'service'")
    return cast(Literal["session", "service"], said)


def copy_of(fields: Fields, kind: Kind) -> CopyInfo:
    """A session or service that was made of an archive."""
    return CopyInfo(
        kind=kind,
        copy_id=fields.text(f"{kind}_id", "id"),
        state=fields.text("status", "state"),
    )


def lost_of(fields: Fields, call: str) -> tuple[str, ...]:
    """What an archive could not keep."""
    return tuple(texts(fields.get("lost") or [], call))


def _snapshot(fields: Fields) -> SnapshotInfo:
    return SnapshotInfo(
        snapshot_id=fields.text("snapshot_id", "id"),
        status=fields.optional_text("status", "state") or "ready",
        source_type=kind_of(fields, "source_type", "type"),
        source_id=fields.text("source_id"),
        level=fields.optional_text("level") or "",
        lost=lost_of(fields, "snapshots.snapshot"),
        locked=bool(fields.get("locked")),
        size_bytes=fields.integer("size_bytes", default=0),
    )
