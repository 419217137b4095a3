"""Payment: every branch by name, through the real engine, against the small world of conftest."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.clock import hours, minutes
from engine.decide import Decision, Violation, begin, decide
from engine.events import event_id
from engine.ports import Query
from engine.secret import Secret
from engine.table import compile_table
from machines.clients.ports import (
    Currency,
    Invoice,
    Rejected,
    ReplyLost,
    SignedTransaction,
    Unavailable,
)
from machines.flows.f03_payment import Payment
from machines.flows.f03c_confirmation import Confirmation
from machines.flows.f03w_wallet import Spend
from machines.flows.money import CUT_MS, POLL_MS, Leg, Wallets, restocking_fee_atomic
from machines.flows.purchase import (
    Denied,
    FellShort,
    Followed,
    FollowResult,
    Invoiced,
    Issued,
    Priced,
    Proven,
    Purchase,
    RanOut,
    Refunding,
    RefundSeen,
    Regenerated,
    SankAgain,
    SecretGone,
    SpendResult,
    Spent,
    Topped,
    Watched,
)
from machines.flows.purchase_calls import top_up_allowed
from machines.platform import keys
from machines.platform.misbehaviour import inject

DUE = 1_000_003
DOWN = Unavailable("portal: refused")
LOST = ReplyLost("portal: no reply")


# -- the straight way ---------------------------------------------------------------------------


@pytest.mark.parametrize("currency", list(Currency))
async def test_paid_in_each_coin_at_its_own_depth(make_world: Any, currency: Currency) -> None:
    world = make_world(currency)
    story = await world.run(Payment, world.purchase())
    assert (story.state, story.status) == ("completed", "completed")
    assert story.passed == [
        "pricing", "invoicing", "paying", "confirming", "settling", "key_stored", "completed",
    ]  # fmt: skip
    receipt = story.output
    assert receipt.secret_key == Secret(world.portal.secret)
    assert (receipt.paid_atomic, receipt.paid_cents) == (DUE, 700)
    assert receipt.fee_atomic == 1_000
    ((tx, depth),) = world.chain.paid_to("shop-0")
    assert receipt.txids == (tx.txid,)
    assert depth >= currency.confirmations
    assert story.context.proven


async def test_no_key_before_the_required_depth(world: Any) -> None:
    depths: list[int] = []
    status = world.portal._status

    def watched(invoice_id: str) -> Any:
        depths.extend(depth for _, depth in world.chain.paid_to("shop-0"))
        return status(invoice_id)

    world.portal._status = watched
    await world.run(Payment, world.purchase())
    assert depths
    assert min(depths) >= Currency.LTC.confirmations


async def test_invoice_that_asks_for_more_depth_gets_it(world: Any) -> None:
    world.portal.required = 9
    story = await world.run(Payment, world.purchase())
    assert story.state == "completed"
    assert story.context.legs[0].depth >= 9


async def test_the_secret_is_durable_before_the_key_is_used(world: Any) -> None:
    seen: list[tuple[str, bool]] = []
    judge = world.platform._judge

    def watched(credentials: Any, offset_ms: int) -> Any:
        stored = world.store.runs.get(world.store.runs.find("Payment", "the run"))
        seen.append((stored.run.state, b"turtles:1:" in stored.run.context))
        return judge(credentials, offset_ms)

    world.platform._judge = watched
    await world.run(Payment, world.purchase())
    assert seen == [("key_stored", True)]


async def test_completed_holds_exactly_one_secret(world: Any) -> None:
    world.wallet.lock("open sesame")
    story = await world.run(Payment, world.purchase(passphrase=Secret("open sesame")))
    assert story.state == "completed"
    assert _secrets(story.context) == [Secret(world.portal.secret)]


async def test_no_secret_in_the_database_or_the_log(
    make_world: Any, tmp_path: Path, capsys: Any
) -> None:
    world = make_world(store_url=f"sqlite:///{tmp_path}/runs.db")
    world.wallet.lock("open sesame")
    story = await world.run(Payment, world.purchase(passphrase=Secret("open sesame")))
    assert story.state == "completed"
    stored = _everything_in(tmp_path)
    printed = "".join(capsys.readouterr()).encode()
    payload = world.wallet.built[0].payload.reveal()
    for secret in (world.portal.secret, "open sesame", payload):
        assert secret.encode() not in stored + printed + repr(story).encode()


# -- nothing is paid ----------------------------------------------------------------------------


async def test_price_over_the_budget_is_not_bought(world: Any) -> None:
    story = await world.run(Payment, world.purchase(budget_cents=699))
    assert (story.state, story.status) == ("over_budget", "failed")
    assert world.portal.invoices == {}


async def test_tier_that_is_not_offered(world: Any) -> None:
    story = await world.run(Payment, world.purchase(tier=2, budget_cents=10_000))
    assert story.state == "not_offered"
    assert "tier 2 for 1 months" in story.context.reason


async def test_invoice_that_differs_from_the_quote(world: Any) -> None:
    world.portal.invoiced_cents = 701
    story = await world.run(Payment, world.purchase(budget_cents=10_000))
    assert story.state == "price_changed"
    assert world.wallet.built == []


async def test_invoice_that_asks_for_more_coin_than_allowed(world: Any) -> None:
    story = await world.run(Payment, world.purchase(amount_atomic_max=DUE - 1))
    assert story.state == "invoice_refused"
    assert world.wallet.built == []


async def test_invoice_that_the_portal_declines(world: Any) -> None:
    world.portal.fail("create_invoice", Rejected("portal: no"))
    story = await world.run(Payment, world.purchase())
    assert (story.state, story.context.reason) == ("invoice_refused", "portal: no")


async def test_coin_without_a_wallet(world: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(Wallets, "__init__", _without_wallets)
    story = await world.run(Payment, world.purchase())
    assert story.state == "wallet_refused"
    assert "no wallet for LTC" in story.context.reason


async def test_portal_silent_for_an_hour_before_anything_is_paid(world: Any) -> None:
    world.portal.fail("quotes", DOWN, times=10_000)
    story = await world.run(Payment, world.purchase())
    assert story.state == "unavailable"


async def test_expired_with_nothing_paid_because_the_wallet_stayed_locked(world: Any) -> None:
    world.wallet.lock("nobody knows")
    story = await world.run(Payment, world.purchase())
    assert story.state == "expired_unpaid"
    assert story.context.reason == "the wallet is locked"
    assert world.paid() == 0


async def test_expired_with_nothing_paid_because_the_node_was_down(world: Any) -> None:
    world.wallet.fail("build", DOWN, times=10_000)
    story = await world.run(Payment, world.purchase())
    assert story.state == "expired_unpaid"
    assert world.wallet.handed_out == []


async def test_invoice_too_short_lived_to_be_paid_in_time(world: Any) -> None:
    world.portal.life_ms = CUT_MS[Currency.LTC]
    story = await world.run(Payment, world.purchase())
    assert story.state == "expired_unpaid"
    assert world.wallet.built == []


async def test_insufficient_funds_until_it_is_too_late(world: Any) -> None:
    world.wallet.coins = {"coin-0": DUE}  # enough for the price, not for the fee
    story = await world.run(Payment, world.purchase())
    assert story.state == "unfunded"
    assert world.paid() == 0


async def test_insufficient_funds_then_funded_goes_on(world: Any) -> None:
    world.wallet.coins = {"coin-0": DUE}
    world.chain.later(minutes(5), lambda: world.wallet.coins.update({"gift": 2 * DUE}))
    world.chain.later(minutes(5), lambda: None)
    world.wallet.balance_atomic = _ticking(world, world.wallet.balance_atomic)
    story = await world.run(Payment, world.purchase())
    assert story.state == "completed"


async def test_wallet_that_refuses_the_payment(world: Any) -> None:
    world.wallet.fail("build", Rejected("wallet: -6: Transaction amount too small"))
    story = await world.run(Payment, world.purchase())
    assert story.state == "wallet_refused"
    assert "too small" in story.context.reason


# -- everything may be down, at every step ------------------------------------------------------


@pytest.mark.parametrize("error", [DOWN, LOST], ids=["down", "reply lost"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "method", ["quotes", "create_invoice", "payment_status", "regenerate_secret"]
)
async def test_portal_down_at_every_step_is_waited_out(
    world: Any, method: str, after: bool, error: Exception
) -> None:
    world.portal.viewed = method == "regenerate_secret"
    world.portal.fail(method, error, after=after, times=3)
    story = await world.run(Payment, world.purchase())
    assert story.state == "completed"
    assert story.context.secret_key == Secret(world.portal.secret)
    assert len(world.portal.invoices) == 1
    assert world.paid() == DUE


@pytest.mark.parametrize("error", [DOWN, LOST], ids=["down", "reply lost"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("method", ["new_address", "build", "broadcast", "look"])
async def test_wallet_down_at_every_step_is_waited_out(
    world: Any, method: str, after: bool, error: Exception
) -> None:
    world.wallet.fail(method, error, after=after, times=3)
    story = await world.run(Payment, world.purchase())
    assert story.state == "completed"
    assert world.paid() == DUE
    assert len(set(world.wallet.handed_out)) == 1


async def test_portal_that_answers_nonsense_while_money_is_on_its_way(world: Any) -> None:
    world.portal.fail("payment_status", Rejected("portal: a page of HTML"), times=4)
    story = await world.run(Payment, world.purchase())
    assert story.state == "completed"


# -- partial, over, late ------------------------------------------------------------------------


async def test_partial_payment_topped_up_in_time(world: Any) -> None:
    world.portal.undercount_atomic = 50_000
    story = await world.run(Payment, world.purchase())
    assert story.state == "completed"
    assert [leg.amount_atomic for leg in story.context.legs] == [DUE, 50_000]
    assert story.context.unmatched_atomic == 50_000
    assert story.output.paid_atomic == DUE + 50_000
    assert len(story.output.txids) == 2
    assert story.passed.count("topping_up") == 1


async def test_expired_with_partial_payment_is_refunded_less_nine_percent(world: Any) -> None:
    world.portal.undercount_atomic = 400_000  # more than the declared tolerance
    story = await world.run(Payment, world.purchase())
    assert (story.state, story.status) == ("refunded", "failed")
    assert "topping_up" not in story.passed
    assert story.passed[-3:] == ["expired_partial", "refund_pending", "refunded"]
    counted = DUE - 400_000
    assert story.context.refund_atomic + restocking_fee_atomic(counted) == counted
    assert world.chain.total(story.context.refund_address) == story.context.refund_atomic


async def test_partial_payment_too_late_for_a_top_up_is_refunded(world: Any) -> None:
    world.portal.undercount_atomic = 50_000
    world.portal.life_ms = minutes(24)  # four minutes until the cut, six blocks to wait for
    story = await world.run(Payment, world.purchase())
    assert story.state == "refunded"
    assert len(story.context.legs) == 1


async def test_top_up_that_the_wallet_refuses_waits_for_the_refund(world: Any) -> None:
    world.portal.undercount_atomic = 50_000
    first, refusals = world.wallet._build, [Rejected("wallet: dust")]

    def build(address: str, amount_atomic: int) -> Any:
        if amount_atomic == 50_000:
            raise refusals.pop()
        return first(address, amount_atomic)

    world.wallet._build = build
    story = await world.run(Payment, world.purchase())
    assert story.state == "refunded"
    assert story.context.top_ups_closed
    assert [leg.status for leg in story.context.legs] == ["deep", "unsent"]


async def test_portal_slow_to_count_a_top_up_is_not_paid_again(world: Any) -> None:
    world.portal.undercount_atomic = 50_000
    count = world.portal._count
    stale_until_ms = world.clock.now_ms() + minutes(50)

    def slow(invoice: Any, paid: Any) -> int:
        oldest = sorted(paid, key=lambda one: one[0].seen_ms)[:1]
        return count(invoice, oldest if world.clock.now_ms() < stale_until_ms else paid)

    world.portal._count = slow
    story = await world.run(Payment, world.purchase())
    assert len(story.context.legs) == 2
    assert world.paid() == DUE + 50_000
    assert story.state == "completed"


async def test_overpayment_by_somebody_else_is_noted(world: Any) -> None:
    world.chain.later(minutes(2), lambda: _gift(world, 77))
    story = await world.run(Payment, world.purchase())
    assert story.state == "completed"
    assert story.context.overpaid_atomic == 77
    assert story.output.paid_atomic == DUE


async def test_paid_late_is_refunded(world: Any) -> None:
    world.wallet.fail("broadcast", DOWN, times=10_000)
    world.chain.later(hours(2), world.wallet.faults.clear)
    story = await world.run(Payment, world.purchase())
    assert story.state == "refunded"
    assert story.passed[-3:] == ["late", "refund_pending", "refunded"]
    assert story.context.refund_atomic + restocking_fee_atomic(DUE) == DUE


async def test_portal_that_completes_after_expiry_gives_the_key(world: Any) -> None:
    world.portal.silent = True
    world.chain.later(hours(2), lambda: setattr(world.portal, "silent", False))
    story = await world.run(Payment, world.purchase())
    assert story.state == "completed"
    assert "late" in story.passed


async def test_portal_that_never_settles(world: Any) -> None:
    world.portal.silent = True
    story = await world.run(Payment, world.purchase(poll_ms=minutes(5)))
    assert (story.state, story.status) == ("unsettled", "failed")
    assert world.paid() == DUE


async def test_refund_that_is_short_is_disputed(world: Any) -> None:
    world.portal.closed, world.portal.refund_short_atomic = True, 1
    story = await world.run(Payment, world.purchase(poll_ms=minutes(5), refund_ms=hours(6)))
    assert story.state == "refund_disputed"
    assert story.context.refund_atomic == DUE - restocking_fee_atomic(DUE) - 1


async def test_refund_that_is_too_much_is_disputed(world: Any) -> None:
    world.portal.closed, world.portal.refund_short_atomic = True, -1
    story = await world.run(Payment, world.purchase())
    assert story.state == "refund_disputed"


# -- a card that a parent has ordered -------------------------------------------------------------


def _offered(world: Any, *, price_cents: int = 700, life_ms: int = hours(1)) -> dict[str, Any]:
    """What a parent orders with: the portal's invoice for a card, and what it agreed to."""
    offer = Invoice(
        invoice_id="inv-card",
        currency=world.currency,
        address="shop-card",
        amount_atomic=DUE,
        price_cents=price_cents,
        tier=0,
        months=0,
        expires_ms=world.clock.now_ms() + life_ms,
        confirmations_required=6,
    )
    world.portal.invoices["card"] = offer
    world.portal.refund_address = "ours-card"
    return {"goods": "card", "offer": offer, "price_cents": 700, "refund_address": "ours-card",
            "tier": 0, "months": 0}  # fmt: skip


