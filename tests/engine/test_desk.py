"""What happens together with a transition: children, messages, undoing, cancelling."""

from __future__ import annotations

import pytest

from engine import (
    Child,
    ChildEnded,
    ChildMoved,
    Context,
    Event,
    GaveUp,
    Machine,
    Permanent,
    State,
    Transient,
    effect,
    hours,
    invariant,
    minutes,
)
from engine.control import CANCEL
from engine.desk import child_in, ended_key
from engine.errors import Refused, UnknownMachine
from engine.limits import CHILD_DEPTH_MAX
from engine.ports import Delivery, Query, Write


class Seed(Context):
    size: int = 1
    limit: int = 100


class Fruit(Context):
    weight: int


class Grown(Event, tag="grown"):
    size: int


class Plant(Machine[Seed]):
    """A child that passes a milestone, and ends well or badly."""

    sprouting = State(initial=True, waits=True)
    blooming = State(waits=True, milestone=True)
    sleeping = State(timeout=hours(1), on_timeout="wither")
    ripe = State(final=True)
    dead = State(final=True, failure=True)

    grown = sprouting.to(blooming)
    pick = blooming.to(ripe)
    sleep = sprouting.to(sleeping)
    wither = sprouting.to(dead) | blooming.to(dead) | sleeping.to(dead)

    @invariant
    def positive(self, context: Seed) -> bool:
        return context.size > 0

    def on_grown(self, context: Seed, event: Grown) -> Seed:
        return self.but(context, size=event.size)

    def output(self, context: Seed) -> Fruit:
        return Fruit(weight=context.size * 10)


class Harvest(ChildEnded, tag="harvest"):
    output: Fruit | None = None


class Length(Context):
    length: str


class WrongHarvest(ChildEnded, tag="harvest"):
    output: Length


class Bloomed(ChildMoved, tag="bloomed"):
    """The plant blooms."""


class Garden(Context):
    size: int = 1
    weight: int = 0
    states: tuple[str, ...] = ()
    kind: str = "Plant"


class Gardener(Machine[Garden]):
    """Plant, watch it bloom, harvest; plant again after the first one."""

    planting = State(
        initial=True, child="plant", on_child="harvest", on_child_moved="bloomed",
        timeout=minutes(30), on_timeout="give_up",
    )  # fmt: skip
    watching = State(follows_child=True, on_child="harvest")
    replanting = State(child="plant", on_child="harvest")
    letting_go = State(child="plant", on_child="harvest", on_parent_end="abandon")
    idle = State(waits=True)
    fed = State(final=True)
    hungry = State(final=True, failure=True)

    bloomed = planting.to(watching)
    harvest = (
        planting.to(fed, cond="succeeded")
        | planting.to(hungry)
        | watching.to(fed, cond="succeeded")
        | watching.to(hungry)
        | replanting.to(fed, cond="heavy")
        | letting_go.to(fed)
    )
    give_up = planting.to(replanting) | watching.to(replanting) | letting_go.to(idle)
    leave = planting.to(idle) | watching.to(idle)
    be_lazy = planting.to(letting_go)
    stop = idle.to(fed)

    def plant(self, context: Garden) -> Child:
        return Child(context.kind, {"size": context.size})

    def succeeded(self, event: Harvest) -> bool:
        return event.succeeded

    def heavy(self, event: Harvest) -> bool:
        return event.output is not None and event.output.weight >= 50

    def on_bloomed(self, context: Garden, event: Bloomed) -> Garden:
        return self.but(context, states=(*context.states, event.state))

    def on_harvest(self, context: Garden, event: Harvest) -> Garden:
        weight = event.output.weight if event.output else 0
        return self.but(context, weight=weight, states=(*context.states, event.state))


@pytest.fixture
def garden(bench):
    return bench.harness(Gardener, Plant)


async def planted(garden, **fields):
    run_id = (await garden.app.start(Gardener, Garden(**fields))).run_id
    await garden.app.settle()
    return run_id, (await garden.app.get(run_id)).child


