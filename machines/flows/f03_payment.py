"""Flow 3: buy a key with one of four coins, or pay for a gift card that a parent has ordered.

::

    pricing ─ priced ─► invoicing ─ invoiced ─► paying ─ spent ─► confirming ◄───────────┐
      │                   │                       │ child Spend     │ child Confirmation  │
      ├► over_budget      ├► price_changed        ├► unfunded       ├► unconfirmed        │ topped,
      ├► not_offered      ├► invoice_refused      ├► wallet_refused │ followed            │ sank
      └► unavailable      ├► unavailable          ├► expired_unpaid ▼                     │
                          ├► wallet_refused       └ conflicted ► settling ─ fell_short ► topping_up
                          └► expired_unpaid                         │   │ ◄── not topped ─ child
                                                                    │   │                  Spend
            completed ◄─ proven ─ key_stored ◄─────────── issued ───┘   │
                                    ▲     │ denied                      │ ran_out, overdue
                        regenerated │     ▼                             ▼
            unsettled ◄──────── secret_lost ◄── secret_gone ── expired_partial, late
                                                                        │ refunding
                        refund_disputed ◄── refund_pending ◄────────────┘
                                                 └─► refunded

    delivered ◄── activated ── settling, expired_partial, late      (goods="card")

    key_stored ─ proven ─► watching ─ still counts ─► completed     (watch)
                             │ child Confirmation
                             └─ watched ─► completed_at_risk

States that a parent is told of: `invoicing` (priced), `paying` (invoiced), `confirming`
(broadcast), `settling` (deep enough), `key_stored`.

Promise: at most one payment is on its way at any moment, and what is sent in all never exceeds
what is due plus the declared tolerance.  A further leg is opened only from `settling`: for the gap
the portal names when every earlier leg is deep, or in place of one that is dead (its rival is
buried).  After `pay_by` (expiry less the coin's cut) no leg is opened at all.

The status read is destructive: the first `completed` reply holds the secret.  It is read by one
effect of one owned run, after our own node has confirmed the depth; the event that carries it is
committed before anything else happens (`key_stored`).  If that reply was lost, the next one has no
secret, and a new one is asked for (`secret_lost`).

A card has no key and no secret: its invoice comes with the order, is looked at like any other, and
its completion is all there is to wait for (`delivered`).

Who wants it (`watch`) has the payment followed on to twice the depth, after the key has been
stored: the leg sent last, since any earlier one was as deep as counts before that was opened.  A
reorganisation that heals is followed to its end by the child.  A leg that has lost to a rival, or
is not as deep as counts when its time is up, makes it `completed_at_risk`: the key was delivered
and may be suspended, and nothing is ever paid again for it.  When the time is up and the leg is as
deep as counts (the chain is slow), that is `completed`, and its `reason` says so.

Money at the end: `completed` and `delivered` paid what was due, exactly; `refunded` got back 91 %
(the fee is rounded up, to the unit), seen in our own wallet at our own address.

Source: payments.md 4.2 (COMPLETE, COMPLETE_AT_RISK) and 5, platform-api.md 14, 15, 18.
"""

from __future__ import annotations

import msgspec

from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.table import Child
from machines.clients.ports import Invoice, SignedTransaction
from machines.flows.money import STALL_MS, Leg, restocking_fee_atomic
from machines.flows.purchase import (
    Activated,
    Declined,
    Delivery,
    Denied,
    FellShort,
    Followed,
    Invoiced,
    Issued,
    NotOffered,
    NoWallet,
    Priced,
    Purchase,
    RanOut,
    Receipt,
    Refunding,
    RefundSeen,
    Regenerated,
    SankAgain,
    SecretGone,
    Spent,
    Topped,
    Unproven,
    Watched,
    fee_atomic_max,
    pay_by_ms,
)
from machines.flows.purchase_calls import (
    claim,
    claim_after_expiry,
    fetch_price,
    open_invoice,
    prove_key,
    regenerate,
    top_up_allowed,
    watch_refund,
)

