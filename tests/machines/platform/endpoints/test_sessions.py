"""`/sessions` over HTTP: every endpoint's success, wrong fields, tenants, ids, states, limits."""

from __future__ import annotations

import asyncio
import base64
import threading
from typing import Any

import jsonschema_rs
import pytest

from machines.platform.replies import iso
from machines.platform.sandbox import fake
from machines.platform.sandbox.backend import Handle
from machines.platform.toolbox import ToolboxUnavailable
from machines.platform.transfers import INPUT_DIRECTORY

Pair = tuple[str, str]
CHANGES = ("freeze", "unfreeze", "boost", "unboost", "lock", "unlock", "extend")
UNKNOWN = "unsb-session-0123456789abcdef"


REAL_TOO = pytest.mark.parametrize("backend", ["fake", "bubblewrap"], indirect=True)


async def call(api: Any, pair: Pair, method: str, path: str, body: Any = None) -> Any:
    """A call whose answer is one that the endpoint describes."""
    api.now_ms += 9_000  # stay within the rate of a small key
    answer = await api.call(pair, method, path, body)
    described = {
        (each_method, each.path.rpartition("/")[2] if "{" in each.path else each.path): each
        for each in api.app.state.api.endpoints()
        if each.path.startswith("/sessions")
        for each_method, _ in each.routes
    }
    last = path.partition("?")[0].rpartition("/")[2]
    last = {"shell": "execute", "sessions": "/sessions"}.get(last, last)
    endpoint = described[method, last if (method, last) in described else "{session_id}"]
    assert answer.status_code in endpoint.statuses, (path, answer.text)
    if answer.status_code == 200:
        jsonschema_rs.validate(endpoint.answers[200], answer.json())
    return answer


