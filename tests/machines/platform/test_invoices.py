"""Every way an invoice can go, with the money accounted for to the atomic unit."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from machines.platform.invoices import Invoice, Payment, Refund, judge
from machines.platform.pricing import restocking_fee_atomic

CURRENCIES = ("BTC", "LTC", "DOGE", "XMR")
DEPTH = {"BTC": 3, "LTC": 6, "DOGE": 6, "XMR": 10}
SHARED_WORLD = settings(
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def listed(world, invoice):
    return next(each for each in world.report()["invoices"] if each["invoice_id"] == invoice["id"])


def test_nothing_paid_expires(world):
    invoice = world.invoice("LTC", refund_address=world.own_address("LTC"))
    world.now_ms = invoice["expires_ms"] - 1
    assert world.status(invoice)["status"] == "pending"
    world.now_ms += 1
    assert world.status(invoice)["status"] == "expired"
    assert listed(world, invoice)["transactions"] == []


def test_partial_is_topped_up_and_completes(world):
    invoice = world.invoice("LTC")
    world.send("LTC", invoice["address"], 5_000_000)
    partial = world.status(invoice)
    assert (partial["status"], partial["amount_received"]) == ("partial", "0.05000000")
    world.mine("LTC", 2)
    world.send("LTC", invoice["address"], 3_750_000)
    world.mine("LTC", 5)
    counted = world.status(invoice)
    assert (counted["status"], counted["confirmations"]) == ("confirming", 5)
    world.mine("LTC")
    assert world.status(invoice)["status"] == "completed"
    assert listed(world, invoice)["confirmed_spends"] == 2


@pytest.mark.parametrize("currency", CURRENCIES)
def test_partial_at_expiry_is_refunded_at_91_percent(world, currency):
    refund_address = world.own_address(currency)
    invoice = world.invoice(currency, refund_address=refund_address)
    paid = invoice["amount_atomic"] - 1
    world.send(currency, invoice["address"], paid)
    world.now_ms = invoice["expires_ms"]
    waiting = world.status(invoice)
    assert waiting["status"] == "refund_pending"
    assert "refund" not in waiting

    world.mine(currency, DEPTH[currency])
    sent = world.status(invoice)
    assert sent["status"] == "refund_pending"
    fee = -(-9 * paid // 100)
    assert sent["refund"]["amount_atomic"] == paid - fee
    assert sent["refund"]["fee_atomic"] == fee
    assert sent["refund"]["address"] == refund_address

    world.mine(currency, DEPTH[currency])
    done = world.status(invoice)
    assert done["status"] == "refunded"
    assert done["refund"]["txid"] == sent["refund"]["txid"]
    assert "public_key" not in done
    assert world.received(currency, refund_address, DEPTH[currency]) == paid - fee
    world.mine(currency, 3)
    assert len(world.status(invoice)["refunds"]) == 1


def test_partial_at_expiry_without_refund_address_stays_expired(world):
    invoice = world.invoice("BTC")
    world.send("BTC", invoice["address"], 1000)
    world.now_ms = invoice["expires_ms"]
    world.mine("BTC", 6)
    assert world.status(invoice)["status"] == "expired"
    assert listed(world, invoice)["refunds"] == []


def test_a_refund_below_dust_cannot_be_sent(world):
    invoice = world.invoice("BTC", refund_address=world.own_address("BTC"))
    world.send("BTC", invoice["address"], 294)
    world.now_ms = invoice["expires_ms"]
    world.mine("BTC", 6)
    assert world.status(invoice)["status"] == "expired"


@pytest.mark.parametrize("currency", ["DOGE", "XMR"])
def test_full_payment_after_expiry_is_refunded(world, currency):
    refund_address = world.own_address(currency)
    invoice = world.invoice(currency, refund_address=refund_address)
    world.now_ms = invoice["expires_ms"]
    assert world.status(invoice)["status"] == "expired"
    world.send(currency, invoice["address"], invoice["amount_atomic"])
    world.mine(currency, 2 * DEPTH[currency] + 1)
    assert world.status(invoice)["status"] in ("refund_pending", "refunded")
    world.mine(currency, DEPTH[currency])
    assert world.status(invoice)["status"] == "refunded"
    due = invoice["amount_atomic"]
    assert world.received(currency, refund_address) == due - restocking_fee_atomic(due)


def test_seen_before_expiry_and_confirmed_after_it_completes(world):
    invoice = world.invoice("BTC", refund_address=world.own_address("BTC"))
    world.now_ms = invoice["expires_ms"] - 1
    world.send("BTC", invoice["address"], invoice["amount_atomic"])
    world.now_ms += 7_200_000
    assert world.status(invoice)["status"] == "confirming"
    world.mine("BTC", 3)
    assert world.status(invoice)["status"] == "completed"


def test_a_late_top_up_does_not_complete(world):
    refund_address = world.own_address("LTC")
    invoice = world.invoice("LTC", refund_address=refund_address)
    world.send("LTC", invoice["address"], 5_000_000)
    world.now_ms = invoice["expires_ms"]
    world.send("LTC", invoice["address"], 3_750_000)
    world.mine("LTC", 6)
    world.mine("LTC", 6)
    assert world.status(invoice)["status"] == "refunded"
    assert world.received("LTC", refund_address) == 8_750_000 - restocking_fee_atomic(8_750_000)


def test_money_that_comes_after_the_refund_gets_its_own(world):
    refund_address = world.own_address("LTC")
    invoice = world.invoice("LTC", refund_address=refund_address)
    world.send("LTC", invoice["address"], 5_000_000)
    world.now_ms = invoice["expires_ms"]
    world.mine("LTC", 12)
    world.mine("LTC", 6)
    assert world.status(invoice)["status"] == "refunded"
    world.send("LTC", invoice["address"], 1_000_001)
    assert world.status(invoice)["status"] == "refund_pending"
    world.mine("LTC", 6)
    world.mine("LTC", 6)
    done = world.status(invoice)
    assert done["status"] == "refunded"
    assert [each["amount_atomic"] for each in done["refunds"]] == [4_550_000, 910_000]
    assert world.received("LTC", refund_address) == 5_460_000


def test_overpayment_completes_and_is_recorded(world):
    invoice = world.invoice("DOGE")
    world.send("DOGE", invoice["address"], invoice["amount_atomic"] + 123_456_789)
    world.mine("DOGE", 6)
    assert world.status(invoice)["status"] == "completed"
    assert world.status(invoice)["overpaid_atomic"] == 123_456_789
    assert listed(world, invoice)["overpaid_atomic"] == 123_456_789


def test_a_reorganisation_lowers_the_confirmations(world):
    invoice = world.invoice("LTC")
    world.send("LTC", invoice["address"], invoice["amount_atomic"])
    world.mine("LTC", 5)
    assert world.status(invoice)["confirmations"] == 5
    world.fault("reorg", currency="LTC", depth=5)
    assert (world.status(invoice)["status"], world.status(invoice)["confirmations"]) == (
        "confirming",
        0,
    )
    world.mine("LTC", 6)
    assert world.status(invoice)["status"] == "completed"


def test_a_double_spend_takes_the_payment_away(world):
    invoice = world.invoice("LTC")
    world.send("LTC", invoice["address"], invoice["amount_atomic"])
    world.mine("LTC", 5)
    world.fault("reorg", currency="LTC", depth=5, double_spend=True)
    lost = world.status(invoice)
    assert (lost["status"], lost["amount_received_atomic"]) == ("pending", 0)
    (transaction,) = listed(world, invoice)["transactions"]
    assert (transaction["state"], transaction["confirmations"]) == ("conflicted", -6)
    world.now_ms = invoice["expires_ms"]
    assert world.status(invoice)["status"] == "expired"


def test_a_reorganisation_after_completion_does_not_revoke_the_key(world):
    invoice = world.invoice("BTC")
    world.send("BTC", invoice["address"], invoice["amount_atomic"])
    world.mine("BTC", 3)
    completed = world.status(invoice)
    world.fault("reorg", currency="BTC", depth=3, double_spend=True)
    after = world.status(invoice)
    assert after["status"] == "completed"
    assert after["public_key"] == completed["public_key"]
    assert listed(world, invoice)["confirmed_spends"] == 0


def test_an_evicted_payment_counts_from_its_first_sighting(world):
    invoice = world.invoice("LTC")
    raw = world.signed("LTC", invoice["address"], invoice["amount"])
    txid = world.rpc("LTC", "sendrawtransaction", raw)
    world.fault("evict", currency="LTC", txid=txid)
    assert world.status(invoice)["status"] == "pending"
    world.now_ms = invoice["expires_ms"]
    assert world.status(invoice)["status"] == "expired"
    assert world.rpc("LTC", "sendrawtransaction", raw) == txid
    world.mine("LTC", 6)
    assert world.status(invoice)["status"] == "completed"


def test_undercounting_asks_for_more(world):
    invoice = world.invoice("BTC")
    world.fault("undercount", invoice_id=invoice["id"], amount_atomic=400)
    world.send("BTC", invoice["address"], invoice["amount_atomic"])
    seen = world.status(invoice)
    assert (seen["status"], seen["amount_received_atomic"]) == (
        "partial",
        invoice["amount_atomic"] - 400,
    )
    world.send("BTC", invoice["address"], 400)
    world.mine("BTC", 3)
    assert world.status(invoice)["status"] == "completed"


def test_an_evicted_refund_is_sent_again_the_same(world):
    refund_address = world.own_address("LTC")
    invoice = world.invoice("LTC", refund_address=refund_address)
    world.send("LTC", invoice["address"], 5_000_000)
    world.now_ms = invoice["expires_ms"]
    world.mine("LTC", 6)
    txid = world.status(invoice)["refund"]["txid"]
    world.fault("evict", currency="LTC", txid=txid)
    assert world.received("LTC", refund_address) == 0
    assert world.status(invoice)["refund"]["txid"] == txid
    assert world.received("LTC", refund_address) == 4_550_000


def test_a_refund_waits_until_the_shop_has_the_money(worlds):
    world = worlds(shop_outputs=0)
    refund_address = world.own_address("LTC")
    invoice = world.invoice("LTC", refund_address=refund_address)
    world.send("LTC", invoice["address"], 5_000_000)
    world.now_ms = invoice["expires_ms"]
    world.mine("LTC", 20)
    waiting = world.status(invoice)
    assert waiting["status"] == "refund_pending"
    assert "refund" not in waiting
    # Somebody gives the shop money of its own: coins that invoices brought in do not count.
    (own,) = world.rpc("LTC", "getaddressesbylabel", "funding", wallet="shop")
    world.send("LTC", own, 10_000_000)
    world.mine("LTC")
    assert world.status(waiting)["refund"]["amount_atomic"] == 4_550_000


@pytest.mark.parametrize("stop", range(7))
def test_a_restart_at_any_point_changes_nothing(file_world, stop):
    """The whole refund, with the process ending after step number `stop`."""
    world = file_world
    refund_address = world.own_address("LTC")
    invoice = world.invoice("LTC", refund_address=refund_address, key="k")

    def expire() -> None:
        world.now_ms = invoice["expires_ms"]

    steps = [
        lambda: world.send("LTC", invoice["address"], 5_000_000),
        lambda: world.mine("LTC", 3),
        expire,
        lambda: world.mine("LTC", 3),
        lambda: world.status(invoice),
        lambda: world.mine("LTC", 6),
    ]
    for number, step in enumerate(steps):
        if number == stop:
            world.restart()
        step()
    world.restart()
    assert world.status(invoice)["status"] == "refunded"
    assert world.invoice("LTC", refund_address=refund_address, key="k")["id"] == invoice["id"]
    assert world.received("LTC", refund_address) == 4_550_000
    assert len(listed(world, invoice)["refunds"]) == 1


def test_a_restart_between_completion_and_the_first_look_keeps_the_secret(file_world):
    world = file_world
    invoice = world.invoice("BTC")
    world.send("BTC", invoice["address"], invoice["amount_atomic"])
    world.restart()
    world.mine("BTC", 3)
    world.restart()
    assert world.status(invoice)["secret_key"]
    world.restart()
    assert world.status(invoice)["secret_key"] is None


@SHARED_WORLD
@given(currency=st.sampled_from(CURRENCIES), data=st.data())
def test_refunds_conserve_every_unit(world, currency, data):
    refund_address = world.own_address(currency)
    invoice = world.invoice(currency, refund_address=refund_address)
    least = invoice["amount_atomic"] // 20
    paid = data.draw(st.integers(least, invoice["amount_atomic"] - 1))
    world.send(currency, invoice["address"], paid)
    world.fault("expire_invoice", invoice_id=invoice["id"], now_ms=world.now_ms + 1)
    world.now_ms += 1
    for _ in range(3):
        world.mine(currency, DEPTH[currency])
    row = listed(world, invoice)
    smallest = {"DOGE": 1_000_000, "LTC": 2940, "BTC": 294, "XMR": 1}[currency]
    expected = paid - restocking_fee_atomic(paid)
    if expected < smallest:
        assert row["status"] == "expired"
        return
    assert row["status"] == "refunded"
    (refund,) = row["refunds"]
    assert refund["refund_atomic"] + refund["fee_atomic"] == refund["paid_atomic"] == paid
    assert world.received(currency, refund_address) == refund["refund_atomic"] == expected


def pay_somehow(world, currency, invoice, percent):
    """A payment, or none when the payer's coins are all locked for now."""
    amount = invoice["amount_atomic"] * percent // 100
    held = world.xmr("get_balance")["result"]["unlocked_balance"] if currency == "XMR" else None
    if held is None or held > 2 * amount:
        world.send(currency, invoice["address"], amount)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("invoice")),
        st.tuples(st.just("pay"), st.integers(20, 150)),
        st.tuples(st.just("mine"), st.integers(1, 4)),
        st.tuples(st.just("reorg"), st.integers(1, 4), st.booleans()),
        st.tuples(st.just("evict")),
        st.tuples(st.just("expire")),
        st.tuples(st.just("look")),
    ),
    max_size=14,
)


