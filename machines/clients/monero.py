"""A monero wallet over monero-wallet-rpc, with monerod as the witness.

::

    build       transfer do_not_relay get_tx_metadata ...   signed, nobody has seen it
    (caller)    persist tx_hash, metadata, key images       before anybody sees it
    broadcast   monerod /get_transactions first; relay_tx only when monerod does not know it
    look        monerod /get_transactions, then /is_key_image_spent

The wallet is never asked what happened: it forgets, keeps old confirmations after a reorganisation
and can list a confirmed transaction as failed.  Relaying a transaction that monerod knows already
soils the wallet of 0.18 (ghost pending, spent outputs picked again), hence look before send.
`relay_tx` answers -4 for a dead daemon, a double spend and a refusal alike: `BroadcastRefused`
means "look", not "not sent".

Reservation: wallet-rpc reserves nothing.  Two builds in a row may take the same outputs (then at
most one of the two can ever be mined), so the caller must serialise build .. persist .. broadcast
per wallet.  `release` therefore has nothing to give back.

`look`::

    in the pool                            mempool
    in a block                             mined
    missed, every key image unspent        unseen
    missed, a key image spent in a block   conflicted, at least 1 deep (counted in recent blocks)
    missed, a key image spent in the pool  conflicted, 0 deep

Source: payments.md 1.4, 2.2, Appendix A and B.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from engine.secrets import Secret
from machines.clients.fields import Fields
from machines.clients.jsonrpc import JsonRpc, RpcError, RpcLogin
from machines.clients.ports import (
    BroadcastRefused,
    ClientError,
    Currency,
    InsufficientFunds,
    NotFound,
    Rejected,
    Sighting,
    SignedTransaction,
    Unavailable,
    WalletLocked,
)
from machines.clients.replies import readable
from machines.clients.transport import Transport, base_of

FEE_ATOMIC_MAX = 50_000_000_000  # 0.05 XMR
_NO_WALLET = -13
_NOT_READY = (-3, -19, -38)
_FUNDS = (-16, -17)
_FUNDS_LOCKED = -37
_NOT_FOUND = -8
_GENERIC = (-1, -4)
_SPENT_IN_BLOCK = 1
_SPENT_STATUSES = (0, _SPENT_IN_BLOCK, 2)
_RIVAL_BLOCKS = 20  # how far back the rival is searched: twice the depth that counts


class MoneroWallet:
    """`Wallet` over one wallet-rpc and one monerod.

    Args:
        wallet_url: the wallet's `.../json_rpc`.
        daemon_url: where monerod answers; `/get_transactions` and others are below it.
        wallet_name: opened by `unlock`; without it, a closed wallet is somebody else's affair.
        fee_atomic_max: a transaction that would cost more piconero is refused.
    """

    def __init__(
        self,
        wallet_url: str,
        daemon_url: str,
        transport: Transport,
        *,
        wallet_name: str | None = None,
        username: str | None = None,
        password: Secret[str] | None = None,
        account_index: int = 0,
        fee_atomic_max: int = FEE_ATOMIC_MAX,
    ) -> None:
        self._wallet = JsonRpc(
            transport,
            base_of(wallet_url),
            name="xmr_wallet",
            login=_login(username, password),
            version_two=True,
        )
        self._daemon = JsonRpc(
            transport,
            f"{base_of(daemon_url)}/json_rpc",
            name="xmr_daemon",
            login=_login(username, password),
            version_two=True,
        )
        self._wallet_name = wallet_name
        self._account_index = account_index
        self._fee_atomic_max = fee_atomic_max
        self._labelling = asyncio.Lock()

    @property
    def currency(self) -> Currency:
        """Monero."""
        return Currency.XMR

    async def new_address(self, label: str) -> str:
        """A subaddress of this wallet; the same label gives the same address."""
        account = {"account_index": self._account_index}
        async with self._labelling:
            known = (await self._call("get_address", account)).items("addresses")
            labelled = [entry.text("address") for entry in known if entry.get("label") == label]
            if labelled:
                return labelled[0]
            created = await self._call("create_address", {**account, "label": label})
            return created.text("address")

    async def balance_atomic(self) -> int:
        """Spendable now: change is locked for ten blocks."""
        balance = await self._call("get_balance", {"account_index": self._account_index})
        return balance.integer("unlocked_balance")

    async def build(self, *, address: str, amount_atomic: int) -> SignedTransaction:
        """Sign a payment without relaying it, and verify what the wallet says it signed."""
        if amount_atomic <= 0:
            raise Rejected(f"xmr_wallet: amount {amount_atomic}: expected more than zero")
        signed = await self._call(
            "transfer",
            {
                "destinations": [{"address": address, "amount": amount_atomic}],
                "account_index": self._account_index,
                "do_not_relay": True,
                "get_tx_metadata": True,
                "get_tx_key": True,
                "get_tx_hex": True,
            },
        )
        return self._verified(signed, address, amount_atomic)

    async def release(self, transaction: SignedTransaction) -> None:
        """Nothing to give back: wallet-rpc reserved nothing when it signed."""

    async def broadcast(self, transaction: SignedTransaction) -> None:
        """Relay, unless monerod has it already or has seen its key images spent."""
        sighting = await self.look(transaction)
        if sighting.where == "conflicted":
            raise BroadcastRefused("xmr_wallet.relay_tx: not relayed: a key image is spent already")
        if sighting.where == "unseen":
            await self._call("relay_tx", {"hex": transaction.payload})

    async def look(self, transaction: SignedTransaction) -> Sighting:
        """Where the transaction is, by monerod (the table above)."""
        known = await self._transaction(transaction.txid)
        if known is not None and known.get("in_pool"):
            return Sighting(where="mempool")
        if known is not None:
            return Sighting(where="mined", confirmations=await self._depth(known))
        spent = await self._key_images(transaction)
        if not any(spent):
            return Sighting(where="unseen")
        if _SPENT_IN_BLOCK not in spent:
            return Sighting(where="conflicted")
        return Sighting(where="conflicted", confirmations=await self._rival_depth(transaction))

    async def received_atomic(self, address: str, *, confirmations: int) -> int:
        """What arrived at one of our addresses, at least that deep; 0 includes the pool."""
        wanted = {"in": True, "pool": confirmations == 0, "account_index": self._account_index}
        transfers = await self._call("get_transfers", wanted)
        found = [
            *(transfers.items("in") if transfers.get("in") else []),
            *(transfers.items("pool") if transfers.get("pool") else []),
        ]
        return sum(
            transfer.integer("amount")
            for transfer in found
            if transfer.get("address") == address
            and transfer.integer("confirmations", default=0) >= confirmations
        )

    async def unlock(self, passphrase: Secret[str], *, seconds: int) -> None:
        """Open the wallet file.  Monero has no timed unlock: it stays open."""
        if self._wallet_name is None:
            return
        wanted = {"filename": self._wallet_name, "password": passphrase}
        await self._call("open_wallet", wanted)

    def _verified(self, signed: Fields, address: str, amount_atomic: int) -> SignedTransaction:
        fee_atomic = signed.integer("fee")
        images = signed.inner("spent_key_images")
        key_images = tuple(str(image) for image in images.array("key_images")) if images else ()
        if signed.integer("amount") != amount_atomic:
            seen = signed.integer("amount")
            raise Rejected(f"xmr_wallet.transfer: signed {seen}, expected {amount_atomic}")
        if not 0 <= fee_atomic <= self._fee_atomic_max:
            limit = f"expected at most {self._fee_atomic_max}"
            raise Rejected(f"xmr_wallet.transfer: fee {fee_atomic} piconero: {limit}")
        if not key_images:
            raise signed.refusal(("spent_key_images",), "without key images nothing can be proven")
        return SignedTransaction(
            txid=signed.text("tx_hash"),
            payload=Secret(signed.text("tx_metadata")),
            inputs=key_images,
            fee_atomic=fee_atomic,
            amount_atomic=amount_atomic,
            address=address,
        )

    async def _transaction(self, txid: str) -> Fields | None:
        reply = await self._ask("get_transactions", {"txs_hashes": [txid]})
        known = reply.items("txs") if reply.get("txs") else []
        return next((entry for entry in known if entry.text("tx_hash") == txid), None)

    async def _depth(self, known: Fields) -> int:
        if known.get("confirmations") is not None:
            return max(1, known.integer("confirmations"))
        return max(1, await self._height() - known.integer("block_height"))

    async def _key_images(self, transaction: SignedTransaction) -> list[int]:
        wanted = {"key_images": list(transaction.inputs)}
        reply = await self._ask("is_key_image_spent", wanted)
        statuses = reply.array("spent_status")
        sane = all(status in _SPENT_STATUSES for status in statuses)
        if len(statuses) != len(transaction.inputs) or not sane:
            expected = f"expected {len(transaction.inputs)} entries of 0, 1 or 2"
            raise reply.refusal(("spent_status",), expected)
        return statuses

    async def _height(self) -> int:
        return (await self._call("get_block_count", {}, daemon=True)).integer("count")

    async def _rival_depth(self, transaction: SignedTransaction) -> int:
        """How deep the block is that spent one of our key images; a floor when not found."""
        height, images = await self._height(), set(transaction.inputs)
        try:
            for depth in range(1, min(_RIVAL_BLOCKS, height) + 1):
                if await self._block_spends(height - depth, images):
                    return depth
        except Rejected:
            return 1  # a daemon that shows no blocks; that it is in one is certain
        return _RIVAL_BLOCKS

    async def _block_spends(self, height: int, images: set[str]) -> bool:
        block = await self._call("get_block", {"height": height}, daemon=True)
        hashes = block.get("tx_hashes") or []
        if not hashes:
            return False
        wanted = {"txs_hashes": hashes, "decode_as_json": True}
        reply = await self._ask("get_transactions", wanted)
        return any(images & _spent_images(entry) for entry in reply.items("txs"))

    async def _ask(self, path: str, body: dict[str, Any]) -> Fields:
        fields = Fields(await self._daemon.post(path, body), f"xmr_daemon.{path}")
        if (status := fields.text("status")) != "OK":
            raise Unavailable(f"xmr_daemon.{path}: status {readable(status)}", kind="not_ready")
        return fields

    async def _call(self, method: str, params: dict[str, Any], *, daemon: bool = False) -> Fields:
        rpc, name = (self._daemon, "xmr_daemon") if daemon else (self._wallet, "xmr_wallet")
        try:
            return Fields(await rpc.call(method, params), f"{name}.{method}")
        except RpcError as error:
            raise self._translated(error, name) from error

    def _translated(self, error: RpcError, name: str) -> ClientError:
        message = f"{name}: {error}"
        if error.code == _NO_WALLET and self._wallet_name is not None:
            return WalletLocked(f"{message}. Open it with open_wallet.")
        if error.code in (*_NOT_READY, _NO_WALLET):
            return Unavailable(message, kind="not_ready")
        if error.code in _FUNDS:
            return InsufficientFunds(message)
        if error.code == _FUNDS_LOCKED:
            return InsufficientFunds(message, unlocks_later=True)
        if error.code == _NOT_FOUND:
            return NotFound(message)
        if error.method == "relay_tx" and error.code in _GENERIC:
            return BroadcastRefused(message)
        if error.method == "transfer" and error.code in _GENERIC:
            return Unavailable(message, kind="not_ready")  # "failed to get output distribution"
        return Rejected(message)


def _login(username: str | None, password: Secret[str] | None) -> RpcLogin | None:
    if username is None or password is None:
        return None
    return RpcLogin(username, password, eager=False)


def _spent_images(entry: Fields) -> set[str]:
    """Key images that a transaction of monerod's `decode_as_json` spends."""
    try:
        decoded = Fields(json.loads(entry.text("as_json")), "xmr_daemon.as_json")
    except ValueError as error:
        raise entry.refusal(("as_json",), "expected JSON text") from error
    keys = [source.inner("key") for source in decoded.items("vin")]
    return {key.text("k_image") for key in keys if key is not None}