async def make(api: Any, pair: Pair, body: Any = None, query: str = "") -> Any:
    answer = await call(api, pair, "POST", f"/sessions{query}", body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def change(api: Any, pair: Pair, name: str, verb: str, body: Any = None) -> Any:
    return await call(api, pair, "POST", f"/sessions/{name}/{verb}", body)


async def run(api: Any, pair: Pair, name: str, command: str) -> Any:
    return await change(api, pair, name, "execute", {"command": command})


def told(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]


async def test_what_a_session_is_made_of(api: Any) -> None:
    pair = api.key(tier=8)
    made = await make(
        api, pair, {"shell": "bash", "language": "bash", "vcpu": 2, "ttl": 0, "tmux": True}
    )
    session_id = made["session_id"]
    assert (made["id"], made["status"], made["state"]) == (session_id, "running", "running")
    assert made["container_name"] == session_id.replace("unsb-session-", "unsb-vm-")
    assert (made["vcpu"], made["memory_mb"], made["boosted"]) == (2, 4096, False)
    assert (made["multiplexer"], made["locked"], made["audit"]) == ("tmux", False, False)
    assert made["websocket_url"] == f"ws://platform/sessions/{session_id}/shell"
    assert made["domain"] == "platform"
    spec = api.backend._sandboxes[session_id].spec
    assert (spec.vcpus, spec.memory_bytes) == (2, 4096 * 1024 * 1024)


async def test_a_session_with_a_toolbox_keeps_it_frozen_and_cloned(api: Any) -> None:
    pair = api.key(tier=16)
    plain = await make(api, pair)
    made = await make(api, pair, {"toolbox": True})
    assert (plain["toolbox"], made["toolbox"]) == (False, True)
    path = f"/sessions/{made['id']}"
    for verb in ("freeze", "unfreeze"):
        assert (await change(api, pair, made["id"], verb)).json()["toolbox"] is True
    assert (await call(api, pair, "GET", path)).json()["toolbox"] is True
    api.now_ms += 9_000
    taken = (await api.call(pair, "POST", f"{path}/snapshot", {})).json()["id"]
    api.now_ms += 9_000
    clone = (await api.call(pair, "POST", f"/snapshots/{taken}/clone", {})).json()
    specs = {name: box.spec.toolbox for name, box in api.backend._sandboxes.items()}
    assert specs == {plain["id"]: False, made["id"]: True, clone["session_id"]: True}


async def test_what_cannot_be_shown_is_refused_and_leaves_nothing(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> None:
        raise ToolboxUnavailable("no Python", "install one")

    monkeypatch.setattr(fake, "load_toolbox", none)
    pair = api.key(tier=8)
    answer = await call(api, pair, "POST", "/sessions", {"toolbox": True})
    assert told(answer) == (503, "toolbox_unavailable")
    assert (await call(api, pair, "GET", "/sessions")).json()["count"] == 0


async def test_input_files_are_there_before_the_first_command(api: Any) -> None:
    content = base64.b64encode(b"\x00\xff").decode()
    files = [{"filename": "a", "content": content}, {"filename": "b", "content_base64": content}]
    made = await make(api, api.key(tier=8), {"input_files": files})
    kept = api.backend._sandboxes[made["id"]].files
    assert {kept[f"{INPUT_DIRECTORY}/{name}"] for name in "ab"} == {b"\x00\xff"}


@pytest.mark.parametrize("backend", ["bubblewrap"], indirect=True)
async def test_a_program_sees_its_files_and_its_boost(api: Any) -> None:
    pair = api.key(tier=16)
    content = base64.b64encode(b"from outside").decode()
    made = await make(api, pair, {"input_files": [{"filename": "a b", "content": content}]})
    for directory in (INPUT_DIRECTORY, "/tmp", "/root/input"):  # noqa: S108 - inside
        ran = await run(api, pair, made["id"], f"cat '{directory}/a b'")
        assert (ran.json()["stdout"], ran.json()["exit_code"]) == ("from outside", 0)
    for verb, vcpu in (("boost", 2), ("unboost", 1)):
        answer = await change(api, pair, made["id"], verb)
        assert (answer.json()["vcpu"], answer.json()["memory_mb"]) == (vcpu, 2048 * vcpu)
        assert (await run(api, pair, made["id"], "echo on")).json()["stdout"] == "on\n"


@REAL_TOO
async def test_a_session_begins_with_the_files_and_variables_of_its_image(api: Any) -> None:
    pair, stranger = api.key(tier=16), api.key(tier=16)
    source = (await make(api, pair, {"shell": "python3"}))["id"]
    await run(api, pair, source, "x = 42")
    image = {"source_type": "session", "source_id": source}
    image_id = (await api.call(pair, "POST", "/images", image)).json()["image_id"]
    made = await make(api, pair, {"shell": "python3", "image": image_id})
    assert made["image"] == image_id
    assert (await run(api, pair, made["id"], "print(x)")).json()["stdout"] == "42\n"
    for key, wanted in ((stranger, image_id), (pair, "unsb-image-0123-4567-89ab-cdef")):
        refused = await call(api, key, "POST", "/sessions", {"image": wanted})
        assert told(refused) == (404, "not_found")
    listed = (await call(api, stranger, "GET", "/sessions")).json()
    assert listed == {"sessions": [], "count": 0}


async def test_a_repeated_create_outlives_its_image(api: Any) -> None:
    pair = api.key(tier=16)
    source = (await make(api, pair))["id"]
    image = {"source_type": "session", "source_id": source}
    image_id = (await api.call(pair, "POST", "/images", image)).json()["image_id"]
    body = {"image": image_id}
    first = await api.call(pair, "POST", "/sessions", body, once="k")
    await api.call(pair, "DELETE", f"/images/{image_id}")
    again = await api.call(pair, "POST", "/sessions", body, once="k")
    assert again.json() == first.json()


async def test_a_semitrusted_session_has_its_network(api: Any) -> None:
    made = await make(api, api.key(tier=8), {"network_mode": "semitrusted"})
    assert made["network_mode"] == "semitrusted"
    assert api.backend._sandboxes[made["id"]].spec.network == "semitrusted"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shell", "no-such-shell"),
        ("shell", "nul\0"),
        ("language", 5),
        ("network_mode", "open"),
        ("ttl", 86_401),
        ("vcpu", 9),
        ("multiplexer", "byobu"),
        ("tmux", 1.5),
        ("input_files", [{"filename": "../x", "content": ""}]),
        ("image", "x" * 101),
    ],
)
async def test_a_bad_field_is_named_and_nothing_is_made(api: Any, field: str, value: Any) -> None:
    pair = api.key(tier=8)
    answer = await call(api, pair, "POST", "/sessions", {field: value})
    assert (answer.status_code, answer.json()["field"]) == (400, field)
    assert (await call(api, pair, "GET", "/sessions")).json()["count"] == 0


