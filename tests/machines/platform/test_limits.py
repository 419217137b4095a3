"""Rates and slots: by tier, sliding, and exact under parallel requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from machines.platform import limits
from machines.platform.replies import Problem

CODE = {"language": "python", "code": "print(1)"}
NOW_MS = 1_700_000_000_000


@pytest.mark.parametrize(
    ("tier", "rate", "slots"), [(1, 7, 1), (4, 28, 1), (5, 35, 2), (8, 56, 2), (32, 224, 8)]
)
def test_limits_of_a_tier(tier: int, rate: int, slots: int) -> None:
    assert limits.requests_per_minute(tier) == rate
    assert limits.concurrency(tier) == slots


async def test_the_inception_flow_fits_tier_one(api: Any) -> None:
    pair = api.key(tier=1)
    assert (await api.call(pair, "POST", "/keys/validate")).status_code == 200
    session_id = (await api.call(pair, "POST", "/sessions")).json()["id"]
    path = f"/sessions/{session_id}"
    assert (await api.call(pair, "POST", path + "/execute", {"command": "echo"})).is_success
    assert (await api.call(pair, "DELETE", path)).is_success
    for _ in range(3):
        assert (await api.call(pair, "GET", "/sessions")).is_success
    assert (await api.call(pair, "GET", "/sessions")).status_code == 429


async def test_the_window_slides(api: Any) -> None:
    pair = api.key(tier=1)
    for _ in range(7):
        assert (await api.call(pair, "GET", "/sessions")).status_code == 200
        api.now_ms += 5_000
    refused = await api.call(pair, "GET", "/sessions")
    assert (refused.status_code, refused.json()["error"]) == (429, "rate_limit_exceeded")
    # The first request was 35 s ago and leaves the window in 25 s.
    assert refused.headers["retry-after"] == "25"
    api.now_ms += 24_999
    assert (await api.call(pair, "GET", "/sessions")).status_code == 429
    api.now_ms += 1
    assert (await api.call(pair, "GET", "/sessions")).status_code == 200
    assert (await api.call(pair, "GET", "/sessions")).status_code == 429


async def test_one_key_does_not_use_up_another(api: Any) -> None:
    first, second = api.key(tier=1), api.key(tier=1)
    for _ in range(8):
        last = await api.call(first, "GET", "/sessions")
    assert last.status_code == 429
    assert (await api.call(second, "GET", "/sessions")).status_code == 200


async def test_a_clock_set_back_does_not_lock_a_key_out(api: Any) -> None:
    pair = api.key(tier=1)
    for _ in range(7):
        await api.call(pair, "GET", "/sessions")
    api.now_ms -= 3_600_000
    assert (await api.call(pair, "GET", "/sessions")).status_code == 200


async def test_64_parallel_creates_on_tier_one_give_one_session(api: Any) -> None:
    pair = api.key(tier=1)
    answers = await asyncio.gather(*(api.call(pair, "POST", "/sessions") for _ in range(64)))
    codes = Counter(answer.status_code for answer in answers)
    assert codes == {200: 1, 429: 63}
    errors = Counter(answer.json().get("error") for answer in answers)
    assert errors == {None: 1, "concurrency_limit_reached": 6, "rate_limit_exceeded": 57}
    assert all("retry-after" in each.headers for each in answers if each.status_code == 429)


async def test_parallel_creates_fill_exactly_the_slots(api: Any) -> None:
    pair = api.key(tier=12)
    answers = await asyncio.gather(*(api.call(pair, "POST", "/sessions") for _ in range(30)))
    assert Counter(answer.status_code for answer in answers) == {200: 3, 429: 27}
    refused = next(answer for answer in answers if answer.status_code == 429).json()
    assert (refused["active_executions"], refused["concurrency_limit"]) == (3, 3)


async def test_a_session_holds_the_slot_of_an_execution(api: Any) -> None:
    pair = api.key(tier=4)
    session_id = (await api.call(pair, "POST", "/sessions")).json()["id"]
    code = {"language": "python", "code": "print(1)"}
    refused = await api.call(pair, "POST", "/execute", code)
    assert refused.json()["error"] == "concurrency_limit_reached"
    await api.call(pair, "DELETE", f"/sessions/{session_id}")
    assert (await api.call(pair, "POST", "/execute", code)).status_code == 200


def counted(api: Any, public_key: str) -> int:
    with api.database.reading() as sql:
        return int(
            sql.scalar("SELECT count(*) FROM api_request WHERE public_key = :key", key=public_key)
        )


def admission(api: Any, allowed: int, now_ms: int = NOW_MS) -> limits.Admission:
    return limits.Admission(api.database, "unsb-pk-one", allowed, now_ms)


async def test_an_admission_counts_once(api: Any) -> None:
    request = admission(api, 7)
    request.count()
    with request.transaction() as sql:
        sql.run("DELETE FROM output_lock")
    request.count()
    assert counted(api, "unsb-pk-one") == 1


async def test_an_admission_counts_with_what_it_admits_or_later(api: Any) -> None:
    request = admission(api, 7)
    with pytest.raises(ZeroDivisionError), request.transaction():
        raise ZeroDivisionError
    assert counted(api, "unsb-pk-one") == 0
    request.count()
    assert counted(api, "unsb-pk-one") == 1


async def test_an_admission_refused_for_its_rate_is_never_counted(api: Any) -> None:
    admission(api, 1).count()
    late = admission(api, 1)
    reached = False
    with pytest.raises(Problem, match="requests per minute"), late.transaction():
        reached = True
    assert not reached
    with api.database.transaction() as sql:
        sql.run("DELETE FROM api_request")
    late.count()
    assert counted(api, "unsb-pk-one") == 0


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/execute", CODE, 200),
        ("/execute", {}, 400),
        ("/execute", {**CODE, "vcpu": 8}, 429),
        ("/execute/async", CODE, 202),
        ("/execute/async", {}, 400),
        ("/sessions/unsb-session-none/execute", {"command": "x"}, 404),
        ("/sessions/unsb-session-none/execute", {}, 400),
        ("/run", CODE, 200),
    ],
)
async def test_an_order_counts_once_however_it_ends(
    api: Any, path: str, body: dict[str, Any], status: int
) -> None:
    pair = api.key()
    answer = await api.call(pair, "POST", path, body if path != "/run" else b"#!/bin/sh\necho")
    assert answer.status_code == status, answer.text
    assert counted(api, pair[0]) == 1


async def test_a_repeated_order_counts_and_a_suspended_key_counts(api: Any) -> None:
    pair = api.key()
    for _ in range(2):
        assert (await api.call(pair, "POST", "/execute", CODE, once="k")).status_code == 200
    assert counted(api, pair[0]) == 2
    with api.database.transaction() as sql:
        sql.run("UPDATE api_key SET status = 'suspended'")
    assert (await api.call(pair, "POST", "/execute", CODE)).status_code == 401
    assert counted(api, pair[0]) == 3


@pytest.mark.parametrize("body", [CODE, {}, b"no json"])
async def test_the_rate_comes_before_whatever_else_is_wrong(api: Any, body: Any) -> None:
    pair = api.key(tier=1)
    for _ in range(7):
        await api.call(pair, "GET", "/sessions")
    refused = await api.call(pair, "POST", "/execute", body)
    assert (refused.status_code, refused.json()["error"]) == (429, "rate_limit_exceeded")
    with api.database.reading() as sql:
        assert sql.scalar("SELECT count(*) FROM execution") == 0
    assert counted(api, pair[0]) == 7


async def test_64_parallel_orders_on_tier_one_admit_seven(api: Any) -> None:
    pair = api.key(tier=1)
    orders = (api.call(pair, "POST", "/execute", {}) for _ in range(64))
    codes = Counter(answer.status_code for answer in await asyncio.gather(*orders))
    assert codes == {400: 7, 429: 57}


async def test_rows_that_have_ended_are_not_read_for_the_slots(api: Any) -> None:
    with api.database.reading() as sql:
        plan = sql.all("EXPLAIN QUERY PLAN " + limits._SLOTS, key="k")
    used = " ".join(row["detail"] for row in plan)
    assert "session_live" in used
    assert "service_live" in used
