"""What a bitcoind-style wallet must do, asked of any node: of the simulated ones and of a real one.

`conforms(side)` runs every check; `tests/machines/clients/test_wallet_conformance.py` gives it the
embedded platform in every dialect, `python -m tests.acceptance.nodes` a real litecoind.  The same
lines on both are what makes the simulated nodes honest: what a fake says of litecoin 0.21, the
daemon itself said, to the code and to the text.

Source of the facts: payments.md 1.1, 1.2, 1.7 and Appendix B.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any, Protocol

import httpx

from engine.secret import Secret
from machines.clients import BitcoindWallet, Transport
from machines.clients.ports import (
    BroadcastRefused,
    Currency,
    InsufficientFunds,
    Rejected,
    Sighting,
    SignedTransaction,
    WalletLocked,
)
from tests.acceptance.nodes.daemon import NodeError

AMOUNT_ATOMIC = 25_000_001
PASSPHRASE = "correct horse"
SHORT = "Insufficient funds"
WRONG = Secret("battery staple")


class Side(Protocol):
    """A node and its wallets, as the checks need them."""

    currency: Currency
    network: httpx.AsyncBaseTransport | None
    segwit: bool
    wallet_paths: bool

    def url(self) -> str:
        """Where its RPC answers."""

    def call(self, method: str, *params: Any, wallet: str | None = None) -> Any:
        """The result of one call; `NodeError` for the node's own error."""

    def fresh(self, wallet: str) -> str:
        """A new address of a wallet."""

    def mine(self, count: int) -> Any:
        """Blocks with what waits."""

    def reverse(self, depth: int) -> Any:
        """The newest blocks become stale; what was in them waits again."""

    def double_spend(self, inputs: tuple[str, ...], wallet: str) -> str:
        """A signed rival of the same inputs, its bytes."""

    def lock_wallet(self) -> str:
        """The name of a wallet with `PASSPHRASE`, locked, with some coins."""


class Bench:
    """One side with a client of ours on its wallet `payer`."""

    def __init__(self, side: Side, transport: Transport) -> None:
        self.side = side
        self._transport = transport
        self.payer = self.wallet("payer")

    def wallet(self, name: str) -> BitcoindWallet:
        """Our client over a wallet."""
        return BitcoindWallet(
            self.side.currency, self.side.url(), self._transport,
            wallet_name=name if self.side.wallet_paths else None,
            username="u", password=Secret("p"),
        )  # fmt: skip

    async def built(self) -> SignedTransaction:
        """A payment to the shop that nobody has seen."""
        address = self.side.fresh("shop")
        return await self.payer.build(address=address, amount_atomic=AMOUNT_ATOMIC)

    def error(self, method: str, *params: Any, wallet: str | None = "payer") -> tuple[int, str]:
        """Code and text of a call that must fail."""
        try:
            result = self.side.call(method, *params, wallet=wallet)
        except NodeError as error:
            return error.code, error.text
        raise AssertionError(f"{method} {params}: expected an error, got {result!r}")


async def builds_what_was_ordered(bench: Bench) -> None:
    """One output pays exactly that; the inputs are reserved; nobody has seen it."""
    before = await bench.payer.balance_atomic()
    built = await bench.built()
    assert (built.amount_atomic, built.fee_atomic > 0) == (AMOUNT_ATOMIC, True)
    assert await bench.payer.balance_atomic() < before
    assert await bench.payer.look(built) == Sighting(where="unseen")
    await bench.payer.release(built)
    await bench.payer.release(built)  # twice is no error
    assert await bench.payer.balance_atomic() == before


