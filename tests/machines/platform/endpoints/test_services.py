"""`/services` over HTTP: every endpoint's success, wrong fields, tenants, ids, states, limits."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import jsonschema_rs
import pytest

from machines.platform.sandbox.backend import Handle

Pair = tuple[str, str]
UNKNOWN = "unsb-service-0123456789abcdef"
# Every endpoint of one service, with a body that would do.
OF_ONE: tuple[tuple[str, str, Any], ...] = (
    ("GET", "", None),
    ("PATCH", "", {"vcpu": 1}),
    ("POST", "/resize", {"vcpu": 1}),
    ("POST", "/freeze", None),
    ("POST", "/unfreeze", {}),
    ("POST", "/wake", None),
    ("POST", "/lock", None),
    ("POST", "/unlock", None),
    ("POST", "/redeploy", {"bootstrap": "echo again"}),
    ("POST", "/execute", {"command": "echo hi"}),
    ("GET", "/logs", None),
    ("GET", "/logs?all=true", None),
    ("PUT", "/domains", {"add": ["a.example.com"]}),
    ("DELETE", "", None),
)


async def call(api: Any, pair: Pair, method: str, path: str, body: Any = None) -> Any:
    """A call whose answer is one that the endpoint describes."""
    api.now_ms += 9_000  # stay within the rate of a small key
    answer = await api.call(pair, method, path, body)
    last = "/" + path.partition("?")[0].rpartition("/")[2]
    described = {
        (each_method, each_path): each
        for each in api.app.state.api.endpoints()
        for each_method, each_path in each.routes
    }
    endpoint = (
        described.get((method, path.partition("?")[0]))
        or described.get((method, "/services/{service_id}" + last))
        or described[method, "/services/{service_id}"]
    )
    assert answer.status_code in endpoint.statuses, (path, answer.text)
    if answer.is_success:
        jsonschema_rs.validate(endpoint.answers[answer.status_code], answer.json())
    return answer


async def made(api: Any, pair: Pair, name: str = "web", **body: Any) -> str:
    answer = await call(api, pair, "POST", "/services", {"name": name} | body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def until(api: Any, pair: Pair, service_id: str, state: str) -> None:
    """Wait for a state that the platform reaches by itself."""
    services = api.app.state.api.services
    async with asyncio.timeout(10):
        while services.find(pair[0], service_id)["state"] != state:  # noqa: ASYNC110 - threads
            await asyncio.sleep(0.01)


async def test_every_endpoint_of_one_service_works_by_id_and_by_name(api: Any) -> None:
    pair = api.key(tier=16)
    for number, (method, path, body) in enumerate(OF_ONE):
        for by_name in (False, True):
            name = f"web-{number}-{by_name}".lower()
            service_id = await made(api, pair, name)
            answer = await call(
                api, pair, method, f"/services/{name if by_name else service_id}{path}", body
            )
            assert answer.status_code == (202 if path == "/execute" else 200), answer.text
            await call(api, pair, "DELETE", f"/services/{service_id}")


async def test_another_tenants_service_is_one_that_does_not_exist(api: Any) -> None:
    owner, stranger = api.key(), api.key()
    service_id = await made(api, owner)
    for method, path, body in OF_ONE:
        theirs = await call(api, stranger, method, f"/services/{service_id}{path}", body)
        nobodys = await call(api, stranger, method, f"/services/{UNKNOWN}{path}", body)
        named = await call(api, stranger, method, f"/services/web{path}", body)
        assert (theirs.status_code, nobodys.status_code, named.status_code) == (404, 404, 404)
        assert theirs.text.replace(service_id, UNKNOWN) == nobodys.text
    shown = (await call(api, owner, "GET", f"/services/{service_id}")).json()
    assert (shown["state"], shown["locked"], shown["custom_domains"]) == ("running", False, [])
    assert (await call(api, stranger, "GET", "/services")).json() == {"services": [], "count": 0}


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "", {"name": "a b"}, "name"),
        ("POST", "", {"name": "b", "golden_image": "golden-alpine-3.21"}, "golden_image"),
        ("PATCH", "/web", {"vcpu": 9}, "vcpu"),
        ("PATCH", "/web", {"name": 1}, "name"),
        ("POST", "/web/resize", {}, "vcpu"),
        ("POST", "/web/redeploy", {"bootstrap": 1}, "bootstrap"),
        ("POST", "/web/execute", {"command": ""}, "command"),
        ("POST", "/web/execute", {"command": "ls", "timeout": 0}, "timeout"),
        ("GET", "/web/logs?lines=x", None, "lines"),
        ("GET", "/web/logs?lines=0", None, "lines"),
        ("GET", "/web/logs?lines=10001", None, "lines"),
        ("GET", "/web/logs?lines=\u0663", None, "lines"),
        ("GET", "/web/logs?all=maybe", None, "all"),
        ("PUT", "/web/domains", {"add": ["x"]}, "add"),
    ],
)
async def test_a_wrong_field_is_named(
    api: Any, method: str, path: str, body: Any, field: str
) -> None:
    pair = api.key(tier=8)
    await made(api, pair)
    answer = await api.call(pair, method, f"/services{path}", body)
    assert (answer.status_code, answer.json()["field"]) == (400, field)


async def test_states_that_do_not_allow_it(api: Any) -> None:
    pair = api.key(tier=16)
    frozen, failed = await made(api, pair, "frozen"), await made(api, pair, "failed")
    await call(api, pair, "POST", f"/services/{frozen}/freeze")
    api.backend.destroy(Handle(failed))
    await asyncio.to_thread(api.app.state.api.services.died, failed)
    for service_id, path, error in (
        (frozen, "/execute", "service_frozen"),
        (frozen, "/redeploy", "service_frozen"),
        (failed, "/execute", "service_not_running"),
        (failed, "/freeze", "service_not_running"),
        (failed, "/unfreeze", "service_not_running"),
    ):
        body = {"command": "echo", "bootstrap": "echo"}
        answer = await call(api, pair, "POST", f"/services/{service_id}{path}", body)
        assert (answer.status_code, answer.json()["error"]) == (409, error)
    shown = (await call(api, pair, "GET", f"/services/{failed}")).json()
    assert (shown["state"], shown["reason"]) == ("failed", "sandbox_died")


async def test_resizing_needs_a_service_that_has_started(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = api.key(tier=16)
    body = {"name": "web", "bootstrap": "sleep infinity", "ports": [8000]}
    answer = await call(api, pair, "POST", "/services", body)
    assert answer.json()["state"] == "starting"
    early = await call(api, pair, "POST", "/services/web/resize", {"vcpu": 2})
    assert early.status_code == 409
    monkeypatch.setattr(api.backend, "connect", lambda _handle, _port: socket.socket())
    await until(api, pair, answer.json()["id"], "running")
    resized = await call(api, pair, "POST", "/services/web/resize", {"vcpu": 2})
    assert (resized.json()["vcpu"], resized.json()["memory_mb"]) == (2, 4096)
    assert (await call(api, pair, "PATCH", "/services/web", {"vcpu": 8})).status_code == 429


async def test_a_change_is_all_or_nothing(api: Any) -> None:
    pair = api.key(tier=16)
    await made(api, pair, "taken", custom_domains=["taken.example.com"])
    service_id = await made(api, pair)
    for body, error in (
        ({"name": "taken", "ports": [1]}, "name_taken"),
        ({"domains": ["new.example.com", "taken.example.com"], "ports": [1]}, "domain_taken"),
    ):
        answer = await call(api, pair, "PATCH", f"/services/{service_id}", body)
        assert (answer.status_code, answer.json()["error"]) == (409, error)
    shown = (await call(api, pair, "GET", f"/services/{service_id}")).json()
    assert (shown["name"], shown["ports"], shown["custom_domains"]) == ("web", [], [])
    changed = await call(
        api,
        pair,
        "PATCH",
        f"/services/{service_id}",
        {
            "name": "new",
            "ports": [8000],
            "domains": ["new.example.com"],
            "unfreeze_on_demand": True,
            "show_freeze_page": False,
        },
    )
    shown = changed.json()
    assert (shown["name"], shown["ports"], shown["url"]) == (
        "new",
        [8000],
        "http://new.on.platform/",
    )
    assert shown["domains"] == ["new.on.platform", "new.example.com"]
    assert (shown["unfreeze_on_demand"], shown["show_freeze_page"]) == (True, False)


async def test_a_locked_service_is_not_deleted(api: Any) -> None:
    pair = api.key()
    service_id = await made(api, pair)
    assert (await call(api, pair, "POST", f"/services/{service_id}/lock")).json()["locked"] is True
    refused = await call(api, pair, "DELETE", f"/services/{service_id}")
    assert (refused.status_code, refused.json()["error"]) == (409, "locked")
    unlocked = await call(api, pair, "POST", f"/services/{service_id}/unlock", {})
    assert '"locked":false' in unlocked.text
    assert (await call(api, pair, "DELETE", f"/services/{service_id}")).status_code == 200


async def test_freezing_and_waking(api: Any) -> None:
    pair = api.key(tier=4)
    service_id = await made(api, pair)
    frozen = (await call(api, pair, "POST", f"/services/{service_id}/freeze")).json()
    assert (frozen["state"], frozen["status"], frozen["service_id"]) == (
        "frozen",
        "frozen",
        service_id,
    )
    woken = (await call(api, pair, "POST", f"/services/{service_id}/wake")).json()
    assert woken["state"] == "running"
    assert isinstance(woken["unfreeze_time_ms"], int)
    await call(api, pair, "POST", f"/services/{service_id}/freeze")
    await made(api, pair, "other")
    full = await call(api, pair, "POST", f"/services/{service_id}/unfreeze")
    assert (full.status_code, full.json()["error"]) == (429, "concurrency_limit_reached")


async def test_domains(api: Any) -> None:
    pair = api.key()
    await made(api, pair)
    for body, after in (
        ({"custom_domains": ["a.example.com"]}, ["a.example.com"]),
        ({"add": ["B.example.com"]}, ["a.example.com", "b.example.com"]),
        ({"remove": ["a.example.com"]}, ["b.example.com"]),
    ):
        answer = await call(api, pair, "PUT", "/services/web/domains", body)
        assert answer.json()["custom_domains"] == after


async def test_logs(api: Any) -> None:
    pair = api.key()
    service_id = await made(api, pair)
    lines = [(service_id, f"line {number}") for number in range(20)]
    api.app.state.api.services.log.append(lines)
    path = f"/services/{service_id}/logs"
    few = (await call(api, pair, "GET", f"{path}?lines=2")).json()
    assert (few["log"], few["count"]) == ("line 18\nline 19\n", 2)
    everything = (await call(api, pair, "GET", f"{path}?all=true")).json()
    assert everything["log"] == everything["logs"] == "".join(f"{line}\n" for _, line in lines)
    assert (await call(api, pair, "GET", path)).json()["count"] == 20


async def test_executing_answers_a_job_with_its_result(api: Any) -> None:
    pair = api.key()
    service_id = await made(api, pair)
    await api.call(pair, "PUT", f"/services/{service_id}/env", {"env": {"WORD": "hush"}})
    answer = await call(
        api, pair, "POST", f"/services/{service_id}/execute", {"command": "echo $WORD"}
    )
    shown = answer.json()
    assert (answer.status_code, shown["status"], shown["stdout"]) == (202, "completed", "hush\n")
    assert (shown["exit_code"], shown["service_id"]) == (0, service_id)
    job = (await api.call(pair, "GET", f"/jobs/{shown['job_id']}")).json()
    assert job["stdout"] == "hush\n"


async def test_executing_in_a_sandbox_that_died(api: Any) -> None:
    pair = api.key()
    service_id = await made(api, pair)
    api.backend.destroy(Handle(service_id))
    answer = await call(api, pair, "POST", f"/services/{service_id}/execute", {"command": "echo"})
    assert (answer.status_code, answer.json()["status"]) == (202, "failed")
    assert (await call(api, pair, "GET", f"/services/{service_id}")).json()["state"] == "failed"


@pytest.mark.parametrize("backend", ["bubblewrap"], indirect=True)
async def test_a_real_service_lives_through_freeze_redeploy_and_resize(api: Any) -> None:
    pair = api.key(tier=16)
    server = "cd /root; echo $WORD > page; exec python3 -m http.server 8000"
    service_id = await made(api, pair, bootstrap=server, ports=[8000], vcpu=1)
    await until(api, pair, service_id, "running")
    path = f"/services/{service_id}"
    await api.call(pair, "PUT", f"{path}/env", b"WORD=sealed")
    fetch = {"command": "curl -s http://127.0.0.1:8000/page || python3 -c '1/0'"}
    assert (await call(api, pair, "POST", f"{path}/execute", fetch)).json()["stdout"] == "\n"
    for verb in ("freeze", "unfreeze", "redeploy"):
        assert (await call(api, pair, "POST", f"{path}/{verb}", {})).status_code == 200
    await until(api, pair, service_id, "running")
    ran = (await call(api, pair, "POST", f"{path}/execute", fetch)).json()
    assert (ran["stdout"], ran["exit_code"]) == ("sealed\n", 0)
    assert (await call(api, pair, "POST", f"{path}/resize", {"vcpu": 2})).status_code == 200
    log = (await call(api, pair, "GET", f"{path}/logs")).json()["log"]
    assert log.count('"GET /page') == 2
    assert "sealed" not in log
    assert (await call(api, pair, "DELETE", path)).json()["state"] == "deleted"
