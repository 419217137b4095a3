# ruff: noqa: A003 - `reversed` is the flow's own name of a state
"""Flow 3c: follow one transaction to the depth at which it counts.

::

                    ┌──────── evicted ────────┐
                    ▼                         │
    unseen ── pooled ──► mempool ─────────────┘
      │                     │ mined n
      └── mined n ──┐       ▼
                    └──► confirming(n of k) ── mined n >= k ──► deep_enough
                            │  ▲      ▲
                       sank │  │mined │mined                 from each of them:
                            ▼  │      │                        stalled_for ──► stalled
                         reversed   stalled ── time_up ──►     rival_won   ──► replaced
                                               given_up        time_up     ──► stalled

Promise: the depth told is never above what the node says at that moment, a fall of it is always
named (`reversed`, counted, goes on following), and a transaction that vanished is broadcast again:
the same bytes, so following can never pay twice.  `stalled` is a name for no progress in
`stall_ms`; it keeps polling and resending.  `contested` (from unseen, mempool and reversed) is a
rival that is not buried: it may still lose, then ours is looked for and sent again.  `replaced`
needs the rival to be buried as deep as a payment must be.  `give_up_ms` bounds all of it, but
nothing is given up without a last look: a program that was stopped for days first sees what
happened.

A payment that was deep enough is watched on by a second run, whose context begins at that depth
(`depth`, `depth_max`, `block_hash` of the first) and whose `required` is the depth to watch to, by
default twice the coin's: a reorganisation after completion is then `reversed`, too, and followed.

Source: payments.md 4.1 (SEEN mempool, CONFIRMING confirming, REORGED reversed, STALLED stalled,
CONFLICTED contested, DEAD replaced, FINAL and DONE deep_enough, MANUAL given_up), paper Flow 3
(poll every 14 s).
"""

from __future__ import annotations

from contextlib import suppress

from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.effects import Again, Call, effect
from engine.events import Context, Event
from engine.secret import Secret
from machines.clients.ports import (
    BroadcastRefused,
    Currency,
    Record,
    Rejected,
    Sighting,
    SignedTransaction,
    WalletLocked,
)
from machines.flows.money import PATIENT, UNLOCK_SECONDS, Wallets, asking, watching

LAST_LOOKS = 10
"""How many looks without progress there are between the end of the time and giving up."""


class Following(Context):
    """Which transaction, how deep it must be, and what was seen of it.

    Args:
        since_ms: when following began, and later the time of the last progress.
        give_up_ms: the moment after which a person must look.
        depth: the last depth the node reported; `depth_max` the greatest ever.
        rivals: how often another transaction was seen to spend an input of it.
        rebroadcasts: how often the node had lost the bytes and was given them again, at least.
    """

    currency: Currency
    transaction: SignedTransaction
    required: int
    poll_ms: int
    stall_ms: int
    since_ms: int
    give_up_ms: int
    passphrase: Secret[str] | None = None
    depth: int = 0
    depth_max: int = 0
    block_hash: str | None = None
    reversals: int = 0
    evictions: int = 0
    stalls: int = 0
    rivals: int = 0
    rival_depth: int = 0


class FollowReport(Record):
    """What a parent learns beside the final state."""

    depth: int
    depth_max: int
    reversals: int
    stalls: int
    rival_depth: int


class Pooled(Event, tag="pooled"):
    """The node has it in its mempool."""

    at_ms: int


class Evicted(Event, tag="evicted"):
    """It was in the mempool and is no longer; nothing has taken its place in a block."""

    at_ms: int


class Mined(Event, tag="mined"):
    """It is in a block, `confirmations` deep."""

    confirmations: int
    block_hash: str | None
    at_ms: int


class Sank(Event, tag="sank"):
    """It was deeper, or in another block: a reorganisation."""

    confirmations: int
    at_ms: int


class StalledFor(Event, tag="stalled_for"):
    """No progress for so long."""

    duration_ms: int


