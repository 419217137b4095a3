"""The ledger report: what paid each invoice, and whether the sums hold."""

from __future__ import annotations

from machines.platform.ledger.report import ledger_report


def test_a_fresh_world_holds_what_it_was_given(world):
    report = world.report()
    assert report["invoices"] == []
    for currency, found in report["currencies"].items():
        each = world.config.output_cents * world.config.atomic_per_cent[currency]
        assert found["balances"] == {"payer": 20 * each, "shop": 6 * each, "stranger": 3 * each}
        assert found["funded_atomic"] == found["unspent_atomic"] == 29 * each
        assert found["fees_atomic"] == 0


def test_an_invoice_lists_every_transaction_that_ever_paid_it(world):
    invoice = world.invoice("LTC")
    lost = world.send("LTC", invoice["address"], 5_000_000)
    world.mine("LTC", 2)
    world.fault("reorg", currency="LTC", depth=2, double_spend=True)
    paid = world.send("LTC", invoice["address"], 8_750_000)
    waiting = world.report()["invoices"][0]
    assert [each["state"] for each in waiting["transactions"]] == ["conflicted", "mempool"]
    assert waiting["confirmed_spends"] == 0
    world.mine("LTC", 6)
    (row,) = world.report()["invoices"]
    assert row["confirmed_spends"] == 1
    assert [
        (each["txid"], each["amount_atomic"], each["confirmations"], each["state"])
        for each in row["transactions"]
    ] == [(lost, 5_000_000, -9, "conflicted"), (paid, 8_750_000, 6, "mined")]
    assert row["status"] == "completed"


def test_fees_are_counted(world):
    invoice = world.invoice("DOGE")
    txid = world.send("DOGE", invoice["address"], invoice["amount_atomic"])
    world.mine("DOGE")
    fee = int(-world.rpc("DOGE", "gettransaction", txid)["fee"].scaleb(8))
    found = world.report()["currencies"]["DOGE"]
    assert found["fees_atomic"] == fee > 0
    assert found["unspent_atomic"] == found["funded_atomic"] - fee
    assert sum(found["balances"].values()) == found["unspent_atomic"]


def test_money_from_nowhere_is_noticed(world):
    with world.database.transaction() as sql:
        sql.run(
            "UPDATE ledger_output SET amount_atomic = amount_atomic + 1 "
            "WHERE currency = 'BTC' AND vout = 0 AND txid IN "
            "(SELECT txid FROM ledger_tx WHERE coinbase LIMIT 1)"
        )
        sql.run("UPDATE ledger_tx SET fee_atomic = 1 WHERE currency = 'BTC'")
    report = ledger_report(world.database)
    assert report["consistent"] is False
    assert report["currencies"]["BTC"]["conserved"] is False
    assert report["currencies"]["XMR"]["conserved"] is True


def test_no_secret_is_in_the_report(world):
    invoice = world.invoice("BTC")
    world.send("BTC", invoice["address"], invoice["amount_atomic"])
    world.mine("BTC", 3)
    assert world.status(invoice)["secret_key"] not in repr(world.report())
