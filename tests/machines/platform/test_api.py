"""The API over HTTP: signing, limits seen from outside, bodies, sessions, executions."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from machines.platform.sandbox.errors import SandboxUnavailable
from machines.platform.sandbox.fake import FakeBackend


async def test_health_needs_no_key(api: Any) -> None:
    answer = await api.http.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "sandbox": "available", "enforcement": "none"}


async def test_health_answers_head_and_refuses_post(api: Any) -> None:
    head = await api.http.head("/health")
    assert (head.status_code, head.content) == (200, b"")
    refused = await api.http.post("/health")
    assert (refused.status_code, refused.json()["error"]) == (405, "method_not_allowed")


async def test_an_unknown_form_of_the_prices_is_404(api: Any) -> None:
    for path in ("/pricing-for-agents.csv", "/pricing-for-agents.", "/pricing-for-agents.json.xml"):
        answer = await api.http.get(path)
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


async def test_every_answer_carries_the_platforms_date(api: Any) -> None:
    api.now_ms += 86_400_000
    expected = datetime.fromtimestamp(api.now_ms // 1000, UTC)
    for path in ("/health", "/no/such/path", "/sessions", "/pricing-for-agents.json"):
        answer = await api.http.get(path)
        assert parsedate_to_datetime(answer.headers["date"]) == expected


async def test_the_session_flow_and_its_documents(api: Any) -> None:
    pair = api.key()
    made = await api.call(pair, "POST", "/sessions", {"network_mode": "zerotrust", "ttl": 600})
    assert made.status_code == 200
    assert ": " not in made.text
    session = made.json()
    session_id = session["session_id"]
    assert session["id"] == session_id
    assert session["status"] == session["state"] == "running"
    assert session["created_at"] == "2023-11-14T22:13:20Z"
    assert session["expires_at"] == "2023-11-14T22:23:20Z"
    assert session["remaining_ttl"] == 600

    ran = await api.call(pair, "POST", f"/sessions/{session_id}/execute", {"command": "echo hi"})
    assert ran.json()["stdout"] == ran.json()["output"] == "hi\n"
    assert (ran.json()["exit_code"], ran.json()["success"]) == (0, True)
    ran = await api.call(pair, "POST", f"/sessions/{session_id}/shell", {"code": "echo two"})
    assert ran.json()["stdout"] == "two\n"

    listed = (await api.call(pair, "GET", "/sessions")).json()
    assert (listed["count"], listed["sessions"][0]["id"]) == (1, session_id)
    ended = await api.call(pair, "DELETE", f"/sessions/{session_id}")
    assert ended.json()["status"] == "terminated"
    again = await api.call(pair, "DELETE", f"/sessions/{session_id}")
    assert (again.status_code, again.json()["status"]) == (200, "terminated")
    gone = await api.call(pair, "POST", f"/sessions/{session_id}/execute", {"command": "echo"})
    assert (gone.status_code, gone.json()["error"]) == (410, "session_terminated")
    assert (await api.call(pair, "GET", "/sessions")).json() == {"sessions": [], "count": 0}


async def test_execute_has_every_alias(api: Any) -> None:
    pair = api.key()
    answer = await api.call(pair, "POST", "/execute", {"language": "Python", "code": "print(1)"})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["stdout"], body["stderr"], body["exit_code"]) == ("1\n", "", 0)
    assert (body["status"], body["success"], body["language"]) == ("completed", True, "python")
    times = {body[name] for name in ("total_time_ms", "execution_time_ms", "execution_time")}
    assert len(times) == 1
    known = await api.call(pair, "GET", f"/jobs/{body['job_id']}")
    assert known.json() == body
    assert (await api.call(pair, "GET", "/jobs")).json() == {"jobs": [], "count": 0}


async def test_a_failing_program_is_still_http_200(api: Any) -> None:
    code = {"language": "bash", "code": "no-such-command"}
    answer = await api.call(api.key(), "POST", "/execute", code)
    assert (answer.status_code, answer.json()["success"]) == (200, False)
    assert answer.json()["exit_code"] != 0


async def test_languages_and_shells_are_what_the_sandbox_has(api: Any) -> None:
    pair = api.key()
    languages = (await api.call(pair, "GET", "/languages")).json()
    assert languages["languages"] == ["python", "bash"]
    assert languages["aliases"]["python3"] == "python"
    assert languages["count"] == 2
    shells = (await api.call(pair, "GET", "/shells")).json()
    assert shells["shells"] == ["bash", "python3", "sh"]


@pytest.mark.parametrize("path", ["/cluster", "/stats", "/pools"])
async def test_what_the_platform_does_is_told_to_a_signed_get_only(api: Any, path: str) -> None:
    owner, reader = api.key(), api.key()
    session_id = (await api.call(owner, "POST", "/sessions")).json()["id"]
    answer = await api.call(reader, "GET", path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert ": " not in answer.text
    for hidden in (*owner, *reader, session_id, api.context.config.rpc_password):
        assert hidden not in answer.text
    refused = await api.http.get(path)
    assert (refused.status_code, refused.json()["error"]) == (401, "invalid_key")
    forged = await api.call((reader[0], "unsb-sk-wrong"), "GET", path)
    assert (forged.status_code, forged.json()["error"]) == (401, "invalid_signature")
    for method in ("POST", "HEAD"):
        wrong = await api.call(reader, method, path)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET")


async def test_cluster_stats_and_pools_count_what_lives(api: Any) -> None:
    pair = api.key(tier=8)
    session_ids = [(await api.call(pair, "POST", "/sessions")).json()["id"] for _ in range(2)]
    await api.call(pair, "DELETE", f"/sessions/{session_ids[0]}")
    api.now_ms += 61_000
    cluster = (await api.call(pair, "GET", "/cluster")).json()
    assert (cluster["allocated"], cluster["total_containers"], cluster["spawning"]) == (1, 1, 0)
    assert cluster["network_breakdown"]["zerotrust"]["allocated"] == 1
    assert cluster["uptime_seconds"] == 61
    assert (await api.call(pair, "GET", "/stats")).json()["containers"] == 1
    pools = (await api.call(pair, "GET", "/pools")).json()
    assert (pools["total_allocated"], pools["pools"][0]["status"]) == (1, "available")
    assert pools["total_capacity"] == pools["total_available"] + 1

    api.now_ms += 900_000  # the session is idle for too long; nobody looked at it since
    assert (await api.call(pair, "GET", "/stats")).json()["containers"] == 0


async def test_keys_validate_and_self(api: Any) -> None:
    pair = api.key(tier=6)
    for method, path, body in (
        ("POST", "/keys/validate", None),
        ("POST", "/keys/validate", {}),
        ("GET", "/keys/self", None),
        ("GET", "/api/keys/validate", None),
    ):
        answer = await api.call(pair, method, path, body)
        assert answer.status_code == 200
        assert '"valid":true' in answer.text
        document = answer.json()
        assert (document["tier"], document["rate_per_minute"]) == (6, 42)
        assert (document["concurrency"], document["status"]) == (2, "active")


async def test_an_expired_key_is_told_so(api: Any) -> None:
    pair = api.key()
    api.now_ms += 40 * 86_400_000
    answer = await api.call(pair, "POST", "/keys/validate")
    assert answer.status_code == 200
    assert '"valid":false' in answer.text
    assert answer.json()["reason"] == "expired"
    refused = await api.call(pair, "GET", "/sessions")
    assert (refused.status_code, refused.json()["error"]) == (401, "expired")


async def test_a_suspended_key_is_refused(api: Any) -> None:
    pair = api.key()
    with api.database.transaction() as sql:
        sql.run("UPDATE api_key SET status = 'suspended'")
    assert (await api.call(pair, "GET", "/sessions")).json()["error"] == "suspended"
    assert (await api.call(pair, "POST", "/keys/validate")).json()["reason"] == "suspended"


async def test_a_stale_clock_is_told_the_offset(api: Any) -> None:
    pair = api.key()
    answer = await api.call(pair, "GET", "/sessions", at_ms=api.now_ms - 600_000)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_timestamp")
    assert "timestamp" in answer.json()["message"]
    told = parsedate_to_datetime(answer.headers["date"]).timestamp() * 1000
    assert (await api.call(pair, "GET", "/sessions", at_ms=int(told))).status_code == 200


async def test_a_wrong_secret_costs_the_key_nothing(api: Any) -> None:
    pair = api.key(tier=1)
    for _ in range(20):
        answer = await api.call((pair[0], "unsb-sk-wrong"), "GET", "/sessions")
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_signature")
    assert (await api.call(pair, "GET", "/sessions")).status_code == 200


async def test_another_tenants_session_is_not_found(api: Any) -> None:
    owner, stranger = api.key(), api.key()
    session_id = (await api.call(owner, "POST", "/sessions")).json()["id"]
    for method, path in (
        ("GET", f"/sessions/{session_id}"),
        ("DELETE", f"/sessions/{session_id}"),
        ("POST", f"/sessions/{session_id}/execute"),
    ):
        answer = await api.call(stranger, method, path, {"command": "echo"})
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
    assert (await api.call(stranger, "GET", "/sessions")).json()["count"] == 0


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/sessions", {"network_mode": "open"}, "network_mode"),
        ("/sessions", {"shell": "cmd.exe"}, "shell"),
        ("/sessions", {"ttl": 86_401}, "ttl"),
        ("/sessions", {"ttl": "60"}, "ttl"),
        ("/sessions", {"vcpu": True}, "vcpu"),
        ("/execute", {"code": "x"}, "language"),
        ("/execute", {"language": "python"}, "code"),
        ("/execute", {"language": "python", "code": ""}, "code"),
        ("/execute", {"language": "klingon", "code": "x"}, "language"),
        ("/execute", {"language": "ruby", "code": "x"}, "language"),
        ("/execute", {"language": "python", "code": "x", "ttl": 0}, "ttl"),
        ("/execute", {"language": "python", "code": "x", "env": {"A": 1}}, "env"),
        ("/execute", {"language": "python", "code": "x", "args": "a"}, "args"),
        (
            "/execute",
            {"language": "python", "code": "x", "return_artifact": "yes"},
            "return_artifact",
        ),
        (
            "/execute",
            {"language": "python", "code": "x", "input_files": [{"filename": "../x"}]},
            "input_files",
        ),
    ],
)
async def test_a_bad_field_is_named(api: Any, path: str, body: dict[str, Any], field: str) -> None:
    answer = await api.call(api.key(), "POST", path, body)
    assert answer.status_code == 400
    assert answer.json()["field"] == field
    assert field in answer.json()["message"]


async def test_an_absent_language_names_its_package(api: Any) -> None:
    answer = await api.call(api.key(), "POST", "/execute", {"language": "rb", "code": "puts 1"})
    assert answer.json()["error"] == "language_unavailable"
    assert answer.json()["package"] == "ruby"


@pytest.mark.parametrize("body", [b"{", b"[]", b"1", b"\xff", b'{"a":' * 40 + b"1" + b"}" * 40])
async def test_bad_json_is_refused(api: Any, body: bytes) -> None:
    answer = await api.call(api.key(), "POST", "/sessions", body)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_json")


async def test_a_long_body_is_refused(api: Any) -> None:
    answer = await api.call(api.key(), "POST", "/execute", b" " * (16 * 1024 * 1024 + 1))
    assert (answer.status_code, answer.json()["error"]) == (413, "body_too_large")


async def test_unknown_paths_and_methods_answer_json(api: Any) -> None:
    assert (await api.http.get("/nowhere")).json()["error"] == "not_found"
    answer = await api.http.put("/sessions")
    assert (answer.status_code, answer.json()["error"]) == (405, "method_not_allowed")


async def test_a_bad_idempotency_key_is_refused(api: Any) -> None:
    answer = await api.call(api.key(), "POST", "/sessions", once="a b")
    assert answer.status_code == 400


async def test_a_repeat_with_another_query_is_another_request(api: Any) -> None:
    pair = api.key()
    first = await api.call(pair, "POST", "/run?ttl=60", b"#!/bin/sh\necho a\n", once="k")
    again = await api.call(pair, "POST", "/run?ttl=60", b"#!/bin/sh\necho a\n", once="k")
    assert first.json()["job_id"] == again.json()["job_id"]
    other = await api.call(pair, "POST", "/run?ttl=61", b"#!/bin/sh\necho a\n", once="k")
    assert (other.status_code, other.json()["error"]) == (409, "idempotency_key_reused")


class Held(FakeBackend):
    """Every execution waits."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.inside = threading.Semaphore(0)

    def execute(self, *arguments: Any, **options: Any) -> Any:
        self.inside.release()
        assert self.go.wait(20)
        return super().execute(*arguments, **options)


