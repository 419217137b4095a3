"""Confirmation: every branch by name, and what no sequence of events may do."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clock import hours, minutes, seconds
from engine.secret import Secret
from machines.clients.ports import (
    BroadcastRefused,
    Currency,
    Sighting,
    SignedTransaction,
    Unavailable,
)
from machines.flows.f03c_confirmation import (
    Confirmation,
    Evicted,
    Following,
    Mined,
    Pooled,
    RivalGone,
    RivalSeen,
    RivalWon,
    Sank,
    StalledFor,
    judge,
)


async def _sent(world: Any) -> SignedTransaction:
    signed: SignedTransaction = world.signed()
    await world.wallet.broadcast(signed)
    return signed


async def test_unseen_then_mempool_then_deep_enough(world: Any) -> None:
    story = await world.run(Confirmation, world.following(await _sent(world)))
    assert story.passed == ["unseen", "mempool", "confirming", "deep_enough"]
    assert (story.output.depth, story.output.depth_max) == (6, 6)
    assert story.output.reversals == 0


async def test_depth_is_never_above_what_the_node_says(world: Any) -> None:
    signed = await _sent(world)
    told: list[int] = []
    sighting = world.wallet.sighting

    def watched(transaction: Any) -> Sighting:
        found: Sighting = sighting(transaction)
        told.append(found.confirmations)
        return found

    world.wallet.sighting = watched
    world.chain.later(minutes(3), lambda: world.chain.reorganise(2))
    async with world.harness() as harness:
        run = await harness.app.start(Confirmation, world.following(signed), key="the run")
        await harness.until_idle()
        entries = await harness.app.journal(run.run_id)
    assert entries[-1].target == "deep_enough"
    for entry in entries:
        if isinstance(entry.payload, Mined):
            assert entry.context.depth == entry.payload.confirmations
            assert entry.context.depth in told


async def test_unseen_transaction_is_broadcast(world: Any) -> None:
    story = await world.run(Confirmation, world.following(world.signed()))
    assert story.state == "deep_enough"
    assert len(world.wallet.handed_out) == 1


async def test_evicted_from_the_mempool_is_broadcast_again(world: Any) -> None:
    world.chain.frozen = True
    signed = await _sent(world)
    world.chain.later(minutes(1), world.chain.evict)
    world.chain.later(minutes(2), lambda: setattr(world.chain, "frozen", False))
    story = await world.run(Confirmation, world.following(signed))
    assert story.passed == ["unseen", "mempool", "unseen", "mempool", "confirming", "deep_enough"]
    assert story.context.evictions == 1
    assert set(world.wallet.handed_out) == {signed.txid}


async def test_reversed_by_a_reorganisation_and_mined_again(world: Any) -> None:
    signed = await _sent(world)
    world.chain.later(minutes(4), lambda: world.chain.reorganise(4))
    story = await world.run(Confirmation, world.following(signed))
    assert story.state == "deep_enough"
    assert story.passed.count("reversed") == 1
    assert story.output.reversals == 1


async def test_reversed_and_lost_is_broadcast_again(world: Any) -> None:
    signed = await _sent(world)
    world.chain.later(minutes(4), lambda: world.chain.reorganise(4, lose=True))
    story = await world.run(Confirmation, world.following(signed))
    assert story.state == "deep_enough"
    assert set(world.wallet.handed_out) == {signed.txid}


async def test_another_block_at_the_same_depth_is_a_reversal(world: Any) -> None:
    signed = await _sent(world)

    def replace_block() -> None:
        world.chain.reorganise(1)
        world.chain.mine()

    world.chain.later(minutes(2) + seconds(30), replace_block)
    world.chain.due_ms = world.clock.now_ms() + minutes(2)
    story = await world.run(Confirmation, world.following(signed))
    assert story.output.reversals == 1
    assert story.state == "deep_enough"


async def test_mined_anew_in_a_longer_chain_is_a_reversal_too(world: Any) -> None:
    signed = await _sent(world)

    def longer_chain() -> None:
        world.chain.reorganise(2)
        world.chain.mine(4)

    world.chain.later(minutes(2) + seconds(30), longer_chain)
    story = await world.run(Confirmation, world.following(signed))
    assert story.output.reversals == 1
    assert story.state == "deep_enough"


async def test_stalled_without_confirmations_then_goes_on(world: Any) -> None:
    signed = await _sent(world)
    world.chain.later(minutes(2), lambda: setattr(world.chain, "frozen", True))
    world.chain.later(minutes(20), lambda: setattr(world.chain, "frozen", False))
    story = await world.run(Confirmation, world.following(signed, stall_ms=minutes(5)))
    assert "stalled" in story.passed
    assert story.state == "deep_enough"
    assert story.output.stalls == 1


async def test_stalled_in_the_mempool_resends_the_same_bytes(world: Any) -> None:
    world.chain.frozen = True
    signed = await _sent(world)
    world.chain.later(minutes(10), lambda: setattr(world.chain, "frozen", False))
    story = await world.run(Confirmation, world.following(signed, stall_ms=minutes(2)))
    assert story.state == "deep_enough"
    assert len(world.wallet.handed_out) > 2
    assert set(world.wallet.handed_out) == {signed.txid}


async def test_stalled_for_too_long_is_given_up(world: Any) -> None:
    world.chain.frozen = True
    order = world.following(
        await _sent(world),
        stall_ms=minutes(5),
        give_up_ms=world.clock.now_ms() + minutes(30),
    )
    story = await world.run(Confirmation, order)
    assert (story.state, story.status) == ("given_up", "failed")
    assert story.passed[-2:] == ["stalled", "given_up"]


async def test_program_stopped_for_days_looks_before_it_gives_up(world: Any) -> None:
    order = world.following(await _sent(world))
    async with world.harness() as harness:
        await harness.app.start(Confirmation, order, key="the run")
        await harness.until_idle(horizon_ms=minutes(2))
    world.clock.advance(hours(100))
    story = await world.run(Confirmation, order)
    assert story.state == "deep_enough"


async def test_node_unreachable_for_ever_is_given_up_in_the_end(world: Any) -> None:
    world.wallet.fail("look", Unavailable("down"), times=100_000)
    order = world.following(world.signed(), give_up_ms=world.clock.now_ms() + minutes(20))
    story = await world.run(Confirmation, order)
    assert story.state == "given_up"


async def test_double_spent_and_buried_is_replaced(world: Any) -> None:
    signed = await _sent(world)
    world.chain.later(minutes(2), lambda: world.chain.steal(signed, mined=True))
    story = await world.run(Confirmation, world.following(signed))
    assert (story.state, story.status) == ("replaced", "failed")
    assert story.output.rival_depth >= 6
    assert story.output.depth == 0
    assert "reversed" in story.passed


async def test_rival_that_is_not_buried_may_still_lose(world: Any) -> None:
    signed = await _sent(world)

    def rival_loses() -> None:
        world.chain.reorganise(3, lose=True)

    world.chain.later(seconds(20), lambda: world.chain.steal(signed, mined=False))
    world.chain.later(minutes(3) + seconds(20), rival_loses)
    story = await world.run(Confirmation, world.following(signed))
    assert story.state == "deep_enough"
    assert "contested" in story.passed
    assert set(world.wallet.handed_out) == {signed.txid}


async def test_reversed_after_it_was_deep_enough_is_seen_by_whoever_watches_on(world: Any) -> None:
    """A second run, from the depth at which it counted to twice of it."""
    world.chain.final = 100  # so deep a reorganisation is possible here
    signed = await _sent(world)
    first = await world.run(Confirmation, world.following(signed))
    deep = first.context.depth
    assert (first.state, deep) == ("deep_enough", 6)
    watched = world.following(
        signed, required=12, depth=deep, depth_max=deep, block_hash=first.context.block_hash
    )
    world.chain.later(seconds(20), lambda: world.chain.reorganise(7))
    async with world.harness() as harness:
        await harness.app.start(Confirmation, watched, key="watching on")
        await harness.until_idle()
    story = await world.story(Confirmation, "watching on")
    assert story.passed[:2] == ["unseen", "reversed"]
    assert (story.state, story.output.reversals, story.output.depth) == ("deep_enough", 1, 12)


async def test_node_that_refuses_the_rebroadcast_is_not_believed(world: Any) -> None:
    world.wallet.fail("broadcast", BroadcastRefused("-26: txn-mempool-conflict"), times=2)
    story = await world.run(Confirmation, world.following(world.signed()))
    assert story.state == "deep_enough"


# -- any sequence of events ---------------------------------------------------------------------

DEPTHS = st.integers(-1, 9)
TIMES = st.integers(0, 5_000)
EVENTS = st.one_of(
    st.just("time_up"),
    st.builds(Pooled, at_ms=TIMES),
    st.builds(Evicted, at_ms=TIMES),
    st.builds(
        Mined, confirmations=DEPTHS, block_hash=st.sampled_from([None, "a", "b"]), at_ms=TIMES
    ),
    st.builds(Sank, confirmations=DEPTHS, at_ms=TIMES),
    st.builds(StalledFor, duration_ms=TIMES),
    st.builds(RivalSeen, at_ms=TIMES),
    st.builds(RivalGone, at_ms=TIMES),
    st.builds(RivalWon, confirmations=DEPTHS),
)
STEPS = st.lists(st.tuples(EVENTS, st.integers(0, 600)), max_size=15)


def _following(**changes: Any) -> Following:
    transaction = SignedTransaction(
        txid="t",
        payload=Secret("bytes"),
        inputs=("in-1",),
        fee_atomic=1,
        amount_atomic=100,
        address="shop",
    )
    fields: dict[str, Any] = {
        "currency": Currency.LTC,
        "transaction": transaction,
        "required": 6,
        "poll_ms": 14,
        "stall_ms": 1_000,
        "since_ms": 0,
        "give_up_ms": 3_000,
    }
    return Following(**(fields | changes))


@settings(max_examples=300, deadline=None)
@given(steps=STEPS)
def test_the_table_does_what_the_library_does(library_agrees: Any, steps: Any) -> None:
    library_agrees(Confirmation, _following(), steps)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS)
def test_contracts_hold_whatever_happens(walk: Any, steps: Any) -> None:
    for run in walk(Confirmation, _following(), steps):
        assert 0 <= run.context.depth <= run.context.depth_max
        assert run.state != "deep_enough" or run.context.depth >= 6
        assert run.state != "replaced" or run.context.rival_depth >= 6


SIGHTINGS = st.one_of(
    st.just(Sighting(where="unseen")),
    st.just(Sighting(where="mempool")),
    st.builds(
        Sighting,
        where=st.just("mined"),
        confirmations=st.integers(1, 9),
        block_hash=st.sampled_from([None, "a", "b"]),
    ),
    st.builds(Sighting, where=st.just("conflicted"), confirmations=st.integers(0, 9)),
)


@given(
    depth=st.integers(0, 5),
    known=st.sampled_from([None, "a"]),
    sighting=SIGHTINGS,
    now_ms=TIMES,
    pooled=st.booleans(),
)
def test_a_sighting_never_tells_more_depth_than_the_node(
    depth: int, known: str | None, sighting: Sighting, now_ms: int, pooled: bool
) -> None:
    context = _following(depth=depth, depth_max=depth, block_hash=known)
    found = judge(context, sighting, now_ms, pooled=pooled)
    seen = sighting.confirmations if sighting.where == "mined" else 0
    if isinstance(found, Mined):
        assert found.confirmations == seen
    if isinstance(found, Sank):
        assert found.confirmations == min(seen, depth)
    if seen < depth and not isinstance(found, RivalWon):
        assert isinstance(found, Sank)
    if isinstance(found, RivalWon):
        assert sighting.where == "conflicted"
        assert sighting.confirmations >= 6
