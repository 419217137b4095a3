"""Paying through a real litecoind is exactly-once: every boundary, then random troubles.

Three parts, on one node:

- `every_boundary`: one payment for each boundary that a whole payment passes (they are counted by
  making one), with SIGKILL of our process there; then resumed until it is deep;
- `random_troubles`: a Hypothesis state machine that kills us and the node, loses requests and
  replies, mines, reorganises, locks, drains, double-spends;
- `scripts`: what must be seen by name: a reorganisation before and after the depth required, a
  theft of the inputs, a wallet that stays locked or empty until it is too late.

The witness is the shop's own wallet (`listreceivedbyaddress`), asked after every step: never more
than one payment, never another amount.  Each example has addresses, wallets and a database of its
own; no height is absolute, and a failing example is not shrunk (payments.md, section 5).
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.clock import minutes
from engine.secret import Secret
from machines.clients import BitcoindWallet, Transport
from machines.clients.money import format_amount
from machines.clients.ports import Currency, SignedTransaction, Wallet
from tests.acceptance.nodes.conformance import PASSPHRASE
from tests.acceptance.nodes.daemon import NodeError
from tests.acceptance.nodes.leg import (
    EPOCH_MS,
    Leg,
    Loss,
    Point,
    Progress,
    order_for,
    passphrase,
)
from tests.acceptance.nodes.litecoin import Litecoin

AMOUNT_ATOMIC = 25_000_001  # odd in its last place: nothing rounds it
SECRETS = ("", PASSPHRASE)
COINS = "0.6"
OUTPUTS = 3
REQUIRED = Currency.LTC.confirmations
ROUNDS_MAX = 20
CHAIN_MAX = 25
"""So many unconfirmed transactions in a row a node takes."""
STEPS_MIN, STEPS_MAX = 4, 6
LOST_METHODS = (
    "createrawtransaction",
    "fundrawtransaction",
    "signrawtransactionwithwallet",
    "sendrawtransaction",
    "gettransaction",
    "getmempoolentry",
    "gettxout",
)
_numbers = itertools.count(1)


@dataclass
class Tally:
    """What was done, for the report."""

    payments: int = 0
    deaths: int = 0
    points: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)

    def note(self, leg: Leg) -> None:
        """A leg has ended."""
        assert leg.last is not None
        self.payments += 1
        self.deaths += leg.deaths
        self.points.update(name for name, _ in leg.died_at)
        self.ends[leg.last.confirmation or leg.last.spend] += 1


@dataclass
class Purse:
    """A paying wallet with a database of its own, and the address it pays."""

    node: Litecoin
    directory: Path
    name: str
    address: str
    leg: Leg
    secret: str = ""

    def paid(self) -> list[int]:
        """What the shop counts."""
        return self.node.payments(self.address)

    def at_most_once(self) -> None:
        """The invariant of everything here."""
        paid = self.paid()
        assert paid in ([], [AMOUNT_ATOMIC]), (paid, self.leg.last)

    def finish(self) -> None:
        """No more troubles, and blocks: it ends, within twenty rounds."""
        for _ in range(ROUNDS_MAX):
            told = self.leg.work()
            self.at_most_once()
            if told is not None and told.ended:
                return
            self.node.mine(2)
        raise AssertionError(f"not ended after {ROUNDS_MAX} rounds: {self.leg.last}")

    def locked_inputs(self) -> int:
        """How many coins the node still reserves."""
        return len(self.node.call("listlockunspent", wallet=self.name))

    def close(self) -> None:
        """Forget the wallet and the file."""
        self.node.call("unloadwallet", self.name)
        self.node.forget(self.name)
        shutil.rmtree(self.directory)


def open_purse(
    node: Litecoin,
    *,
    coins: str = COINS,
    outputs: int = OUTPUTS,
    secret: str = "",
    knows_secret: bool = True,
    **order: Any,
) -> Purse:
    """A new wallet of three coins and an order for it."""
    name = f"purse-{next(_numbers)}"
    node.create_wallet(name, secret)
    if coins:
        node.fund(name, coins, outputs=outputs)
    address = node.fresh("shop")
    directory = Path(tempfile.mkdtemp(prefix="turtles-leg-", dir=node.directory))

    def wallet(transport: Transport) -> Wallet:
        return BitcoindWallet(
            Currency.LTC, node.url(), transport, wallet_name=name, username="u",
            password=Secret("p"),
        )  # fmt: skip

    ordered = order_for(
        Currency.LTC, address, AMOUNT_ATOMIC,
        passphrase=passphrase(secret if knows_secret else ""), **order,
    )  # fmt: skip
    return Purse(node, directory, name, address, Leg(directory, wallet, ordered, REQUIRED), secret)


# -- every boundary -----------------------------------------------------------------------------


def boundaries(node: Litecoin, tally: Tally) -> list[Point]:
    """Every boundary of one payment, from its start to the depth required."""
    purse = open_purse(node)
    first = purse.leg.work()
    assert first is not None and first.confirmation == "mempool", first
    points = list(first.points)
    node.mine(REQUIRED)
    purse.finish()
    assert purse.paid() == [AMOUNT_ATOMIC]
    tally.note(purse.leg)
    purse.close()
    return _distinct(points)


def _distinct(points: list[Point]) -> list[Point]:
    """Without the polls that repeat each other: they begin at the second look at the mempool."""
    end = points.index(("before effect watch_pool", 2))
    return points[:end]


def of_the_leg(point: Point) -> bool:
    """The labelled points: either side of every commit and effect, and of every call that leaves
    something behind.  Between two calls that only read, nothing can be lost."""
    name, _ = point
    leaves = ("fundrawtransaction", "signrawtransactionwithwallet", "sendrawtransaction")
    kept = ("runs.start", "runs.commit", "effect", *leaves)
    return any(part in name for part in kept)


def every_boundary(node: Litecoin, tally: Tally, *, quick: bool = False) -> list[Point]:
    """One payment for each boundary, with SIGKILL there: the boundaries."""
    points = boundaries(node, tally)
    for point in filter(of_the_leg, points) if quick else points:
        purse = open_purse(node)
        assert purse.leg.work(die_at=point) is None, point
        purse.at_most_once()
        purse.leg.work(horizon_ms=0)  # to be resumed twice changes nothing
        purse.at_most_once()
        node.mine(REQUIRED)
        purse.finish()
        assert purse.paid() == [AMOUNT_ATOMIC], (point, purse.paid(), purse.leg.last)
        assert purse.locked_inputs() == 0, point
        tally.note(purse.leg)
        purse.close()
    return points


# -- random troubles ----------------------------------------------------------------------------


class Troubles(RuleBasedStateMachine):
    """One payment, and everything that may come between."""

    node: ClassVar[Litecoin]
    points: ClassVar[list[Point]]
    tally: ClassVar[Tally]
    purse: Purse | None = None
    rival: str = ""
    node_may_die = True
    """Once an example: it takes half a second."""

    @initialize(poor=st.sampled_from((False, False, True)), secret=st.sampled_from(SECRETS))
    def begin(self, poor: bool, secret: str) -> None:
        """A wallet that is full or empty, open or locked."""
        self.purse = open_purse(self.node, coins="" if poor else COINS, secret=secret)
        self.poor = poor

    @rule()
    def work(self) -> None:
        """The program runs for a minute."""
        self._count("work")
        self._purse.leg.work()

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """SIGKILL at some boundary; one that is not reached kills nobody."""
        self._count("die")
        self._purse.leg.work(die_at=data.draw(st.sampled_from(self.points)))

    @rule(method=st.sampled_from(LOST_METHODS), loss=st.sampled_from(("request", "reply")))
    def lose(self, method: str, loss: Loss) -> None:
        """A call, or its reply, never arrives; the program goes on."""
        self._count(f"lose {loss}")
        self._purse.leg.work(lose={method: loss})

    @rule(count=st.integers(0, 12))
    def mine(self, count: int) -> None:
        """Blocks."""
        self._count("mine")
        self.node.mine(count)

    @rule(depth=st.integers(1, 3), empty=st.booleans())
    def reorganise(self, depth: int, empty: bool) -> None:
        """Another chain takes over, with the same transactions or with none."""
        self._count(f"reorganise {depth}")
        self.node.reorganise(depth, empty=empty)

    @precondition(lambda self: self.node_may_die)
    @rule()
    def kill_node(self) -> None:
        """SIGKILL of litecoind; it comes back without its locks."""
        self.node_may_die = False
        self._count("kill node")
        self.node.kill_node()
        self.node.start_again()

    @precondition(lambda self: self.node_may_die)
    @rule()
    def work_without_node(self) -> None:
        """The program runs while litecoind is dead."""
        self.node_may_die = False
        self._count("work without node")
        self.node.kill_node()
        self._purse.leg.work()
        self.node.start_again()

    @precondition(lambda self: self.purse is not None and self.purse.secret)
    @rule()
    def lock(self) -> None:
        """Somebody locks the wallet."""
        self._count("lock")
        self.node.call("walletlock", wallet=self._purse.name)

    @precondition(lambda self: self.purse is not None and self.poor)
    @rule()
    def fund(self) -> None:
        """Somebody fills the wallet."""
        self._count("fund")
        self.node.fund(self._purse.name, COINS, outputs=OUTPUTS)
        self.poor = False

    @precondition(lambda self: not self.rival and self._inputs())
    @rule(undo=st.booleans())
    def rob(self, undo: bool) -> None:
        """A transaction of somebody with the same keys takes the inputs, in a block."""
        depth = self._mined_depth()
        if depth > 3 or (depth and not undo):
            return
        self._unlock()
        rival = self.node.double_spend(self._inputs(), self._purse.name)
        self._count("rob")
        if depth:
            self.node.reverse(depth)
        self.rival = rival
        self.node.mine_only(rival)
        for _ in range(depth):
            self.node.mine_only()

    @invariant()
    def is_paid_at_most_once(self) -> None:
        """By the shop's own wallet."""
        if self.purse is not None:
            self.purse.at_most_once()

    def teardown(self) -> None:
        """No more troubles: it ends, and what it says agrees with the shop."""
        if self.purse is None:
            return
        if self.poor:
            self.node.fund(self.purse.name, COINS, outputs=OUTPUTS)
        self.purse.finish()
        last = self.purse.leg.last
        assert last is not None
        paid = last.confirmation == "deep_enough"
        assert self.purse.paid() == ([AMOUNT_ATOMIC] if paid else []), last
        assert paid or self.rival, last  # nothing but a theft keeps it from paying
        self.tally.note(self.purse.leg)
        self.purse.close()

    @property
    def _purse(self) -> Purse:
        assert self.purse is not None
        return self.purse

    def _inputs(self) -> tuple[str, ...]:
        known = self.purse is not None and self.purse.leg.last is not None
        return self._purse.leg.last.inputs if known else ()  # type: ignore[union-attr]

    def _mined_depth(self) -> int:
        try:
            return max(0, self.node.depth(self._purse.leg.last.txid, self._purse.name))  # type: ignore[union-attr]
        except NodeError:
            return 0

    def _unlock(self) -> None:
        if self._purse.secret:
            self.node.call("walletpassphrase", PASSPHRASE, 60, wallet=self._purse.name)

    def _count(self, what: str) -> None:
        self.tally.done[what] += 1


