"""All clients against the real embedded platform, in this process."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from engine.secrets import Secret, SecretsCodec
from machines.clients import Clients, clients_for
from machines.clients.inprocess import InProcess
from machines.clients.ports import (
    BroadcastRefused,
    Credentials,
    Currency,
    InsufficientFunds,
    Invoice,
    NotFound,
    Rejected,
    ReplyLost,
    Sighting,
    SignedTransaction,
    Unauthorized,
    Unavailable,
    WalletLocked,
)
from machines.platform import misbehaviour
from machines.platform.app import build_app
from machines.platform.context import PlatformConfig, open_money
from machines.platform.database import open_platform_database
from machines.platform.sandbox.fake import FakeBackend

START_MS = 1_700_000_000_000
SANDBOX = {"shell": "bash", "network_mode": "zerotrust", "ttl_seconds": 600}
EVERY_COIN = pytest.mark.parametrize("currency", list(Currency), ids=lambda coin: coin.value)


class World:
    """One platform, one set of clients, one clock for both."""

    def __init__(self, data_dir: Path) -> None:
        self.now_ms = START_MS
        self.database = open_platform_database(data_dir)
        config = PlatformConfig(allow_faults=True)
        codec = SecretsCodec(b"k" * 32)
        self.context = open_money(self.database, codec, lambda: self.now_ms, config)
        self.app = build_app(self.context, FakeBackend(), allow_faults=True)
        self.clients = self.connect("turtles")

    def connect(self, password: str) -> Clients:
        """Clients that know this RPC password."""
        return clients_for(
            "http://platform.test",
            rpc_username="turtles",
            rpc_password=Secret(password),
            clock_ms=lambda: self.now_ms,
            network=InProcess(self.app),
        )

    def fault(self, name: str, **arguments: Any) -> None:
        """Make the platform misbehave."""
        with self.database.transaction() as sql:
            misbehaviour.inject(sql, name, now_ms=self.now_ms, **arguments)

    def mine(self, currency: Currency, count: int) -> None:
        """Blocks of one chain."""
        self.context.blocks.mine(currency.value, count)

    async def invoice(self, currency: Currency, key: str = "run-1") -> Invoice:
        """The cheapest invoice, with a refund address of our own."""
        refund_address = await self.clients.wallets[currency].new_address(f"refund-{key}")
        return await self.clients.portal.create_invoice(
            tier=1, months=1, currency=currency, refund_address=refund_address, key=key
        )

    async def signed(self, currency: Currency) -> SignedTransaction:
        """A payment of the cheapest invoice, not broadcast."""
        invoice = await self.invoice(currency)
        wallet = self.clients.wallets[currency]
        return await wallet.build(address=invoice.address, amount_atomic=invoice.amount_atomic)

    async def bought(self, currency: Currency = Currency.LTC) -> Credentials:
        """A key, bought and paid."""
        transaction = await self.signed(currency)
        await self.clients.wallets[currency].broadcast(transaction)
        self.mine(currency, currency.confirmations)
        invoice = await self.invoice(currency)
        status = await self.clients.portal.payment_status(invoice.invoice_id)
        assert status.public_key and status.secret_key
        return Credentials(public_key=status.public_key, secret_key=status.secret_key)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path / "platform")
    async with made.app.router.lifespan_context(made.app):
        yield made
    await made.clients.aclose()
    made.database.close()


@EVERY_COIN
async def test_from_price_to_secret(
    world: World, currency: Currency, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    portal, wallet = world.clients.portal, world.clients.wallets[currency]
    with capture_logs() as events:
        quotes = await portal.quotes()
        assert len({(quote.tier, quote.months) for quote in quotes}) == 160
        assert [q.price_cents for q in quotes if (q.tier, q.months) in ((1, 1), (1, 3))] == [
            700,
            1953,
        ]
        invoice = await world.invoice(currency)
        assert await world.invoice(currency) == invoice, "the same key, the same invoice"
        assert (invoice.price_cents, invoice.confirmations_required) == (
            700,
            currency.confirmations,
        )
        before = await wallet.balance_atomic()
        transaction = await wallet.build(
            address=invoice.address, amount_atomic=invoice.amount_atomic
        )
        assert await wallet.look(transaction) == Sighting(where="unseen")
        await wallet.broadcast(transaction)
        await wallet.broadcast(transaction)
        assert await wallet.look(transaction) == Sighting(where="mempool")
        world.mine(currency, currency.confirmations - 1)
        await wallet.broadcast(transaction)
        waiting = await portal.payment_status(invoice.invoice_id)
        assert (waiting.status, waiting.confirmations) == ("confirming", currency.confirmations - 1)
        assert waiting.secret_key is None
        world.mine(currency, 1)
        sighting = await wallet.look(transaction)
        assert (sighting.where, sighting.confirmations) == ("mined", currency.confirmations)
        first = await portal.payment_status(invoice.invoice_id)
        again = await portal.payment_status(invoice.invoice_id)
        fresh = await portal.regenerate_secret(invoice.invoice_id)
    assert first.status == again.status == "completed"
    assert first.received_atomic == first.due_atomic == invoice.amount_atomic
    assert first.secret_key is not None
    assert again.secret_key is None, "the secret is shown once"
    assert fresh.public_key == first.public_key == again.public_key
    assert fresh.secret_key != first.secret_key
    spent = before - await wallet.balance_atomic()
    assert spent == invoice.amount_atomic + transaction.fee_atomic
    said = repr(events) + caplog.text
    for secret in (first.secret_key, fresh.secret_key, transaction.payload):
        assert secret.reveal() not in said
    assert invoice.invoice_id not in repr([e for e in events if e["event"] == "http_call"])


@EVERY_COIN
async def test_a_label_keeps_its_address(world: World, currency: Currency) -> None:
    wallet = world.clients.wallets[currency]
    first = await wallet.new_address("refund-run-9")
    assert await wallet.new_address("refund-run-9") == first
    assert await wallet.new_address("refund-run-10") != first
    assert await wallet.received_atomic(first, confirmations=0) == 0


@EVERY_COIN
async def test_a_locked_wallet_is_unlocked_and_goes_on(world: World, currency: Currency) -> None:
    invoice, wallet = await world.invoice(currency), world.clients.wallets[currency]
    world.fault("lock_wallet", currency=currency.value, passphrase="open sesame")
    with pytest.raises(WalletLocked):
        await wallet.build(address=invoice.address, amount_atomic=invoice.amount_atomic)
    with pytest.raises(Rejected):
        await wallet.unlock(Secret("wrong"), seconds=60)
    await wallet.unlock(Secret("open sesame"), seconds=60)
    await wallet.build(address=invoice.address, amount_atomic=invoice.amount_atomic)


@EVERY_COIN
async def test_more_than_there_is(world: World, currency: Currency) -> None:
    invoice, wallet = await world.invoice(currency), world.clients.wallets[currency]
    everything = await wallet.balance_atomic()
    with pytest.raises(InsufficientFunds):
        await wallet.build(address=invoice.address, amount_atomic=everything)
    assert await wallet.balance_atomic() == everything, "a failed build reserves nothing"


@EVERY_COIN
async def test_a_foreign_address_is_rejected(world: World, currency: Currency) -> None:
    wallet = world.clients.wallets[currency]
    with pytest.raises(Rejected):
        await wallet.build(address="nobody", amount_atomic=10**10)


@EVERY_COIN
async def test_a_broadcast_whose_reply_is_lost_happened_once(
    world: World, currency: Currency
) -> None:
    transaction, wallet = await world.signed(currency), world.clients.wallets[currency]
    contains = "relay_tx" if currency is Currency.XMR else "sendrawtransaction"
    world.fault("drop_reply_after_commit", route="POST /rpc/*", contains=contains)
    with pytest.raises(ReplyLost):
        await wallet.broadcast(transaction)
    assert await wallet.look(transaction) == Sighting(where="mempool")
    await wallet.broadcast(transaction)
    world.mine(currency, 1)
    status = await world.clients.portal.payment_status((await world.invoice(currency)).invoice_id)
    assert status.received_atomic == status.due_atomic


@EVERY_COIN
async def test_evicted_then_sent_again(world: World, currency: Currency) -> None:
    transaction, wallet = await world.signed(currency), world.clients.wallets[currency]
    await wallet.broadcast(transaction)
    world.fault("evict", currency=currency.value)
    assert await wallet.look(transaction) == Sighting(where="unseen")
    await wallet.broadcast(transaction)
    assert await wallet.look(transaction) == Sighting(where="mempool")


@EVERY_COIN
async def test_reversed_by_a_reorganisation(world: World, currency: Currency) -> None:
    transaction, wallet = await world.signed(currency), world.clients.wallets[currency]
    await wallet.broadcast(transaction)
    world.mine(currency, 2)
    world.fault("reorg", currency=currency.value, depth=2)
    assert (await wallet.look(transaction)).where == "mempool"


@EVERY_COIN
async def test_double_spent_by_a_reorganisation(world: World, currency: Currency) -> None:
    transaction, wallet = await world.signed(currency), world.clients.wallets[currency]
    await wallet.broadcast(transaction)
    world.mine(currency, 2)
    world.fault("reorg", currency=currency.value, depth=2, double_spend=True)
    sighting = await wallet.look(transaction)
    assert sighting.where == "conflicted"
    with pytest.raises(BroadcastRefused):
        await wallet.broadcast(transaction)


@pytest.mark.parametrize("currency", [Currency.BTC, Currency.DOGE], ids=lambda coin: coin.value)
async def test_a_signed_payment_whose_input_another_one_took(
    world: World, currency: Currency
) -> None:
    wallet = world.clients.wallets[currency]
    mine = await world.signed(currency)
    await wallet.release(mine)
    rival = await wallet.build(address=mine.address, amount_atomic=mine.amount_atomic + 1)
    assert set(rival.inputs) == set(mine.inputs), "released inputs are chosen again"
    await wallet.broadcast(rival)
    assert await wallet.look(mine) == Sighting(where="conflicted")
    world.mine(currency, 4)
    assert await wallet.look(mine) == Sighting(where="conflicted", confirmations=4)


@pytest.mark.parametrize(
    "currency", [Currency.BTC, Currency.LTC, Currency.DOGE], ids=lambda coin: coin.value
)
async def test_a_lost_funding_leaves_an_orphan_lock_that_is_released(
    world: World, currency: Currency
) -> None:
    wallet: Any = world.clients.wallets[currency]
    invoice = await world.invoice(currency)
    kept = await wallet.build(address=invoice.address, amount_atomic=invoice.amount_atomic)
    free = await wallet.balance_atomic()
    world.fault("drop_reply_after_commit", route="POST /rpc/*", contains="fundrawtransaction")
    with pytest.raises(ReplyLost):
        await wallet.build(address=invoice.address, amount_atomic=invoice.amount_atomic)
    assert await wallet.balance_atomic() < free
    assert await wallet.release_orphans([kept]) == 1
    assert await wallet.balance_atomic() == free
    await wallet.release(kept)
    assert await wallet.balance_atomic() > free
    await wallet.hold(kept)
    await wallet.hold(kept)
    assert await wallet.balance_atomic() == free


@EVERY_COIN
async def test_late_coin_is_refunded_to_our_address(world: World, currency: Currency) -> None:
    transaction, wallet = await world.signed(currency), world.clients.wallets[currency]
    invoice = await world.invoice(currency)
    world.fault("expire_invoice")
    world.now_ms += 1000
    await wallet.broadcast(transaction)
    for _ in range(2 * currency.confirmations + 2):
        world.mine(currency, 1)
        status = await world.clients.portal.payment_status(invoice.invoice_id)
    assert status.status == "refunded"
    fee_atomic = -(-9 * invoice.amount_atomic // 100)
    assert status.refund_atomic == invoice.amount_atomic - fee_atomic
    assert status.refund_txid
    address = await wallet.new_address("refund-run-1")
    received = await wallet.received_atomic(address, confirmations=currency.confirmations)
    assert received == status.refund_atomic


async def test_the_same_key_with_another_order_is_rejected(world: World) -> None:
    await world.invoice(Currency.BTC, "k")
    with pytest.raises(Rejected, match="idempotency_conflict"):
        await world.clients.portal.create_invoice(
            tier=2,
            months=1,
            currency=Currency.BTC,
            refund_address=await world.clients.wallets[Currency.BTC].new_address("refund-k"),
            key="k",
        )


async def test_planned_refusals(world: World) -> None:
    world.fault("status", route="POST /api/invoices", code=429, retry_after=3)
    with pytest.raises(Unavailable) as limited:
        await world.invoice(Currency.BTC)
    assert (limited.value.kind, limited.value.retry_after_ms) == ("rate_limit", 3000)
    world.fault("status", route="POST /rpc/btc/*", code=503)
    with pytest.raises(Unavailable):
        await world.clients.wallets[Currency.BTC].balance_atomic()


async def test_a_lost_invoice_is_found_again_by_its_key(world: World) -> None:
    world.fault("drop_reply_after_commit", route="POST /api/invoices")
    with pytest.raises(ReplyLost):
        await world.invoice(Currency.XMR)
    assert await world.invoice(Currency.XMR) == await world.invoice(Currency.XMR)


async def test_an_unknown_invoice(world: World) -> None:
    with pytest.raises(NotFound):
        await world.clients.portal.payment_status("inv_nobody")
    with pytest.raises(NotFound):
        await world.clients.portal.regenerate_secret("inv_nobody")


async def test_a_wrong_rpc_password(world: World) -> None:
    wallet = world.connect("hunter2").wallets[Currency.LTC]
    with pytest.raises(Unavailable):
        await wallet.balance_atomic()
    with pytest.raises(Unauthorized) as caught:
        await wallet.balance_atomic()
    assert "hunter2" not in str(caught.value)


async def test_a_bought_key_opens_a_sandbox(world: World) -> None:
    platform, credentials = world.clients.platform, await world.bought()
    assert await platform.healthy()
    info = await platform.validate_key(credentials)
    assert (info.valid, info.tier, info.requests_per_minute, info.concurrency) == (True, 1, 7, 1)
    session = await platform.create_session(credentials, **SANDBOX, key="s-1")
    again = await platform.create_session(credentials, **SANDBOX, key="s-1")
    assert again.session_id == session.session_id
    done = await platform.execute(credentials, session.session_id, "echo hi", key="x-1")
    assert (done.stdout, done.exit_code) == ("hi\n", 0)
    with pytest.raises(Unavailable) as limited:
        await platform.create_session(credentials, **SANDBOX, key="s-2")
    assert limited.value.kind == "concurrency"
    world.now_ms += 61_000
    assert [s.session_id for s in await platform.sessions(credentials)] == [session.session_id]
    await platform.delete_session(credentials, session.session_id)
    await platform.delete_session(credentials, session.session_id)
    assert await platform.sessions(credentials) == ()
    with pytest.raises(NotFound):
        await platform.execute(credentials, session.session_id, "echo hi", key="x-2")


async def test_languages(world: World) -> None:
    assert "bash" in await world.clients.platform.languages(await world.bought())


async def test_a_clock_ten_minutes_off_is_told_and_corrected(world: World) -> None:
    platform, credentials = world.clients.platform, await world.bought()
    with pytest.raises(Unauthorized) as caught:
        await platform.validate_key(credentials, offset_ms=600_000)
    assert caught.value.reason == "invalid_timestamp"
    assert caught.value.server_ms == START_MS
    assert (await platform.validate_key(credentials, offset_ms=-299_000)).valid


async def test_a_wrong_secret_is_an_invalid_signature(world: World) -> None:
    bought = await world.bought()
    wrong = Credentials(public_key=bought.public_key, secret_key=Secret("unsb-sk-wrong"))
    with pytest.raises(Unauthorized) as caught:
        await world.clients.platform.validate_key(wrong)
    assert caught.value.reason == "invalid_signature"
