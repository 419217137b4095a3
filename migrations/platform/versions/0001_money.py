"""Ledgers, wallets, invoices, refunds, keys and faults."""

from alembic import op

revision = "0001"
down_revision = None

_STATEMENTS = (
    """
    CREATE TABLE block (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        currency TEXT NOT NULL,
        height INTEGER NOT NULL CHECK (height >= 0),
        hash TEXT NOT NULL UNIQUE,
        previous_hash TEXT NOT NULL,
        mined_ms INTEGER NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('best', 'stale'))
    )
    """,
    "CREATE UNIQUE INDEX block_best ON block (currency, height) WHERE state = 'best'",
    """
    CREATE TABLE ledger_tx (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        currency TEXT NOT NULL,
        txid TEXT NOT NULL,
        payload TEXT NOT NULL,
        fee_atomic INTEGER NOT NULL CHECK (typeof(fee_atomic) = 'integer' AND fee_atomic >= 0),
        coinbase INTEGER NOT NULL CHECK (coinbase IN (0, 1)),
        state TEXT NOT NULL CHECK (state IN ('mempool', 'mined', 'conflicted', 'evicted')),
        block_id INTEGER REFERENCES block (id),
        seen_ms INTEGER NOT NULL,
        UNIQUE (currency, txid),
        CHECK ((state = 'mined') = (block_id IS NOT NULL))
    )
    """,
    "CREATE INDEX ledger_tx_state ON ledger_tx (currency, state)",
    "CREATE INDEX ledger_tx_block ON ledger_tx (block_id)",
    """
    CREATE TABLE stale_tx (
        block_id INTEGER NOT NULL REFERENCES block (id),
        txid TEXT NOT NULL,
        PRIMARY KEY (block_id, txid)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE ledger_output (
        currency TEXT NOT NULL,
        txid TEXT NOT NULL,
        vout INTEGER NOT NULL CHECK (vout >= 0),
        address TEXT NOT NULL,
        amount_atomic INTEGER NOT NULL
            CHECK (typeof(amount_atomic) = 'integer' AND amount_atomic > 0),
        key_image TEXT,
        PRIMARY KEY (currency, txid, vout),
        FOREIGN KEY (currency, txid) REFERENCES ledger_tx (currency, txid)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX ledger_output_address ON ledger_output (currency, address)",
    "CREATE UNIQUE INDEX ledger_output_key_image ON ledger_output (currency, key_image)",
    """
    CREATE TABLE ledger_input (
        currency TEXT NOT NULL,
        txid TEXT NOT NULL,
        position INTEGER NOT NULL CHECK (position >= 0),
        spent_txid TEXT NOT NULL,
        spent_vout INTEGER NOT NULL,
        PRIMARY KEY (currency, txid, position),
        FOREIGN KEY (currency, txid) REFERENCES ledger_tx (currency, txid),
        FOREIGN KEY (currency, spent_txid, spent_vout)
            REFERENCES ledger_output (currency, txid, vout)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX ledger_input_spent ON ledger_input (currency, spent_txid, spent_vout)",
    """
    CREATE TABLE wallet (
        currency TEXT NOT NULL,
        name TEXT NOT NULL,
        seed TEXT NOT NULL,
        passphrase_hash TEXT,
        unlocked_until_ms INTEGER NOT NULL DEFAULT 0,
        address_count INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (currency, name)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE wallet_address (
        currency TEXT NOT NULL,
        address TEXT NOT NULL,
        wallet TEXT NOT NULL,
        address_index INTEGER NOT NULL,
        label TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('funding', 'receive', 'change')),
        created_ms INTEGER NOT NULL,
        PRIMARY KEY (currency, address),
        UNIQUE (currency, wallet, address_index),
        FOREIGN KEY (currency, wallet) REFERENCES wallet (currency, name)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE output_lock (
        currency TEXT NOT NULL,
        txid TEXT NOT NULL,
        vout INTEGER NOT NULL,
        PRIMARY KEY (currency, txid, vout),
        FOREIGN KEY (currency, txid, vout) REFERENCES ledger_output (currency, txid, vout)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE api_key (
        public_key TEXT PRIMARY KEY,
        secret_sealed TEXT NOT NULL,
        tier INTEGER NOT NULL CHECK (tier BETWEEN 1 AND 32),
        status TEXT NOT NULL CHECK (status IN ('active', 'suspended')),
        created_ms INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL,
        secret_viewed_ms INTEGER,
        generation INTEGER NOT NULL DEFAULT 1
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE invoice (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        invoice_id TEXT NOT NULL UNIQUE,
        tier INTEGER NOT NULL CHECK (tier BETWEEN 1 AND 32),
        months INTEGER NOT NULL CHECK (months > 0),
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
        CHECK ((state = 'completed') = (public_key IS NOT NULL))
    )
    """,
    "CREATE INDEX invoice_open ON invoice (currency, state)",
    """
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
    """,
    """
    CREATE TABLE fault (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL,
        arguments TEXT NOT NULL,
        remaining INTEGER NOT NULL CHECK (remaining >= 0)
    )
    """,
)


def upgrade() -> None:
    """Create the money half of the platform."""
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Drop it again, children first."""
    tables = ("fault", "refund", "invoice", "api_key", "output_lock", "wallet_address", "wallet")
    for table in (*tables, "ledger_input", "ledger_output", "stale_tx", "ledger_tx", "block"):
        op.execute(f"DROP TABLE {table}")
