"""Wallets over the chains: addresses, unspent outputs, coin selection, building and signing.

Selection is deterministic: the smallest single output that suffices, confirmed ones first, else
as many of the largest as it takes.  Two builds without a reservation between them therefore share
their inputs, as on a real wallet, and only one of the two can ever be mined.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence

import msgspec

from engine.errors import TurtlesError, UsageError
from machines.platform.ledger import chain
from machines.platform.ledger.addresses import make_address
from machines.platform.ledger.coins import COINS, fee_atomic
from machines.platform.ledger.transaction import Outpoint, Output, Transaction
from persistence.database import Row, Session


class NotEnough(TurtlesError):
    """The wallet cannot pay; `locked` says that it could once its outputs unlock."""

    def __init__(self, message: str, *, locked: bool) -> None:
        super().__init__(message)
        self.locked = locked


class Unspent(msgspec.Struct, frozen=True, kw_only=True):
    """An output a wallet owns and has not spent."""

    txid: str
    vout: int
    address: str
    label: str
    kind: str
    amount_atomic: int
    confirmations: int
    reserved: bool
    spendable: bool

    @property
    def outpoint(self) -> Outpoint:
        """Where it lies."""
        return Outpoint(self.txid, self.vout)


class Funding(msgspec.Struct, frozen=True):
    """Inputs chosen for a payment, the fee, and the change (0 for none)."""

    inputs: tuple[Outpoint, ...]
    fee_atomic: int
    change_atomic: int


def create(sql: Session, currency: str, name: str) -> None:
    """Make an empty wallet with a random seed."""
    sql.run(
        "INSERT INTO wallet (currency, name, seed) VALUES (:currency, :name, :seed)",
        currency=currency,
        name=name,
        seed=secrets.token_hex(32),
    )


def find(sql: Session, currency: str, name: str) -> Row | None:
    """The wallet's row, or None."""
    return sql.one(
        "SELECT * FROM wallet WHERE currency = :currency AND name = :name",
        currency=currency,
        name=name,
    )


def new_address(
    sql: Session, currency: str, wallet: str, label: str, now_ms: int, *, kind: str = "receive"
) -> tuple[str, int]:
    """The wallet's next address and its index.

    Raises:
        UsageError: no such wallet.
    """
    row = sql.one(
        """
        UPDATE wallet SET address_count = address_count + 1
        WHERE currency = :currency AND name = :wallet RETURNING seed, address_count
        """,
        currency=currency,
        wallet=wallet,
    )
    if row is None:
        raise UsageError(f"wallet {wallet}: unknown for {currency}")
    index = int(row["address_count"]) - 1
    address = make_address(currency, row["seed"], index)
    sql.run(
        """
        INSERT INTO wallet_address
        VALUES (:currency, :address, :wallet, :index, :label, :kind, :now_ms)
        """,
        currency=currency,
        address=address,
        wallet=wallet,
        index=index,
        label=label,
        kind=kind,
        now_ms=now_ms,
    )
    return address, index


def owner(sql: Session, currency: str, address: str) -> Row | None:
    """The address's row (wallet, address_index, label, kind), or None for a stranger's."""
    return sql.one(
        "SELECT * FROM wallet_address WHERE currency = :currency AND address = :address",
        currency=currency,
        address=address,
    )


def unspent(sql: Session, currency: str, wallet: str) -> list[Unspent]:
    """Every unspent output of a wallet, oldest transaction first."""
    height = chain.tip(sql, currency).height
    rows = sql.all(
        """
        SELECT o.txid, o.vout, o.address, o.amount_atomic, a.label, a.kind, t.state, t.coinbase,
            b.height, l.txid IS NOT NULL AS reserved
        FROM wallet_address a
        JOIN ledger_output o ON o.currency = a.currency AND o.address = a.address
        JOIN ledger_tx t ON t.currency = o.currency AND t.txid = o.txid
        LEFT JOIN block b ON b.id = t.block_id
        LEFT JOIN output_lock l ON l.currency = o.currency AND l.txid = o.txid
          AND l.vout = o.vout
        WHERE a.currency = :currency AND a.wallet = :wallet AND t.state IN ('mempool', 'mined')
          AND NOT EXISTS (
            SELECT 1 FROM ledger_input i
            JOIN ledger_tx s ON s.currency = i.currency AND s.txid = i.txid
            WHERE i.currency = o.currency AND i.spent_txid = o.txid AND i.spent_vout = o.vout
              AND s.state IN ('mempool', 'mined'))
        ORDER BY t.id, o.vout
        """,
        currency=currency,
        wallet=wallet,
    )
    return [_unspent(row, height, COINS[currency].unlock_depth) for row in rows]


def _unspent(row: Row, height: int, unlock_depth: int) -> Unspent:
    depth = height - row["height"] + 1 if row["state"] == "mined" else 0
    # Own change may be spent at once where the coin allows it; a stranger's payment may vanish.
    trusted = depth >= 1 or row["kind"] == "change"
    return Unspent(
        txid=row["txid"],
        vout=row["vout"],
        address=row["address"],
        label=row["label"],
        kind=row["kind"],
        amount_atomic=row["amount_atomic"],
        confirmations=depth,
        reserved=bool(row["reserved"]),
        spendable=trusted and (depth >= unlock_depth or bool(row["coinbase"])),
    )


