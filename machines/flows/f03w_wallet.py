"""Flow 3b, wallet: one exactly-once spend.

::

                 ┌────────► wallet_locked ──(pay_by)──► abandoned
                 │   ◄── unlocked, try_again                ▲
    building ────┤                                          │ too late
      ▲  │  │    │   ◄── funded                             │
      │  │  │    └────────► underfunded ──(pay_by)──► unfunded
      │  │  └── refused ──► rejected                        │
      │  ├── not what was ordered ──► releasing ──► rejected │
      │  │ signed_bytes: committed before anybody sees them  │
      │  ▼                                                   │
      │ signed ── pay_by ──► releasing ──────────────────────┘
      ├── robbed ──► releasing: somebody took an input of bytes that nobody was ever given
         │ cleared: from here on nobody can take them back
         ▼
    broadcasting ── held_back ──► repairing ──┐
      │      ▲ ── unheard ──► stuck ◄─────────┤ unheard for `stuck_ms`
      │ rival_seen │ rival_gone               │    (repairing, stuck: rival_seen too)
      │      ▼     │                          │
      │    contested ── rival buried ──► releasing ──► conflicted
      └── seen (from each of them) ──► broadcast

Promise: the address receives the amount at most once, whatever dies and however often.  Two phases
make it so: `building` builds, signs and verifies, and nothing is sent before the transition that
carries the signed transaction is committed (`signed`, in which no node has the bytes); it is
another commit that says that they may be handed out (`broadcasting`), and from then on those bytes
and no others are.  It looks before it sends, and looks again afterwards: a return code says neither
"sent" nor "not sent".  It is retried for ever and has no way to `abandoned`: once bytes may have
been handed out, nobody can take them back, and a node that rejects them does not know who else has
them.  A first broadcast is not begun at or after `pay_by_ms`, not even by a program that was
stopped in `signed` and came back later.

`repairing` is a node that would not take the bytes now (its minimum fee, 25 transactions in a
row): a block or a calmer mempool helps.  `stuck` is the name for an hour without being heard; the
same bytes are offered on, and a person should look.  `contested` is a rival that is not buried: it
may still lose, and nothing is built in the place of ours.

A build that died before its commit was never seen by a node, so building again is harmless; the
inputs it had reserved are the wallet's to give back (see the clients).  So it is when an input is
stolen before the first broadcast: `tombstones` names what was signed and will never be sent.  On
monero two legs built at once may share an input: then one of them is `conflicted`, never both paid.

Source: payments.md 2.2 and 4.1 (INTENT building, WAIT_UNLOCK wallet_locked, WAIT_FUNDS underfunded,
SENDING broadcasting, SEEN broadcast and from there the machine Confirmation, REPAIR repairing,
MANUAL stuck, CONFLICTED contested, DEAD conflicted).
"""

from __future__ import annotations

from typing import Literal

