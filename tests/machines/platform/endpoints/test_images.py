"""`/images` over HTTP: every endpoint's success, wrong fields, access, ids, states, aliases."""

from __future__ import annotations

import stat
from typing import Any

import pytest

Pair = tuple[str, str]
UNKNOWN = "unsb-image-aaaa-bbbb-cccc-dddd"
CHANGES: tuple[tuple[str, str, Any], ...] = (
    ("POST", "lock", {}),
    ("POST", "unlock", {}),
    ("POST", "visibility", {"visibility": "public"}),
    ("POST", "grant", {"api_key": "unsb-pk-aaaa-bbbb-cccc-dddd"}),
    ("POST", "revoke", {"api_key": "unsb-pk-aaaa-bbbb-cccc-dddd"}),
    ("POST", "transfer", {"to_api_key": "unsb-pk-aaaa-bbbb-cccc-dddd"}),
    ("GET", "trusted", None),
    ("DELETE", "access/unsb-pk-aaaa-bbbb-cccc-dddd", None),
    ("DELETE", "", None),
)
USES = (("GET", "", None), ("POST", "spawn", {}), ("POST", "clone", {}))


async def call(
    api: Any, pair: Pair, method: str, path: str, body: Any = None, once: str | None = None
) -> Any:
    return await api.described_call(pair, method, path, body, once=once)


def told(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]


async def session(api: Any, pair: Pair, code: str = "x = 42") -> str:
    made = (await call(api, pair, "POST", "/sessions", {"shell": "python3"})).json()
    await run(api, pair, made["id"], code)
    return str(made["id"])


async def run(api: Any, pair: Pair, session_id: str, code: str) -> str:
    answer = await call(api, pair, "POST", f"/sessions/{session_id}/execute", {"command": code})
    return str(answer.json().get("stdout"))


async def publish(api: Any, pair: Pair, source_type: str, source_id: str, **more: Any) -> Any:
    body = {"source_type": source_type, "source_id": source_id, **more}
    answer = await call(api, pair, "POST", "/images", body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture
async def owner(api: Any) -> Pair:
    pair: Pair = api.key(tier=32)
    return pair


@pytest.fixture
async def image_id(api: Any, owner: Pair) -> str:
    return str((await publish(api, owner, "session", await session(api, owner)))["id"])


async def listed(api: Any, pair: Pair, path: str = "/images") -> set[str]:
    answer = (await call(api, pair, "GET", path)).json()
    assert answer["count"] == len(answer["images"])
    return {each["id"] for each in answer["images"]}


async def test_what_an_image_is_and_where_it_lies(api: Any, owner: Pair) -> None:
    session_id = await session(api, owner)
    made = await publish(api, owner, "session", session_id, name="base", description="of mine")
    assert made["id"] == made["image_id"]
    groups = made["id"].removeprefix("unsb-image-").split("-")
    assert [len(group) for group in groups] == [4, 4, 4, 4]
    assert (made["name"], made["description"]) == ("base", "of mine")
    assert (made["source_type"], made["source_id"]) == ("session", session_id)
    assert made["owner_api_key"] == made["owner_key"] == owner[0]
    assert (made["visibility"], made["locked"], made["access"]) == ("private", False, "owned")
    assert (made["trusted_keys"], made["level"], made["lost"]) == ([], "files+vars", [])
    assert len(made["fingerprint"]) == 64
    file = api.data_dir / "images" / f"{made['id']}.tar"
    assert file.stat().st_size == made["size_bytes"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert (await call(api, owner, "GET", f"/images/{made['id']}")).json() == made


async def test_images_come_of_sessions_services_and_snapshots(api: Any, owner: Pair) -> None:
    session_id = await session(api, owner)
    service = (await call(api, owner, "POST", "/services", {"name": "shop"})).json()
    body = {"session_id": session_id}
    snapshot = (await call(api, owner, "POST", "/snapshots", body)).json()
    of_snapshot = await publish(api, owner, "snapshot", snapshot["id"])
    assert of_snapshot["fingerprint"] == snapshot["sha256"]
    again = {"source_type": "service", "source_id": service["id"]}
    of_service = await call(api, owner, "POST", "/images/publish", again)
    assert of_service.json()["source_type"] == "service"
    # It outlives what it was made of.
    await call(api, owner, "DELETE", f"/snapshots/{snapshot['id']}")
    await call(api, owner, "DELETE", f"/sessions/{session_id}")
    spawned = await call(
        api, owner, "POST", f"/images/{of_snapshot['id']}/spawn", {"type": "session"}
    )
    assert await run(api, owner, spawned.json()["session_id"], "print(x)") == "42\n"
    assert spawned.json()["image"] == of_snapshot["id"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "source_type"),
        ({"source_type": "image", "source_id": "x"}, "source_type"),
        ({"source_type": ["session"], "source_id": "x"}, "source_type"),
        ({"source_type": "session"}, "source_id"),
        ({"source_type": "session", "source_id": {}}, "source_id"),
        ({"source_type": "session", "source_id": "x", "name": 5}, "name"),
        ({"source_type": "session", "source_id": "x", "name": "a\0"}, "name"),
        ({"source_type": "session", "source_id": "x", "description": "d" * 4001}, "description"),
    ],
)
async def test_a_bad_field_of_a_publication_is_named(
    api: Any, owner: Pair, body: Any, field: str
) -> None:
    answer = await call(api, owner, "POST", "/images", body)
    assert (answer.status_code, answer.json().get("field")) == (400, field)


