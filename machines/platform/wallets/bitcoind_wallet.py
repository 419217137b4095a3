"""What a bitcoin-like wallet answers: addresses, funding, signing, history.

`fundrawtransaction` works while the wallet is locked; signing does not (-13).  It names its
refusals -4 where `sendtoaddress` says -6 (seen on litecoin 0.21), in the same words.  Reservations
made by `lockUnspents` and `lockunspent` last until the output is spent or the platform restarts.
"""

from __future__ import annotations

from typing import Any

import msgspec

from machines.platform.ledger import chain, wallets
from machines.platform.ledger.addresses import is_address
from machines.platform.ledger.coins import COINS
from machines.platform.ledger.transaction import Outpoint, Output, Transaction
from machines.platform.ledger.wallets import Unspent
from machines.platform.wallets.bitcoind_history import HistoryRpc
from machines.platform.wallets.rpc import RpcError

_LONGEST_UNLOCK_SECONDS = 100_000_000


class WalletRpc(HistoryRpc):
    """One call's view of a wallet."""

    def rpc_getwalletinfo(self) -> dict[str, Any]:
        """Balance and lock: `unlocked_until` only when the wallet has a passphrase."""
        info: dict[str, Any] = {
            "walletname": self.name,
            "balance": self.rpc_getbalance(),
            "txcount": len(self.txids()),
        }
        if self.wallet["passphrase_hash"] is not None:
            locked = wallets.is_locked(self.wallet, self.now_ms)
            info["unlocked_until"] = 0 if locked else self.wallet["unlocked_until_ms"] // 1000
        return info | self.processed_block()

    def rpc_getbalance(self, dummy: str = "*", minconf: int = 0) -> Any:
        """What can be spent now."""
        del dummy
        coins = [coin for coin in self._unspent() if coin.spendable]
        return self.coins(sum(c.amount_atomic for c in coins if c.confirmations >= minconf))

    def rpc_getnewaddress(self, label: str = "", address_type: str = "") -> str:
        """A fresh address under a label."""
        del address_type
        return wallets.new_address(self.sql, self.currency, self.name, label, self.now_ms)[0]

    def rpc_getaddressesbylabel(self, label: str) -> dict[str, Any]:
        """The addresses of a label; -11 when there are none."""
        found = self._labelled(label)
        if not found:
            raise RpcError(-11, f"No addresses with label {label}")
        return {address: {"purpose": "receive"} for address in found}

    def rpc_getaddressesbyaccount(self, account: str) -> list[str]:
        """The same in the words of older daemons; an empty list when there are none."""
        return self._labelled(account)

    def rpc_getaddressinfo(self, address: str) -> dict[str, Any]:
        """Whether an address is ours, and what for."""
        row = wallets.owner(self.sql, self.currency, self.address(address))
        mine = row is not None and row["wallet"] == self.name
        info: dict[str, Any] = {"address": address, "ismine": mine, "iswatchonly": False}
        if row is not None and mine:
            info |= {"ischange": row["kind"] == "change", "labels": [row["label"]]}
        return info

    def rpc_validateaddress(self, address: str) -> dict[str, Any]:
        """Whether a text is an address; older daemons also say whose."""
        if not is_address(self.currency, address):
            return {"isvalid": False}
        info = {"isvalid": True, "address": address}
        if self.dialect.wallet_paths:
            return info
        return info | {"ismine": self.owns(address), "iswatchonly": False}

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
            raise RpcError(-4, "Transaction amount too small")
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
        signed, complete = wallets.sign(self.sql, self.name, self.parse_transaction(hexstring))
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
            signed = wallets.build(self.sql, self.currency, self.name, outputs, self.now_ms)
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

    def rpc_lockunspent(
        self, unlock: bool, transactions: list[Any] | None = None, persistent: bool | None = None
    ) -> bool:
        """Reserve outputs, or give them back; without a list, give all back."""
        if persistent is not None and not self.dialect.persistent_locks:
            raise RpcError(-1, 'lockunspent unlock ( [{"txid":"hex","vout":n},...] )')
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
        if self.wallet["passphrase_hash"] is None:
            raise RpcError(
                -15, "Error: running with an unencrypted wallet, but walletpassphrase was called."
            )
        if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0:
            raise RpcError(-8, "Timeout cannot be negative.")
        until_ms = self.now_ms + min(timeout, _LONGEST_UNLOCK_SECONDS) * 1000
        if not wallets.unlock(self.sql, self.wallet, str(passphrase), until_ms):
            raise RpcError(-14, "Error: The wallet passphrase entered was incorrect.")

    def rpc_walletlock(self) -> None:
        """Lock at once."""
        if self.wallet["passphrase_hash"] is None:
            raise RpcError(
                -15, "Error: running with an unencrypted wallet, but walletlock was called."
            )
        wallets.set_unlocked(self.sql, self.wallet, 0)

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
            raise RpcError(-4, "Insufficient funds") from error
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
            self.sql, self.currency, self.name, "", self.now_ms, kind="change"
        )
        return made[0]

    def _need_unlocked(self) -> None:
        if wallets.is_locked(self.wallet, self.now_ms):
            raise RpcError(
                -13,
                "Error: Please enter the wallet passphrase with walletpassphrase first.",
            )

    def _unspent(self) -> list[Unspent]:
        return wallets.unspent(self.sql, self.currency, self.name)

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
            wallet=self.name,
            label=label,
        )
        return [row["address"] for row in rows]
