"""Gift cards on both sides, against the embedded platform with its simulated coins."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from engine.clock import hours, minutes
from engine.run import TERMINAL
from engine.secrets import Secret, SecretsCodec
from engine.testing import Crash, CrashPlan, Harness, ManualClock
from engine.worker import LEASE_MS
from machines.app import resources_of
from machines.clients import clients_for
from machines.clients.inprocess import InProcess
from machines.clients.ports import (
    Credentials,
    Currency,
    Invoice,
    NotFound,
    Platform,
    Portal,
    Rejected,
    ReplyLost,
    Unauthorized,
    Unavailable,
)
from machines.clients.ports.gift_cards import (
    CardRefused,
    CardStatus,
    GiftCards,
    KeyPrice,
    NewCard,
    PriceList,
    RedemptionStatus,
)
from machines.flows.f03_payment import Payment
from machines.flows.f03b_gift_card import GiftCard, Redemption
from machines.flows.f03c_confirmation import Confirmation
from machines.flows.f03w_wallet import Spend
from machines.flows.gift_card import CARDS_MAX, GENERATIONS_MAX, CardClaim, CardOrder
from machines.flows.money import CUT_MS, Wallets, restocking_fee_atomic
from machines.platform import gift_cards, misbehaviour
from machines.platform.app import build_app
from machines.platform.context import PlatformConfig, open_money
from machines.platform.database import open_platform_database
from machines.platform.ledger.report import ledger_report
from machines.platform.sandbox.fake import FakeBackend
from persistence.store import open_store

MACHINES = (Confirmation, GiftCard, Payment, Redemption, Spend)
CREATE = "POST /api/gift-cards/create"
REDEEM = "POST /api/gift-cards/redeem"
DUE_ATOMIC = 1_000_003
POLL_MS = 14_000


class Story:
    """How a run went."""

    def __init__(self, outcome: Any, passed: list[str]) -> None:
        self.state: str = outcome.state
        self.status: str = outcome.status
        self.context = outcome.context
        self.output = outcome.output
        self.passed = passed


class Town:
    """A platform with its coins, a store, and one clock for both."""

    def __init__(self, store_url: str) -> None:
        self.clock = ManualClock()
        self.database = open_platform_database(None)
        few = PlatformConfig(payer_outputs=4, shop_outputs=2, stranger_outputs=1, allow_faults=True)
        self.codec = SecretsCodec(b"k" * 32)
        self.money = open_money(self.database, self.codec, self.clock.now_ms, few)
        self.web = build_app(self.money, FakeBackend(), allow_faults=True)
        self.clients = clients_for(
            "http://platform.test",
            rpc_username="turtles",
            rpc_password=Secret("turtles"),
            clock_ms=self.clock.now_ms,
            network=InProcess(self.web),
        )
        self.store = open_store(store_url)
        self.secrets = SecretsCodec(b"s" * 32)
        self.runs = 0
        self.mines = True

    async def run(
        self, machine: Any, context: Any, *, turn: Callable[[str], Any] | None = None
    ) -> Story:
        """One run until it has ended; a block and a poll's pause between its turns.

        Args:
            turn: called after each turn with the state the run is in.
        """
        self.runs += 1
        async with self.harness() as harness:
            run = await harness.app.start(machine, context, key=f"run {self.runs}")
            for _ in range(600):
                await harness.app.settle()
                found = await harness.app.get(run.run_id)
                if found.status in TERMINAL:
                    return await _story(harness, run.run_id)
                if turn is not None:
                    turn(found.state)
                if self.mines:
                    self.money.blocks.mine("LTC")
                self.clock.advance(POLL_MS)
                await harness.app.beat()
        raise AssertionError(f"{machine.__name__} has not ended: {found.state} {found.last_error}")

    def harness(self) -> Harness:
        """An app over this town."""
        return Harness(
            MACHINES,
            store=self.store,
            resources=resources_of(self.clients),
            clock=self.clock,
            plan=CrashPlan(),
            secrets=self.secrets,
        )

    async def card(self, amount_cents: int = 5_000, **changes: Any) -> Story:
        """A card, bought with litecoin."""
        return await self.run(GiftCard, order(amount_cents, **changes))

    async def redeem(self, code: Secret[str], **changes: Any) -> Story:
        """A key for a card."""
        turn = changes.pop("turn", None)
        return await self.run(Redemption, claim(code, **changes), turn=turn)

    def fault(self, name: str, **arguments: Any) -> None:
        """Make the platform misbehave."""
        with self.database.transaction() as sql:
            misbehaviour.inject(sql, name, now_ms=self.clock.now_ms(), **arguments)

    def decide(self, *, approve: bool) -> None:
        """The buyer opens the newest letter and presses a button."""
        with self.database.transaction() as sql:
            text = gift_cards.letters(sql, self.codec)[-1].text
            token = re.findall(r"/gift-cards/approve/(\S+)", text)[0]
            gift_cards.decide(sql, token, approve, self.clock.now_ms())

    def rows(self, question: str) -> list[Any]:
        """What the platform has in its database."""
        with self.database.reading() as sql:
            return list(sql.all(question))

    async def works(self, story: Story) -> bool:
        """Whether the platform accepts the key that came of it."""
        got = story.output
        credentials = Credentials(public_key=got.public_key, secret_key=got.secret_key)
        return (await self.clients.platform.validate_key(credentials)).valid


async def _story(harness: Harness, run_id: str) -> Story:
    entries = await harness.app.journal(run_id)
    passed = [e.target for i, e in enumerate(entries) if i == 0 or e.target != e.source]
    return Story(await harness.app.outcome(run_id), passed)


def order(amount_cents: int = 5_000, **changes: Any) -> CardOrder:
    """A card within the budget."""
    fields: dict[str, Any] = {"currency": Currency.LTC, "budget_cents": amount_cents}
    return CardOrder(amount_cents=amount_cents, **(fields | changes))


def claim(code: Secret[str], **changes: Any) -> CardClaim:
    """The paper's key: tier 1, three months."""
    fields: dict[str, Any] = {"tier": 1, "months": 3, "budget_cents": 5_000}
    return CardClaim(code=code, **(fields | changes))


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    """A place where cards are sold."""
    made = Town(f"sqlite:///{tmp_path}/runs.db")
    async with made.web.router.lifespan_context(made.web):
        yield made
    await made.clients.aclose()
    made.store.close()
    assert ledger_report(made.database)["consistent"]
    made.database.close()


