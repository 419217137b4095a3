"""Limits as programs meet them: which effects wait, and what never does."""

from __future__ import annotations

import pytest

from engine import Limit, Rate
from engine.errors import UsageError
from engine.limiting import read, written


@pytest.fixture
def order(zoo):
    return zoo.Order()


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"name": "a b", "slots": 1}, "expected a name"),
        ({"name": "a"}, "limits nothing"),
        ({"name": "a", "state": "s", "slots": 1}, "no machine"),
        ({"name": "a", "slots": -1}, "0 to 10000 slots"),
    ],
)
def test_a_limit_without_sense_is_refused(wrong, problem):
    with pytest.raises(UsageError, match=problem):
        Limit(**wrong)


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (1, 1, 0)])
def test_a_rate_without_sense_is_refused(numbers):
    with pytest.raises(UsageError, match="expected 1 or more"):
        Rate(*numbers)


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ([Limit("a", slots=1), Limit("a", slots=2)], "declared twice"),
        ([Limit("a", machine="Nobody", slots=1)], "not one of this program"),
        ([Limit("a", machine="Shop", state="flying", slots=1)], "no state 'flying'"),
    ],
)
def test_a_limit_of_what_is_not_there_is_refused(bench, limits, problem):
    with pytest.raises(UsageError, match=problem):
        bench.harness(limits=limits)


def test_names_in_a_row_are_read_back():
    assert (written(["b", "a"]), read(",a,b,")) == (",a,b,", {"a", "b"})
    assert (written([]), read(None)) == (None, frozenset())


async def test_a_rate_never_lets_more_through_than_it_says(bench, zoo):
    rate = Limit("bank", machine=zoo.Errand, state="fetching", rate=Rate(2, per_ms=1_000))
    async with bench.harness(limits=[rate]) as harness:
        begun_ms = bench.clock.now_ms()
        for _ in range(7):
            await harness.app.start(zoo.Errand, zoo.Order())
        done = []
        while len(bench.ledger.charged) < 7:
            await harness.app.settle()
            done.append((bench.clock.now_ms() - begun_ms, len(bench.ledger.charged)))
            bench.clock.advance(100)
        assert all(count <= 1 + at_ms // 500 for at_ms, count in done)
        assert done[-1] == (3_000, 7)
        await bench.sound(harness)


async def test_a_retry_costs_a_token_of_its_own(bench, zoo):
    bench.ledger.script = ["again 0", "again 0", "ok"]
    rate = Limit("bank", machine=zoo.Errand, rate=Rate(1, per_ms=60_000))
    async with bench.harness(limits=[rate]) as harness:
        run = await harness.app.start(zoo.Errand, zoo.Order())
        begun_ms = bench.clock.now_ms()
        await harness.until_idle()
        assert (await harness.app.get(run.run_id)).status == "completed"
        assert bench.clock.now_ms() - begun_ms == 120_000


async def test_an_effect_waits_while_another_program_has_the_slot(bench, zoo, order):
    limit = Limit("one", machine=zoo.Errand, slots=1)
    async with bench.harness(limits=[limit]) as first, bench.harness() as second:
        a = await first.app.start(zoo.Errand, order)
        b = await first.app.start(zoo.Errand, order)
        (held,) = await first.app._worker.claim(limit=9)
        assert await second.app.settle() == 0  # it read the limit when it opened
        assert bench.ledger.charged == []
        await first.app._runner.advance(held)
        assert await second.app.settle() == 1
        for run in (a, b):
            assert (await first.app.get(run.run_id)).status == "completed"
        assert bench.store.limits.held() == []
        await bench.sound(first)


async def test_an_event_a_cancel_and_a_timer_never_wait(bench, zoo, order):
    limit = Limit("none", machine=zoo.Shop, state="charging", slots=0)
    async with bench.harness(limits=[limit]) as harness:
        run = await harness.app.start(zoo.Shop, order)
        await harness.app.settle()
        await harness.app.send(run.run_id, zoo.Noted(count=3))
        await harness.app.settle()
        assert (await harness.app.get(run.run_id)).context.notes == 3
        assert (await harness.app.get(run.run_id)).state == "charging"
        await harness.app.cancel(run.run_id)
        await harness.app.settle()
        assert (await harness.app.get(run.run_id)).status == "cancelled"
        assert bench.ledger.attempts == []
        await bench.sound(harness)


async def test_a_crash_gives_the_slot_back(bench, zoo, order):
    limit = Limit("one", machine=zoo.Errand, slots=1)
    async with bench.harness(limits=[limit]) as harness:
        run = await harness.app.start(zoo.Errand, order)
        (_lost,) = await harness.app._worker.claim(limit=1)
        assert [one.count for one in bench.store.limits.held()] == [1]
        bench.clock.advance(60_000)
        async with bench.harness() as other:
            await other.until_idle()
            assert (await other.app.get(run.run_id)).status == "completed"
            assert bench.store.limits.held() == []


async def test_priority_and_tenant_are_kept_and_checked(bench, zoo, order):
    async with bench.harness() as harness:
        run = await harness.app.start(zoo.Shop, order, tenant="acme", priority=5)
        stored = await harness.app.get(run.run_id)
        assert (stored.tenant, stored.priority) == ("acme", 5)
        with pytest.raises(UsageError, match="priority"):
            await harness.app.start(zoo.Shop, order, priority=10_000_000)
        with pytest.raises(UsageError, match="tenant"):
            await harness.app.start(zoo.Shop, order, tenant="x" * 201)


async def test_a_limit_declared_anew_is_told(bench, zoo, capsys):
    async with bench.harness(limits=[Limit("one", slots=1)]):
        pass
    async with bench.harness(limits=[Limit("one", slots=2)]):
        assert [one.slots for one in bench.store.limits.all()] == [2]
