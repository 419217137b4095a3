"""Spend: every branch by name, a crash at every boundary, and what no sequence of events may do."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clock import hours, minutes, seconds
from engine.secret import Secret
from engine.table import compile_table
from engine.testing import CrashPlan
from machines.clients.ports import (
    BroadcastRefused,
    Rejected,
    ReplyLost,
    SignedTransaction,
    Unavailable,
)
from machines.flows.f03w_wallet import (
    Cleared,
    Funded,
    HeldBack,
    Locked,
    NotReleased,
    Refused,
    Released,
    RivalBuried,
    RivalGone,
    RivalSeen,
    Robbed,
    Seen,
    Short,
    Signed,
    Spend,
    SpendOrder,
    Unlocked,
)

DUE = 1_000_003
LOST = ReplyLost("wallet: no reply")
DOWN = Unavailable("wallet: refused")
TABLE = compile_table(Spend)


async def test_one_spend_is_built_signed_committed_and_broadcast(world: Any) -> None:
    story = await world.run(Spend, world.order())
    assert story.passed == ["building", "signed", "broadcasting", "broadcast"]
    assert world.chain.total("shop") == DUE
    assert story.output.transaction.txid == world.wallet.handed_out[0]


async def test_the_signed_bytes_are_committed_before_the_node_sees_them(world: Any) -> None:
    stored: list[tuple[str, bool]] = []
    accept = world.chain.accept

    def watched(tx: Any) -> None:
        run = world.store.runs.get(world.store.runs.find("Spend", "the run")).run
        stored.append((run.state, tx.txid.encode() in run.context))
        accept(tx)

    world.chain.accept = watched
    await world.run(Spend, world.order())
    assert stored == [("broadcasting", True)]


async def test_wallet_locked_then_unlocked_with_the_passphrase_goes_on(world: Any) -> None:
    world.wallet.lock("open sesame")
    story = await world.run(Spend, world.order(passphrase=Secret("open sesame")))
    assert story.passed == [
        "building", "wallet_locked", "building", "signed", "broadcasting", "broadcast",
    ]  # fmt: skip


async def test_wallet_locked_then_unlocked_by_somebody_goes_on(world: Any) -> None:
    world.wallet.lock("open sesame")
    async with world.harness() as harness:
        await harness.app.start(Spend, world.order(), key="the run")
        await harness.until_idle(horizon_ms=minutes(3))
        world.wallet.unlocked = True
        await harness.until_idle()
    story = await world.story(Spend, "the run")
    assert story.state == "broadcast"
    assert story.passed.count("wallet_locked") > 1


async def test_wallet_locked_until_it_is_too_late(world: Any) -> None:
    world.wallet.lock("open sesame")
    story = await world.run(Spend, world.order())
    assert (story.state, story.status) == ("abandoned", "failed")
    assert world.wallet.handed_out == []


async def test_wrong_passphrase_is_refused_and_not_tried_again(world: Any) -> None:
    world.wallet.lock("open sesame")
    story = await world.run(Spend, world.order(passphrase=Secret("wrong")))
    assert story.state == "rejected"
    assert world.wallet.calls["unlock"] == 1
    assert "wrong" not in story.context.reason.replace("is wrong", "")


async def test_unlocking_that_does_not_help_slows_down(world: Any) -> None:
    world.wallet.lock("open sesame")
    build = world.wallet._build

    def relocked(address: str, amount_atomic: int) -> Any:
        world.wallet.unlocked = False
        return build(address, amount_atomic)

    world.wallet._build = relocked
    story = await world.run(Spend, world.order(passphrase=Secret("open sesame")))
    assert story.state == "abandoned"
    assert world.wallet.calls["unlock"] == 3


async def test_underfunded_then_funded_goes_on(world: Any) -> None:
    world.wallet.coins = {"small": DUE}
    async with world.harness() as harness:
        await harness.app.start(Spend, world.order(), key="the run")
        await harness.until_idle(horizon_ms=minutes(3))
        world.wallet.coins["large"] = 2 * DUE
        await harness.until_idle()
    story = await world.story(Spend, "the run")
    assert story.passed == [
        "building", "underfunded", "building", "signed", "broadcasting", "broadcast",
    ]  # fmt: skip


async def test_underfunded_until_it_is_too_late(world: Any) -> None:
    world.wallet.coins = {"small": DUE}
    story = await world.run(Spend, world.order())
    assert (story.state, story.status) == ("unfunded", "failed")
    assert story.output.transaction is None


async def test_wallet_that_refuses_the_order(world: Any) -> None:
    world.wallet.fail("build", Rejected("wallet: -5: Invalid address"))
    story = await world.run(Spend, world.order())
    assert (story.state, story.output.reason) == ("rejected", "wallet: -5: Invalid address")


@pytest.mark.parametrize(
    "change", [{"amount_atomic": DUE + 1}, {"address": "thief"}, {"fee_atomic": 10**12}]
)
async def test_bytes_that_are_not_what_was_ordered_are_released_unsent(
    world: Any, change: dict[str, Any]
) -> None:
    build = world.wallet._build
    world.wallet._build = lambda *a: msgspec.structs.replace(build(*a), **change)
    story = await world.run(Spend, world.order())
    assert story.passed == ["building", "releasing", "rejected"]
    assert world.wallet.handed_out == []
    assert world.wallet.reserved == set()


async def test_signed_too_late_is_released_unsent(world: Any) -> None:
    build = world.wallet._build

    def slow(address: str, amount_atomic: int) -> Any:
        world.clock.advance(seconds(3))
        return build(address, amount_atomic)

    world.wallet._build = slow
    story = await world.run(Spend, world.order(pay_by_ms=world.clock.now_ms() + seconds(2)))
    assert story.passed == ["building", "signed", "releasing", "abandoned"]
    assert world.wallet.handed_out == []
    assert world.wallet.reserved == set()


async def test_inputs_that_cannot_be_released_do_not_hold_the_run(world: Any) -> None:
    build = world.wallet._build
    world.wallet._build = lambda *a: msgspec.structs.replace(build(*a), address="thief")
    world.wallet.fail("release", DOWN, times=100)
    story = await world.run(Spend, world.order())
    assert story.state == "rejected"
    assert "inputs stay reserved" in story.output.reason


async def test_nothing_is_begun_after_the_last_moment(world: Any) -> None:
    story = await world.run(Spend, world.order(pay_by_ms=world.clock.now_ms()))
    assert story.state == "abandoned"
    assert world.wallet.handed_out == []


async def test_broadcast_with_unknown_outcome_is_looked_up_not_repeated(world: Any) -> None:
    world.wallet.fail("broadcast", LOST, after=True)
    story = await world.run(Spend, world.order())
    assert story.state == "broadcast"
    assert len(world.wallet.handed_out) == 1


async def test_broadcast_that_never_arrived_sends_the_same_bytes(world: Any) -> None:
    world.wallet.fail("broadcast", LOST, times=4)
    story = await world.run(Spend, world.order())
    assert story.state == "broadcast"
    assert len(world.wallet.built) == 1
    assert world.chain.total("shop") == DUE


async def test_node_that_refuses_bytes_it_already_has(world: Any) -> None:
    world.wallet.fail("broadcast", BroadcastRefused("-25: missing inputs"), after=True)
    story = await world.run(Spend, world.order())
    assert story.state == "broadcast"
    assert len(world.wallet.handed_out) == 1


async def test_node_that_says_yes_and_forgets_is_given_the_same_bytes_again(world: Any) -> None:
    accept, forgets = world.chain.accept, [True, True]
    world.chain.accept = lambda tx: None if forgets and forgets.pop() else accept(tx)
    story = await world.run(Spend, world.order())
    assert story.state == "broadcast"
    assert len(set(world.wallet.handed_out)) == 1
    assert len(world.wallet.handed_out) == 3


async def test_signed_and_the_node_is_down_until_it_is_too_late_is_released_unsent(
    world: Any,
) -> None:
    world.wallet.fail("look", DOWN, times=10_000)
    story = await world.run(Spend, world.order())
    assert story.passed == ["building", "signed", "releasing", "abandoned"]
    assert world.wallet.handed_out == []
    assert world.wallet.reserved == set()
    assert "too late" in story.output.reason


async def test_node_down_for_hours_after_the_first_broadcast_is_waited_for(world: Any) -> None:
    """A name for the wait, and no end: the bytes may be out."""
    world.wallet.fail("broadcast", DOWN, times=400)
    story = await world.run(Spend, world.order())
    assert story.passed == ["building", "signed", "broadcasting", "stuck", "broadcast"]
    assert world.clock.now_ms() > story.context.pay_by_ms
    assert len(world.wallet.built) == 1


async def test_signed_and_robbed_before_anything_was_sent_is_built_anew(world: Any) -> None:
    build = world.wallet._build

    def stolen(address: str, amount_atomic: int) -> Any:
        built = build(address, amount_atomic)
        if len(world.wallet.built) == 1:
            world.chain.steal(built, mined=False)
        return built

    world.wallet._build = stolen
    story = await world.run(Spend, world.order())
    assert story.passed == [
        "building", "signed", "releasing", "building", "signed", "broadcasting", "broadcast",
    ]  # fmt: skip
    first, second = world.wallet.built
    assert story.context.tombstones == (first.txid,)
    assert set(world.wallet.handed_out) == {second.txid}
    assert world.chain.total("shop") == DUE


async def test_repairing_a_node_that_holds_the_bytes_back_offers_the_same_ones(world: Any) -> None:
    """The fee is too low for now, or 25 transactions hang together: a block helps."""
    refusal = BroadcastRefused("-26: too-long-mempool-chain", policy=True)
    world.wallet.fail("broadcast", refusal, times=6)
    story = await world.run(Spend, world.order())
    assert story.passed == ["building", "signed", "broadcasting", "repairing", "broadcast"]
    assert len(world.wallet.built) == 1
    assert world.chain.total("shop") == DUE


async def test_repairing_for_an_hour_is_stuck_and_goes_on_offering(world: Any) -> None:
    refusal = BroadcastRefused("-26: min relay fee not met", policy=True)
    world.wallet.fail("broadcast", refusal, times=300)
    story = await world.run(Spend, world.order())
    assert story.passed == [
        "building", "signed", "broadcasting", "repairing", "stuck", "broadcast",
    ]  # fmt: skip
    assert len(world.wallet.built) == 1


def _rival_at_the_first_broadcast(world: Any, *, until_ms: int | None) -> None:
    """Somebody spends an input between the last look and the broadcast."""
    accept = world.chain.accept

    def beaten(tx: Any) -> None:
        world.chain.accept = accept
        world.chain.steal(tx, mined=False)
        if until_ms is not None:
            world.chain.frozen = True
            world.chain.later(until_ms, world.chain.evict)
        accept(tx)

    world.chain.accept = beaten


async def test_rival_that_is_not_buried_may_still_lose(world: Any) -> None:
    _rival_at_the_first_broadcast(world, until_ms=minutes(5))
    story = await world.run(Spend, world.order())
    assert story.passed == [
        "building", "signed", "broadcasting", "contested", "broadcasting", "broadcast",
    ]  # fmt: skip
    assert len(world.wallet.built) == 1


async def test_rival_that_is_buried_makes_the_spend_conflicted(world: Any) -> None:
    _rival_at_the_first_broadcast(world, until_ms=None)
    story = await world.run(Spend, world.order())
    assert (story.state, story.status) == ("conflicted", "failed")
    assert story.passed == [
        "building", "signed", "broadcasting", "contested", "releasing", "conflicted",
    ]  # fmt: skip
    assert world.chain.total("shop") == 0


async def test_rival_of_bytes_that_a_node_held_back_is_contested(world: Any) -> None:
    refusal = BroadcastRefused("-26: insufficient fee", policy=True)
    world.wallet.fail("broadcast", refusal)
    _rival_at_the_first_broadcast(world, until_ms=None)
    story = await world.run(Spend, world.order())
    assert story.passed == [
        "building", "signed", "broadcasting", "repairing", "contested", "releasing", "conflicted",
    ]  # fmt: skip


async def test_bytes_that_the_node_does_not_take_are_looked_for_and_handed_out_again(
    world: Any,
) -> None:
    """A rejection does not say that nobody has them: the run goes on, and says why it waits."""
    world.wallet.fail("broadcast", Rejected("-22: TX decode failed"), times=10)
    async with world.harness() as harness:
        run = await harness.app.start(Spend, world.order(), key="the run")
        await harness.until_idle(horizon_ms=seconds(1))
        waiting = await harness.app.get(run.run_id)
        await harness.until_idle()
    assert (waiting.state, waiting.status) == ("broadcasting", "waiting")
    assert "does not take these bytes" in waiting.effect.last_error
    story = await world.story(Spend, "the run")
    assert (story.state, story.status) == ("broadcast", "completed")
    assert world.wallet.calls["look"] >= 10
    assert len(set(world.wallet.handed_out)) == 1


async def test_a_closed_wallet_is_opened_for_the_broadcast(world: Any) -> None:
    from machines.clients.ports import WalletLocked

    world.wallet.fail("broadcast", WalletLocked("xmr_wallet: -13: no wallet file"))
    story = await world.run(Spend, world.order(passphrase=Secret("open sesame")))
    assert story.state == "broadcast"
    assert world.wallet.calls["unlock"] == 1


async def test_cancel_before_anything_is_signed_stops_it(world: Any) -> None:
    world.wallet.lock("open sesame")
    async with world.harness() as harness:
        run = await harness.app.start(Spend, world.order(), key="the run")
        await harness.until_idle(horizon_ms=seconds(5))
        await harness.app.cancel(run.run_id)
        await harness.until_idle()
    story = await world.story(Spend, "the run")
    assert story.status == "cancelled"
    assert world.wallet.handed_out == []


async def test_a_crash_at_every_boundary_pays_once(make_world: Any) -> None:
    boundaries = 0
    while True:
        boundaries += 1
        world = make_world()
        story = await world.run(Spend, world.order(), crash_at=(boundaries,))
        assert story.state == "broadcast", boundaries
        assert world.chain.total("shop") == DUE, boundaries
        assert len(set(world.wallet.handed_out)) == 1, boundaries
        if not world.crashes:
            break
    assert boundaries > 15


async def test_a_crash_between_commit_and_broadcast_found_days_later_sends_the_same(
    make_world: Any,
) -> None:
    """Nobody knows whether the bytes were handed out, so they are never abandoned."""
    world = make_world()
    plan = CrashPlan()
    async with world.harness(plan) as harness:
        await harness.app.start(Spend, world.order(), key="a rehearsal")
        await harness.until_idle()
    at = next(b.number for b in plan.passed if b.name == "before effect hand_out")
    world = make_world()
    world.clock.advance = lambda ms, move=world.clock.advance: move(
        hours(48) if ms == seconds(20) else ms
    )
    story = await world.run(Spend, world.order(), crash_at=(at,))
    assert world.crashes == 1
    assert story.state == "broadcast"
    assert len(world.wallet.built) == 1
    assert world.chain.total("shop") == DUE


async def test_a_crash_in_signed_found_days_later_is_released_unsent(make_world: Any) -> None:
    """No node was given the bytes, and it is too late to begin."""
    world = make_world()
    plan = CrashPlan()
    async with world.harness(plan) as harness:
        await harness.app.start(Spend, world.order(), key="a rehearsal")
        await harness.until_idle()
    at = next(b.number for b in plan.passed if b.name == "before effect clear")
    world = make_world()
    world.clock.advance = lambda ms, move=world.clock.advance: move(
        hours(48) if ms == seconds(20) else ms
    )
    story = await world.run(Spend, world.order(), crash_at=(at,))
    assert (world.crashes, story.state) == (1, "abandoned")
    assert world.wallet.handed_out == []
    assert world.wallet.reserved == set()


OUT = ("broadcasting", "repairing", "stuck", "contested")


def test_there_is_no_way_from_broadcasting_to_abandoned() -> None:
    """Whatever may have been handed out is seen, or its rival is buried; nothing else ends it."""
    leaving = {
        (state, event)
        for (state, event), edges in TABLE.edges.items()
        if state in OUT and any(edge.target not in OUT for edge in edges)
    }
    assert leaving == {*((state, "seen") for state in OUT), ("contested", "rival_buried")}


# -- any sequence of events ---------------------------------------------------------------------

TRANSACTIONS = st.builds(
    SignedTransaction,
    txid=st.sampled_from(["a", "b"]),
    payload=st.just(Secret("bytes")),
    inputs=st.sampled_from([(), ("in-1",)]),
    fee_atomic=st.sampled_from([-1, 0, 10, 11]),
    amount_atomic=st.sampled_from([100, 101]),
    address=st.sampled_from(["shop", "thief"]),
)
GOOD = st.builds(
    Signed,
    transaction=st.builds(
        SignedTransaction,
        txid=st.sampled_from(["a", "b"]),
        payload=st.just(Secret("bytes")),
        inputs=st.just(("in-1",)),
        fee_atomic=st.just(10),
        amount_atomic=st.just(100),
        address=st.just("shop"),
    ),
)
EVENTS = st.one_of(
    st.sampled_from(["try_again", "too_late"]),
    GOOD,
    st.builds(Signed, transaction=TRANSACTIONS),
    st.just(Locked()),
    st.just(Unlocked()),
    st.builds(Short, balance_atomic=st.integers(0, 200)),
    st.builds(Funded, balance_atomic=st.integers(0, 200)),
    st.builds(Refused, reason=st.just("no")),
    st.builds(Seen, where=st.sampled_from(["mempool", "mined"]), confirmations=st.integers(0, 9)),
    st.just(Released()),
    st.builds(NotReleased, effect=st.just("release"), reason=st.just("down"), attempts=st.just(20)),
    st.just(Cleared()),
    st.just(Robbed()),
    st.builds(HeldBack, reason=st.just("not now")),
    st.just("unheard"),
    st.builds(RivalSeen, confirmations=st.integers(0, 9)),
    st.just(RivalGone()),
    st.builds(RivalBuried, confirmations=st.integers(0, 9)),
)
STEPS = st.lists(st.tuples(EVENTS, st.integers(0, 600)), max_size=12)


def _order() -> SpendOrder:
    from machines.clients.ports import Currency

    return SpendOrder(
        currency=Currency.LTC,
        address="shop",
        amount_atomic=100,
        pay_by_ms=1_000,
        confirmations=6,
        poll_ms=14,
        fee_atomic_max=10,
    )


@settings(max_examples=300, deadline=None)
@given(steps=STEPS)
def test_the_table_does_what_the_library_does(library_agrees: Any, steps: Any) -> None:
    library_agrees(Spend, _order(), steps)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS)
def test_contracts_hold_whatever_happens(walk: Any, steps: Any) -> None:
    runs = walk(Spend, _order(), steps)
    signed = [r.context.transaction for r in runs if r.context.transaction is not None]
    out = {r.context.transaction for r in runs if r.state in OUT or r.state == "broadcast"}
    assert len(out) <= 1
    assert len({one.txid for one in signed}) <= 1 + len(runs[-1].context.tombstones)
    for run in runs:
        if run.state in (*OUT, "broadcast", "conflicted"):
            assert run.context.transaction.amount_atomic == 100
            assert run.context.transaction.address == "shop"
