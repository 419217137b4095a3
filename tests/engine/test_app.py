"""The front door: idempotent start, deduplicated send, wait, and what would be allowed."""

from __future__ import annotations

import asyncio

import pytest

from engine import App, Context, Machine, State, hours
from engine.errors import (
    BadPayload,
    KeyConflict,
    Refused,
    TooLarge,
    UnknownEvent,
    UnknownMachine,
    UnknownRun,
)
from engine.ports import Query
from engine.world import World


@pytest.fixture
def shop(bench):
    return bench.harness()


async def started(shop, zoo, **options):
    run = await shop.app.start(zoo.Shop, zoo.Order(), **options)
    await shop.app.settle()
    return run.run_id


async def test_start_is_idempotent_by_key(shop, zoo, bench):
    async with shop:
        first = await shop.app.start(zoo.Shop, zoo.Order(amount=2), key="order-42")
        second = await shop.app.start("Shop", zoo.Order(amount=2), key="order-42")
        assert (first.created, second.created) == (True, False)
        assert first.run_id == second.run_id == await shop.app.find(zoo.Shop, "order-42")
        await shop.app.settle()
        third = await shop.app.start(zoo.Shop, zoo.Order(amount=2), key="order-42")
        assert third.run_id == first.run_id
        assert len(bench.ledger.charged) == 1


async def test_the_same_key_with_another_context_is_a_conflict(shop, zoo):
    async with shop:
        run = await shop.app.start(zoo.Shop, zoo.Order(amount=2), key="k")
        with pytest.raises(KeyConflict, match=f"key 'k' of machine Shop was used.*{run.run_id}"):
            await shop.app.start(zoo.Shop, zoo.Order(amount=3), key="k")
        other = await shop.app.start(zoo.Errand, zoo.Order(amount=3), key="k")
        assert other.created


async def test_without_a_key_every_start_is_another_run(shop, zoo):
    async with shop:
        ids = {(await shop.app.start(zoo.Shop, zoo.Order())).run_id for _ in range(3)}
        assert len(ids) == 3
        assert await shop.app.find(zoo.Shop, "none") is None


async def test_start_says_what_is_wrong(shop, zoo, bench):
    class Other(Context):
        pass

    async with shop:
        with pytest.raises(UnknownMachine, match=r"no machine 'Nope' in this app. It has: Errand"):
            await shop.app.start("Nope", zoo.Order())
        with pytest.raises(BadPayload, match=r"expects a context Order\(amount.*, got Other"):
            await shop.app.start(zoo.Shop, Other())
        with pytest.raises(Refused, match="Shop cannot begin: invariant amount_positive"):
            await shop.app.start(zoo.Shop, zoo.Order(amount=0))
        with pytest.raises(TooLarge, match="key of the run: expected 1 to 200 characters, got 0"):
            await shop.app.start(zoo.Shop, zoo.Order(), key="")
        with pytest.raises(TooLarge, match=r"context of run r.*: 3000.. bytes encoded"):
            await shop.app.start(zoo.Shop, zoo.Order(receipt="x" * 300_000))
        assert bench.store.runs.select(Query()) == []


async def test_send_is_deduplicated_and_gives_the_first_receipt(shop, zoo):
    async with shop:
        run_id = await started(shop, zoo)
        first = await shop.app.send(run_id, zoo.Noted(count=2), key="n1")
        again = await shop.app.send(run_id, zoo.Noted(count=2), key="n1")
        assert (first.status, first.duplicate) == ("accepted", False)
        assert (again.status, again.duplicate, again.same) == ("accepted", True, True)
        await shop.app.settle()
        later = await shop.app.send(run_id, zoo.Noted(count=2), key="n1")
        assert (later.status, later.seq) == ("applied", 3)
        assert (await shop.app.get(run_id)).context.notes == 2


@pytest.mark.parametrize("other", [3, None])
async def test_a_key_used_for_another_event_is_a_conflict(shop, zoo, other):
    async with shop:
        run_id = await started(shop, zoo)
        await shop.app.send(run_id, zoo.Noted(count=2), key="n1")
        with pytest.raises(KeyConflict, match=f"key 'n1' of run {run_id} was used before"):
            await shop.app.send(run_id, zoo.Noted(count=other) if other else "pack", key="n1")


async def test_send_says_what_is_wrong(shop, zoo):
    async with shop:
        run_id = await started(shop, zoo)
        with pytest.raises(UnknownRun, match=r"no run 'r-none' in .*turtles list"):
            await shop.app.send("r-none", "pack")
        with pytest.raises(UnknownEvent, match="machine Shop has no event 'nope'"):
            await shop.app.send(run_id, "nope")
        with pytest.raises(UnknownEvent, match=r"has no event '\$cancel'"):
            await shop.app.send(run_id, "$cancel")
        with pytest.raises(BadPayload, match=r"expects Noted\(count\), got NoneType"):
            await shop.app.send(run_id, "noted")
        with pytest.raises(TooLarge, match="key of the event"):
            await shop.app.send(run_id, "pack", key="k" * 201)
        for call in (shop.app.get, shop.app.outcome, shop.app.journal, shop.app.cancel):
            with pytest.raises(UnknownRun):
                await call("r-none")


