"""What the machine we run on tells: the time of day, and random names."""

from __future__ import annotations

import re
import time

from engine import SystemClock
from engine.system import new_run_id


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
