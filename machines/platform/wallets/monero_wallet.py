"""What monero-wallet-rpc answers for one wallet.

A payment has two phases.  `transfer` with `do_not_relay` builds and signs, and changes nothing at
all: not the balance, not the history.  Its `tx_metadata` is what `relay_tx` later hands to the
network, as often as one likes; two builds share their inputs unless one of them was frozen or
relayed in between, so at most one of them is ever mined.

Quirks kept on purpose (payments.md, section 1.4): errors come with HTTP 200; `relay_tx` says -4
"Failed to commit tx." for every failure alike; a transaction that fell out of the pool, or lost to
a rival, is -8 "not found" as if it had never been; outputs unlock ten blocks deep.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Any

import msgspec

from engine.errors import UsageError
from machines.platform.ledger import chain, mempool, transaction, wallets
from machines.platform.ledger.addresses import is_address
from machines.platform.ledger.coins import COINS, MAXIMUM_ATOMIC
from machines.platform.ledger.transaction import Outpoint, Output, Transaction
from machines.platform.wallets.rpc import RpcError
from persistence.database import Row, Session

XMR = "XMR"
_TXID = re.compile(r"[0-9a-f]{64}", re.ASCII)
_DIGITS = re.compile(r"[0-9]{1,30}", re.ASCII)


class Metadata(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `tx_metadata` holds: the signed transaction and its secret key."""

    signed: Transaction
    tx_key: str

    @property
    def hex(self) -> str:
        """As it travels."""
        return msgspec.json.encode(self).hex()