async def test_apply_moves_a_run_here_and_leaves_effects_to_a_worker(bench, zoo):
    bench.ledger.script = ["later"]
    async with bench.harness() as harness:
        run_id = (await harness.app.start(zoo.Shop, zoo.Order())).run_id
        receipt = await harness.app.send(run_id, zoo.Noted(count=1))
        receipt = await harness.app.apply(receipt)
        assert (receipt.status, receipt.seq) == ("applied", 2)
        run = await harness.app.get(run_id)
        assert (run.context.notes, run.effect.attempts, run.effect.open) == (1, 0, False)
        assert bench.ledger.attempts == []
        refused = await harness.app.apply(await harness.app.send(run_id, "pack"))
        assert refused.status == "rejected"
        assert await harness.app.apply(refused) == refused
        assert bench.store.runs.get(run_id).owner is None


async def test_applying_into_a_state_with_an_effect_counts_no_attempt(bench, zoo):
    class Going(Machine[zoo.Order]):
        idle = State(initial=True, waits=True)
        busy = State(effect=zoo.charge)
        end = State(final=True)
        go = idle.to(busy)
        charged = busy.to(end)

    async with bench.harness(Going) as harness:
        run_id = (await harness.app.start(Going, zoo.Order())).run_id
        await harness.app.apply(await harness.app.send(run_id, "go"))
        effect = (await harness.app.get(run_id)).effect
        assert (effect.attempts, effect.open) == (0, False)
        await harness.app.settle()
        assert bench.ledger.asked == []
        assert len(bench.ledger.charged) == 1


# -- looking ------------------------------------------------------------------------------------


async def test_wait_ends_with_the_run(bench, zoo):
    moved = []
    app = App(
        [zoo.Shop], bench.store, world=World(clock=bench.clock), secrets=bench.secrets,
        moved=moved.append, resources={zoo.Ledger: bench.ledger},
    )  # fmt: skip
    async with app:
        run = await app.start(zoo.Shop, zoo.Order())
        waiting = asyncio.create_task(app.wait(run.run_id))
        for _ in range(200):
            await asyncio.sleep(0)
        assert (await app.get(run.run_id)).state == "packing"
        assert not waiting.done()
        await app.send(run.run_id, "pack")
        await app.send(run.run_id, zoo.Shipped(parcels=2))
        outcome = await waiting
    assert (outcome.state, outcome.status, outcome.context.parcels) == ("done", "completed", 2)
    assert [d.entry.event for d in moved] == ["charged", "pack", "shipped"]


async def test_wait_has_a_limit_and_ends_at_pause_and_quarantine(shop, zoo):
    async with shop:
        run_id = await started(shop, zoo)
        with pytest.raises(TimeoutError):
            await shop.app.wait(run_id, timeout_seconds=0.001)
        await shop.app.pause(run_id)
        await shop.app.settle()
        assert (await shop.app.wait(run_id)).status == "paused"


async def test_can_says_which_clause_says_no(shop, zoo):
    async with shop:
        run_id = await started(shop, zoo)
        yes = await shop.app.can(run_id, zoo.Noted(count=1))
        assert (yes.allowed, yes.reason) == (True, "-> packing")
        no = await shop.app.can(run_id, zoo.Noted(count=-1))
        assert (no.allowed, no.reason) == (False, "guard is_welcome is false (event.count=-1)")
        bad = await shop.app.can(run_id, zoo.Noted(count=13))
        assert not bad.allowed
        assert "ensures notes_add_up does not hold" in bad.reason
        with pytest.raises(UnknownEvent):
            await shop.app.can(run_id, "nope")
        assert (await shop.app.get(run_id)).seq == 2


async def test_allowed_lists_every_event_with_a_reason(shop, zoo):
    async with shop:
        run_id = await started(shop, zoo)
        found = {p.event: p for p in await shop.app.allowed(run_id)}
        assert {e for e, p in found.items() if p.allowed} == {"noted", "pack", "expire"}
        assert found["pack"].reason == "-> shipping"
        assert found["noted"].reason == "depends on its payload"
        assert found["shipped"].reason == "not handled in 'packing'"
        await shop.app.cancel(run_id)
        await shop.app.settle()
        after = await shop.app.allowed(run_id)
        assert not any(p.allowed for p in after)
        assert {p.reason for p in after} == {"the run is cancelled"}


