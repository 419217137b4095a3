"""`/snapshots` over HTTP: every endpoint's success, wrong fields, tenants, ids, states."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable
from typing import Any

import pytest

from machines.platform.sandbox.backend import Handle
from machines.platform.sandbox.errors import SandboxGone, SandboxLimit
from machines.platform.sandbox.fake import FakeBackend

Pair = tuple[str, str]
UNKNOWN = "unsb-snapshot-0123456789abcdef"


class MovingBackend(FakeBackend):
    """Can fail while it saves or loads."""

    failure: Exception | None = None

    def save(self, *args: Any, **options: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        return super().save(*args, **options)

    def load(self, *args: Any, **options: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        return super().load(*args, **options)


@pytest.fixture
def backend() -> MovingBackend:
    return MovingBackend()


async def call(
    api: Any, pair: Pair, method: str, path: str, body: Any = None, once: str | None = None
) -> Any:
    return await api.described_call(pair, method, path, body, once=once)


def told(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]


async def session(api: Any, pair: Pair, code: str = "x = 42") -> str:
    made = await call(api, pair, "POST", "/sessions", {"shell": "python3"})
    assert made.status_code == 200, made.text
    await run(api, pair, made.json()["id"], code)
    return str(made.json()["id"])


async def service(api: Any, pair: Pair, name: str, **more: Any) -> str:
    made = await call(api, pair, "POST", "/services", {"name": name, **more})
    assert made.status_code == 200, made.text
    return str(made.json()["id"])


async def run(api: Any, pair: Pair, session_id: str, code: str) -> str:
    answer = await call(api, pair, "POST", f"/sessions/{session_id}/execute", {"command": code})
    return str(answer.json().get("stdout"))


async def taken(api: Any, pair: Pair, session_id: str, **more: Any) -> Any:
    answer = await call(api, pair, "POST", "/snapshots", {"session_id": session_id, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_what_a_snapshot_is_and_where_it_lies(api: Any) -> None:
    pair = api.key(tier=8)
    session_id = await session(api, pair)
    made = await taken(api, pair, session_id, name="first", hot=True, ttl=60)
    assert made["id"] == made["snapshot_id"]
    assert made["id"].startswith("unsb-snapshot-")
    assert (made["source_type"], made["type"], made["source_id"]) == (
        "session",
        "session",
        session_id,
    )
    assert made["container_name"] == session_id.replace("session", "vm")
    assert (made["name"], made["hot"], made["locked"]) == ("first", True, False)
    assert (made["status"], made["level"], made["lost"]) == ("ready", "files+vars", [])
    assert made["expires_at"] > made["created_at"]
    file = api.data_dir / "snapshots" / f"{made['id']}.tar"
    assert file.stat().st_size == made["size_bytes"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert (await call(api, pair, "GET", f"/snapshots/{made['id']}")).json() == made


async def test_every_form_of_the_request_makes_one(api: Any) -> None:
    pair = api.key(tier=8)
    session_id, service_id = await session(api, pair), await service(api, pair, "shop")
    forms = (
        ("/snapshots", {"source_type": "session", "source_id": session_id}),
        ("/snapshots", {"session_id": session_id, "ephemeral": True, "ttl": 0}),
        (f"/sessions/{session_id}/snapshot", {}),
        (f"/sessions/{session_id}/snapshot", None),
        ("/snapshots", {"source_type": "service", "source_id": service_id}),
        ("/snapshots", {"service_id": service_id}),
        (f"/services/{service_id}/snapshot", {"name": "n"}),
        ("/services/shop/snapshot", {"name": "n"}),
    )
    made = [(await call(api, pair, "POST", path, body)).json() for path, body in forms]
    assert [each["source_id"] for each in made] == [session_id] * 4 + [service_id] * 4
    assert [each["hot"] for each in made] == [False, True] + [False] * 6
    assert not any("expires_at" in each for each in made)
    listed = (await call(api, pair, "GET", "/snapshots")).json()
    assert [each["id"] for each in listed["snapshots"]] == [each["id"] for each in made]
    assert listed["count"] == 8
    services = (await call(api, pair, "GET", "/snapshots?source_type=service")).json()
    assert {each["type"] for each in services["snapshots"]} == {"service"}
    assert services["count"] == 4


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "source_type"),
        ({"source_type": "disk", "source_id": "x"}, "source_type"),
        ({"source_type": [], "source_id": "x"}, "source_type"),
        ({"source_type": "session"}, "source_id"),
        ({"source_type": "session", "source_id": 7}, "source_id"),
        ({"source_type": "session", "source_id": "a\0b"}, "source_id"),
        ({"source_id": "x"}, "source_type"),
        ({"session_id": {}}, "session_id"),
        ({"session_id": "x", "service_id": "y"}, "service_id"),
        ({"session_id": "x", "name": 1}, "name"),
        ({"session_id": "x", "name": "n" * 201}, "name"),
        ({"session_id": "x", "hot": "yes"}, "hot"),
        ({"session_id": "x", "hot": 1}, "hot"),
        ({"session_id": "x", "ephemeral": []}, "ephemeral"),
        ({"session_id": "x", "ttl": -1}, "ttl"),
        ({"session_id": "x", "ttl": 10**30}, "ttl"),
        ({"session_id": "x", "ttl": True}, "ttl"),
    ],
)
async def test_a_bad_field_is_named(api: Any, body: Any, field: str) -> None:
    answer = await call(api, api.key(tier=8), "POST", "/snapshots", body)
    assert told(answer) == (400, "invalid_request")
    assert answer.json()["field"] == field


async def test_a_bad_filter_is_named(api: Any) -> None:
    answer = await call(api, api.key(), "GET", "/snapshots?source_type=disk")
    assert answer.json()["field"] == "source_type"


async def test_another_tenants_snapshot_and_an_unknown_one_are_told_alike(api: Any) -> None:
    owner, other = api.key(tier=8), api.key(tier=8)
    snapshot_id = (await taken(api, owner, await session(api, owner)))["id"]
    mine = await session(api, other)
    calls: tuple[tuple[str, Callable[[str], str], Callable[[str], Any]], ...] = (
        ("GET", "/snapshots/{}".format, lambda _one: None),
        ("DELETE", "/snapshots/{}".format, lambda _one: None),
        ("POST", "/snapshots/{}/lock".format, lambda _one: {}),
        ("POST", "/snapshots/{}/unlock".format, lambda _one: {}),
        ("POST", "/snapshots/{}/restore".format, lambda _one: {}),
        ("POST", "/snapshots/{}/clone".format, lambda _one: {}),
        ("POST", lambda _one: f"/sessions/{mine}/restore", lambda one: {"snapshot_id": one}),
    )
    for method, path, body in calls:
        seen = []
        for one in (snapshot_id, UNKNOWN):
            answer = await call(api, other, method, path(one), body(one))
            assert told(answer) == (404, "not_found"), path(one)
            seen.append(answer.json()["message"].replace(one, "ID"))
        assert seen[0] == seen[1]
    assert (await call(api, other, "GET", "/snapshots")).json()["count"] == 0
    assert (await call(api, owner, "GET", f"/snapshots/{snapshot_id}")).status_code == 200


async def test_another_tenants_source_and_an_unknown_one_are_told_alike(api: Any) -> None:
    owner, other = api.key(tier=8), api.key(tier=8)
    session_id = await session(api, owner)
    snapshot_id = (await taken(api, owner, session_id))["id"]
    for one in (session_id, "unsb-session-0123456789abcdef"):
        taking = await call(api, other, "POST", "/snapshots", {"session_id": one})
        below = await call(api, other, "POST", f"/sessions/{one}/snapshot")
        body = {"snapshot_id": snapshot_id}
        restoring = await call(api, other, "POST", f"/sessions/{one}/restore", body)
        assert {told(each) for each in (taking, below, restoring)} == {(404, "not_found")}
    unknown = await call(api, owner, "POST", "/services/nobody/snapshot")
    assert told(unknown) == (404, "not_found")
    unknown = await call(api, owner, "POST", "/services/nobody/restore", body)
    assert told(unknown) == (404, "not_found")


async def test_what_does_not_run_cannot_be_packed(api: Any) -> None:
    pair = api.key(tier=16)
    session_id, service_id = await session(api, pair), await service(api, pair, "shop")
    snapshot_id = (await taken(api, pair, session_id))["id"]
    await call(api, pair, "POST", f"/sessions/{session_id}/freeze")
    await call(api, pair, "POST", f"/services/{service_id}/freeze")
    for path, error in (
        (f"/sessions/{session_id}/snapshot", "session_frozen"),
        (f"/services/{service_id}/snapshot", "service_frozen"),
        (f"/snapshots/{snapshot_id}/restore", "session_frozen"),
    ):
        assert told(await call(api, pair, "POST", path, {})) == (409, error)
    await call(api, pair, "DELETE", f"/sessions/{session_id}")
    for path in (f"/sessions/{session_id}/snapshot", f"/snapshots/{snapshot_id}/restore"):
        assert told(await call(api, pair, "POST", path, {})) == (410, "session_terminated")
    assert (await call(api, pair, "GET", "/snapshots")).json()["count"] == 1


async def test_a_lock_refuses_deletion(api: Any) -> None:
    pair = api.key(tier=8)
    snapshot_id = (await taken(api, pair, await session(api, pair)))["id"]
    path = f"/snapshots/{snapshot_id}"
    assert (await call(api, pair, "POST", f"{path}/lock", {})).json()["locked"] is True
    refused = await call(api, pair, "DELETE", path)
    assert told(refused) == (409, "locked")
    assert (await call(api, pair, "POST", f"{path}/unlock")).json()["locked"] is False
    deleted = (await call(api, pair, "DELETE", path)).json()
    assert (deleted["snapshot_id"], deleted["status"]) == (snapshot_id, "deleted")
    assert not list((api.data_dir / "snapshots").iterdir())
    for method, where in (("GET", path), ("DELETE", path), ("POST", f"{path}/restore")):
        assert told(await call(api, pair, method, where)) == (404, "not_found")


async def test_restore_gives_back_what_was_there(api: Any) -> None:
    pair = api.key(tier=8)
    session_id = await session(api, pair)
    snapshot_id = (await taken(api, pair, session_id))["id"]
    await run(api, pair, session_id, "x = 1")
    restored = (await call(api, pair, "POST", f"/snapshots/{snapshot_id}/restore", {})).json()
    assert (restored["id"], restored["session_id"]) == (session_id, session_id)
    assert (restored["snapshot_id"], restored["type"], restored["status"]) == (
        snapshot_id,
        "session",
        "restored",
    )
    assert await run(api, pair, session_id, "print(x)") == "42\n"
    await run(api, pair, session_id, "x = 2")
    path, body = f"/sessions/{session_id}/restore", {"snapshot_id": snapshot_id}
    again = (await call(api, pair, "POST", path, body)).json()
    assert (again["session_id"], again["status"]) == (session_id, "running")
    assert await run(api, pair, session_id, "print(x)") == "42\n"


@pytest.mark.parametrize("value", [None, 7, "", "a\0b", [], "n" * 201])
async def test_restore_needs_the_id_of_a_snapshot(api: Any, value: Any) -> None:
    pair = api.key(tier=8)
    session_id = await session(api, pair)
    answer = await call(
        api, pair, "POST", f"/sessions/{session_id}/restore", {"snapshot_id": value}
    )
    assert (answer.status_code, answer.json().get("field")) == (400, "snapshot_id")


async def running(api: Any, pair: Pair, service_id: str) -> Any:
    """The service, once it runs: its program is heard of by a thread."""
    for _ in range(1000):
        row = api.app.state.api.services.find(pair[0], service_id)
        if row["state"] == "running":
            return row
        await asyncio.sleep(0.01)
    raise AssertionError(row["state"])


async def test_a_restored_service_runs_its_bootstrap_again(api: Any) -> None:
    pair = api.key(tier=8)
    service_id = await service(api, pair, "shop", bootstrap_content="echo up")
    assert (await running(api, pair, service_id))["deployment"] == 1
    snapshot_id = (await call(api, pair, "POST", f"/services/{service_id}/snapshot")).json()["id"]
    path, body = f"/services/{service_id}/restore", {"snapshot_id": snapshot_id}
    restored = (await call(api, pair, "POST", path, body)).json()
    assert (restored["service_id"], restored["type"]) == (service_id, "service")
    assert (await running(api, pair, service_id))["deployment"] == 2
    again = (await call(api, pair, "POST", f"/snapshots/{snapshot_id}/restore")).json()
    assert (again["service_id"], again["status"]) == (service_id, "restored")
    assert (await running(api, pair, service_id))["deployment"] == 3


async def test_a_service_without_a_bootstrap_is_restored_as_it_is(api: Any) -> None:
    pair = api.key(tier=8)
    service_id = await service(api, pair, "plain")
    snapshot_id = (await call(api, pair, "POST", f"/services/{service_id}/snapshot")).json()["id"]
    restored = await call(api, pair, "POST", f"/snapshots/{snapshot_id}/restore")
    assert (restored.status_code, restored.json()["state"]) == (200, "running")
    assert (await running(api, pair, service_id))["deployment"] == 1


async def test_a_clone_is_of_its_own(api: Any) -> None:
    pair = api.key(tier=16)
    session_id = await session(api, pair)
    snapshot_id = (await taken(api, pair, session_id))["id"]
    clone = (await call(api, pair, "POST", f"/snapshots/{snapshot_id}/clone", {})).json()
    assert clone["session_id"] != session_id
    assert (clone["status"], clone["shell"], clone["level"]) == ("running", "python3", "files+vars")
    await run(api, pair, clone["session_id"], "x = 7")
    assert await run(api, pair, session_id, "print(x)") == "42\n"
    await call(api, pair, "DELETE", f"/sessions/{session_id}")
    assert await run(api, pair, clone["session_id"], "print(x)") == "7\n"
    body = {
        "type": "service",
        "name": "made-of-it",
        "ports": "8000,9000",
        "network_mode": "zerotrust",
    }
    made = (await call(api, pair, "POST", f"/snapshots/{snapshot_id}/clone", body)).json()
    assert (made["type"], made["name"], made["ports"]) == ("service", "made-of-it", [8000, 9000])
    assert made["service_id"].startswith("unsb-service-")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"type": "disk"}, "type"),
        ({"type": 3}, "type"),
        ({"type": "service"}, "name"),
        ({"type": "service", "name": "No Such Label"}, "name"),
        ({"type": "service", "name": "good", "ports": ["x"]}, "ports"),
        ({"shell": "no-such-shell"}, "shell"),
        ({"vcpu": 99}, "vcpu"),
        ({"network_mode": "open"}, "network_mode"),
        ({"ttl": -1}, "ttl"),
    ],
)
async def test_a_bad_field_of_a_clone_is_named(api: Any, body: Any, field: str) -> None:
    pair = api.key(tier=8)
    snapshot_id = (await taken(api, pair, await session(api, pair)))["id"]
    answer = await call(api, pair, "POST", f"/snapshots/{snapshot_id}/clone", body)
    assert (answer.status_code, answer.json().get("field")) == (400, field)


async def test_a_clone_needs_a_slot_and_a_free_name(api: Any) -> None:
    pair = api.key(tier=8)  # two slots
    await service(api, pair, "taken")
    session_id = await session(api, pair)
    snapshot_id = (await taken(api, pair, session_id))["id"]
    path = f"/snapshots/{snapshot_id}/clone"
    assert told(await call(api, pair, "POST", path, {})) == (429, "concurrency_limit_reached")
    await call(api, pair, "DELETE", f"/sessions/{session_id}")
    taken_name = {"type": "service", "name": "taken"}
    assert told(await call(api, pair, "POST", path, taken_name)) == (409, "name_taken")
    assert (await call(api, pair, "POST", path, {})).status_code == 200


async def test_the_same_idempotency_key_gives_the_same_snapshot_and_clone(api: Any) -> None:
    pair = api.key(tier=16)
    body = {"session_id": await session(api, pair)}
    first = (await call(api, pair, "POST", "/snapshots", body, once="k")).json()
    again = (await call(api, pair, "POST", "/snapshots", body, once="k")).json()
    assert first == again
    other = await call(api, pair, "POST", "/snapshots", {**body, "name": "other"}, once="k")
    assert told(other) == (409, "idempotency_key_reused")
    path = f"/snapshots/{first['id']}/clone"
    clones = [await call(api, pair, "POST", path, {}, once="c") for _ in range(2)]
    assert len({clone.json()["session_id"] for clone in clones}) == 1


async def test_what_the_sandbox_refuses_leaves_nothing(api: Any, backend: MovingBackend) -> None:
    pair = api.key(tier=8)
    session_id = await session(api, pair)
    snapshot_id = (await taken(api, pair, session_id))["id"]
    backend.failure = SandboxLimit("it is too large")
    body = {"session_id": session_id}
    assert told(await call(api, pair, "POST", "/snapshots", body, once="k")) == (
        400,
        "sandbox_limit",
    )
    path = f"/snapshots/{snapshot_id}"
    assert told(await call(api, pair, "POST", f"{path}/restore")) == (400, "sandbox_limit")
    assert told(await call(api, pair, "POST", f"{path}/clone")) == (400, "sandbox_limit")
    backend.failure = None
    assert (await call(api, pair, "GET", "/snapshots")).json()["count"] == 1
    assert (await call(api, pair, "GET", "/sessions")).json()["count"] == 1
    assert (await call(api, pair, "POST", "/snapshots", body, once="k")).status_code == 200


async def test_a_sandbox_that_dies_while_it_is_packed_ends_its_session(
    api: Any, backend: MovingBackend
) -> None:
    pair = api.key(tier=8)
    session_id = await session(api, pair)
    backend.failure = SandboxGone(session_id, "it died")
    answer = await call(api, pair, "POST", f"/sessions/{session_id}/snapshot")
    assert told(answer) == (410, "session_terminated")
    ended = (await call(api, pair, "GET", f"/sessions/{session_id}")).json()
    assert (ended["status"], ended["reason"]) == ("terminated", "sandbox_died")
    assert not api.backend._sandboxes.get(Handle(session_id).sandbox_id)
