"""The harness: one process after another over the same store, on a clock moved by hand."""

from __future__ import annotations

import pytest

from engine import Context, Event, Machine, State, effect, hours, minutes
from engine.testing import Crash, CrashPlan
from engine.worker import LEASE_MS


async def test_until_idle_moves_the_clock_to_whatever_falls_due(bench, zoo):
    start_ms = bench.clock.now_ms()
    async with bench.harness() as harness:
        run = await harness.app.start(zoo.Shop, zoo.Order())
        await harness.until_idle()
        assert (await harness.app.get(run.run_id)).state == "expired"
    assert bench.clock.now_ms() == start_ms + hours(1)


async def test_a_horizon_keeps_it_from_going_further(bench, zoo):
    start_ms = bench.clock.now_ms()
    async with bench.harness() as harness:
        run = await harness.app.start(zoo.Shop, zoo.Order())
        await harness.until_idle(horizon_ms=minutes(59))
        assert (await harness.app.get(run.run_id)).state == "packing"
        assert bench.clock.now_ms() == start_ms


async def test_a_lease_outlives_a_long_wait(bench, zoo):
    bench.ledger.script = ["later 3600000"]
    async with bench.harness() as harness:
        run = await harness.app.start(zoo.Errand, zoo.Order())
        await harness.until_idle()
        assert (await harness.app.get(run.run_id)).status == "completed"


async def test_the_dead_retire_nothing_and_the_next_one_takes_over_after_the_lease(bench, zoo):
    plan = CrashPlan()
    doomed = bench.harness(plan=plan)
    with pytest.raises(Crash, match=r"after runs\.claim"):
        async with doomed:
            run = await doomed.app.start(zoo.Shop, zoo.Order())
            plan.at = len(plan.passed) + 2
            await doomed.until_idle()
    (worker,) = bench.store.workers.all()
    assert bench.store.runs.get(run.run_id).owner == worker[0].worker_id
    with pytest.raises(Crash, match="after death"):
        await doomed.app.start(zoo.Shop, zoo.Order())
    async with bench.harness() as harness:
        assert await harness.app.settle() == 0
        bench.clock.advance(LEASE_MS)
        await harness.until_idle(horizon_ms=minutes(1))
        assert (await harness.app.get(run.run_id)).state == "packing"
        assert bench.store.runs.get(run.run_id).fence > 1


async def test_a_machine_that_never_rests_is_noticed(bench, monkeypatch):
    class Nothing(Context):
        pass

    class Tick(Event, tag="tick"):
        pass

    @effect(idempotent=True)
    async def wind(context, call):
        return Tick()

    class Restless(Machine[Nothing]):
        payloads = (Tick,)
        going = State(initial=True, effect=wind, every=1)
        end = State(final=True)
        tick = going.to.itself()
        stop = going.to(end)

    async with bench.harness(Restless) as harness:
        run = await harness.app.start(Restless, Nothing())
        await harness.until_idle(horizon_ms=50)
        assert (await harness.app.get(run.run_id)).seq == 52
        monkeypatch.setattr("engine.testing.harness.MOVES_MAX", 20)
        with pytest.raises(AssertionError, match="not idle after 20 moves"):
            await harness.until_idle()