# -- the paper's example ------------------------------------------------------------------------


async def test_fifty_dollars_bought_and_redeemed_in_parts(town: Town) -> None:
    bought = await town.card()
    assert bought.passed == ["checking_limits", "creating", "awaiting_payment", "issued"]
    receipt = bought.output
    assert (receipt.amount_cents, receipt.paid_cents, len(receipt.txids)) == (5_000, 5_000, 1)
    assert re.fullmatch(r"[a-z]+(-[a-z]+){3}", receipt.code.reveal())

    first = await town.redeem(receipt.code)
    assert first.passed == ["checking_balance", "redeeming", "key_stored", "redeemed"]
    assert (first.output.paid_cents, first.output.balance_cents) == (1_953, 3_047)
    assert await town.works(first)

    rest = await town.redeem(receipt.code, card_id=receipt.card_id)
    assert (rest.output.paid_cents, rest.output.balance_cents) == (1_953, 1_094)
    last = await town.redeem(receipt.code, months=1)
    assert (last.output.paid_cents, last.output.balance_cents) == (700, 394)
    refused = await town.redeem(receipt.code, months=1)
    assert (refused.state, refused.context.balance_cents) == ("too_little", 394)
    seen = await town.redeem(receipt.code, months=1, card_id=receipt.card_id)
    assert seen.passed == ["checking_balance", "too_little"]
    assert len(town.rows("SELECT * FROM api_key")) == 3


