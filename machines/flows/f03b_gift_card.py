"""Flow 3b: gift cards, bought with a coin by one side and spent on keys by the other.

The purchaser (`GiftCard`)::

    checking_limits ─ limits ─► creating ─ card_made ─► awaiting_payment ─ paid ─► active | issued
      │                         ▲  │  │                    │ (child: Payment, goods="card")
      ├► over_budget   code_gone└──┘  ├► order_refused     ├► unfunded, wallet_refused
      ├► below_minimum                ├► code_lost         ├► order_refused, expired_unpaid
      ├► above_maximum                ├► wallet_refused    ├► refunded
      └► unavailable                  └► unavailable       └► payment_unsettled

    active ─ seen ─► active | exhausted | expired | disputed;  watch_over ─► issued

The agent (`Redemption`), who has four words and no wallet::

    checking_balance ─ weighed ─► redeeming ─ taken ─► key_stored ─ proven ─► redeemed
      │                             │ │ │                 ▲  │ key_denied
      ├► over_budget, not_offered   │ │ └► secret_lost ───┘  └► secret_lost | key_refused
      ├► too_little, unavailable    │ │        ▲    └► unsettled
      └► card_unpaid, card_expired, │ └► pending_approval ─ decided ─► approved ─► key_stored
         card_reversed,             │        ├► denied                    └► secret_lost
         unknown_code               │        └► approval_timed_out
                                    ├► unknown_code, card_unpaid, card_expired, card_reversed,
                                    │  too_little, denied, refused: nothing was taken
                                    ├► overcharged
                                    └► unanswered: the same `redemption_key` asks again

Promise of the purchaser: nothing is paid for a card whose code nobody has.  The code is told once,
with the reply to the order, and is committed before the payment begins (`awaiting_payment`).  If
that reply is lost the repeat has no code: another card is ordered, under another key, and the
invoice of the first expires unpaid.  Paid is what is on the card, or nothing, or it comes back less
9 % (see `f03_payment`).

Promise of the agent: one run redeems once.  The idempotency key is committed (`redeeming`) before
it is first used, so a repeat, and also another run that is given it, gets the same redemption; the
price leaves the card once.  The secret is committed before anything else happens (`key_stored`); a
lost one is replaced, which is free.

Whose redemption nobody approves in time keeps its price on hold at the portal, which has no call to
take it back: the buyer's denial does.

Source: platform-api.md 17 and 18; paper, Flow 3b.
"""

from __future__ import annotations

from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.table import Child
from machines.flows.gift_card import (
    CARDS_MAX,
    GENERATIONS_MAX,
    CardClaim,
    CardMade,
    CardOrder,
    CardReceipt,
    CardSeen,
    CardTurnedAway,
    CodeGone,
    Decided,
    KeyRefused,
    KeyUntested,
    Limits,
    NewSecret,
    Paid,
    Redeemed,
    Taken,
    Weighed,
)
from machines.flows.gift_card_calls import (
    await_decision,
    fetch_limits,
    look_at_card,
    order_card,
    redeem,
    replace_secret,
    try_key,
    weigh,
)
from machines.flows.purchase import Declined, NotOffered, NoWallet

AT_ONCE_MS = 1
"""What the buyer said is kept, and the run goes on."""