async def test_card_is_paid_and_nothing_else_is_asked_for(world: Any) -> None:
    world.wallet.lock("open sesame")
    fields = {"passphrase": Secret("open sesame")} | _offered(world)
    story = await world.run(Payment, world.purchase(**fields))
    assert story.passed == [
        "pricing", "invoicing", "paying", "confirming", "settling", "delivered",
    ]  # fmt: skip
    assert (story.output.paid_cents, story.output.paid_atomic) == (700, DUE)
    assert (story.output.invoice_id, len(story.output.txids)) == ("inv-card", 1)
    assert _secrets(story.context) == []
    assert "quotes" not in world.portal.calls and "create_invoice" not in world.portal.calls


async def test_card_topped_up_in_time(world: Any) -> None:
    world.portal.undercount_atomic = 50_000
    story = await world.run(Payment, world.purchase(**_offered(world)))
    assert (story.state, len(story.output.txids)) == ("delivered", 2)


async def test_card_that_comes_late(world: Any) -> None:
    world.portal.silent = True
    world.chain.later(hours(2), lambda: setattr(world.portal, "silent", False))
    story = await world.run(Payment, world.purchase(**_offered(world), poll_ms=minutes(2)))
    assert (story.passed[-2:], story.status) == (["late", "delivered"], "completed")