async def test_approved_denied_or_neither(town: Town) -> None:
    bought = await town.card(2_100, require_approval=True, email="buyer@example.org")
    code = bought.output.code

    def decide(approve: bool) -> Callable[[str], None]:
        return lambda state: town.decide(approve=approve) if state == "pending_approval" else None

    approved = await town.redeem(code, months=1, turn=decide(True))
    assert approved.passed == [
        "checking_balance", "redeeming", "pending_approval", "approved", "key_stored", "redeemed",
    ]  # fmt: skip
    assert (approved.output.paid_cents, approved.output.balance_cents) == (700, 1_400)
    assert await town.works(approved)

    denied = await town.redeem(code, months=1, turn=decide(False))
    assert denied.passed[-2:] == ["pending_approval", "denied"]
    assert (denied.context.taken_cents, denied.context.balance_cents) == (0, 1_400)

    waited = await town.redeem(code, months=1, approval_ms=minutes(1))
    assert (waited.state, waited.output) == ("approval_timed_out", None)
    assert (waited.context.taken_cents, waited.context.balance_cents) == (700, 700)
    town.decide(approve=True)
    key = waited.context.redemption_key
    late = await town.redeem(code, months=1, redemption_key=key)
    assert (late.state, late.output.balance_cents) == ("redeemed", 700)
    assert late.output.redemption_id == waited.context.redemption_id


async def test_lost_replies_cost_nothing_twice(town: Town) -> None:
    """The code's, then the one that takes the price, each cut off once it is done.

    Then a layer whose database is gone with its sandbox asks again: it is the same redemption.
    """
    town.fault("drop_reply_after_commit", route=CREATE, contains="amount_cents")
    bought = await town.card(1_400)
    assert (bought.state, bought.context.codes_lost) == ("issued", 1)
    cards = town.rows("SELECT received_atomic > 0 AS paid FROM invoice ORDER BY number")
    assert [one["paid"] for one in cards] == [0, 1]

    town.fault("drop_reply_after_commit", route=REDEEM, contains="code")
    got = await town.redeem(bought.output.code, months=1, redemption_key="root.1-depth-2")
    assert got.passed[-4:] == ["redeeming", "secret_lost", "key_stored", "redeemed"]
    assert (got.output.paid_cents, got.output.balance_cents) == (700, 700)
    assert len(town.rows("SELECT * FROM gift_redemption")) == 1
    assert await town.works(got)

    again = await town.redeem(bought.output.code, months=1, redemption_key="root.1-depth-2")
    assert again.passed[-4:] == ["redeeming", "secret_lost", "key_stored", "redeemed"]
    assert again.output.public_key == got.output.public_key
    assert again.output.secret_key != got.output.secret_key
    assert (again.output.paid_cents, again.output.balance_cents) == (700, 700)
    assert len(town.rows("SELECT * FROM gift_redemption")) == 1
    assert await town.works(again)


# -- a small world of fakes, for every branch -----------------------------------------------------


CODE = "tiger-castle-rainbow-sunset"
DOWN = Unavailable("portal: refused")


