"""Flow 3: buy a key with one of four coins.

::

    pricing ── priced ──► invoicing ── invoiced ──► paying ── spent ──► confirming ◄──────────┐
       │                      │                       │ (child Spend)      │ (child Confirmation)
       ├► over_budget         ├► price_changed        ├► unfunded          ├► unconfirmed     │ sank,
       ├► not_offered         ├► invoice_refused      ├► wallet_refused    │ followed         │ topped
       └► unavailable         ├► unavailable          ├► expired_unpaid    ▼                  │
                              └► expired_unpaid       └─ double-spent ─► settling ── fell_short ──► topping_up
                                                                          │   │  ◄─ not topped ──  (child Spend)
                              completed ◄── key_stored ◄──── issued ──────┘   │
                                               ▲   │                          │ ran_out, overdue
                                 regenerated   │   ▼ denied                   ▼
                                              secret_lost ◄── gone ──  expired_partial, late
                                                                              │ refunding
                            unsettled ◄── settle_ms ──────────────────────────┤
                            refund_disputed ◄── refund_ms ── refund_pending ◄─┘ ──► refunded

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

Money at the end: `completed` paid what was due, exactly; `refunded` got back 91 % (the fee is
rounded up, to the unit), seen in our own wallet at our own address.

Source: payments.md 4.2 and 5, platform-api.md 14, 15, 18.
"""

from __future__ import annotations

import msgspec

from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.effects import Again, Call, effect
from engine.errors import Transient
from engine.events import ChildEnded, Context, Event, GaveUp
from engine.retry import Retry
from engine.secrets import Secret
from engine.table import Child
from machines.clients.ports import (
    Credentials,
    Currency,
    Invoice,
    KeyInfo,
    NotFound,
    PaymentStatus,
    Platform,
    Record,
    Rejected,
    SignedTransaction,
    Unauthorized,
    Wallet,
    WalletLocked,
)
from machines.flows.f03c_confirmation import Following, FollowReport
from machines.flows.f03w_wallet import SpendOrder, SpendReport
from machines.flows.money import (
    FEE_ATOMIC_MAX,
    LEGS_MAX,
    PATIENT,
    UNLOCK_SECONDS,
    Leg,
    Times,
    Wallets,
    asking,
    platform_of,
    portal_of,
    restocking_fee_atomic,
    times_of,
    watching,
)

GENERATIONS_MAX = 3
"""So many new secrets that do not work mean that another will not either."""


class Purchase(Context):
    """What to buy, with what, for how much; and what has happened so far.

    Args:
        budget_cents: a dearer key is not bought.
        amount_atomic_max: an invoice that asks for more coin is not paid, whatever its cents say.
        tolerance_percent: how much of the amount due may be sent on top when the portal counts
            less than it was sent.
        passphrase: opens the wallet; without it somebody else must.
        times: how long things take; by default the coin's own times.
        fee_atomic_max: the most one leg may cost in network fees; by default the coin's.
        received_atomic: what the portal last said it had counted.
        unmatched_atomic: what is deep in the chain and not counted by the portal, when the last
            leg was opened (negative: counted, but not from us).
        sent_ms: when the payment that is being followed was handed out, or began to be doubted.
        refund_base_atomic: what the refund is computed from: `received_atomic` at that time.
        generation: how many secrets were asked for after the first.
    """

    tier: int
    months: int
    currency: Currency
    budget_cents: int
    amount_atomic_max: int | None = None
    tolerance_percent: int = 10
    passphrase: Secret[str] | None = None
    times: Times | None = None
    fee_atomic_max: int | None = None
    price_cents: int = 0
    invoice: Invoice | None = None
    refund_address: str = ""
    legs: tuple[Leg, ...] = ()
    received_atomic: int = 0
    unmatched_atomic: int = 0
    overpaid_atomic: int = 0
    top_ups_closed: bool = False
    sent_ms: int = 0
    refund_base_atomic: int = 0
    refund_atomic: int = 0
    public_key: str | None = None
    secret_key: Secret[str] | None = None
    generation: int = 0
    proven: bool = False
    reason: str = ""

    @property
    def due_atomic(self) -> int:
        """What the invoice asks for; 0 before there is one."""
        return self.invoice.amount_atomic if self.invoice else 0

    @property
    def pledged_atomic(self) -> int:
        """What was sent, or may still be: every leg that is not dead or unsent."""
        return sum(leg.amount_atomic for leg in self.legs if leg.live)

    @property
    def required(self) -> int:
        """The depth at which a payment counts: the coin's, or the invoice's if that is more."""
        asked = self.invoice.confirmations_required if self.invoice else 0
        return max(self.currency.confirmations, asked)

    @property
    def pace(self) -> Times:
        """How long things take."""
        return self.times or times_of(self.currency)

    @property
    def pay_by_ms(self) -> int:
        """No first broadcast at or after this moment."""
        return self.invoice.expires_ms - self.pace.cut_ms if self.invoice else 0

    @property
    def tolerance_atomic(self) -> int:
        """What may be sent beyond the amount due."""
        return self.due_atomic * self.tolerance_percent // 100

    @property
    def all_deep(self) -> bool:
        """Every leg that pays is at the required depth."""
        return all(leg.depth >= self.required for leg in self.legs if leg.live)


