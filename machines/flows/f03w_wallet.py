"""Flow 3b, wallet: one exactly-once spend.

::

                 ┌────────► wallet_locked ──(pay_by)──► abandoned
                 │   ◄── unlocked, try_again                ▲
    building ────┤                                          │ too late
      │  │  │    │   ◄── funded                             │
      │  │  │    └────────► underfunded ──(pay_by)──► unfunded
      │  │  └── refused ──► rejected                        │
      │  └── signed, but too late or not what was ordered ──► releasing ──► abandoned, rejected
      │ signed: the bytes are committed before anybody sees them   ▲ │
      ▼                                                            │ ▼
    broadcasting ── rival buried ──────────────────────────────────┘ conflicted
          └── seen ──► broadcast

Promise: the address receives the amount at most once, whatever dies and however often.  Two phases
make it so: `building` builds, signs and verifies, and nothing is sent before the transition that
carries the signed transaction is committed; `broadcasting` hands out those bytes and no others.  It
looks before it sends, and looks again afterwards: a return code says neither "sent" nor "not sent".
It is retried for ever and has no way to `abandoned`: once bytes may have been handed out, nobody
can take them back, and a node that rejects them does not know who else has them.  A first broadcast
is not begun at or after `pay_by_ms`.

A build that died before its commit was never seen by a node, so building again is harmless; the
inputs it had reserved are the wallet's to give back (see the clients).  On monero two legs built at
once may share an input: then one of them is `conflicted`, never both paid.

Source: payments.md 2.2 and 4.1.
"""

from __future__ import annotations

from typing import Literal

from engine.contracts import ensures, invariant
from engine.definition import Machine, State
from engine.effects import Again, Call, NotDone, effect
from engine.errors import Permanent, Transient
from engine.events import Context, Event, GaveUp
from engine.retry import FOREVER, Retry
from engine.secret import Secret
from machines.clients.ports import (
    BroadcastRefused,
    Currency,
    InsufficientFunds,
    Record,
    Rejected,
    Sighting,
    SignedTransaction,
    Wallet,
    WalletLocked,
)
from machines.flows.money import PATIENT, UNLOCK_SECONDS, Wallets, asking, watching

UNLOCKS_MAX = 3
"""Unlocking so often without a signature in between means that it does not help: slow down."""


class SpendOrder(Context):
    """What to pay, and until when the first broadcast may begin.

    Args:
        confirmations: a rival buried so deep has won.
        fee_atomic_max: a transaction that costs more in network fees is not used.
        passphrase: opens the wallet; without it somebody else must.
        short_atomic: the balance with which building failed for lack of funds.
        fate: what `releasing` leads to.
    """

    currency: Currency
    address: str
    amount_atomic: int
    pay_by_ms: int
    confirmations: int
    poll_ms: int
    fee_atomic_max: int
    passphrase: Secret[str] | None = None
    transaction: SignedTransaction | None = None
    short_atomic: int = 0
    unlocks: int = 0
    fate: Literal["", "abandoned", "rejected", "conflicted"] = ""
    reason: str = ""


class SpendReport(Record):
    """What a parent learns beside the final state: the bytes, if any were signed, and why."""

    transaction: SignedTransaction | None
    reason: str


class Signed(Event, tag="signed"):
    """The bytes that will be broadcast, and no others."""

    transaction: SignedTransaction


class Locked(Event, tag="locked"):
    """The wallet needs its passphrase."""


class Unlocked(Event, tag="unlocked"):
    """The passphrase was accepted."""


class Short(Event, tag="short"):
    """Not enough spendable coin."""

    balance_atomic: int


class Funded(Event, tag="funded"):
    """More coin is spendable than when building failed."""

    balance_atomic: int


class Refused(Event, tag="refused"):
    """The wallet says that this can never work."""

    reason: str


class Seen(Event, tag="seen"):
    """The node knows the transaction."""

    where: Literal["mempool", "mined"]
    confirmations: int