class FakeGiftCards:
    """One card at a time.  `fail` makes calls fail, before or after they are done."""

    def __init__(self, world: Any) -> None:
        self.portal, self.clock = world.portal, world.clock
        self.limits = (700, 10_000_000)
        self.given: dict[str, int] = {}
        self.tells_code = True
        self.keys: list[str] = []
        self.standing: Any = "active"
        self.balance_cents = 1_400
        self.taken_cents = 0
        self.pending = 0
        self.price_cents = 700
        self.charged_cents: int | None = None
        self.verdict: Any = "redeemed"
        self.tells_secret = True
        self.asked: list[str] = []
        self.polls = 0
        self.faults: dict[str, list[tuple[Exception, bool]]] = {}

    def fail(self, method: str, error: Exception, *, after: bool = False, times: int = 1) -> None:
        """The next calls of a method fail."""
        self.faults.setdefault(method, []).extend([(error, after)] * times)

    def _call(self, method: str, act: Callable[[], Any]) -> Any:
        if not self.faults.get(method):
            return act()
        error, after = self.faults[method].pop(0)
        if after:
            act()
        raise error

    async def prices(self) -> PriceList:
        listed = (KeyPrice(tier=1, months=1, price_cents=self.price_cents),)
        least, most = self.limits
        made = PriceList(minimum_cents=least, maximum_cents=most, prices=listed)
        return self._call("prices", lambda: made)

    async def create(self, *, key: str, amount_cents: int, **wanted: Any) -> NewCard:
        def act() -> NewCard:
            new = key not in self.keys
            if new:
                self.keys.append(key)
                self.portal.refund_address = wanted["refund_address"]
                fields = {"amount_cents": amount_cents, "price_cents": amount_cents} | self.given
                self.portal.invoices[key] = Invoice(
                    invoice_id=f"inv-{len(self.keys)}",
                    currency=wanted["currency"],
                    address=f"shop-{len(self.keys)}",
                    amount_atomic=self.portal.amount_atomic,
                    price_cents=fields["price_cents"],
                    tier=0,
                    months=0,
                    expires_ms=self.clock.now_ms() + self.portal.life_ms,
                    confirmations_required=self.portal.required,
                )
            told = new and self.tells_code
            return NewCard(
                card_id=f"gift_{self.keys.index(key) + 1}",
                code=Secret(CODE) if told else None,
                amount_cents=self.given.get("amount_cents", amount_cents),
                invoice=self.portal.invoices[key],
            )

        return self._call("create", act)

    async def card(self, card_id: str) -> CardStatus:
        def act() -> CardStatus:
            self.polls += 1
            return CardStatus(
                card_id=card_id,
                standing=self.standing,
                amount_cents=1_400,
                balance_cents=self.balance_cents,
                taken_cents=self.taken_cents,
                pending=self.pending,
            )

        return self._call("card", act)

    async def redeem(self, code: Secret[str], *, key: str, **wanted: Any) -> RedemptionStatus:
        def act() -> RedemptionStatus:
            assert code.reveal() == CODE
            if key not in self.asked:
                self.balance_cents -= self.price_cents
            self.asked.append(key)
            return self._redemption()

        return self._call("redeem", act)

    def _redemption(self) -> RedemptionStatus:
        secret, done = None, self.verdict == "redeemed"
        if done and self.tells_secret:
            self.tells_secret, secret = False, Secret(self.portal.secret)
        charged = self.price_cents if self.charged_cents is None else self.charged_cents
        return RedemptionStatus(
            redemption_id="redeem_1",
            standing=self.verdict,
            price_cents=charged,
            balance_cents=self.balance_cents,
            public_key="unsb-pk-1" if done else None,
            secret_key=secret,
        )

    async def redemption(self, redemption_id: str) -> RedemptionStatus:
        assert redemption_id == "redeem_1"
        self.polls += 1
        return self._call("redemption", self._redemption)

    async def regenerate(self, redemption_id: str) -> Credentials:
        def act() -> Credentials:
            self.portal.generation += 1
            return Credentials(public_key="unsb-pk-1", secret_key=Secret(self.portal.secret))

        return self._call("regenerate", act)