async def test_card_that_is_not_paid_in_whole_is_refunded(world: Any) -> None:
    world.portal.undercount_atomic = 400_000
    story = await world.run(Payment, world.purchase(**_offered(world)))
    assert (story.state, story.output) == ("refunded", None)
    assert world.chain.total("ours-card") == story.context.refund_atomic


@pytest.mark.parametrize(
    ("offered", "changes", "state"),
    [
        ({"price_cents": 701}, {"budget_cents": 9_999}, "price_changed"),
        ({}, {"budget_cents": 699}, "over_budget"),
        ({}, {"amount_atomic_max": DUE - 1}, "invoice_refused"),
        ({}, {"refund_address": "shop-card"}, "invoice_refused"),
        ({"life_ms": CUT_MS[Currency.LTC]}, {}, "expired_unpaid"),
    ],
)
async def test_offer_is_looked_at_like_any_invoice(
    world: Any, offered: dict[str, Any], changes: dict[str, Any], state: str
) -> None:
    story = await world.run(Payment, world.purchase(**_offered(world, **offered) | changes))
    assert story.state == state
    assert world.wallet.built == []


# -- the chain misbehaves -----------------------------------------------------------------------


async def test_confirmations_stall_and_go_on(world: Any) -> None:
    world.chain.later(minutes(2), lambda: setattr(world.chain, "frozen", True))
    world.chain.later(hours(1), lambda: setattr(world.chain, "frozen", False))
    story = await world.run(Payment, world.purchase(poll_ms=minutes(1)))
    (followed,) = await world.children(Confirmation)
    assert "stalled" in followed.passed
    assert story.state == "completed"


