"""What a wallet and its node may do to a `Spend`, for its verification.

An order of five units with a fee of one at most; the last moment is the second look.  The wallet
signs what was ordered, or something else.  One thing may be in the way first: it is locked, has
the amount and not the fee, or an input is stolen before anything was sent; what it signs afterwards
is another transaction.  The node shows ours, holds it back, says nothing for too long, or shows a
rival, once: it is buried, or gone, or ours is seen all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
from machines.flows.f03w_wallet import (
    Cleared,
    Funded,
    HeldBack,
    Locked,
    Refused,
    RivalBuried,
    RivalGone,
    RivalSeen,
    Robbed,
    Seen,
    Short,
    Signed,
    Spend,
    SpendOrder,
)

POLL_MS = 1
"""Shorter than any pause after a failure, so that whoever failed finds every timer due."""
PAY_BY_MS = 2
STUCK_MS = 1
AFTERWARDS = "tx-2"
"""What is signed once something had been in the way: nothing else is, and no rival comes."""
OUT = frozenset({"broadcasting", "repairing", "stuck", "contested", "broadcast", "conflicted"})
"""A node may have the bytes."""
AFTER_SENDING = OUT | {"releasing"}
SENDERS = frozenset({"hand_out", "offer_again"})
CAUSES = {
    "broadcast": (Seen,),
    "conflicted": (RivalBuried,),
    "unfunded": (Short,),
    "rejected": (Refused, Signed),
}
"""Of which of these answers the outside must have given one before a run may end so."""


class OfSpend(Environment):
    """A wallet that signs, errs, is locked or short; a node that sees ours or a rival."""

    machine = Spend
    scope = Scope(contexts=1, messages=1, cancels=True)

    def contexts(self) -> Iterator[SpendOrder]:
        """One order; whether there is a passphrase only the calls look at."""
        yield SpendOrder(
            currency=Currency.LTC,
            address="shop",
            amount_atomic=5,
            pay_by_ms=PAY_BY_MS,
            confirmations=1,
            poll_ms=POLL_MS,
            fee_atomic_max=1,
            stuck_ms=STUCK_MS,
        )

    @payloads("signed_bytes")
    def transactions(self, context: SpendOrder) -> Iterator[Signed]:
        """As ordered with the highest fee, and to somebody else; later another."""
        if _was_in_the_way(context):
            yield _signed(context, AFTERWARDS, fee_atomic=0)
            return
        yield _signed(context, "tx-1", fee_atomic=context.fee_atomic_max)
        yield _signed(context, "tx-4", address="thief")

    @payloads("locked")
    def locks(self, context: SpendOrder) -> Iterator[Locked]:
        """As often as somebody waits for it to be opened, and not again once it was."""
        if not _was_in_the_way(context):
            yield Locked()

    @payloads("short")
    def shortages(self, context: SpendOrder) -> Iterator[Short]:
        """Enough but for the fee, once."""
        if not _was_in_the_way(context):
            yield Short(balance_atomic=context.amount_atomic)

    @payloads("funded")
    def fundings(self, context: SpendOrder) -> Iterator[Funded]:
        """The least that the flow's own look at the balance calls more."""
        yield Funded(balance_atomic=max(context.short_atomic + 1, context.amount_atomic))

    @payloads("refused")
    def refusals(self, context: SpendOrder) -> Iterator[Refused]:
        """For good, at the first attempt."""
        if not _was_in_the_way(context):
            yield Refused(reason="invalid address")

    @payloads("cleared")
    def clearances(self) -> Iterator[Cleared]:
        """The inputs are still there."""
        yield Cleared()

    @payloads("robbed")
    def robberies(self, context: SpendOrder) -> Iterator[Robbed]:
        """An input is gone, as the one thing in the way."""
        if _is_first(context):
            yield Robbed()

    @payloads("held_back")
    def refusals_of_a_node(self, context: SpendOrder) -> Iterator[HeldBack]:
        """Not now, as the first trouble."""
        if _is_first(context) and context.rivals == 0:
            yield HeldBack(reason="too-long-mempool-chain")

    @payloads("rival_seen")
    def rivals_seen(self, context: SpendOrder) -> Iterator[RivalSeen]:
        """In the mempool, once, and only of what was signed at the first attempt."""
        if _is_first(context) and context.rivals == 0:
            yield RivalSeen(confirmations=0)

    @payloads("rival_gone")
    def rivals_gone(self) -> Iterator[RivalGone]:
        """It lost."""
        yield RivalGone()  # ours goes out again, and no other comes

    @payloads("seen")
    def sightings(self) -> Iterator[Seen]:
        """In the mempool; that it may be mined already, nothing here looks at."""
        yield Seen(where="mempool", confirmations=0)

    @payloads("rival_buried")
    def rivals(self, context: SpendOrder) -> Iterator[RivalBuried]:
        """Just deep enough."""
        yield RivalBuried(confirmations=context.confirmations)

    @always
    def hands_out_only_what_was_cleared(self, done: Sequence[Done]) -> bool:
        """No node is given bytes before the last look at their inputs, nor after a theft of them:
        what follows a theft was looked at anew."""
        told: list[type[object]] = [Robbed]
        for one in done:
            if one.effect == "clear":
                told.append(type(one.event))
            elif one.effect in SENDERS and told[-1] is not Cleared:
                return False
        return True

    @always
    def hands_out_what_was_signed(self, context: SpendOrder, done: Sequence[Done]) -> bool:
        """What a node has is what the wallet gave, and what was ordered."""
        if not _was_sent(done):
            return True
        sent, built = context.transaction, [one.event for one in done if one.effect == "build"]
        return (
            sent is not None
            and Signed(transaction=sent) in built
            and (sent.address, sent.amount_atomic) == (context.address, context.amount_atomic)
            and 0 <= sent.fee_atomic <= context.fee_atomic_max
        )

    @always
    def what_is_buried_was_never_sent(
        self, state: str, context: SpendOrder, done: Sequence[Done]
    ) -> bool:
        """A grave is dug before the first broadcast, for a theft, and its bytes stay in it."""
        robbed = sum(isinstance(one.event, Robbed) for one in done)
        ours = context.transaction.txid if context.transaction is not None else ""
        return len(context.tombstones) <= robbed and ours not in context.tombstones

    @always
    def handed_out_is_never_disowned(self, state: str, status: str, done: Sequence[Done]) -> bool:
        """Nobody takes bytes back: after them no end says "not paid", and nothing is cancelled."""
        return not _was_sent(done) or (state in AFTER_SENDING and status != "cancelled")

    @always
    def only_dead_bytes_are_released(self, done: Sequence[Done]) -> bool:
        """No node ever saw them, or a rival is buried: else a second payment could follow."""
        sent = False
        for one in done:
            sent = (sent or one.effect in SENDERS) and not isinstance(one.event, RivalBuried)
            if sent and one.effect == "release":
                return False
        return True

    @always
    def ends_for_a_cause(self, state: str, now_ms: int, done: Sequence[Done]) -> bool:
        """Every end follows from an answer, or the last moment has come."""
        told = [type(one.event) for one in done]
        if state == "abandoned":
            return now_ms >= PAY_BY_MS
        return state not in CAUSES or any(cause in told for cause in CAUSES[state])

    @sometimes
    def is_signed_too_late(self, state: str, context: SpendOrder) -> bool:
        """Bytes as ordered that nobody will see, and inputs to give back."""
        return state == "releasing" and context.fate == "abandoned"

    @sometimes
    def is_signed_anew_after_a_theft(self, state: str, context: SpendOrder) -> bool:
        """The first bytes are buried, the second ones are on their way."""
        return state == "broadcasting" and len(context.tombstones) == 1

    @sometimes
    def is_seen_although_a_rival_was_first(self, state: str, context: SpendOrder) -> bool:
        """A rival that is not buried may still lose."""
        return state == "broadcast" and context.rivals == 1

    @sometimes
    def is_stuck_after_a_rival_was_gone(self, state: str, context: SpendOrder) -> bool:
        """The worst weather there is; it still may be seen."""
        return state == "stuck" and context.rivals == 1

    @sometimes
    def is_handed_out_and_nobody_knows(self, state: str, done: Sequence[Done]) -> bool:
        """The node has the bytes, the run has yet to ask."""
        return state == "broadcasting" and _was_sent(done)


def _is_first(context: SpendOrder) -> bool:
    return context.transaction is not None and context.transaction.txid != AFTERWARDS


def _was_in_the_way(context: SpendOrder) -> bool:
    return context.unlocks > 0 or context.short_atomic > 0 or bool(context.tombstones)


def _was_sent(done: Sequence[Done]) -> bool:
    return any(one.effect in SENDERS for one in done)


def _signed(order: SpendOrder, txid: str, *, fee_atomic: int = 0, address: str = "shop") -> Signed:
    return Signed(
        transaction=SignedTransaction(
            txid=txid,
            payload=Secret(f"bytes of {txid}"),
            inputs=("in-1",),
            fee_atomic=fee_atomic,
            amount_atomic=order.amount_atomic,
            address=address,
        )
    )