class Shop:
    """The fakes of `conftest`, with gift cards, and a way to run machines among them."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.cards = FakeGiftCards(world)
        self.wallets = {world.currency: world.wallet}
        self.lives = 0
        self.died = 0

    async def run(self, machine: Any, context: Any, *, crash_at: int | None = None) -> Story:
        """One run until nothing moves any more; dies once, where it is told to."""
        self.lives += 1
        plan = CrashPlan(at=crash_at)
        with contextlib.suppress(Crash):
            return await self._live(machine, context, plan)
        self.died += 1
        self.world.clock.advance(LEASE_MS + 1)
        return await self._live(machine, context, CrashPlan())

    async def _live(self, machine: Any, context: Any, plan: CrashPlan) -> Story:
        harness = Harness(
            MACHINES,
            store=self.world.store,
            resources={
                GiftCards: self.cards,
                Portal: self.world.portal,
                Platform: self.world.platform,
                Wallets: Wallets(self.wallets),
            },
            clock=self.world.clock,
            plan=plan,
            secrets=self.world.codec,
        )
        async with harness:
            run = await harness.app.start(machine, context, key=f"run {self.lives}")
            await harness.until_idle()
            return await _story(harness, run.run_id)

    async def buy(self, amount_cents: int = 1_400, **changes: Any) -> Story:
        """A card of the fake portal."""
        return await self.run(GiftCard, order(amount_cents, **changes))

    async def redeem(self, *, crash_at: int | None = None, **changes: Any) -> Story:
        """A key for its card."""
        context = claim(Secret(CODE), **({"months": 1} | changes))
        return await self.run(Redemption, context, crash_at=crash_at)


@pytest.fixture
def shop(world: Any) -> Shop:
    """A small world that sells cards."""
    return Shop(world)


# -- the purchaser: nothing is paid ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "budget", "state"),
    [
        (699, 5_000, "below_minimum"),
        (10_000_001, 20_000_000, "above_maximum"),
        (5_000, 4_999, "over_budget"),
        (0, 0, "below_minimum"),
    ],
)
async def test_amounts_that_no_card_is_ordered_for(
    shop: Shop, amount: int, budget: int, state: str
) -> None:
    story = await shop.buy(amount, budget_cents=budget)
    assert (story.state, story.status, story.output) == (state, "failed", None)
    assert str(amount) in story.context.reason
    assert shop.cards.keys == []


async def test_least_card_is_seven_dollars(shop: Shop) -> None:
    assert (await shop.buy(700)).state == "issued"


@pytest.mark.parametrize("given", [{"amount_cents": 1_399}, {"price_cents": 1_401}])
async def test_card_that_is_not_as_ordered_is_not_paid(shop: Shop, given: dict[str, int]) -> None:
    shop.cards.given = given
    story = await shop.buy(budget_cents=9_999)
    assert story.state == "order_refused"
    assert "ordered 1400 cents" in story.context.reason
    assert shop.world.paid() == 0


async def test_order_that_the_portal_declines(shop: Shop) -> None:
    shop.cards.fail("create", Rejected("portal: approval needs an e-mail address"))
    story = await shop.buy(require_approval=True)
    assert (story.state, story.context.reason) == (
        "order_refused", "portal: approval needs an e-mail address",
    )  # fmt: skip


async def test_coin_without_a_wallet(shop: Shop) -> None:
    shop.wallets = {}
    story = await shop.buy()
    assert story.state == "wallet_refused"
    assert "no wallet for LTC" in story.context.reason


@pytest.mark.parametrize("method", ["prices", "create"])
async def test_portal_silent_for_an_hour(shop: Shop, method: str) -> None:
    shop.cards.fail(method, DOWN, times=10_000)
    story = await shop.buy()
    assert story.state == "unavailable"
    assert shop.world.paid() == 0


@pytest.mark.parametrize("method", ["prices", "create"])
async def test_portal_down_for_a_while_is_waited_out(shop: Shop, method: str) -> None:
    shop.cards.fail(method, DOWN, times=3)
    assert (await shop.buy()).state == "issued"


async def test_nothing_is_paid_for_a_card_whose_code_is_lost(shop: Shop) -> None:
    """The first invoice expires unpaid; the second card's is the one that is paid."""
    shop.cards.fail("create", ReplyLost("portal: no reply"), after=True)
    story = await shop.buy()
    assert (story.state, story.context.codes_lost) == ("issued", 1)
    assert story.output.card_id == "gift_2"
    assert shop.world.chain.total("shop-1") == 0
    assert shop.world.chain.total("shop-2") == DUE_ATOMIC
    assert len(set(shop.cards.keys)) == 2


async def test_portal_that_never_tells_a_code_is_paid_nothing(shop: Shop) -> None:
    shop.cards.tells_code = False
    story = await shop.buy()
    assert (story.state, len(shop.cards.keys)) == ("code_lost", CARDS_MAX)
    assert "none was paid" in story.context.reason
    assert shop.world.paid() == 0


# -- the purchaser: every end of the payment ------------------------------------------------------


async def test_expired_with_nothing_paid(shop: Shop) -> None:
    shop.world.portal.life_ms = CUT_MS[Currency.LTC]
    story = await shop.buy()
    assert (story.state, story.output) == ("expired_unpaid", None)
    assert shop.world.paid() == 0