async def test_confirmations_that_never_come(world: Any) -> None:
    world.chain.frozen = True
    story = await world.run(Payment, world.purchase(poll_ms=minutes(2), follow_ms=hours(6)))
    assert (story.state, story.status) == ("unconfirmed", "failed")
    assert len(world.wallet.built) == 1


async def test_confirmation_reversed_by_a_reorganisation(world: Any) -> None:
    world.chain.later(minutes(4), lambda: world.chain.reorganise(3))
    story = await world.run(Payment, world.purchase())
    (followed,) = await world.children(Confirmation)
    assert "reversed" in followed.passed
    assert followed.context.reversals >= 1
    assert story.state == "completed"
    assert world.paid() == DUE


async def test_reversal_after_the_depth_was_reached_is_followed_again(world: Any) -> None:
    world.chain.final = 12  # deeper than the portal asks for
    world.portal.silent = True
    world.chain.later(minutes(10), lambda: world.chain.reorganise(8))
    world.chain.later(minutes(30), lambda: setattr(world.portal, "silent", False))
    story = await world.run(Payment, world.purchase())
    assert story.passed.count("confirming") == 2
    assert story.state == "completed"
    assert world.paid() == DUE


async def test_payment_lost_from_the_chain_is_broadcast_again_not_paid_again(world: Any) -> None:
    world.chain.later(minutes(4), lambda: world.chain.reorganise(4, lose=True))
    story = await world.run(Payment, world.purchase())
    assert story.state == "completed"
    assert len(world.wallet.built) == 1
    assert world.paid() == DUE


async def test_payment_double_spent_and_buried_is_paid_once_more(world: Any) -> None:
    world.chain.later(minutes(2), lambda: world.chain.steal(world.wallet.built[0], mined=False))
    story = await world.run(Payment, world.purchase())
    assert story.state == "completed"
    assert [leg.status for leg in story.context.legs] == ["dead", "deep"]
    assert world.paid() == DUE