async def sends_the_same_bytes_any_number_of_times(bench: Bench) -> None:
    """From unseen to mined, and back by a reorganisation; the shop counts it once."""
    built = await bench.built()
    for _ in range(3):
        await bench.payer.broadcast(built)
        assert await bench.payer.look(built) == Sighting(where="mempool")
    bench.side.mine(2)
    found = await bench.payer.look(built)
    assert (found.where, found.confirmations, bool(found.block_hash)) == ("mined", 2, True)
    await bench.payer.broadcast(built)  # -27, which is fine
    received = bench.wallet("shop") if bench.side.wallet_paths else None
    if received is not None:
        paid = await received.received_atomic(built.address, confirmations=2)
        assert paid == AMOUNT_ATOMIC
    bench.side.reverse(2)
    assert await bench.payer.look(built) == Sighting(where="mempool")
    bench.side.mine(1)
    assert (await bench.payer.look(built)).confirmations == 1


async def a_rival_is_a_conflict_never_a_failure(bench: Bench) -> None:
    """In the mempool: -26, and no depth; in a block: -25, and its depth."""
    built = await bench.built()
    rival = bench.side.double_spend(built.inputs, "payer")
    bench.side.call("sendrawtransaction", rival)
    await _is_refused(bench, built)
    assert await bench.payer.look(built) == Sighting(where="conflicted")
    bench.side.mine(3)
    await _is_refused(bench, built)
    found = await bench.payer.look(built)
    assert found.where == "conflicted" and found.confirmations >= 1, found


async def _is_refused(bench: Bench, built: SignedTransaction) -> None:
    try:
        await bench.payer.broadcast(built)
    except BroadcastRefused as error:
        assert not error.policy, error
        return
    raise AssertionError("a rival is there, and the broadcast was taken")


async def orphans_are_given_back_and_live_ones_kept(bench: Bench) -> None:
    """A build that nobody remembers; and locks that a restart would lose, taken again."""
    kept, orphan = await bench.built(), await bench.built()
    assert await bench.payer.release_orphans([kept]) == len(orphan.inputs)
    await bench.payer.hold(kept)  # held already: no error
    await bench.payer.release(kept)
    await bench.payer.hold(kept)
    held = bench.side.call("listlockunspent", wallet="payer")
    assert {f"{one['txid']}:{one['vout']}" for one in held} == set(kept.inputs)
    await bench.payer.release(kept)


async def a_label_has_one_address(bench: Bench) -> None:
    """However often it is asked for."""
    first = await bench.payer.new_address("refund-7")
    assert first == await bench.payer.new_address("refund-7")
    assert first != await bench.payer.new_address("refund-8")


async def money_and_orders_are_refused_by_name(bench: Bench) -> None:
    """One code says two things; the client tells them apart."""
    address = bench.side.fresh("shop")
    for amount, refusal in ((1, Rejected), (10**14, InsufficientFunds)):
        try:
            await bench.payer.build(address=address, amount_atomic=amount)
        except refusal:
            continue
        raise AssertionError(f"{amount}: expected {refusal.__name__}")
    try:
        await bench.payer.build(address="not an address", amount_atomic=AMOUNT_ATOMIC)
    except Rejected:
        return
    raise AssertionError("an address that is none was paid")


async def a_locked_wallet_is_opened_by_its_passphrase_only(bench: Bench) -> None:
    """It funds and does not sign (-13); -14 for another passphrase."""
    name = bench.side.lock_wallet()
    wallet = bench.wallet(name)
    address = bench.side.fresh("shop")
    for _ in range(2):
        try:
            await wallet.build(address=address, amount_atomic=AMOUNT_ATOMIC)
        except WalletLocked:
            held = bench.side.call("listlockunspent", wallet=name)
            assert held == [], "a build that failed keeps its inputs"
        else:
            raise AssertionError("a locked wallet signed")
    try:
        await wallet.unlock(WRONG, seconds=60)
    except Rejected as error:
        assert WRONG.reveal() not in str(error)
    else:
        raise AssertionError("a wrong passphrase opened it")
    await wallet.unlock(Secret(PASSPHRASE), seconds=60)
    assert await wallet.build(address=address, amount_atomic=AMOUNT_ATOMIC)


