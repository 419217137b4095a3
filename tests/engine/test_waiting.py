"""Waiting for runs: told by this program, one query for what other processes move."""

from __future__ import annotations

import asyncio

import pytest

from engine.codec import Codec
from engine.committer import InlineIo
from engine.errors import StoreFull, UnknownRun
from engine.table import compile_table
from engine.waiting import POLL_MS, Waiters


class Counting:
    """A store whose lookups of rested runs are counted."""

    def __init__(self, inner):
        self._inner = inner
        self.asked: list[int] = []
        self.error: Exception | None = None

    @property
    def runs(self):
        return self

    def rested(self, run_ids):
        self.asked.append(len(run_ids))
        if self.error is not None:
            raise self.error
        return self._inner.runs.rested(run_ids)

    def get(self, run_id):
        return self._inner.runs.get(run_id)

    def __getattr__(self, name):
        return getattr(self._inner, name)


class Ticks:
    """Whoever sleeps goes on at the next tick, however long he meant to."""

    def __init__(self, clock):
        self._clock = clock
        self.asked_ms: list[int] = []
        self._tick = asyncio.Event()

    def now_ms(self):
        return self._clock.now_ms()

    async def sleep(self, duration_ms):
        self.asked_ms.append(duration_ms)
        await self._tick.wait()

    async def tick(self):
        """The time of a poll passes, and what it wakes is done."""
        self._clock.advance(POLL_MS)
        self._tick.set()
        self._tick = asyncio.Event()
        await turns()


def nothing_wrong():
    """What a worker says while all is well."""


async def turns(number=20):
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.fixture
async def shop(bench, zoo):
    """Time, a harness, the store that counts, and those who wait over it."""
    async with bench.harness() as harness:
        counting = Counting(bench.store)
        codec = Codec(bench.secrets, {"Shop": compile_table(zoo.Shop)})
        ticks = Ticks(bench.clock)
        yield ticks, harness, counting, Waiters(counting, InlineIo(), ticks, codec)


async def started(harness, zoo, number=1):
    return [(await harness.app.start(zoo.Shop, zoo.Order())).run_id for _ in range(number)]


async def test_a_thousand_who_wait_cost_one_query_a_poll(shop, zoo):
    time, harness, counting, waiters = shop
    run_ids = await started(harness, zoo, 20)
    waiting = [
        asyncio.create_task(waiters.wait(run_ids[n % 20], True, nothing_wrong))
        for n in range(1_000)
    ]
    await turns()
    assert counting.asked == []  # they are in hand: nobody has to look
    for polls in (1, 2, 3):
        await time.tick()
        assert counting.asked == [20] * polls
    assert time.asked_ms == [POLL_MS] * 4
    for run_id in run_ids:
        await harness.app.cancel(run_id)
    await harness.app.settle()
    await time.tick()
    runs = await asyncio.gather(*waiting)
    assert {run.run_id for run in runs} == set(run_ids)
    assert {run.status for run in runs} == {"cancelled"}
    assert counting.asked == [20] * 4
    await time.tick()
    assert len(counting.asked) == 4  # nobody waits, nobody asks


async def test_who_waits_is_told_at_once_of_what_this_program_moves(shop, zoo):
    _time, harness, counting, waiters = shop
    (run_id,) = await started(harness, zoo)
    waiting = asyncio.create_task(waiters.wait(run_id, True, nothing_wrong))
    await turns()
    run = (await harness.app.get(run_id)).but(status="completed", state="done")
    waiters.rests(run)
    assert await waiting == run
    assert counting.asked == []


async def test_a_run_that_rests_already_is_answered_without_a_poll(shop, zoo):
    _time, harness, counting, waiters = shop
    (run_id,) = await started(harness, zoo)
    await harness.app.pause(run_id)
    await harness.app.settle()
    run = await waiters.wait(run_id, False, nothing_wrong)
    assert (run.run_id, run.status) == (run_id, "paused")
    assert counting.asked == [1]


async def test_an_unknown_run_is_not_waited_for(shop):
    *_, counting, waiters = shop
    with pytest.raises(UnknownRun, match="nobody"):
        await waiters.wait("nobody", False, nothing_wrong)
    assert counting.asked == [1]


async def test_one_who_gives_up_leaves_the_others_waiting(shop, zoo):
    time, harness, _counting, waiters = shop
    (run_id,) = await started(harness, zoo)
    impatient, patient = (
        asyncio.create_task(waiters.wait(run_id, True, nothing_wrong)) for _ in range(2)
    )
    await turns()
    impatient.cancel()
    await turns()
    await harness.app.cancel(run_id)
    await harness.app.settle()
    await time.tick()
    assert (await patient).status == "cancelled"
    with pytest.raises(asyncio.CancelledError):
        await impatient


async def test_what_makes_waiting_useless_reaches_everybody_and_nobody_after_them(shop, zoo):
    time, harness, _counting, waiters = shop
    (run_id,) = await started(harness, zoo)
    wrong = []

    def check():
        if wrong:
            raise StoreFull(wrong[0])

    waiting = [asyncio.create_task(waiters.wait(run_id, True, check)) for _ in range(3)]
    await turns()
    wrong.append("the disk is full")
    await time.tick()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(one) for one in found] == ["the disk is full"] * 3
    with pytest.raises(StoreFull):
        await waiters.wait(run_id, True, check)
    wrong.clear()
    later = asyncio.create_task(waiters.wait(run_id, True, check))
    await turns()
    await harness.app.cancel(run_id)
    await harness.app.settle()
    await time.tick()
    assert (await later).status == "cancelled"
