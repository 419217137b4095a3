"""The life of an invoice, judged afresh from the chain each time.

::

    pending ──some coin──► partial ──the rest──► confirming ──deep enough──► completed (key issued)
       │                      │                      │
       │ time over            │ time over            └─ reorganised: back to partial or pending
       ▼                      ▼
    expired ──late coin──► refund_pending ──refund deep enough──► refunded

Nothing is counted up: `judge` looks at the payments that the mempool and the chain hold now, and
at the refunds made, and says what the invoice is.  `evaluate` runs it on each status call and each
block and writes the outcome in the same transaction, so a crash can neither lose nor repeat one.

Rules (platform-api.md, section 15):

- A payment counts as in time when it was first *seen*, mempool included, before the expiry; it
  completes the invoice once it is deep enough, even if that is after the expiry.
- Whatever else arrived is sent back less ceil(9 %), once all of it is deep enough.  The refund is
  a real transaction of the shop's wallet, inserted in the same commit as its `refund` row.  It
  spends the shop's own funds, never coins that came in through invoices, so that no payer's
  reorganisation can undo it.
- No refund without a refund address, nor of an amount too small to send.
- An invoice for a gift card is completed without a key; the card becomes usable by that.
- So is one for the extension of a key: its months are added to the key in the same commit, once.
  Anybody may pay one, so it never has a secret to show, nor a key to make a new secret for.
- An overpayment completes the invoice; the excess is recorded in `overpaid_atomic`.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence

import msgspec
import structlog

from engine.errors import UsageError
from machines.platform import extensions, keys, lives, soundness
from machines.platform.context import PlatformConfig
from machines.platform.extensions import Extension
from machines.platform.ledger import chain, mempool, transaction, wallets
from machines.platform.ledger.coins import COINS, format_coins
from machines.platform.ledger.transaction import Output
from machines.platform.lives.gift_card import CardPaid, GiftCardLife
from machines.platform.lives.invoice import InvoiceLife, InvoiceTerms, Judged
from machines.platform.pricing import price_cents, restocking_fee_atomic
from persistence.database import Session

_log = structlog.get_logger("turtles.platform.invoices")
_SHOP = "shop"


class Invoice(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the `invoice` table.

    Without `tier` and `months` it buys a gift card, or more time for a key (see extensions.py).
    """

    number: int
    invoice_id: str
    tier: int | None
    months: int | None
    currency: str
    price_cents: int
    amount_atomic: int
    address: str
    email: str | None
    refund_address: str | None
    idempotency_key: str | None
    request_hash: str
    created_ms: int
    expires_ms: int
    state: str
    received_atomic: int
    overpaid_atomic: int
    confirmations: int
    undercount_atomic: int
    public_key: str | None

    @property
    def is_sound(self) -> bool:
        """Completed, with its payment in the chain as far as was last seen."""
        return self.state == "completed" and self.confirmations > 0

    @property
    def amount(self) -> str:
        """The amount due in coins, with all decimal places."""
        return format_coins(self.currency, self.amount_atomic)

    @property
    def payment_uri(self) -> str:
        """What a wallet can be handed: `litecoin:rltc1...?amount=0.08750000`."""
        coin = COINS[self.currency]
        return f"{coin.scheme}:{self.address}?{coin.uri_amount}={self.amount}"


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a buyer asks for, checked: a key (`tier`, `months`), a gift card, or an extension.

    Fingerprints are compared with stored ones, and fields at their default do not count in them:
    a new field needs a default, or the repeats of older requests are refused as different.
    """

    tier: int | None
    months: int | None
    currency: str
    email: str | None
    refund_address: str | None
    gift_cents: int | None = None
    gift_needs_approval: bool = False
    extension: Extension | None = None

    def price_cents(self, discount_percent: Mapping[int, int]) -> int:
        """US cents: a gift card costs what is on it.

        Raises:
            UsageError: neither a key nor a gift card is ordered.
        """
        if self.gift_cents is not None:
            return self.gift_cents
        wanted = self.extension or self
        if wanted.tier is None or wanted.months is None:
            raise UsageError("order: expected tier and months, gift_cents or extension; got none")
        return price_cents(wanted.tier, wanted.months, discount_percent)

    @property
    def fingerprint(self) -> str:
        """Says whether two requests are the same."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """What one transaction in mempool or chain pays to an invoice's address."""

    txid: str
    amount_atomic: int
    seen_ms: int
    confirmations: int