async def tell(garden, run_id, *events):
    for event in events:
        await garden.app.send(run_id, event)
    await garden.app.settle()


async def test_a_child_is_started_with_its_parents_transition(garden, bench):
    async with garden:
        run_id, child_id = await planted(garden, size=3)
        child = await garden.app.get(child_id)
        assert (child.machine, child.context, child.depth) == ("Plant", Seed(size=3), 1)
        assert child.parent.run_id == run_id
        await bench.sound(garden)


async def test_the_childs_end_and_output_come_back(garden, bench):
    async with garden:
        run_id, child_id = await planted(garden)
        await tell(garden, child_id, Grown(size=4), "pick")
        outcome = await garden.app.outcome(run_id)
        assert (outcome.state, outcome.status) == ("fed", "completed")
        assert outcome.context.weight == 40
        assert outcome.context.states == ("blooming", "ripe")
        assert (await garden.app.outcome(child_id)).output == Fruit(weight=40)
        await bench.sound(garden)


async def test_a_failed_child_says_so(garden, bench):
    async with garden:
        run_id, child_id = await planted(garden)
        await tell(garden, child_id, "wither")
        outcome = await garden.app.outcome(run_id)
        assert (outcome.state, outcome.status) == ("hungry", "failed")
        await bench.sound(garden)


async def test_a_milestone_moves_the_parent_and_the_child_is_followed(garden, bench):
    async with garden:
        run_id, child_id = await planted(garden)
        await tell(garden, child_id, Grown(size=2))
        run = await garden.app.get(run_id)
        assert (run.state, run.child, run.context.states) == ("watching", child_id, ("blooming",))
        await bench.sound(garden)


async def test_a_child_left_behind_is_cancelled(garden, bench):
    async with garden:
        run_id, child_id = await planted(garden)
        await tell(garden, run_id, "leave")
        assert (await garden.app.get(run_id)).state == "idle"
        assert (await garden.app.outcome(child_id)).status == "cancelled"
        journal = await garden.app.journal(child_id)
        assert journal[-1].event == CANCEL
        await bench.sound(garden)


async def test_an_abandoned_child_goes_on(garden, bench):
    async with garden:
        run_id, first = await planted(garden)
        await tell(garden, run_id, "be_lazy")
        child_id = (await garden.app.get(run_id)).child
        assert child_id != first
        await tell(garden, run_id, "give_up")
        assert (await garden.app.get(run_id)).child is None
        assert (await garden.app.outcome(child_id)).status == "waiting"
        await tell(garden, child_id, "wither")
        assert (await garden.app.outcome(child_id)).status == "failed"
        assert (await garden.app.get(run_id)).state == "idle"
        await bench.sound(garden)


async def test_a_cancelled_parent_does_not_wait_for_an_abandoned_child(garden, bench):
    async with garden:
        run_id, _ = await planted(garden)
        await tell(garden, run_id, "be_lazy")
        child_id = (await garden.app.get(run_id)).child
        await garden.app.cancel(run_id)
        await garden.app.settle()
        assert (await garden.app.outcome(run_id)).status == "cancelled"
        assert (await garden.app.outcome(child_id)).status == "waiting"
        await bench.sound(garden)


async def test_the_end_of_a_former_child_is_not_taken_for_the_present_ones(garden, bench):
    async with garden:
        run_id, first = await planted(garden)
        bench.clock.advance(minutes(30))
        await garden.app.open()
        await garden.app.settle()
        run = await garden.app.get(run_id)
        assert (await garden.app.outcome(first)).status == "cancelled"
        assert (run.state, run.status) == ("replanting", "waiting")
        assert run.child not in (None, first)
        receipt = bench.store.inbox.receipt(run_id, ended_key(first))
        assert receipt.status == "rejected"
        assert receipt.reason == f"it comes from run {first}, a child left behind"
        await tell(garden, run.child, Grown(size=9), "pick")
        assert (await garden.app.outcome(run_id)).context.weight == 90
        await bench.sound(garden)


