"""The life of an invoice, as its judge sees it (`machines.platform.invoices`).

::

    pending ──some coin──► partial ──the rest──► confirming ──deep enough──► completed
       │                      │                      │
       └────── time over ─────┴──────────────────────┴──► expired ──late coin──► refund_pending
                                                             ▲                      │    ▲
                                                  reorganised └──────────────────────┤    │ more
                                                                       refunded ◄────┘────┘

The judge looks at the chain afresh each time and says what the invoice is; a reorganised chain may
take it back.  This machine holds which of these words may follow which, and what must be true then.
Source: platform-api.md 15.3 and 15.4.
"""

from __future__ import annotations

from typing import Literal

from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.events import Context, Event

Verdict = Literal[
    "pending", "partial", "confirming", "completed", "expired", "refund_pending", "refunded"
]


class InvoiceTerms(Context):
    """Atomic units and milliseconds: what is due until when and how deep, what has come in."""

    amount_atomic: int
    expires_ms: int
    confirmations_required: int
    received_atomic: int = 0
    confirmations: int = 0
    returned_atomic: int = 0


class Judged(Event, tag="judged"):
    """What the chain shows, and until when payments count.

    `returned_atomic`: what refunds answer for, fees included.
    """

    verdict: Verdict
    expires_ms: int
    received_atomic: int
    confirmations: int
    returned_atomic: int


class InvoiceLife(Machine[InvoiceTerms]):
    """A price, asked of a fresh address."""

    pending = State(initial=True, waits=True)  # turtles: ignore[V009] by request
    partial = State(waits=True, invariant="has_received")  # turtles: ignore[V009] by request
    confirming = State(waits=True, invariant="is_covered")  # turtles: ignore[V009] by request
    completed = State(final=True, invariant="is_paid_for_good")
    expired = State(waits=True, invariant="returned_nothing")  # turtles: ignore[V009] by request
    refund_pending = State(waits=True)  # turtles: ignore[V009] by request
    refunded = State(waits=True, invariant="has_returned")  # turtles: ignore[V009] by request

    judged = (
        pending.from_(partial, confirming, cond="is_pending")
        | pending.to.itself(cond="is_pending")
        | partial.from_(pending, confirming, cond="is_partial")
        | partial.to.itself(cond="is_partial")
        | confirming.from_(pending, partial, expired, refund_pending, cond="is_confirming")
        | confirming.to.itself(cond="is_confirming")
        | completed.from_(
            pending, partial, confirming, expired, refund_pending, cond="is_completed"
        )
        | expired.from_(pending, partial, confirming, refund_pending, cond="is_expired")
        | expired.to.itself(cond="is_expired")
        | refund_pending.from_(  # turtles: ignore[V006] refused
            pending, partial, confirming, expired, refunded, cond="is_refund_pending"
        )
        | refund_pending.to.itself(cond="is_refund_pending")
        | refunded.from_(refund_pending, cond="is_refunded")  # turtles: ignore[V006] refused
        | refunded.to.itself(cond="is_refunded")
    )

    def is_pending(self, event: Judged) -> bool:
        return event.verdict == "pending"

    def is_partial(self, event: Judged) -> bool:
        return event.verdict == "partial"

    def is_confirming(self, event: Judged) -> bool:
        return event.verdict == "confirming"

    def is_completed(self, event: Judged) -> bool:
        return event.verdict == "completed"

    def is_expired(self, event: Judged) -> bool:
        return event.verdict == "expired"

    def is_refund_pending(self, event: Judged) -> bool:
        return event.verdict == "refund_pending"

    def is_refunded(self, event: Judged) -> bool:
        return event.verdict == "refunded"

    def on_judged(self, context: InvoiceTerms, event: Judged) -> InvoiceTerms:
        return self.but(
            context,
            expires_ms=event.expires_ms,
            received_atomic=event.received_atomic,
            confirmations=event.confirmations,
            returned_atomic=event.returned_atomic,
        )

    @requires(judged)
    def is_closed_by_time_alone(self, event: Judged, now_ms: int) -> bool:
        """Nobody loses an invoice before its time, nor is anything sent back."""
        closing = event.verdict in ("expired", "refund_pending", "refunded")
        return not closing or event.returned_atomic > 0 or now_ms >= event.expires_ms

    @requires(judged)
    def is_not_prolonged(self, context: InvoiceTerms, event: Judged) -> bool:
        return event.expires_ms <= context.expires_ms

    @requires(judged)
    def word_fits_the_numbers(self, context: InvoiceTerms, event: Judged) -> bool:
        """A key for the whole amount, deep enough; nothing confirming that was sent back."""
        if event.received_atomic < 0 or event.returned_atomic < 0:
            return False
        covered = event.received_atomic >= context.amount_atomic and event.returned_atomic == 0
        deep = event.confirmations >= context.confirmations_required
        return {
            "pending": event.received_atomic == 0 and event.returned_atomic == 0,
            "partial": event.received_atomic > 0 and event.returned_atomic == 0,
            "confirming": covered,
            "completed": covered and deep,
            "expired": event.returned_atomic == 0,
            "refund_pending": True,
            "refunded": event.returned_atomic > 0,
        }[event.verdict]

    @requires(judged)
    def nothing_sent_back_comes_again(self, context: InvoiceTerms, event: Judged) -> bool:
        return event.returned_atomic >= context.returned_atomic

    @ensures(judged)
    def sends_nothing_twice(self, old: InvoiceTerms, new: InvoiceTerms) -> bool:
        """What was sent back stays sent back."""
        return new.returned_atomic >= old.returned_atomic

    @invariant
    def amounts_are_sane(self, context: InvoiceTerms) -> bool:
        return (
            context.amount_atomic > 0
            and context.received_atomic >= 0
            and context.returned_atomic >= 0
            and context.confirmations_required > 0
        )

    def has_received(self, context: InvoiceTerms) -> bool:
        return context.received_atomic > 0

    def is_covered(self, context: InvoiceTerms) -> bool:
        return context.received_atomic >= context.amount_atomic and context.returned_atomic == 0

    def is_paid_for_good(self, context: InvoiceTerms) -> bool:
        """A key is given for the whole amount, deep enough, and never for what was sent back."""
        deep = context.confirmations >= context.confirmations_required
        return deep and self.is_covered(context)

    def returned_nothing(self, context: InvoiceTerms) -> bool:
        return context.returned_atomic == 0

    def has_returned(self, context: InvoiceTerms) -> bool:
        return context.returned_atomic > 0
