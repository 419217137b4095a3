"""The cost of cheating: whatever is done, nobody has more key-months than were paid for.

The paper's "1,000 sandboxes cost 7,000 dollars", as an invariant over the platform's ledger: the
keys that work now, at their quoted prices, and what cards still hold, never exceed what the chains
say was paid for them.  A chain may be reorganised, a payment spent elsewhere, a card redeemed
twice at once, a redemption denied; the sum holds after every step.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from machines.platform import gift_cards
from machines.platform.ledger import mempool

COINS = ("LTC", "XMR")
DEPTH = {"LTC": 6, "XMR": 10}


class Cheater(RuleBasedStateMachine):
    """Somebody with a wallet, a miner's power, and no shame."""

    world_of: Any = None
    opened = Bundle("opened")
    cards = Bundle("cards")
    asked = Bundle("asked")
    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.world = type(self).world_of()

    def teardown(self) -> None:
        self.world.close()

    @initialize(target=opened, coin=st.sampled_from(COINS))
    def buy_honestly_first(self, coin: str) -> Any:
        """Something to cheat with: a key and a card, paid."""
        bought = (self.order_a_key(coin, 1, 1, None), self.order_a_card(coin, 700))
        for invoice in bought:
            self.pay_as_one_should(invoice)
        return multiple(*bought)

    @rule(target=opened, coin=st.sampled_from(COINS), tier=st.sampled_from((1, 8)),
          months=st.sampled_from((1, 3)), key=st.sampled_from((None, "again")))  # fmt: skip
    def order_a_key(self, coin: str, tier: int, months: int, key: str | None) -> Any:
        body = {"tier_level": tier, "months": months, "payment_method": coin}
        body["refund_address"] = self.world.own_address(coin)
        headers = {"Idempotency-Key": key} if key else {}
        made = self.world.request("POST", "/api/invoices", json=body, headers=headers)
        return made.json() if made.status_code in (200, 201) else multiple()

    @rule(target=opened, key=keys, coin=st.sampled_from(COINS))
    def order_more_time(self, key: str, coin: str) -> Any:
        body = {"extends": key, "months": 1, "payment_method": coin}
        made = self.world.request("POST", "/api/invoices", json=body)
        return made.json() if made.status_code in (200, 201) else multiple()

    @rule(target=opened, coin=st.sampled_from(COINS), cents=st.sampled_from((700, 2_000)))
    def order_a_card(self, coin: str, cents: int) -> Any:
        body = {"amount_cents": cents, "payment_method": coin}
        body["require_approval"] = cents > 700
        body["email"] = "b@example.org"
        return self.world.request("POST", "/api/gift-cards/create", json=body).json()

    @rule(target=cards, invoice=opened)
    def look_for_a_code(self, invoice: dict[str, Any]) -> Any:
        return invoice["code"] if invoice.get("code") else multiple()

    @rule(invoice=opened, part=st.sampled_from((1, 2, 3)))
    def pay(self, invoice: dict[str, Any], part: int) -> None:
        """A half, all, and more."""
        amount = invoice["amount_atomic"] * part // 2
        try:
            self.world.send(invoice["currency"], invoice["address"], amount)
        except (AssertionError, KeyError):
            return  # the wallet has no more to spend

    @rule(invoice=opened)
    def pay_as_one_should(self, invoice: dict[str, Any]) -> None:
        """All of it, deep enough."""
        self.pay(invoice, 2)
        self.world.mine(invoice["currency"], DEPTH[invoice["currency"]])
        self.world.status(invoice)

    @rule(coin=st.sampled_from(COINS), blocks=st.sampled_from((1, 6, 10)))
    def mine(self, coin: str, blocks: int) -> None:
        self.world.mine(coin, blocks)

    @rule(coin=st.sampled_from(COINS), depth=st.sampled_from((1, 12)), spend=st.booleans())
    def reorganise(self, coin: str, depth: int, spend: bool) -> None:
        # a rival of Monero may need coins that are locked; then nothing has happened
        with suppress(mempool.Refusal):
            self.world.fault("reorg", currency=coin, depth=depth, double_spend=spend)

    @rule(hours=st.sampled_from((1, 24 * 40)))
    def wait(self, hours: int) -> None:
        self.world.now_ms += hours * 3_600_000

    @rule(target=keys, invoice=opened)
    def ask_for_the_key(self, invoice: dict[str, Any]) -> Any:
        return self.world.status(invoice).get("public_key") or multiple()

    @rule(target=asked, code=cards, tier=st.sampled_from((1, 2)),
          key=st.sampled_from((None, "one", "two")))  # fmt: skip
    def redeem(self, code: str, tier: int, key: str | None) -> Any:
        body = {"code": code, "tier_level": tier, "months": 1}
        headers = {"Idempotency-Key": key} if key else {}
        made = self.world.request("POST", "/api/gift-cards/redeem", json=body, headers=headers)
        assert made.status_code < 500, made.text
        return made.json()["id"] if made.status_code in (200, 201, 202) else multiple()

    @rule(target=keys, redemption=asked)
    def look_at_a_redemption(self, redemption: str) -> Any:
        found = self.world.request("GET", f"/api/gift-cards/{redemption}/status").json()
        return found.get("public_key") or multiple()

    @rule(which=st.integers(0, 3), approve=st.booleans())
    def decide(self, which: int, approve: bool) -> None:
        with self.world.database.reading() as sql:
            letters = gift_cards.letters(sql, self.world.codec)
        links = [word for one in letters for word in one.text.split() if "/gift-cards/" in word]
        wanted = [link for link in links if ("approve" in link) == approve]
        if wanted:
            path = "/" + wanted[which % len(wanted)].split("/", 3)[-1]
            assert self.world.request("POST", path).status_code < 500

    @rule(redemption=asked)
    def ask_for_another_secret(self, redemption: str) -> None:
        self.world.request("POST", f"/api/gift-cards/{redemption}/regenerate")

    @invariant()
    def nobody_has_more_than_was_paid_for(self) -> None:
        for sold, paid, what in sums(self.world):
            assert sold <= paid, f"{what}: {sold} cents work, {paid} cents were paid"

    @invariant()
    def the_books_balance(self) -> None:
        self.world.report()