class Receipt(Record):
    """What was bought, and what it cost."""

    public_key: str
    secret_key: Secret[str]
    paid_cents: int
    paid_atomic: int
    fee_atomic: int
    currency: Currency
    txids: tuple[str, ...]
    tier: int
    months: int
    invoice_id: str


class Priced(Event, tag="priced"):
    """The portal's price for the tier and duration wanted."""

    price_cents: int


class NotOffered(Event, tag="no_such_quote"):
    """The portal sells no such tier and duration."""

    offers: int


class Invoiced(Event, tag="invoiced"):
    """What to pay, and the address of ours that a refund would go to."""

    invoice: Invoice
    refund_address: str


class Declined(Event, tag="declined"):
    """The portal will not open this invoice."""

    reason: str


class NoWallet(GaveUp, tag="no_wallet"):
    """There is no wallet to pay with."""


class Spent(ChildEnded, tag="spent"):
    """How the first leg ended."""

    output: SpendReport | None = None


class Topped(ChildEnded, tag="topped"):
    """How a further leg ended."""

    output: SpendReport | None = None


class Followed(ChildEnded, tag="followed"):
    """How following a leg ended."""

    output: FollowReport | None = None


class SankAgain(Event, tag="sank"):
    """A leg that was deep enough no longer is."""

    number: int
    confirmations: int


class Issued(Event, tag="issued"):
    """The key, with its secret: shown this once."""

    public_key: str
    secret_key: Secret[str]
    received_atomic: int


class SecretGone(Event, tag="secret_gone"):
    """The key exists, but its secret was shown before, and nobody here has it."""

    public_key: str | None
    received_atomic: int


class FellShort(Event, tag="fell_short"):
    """The portal counts less than is due, and there is time to send the rest."""

    received_atomic: int


class RanOut(Event, tag="ran_out"):
    """The invoice has expired at the portal."""

    received_atomic: int


class Refunding(Event, tag="refunding"):
    """The portal sends the money back, less its fee."""

    received_atomic: int


class RefundSeen(Event, tag="refund_seen"):
    """What has arrived at our refund address, deep enough."""

    refund_atomic: int


class Regenerated(Event, tag="regenerated"):
    """A new secret; every older one is dead."""

    public_key: str
    secret_key: Secret[str]


class Proven(Event, tag="proven"):
    """The platform accepts a signature made with the secret."""

    tier: int


class Denied(Event, tag="denied"):
    """The platform does not accept the key."""

    reason: str


class Unproven(GaveUp, tag="unproven"):
    """The platform did not answer; the key is stored, and its first use will tell."""


@effect(idempotent=True, retry=PATIENT)
async def fetch_price(context: Purchase, call: Call) -> Priced | NotOffered:
    """The price of one tier and duration."""
    with watching("pricing"):
        quotes = await portal_of(call).quotes()
    for quote in quotes:
        if (quote.tier, quote.months) == (context.tier, context.months):
            return Priced(price_cents=quote.price_cents)
    return NotOffered(offers=len(quotes))