@pytest.mark.parametrize("verb", [*CHANGES, "execute", "shell"])
async def test_another_tenants_id_and_an_unknown_one_are_told_alike(api: Any, verb: str) -> None:
    owner, stranger = api.key(tier=8), api.key(tier=8)
    session_id = (await make(api, owner))["id"]
    body = {"command": "echo"}
    theirs = await change(api, stranger, session_id, verb, body)
    nobodys = await change(api, stranger, UNKNOWN, verb, body)
    assert told(theirs) == told(nobodys) == (404, "not_found")
    assert theirs.text.replace(session_id, UNKNOWN) == nobodys.text
    container = session_id.replace("unsb-session-", "unsb-vm-")
    assert told(await change(api, stranger, container, verb, body)) == (404, "not_found")
    shown = (await call(api, owner, "GET", f"/sessions/{session_id}")).json()
    assert (shown["status"], shown["locked"], shown["vcpu"]) == ("running", False, 1)


async def test_showing_and_deleting_know_no_other_tenant(api: Any) -> None:
    owner, stranger = api.key(tier=8), api.key(tier=8)
    session_id = (await make(api, owner))["id"]
    for method in ("GET", "DELETE"):
        for name in (session_id, UNKNOWN):
            answer = await call(api, stranger, method, f"/sessions/{name}")
            assert told(answer) == (404, "not_found")
    assert (await call(api, stranger, "GET", "/sessions")).json() == {"sessions": [], "count": 0}
    assert (await call(api, owner, "GET", "/sessions")).json()["count"] == 1


async def test_a_session_is_known_by_its_containers_name(api: Any) -> None:
    pair = api.key(tier=8)
    made = await make(api, pair)
    name = made["container_name"]
    assert (await call(api, pair, "GET", f"/sessions/{name}")).json()["id"] == made["id"]
    ran = await run(api, pair, name, "echo hi")
    assert (ran.json()["stdout"], ran.json()["session_id"]) == ("hi\n", made["id"])
    for verb in CHANGES:
        answer = await change(api, pair, name, verb)
        assert (answer.status_code, answer.json()["id"]) == (200, made["id"])
    ended = await call(api, pair, "DELETE", f"/sessions/{name}")
    assert (ended.json()["id"], ended.json()["status"]) == (made["id"], "terminated")


async def test_a_list_by_status(api: Any) -> None:
    pair = api.key(tier=32)
    active, frozen, locked, ended = [(await make(api, pair))["id"] for _ in range(4)]
    await change(api, pair, frozen, "freeze")
    await change(api, pair, locked, "lock")
    await call(api, pair, "DELETE", f"/sessions/{ended}")
    for query, expected in (
        ("", {active, frozen, locked}),
        ("?status=active", {active, locked}),
        ("?status=frozen", {frozen}),
        ("?status=locked", {locked}),
    ):
        listed = (await call(api, pair, "GET", f"/sessions{query}")).json()
        assert {each["id"] for each in listed["sessions"]} == expected
        assert listed["count"] == len(expected)
    wrong = await call(api, pair, "GET", "/sessions?status=ended")
    assert (wrong.status_code, wrong.json()["field"]) == (400, "status")


@REAL_TOO
async def test_variables_last_through_a_freeze(api: Any) -> None:
    pair = api.key(tier=8)
    session_id = (await make(api, pair, {"shell": "python3"}))["id"]
    await run(api, pair, session_id, "x = 42")
    frozen = await change(api, pair, session_id, "freeze")
    assert (frozen.json()["status"], frozen.json()["session_id"]) == ("frozen", session_id)
    for verb in ("execute", "shell"):
        refused = await change(api, pair, session_id, verb, {"command": "print(x)"})
        assert told(refused) == (409, "session_frozen")
        assert f"POST /sessions/{session_id}/unfreeze" in refused.json()["message"]
    thawed = (await change(api, pair, session_id, "unfreeze")).json()
    assert thawed["status"] == "running"
    assert thawed["unfreeze_time_ms"] >= 0
    assert (await run(api, pair, session_id, "print(x)")).json()["stdout"] == "42\n"


@REAL_TOO
async def test_freezing_and_unfreezing_twice_is_no_error(api: Any) -> None:
    pair = api.key(tier=8)
    session_id = (await make(api, pair))["id"]
    for verb, status in (("freeze", "frozen"), ("unfreeze", "running")):
        for _ in range(2):
            answer = await change(api, pair, session_id, verb, {})
            assert (answer.status_code, answer.json()["status"]) == (200, status)