GENERATIONS_MAX = 3
"""So many new secrets that do not work mean that another will not either."""


GRACE_POLLS = 5
"""So many looks the portal gets to say itself that an invoice has expired."""


class Payment(Machine[Purchase]):
    """Buy one key: price, invoice, pay once, wait, keep the secret.  Or pay for one card."""

    payloads = (NoWallet, Unproven)

    pricing = State(
        initial=True, effect=fetch_price, timeout="silence", on_timeout="nobody_answers"
    )
    invoicing = State(
        effect=open_invoice,
        on_exhausted="no_wallet",
        timeout="silence",
        on_timeout="nobody_answers",
        milestone=True,
    )
    paying = State(child="order", on_child="spent", milestone=True, cancellable=False)
    confirming = State(child="following", on_child="followed", milestone=True, cancellable=False)
    settling = State(
        effect=claim,
        every="poll",
        timeout="until_expiry",
        on_timeout="overdue",
        milestone=True,
        cancellable=False,
        invariant="is_settled_on_chain",
    )
    topping_up = State(child="order", on_child="topped", cancellable=False)
    expired_partial = State(
        effect=claim_after_expiry,
        every="poll",
        timeout="settling_time",
        on_timeout="no_settlement",
        cancellable=False,
    )
    late = State(
        effect=claim_after_expiry,
        every="poll",
        timeout="settling_time",
        on_timeout="no_settlement",
        cancellable=False,
    )
    refund_pending = State(
        effect=watch_refund,
        every="poll",
        timeout="refund_time",
        on_timeout="refund_overdue",
        cancellable=False,
    )
    secret_lost = State(
        effect=regenerate,
        timeout="settling_time",
        on_timeout="no_settlement",
        cancellable=False,
        invariant="holds_no_secret",
    )
    key_stored = State(
        effect=prove_key,
        on_exhausted="unproven",
        timeout="settling_time",
        on_timeout="test_overdue",
        milestone=True,
        cancellable=False,
        invariant="holds_the_secret",
    )
    watching = State(
        child="following_on",
        on_child="watched",
        cancellable=False,
        invariant="holds_the_secret",
    )
    completed = State(final=True, invariant="is_bought")
    delivered = State(final=True, invariant="is_delivered")
    refunded = State(final=True, failure=True, invariant="is_paid_back")
    over_budget = State(final=True, failure=True, invariant="paid_nothing")
    not_offered = State(final=True, failure=True, invariant="paid_nothing")
    unavailable = State(final=True, failure=True, invariant="paid_nothing")
    price_changed = State(final=True, failure=True, invariant="paid_nothing")
    invoice_refused = State(final=True, failure=True, invariant="paid_nothing")
    wallet_refused = State(final=True, failure=True, invariant="paid_nothing")
    unfunded = State(final=True, failure=True, invariant="paid_nothing")
    expired_unpaid = State(final=True, failure=True, invariant="paid_nothing")
    unconfirmed = State(final=True, failure=True)
    unsettled = State(final=True, failure=True)
    refund_disputed = State(final=True, failure=True)
    key_refused = State(final=True, failure=True)
    completed_at_risk = State(final=True, failure=True, invariant="is_unpaid_for")

    priced = pricing.to(invoicing, cond="affordable") | pricing.to(over_budget)
    no_such_quote = pricing.to(not_offered)
    nobody_answers = pricing.to(unavailable) | invoicing.to(unavailable)
    invoiced = (
        invoicing.to(price_changed, cond="price_differs", on="note_price")
        | invoicing.to(  # turtles: ignore[V005] the price is looked at first
            invoice_refused, unless="is_sane", on="note_insane"
        )
        | invoicing.to(  # turtles: ignore[V005] only a good invoice is timed
            expired_unpaid, unless="leaves_time", on="keep_invoice"
        )
        | invoicing.to(paying, on=["keep_invoice", "open_first_leg"])
    )
    declined = invoicing.to(invoice_refused)
    no_wallet = invoicing.to(wallet_refused)
    spent = (
        paying.to(confirming, cond="was_broadcast", on="leg_sent")
        | paying.to(settling, cond="was_conflicted", on="leg_dead")
        | paying.to(unfunded, cond="ran_short", on="leg_unsent")
        | paying.to(wallet_refused, cond="was_rejected", on="leg_unsent")
        | paying.to(expired_unpaid, on="leg_unsent")
    )
    followed = (
        confirming.to(settling, cond="became_deep", on="leg_deep")
        | confirming.to(  # turtles: ignore[V005] one end, one of both
            settling, cond="was_replaced", on="followed_leg_dead"
        )
        | confirming.to(unconfirmed, on="note_unconfirmed")
    )
    sank = settling.to(confirming)
    fell_short = settling.to(topping_up, cond="may_top_up", on="open_next_leg") | (
        settling.to(settling)
    )
    topped = (
        topping_up.to(confirming, cond="was_broadcast", on="leg_sent")
        | topping_up.to(settling, cond="was_conflicted", on="leg_dead")
        | topping_up.to(settling, on=["leg_unsent", "close_top_ups"])
    )
    issued = settling.to(key_stored) | late.to(key_stored) | expired_partial.to(key_stored)
    activated = settling.to(delivered) | late.to(delivered) | expired_partial.to(delivered)
    secret_gone = settling.to(secret_lost) | late.to(secret_lost) | expired_partial.to(secret_lost)
    ran_out = (
        settling.to(expired_unpaid, cond="sent_nothing")
        | settling.to(  # turtles: ignore[V005] who sent nothing gets nothing back
            expired_partial, cond="counted_in_part"
        )
        | settling.to(late)
    )
    overdue = settling.to(expired_unpaid, cond="sent_nothing") | settling.to(late)
    refunding = late.to(refund_pending) | expired_partial.to(refund_pending)
    no_settlement = late.to(unsettled) | expired_partial.to(unsettled) | secret_lost.to(unsettled)
    refund_seen = (
        refund_pending.to(refunded, cond="refund_is_exact")
        | refund_pending.to(refund_disputed, cond="refund_is_more")
        | refund_pending.to(refund_pending)
    )
    refund_overdue = refund_pending.to(refund_disputed)
    regenerated = secret_lost.to(key_stored)
    proven = key_stored.to(watching, cond="is_to_be_watched") | key_stored.to(completed)
    unproven = key_stored.to(watching, cond="is_to_be_watched") | key_stored.to(completed)
    test_overdue = key_stored.to(watching, cond="is_to_be_watched") | key_stored.to(completed)
    watched = watching.to(completed, cond="still_counts", on="leg_watched") | watching.to(
        completed_at_risk, on="leg_lost"
    )
    denied = key_stored.to(secret_lost, cond="another_secret_may_help") | key_stored.to(key_refused)

    # -- durations ------------------------------------------------------------------------------

    def poll(self, context: Purchase) -> int:
        return context.poll_ms

    def silence(self, context: Purchase) -> int:
        return context.silence_ms

    def until_expiry(self, context: Purchase, now_ms: int) -> int:
        """The portal decides about expiry; when it still says nothing, we begin to wonder."""
        left = context.invoice.expires_ms - now_ms if context.invoice else 0
        return max(left, 0) + GRACE_POLLS * context.poll_ms

    def settling_time(self, context: Purchase) -> int:
        return context.settle_ms

    def refund_time(self, context: Purchase) -> int:
        return context.refund_ms

    # -- children -------------------------------------------------------------------------------

    def order(self, context: Purchase) -> Child:
        """The spend of the leg that was opened last."""
        assert context.invoice is not None
        return Child(
            "Spend",
            {
                "currency": context.currency.value,
                "address": context.invoice.address,
                "amount_atomic": context.legs[-1].amount_atomic,
                "pay_by_ms": context.pay_by_ms,
                "confirmations": context.required,
                "poll_ms": context.poll_ms,
                "fee_atomic_max": fee_atomic_max(context),
                "passphrase": context.passphrase,
            },
        )

    def following(self, context: Purchase) -> Child:
        """The one leg that is on its way."""
        leg = next(leg for leg in context.legs if leg.status == "sent")
        return _confirmation(context, leg, required=context.required, depth=0)

    def following_on(self, context: Purchase) -> Child:
        """The leg that was sent last, from the depth at which it bought the key."""
        leg = context.to_watch
        assert leg is not None
        return _confirmation(context, leg, required=context.watch_to, depth=leg.depth)

    # -- guards ---------------------------------------------------------------------------------

    def affordable(self, context: Purchase, event: Priced) -> bool:
        return 0 < event.price_cents <= context.budget_cents

    def price_differs(self, context: Purchase, event: Invoiced) -> bool:
        return event.invoice.price_cents != context.price_cents

    def is_sane(self, context: Purchase, event: Invoiced) -> bool:
        """What the invoice asks for is what was ordered, in an amount we are ready to pay."""
        invoice, limit = event.invoice, context.amount_atomic_max
        return (
            (invoice.tier, invoice.months, invoice.currency)
            == (context.tier, context.months, context.currency)
            and invoice.amount_atomic > 0
            and (limit is None or invoice.amount_atomic <= limit)
            and invoice.address not in ("", event.refund_address)
        )

    def leaves_time(self, context: Purchase, event: Invoiced, now_ms: int) -> bool:
        return now_ms < pay_by_ms(context, event.invoice)

    def was_broadcast(self, event: Spent | Topped) -> bool:
        return event.state == "broadcast" and _transaction(event) is not None

    def was_conflicted(self, event: Spent | Topped) -> bool:
        return event.state == "conflicted"

    def ran_short(self, event: Spent) -> bool:
        return event.state == "unfunded"

    def was_rejected(self, event: Spent) -> bool:
        return event.state == "rejected"

    def became_deep(self, context: Purchase, event: Followed) -> bool:
        report = event.output
        return event.succeeded and report is not None and report.depth >= context.required

    def was_replaced(self, event: Followed) -> bool:
        return event.state == "replaced"

    def may_top_up(self, context: Purchase, event: FellShort, now_ms: int) -> bool:
        return top_up_allowed(context, event.received_atomic, now_ms)

    def sent_nothing(self, context: Purchase) -> bool:
        return context.pledged_atomic == 0

    def counted_in_part(self, context: Purchase, event: RanOut) -> bool:
        return 0 < event.received_atomic < context.due_atomic

    def refund_is_exact(self, context: Purchase, event: RefundSeen) -> bool:
        return event.refund_atomic == _refund_due(context)

    def refund_is_more(self, context: Purchase, event: RefundSeen) -> bool:
        return event.refund_atomic > _refund_due(context)

    def another_secret_may_help(self, context: Purchase, event: Denied) -> bool:
        wrong = event.reason in ("invalid_key", "invalid_signature")
        return wrong and context.generation < GENERATIONS_MAX

    def is_to_be_watched(self, context: Purchase) -> bool:
        return context.watch and context.to_watch is not None

    def still_counts(self, context: Purchase, event: Watched) -> bool:
        return _depth(event) >= context.required

    # -- actions --------------------------------------------------------------------------------

    def on_priced(self, context: Purchase, event: Priced) -> Purchase:
        return self.but(context, price_cents=event.price_cents)

    def on_no_such_quote(self, context: Purchase, event: NotOffered) -> Purchase:
        wanted = f"tier {context.tier} for {context.months} months"
        return self.but(context, reason=f"{wanted} is none of {event.offers} quotes")

    def note_price(self, context: Purchase, event: Invoiced) -> Purchase:
        asked = event.invoice.price_cents
        return self.but(context, reason=f"quoted {context.price_cents} cents, invoiced {asked}")

    def note_insane(self, context: Purchase, event: Invoiced) -> Purchase:
        invoice = event.invoice
        asked = f"{invoice.amount_atomic} {invoice.currency.value}"
        return self.but(
            context, reason=f"the invoice asks {asked} for tier {invoice.tier}: not as ordered"
        )

    def keep_invoice(self, context: Purchase, event: Invoiced) -> Purchase:
        return self.but(context, invoice=event.invoice, refund_address=event.refund_address)

    def open_first_leg(self, context: Purchase) -> Purchase:
        return _with_leg(context, context.due_atomic, received_atomic=0)

    def open_next_leg(self, context: Purchase, event: FellShort) -> Purchase:
        received = event.received_atomic
        counted = self.but(
            context,
            received_atomic=received,
            unmatched_atomic=context.pledged_atomic - received,
        )
        return _with_leg(
            counted,
            context.due_atomic - received,
            received_atomic=received,
            unmatched_before_atomic=context.unmatched_atomic,
        )

    def on_declined(self, context: Purchase, event: Declined) -> Purchase:
        return self.but(context, reason=event.reason)

    def on_no_wallet(self, context: Purchase, event: NoWallet) -> Purchase:
        return self.but(context, reason=event.reason)

    def leg_sent(self, context: Purchase, event: Spent | Topped, now_ms: int) -> Purchase:
        transaction = _transaction(event)
        assert transaction is not None
        sent = _with_last(
            context,
            status="sent",
            txid=transaction.txid,
            fee_atomic=transaction.fee_atomic,
            transaction=transaction,
        )
        return self.but(sent, sent_ms=now_ms)

    def leg_dead(self, context: Purchase, event: Spent | Topped) -> Purchase:
        dead = _with_last(context, status="dead", depth=0)
        return self.but(_as_before_last(dead), reason=_reason(event))

    def leg_unsent(self, context: Purchase, event: Spent | Topped) -> Purchase:
        unsent = _with_last(context, status="unsent")
        return self.but(_as_before_last(unsent), reason=_reason(event))

    def close_top_ups(self, context: Purchase) -> Purchase:
        return self.but(context, top_ups_closed=True)

    def leg_deep(self, context: Purchase, event: Followed) -> Purchase:
        depth = event.output.depth if event.output else 0
        return _with_followed(context, status="deep", depth=depth)

    def followed_leg_dead(self, context: Purchase, event: Followed) -> Purchase:
        dead = _with_followed(context, status="dead", depth=0)
        return dead if dead.legs[-1].live else _as_before_last(dead)

    def note_unconfirmed(self, context: Purchase, event: Followed) -> Purchase:
        return self.but(context, reason=f"following the payment ended as {event.state}")

    def on_sank(self, context: Purchase, event: SankAgain, now_ms: int) -> Purchase:
        legs = tuple(
            _leg(leg, status="sent", depth=event.confirmations)
            if leg.number == event.number
            else leg
            for leg in context.legs
        )
        return self.but(context, legs=legs, sent_ms=now_ms)

    def on_issued(self, context: Purchase, event: Issued) -> Purchase:
        return self.but(
            _counted(context, event.received_atomic),
            public_key=event.public_key,
            secret_key=event.secret_key,
        )

    def on_activated(self, context: Purchase, event: Activated) -> Purchase:
        return _counted(context, event.received_atomic)

    def on_secret_gone(self, context: Purchase, event: SecretGone) -> Purchase:
        return self.but(_counted(context, event.received_atomic), public_key=event.public_key)

    def on_ran_out(self, context: Purchase, event: RanOut) -> Purchase:
        return self.but(context, received_atomic=event.received_atomic)

    def on_refunding(self, context: Purchase, event: Refunding) -> Purchase:
        received = event.received_atomic
        return self.but(context, received_atomic=received, refund_base_atomic=received)

    def on_refund_seen(self, context: Purchase, event: RefundSeen) -> Purchase:
        return self.but(context, refund_atomic=event.refund_atomic)

    def on_regenerated(self, context: Purchase, event: Regenerated) -> Purchase:
        return self.but(
            context,
            public_key=event.public_key,
            secret_key=event.secret_key,
            generation=context.generation + 1,
        )

    def on_proven(self, context: Purchase) -> Purchase:
        return self.but(context, proven=True)

    def on_denied(self, context: Purchase, event: Denied) -> Purchase:
        return self.but(context, secret_key=None, reason=event.reason)

    def leg_watched(self, context: Purchase, event: Watched) -> Purchase:
        return self.but(_with_watched(context, depth=_depth(event)), reason=_doubt(event))

    def leg_lost(self, context: Purchase, event: Watched) -> Purchase:
        lost = _with_watched(context, status="lost", depth=_depth(event))
        return self.but(lost, reason=_doubt(event))

    def on_enter_watching(self, context: Purchase, now_ms: int) -> Purchase:
        return self.but(context, sent_ms=now_ms, reason="")

    def on_enter_completed(self, context: Purchase) -> Purchase:
        """From here on the key's secret is the only secret there is."""
        doubted = self.is_to_be_watched(context)  # it was, and is not as deep as it should be
        return _without_means(context, reason=context.reason if doubted else "")

    def on_enter_completed_at_risk(self, context: Purchase) -> Purchase:
        """Nothing can be paid any more, neither again nor instead."""
        return _without_means(context, reason=context.reason)

    def on_enter_delivered(self, context: Purchase) -> Purchase:
        """From here on there is no secret."""
        return _without_means(context)

    # -- contracts ------------------------------------------------------------------------------

    @invariant
    def one_leg_in_flight(self, context: Purchase) -> bool:
        return sum(leg.in_flight for leg in context.legs) <= 1

    @invariant
    def legs_within_due(self, context: Purchase) -> bool:
        """Beyond what the portal failed to count, never more than the invoice asks for."""
        return context.pledged_atomic - context.unmatched_atomic <= context.due_atomic

    @invariant
    def outflow_is_bounded(self, context: Purchase) -> bool:
        """Price, declared tolerance, and one capped network fee for each leg; nothing more."""
        fees = sum(leg.fee_atomic for leg in context.legs)
        return (
            context.pledged_atomic <= context.due_atomic + context.tolerance_atomic
            and fees <= len(context.legs) * fee_atomic_max(context)
        )

    @invariant
    def budget_is_respected(self, context: Purchase) -> bool:
        invoice = context.invoice
        return invoice is None or invoice.price_cents <= context.budget_cents

    @invariant
    def no_key_without_depth(self, context: Purchase) -> bool:
        return context.secret_key is None or context.all_deep

    @invariant
    def legs_are_different_transactions(self, context: Purchase) -> bool:
        sent = [leg.transaction for leg in context.legs if leg.live and leg.transaction]
        inputs = [one for transaction in sent for one in transaction.inputs]
        txids = [leg.txid for leg in context.legs if leg.txid is not None]
        return len(set(inputs)) == len(inputs) and len(set(txids)) == len(txids)

    @requires(issued, secret_gone, activated)
    def payment_is_deep(self, context: Purchase) -> bool:
        """Goods before the chain has the payment, deep enough and whole, are not taken."""
        return context.all_deep and _is_paid_exactly(context)

    @requires(activated)
    def card_was_ordered(self, context: Purchase) -> bool:
        """Whoever pays for a key is not content without."""
        return context.goods == "card"

    @requires(issued, secret_gone)
    def key_was_ordered(self, context: Purchase) -> bool:
        """A card's invoice gives no key."""
        return context.goods == "key"

    @requires(sank)
    def leg_is_ours(self, context: Purchase, event: SankAgain) -> bool:
        paying = [leg.number for leg in context.legs if leg.status == "deep"]
        return event.number in paying and 0 <= event.confirmations < context.required

    @requires(refunding)
    def something_comes_back(self, event: Refunding) -> bool:
        return event.received_atomic > 0

    @requires(fell_short, ran_out)
    def count_is_not_negative(self, event: FellShort | RanOut) -> bool:
        return event.received_atomic >= 0

    @ensures(spent, topped)
    def leg_paid_what_was_ordered(self, old: Purchase, new: Purchase) -> bool:
        """The transaction of the leg pays the invoice's address the leg's amount."""
        leg = new.legs[-1]
        paid = leg.transaction
        as_ordered = paid is None or (
            new.invoice is not None
            and paid.address == new.invoice.address
            and paid.amount_atomic == leg.amount_atomic
        )
        return as_ordered and len(new.legs) == len(old.legs) and leg.status != "open"

    @ensures(fell_short)
    def top_up_is_the_gap(self, old: Purchase, new: Purchase, event: FellShort) -> bool:
        opened = new.legs[len(old.legs) :]
        gap = new.due_atomic - event.received_atomic
        return all(leg.amount_atomic == gap for leg in opened) and len(opened) <= 1

    @ensures(watched)
    def watching_pays_nothing(self, old: Purchase, new: Purchase) -> bool:
        """No leg is opened, none is on its way, and the key stays what it is."""
        still = not any(leg.in_flight for leg in new.legs) and len(new.legs) == len(old.legs)
        return still and (new.public_key, new.secret_key) == (old.public_key, old.secret_key)

    @ensures(refunding, refund_seen)
    def refund_and_fee_are_the_payment(self, new: Purchase) -> bool:
        """I8 of payments.md: nothing is lost to rounding, and the fee is 9 % rounded up."""
        paid, fee = new.refund_base_atomic, restocking_fee_atomic(new.refund_base_atomic)
        return _refund_due(new) + fee == paid and 0 <= 100 * fee - 9 * paid < 100

    @ensures(issued, regenerated)
    def secret_is_kept(self, new: Purchase, event: Issued | Regenerated) -> bool:
        return new.secret_key == event.secret_key

    def is_settled_on_chain(self, context: Purchase) -> bool:
        """Nothing is in flight, and what pays is deep."""
        return context.all_deep and not any(leg.in_flight for leg in context.legs)

    def holds_no_secret(self, context: Purchase) -> bool:
        return context.secret_key is None

    def holds_the_secret(self, context: Purchase) -> bool:
        return context.secret_key is not None and context.public_key is not None

    def is_bought(self, context: Purchase) -> bool:
        """Paid to the unit, at depth, and the key's secret is the one secret that is kept."""
        return _is_paid_and_clean(context) and context.secret_key is not None

    def is_unpaid_for(self, context: Purchase) -> bool:
        """The key is kept, a leg that paid for it is lost, and nothing is left to pay with."""
        lost = any(leg.status == "lost" for leg in context.legs)
        return lost and _has_no_means(context) and self.holds_the_secret(context)

    def is_delivered(self, context: Purchase) -> bool:
        """Paid to the unit, at depth, for a card; no secret is kept."""
        return _is_paid_and_clean(context) and (context.goods, context.secret_key) == ("card", None)

    def is_paid_back(self, context: Purchase) -> bool:
        fee = restocking_fee_atomic(context.refund_base_atomic)
        return context.refund_atomic + fee == context.refund_base_atomic

    def paid_nothing(self, context: Purchase) -> bool:
        return context.pledged_atomic == 0

    def output(self, context: Purchase) -> Receipt | Delivery | None:
        if context.invoice is None:
            return None
        if context.goods == "card":
            return _delivery(context, context.invoice) if self.is_delivered(context) else None
        return _receipt(context, context.invoice)