@effect(idempotent=True, retry=PATIENT)  # the same key gives the same invoice
async def open_invoice(context: Purchase, call: Call) -> Invoiced | Declined:
    """Open an invoice that would be refunded to a fresh address of our own wallet."""
    wallet = call.resource(Wallets)[context.currency]
    refund_address = await _refund_address(wallet, context, f"refund-{call.key}")
    with asking("invoice"):
        try:
            invoice = await portal_of(call).create_invoice(
                tier=context.tier,
                months=context.months,
                currency=context.currency,
                refund_address=refund_address,
                key=call.key,
            )
        except (Rejected, NotFound, Unauthorized) as error:
            return Declined(reason=str(error))
    return Invoiced(invoice=invoice, refund_address=refund_address)


async def _refund_address(wallet: Wallet, context: Purchase, label: str) -> str:
    with watching("refund address"):
        try:
            return await wallet.new_address(label)
        except WalletLocked:
            if context.passphrase is None:
                raise
            await wallet.unlock(context.passphrase, seconds=UNLOCK_SECONDS)
            return await wallet.new_address(label)


Settlement = Issued | SecretGone | FellShort | RanOut


# Reading twice is not the same as reading once, hence not `idempotent`; but a lost secret is asked
# for anew, so the way to find out what a lost reply said is to read again.
@effect(retry=PATIENT)
async def claim(context: Purchase, call: Call) -> Settlement | SankAgain | Again:
    """Check the depth at our own node, then read the portal's status."""
    sunk = await _sunk(context, call)
    if sunk is not None:
        return sunk
    return _settlement(context, await _status(context, call), call.now_ms) or Again()


@claim.reconcile
async def claim_again(context: Purchase, call: Call) -> Settlement | SankAgain | Again:
    """The same read."""
    return await claim.perform(context, call)  # type: ignore[return-value]


@effect(retry=PATIENT)
async def claim_after_expiry(
    context: Purchase, call: Call
) -> Issued | SecretGone | Refunding | Again:
    """Read the status of an invoice that has expired with our money in it."""
    status = await _status(context, call)
    key = _key(status)
    if key is not None:
        return key
    if status.status in ("refund_pending", "refunded") and status.received_atomic > 0:
        return Refunding(received_atomic=status.received_atomic)
    return Again()


@claim_after_expiry.reconcile
async def claim_after_expiry_again(
    context: Purchase, call: Call
) -> Issued | SecretGone | Refunding | Again:
    """The same read."""
    return await claim_after_expiry.perform(context, call)  # type: ignore[return-value]


async def _sunk(context: Purchase, call: Call) -> SankAgain | None:
    wallet = call.resource(Wallets)[context.currency]
    for leg in context.legs:
        if leg.live and leg.transaction is not None:
            with watching("look"):
                sighting = await wallet.look(leg.transaction)
            depth = sighting.confirmations if sighting.where == "mined" else 0
            if depth < context.required:
                return SankAgain(number=leg.number, confirmations=depth)
    return None


async def _status(context: Purchase, call: Call) -> PaymentStatus:
    if context.invoice is None:
        raise Transient("status: no invoice in the context")
    with watching("status"):
        return await portal_of(call).payment_status(context.invoice.invoice_id)


def _key(status: PaymentStatus) -> Issued | SecretGone | None:
    if status.status != "completed":
        return None
    received = status.received_atomic
    if status.secret_key is None or status.public_key is None:
        return SecretGone(public_key=status.public_key, received_atomic=received)
    return Issued(
        public_key=status.public_key, secret_key=status.secret_key, received_atomic=received
    )


def _settlement(context: Purchase, status: PaymentStatus, now_ms: int) -> Settlement | None:
    """What a status means while the invoice may still be paid; None for nothing.  Pure."""
    key = _key(status)
    if key is not None:
        return key
    received = status.received_atomic
    if status.status in ("expired", "refund_pending", "refunded"):
        return RanOut(received_atomic=received)
    short = status.status in ("pending", "partial")
    if short and top_up_allowed(context, received, now_ms):
        return FellShort(received_atomic=received)
    return None


