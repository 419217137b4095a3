"""What a node takes into its mempool, and why it refuses the rest.

A transaction that waits already is fine; one that is mined is refused by name, and a mined one
whose outputs are all spent looks like one whose inputs are missing: the node no longer knows
(payments.md, section 1.7).  A refusal changes nothing.
"""

from __future__ import annotations

from typing import Literal

from engine.errors import TurtlesError
from machines.platform.ledger import chain
from machines.platform.ledger import transaction as transactions
from machines.platform.ledger.coins import COINS, size_bytes
from machines.platform.ledger.transaction import Outpoint, Transaction
from persistence.database import Session

ANCESTORS_MAX = 25

Reason = Literal[
    "already_mined",
    "already_mined_spent",
    "missing_inputs",
    "mempool_conflict",
    "bad_signature",
    "in_below_out",
    "fee_too_low",
    "dust",
    "locked_inputs",
    "too_long_chain",
    "malformed",
]


class Refusal(TurtlesError):
    """The node does not take a transaction; `reason` says which rule."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def accept(sql: Session, transaction: Transaction, now_ms: int) -> str:
    """Take a transaction into the mempool; one that is already there is fine.

    Returns:
        its txid.

    Raises:
        Refusal: the rule it breaks.
    """
    currency, txid = transaction.currency, transaction.txid
    known = chain.find(sql, currency, txid)
    if known is not None and known["state"] == "mempool":
        return txid
    if known is not None and known["state"] == "mined":
        raise _already_mined(sql, transaction)
    fee = _check(sql, transaction)
    if known is None:
        _insert(sql, transaction, fee, now_ms)
    else:
        chain.set_state(sql, currency, txid, "mempool")
    return txid


def refusal_of(sql: Session, transaction: Transaction) -> Reason | None:
    """Why a transaction that does not wait already would be refused; None: it would be taken."""
    known = chain.find(sql, transaction.currency, transaction.txid)
    try:
        if known is not None and known["state"] == "mined":
            raise _already_mined(sql, transaction)
        _check(sql, transaction)
    except Refusal as refusal:
        return refusal.reason
    return None


def insert_coinbase(sql: Session, transaction: Transaction, now_ms: int) -> None:
    """Put newly made money into the mempool; it is mined with the next block."""
    _insert(sql, transaction, 0, now_ms, coinbase=1)


def _already_mined(sql: Session, transaction: Transaction) -> Refusal:
    currency, txid = transaction.currency, transaction.txid
    places = (Outpoint(txid, vout) for vout in range(len(transaction.outputs)))
    if all(chain.spender(sql, currency, place) for place in places):
        return Refusal("already_mined_spent", f"{txid}: mined, and all its outputs are spent")
    return Refusal("already_mined", f"{txid}: already in the block chain")


def _check(sql: Session, transaction: Transaction) -> int:
    """The fee of a valid transaction."""
    _check_shape(transaction)
    spent = 0
    for position, outpoint in enumerate(transaction.inputs):
        spent += _check_input(sql, transaction, position, outpoint)
    paid = sum(out.amount_atomic for out in transaction.outputs)
    if spent < paid:
        raise Refusal("in_below_out", f"inputs hold {spent}, outputs take {paid}")
    least = size_bytes(len(transaction.inputs), len(transaction.outputs))
    least *= COINS[transaction.currency].fee_per_byte_atomic // 2
    if spent - paid < least:
        raise Refusal("fee_too_low", f"fee is {spent - paid}, the least is {least}")
    if _unconfirmed_ancestors(sql, transaction) >= ANCESTORS_MAX:
        raise Refusal("too_long_chain", f"over {ANCESTORS_MAX} unconfirmed ancestors")
    return spent - paid


def _check_shape(transaction: Transaction) -> None:
    if not transaction.inputs or len(set(transaction.inputs)) != len(transaction.inputs):
        raise Refusal("malformed", "expected inputs, each once")
    if not transaction.outputs or len(transaction.signatures) != len(transaction.inputs):
        raise Refusal("bad_signature", "expected outputs, and one signature for each input")
    dust = COINS[transaction.currency].dust_atomic
    if any(out.amount_atomic < dust for out in transaction.outputs):
        raise Refusal("dust", f"an output holds less than {dust}")


def _check_input(sql: Session, transaction: Transaction, position: int, outpoint: Outpoint) -> int:
    currency = transaction.currency
    place = chain.output(sql, currency, outpoint)
    if place is None:
        raise Refusal("missing_inputs", f"input {outpoint.txid}:{outpoint.vout} is unknown")
    rival = chain.spender(sql, currency, outpoint)
    if rival is not None and rival["state"] == "mined":
        raise Refusal("missing_inputs", f"input {outpoint.txid}:{outpoint.vout} is spent")
    if rival is not None:
        raise Refusal("mempool_conflict", f"{rival['txid']} in the mempool spends an input")
    if transaction.signatures[position] != transaction.signature(place["seed"] or "", outpoint):
        raise Refusal("bad_signature", f"input {position} is not signed by its owner")
    depth = (
        chain.tip(sql, currency).height - place["height"] + 1 if place["state"] == "mined" else 0
    )
    if depth < COINS[currency].unlock_depth and not place["coinbase"]:
        raise Refusal("locked_inputs", f"input {position} is locked, {depth} blocks deep")
    return int(place["amount_atomic"])


def _unconfirmed_ancestors(sql: Session, transaction: Transaction) -> int:
    seen: set[str] = set()
    waiting = [outpoint.txid for outpoint in transaction.inputs]
    while waiting and len(seen) < ANCESTORS_MAX:
        txid = waiting.pop()
        row = chain.find(sql, transaction.currency, txid)
        if txid in seen or row is None or row["state"] != "mempool":
            continue
        seen.add(txid)
        parent = transactions.from_hex(row["payload"])
        waiting += [outpoint.txid for outpoint in parent.inputs]
    return len(seen)


def _insert(
    sql: Session, transaction: Transaction, fee: int, now_ms: int, *, coinbase: int = 0
) -> None:
    currency, txid = transaction.currency, transaction.txid
    sql.run(
        """
        INSERT INTO ledger_tx (currency, txid, payload, fee_atomic, coinbase, state, seen_ms)
        VALUES (:currency, :txid, :payload, :fee, :coinbase, 'mempool', :now_ms)
        """,
        currency=currency,
        txid=txid,
        payload=transaction.hex,
        fee=fee,
        coinbase=coinbase,
        now_ms=now_ms,
    )
    sql.run_many(
        "INSERT INTO ledger_output VALUES (:currency, :txid, :vout, :address, :amount, :image)",
        [
            {
                "currency": currency,
                "txid": txid,
                "vout": vout,
                "address": out.address,
                "amount": out.amount_atomic,
                "image": transactions.key_image(currency, Outpoint(txid, vout)),
            }
            for vout, out in enumerate(transaction.outputs)
        ],
    )
    sql.run_many(
        "INSERT INTO ledger_input VALUES (:currency, :txid, :position, :spent_txid, :spent_vout)",
        [
            {
                "currency": currency,
                "txid": txid,
                "position": position,
                "spent_txid": outpoint.txid,
                "spent_vout": outpoint.vout,
            }
            for position, outpoint in enumerate(transaction.inputs)
        ],
    )
    for outpoint in transaction.inputs:
        chain.unlock(sql, currency, outpoint)