def _delivery(context: Purchase, invoice: Invoice) -> Delivery:
    paying = [leg for leg in context.legs if leg.live]
    return Delivery(
        paid_cents=invoice.price_cents,
        paid_atomic=context.pledged_atomic,
        fee_atomic=sum(leg.fee_atomic for leg in paying),
        currency=context.currency,
        txids=tuple(leg.txid for leg in paying if leg.txid is not None),
        invoice_id=invoice.invoice_id,
    )


def _receipt(context: Purchase, invoice: Invoice) -> Receipt | None:
    if context.secret_key is None or context.public_key is None:
        return None
    cost = _delivery(context, invoice)
    return Receipt(
        public_key=context.public_key,
        secret_key=context.secret_key,
        paid_cents=cost.paid_cents,
        paid_atomic=cost.paid_atomic,
        fee_atomic=cost.fee_atomic,
        currency=cost.currency,
        txids=cost.txids,
        tier=invoice.tier,
        months=invoice.months,
        invoice_id=cost.invoice_id,
    )


def _is_paid_and_clean(context: Purchase) -> bool:
    return _is_paid_exactly(context) and context.all_deep and _has_no_means(context)


def _has_no_means(context: Purchase) -> bool:
    return context.passphrase is None and all(leg.transaction is None for leg in context.legs)


