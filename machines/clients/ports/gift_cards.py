"""Gift cards: a balance in cents, bought by an invoice, spent on keys by whoever has the code.

The code is told once, in the reply to the request that made the card; a repeat under the same key
gives the same card and no code.  The secret of a redeemed key is told once, too, and a lost one is
replaced.  Source: platform-api.md section 17; paper, Flow 3b.
"""

from __future__ import annotations

from typing import Literal, Protocol

from engine.secret import Secret
from machines.clients.ports import Credentials, Currency, Invoice, Record, Rejected

CardStanding = Literal["unpaid", "active", "exhausted", "expired", "reversed"]
"""`reversed`: paid, and a reorganised chain has taken the payment back; it may come again."""

RedemptionStanding = Literal["pending_approval", "redeemed", "denied"]
Refusal = Literal["unknown_code", "unpaid", "expired", "reversed", "too_little", "denied", "other"]
"""Why a card buys nothing, or not this."""


class CardRefused(Rejected):
    """The card does not buy what was asked for, and nothing was taken from it.

    Args:
        reason: one of `Refusal`.
        balance_cents: what is on the card, where the portal says it.
    """

    def __init__(self, message: str, *, reason: Refusal, balance_cents: int | None = None) -> None:
        super().__init__(message)
        self.reason: Refusal = reason
        self.balance_cents = balance_cents


class KeyPrice(Record):
    """What a key of a tier costs for some months."""

    tier: int
    months: int
    price_cents: int


class PriceList(Record):
    """What a card may be made for, and what can be bought with one; cents."""

    minimum_cents: int
    maximum_cents: int
    prices: tuple[KeyPrice, ...]


class NewCard(Record):
    """A card that works once its invoice is paid.  `code` is None for a repeat: told before."""

    card_id: str
    code: Secret[str] | None
    amount_cents: int
    invoice: Invoice


class CardStatus(Record):
    """A card as its buyer sees it.

    Args:
        taken_cents: the prices of all redemptions that were not denied, those that await the
            buyer's approval included.
        pending: so many await it; a denied one gives its price back to the card.
    """

    card_id: str
    standing: CardStanding
    amount_cents: int
    balance_cents: int
    taken_cents: int
    pending: int = 0


class RedemptionStatus(Record):
    """What came of spending a card on a key.

    Args:
        public_key: there is one from `redeemed` on.
        secret_key: with the first reply that says `redeemed`, and with no other.
    """

    redemption_id: str
    standing: RedemptionStanding
    price_cents: int
    balance_cents: int
    public_key: str | None = None
    secret_key: Secret[str] | None = None


class GiftCards(Protocol):
    """The portal's gift cards.  No credentials: the code is the only one."""

    async def prices(self) -> PriceList:
        """The price of every key, and the limits for the amount of a card."""

    async def create(
        self,
        *,
        amount_cents: int,
        currency: Currency,
        refund_address: str,
        require_approval: bool,
        email: str,
        key: str,
    ) -> NewCard:
        """Order a card; the same `key` always gives the same one, the code only the first time."""

    async def card(self, card_id: str) -> CardStatus:
        """What has become of a card.  Its id shows balance and history, never a key."""

    async def redeem(
        self, code: Secret[str], *, tier: int, months: int, key: str
    ) -> RedemptionStatus:
        """Spend a card on a key; the same `key` takes its price once.

        Raises:
            CardRefused: nothing was taken.
        """

    async def redemption(self, redemption_id: str) -> RedemptionStatus:
        """What has become of a redemption.  The first `redeemed` holds the secret."""

    async def regenerate(self, redemption_id: str) -> Credentials:
        """A new secret for the key of a redemption; the old one is dead."""