async def errors_are_those_of_the_catalogue(bench: Bench) -> None:
    """Codes, and the words that the client goes by (payments.md 1.1)."""
    shop = bench.side.fresh("shop")

    def created(amount: Any) -> tuple[int, str]:
        return bench.error("createrawtransaction", [], {shop: amount})

    assert created("0.123456789") == (-3, "Invalid amount")
    assert created("-1") == (-3, "Amount out of range")
    assert created("x") == (-3, "Invalid amount")
    assert bench.error("createrawtransaction", [], {"nobody": "1"})[0] == -5
    assert bench.error("gettransaction", "ab" * 32)[0] == -5
    assert bench.error("getmempoolentry", "ab" * 32)[0] == -5
    assert bench.error("sendrawtransaction", "00")[0] == -22
    code, text = bench.error("nonsense")
    assert (code, text) == (-32601, "Method not found")
    assert bench.error("walletpassphrase", "x", 1)[0] == -15
    dust = bench.side.call("createrawtransaction", [], {shop: "0.00000001"}, wallet="payer")
    assert bench.error("fundrawtransaction", dust) == (-4, "Transaction amount too small")
    much = bench.side.call("createrawtransaction", [], {shop: "1000000"}, wallet="payer")
    assert bench.error("fundrawtransaction", much) == (-4, "Insufficient funds")
    for amount, text in (("0.00000001", "Transaction amount too small"), ("1000000", SHORT)):
        assert bench.error("sendtoaddress", shop, amount) == (-6, text)
    # Strings with an exponent are taken, and zeros behind the last place.
    for text, amount in (("1E-3", "0.001"), ("0.100000000", "0.1")):
        tiny = bench.side.call("createrawtransaction", [], {shop: text}, wallet="payer")
        decoded = bench.side.call("decoderawtransaction", tiny)
        assert decoded["vout"][0]["value"] == Decimal(amount), (text, decoded)


async def wallets_are_named(bench: Bench) -> None:
    """-18 for one that is not there, -19 where there are several and none is named."""
    if not bench.side.wallet_paths:
        return
    assert bench.error("getbalance", wallet="nobody-has-this")[0] == -18
    assert bench.error("getbalance", wallet=None)[0] == -19


async def reservations_make_sense(bench: Bench) -> None:
    """-8 for what is spent, free already, or held already."""
    built = await bench.built()
    txid, _, vout = built.inputs[0].partition(":")
    place = [{"txid": txid, "vout": int(vout)}]
    assert bench.error("lockunspent", False, place)[0] == -8
    await bench.payer.release(built)
    assert bench.error("lockunspent", True, place)[0] == -8
    await bench.payer.broadcast(built)
    assert bench.error("lockunspent", True, place)[0] == -8


CHECKS: tuple[Callable[[Bench], Awaitable[None]], ...] = (
    builds_what_was_ordered,
    sends_the_same_bytes_any_number_of_times,
    a_rival_is_a_conflict_never_a_failure,
    orphans_are_given_back_and_live_ones_kept,
    a_label_has_one_address,
    money_and_orders_are_refused_by_name,
    a_locked_wallet_is_opened_by_its_passphrase_only,
    errors_are_those_of_the_catalogue,
    wallets_are_named,
    reservations_make_sense,
)


def conforms(side: Side) -> int:
    """Run every check against a side.

    Returns:
        how many there were.

    Raises:
        AssertionError: the one that failed first, by its name.
    """
    for check in CHECKS:
        checked(side, check)
    return len(CHECKS)


def checked(side: Side, check: Callable[[Bench], Awaitable[None]]) -> None:
    """Run one check."""

    async def run() -> None:
        transport = Transport(lambda: 1_700_000_000_000, network=side.network)
        try:
            await check(Bench(side, transport))
        finally:
            await transport.aclose()

    try:
        asyncio.run(run())
    except Exception as error:
        raise AssertionError(f"{side.currency.value}: {check.__name__}: {error}") from error