def _without_means(context: Purchase, *, reason: str = "") -> Purchase:
    """No more bytes and no passphrase: nothing is paid after this."""
    legs = tuple(_leg(leg, transaction=None) for leg in context.legs)
    return Payment.but(context, legs=legs, passphrase=None, reason=reason)


def _is_paid_exactly(context: Purchase) -> bool:
    paid = context.pledged_atomic - context.unmatched_atomic
    return context.due_atomic > 0 and paid == context.due_atomic


def _refund_due(context: Purchase) -> int:
    return context.refund_base_atomic - restocking_fee_atomic(context.refund_base_atomic)


def _transaction(event: Spent | Topped) -> SignedTransaction | None:
    return event.output.transaction if event.output else None


def _reason(event: Spent | Topped) -> str:
    return event.output.reason if event.output else f"the spend ended as {event.state}"


def _with_leg(
    context: Purchase,
    amount_atomic: int,
    *,
    received_atomic: int,
    unmatched_before_atomic: int = 0,
) -> Purchase:
    leg = Leg(
        number=len(context.legs) + 1,
        amount_atomic=amount_atomic,
        received_before_atomic=received_atomic,
        unmatched_before_atomic=unmatched_before_atomic,
    )
    return Payment.but(context, legs=(*context.legs, leg))