async def test_a_frozen_session_holds_no_slot_and_needs_one_to_thaw(api: Any) -> None:
    pair = api.key(tier=1)
    session_id = (await make(api, pair))["id"]
    assert told(await call(api, pair, "POST", "/sessions")) == (429, "concurrency_limit_reached")
    await change(api, pair, session_id, "freeze")
    other = (await make(api, pair))["id"]
    refused = await change(api, pair, session_id, "unfreeze")
    assert told(refused) == (429, "concurrency_limit_reached")
    assert (await call(api, pair, "GET", f"/sessions/{session_id}")).json()["status"] == "frozen"
    await call(api, pair, "DELETE", f"/sessions/{other}")
    assert (await change(api, pair, session_id, "unfreeze")).json()["status"] == "running"


async def test_what_has_ended_cannot_be_changed(api: Any) -> None:
    pair = api.key(tier=8)
    session_id = (await make(api, pair))["id"]
    await call(api, pair, "DELETE", f"/sessions/{session_id}")
    for verb in CHANGES:
        expected = (400, "session_not_running") if verb == "freeze" else (410, "session_terminated")
        assert told(await change(api, pair, session_id, verb)) == expected
    shown = (await call(api, pair, "GET", f"/sessions/{session_id}")).json()
    assert (shown["status"], shown["reason"], shown["remaining_ttl"]) == (
        "terminated",
        "deleted",
        0,
    )


