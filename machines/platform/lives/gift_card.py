"""The life of a gift card.

::

    unpaid ──card_paid──► active ──redeem, something left──► active
                           │  ▲  └── redeem, all of it, nothing to approve ──► exhausted
                           │  │ deny                                              ▲
                           ▼  │                                                   │
                          held ── approve, the last one ──────────────────────────┘

A card that nobody pays stays unpaid: its invoice says that it expired, and a chain that is
reorganised may still complete it.  `held`: nothing is left, and the buyer has yet to approve a
redemption, whose price would come back.
Source: platform-api.md 17.
"""

from __future__ import annotations

from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.events import Context, Event


class GiftTerms(Context):
    """Cents: what was paid for the card, what is left, what awaits approval, what became keys."""

    amount_cents: int
    balance_cents: int
    held_cents: int = 0
    spent_cents: int = 0


class CardPaid(Event, tag="card_paid"):
    """Its invoice is completed."""


class Redeem(Event, tag="redeem"):
    """A key is asked for.  Its price is taken at once; `held` where the buyer must approve."""

    price_cents: int
    held: bool


class Approve(Event, tag="approve"):
    """The buyer approved a redemption: a key was issued."""

    price_cents: int


class Deny(Event, tag="deny"):
    """The buyer denied a redemption: its price comes back."""

    price_cents: int


class GiftCardLife(Machine[GiftTerms]):
    """A balance in cents that becomes keys."""

    unpaid = State(  # turtles: ignore[V009] by request
        initial=True, waits=True, invariant="is_untouched"
    )
    active = State(waits=True, invariant="has_some_left")  # turtles: ignore[V009] by request
    held = State(waits=True, invariant="awaits_approval")  # turtles: ignore[V009] by request
    exhausted = State(final=True, invariant="is_all_spent")

    card_paid = unpaid.to(active)
    redeem = (
        active.to(held, cond="takes_all and something_awaits")
        | active.to(exhausted, cond="takes_all")
        | active.to.itself()
    )
    approve = active.to.itself() | held.to(exhausted, cond="is_the_last") | held.to.itself()
    deny = active.to.itself() | held.to(active)

    def takes_all(self, context: GiftTerms, event: Redeem) -> bool:
        return event.price_cents == context.balance_cents

    def something_awaits(self, context: GiftTerms, event: Redeem) -> bool:
        return event.held or context.held_cents > 0

    def is_the_last(self, context: GiftTerms, event: Approve) -> bool:
        return event.price_cents == context.held_cents

    def on_redeem(self, context: GiftTerms, event: Redeem) -> GiftTerms:
        held, spent = (event.price_cents, 0) if event.held else (0, event.price_cents)
        return self.but(
            context,
            balance_cents=context.balance_cents - event.price_cents,
            held_cents=context.held_cents + held,
            spent_cents=context.spent_cents + spent,
        )

    def on_approve(self, context: GiftTerms, event: Approve) -> GiftTerms:
        return self.but(
            context,
            held_cents=context.held_cents - event.price_cents,
            spent_cents=context.spent_cents + event.price_cents,
        )

    def on_deny(self, context: GiftTerms, event: Deny) -> GiftTerms:
        return self.but(
            context,
            held_cents=context.held_cents - event.price_cents,
            balance_cents=context.balance_cents + event.price_cents,
        )

    @requires(redeem)
    def can_pay_it(self, context: GiftTerms, event: Redeem) -> bool:
        return 0 < event.price_cents <= context.balance_cents

    @requires(approve)
    def holds_what_is_approved(self, context: GiftTerms, event: Approve) -> bool:
        return 0 < event.price_cents <= context.held_cents

    @requires(deny)
    def holds_what_is_denied(self, context: GiftTerms, event: Deny) -> bool:
        return 0 < event.price_cents <= context.held_cents

    @ensures(redeem, approve, deny)
    def amount_stays(self, old: GiftTerms, new: GiftTerms) -> bool:
        return new.amount_cents == old.amount_cents

    @ensures(redeem, approve)
    def what_is_spent_stays_spent(self, old: GiftTerms, new: GiftTerms) -> bool:
        return new.spent_cents >= old.spent_cents

    @invariant
    def nothing_is_lost(self, context: GiftTerms) -> bool:
        together = context.balance_cents + context.held_cents + context.spent_cents
        return context.amount_cents == together

    @invariant
    def is_never_overdrawn(self, context: GiftTerms) -> bool:
        parts = (context.balance_cents, context.held_cents, context.spent_cents)
        return context.amount_cents > 0 and min(parts) >= 0

    def is_untouched(self, context: GiftTerms) -> bool:
        return context.balance_cents == context.amount_cents

    def has_some_left(self, context: GiftTerms) -> bool:
        return context.balance_cents > 0

    def awaits_approval(self, context: GiftTerms) -> bool:
        return context.balance_cents == 0 and context.held_cents > 0

    def is_all_spent(self, context: GiftTerms) -> bool:
        return context.spent_cents == context.amount_cents