class GiftCard(Machine[CardOrder]):
    """Buy one gift card: order it, keep its code, pay it, and follow it if asked to."""

    payloads = (NoWallet,)

    checking_limits = State(
        initial=True, effect=fetch_limits, timeout="silence", on_timeout="nobody_answers"
    )
    creating = State(
        effect=order_card,
        every="poll",
        on_exhausted="no_wallet",
        timeout="silence",
        on_timeout="nobody_answers",
        invariant="has_no_code",
    )
    awaiting_payment = State(
        child="payment",
        on_child="paid",
        milestone=True,
        cancellable=False,
        invariant="holds_the_code",
    )
    active = State(
        effect=look_at_card,
        every="poll",
        timeout="watching_time",
        on_timeout="watch_over",
        milestone=True,
        invariant="is_paid",
    )
    issued = State(final=True, invariant="is_paid")
    exhausted = State(final=True, invariant="is_used_up")
    expired = State(final=True, failure=True, invariant="is_paid")
    disputed = State(final=True, failure=True, invariant="is_paid")
    over_budget = State(final=True, failure=True, invariant="paid_nothing")
    below_minimum = State(final=True, failure=True, invariant="paid_nothing")
    above_maximum = State(final=True, failure=True, invariant="paid_nothing")
    unavailable = State(final=True, failure=True, invariant="paid_nothing")
    order_refused = State(final=True, failure=True, invariant="paid_nothing")
    wallet_refused = State(final=True, failure=True, invariant="paid_nothing")
    code_lost = State(final=True, failure=True, invariant="has_no_code")
    unfunded = State(final=True, failure=True, invariant="paid_nothing")
    expired_unpaid = State(final=True, failure=True, invariant="paid_nothing")
    refunded = State(final=True, failure=True, invariant="paid_nothing")
    payment_unsettled = State(final=True, failure=True, invariant="holds_the_code")

    limits = (
        checking_limits.to(over_budget, unless="affordable", on="note_budget")
        | checking_limits.to(  # turtles: ignore[V005] the budget is looked at first
            below_minimum, cond="too_small", on="note_limits"
        )
        | checking_limits.to(  # turtles: ignore[V005] one limit after the other
            above_maximum, cond="too_large", on="note_limits"
        )
        | checking_limits.to(creating)
    )
    nobody_answers = checking_limits.to(unavailable) | creating.to(unavailable)
    card_made = (
        creating.to(order_refused, unless="is_as_ordered", on="note_order")
        | creating.to(awaiting_payment, on="keep_card")
    )  # fmt: skip
    code_gone = creating.to(creating, cond="another_may_help") | creating.to(code_lost)
    declined = creating.to(order_refused)
    no_wallet = creating.to(wallet_refused)
    paid = (
        awaiting_payment.to(active, cond="was_delivered and watched", on="keep_receipt")
        | awaiting_payment.to(issued, cond="was_delivered", on="keep_receipt")
        | awaiting_payment.to(refunded, cond="was_refunded", on="note_payment")
        | awaiting_payment.to(unfunded, cond="ran_short", on="note_payment")
        | awaiting_payment.to(wallet_refused, cond="was_rejected", on="note_payment")
        | awaiting_payment.to(expired_unpaid, cond="was_too_late", on="note_payment")
        | awaiting_payment.to(order_refused, cond="was_not_tried", on="note_payment")
        | awaiting_payment.to(payment_unsettled, on="note_payment")
    )
    seen = (
        active.to(disputed, unless="adds_up", on="note_dispute")
        | active.to(  # turtles: ignore[V005] the sums are looked at first
            exhausted, cond="is_spent", on="keep_balance"
        )
        | active.to(  # turtles: ignore[V005] as above
            expired, cond="has_expired", on=["keep_balance", "note_expiry"]
        )
        | active.to(active, on="keep_balance")
    )
    watch_over = active.to(issued)

    # -- durations ------------------------------------------------------------------------------

    def poll(self, context: CardOrder) -> int:
        return context.poll_ms

    def silence(self, context: CardOrder) -> int:
        return context.silence_ms

    def watching_time(self, context: CardOrder) -> int:
        return context.watch_ms

    # -- children -------------------------------------------------------------------------------

    def payment(self, context: CardOrder) -> Child:
        """Pays the invoice of the card whose code we hold."""
        return Child(
            "Payment",
            {
                "goods": "card",
                "tier": 0,
                "months": 0,
                "currency": context.currency.value,
                "offer": context.invoice,
                "price_cents": context.amount_cents,
                "refund_address": context.refund_address,
                "budget_cents": context.budget_cents,
                "amount_atomic_max": context.amount_atomic_max,
                "passphrase": context.passphrase,
                "poll_ms": context.poll_ms,
                "silence_ms": context.silence_ms,
            },
        )

    # -- guards ---------------------------------------------------------------------------------

    def affordable(self, context: CardOrder) -> bool:
        return context.amount_cents <= context.budget_cents

    def too_small(self, context: CardOrder, event: Limits) -> bool:
        return context.amount_cents < max(event.minimum_cents, 1)

    def too_large(self, context: CardOrder, event: Limits) -> bool:
        return context.amount_cents > event.maximum_cents

    def is_as_ordered(self, context: CardOrder, event: CardMade) -> bool:
        """What is on the card is what was asked for, and its invoice asks for no more."""
        return (
            event.amount_cents == context.amount_cents == event.invoice.price_cents
            and event.card_id != ""
            and event.code.reveal() != ""
        )

    def another_may_help(self, context: CardOrder) -> bool:
        return context.codes_lost + 1 < CARDS_MAX

    def was_delivered(self, event: Paid) -> bool:
        return event.state == "delivered" and event.output is not None

    def watched(self, context: CardOrder) -> bool:
        return context.watch

    def was_refunded(self, event: Paid) -> bool:
        return event.state == "refunded"

    def ran_short(self, event: Paid) -> bool:
        return event.state == "unfunded"

    def was_rejected(self, event: Paid) -> bool:
        return event.state == "wallet_refused"

    def was_too_late(self, event: Paid) -> bool:
        return event.state == "expired_unpaid"

    def was_not_tried(self, event: Paid) -> bool:
        """The invoice was looked at again, and not paid."""
        return event.state in ("price_changed", "invoice_refused", "over_budget", "unavailable")

    def adds_up(self, context: CardOrder, event: CardSeen) -> bool:
        """What was taken and what is left is what was paid, as long as the card is good."""
        together = event.balance_cents + event.taken_cents
        whole = event.standing not in ("active", "exhausted") or together == context.amount_cents
        return whole and 0 <= event.balance_cents <= context.amount_cents

    def is_spent(self, event: CardSeen) -> bool:
        """Nothing is left, and nothing can come back from a redemption that is denied."""
        nothing = (event.balance_cents, event.pending) == (0, 0)
        return event.standing == "exhausted" and nothing

    def has_expired(self, event: CardSeen) -> bool:
        return event.standing == "expired"

    # -- actions --------------------------------------------------------------------------------

    def note_budget(self, context: CardOrder) -> CardOrder:
        wanted, budget = context.amount_cents, context.budget_cents
        return self.but(context, reason=f"a card of {wanted} cents, a budget of {budget}")

    def note_limits(self, context: CardOrder, event: Limits) -> CardOrder:
        least, most = event.minimum_cents, event.maximum_cents
        return self.but(
            context, reason=f"cards hold {least} to {most} cents, not {context.amount_cents}"
        )

    def note_order(self, context: CardOrder, event: CardMade) -> CardOrder:
        given, asked = event.amount_cents, event.invoice.price_cents
        return self.but(
            context,
            reason=f"ordered {context.amount_cents} cents, got {given} for {asked}",
        )

    def keep_card(self, context: CardOrder, event: CardMade) -> CardOrder:
        return self.but(
            context,
            card_id=event.card_id,
            code=event.code,
            invoice=event.invoice,
            refund_address=event.refund_address,
        )

    def on_code_gone(self, context: CardOrder, event: CodeGone) -> CardOrder:
        lost = context.codes_lost + 1
        reason = f"the code of {lost} card(s) was told in a reply that was lost; none was paid"
        return self.but(context, codes_lost=lost, reason=reason)

    def on_declined(self, context: CardOrder, event: Declined) -> CardOrder:
        return self.but(context, reason=event.reason)

    def on_no_wallet(self, context: CardOrder, event: NoWallet) -> CardOrder:
        return self.but(context, reason=event.reason)

    def keep_receipt(self, context: CardOrder, event: Paid) -> CardOrder:
        """From here on the code is the only secret there is."""
        receipt = event.output
        assert receipt is not None
        return self.but(
            context,
            paid_cents=receipt.paid_cents,
            txids=receipt.txids,
            balance_cents=context.amount_cents,
            passphrase=None,
            reason="",
        )

    def note_payment(self, context: CardOrder, event: Paid) -> CardOrder:
        return self.but(context, reason=f"the payment ended as {event.state}")

    def keep_balance(self, context: CardOrder, event: CardSeen) -> CardOrder:
        return self.but(context, balance_cents=event.balance_cents)

    def note_dispute(self, context: CardOrder, event: CardSeen) -> CardOrder:
        left, taken = event.balance_cents, event.taken_cents
        return self.but(
            context,
            reason=f"{left} cents left and {taken} taken of a card of {context.amount_cents}",
        )

    def note_expiry(self, context: CardOrder) -> CardOrder:
        return self.but(context, reason="the portal says that the card has expired")

    # -- contracts ------------------------------------------------------------------------------

    @invariant
    def budget_is_respected(self, context: CardOrder) -> bool:
        return context.paid_cents <= context.budget_cents

    @invariant
    def is_never_overdrawn(self, context: CardOrder) -> bool:
        balance = context.balance_cents
        return balance is None or 0 <= balance <= context.amount_cents

    @invariant
    def paid_has_a_code(self, context: CardOrder) -> bool:
        """Nothing was paid, nor may be, for a card whose code is not kept."""
        return context.code is not None or (context.paid_cents, context.invoice) == (0, None)

    @invariant
    def codes_are_lost_a_few_times(self, context: CardOrder) -> bool:
        return context.codes_lost <= CARDS_MAX

    @ensures(paid)
    def all_or_nothing_was_paid(self, new: CardOrder, event: Paid) -> bool:
        """A card costs what is on it."""
        whole = new.amount_cents if self.was_delivered(event) else 0
        return new.paid_cents == whole

    @ensures(seen)
    def face_value_stays(self, old: CardOrder, new: CardOrder) -> bool:
        """Looking at a card changes what is known of its balance, and nothing else."""
        return (new.amount_cents, new.paid_cents) == (old.amount_cents, old.paid_cents)

    def has_no_code(self, context: CardOrder) -> bool:
        return context.code is None and context.paid_cents == 0

    def holds_the_code(self, context: CardOrder) -> bool:
        return context.code is not None and context.invoice is not None

    def is_paid(self, context: CardOrder) -> bool:
        """All that is on it, and the code is the one secret that is kept."""
        whole = 0 < context.amount_cents == context.paid_cents
        return whole and context.code is not None and context.passphrase is None

    def is_used_up(self, context: CardOrder) -> bool:
        return self.is_paid(context) and context.balance_cents == 0

    def paid_nothing(self, context: CardOrder) -> bool:
        return (context.paid_cents, context.txids) == (0, ())

    def output(self, context: CardOrder) -> CardReceipt | None:
        if context.code is None or context.paid_cents == 0:
            return None
        return CardReceipt(
            card_id=context.card_id,
            code=context.code,
            amount_cents=context.amount_cents,
            paid_cents=context.paid_cents,
            txids=context.txids,
        )


