"""More time for keys that exist: what an invoice for it buys, and the moment it is given.

::

    invoice opened (extends: unsb-pk-...) -> invoice_extension row, not applied
    invoice completed                     -> months added to the key, row stamped, once

Stamping and adding happen in the transaction that completes the invoice, so a crash can neither
lose nor repeat them.  Anybody may pay, so nothing here ever shows a secret.
"""

from __future__ import annotations

import msgspec

from machines.platform import keys
from persistence.database import Session


class Extension(msgspec.Struct, frozen=True, kw_only=True):
    """More time for a key of that tier."""

    public_key: str
    tier: int
    months: int


class Extended(Extension, frozen=True, kw_only=True):
    """An extension that was ordered; `key_expires_ms` is what paying it made of the key."""

    applied_ms: int | None
    key_expires_ms: int | None


def order(sql: Session, invoice_id: str, wanted: Extension) -> None:
    """Note what a new invoice buys."""
    sql.run(
        """
        INSERT INTO invoice_extension (invoice_id, public_key, tier, months)
        VALUES (:id, :public_key, :tier, :months)
        """,
        id=invoice_id,
        public_key=wanted.public_key,
        tier=wanted.tier,
        months=wanted.months,
    )


def find(sql: Session, invoice_id: str) -> Extended | None:
    """What an invoice extends; None when it buys something else."""
    row = sql.one(
        """
        SELECT public_key, tier, months, applied_ms, key_expires_ms
        FROM invoice_extension WHERE invoice_id = :id
        """,
        id=invoice_id,
    )
    return Extended(**row) if row else None


def apply(sql: Session, invoice_id: str, now_ms: int) -> None:
    """The invoice is completed: give what it bought.  Again, or of another kind: nothing."""
    bought = find(sql, invoice_id)
    if bought is None or bought.applied_ms is not None:
        return
    sql.run(
        """
        UPDATE invoice_extension SET applied_ms = :now_ms, key_expires_ms = :expires_ms
        WHERE invoice_id = :id
        """,
        now_ms=now_ms,
        expires_ms=keys.extend(sql, bought.public_key, bought.months, now_ms),
        id=invoice_id,
    )