async def test_a_session_that_executes_cannot_be_frozen(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = api.key(tier=8)
    session_id = (await make(api, pair))["id"]
    began, go = threading.Event(), threading.Event()
    cell = api.backend.cell

    def slow(*arguments: Any, **options: Any) -> Any:
        began.set()
        assert go.wait(10)
        return cell(*arguments, **options)

    monkeypatch.setattr(api.backend, "cell", slow)
    running = asyncio.create_task(run(api, pair, session_id, "echo done"))
    assert await asyncio.to_thread(began.wait, 10)
    assert told(await change(api, pair, session_id, "freeze")) == (409, "session_busy")
    go.set()
    assert (await running).json()["stdout"] == "done\n"
    assert (await change(api, pair, session_id, "freeze")).status_code == 200


async def test_boosting_takes_slots_and_unboosting_gives_them_back(api: Any) -> None:
    pair = api.key(tier=16)  # four slots
    session_id = (await make(api, pair))["id"]
    boosted = (await change(api, pair, session_id, "boost", {})).json()
    assert (boosted["vcpu"], boosted["base_vcpu"], boosted["boosted"]) == (2, 1, True)
    assert boosted["memory_mb"] == 4096
    boosted = (await change(api, pair, session_id, "boost", {"vcpu": 4})).json()
    assert boosted["vcpu"] == 4
    assert told(await call(api, pair, "POST", "/sessions")) == (429, "concurrency_limit_reached")
    refused = await change(api, pair, session_id, "boost", {"vcpu": 5})
    assert told(refused) == (429, "concurrency_limit_reached")
    fewer = (await change(api, pair, session_id, "boost", {"vcpu": 3})).json()
    assert fewer["vcpu"] == 3
    base = (await change(api, pair, session_id, "unboost")).json()
    assert (base["vcpu"], base["boosted"], base["memory_mb"]) == (1, False, 2048)
    assert api.backend._sandboxes[session_id].spec.vcpus == 1
    for _ in range(3):
        await make(api, pair)


async def test_a_boost_stays_within_its_bounds(api: Any) -> None:
    pair = api.key(tier=32)
    session_id = (await make(api, pair, {"vcpu": 3}))["id"]
    for value in (0, 2, 9, "2", 1.5, True, None):
        answer = await change(api, pair, session_id, "boost", {"vcpu": value})
        if value is None:
            assert answer.json()["vcpu"] == 3  # the default is never fewer than it was made with
        else:
            assert (answer.status_code, answer.json()["field"]) == (400, "vcpu")


@pytest.mark.parametrize("verb", ["boost", "unboost"])
async def test_a_frozen_session_is_not_resized(api: Any, verb: str) -> None:
    pair = api.key(tier=8)
    session_id = (await make(api, pair))["id"]
    await change(api, pair, session_id, "freeze")
    assert told(await change(api, pair, session_id, verb)) == (409, "session_frozen")


async def test_a_locked_session_is_not_deleted(api: Any) -> None:
    pair = api.key(tier=8)
    session_id = (await make(api, pair))["id"]
    assert (await change(api, pair, session_id, "lock", {})).json()["locked"] is True
    refused = await call(api, pair, "DELETE", f"/sessions/{session_id}")
    assert told(refused) == (409, "locked")
    assert (await run(api, pair, session_id, "echo on")).json()["stdout"] == "on\n"
    assert (await change(api, pair, session_id, "unlock", {})).json()["locked"] is False
    ended = await call(api, pair, "DELETE", f"/sessions/{session_id}")
    assert ended.json()["status"] == "terminated"


async def test_a_lock_holds_up_no_time_limit(api: Any) -> None:
    pair = api.key(tier=8)
    session_id = (await make(api, pair, {"ttl": 60}))["id"]
    await change(api, pair, session_id, "lock")
    api.now_ms += 60_000
    shown = (await call(api, pair, "GET", f"/sessions/{session_id}")).json()
    assert (shown["status"], shown["reason"]) == ("terminated", "expired")
    assert (await call(api, pair, "DELETE", f"/sessions/{session_id}")).status_code == 200


async def test_an_extension_adds_up_to_a_day_and_is_activity(api: Any) -> None:
    pair = api.key(tier=8)
    made = await make(api, pair, {"ttl": 600})
    made_ms = api.now_ms
    api.now_ms += 500_000
    longer = (await change(api, pair, made["id"], "extend", {"ttl": 200})).json()
    assert longer["expires_at"] == iso(made_ms + 800_000)
    assert longer["remaining_ttl"] == (made_ms + 800_000 - api.now_ms) // 1000
    day = (await change(api, pair, made["id"], "extend", {"ttl": 86_400})).json()
    assert day["expires_at"] == iso(api.now_ms + 86_400_000)
    assert day["remaining_ttl"] == 900  # idle comes first
    api.now_ms += 800_000
    more = (await change(api, pair, made["id"], "extend")).json()
    assert more["expires_at"] == iso(api.now_ms + 86_400_000)
    assert more["remaining_ttl"] == 900
    for value in (0, -5, 86_401, "600", 1.5):
        answer = await change(api, pair, made["id"], "extend", {"ttl": value})
        assert (answer.status_code, answer.json()["field"]) == (400, "ttl")


async def test_a_recording_is_asked_for_when_it_is_made(api: Any) -> None:
    pair = api.key(tier=8)
    made = await make(api, pair, query="?audit=1")
    assert made["audit"] is True
    ended = await call(api, pair, "DELETE", f"/sessions/{made['id']}?audit=1")
    assert ended.json()["artifacts"] == [
        {
            "type": "base64",
            "filename": f"{made['id']}.log",
            "data": "",
            "content_base64": "",
            "truncated": False,
        }
    ]
    other = await make(api, pair)
    ended = await call(api, pair, "DELETE", f"/sessions/{other['id']}?audit=1")
    assert ended.json()["artifacts"] == []
    for method, path in (("POST", "/sessions?audit=x"), ("DELETE", f"/sessions/{UNKNOWN}?audit=x")):
        answer = await call(api, pair, method, path)
        assert (answer.status_code, answer.json()["field"]) == (400, "audit")


async def test_a_command_has_its_own_bounds(api: Any) -> None:
    pair = api.key(tier=8)
    session_id = (await make(api, pair))["id"]
    for field, body in (
        ("command", {}),
        ("command", {"command": 5}),
        ("timeout", {"command": "echo", "timeout": 0}),
    ):
        answer = await change(api, pair, session_id, "execute", body)
        assert (answer.status_code, answer.json()["field"]) == (400, field)


async def test_a_sandbox_that_died_is_found_by_what_needs_it(api: Any) -> None:
    pair = api.key(tier=32)
    for verb in ("freeze", "boost", "unboost"):
        session_id = (await make(api, pair))["id"]
        api.backend.destroy(Handle(session_id))
        assert told(await change(api, pair, session_id, verb)) == (410, "session_terminated")
        shown = (await call(api, pair, "GET", f"/sessions/{session_id}")).json()
        assert (shown["status"], shown["reason"]) == ("terminated", "sandbox_died")
    session_id = (await make(api, pair))["id"]
    await change(api, pair, session_id, "freeze")
    api.backend.destroy(Handle(session_id))
    assert told(await change(api, pair, session_id, "unfreeze")) == (410, "session_terminated")
    assert (await call(api, pair, "GET", "/sessions")).json()["count"] == 0