async def test_input_stolen_before_the_broadcast_is_paid_once_more(world: Any) -> None:
    build = world.wallet._build

    def stolen(address: str, amount_atomic: int) -> Any:
        built = build(address, amount_atomic)
        if len(world.wallet.built) == 1:
            world.chain.steal(built, mined=True)
        return built

    world.wallet._build = stolen
    story = await world.run(Payment, world.purchase())
    assert [s.state for s in await world.children(Spend)] == ["broadcast"], "built anew within it"
    assert [leg.status for leg in story.context.legs] == ["deep"]
    assert story.state == "completed"
    assert world.paid() == DUE


async def test_input_stolen_while_it_is_handed_out_is_paid_once_more(world: Any) -> None:
    broadcast = world.wallet.broadcast

    async def stolen(transaction: SignedTransaction) -> None:
        if transaction == world.wallet.built[0]:
            world.chain.steal(transaction, mined=True)
        await broadcast(transaction)

    world.wallet.broadcast = stolen
    story = await world.run(Payment, world.purchase())
    assert [s.state for s in await world.children(Spend)] == ["conflicted", "broadcast"]
    assert story.state == "completed"
    assert world.paid() == DUE


async def test_double_spent_when_it_is_too_late_to_pay_again(world: Any) -> None:
    world.portal.life_ms = minutes(24)
    world.chain.later(minutes(3), lambda: world.chain.steal(world.wallet.built[0], mined=True))
    story = await world.run(Payment, world.purchase())
    assert story.state == "expired_unpaid"
    assert world.paid() == 0


async def test_broadcast_with_unknown_outcome_is_looked_up_not_repeated(world: Any) -> None:
    world.wallet.fail("broadcast", ReplyLost("wallet: no reply"), after=True)
    story = await world.run(Payment, world.purchase())
    assert story.state == "completed"
    assert len(world.wallet.handed_out) == 1


# -- the key ------------------------------------------------------------------------------------


async def test_secret_already_viewed_is_regenerated(world: Any) -> None:
    world.portal.viewed = True
    story = await world.run(Payment, world.purchase())
    assert story.state == "completed"
    assert story.passed[-3:] == ["secret_lost", "key_stored", "completed"]
    assert story.output.secret_key == Secret(world.portal.secret)
    assert story.context.generation == 1


async def test_lost_reply_with_the_secret_is_regenerated(world: Any) -> None:
    world.portal.fail("payment_status", LOST, after=True)
    story = await world.run(Payment, world.purchase())
    assert "secret_lost" in story.passed
    assert story.output.secret_key == Secret("unsb-sk-1")


async def test_stored_secret_that_does_not_work_is_regenerated(world: Any) -> None:
    key = world.portal._status

    def stale(invoice_id: str) -> Any:
        status = key(invoice_id)
        if status.secret_key is not None:
            world.portal.generation += 1  # somebody else asked for a new one
        return status

    world.portal._status = stale
    story = await world.run(Payment, world.purchase())
    assert story.state == "completed"
    assert story.passed.count("key_stored") == 2
    assert story.output.secret_key == Secret(world.portal.secret)


async def test_key_that_is_refused_for_good(world: Any) -> None:
    world.platform.refusal = "suspended"
    story = await world.run(Payment, world.purchase())
    assert (story.state, story.context.reason) == ("key_refused", "suspended")
    assert story.context.secret_key is None


async def test_key_that_never_works_is_regenerated_a_few_times_only(world: Any) -> None:
    world.platform.refusal = "invalid_signature"
    story = await world.run(Payment, world.purchase())
    assert story.state == "key_refused"
    assert story.context.generation == 3


async def test_platform_that_does_not_answer_leaves_the_key_unproven(world: Any) -> None:
    world.platform.fail("validate_key", DOWN, times=1_000)
    story = await world.run(Payment, world.purchase())
    assert story.state == "completed"
    assert not story.context.proven
    assert story.output.secret_key == Secret(world.portal.secret)


async def test_clock_ten_minutes_off_does_not_make_the_key_wrong(world: Any) -> None:
    world.platform.ahead_ms = minutes(10)
    story = await world.run(Payment, world.purchase())
    assert story.state == "completed"
    assert story.context.proven


# -- watched after that -------------------------------------------------------------------------


@pytest.mark.parametrize("spent_elsewhere", [True, False], ids=["double spend", "heals"])
async def test_reorganisation_after_completion(embed: Any, spent_elsewhere: bool) -> None:
    """A key that was bought from the embedded platform, whose chain then takes the payment back."""
    platform = await embed()
    told, suspended = await _watch(platform, spent_elsewhere)
    assert told["Payment"].passed[-3:-1] == ["key_stored", "watching"]
    assert suspended, "the platform saw it, too"
    context, child = told["Payment"].context, told["Confirmation"]
    assert "reversed" in child.passed
    assert context.secret_key is not None and context.passphrase is None
    ended = (told["Payment"].state, told["Payment"].status)
    if spent_elsewhere:
        assert ended == ("completed_at_risk", "failed")
        assert (child.state, [leg.status for leg in context.legs]) == ("replaced", ["lost"])
        assert "replaced" in context.reason and told["Payment"].output.txids == ()
        assert _is_suspended(platform, context.public_key)
    else:
        assert ended == ("completed", "completed")
        assert (context.reason, context.legs[0].depth >= 12) == ("", True)
        assert not _is_suspended(platform, context.public_key)


