"""Snapshots and images as shown: every name, and nothing before it is known."""

from __future__ import annotations

from typing import Any

import jsonschema_rs

from machines.platform.archive_documents import (
    IMAGE_SCHEMA,
    SNAPSHOT_SCHEMA,
    image_document,
    snapshot_document,
)

COMMON: dict[str, Any] = {
    "name": None,
    "source_type": "service",
    "source_id": "unsb-service-0011223344556677",
    "status": "creating",
    "locked": 0,
    "level": None,
    "lost": "[]",
    "size_bytes": None,
    "sha256": None,
    "created_ms": 1_700_000_000_000,
}
READY = {"status": "ready", "level": "files", "lost": '["a"]', "size_bytes": 7, "sha256": "ff"}


def test_a_snapshot() -> None:
    row = {**COMMON, "snapshot_id": "unsb-snapshot-1", "hot": 0, "expires_ms": None}
    shown = snapshot_document(row)
    jsonschema_rs.validate(SNAPSHOT_SCHEMA, shown)
    assert not {"name", "level", "size_bytes", "sha256", "expires_at"} & shown.keys()
    assert shown["container_name"] == "unsb-vm-0011223344556677"
    assert shown["created_at"] == "2023-11-14T22:13:20Z"
    ready = snapshot_document({**row, **READY, "name": "n", "expires_ms": 1_700_000_060_000})
    jsonschema_rs.validate(SNAPSHOT_SCHEMA, ready)
    assert (ready["level"], ready["lost"], ready["size_bytes"]) == ("files", ["a"], 7)
    assert (ready["name"], ready["expires_at"]) == ("n", "2023-11-14T22:14:20Z")


def test_an_image() -> None:
    row = {
        **COMMON,
        "image_id": "unsb-image-1",
        "owner_key": "unsb-pk-1",
        "description": None,
        "visibility": "private",
    }
    shown = image_document(row, "owned", ["unsb-pk-2"])
    jsonschema_rs.validate(IMAGE_SCHEMA, shown)
    assert not {"name", "description", "fingerprint", "size_bytes"} & shown.keys()
    assert (shown["owner_api_key"], shown["trusted_keys"]) == ("unsb-pk-1", ["unsb-pk-2"])
    ready = image_document({**row, **READY, "description": "d"}, "public", ())
    jsonschema_rs.validate(IMAGE_SCHEMA, ready)
    assert (ready["fingerprint"], ready["description"], ready["access"]) == ("ff", "d", "public")
