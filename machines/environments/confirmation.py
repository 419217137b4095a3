"""What a node may show a `Confirmation` of its transaction, for its verification.

Three blocks are required, and the time is over at the second look.  The chain grows by a block, or
to the depth required at once.  One trouble comes: an eviction, a reversal (two blocks are lost, or
one is replaced by another of the same height), a rival, or a standstill; a second one only where it
meets the first: a rival in the place of what was reversed, a standstill while a reversal lasts,
and, while there is time, a reversal of what was replaced or stands still.  How long nothing moved
is the node's to say, so a standstill may be told at any look.  A second run watches on, from a
depth of two, what had counted there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from engine.secret import Secret
from engine.verification.environment import (
    Done,
    Environment,
    always,
    payloads,
    sometimes,
)
from engine.verification.result import Scope
from machines.clients.ports import Currency, SignedTransaction
from machines.flows.f03c_confirmation import (
    Confirmation,
    Evicted,
    Following,
    Mined,
    Pooled,
    RivalGone,
    RivalSeen,
    RivalWon,
    Sank,
    StalledFor,
)

POLL_MS = 1
"""Shorter than any pause after a failure, so that whoever failed finds every timer due."""
GIVE_UP_MS = 1
WATCHED = 4
"""The depth to which a payment is watched on that counted at a depth of two."""


class OfConfirmation(Environment):
    """A chain that grows, reorganises, forgets, stands still, or takes a rival."""

    machine = Confirmation
    scope = Scope(contexts=2, messages=1, cancels=True)

    def contexts(self) -> Iterator[Following]:
        """One transaction, just handed out; and one that was deep enough, watched on."""
        following = Following(
            currency=Currency.BTC,
            transaction=SignedTransaction(
                txid="tx-1",
                payload=Secret("bytes of tx-1"),
                inputs=("in-1",),
                fee_atomic=1,
                amount_atomic=5,
                address="shop",
            ),
            required=3,
            poll_ms=POLL_MS,
            stall_ms=POLL_MS,
            since_ms=0,
            give_up_ms=GIVE_UP_MS,
        )
        yield following
        yield msgspec.structs.replace(following, required=WATCHED, depth=2, depth_max=2)

    @payloads("pooled")
    def arrivals(self, context: Following, now_ms: int) -> Iterator[Pooled]:
        """In the mempool."""
        if context.depth == 0:
            yield Pooled(at_ms=now_ms)

    @payloads("evicted")
    def evictions(self, context: Following, now_ms: int) -> Iterator[Evicted]:
        """Gone from the mempool, as the first trouble."""
        if _troubles(context) == 0:
            yield Evicted(at_ms=now_ms)

    @payloads("mined")
    def blocks(self, context: Following, state: str, now_ms: int) -> Iterator[Mined]:
        """A block more, one too few, enough; after trouble the first one, or enough."""
        depth, required = context.depth, context.required
        found = {required}
        if context.required == WATCHED:
            found = {required}
        elif _troubles(context) == 0:
            found |= {depth + 1, max(depth + 1, required - 1)}
        elif _troubles(context) == 1 and now_ms < GIVE_UP_MS and not context.evictions:
            found |= {1} if depth == 0 or state == "reversed" else set()
        for confirmations in sorted(found):
            yield Mined(confirmations=confirmations, block_hash=None, at_ms=now_ms)

    @payloads("sank")
    def reversals(self, context: Following, state: str, now_ms: int) -> Iterator[Sank]:
        """Two blocks are lost, or one is replaced; the second time it is lost, too."""
        again = state in ("reversed", "stalled") and now_ms < GIVE_UP_MS
        match _troubles(context), context.depth:
            case (0, 1):
                yield Sank(confirmations=1, at_ms=now_ms)
            case (0, 2):
                yield Sank(confirmations=0, at_ms=now_ms)
            case (1, 1) if again:
                yield Sank(confirmations=0, at_ms=now_ms)

    @payloads("stalled_for")
    def standstills(self, context: Following, state: str) -> Iterator[StalledFor]:
        """No block for the shortest time that counts."""
        first = _troubles(context) == 0 and context.depth <= 1
        second = _troubles(context) == 1 and state == "reversed" and context.required != WATCHED
        if first or second:
            yield StalledFor(duration_ms=context.stall_ms)

    @payloads("rival_seen")
    def rivals_seen(self, context: Following, state: str, now_ms: int) -> Iterator[RivalSeen]:
        """In the mempool, as the first trouble or in the place of what was reversed."""
        after = state == "reversed" and _troubles(context) == 1
        if context.depth or context.required == WATCHED:
            return
        if _troubles(context) == 0 or (after and now_ms < GIVE_UP_MS):
            yield RivalSeen(at_ms=now_ms)

    @payloads("rival_gone")
    def rivals_gone(self, now_ms: int) -> Iterator[RivalGone]:
        """It lost."""
        yield RivalGone(at_ms=now_ms)

    @payloads("rival_won")
    def rivals(self, context: Following) -> Iterator[RivalWon]:
        """Just deep enough; the effects tell of no other."""
        yield RivalWon(confirmations=context.required)

    @always
    def ends_only_on_what_the_node_said(
        self, state: str, context: Following, done: Sequence[Done]
    ) -> bool:
        """Deep enough because of a block so deep, replaced because of a rival so deep."""
        told = [one.event for one in done]
        if state == "deep_enough":
            required = context.required
            return any(isinstance(one, Mined) and one.confirmations >= required for one in told)
        if state == "replaced":
            return any(isinstance(one, RivalWon) for one in told)
        return True

    @always
    def every_reversal_is_counted(self, context: Following, done: Sequence[Done]) -> bool:
        """None that the run was told of is lost; an answer that was lost is not told."""
        return context.reversals <= sum(isinstance(one.event, Sank) for one in done)

    @always
    def greatest_depth_is_kept(self, context: Following, done: Sequence[Done]) -> bool:
        """The report's `depth_max` was seen."""
        seen = [one.event.confirmations for one in done if isinstance(one.event, Mined)]
        begun = 2 if context.required == WATCHED else 0
        return context.depth <= context.depth_max <= max([begun, *seen])

    @sometimes
    def is_deep_after_two_reversals(self, state: str, context: Following) -> bool:
        """The worst weather that still ends well."""
        return state == "deep_enough" and context.reversals == 2

    @sometimes
    def is_deep_after_its_time(self, state: str, now_ms: int) -> bool:
        """Nothing is given up without a last look."""
        return state == "deep_enough" and now_ms >= GIVE_UP_MS

    @sometimes
    def is_deep_although_a_rival_was_first(self, state: str, context: Following) -> bool:
        """A rival that is not buried may still lose."""
        return state == "deep_enough" and context.rivals == 1

    @sometimes
    def sinks_after_it_was_deep(self, context: Following) -> bool:
        """A payment that counted is watched on, and a reorganisation is seen."""
        return context.required == WATCHED and context.reversals == 1

    @sometimes
    def is_found_again_after_an_eviction(self, state: str, context: Following) -> bool:
        """The same bytes, handed out again."""
        return state == "deep_enough" and context.evictions == 1


def _troubles(context: Following) -> int:
    return context.evictions + context.reversals + context.stalls + context.rivals