@SHARED_WORLD
@given(currency=st.sampled_from(CURRENCIES), steps=STEPS)
def test_any_history_keeps_the_books(world, currency, steps):
    """Random payments, blocks, reorganisations, evictions and expiries: the sums hold, a key
    exists exactly for completed invoices, and no invoice is refunded more than was paid."""
    refund_address = world.own_address(currency)
    invoices = [world.invoice(currency, refund_address=refund_address)]
    for step in steps:
        invoice = invoices[-1]
        if step[0] == "invoice":
            invoices.append(world.invoice(currency, refund_address=refund_address))
        elif step[0] == "pay":
            pay_somehow(world, currency, invoice, step[1])
        elif step[0] == "mine":
            world.mine(currency, step[1])
        elif step[0] == "reorg":
            world.fault("reorg", currency=currency, depth=step[1], double_spend=step[2])
        elif step[0] == "evict":
            world.fault("evict", currency=currency)
        elif step[0] == "expire":
            world.now_ms += 1
            world.fault("expire_invoice")
        else:
            world.status(invoice)
    world.now_ms += 3_700_000
    for _ in range(4):
        world.mine(currency, 10)
    for row in world.report()["invoices"]:
        assert (row["public_key"] is not None) == (row["status"] == "completed")
        refunded = sum(each["paid_atomic"] for each in row["refunds"])
        ever = sum(each["amount_atomic"] for each in row["transactions"])
        assert refunded <= ever
        if row["status"] == "completed":
            assert row["refunds"] == []


