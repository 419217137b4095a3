"""Gift cards, their redemptions and letters; an invoice may now buy one instead of a key.

SQLite cannot loosen a table's checks in place, so `invoice` is made anew, and with it `refund`,
which refers to it.  Rows are set aside and put back with all their values.
"""

from alembic import op

revision = "0003"
down_revision = "0002"

_INVOICE = """
    CREATE TABLE invoice (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        invoice_id TEXT NOT NULL UNIQUE,
        tier INTEGER CHECK (tier BETWEEN 1 AND 32),
        months INTEGER CHECK (months > 0),
        currency TEXT NOT NULL,
        price_cents INTEGER NOT NULL CHECK (price_cents > 0),
        amount_atomic INTEGER NOT NULL
            CHECK (typeof(amount_atomic) = 'integer' AND amount_atomic > 0),
        address TEXT NOT NULL UNIQUE,
        email TEXT,
        refund_address TEXT,
        idempotency_key TEXT UNIQUE,
        request_hash TEXT NOT NULL,
        created_ms INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('pending', 'partial', 'confirming', 'completed',
            'expired', 'refund_pending', 'refunded')),
        received_atomic INTEGER NOT NULL DEFAULT 0 CHECK (received_atomic >= 0),
        overpaid_atomic INTEGER NOT NULL DEFAULT 0 CHECK (overpaid_atomic >= 0),
        confirmations INTEGER NOT NULL DEFAULT 0,
        undercount_atomic INTEGER NOT NULL DEFAULT 0 CHECK (undercount_atomic >= 0),
        public_key TEXT UNIQUE REFERENCES api_key (public_key),
        CHECK ((tier IS NULL) = (months IS NULL)),
        CHECK ((state = 'completed' AND tier IS NOT NULL) = (public_key IS NOT NULL))
    )
    """
_REFUND = """
    CREATE TABLE refund (
        invoice_id TEXT NOT NULL REFERENCES invoice (invoice_id),
        number INTEGER NOT NULL CHECK (number > 0),
        currency TEXT NOT NULL,
        txid TEXT NOT NULL,
        paid_atomic INTEGER NOT NULL,
        refund_atomic INTEGER NOT NULL CHECK (refund_atomic > 0),
        fee_atomic INTEGER NOT NULL,
        created_ms INTEGER NOT NULL,
        PRIMARY KEY (invoice_id, number),
        UNIQUE (currency, txid),
        FOREIGN KEY (currency, txid) REFERENCES ledger_tx (currency, txid),
        CHECK (refund_atomic + fee_atomic = paid_atomic)
    ) WITHOUT ROWID
    """
_GIFTS = (
    """
    CREATE TABLE gift_pepper (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        pepper_sealed TEXT NOT NULL
    )
    """,
    """
    CREATE TABLE gift_card (
        card_id TEXT PRIMARY KEY,
        invoice_id TEXT NOT NULL UNIQUE REFERENCES invoice (invoice_id),
        code_digest TEXT NOT NULL UNIQUE,
        amount_cents INTEGER NOT NULL
            CHECK (typeof(amount_cents) = 'integer' AND amount_cents >= 700),
        balance_cents INTEGER NOT NULL CHECK (typeof(balance_cents) = 'integer'
            AND balance_cents BETWEEN 0 AND amount_cents),
        needs_approval INTEGER NOT NULL CHECK (needs_approval IN (0, 1)),
        email TEXT,
        created_ms INTEGER NOT NULL,
        CHECK (needs_approval = 0 OR email IS NOT NULL)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE gift_redemption (
        redemption_id TEXT PRIMARY KEY,
        card_id TEXT NOT NULL REFERENCES gift_card (card_id),
        tier INTEGER NOT NULL CHECK (tier BETWEEN 1 AND 32),
        months INTEGER NOT NULL CHECK (months > 0),
        price_cents INTEGER NOT NULL
            CHECK (typeof(price_cents) = 'integer' AND price_cents > 0),
        state TEXT NOT NULL CHECK (state IN ('pending_approval', 'redeemed', 'denied')),
        public_key TEXT UNIQUE REFERENCES api_key (public_key),
        token_digest TEXT UNIQUE,
        idempotency_key TEXT,
        requested_ms INTEGER NOT NULL,
        decided_ms INTEGER,
        UNIQUE (card_id, idempotency_key),
        CHECK ((state = 'redeemed') = (public_key IS NOT NULL)),
        CHECK ((state = 'pending_approval') = (decided_ms IS NULL))
    ) WITHOUT ROWID
    """,
    "CREATE INDEX gift_redemption_card ON gift_redemption (card_id, requested_ms)",
    """
    CREATE TABLE gift_letter (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        redemption_id TEXT NOT NULL UNIQUE REFERENCES gift_redemption (redemption_id),
        recipient TEXT NOT NULL,
        text_sealed TEXT NOT NULL,
        created_ms INTEGER NOT NULL
    )
    """,
)
_INDEX = "CREATE INDEX invoice_open ON invoice (currency, state)"


def upgrade() -> None:
    """Let an invoice buy a gift card, and add the cards."""
    _make_anew(_INVOICE)
    for statement in _GIFTS:
        op.execute(statement)


def downgrade() -> None:
    """Drop the cards.  Fails, changing nothing, where an invoice for one exists."""
    for table in ("gift_letter", "gift_redemption", "gift_card", "gift_pepper"):
        op.execute(f"DROP TABLE {table}")
    strict = _INVOICE.replace("tier INTEGER CHECK", "tier INTEGER NOT NULL CHECK")
    strict = strict.replace("months INTEGER CHECK", "months INTEGER NOT NULL CHECK")
    strict = strict.replace("        CHECK ((tier IS NULL) = (months IS NULL)),\n", "").replace(
        "(state = 'completed' AND tier IS NOT NULL)", "(state = 'completed')"
    )
    _make_anew(strict)


def _make_anew(invoice: str) -> None:
    for table in ("invoice", "refund"):
        op.execute(f"CREATE TEMP TABLE kept_{table} AS SELECT * FROM {table}")  # noqa: S608
    op.execute("DROP TABLE refund")
    op.execute("DROP TABLE invoice")
    for statement in (invoice, _INDEX, _REFUND):
        op.execute(statement)
    # The columns are the same on both sides, and in the same order.
    for table in ("invoice", "refund"):
        op.execute(f"INSERT INTO {table} SELECT * FROM kept_{table}")  # noqa: S608
        op.execute(f"DROP TABLE kept_{table}")