class Released(Event, tag="released"):
    """The inputs of bytes that will never be sent (again) are free."""


class NotReleased(GaveUp, tag="not_released"):
    """The wallet did not take them back; they stay reserved until its node restarts."""


class RivalBuried(Event, tag="rival_buried"):
    """Another transaction has spent an input, so deep that ours is dead."""

    confirmations: int


@effect(idempotent=True, retry=PATIENT)  # nothing is handed out: building again is harmless
async def build(context: SpendOrder, call: Call) -> Signed | Locked | Short | Refused:
    """Build, sign and verify."""
    wallet = call.resource(Wallets)[context.currency]
    with asking("build"):
        try:
            built = await wallet.build(address=context.address, amount_atomic=context.amount_atomic)
        except WalletLocked:
            return Locked()
        except InsufficientFunds:
            return Short(balance_atomic=await wallet.balance_atomic())
        except (Rejected, BroadcastRefused) as error:
            return Refused(reason=str(error))
    return Signed(transaction=built)


@effect(idempotent=True, retry=Retry(attempts=20))
async def release(context: SpendOrder, call: Call) -> Released:
    """Give reserved inputs back; an input that is spent already is no error."""
    if context.transaction is not None:
        with watching("release"):
            await call.resource(Wallets)[context.currency].release(context.transaction)
    return Released()


@effect(idempotent=True, retry=PATIENT)
async def unlock(context: SpendOrder, call: Call) -> Unlocked | Refused | Again:
    """Open the wallet if we may; otherwise wait for somebody to do it."""
    if context.passphrase is None or context.unlocks >= UNLOCKS_MAX:
        return Again(after_ms=context.poll_ms)
    with asking("unlock"):
        try:
            wallet = call.resource(Wallets)[context.currency]
            await wallet.unlock(context.passphrase, seconds=UNLOCK_SECONDS)
        except (Rejected, WalletLocked) as error:
            return Refused(reason=f"unlocking the wallet: {error}")
    return Unlocked()


@effect(idempotent=True, retry=PATIENT)
async def watch_balance(context: SpendOrder, call: Call) -> Funded | Again:
    """Wait for more than there was when building failed; the fee is not known before."""
    with watching("balance"):
        balance = await call.resource(Wallets)[context.currency].balance_atomic()
    if balance > context.short_atomic and balance >= context.amount_atomic:
        return Funded(balance_atomic=balance)
    return Again(after_ms=context.poll_ms)


@effect(retry=FOREVER)
async def hand_out(context: SpendOrder, call: Call) -> Seen | RivalBuried | Again:
    """LOOK, SEND, LOOK: truth is where the node sees it, never a return code."""
    transaction, wallet = _ours(context), call.resource(Wallets)[context.currency]
    found = _told(context, await _look(wallet, transaction))
    if found is not None:
        return found
    try:
        with asking("broadcast", repeatable=False):
            await wallet.broadcast(transaction)
    except BroadcastRefused:
        pass  # not the same as "not sent"
    except WalletLocked as error:
        await _open(wallet, context)
        raise Transient("broadcast: the wallet was closed; trying again") from error
    except Rejected as error:  # nor is this: another node may have them, so we go on looking
        raise Transient(f"broadcast: the node does not take these bytes: {error}") from error
    return _told(context, await _look(wallet, transaction)) or Again(after_ms=context.poll_ms)


@hand_out.reconcile
async def look_for_it(context: SpendOrder, call: Call) -> Seen | RivalBuried | Again | NotDone:
    """What became of an attempt whose end nobody knows.  `NotDone` sends the same bytes again."""
    wallet = call.resource(Wallets)[context.currency]
    return _told(context, await _look(wallet, _ours(context))) or NotDone()


def _ours(context: SpendOrder) -> SignedTransaction:
    if context.transaction is None:
        raise Permanent("broadcast: no signed transaction in the context; nothing can be sent")
    return context.transaction


