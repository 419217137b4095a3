"""Keys over HTTP: what validation tells, and the two calls that are not signed."""

from __future__ import annotations

from typing import Any

import pytest

from machines.platform.endpoints.keys import ASKED_PER_MINUTE_MAX, human

DAY_MS = 86_400_000
VALIDATIONS = [("POST", "/keys/validate", None), ("POST", "/keys/validate", b"{}"),
               ("GET", "/api/keys/validate", None)]  # fmt: skip


def named(pair: tuple[str, str]) -> dict[str, str]:
    return {"Authorization": f"Bearer {pair[0]}"}


@pytest.mark.parametrize(("method", "path", "body"), VALIDATIONS)
async def test_a_good_key_is_told_what_it_may(
    api: Any, method: str, path: str, body: bytes | None
) -> None:
    pair = api.key(tier=9)
    answer = await api.call(pair, method, path, body)
    assert answer.status_code == 200
    assert '"valid":true' in answer.text
    told = answer.json()
    assert (told["public_key"], told["tier"], told["status"]) == (pair[0], 9, "active")
    assert told["valid_through_datetime"] == told["expires_at"] == "2023-12-14T22:13:20Z"
    assert told["valid_for_human"] == told["time_remaining"] == "30 days 0 hours"
    assert told["rate_per_minute"] == told["rate_limit"] == told["burst"] == 63
    assert (told["concurrency"], told["expired"]) == (3, False)
    assert told["account_id"] == pair[0]
    assert told["renew_url"].endswith(f"/keys/extend?pk={pair[0]}")
    assert not {"error", "reason", "secret_key"} & set(told)


@pytest.mark.parametrize(("method", "path", "body"), VALIDATIONS)
async def test_an_expired_key_is_told_when_and_where_to_renew(
    api: Any, method: str, path: str, body: bytes | None
) -> None:
    pair = api.key(tier=2)
    api.now_ms += 31 * DAY_MS
    answer = await api.call(pair, method, path, body)
    told = answer.json()
    assert '"valid":false' in answer.text
    assert told["reason"] == told["error"] == told["status"] == "expired"
    assert (told["expired"], told["tier"], told["public_key"]) == (True, 2, pair[0])
    assert told["expired_at_datetime"] == "2023-12-14T22:13:20Z"
    assert told["expired_ago"] == "1 days 0 hours"
    page = await api.http.get(told["renew_url"])
    assert (page.status_code, pair[0] in page.text) == (200, True)


async def test_a_suspended_key_is_told_so(api: Any) -> None:
    pair = api.key()
    with api.database.transaction() as sql:
        sql.run("UPDATE api_key SET status = 'suspended'")
    told = (await api.call(pair, "POST", "/keys/validate")).json()
    assert (told["valid"], told["reason"], told["expired"]) == (False, "suspended", False)
    api.now_ms += 40 * DAY_MS
    told = (await api.call(pair, "POST", "/keys/validate")).json()
    assert (told["reason"], told["expired"]) == ("suspended", True)


async def test_what_is_not_authentic_is_401_with_a_reason(api: Any) -> None:
    pair = api.key()
    unsigned = await api.http.post("/keys/validate")
    unknown = await api.call(("unsb-pk-none", "x"), "POST", "/keys/validate")
    forged = await api.call((pair[0], "unsb-sk-wrong"), "POST", "/keys/validate")
    for answer in (unsigned, unknown, forged):
        assert answer.status_code == 401
        assert '"valid":false' in answer.text
        assert answer.json()["reason"] == "invalid_key"
        assert "tier" not in answer.json()
    stale = await api.call(pair, "POST", "/keys/validate", at_ms=0)
    assert (stale.json()["reason"], stale.json()["valid"]) == ("invalid_timestamp", False)


async def test_self_is_for_keys_that_may_work(api: Any) -> None:
    pair = api.key(tier=5)
    assert (await api.call(pair, "GET", "/keys/self")).json()["tier"] == 5
    api.now_ms += 40 * DAY_MS
    assert (await api.call(pair, "GET", "/keys/self")).status_code == 401


async def test_throttling_is_told_without_being_counted(api: Any) -> None:
    pair = api.key(tier=1)
    for used in range(7):
        told = (await api.http.post("/keys/am-i-throttled", headers=named(pair))).json()
        assert (told["requests_last_60s"], told["throttled"]) == (used, False)
        assert (await api.call(pair, "GET", "/sessions")).status_code == 200
    told = (await api.http.post("/keys/am-i-throttled", headers=named(pair))).json()
    assert told == {
        "requests_last_60s": 7,
        "active_executions": 0,
        "throttled": True,
        "rate_limit": 7,
        "concurrency_limit": 1,
    }
    assert (await api.call(pair, "GET", "/sessions")).status_code == 429
    api.now_ms += 60_000
    told = (await api.http.post("/keys/am-i-throttled", headers=named(pair))).json()
    assert (told["requests_last_60s"], told["throttled"]) == (0, False)


async def test_a_full_key_is_throttled(api: Any) -> None:
    pair = api.key(tier=4)
    await api.call(pair, "POST", "/sessions", {})
    told = (await api.http.post("/keys/am-i-throttled", headers=named(pair))).json()
    assert (told["active_executions"], told["throttled"]) == (1, True)


async def test_stats_are_numbers_of_that_key_and_nothing_else(api: Any) -> None:
    pair, other = api.key(), api.key()
    made = (await api.call(pair, "POST", "/sessions", {})).json()
    await api.call(pair, "POST", f"/sessions/{made['id']}/execute", {"command": "echo"})
    await api.call(other, "POST", "/sessions", {})
    told = (await api.http.post("/keys/stats", headers=named(pair))).json()
    assert (told["sessions"], told["executions"], told["services"]) == (1, 1, 0)
    assert (told["snapshots"], told["images"]) == (0, 0)
    assert all(isinstance(value, int) for value in told.values())


@pytest.mark.parametrize("path", ["/keys/am-i-throttled", "/keys/stats"])
async def test_a_key_must_be_named_and_known(api: Any, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer unsb-pk-none"}, {"Authorization": "Basic x"}):
        answer = await api.http.post(path, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (401, "invalid_key")
    answer = await api.http.post(path, headers=named(api.key()), content=b"x" * 70_000)
    assert answer.status_code == 413


async def test_asking_too_often_is_refused_for_a_minute(api: Any) -> None:
    pair = api.key()
    for _ in range(ASKED_PER_MINUTE_MAX):
        assert (await api.http.post("/keys/stats", headers=named(pair))).status_code == 200
    for path in ("/keys/stats", "/keys/am-i-throttled"):
        refused = await api.http.post(path, headers=named(pair))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    assert (await api.call(pair, "GET", "/keys/self")).status_code == 200
    api.now_ms += 60_000
    assert (await api.http.post("/keys/stats", headers=named(pair))).status_code == 200


def test_spans_are_said_for_people() -> None:
    assert human(0) == human(-5) == "0 hours 0 minutes"
    assert human(3_660_000) == "1 hours 1 minutes"
    assert human(90_000_000) == "1 days 1 hours"
