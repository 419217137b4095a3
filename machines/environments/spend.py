"""What a wallet and its node may do to a `Spend`, for its verification.

An order of five units with a fee of one at most; the last moment is the second look.  The wallet
signs what was ordered, or something else.  One thing may be in the way first: it is locked, or has
the amount and not the fee; what it signs afterwards is another transaction.  The node shows ours,
or a rival that is just deep enough (the flow tells of no rival that may still lose).
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
    Funded,
    Locked,
    Refused,
    RivalBuried,
    Seen,
    Short,
    Signed,
    Spend,
    SpendOrder,
)

POLL_MS = 1
"""Shorter than any pause after a failure, so that whoever failed finds every timer due."""
PAY_BY_MS = 2
LATE = " (late)"
"""A transaction that is signed at the last moment or later says so in its name."""
SENDING = frozenset({"broadcasting", "broadcast", "conflicted"})
AFTER_SENDING = SENDING | {"releasing"}
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
        )

    @payloads("signed")
    def transactions(self, context: SpendOrder, now_ms: int) -> Iterator[Signed]:
        """As ordered with the highest fee, with one more, and to somebody else; later another."""
        late = LATE if now_ms >= context.pay_by_ms else ""
        if _was_in_the_way(context):
            yield _signed(context, f"tx-2{late}", fee_atomic=0)
            return
        yield _signed(context, f"tx-1{late}", fee_atomic=context.fee_atomic_max)
        yield _signed(context, "tx-3", fee_atomic=context.fee_atomic_max + 1)
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
    def refusals(self) -> Iterator[Refused]:
        """For good."""
        yield Refused(reason="invalid address")

    @payloads("seen")
    def sightings(self) -> Iterator[Seen]:
        """In the mempool; that it may be mined already, nothing here looks at."""
        yield Seen(where="mempool", confirmations=0)

    @payloads("rival_buried")
    def rivals(self, context: SpendOrder) -> Iterator[RivalBuried]:
        """Just deep enough."""
        yield RivalBuried(confirmations=context.confirmations)

    @always
    def hands_out_under_one_key(self, done: Sequence[Done]) -> bool:
        """`broadcasting` is entered once, and nothing there changes the bytes: one payment."""
        return len({one.key for one in done if one.effect == "hand_out"}) <= 1

    @always
    def hands_out_what_was_signed(self, context: SpendOrder, done: Sequence[Done]) -> bool:
        """What a node has is what the wallet gave, and what was ordered."""
        if not _was(done, "hand_out"):
            return True
        sent, built = context.transaction, [one.event for one in done if one.effect == "build"]
        return (
            sent is not None
            and Signed(transaction=sent) in built
            and (sent.address, sent.amount_atomic) == (context.address, context.amount_atomic)
            and 0 <= sent.fee_atomic <= context.fee_atomic_max
        )

    @always
    def nothing_is_begun_too_late(self, state: str, context: SpendOrder) -> bool:
        """What may be handed out was committed before the last moment."""
        sent = context.transaction
        return state not in SENDING or sent is None or not sent.txid.endswith(LATE)

    @always
    def handed_out_is_never_disowned(self, state: str, status: str, done: Sequence[Done]) -> bool:
        """Nobody takes bytes back: after them no end says "not paid", and nothing is cancelled."""
        return not _was(done, "hand_out") or (state in AFTER_SENDING and status != "cancelled")

    @always
    def only_dead_bytes_are_released(self, done: Sequence[Done]) -> bool:
        """No node ever saw them, or a rival is buried: else a second payment could follow."""
        if not (_was(done, "release") and _was(done, "hand_out")):
            return True
        return any(isinstance(one.event, RivalBuried) for one in done)

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
    def is_handed_out_after_the_last_moment(
        self, state: str, now_ms: int, done: Sequence[Done]
    ) -> bool:
        """Committed in time, and found only later: nobody can know that no node has them."""
        return state == "broadcasting" and now_ms >= PAY_BY_MS and not _was(done, "hand_out")

    @sometimes
    def is_handed_out_and_nobody_knows(self, state: str, done: Sequence[Done]) -> bool:
        """The node has the bytes, the run has yet to ask."""
        return state == "broadcasting" and _was(done, "hand_out")


def _was_in_the_way(context: SpendOrder) -> bool:
    return context.unlocks > 0 or context.short_atomic > 0


def _was(done: Sequence[Done], effect: str) -> bool:
    return any(one.effect == effect for one in done)


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