async def test_runs_are_listed_newest_first(shop, zoo, bench):
    async with shop:
        first = await shop.app.start(zoo.Shop, zoo.Order())
        bench.clock.advance(1)
        second = await shop.app.start(zoo.Errand, zoo.Order())
        assert [s.run.run_id for s in await shop.app.runs()] == [second.run_id, first.run_id]
        (only,) = await shop.app.runs(Query(machine="Shop"))
        assert only.run.run_id == first.run_id


async def test_a_long_journal_is_read_to_its_end(shop, zoo, bench):
    async with shop:
        run_id = await started(shop, zoo)
        for count in range(25):
            await shop.app.send(run_id, zoo.Noted(count=0), key=str(count))
        await shop.app.settle()
        read, journal = bench.store.journal.read, shop.app.store.journal
        bench.store.journal.read = lambda run_id, **kw: read(run_id, **{**kw, "limit": 10})
        assert [e.seq for e in await shop.app.journal(run_id)] == list(range(1, 28))
        assert journal is bench.store.journal
        bench.store.journal.read = read
        await bench.sound(shop)


async def test_an_app_that_only_looks_moves_nothing(bench, zoo):
    app = App(
        [zoo.Shop], bench.store, world=World(clock=bench.clock), secrets=bench.secrets, work=False
    )
    async with app:
        run = await app.start(zoo.Shop, zoo.Order())
        for _ in range(20):
            await asyncio.sleep(0)
        assert (await app.get(run.run_id)).status == "pending"


async def test_output_is_shown_only_at_the_end(bench):
    class Box(Context):
        number: int = 7

    class Giving(Machine[Box]):
        idle = State(initial=True, timeout=hours(1), on_timeout="close")
        end = State(final=True)
        close = idle.to(end)

        def output(self, context: Box) -> Box:
            return Box(number=context.number + 1)

    async with bench.harness(Giving) as harness:
        run_id = (await harness.app.start(Giving, Box())).run_id
        assert (await harness.app.outcome(run_id)).output is None
        await harness.until_idle()
        assert (await harness.app.outcome(run_id)).output == Box(number=8)


async def test_a_control_settled_in_the_same_instant_does_not_swallow_the_next(bench, zoo):
    bench.ledger.script = ["never"]
    async with bench.harness() as harness:
        run_id = (await harness.app.start(zoo.Errand, zoo.Order())).run_id
        refused = await harness.app.resume(run_id)
        assert (await harness.app.resume(run_id)).duplicate
        await harness.app.settle()
        assert bench.store.inbox.receipt(run_id, refused.key).status == "rejected"
        assert (await harness.app.get(run_id)).status == "quarantined"
        assert not (await harness.app.resume(run_id)).duplicate
        await harness.app.settle()
        assert (await harness.app.get(run_id)).status == "completed"


async def test_a_run_whose_starter_gave_up_is_moved_all_the_same(bench, zoo):
    """It was accepted as this worker's own, so nobody else would ever look at it."""
    packed = asyncio.Event()
    app = App([zoo.Shop], bench.store, resources={zoo.Ledger: bench.ledger}, secrets=bench.secrets,
              world=World(clock=bench.clock), moved=lambda decision: packed.set())  # fmt: skip
    async with app:
        await asyncio.sleep(0)  # the worker is there
        starting = asyncio.create_task(app.start(zoo.Shop, zoo.Order(), key="k"))
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        async with asyncio.timeout(10):
            await packed.wait()
        run_id = await app.find(zoo.Shop, "k")
        assert (await app.get(run_id)).state == "packing"
        assert len(bench.ledger.charged) == 1


async def test_a_start_in_a_working_app_is_its_own_workers_at_once(bench, zoo):
    """Its first attempt is counted in the start, and no claim is needed."""
    claims = []

    class Watched:
        def __init__(self, inner):
            self._inner = inner

        def claim(self, *given, **named):
            found = self._inner.claim(*given, **named)
            claims.extend(found)
            return found

        def __getattr__(self, name):
            return getattr(self._inner, name)

    class Store:
        def __init__(self, inner):
            self._inner = inner
            self.runs = Watched(inner.runs)

        def __getattr__(self, name):
            return getattr(self._inner, name)

    world = World(clock=bench.clock, store=Store)
    app = App([zoo.Errand], bench.store, resources={zoo.Ledger: bench.ledger},
              secrets=bench.secrets, world=world)  # fmt: skip
    async with app:
        await asyncio.sleep(0)
        run_id = (await app.start(zoo.Errand, zoo.Order())).run_id
        assert (await app.wait(run_id)).status == "completed"
        (effect,) = await app.effects(run_id)
    assert (effect.attempts, effect.status) == (1, "done")
    assert bench.ledger.attempts == [1]
    assert claims == []
    assert bench.store.runs.get(run_id).fence == 1
