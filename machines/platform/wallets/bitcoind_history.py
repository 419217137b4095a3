"""What a bitcoin-like wallet tells of the past: receipts, transactions, reorganisations.

Confirmations are those of the chain now: zero outside it, negative once a rival was mined.
Amounts are signed and exclude the fee; what founded the world is not history.
"""

from __future__ import annotations

from typing import Any

from machines.platform.ledger import chain, transaction, wallets
from machines.platform.ledger.transaction import Transaction
from machines.platform.wallets.bitcoind_node import Dialect, NodeRpc
from machines.platform.wallets.rpc import RpcError
from persistence.database import Row, Session


class HistoryRpc(NodeRpc):
    """One call's view of a wallet's history."""

    def __init__(
        self,
        sql: Session,
        currency: str,
        now_ms: int,
        wallet: Row,
        dialect: Dialect | None = None,
    ) -> None:
        super().__init__(sql, currency, now_ms, dialect)
        self.wallet = wallet
        self.name: str = wallet["name"]

    def rpc_getreceivedbyaddress(self, address: str, minconf: int = 1) -> Any:
        """Everything ever received at an address, at least that deep."""
        row = wallets.owner(self.sql, self.currency, self.address(address))
        if row is None or row["wallet"] != self.name:
            raise RpcError(-4, "Address not found in wallet")
        return self.coins(sum(r["amount_atomic"] for r in self._receipts(address, minconf)))

    def rpc_listreceivedbyaddress(
        self,
        minconf: int = 1,
        include_empty: bool = False,
        include_watchonly: bool = False,
        address_filter: str | None = None,
    ) -> list[dict[str, Any]]:
        """The same for each address, with the transactions."""
        del include_watchonly
        rows = self.sql.all(
            """
            SELECT address, label FROM wallet_address
            WHERE currency = :currency AND wallet = :wallet AND kind <> 'change'
              AND (:only IS NULL OR address = :only) ORDER BY address_index
            """,
            currency=self.currency,
            wallet=self.name,
            only=address_filter,
        )
        answer = []
        for row in rows:
            receipts = self._receipts(row["address"], minconf)
            if receipts or include_empty:
                answer.append(self._received(row, receipts))
        return answer

    def rpc_gettransaction(
        self, txid: str, include_watchonly: bool = True, verbose: bool = False
    ) -> dict[str, Any]:
        """A transaction of this wallet; confirmations are negative when a rival was mined."""
        del include_watchonly, verbose
        row = chain.find(self.sql, self.currency, txid)
        if row is None or txid not in self.txids():
            raise RpcError(-5, "Invalid or non-wallet transaction id")
        parsed = transaction.from_hex(row["payload"])
        debit, credit = self._flows(parsed)
        fee = row["fee_atomic"] if debit else 0
        answer = self._history(row, parsed) | {
            "amount": self.coins(credit - debit + fee),
            "details": self._details(row, parsed),
            "hex": row["payload"],
        }
        if debit:
            answer["fee"] = self.coins(-fee)
        if self.dialect.tells_mempool_conflicts:
            rivals = chain.rivals(self.sql, self.currency, txid)
            answer["mempoolconflicts"] = [r["txid"] for r in rivals if r["state"] == "mempool"]
        return answer | self.processed_block()

    def processed_block(self) -> dict[str, Any]:
        """How far the wallet has read the chain, where the dialect says so."""
        if not self.dialect.tells_processed_block:
            return {}
        tip = chain.tip(self.sql, self.currency)
        return {"lastprocessedblock": {"hash": tip.hash, "height": tip.height}}

    def rpc_listsinceblock(
        self,
        blockhash: str | None = None,
        target_confirmations: int = 1,
        include_watchonly: bool = False,
        include_removed: bool = True,
    ) -> dict[str, Any]:
        """The wallet's history after a block; what a reorganisation took back is in `removed`."""
        del include_watchonly
        height, stale = self._fork(blockhash)
        entries: list[dict[str, Any]] = []
        removed: list[dict[str, Any]] = []
        for txid in self.txids():
            row = chain.find(self.sql, self.currency, txid)
            if row is None:
                continue
            parsed = transaction.from_hex(row["payload"])
            listed = [detail | self._history(row, parsed) for detail in self._details(row, parsed)]
            if row["height"] is None or row["height"] > height:
                entries += listed
            if txid in stale:
                removed += listed
        last = max(0, chain.tip(self.sql, self.currency).height + 1 - target_confirmations)
        answer: dict[str, Any] = {"transactions": entries, "lastblock": self._hash_at(last)}
        if include_removed and self.dialect.wallet_paths:
            answer["removed"] = removed
        return answer

    def _receipts(self, address: str, minconf: int) -> list[Row]:
        """Payments to an address that count at that depth."""
        height = chain.tip(self.sql, self.currency).height
        rows = self.sql.all(
            """
            SELECT t.txid, o.amount_atomic, b.height FROM ledger_output o
            JOIN ledger_tx t ON t.currency = o.currency AND t.txid = o.txid
            LEFT JOIN block b ON b.id = t.block_id
            WHERE o.currency = :currency AND o.address = :address
              AND t.state IN ('mempool', 'mined') ORDER BY t.id
            """,
            currency=self.currency,
            address=address,
        )
        deep = [
            dict(row) | {"depth": 0 if row["height"] is None else height - row["height"] + 1}
            for row in rows
        ]
        return [row for row in deep if row["depth"] >= minconf]

    def _received(self, address: Row, receipts: list[Row]) -> dict[str, Any]:
        return {
            "address": address["address"],
            "label": address["label"],
            "amount": self.coins(sum(row["amount_atomic"] for row in receipts)),
            "confirmations": min((row["depth"] for row in receipts), default=0),
            "txids": [row["txid"] for row in receipts],
        }

    def txids(self) -> list[str]:
        """Transactions that spend or pay this wallet, oldest first, without the founding grant."""
        rows = self.sql.all(
            """
            SELECT t.txid FROM ledger_tx t WHERE t.currency = :currency AND NOT t.coinbase AND (
              EXISTS (SELECT 1 FROM ledger_output o
                JOIN wallet_address a ON a.currency = o.currency AND a.address = o.address
                WHERE o.currency = t.currency AND o.txid = t.txid AND a.wallet = :wallet)
              OR EXISTS (SELECT 1 FROM ledger_input i
                JOIN ledger_output o ON o.currency = i.currency AND o.txid = i.spent_txid
                  AND o.vout = i.spent_vout
                JOIN wallet_address a ON a.currency = o.currency AND a.address = o.address
                WHERE i.currency = t.currency AND i.txid = t.txid AND a.wallet = :wallet))
            ORDER BY t.id
            """,
            currency=self.currency,
            wallet=self.name,
        )
        return [row["txid"] for row in rows]

    def owns(self, address: str) -> bool:
        """Whether an address is this wallet's."""
        row = wallets.owner(self.sql, self.currency, address)
        return row is not None and row["wallet"] == self.name

    def _flows(self, parsed: Transaction) -> tuple[int, int]:
        """What the wallet put in, and what came back to it."""
        debit = 0
        for outpoint in parsed.inputs:
            row = self.sql.one(
                "SELECT address, amount_atomic FROM ledger_output "
                "WHERE currency = :currency AND txid = :txid AND vout = :vout",
                currency=self.currency,
                txid=outpoint.txid,
                vout=outpoint.vout,
            )
            if row is not None and self.owns(row["address"]):
                debit += row["amount_atomic"]
        credit = sum(o.amount_atomic for o in parsed.outputs if self.owns(o.address))
        return debit, credit

    def _history(self, row: Row, parsed: Transaction) -> dict[str, Any]:
        txid = row["txid"]
        depth = chain.confirmations(self.sql, self.currency, txid) or 0
        ours = self._flows(parsed)[0] > 0
        answer: dict[str, Any] = {
            "txid": txid,
            "confirmations": depth,
            "walletconflicts": [r["txid"] for r in chain.rivals(self.sql, self.currency, txid)],
            "time": row["seen_ms"] // 1000,
            "timereceived": row["seen_ms"] // 1000,
            "bip125-replaceable": "no",
        }
        if depth > 0:
            return answer | {
                "blockhash": row["block_hash"],
                "blockheight": row["height"],
                "blocktime": row["mined_ms"] // 1000,
            }
        return answer | {"trusted": depth == 0 and ours and row["state"] == "mempool"}

    def _details(self, row: Row, parsed: Transaction) -> list[dict[str, Any]]:
        sent = self._flows(parsed)[0] > 0
        details: list[dict[str, Any]] = []
        for vout, out in enumerate(parsed.outputs):
            owner = wallets.owner(self.sql, self.currency, out.address)
            mine = owner is not None and owner["wallet"] == self.name
            if owner is not None and mine and owner["kind"] == "change":
                continue
            place = {"address": out.address, "vout": vout}
            if sent:
                fee = self.coins(-row["fee_atomic"])
                amount = self.coins(-out.amount_atomic)
                details.append(place | {"category": "send", "amount": amount, "fee": fee})
            if owner is not None and mine:
                amount = self.coins(out.amount_atomic)
                received = {"category": "receive", "amount": amount, "label": owner["label"]}
                details.append(place | received)
        return details

    def _fork(self, blockhash: str | None) -> tuple[int, set[str]]:
        """Height of the newest best block at or below a block, and what was lost on the way."""
        if blockhash is None:
            return -1, set()
        stale: set[str] = set()
        row = self._block(blockhash)
        while row is not None and row["state"] == "stale":
            lost = self.sql.all("SELECT txid FROM stale_tx WHERE block_id = :id", id=row["id"])
            stale |= {each["txid"] for each in lost}
            row = self._block(row["previous_hash"])
        if row is None:
            raise RpcError(-5, "Block not found")
        return int(row["height"]), stale

    def _block(self, blockhash: str) -> Row | None:
        return self.sql.one(
            "SELECT * FROM block WHERE hash = :hash AND currency = :currency",
            hash=blockhash,
            currency=self.currency,
        )

    def _hash_at(self, height: int) -> str:
        found: str = self.sql.scalar(
            "SELECT hash FROM block WHERE currency = :currency AND height = :height "
            "AND state = 'best'",
            currency=self.currency,
            height=height,
        )
        return found
