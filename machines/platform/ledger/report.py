"""What happened to the money: every invoice with the transactions that paid it, and the sums.

`turtles platform ledger --json` prints this; the kill storm reads `confirmed_spends` from it.
"""

from __future__ import annotations

from typing import Any

from machines.platform import invoices
from machines.platform.context import CURRENCIES
from machines.platform.invoices import Invoice
from machines.platform.ledger import chain, wallets
from persistence.database import Database, Session


def ledger_report(database: Database) -> dict[str, Any]:
    """Invoices with their payments and refunds, balances, and conservation for each coin.

    Amounts are integers in atomic units.  `confirmed_spends` counts the transactions in the best
    chain that pay the invoice's address; `conserved` says that unspent outputs and fees equal
    what was ever made; `consistent` that this holds for every coin.
    """
    with database.reading() as sql:
        currencies = {currency: _currency(sql, currency) for currency in CURRENCIES}
        rows = sql.all("SELECT * FROM invoice ORDER BY number")
        listed = [_invoice(sql, Invoice(**row)) for row in rows]
    return {
        "currencies": currencies,
        "invoices": listed,
        "consistent": all(each["conserved"] for each in currencies.values()),
    }


def _invoice(sql: Session, invoice: Invoice) -> dict[str, Any]:
    transactions = _transactions(sql, invoice)
    return {
        "invoice_id": invoice.invoice_id,
        "currency": invoice.currency,
        "status": invoice.state,
        "tier": invoice.tier,
        "months": invoice.months,
        "price_cents": invoice.price_cents,
        "address": invoice.address,
        "amount_atomic": invoice.amount_atomic,
        "received_atomic": invoice.received_atomic,
        "overpaid_atomic": invoice.overpaid_atomic,
        "public_key": invoice.public_key,
        "transactions": transactions,
        "confirmed_spends": sum(each["state"] == "mined" for each in transactions),
        "refunds": [
            {
                "txid": refund.txid,
                "paid_atomic": refund.paid_atomic,
                "refund_atomic": refund.refund_atomic,
                "fee_atomic": refund.fee_atomic,
                "confirmations": refund.confirmations,
            }
            for refund in invoices.refunds(sql, invoice)
        ],
    }


def _transactions(sql: Session, invoice: Invoice) -> list[dict[str, Any]]:
    """Every transaction that ever paid the address, also those that lost."""
    rows = sql.all(
        """
        SELECT t.txid, SUM(o.amount_atomic) AS amount_atomic, t.state
        FROM ledger_output o
        JOIN ledger_tx t ON t.currency = o.currency AND t.txid = o.txid
        WHERE o.currency = :currency AND o.address = :address
        GROUP BY t.id ORDER BY t.id
        """,
        currency=invoice.currency,
        address=invoice.address,
    )
    return [
        dict(row) | {"confirmations": chain.confirmations(sql, invoice.currency, row["txid"])}
        for row in rows
    ]


def _currency(sql: Session, currency: str) -> dict[str, Any]:
    rows = sql.all(
        "SELECT name FROM wallet WHERE currency = :currency ORDER BY name", currency=currency
    )
    funded, fees, unspent = _sums(sql, currency)
    return {
        "height": chain.tip(sql, currency).height,
        "balances": {row["name"]: wallets.balance(sql, currency, row["name"]) for row in rows},
        "funded_atomic": funded,
        "fees_atomic": fees,
        "unspent_atomic": unspent,
        "conserved": unspent + fees == funded,
    }


def _sums(sql: Session, currency: str) -> tuple[int, int, int]:
    """Made, paid in fees, and unspent.  Added up in Python: SQLite's sums stop at 64 bits."""
    outputs = sql.all(
        """
        SELECT o.amount_atomic, t.coinbase, EXISTS (
            SELECT 1 FROM ledger_input i
            JOIN ledger_tx s ON s.currency = i.currency AND s.txid = i.txid
            WHERE i.currency = o.currency AND i.spent_txid = o.txid AND i.spent_vout = o.vout
              AND s.state IN ('mempool', 'mined')) AS spent
        FROM ledger_output o
        JOIN ledger_tx t ON t.currency = o.currency AND t.txid = o.txid
        WHERE o.currency = :currency AND t.state IN ('mempool', 'mined')
        """,
        currency=currency,
    )
    fees = sql.all(
        "SELECT fee_atomic FROM ledger_tx WHERE currency = :currency "
        "AND state IN ('mempool', 'mined')",
        currency=currency,
    )
    return (
        sum(row["amount_atomic"] for row in outputs if row["coinbase"]),
        sum(row["fee_atomic"] for row in fees),
        sum(row["amount_atomic"] for row in outputs if not row["spent"]),
    )