async def _look(wallet: Wallet, transaction: SignedTransaction) -> Sighting:
    with watching("look"):
        return await wallet.look(transaction)


async def _open(wallet: Wallet, context: SpendOrder) -> None:
    if context.passphrase is not None:
        with watching("unlock"):
            await wallet.unlock(context.passphrase, seconds=UNLOCK_SECONDS)


def _told(context: SpendOrder, sighting: Sighting) -> Seen | RivalBuried | Again | None:
    """What a sighting means; None when the bytes must be sent."""
    if sighting.where in ("mempool", "mined"):
        where: Literal["mempool", "mined"] = "mined" if sighting.confirmations else "mempool"
        return Seen(where=where, confirmations=sighting.confirmations)
    if sighting.where == "conflicted":
        if sighting.confirmations >= context.confirmations:
            return RivalBuried(confirmations=sighting.confirmations)
        return Again(after_ms=context.poll_ms)  # a rival that is not buried may still lose
    return None


class Spend(Machine[SpendOrder]):
    """Pay one address one amount, at most once."""

    payloads = (NotReleased,)

    building = State(initial=True, effect=build, timeout="until_pay_by", on_timeout="too_late")
    wallet_locked = State(
        effect=unlock, every="poll", timeout="until_next_try", on_timeout="try_again"
    )
    underfunded = State(
        effect=watch_balance, every="poll", timeout="until_pay_by", on_timeout="too_late"
    )
    broadcasting = State(  # turtles: ignore[V009] handed-out bytes are never given up
        effect=hand_out, every="poll", cancellable=False, invariant="holds_bytes"
    )
    releasing = State(effect=release, on_exhausted="not_released", cancellable=False)
    broadcast = State(final=True, invariant="holds_bytes")
    unfunded = State(final=True, failure=True, invariant="holds_nothing")
    rejected = State(final=True, failure=True)
    conflicted = State(final=True, failure=True, invariant="holds_bytes")
    abandoned = State(final=True, failure=True)

    signed = (
        building.to(broadcasting, cond="as_ordered and in_time", on="keep_bytes")
        | building.to(releasing, cond="as_ordered", on="keep_late_bytes")
        | building.to(releasing, on="keep_wrong_bytes")
    )
    locked = building.to(wallet_locked)
    unlocked = wallet_locked.to(building)
    try_again = wallet_locked.to(building, cond="in_time") | wallet_locked.to(abandoned)
    short = building.to(underfunded)
    funded = underfunded.to(building)
    refused = building.to(rejected) | wallet_locked.to(rejected)
    too_late = building.to(abandoned) | underfunded.to(unfunded)
    seen = broadcasting.to(broadcast)
    rival_buried = broadcasting.to(  # turtles: ignore[V006] the effect tells of no other
        releasing, cond="deep_enough"
    )
    released = (
        releasing.to(conflicted, cond="was_handed_out")
        | releasing.to(rejected, cond="is_wrong")
        | releasing.to(abandoned)
    )
    not_released = (
        releasing.to(conflicted, cond="was_handed_out")
        | releasing.to(rejected, cond="is_wrong")
        | releasing.to(abandoned)
    )

    def until_pay_by(self, context: SpendOrder, now_ms: int) -> int:
        return context.pay_by_ms - now_ms

    def until_next_try(self, context: SpendOrder, now_ms: int) -> int:
        return min(context.poll_ms, context.pay_by_ms - now_ms)

    def poll(self, context: SpendOrder) -> int:
        return context.poll_ms

    def in_time(self, context: SpendOrder, now_ms: int) -> bool:
        return now_ms < context.pay_by_ms

    def as_ordered(self, context: SpendOrder, event: Signed) -> bool:
        """The wallet verified it; this is the second pair of eyes."""
        return _pays_the_order(context, event.transaction)

    def deep_enough(self, context: SpendOrder, event: RivalBuried) -> bool:
        return event.confirmations >= context.confirmations

    def was_handed_out(self, context: SpendOrder) -> bool:
        return context.fate == "conflicted"

    def is_wrong(self, context: SpendOrder) -> bool:
        return context.fate == "rejected"

    def keep_bytes(self, context: SpendOrder, event: Signed) -> SpendOrder:
        """And forget what was in the way: it is over, and no reason for what comes."""
        return self.but(
            context, transaction=event.transaction, short_atomic=0, unlocks=0, reason=""
        )

    def keep_late_bytes(self, context: SpendOrder, event: Signed) -> SpendOrder:
        reason = "signed too late to be sent before the invoice expires"
        return self.but(context, transaction=event.transaction, fate="abandoned", reason=reason)

    def keep_wrong_bytes(self, context: SpendOrder, event: Signed) -> SpendOrder:
        reason = (
            f"the wallet signed {event.transaction.amount_atomic} with a fee of "
            f"{event.transaction.fee_atomic}, ordered were {context.amount_atomic} with at most "
            f"{context.fee_atomic_max}"
        )
        return self.but(context, transaction=event.transaction, fate="rejected", reason=reason)

    def on_short(self, context: SpendOrder, event: Short) -> SpendOrder:
        reason = f"{event.balance_atomic} spendable, {context.amount_atomic} and the fee needed"
        return self.but(context, short_atomic=event.balance_atomic, reason=reason)

    def on_funded(self, context: SpendOrder, event: Funded) -> SpendOrder:
        return self.but(context, reason="")

    def on_locked(self, context: SpendOrder) -> SpendOrder:
        return self.but(context, reason="the wallet is locked")

    def on_unlocked(self, context: SpendOrder) -> SpendOrder:
        return self.but(context, unlocks=context.unlocks + 1, reason="")

    def on_refused(self, context: SpendOrder, event: Refused) -> SpendOrder:
        return self.but(context, reason=event.reason)

    def on_not_released(self, context: SpendOrder, event: NotReleased) -> SpendOrder:
        return self.but(context, reason=f"{context.reason}; inputs stay reserved: {event.reason}")

    def on_seen(self, context: SpendOrder, event: Seen) -> SpendOrder:
        return self.but(context, reason="")

    def on_rival_buried(self, context: SpendOrder, event: RivalBuried) -> SpendOrder:
        reason = f"another transaction spent an input, {event.confirmations} deep"
        return self.but(context, fate="conflicted", reason=reason)

    def holds_bytes(self, context: SpendOrder) -> bool:
        """What may have been handed out is known, and is what was ordered."""
        return context.transaction is not None and _pays_the_order(context, context.transaction)

    def holds_nothing(self, context: SpendOrder) -> bool:
        return context.transaction is None

    @ensures(signed)
    def signed_once(self, old: SpendOrder) -> bool:
        """A second signature would be a second payment in waiting."""
        return old.transaction is None

    @ensures(seen, rival_buried, released, not_released)
    def same_bytes(self, old: SpendOrder, new: SpendOrder) -> bool:
        return new.transaction == old.transaction

    @invariant
    def amount_is_positive(self, context: SpendOrder) -> bool:
        return context.amount_atomic > 0

    @invariant
    def order_is_complete(self, context: SpendOrder) -> bool:
        """A rival counts as buried at one block at least; polling is no busy loop."""
        return context.confirmations > 0 and context.poll_ms > 0

    def output(self, context: SpendOrder) -> SpendReport:
        return SpendReport(transaction=context.transaction, reason=context.reason)


def _pays_the_order(context: SpendOrder, transaction: SignedTransaction) -> bool:
    return (
        transaction.address == context.address
        and transaction.amount_atomic == context.amount_atomic
        and 0 <= transaction.fee_atomic <= context.fee_atomic_max
        and len(transaction.inputs) > 0
    )
