"""Paying through a real monerod and monero-wallet-rpc is exactly-once, at every point of the leg.

One scripted pass.  Six points at which our process is killed, from before anything is signed to
after everything is written; in one payment of them the wallet's server is killed with it, in
another one monerod.  Then a reorganisation (`pop_blocks`), and what is seen of it.

Two witnesses: the shop's own wallet (every transfer to the payment's own subaddress, pooled ones
too), and `check_tx_key` of the shop's server for the transaction that we say paid.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from engine.secret import Secret
from machines.clients import MoneroWallet, Transport
from machines.clients.ports import Currency, InsufficientFunds, Rejected, Wallet
from tests.acceptance.nodes.daemon import NodeError
from tests.acceptance.nodes.leg import Leg, Point, order_for
from tests.acceptance.nodes.monero import Monero

AMOUNT_ATOMIC = 300_000_000_001
REQUIRED = Currency.XMR.confirmations
ROUNDS_MAX = 12
BEFORE_BUILD: Point = ("before effect build", 1)
AFTER_SIGNING: Point = ("after rpc transfer", 1)
AFTER_PERSISTING: Point = ("before effect clear", 1)
BEFORE_RELAY: Point = ("before rpc relay_tx", 1)
AFTER_RELAY: Point = ("after rpc relay_tx", 1)
AFTER_RECORDING: Point = ("before effect find", 1)
POINTS: tuple[tuple[Point, str], ...] = (
    (BEFORE_BUILD, ""),
    (AFTER_SIGNING, "wallet"),
    (AFTER_PERSISTING, ""),
    (BEFORE_RELAY, "daemon"),
    (AFTER_RELAY, "wallet"),
    (AFTER_RECORDING, ""),
)


@dataclass
class Till:
    """One payment of ours: its leg, and the subaddress of the shop it goes to."""

    node: Monero
    directory: Path
    address: str
    leg: Leg
    seen: list[str] = field(default_factory=list)

    def paid(self) -> list[int]:
        """What the shop counts."""
        return self.node.payments(self.address)

    def at_most_once(self) -> None:
        """The invariant of everything here."""
        paid = self.paid()
        assert paid in ([], [AMOUNT_ATOMIC]), (paid, self.leg.last)

    def finish(self) -> None:
        """No more troubles, and blocks: it is deep, and paid once."""
        for _ in range(ROUNDS_MAX):
            told = self.leg.work()
            self.at_most_once()
            if told is not None and told.ended:
                assert told.confirmation == "deep_enough", told
                assert self.paid() == [AMOUNT_ATOMIC]
                return
            self.node.mine(REQUIRED if told is not None and told.confirmation else 1)
        raise AssertionError(f"not ended after {ROUNDS_MAX} rounds: {self.leg.last}")

    def is_proven(self) -> None:
        """`check_tx_key`: this transaction paid this address so much, so deep."""
        assert self.leg.last is not None
        txid = self.leg.last.txid
        key = self.node.payer("get_tx_key", txid=txid)["tx_key"]
        proof = self.node.shop("check_tx_key", txid=txid, tx_key=key, address=self.address)
        assert proof["received"] == AMOUNT_ATOMIC and proof["confirmations"] >= REQUIRED, proof

    def close(self) -> None:
        """Forget the file."""
        shutil.rmtree(self.directory)


def open_till(node: Monero) -> Till:
    """An order for a new subaddress of the shop."""
    directory = Path(tempfile.mkdtemp(prefix="turtles-leg-", dir=node.directory))
    address = node.fresh()
    order = order_for(Currency.XMR, address, AMOUNT_ATOMIC, passphrase=Secret(""))
    return Till(
        node, directory, address, Leg(directory, partial(wallet_over, node), order, REQUIRED)
    )


def every_point(node: Monero) -> dict[str, Any]:
    """One payment for each point of the leg: figures."""
    deaths = 0
    for point, victim in POINTS:
        till = open_till(node)
        assert till.leg.work(die_at=point) is None, point
        if victim == "wallet":
            node.kill_wallet()
            till.at_most_once()
            node.start_wallet()  # with no wallet open: the machine opens it with its passphrase
        if victim == "daemon":
            node.kill_daemon()
            node.start_daemon()
        till.at_most_once()
        till.leg.work()  # resumed twice: it changes nothing
        till.finish()
        if victim != "wallet":  # a killed wallet has forgotten the key that proves the payment
            till.is_proven()
        deaths += till.leg.deaths
        till.close()
    return {"payments": len(POINTS), "deaths": deaths}


def errors_are_those_of_the_catalogue(node: Monero) -> dict[str, Any]:
    """What the wallet answers to bad orders, and what our client makes of it (Appendix B)."""
    good, bad = node.fresh(), "not an address"
    coins = node.payer("get_balance", account_index=0)["balance"]
    expected: dict[int, dict[str, Any]] = {
        -2: {"destinations": [{"address": bad, "amount": 1}]},
        -20: {"destinations": []},
        -17: {"destinations": [{"address": good, "amount": 2 * coins}]},
        -37: {"destinations": [{"address": good, "amount": coins - 10**10}]},
    }
    for code, params in expected.items():
        assert _code(node, "transfer", do_not_relay=True, **params) == code, (code, params)
    assert _code(node, "get_transfer_by_txid", txid="ab" * 32) == -8
    asyncio.run(_refusals(node, good, bad, coins))
    return {"errors": len(expected) + 1}


def _code(node: Monero, method: str, **params: Any) -> int:
    try:
        result = node.payer(method, **params)
    except NodeError as error:
        return error.code
    raise AssertionError(f"{method} {params}: expected an error, got {result!r}")


async def _refusals(node: Monero, good: str, bad: str, coins: int) -> None:
    transport = Transport(lambda: 1_700_000_000_000)
    wallet = wallet_over(node, transport)
    wrong: tuple[tuple[str, int, type[Exception]], ...] = (
        (bad, 1, Rejected),
        (good, 2 * coins, InsufficientFunds),
        (good, coins - 10**10, InsufficientFunds),
    )
    try:
        for address, amount, refusal in wrong:
            try:
                await wallet.build(address=address, amount_atomic=amount)
            except refusal:
                continue
            raise AssertionError(f"{amount} to {address}: expected {refusal.__name__}")
    finally:
        await transport.aclose()


def wallet_over(node: Monero, transport: Transport) -> Wallet:
    """Our client on the payer's wallet."""
    base = "http://127.0.0.1"
    return MoneroWallet(
        f"{base}:{node.payer_port}/json_rpc",
        f"{base}:{node.port}",
        transport,
        wallet_name="payer",
    )


def reorganised(node: Monero) -> dict[str, Any]:
    """Blocks are popped below a payment: it is `reversed` by name, followed, and paid once."""
    till = open_till(node)
    till.leg.work()
    node.mine(3)
    told = till.leg.work()
    assert told is not None and told.confirmation == "confirming", told
    node.pop(3)
    told = till.leg.work()
    assert told is not None and "reversed" in told.followed, told
    assert told.txid in node.pool()
    till.at_most_once()
    till.finish()
    till.is_proven()
    assert till.leg.last is not None and till.leg.last.report["reversals"] >= 1
    till.close()
    return {"payments": 1, "reversals": till.leg.last.report["reversals"]}
