"""Whether what was sold is still paid: a reorganised chain may take a payment back for good.

::

    completed, payment in the chain        keys work, cards redeem
    completed, payment in no block         what it bought is suspended: its key, the keys it gave
                                           more time, its card and every key redeemed from it
    mined again (or paid again)            all of it works again

A payment that only lost some depth, and stands in the chain, suspends nothing.  This runs in the
transaction that changes the chain, so that no request sees money gone and its key working.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from persistence.database import Session

_log = structlog.get_logger("turtles.platform.soundness")


def changed(sql: Session, invoice_id: str, number: int, *, sound: bool) -> None:
    """The payment of a completed invoice was lost or has come back: judge the keys it paid."""
    if sound:
        _log.warning("payment_restored", invoice=number)
    else:
        _log.warning("payment_reversed", invoice=number)
    for row in sql.all(_KEYS_OF, id=invoice_id):
        _judge(sql, row["public_key"])


def _judge(sql: Session, public_key: str) -> None:
    lost = sql.scalar(_LOST, key=public_key)
    sql.run(
        "UPDATE api_key SET status = :status WHERE public_key = :key",
        status="suspended" if lost else "active",
        key=public_key,
    )


def suspects(sql: Session, currency: str) -> list[Mapping[str, object]]:
    """Completed invoices whose money is in no block now, or was not when they were last judged."""
    return sql.all(_SUSPECTS, currency=currency)


_KEYS_OF = """
    SELECT public_key FROM invoice WHERE invoice_id = :id AND public_key IS NOT NULL
    UNION SELECT public_key FROM invoice_extension
        WHERE invoice_id = :id AND applied_ms IS NOT NULL
    UNION SELECT r.public_key FROM gift_redemption r JOIN gift_card c ON c.card_id = r.card_id
        WHERE c.invoice_id = :id AND r.public_key IS NOT NULL
"""
_LOST = """
    SELECT count(*) FROM invoice WHERE state = 'completed' AND confirmations < 1 AND invoice_id IN (
        SELECT invoice_id FROM invoice WHERE public_key = :key
        UNION SELECT invoice_id FROM invoice_extension
            WHERE public_key = :key AND applied_ms IS NOT NULL
        UNION SELECT c.invoice_id FROM gift_redemption r
            JOIN gift_card c ON c.card_id = r.card_id WHERE r.public_key = :key)
"""
_SUSPECTS = """
    SELECT * FROM invoice WHERE currency = :currency AND state = 'completed' AND (
        confirmations < 1 OR EXISTS (
            SELECT 1 FROM ledger_output o
            JOIN ledger_tx t ON t.currency = o.currency AND t.txid = o.txid
            WHERE o.currency = invoice.currency AND o.address = invoice.address
            AND t.state <> 'mined'))
"""
