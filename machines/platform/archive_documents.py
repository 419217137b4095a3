"""Snapshots and images as the API shows them, with every name that some client reads (7 and 8)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from machines.platform.documents import container_name_of
from machines.platform.replies import iso
from machines.platform.wire import BOOLEAN, INTEGER, TEXT, Schema, an_object, array, one_of
from persistence.database import Row

NODE = "local"
_LEVEL = one_of("files", "files+vars", "full")
_STATUS = one_of("creating", "ready", "failed", "deleted")
_KIND = one_of("session", "service")

SNAPSHOT_SCHEMA: Schema = an_object(
    (
        *("id", "snapshot_id", "source_type", "type", "source_id", "container_name", "status"),
        *("state", "hot", "locked", "lost", "created_at"),
    ),
    id=TEXT,
    snapshot_id=TEXT,
    name=TEXT,
    source_type=_KIND,
    type=_KIND,
    source_id=TEXT,
    container_name=TEXT,
    status=_STATUS,
    state=_STATUS,
    hot=BOOLEAN,
    locked=BOOLEAN,
    level=_LEVEL,
    lost=array(TEXT),
    size_bytes=INTEGER,
    sha256=TEXT,
    created_at=TEXT,
    expires_at=TEXT,
)
IMAGE_SCHEMA: Schema = an_object(
    (
        *("id", "image_id", "source_type", "owner_api_key", "owner_key", "status"),
        *("visibility", "locked", "lost", "trusted_keys", "node", "created_at", "access"),
    ),
    id=TEXT,
    image_id=TEXT,
    name=TEXT,
    description=TEXT,
    fingerprint=TEXT,
    source_type=one_of("session", "service", "snapshot", "image"),
    source_id=TEXT,
    owner_api_key=TEXT,
    owner_key=TEXT,
    status=_STATUS,
    state=_STATUS,
    visibility=one_of("private", "unlisted", "public"),
    locked=BOOLEAN,
    level=_LEVEL,
    lost=array(TEXT),
    size_bytes=INTEGER,
    trusted_keys=array(TEXT),
    node=TEXT,
    created_at=TEXT,
    access=one_of("owned", "shared", "public"),
)


def snapshot_document(row: Row) -> dict[str, Any]:
    """A snapshot.  `level` and what follows it are there when it is ready."""
    document: dict[str, Any] = {
        "id": row["snapshot_id"],
        "snapshot_id": row["snapshot_id"],
        "source_type": row["source_type"],
        "type": row["source_type"],
        "source_id": row["source_id"],
        "container_name": _container_name(row["source_id"]),
        "status": row["status"],
        "state": row["status"],
        "hot": bool(row["hot"]),
        "locked": bool(row["locked"]),
        "created_at": iso(row["created_ms"]),
        **_content(row, "sha256"),
    }
    if row["expires_ms"] is not None:
        document["expires_at"] = iso(row["expires_ms"])
    return document


def image_document(row: Row, access: str, trusted: Sequence[str]) -> dict[str, Any]:
    """An image, for a caller who reaches it in this way; `trusted` is for its owner.

    So is what it was made of: the id of a session is enough to attach to its terminal.
    """
    document: dict[str, Any] = {
        "id": row["image_id"],
        "image_id": row["image_id"],
        "source_type": row["source_type"],
        "owner_api_key": row["owner_key"],
        "owner_key": row["owner_key"],
        "status": row["status"],
        "state": row["status"],
        "visibility": row["visibility"],
        "locked": bool(row["locked"]),
        "trusted_keys": list(trusted),
        "node": NODE,
        "created_at": iso(row["created_ms"]),
        "access": access,
        **_content(row, "fingerprint"),
    }
    if access == "owned" and row["source_id"]:
        document["source_id"] = row["source_id"]
    if row["description"] is not None:
        document["description"] = row["description"]
    return document


def _content(row: Row, hash_name: str) -> dict[str, Any]:
    document: dict[str, Any] = {"lost": json.loads(row["lost"])}
    names = {"name": "name", "level": "level", "size_bytes": "size_bytes", "sha256": hash_name}
    for column, name in names.items():
        if row[column] is not None:
            document[name] = row[column]
    return document


def _container_name(source_id: str) -> str:
    return container_name_of(source_id).replace("unsb-service-", "unsb-vm-", 1)
