"""Time stands still until a test moves it."""

from __future__ import annotations

import asyncio

from engine.testing import ManualClock


async def test_it_moves_by_hand_alone():
    clock = ManualClock(1_000)
    await clock.sleep(60_000)
    assert clock.now_ms() == 1_000
    clock.advance(5)
    clock.advance_to(1_001)
    assert clock.now_ms() == 1_005
    clock.advance_to(2_000)
    clock.advance(-500)
    assert clock.now_ms() == 1_500


async def test_sleeping_lets_others_run_once():
    order = []

    async def other():
        order.append("other")

    task = asyncio.create_task(other())
    await ManualClock().sleep(1)
    order.append("me")
    await task
    assert order == ["other", "me"]
