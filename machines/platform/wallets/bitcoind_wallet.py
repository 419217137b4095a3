"""What a bitcoin-like wallet answers: addresses, funding, signing, history.

`fundrawtransaction` works while the wallet is locked; signing does not (-13).  Reservations made
by `lockUnspents` and `lockunspent` last until the output is spent or the platform restarts.
"""

from __future__ import annotations

from typing import Any

import msgspec

from machines.platform.ledger import chain, transaction, wallets
from machines.platform.ledger.coins import COINS
from machines.platform.ledger.transaction import Outpoint, Output, Transaction
from machines.platform.ledger.wallets import Unspent
from machines.platform.wallets.bitcoind_node import NodeRpc
from machines.platform.wallets.rpc import RpcError
from persistence.database import Row, Session

_LONGEST_UNLOCK_SECONDS = 100_000_000


class WalletRpc(NodeRpc):
    """One call's view of a wallet."""

    def __init__(self, sql: Session, currency: str, now_ms: int, wallet: Row) -> None:
        super().__init__(sql, currency, now_ms)
        self._wallet = wallet
        self._name: str = wallet["name"]

    def rpc_getwalletinfo(self) -> dict[str, Any]:
        """Balance and lock: `unlocked_until` only when the wallet has a passphrase."""
        info: dict[str, Any] = {
            "walletname": self._name,
            "balance": self.rpc_getbalance(),
            "txcount": len(self._txids()),
        }
        if self._wallet["passphrase_hash"] is not None:
            locked = wallets.is_locked(self._wallet, self.now_ms)
            info["unlocked_until"] = 0 if locked else self._wallet["unlocked_until_ms"] // 1000
        return info

    def rpc_getbalance(self, dummy: str = "*", minconf: int = 0) -> Any:
        """What can be spent now."""
        del dummy
        coins = [coin for coin in self._unspent() if coin.spendable]
        return self.coins(sum(c.amount_atomic for c in coins if c.confirmations >= minconf))

    def rpc_getnewaddress(self, label: str = "", address_type: str = "") -> str:
        """A fresh address under a label."""
        del address_type
        return wallets.new_address(self.sql, self.currency, self._name, label, self.now_ms)[0]

    def rpc_getaddressesbylabel(self, label: str) -> dict[str, Any]:
        """The addresses of a label; -11 when there are none."""
        found = self._labelled(label)
        if not found:
            raise RpcError(-11, f"No addresses with label {label}")
        return {address: {"purpose": "receive"} for address in found}

    def rpc_getaddressesbyaccount(self, account: str) -> list[str]:
        """The same in the words of older daemons; an empty list when there are none."""
        return self._labelled(account)

    def rpc_fundrawtransaction(
        self, hexstring: str, options: Any = None, iswitness: bool = True
    ) -> dict[str, Any]:
        """Add inputs, and change, to a transaction."""
        del iswitness
        wanted = options if isinstance(options, dict) else {}
        unsigned = self.parse_transaction(hexstring)
        dust = COINS[self.currency].dust_atomic
        if not unsigned.outputs:
            raise RpcError(-8, "TX must have at least one output")
        if any(out.amount_atomic < dust for out in unsigned.outputs):
            raise RpcError(-6, "Transaction amount too small")
        funded, fee, changepos = self._fund(unsigned, wanted)
        if wanted.get("lockUnspents") is True:
            for outpoint in funded.inputs:
                self._reserve(outpoint)
        return {"hex": funded.hex, "fee": self.coins(fee), "changepos": changepos}

    def rpc_signrawtransactionwithwallet(
        self, hexstring: str, prevtxs: Any = None, sighashtype: str = "ALL"
    ) -> dict[str, Any]:
        """Sign the inputs that are ours; the same bytes each time."""
        del prevtxs, sighashtype
        self._need_unlocked()
        signed, complete = wallets.sign(self.sql, self._name, self.parse_transaction(hexstring))
        answer: dict[str, Any] = {"hex": signed.hex, "complete": complete}
        if not complete:
            answer["errors"] = [
                {
                    "txid": place.txid,
                    "vout": place.vout,
                    "error": "Input not found or already spent",
                }
                for place, signature in zip(signed.inputs, signed.signatures, strict=True)
                if not signature
            ]
        return answer

    def rpc_signrawtransaction(
        self, hexstring: str, prevtxs: Any = None, privkeys: Any = None, sighashtype: str = "ALL"
    ) -> dict[str, Any]:
        """The same in the words of older daemons."""
        del privkeys
        return self.rpc_signrawtransactionwithwallet(hexstring, prevtxs, sighashtype)

    def rpc_sendtoaddress(
        self, address: str, amount: Any, comment: str = "", comment_to: str = ""
    ) -> str:
        """Build, sign and send in one step: handy by hand, unsafe for a program to repeat."""
        del comment, comment_to
        atomic = self.amount(amount)
        if atomic < COINS[self.currency].dust_atomic:
            raise RpcError(-6, "Transaction amount too small")
        self._need_unlocked()
        outputs = [Output(self.address(address), atomic)]
        try:
            signed = wallets.build(self.sql, self.currency, self._name, outputs, self.now_ms)
        except wallets.NotEnough as error:
            raise RpcError(-6, "Insufficient funds") from error
        return self.broadcast(signed)

    def rpc_listunspent(
        self, minconf: int = 1, maxconf: int = 9_999_999, addresses: list[str] | None = None
    ) -> list[dict[str, Any]]:
        """Unspent outputs that are not reserved."""
        return [
            {
                "txid": coin.txid,
                "vout": coin.vout,
                "address": coin.address,
                "label": coin.label,
                "amount": self.coins(coin.amount_atomic),
                "confirmations": coin.confirmations,
                "spendable": True,
                "safe": coin.spendable,
            }
            for coin in self._unspent()
            if minconf <= coin.confirmations <= maxconf
            and not coin.reserved
            and (not addresses or coin.address in addresses)
        ]

    def rpc_lockunspent(self, unlock: bool, transactions: list[Any] | None = None) -> bool:
        """Reserve outputs, or give them back; without a list, give all back."""
        if transactions is None:
            if unlock:
                self._release_all()
            return True
        for outpoint in [self.outpoint(item) for item in transactions]:
            self._check_lockable(outpoint)
            if not unlock:
                if not self._reserve(outpoint):
                    raise RpcError(-8, "Invalid parameter, output already locked")
            elif not chain.unlock(self.sql, self.currency, outpoint):
                raise RpcError(-8, "Invalid parameter, expected locked output")
        return True

    def rpc_listlockunspent(self) -> list[dict[str, Any]]:
        """The reserved outputs."""
        return [{"txid": coin.txid, "vout": coin.vout} for coin in self._unspent() if coin.reserved]

    def rpc_walletpassphrase(self, passphrase: str, timeout: int) -> None:
        """Unlock for some seconds."""
        if self._wallet["passphrase_hash"] is None:
            raise RpcError(
                -15, "Error: running with an unencrypted wallet, but walletpassphrase was called."
            )
        if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0:
            raise RpcError(-8, "Timeout cannot be negative.")
        until_ms = self.now_ms + min(timeout, _LONGEST_UNLOCK_SECONDS) * 1000
        if not wallets.unlock(self.sql, self._wallet, str(passphrase), until_ms):
            raise RpcError(-14, "Error: The wallet passphrase entered was incorrect.")

    def rpc_walletlock(self) -> None:
        """Lock at once."""
        if self._wallet["passphrase_hash"] is None:
            raise RpcError(
                -15, "Error: running with an unencrypted wallet, but walletlock was called."
            )
        wallets.set_unlocked(self.sql, self._wallet, 0)

    def rpc_getreceivedbyaddress(self, address: str, minconf: int = 1) -> Any:
        """Everything ever received at an address, at least that deep."""
        row = wallets.owner(self.sql, self.currency, self.address(address))
        if row is None or row["wallet"] != self._name:
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
            wallet=self._name,
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
        if row is None or txid not in self._txids():
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
        return answer

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
        for txid in self._txids():
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

    def _fund(self, unsigned: Transaction, wanted: dict[str, Any]) -> tuple[Transaction, int, int]:
        paid = sum(out.amount_atomic for out in unsigned.outputs)
        coins = self._unspent()
        if unsigned.inputs:
            # Inputs that were named are all used; they may be reserved by the caller.
            named = [coin for coin in coins if coin.outpoint in unsigned.inputs]
            coins = [msgspec.structs.replace(coin, reserved=False) for coin in named]
        try:
            funding = wallets.select(self.currency, coins, paid, len(unsigned.outputs))
        except wallets.NotEnough as error:
            raise RpcError(-6, "Insufficient funds") from error
        outputs, changepos = list(unsigned.outputs), -1
        if funding.change_atomic:
            changepos = len(outputs)
            outputs.append(Output(self._change(wanted), funding.change_atomic))
        funded = msgspec.structs.replace(
            unsigned, inputs=funding.inputs, outputs=tuple(outputs), signatures=()
        )
        return funded, funding.fee_atomic, changepos

    def _change(self, wanted: dict[str, Any]) -> str:
        if "changeAddress" in wanted:
            return self.address(wanted["changeAddress"])
        made = wallets.new_address(
            self.sql, self.currency, self._name, "", self.now_ms, kind="change"
        )
        return made[0]

    def _need_unlocked(self) -> None:
        if wallets.is_locked(self._wallet, self.now_ms):
            raise RpcError(
                -13,
                "Error: Please enter the wallet passphrase with walletpassphrase first.",
            )

    def _unspent(self) -> list[Unspent]:
        return wallets.unspent(self.sql, self.currency, self._name)

    def _reserve(self, outpoint: Outpoint) -> int:
        return self.sql.run(
            "INSERT OR IGNORE INTO output_lock VALUES (:currency, :txid, :vout)",
            currency=self.currency,
            txid=outpoint.txid,
            vout=outpoint.vout,
        )

    def _release_all(self) -> None:
        for coin in self._unspent():
            chain.unlock(self.sql, self.currency, coin.outpoint)

    def _check_lockable(self, outpoint: Outpoint) -> None:
        if chain.output(self.sql, self.currency, outpoint) is None:
            raise RpcError(-8, "Invalid parameter, unknown transaction")
        if chain.spender(self.sql, self.currency, outpoint) is not None:
            raise RpcError(-8, "Invalid parameter, expected unspent output")

    def _labelled(self, label: str) -> list[str]:
        rows = self.sql.all(
            """
            SELECT address FROM wallet_address
            WHERE currency = :currency AND wallet = :wallet AND label = :label
              AND kind <> 'change' ORDER BY address_index
            """,
            currency=self.currency,
            wallet=self._name,
            label=label,
        )
        return [row["address"] for row in rows]

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

    def _txids(self) -> list[str]:
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
            wallet=self._name,
        )
        return [row["txid"] for row in rows]

    def _owns(self, address: str) -> bool:
        row = wallets.owner(self.sql, self.currency, address)
        return row is not None and row["wallet"] == self._name

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
            if row is not None and self._owns(row["address"]):
                debit += row["amount_atomic"]
        credit = sum(o.amount_atomic for o in parsed.outputs if self._owns(o.address))
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
            mine = owner is not None and owner["wallet"] == self._name
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
