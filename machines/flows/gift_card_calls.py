"""What gift cards ask of the outside: the portal's cards, our wallet, and once the platform.

Two replies hold something that is told once: that of `order_card` the code, the first `redeemed`
the secret of a key.  Both calls may be repeated with their key, and nothing happens twice; only
what was told is missing then.  A lost code is answered by another card (the first is never paid), a
lost secret by a new one.
"""

from __future__ import annotations

from engine.effects import Again, Call, effect
from engine.errors import Transient
from engine.retry import Retry
from machines.clients.ports import ClientError, NotFound, Rejected, Unauthorized
from machines.clients.ports.gift_cards import CardRefused, GiftCards
from machines.flows.gift_card import (
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
from machines.flows.money import PATIENT, Wallets, asking, watching
from machines.flows.purchase import Declined, Denied, NotOffered, Proven
from machines.flows.purchase_calls import proof_of, refund_address_of


def cards_of(call: Call) -> GiftCards:
    """The portal's gift cards."""
    # mypy cannot say "a Protocol used as a key"; the program registers one implementation.
    return call.resource(GiftCards)  # type: ignore[type-abstract]


# -- the purchaser ------------------------------------------------------------------------------


@effect(idempotent=True, retry=PATIENT)
async def fetch_limits(context: CardOrder, call: Call) -> Limits:
    """For what amounts cards are made."""
    with watching("gift card limits"):
        listed = await cards_of(call).prices()
    return Limits(minimum_cents=listed.minimum_cents, maximum_cents=listed.maximum_cents)


@effect(idempotent=True, retry=PATIENT)  # the same key gives the same card, its code but once
async def order_card(context: CardOrder, call: Call) -> CardMade | CodeGone | Declined:
    """Order a card whose payment would be refunded to a fresh address of our own wallet."""
    wallet = call.resource(Wallets)[context.currency]
    refund_address = await refund_address_of(wallet, context.passphrase, f"refund-{call.key}")
    with asking("gift card"):
        try:
            made = await cards_of(call).create(
                amount_cents=context.amount_cents,
                currency=context.currency,
                refund_address=refund_address,
                require_approval=context.require_approval,
                email=context.email,
                key=call.key,
            )
        except (Rejected, NotFound, Unauthorized) as error:
            return Declined(reason=str(error))
    if made.code is None:
        return CodeGone(card_id=made.card_id)
    return CardMade(
        card_id=made.card_id,
        code=made.code,
        amount_cents=made.amount_cents,
        invoice=made.invoice,
        refund_address=refund_address,
    )


@effect(idempotent=True, retry=PATIENT)
async def look_at_card(context: CardOrder, call: Call) -> CardSeen | Again:
    """What is left on the card; nothing to report while that has not changed."""
    with watching("gift card"):
        card = await cards_of(call).card(context.card_id)
    if card.standing == "active" and card.balance_cents == context.balance_cents:
        return Again()
    return CardSeen(
        standing=card.standing,
        balance_cents=card.balance_cents,
        taken_cents=card.taken_cents,
        pending=card.pending,
    )


# -- the agent ----------------------------------------------------------------------------------


@effect(idempotent=True, retry=PATIENT)
async def weigh(context: CardClaim, call: Call) -> Weighed | NotOffered | CardTurnedAway:
    """The price of the key; and what is on the card, where its id is known.

    A claim that comes with its own key may have been paid before: then what is left says nothing.
    """
    with watching("gift card prices"):
        listed = await cards_of(call).prices()
    wanted = (context.tier, context.months)
    price = next((p.price_cents for p in listed.prices if (p.tier, p.months) == wanted), None)
    if price is None:
        return NotOffered(offers=len(listed.prices))
    balance_cents = None
    if context.card_id and not context.redemption_key:
        try:
            with asking("gift card"):
                card = await cards_of(call).card(context.card_id)
        except NotFound as error:
            return CardTurnedAway(why="unknown_code", detail=str(error))
        except ClientError as error:
            raise Transient(f"gift card: {error}") from error
        if card.standing != "active" and card.standing != "exhausted":
            return CardTurnedAway(why=card.standing, detail=f"the card is {card.standing}")
        balance_cents = card.balance_cents
    return Weighed(
        price_cents=price,
        balance_cents=balance_cents,
        redemption_key=context.redemption_key or call.key,
    )


@effect(idempotent=True, retry=PATIENT)  # the same key takes the price once
async def redeem(context: CardClaim, call: Call) -> Taken | CardTurnedAway:
    """Spend the card.  Only a refusal of the card itself means that nothing was taken."""
    with watching("redeem"):
        try:
            status = await cards_of(call).redeem(
                context.code, tier=context.tier, months=context.months, key=context.redemption_key
            )
        except CardRefused as error:
            return CardTurnedAway(
                why=error.reason, detail=str(error), balance_cents=error.balance_cents
            )
    return Taken(
        redemption_id=status.redemption_id,
        standing=status.standing,
        price_cents=status.price_cents,
        balance_cents=status.balance_cents,
        public_key=status.public_key,
        secret_key=status.secret_key,
    )


@effect(idempotent=True, retry=PATIENT)  # a lost reply may have held the secret: it is replaced
async def await_decision(context: CardClaim, call: Call) -> Decided | Again:
    """Whether the buyer has approved or denied."""
    with watching("redemption"):
        status = await cards_of(call).redemption(context.redemption_id)
    if status.standing == "pending_approval":
        return Again()
    return Decided(
        standing=status.standing,
        balance_cents=status.balance_cents,
        public_key=status.public_key,
        secret_key=status.secret_key,
    )


@effect(idempotent=True, retry=PATIENT)  # only the newest secret lives
async def replace_secret(context: CardClaim, call: Call) -> NewSecret:
    """Ask for a new secret; free of charge."""
    with watching("regenerate"):
        made = await cards_of(call).regenerate(context.redemption_id)
    return NewSecret(public_key=made.public_key, secret_key=made.secret_key)


@effect(idempotent=True, retry=Retry(attempts=8, max_ms=15_000))
async def try_key(context: CardClaim, call: Call) -> Proven | KeyRefused:
    """Sign one call with the stored secret."""
    said = await proof_of(context.public_key, context.secret_key, call)
    return KeyRefused(reason=said.reason) if isinstance(said, Denied) else said
