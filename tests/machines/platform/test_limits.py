"""Rates and slots: by tier, sliding, and exact under parallel requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from machines.platform import limits


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