class TestLongRequests:
    """Requests that may take minutes share threads."""

    @pytest.fixture
    def backend(self) -> Held:
        return Held()

    async def test_one_key_cannot_hold_the_threads_of_all(
        self, api: Any, backend: Held, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("machines.platform.api.LONG_REQUESTS_MAX", 2)
        pair, other = api.key(tier=32), api.key(tier=32)
        body = {"language": "bash", "code": "echo a"}

        def run(who: tuple[str, str]) -> asyncio.Task[Any]:
            return asyncio.create_task(api.call(who, "POST", "/execute", body))

        running = [run(pair), run(pair)]
        await asyncio.to_thread(lambda: [backend.inside.acquire() for _ in range(2)])
        refused = await run(pair)
        assert (refused.status_code, refused.json()["error"]) == (429, "concurrency_limit_reached")
        assert refused.json()["concurrency_limit"] == 2
        running.append(run(other))
        await asyncio.to_thread(backend.inside.acquire)
        backend.go.set()
        assert [one.status_code for one in await asyncio.gather(*running)] == [200] * 3
        assert (await run(pair)).status_code == 200


class TestWithoutIsolation:
    """Section 9 of the isolation notes: refuse, say the remedy, run nothing."""

    @pytest.fixture
    def backend(self) -> FakeBackend:
        return FakeBackend(SandboxUnavailable("no user namespaces", "sysctl user.x=1"))

    async def test_the_platform_serves_but_runs_nothing(self, api: Any) -> None:
        pair = api.key()
        health = await api.http.get("/health")
        assert (health.status_code, health.json()["sandbox"]) == (200, "unavailable")
        pools = (await api.call(pair, "GET", "/pools")).json()
        assert (pools["total_capacity"], pools["pools"][0]["status"]) == (0, "unavailable")
        for path, body in (
            ("/sessions", {}),
            ("/execute", {"language": "python", "code": "print(1)"}),
        ):
            answer = await api.call(pair, "POST", path, body)
            assert (answer.status_code, answer.json()["error"]) == (503, "sandbox_unavailable")
            assert "sysctl user.x=1" in answer.json()["message"]
        assert (await api.call(pair, "GET", "/sessions")).json()["count"] == 0