def random_troubles(
    node: Litecoin, points: list[Point], tally: Tally, *, examples: int, seed: int
) -> None:
    """So many payments under random troubles."""
    Troubles.node, Troubles.points, Troubles.tally = node, points, tally
    machine = hypothesis.seed(seed)(Troubles)
    run_state_machine_as_test(
        machine,
        _min_steps=STEPS_MIN,
        settings=settings(
            max_examples=examples, stateful_step_count=STEPS_MAX, deadline=None, database=None,
            phases=(Phase.generate,), suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )  # fmt: skip


# -- scripts ------------------------------------------------------------------------------------


def _worked(purse: Purse) -> Progress:
    told = purse.leg.work()
    assert told is not None
    purse.at_most_once()
    return told


def reversed_before_it_was_deep(node: Litecoin, tally: Tally) -> None:
    """Three blocks become stale, and the payment with them: named, followed, paid once."""
    purse = open_purse(node)
    _worked(purse)
    node.mine(3)
    assert _worked(purse).confirmation == "confirming"
    node.reorganise(3, empty=True)
    told = _worked(purse)
    assert told.confirmation == "reversed" and told.txid in node.mempool(), told
    purse.finish()
    assert purse.leg.last is not None and purse.leg.last.report["reversals"] == 1
    tally.note(purse.leg)
    purse.close()


def reversed_after_it_was_deep(node: Litecoin, tally: Tally) -> None:
    """It had counted; whoever watches on sees the reorganisation, and the depth anew."""
    purse = open_purse(node)
    purse.leg.watch_to = 2 * REQUIRED
    _worked(purse)
    node.mine(REQUIRED)
    told = _worked(purse)
    assert (told.confirmation, told.watched) == ("deep_enough", ["unseen"]), told
    node.reorganise(REQUIRED, empty=True)
    told = _worked(purse)
    assert told.watched == ["unseen", "reversed"], told
    for _ in range(2):
        node.mine(2 * REQUIRED)
        told = _worked(purse)
    assert told.watched == ["unseen", "reversed", "deep_enough"], told
    assert purse.paid() == [AMOUNT_ATOMIC]
    tally.note(purse.leg)
    purse.close()


def replaced_by_a_double_spend(node: Litecoin, tally: Tally) -> None:
    """A reorganisation that holds another transaction with our inputs: nothing was paid."""
    purse = open_purse(node)
    _worked(purse)
    node.mine(1)
    told = _worked(purse)
    rival = node.double_spend(told.inputs, purse.name)
    node.reverse(1)
    node.mine_only(rival)
    node.mine_only()
    assert _worked(purse).confirmation == "contested"
    node.mine(REQUIRED)
    told = _worked(purse)
    assert "reversed" in told.followed and told.confirmation == "replaced", told
    assert purse.paid() == []
    tally.note(purse.leg)
    purse.close()


def robbed_before_the_first_broadcast(node: Litecoin, tally: Tally) -> None:
    """The inputs of bytes that no node was given are spent: others are signed, one is paid."""
    purse = open_purse(node)
    purse.leg.work(die_at=("before effect clear", 1))
    locked = node.call("listlockunspent", wallet=purse.name)
    stolen = tuple(f"{coin['txid']}:{coin['vout']}" for coin in locked)
    node.call("sendrawtransaction", node.double_spend(stolen, purse.name))
    purse.finish()
    assert purse.leg.last is not None
    assert purse.leg.last.passed.count("signed") == 2, purse.leg.last
    assert purse.paid() == [AMOUNT_ATOMIC]
    tally.note(purse.leg)
    purse.close()


def repairing_a_chain_that_is_too_long(node: Litecoin, tally: Tally) -> None:
    """The 26th unconfirmed transaction in a row is refused; a block later the same bytes go in."""
    purse = open_purse(node, outputs=1)
    for _ in range(CHAIN_MAX):
        node.call("sendtoaddress", node.fresh(purse.name), "0.001", wallet=purse.name)
    told = _worked(purse)
    assert told.spend == "repairing", told
    node.mine(1)
    told = _worked(purse)
    assert told.spend == "broadcast" and told.passed.count("building") == 1, told
    purse.finish()
    assert purse.paid() == [AMOUNT_ATOMIC]
    tally.note(purse.leg)
    purse.close()


def locked_until_it_is_too_late(node: Litecoin, tally: Tally) -> None:
    """Nobody opens the wallet: nothing is signed, nothing reserved for good."""
    purse = open_purse(node, secret=PASSPHRASE, knows_secret=False, pay_by_ms=EPOCH_MS + minutes(3))
    assert "wallet_locked" in _worked(purse).passed
    _ends_unpaid(purse, "abandoned", tally)


def unfunded_until_it_is_too_late(node: Litecoin, tally: Tally) -> None:
    """The wallet has the amount and not the fee."""
    purse = open_purse(node, coins="0.25000001", outputs=1, pay_by_ms=EPOCH_MS + minutes(3))
    assert _worked(purse).spend == "underfunded"
    _ends_unpaid(purse, "unfunded", tally)


def signed_and_found_too_late(node: Litecoin, tally: Tally) -> None:
    """The program dies between signing and sending, and comes back after the last moment."""
    purse = open_purse(node, pay_by_ms=EPOCH_MS + minutes(1))
    purse.leg.work(die_at=("before effect clear", 1))
    assert purse.locked_inputs() > 0
    _ends_unpaid(purse, "abandoned", tally)


class Naive(BitcoindWallet):
    """A control: it pays by `sendtoaddress`, as most programs do, and repeats what got lost."""

    async def broadcast(self, transaction: SignedTransaction) -> None:
        """Another transaction each time."""
        amount = format_amount(transaction.amount_atomic, Currency.LTC)
        await self._call("sendtoaddress", transaction.address, amount)


def the_witness_sees_a_double_payment(node: Litecoin, tally: Tally) -> None:
    """The control: with the naive wallet a lost reply pays twice, and the invariant says so."""
    purse = open_purse(node, coins="2", outputs=10)  # the naive one takes others each time
    purse.leg.wallet_over = lambda transport: Naive(
        Currency.LTC,
        node.url(),
        transport,
        wallet_name=purse.name,
        username="u",
        password=Secret("p"),
    )
    purse.leg.work(lose={"sendtoaddress": "reply"})
    paid = purse.paid()
    assert len(paid) > 1, f"the control paid {paid}: the suite would not notice"
    try:
        purse.at_most_once()
    except AssertionError:
        tally.done["control"] += 1
        purse.close()
        return
    raise AssertionError("paid twice, and nobody noticed")


def _ends_unpaid(purse: Purse, state: str, tally: Tally) -> None:
    purse.finish()
    assert purse.leg.last is not None and purse.leg.last.spend == state, purse.leg.last
    assert purse.paid() == [] and purse.locked_inputs() == 0
    tally.note(purse.leg)
    purse.close()


SCRIPTS: tuple[Callable[[Litecoin, Tally], None], ...] = (
    the_witness_sees_a_double_payment,
    reversed_before_it_was_deep,
    reversed_after_it_was_deep,
    replaced_by_a_double_spend,
    robbed_before_the_first_broadcast,
    repairing_a_chain_that_is_too_long,
    locked_until_it_is_too_late,
    unfunded_until_it_is_too_late,
    signed_and_found_too_late,
)
