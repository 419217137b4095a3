"""The audit log: every change is noted with what it was about, and only its key reads it."""

from __future__ import annotations

from typing import Any

from machines.platform.audit import KEPT_MS


async def entries(api: Any, pair: tuple[str, str], query: str = "") -> list[dict[str, Any]]:
    answer = await api.call(pair, "GET", f"/audit{query}")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["count"] == len(body["entries"])
    return list(body["entries"])


async def test_what_was_made_is_named_by_its_id(api: Any) -> None:
    pair = api.key()
    session_id = (await api.call(pair, "POST", "/sessions", {})).json()["session_id"]
    await api.call(pair, "DELETE", f"/sessions/{session_id}")
    newest, oldest = await entries(api, pair)
    assert oldest == {
        "action": "POST /sessions",
        "client_ip": "127.0.0.1",
        "metadata": {"status": 200},
        "resource_id": session_id,
        "resource_type": "session",
        "result": "success",
        "timestamp": "2023-11-14T22:13:20Z",
    }
    assert (newest["action"], newest["resource_id"]) == (
        "DELETE /sessions/{session_id}",
        session_id,
    )
    assert len(await entries(api, pair, "?limit=1")) == 1


async def test_a_refusal_is_noted_as_a_failure(api: Any) -> None:
    pair = api.key()
    await api.call(pair, "POST", "/sessions", {"shell": "no-such-shell"})
    await api.call(pair, "DELETE", "/sessions/unsb-session-0000000000000000")
    newest, oldest = await entries(api, pair)
    assert (oldest["result"], oldest["metadata"], oldest["resource_id"]) == (
        "failure",
        {"status": 400},
        None,
    )
    assert (newest["result"], newest["metadata"]["status"]) == ("failure", 404)


async def test_reading_is_not_noted_and_nobody_else_reads(api: Any) -> None:
    pair, other = api.key(), api.key()
    await api.call(pair, "GET", "/sessions")
    assert await entries(api, pair) == []
    await api.call(pair, "POST", "/sessions", {})
    assert await entries(api, other) == []


async def test_a_bad_limit_is_named(api: Any) -> None:
    pair = api.key()
    for limit in ("0", "1001", "x", "", "1e3", "٣"):
        answer = await api.call(pair, "GET", f"/audit?limit={limit}")
        assert (answer.status_code, answer.json()["field"]) == (400, "limit"), limit


async def test_old_entries_are_forgotten(api: Any) -> None:
    pair = api.key(months=12)
    await api.call(pair, "POST", "/sessions", {})
    api.now_ms += KEPT_MS + 1
    await api.call(pair, "POST", "/sessions", {})
    assert len(await entries(api, pair)) >= 2
    api.app.state.api.audit.forget_old()
    assert len(await entries(api, pair)) == 1
