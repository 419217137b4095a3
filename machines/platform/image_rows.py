"""Images as rows: who reaches which, and how; inside the caller's transaction.

The table of who may do what is in images.py.
"""

from __future__ import annotations

from typing import Literal

from machines.platform.replies import Problem
from persistence.database import Row
from persistence.database import Session as Sql

COUNT_MAX = 64
BYTES_MAX = 8 * 1024**3
Visibility = Literal["private", "unlisted", "public"]
Access = Literal["owned", "shared", "public"]
ACCESS = (
    "CASE WHEN owner_key = :key THEN 'owned' WHEN visibility = 'public' THEN 'public' "
    "ELSE 'shared' END"
)
"""How the key `:key` reaches an image that it can reach."""


def require_room(sql: Sql, public_key: str) -> None:
    """Refuse when a key has as many images, or bytes of them, as are kept.

    Raises:
        Problem: 409.
    """
    kept = sql.one(
        "SELECT count(*) AS count, coalesce(sum(size_bytes), 0) AS bytes FROM image "
        "WHERE owner_key = :key AND status <> 'deleted'",
        key=public_key,
    )
    assert kept is not None
    if kept["count"] >= COUNT_MAX or kept["bytes"] >= BYTES_MAX:
        raise Problem(
            409,
            "too_many_images",
            f"the key has {kept['count']} images of {kept['bytes']} bytes; at most "
            f"{COUNT_MAX} and {BYTES_MAX} bytes are kept. Delete one.",
        )


def reached(sql: Sql, public_key: str, image_id: str) -> tuple[Row, Access]:
    """An image that this key can use, and how.

    Raises:
        Problem: 404, unknown, deleted or out of reach.
    """
    row = select(sql, image_id)
    if row is None or row["status"] == "deleted":
        raise not_found(image_id)
    if row["owner_key"] == public_key:
        return row, "owned"
    if row["status"] == "ready":
        if row["visibility"] == "public":
            return row, "public"
        trust = "SELECT 1 FROM image_trust WHERE image_id = :id AND public_key = :key"
        if sql.one(trust, id=image_id, key=public_key):
            return row, "shared"
    raise not_found(image_id)


def owned(sql: Sql, public_key: str, image_id: str) -> Row:
    """An image of this key.

    Raises:
        Problem: 404 out of reach, 403 another key's.
    """
    row, access = reached(sql, public_key, image_id)
    if access != "owned":
        raise Problem(
            403,
            "not_owner",
            f"image {image_id} belongs to another key; only its owner may change it. "
            "Clone it: the copy is yours.",
        )
    return row


def not_ready(row: Row) -> Problem:
    """409 for what nothing can be made of yet."""
    return Problem(
        409,
        "image_not_ready",
        f"{row['image_id']} is {row['status']}; only what is ready can be used.",
        fields={"status": row["status"]},
    )


def select(sql: Sql, image_id: str) -> Row | None:
    """An image, deleted or not."""
    return sql.one("SELECT * FROM image WHERE image_id = :id", id=image_id)


def require(row: Row | None, image_id: str) -> Row:
    """A row that must be there.

    Raises:
        Problem: 404.
    """
    if row is None:
        raise not_found(image_id)
    return row


def not_found(image_id: str) -> Problem:
    """404, whoever's it is."""
    return Problem(
        404,
        "not_found",
        f"image {image_id[:80]!r}: this key reaches none of that id. List them: GET /images.",
    )