@pytest.mark.parametrize(
    ("verb", "body", "field"),
    [
        ("visibility", {}, "visibility"),
        ("visibility", {"visibility": "secret"}, "visibility"),
        ("visibility", {"visibility": ["public"]}, "visibility"),
        ("grant", {}, "trusted_api_key"),
        ("grant", {"trusted_key": 7}, "trusted_key"),
        ("grant", {"api_key": "not a key"}, "api_key"),
        ("grant", {"api_key": "unsb-pk-a", "trusted_key": "unsb-pk-b"}, "api_key"),
        ("revoke", {"trusted_api_key": None}, "trusted_api_key"),
        ("transfer", {}, "to_api_key"),
        ("transfer", {"to_api_key": []}, "to_api_key"),
        ("transfer", {"to_api_key": "unsb-pk-none-none-none-none"}, "to_api_key"),
        ("spawn", {"type": "disk"}, "type"),
        ("spawn", {"name": "No Label"}, "name"),
        ("spawn", {"ports": "8000,x"}, "ports"),
        ("spawn", {"ports": [0]}, "ports"),
        ("spawn", {"network_mode": "open"}, "network_mode"),
        ("spawn", {"bootstrap": 4}, "bootstrap"),
        ("spawn", {"bootstrap": "http://x.test/"}, "bootstrap"),
        ("spawn", {"type": "session", "shell": "none"}, "shell"),
        ("clone", {"name": {}}, "name"),
        ("clone", {"description": 1}, "description"),
    ],
)
async def test_a_bad_field_is_named(
    api: Any, owner: Pair, image_id: str, verb: str, body: Any, field: str
) -> None:
    answer = await call(api, owner, "POST", f"/images/{image_id}/{verb}", body)
    assert (answer.status_code, answer.json().get("field")) == (400, field), answer.text


async def test_a_bad_filter_and_a_bad_key_in_a_path_are_named(
    api: Any, owner: Pair, image_id: str
) -> None:
    answer = await call(api, owner, "GET", "/images?filter=mine")
    assert (answer.status_code, answer.json()["field"]) == (400, "filter")
    answer = await call(api, owner, "DELETE", f"/images/{image_id}/access/nonsense")
    assert (answer.status_code, answer.json()["field"]) == (400, "key")


async def test_a_private_image_does_not_exist_for_others(
    api: Any, owner: Pair, image_id: str
) -> None:
    other = api.key(tier=32)
    for method, verb, body in (*USES, *CHANGES):
        seen = []
        for one in (image_id, UNKNOWN):
            path = f"/images/{one}/{verb}".rstrip("/")
            answer = await call(api, other, method, path, body)
            assert told(answer) == (404, "not_found"), path
            seen.append(answer.json()["message"].replace(one, "ID"))
        assert seen[0] == seen[1]
    assert not await listed(api, other)
    body = {"source_type": "snapshot", "source_id": "unsb-snapshot-0123456789abcdef"}
    assert told(await call(api, other, "POST", "/images", body)) == (404, "not_found")


@pytest.mark.parametrize("visibility", ["private", "unlisted", "shared", "public"])
async def test_only_the_owner_changes_what_others_can_use(
    api: Any, owner: Pair, image_id: str, visibility: str
) -> None:
    other = api.key(tier=32)
    body = {"visibility": visibility}
    shown = (await call(api, owner, "POST", f"/images/{image_id}/visibility", body)).json()
    assert shown["visibility"] == {"shared": "unlisted"}.get(visibility, visibility)
    if visibility != "public":
        body = {"trusted_api_key": other[0]}
        granted = (await call(api, owner, "POST", f"/images/{image_id}/grant", body)).json()
        assert granted["trusted_keys"] == [other[0]]
    for method, verb, body in CHANGES:
        path = f"/images/{image_id}/{verb}".rstrip("/")
        assert told(await call(api, other, method, path, body)) == (403, "not_owner"), path
    shown = (await call(api, other, "GET", f"/images/{image_id}")).json()
    assert shown["access"] == ("public" if visibility == "public" else "shared")
    # Whom else it was granted to is no business of those who may use it.
    assert shown["trusted_keys"] == []