def balance(sql: Session, currency: str, wallet: str) -> int:
    """Everything the wallet holds, locked or not."""
    return sum(coin.amount_atomic for coin in unspent(sql, currency, wallet))


def select(currency: str, coins: Iterable[Unspent], paid_atomic: int, outputs: int) -> Funding:
    """Choose inputs that pay `paid_atomic` to `outputs` outputs, and one more for change.

    Raises:
        NotEnough: reserved and locked outputs do not count.
    """
    held = list(coins)
    free = [coin for coin in held if coin.spendable and not coin.reserved]
    free.sort(key=lambda coin: (coin.confirmations == 0, coin.amount_atomic, coin.txid, coin.vout))
    single = paid_atomic + fee_atomic(currency, 1, outputs + 1)
    for coin in free:
        if coin.amount_atomic >= single:
            return _funding(currency, [coin], paid_atomic, outputs)
    chosen: list[Unspent] = []
    for coin in sorted(free, key=lambda coin: -coin.amount_atomic):
        chosen.append(coin)
        needed = paid_atomic + fee_atomic(currency, len(chosen), outputs + 1)
        if sum(each.amount_atomic for each in chosen) >= needed:
            return _funding(currency, chosen, paid_atomic, outputs)
    total = sum(coin.amount_atomic for coin in held)
    raise NotEnough(
        f"{currency} wallet: {paid_atomic} and fees needed, {total} held, "
        f"{sum(coin.amount_atomic for coin in free)} of it free to spend",
        locked=total >= single,
    )


def _funding(currency: str, chosen: Sequence[Unspent], paid_atomic: int, outputs: int) -> Funding:
    held = sum(coin.amount_atomic for coin in chosen)
    fee = fee_atomic(currency, len(chosen), outputs + 1)
    change = held - paid_atomic - fee
    inputs = tuple(coin.outpoint for coin in chosen)
    if change < COINS[currency].dust_atomic:
        return Funding(inputs, fee + change, 0)
    return Funding(inputs, fee, change)


def sign(sql: Session, wallet: str, transaction: Transaction) -> tuple[Transaction, bool]:
    """Sign the inputs this wallet owns; the flag says whether every input is signed now."""
    signatures = []
    for position, outpoint in enumerate(transaction.inputs):
        place = chain.output(sql, transaction.currency, outpoint)
        given = transaction.signatures[position] if transaction.signatures else ""
        if place is not None and place["wallet"] == wallet:
            given = transaction.signature(place["seed"], outpoint)
        signatures.append(given)
    return transaction.signed(tuple(signatures)), all(signatures)


def build(
    sql: Session,
    currency: str,
    wallet: str,
    outputs: Sequence[Output],
    now_ms: int,
    *,
    coins: Iterable[Unspent] | None = None,
    salt: str = "",
) -> Transaction:
    """Build and sign a payment; nothing is sent.

    Args:
        coins: the outputs to choose from, by default all of the wallet's.

    Raises:
        NotEnough: too little that is free to spend.
    """
    paid = sum(out.amount_atomic for out in outputs)
    held = unspent(sql, currency, wallet) if coins is None else coins
    funding = select(currency, held, paid, len(outputs))
    everything = list(outputs)
    if funding.change_atomic:
        change, _ = new_address(sql, currency, wallet, "", now_ms, kind="change")
        everything.append(Output(change, funding.change_atomic))
    unsigned = Transaction(
        currency=currency, inputs=funding.inputs, outputs=tuple(everything), salt=salt
    )
    return sign(sql, wallet, unsigned)[0]


def is_locked(wallet: Row, now_ms: int) -> bool:
    """Whether the wallet needs its passphrase before it signs."""
    return wallet["passphrase_hash"] is not None and now_ms >= wallet["unlocked_until_ms"]


def encrypt(sql: Session, currency: str, name: str, passphrase: str) -> None:
    """Give the wallet a passphrase and lock it."""
    sql.run(
        """
        UPDATE wallet SET passphrase_hash = :hash, unlocked_until_ms = 0
        WHERE currency = :currency AND name = :name
        """,
        hash=_hash(currency, name, passphrase),
        currency=currency,
        name=name,
    )


def unlock(sql: Session, wallet: Row, passphrase: str, until_ms: int) -> bool:
    """Unlock until a moment (0 locks again); False when the passphrase is wrong."""
    given = _hash(wallet["currency"], wallet["name"], passphrase)
    if not secrets.compare_digest(given, wallet["passphrase_hash"] or ""):
        return False
    set_unlocked(sql, wallet, until_ms)
    return True


def set_unlocked(sql: Session, wallet: Row, until_ms: int) -> None:
    """Set the moment at which the wallet locks itself."""
    sql.run(
        "UPDATE wallet SET unlocked_until_ms = :until WHERE currency = :currency AND name = :name",
        until=until_ms,
        currency=wallet["currency"],
        name=wallet["name"],
    )


def _hash(currency: str, name: str, passphrase: str) -> str:
    return hashlib.sha256(f"{currency}:{name}:{passphrase}".encode()).hexdigest()