async def test_insufficient_funds(shop: Shop) -> None:
    shop.world.wallet.coins = {"coin-0": DUE_ATOMIC}
    assert (await shop.buy()).state == "unfunded"


async def test_wallet_that_refuses_the_payment(shop: Shop) -> None:
    shop.world.wallet.fail("build", Rejected("wallet: -6: Transaction amount too small"))
    assert (await shop.buy()).state == "wallet_refused"


async def test_invoice_that_asks_for_more_coin_than_allowed(shop: Shop) -> None:
    story = await shop.buy(amount_atomic_max=DUE_ATOMIC - 1)
    assert (story.state, story.context.reason) == (
        "order_refused", "the payment ended as invoice_refused",
    )  # fmt: skip


async def test_partial_payment_topped_up_in_time(shop: Shop) -> None:
    shop.world.portal.undercount_atomic = 50_000
    story = await shop.buy()
    assert story.state == "issued"
    assert len(story.output.txids) == 2
    assert shop.world.paid() == DUE_ATOMIC + 50_000


async def test_expired_with_partial_payment_is_refunded_less_nine_percent(shop: Shop) -> None:
    shop.world.portal.undercount_atomic = 400_000
    story = await shop.buy()
    assert (story.state, story.output) == ("refunded", None)
    counted = DUE_ATOMIC - 400_000
    back = shop.world.chain.total(story.context.refund_address)
    assert back + restocking_fee_atomic(counted) == counted


async def test_portal_that_completes_after_expiry_gives_the_card(shop: Shop) -> None:
    shop.world.portal.silent = True
    shop.world.chain.later(hours(2), lambda: setattr(shop.world.portal, "silent", False))
    assert (await shop.buy(poll_ms=minutes(2))).state == "issued"


async def test_portal_that_never_settles_is_left_to_a_person(shop: Shop) -> None:
    """The code is kept: the card may work one day."""
    shop.world.portal.silent = True
    story = await shop.buy(poll_ms=minutes(20))
    assert (story.state, story.context.reason) == (
        "payment_unsettled", "the payment ended as unsettled",
    )  # fmt: skip
    assert story.context.code == Secret(CODE)


async def test_locked_wallet_is_opened_and_its_passphrase_forgotten(shop: Shop) -> None:
    shop.world.wallet.lock("open sesame")
    story = await shop.buy(passphrase=Secret("open sesame"))
    assert (story.state, story.context.passphrase) == ("issued", None)


# -- the purchaser: watching ----------------------------------------------------------------------


def _spend(shop: Shop, duration_ms: int, **fields: Any) -> None:
    def act() -> None:
        for name, value in fields.items():
            setattr(shop.cards, name, value)

    look = shop.cards.card
    due_ms = shop.world.clock.now_ms() + duration_ms

    async def later(card_id: str) -> CardStatus:
        if shop.world.clock.now_ms() >= due_ms:
            act()
        return await look(card_id)

    shop.cards.card = later  # type: ignore[method-assign]


async def test_card_is_watched_until_it_is_used_up(shop: Shop) -> None:
    _spend(shop, hours(9), standing="exhausted", balance_cents=0, taken_cents=1_400)
    _spend(shop, hours(5), balance_cents=700, taken_cents=700)
    story = await shop.buy(watch=True, poll_ms=minutes(4))
    assert story.passed[-2:] == ["active", "exhausted"]
    assert (story.output.paid_cents, story.context.balance_cents) == (1_400, 0)


async def test_card_whose_last_cents_await_approval_is_not_used_up(shop: Shop) -> None:
    _spend(shop, 0, standing="exhausted", balance_cents=0, taken_cents=1_400, pending=1)
    story = await shop.buy(watch=True, poll_ms=minutes(4), watch_ms=hours(5))
    assert (story.state, story.context.balance_cents) == ("issued", 0)


async def test_watching_ends_with_something_left(shop: Shop) -> None:
    story = await shop.buy(watch=True, watch_ms=minutes(5))
    assert (story.state, story.context.balance_cents) == ("issued", 1_400)
    assert shop.cards.polls > 10


