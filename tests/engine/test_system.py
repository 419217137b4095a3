"""What the machine we run on tells: the time of day, and random names."""

from __future__ import annotations

import re
import time

import pytest

from engine import SystemClock, system
from engine.clock import Follower
from engine.system import ANSWER_MS_MAX, new_run_id


def test_run_ids_are_ordered_by_time_and_unique():
    ids = [new_run_id(now_ms) for now_ms in (1, 2, 1_700_000_000_000, 1_700_000_000_001)]
    assert ids == sorted(ids)
    assert len({new_run_id(5) for _ in range(1_000)}) == 1_000
    assert all(re.fullmatch("r[0-9a-f]{25}", one) for one in ids)


async def test_the_clock_tells_the_time():
    clock = SystemClock()
    before = time.time_ns() // 1_000_000
    assert before <= clock.now_ms() <= time.time_ns() // 1_000_000
    await clock.sleep(-5)


@pytest.fixture
def boot(monkeypatch):
    """Time since boot, and the wall clock, both by hand."""
    now = {"boot": 5_000, "wall": 1_000_000}
    monkeypatch.setattr(system, "steady_ms", lambda: now["boot"])
    monkeypatch.setattr(time, "time_ns", lambda: now["wall"] * 1_000_000)
    return now


def test_a_clock_that_follows_a_database_feels_no_step_of_its_hosts(boot):
    clock = SystemClock()
    assert isinstance(clock, Follower)
    assert clock.now_ms() == 1_000_000
    clock.follow(lambda: 2_000_000)
    for step in (3_600_000, -7_200_000):
        boot["wall"] += step
        boot["boot"] += 10
        assert clock.now_ms() == 2_000_000 + boot["boot"] - 5_000
    clock.follow(lambda: None)
    assert clock.now_ms() == 2_000_020


def test_a_clock_is_never_ahead_of_the_database_and_believes_no_late_answer(boot):
    clock = SystemClock()

    def answer(told_ms, after_ms):
        boot["boot"] += after_ms
        return told_ms

    clock.follow(lambda: answer(2_000_000, ANSWER_MS_MAX + 1))
    assert clock.now_ms() == 2_000_000  # better than none
    clock.follow(lambda: answer(3_000_000, ANSWER_MS_MAX + 1))
    assert clock.now_ms() == 2_000_000 + ANSWER_MS_MAX + 1
    clock.follow(lambda: answer(3_000_000, ANSWER_MS_MAX))
    assert clock.now_ms() == 3_000_000