async def test_a_refused_end_is_quarantined_and_kept(garden, bench):
    async with garden:
        run_id, child_id = await planted(garden)
        await tell(garden, run_id, "give_up")
        child_id = (await garden.app.get(run_id)).child
        await tell(garden, child_id, Grown(size=1), "pick")
        run = await garden.app.get(run_id)
        assert (run.status, run.state) == ("quarantined", "replanting")
        assert run.last_error.startswith("the end of its child was refused: guard heavy is false")
        assert [e.event for e in bench.store.inbox.waiting(run_id)] == ["harvest"]
        await garden.app.cancel(run_id)
        await garden.app.settle()
        assert (await garden.app.outcome(run_id)).status == "cancelled"
        await bench.sound(garden)


@pytest.mark.parametrize(
    ("fields", "error", "reason"),
    [
        ({"size": 0}, Refused, "child Plant cannot begin: invariant positive does not hold"),
        ({"kind": "Tree"}, UnknownMachine, "'Tree' is not known here. Known: Gardener, Plant"),
    ],
)
async def test_a_run_whose_first_child_cannot_begin_is_not_accepted(
    garden, bench, fields, error, reason
):
    async with garden:
        with pytest.raises(error, match=reason):
            await garden.app.start(Gardener, Garden(**fields), key="k")
        assert bench.store.runs.select(Query()) == []


async def test_a_child_of_a_later_state_that_cannot_begin_changes_nothing(bench):
    class Odd(Machine[Garden]):
        waiting = State(initial=True, waits=True)
        planting = State(child="plant", on_child="harvest")
        end = State(final=True)
        go = waiting.to(planting)
        harvest = planting.to(end)

        def plant(self, context):
            return Child("Plant", {"size": context.size, "colour": "red"})

    async with bench.harness(Odd, Plant) as harness:
        run_id = (await harness.app.start(Odd, Garden())).run_id
        await harness.app.send(run_id, "go", key="go")
        await harness.app.settle()
        run = await harness.app.get(run_id)
        assert (run.status, run.state, run.seq) == ("quarantined", "waiting", 1)
        assert "event go: context of machine Plant" in run.last_error
        assert "colour" in run.last_error
        receipt = bench.store.inbox.receipt(run_id, "go")
        assert (receipt.status, receipt.seq) == ("rejected", None)
        assert len(bench.store.runs.select(Query())) == 1


async def test_the_depth_of_children_is_bounded(bench):
    class Deep(Machine[Garden]):
        digging = State(initial=True, waits=True)
        deeper = State(child="below", on_child="harvest")
        end = State(final=True)
        go = digging.to(deeper)
        harvest = deeper.to(end)

        def below(self, context):
            return Child("Deep", context)

    async with bench.harness(Deep) as harness:
        run_id = (await harness.app.start(Deep, Garden())).run_id
        for _ in range(CHILD_DEPTH_MAX + 1):
            await harness.app.send(run_id, "go")
            await harness.app.settle()
            run = await harness.app.get(run_id)
            run_id = run.child
        assert run.depth == CHILD_DEPTH_MAX
        assert run.status == "quarantined"
        assert run.last_error == "event go: child run at depth 65, the limit is 64"
        runs = [stored.run for stored in bench.store.runs.select(Query(limit=200))]
        (root,) = (run for run in runs if run.depth == 0)
        await harness.app.cancel(root.run_id)
        await harness.app.settle()
        assert {s.run.status for s in bench.store.runs.select(Query(limit=200))} == {"cancelled"}
        await bench.sound(harness)


async def test_an_end_that_does_not_fit_its_type_is_quarantined(bench):
    class Strict(Machine[Garden]):
        payloads = (WrongHarvest,)
        planting = State(initial=True, child="plant", on_child="harvest")
        end = State(final=True)
        harvest = planting.to(end)

        def plant(self, context):
            return Child("Plant", {"size": 1})

    async with bench.harness(Strict, Plant) as harness:
        run_id = (await harness.app.start(Strict, Garden())).run_id
        await harness.app.settle()
        child_id = (await harness.app.get(run_id)).child
        assert child_id is not None
        await harness.app.send(child_id, "wither")
        await harness.app.settle()
        run = await harness.app.get(run_id)
        assert run.status == "quarantined"
        assert "the end of its child was refused: payload of" in run.last_error