class Redemption(Machine[CardClaim]):
    """Get one key for a gift card: look, redeem once, wait for approval, keep the secret."""

    payloads = (KeyUntested,)

    checking_balance = State(
        initial=True,
        effect=weigh,
        timeout="silence",
        on_timeout="nobody_answers",
        milestone=True,
    )
    redeeming = State(
        effect=redeem,
        timeout="silence",
        on_timeout="nobody_tells",
        milestone=True,
        cancellable=False,
        invariant="has_a_key_to_ask_with",
    )
    pending_approval = State(
        effect=await_decision,
        every="poll",
        timeout="approval_time",
        on_timeout="approval_overdue",
        milestone=True,
        invariant="price_is_held",
    )
    approved = State(
        timeout=AT_ONCE_MS,
        on_timeout="goes_on",
        milestone=True,
        cancellable=False,
        invariant="price_is_held",
    )
    secret_lost = State(
        effect=replace_secret,
        timeout="settling_time",
        on_timeout="no_secret",
        cancellable=False,
        invariant="holds_no_secret",
    )
    key_stored = State(
        effect=try_key,
        on_exhausted="untested",
        timeout="settling_time",
        on_timeout="test_overdue",
        milestone=True,
        cancellable=False,
        invariant="holds_the_secret",
    )
    redeemed = State(final=True, invariant="is_bought")
    over_budget = State(final=True, failure=True, invariant="took_nothing")
    not_offered = State(final=True, failure=True, invariant="took_nothing")
    unavailable = State(final=True, failure=True, invariant="took_nothing")
    unknown_code = State(final=True, failure=True, invariant="took_nothing")
    card_unpaid = State(final=True, failure=True, invariant="took_nothing")
    card_expired = State(final=True, failure=True, invariant="took_nothing")
    card_reversed = State(final=True, failure=True, invariant="took_nothing")
    too_little = State(final=True, failure=True, invariant="took_nothing")
    denied = State(final=True, failure=True, invariant="took_nothing")
    refused = State(final=True, failure=True, invariant="took_nothing")
    unanswered = State(final=True, failure=True, invariant="has_a_key_to_ask_with")
    overcharged = State(final=True, failure=True, invariant="is_overcharged")
    approval_timed_out = State(final=True, failure=True, invariant="price_is_held")
    unsettled = State(final=True, failure=True, invariant="price_is_held")
    key_refused = State(final=True, failure=True, invariant="price_is_held")

    weighed = (
        checking_balance.to(over_budget, unless="affordable", on="note_budget")
        | checking_balance.to(  # turtles: ignore[V005] the budget is looked at first
            too_little, cond="lacks_balance", on="note_balance"
        )
        | checking_balance.to(redeeming)
    )
    no_such_quote = checking_balance.to(not_offered)
    nobody_answers = checking_balance.to(unavailable)
    nobody_tells = redeeming.to(unanswered)
    turned_away = (
        checking_balance.to(unknown_code, cond="is_unknown")
        | checking_balance.to(card_unpaid, cond="is_unpaid")
        | checking_balance.to(card_reversed, cond="is_reversed")
        | checking_balance.to(card_expired)
        | redeeming.to(unknown_code, cond="is_unknown")
        | redeeming.to(card_unpaid, cond="is_unpaid")
        | redeeming.to(card_expired, cond="is_expired")
        | redeeming.to(card_reversed, cond="is_reversed")
        | redeeming.to(too_little, cond="holds_too_little")
        | redeeming.to(denied, cond="is_forbidden")
        | redeeming.to(refused)
    )
    taken = (
        redeeming.to(denied, cond="was_denied", on="note_denial")
        | redeeming.to(  # turtles: ignore[V005] what was denied costs nothing
            overcharged, unless="costs_as_weighed", on="note_price"
        )
        | redeeming.to(  # turtles: ignore[V005] at the price that was weighed
            pending_approval, cond="is_held", on="keep_price"
        )
        | redeeming.to(  # turtles: ignore[V005] as above
            key_stored, cond="has_secret", on=["keep_price", "keep_key"]
        )
        | redeeming.to(secret_lost, on=["keep_price", "keep_key"])
    )
    decided = (
        pending_approval.to(denied, cond="was_denied", on="note_denial")
        | pending_approval.to(approved, on="keep_key")
    )  # fmt: skip
    approval_overdue = pending_approval.to(approval_timed_out)
    goes_on = approved.to(key_stored, cond="has_kept_secret") | approved.to(secret_lost)
    new_secret = secret_lost.to(key_stored)
    no_secret = secret_lost.to(unsettled)
    proven = key_stored.to(redeemed)
    untested = key_stored.to(redeemed)
    test_overdue = key_stored.to(redeemed)
    key_denied = (
        key_stored.to(secret_lost, cond="another_secret_may_help")
        | key_stored.to(key_refused)
    )  # fmt: skip

    # -- durations ------------------------------------------------------------------------------

    def poll(self, context: CardClaim) -> int:
        return context.poll_ms

    def silence(self, context: CardClaim) -> int:
        return context.silence_ms

    def approval_time(self, context: CardClaim) -> int:
        return context.approval_ms

    def settling_time(self, context: CardClaim) -> int:
        return context.settle_ms

    # -- guards ---------------------------------------------------------------------------------

    def affordable(self, context: CardClaim, event: Weighed) -> bool:
        return 0 < event.price_cents <= context.budget_cents

    def lacks_balance(self, event: Weighed) -> bool:
        return event.balance_cents is not None and event.balance_cents < event.price_cents

    def is_unknown(self, event: CardTurnedAway) -> bool:
        return event.why == "unknown_code"

    def is_unpaid(self, event: CardTurnedAway) -> bool:
        return event.why == "unpaid"

    def is_expired(self, event: CardTurnedAway) -> bool:
        return event.why == "expired"

    def is_reversed(self, event: CardTurnedAway) -> bool:
        return event.why == "reversed"

    def holds_too_little(self, event: CardTurnedAway) -> bool:
        return event.why == "too_little"

    def is_forbidden(self, event: CardTurnedAway) -> bool:
        return event.why == "denied"

    def was_denied(self, event: Taken | Decided) -> bool:
        return event.standing == "denied"

    def costs_as_weighed(self, context: CardClaim, event: Taken) -> bool:
        return event.price_cents == context.price_cents

    def is_held(self, event: Taken) -> bool:
        return event.standing == "pending_approval"

    def has_secret(self, event: Taken) -> bool:
        return event.secret_key is not None

    def has_kept_secret(self, context: CardClaim) -> bool:
        return context.secret_key is not None

    def another_secret_may_help(self, context: CardClaim, event: KeyRefused) -> bool:
        wrong = event.reason in ("invalid_key", "invalid_signature")
        return wrong and context.generation < GENERATIONS_MAX

    # -- actions --------------------------------------------------------------------------------

    def on_weighed(self, context: CardClaim, event: Weighed) -> CardClaim:
        return self.but(
            context,
            price_cents=event.price_cents,
            balance_cents=event.balance_cents,
            redemption_key=event.redemption_key,
        )

    def note_budget(self, context: CardClaim, event: Weighed) -> CardClaim:
        budget = context.budget_cents
        return self.but(
            context, reason=f"the key costs {event.price_cents} cents, the budget is {budget}"
        )

    def note_balance(self, context: CardClaim, event: Weighed) -> CardClaim:
        left = event.balance_cents
        return self.but(
            context, reason=f"the key costs {event.price_cents} cents, the card holds {left}"
        )

    def on_no_such_quote(self, context: CardClaim, event: NotOffered) -> CardClaim:
        wanted = f"tier {context.tier} for {context.months} months"
        return self.but(context, reason=f"{wanted} is none of {event.offers} prices")

    def on_nobody_tells(self, context: CardClaim) -> CardClaim:
        reason = "the price may have left the card; the same redemption_key asks again"
        return self.but(context, reason=reason)

    def on_turned_away(self, context: CardClaim, event: CardTurnedAway) -> CardClaim:
        left = context.balance_cents if event.balance_cents is None else event.balance_cents
        return self.but(context, reason=event.detail, balance_cents=left)

    def on_taken(self, context: CardClaim, event: Taken) -> CardClaim:
        return self.but(
            context, redemption_id=event.redemption_id, balance_cents=event.balance_cents
        )

    def keep_price(self, context: CardClaim, event: Taken) -> CardClaim:
        return self.but(context, taken_cents=event.price_cents)

    def keep_key(self, context: CardClaim, event: Taken | Decided) -> CardClaim:
        return self.but(context, public_key=event.public_key, secret_key=event.secret_key)

    def note_price(self, context: CardClaim, event: Taken) -> CardClaim:
        """The key is kept all the same: it is paid for."""
        reason = f"{event.price_cents} cents were taken for a key of {context.price_cents}"
        return self.but(
            context,
            public_key=event.public_key,
            secret_key=event.secret_key,
            reason=reason,
        )

    def on_decided(self, context: CardClaim, event: Decided) -> CardClaim:
        return self.but(context, balance_cents=event.balance_cents)

    def note_denial(self, context: CardClaim) -> CardClaim:
        """The price is on the card again."""
        return self.but(context, taken_cents=0, reason="the buyer of the card said no")

    def on_approval_overdue(self, context: CardClaim) -> CardClaim:
        held = context.taken_cents
        return self.but(
            context, reason=f"nobody approved in time; {held} cents are held until somebody denies"
        )

    def on_no_secret(self, context: CardClaim) -> CardClaim:
        return self.but(context, reason="the portal gave no new secret in time")

    def on_new_secret(self, context: CardClaim, event: NewSecret) -> CardClaim:
        return self.but(
            context,
            public_key=event.public_key,
            secret_key=event.secret_key,
            generation=context.generation + 1,
        )

    def on_proven(self, context: CardClaim) -> CardClaim:
        return self.but(context, proven=True)

    def on_key_denied(self, context: CardClaim, event: KeyRefused) -> CardClaim:
        return self.but(context, secret_key=None, reason=event.reason)

    def on_enter_redeemed(self, context: CardClaim) -> CardClaim:
        return self.but(context, reason="")

    # -- contracts ------------------------------------------------------------------------------

    @invariant
    def budget_is_respected(self, context: CardClaim) -> bool:
        return 0 <= context.taken_cents <= context.budget_cents

    @invariant
    def is_never_overdrawn(self, context: CardClaim) -> bool:
        return context.balance_cents is None or context.balance_cents >= 0

    @ensures(taken)
    def one_price_is_taken(self, old: CardClaim, new: CardClaim) -> bool:
        """What leaves the card is what the key costs, or nothing; never on top of another."""
        return old.taken_cents == 0 and new.taken_cents in (0, new.price_cents)

    @ensures(weighed)
    def given_key_is_used(self, old: CardClaim, new: CardClaim) -> bool:
        """Whoever names a redemption gets that one."""
        return old.redemption_key in ("", new.redemption_key)

    @requires(taken, decided)
    def key_comes_with_its_redemption(self, event: Taken | Decided) -> bool:
        """A key of what is `redeemed`, and of nothing else; its secret may have been told."""
        if event.standing == "redeemed":
            return event.public_key is not None
        return event.public_key is None and event.secret_key is None

    @ensures(new_secret)
    def secret_is_kept(self, new: CardClaim, event: NewSecret) -> bool:
        return new.secret_key == event.secret_key

    def has_a_key_to_ask_with(self, context: CardClaim) -> bool:
        return context.redemption_key != "" and context.taken_cents == 0

    def price_is_held(self, context: CardClaim) -> bool:
        return context.redemption_id != "" and 0 < context.taken_cents == context.price_cents

    def holds_no_secret(self, context: CardClaim) -> bool:
        return context.secret_key is None and self.price_is_held(context)

    def holds_the_secret(self, context: CardClaim) -> bool:
        whole = context.public_key is not None and context.secret_key is not None
        return whole and self.price_is_held(context)

    def took_nothing(self, context: CardClaim) -> bool:
        return context.taken_cents == 0 and context.secret_key is None

    def is_overcharged(self, context: CardClaim) -> bool:
        return context.redemption_id != "" and context.taken_cents == 0

    def is_bought(self, context: CardClaim) -> bool:
        return self.holds_the_secret(context) and context.balance_cents is not None

    def output(self, context: CardClaim) -> Redeemed | None:
        if context.public_key is None or context.secret_key is None:
            return None
        if context.taken_cents == 0 or context.balance_cents is None:
            return None
        return Redeemed(
            public_key=context.public_key,
            secret_key=context.secret_key,
            paid_cents=context.taken_cents,
            balance_cents=context.balance_cents,
            redemption_id=context.redemption_id,
        )