async def test_lists_say_how_an_image_is_reached(api: Any, owner: Pair) -> None:
    other = api.key(tier=32)
    session_id = await session(api, owner)
    mine = (await publish(api, other, "session", await session(api, other)))["id"]
    private, unlisted, public = [
        (await publish(api, owner, "session", session_id))["id"] for _ in range(3)
    ]
    for image, visibility in ((unlisted, "unlisted"), (public, "public")):
        body = {"visibility": visibility}
        await call(api, owner, "POST", f"/images/{image}/visibility", body)
    assert await listed(api, other) == {mine, public}
    for image in (private, unlisted):
        await call(api, owner, "POST", f"/images/{image}/grant", {"trusted_key": other[0]})
    assert await listed(api, other) == {mine, public, private, unlisted}
    for way, found in (("owned", {mine}), ("shared", {private, unlisted}), ("public", {public})):
        assert await listed(api, other, f"/images/{way}") == found
        assert await listed(api, other, f"/images?filter={way}") == found
    assert await listed(api, owner, "/images/owned") == {private, unlisted, public}
    assert not await listed(api, owner, "/images/public")
    await call(api, owner, "POST", f"/images/{private}/revoke", {"trusted_key": other[0]})
    assert await listed(api, other, "/images/shared") == {unlisted}
    assert told(await call(api, other, "GET", f"/images/{private}")) == (404, "not_found")


async def test_grants_under_every_path_and_name(api: Any, owner: Pair, image_id: str) -> None:
    other = api.key()[0]
    base = f"/images/{image_id}"
    grants = ("grant", "access", "access/grant", "grant-access")
    revokes = ("revoke", "access/revoke", "revoke-access", "revoke")
    names = ("trusted_api_key", "trusted_key", "api_key", "api_key")
    for grant, revoke, name in zip(grants, revokes, names, strict=True):
        granted = await call(api, owner, "POST", f"{base}/{grant}", {name: other})
        assert granted.json()["trusted_keys"] == [other]
        for path in ("trusted", "access"):
            answer = (await call(api, owner, "GET", f"{base}/{path}")).json()
            assert answer["trusted_keys"] == answer["trusted"] == [other]
        revoked = await call(api, owner, "POST", f"{base}/{revoke}", {name: other})
        assert revoked.json()["trusted_keys"] == []
    for _ in range(2):  # twice is no error, both ways
        await call(api, owner, "POST", f"{base}/grant", {"api_key": other})
    for _ in range(2):
        answer = await call(api, owner, "DELETE", f"{base}/access/{other}")
        assert answer.json()["trusted_keys"] == []


async def test_a_lock_refuses_deletion(api: Any, owner: Pair, image_id: str) -> None:
    path = f"/images/{image_id}"
    assert (await call(api, owner, "POST", f"{path}/lock", {})).json()["locked"] is True
    assert told(await call(api, owner, "DELETE", path)) == (409, "locked")
    assert (await call(api, owner, "POST", f"{path}/unlock")).json()["locked"] is False
    assert (await call(api, owner, "DELETE", path)).json()["success"] is True
    assert not list((api.data_dir / "images").iterdir())
    assert told(await call(api, owner, "GET", path)) == (404, "not_found")
    assert not await listed(api, owner)


async def test_a_transfer_gives_everything_away(api: Any, owner: Pair, image_id: str) -> None:
    receiver = api.key(tier=32)
    await call(api, owner, "POST", f"/images/{image_id}/grant", {"api_key": receiver[0]})
    body = {"to_api_key": receiver[0]}
    given = (await call(api, owner, "POST", f"/images/{image_id}/transfer", body)).json()
    assert given["owner_api_key"] == receiver[0]
    assert told(await call(api, owner, "GET", f"/images/{image_id}")) == (404, "not_found")
    mine = (await call(api, receiver, "GET", f"/images/{image_id}")).json()
    assert (mine["access"], mine["trusted_keys"]) == ("owned", [])
    assert (await call(api, receiver, "DELETE", f"/images/{image_id}")).status_code == 200


async def test_a_service_is_spawned_by_whoever_can_reach_the_image(
    api: Any, owner: Pair, image_id: str
) -> None:
    other = api.key(tier=32)
    await call(api, owner, "POST", f"/images/{image_id}/grant", {"api_key": other[0]})
    body = {"name": "made", "ports": "8000, 9000", "bootstrap": "echo up"}
    made = (await call(api, other, "POST", f"/images/{image_id}/spawn", body)).json()
    assert (made["type"], made["name"], made["ports"]) == ("service", "made", [8000, 9000])
    assert (made["source_image"], made["network_mode"]) == (image_id, "zerotrust")
    assert (made["level"], made["lost"]) == ("files+vars", [])
    assert made["url"].startswith("http://made.on.")
    unnamed = (await call(api, other, "POST", f"/images/{image_id}/spawn")).json()
    assert unnamed["name"].startswith("image-")
    taken = await call(api, other, "POST", f"/images/{image_id}/spawn", {"name": "made"})
    assert told(taken) == (409, "name_taken")


