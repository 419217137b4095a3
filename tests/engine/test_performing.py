"""Every way a call may end, and that an outcome nobody knows is asked about and never guessed."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from engine import (
    Again,
    Call,
    Context,
    Event,
    Machine,
    NotDone,
    OutcomeUnknown,
    Permanent,
    Retry,
    State,
    Transient,
    effect,
    seconds,
)
from engine.performing import OutsideCalls
from engine.testing import Crash, CrashPlan
from engine.worker import LEASE_MS


async def started(bench, zoo, harness, machine=None):
    return (await harness.app.start(machine or zoo.Shop, zoo.Order())).run_id


def effect_of(bench, run_id):
    return bench.store.runs.get(run_id).run.effect


async def test_an_event_is_the_outcome(bench, zoo):
    async with bench.harness() as harness:
        run_id = await started(bench, zoo, harness)
        await harness.app.settle()
        run = await harness.app.get(run_id)
        (record,) = await harness.app.effects(run_id)
        assert (run.state, run.context.receipt) == ("packing", f"for {record.key}")
        assert (record.status, record.attempts, record.open) == ("done", 1, False)
        assert bench.ledger.charged == [record.key]
        await bench.sound(harness)


async def test_again_waits_for_every_and_forgets_attempts(bench, zoo):
    bench.ledger.script = ["again", "later", "again 90000"]
    async with bench.harness() as harness:
        run_id = await started(bench, zoo, harness)
        start_ms = bench.clock.now_ms()
        await harness.app.settle()
        assert effect_of(bench, run_id).next_ms == start_ms + 5_000
        bench.clock.advance(4_999)
        await harness.app.settle()
        assert bench.ledger.attempts == [1]
        bench.clock.advance(1)
        await harness.app.settle()
        assert effect_of(bench, run_id).attempts == 1
        await harness.app.open()
        bench.clock.advance(1_000)
        await harness.app.settle()
        assert bench.ledger.attempts == [1, 1, 2]
        pending = effect_of(bench, run_id)
        assert (pending.attempts, pending.last_error) == (0, None)
        assert pending.next_ms == bench.clock.now_ms() + 90_000
        await harness.until_idle(horizon_ms=100_000)
        assert (await harness.app.get(run_id)).state == "packing"


async def test_polling_for_ever_is_no_stall(bench, zoo):
    bench.ledger.script = ["again"] * 200
    async with bench.harness() as harness:
        run_id = await started(bench, zoo, harness)
        await harness.until_idle(horizon_ms=1_000 * 201 * 5)
        assert (await harness.app.get(run_id)).state == "packing"
        await bench.sound(harness)


async def test_transient_is_tried_again_after_a_growing_delay(bench, zoo):
    bench.ledger.script = ["later", "later", "ok"]
    async with bench.harness() as harness:
        run_id = await started(bench, zoo, harness)
        for delay in (1_000, 2_000):
            await harness.app.settle()
            pending = effect_of(bench, run_id)
            assert (pending.open, pending.last_error) == (False, "try later")
            assert pending.next_ms == bench.clock.now_ms() + delay
            bench.clock.advance(delay)
        await harness.app.settle()
        assert bench.ledger.attempts == [1, 2, 3]
        assert (await harness.app.get(run_id)).state == "packing"
        assert bench.ledger.asked == []


async def test_retry_after_is_respected(bench, zoo):
    bench.ledger.script = ["later 60000", "later 10"]
    async with bench.harness() as harness:
        run_id = await started(bench, zoo, harness)
        await harness.app.settle()
        assert effect_of(bench, run_id).next_ms == bench.clock.now_ms() + 60_000
        bench.clock.advance(60_000)
        await harness.app.open()
        await harness.app.settle()
        assert effect_of(bench, run_id).next_ms == bench.clock.now_ms() + 2_000


@pytest.mark.parametrize(
    ("script", "attempts", "reason"),
    [(["later"] * 3, 3, "try later"), (["never"], 1, "card refused"), (["later", "never"], 2, "")],
)
async def test_giving_up_is_an_event(bench, zoo, script, attempts, reason):
    bench.ledger.script = script
    async with bench.harness() as harness:
        run_id = await started(bench, zoo, harness)
        await harness.until_idle(horizon_ms=60_000)
        entry = (await harness.app.journal(run_id))[-1]
        assert (entry.event, entry.target, entry.status) == ("no_charge", "declined", "failed")
        assert (entry.payload.effect, entry.payload.attempts) == ("charge", attempts)
        assert reason in entry.payload.reason
        assert [e.status for e in await harness.app.effects(run_id)] == ["given_up"]
        await bench.sound(harness)


@pytest.mark.parametrize("script", [["later"] * 3, ["never"]])
async def test_giving_up_without_an_event_is_quarantine_and_resume_tries_anew(bench, zoo, script):
    bench.ledger.script = script
    async with bench.harness() as harness:
        run_id = await started(bench, zoo, harness, zoo.Errand)
        await harness.until_idle(horizon_ms=60_000)
        run = await harness.app.get(run_id)
        assert run.status == "quarantined"
        assert "effect fetch given up: " in run.last_error
        await harness.app.resume(run_id)
        await harness.until_idle(horizon_ms=60_000)
        run = await harness.app.get(run_id)
        assert (run.status, run.last_error) == ("completed", None)
        assert bench.ledger.attempts[-1] == 1
        await bench.sound(harness)


@pytest.mark.parametrize("ending", ["lost", "late"])
async def test_unknown_and_done_is_never_performed_again(bench, zoo, ending):
    bench.ledger.script = [ending]
    async with bench.harness() as harness:
        run_id = await started(bench, zoo, harness)
        await harness.app.settle()
        pending = effect_of(bench, run_id)
        assert pending.open
        assert pending.next_ms == bench.clock.now_ms() + 1_000
        await harness.until_idle(horizon_ms=60_000)
        assert (await harness.app.get(run_id)).state == "packing"
        assert len(bench.ledger.charged) == len(bench.ledger.asked) == 1
        await bench.sound(harness)


@pytest.mark.parametrize("ending", ["unsent", "broken"])
async def test_unknown_and_not_done_is_performed_again_with_the_same_key(bench, zoo, ending):
    bench.ledger.script = [ending]
    async with bench.harness() as harness:
        run_id = await started(bench, zoo, harness)
        await harness.app.settle()
        key = effect_of(bench, run_id).key
        assert "secret-ish" not in effect_of(bench, run_id).last_error
        await harness.until_idle(horizon_ms=60_000)
        assert bench.ledger.charged == bench.ledger.asked == [key]
        await bench.sound(harness)


async def test_unknown_for_ever_is_quarantined_and_resume_asks_first(bench, zoo):
    bench.ledger.script = ["lost"]
    bench.ledger.answers = ["unknown"] * 2
    async with bench.harness() as harness:
        run_id = await started(bench, zoo, harness)
        await harness.until_idle(horizon_ms=60_000)
        run = await harness.app.get(run_id)
        assert run.status == "quarantined"
        assert run.last_error == "outcome of effect charge unknown: the bank does not say"
        await harness.app.resume(run_id)
        await harness.until_idle(horizon_ms=60_000)
        assert (await harness.app.get(run_id)).state == "packing"
        assert len(bench.ledger.charged) == 1
        assert len(bench.ledger.asked) == 3
        await bench.sound(harness)


async def test_an_idempotent_effect_is_performed_again_instead(bench, zoo):
    bench.ledger.script = ["lost", "ok"]
    async with bench.harness() as harness:
        run_id = await started(bench, zoo, harness, zoo.Errand)
        await harness.until_idle(horizon_ms=60_000)
        assert (await harness.app.get(run_id)).status == "completed"
        assert bench.ledger.attempts == [1, 2]
        assert len(set(bench.ledger.charged)) == 1
        assert bench.ledger.asked == []


async def test_an_idempotent_effect_that_never_answers_is_given_up(bench, zoo):
    bench.ledger.script = ["lost"] * 9
    async with bench.harness() as harness:
        run_id = await started(bench, zoo, harness, zoo.Errand)
        await harness.until_idle(horizon_ms=60_000)
        assert (await harness.app.get(run_id)).status == "quarantined"
        assert bench.ledger.attempts == [1, 2, 3]


@pytest.mark.parametrize(
    ("boundary", "calls", "asked"),
    [("before effect charge", 1, 1), ("after effect charge", 1, 1)],
)
async def test_a_death_around_the_call_is_asked_about(bench, zoo, boundary, calls, asked):
    plan = CrashPlan()
    async with bench.harness(plan=plan) as harness:
        run_id = await started(bench, zoo, harness)
        await harness.app.settle()
    at = next(b.number for b in plan.passed if b.name == boundary)
    bench.ledger.charged.clear()
    doomed = bench.harness(plan=CrashPlan(at=at))
    await doomed.app.open()
    run_id = (await doomed.app.start(zoo.Shop, zoo.Order())).run_id
    with pytest.raises(Crash):
        await doomed.app.settle()
    assert effect_of(bench, run_id).open
    assert effect_of(bench, run_id).attempts == 1
    bench.clock.advance(LEASE_MS)
    async with bench.harness() as harness:
        await harness.until_idle(horizon_ms=60_000)
        assert (await harness.app.get(run_id)).state == "packing"
    assert (len(bench.ledger.charged), len(bench.ledger.asked)) == (calls, asked)


async def test_a_workers_own_death_loop_ends_in_quarantine(bench, zoo):
    run_id = ""
    for _ in range(60):
        doomed = bench.harness(plan=CrashPlan())
        await doomed.app.open()
        run_id = run_id or (await started(bench, zoo, doomed))

        def die(name, doomed=doomed):
            if name == "before effect charge":
                doomed.plan.dead = True
                raise Crash(name)

        doomed.plan.pass_by = die
        try:
            await doomed.app.settle()
        except Crash:
            bench.clock.advance(LEASE_MS)
    async with bench.harness() as harness:
        run = await harness.app.get(run_id)
        assert run.status == "quarantined"
        assert "times without progress" in run.last_error
        assert bench.ledger.charged == []
        await harness.app.resume(run_id)
        await harness.until_idle(horizon_ms=60_000)
        assert (await harness.app.get(run_id)).state == "packing"


# -- an outcome that the machine cannot take ----------------------------------------------------


async def test_an_outcome_that_is_refused_is_quarantined_and_kept_in_doubt(bench, zoo):
    class Answer(Context):
        good: bool = False

    class Fine(Event, tag="fine"):
        pass

    class Odd(Event, tag="odd"):
        pass

    answers = [Odd(), None]

    @effect(idempotent=True)
    async def ask(context, call):
        return answers.pop(0) if answers else Fine()

    class Asking(Machine[Answer]):
        payloads = (Fine,)
        asking = State(initial=True, effect=ask)
        end = State(final=True)
        fine = asking.to(end, cond="is_good")

        def is_good(self, context):
            return context.good

    async with bench.harness(Asking) as harness:
        run_id = (await harness.app.start(Asking, Answer())).run_id
        reasons = []
        for _ in range(3):
            await harness.app.settle()
            run = await harness.app.get(run_id)
            assert (run.status, run.effect.open, run.seq) == ("quarantined", True, 1 + len(reasons))
            reasons.append(run.last_error)
            await harness.app.resume(run_id)
        assert "has no event 'odd'" in reasons[0]
        assert "returned None, expected an event" in reasons[1]
        assert "guard is_good is false (context.good=False)" in reasons[2]


async def test_an_outcome_too_large_is_refused_before_the_commit(bench):
    class Text(Context):
        text: str = ""

    class Read(Event, tag="read"):
        text: str

    @effect(idempotent=True)
    async def fetch(context, call):
        return Read(text="x" * 300_000)

    class Reading(Machine[Text]):
        payloads = (Read,)
        reading = State(initial=True, effect=fetch)
        end = State(final=True)
        read = reading.to(end)

    async with bench.harness(Reading) as harness:
        run_id = (await harness.app.start(Reading, Text())).run_id
        await harness.app.settle()
        run = await harness.app.get(run_id)
        assert (run.status, run.state, run.seq) == ("quarantined", "reading", 1)
        assert f"payload of event read of run {run_id}: " in run.last_error
        assert "the limit is 262144" in run.last_error


async def test_a_missing_resource_is_named(bench, zoo):
    async with bench.harness() as harness:
        harness.app._runner._performer._resources.clear()
        run_id = await started(bench, zoo, harness)
        await harness.until_idle(horizon_ms=60_000)
        run = await harness.app.get(run_id)
        assert run.status == "quarantined"
        assert "effect needs the resource Ledger, which this App was not given" in run.last_error


# -- the real world -----------------------------------------------------------------------------


async def test_an_attempt_is_bounded_by_the_effects_timeout(zoo):
    @effect(idempotent=True, timeout_ms=1)
    async def slow(context, call):
        await asyncio.Event().wait()

    @slow.reconcile
    async def ask(context, call):
        await asyncio.Event().wait()

    call = Call("r1", "k", 1, 0, {})
    for ending in (OutsideCalls().perform, OutsideCalls().reconcile):
        with pytest.raises(TimeoutError):
            await ending(slow, zoo.Order(), call)


async def test_attempts_are_counted_before_the_call(bench, zoo):
    seen = []

    class Watching:
        async def perform(self, effect, context, call):
            seen.append((effect_of(bench, call.run_id).attempts, call.attempt))
            return await OutsideCalls().perform(effect, context, call)

    bench.ledger.script = ["later", "ok"]
    async with bench.harness() as harness:
        harness.app._runner._performer._calls = Watching()
        await started(bench, zoo, harness)
        await harness.until_idle(horizon_ms=60_000)
    assert seen == [(1, 1), (2, 2)]


async def test_again_from_reconcile_settles_the_attempt(bench):
    class Nothing(Context):
        pass

    class Done(Event, tag="done"):
        pass

    log = []

    @effect(retry=Retry(first_ms=100, jitter=0))
    async def send(context, call):
        log.append((f"send {call.attempt}", call.now_ms))
        if len(log) == 1:
            raise OutcomeUnknown("no answer")
        return Done()

    @send.reconcile
    async def find(context, call):
        log.append((f"find {call.attempt}", call.now_ms))
        return Again()

    class Sending(Machine[Nothing]):
        payloads = (Done,)
        sending = State(initial=True, effect=send, every=seconds(1))
        end = State(final=True)
        done = sending.to(end)

    async with bench.harness(Sending) as harness:
        run_id = (await harness.app.start(Sending, Nothing())).run_id
        await harness.until_idle()
        assert (await harness.app.get(run_id)).status == "completed"
    start_ms = log[0][1]
    assert log == [
        ("send 1", start_ms), ("find 2", start_ms + 100), ("send 1", start_ms + 1_100),
    ]  # fmt: skip


async def test_reconcile_that_says_never_parks_the_run(bench):
    class Nothing(Context):
        pass

    class Done(Event, tag="done"):
        pass

    @effect(retry=Retry(attempts=2, first_ms=100, jitter=0))
    async def send(context, call):
        raise OutcomeUnknown("no answer")

    @send.reconcile
    async def find(context, call) -> NotDone:
        raise Permanent("wrong credentials")

    class Sending(Machine[Nothing]):
        payloads = (Done,)
        sending = State(initial=True, effect=send)
        end = State(final=True)
        done = sending.to(end)

    async with bench.harness(Sending) as harness:
        run_id = (await harness.app.start(Sending, Nothing())).run_id
        await harness.until_idle()
        run = await harness.app.get(run_id)
        assert run.status == "quarantined"
        assert "unknown: wrong credentials" in run.last_error


# -- the time an effect has -----------------------------------------------------------------------


def timed(perform, timeout_seconds=60):
    """Makes the call of an effect whose work this is, as the engine makes it in production."""

    @effect(idempotent=True, timeout_ms=seconds(timeout_seconds))
    async def work(context: Errand, call: Call) -> Fetched:
        return await perform()

    call = Call(run_id="r1", key="k", attempt=1, now_ms=1, resources={})
    return OutsideCalls().perform(work, Errand(), call)


class Errand(Context):
    """Nothing to know."""


class Fetched(Event, tag="fetched"):
    """It is here."""


@pytest.fixture
async def timers(monkeypatch):
    """The moments for which the event loop was asked to call somebody."""
    loop, found = asyncio.get_running_loop(), []
    call_at = loop.call_at

    def noted(when, *given, **named):
        found.append(when)
        return call_at(when, *given, **named)

    monkeypatch.setattr(loop, "call_at", noted)
    return found


async def test_an_effect_that_finishes_at_once_arms_no_timer(timers):
    async def at_once():
        return Fetched()

    assert await timed(at_once) == Fetched()
    assert timers == []


async def test_an_exception_at_once_is_the_effects_own(timers):
    async def at_once():
        raise Permanent("refused")

    with pytest.raises(Permanent, match="refused"):
        await timed(at_once)
    assert timers == []


async def test_an_effect_that_waits_is_bounded_and_gets_its_answer(timers):
    async def waits():
        for _ in range(3):
            await asyncio.sleep(0)
        found = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(found.set_result, Fetched())
        return await found

    assert await timed(waits) == Fetched()
    assert len(timers) == 1


async def test_an_effect_that_waits_too_long_is_cancelled_where_it_waits():
    ended = []

    async def waits():
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append("cleaned up")

    with pytest.raises(TimeoutError):
        await timed(waits, timeout_seconds=0.001)
    assert ended == ["cleaned up"]


async def test_an_effect_that_has_an_answer_when_its_time_is_over_is_believed():
    async def waits():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
        return Fetched()

    assert await timed(waits, timeout_seconds=0.001) == Fetched()


async def test_cancelling_the_worker_reaches_the_effect():
    reached = []

    async def waits():
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            reached.append("cancelled")
            raise

    task = asyncio.create_task(timed(waits))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert reached == ["cancelled"]


async def test_what_the_outside_throws_comes_out_of_where_the_effect_waits():
    seen = []

    async def waits():
        answer = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(answer.set_exception, OutcomeUnknown("no answer"))
        try:
            await answer
        except OutcomeUnknown as error:
            seen.append(str(error))
            await asyncio.sleep(0)  # and it may go on waiting
            raise Transient("later") from error

    with pytest.raises(Transient, match="later"):
        await timed(waits)
    assert seen == ["no answer"]


async def test_a_timeout_within_the_effect_is_its_own_affair():
    async def waits():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.get_running_loop().create_future()
        return Fetched()

    assert await timed(waits) == Fetched()