def _with_last(context: Purchase, **changes: object) -> Purchase:
    *earlier, last = context.legs
    return Payment.but(context, legs=(*earlier, _leg(last, **changes)))


def _as_before_last(context: Purchase) -> Purchase:
    """The last leg has come to nothing: what it was opened for is no longer missing for sure.

    Otherwise a portal that finds the missing units after all would deliver a key that nobody takes.
    """
    before = context.legs[-1].unmatched_before_atomic
    return Payment.but(context, unmatched_atomic=before)


def _with_followed(context: Purchase, **changes: object) -> Purchase:
    legs = tuple(_leg(leg, **changes) if leg.status == "sent" else leg for leg in context.legs)
    return Payment.but(context, legs=legs)


def _with_watched(context: Purchase, **changes: object) -> Purchase:
    watched = context.to_watch
    legs = tuple(_leg(leg, **changes) if leg is watched else leg for leg in context.legs)
    return Payment.but(context, legs=legs)


def _depth(event: Watched) -> int:
    return event.output.depth if event.output else 0


def _doubt(event: Watched) -> str:
    return f"watching the payment ended as {event.state}, {_depth(event)} deep"


def _confirmation(context: Purchase, leg: Leg, *, required: int, depth: int) -> Child:
    stall_ms = STALL_MS[context.currency] if context.stall_ms is None else context.stall_ms
    return Child(
        "Confirmation",
        {
            "currency": context.currency.value,
            "transaction": leg.transaction,
            "required": required,
            "poll_ms": context.poll_ms,
            "stall_ms": stall_ms,
            "since_ms": context.sent_ms,
            "give_up_ms": context.sent_ms + context.follow_ms,
            "passphrase": context.passphrase,
            "depth": depth,
            "depth_max": depth,
        },
    )


def _leg(leg: Leg, **changes: object) -> Leg:
    changed: Leg = msgspec.structs.replace(leg, **changes)
    return changed


def _counted(context: Purchase, received_atomic: int) -> Purchase:
    overpaid = max(received_atomic - context.due_atomic, 0)
    return Payment.but(context, received_atomic=received_atomic, overpaid_atomic=overpaid)
