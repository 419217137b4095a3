"""Who reaches which image, and how: the table at the head of images.py, row by row."""

from __future__ import annotations

from typing import Any

import pytest

from machines.platform import image_rows
from machines.platform.replies import Problem

IMAGE = "unsb-image-aaaa-bbbb-cccc-dddd"


@pytest.fixture
def keys(api: Any) -> dict[str, str]:
    """An owner with one image, a key that it was granted to, and any other."""
    made = {name: api.key()[0] for name in ("owner", "granted", "other")}
    with api.database.transaction() as sql:
        sql.run(
            "INSERT INTO image (image_id, owner_key, source_type, source_id, status, visibility, "
            "recipe, created_ms, digest, size_bytes, sha256) VALUES (:id, :key, 'session', 's', "
            "'ready', 'private', '{}', 0, 'd', 1, 'ff')",
            id=IMAGE,
            key=made["owner"],
        )
        sql.run(
            "INSERT INTO image_trust (image_id, public_key, granted_ms) VALUES (:id, :key, 0)",
            id=IMAGE,
            key=made["granted"],
        )
    return made


def put(api: Any, column: str, value: str) -> None:
    with api.database.transaction() as sql:
        sql.run(f"UPDATE image SET {column} = :value", value=value)  # noqa: S608 - ours


def seen(api: Any, key: str) -> str:
    """How a key reaches it, in one look and in the list; `no` when it does not."""
    with api.database.reading() as sql:
        try:
            access = image_rows.reached(sql, key, IMAGE)[1]
        except Problem as problem:
            assert (problem.status, problem.error) == (404, "not_found")
            access = "no"  # type: ignore[assignment]
    listed = [way for _, way in api.app.state.api.images.reachable(key)]
    assert listed == ([] if access == "no" else [access])
    return access


@pytest.mark.parametrize(
    ("visibility", "owner", "granted", "other"),
    [
        ("private", "owned", "shared", "no"),
        ("unlisted", "owned", "shared", "no"),
        ("public", "owned", "public", "public"),
    ],
)
def test_the_table(
    api: Any, keys: dict[str, str], visibility: str, owner: str, granted: str, other: str
) -> None:
    put(api, "visibility", visibility)
    assert [seen(api, keys[name]) for name in keys] == [owner, granted, other]
    with api.database.reading() as sql:
        assert image_rows.owned(sql, keys["owner"], IMAGE)["image_id"] == IMAGE
        for name, access in (("granted", granted), ("other", other)):
            with pytest.raises(Problem) as refused:
                image_rows.owned(sql, keys[name], IMAGE)
            assert refused.value.status == (404 if access == "no" else 403)


def test_what_is_not_ready_or_deleted_is_out_of_reach(api: Any, keys: dict[str, str]) -> None:
    put(api, "visibility", "public")
    put(api, "status", "creating")
    assert [seen(api, keys[name]) for name in keys] == ["owned", "no", "no"]
    put(api, "status", "deleted")
    assert [seen(api, keys[name]) for name in keys] == ["no", "no", "no"]