from engine.clock import hours
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
        stuck_ms: bytes that nobody has heard of for so long need a person.
        fate: what `releasing` leads to.
        tombstones: transactions that were signed and will never be sent.
        rivals: how often another transaction was seen to spend an input of ours.
    """

    currency: Currency
    address: str
    amount_atomic: int
    pay_by_ms: int
    confirmations: int
    poll_ms: int
    fee_atomic_max: int
    passphrase: Secret[str] | None = None
    stuck_ms: int = hours(1)
    transaction: SignedTransaction | None = None
    short_atomic: int = 0
    unlocks: int = 0
    fate: Literal["", "abandoned", "rejected", "conflicted", "anew"] = ""
    tombstones: tuple[str, ...] = ()
    rivals: int = 0
    reason: str = ""


class SpendReport(Record):
    """What a parent learns beside the final state: the bytes, if any were signed, and why."""

    transaction: SignedTransaction | None
    reason: str


class Signed(Event, tag="signed_bytes"):
    """The bytes that will be broadcast, and no others."""

    transaction: SignedTransaction


class Cleared(Event, tag="cleared"):
    """Nothing stands in the way of the first broadcast."""


class Robbed(Event, tag="robbed"):
    """Somebody spent an input of bytes that were never handed out."""


class HeldBack(Event, tag="held_back"):
    """The node would not take the bytes now; they stay valid."""

    reason: str


class RivalSeen(Event, tag="rival_seen"):
    """Another transaction spends an input; it is not buried yet."""

    confirmations: int


class RivalGone(Event, tag="rival_gone"):
    """The inputs are unspent again, so far as the node knows."""


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


@effect(idempotent=True, retry=PATIENT)
async def clear(context: SpendOrder, call: Call) -> Cleared | Robbed:
    """A last look before the bytes leave this program: are the inputs still there?"""
    wallet = call.resource(Wallets)[context.currency]
    sighting = await _look(wallet, _ours(context))
    return Robbed() if sighting.where == "conflicted" else Cleared()


@effect(retry=FOREVER)
async def hand_out(context: SpendOrder, call: Call) -> Seen | RivalSeen | HeldBack | Again:
    """LOOK, SEND, LOOK: truth is where the node sees it, never a return code."""
    transaction, wallet = _ours(context), call.resource(Wallets)[context.currency]
    found = _told(await _look(wallet, transaction))
    if found is not None:
        return found
    held_back = await _send(context, wallet, transaction)
    found = _told(await _look(wallet, transaction))
    if found is None and held_back is not None:
        return HeldBack(reason=str(held_back))
    return found or Again(after_ms=context.poll_ms)


@hand_out.reconcile
async def look_for_it(
    context: SpendOrder, call: Call
) -> Seen | RivalSeen | HeldBack | Again | NotDone:
    """What became of an attempt whose end nobody knows.  `NotDone` sends the same bytes again."""
    wallet = call.resource(Wallets)[context.currency]
    return _told(await _look(wallet, _ours(context))) or NotDone()


@effect(idempotent=True, retry=PATIENT)  # the same bytes: handing them out again is harmless
async def offer_again(context: SpendOrder, call: Call) -> Seen | RivalSeen | Again:
    """While the node does not take them: offer the same bytes at every poll, and look."""
    transaction, wallet = _ours(context), call.resource(Wallets)[context.currency]
    found = _told(await _look(wallet, transaction))
    if found is None:
        await _send(context, wallet, transaction)
        found = _told(await _look(wallet, transaction))
    return found or Again()


@effect(idempotent=True, retry=PATIENT)
async def watch_rival(context: SpendOrder, call: Call) -> Seen | RivalGone | RivalBuried | Again:
    """Wait until the rival is buried, or has lost.  Nothing is sent meanwhile."""
    wallet = call.resource(Wallets)[context.currency]
    found = _told(await _look(wallet, _ours(context)))
    if not isinstance(found, RivalSeen):
        return found or RivalGone()
    if found.confirmations >= context.confirmations:
        return RivalBuried(confirmations=found.confirmations)
    return Again()


async def _send(
    context: SpendOrder, wallet: Wallet, transaction: SignedTransaction
) -> BroadcastRefused | None:
    """Hand the bytes to the node: the refusal that only says "not now", if it was one."""
    try:
        with asking("broadcast", repeatable=False):
            await wallet.broadcast(transaction)
    except BroadcastRefused as error:
        return error if error.policy else None  # a refusal is not the same as "not sent"
    except WalletLocked as error:
        await _open(wallet, context)
        raise Transient("broadcast: the wallet was closed; trying again") from error
    except Rejected as error:  # nor is this: another node may have them, so we go on looking
        raise Transient(f"broadcast: the node does not take these bytes: {error}") from error
    return None


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


def _told(sighting: Sighting) -> Seen | RivalSeen | None:
    """What a sighting means; None when the bytes must be sent."""
    if sighting.where in ("mempool", "mined"):
        where: Literal["mempool", "mined"] = "mined" if sighting.confirmations else "mempool"
        return Seen(where=where, confirmations=sighting.confirmations)
    if sighting.where == "conflicted":
        return RivalSeen(confirmations=sighting.confirmations)
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
    signed = State(
        effect=clear,
        timeout="until_pay_by",
        on_timeout="too_late",
        cancellable=False,
        invariant="holds_bytes",
    )
    broadcasting = State(
        effect=hand_out,
        every="poll",
        timeout="patience",
        on_timeout="unheard",
        cancellable=False,
        invariant="holds_bytes",
    )
    repairing = State(
        effect=offer_again,
        every="poll",
        timeout="patience",
        on_timeout="unheard",
        cancellable=False,
        invariant="holds_bytes",
    )
    stuck = State(  # turtles: ignore[V009] handed-out bytes are never given up
        effect=offer_again, every="poll", cancellable=False, invariant="holds_bytes"
    )
    contested = State(  # turtles: ignore[V009] a rival is watched until it is buried or gone
        effect=watch_rival, every="poll", cancellable=False, invariant="holds_bytes"
    )
    releasing = State(effect=release, on_exhausted="not_released", cancellable=False)
    broadcast = State(final=True, invariant="holds_bytes")
    unfunded = State(final=True, failure=True, invariant="holds_nothing")
    rejected = State(final=True, failure=True)
    conflicted = State(final=True, failure=True, invariant="holds_bytes")
    abandoned = State(final=True, failure=True)

    signed_bytes = building.to(signed, cond="as_ordered", on="keep_bytes") | building.to(
        releasing, on="keep_wrong_bytes"
    )
    cleared = signed.to(broadcasting, cond="in_time") | signed.to(releasing, on="give_up_late")
    robbed = signed.to(releasing)
    locked = building.to(wallet_locked)
    unlocked = wallet_locked.to(building)
    try_again = wallet_locked.to(building, cond="in_time") | wallet_locked.to(abandoned)
    short = building.to(underfunded)
    funded = underfunded.to(building)
    refused = building.to(rejected) | wallet_locked.to(rejected)
    too_late = (
        building.to(abandoned) | underfunded.to(unfunded) | signed.to(releasing, on="give_up_late")
    )
    seen = (
        broadcasting.to(broadcast)
        | repairing.to(broadcast)
        | stuck.to(broadcast)
        | contested.to(broadcast)
    )
    held_back = broadcasting.to(repairing)
    unheard = broadcasting.to(stuck) | repairing.to(stuck)
    rival_seen = broadcasting.to(contested) | repairing.to(contested) | stuck.to(contested)
    rival_gone = contested.to(broadcasting)
    rival_buried = contested.to(  # turtles: ignore[V006] the effect tells of no other
        releasing, cond="deep_enough"
    )
    released = (
        releasing.to(conflicted, cond="was_handed_out")
        | releasing.to(rejected, cond="is_wrong")
        | releasing.to(building, cond="is_to_be_built_anew", on="bury")
        | releasing.to(abandoned)
    )
    not_released = (
        releasing.to(conflicted, cond="was_handed_out")
        | releasing.to(rejected, cond="is_wrong")
        | releasing.to(building, cond="is_to_be_built_anew")
        | releasing.to(abandoned)
    )

    def until_pay_by(self, context: SpendOrder, now_ms: int) -> int:
        return context.pay_by_ms - now_ms

    def patience(self, context: SpendOrder) -> int:
        return context.stuck_ms

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

    def is_to_be_built_anew(self, context: SpendOrder) -> bool:
        return context.fate == "anew"

    def is_wrong(self, context: SpendOrder) -> bool:
        return context.fate == "rejected"

    def keep_bytes(self, context: SpendOrder, event: Signed) -> SpendOrder:
        """And forget what was in the way: it is over, and no reason for what comes."""
        return self.but(
            context, transaction=event.transaction, short_atomic=0, unlocks=0, reason=""
        )

    def give_up_late(self, context: SpendOrder) -> SpendOrder:
        """No node has the bytes, and it is too late to give them to one."""
        reason = "signed too late to be sent before the invoice expires"
        return self.but(context, fate="abandoned", reason=reason)

    def on_robbed(self, context: SpendOrder) -> SpendOrder:
        return self.but(context, fate="anew", reason="an input was spent before anything was sent")

    def bury(self, context: SpendOrder) -> SpendOrder:
        """Bytes that no node ever had: their name is kept, and others may take their place."""
        assert context.transaction is not None
        tombstones = (*context.tombstones, context.transaction.txid)
        return self.but(context, transaction=None, tombstones=tombstones, fate="")

    def on_held_back(self, context: SpendOrder, event: HeldBack) -> SpendOrder:
        return self.but(context, reason=event.reason)

    def on_rival_seen(self, context: SpendOrder, event: RivalSeen) -> SpendOrder:
        reason = f"another transaction spends an input, {event.confirmations} deep"
        return self.but(context, rivals=context.rivals + 1, reason=reason)

    def on_rival_gone(self, context: SpendOrder) -> SpendOrder:
        return self.but(context, reason="")

    def on_unheard(self, context: SpendOrder) -> SpendOrder:
        reason = f"the node has not shown the bytes for {context.stuck_ms} ms; {context.reason}"
        return self.but(context, reason=reason)

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
        reason = f"{context.reason}; inputs stay reserved: {event.reason}"
        left = self.bury(context) if context.fate == "anew" else context
        return self.but(left, reason=reason)

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

    @ensures(signed_bytes)
    def signed_once(self, old: SpendOrder) -> bool:
        """A second signature would be a second payment in waiting."""
        return old.transaction is None

    @ensures(cleared, seen, held_back, unheard, rival_seen, rival_gone, rival_buried)
    def same_bytes(self, old: SpendOrder, new: SpendOrder) -> bool:
        return new.transaction == old.transaction

    @ensures(released, not_released)
    def only_unsent_bytes_are_buried(self, old: SpendOrder, new: SpendOrder) -> bool:
        """Bytes make room for others only where no node was ever given them."""
        return new.transaction == old.transaction or old.fate == "anew"

    @invariant
    def amount_is_positive(self, context: SpendOrder) -> bool:
        return context.amount_atomic > 0

    @invariant
    def order_is_complete(self, context: SpendOrder) -> bool:
        """A rival counts as buried at one block at least; polling is no busy loop."""
        times = context.poll_ms > 0 and context.stuck_ms > 0
        return context.confirmations > 0 and times

    def output(self, context: SpendOrder) -> SpendReport:
        return SpendReport(transaction=context.transaction, reason=context.reason)


def _pays_the_order(context: SpendOrder, transaction: SignedTransaction) -> bool:
    return (
        transaction.address == context.address
        and transaction.amount_atomic == context.amount_atomic
        and 0 <= transaction.fee_atomic <= context.fee_atomic_max
        and len(transaction.inputs) > 0
    )