class Refund(msgspec.Struct, frozen=True, kw_only=True):
    """Money sent back; `paid_atomic` is what it answers for, fee included."""

    txid: str
    paid_atomic: int
    refund_atomic: int
    fee_atomic: int
    confirmations: int


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """What an invoice is now, and how much of what was paid must be answered by a refund now."""

    state: str
    received_atomic: int
    confirmations: int
    overpaid_atomic: int = 0
    refund_now_atomic: int = 0


def create(
    sql: Session, config: PlatformConfig, order: Order, key: str | None, now_ms: int
) -> Invoice:
    """Open an invoice at a fresh address of the shop."""
    invoice_id = "inv_" + secrets.token_urlsafe(24)
    address, _ = wallets.new_address(sql, order.currency, _SHOP, invoice_id, now_ms)
    cents = order.price_cents(config.discount_percent)
    sql.run(
        """
        INSERT INTO invoice (invoice_id, tier, months, currency, price_cents, amount_atomic,
            address, email, refund_address, idempotency_key, request_hash, created_ms,
            expires_ms, state)
        VALUES (:invoice_id, :tier, :months, :currency, :cents, :amount, :address, :email,
            :refund_address, :key, :request_hash, :now_ms, :expires_ms, 'pending')
        """,
        invoice_id=invoice_id,
        tier=order.tier,
        months=order.months,
        currency=order.currency,
        cents=cents,
        amount=cents * config.atomic_per_cent[order.currency],
        address=address,
        email=order.email,
        refund_address=order.refund_address,
        key=key,
        request_hash=order.fingerprint,
        now_ms=now_ms,
        expires_ms=now_ms + config.invoice_seconds * 1000,
    )
    if order.extension is not None:
        extensions.order(sql, invoice_id, order.extension)
    made = _existing(sql, invoice_id)
    lives.begin(sql, InvoiceLife, invoice_id, _terms(config, made), now_ms)
    return made


def find(sql: Session, invoice_id: str) -> Invoice | None:
    """The invoice as last written, or None."""
    row = sql.one("SELECT * FROM invoice WHERE invoice_id = :id", id=invoice_id)
    return Invoice(**row) if row else None


def find_by_key(sql: Session, idempotency_key: str) -> Invoice | None:
    """The invoice opened under an idempotency key, or None."""
    row = sql.one("SELECT * FROM invoice WHERE idempotency_key = :key", key=idempotency_key)
    return Invoice(**row) if row else None


def payments(sql: Session, invoice: Invoice) -> list[Payment]:
    """What the mempool and the chain hold for the invoice, oldest first."""
    rows = sql.all(
        """
        SELECT t.txid, SUM(o.amount_atomic) AS amount_atomic, t.seen_ms, b.height
        FROM ledger_output o
        JOIN ledger_tx t ON t.currency = o.currency AND t.txid = o.txid
        LEFT JOIN block b ON b.id = t.block_id
        WHERE o.currency = :currency AND o.address = :address AND t.state IN ('mempool', 'mined')
        GROUP BY t.id ORDER BY t.id
        """,
        currency=invoice.currency,
        address=invoice.address,
    )
    height = chain.tip(sql, invoice.currency).height
    return [
        Payment(
            txid=row["txid"],
            amount_atomic=row["amount_atomic"],
            seen_ms=row["seen_ms"],
            confirmations=0 if row["height"] is None else height - row["height"] + 1,
        )
        for row in rows
    ]


def refunds(sql: Session, invoice: Invoice) -> list[Refund]:
    """The refunds made for the invoice, oldest first."""
    rows = sql.all(
        """
        SELECT txid, paid_atomic, refund_atomic, fee_atomic FROM refund
        WHERE invoice_id = :id ORDER BY number
        """,
        id=invoice.invoice_id,
    )
    return [
        Refund(**row, confirmations=chain.confirmations(sql, invoice.currency, row["txid"]) or 0)
        for row in rows
    ]