def top_up_allowed(context: Purchase, received_atomic: int, now_ms: int) -> bool:
    """Whether another leg may be opened for what the portal does not count.  Pure.

    Never for money that is on its way, and never twice for the same count: a portal that has not
    yet noticed a leg looks like one that was paid too little.
    """
    gap = context.due_atomic - received_atomic
    last = context.legs[-1] if context.legs else None
    answered = (
        last is None or last.status == "dead" or received_atomic > last.received_before_atomic
    )
    return (
        not context.top_ups_closed
        and now_ms < context.pay_by_ms
        and len(context.legs) < LEGS_MAX
        and not any(leg.in_flight for leg in context.legs)
        and answered
        and gap > 0
        and context.pledged_atomic + gap <= context.due_atomic + context.tolerance_atomic
    )


@effect(idempotent=True, retry=PATIENT)  # only the newest secret lives
async def regenerate(context: Purchase, call: Call) -> Regenerated:
    """Ask for a new secret; free of charge."""
    if context.invoice is None:
        raise Transient("regenerate: no invoice in the context")
    with watching("regenerate"):
        made = await portal_of(call).regenerate_secret(context.invoice.invoice_id)
    return Regenerated(public_key=made.public_key, secret_key=made.secret_key)


@effect(idempotent=True, retry=Retry(attempts=8, max_ms=15_000))
async def prove_key(context: Purchase, call: Call) -> Proven | Denied:
    """Sign one call with the stored secret.  Our clock may be wrong: then by the server's."""
    if context.public_key is None or context.secret_key is None:
        return Denied(reason="no secret is stored")
    credentials = Credentials(public_key=context.public_key, secret_key=context.secret_key)
    with asking("key test"):
        try:
            known = await _validated(platform_of(call), credentials, call.now_ms)
        except Unauthorized as error:
            return Denied(reason=error.reason)
        except (Rejected, NotFound) as error:
            raise Transient(f"key test: {error}") from error
    return Proven(tier=known.tier) if known.valid else Denied(reason=known.reason or "not valid")


async def _validated(platform: Platform, credentials: Credentials, now_ms: int) -> KeyInfo:
    try:
        return await platform.validate_key(credentials)
    except Unauthorized as error:
        if error.reason != "invalid_timestamp" or error.server_ms is None:
            raise
        offset_ms = error.server_ms - now_ms
        return await platform.validate_key(credentials, offset_ms=offset_ms)


@effect(idempotent=True, retry=PATIENT)
async def watch_refund(context: Purchase, call: Call) -> RefundSeen | Again:
    """Look at our own address, at the depth that counts."""
    with watching("refund"):
        arrived = await call.resource(Wallets)[context.currency].received_atomic(
            context.refund_address, confirmations=context.required
        )
    return Again() if arrived == context.refund_atomic else RefundSeen(refund_atomic=arrived)


