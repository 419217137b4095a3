"""The order of a worker's turn: control, deferred cancel, doubt, inbox, timer, effect, rest."""

from __future__ import annotations

import msgspec
import pytest

from engine import (
    Context,
    Event,
    Machine,
    NotDone,
    OutcomeUnknown,
    Retry,
    State,
    Transient,
    effect,
    hours,
    minutes,
    seconds,
)
from engine.errors import BadPayload, LostOwnership
from engine.testing import ManualClock


class Log(Context):
    seen: tuple[str, ...] = ()


class Say(Event, tag="say"):
    word: str


class Answered(Event, tag="answered"):
    word: str = "answer"


class Phone:
    """What the effects below do next."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.script: list[str] = []
        self.happened = False

    def ring(self) -> Answered:
        order = self.script.pop(0) if self.script else "answer"
        self.calls.append(order)
        if order == "busy":
            raise Transient("busy")
        if order == "crackle":
            raise OutcomeUnknown("crackle")
        return Answered()


@effect(retry=Retry(attempts=9, first_ms=seconds(10), factor=1, jitter=0))
async def ring(context: Log, call) -> Answered:
    return call.resource(Phone).ring()


@ring.reconcile
async def listen(context: Log, call) -> Answered | NotDone:
    phone = call.resource(Phone)
    phone.calls.append("listen")
    return Answered() if phone.happened else NotDone()


class Talk(Machine[Log]):
    """Everything at once in one state: an effect, a timer, events; later a cancel of its own."""

    ringing = State(initial=True, effect=ring, timeout=minutes(5), on_timeout="tired")
    talking = State(timeout=hours(1), on_timeout="tired")
    parting = State(waits=True, cancellable=False)
    fading = State(timeout=minutes(1), on_timeout="tired", cancellable=False)
    over = State(final=True)
    hung_up = State(final=True)

    say = ringing.to.itself() | talking.to.itself() | parting.to.itself() | fading.to.itself()
    answered = ringing.to(talking)
    tired = ringing.to(over) | talking.to(over) | fading.to(talking)
    part = talking.to(parting)
    fade = talking.to(fading)
    bye = parting.to(over) | fading.to(over)
    cancel = talking.to(hung_up, cond="polite")

    def polite(self, context: Log) -> bool:
        return "rude" not in context.seen

    def on_say(self, context: Log, event: Say) -> Log:
        return self.but(context, seen=(*context.seen, event.word))

    def on_answered(self, context: Log, event: Answered) -> Log:
        return self.but(context, seen=(*context.seen, event.word))

    def on_tired(self, context: Log) -> Log:
        return self.but(context, seen=(*context.seen, "tired"))


@pytest.fixture
def phone():
    return Phone()


@pytest.fixture
def talk(bench, phone):
    return bench.harness(Talk, resources={Phone: phone})


async def begun(talk):
    return (await talk.app.start(Talk, Log())).run_id


async def events_of(talk, run_id):
    return [entry.event for entry in await talk.app.journal(run_id)]


async def test_events_are_applied_in_the_order_in_which_they_came(talk):
    async with talk:
        run_id = await begun(talk)
        for word in "abc":
            await talk.app.send(run_id, Say(word=word))
        await talk.app.settle()
        assert (await talk.app.get(run_id)).context.seen == ("a", "b", "c", "answer")


async def test_control_comes_before_events_that_came_earlier(talk, phone):
    async with talk:
        run_id = await begun(talk)
        await talk.app.send(run_id, Say(word="a"))
        await talk.app.pause(run_id)
        await talk.app.settle()
        assert await events_of(talk, run_id) == ["$start", "$pause"]
        assert phone.calls == []
        await talk.app.resume(run_id)
        await talk.app.settle()
        assert await events_of(talk, run_id) == ["$start", "$pause", "$resume", "say", "answered"]


async def test_an_event_comes_before_a_timer_of_the_same_instant(talk, bench):
    async with talk:
        run_id = await begun(talk)
        await talk.app.settle()
        bench.clock.advance(hours(1))
        await talk.app.open()
        await talk.app.send(run_id, Say(word="late"))
        await talk.app.settle()
        assert (await talk.app.get(run_id)).context.seen == ("answer", "late", "tired")
        await bench.sound(talk)


async def test_an_effect_due_before_the_timer_has_one_last_look(talk, bench, phone):
    phone.script = ["busy", "busy"]
    async with talk:
        run_id = await begun(talk)
        await talk.app.settle()
        bench.clock.advance(minutes(6))
        await talk.app.open()
        await talk.app.settle()
        assert await events_of(talk, run_id) == ["$start", "tired"]
        assert phone.calls == ["busy", "busy"]
        await bench.sound(talk)


async def test_a_timer_due_before_the_effect_comes_first(talk, bench, phone):
    phone.script = ["busy"] * 8
    async with talk:
        run_id = await begun(talk)
        await talk.app.settle()
        bench.clock.advance(minutes(5) - 1)
        await talk.app.open()
        await talk.app.settle()
        bench.clock.advance(seconds(10))
        await talk.app.open()
        await talk.app.settle()
        assert await events_of(talk, run_id) == ["$start", "tired"]
        assert phone.calls == ["busy", "busy"]


async def test_a_timer_does_not_fire_early_nor_twice(talk, bench):
    async with talk:
        run_id = await begun(talk)
        await talk.app.settle()
        bench.clock.advance(hours(1) - 1)
        await talk.app.open()
        await talk.app.send(run_id, "fade")
        await talk.app.settle()
        bench.clock.advance(minutes(1))
        await talk.app.open()
        await talk.app.settle()
        run = await talk.app.get(run_id)
        assert (run.state, run.deadline_ms) == ("talking", bench.clock.now_ms() + hours(1))
        bench.clock.advance(hours(1))
        await talk.app.open()
        await talk.app.settle()
        assert (await events_of(talk, run_id))[-2:] == ["tired", "tired"]
        assert await talk.app.settle() == 0


async def test_a_clock_that_goes_back_fires_nothing(talk, bench):
    async with talk:
        run_id = await begun(talk)
        await talk.app.settle()
        bench.clock.advance(-hours(1))
        await talk.app.open()
        assert await talk.app.settle() == 0
        bench.clock.advance(hours(1))
        assert (await talk.app.get(run_id)).state == "talking"


async def test_doubt_is_cleared_before_anything_of_the_machine(talk, bench, phone):
    phone.script = ["crackle"]
    phone.happened = True
    async with talk:
        run_id = await begun(talk)
        await talk.app.settle()
        bench.clock.advance(minutes(5))
        await talk.app.open()
        await talk.app.send(run_id, Say(word="a"))
        await talk.app.settle()
        assert await events_of(talk, run_id) == ["$start", "answered", "say"]
        assert phone.calls == ["crackle", "listen"]


async def test_late_duplicate_and_foreign_events_change_nothing(talk, bench):
    async with talk:
        run_id = await begun(talk)
        await talk.app.settle()
        before = await talk.app.get(run_id)
        early = await talk.app.send(run_id, "bye", key="early")
        await talk.app.settle()
        receipt = await talk.app.send(run_id, "bye", key="early")
        assert (early.status, receipt.status, receipt.duplicate) == ("accepted", "rejected", True)
        assert receipt.reason.startswith("state 'talking' does not handle it")
        assert await talk.app.get(run_id) == before
        for _ in range(3):
            await talk.app.send(run_id, Say(word="once"), key="same")
            await talk.app.settle()
        assert (await talk.app.get(run_id)).context.seen == ("answer", "once")
        await talk.app.cancel(run_id)
        await talk.app.settle()
        late = await talk.app.send(run_id, Say(word="late"))
        assert (late.status, late.reason) == ("rejected", "the run is completed")
        await bench.sound(talk)


async def test_refusals_without_number_do_not_wear_a_run_out(talk, bench):
    async with talk:
        run_id = await begun(talk)
        await talk.app.settle()
        for _ in range(120):
            await talk.app.send(run_id, "bye")
            await talk.app.settle()
        run = await talk.app.get(run_id)
        assert (run.status, run.state, run.seq) == ("waiting", "talking", 2)


# -- cancel -------------------------------------------------------------------------------------


async def test_the_machines_own_cancel_event_is_tried_first(talk, bench):
    async with talk:
        run_id = await begun(talk)
        await talk.app.settle()
        await talk.app.cancel(run_id)
        await talk.app.settle()
        run = await talk.app.get(run_id)
        assert (run.state, run.status, run.cancel_requested) == ("hung_up", "completed", False)
        assert (await events_of(talk, run_id))[-1] == "cancel"
        await bench.sound(talk)


async def test_a_refused_cancel_says_why(talk, bench):
    async with talk:
        run_id = await begun(talk)
        await talk.app.send(run_id, Say(word="rude"))
        await talk.app.settle()
        receipt = await talk.app.cancel(run_id)
        await talk.app.settle()
        receipt = bench.store.inbox.receipt(run_id, receipt.key)
        assert receipt.status == "rejected"
        assert "guard polite is false" in receipt.reason
        assert (await talk.app.get(run_id)).state == "talking"


async def test_cancel_waits_where_the_state_says_so(talk, bench):
    async with talk:
        run_id = await begun(talk)
        await talk.app.settle()
        await talk.app.send(run_id, "fade")
        await talk.app.settle()
        await talk.app.cancel(run_id)
        await talk.app.settle()
        run = await talk.app.get(run_id)
        assert (run.state, run.cancel_requested) == ("fading", True)
        bench.clock.advance(minutes(1))
        await talk.app.open()
        await talk.app.settle()
        run = await talk.app.get(run_id)
        assert (run.state, run.status) == ("hung_up", "completed")
        assert (await events_of(talk, run_id))[-4:] == ["fade", "$cancel", "tired", "cancel"]
        await bench.sound(talk)


async def test_a_second_cancel_while_one_waits_is_refused(talk, bench):
    async with talk:
        run_id = await begun(talk)
        await talk.app.settle()
        await talk.app.send(run_id, "part")
        await talk.app.settle()
        await talk.app.cancel(run_id)
        await talk.app.settle()
        again = await talk.app.cancel(run_id)
        await talk.app.settle()
        receipt = bench.store.inbox.receipt(run_id, again.key)
        assert receipt.reason == "a cancel request is waiting already"
        await talk.app.send(run_id, "bye")
        await talk.app.settle()
        run = await talk.app.get(run_id)
        assert (run.state, run.status) == ("over", "completed")
        await bench.sound(talk)


@pytest.mark.parametrize("happened", [True, False])
async def test_cancel_in_doubt_first_finds_out(talk, bench, phone, happened):
    phone.script, phone.happened = ["crackle"], happened
    async with talk:
        run_id = await begun(talk)
        await talk.app.settle()
        bench.clock.advance(seconds(10))
        await talk.app.cancel(run_id)
        await talk.app.settle()
        run = await talk.app.get(run_id)
        assert phone.calls == ["crackle", "listen"]
        expected = ("hung_up", "completed") if happened else ("ringing", "cancelled")
        assert (run.state, run.status) == expected
        await bench.sound(talk)


async def test_cancel_between_attempts_cancels(talk, bench, phone):
    phone.script = ["busy"]
    async with talk:
        run_id = await begun(talk)
        await talk.app.settle()
        await talk.app.cancel(run_id)
        await talk.app.settle()
        assert (await talk.app.get(run_id)).status == "cancelled"
        assert [e.status for e in await talk.app.effects(run_id)] == ["abandoned"]
        await bench.sound(talk)


# -- pause, resume, quarantine ------------------------------------------------------------------


async def test_resume_in_doubt_asks_and_does_not_call_again(talk, bench, phone):
    phone.script, phone.happened = ["crackle"], True
    async with talk:
        run_id = await begun(talk)
        await talk.app.settle()
        await talk.app.pause(run_id)
        await talk.app.settle()
        await talk.app.resume(run_id)
        await talk.app.settle()
        assert phone.calls == ["crackle", "listen"]
        assert (await talk.app.get(run_id)).state == "talking"
        await bench.sound(talk)


async def test_a_paused_run_keeps_its_events_and_lets_its_timer_wait(talk, bench):
    async with talk:
        run_id = await begun(talk)
        await talk.app.settle()
        await talk.app.pause(run_id)
        await talk.app.settle()
        await talk.app.send(run_id, Say(word="kept"))
        bench.clock.advance(hours(2))
        await talk.app.open()
        await talk.app.settle()
        run = await talk.app.get(run_id)
        assert (run.status, run.held_from, run.seq) == ("paused", "waiting", 3)
        await talk.app.resume(run_id)
        await talk.app.settle()
        assert (await talk.app.get(run_id)).context.seen == ("answer", "kept", "tired")
        await bench.sound(talk)


@pytest.mark.parametrize("control", ["pause", "resume"])
async def test_control_that_makes_no_sense_is_refused(talk, bench, control):
    async with talk:
        run_id = await begun(talk)
        await talk.app.settle()
        if control == "pause":
            await talk.app.pause(run_id)
            await talk.app.settle()
        receipt = await getattr(talk.app, control)(run_id)
        await talk.app.settle()
        receipt = bench.store.inbox.receipt(run_id, receipt.key)
        assert receipt.status == "rejected"
        assert receipt.reason.startswith("the run is ")


async def test_a_paused_run_can_be_cancelled(bench, zoo):
    async with bench.harness() as harness:
        run_id = (await harness.app.start(zoo.Shop, zoo.Order())).run_id
        await harness.app.settle()
        await harness.app.pause(run_id)
        await harness.app.settle()
        await harness.app.cancel(run_id)
        await harness.app.settle()
        assert (await harness.app.get(run_id)).status == "cancelled"
        assert len(bench.ledger.refunded) == 1
        await bench.sound(harness)


async def test_a_violation_is_quarantined_with_its_evidence(bench, zoo):
    async with bench.harness() as harness:
        run_id = (await harness.app.start(zoo.Shop, zoo.Order())).run_id
        await harness.app.settle()
        receipt = await harness.app.send(run_id, zoo.Noted(count=13), key="bad")
        await harness.app.settle()
        run = await harness.app.get(run_id)
        assert (run.status, run.state, run.seq) == ("quarantined", "packing", 2)
        assert "ensures notes_add_up does not hold" in run.last_error
        assert "event.count=13" in run.last_error
        receipt = bench.store.inbox.receipt(run_id, "bad")
        assert receipt.status == "rejected"
        await harness.app.resume(run_id)
        await harness.app.settle()
        run = await harness.app.get(run_id)
        assert (run.status, run.last_error) == ("waiting", None)
        await bench.sound(harness)


async def test_a_quarantined_run_can_be_cancelled(bench, zoo):
    async with bench.harness() as harness:
        run_id = (await harness.app.start(zoo.Shop, zoo.Order())).run_id
        await harness.app.settle()
        await harness.app.send(run_id, zoo.Noted(count=13))
        await harness.app.settle()
        await harness.app.cancel(run_id)
        await harness.app.settle()
        assert (await harness.app.get(run_id)).status == "cancelled"
        await bench.sound(harness)


async def test_a_timer_that_is_refused_is_quarantined(bench):
    class Nothing(Context):
        open: bool = False

    class Stuck(Machine[Nothing]):
        waiting = State(initial=True, timeout=1_000, on_timeout="late")
        end = State(final=True)
        late = waiting.to(end, cond="is_open")

        def is_open(self, context):
            return context.open

    async with bench.harness(Stuck) as harness:
        run_id = (await harness.app.start(Stuck, Nothing())).run_id
        await harness.until_idle()
        run = await harness.app.get(run_id)
        assert run.status == "quarantined"
        assert run.last_error == "timer 'late': guard is_open is false (context.open=False)"


async def test_code_that_raises_where_it_may_not_is_quarantined(bench):
    class Nothing(Context):
        pass

    class Rough(Machine[Nothing]):
        waiting = State(initial=True, waits=True)
        end = State(final=True)
        go = waiting.to(end)

        def output(self, context):
            raise ValueError("the secret is 1234")

    async with bench.harness(Rough) as harness:
        run_id = (await harness.app.start(Rough, Nothing())).run_id
        await harness.app.send(run_id, "go", key="go")
        await harness.app.settle()
        run = await harness.app.get(run_id)
        assert (run.status, run.state) == ("quarantined", "waiting")
        assert run.last_error.startswith("the machine's code raised ValueError at line")
        assert "1234" not in run.last_error
        assert bench.store.inbox.receipt(run_id, "go").status == "accepted"
        assert bench.store.runs.get(run_id).owner is None


async def test_a_run_that_cannot_be_read_is_set_aside_not_lost(bench, zoo):
    async with bench.harness() as harness:
        run_id = (await harness.app.start(zoo.Shop, zoo.Order())).run_id
        original = harness.app.codec.decode

        def broken(kind, body, what):
            raise BadPayload(f"{what}: Object missing required field `x`")

        harness.app.codec.decode = broken
        await harness.app.settle()
        harness.app.codec.decode = original
        stored = bench.store.runs.get(run_id)
        assert (stored.run.status, stored.owner) == ("quarantined", None)
        assert stored.run.last_error.startswith(f"context of run {run_id}: Object missing")
        await harness.app.resume(run_id)
        await harness.until_idle(horizon_ms=seconds(30))
        assert (await harness.app.get(run_id)).state == "packing"


async def test_a_zombie_after_its_lease_changes_nothing(bench, zoo):
    zombie, clock = bench.harness(), bench.clock
    assert isinstance(clock, ManualClock)
    async with zombie:
        run_id = (await zombie.app.start(zoo.Shop, zoo.Order())).run_id
        (claimed,) = await zombie.app._worker.claim(limit=1)
        clock.advance(seconds(15))
        async with bench.harness() as other:
            await other.app.settle()
            assert (await other.app.get(run_id)).state == "packing"
        await zombie.app.open()  # its lease is good again, but not for what it claimed before
        await zombie.app._runner.advance(claimed)
        assert len(bench.ledger.charged) == 1
        unaware = msgspec.structs.replace(claimed, term=zombie.app._lease.term)
        with pytest.raises(LostOwnership, match=f"run {run_id}: moved by another worker"):
            await zombie.app._runner.advance(unaware)
        assert len(bench.ledger.charged) == 1
        await bench.sound(zombie)


async def test_a_late_heartbeat_does_not_revive_what_was_claimed_before(bench, zoo):
    async with bench.harness() as harness:
        run_id = (await harness.app.start(zoo.Shop, zoo.Order())).run_id
        (claimed,) = await harness.app._worker.claim(limit=1)
        bench.clock.advance(seconds(15))
        await harness.app.beat()
        await harness.app._runner.advance(claimed)
        assert bench.ledger.charged == []
        assert bench.store.runs.get(run_id).owner is None
        await harness.until_idle(horizon_ms=seconds(30))
        assert len(bench.ledger.charged) == 1


async def test_without_a_safe_lease_no_effect_is_started(bench, zoo):
    async with bench.harness() as harness:
        run_id = (await harness.app.start(zoo.Shop, zoo.Order())).run_id
        (claimed,) = await harness.app._worker.claim(limit=1)
        bench.clock.advance(seconds(13))
        await harness.app._runner.advance(claimed)
        assert bench.ledger.charged == []
        assert bench.store.runs.get(run_id).owner is None
        await harness.until_idle(horizon_ms=seconds(30))
        assert len(bench.ledger.charged) == 1