def picture(**changes) -> Invoice:
    row = {
        "number": 1,
        "invoice_id": "i",
        "tier": 1,
        "months": 1,
        "currency": "BTC",
        "price_cents": 700,
        "amount_atomic": 14_000,
        "address": "a",
        "email": None,
        "refund_address": "r",
        "idempotency_key": None,
        "request_hash": "h",
        "created_ms": 0,
        "expires_ms": 1000,
        "state": "pending",
        "received_atomic": 0,
        "overpaid_atomic": 0,
        "confirmations": 0,
        "undercount_atomic": 0,
        "public_key": None,
    }
    return Invoice(**(row | changes))


PAYMENTS = st.lists(
    st.builds(
        Payment,
        txid=st.just("t"),
        amount_atomic=st.integers(1, 20_000),
        seen_ms=st.integers(0, 2000),
        confirmations=st.integers(0, 12),
    ),
    max_size=4,
)


@given(paid=PAYMENTS, now_ms=st.integers(0, 3000), before=st.integers(0, 2000))
def test_judging_is_sound(paid, now_ms, before):
    """Completed only when enough was seen in time and is deep; refunded never more than came."""
    invoice = picture()
    verdict = judge(invoice, paid, [], 3, now_ms)
    deep_in_time = sum(
        p.amount_atomic for p in paid if p.seen_ms < invoice.expires_ms and p.confirmations >= 3
    )
    assert (verdict.state == "completed") == (deep_in_time >= invoice.amount_atomic)
    total = sum(p.amount_atomic for p in paid)
    assert verdict.received_atomic == total
    assert verdict.refund_now_atomic in (0, total)
    if verdict.refund_now_atomic:
        assert now_ms >= invoice.expires_ms
        assert all(p.confirmations >= 3 for p in paid)
    answered = Refund(
        txid="r", paid_atomic=total, refund_atomic=1, fee_atomic=1, confirmations=before % 7
    )
    again = judge(invoice, paid, [answered], 3, now_ms)
    assert again.refund_now_atomic == 0
    assert again.state in ("refund_pending", "refunded")