async def _watch(platform: Any, spent_elsewhere: bool) -> tuple[dict[str, Any], bool]:
    """How the purchase and its last child ended; was the key suspended just after?"""
    order = Purchase(tier=1, months=1, currency=Currency.LTC, budget_cents=700, watch=True)
    suspended = False
    async with platform.harness() as harness:
        run_id = (await harness.app.start(Payment, order)).run_id
        for _ in range(80):
            await harness.app.settle()
            found = await harness.app.get(run_id)
            if found.status in ("completed", "failed"):
                break
            if found.state == "watching" and not suspended:
                _reorganise(platform, spent_elsewhere)
                key = (await harness.app.outcome(run_id)).context.public_key
                suspended = _is_suspended(platform, key)
            else:
                platform.context.blocks.mine("LTC")
            platform.clock.advance(POLL_MS)
            await harness.app.beat()
        children = await harness.app.runs(Query(machine="Confirmation"))
        last = max(children, key=lambda one: one.run.created_ms).run.run_id
        told = {"Payment": run_id, "Confirmation": last}
        return {name: await _told(harness.app, one) for name, one in told.items()}, suspended


async def _told(app: Any, run_id: str) -> Any:
    outcome, entries = await app.outcome(run_id), await app.journal(run_id)
    passed = [entry.target for entry in entries]
    return SimpleNamespace(
        state=outcome.state,
        status=outcome.status,
        context=outcome.context,
        output=outcome.output,
        passed=passed,
    )


def _reorganise(platform: Any, spent_elsewhere: bool) -> None:
    with platform.context.database.transaction() as sql:
        arguments: Any = {"currency": "LTC", "depth": 8, "double_spend": spent_elsewhere}
        inject(sql, "reorg", now_ms=platform.clock.now_ms(), **arguments)
        platform.context.blocks.judge(sql)


def _is_suspended(platform: Any, public_key: str) -> bool:
    with platform.context.database.reading() as sql:
        key = keys.find(sql, public_key)
    assert key is not None
    return key.standing(platform.clock.now_ms()) == "suspended"


# -- control ------------------------------------------------------------------------------------


async def test_cancel_waits_while_money_is_on_its_way(world: Any) -> None:
    async with world.harness() as harness:
        run = await harness.app.start(Payment, world.purchase(), key="the run")
        await harness.until_idle(horizon_ms=minutes(2))
        assert (await harness.app.get(run.run_id)).state == "confirming"
        await harness.app.cancel(run.run_id)
        await harness.until_idle()
        outcome = await harness.app.outcome(run.run_id)
    assert (outcome.state, outcome.status) == ("completed", "completed")


# -- any sequence of events ---------------------------------------------------------------------

RECEIVED = st.sampled_from([-1, 0, 400, 950, 1_000, 1_077])
CHILD = {"run_id": st.just("child"), "machine": st.just("Spend"), "succeeded": st.booleans()}
ENDS = st.sampled_from(
    ["broadcast", "broadcast", "conflicted", "unfunded", "rejected", "abandoned", "building"]
)


def _invoice(**changes: Any) -> Invoice:
    fields: dict[str, Any] = {
        "invoice_id": "inv",
        "currency": Currency.LTC,
        "address": "shop",
        "amount_atomic": 1_000,
        "price_cents": 700,
        "tier": 1,
        "months": 1,
        "expires_ms": 3_000,
        "confirmations_required": 6,
    }
    return Invoice(**(fields | changes))


def _ended(kind: Any, state: str) -> Any:
    """The end of a spend as its machine would tell it, for whichever leg is open."""

    def event(context: Purchase) -> Any:
        transaction = None
        if state in ("broadcast", "conflicted"):
            number = len(context.legs)
            transaction = SignedTransaction(
                txid=f"t{number}",
                payload=Secret("bytes"),
                inputs=(f"in-{number}",),
                fee_atomic=10,
                amount_atomic=context.legs[-1].amount_atomic if context.legs else 1,
                address="shop",
            )
        return kind(
            run_id="child",
            machine="Spend",
            state=state,
            succeeded=state == "broadcast",
            output=SpendResult(transaction=transaction, reason=state),
        )

    return event


