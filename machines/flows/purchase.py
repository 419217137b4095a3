"""A purchase: what is wanted, what has happened so far, and every event that may move it.

The machine is in `f03_payment`, its calls to the outside in `purchase_calls`.  Amounts are atomic
units of the coin (`_atomic`) or US cents (`_cents`); moments and durations are milliseconds.
"""

from __future__ import annotations

from typing import Literal

from engine.clock import hours
from engine.events import ChildEnded, Context, Event, GaveUp
from engine.secret import Secret
from machines.clients.ports import Currency, Invoice, Record, SignedTransaction
from machines.flows.money import CUT_MS, FEE_ATOMIC_MAX, POLL_MS, Leg


class Purchase(Context):
    """What to buy, with what, for how much; and what has happened so far.

    A key is ordered by `tier` and `months`.  A card has been ordered by the parent, who gives the
    portal's `offer`, the `price_cents` it agreed to and its own `refund_address`; tier and months
    are 0 then, as they are in the offer.

    Args:
        goods: what a completed invoice gives: a key with its secret, or a card that works from
            then on and of which nothing is left to be told.
        offer: the invoice to pay; None: one is opened.
        budget_cents: a dearer key is not bought.
        amount_atomic_max: an invoice that asks for more coin is not paid, whatever its cents say.
        tolerance_percent: how much of the amount due may be sent on top when the portal counts
            less than it was sent.
        passphrase: opens the wallet; without it somebody else must.
        poll_ms: pause between two looks at wallet, chain and portal.
        cut_ms: no first broadcast later than this before expiry; by default the coin's.
        stall_ms: no new confirmation for so long is a stall; by default the coin's.
        follow_ms: a payment is followed so long before a person must look.
        settle_ms: how long the portal may take to answer once the invoice has expired.
        refund_ms: how long a refund may take to arrive, deep enough.
        silence_ms: how long portal and wallet may be silent before anything is paid.
        fee_atomic_max: the most one leg may cost in network fees; by default the coin's.
        watch: once the key is proven, what paid for it is followed to twice the depth that counts.
            A card is not watched.
        received_atomic: what the portal last said it had counted.
        unmatched_atomic: what is deep in the chain and not counted by the portal, when the last
            leg was opened (negative: counted, but not from us).
        sent_ms: when the payment that is being followed was handed out, or began to be doubted or
            watched.
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
    poll_ms: int = POLL_MS
    cut_ms: int | None = None
    stall_ms: int | None = None
    follow_ms: int = hours(72)
    settle_ms: int = hours(24)
    refund_ms: int = hours(72)
    silence_ms: int = hours(1)
    fee_atomic_max: int | None = None
    watch: bool = False
    goods: Literal["key", "card"] = "key"
    offer: Invoice | None = None
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
    def watch_to(self) -> int:
        """The depth at which a payment is watched no more (payments.md: W = 2 N)."""
        return 2 * self.required

    @property
    def to_watch(self) -> Leg | None:
        """The last leg that pays, if it is not yet that deep.

        Any earlier one was as deep as counts before this one was opened: it is that deep.
        """
        paying = [leg for leg in self.legs if leg.live]
        return paying[-1] if paying and paying[-1].depth < self.watch_to else None

    @property
    def pay_by_ms(self) -> int:
        """No first broadcast at or after this moment."""
        return pay_by_ms(self, self.invoice) if self.invoice else 0

    @property
    def tolerance_atomic(self) -> int:
        """What may be sent beyond the amount due."""
        return self.due_atomic * self.tolerance_percent // 100

    @property
    def all_deep(self) -> bool:
        """Every leg that pays is at the required depth."""
        return all(leg.depth >= self.required for leg in self.legs if leg.live)


def pay_by_ms(context: Purchase, invoice: Invoice) -> int:
    """The moment from which on nothing is broadcast for an invoice for the first time."""
    cut_ms = CUT_MS[context.currency] if context.cut_ms is None else context.cut_ms
    return invoice.expires_ms - cut_ms


def fee_atomic_max(context: Purchase) -> int:
    """The most that one leg may cost in network fees."""
    if context.fee_atomic_max is not None:
        return context.fee_atomic_max
    return FEE_ATOMIC_MAX[context.currency]


class SpendResult(Record):
    """What a finished Spend reports, as far as a purchase needs it."""

    transaction: SignedTransaction | None
    reason: str


class FollowResult(Record):
    """What a finished Confirmation reports, as far as a purchase needs it."""

    depth: int


class Receipt(Record, tag="key"):
    """What was bought, and what it cost; the coins and txids are those that still stand."""

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


class Delivery(Record, tag="card"):
    """What paying for a card cost."""

    paid_cents: int
    paid_atomic: int
    fee_atomic: int
    currency: Currency
    txids: tuple[str, ...]
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

    output: SpendResult | None = None


class Topped(ChildEnded, tag="topped"):
    """How a further leg ended."""

    output: SpendResult | None = None


class Followed(ChildEnded, tag="followed"):
    """How following a leg ended."""

    output: FollowResult | None = None


class Watched(ChildEnded, tag="watched"):
    """How watching the leg ended that had bought the key."""

    output: FollowResult | None = None


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


class Activated(Event, tag="activated"):
    """The invoice is completed and gave what was ordered: the card works."""

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
