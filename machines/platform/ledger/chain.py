"""Blocks, mempool, conflicts, reorganisations: what a node of each chain believes.

A transaction is in one of four states::

    accept      ──► mempool ──mine──► mined
                     │   ▲              │
                   evict └──invalidate──┘
                     ▼
                  evicted ──accept──► mempool        (the same bytes again)

    mempool, evicted ──an input spent by a mined rival──► conflicted ──rival reorganised away──►
    evicted

An output is spent when a transaction in `mempool` or `mined` spends it.  Descendants of an evicted
or conflicted transaction go with it.  Every function runs inside the caller's transaction, so a
crash leaves a chain that is whole.
"""

from __future__ import annotations

import hashlib
import secrets

import msgspec

from machines.platform.ledger.transaction import Outpoint
from persistence.database import Row, Session


class Tip(msgspec.Struct, frozen=True):
    """The newest block of the best chain; height -1 before the first."""

    height: int
    hash: str


def tip(sql: Session, currency: str) -> Tip:
    """The newest block of a chain."""
    row = sql.one(
        """
        SELECT height, hash FROM block WHERE currency = :currency AND state = 'best'
        ORDER BY height DESC LIMIT 1
        """,
        currency=currency,
    )
    return Tip(row["height"], row["hash"]) if row else Tip(-1, "0" * 64)


def find(sql: Session, currency: str, txid: str) -> Row | None:
    """A transaction's row with `height`, `block_hash`, `mined_ms` of its block (or None)."""
    return sql.one(
        """
        SELECT t.*, b.height, b.hash AS block_hash, b.mined_ms
        FROM ledger_tx t LEFT JOIN block b ON b.id = t.block_id
        WHERE t.currency = :currency AND t.txid = :txid
        """,
        currency=currency,
        txid=txid,
    )


def spender(sql: Session, currency: str, outpoint: Outpoint) -> Row | None:
    """The transaction (txid, state) in mempool or chain that spends an output, or None."""
    return sql.one(
        """
        SELECT t.txid, t.state FROM ledger_input i
        JOIN ledger_tx t ON t.currency = i.currency AND t.txid = i.txid
        WHERE i.currency = :currency AND i.spent_txid = :txid AND i.spent_vout = :vout
          AND t.state IN ('mempool', 'mined')
        """,
        currency=currency,
        txid=outpoint.txid,
        vout=outpoint.vout,
    )


def output(sql: Session, currency: str, outpoint: Outpoint) -> Row | None:
    """An output of a transaction in mempool or chain, with its `state`, `height`, owner's `seed`
    and `wallet` (None when no wallet here owns it); None when there is no such output."""
    return sql.one(
        """
        SELECT o.address, o.amount_atomic, t.state, t.coinbase, b.height, w.seed,
            w.name AS wallet
        FROM ledger_output o
        JOIN ledger_tx t ON t.currency = o.currency AND t.txid = o.txid
        LEFT JOIN block b ON b.id = t.block_id
        LEFT JOIN wallet_address a ON a.currency = o.currency AND a.address = o.address
        LEFT JOIN wallet w ON w.currency = a.currency AND w.name = a.wallet
        WHERE o.currency = :currency AND o.txid = :txid AND o.vout = :vout
          AND t.state IN ('mempool', 'mined')
        """,
        currency=currency,
        txid=outpoint.txid,
        vout=outpoint.vout,
    )


def rivals(sql: Session, currency: str, txid: str) -> list[Row]:
    """Other transactions that spend an input of this one: `txid`, `state`, `height`."""
    return sql.all(
        """
        SELECT DISTINCT t.txid, t.state, b.height FROM ledger_input mine
        JOIN ledger_input other ON other.currency = mine.currency
          AND other.spent_txid = mine.spent_txid AND other.spent_vout = mine.spent_vout
          AND other.txid <> mine.txid
        JOIN ledger_tx t ON t.currency = other.currency AND t.txid = other.txid
        LEFT JOIN block b ON b.id = t.block_id
        WHERE mine.currency = :currency AND mine.txid = :txid ORDER BY t.id
        """,
        currency=currency,
        txid=txid,
    )


def confirmations(sql: Session, currency: str, txid: str) -> int | None:
    """Depth in the best chain; 0 when not in it; negative when a rival is that deep; None when
    unknown."""
    row = find(sql, currency, txid)
    if row is None:
        return None
    height = tip(sql, currency).height
    if row["state"] == "mined":
        return height - int(row["height"]) + 1
    if row["state"] == "conflicted":
        return -(height - _rival_height(sql, currency, txid) + 1)
    return 0


def _rival_height(sql: Session, currency: str, txid: str) -> int:
    mined = [row for row in rivals(sql, currency, txid) if row["state"] == "mined"]
    heights: list[int] = [row["height"] for row in mined]
    parents = sql.all(
        """
        SELECT t.txid FROM ledger_input i
        JOIN ledger_tx t ON t.currency = i.currency AND t.txid = i.spent_txid
        WHERE i.currency = :currency AND i.txid = :txid AND t.state = 'conflicted'
        """,
        currency=currency,
        txid=txid,
    )
    heights += [_rival_height(sql, currency, parent["txid"]) for parent in parents]
    return min(heights)