INVOICES = st.builds(
    _invoice,
    amount_atomic=st.sampled_from([1_000, 1_000, 0]),
    price_cents=st.sampled_from([700, 700, 701]),
    tier=st.sampled_from([1, 1, 2]),
    expires_ms=st.sampled_from([3_000, 3_000, 100]),
)
STRAIGHT = [
    (Priced(price_cents=700), 0),
    (Invoiced(invoice=_invoice(), refund_address="ours"), 0),
    (_ended(Spent, "broadcast"), 0),
    (
        Followed(
            run_id="c",
            machine="Confirmation",
            state="deep_enough",
            succeeded=True,
            output=FollowResult(depth=6),
        ),
        0,
    ),
]
EVENTS = st.one_of(
    st.sampled_from(
        ["nobody_answers", "overdue", "no_settlement", "refund_overdue", "test_overdue"]
    ),
    st.builds(Priced, price_cents=st.sampled_from([0, 700, 9_999])),
    st.builds(Invoiced, invoice=INVOICES, refund_address=st.sampled_from(["ours", "shop"])),
    st.builds(_ended, st.sampled_from([Spent, Topped]), ENDS),
    st.builds(
        Followed,
        run_id=st.just("c"),
        machine=st.just("Confirmation"),
        state=st.sampled_from(["deep_enough", "deep_enough", "replaced", "given_up"]),
        succeeded=st.booleans(),
        output=st.none() | st.builds(FollowResult, depth=st.integers(0, 9)),
    ),
    st.builds(
        Watched,
        run_id=st.just("c"),
        machine=st.just("Confirmation"),
        state=st.sampled_from(["deep_enough", "replaced", "given_up"]),
        succeeded=st.booleans(),
        output=st.none() | st.builds(FollowResult, depth=st.integers(0, 13)),
    ),
    st.builds(SankAgain, number=st.integers(0, 3), confirmations=st.integers(-1, 7)),
    st.builds(FellShort, received_atomic=RECEIVED),
    st.builds(RanOut, received_atomic=RECEIVED),
    st.builds(Refunding, received_atomic=RECEIVED),
    st.builds(RefundSeen, refund_atomic=st.sampled_from([0, 364, 910, 909, 911])),
    st.builds(
        Issued,
        public_key=st.just("pk"),
        secret_key=st.just(Secret("sk")),
        received_atomic=RECEIVED,
    ),
    st.builds(SecretGone, public_key=st.just("pk"), received_atomic=RECEIVED),
    st.builds(Regenerated, public_key=st.just("pk"), secret_key=st.just(Secret("new"))),
    st.just(Proven(tier=1)),
    st.builds(Denied, reason=st.sampled_from(["invalid_signature", "suspended"])),
)
STEPS = st.tuples(
    st.integers(0, len(STRAIGHT)), st.lists(st.tuples(EVENTS, st.integers(0, 300)), max_size=12)
).map(lambda drawn: [*STRAIGHT[: drawn[0]], *drawn[1]])


def _purchase() -> Purchase:
    return Purchase(
        tier=1, months=1, currency=Currency.LTC, budget_cents=1_000, cut_ms=500, poll_ms=14
    )


@settings(max_examples=400, deadline=None)
@given(steps=STEPS)
def test_the_table_does_what_the_library_does(library_agrees: Any, steps: Any) -> None:
    library_agrees(Payment, _purchase(), steps)


@settings(max_examples=400, deadline=None)
@given(steps=STEPS)
def test_contracts_hold_whatever_happens(walk: Any, steps: Any) -> None:
    for run in walk(Payment, _purchase(), steps):
        legs = run.context.legs
        assert sum(leg.in_flight for leg in legs) <= 1
        assert run.context.pledged_atomic <= 1_100
        if run.state in ("key_stored", "completed"):
            assert all(leg.depth >= 6 for leg in legs if leg.live)
            assert run.context.pledged_atomic - run.context.unmatched_atomic == 1_000
        if run.state == "completed":
            assert len(_secrets(run.context)) == 1
        if run.state == "refunded":
            base = run.context.refund_base_atomic
            assert run.context.refund_atomic + restocking_fee_atomic(base) == base


@pytest.mark.parametrize("received", [0, 1, 899, 900, 950, 999, 1_000, 1_001])
@pytest.mark.parametrize("now_ms", [0, 2_499, 2_500])
@pytest.mark.parametrize("depth", [0, 6])
def test_a_leg_is_opened_only_for_an_answered_gap_in_time(
    received: int, now_ms: int, depth: int
) -> None:
    leg = Leg(
        number=1,
        amount_atomic=1_000,
        received_before_atomic=0,
        status="deep" if depth else "sent",
        depth=6,
    )
    context = msgspec.structs.replace(_purchase(), invoice=_invoice(), legs=(leg,))
    allowed = depth == 6 and now_ms < 2_500 and 900 <= received < 1_000
    assert top_up_allowed(context, received, now_ms) == allowed


@pytest.mark.parametrize("change", [{"amount_atomic": 999}, {"address": "thief"}])
def test_a_spend_that_paid_something_else_is_a_violation(change: dict[str, Any]) -> None:
    table = compile_table(Payment)
    begun = begin(table, run_id="r", context=_purchase(), now_ms=0)
    assert isinstance(begun, Decision)
    run = begun.after
    for event, _ in STRAIGHT[:2]:
        step = decide(table, run, event_id(type(event)), event, 0)
        assert isinstance(step, Decision)
        run = step.after
    told = _ended(Spent, "broadcast")(run.context)
    wrong = msgspec.structs.replace(told.output.transaction, **change)
    told = msgspec.structs.replace(told, output=SpendResult(transaction=wrong, reason=""))
    assert isinstance(decide(table, run, "spent", told, 0), Violation)