async def test_a_clone_is_the_callers_and_private(api: Any, owner: Pair, image_id: str) -> None:
    other = api.key(tier=32)
    await call(api, owner, "POST", f"/images/{image_id}/visibility", {"visibility": "public"})
    path = f"/images/{image_id}/clone"
    clone = (await call(api, other, "POST", path, {"name": "mine"})).json()
    assert clone["id"] != image_id
    assert (clone["owner_api_key"], clone["visibility"]) == (other[0], "private")
    assert (clone["name"], clone["trusted_keys"], clone["access"]) == ("mine", [], "owned")
    original = (await call(api, owner, "GET", f"/images/{image_id}")).json()
    assert clone["fingerprint"] == original["fingerprint"]
    await call(api, owner, "DELETE", f"/images/{image_id}")
    body = {"type": "session"}
    spawned = (await call(api, other, "POST", f"/images/{clone['id']}/spawn", body)).json()
    assert await run(api, other, spawned["session_id"], "print(x)") == "42\n"


async def test_what_does_not_run_cannot_be_published(api: Any, owner: Pair) -> None:
    session_id = await session(api, owner)
    body = {"source_type": "session", "source_id": session_id}
    await call(api, owner, "POST", f"/sessions/{session_id}/freeze")
    assert told(await call(api, owner, "POST", "/images", body)) == (409, "session_frozen")
    await call(api, owner, "DELETE", f"/sessions/{session_id}")
    assert told(await call(api, owner, "POST", "/images", body)) == (410, "session_terminated")
    assert not await listed(api, owner)


async def test_the_same_idempotency_key_gives_the_same_image(api: Any, owner: Pair) -> None:
    body = {"source_type": "session", "source_id": await session(api, owner)}
    made = [(await call(api, owner, "POST", "/images", body, once="k")).json() for _ in range(2)]
    assert made[0] == made[1]
    other = await call(api, owner, "POST", "/images", {**body, "name": "n"}, once="k")
    assert told(other) == (409, "idempotency_key_reused")
    receiver = api.key(tier=32)
    # The giver's key does not stand in the receiver's way.
    theirs = {"source_type": "session", "source_id": await session(api, receiver)}
    await call(api, receiver, "POST", "/images", theirs, once="k")
    path = f"/images/{made[0]['id']}/transfer"
    assert (await call(api, owner, "POST", path, {"to_api_key": receiver[0]})).status_code == 200
    assert len(await listed(api, receiver, "/images/owned")) == 2


async def test_pictures_are_not_offered_and_say_so(api: Any, owner: Pair) -> None:
    answer = await call(api, owner, "POST", "/image", {"prompt": "a turtle", "n": 2})
    assert told(answer) == (501, "not_offered")
    for body, field in (
        ({}, "prompt"),
        ({"prompt": 4}, "prompt"),
        ({"prompt": "x", "size": "1x1"}, "size"),
        ({"prompt": "x", "quality": []}, "quality"),
        ({"prompt": "x", "n": 0}, "n"),
    ):
        answer = await call(api, owner, "POST", "/image", body)
        assert (answer.status_code, answer.json()["field"]) == (400, field)


async def test_nobody_else_learns_the_session_that_an_image_was_made_of(
    api: Any, owner: Pair
) -> None:
    session_id = await session(api, owner)  # whoever knows it may attach to its terminal
    image_id = (await publish(api, owner, "session", session_id))["id"]
    await call(api, owner, "POST", f"/images/{image_id}/visibility", {"visibility": "public"})
    other = api.key()
    shown = [
        await call(api, other, "GET", f"/images/{image_id}"),
        await call(api, other, "GET", "/images"),
        await call(api, other, "POST", f"/images/{image_id}/clone", {}),
    ]
    assert all(one.status_code == 200 and session_id not in one.text for one in shown)
    mine = (await call(api, owner, "GET", f"/images/{image_id}")).json()
    assert mine["source_id"] == session_id

    await call(api, owner, "POST", f"/images/{image_id}/transfer", {"to_api_key": owner[0]})
    mine = (await call(api, owner, "GET", f"/images/{image_id}")).json()
    assert mine["source_id"] == session_id
    await call(api, owner, "POST", f"/images/{image_id}/transfer", {"to_api_key": other[0]})
    given = await call(api, other, "GET", f"/images/{image_id}")
    assert given.json()["access"] == "owned" and session_id not in given.text
