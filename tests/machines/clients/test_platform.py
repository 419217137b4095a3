"""The platform's wire: signed, keyed, tolerant of aliases."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import httpx
import pytest

from engine.secrets import Secret
from machines.clients import HttpPlatform, Transport
from machines.clients.ports import (
    Credentials,
    NotFound,
    Rejected,
    SessionInfo,
    Unauthorized,
    Unavailable,
)

Serve = Callable[..., Transport]
SECRET = "unsb-sk-aaaaa-bbbbb-ccccc-ddddd"
NOW_MS = 1_700_000_000_000
SANDBOX = {"shell": "bash", "network_mode": "zerotrust"}
CREDENTIALS = Credentials(public_key="unsb-pk-1", secret_key=Secret(SECRET))


class Api:
    """Verifies every signature over the received bytes, as a server does."""

    def __init__(self, body: Any, status: int = 200, **headers: str) -> None:
        self.requests: list[httpx.Request] = []
        self._reply = (status, body, headers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.path != "/health":
            self._verify(request)
        assert SECRET not in repr(request.headers) + request.content.decode() + str(request.url)
        status, body, headers = self._reply
        return httpx.Response(status, json=body, headers=headers)

    def _verify(self, request: httpx.Request) -> None:
        target = request.url.raw_path.decode()
        head = f"{request.headers['X-Timestamp']}:{request.method}:{target}:"
        message = head.encode() + request.content
        expected = hmac.new(SECRET.encode(), message, hashlib.sha256).hexdigest()
        assert request.headers["X-Signature"] == expected
        assert request.headers["Authorization"] == "Bearer unsb-pk-1"


@pytest.fixture
def platform(served: Serve) -> Callable[[Api], HttpPlatform]:
    return lambda api: HttpPlatform("http://api.test", served(api))


Make = Callable[[Api], HttpPlatform]


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (204, False), (503, False)])
async def test_health(platform: Make, status: int, healthy: bool) -> None:
    api = Api({}, status)
    assert await platform(api).healthy() is healthy
    assert "Authorization" not in api.requests[0].headers


async def test_an_unreachable_platform_is_not_healthy(served: Serve) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    assert await HttpPlatform("http://api.test", served(refuse)).healthy() is False


async def test_validate_key(platform: Make) -> None:
    reply = {
        "valid": True,
        "public_key": "unsb-pk-1",
        "tier": 5,
        "status": "active",
        "rate_per_minute": 35,
        "burst": 35,
        "concurrency": 2,
    }
    api = Api(reply, Date="Tue, 14 Nov 2023 22:13:30 GMT")
    info = await platform(api).validate_key(CREDENTIALS)
    assert (info.valid, info.tier, info.requests_per_minute, info.concurrency) == (True, 5, 35, 2)
    assert (info.public_key, info.reason, info.server_ms) == ("unsb-pk-1", None, 1_700_000_010_000)
    assert api.requests[0].headers["X-Timestamp"] == "1700000000"


async def test_the_offset_corrects_the_clock(platform: Make) -> None:
    reply = {"valid": True, "tier": 1, "rate_limit": 7, "concurrency": 1}
    api = Api(reply)
    await platform(api).validate_key(CREDENTIALS, offset_ms=-600_500)
    assert api.requests[0].headers["X-Timestamp"] == "1699999399"


async def test_an_invalid_key_says_why(platform: Make) -> None:
    info = await platform(Api({"valid": False, "reason": "expired"})).validate_key(CREDENTIALS)
    assert (info.valid, info.reason, info.tier) == (False, "expired", 0)
    assert info.public_key == "unsb-pk-1"


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        ({}, "valid"),
        ({"valid": "yes"}, "valid"),
        ({"valid": True, "rate_limit": 7, "concurrency": 1}, "tier"),
    ],
)
async def test_a_key_check_that_lacks_a_field_is_rejected(
    platform: Make, reply: dict[str, Any], named: str
) -> None:
    with pytest.raises(Rejected, match=named):
        await platform(Api(reply)).validate_key(CREDENTIALS)


async def test_a_stale_clock_is_unauthorized(platform: Make) -> None:
    api = Api({"error": "invalid_timestamp"}, 401, Date="Tue, 14 Nov 2023 22:23:20 GMT")
    with pytest.raises(Unauthorized) as caught:
        await platform(api).validate_key(CREDENTIALS)
    assert caught.value.reason == "invalid_timestamp"
    assert caught.value.server_ms == 1_700_000_600_000
    assert SECRET not in str(caught.value)


async def test_create_session(platform: Make) -> None:
    api = Api({"session_id": "unsb-session-1", "id": "x", "status": "running"}, 201)
    session = await platform(api).create_session(
        CREDENTIALS, **SANDBOX, ttl_seconds=600, key="run-1:7"
    )
    assert session == SessionInfo(session_id="unsb-session-1", status="running")
    assert api.requests[0].headers["Idempotency-Key"] == "run-1:7"
    assert json.loads(api.requests[0].content) == {
        "shell": "bash",
        "network_mode": "zerotrust",
        "ttl": 600,
    }


async def test_create_session_with_a_toolbox(platform: Make) -> None:
    api = Api({"session_id": "s", "status": "running"}, 201)
    await platform(api).create_session(
        CREDENTIALS, **SANDBOX, ttl_seconds=600, key="k", toolbox=True
    )
    assert json.loads(api.requests[0].content)["toolbox"] is True


@pytest.mark.parametrize(
    ("date", "offset_ms"),
    [
        (formatdate(NOW_MS // 1000 - 600, usegmt=True), -600_000),
        (formatdate(NOW_MS // 1000, usegmt=True), 0),
        (formatdate(NOW_MS // 1000 + 2, usegmt=True), 0),
        (formatdate(NOW_MS // 1000 + 600, usegmt=True), 600_000),
        (None, 0),
    ],
)
async def test_clock_offset(platform: Make, date: str | None, offset_ms: int) -> None:
    """By an unsigned call; what `Date` cannot tell counts as none."""
    api = Api({}, 200, **({} if date is None else {"Date": date}))
    measured_ms = await platform(api).clock_offset_ms()
    assert measured_ms == offset_ms - (NOW_MS % 1000 if offset_ms else 0)
    assert "Authorization" not in api.requests[0].headers


@pytest.mark.parametrize("wrap", [True, False])
async def test_sessions_lists_what_lives(platform: Make, wrap: bool) -> None:
    listed = [
        {"id": "a", "status": "running"},
        {"session_id": "b", "state": "frozen"},
        {"id": "c", "status": "terminated"},
    ]
    api = Api({"sessions": listed, "count": 3} if wrap else listed)
    sessions = await platform(api).sessions(CREDENTIALS)
    assert [session.session_id for session in sessions] == ["a", "b"]


@pytest.mark.parametrize("duration", [{"duration_ms": 12}, {"total_time_ms": 12}])
async def test_execute(platform: Make, duration: dict[str, int]) -> None:
    api = Api({"stdout": "hi\n", "stderr": "", "exit_code": 3, **duration})
    execution = await platform(api).execute(CREDENTIALS, "unsb-session-1", "echo hi", key="k")
    assert (execution.stdout, execution.stderr, execution.exit_code) == ("hi\n", "", 3)
    assert execution.duration_ms == 12
    (request,) = api.requests
    assert request.url.path == "/sessions/unsb-session-1/execute"
    assert request.headers["Idempotency-Key"] == "k"
    assert json.loads(request.content) == {"command": "echo hi"}


@pytest.mark.parametrize("status", [404, 410])
async def test_a_session_that_is_gone(platform: Make, status: int) -> None:
    with pytest.raises(NotFound):
        await platform(Api({"error": "gone"}, status)).execute(CREDENTIALS, "s", "true", key="k")
    await platform(Api({"error": "gone"}, status)).delete_session(CREDENTIALS, "s")


async def test_delete_session(platform: Make) -> None:
    api = Api({"session_id": "s", "status": "terminated"})
    await platform(api).delete_session(CREDENTIALS, "s")
    assert (api.requests[0].method, api.requests[0].url.path) == ("DELETE", "/sessions/s")


async def test_a_delete_that_fails_is_an_error(platform: Make) -> None:
    with pytest.raises(Unavailable):
        await platform(Api({}, 500)).delete_session(CREDENTIALS, "s")
    with pytest.raises(Rejected, match="locked"):
        await platform(Api({"error": "locked"}, 409)).delete_session(CREDENTIALS, "s")


async def test_languages(platform: Make) -> None:
    api = Api({"languages": ["python", "bash"], "aliases": {"py": "python"}, "count": 2})
    assert await platform(api).languages(CREDENTIALS) == ("python", "bash")


async def test_limits(platform: Make) -> None:
    api = Api({"error": "concurrency_limit_reached", "concurrency_limit": 1}, 429)
    with pytest.raises(Unavailable) as caught:
        await platform(api).create_session(CREDENTIALS, **SANDBOX, ttl_seconds=60, key="k")
    assert caught.value.kind == "concurrency"