def unlock(sql: Session, currency: str, outpoint: Outpoint) -> int:
    """Forget the wallet's reservation of an output; the number of reservations forgotten."""
    return sql.run(
        "DELETE FROM output_lock WHERE currency = :currency AND txid = :txid AND vout = :vout",
        currency=currency,
        txid=outpoint.txid,
        vout=outpoint.vout,
    )


def mine(sql: Session, currency: str, now_ms: int, count: int = 1) -> list[str]:
    """Mine blocks; the first takes the whole mempool.

    Returns:
        their hashes, oldest first.
    """
    return [_mine_one(sql, currency, now_ms) for _ in range(count)]


def _mine_one(sql: Session, currency: str, now_ms: int) -> str:
    last = tip(sql, currency)
    nonce = secrets.token_hex(8)  # two blocks with the same content must differ (payments.md 1.1)
    text = f"{currency}:{last.height + 1}:{last.hash}:{now_ms}:{nonce}"
    block_hash = hashlib.sha256(text.encode()).hexdigest()
    block_id = sql.scalar(
        """
        INSERT INTO block (currency, height, hash, previous_hash, mined_ms, state)
        VALUES (:currency, :height, :hash, :previous, :now_ms, 'best') RETURNING id
        """,
        currency=currency,
        height=last.height + 1,
        hash=block_hash,
        previous=last.hash,
        now_ms=now_ms,
    )
    sql.run(
        """
        UPDATE ledger_tx SET state = 'mined', block_id = :block_id
        WHERE currency = :currency AND state = 'mempool'
        """,
        block_id=block_id,
        currency=currency,
    )
    _mark_conflicts(sql, currency)
    return block_hash


def _mark_conflicts(sql: Session, currency: str) -> None:
    """Whatever spends what a mined transaction spent is conflicted, and so are its descendants."""
    sql.run(
        """
        UPDATE ledger_tx SET state = 'conflicted'
        WHERE currency = :currency AND state IN ('mempool', 'evicted') AND EXISTS (
            SELECT 1 FROM ledger_input mine
            JOIN ledger_input other ON other.currency = mine.currency
              AND other.spent_txid = mine.spent_txid AND other.spent_vout = mine.spent_vout
              AND other.txid <> mine.txid
            JOIN ledger_tx rival ON rival.currency = other.currency AND rival.txid = other.txid
            WHERE mine.currency = ledger_tx.currency AND mine.txid = ledger_tx.txid
              AND rival.state = 'mined')
        """,
        currency=currency,
    )
    _spread(sql, currency, "conflicted", "'mempool', 'evicted'")


def _spread(sql: Session, currency: str, state: str, victims: str) -> None:
    """Descendants share the fate of their parents."""
    statement = f"""
        UPDATE ledger_tx SET state = '{state}'
        WHERE currency = :currency AND state IN ({victims}) AND EXISTS (
            SELECT 1 FROM ledger_input i
            JOIN ledger_tx parent ON parent.currency = i.currency AND parent.txid = i.spent_txid
            WHERE i.currency = ledger_tx.currency AND i.txid = ledger_tx.txid
              AND parent.state = '{state}')
        """  # noqa: S608 - both are literals of this file
    while sql.run(statement, currency=currency):
        pass


def invalidate(sql: Session, currency: str, depth: int) -> list[str]:
    """Take back the newest `depth` blocks; their transactions return to the mempool.

    Never the block that funded the wallets.  Transactions whose rival is no longer mined may be
    sent again.

    Returns:
        the txids that returned, in the order in which they were first seen.
    """
    height = tip(sql, currency).height
    lowest = max(height - depth + 1, 1)
    returned = sql.all(
        """
        SELECT t.txid, t.block_id FROM ledger_tx t JOIN block b ON b.id = t.block_id
        WHERE b.currency = :currency AND b.state = 'best' AND b.height >= :lowest ORDER BY t.id
        """,
        currency=currency,
        lowest=lowest,
    )
    sql.run_many("INSERT INTO stale_tx VALUES (:block_id, :txid)", returned)
    for row in returned:
        set_state(sql, currency, row["txid"], "mempool")
    sql.run(
        """
        UPDATE block SET state = 'stale'
        WHERE currency = :currency AND state = 'best' AND height >= :lowest
        """,
        currency=currency,
        lowest=lowest,
    )
    sql.run(
        "UPDATE ledger_tx SET state = 'evicted' WHERE currency = :currency "
        "AND state = 'conflicted'",
        currency=currency,
    )
    _mark_conflicts(sql, currency)
    return [row["txid"] for row in returned]


def evict(sql: Session, currency: str, txid: str) -> bool:
    """Drop a transaction and its descendants from the mempool; False when it was not in it."""
    row = find(sql, currency, txid)
    if row is None or row["state"] != "mempool":
        return False
    set_state(sql, currency, txid, "evicted")
    _spread(sql, currency, "evicted", "'mempool'")
    return True


def set_state(sql: Session, currency: str, txid: str, state: str) -> None:
    """Put a transaction into a state outside the chain (`mempool` or `evicted`)."""
    sql.run(
        "UPDATE ledger_tx SET state = :state, block_id = NULL "
        "WHERE currency = :currency AND txid = :txid",
        state=state,
        currency=currency,
        txid=txid,
    )