# -- any interleaving, through the engine -------------------------------------------------------

MISHAPS: dict[str, Any] = {
    "reorganise": lambda w, n: w.chain.reorganise(n),
    "reorganise and lose": lambda w, n: w.chain.reorganise(n, lose=True),
    "evict": lambda w, n: w.chain.evict(),
    "steal": lambda w, n: w.wallet.built and w.chain.steal(w.wallet.built[-1], mined=n % 2 == 0),
    "freeze": lambda w, n: setattr(w.chain, "frozen", True),
    "thaw": lambda w, n: setattr(w.chain, "frozen", False),
    "count less": lambda w, n: setattr(w.portal, "undercount_atomic", n * 30_000),
    "count right": lambda w, n: setattr(w.portal, "undercount_atomic", 0),
    "fall silent": lambda w, n: setattr(w.portal, "silent", True),
    "speak": lambda w, n: setattr(w.portal, "silent", False),
    "close": lambda w, n: setattr(w.portal, "closed", True),
    "show the secret": lambda w, n: setattr(w.portal, "viewed", True),
    "lock": lambda w, n: w.wallet.lock("open sesame"),
}
PORT_CALLS = [
    "quotes", "create_invoice", "payment_status", "regenerate_secret",
    "new_address", "build", "broadcast", "look", "received_atomic", "validate_key",
]  # fmt: skip
FAULTS = st.lists(
    st.tuples(
        st.sampled_from(PORT_CALLS), st.sampled_from([DOWN, LOST]), st.booleans(), st.integers(1, 4)
    ),
    max_size=4,
)
AGENDA = st.lists(
    st.tuples(st.integers(0, 70), st.sampled_from(sorted(MISHAPS)), st.integers(1, 5)), max_size=6
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(faults=FAULTS, agenda=AGENDA, crashes=st.lists(st.integers(1, 120), max_size=3))
def test_no_interleaving_spends_twice_on_one_invoice(
    make_world: Any, faults: Any, agenda: Any, crashes: Any
) -> None:
    world = make_world()
    for method, error, after, times in faults:
        for port in (world.portal, world.wallet, world.platform):
            port.fail(method, error, after=after, times=times)
    for minute, mishap, size in agenda:
        act = MISHAPS[mishap]
        world.chain.later(minutes(minute), lambda act=act, size=size: act(world, size))
    purchase = world.purchase(
        poll_ms=minutes(1),
        passphrase=Secret("open sesame"),
        follow_ms=hours(5),
        settle_ms=hours(5),
        refund_ms=hours(5),
    )
    story = asyncio.run(world.run(Payment, purchase, crash_at=tuple(crashes)))
    assert story.status in ("completed", "failed"), story.last_error
    context = story.context
    assert world.paid() <= DUE + context.tolerance_atomic
    assert set(world.wallet.handed_out) <= {leg.txid for leg in context.legs}
    assert len(world.portal.invoices) <= 1
    if context.invoice is not None:
        assert all(at_ms < context.pay_by_ms for at_ms in world.wallet.built_ms)
    if story.state == "completed":
        assert world.portal.complete
        assert world.paid() == DUE + context.unmatched_atomic
        assert not context.proven or story.output.secret_key == Secret(world.portal.secret)
    if story.state == "refunded":
        assert world.chain.total(context.refund_address) == context.refund_atomic
    if story.state in ("expired_unpaid", "unfunded", "wallet_refused", "unavailable"):
        assert world.paid() == 0


async def test_a_crash_at_every_boundary_buys_one_key_for_one_payment(make_world: Any) -> None:
    at = 0
    while True:
        at += 1
        world = make_world()
        story = await world.run(Payment, world.purchase(poll_ms=minutes(3)), crash_at=(at,))
        assert story.state == "completed", at
        assert world.paid() == DUE, at
        assert len(set(world.wallet.handed_out)) == 1, at
        assert story.output.secret_key == Secret(world.portal.secret), at
        assert len(world.portal.invoices) == 1, at
        world.store.close()
        if not world.crashes:
            break
    assert at > 60


def _everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


def _secrets(value: Any) -> list[Secret[str]]:
    if isinstance(value, Secret):
        return [value]
    if isinstance(value, tuple):
        return [one for item in value for one in _secrets(item)]
    fields = getattr(value, "__struct_fields__", ())
    return [one for name in fields for one in _secrets(getattr(value, name))]


def _without_wallets(self: Wallets, wallets: Any) -> None:
    self._wallets = {}


def _gift(world: Any, amount_atomic: int) -> None:
    ((tx, _),) = world.chain.paid_to("shop-0")
    gift = replace(tx, txid="gift", inputs=("elsewhere",), outputs={"shop-0": amount_atomic})
    world.chain.accept(gift)


def _ticking(world: Any, call: Any) -> Any:
    async def ticked() -> int:
        world.chain.catch_up()
        found: int = await call()
        return found

    return ticked