class RivalSeen(Event, tag="rival_seen"):
    """Another transaction spends an input; it is not buried yet."""

    at_ms: int


class RivalGone(Event, tag="rival_gone"):
    """The rival lost, so far as the node knows."""

    at_ms: int


class RivalWon(Event, tag="rival_won"):
    """Another transaction spent an input and is buried."""

    confirmations: int


Found = Pooled | Evicted | Mined | Sank | StalledFor | RivalSeen | RivalWon
"""All that a sighting can mean.  Each effect says which of it can be in its state; if ever it is
something else, the effect looks again: what is known then does not fit, and may soon."""
FromUnseen = Pooled | Mined | Sank | StalledFor | RivalSeen | RivalWon
FromPool = Evicted | Mined | StalledFor | RivalSeen | RivalWon
FromBlocks = Mined | Sank | StalledFor | RivalWon
FromReversal = Mined | Sank | StalledFor | RivalSeen | RivalWon
FromStall = Mined | Sank | RivalWon


def judge(context: Following, sighting: Sighting, now_ms: int, *, pooled: bool) -> Found | None:
    """What a sighting changes; None for nothing.  Pure.

    Args:
        pooled: the last thing known is that it was in the mempool.
    """
    if sighting.where == "conflicted" and sighting.confirmations >= context.required:
        return RivalWon(confirmations=sighting.confirmations)
    depth = sighting.confirmations if sighting.where == "mined" else 0
    if depth < context.depth or _moved(context, sighting):
        # In another block it may already be deeper; that is for the next look to count.
        return Sank(confirmations=min(depth, context.depth), at_ms=now_ms)
    if depth > context.depth:
        return Mined(confirmations=depth, block_hash=sighting.block_hash, at_ms=now_ms)
    if sighting.where == "mempool" and not pooled:
        return Pooled(at_ms=now_ms)
    if sighting.where == "conflicted" and context.depth == 0:
        return RivalSeen(at_ms=now_ms)
    if sighting.where == "unseen" and pooled:
        return Evicted(at_ms=now_ms)
    if now_ms - context.since_ms >= context.stall_ms:
        return StalledFor(duration_ms=now_ms - context.since_ms)
    return None


def _moved(context: Following, sighting: Sighting) -> bool:
    """In another block than before: even at the same depth, its confirmations began anew."""
    known = context.block_hash is not None and sighting.block_hash is not None
    return context.depth > 0 and known and context.block_hash != sighting.block_hash


async def _look(context: Following, call: Call) -> Sighting:
    with watching("look"):
        return await call.resource(Wallets)[context.currency].look(context.transaction)


async def _resend(context: Following, call: Call) -> None:
    """Hand the same bytes out again.  What the node answers is not believed; the next look is."""
    wallet = call.resource(Wallets)[context.currency]
    with asking("rebroadcast"), suppress(BroadcastRefused, Rejected):
        try:
            await wallet.broadcast(context.transaction)
        except WalletLocked:
            if context.passphrase is not None:
                await wallet.unlock(context.passphrase, seconds=UNLOCK_SECONDS)


@effect(idempotent=True, retry=PATIENT)
async def find(context: Following, call: Call) -> FromUnseen | Again:
    """Look for it; give the node the bytes when it does not have them."""
    sighting = await _look(context, call)
    if sighting.where == "unseen":
        await _resend(context, call)
    found = judge(context, sighting, call.now_ms, pooled=False)
    return found if isinstance(found, FromUnseen) else Again()


@effect(idempotent=True, retry=PATIENT)
async def watch_pool(context: Following, call: Call) -> FromPool | Again:
    """Wait for a block that holds it."""
    found = judge(context, await _look(context, call), call.now_ms, pooled=True)
    return found if isinstance(found, FromPool) else Again()