def judge(
    invoice: Invoice,
    paid: Sequence[Payment],
    returned: Sequence[Refund],
    required: int,
    now_ms: int,
) -> Judgement:
    """What the invoice is, from what the chain shows.  Pure.

    Args:
        required: confirmations at which a payment, or a refund, counts as settled.
    """
    in_time = [payment for payment in paid if payment.seen_ms < invoice.expires_ms]
    received = _counted(invoice, paid)
    lowest = min((payment.confirmations for payment in paid), default=0)
    full = _counted(invoice, in_time) >= invoice.amount_atomic
    if invoice.state == "completed" or (full and not returned):
        depth = _depth(invoice, in_time)
        done = invoice.state == "completed" or depth >= required
        return Judgement(
            state="completed" if done else "confirming",
            received_atomic=received,
            confirmations=depth,
            overpaid_atomic=max(0, received - invoice.amount_atomic),
        )
    if now_ms < invoice.expires_ms and not returned:
        state = "partial" if received else "pending"
        return Judgement(state=state, received_atomic=received, confirmations=lowest)
    return _judge_closed(invoice, received, lowest, returned, required)


def _judge_closed(
    invoice: Invoice, received: int, lowest: int, returned: Sequence[Refund], required: int
) -> Judgement:
    unanswered = received - sum(refund.paid_atomic for refund in returned)
    back = unanswered - restocking_fee_atomic(unanswered) if unanswered > 0 else 0
    owed = invoice.refund_address is not None and back >= COINS[invoice.currency].dust_atomic
    settled = all(refund.confirmations >= required for refund in returned)
    final = "refunded" if returned else "expired"
    return Judgement(
        state="refund_pending" if owed or not settled else final,
        received_atomic=received,
        confirmations=lowest,
        refund_now_atomic=unanswered if owed and lowest >= required else 0,
    )


def _counted(invoice: Invoice, paid: Sequence[Payment]) -> int:
    return max(0, sum(each.amount_atomic for each in paid) - invoice.undercount_atomic)


def _depth(invoice: Invoice, paid: Sequence[Payment]) -> int:
    """The depth at which the amount due has been reached; 0 when it is not."""
    needed = invoice.amount_atomic + invoice.undercount_atomic
    for payment in sorted(paid, key=lambda each: -each.confirmations):
        needed -= payment.amount_atomic
        if needed <= 0:
            return payment.confirmations
    return 0


def evaluate(sql: Session, config: PlatformConfig, invoice: Invoice, now_ms: int) -> Invoice:
    """Judge the invoice, do what follows (issue the key, send a refund) and write it down."""
    required = config.confirmations[invoice.currency]
    _resend_refunds(sql, invoice, now_ms)
    returned = refunds(sql, invoice)
    verdict = judge(invoice, payments(sql, invoice), returned, required, now_ms)
    public_key = invoice.public_key
    if verdict.state == "completed" and public_key is None and invoice.tier and invoice.months:
        public_key = keys.issue(sql, invoice.tier, invoice.months, now_ms)
    if verdict.state == "completed" and invoice.state != "completed":
        extensions.apply(sql, invoice.invoice_id, now_ms)
    if verdict.refund_now_atomic:
        _send_refund(sql, invoice, verdict.refund_now_atomic, now_ms)
    judged = msgspec.structs.replace(
        invoice,
        state=verdict.state,
        received_atomic=verdict.received_atomic,
        confirmations=verdict.confirmations,
        overpaid_atomic=verdict.overpaid_atomic,
        public_key=public_key,
    )
    if judged != invoice:
        _move(sql, judged)
        _live(sql, config, judged, sum(refund.paid_atomic for refund in returned), now_ms)
        if invoice.state == "completed" and invoice.is_sound != judged.is_sound:
            soundness.changed(sql, judged.invoice_id, judged.number, sound=judged.is_sound)
    return judged


def _live(
    sql: Session, config: PlatformConfig, judged: Invoice, returned_atomic: int, now_ms: int
) -> None:
    """Let the invoice's life cycle judge the judge; one that is older than it begins now."""
    run = lives.find(sql, InvoiceLife, judged.invoice_id)
    if run is not None and run.terminal:
        return
    event = Judged(
        verdict=judged.state,  # type: ignore[arg-type] # the machine refuses other words
        expires_ms=judged.expires_ms,
        received_atomic=judged.received_atomic,
        confirmations=judged.confirmations,
        returned_atomic=returned_atomic,
    )
    if run is None:
        lives.begin(sql, InvoiceLife, judged.invoice_id, _terms(config, judged), now_ms)
        if judged.state == "refunded":
            on_the_way = msgspec.structs.replace(event, verdict="refund_pending")
            lives.move(sql, InvoiceLife, judged.invoice_id, on_the_way, now_ms)
    lives.move(sql, InvoiceLife, judged.invoice_id, event, now_ms)
    card_id = judged.state == "completed" and sql.scalar(
        "SELECT card_id FROM gift_card WHERE invoice_id = :id", id=judged.invoice_id
    )
    if card_id and lives.find(sql, GiftCardLife, card_id) is not None:
        lives.move(sql, GiftCardLife, card_id, CardPaid(), now_ms)


