"""What may happen to the rows of the platform, for the verification of their life cycles.

Money comes in steps of one unit against an amount of three, so that every sum around the amount is
tried; a card of two cents is redeemed a cent at a time and at once, with and without approval.

Nobody cancels these runs: there is no worker on them (`persistence.inline`).  A service is explored
with a cancel all the same: that is cheaper than a fourth message.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.verification.environment import Environment, always, payloads, sometimes
from engine.verification.result import Scope
from machines.platform.lives.gift_card import (
    Approve,
    Deny,
    GiftCardLife,
    GiftTerms,
    Redeem,
)
from machines.platform.lives.invoice import InvoiceLife, InvoiceTerms, Judged, Verdict
from machines.platform.lives.job import Fail, Finish, JobLife, JobTerms
from machines.platform.lives.service import (
    Down,
    ResizeService,
    ServiceLife,
    ServiceTerms,
    Stop,
)
from machines.platform.lives.session import End, Resize, SessionLife, SessionTerms

VERDICTS: tuple[Verdict, ...] = (
    "pending",
    "partial",
    "confirming",
    "completed",
    "expired",
    "refund_pending",
    "refunded",
)
DUE = 2


class OfSessionLife(Environment):
    """Requests of an owner, and the end of a sandbox."""

    machine = SessionLife
    scope = Scope(contexts=2, messages=4, cancels=False)

    def contexts(self) -> Iterator[SessionTerms]:
        """One vCPU."""
        yield SessionTerms(vcpu=1, base_vcpu=1)

    @payloads("resize")
    def sizes(self, context: SessionTerms) -> Iterator[Resize]:
        """A boost, the way back, and less than was bought."""
        yield from (Resize(vcpu=2), Resize(vcpu=1), Resize(vcpu=0))

    @payloads("end")
    def ends(self) -> Iterator[End]:
        """By its owner, and by itself."""
        yield from (End(reason="deleted"), End(reason="sandbox_died"))

    @sometimes
    def a_locked_one_dies(self, state: str, context: SessionTerms) -> bool:
        """A lock keeps its owner from deleting it, and nothing else from happening."""
        return state == "terminated" and context.locked


class OfServiceLife(Environment):
    """Requests of an owner, the end of its program, and of its sandbox."""

    machine = ServiceLife
    scope = Scope(contexts=1, messages=3)

    def contexts(self) -> Iterator[ServiceTerms]:
        """One vCPU."""
        yield ServiceTerms(vcpu=1)

    @payloads("fail")
    def failures(self) -> Iterator[Down]:
        """With a reason, and without."""
        yield from (Down(reason="exit code 1"), Down(reason=""))

    @payloads("stop")
    def stops(self) -> Iterator[Stop]:
        """The platform was started anew."""
        yield Stop(reason="platform_restarted")

    @payloads("resize")
    def sizes(self) -> Iterator[ResizeService]:
        """More, and too much."""
        yield from (ResizeService(vcpu=2), ResizeService(vcpu=9))

    @sometimes
    def comes_back(self, state: str, context: ServiceTerms) -> bool:
        """What failed can be deployed again."""
        return state == "running" and context.deployment == 2


class OfJobLife(Environment):
    """Ends of a program, and of what runs it."""

    machine = JobLife
    scope = Scope(contexts=2, messages=3, cancels=False)

    def contexts(self) -> Iterator[JobTerms]:
        """One vCPU."""
        yield JobTerms(vcpu=1)

    @payloads("finish")
    def exits(self) -> Iterator[Finish]:
        """Well, badly, too late, and with a code that cannot be."""
        for exit_code, timed_out in ((0, False), (1, False), (137, True), (256, False)):
            yield Finish(exit_code=exit_code, timed_out=timed_out)

    @payloads("fail")
    def refusals(self) -> Iterator[Fail]:
        """Told, and not told."""
        yield from (Fail(reason="no isolation here"), Fail(reason=""))


class OfGiftCardLife(Environment):
    """Redeemers and a buyer who approves or denies."""

    machine = GiftCardLife
    scope = Scope(contexts=2, messages=3, cancels=False)

    def contexts(self) -> Iterator[GiftTerms]:
        """Two cents."""
        yield GiftTerms(amount_cents=2, balance_cents=2)

    @payloads("redeem")
    def wishes(self) -> Iterator[Redeem]:
        """A part, all, more than there is; to be approved, and not."""
        for price_cents in (1, 2, 3):
            yield Redeem(price_cents=price_cents, held=False)
            yield Redeem(price_cents=price_cents, held=True)

    @payloads("approve")
    def approvals(self) -> Iterator[Approve]:
        """Of a part, and of all."""
        yield from (Approve(price_cents=1), Approve(price_cents=2))

    @payloads("deny")
    def denials(self) -> Iterator[Deny]:
        """Of a part, and of all."""
        yield from (Deny(price_cents=1), Deny(price_cents=2))

    @always
    def keys_are_paid_for(self, context: GiftTerms) -> bool:
        """What became keys never exceeds the card."""
        return context.spent_cents <= context.amount_cents


class OfInvoiceLife(Environment):
    """A chain that may show anything, also what it showed before."""

    machine = InvoiceLife
    scope = Scope(contexts=2, messages=3, cancels=False)

    def contexts(self) -> Iterator[InvoiceTerms]:
        """Two units, one block deep, due at once: closing is never too early here."""
        yield InvoiceTerms(amount_atomic=DUE, expires_ms=0, confirmations_required=1)

    @payloads("judged")
    def verdicts(self, context: InvoiceTerms) -> Iterator[Judged]:
        """Every word that can come then, with numbers that fit it; a key for too little."""
        if context.returned_atomic:
            words: tuple[Verdict, ...] = ("refund_pending", "refunded", "expired")
        elif context.received_atomic == DUE:
            words = ("pending", "partial", "confirming", "completed", "refund_pending")
        else:
            words = VERDICTS
        for verdict in words:
            received, confirmations, returned = {
                "pending": (0, 0, 0),
                "partial": (1, 0, 0),
                "confirming": (DUE, 0, 0),
                "completed": (DUE, 1, 0),
                "expired": (0, 0, 0),
                "refund_pending": (1, 1, context.returned_atomic),
                "refunded": (1, 1, 1),
            }[verdict]
            yield Judged(
                verdict=verdict,
                expires_ms=context.expires_ms,
                received_atomic=received,
                confirmations=confirmations,
                returned_atomic=returned,
            )
        if not context.received_atomic:
            yield Judged(
                verdict="completed",
                expires_ms=context.expires_ms,
                received_atomic=1,
                confirmations=1,
                returned_atomic=0,
            )

    @always
    def a_key_is_never_given_for_what_was_sent_back(
        self, state: str, context: InvoiceTerms
    ) -> bool:
        """Money and key never leave together."""
        return state != "completed" or context.returned_atomic == 0