@effect(idempotent=True, retry=PATIENT)
async def count(context: Following, call: Call) -> FromBlocks | Again:
    """Wait for it to be buried."""
    found = judge(context, await _look(context, call), call.now_ms, pooled=True)
    return found if isinstance(found, FromBlocks) else Again()


@effect(idempotent=True, retry=PATIENT)
async def find_again(context: Following, call: Call) -> FromReversal | Again:
    """After a reversal: resend what is lost, and wait until a block holds it."""
    sighting = await _look(context, call)
    if sighting.where == "unseen":
        await _resend(context, call)
    if sighting.where == "mined":  # at whatever depth: it is counted anew
        return Mined(
            confirmations=sighting.confirmations,
            block_hash=sighting.block_hash,
            at_ms=call.now_ms,
        )
    found = judge(context, sighting, call.now_ms, pooled=False)
    return found if isinstance(found, FromReversal) else Again()


@effect(idempotent=True, retry=PATIENT)
async def watch_rival(context: Following, call: Call) -> Mined | RivalGone | RivalWon | Again:
    """Wait until the rival is buried, or has lost.  Nothing is sent meanwhile."""
    sighting = await _look(context, call)
    if sighting.where in ("unseen", "mempool"):
        return RivalGone(at_ms=call.now_ms)
    found = judge(context, sighting, call.now_ms, pooled=False)
    return found if isinstance(found, Mined | RivalWon) else Again()


@effect(idempotent=True, retry=PATIENT)
async def nudge(context: Following, call: Call) -> FromStall | Again:
    """While nothing moves: resend what is not in a block, and look for any progress."""
    sighting = await _look(context, call)
    if sighting.where in ("unseen", "mempool"):
        await _resend(context, call)
    found = judge(context, sighting, call.now_ms, pooled=False)
    return found if isinstance(found, FromStall) else Again()