async def test_card_that_expires_is_told(shop: Shop) -> None:
    shop.cards.standing = "expired"
    story = await shop.buy(watch=True)
    assert (story.state, story.status) == ("expired", "failed")
    assert "expired" in story.context.reason


async def test_sums_that_do_not_add_up_are_disputed(shop: Shop) -> None:
    shop.cards.balance_cents = 699
    story = await shop.buy(watch=True)
    assert (story.state, story.context.reason) == (
        "disputed", "699 cents left and 0 taken of a card of 1400",
    )  # fmt: skip


# -- the agent: refusals --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("unknown_code", "unknown_code"),
        ("unpaid", "card_unpaid"),
        ("expired", "card_expired"),
        ("reversed", "card_reversed"),
        ("too_little", "too_little"),
        ("denied", "denied"),
        ("other", "refused"),
    ],
)
async def test_card_that_is_turned_away(shop: Shop, reason: Any, state: str) -> None:
    shop.cards.fail("redeem", CardRefused("portal: no", reason=reason, balance_cents=3))
    story = await shop.redeem()
    assert (story.state, story.status, story.output) == (state, "failed", None)
    assert (story.context.reason, story.context.balance_cents) == ("portal: no", 3)
    assert story.context.taken_cents == 0


@pytest.mark.parametrize(
    ("standing", "state"),
    [("unpaid", "card_unpaid"), ("expired", "card_expired"), ("reversed", "card_reversed")],
)
async def test_card_that_is_seen_to_be_no_good(shop: Shop, standing: Any, state: str) -> None:
    shop.cards.standing = standing
    story = await shop.redeem(card_id="gift_1")
    assert (story.state, story.context.reason) == (state, f"the card is {standing}")
    assert shop.cards.asked == []


async def test_card_that_is_seen_to_hold_too_little(shop: Shop) -> None:
    shop.cards.balance_cents = 699
    story = await shop.redeem(card_id="gift_1")
    assert story.state == "too_little"
    assert story.context.reason == "the key costs 700 cents, the card holds 699"


async def test_id_of_no_card(shop: Shop) -> None:
    shop.cards.fail("card", NotFound("portal: no such card"))
    assert (await shop.redeem(card_id="gift_9")).state == "unknown_code"


async def test_price_above_the_budget_is_not_asked_for(shop: Shop) -> None:
    story = await shop.redeem(budget_cents=699)
    assert (story.state, shop.cards.asked) == ("over_budget", [])
    assert story.context.reason == "the key costs 700 cents, the budget is 699"


async def test_tier_that_is_not_offered(shop: Shop) -> None:
    story = await shop.redeem(tier=2)
    assert (story.state, story.context.reason) == (
        "not_offered", "tier 2 for 1 months is none of 1 prices",
    )  # fmt: skip


async def test_key_dearer_than_it_was_weighed(shop: Shop) -> None:
    shop.cards.charged_cents = 701
    story = await shop.redeem()
    assert story.state == "overcharged"
    assert story.context.reason == "701 cents were taken for a key of 700"
    assert story.context.secret_key is not None


async def test_portal_silent_before_anything_is_taken(shop: Shop) -> None:
    shop.cards.fail("prices", DOWN, times=10_000)
    assert (await shop.redeem()).state == "unavailable"


async def test_portal_that_never_tells_what_became_of_it(shop: Shop) -> None:
    """The same key finds the redemption later, and nothing more is taken."""
    shop.cards.fail("redeem", ReplyLost("portal: no reply"), after=True)
    shop.cards.fail("redeem", DOWN, times=10_000)
    story = await shop.redeem()
    assert (story.state, story.output) == ("unanswered", None)
    assert "redemption_key" in story.context.reason
    shop.cards.faults.clear()
    later = await shop.redeem(redemption_key=story.context.redemption_key)
    assert (later.state, later.output.balance_cents) == ("redeemed", 700)
    assert len(set(shop.cards.asked)) == 1


# -- the agent: approval --------------------------------------------------------------------------