class MoneroWallet:
    """One call's view of a wallet: methods `rpc_<name>`, parameters named as in the protocol."""

    def __init__(self, sql: Session, wallet: Row, now_ms: int) -> None:
        self._sql = sql
        self._wallet = wallet
        self._name: str = wallet["name"]
        self._now_ms = now_ms
        self._height = chain.tip(sql, XMR).height

    def rpc_get_version(self) -> dict[str, Any]:
        """RPC version 1.25, as 0.18.0.0 has it."""
        return {"version": 65561, "release": True}

    def rpc_get_height(self) -> dict[str, Any]:
        """Number of blocks the wallet knows."""
        return {"height": self._height + 1}

    def rpc_refresh(self, start_height: int = 0) -> dict[str, Any]:
        """Catch up with the chain; always done already."""
        del start_height
        return {"blocks_fetched": 0, "received_money": False}

    def rpc_store(self) -> dict[str, Any]:
        """Write the wallet to disk; always done already."""
        return {}

    def rpc_get_address(
        self, account_index: int = 0, address_index: list[int] | None = None
    ) -> dict[str, Any]:
        """The primary address, and every address made since."""
        del account_index
        listed = [
            {
                "address": row["address"],
                "address_index": row["address_index"],
                "label": row["label"],
                "used": bool(self._received(row["address"])),
            }
            for row in self._addresses()
            if not address_index or row["address_index"] in address_index
        ]
        return {"address": self._addresses()[0]["address"], "addresses": listed}

    def rpc_create_address(
        self, account_index: int = 0, label: str = "", count: int = 1
    ) -> dict[str, Any]:
        """A fresh subaddress under a label."""
        del account_index
        made = [
            wallets.new_address(self._sql, XMR, self._name, label, self._now_ms)
            for _ in range(max(1, min(count, 64)))
        ]
        return {
            "address": made[0][0],
            "address_index": made[0][1],
            "addresses": [address for address, _ in made],
            "address_indices": [index for _, index in made],
        }

    def rpc_get_balance(
        self, account_index: int = 0, address_indices: list[int] | None = None
    ) -> dict[str, Any]:
        """Everything held, and what of it is unlocked, in piconero."""
        del account_index, address_indices
        coins = wallets.unspent(self._sql, XMR, self._name)
        locked = [coin for coin in coins if not coin.spendable]
        return {
            "balance": sum(coin.amount_atomic for coin in coins),
            "unlocked_balance": sum(coin.amount_atomic for coin in coins if coin.spendable),
            "blocks_to_unlock": max((10 - coin.confirmations for coin in locked), default=0),
            "multisig_import_needed": False,
        }

    def rpc_transfer(
        self,
        destinations: list[Any],
        account_index: int = 0,
        subaddr_indices: list[int] | None = None,
        priority: int = 0,
        ring_size: int = 16,
        mixin: int = 15,
        unlock_time: int = 0,
        do_not_relay: bool = False,
        get_tx_key: bool = False,
        get_tx_metadata: bool = False,
        get_tx_hex: bool = False,
    ) -> dict[str, Any]:
        """Build and sign a payment, and send it unless told not to."""
        del account_index, subaddr_indices, priority, ring_size, mixin, unlock_time
        outputs = [_destination(item) for item in destinations]
        if not outputs:
            raise RpcError(-20, "No destinations for this transfer")
        metadata = self._build(outputs)
        signed = metadata.signed
        if not do_not_relay:
            self._commit(signed)
        places = [chain.output(self._sql, XMR, place) for place in signed.inputs]
        held = sum(place["amount_atomic"] for place in places if place is not None)
        images = [transaction.key_image(XMR, place) for place in signed.inputs]
        return {
            "tx_hash": signed.txid,
            "amount": sum(out.amount_atomic for out in outputs),
            "fee": held - sum(out.amount_atomic for out in signed.outputs),
            "tx_key": metadata.tx_key if get_tx_key else "",
            "tx_metadata": metadata.hex if get_tx_metadata else "",
            "tx_blob": signed.hex if get_tx_hex else "",
            "spent_key_images": {"key_images": images},
            "multisig_txset": "",
            "unsigned_txset": "",
        }

    def rpc_relay_tx(self, **parameters: Any) -> dict[str, Any]:
        """Hand built bytes (`hex`) to the network; harmless to repeat."""
        try:
            raw = bytes.fromhex(parameters.get("hex", ""))
            metadata = msgspec.json.decode(raw, type=Metadata)
        except (TypeError, ValueError, msgspec.DecodeError) as error:
            raise RpcError(-40, "Failed to parse tx metadata.") from error
        known = chain.find(self._sql, XMR, metadata.signed.txid)
        if known is None or known["state"] != "mined":
            self._commit(metadata.signed)
        return {"tx_hash": metadata.signed.txid}

    def rpc_freeze(self, key_image: str) -> dict[str, Any]:
        """Keep an output out of the next builds."""
        place = self._by_key_image(key_image)
        self._sql.run(
            "INSERT OR IGNORE INTO output_lock VALUES ('XMR', :txid, :vout)",
            txid=place.txid,
            vout=place.vout,
        )
        return {}

    def rpc_thaw(self, key_image: str) -> dict[str, Any]:
        """Let an output be chosen again."""
        chain.unlock(self._sql, XMR, self._by_key_image(key_image))
        return {}

    def rpc_check_tx_key(self, txid: str, tx_key: str, address: str) -> dict[str, Any]:
        """What a transaction pays to an address, proven by its key."""
        row = self._transaction(txid)
        parsed = transaction.from_hex(row["payload"])
        if parsed.salt != _salt(tx_key):
            raise RpcError(-25, "Tx key has invalid format")
        paid = sum(o.amount_atomic for o in parsed.outputs if o.address == address)
        depth = chain.confirmations(self._sql, XMR, txid) or 0
        return {
            "confirmations": max(0, depth),
            "in_pool": row["state"] == "mempool",
            "received": paid,
        }

    def rpc_get_transfer_by_txid(self, txid: str, account_index: int = 0) -> dict[str, Any]:
        """The wallet's entries for one transaction."""
        del account_index
        found = self._entries(self._transaction(txid))
        if not found:
            raise RpcError(-8, "Transaction not found.")
        return {"transfer": found[0], "transfers": found}

    def rpc_get_transfers(self, **wanted: Any) -> dict[str, Any]:
        """The wallet's history by kind: `in`, `out`, `pending`, `pool` (those asked for)."""
        answer: dict[str, Any] = {}
        rows = self._sql.all(
            "SELECT txid FROM ledger_tx WHERE currency = 'XMR' AND NOT coinbase "
            "AND state IN ('mempool', 'mined') ORDER BY id"
        )
        indices = wanted.get("subaddr_indices") or []
        if not isinstance(indices, list):
            raise RpcError(-32602, "Invalid params")
        for row in rows:
            for entry in self._entries(self._transaction(row["txid"])):
                if wanted.get(entry["type"]) is not True:
                    continue
                if not indices or entry["subaddr_index"]["minor"] in indices:
                    answer.setdefault(entry["type"], []).append(entry)
        return answer

    def _build(self, outputs: list[Output]) -> Metadata:
        tx_key = secrets.token_hex(32)
        try:
            signed = wallets.build(
                self._sql, XMR, self._name, outputs, self._now_ms, salt=_salt(tx_key)
            )
        except wallets.NotEnough as error:
            if error.locked:
                raise RpcError(-37, "not enough unlocked money") from error
            raise RpcError(-17, "not enough money") from error
        return Metadata(signed=signed, tx_key=tx_key)

    def _commit(self, signed: Transaction) -> None:
        try:
            mempool.accept(self._sql, signed, self._now_ms)
        except mempool.Refusal as refusal:
            raise RpcError(-4, "Failed to commit tx.") from refusal

    def _addresses(self) -> list[Row]:
        return self._sql.all(
            """
            SELECT address, address_index, label FROM wallet_address
            WHERE currency = 'XMR' AND wallet = :wallet AND kind <> 'change'
            ORDER BY address_index
            """,
            wallet=self._name,
        )

    def _received(self, address: str) -> int:
        count: int = self._sql.scalar(
            "SELECT COUNT(*) FROM ledger_output WHERE currency = 'XMR' AND address = :address",
            address=address,
        )
        return count

    def _by_key_image(self, key_image: str) -> Outpoint:
        for coin in wallets.unspent(self._sql, XMR, self._name):
            if transaction.key_image(XMR, coin.outpoint) == key_image:
                return coin.outpoint
        raise RpcError(-1, "Key image not found")

    def _transaction(self, txid: str) -> Row:
        if not _TXID.fullmatch(txid):
            raise RpcError(-8, "TX ID has invalid format")
        row = chain.find(self._sql, XMR, txid)
        if row is None or row["state"] not in ("mempool", "mined"):
            raise RpcError(-8, "Transaction not found.")
        return row

    def _entries(self, row: Row) -> list[dict[str, Any]]:
        """Outgoing first, then one incoming entry for each of our addresses that is paid."""
        parsed = transaction.from_hex(row["payload"])
        owners = {o.address: wallets.owner(self._sql, XMR, o.address) for o in parsed.outputs}
        places = [chain.output(self._sql, XMR, place) for place in parsed.inputs]
        sent = any(place is not None and place["wallet"] == self._name for place in places)
        entries: list[dict[str, Any]] = []
        if sent:
            paid = [out for out in parsed.outputs if not self._is_change(owners[out.address])]
            entries.append(self._outgoing(row, paid))
        for out in parsed.outputs:
            owner = owners[out.address]
            if owner and owner["wallet"] == self._name and not self._is_change(owner):
                entries.append(self._incoming(row, out, owner))
        return entries

    def _is_change(self, owner: Row | None) -> bool:
        return bool(owner and owner["wallet"] == self._name and owner["kind"] == "change")

    def _outgoing(self, row: Row, paid: list[Output]) -> dict[str, Any]:
        kind = "out" if row["state"] == "mined" else "pending"
        destinations = [{"address": o.address, "amount": o.amount_atomic} for o in paid]
        return self._entry(row, kind, sum(o.amount_atomic for o in paid), 0) | {
            "address": self._addresses()[0]["address"],
            "destinations": destinations,
        }

    def _incoming(self, row: Row, out: Output, owner: Row) -> dict[str, Any]:
        kind = "in" if row["state"] == "mined" else "pool"
        return self._entry(row, kind, out.amount_atomic, owner["address_index"]) | {
            "address": out.address
        }

    def _entry(self, row: Row, kind: str, amount: int, index: int) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "txid": row["txid"],
            "type": kind,
            "amount": amount,
            "fee": row["fee_atomic"],
            "height": row["height"] or 0,
            "timestamp": (row["mined_ms"] or row["seen_ms"]) // 1000,
            "double_spend_seen": False,
            "unlock_time": 0,
            "locked": True,
            "subaddr_index": {"major": 0, "minor": index},
        }
        if row["state"] == "mined":
            depth = self._height - row["height"] + 1
            entry |= {"confirmations": depth, "locked": depth < COINS[XMR].unlock_depth}
        return entry


def _destination(item: Any) -> Output:
    if not isinstance(item, dict):
        raise RpcError(-32602, "Invalid params")
    amount = _piconero(item.get("amount"))
    address = item.get("address")
    if not isinstance(address, str) or not is_address(XMR, address):
        raise RpcError(-2, f"WALLET_RPC_ERROR_CODE_WRONG_ADDRESS: {address}")
    if amount == 0:
        raise RpcError(-46, "Transaction amount cannot be zero")
    return Output(address, amount)


def _piconero(value: Any) -> int:
    """Atomic units: an integer, or a string of digits.  Nothing with a point in it."""
    if isinstance(value, str) and _DIGITS.fullmatch(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RpcError(-32602, "Invalid params")
    if value >= 2**64:
        raise RpcError(-32700, "Parse error")
    return min(value, MAXIMUM_ATOMIC)


def _salt(tx_key: str) -> str:
    return hashlib.sha256(f"tx key:{tx_key}".encode()).hexdigest()


def parse_blob(text: Any) -> Transaction:
    """A monero transaction in hex.

    Raises:
        UsageError: it is none.
    """
    parsed = transaction.from_hex(text if isinstance(text, str) else "")
    if parsed.currency != XMR:
        raise UsageError("not a monero transaction")
    return parsed