class Payment(Machine[Purchase]):
    """Buy one key: price, invoice, pay once, wait, keep the secret."""

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
    completed = State(final=True, invariant="is_bought")
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

    priced = pricing.to(invoicing, cond="affordable") | pricing.to(over_budget)
    no_such_quote = pricing.to(not_offered)
    nobody_answers = pricing.to(unavailable) | invoicing.to(unavailable)
    invoiced = (
        invoicing.to(price_changed, cond="price_differs", on="note_price")
        | invoicing.to(invoice_refused, unless="is_sane", on="note_insane")
        | invoicing.to(expired_unpaid, unless="leaves_time", on="keep_invoice")
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
        | confirming.to(settling, cond="was_replaced", on="followed_leg_dead")
        | confirming.to(unconfirmed, on="note_unconfirmed")
    )
    sank = settling.to(confirming)
    fell_short = settling.to(topping_up, cond="may_top_up", on="open_next_leg") | (
        settling.to.itself()
    )
    topped = (
        topping_up.to(confirming, cond="was_broadcast", on="leg_sent")
        | topping_up.to(settling, cond="was_conflicted", on="leg_dead")
        | topping_up.to(settling, on=["leg_unsent", "close_top_ups"])
    )
    issued = settling.to(key_stored) | late.to(key_stored) | expired_partial.to(key_stored)
    secret_gone = settling.to(secret_lost) | late.to(secret_lost) | expired_partial.to(secret_lost)
    ran_out = (
        settling.to(expired_unpaid, cond="sent_nothing")
        | settling.to(expired_partial, cond="counted_in_part")
        | settling.to(late)
    )
    overdue = settling.to(expired_unpaid, cond="sent_nothing") | settling.to(late)
    refunding = late.to(refund_pending) | expired_partial.to(refund_pending)
    no_settlement = (
        late.to(unsettled) | expired_partial.to(unsettled) | secret_lost.to(unsettled)
    )
    refund_seen = (
        refund_pending.to(refunded, cond="refund_is_exact")
        | refund_pending.to(refund_disputed, cond="refund_is_more")
        | refund_pending.to.itself()
    )
    refund_overdue = refund_pending.to(refund_disputed)
    regenerated = secret_lost.to(key_stored)
    proven = key_stored.to(completed)
    unproven = key_stored.to(completed)
    test_overdue = key_stored.to(completed)
    denied = key_stored.to(secret_lost, cond="another_secret_may_help") | key_stored.to(key_refused)

    # -- durations ------------------------------------------------------------------------------

    def poll(self, context: Purchase) -> int:
        return context.pace.poll_ms

    def silence(self, context: Purchase) -> int:
        return context.pace.silence_ms

    def until_expiry(self, context: Purchase, now_ms: int) -> int:
        """The portal decides about expiry; when it says nothing, we begin to wonder."""
        left = context.invoice.expires_ms - now_ms if context.invoice else 0
        return max(left, 3 * context.pace.poll_ms)

    def settling_time(self, context: Purchase) -> int:
        return context.pace.settle_ms

    def refund_time(self, context: Purchase) -> int:
        return context.pace.refund_ms

    # -- children -------------------------------------------------------------------------------

    def order(self, context: Purchase) -> Child:
        """The spend of the leg that was opened last."""
        leg = context.legs[-1]
        return Child(
            machine="Spend",
            context=SpendOrder(
                currency=context.currency,
                address=context.invoice.address if context.invoice else "",
                amount_atomic=leg.amount_atomic,
                pay_by_ms=context.pay_by_ms,
                confirmations=context.required,
                poll_ms=context.pace.poll_ms,
                fee_atomic_max=_fee_atomic_max(context),
                passphrase=context.passphrase,
            ),
        )

    def following(self, context: Purchase) -> Child:
        """The one leg that is on its way."""
        leg = next(leg for leg in context.legs if leg.status == "sent")
        assert leg.transaction is not None
        return Child(
            machine="Confirmation",
            context=Following(
                currency=context.currency,
                transaction=leg.transaction,
                required=context.required,
                poll_ms=context.pace.poll_ms,
                stall_ms=context.pace.stall_ms,
                since_ms=context.sent_ms,
                give_up_ms=context.sent_ms + context.pace.follow_ms,
                passphrase=context.passphrase,
            ),
        )

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
        return now_ms < event.invoice.expires_ms - context.pace.cut_ms

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
        return _with_leg(counted, context.due_atomic - received, received_atomic=received)

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
        return self.but(_with_last(context, status="dead", depth=0), reason=_reason(event))

    def leg_unsent(self, context: Purchase, event: Spent | Topped) -> Purchase:
        return self.but(_with_last(context, status="unsent"), reason=_reason(event))

    def close_top_ups(self, context: Purchase) -> Purchase:
        return self.but(context, top_ups_closed=True)

    def leg_deep(self, context: Purchase, event: Followed) -> Purchase:
        depth = event.output.depth if event.output else 0
        return _with_followed(context, status="deep", depth=depth)

    def followed_leg_dead(self, context: Purchase, event: Followed) -> Purchase:
        return _with_followed(context, status="dead", depth=0)

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

    def on_enter_completed(self, context: Purchase) -> Purchase:
        """From here on the key's secret is the only secret there is."""
        legs = tuple(_leg(leg, transaction=None) for leg in context.legs)
        return self.but(context, legs=legs, passphrase=None, reason="")

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
            and fees <= len(context.legs) * _fee_atomic_max(context)
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

    @requires(issued, secret_gone)
    def payment_is_deep(self, context: Purchase) -> bool:
        """A key before the chain has the payment, deep enough and whole, is not taken."""
        return context.all_deep and _is_paid_exactly(context)

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
        return as_ordered and len(new.legs) == len(old.legs) and not leg.status == "open"

    @ensures(fell_short)
    def top_up_is_the_gap(self, old: Purchase, new: Purchase, event: FellShort) -> bool:
        opened = new.legs[len(old.legs) :]
        gap = new.due_atomic - event.received_atomic
        return all(leg.amount_atomic == gap for leg in opened) and len(opened) <= 1

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
        return (
            _is_paid_exactly(context)
            and context.all_deep
            and context.secret_key is not None
            and context.passphrase is None
            and all(leg.transaction is None for leg in context.legs)
        )

    def is_paid_back(self, context: Purchase) -> bool:
        fee = restocking_fee_atomic(context.refund_base_atomic)
        return context.refund_atomic + fee == context.refund_base_atomic

    def paid_nothing(self, context: Purchase) -> bool:
        return context.pledged_atomic == 0

    def output(self, context: Purchase) -> Receipt | None:
        invoice = context.invoice
        if invoice is None or context.secret_key is None or context.public_key is None:
            return None
        paying = [leg for leg in context.legs if leg.live]
        return Receipt(
            public_key=context.public_key,
            secret_key=context.secret_key,
            paid_cents=invoice.price_cents,
            paid_atomic=context.pledged_atomic,
            fee_atomic=sum(leg.fee_atomic for leg in paying),
            currency=context.currency,
            txids=tuple(leg.txid for leg in paying if leg.txid is not None),
            tier=invoice.tier,
            months=invoice.months,
            invoice_id=invoice.invoice_id,
        )


