"""Gift cards on both sides: what is ordered or redeemed, what has happened, and every event.

The machines are in `f03b_gift_card`, their calls to the outside in `gift_card_calls`.  Amounts are
US cents; durations are milliseconds.
"""

from __future__ import annotations

from typing import Literal

from engine.clock import hours
from engine.events import ChildEnded, Context, Event, GaveUp
from engine.secret import Secret
from machines.clients.ports import Currency, Invoice, Record
from machines.clients.ports.gift_cards import CardStanding, RedemptionStanding, Refusal
from machines.flows.money import POLL_MS

CARDS_MAX = 3
"""So many cards are ordered when the code of each is lost; then something is wrong."""

GENERATIONS_MAX = 3
"""So many new secrets that do not work mean that another will not either."""


# -- the purchaser ------------------------------------------------------------------------------


class CardOrder(Context):
    """A card to buy, with what; and what has happened so far.

    Args:
        budget_cents: a card that costs more is not bought.
        amount_atomic_max: an invoice that asks for more coin is not paid, whatever its cents say.
        require_approval: the portal asks at `email` before it gives a key for the card.
        watch: follow the card until it is used up; otherwise the run ends when it is paid.
        passphrase: opens the wallet; without it somebody else must.
        poll_ms: pause between two looks.
        silence_ms: how long portal and wallet may be silent before anything is paid.
        watch_ms: a card is followed so long.
        code: told once by the portal; whoever has it can spend the card.
        codes_lost: so many cards were ordered whose code nobody knows; none of them is paid.
        paid_cents: what was paid: nothing, or all that is on the card.
        balance_cents: what the portal last said is left; before, nobody asked.
    """

    amount_cents: int
    currency: Currency
    budget_cents: int
    amount_atomic_max: int | None = None
    require_approval: bool = False
    email: str = ""
    watch: bool = False
    passphrase: Secret[str] | None = None
    poll_ms: int = POLL_MS
    silence_ms: int = hours(1)
    watch_ms: int = hours(24 * 30)
    card_id: str = ""
    code: Secret[str] | None = None
    invoice: Invoice | None = None
    refund_address: str = ""
    codes_lost: int = 0
    paid_cents: int = 0
    txids: tuple[str, ...] = ()
    balance_cents: int | None = None
    reason: str = ""


class CardReceipt(Record):
    """A card that is paid, and what it cost."""

    card_id: str
    code: Secret[str]
    amount_cents: int
    paid_cents: int
    txids: tuple[str, ...]


class Limits(Event, tag="limits"):
    """For what amounts the portal makes cards."""

    minimum_cents: int
    maximum_cents: int


class CardMade(Event, tag="card_made"):
    """A card that nobody has paid yet, its code, and the address of ours for a refund."""

    card_id: str
    code: Secret[str]
    amount_cents: int
    invoice: Invoice
    refund_address: str


class CodeGone(Event, tag="code_gone"):
    """There is a card, but its code was told in a reply that nobody got."""

    card_id: str


class CardPayment(Record):
    """What a finished Payment reports, as far as a card needs it."""

    paid_cents: int
    txids: tuple[str, ...]


class Paid(ChildEnded, tag="paid"):
    """How paying for the card ended."""

    output: CardPayment | None = None


class CardSeen(Event, tag="seen"):
    """The card as the portal shows it to its buyer."""

    standing: CardStanding
    balance_cents: int
    taken_cents: int
    pending: int


# -- the agent ----------------------------------------------------------------------------------


class CardClaim(Context):
    """A key to get for a card; and what has happened so far.

    Args:
        budget_cents: a dearer key is not asked for.
        redemption_key: the idempotency key to redeem with; empty: the run's own.  Whoever gives
            the same key gets the same redemption, paid once, and a new secret for its key.
        card_id: where it is known, the balance is looked at before anything is asked for.
        poll_ms: pause between two looks while the buyer is asked.
        approval_ms: how long the buyer may take.
        settle_ms: how long the portal may take to give a new secret, or the platform to answer.
        silence_ms: how long the portal may be silent before and while the card is redeemed.
        taken_cents: what has left the card for this key.
        balance_cents: what the portal last said is left on the card.
        generation: how many secrets were asked for after the first.
    """

    code: Secret[str]
    tier: int
    months: int
    budget_cents: int
    redemption_key: str = ""
    card_id: str = ""
    poll_ms: int = POLL_MS
    approval_ms: int = hours(72)
    settle_ms: int = hours(24)
    silence_ms: int = hours(1)
    price_cents: int = 0
    taken_cents: int = 0
    balance_cents: int | None = None
    redemption_id: str = ""
    public_key: str | None = None
    secret_key: Secret[str] | None = None
    generation: int = 0
    proven: bool = False
    reason: str = ""


class Redeemed(Record):
    """The key that a card bought, and what is left on the card."""

    public_key: str
    secret_key: Secret[str]
    paid_cents: int
    balance_cents: int
    redemption_id: str


class Weighed(Event, tag="weighed"):
    """What the key costs, what is on the card if that can be known, and the key to redeem with."""

    price_cents: int
    balance_cents: int | None
    redemption_key: str


class CardTurnedAway(Event, tag="turned_away"):
    """The card does not buy this; nothing was taken."""

    why: Refusal
    detail: str
    balance_cents: int | None = None


class Taken(Event, tag="taken"):
    """The price has left the card, or had left it before and was denied.

    `secret_key` is None when it was told before, or the buyer has yet to approve.
    """

    redemption_id: str
    standing: RedemptionStanding
    price_cents: int
    balance_cents: int
    public_key: str | None = None
    secret_key: Secret[str] | None = None


class Decided(Event, tag="decided"):
    """What the buyer said: `redeemed` with the key, or `denied` with the price back on the card."""

    standing: Literal["redeemed", "denied"]
    balance_cents: int
    public_key: str | None = None
    secret_key: Secret[str] | None = None


class NewSecret(Event, tag="new_secret"):
    """A new secret; every older one is dead."""

    public_key: str
    secret_key: Secret[str]


class KeyRefused(Event, tag="key_denied"):
    """The platform does not accept the key."""

    reason: str


class KeyUntested(GaveUp, tag="untested"):
    """The platform did not answer; the key is stored, and its first use will tell."""