async def test_approval_in_a_lost_reply_is_made_up_for(shop: Shop) -> None:
    shop.cards.verdict = "pending_approval"
    ask, polls = shop.cards._redemption, []

    def approve() -> RedemptionStatus:
        polls.append(None)
        if len(polls) == 5:
            shop.cards.verdict = "redeemed"
        return ask()

    shop.cards._redemption = approve  # type: ignore[method-assign]
    for _ in range(3):
        shop.cards.fail("redemption", DOWN)
    shop.cards.fail("redemption", ReplyLost("portal: no reply"), after=True, times=4)
    story = await shop.redeem()
    assert story.passed[2:] == [
        "pending_approval", "approved", "secret_lost", "key_stored", "redeemed",
    ]  # fmt: skip
    assert story.output.secret_key == Secret("unsb-sk-1")


async def test_denied_before_in_an_earlier_life(shop: Shop) -> None:
    shop.cards.verdict = "denied"
    story = await shop.redeem(redemption_key="earlier")
    assert (story.state, story.context.taken_cents) == ("denied", 0)


# -- the agent: the key ---------------------------------------------------------------------------


async def test_secret_that_does_not_work_is_replaced(shop: Shop) -> None:
    shop.world.platform.fail("validate_key", Unauthorized("401", reason="invalid_signature"))
    story = await shop.redeem()
    assert story.passed[2:] == ["key_stored", "secret_lost", "key_stored", "redeemed"]
    assert (story.context.generation, story.context.proven) == (1, True)


async def test_key_that_never_works(shop: Shop) -> None:
    shop.world.platform.refusal = "invalid_key"
    story = await shop.redeem()
    assert (story.state, story.context.generation) == ("key_refused", GENERATIONS_MAX)
    assert story.output is None


async def test_suspended_key(shop: Shop) -> None:
    shop.world.platform.refusal = "suspended"
    story = await shop.redeem()
    assert (story.state, story.context.reason) == ("key_refused", "suspended")


async def test_platform_that_is_silent_leaves_the_key_stored(shop: Shop) -> None:
    shop.world.platform.fail("validate_key", DOWN, times=1_000)
    story = await shop.redeem()
    assert (story.state, story.context.proven) == ("redeemed", False)
    assert story.output.secret_key == Secret("unsb-sk-0")


async def test_portal_that_gives_no_new_secret(shop: Shop) -> None:
    shop.cards.tells_secret = False
    shop.cards.fail("regenerate", NotFound("portal: gone"), times=100_000)
    story = await shop.redeem(settle_ms=minutes(10))
    assert (story.state, story.status) == ("unsettled", "failed")


# -- crashes, secrets -----------------------------------------------------------------------------


async def test_a_crash_at_any_boundary_redeems_once(make_world: Any) -> None:
    boundaries = 0
    for at in range(1, 200):
        shop = Shop(make_world())
        story = await shop.redeem(crash_at=at)
        assert (story.state, shop.cards.balance_cents) == ("redeemed", 700), at
        assert len(set(shop.cards.asked)) == 1, at
        assert story.output.secret_key == Secret(shop.world.portal.secret), at
        boundaries = at
        if shop.died == 0:
            break
    assert boundaries > 15


def _everything_in(folder: Path) -> bytes:
    return b"".join(one.read_bytes() for one in folder.rglob("*") if one.is_file())


async def test_neither_code_nor_secret_in_the_database_or_the_log(
    make_world: Any, tmp_path: Path, capsys: Any
) -> None:
    shop = Shop(make_world(store_url=f"sqlite:///{tmp_path}/runs.db"))
    bought = await shop.buy(passphrase=Secret("open sesame"))
    shop.cards.fail("redeem", CardRefused("portal: no", reason="too_little"))
    stories = [bought, await shop.redeem(), await shop.redeem()]
    assert [story.state for story in stories] == ["issued", "too_little", "redeemed"]
    shown = "".join(repr(vars(story)) for story in stories) + "".join(capsys.readouterr())
    stored = _everything_in(tmp_path)
    for secret in (CODE, "unsb-sk-0", "open sesame"):
        assert secret.encode() not in stored + shown.encode()