def _terms(config: PlatformConfig, invoice: Invoice) -> InvoiceTerms:
    return InvoiceTerms(
        amount_atomic=invoice.amount_atomic,
        expires_ms=invoice.expires_ms,
        confirmations_required=config.confirmations[invoice.currency],
    )


def _move(sql: Session, invoice: Invoice) -> None:
    sql.run(
        """
        UPDATE invoice SET state = :state, received_atomic = :received,
            confirmations = :confirmations, overpaid_atomic = :overpaid, public_key = :public_key
        WHERE invoice_id = :id
        """,
        state=invoice.state,
        received=invoice.received_atomic,
        confirmations=invoice.confirmations,
        overpaid=invoice.overpaid_atomic,
        public_key=invoice.public_key,
        id=invoice.invoice_id,
    )


def evaluate_open(sql: Session, config: PlatformConfig, currency: str, now_ms: int) -> None:
    """Evaluate every invoice of a coin that can still change by a block or by time."""
    rows = sql.all(
        """
        SELECT * FROM invoice WHERE currency = :currency AND (
          state IN ('pending', 'partial', 'confirming', 'refund_pending')
          OR state IN ('expired', 'refunded') AND EXISTS (
            SELECT 1 FROM ledger_output o
            WHERE o.currency = invoice.currency AND o.address = invoice.address))
        """,
        currency=currency,
    )
    for row in rows:
        evaluate(sql, config, Invoice(**row), now_ms)
    for suspect in soundness.suspects(sql, currency):
        evaluate(sql, config, Invoice(**suspect), now_ms)  # type: ignore[arg-type]


def _send_refund(sql: Session, invoice: Invoice, paid_atomic: int, now_ms: int) -> None:
    fee = restocking_fee_atomic(paid_atomic)
    output = Output(invoice.refund_address or "", paid_atomic - fee)
    treasury = [
        coin
        for coin in wallets.unspent(sql, invoice.currency, _SHOP)
        if coin.kind in ("funding", "change") and coin.confirmations > 0
    ]
    try:
        payment = wallets.build(
            sql,
            invoice.currency,
            _SHOP,
            [output],
            now_ms,
            coins=treasury,
            salt=secrets.token_hex(32) if invoice.currency == "XMR" else "",
        )
    except wallets.NotEnough as error:
        _log.warning("refund_waits", invoice=invoice.number, reason=str(error))
        return
    txid = mempool.accept(sql, payment, now_ms)
    sql.run(
        """
        INSERT INTO refund (invoice_id, number, currency, txid, paid_atomic, refund_atomic,
            fee_atomic, created_ms)
        SELECT :id, COUNT(*) + 1, :currency, :txid, :paid, :refund, :fee, :now_ms
        FROM refund WHERE invoice_id = :id
        """,
        id=invoice.invoice_id,
        currency=invoice.currency,
        txid=txid,
        paid=paid_atomic,
        refund=paid_atomic - fee,
        fee=fee,
        now_ms=now_ms,
    )


def _resend_refunds(sql: Session, invoice: Invoice, now_ms: int) -> None:
    """A refund that fell out of the mempool is sent again: the same bytes, never another one."""
    rows = sql.all(
        """
        SELECT t.payload FROM refund r
        JOIN ledger_tx t ON t.currency = r.currency AND t.txid = r.txid
        WHERE r.invoice_id = :id AND t.state = 'evicted' ORDER BY r.number
        """,
        id=invoice.invoice_id,
    )
    for row in rows:
        try:
            mempool.accept(sql, transaction.from_hex(row["payload"]), now_ms)
        except mempool.Refusal as error:
            _log.warning("refund_not_resent", invoice=invoice.number, reason=str(error))


def _existing(sql: Session, invoice_id: str) -> Invoice:
    row = sql.one("SELECT * FROM invoice WHERE invoice_id = :id", id=invoice_id)
    return Invoice(**(row or {}))