def test_keys_name_the_child_that_sent():
    assert child_in(ended_key("r1")) == "r1"
    assert child_in("child:r2:7") == "r2"
    assert child_in("order-7") is None
    assert child_in("parent:r1:2") is None


# -- undoing ------------------------------------------------------------------------------------


class Site:
    """What has been built, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.fail: set[str] = set()


class Built(Event, tag="built"):
    what: str


class Failed(GaveUp, tag="failed"):
    """The last thing could not be built."""


def build(what: str):
    @effect(idempotent=True, name=f"build_{what}")
    async def do(context: Garden, call) -> Built:
        site = call.resource(Site)
        if what in site.fail:
            raise Permanent(f"no {what}")
        site.log.append(f"+{what}")
        return Built(what=what)

    return do


def unbuild(what: str):
    @effect(idempotent=True, name=f"unbuild_{what}")
    async def do(context: Garden, call) -> Built:
        site = call.resource(Site)
        if f"-{what}" in site.fail:
            site.fail.discard(f"-{what}")
            raise Transient("later")
        if f"!{what}" in site.fail:
            raise Permanent("cannot be undone")
        site.log.append(f"-{what}")
        return Built(what=what)

    return do


class House(Machine[Garden]):
    """Three things, undone in reverse; the second one may be taken down on the way."""

    payloads = (Built, Failed)

    base = State(initial=True, effect=build("base"), compensation=unbuild("base"))
    walls = State(effect=build("walls"), compensation=unbuild("walls"))
    pause = State(waits=True)
    razing = State(effect=unbuild("walls"), undoes="walls")
    roof = State(effect=build("roof"), compensation=unbuild("roof"), on_exhausted="failed")
    lived_in = State(waits=True)
    done = State(final=True)
    ruined = State(final=True, failure=True)

    built = (
        base.to(walls) | walls.to(pause) | razing.to(roof) | roof.to(lived_in)
    )  # fmt: skip
    raze = pause.to(razing)
    cover = pause.to(roof)
    failed = roof.to(ruined)
    burn = lived_in.to(ruined)
    sell = lived_in.to(done)


@pytest.fixture
def site():
    return Site()


@pytest.fixture
def house(bench, site):
    return bench.harness(House, resources={Site: site})


async def house_at(house, *events):
    run_id = (await house.app.start(House, Garden())).run_id
    await house.app.settle()
    for event in events:
        await house.app.send(run_id, event)
        await house.app.settle()
    return run_id


async def test_undone_in_reverse_order(house, bench, site):
    async with house:
        run_id = await house_at(house, "cover", "burn")
        assert (await house.app.outcome(run_id)).status == "failed"
        assert site.log == ["+base", "+walls", "+roof", "-roof", "-walls", "-base"]
        events = [e.event for e in await house.app.journal(run_id)]
        assert events[-4:] == ["burn", "$undone", "$undone", "$undone"]
        await bench.sound(house)


async def test_what_failed_is_not_undone(house, bench, site):
    site.fail = {"roof"}
    async with house:
        run_id = await house_at(house, "cover")
        assert (await house.app.outcome(run_id)).status == "failed"
        assert site.log == ["+base", "+walls", "-walls", "-base"]
        await bench.sound(house)


async def test_undoes_leaves_nothing_to_undo_twice(house, bench, site):
    async with house:
        run_id = await house_at(house, "raze")
        assert (await house.app.get(run_id)).undo == ("base", "roof")
        await house.app.cancel(run_id)
        await house.app.settle()
        assert (await house.app.outcome(run_id)).status == "cancelled"
        assert site.log == ["+base", "+walls", "-walls", "+roof", "-roof", "-base"]
        await bench.sound(house)


async def test_success_undoes_nothing(house, bench, site):
    async with house:
        run_id = await house_at(house, "cover", "sell")
        assert (await house.app.outcome(run_id)).status == "completed"
        assert site.log == ["+base", "+walls", "+roof"]


async def test_an_undo_is_retried_and_a_hopeless_one_is_quarantined(house, bench, site):
    site.fail = {"-roof", "!walls"}
    async with house:
        run_id = await house_at(house, "cover", "burn")
        await house.until_idle(horizon_ms=minutes(1))
        run = await house.app.get(run_id)
        assert (run.status, run.closing, run.undo) == ("quarantined", "failed", ("base", "walls"))
        assert "unbuild_walls given up" in run.last_error
        site.fail.clear()
        await house.app.resume(run_id)
        await house.app.settle()
        assert (await house.app.outcome(run_id)).status == "failed"
        assert site.log[3:] == ["-roof", "-walls", "-base"]
        await bench.sound(house)


async def test_a_closing_run_refuses_events_and_more_cancels(house, bench, site):
    site.fail = {"-roof"}
    async with house:
        run_id = await house_at(house, "cover", "burn")
        receipts = [await house.app.send(run_id, "sell"), await house.app.cancel(run_id)]
        await house.app.settle()
        for receipt in receipts:
            found = bench.store.inbox.receipt(run_id, receipt.key)
            assert found.status == "rejected"
            assert "failed" in found.reason
        await house.until_idle(horizon_ms=minutes(1))
        assert (await house.app.outcome(run_id)).status == "failed"
        await bench.sound(house)


async def test_a_closing_run_can_be_paused(house, bench, site):
    site.fail = {"-roof"}
    async with house:
        run_id = await house_at(house, "cover", "burn")
        await house.app.pause(run_id)
        await house.until_idle(horizon_ms=minutes(1))
        assert (await house.app.get(run_id)).status == "paused"
        await house.app.resume(run_id)
        await house.until_idle(horizon_ms=minutes(1))
        assert (await house.app.outcome(run_id)).status == "failed"
        assert site.log[3:] == ["-roof", "-walls", "-base"]
        await bench.sound(house)


# -- cancel from the root -----------------------------------------------------------------------


async def test_cancel_waits_for_the_child_and_then_undoes(garden, bench):
    async with garden:
        run_id, child_id = await planted(garden)
        await garden.app.pause(child_id)
        await garden.app.settle()
        await garden.app.cancel(run_id)
        delivered = bench.store.inbox.waiting(run_id)
        assert [e.event for e in delivered] == [CANCEL]
        await garden.app.settle()
        assert (await garden.app.outcome(child_id)).status == "cancelled"
        assert (await garden.app.outcome(run_id)).status == "cancelled"
        events = [e.event for e in await garden.app.journal(run_id)]
        assert events == ["$start", "$cancel", "$child_ended"]
        await bench.sound(garden)


async def test_a_child_that_ends_just_before_the_cancel_reaches_it(garden, bench):
    async with garden:
        run_id, child_id = await planted(garden)
        await garden.app.cancel(run_id)
        (claimed,) = await garden.app._worker.claim(limit=1, run_id=run_id)
        await garden.app.send(child_id, "wither")
        await garden.app._runner.advance(claimed)
        await garden.app.settle()
        assert (await garden.app.outcome(run_id)).status == "cancelled"
        assert (await garden.app.outcome(child_id)).status in ("cancelled", "failed")
        await bench.sound(garden)


async def test_a_send_to_a_run_that_is_not_there_is_dropped(bench, garden):
    async with garden:
        run_id, _ = await planted(garden)
        ghost = Delivery(run_id="r-none", key="k", event="x", payload=None, at_ms=0)
        (claimed,) = await garden.app._worker.claim(limit=1, run_id=run_id)
        written = bench.store.runs.commit(
            [Write(fence=claimed.fence, before=claimed.run, after=claimed.run, at_ms=0,
                   sends=(ghost,), release=True)]
        )  # fmt: skip
        assert written[0].ok
