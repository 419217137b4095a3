"""Gift cards: a balance in cents, paid by an invoice, spent on keys by whoever has the code.

::

    unpaid ──invoice completed──► active ──balance 0──► exhausted
       │                            │
       │ invoice expired            │ redeem: the price leaves the balance, and
       ▼                            ├── no approval asked: key issued ......... redeemed
    expired                         └── else a letter to the buyer: pending_approval
                                            ├── approve: key issued ........... redeemed
                                            └── deny: the price goes back ..... denied

What a card is follows from its invoice and its balance; nothing of it is stored twice.  At every
moment amount = balance + the prices of all redemptions that were not denied.  The price is taken
by one conditional UPDATE, before anything is given, so however many redeem at once the balance
cannot go below zero; a redemption that waits for approval holds its price.

The code is four words of `words.WORDS` and the only credential.  It is told to the caller of the
request that made the card, and to nobody again: the row keeps HMAC-SHA256(pepper, code), and the
pepper is sealed with the master key, since forty bits can be searched by who steals the file.
Guessing over the wire is slowed by `require_patience`.  A lost reply loses nothing: the card was
not paid yet, and another can be made.

All functions work inside the caller's write transaction.  (Wire facts, section 17.)
"""

from __future__ import annotations

import hmac
import secrets
from hashlib import sha256

import msgspec
import structlog

from engine.secrets import SecretsCodec
from machines.platform import invoices, keys, limits, lives
from machines.platform.context import PlatformConfig
from machines.platform.invoices import Invoice, Order
from machines.platform.lives.gift_card import (
    Approve,
    CardPaid,
    Deny,
    GiftCardLife,
    GiftTerms,
    Redeem,
)
from machines.platform.pricing import price_cents
from machines.platform.replies import Problem
from machines.platform.words import WORDS
from persistence.database import Session

AMOUNT_CENTS_MIN = 700
AMOUNT_CENTS_MAX = 10_000_000
WRONG_CODES_PER_MINUTE = 20
_WORDS_IN_A_CODE = 4
_UNPAID = ("pending", "partial", "confirming")

_log = structlog.get_logger("turtles.platform.gift_cards")