class Confirmation(Machine[Following]):
    """Follow one transaction until it is deep enough, replaced, or time is up."""

    unseen = State(
        initial=True, effect=find, every="poll", timeout="time_left", on_timeout="time_up"
    )
    mempool = State(effect=watch_pool, every="poll", timeout="time_left", on_timeout="time_up")
    confirming = State(effect=count, every="poll", timeout="time_left", on_timeout="time_up")
    contested = State(effect=watch_rival, every="poll", timeout="time_left", on_timeout="time_up")
    reversed = State(effect=find_again, every="poll", timeout="time_left", on_timeout="time_up")
    stalled = State(effect=nudge, every="poll", timeout="last_chance", on_timeout="time_up")
    deep_enough = State(final=True, invariant="has_required_depth")
    replaced = State(final=True, failure=True, invariant="rival_is_buried")
    given_up = State(final=True, failure=True)

    pooled = unseen.to(mempool)
    evicted = mempool.to(unseen)
    mined = (
        unseen.to(deep_enough, cond="is_deep")
        | unseen.to(confirming)
        | mempool.to(deep_enough, cond="is_deep")
        | mempool.to(confirming)
        | confirming.to(deep_enough, cond="is_deep")
        | confirming.to(confirming)
        | reversed.to(deep_enough, cond="is_deep")
        | reversed.to(confirming)
        | contested.to(deep_enough, cond="is_deep")
        | contested.to(confirming)
        | stalled.to(deep_enough, cond="is_deep")
        | stalled.to(confirming)
    )
    rival_seen = unseen.to(contested) | mempool.to(contested) | reversed.to(contested)
    rival_gone = contested.to(unseen)
    sank = (
        unseen.to(reversed) | confirming.to(reversed) | stalled.to(reversed) | reversed.to(reversed)
    )
    stalled_for = (
        unseen.to(stalled) | mempool.to(stalled) | confirming.to(stalled) | reversed.to(stalled)
    )
    rival_won = (
        unseen.to(replaced)
        | mempool.to(replaced)
        | confirming.to(replaced)
        | reversed.to(replaced)
        | contested.to(replaced)
        | stalled.to(replaced)
    )
    time_up = (
        unseen.to(stalled)
        | mempool.to(stalled)
        | confirming.to(stalled)
        | reversed.to(stalled)
        | contested.to(stalled)
        | stalled.to(given_up)
    )

    def poll(self, context: Following) -> int:
        return context.poll_ms

    def time_left(self, context: Following, now_ms: int) -> int:
        return context.give_up_ms - now_ms

    def last_chance(self, context: Following, now_ms: int) -> int:
        """At least a few looks, however late it is."""
        return max(context.give_up_ms - now_ms, LAST_LOOKS * context.poll_ms)

    def is_deep(self, context: Following, event: Mined) -> bool:
        return event.confirmations >= context.required

    def on_pooled(self, context: Following, event: Pooled) -> Following:
        return self.but(context, since_ms=event.at_ms)

    def on_evicted(self, context: Following, event: Evicted) -> Following:
        return self.but(context, since_ms=event.at_ms, evictions=context.evictions + 1)

    def on_mined(self, context: Following, event: Mined) -> Following:
        return self.but(
            context,
            depth=event.confirmations,
            depth_max=max(context.depth_max, event.confirmations),
            block_hash=event.block_hash,
            since_ms=event.at_ms,
        )

    def on_sank(self, context: Following, event: Sank) -> Following:
        return self.but(
            context,
            depth=event.confirmations,
            block_hash=None,
            since_ms=event.at_ms,
            reversals=context.reversals + 1,
        )

    def on_enter_stalled(self, context: Following) -> Following:
        return self.but(context, stalls=context.stalls + 1)

    def on_rival_seen(self, context: Following, event: RivalSeen) -> Following:
        return self.but(context, since_ms=event.at_ms, rivals=context.rivals + 1)

    def on_rival_gone(self, context: Following, event: RivalGone) -> Following:
        return self.but(context, since_ms=event.at_ms)

    def on_rival_won(self, context: Following, event: RivalWon) -> Following:
        return self.but(context, rival_depth=event.confirmations, depth=0, block_hash=None)

    @requires(mined)
    def is_in_a_block(self, event: Mined) -> bool:
        return event.confirmations >= 1

    @requires(sank)
    def depth_did_not_rise(self, context: Following, event: Sank) -> bool:
        return 0 <= event.confirmations <= context.depth

    @requires(rival_won)
    def rival_is_deep(self, context: Following, event: RivalWon) -> bool:
        """Before that, ours may still win."""
        return event.confirmations >= context.required

    @requires(rival_seen)
    def nothing_of_ours_is_in_a_block(self, context: Following) -> bool:
        """A rival takes the place of blocks that were lost first: that is a reversal."""
        return context.depth == 0

    @ensures(mined)
    def depth_is_the_nodes(self, old: Following, new: Following, event: Mined) -> bool:
        """And the greatest ever is not forgotten."""
        greatest = max(old.depth_max, event.confirmations)
        return (new.depth, new.depth_max) == (event.confirmations, greatest)

    @ensures(sank)
    def reversal_is_counted(self, old: Following, new: Following) -> bool:
        return new.reversals == old.reversals + 1 and new.depth_max == old.depth_max

    @invariant
    def depths_are_ordered(self, context: Following) -> bool:
        return 0 <= context.depth <= context.depth_max

    @invariant
    def order_is_complete(self, context: Following) -> bool:
        return context.required > 0 and context.poll_ms > 0 and context.stall_ms > 0

    def has_required_depth(self, context: Following) -> bool:
        return context.depth >= context.required

    def rival_is_buried(self, context: Following) -> bool:
        return context.rival_depth >= context.required and context.depth == 0

    def output(self, context: Following) -> FollowReport:
        return FollowReport(
            depth=context.depth,
            depth_max=context.depth_max,
            reversals=context.reversals,
            stalls=context.stalls,
            rival_depth=context.rival_depth,
        )