def _fee_atomic_max(context: Purchase) -> int:
    if context.fee_atomic_max is not None:
        return context.fee_atomic_max
    return FEE_ATOMIC_MAX[context.currency]


def _is_paid_exactly(context: Purchase) -> bool:
    paid = context.pledged_atomic - context.unmatched_atomic
    return context.due_atomic > 0 and paid == context.due_atomic


def _refund_due(context: Purchase) -> int:
    return context.refund_base_atomic - restocking_fee_atomic(context.refund_base_atomic)


def _transaction(event: Spent | Topped) -> SignedTransaction | None:
    return event.output.transaction if event.output else None


def _reason(event: Spent | Topped) -> str:
    return event.output.reason if event.output else f"the spend ended as {event.state}"


def _with_leg(context: Purchase, amount_atomic: int, *, received_atomic: int) -> Purchase:
    leg = Leg(
        number=len(context.legs) + 1,
        amount_atomic=amount_atomic,
        received_before_atomic=received_atomic,
    )
    return Payment.but(context, legs=(*context.legs, leg))


def _with_last(context: Purchase, **changes: object) -> Purchase:
    *earlier, last = context.legs
    return Payment.but(context, legs=(*earlier, _leg(last, **changes)))


def _with_followed(context: Purchase, **changes: object) -> Purchase:
    legs = tuple(_leg(leg, **changes) if leg.status == "sent" else leg for leg in context.legs)
    return Payment.but(context, legs=legs)


def _leg(leg: Leg, **changes: object) -> Leg:
    changed: Leg = msgspec.structs.replace(leg, **changes)
    return changed


def _counted(context: Purchase, received_atomic: int) -> Purchase:
    overpaid = max(received_atomic - context.due_atomic, 0)
    return Payment.but(context, received_atomic=received_atomic, overpaid_atomic=overpaid)