def sums(world: Any) -> list[tuple[int, int, str]]:
    """(cents of what works now, cents that stand in the chain for it) of every invoice."""
    with world.database.reading() as sql:
        found = []
        for row in sql.all("SELECT * FROM invoice"):
            works = _works(sql, row)
            mined = sql.scalar(
                "SELECT coalesce(sum(o.amount_atomic), 0) FROM ledger_output o JOIN ledger_tx t "
                "ON t.currency = o.currency AND t.txid = o.txid "
                "WHERE o.currency = :coin AND o.address = :address AND t.state = 'mined'",
                coin=row["currency"],
                address=row["address"],
            )
            back = sql.scalar(
                "SELECT coalesce(sum(paid_atomic), 0) FROM refund WHERE invoice_id = :id",
                id=row["invoice_id"],
            )
            rate = world.config.atomic_per_cent[row["currency"]]
            found.append((works, (mined - back) // rate, f"invoice {row['number']}"))
        return found


_KEY = "SELECT count(*) FROM api_key WHERE public_key = :key AND status = 'active'"


def _works(sql: Any, row: Any) -> int:
    """Cents of what an invoice bought that can be used: its key, its time, its card's keys."""
    if row["tier"] is not None:
        works = row["public_key"] and sql.scalar(_KEY, key=row["public_key"])
        return row["price_cents"] if works else 0
    card = sql.one("SELECT * FROM gift_card WHERE invoice_id = :id", id=row["invoice_id"])
    if card is None:
        key = sql.scalar(
            "SELECT public_key FROM invoice_extension "
            "WHERE invoice_id = :id AND applied_ms IS NOT NULL",
            id=row["invoice_id"],
        )
        return row["price_cents"] if key and sql.scalar(_KEY, key=key) else 0
    redeemed = sql.all(
        "SELECT price_cents, public_key FROM gift_redemption "
        "WHERE card_id = :id AND state = 'redeemed'",
        id=card["card_id"],
    )
    taken = sql.scalar(
        "SELECT coalesce(sum(price_cents), 0) FROM gift_redemption "
        "WHERE card_id = :id AND state <> 'denied'",
        id=card["card_id"],
    )
    assert card["balance_cents"] >= 0
    assert card["balance_cents"] + taken == card["amount_cents"]
    return sum(r["price_cents"] for r in redeemed if sql.scalar(_KEY, key=r["public_key"]))


def test_no_way_to_more_key_months_than_were_paid_for(
    new_world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cheater, "world_of", staticmethod(new_world))
    current = settings.default
    run_state_machine_as_test(
        Cheater,
        settings=settings(current, max_examples=max(20, current.max_examples // 6),
                          stateful_step_count=25, deadline=None,
                          # ids are random, so a way cannot be made shorter by going it again
                          phases=(Phase.explicit, Phase.generate)),
    )  # fmt: skip


def test_a_thousand_keys_cost_seven_thousand_dollars(new_world: Any) -> None:
    """Counted on the ledger: a key a payment, seven dollars each, and no key for one cent less."""
    world = new_world()
    invoices = [world.invoice("LTC") for _ in range(5)]
    for invoice in invoices:
        world.send("LTC", invoice["address"], invoice["amount_atomic"])
    short = world.invoice("LTC")
    world.send("LTC", short["address"], short["amount_atomic"] - 1)
    world.mine("LTC", 6)
    keys = {world.status(invoice)["public_key"] for invoice in invoices}
    assert len(keys) == 5
    assert "public_key" not in world.status(short)
    assert [works for works, _, _ in sums(world)] == [700] * 5 + [0]
    assert 1000 * 700 == 700_000
    world.close()


def test_the_oracle_sees_a_key_that_nobody_paid(new_world: Any) -> None:
    """The sum can fail: a key made active by hand is found."""
    world = new_world()
    invoice = world.invoice("LTC")
    world.send("LTC", invoice["address"], invoice["amount_atomic"])
    world.mine("LTC", 6)
    world.status(invoice)
    world.fault("reorg", currency="LTC", depth=6, double_spend=True)
    with world.database.transaction() as sql:
        sql.run("UPDATE api_key SET status = 'active'")
    assert any(works > paid for works, paid, _ in sums(world))
    world.close()