class GiftCard(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the `gift_card` table, without the digest of its code."""

    card_id: str
    invoice_id: str
    amount_cents: int
    balance_cents: int
    needs_approval: int
    email: str | None
    created_ms: int

    def standing(self, invoice: Invoice) -> str:
        """`unpaid`, `active`, `exhausted`, `expired` or `reversed` (its payment was lost)."""
        if invoice.state in _UNPAID:
            return "unpaid"
        if invoice.state != "completed":
            return "expired"
        if not invoice.is_sound:
            return "reversed"
        return "active" if self.balance_cents else "exhausted"


class Redemption(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the `gift_redemption` table, without the digest of its link."""

    redemption_id: str
    card_id: str
    tier: int
    months: int
    price_cents: int
    state: str
    public_key: str | None
    requested_ms: int
    decided_ms: int | None


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """An e-mail to a buyer.  Its text holds the links, which decide: show it to nobody else."""

    recipient: str
    text: str


_CARD = "card_id, invoice_id, amount_cents, balance_cents, needs_approval, email, created_ms"
_REDEMPTION = (
    "redemption_id, card_id, tier, months, price_cents, state, public_key, requested_ms, decided_ms"
)


def create(
    sql: Session, codec: SecretsCodec, invoice: Invoice, order: Order, now_ms: int
) -> tuple[GiftCard, str]:
    """A card that becomes usable when its invoice is paid, and its code.

    The code cannot be had again.
    """
    card_id = "gift_" + secrets.token_urlsafe(24)
    code = new_code()
    sql.run(
        """
        INSERT INTO gift_card (card_id, invoice_id, code_digest, amount_cents, balance_cents,
            needs_approval, email, created_ms)
        VALUES (:card_id, :invoice_id, :digest, :cents, :cents, :needs_approval, :email, :now_ms)
        """,
        card_id=card_id,
        invoice_id=invoice.invoice_id,
        digest=_code_digest(sql, codec, code),
        cents=invoice.price_cents,
        needs_approval=int(order.gift_needs_approval),
        email=order.email,
        now_ms=now_ms,
    )
    terms = GiftTerms(amount_cents=invoice.price_cents, balance_cents=invoice.price_cents)
    lives.begin(sql, GiftCardLife, card_id, terms, now_ms)
    return of_invoice(sql, invoice), code


def new_code() -> str:
    """A code that nobody can guess: four words."""
    return "-".join(secrets.choice(WORDS) for _ in range(_WORDS_IN_A_CODE))


def of_invoice(sql: Session, invoice: Invoice) -> GiftCard:
    """The card that an invoice for a gift card pays."""
    row = sql.one(
        f"SELECT {_CARD} FROM gift_card WHERE invoice_id = :id",  # noqa: S608 - our column names
        id=invoice.invoice_id,
    )
    return GiftCard(**(row or {}))


def find(sql: Session, card_id: str) -> GiftCard | None:
    """The card with that id, or None."""
    row = sql.one(
        f"SELECT {_CARD} FROM gift_card WHERE card_id = :id",  # noqa: S608 - our column names
        id=card_id,
    )
    return GiftCard(**row) if row else None


def find_by_code(sql: Session, codec: SecretsCodec, code: str) -> GiftCard | None:
    """The card with that code, or None.  Capitals and blanks around it do not matter."""
    digest = _code_digest(sql, codec, code.strip().lower())
    row = sql.one(
        f"SELECT {_CARD}, code_digest FROM gift_card "  # noqa: S608 - our column names
        "WHERE code_digest = :digest",
        digest=digest,
    )
    # The index leaks nothing: without the pepper no digest can be chosen.  This holds regardless.
    if row is None or not hmac.compare_digest(row["code_digest"], digest):
        return None
    return GiftCard(**{name: row[name] for name in GiftCard.__struct_fields__})


def paid_by(sql: Session, config: PlatformConfig, card: GiftCard, now_ms: int) -> Invoice:
    """The invoice of a card, judged now."""
    row = sql.one("SELECT * FROM invoice WHERE invoice_id = :id", id=card.invoice_id)
    return invoices.evaluate(sql, config, Invoice(**(row or {})), now_ms)


def redeem(
    sql: Session,
    codec: SecretsCodec,
    config: PlatformConfig,
    card: GiftCard,
    wanted: tuple[int, int],
    now_ms: int,
    idempotency_key: str | None = None,
) -> Redemption:
    """Spend the price of a key.

    Args:
        wanted: tier and months, both in the price grid.
        idempotency_key: a repeat with the same key gets the same redemption.

    Raises:
        Problem: 402 the balance is too small, 409 unpaid, expired, or the key used otherwise.
    """
    known = _repeated(sql, card, wanted, idempotency_key)
    if known is not None:
        return known
    _require_paid(card, paid_by(sql, config, card, now_ms))
    tier, months = wanted
    price = price_cents(tier, months, config.discount_percent)
    _require_life(sql, card, now_ms)
    _take(sql, card, price)
    redeemed = Redeem(price_cents=price, held=bool(card.needs_approval))
    lives.move(sql, GiftCardLife, card.card_id, redeemed, now_ms)
    redemption_id = "redeem_" + secrets.token_urlsafe(24)
    public_key = None if card.needs_approval else keys.issue(sql, tier, months, now_ms)
    sql.run(
        """
        INSERT INTO gift_redemption (redemption_id, card_id, tier, months, price_cents, state,
            public_key, idempotency_key, requested_ms, decided_ms)
        VALUES (:id, :card_id, :tier, :months, :price, :state, :public_key, :key, :now_ms,
            :decided_ms)
        """,
        id=redemption_id,
        card_id=card.card_id,
        tier=tier,
        months=months,
        price=price,
        state="redeemed" if public_key else "pending_approval",
        public_key=public_key,
        key=idempotency_key,
        now_ms=now_ms,
        decided_ms=now_ms if public_key else None,
    )
    redemption = _existing(sql, redemption_id)
    if public_key is None:
        _write_letter(sql, codec, card, redemption, now_ms)
    return redemption


def find_redemption(sql: Session, redemption_id: str) -> Redemption | None:
    """The redemption with that id, or None."""
    row = sql.one(
        f"SELECT {_REDEMPTION} FROM gift_redemption "  # noqa: S608 - our column names
        "WHERE redemption_id = :id",
        id=redemption_id,
    )
    return Redemption(**row) if row else None


def redemptions(sql: Session, card: GiftCard) -> list[Redemption]:
    """What was asked of a card, oldest first."""
    rows = sql.all(
        f"SELECT {_REDEMPTION} FROM gift_redemption "  # noqa: S608 - our column names
        "WHERE card_id = :id ORDER BY requested_ms, redemption_id",
        id=card.card_id,
    )
    return [Redemption(**row) for row in rows]


def find_by_token(sql: Session, token: str) -> Redemption | None:
    """The redemption that an approval link is about, decided or not."""
    redemption_id = sql.scalar(
        "SELECT redemption_id FROM gift_redemption WHERE token_digest = :digest",
        digest=_token_digest(token),
    )
    return _existing(sql, redemption_id) if redemption_id else None


def decide(sql: Session, token: str, approve: bool, now_ms: int) -> Redemption:
    """What the buyer says.  Said again it changes nothing; the first word stands.

    Raises:
        Problem: 404 no such link, 409 the opposite was decided before, or the card's payment was
            taken back.
    """
    redemption = find_by_token(sql, token)
    if redemption is None:
        raise Problem(404, "not_found", "no such approval link. Open the one in the letter.")
    decision = "redeemed" if approve else "denied"
    if redemption.state != "pending_approval":
        if redemption.state == decision:
            return redemption
        raise Problem(409, "already_decided", f"this redemption is {redemption.state} already.")
    card = find(sql, redemption.card_id)
    assert card is not None  # a foreign key
    if approve:
        invoice = invoices.find(sql, card.invoice_id)
        assert invoice is not None  # a foreign key
        _require_paid(card, invoice)
    public_key = keys.issue(sql, redemption.tier, redemption.months, now_ms) if approve else None
    _require_life(sql, card, now_ms)
    said = (Approve if approve else Deny)(price_cents=redemption.price_cents)
    lives.move(sql, GiftCardLife, card.card_id, said, now_ms)
    sql.run(
        """
        UPDATE gift_redemption SET state = :state, public_key = :public_key, decided_ms = :now_ms
        WHERE redemption_id = :id AND state = 'pending_approval'
        """,
        state=decision,
        public_key=public_key,
        now_ms=now_ms,
        id=redemption.redemption_id,
    )
    if not approve:
        sql.run(
            "UPDATE gift_card SET balance_cents = balance_cents + :price WHERE card_id = :id",
            price=redemption.price_cents,
            id=redemption.card_id,
        )
    return _existing(sql, redemption.redemption_id)


def letters(sql: Session, codec: SecretsCodec) -> list[Letter]:
    """Every letter written, oldest first."""
    rows = sql.all("SELECT recipient, text_sealed FROM gift_letter ORDER BY number")
    return [Letter(recipient=row["recipient"], text=codec.open(row["text_sealed"])) for row in rows]


def require_patience(sql: Session, who: str, now_ms: int) -> None:
    """Refuse who sent many wrong codes in the last minute, before looking at another.

    Raises:
        Problem: 429.
    """
    wrong = sql.scalar(
        "SELECT count(*) FROM api_request WHERE public_key = :who AND at_ms > :old",
        who=_guesser(who),
        old=now_ms - limits.WINDOW_MS,
    )
    if wrong >= WRONG_CODES_PER_MINUTE:
        raise Problem(
            429,
            "rate_limit_exceeded",
            f"{wrong} wrong gift codes within a minute. Check the code and wait a minute.",
            headers={"Retry-After": str(limits.WINDOW_MS // 1000)},
        )


def count_wrong_code(sql: Session, who: str, now_ms: int) -> None:
    """Remember a wrong code; it must be committed, so do not raise in that transaction."""
    limits.admit(sql, _guesser(who), WRONG_CODES_PER_MINUTE, now_ms)
    _log.warning("wrong_gift_code", client=who)


def _guesser(who: str) -> str:
    return f"gift codes from {who}"


def _repeated(
    sql: Session, card: GiftCard, wanted: tuple[int, int], idempotency_key: str | None
) -> Redemption | None:
    row = sql.one(
        f"SELECT {_REDEMPTION} FROM gift_redemption "  # noqa: S608 - our column names
        "WHERE card_id = :card_id AND idempotency_key = :key",
        card_id=card.card_id,
        key=idempotency_key,
    )
    if row is None:
        return None
    if (row["tier"], row["months"]) != wanted:
        raise Problem(
            409,
            "idempotency_conflict",
            "this Idempotency-Key redeemed another tier or duration. Send the same body again, "
            "or a new key.",
        )
    return Redemption(**row)


def _require_paid(card: GiftCard, invoice: Invoice) -> None:
    standing = card.standing(invoice)
    if standing == "unpaid":
        raise Problem(
            409,
            "gift_card_unpaid",
            f"the card's invoice is {invoice.state}; redeem when it is completed.",
            fields={"status": standing},
        )
    if standing == "reversed":
        raise Problem(
            409,
            "gift_card_reversed",
            "the card's payment was taken back by a reorganised chain; it works again when the "
            "payment is mined again.",
            fields={"status": standing},
        )
    if standing == "expired":
        raise Problem(
            409,
            "gift_card_expired",
            "the card's invoice expired unpaid; what was paid late is sent back. "
            "Create another card.",
            fields={"status": standing},
        )


def _require_life(sql: Session, card: GiftCard, now_ms: int) -> None:
    """The life of a paid card that is older than its machine begins with what was done to it."""
    if lives.find(sql, GiftCardLife, card.card_id) is not None:
        return
    terms = GiftTerms(amount_cents=card.amount_cents, balance_cents=card.amount_cents)
    lives.begin(sql, GiftCardLife, card.card_id, terms, now_ms)
    lives.move(sql, GiftCardLife, card.card_id, CardPaid(), now_ms)
    for past in redemptions(sql, card):
        if past.state != "denied":
            held = past.state == "pending_approval"
            event = Redeem(price_cents=past.price_cents, held=held)
            lives.move(sql, GiftCardLife, card.card_id, event, now_ms)


def _take(sql: Session, card: GiftCard, price: int) -> None:
    taken = sql.run(
        """
        UPDATE gift_card SET balance_cents = balance_cents - :price
        WHERE card_id = :id AND balance_cents >= :price
        """,
        price=price,
        id=card.card_id,
    )
    if not taken:
        left = sql.scalar(
            "SELECT balance_cents FROM gift_card WHERE card_id = :id", id=card.card_id
        )
        raise Problem(
            402,
            "insufficient_balance",
            f"the card holds {left} cents, this key costs {price}. Choose a smaller one.",
            fields={"balance_cents": left, "price_cents": price},
        )


def _write_letter(
    sql: Session, codec: SecretsCodec, card: GiftCard, redemption: Redemption, now_ms: int
) -> None:
    token = secrets.token_urlsafe(32)
    text = (
        f"Somebody with the code of your gift card asks for a key: tier {redemption.tier}, "
        f"{redemption.months} months, {redemption.price_cents} cents.\n"
        f"Approve: /gift-cards/approve/{token}\nDeny: /gift-cards/deny/{token}\n"
    )
    sql.run(
        "UPDATE gift_redemption SET token_digest = :digest WHERE redemption_id = :id",
        digest=_token_digest(token),
        id=redemption.redemption_id,
    )
    sql.run(
        """
        INSERT INTO gift_letter (redemption_id, recipient, text_sealed, created_ms)
        VALUES (:id, :recipient, :sealed, :now_ms)
        """,
        id=redemption.redemption_id,
        recipient=card.email,
        sealed=codec.seal(text),
        now_ms=now_ms,
    )


def _existing(sql: Session, redemption_id: str) -> Redemption:
    found = find_redemption(sql, redemption_id)
    assert found is not None  # written in this transaction, or just found
    return found


def _token_digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def _code_digest(sql: Session, codec: SecretsCodec, code: str) -> str:
    return hmac.new(_pepper(sql, codec), code.encode(), sha256).hexdigest()


def _pepper(sql: Session, codec: SecretsCodec) -> bytes:
    """The key of the digests; made by the first transaction that needs it."""
    sealed = sql.scalar("SELECT pepper_sealed FROM gift_pepper WHERE id = 1")
    if sealed is None:
        sealed = codec.seal(secrets.token_hex(32))
        sql.run("INSERT INTO gift_pepper (id, pepper_sealed) VALUES (1, :sealed)", sealed=sealed)
    return bytes.fromhex(codec.open(sealed))
