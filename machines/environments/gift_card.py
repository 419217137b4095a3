"""What portal, payment and buyer may do to a gift card; `turtles verify GiftCard Redemption`.

Cards of two cents, keys of one.  The portal tells a code once and a secret once, so every answer
that holds one may also come without; it is honest about money, but for one sum that does not add
up and one price that is not the one it named.  Payment is a stand-in made below, that knows
only the ends which its parent tells apart.

A short pause and one long duration, as in `payment`: the explorer tells moments apart by what is
left until then.  Odd answers come at once or never; who asks again later gets the usual ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from engine.definition import Machine, State
from engine.secret import Secret
from engine.verification.environment import Done, Environment, always, ends, payloads, sometimes
from engine.verification.result import Scope
from machines.clients.ports import Currency, Invoice
from machines.environments.payment import keys_of
from machines.flows.f03b_gift_card import GiftCard, Redemption
from machines.flows.gift_card import (
    CARDS_MAX,
    GENERATIONS_MAX,
    CardClaim,
    CardMade,
    CardOrder,
    CardSeen,
    CardTurnedAway,
    CodeGone,
    Decided,
    KeyRefused,
    Limits,
    NewSecret,
    Taken,
    Weighed,
)
from machines.flows.purchase import Declined, Delivery, NotOffered, Proven, Purchase

PAUSE_MS = 400
LONG_MS = 1_100_000
AMOUNT_CENTS = 2
PRICE_CENTS = 1
LOST = CARDS_MAX - 2
"""As if so many codes had been lost: one more is answered by another card, a second is not."""
SECRETS = 1
"""So many new secrets may still be asked for."""
KEY = "key"
ENDS = ("refunded", "unfunded", "wallet_refused", "expired_unpaid", "price_changed",
        "unsettled")  # fmt: skip


class Payment(Machine[Purchase]):
    """What a card sees of a Payment: one of its ends."""

    pricing = State(initial=True, waits=True)
    delivered = State(final=True)
    refunded = State(final=True, failure=True)
    unfunded = State(final=True, failure=True)
    wallet_refused = State(final=True, failure=True)
    expired_unpaid = State(final=True, failure=True)
    price_changed = State(final=True, failure=True)
    unsettled = State(final=True, failure=True)
    ended = (
        pricing.to(delivered)
        | pricing.to(refunded)
        | pricing.to(unfunded)
        | pricing.to(wallet_refused)
        | pricing.to(expired_unpaid)
        | pricing.to(price_changed)
        | pricing.to(unsettled)
    )

    def output(self, context: Purchase) -> Delivery | None:
        """The environment says it."""


class OfGiftCard(Environment):
    """One card; paying for it is a stand-in."""

    machine = GiftCard
    scope = Scope(contexts=3, messages=0)
    stand_ins = (Payment,)

    def contexts(self) -> Iterator[CardOrder]:
        """A card that is followed; one that cannot be afforded; one that is handed over at once."""
        followed = CardOrder(
            amount_cents=AMOUNT_CENTS,
            currency=Currency.LTC,
            budget_cents=AMOUNT_CENTS,
            watch=True,
            passphrase=Secret("open sesame"),
            poll_ms=PAUSE_MS,
            silence_ms=LONG_MS,
            watch_ms=LONG_MS,
            codes_lost=LOST,
        )
        yield followed
        yield msgspec.structs.replace(followed, watch=False, budget_cents=AMOUNT_CENTS - 1)
        plain: dict[str, object] = {"watch": False, "silence_ms": PAUSE_MS, "passphrase": None}
        yield msgspec.structs.replace(followed, **plain)

    @payloads("limits")
    def limits(self, context: CardOrder, now_ms: int) -> Iterator[Limits]:
        """The card just fits; it is a cent too small; a cent too large."""
        amount = context.amount_cents
        yield Limits(minimum_cents=amount, maximum_cents=amount)
        if context.watch and now_ms == 0:
            yield Limits(minimum_cents=amount + 1, maximum_cents=amount + 1)
            yield Limits(minimum_cents=amount - 1, maximum_cents=amount - 1)

    @payloads("card_made")
    def cards(self, context: CardOrder, now_ms: int) -> Iterator[CardMade]:
        """As ordered; with less on it; with a dearer invoice."""
        amount, number = context.amount_cents, context.codes_lost
        invoice = Invoice(
            invoice_id=f"invoice-{number}",
            currency=context.currency,
            address=f"theirs-{number}",
            amount_atomic=4,
            price_cents=amount,
            tier=0,
            months=0,
            expires_ms=LONG_MS,
            confirmations_required=0,
        )
        made = CardMade(
            card_id=f"card-{number}",
            code=Secret(f"code-{number}"),
            amount_cents=amount,
            invoice=invoice,
            refund_address="ours",
        )
        yield made
        if context.watch and now_ms == 0:
            yield msgspec.structs.replace(made, amount_cents=amount - 1)
            dearer = msgspec.structs.replace(invoice, price_cents=amount + 1)
            yield msgspec.structs.replace(made, invoice=dearer)

    @payloads("code_gone")
    def lost_codes(self, context: CardOrder) -> Iterator[CodeGone]:
        """The reply that held it was lost."""
        yield CodeGone(card_id=f"card-{context.codes_lost}")

    @payloads("declined")
    def refusals(self, now_ms: int) -> Iterator[Declined]:
        """The portal does not say more."""
        if now_ms == 0:
            yield Declined(reason="declined")

    @ends(Payment)
    def payments(self, context: Purchase) -> Iterator[tuple[str, Delivery | None]]:
        """Every end that the parent tells apart; of the card that is not followed the good one."""
        invoice = context.offer
        assert invoice is not None
        delivery = Delivery(
            paid_cents=context.price_cents,
            paid_atomic=invoice.amount_atomic,
            fee_atomic=1,
            currency=context.currency,
            txids=(f"pays {invoice.address}",),
            invoice_id=invoice.invoice_id,
        )
        yield "delivered", delivery
        if context.passphrase is None:
            return
        for state in ENDS:
            yield state, None

    @payloads("seen")
    def looks(self, context: CardOrder) -> Iterator[CardSeen]:
        """A cent taken; both, one of them held or none; too much taken; expired."""
        half = CardSeen(standing="active", balance_cents=1, taken_cents=1, pending=0)
        if context.balance_cents == AMOUNT_CENTS:
            yield half
            yield msgspec.structs.replace(half, taken_cents=AMOUNT_CENTS)
            yield msgspec.structs.replace(half, standing="expired", balance_cents=0)
        nothing = {"standing": "exhausted", "balance_cents": 0, "taken_cents": AMOUNT_CENTS}
        if context.balance_cents:
            yield msgspec.structs.replace(half, **nothing, pending=1)
        yield msgspec.structs.replace(half, **nothing)

    # -- what must hold -----------------------------------------------------------------------

    @always
    def pays_the_card_whose_code_it_holds(
        self, context: CardOrder, state: str, done: Sequence[Done]
    ) -> bool:
        """Whatever was lost on the way: invoice and code are of one card, that the portal told."""
        told = [one.event for one in done if isinstance(one.event, CardMade)]
        kept = [(one.card_id, one.code, one.invoice) for one in told]
        return context.invoice is None or (context.card_id, context.code, context.invoice) in kept

    @always
    def few_cards_are_ordered(self, done: Sequence[Done]) -> bool:
        """One for each code that was lost, and one more."""
        return len(keys_of(done, "order_card")) <= CARDS_MAX - LOST

    @always
    def orders_only_what_it_can_pay(self, context: CardOrder, done: Sequence[Done]) -> bool:
        """A card above the budget is not even ordered."""
        affordable = context.amount_cents <= context.budget_cents
        return affordable or not keys_of(done, "order_card")

    # -- what should be seen ------------------------------------------------------------------

    @sometimes
    def issued_after_a_lost_code(self, context: CardOrder, state: str) -> bool:
        """The second card is the one that was paid."""
        return state == "issued" and context.codes_lost > LOST

    @sometimes
    def used_up_in_parts(self, context: CardOrder, state: str) -> bool:
        """Nothing is left."""
        return state == "exhausted" and context.balance_cents == 0

    @sometimes
    def held_to_the_last_cent(self, context: CardOrder, state: str) -> bool:
        """Nothing is left, and it may come back."""
        return state == "active" and context.balance_cents == 0

    @sometimes
    def handed_over_with_something_left(self, context: CardOrder, state: str) -> bool:
        """Nobody watches any more."""
        return state == "issued" and context.watch and context.balance_cents == 1


class OfRedemption(Environment):
    """One key for a card."""

    machine = Redemption
    scope = Scope(contexts=2, messages=0)

    def contexts(self) -> Iterator[CardClaim]:
        """A first try; one that names the redemption of an earlier life."""
        first = CardClaim(
            code=Secret("four-words-joined-up"),
            tier=1,
            months=1,
            budget_cents=PRICE_CENTS,
            card_id="card",
            poll_ms=PAUSE_MS,
            approval_ms=LONG_MS,
            settle_ms=LONG_MS,
            silence_ms=LONG_MS,
            generation=GENERATIONS_MAX - SECRETS,
        )
        yield first
        again: dict[str, object] = {"redemption_key": "earlier", "card_id": ""}
        again |= dict.fromkeys(("silence_ms", "settle_ms"), PAUSE_MS)
        yield msgspec.structs.replace(first, **again)

    @payloads("weighed")
    def prices(self, context: CardClaim, now_ms: int) -> Iterator[Weighed]:
        """Just affordable, by a card that just holds it; a cent too dear; a cent too little."""
        key = context.redemption_key or "own"
        balance = PRICE_CENTS if context.card_id else None
        fits = Weighed(price_cents=PRICE_CENTS, balance_cents=balance, redemption_key=key)
        yield fits
        if is_first(context) and now_ms == 0:
            yield msgspec.structs.replace(fits, price_cents=PRICE_CENTS + 1)
            yield msgspec.structs.replace(fits, balance_cents=PRICE_CENTS - 1)
            yield msgspec.structs.replace(fits, price_cents=0)

    @payloads("no_such_quote")
    def other_prices(self) -> Iterator[NotOffered]:
        """An empty table."""
        yield NotOffered(offers=0)

    @payloads("turned_away")
    def refusals(self, context: CardClaim, state: str, now_ms: int) -> Iterator[CardTurnedAway]:
        """Every reason; before it is redeemed those that its buyer's page tells."""
        if not is_first(context) or now_ms > 0:
            return
        yield CardTurnedAway(why="unknown_code", detail="unknown")
        yield CardTurnedAway(why="unpaid", detail="unpaid")
        yield CardTurnedAway(why="expired", detail="expired")
        yield CardTurnedAway(why="reversed", detail="reversed")
        if state == "redeeming":
            yield CardTurnedAway(why="too_little", detail="too little", balance_cents=0)
            yield CardTurnedAway(why="denied", detail="denied")
            yield CardTurnedAway(why="other", detail="other")

    @payloads("taken")
    def redemptions(self, context: CardClaim, now_ms: int) -> Iterator[Taken]:
        """With the key, without its secret, held, denied before; a cent too dear."""
        whole = Taken(
            redemption_id="redemption",
            standing="redeemed",
            price_cents=PRICE_CENTS,
            balance_cents=0,
            public_key=KEY,
            secret_key=Secret("secret"),
        )
        no_key: dict[str, object] = {"public_key": None, "secret_key": None}
        yield msgspec.structs.replace(whole, secret_key=None)
        if not is_first(context):
            yield msgspec.structs.replace(whole, standing="denied", balance_cents=1, **no_key)
            return
        yield whole
        yield msgspec.structs.replace(whole, standing="pending_approval", **no_key)
        if is_first(context) and now_ms == 0:
            yield msgspec.structs.replace(whole, price_cents=PRICE_CENTS + 1)

    @payloads("decided")
    def decisions(self) -> Iterator[Decided]:
        """Approved, with or without the secret; denied."""
        yield Decided(
            standing="redeemed", balance_cents=0, public_key=KEY, secret_key=Secret("secret")
        )
        yield Decided(standing="redeemed", balance_cents=0, public_key=KEY)
        yield Decided(standing="denied", balance_cents=PRICE_CENTS)

    @payloads("new_secret")
    def new_secrets(self, context: CardClaim) -> Iterator[NewSecret]:
        """Another secret each time."""
        yield NewSecret(public_key=KEY, secret_key=Secret(f"secret-{context.generation + 1}"))

    @payloads("proven")
    def proofs(self, context: CardClaim) -> Iterator[Proven]:
        """The key is what was asked for."""
        yield Proven(tier=context.tier)

    @payloads("key_denied")
    def denials(self) -> Iterator[KeyRefused]:
        """Another secret may help, or nothing does."""
        yield KeyRefused(reason="invalid_key")
        yield KeyRefused(reason="suspended")

    # -- what must hold -----------------------------------------------------------------------

    @always
    def redeems_once(self, context: CardClaim, state: str, done: Sequence[Done]) -> bool:
        """One request, under the key that was kept before, whatever is lost or dies."""
        asked = keys_of(done, "redeem")
        kept = [one.event.redemption_key for one in done if isinstance(one.event, Weighed)]
        return len(asked) <= 1 and (not asked or context.redemption_key in kept)

    @always
    def takes_what_the_portal_took(self, context: CardClaim, done: Sequence[Done]) -> bool:
        """What has left the card for this key is one price, or nothing."""
        prices = {one.event.price_cents for one in done if isinstance(one.event, Taken)}
        return context.taken_cents in (0, *prices)

    @always
    def has_no_key_without_approval(self, context: CardClaim, done: Sequence[Done]) -> bool:
        """Somebody told it, and for a redemption that is `redeemed`."""
        told = [one.event for one in done if isinstance(one.event, Taken | Decided | NewSecret)]
        keys = {one.secret_key for one in told} - {None}
        return context.secret_key is None or context.secret_key in keys

    @always
    def secrets_are_asked_for_a_few_times(self, done: Sequence[Done]) -> bool:
        """At most once for the lost one, and once for each that does not work."""
        return len(keys_of(done, "replace_secret")) <= SECRETS + 1

    # -- what should be seen ------------------------------------------------------------------

    @sometimes
    def approved_and_the_secret_lost(self, context: CardClaim, state: str) -> bool:
        """The buyer said yes in a reply that nobody got."""
        return state == "approved" and context.secret_key is None

    @sometimes
    def redeemed_again_in_another_life(self, context: CardClaim, state: str) -> bool:
        """The same redemption, its secret told before: a new one."""
        named = context.redemption_key == "earlier"
        return state == "redeemed" and named and context.generation > GENERATIONS_MAX - SECRETS

    @sometimes
    def stored_untested(self, context: CardClaim, state: str) -> bool:
        """The platform was silent; the key is kept."""
        return state == "redeemed" and not context.proven


def is_first(context: CardClaim) -> bool:
    """It did not come with a key: everything is tried here."""
    return context.redemption_key in ("", "own")
