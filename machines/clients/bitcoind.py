"""A wallet of bitcoin, litecoin or dogecoin over bitcoind-style JSON-RPC.

Paying is two-phase, so that it happens once however often anything dies::

    build       createrawtransaction [] {addr: "amt"}     amounts as text, never as floats
                fundrawtransaction lockUnspents           the inputs are now reserved in the node
                signrawtransaction[withwallet]
                decoderawtransaction                      VERIFY: pays exactly that, once
    (caller)    persist txid, bytes and inputs            before anybody sees the bytes
    broadcast   sendrawtransaction                        the same bytes, any number of times
    look        gettransaction, getmempoolentry, gettxout the truth, never a return code

`build` can never pay twice: until the caller persists and broadcasts, only locks exist.  When it
fails after funding it gives its locks back.  A reply of `fundrawtransaction` that gets lost leaves
inputs locked that nobody knows of: `release_orphans` unlocks every lock outside a given set of
live transactions.  Locks live in the node's memory: after its restart, `hold` takes them again.

`look`, by what the wallet says of the txid::

    confirmations >= 1                    mined
    confirmations 0, in the mempool       mempool
    confirmations < 0                     conflicted, that deep
    0 or unknown, and not in the mempool  every input unspent: unseen; else conflicted

A dogecoin txid can change on its way (no segwit), so before "conflicted" is said, the transaction
that spent our inputs is looked up: one that pays the same output is ours under another name.

Source: payments.md 1.7, 2.2, Appendix B.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from engine.secrets import Secret
from machines.clients import bitcoind_errors as errors
from machines.clients.bitcoind_shapes import (
    inputs_of,
    is_spendable,
    mined,
    outpoint_of,
    outpoint_text,
    paid_by,
    same_payment,
)
from machines.clients.fields import Fields, objects, text, texts
from machines.clients.jsonrpc import JsonRpc, RpcError, RpcLogin
from machines.clients.money import format_amount, parse_number
from machines.clients.ports import (
    ClientError,
    Currency,
    Rejected,
    Sighting,
    SignedTransaction,
)
from machines.clients.transport import Transport, base_of, segment

FEE_ATOMIC_MAX = {
    Currency.BTC: 200_000,  # 0.002 BTC
    Currency.LTC: 10_000_000,  # 0.1 LTC
    Currency.DOGE: 1_000_000_000,  # 10 DOGE
}
_DEPTH_MAX = 9_999_999  # bitcoind's own word for "however deep"
_RECENT = 100  # wallet entries searched for the transaction that spent our inputs


@dataclass(frozen=True)
class Dialect:
    """How this node differs from the others (payments.md 1.7)."""

    version: int
    sign_method: str
    segwit: bool
    labels: bool
    ownership_method: str | None
    history_method: str


class BitcoindWallet:
    """`Wallet` over one node.

    Args:
        wallet_name: calls go to /wallet/<name>; None for a node with one wallet (dogecoin).
        fee_atomic_max: a transaction that would cost more is refused; by default per coin.
    """

    def __init__(
        self,
        currency: Currency,
        rpc_url: str,
        transport: Transport,
        *,
        wallet_name: str | None = None,
        username: str,
        password: Secret[str],
        fee_atomic_max: int | None = None,
    ) -> None:
        path = f"/wallet/{segment(wallet_name)}" if wallet_name is not None else "/"
        self._currency = currency
        self._name = f"{currency.value.lower()}_wallet"
        self._rpc = JsonRpc(
            transport,
            base_of(rpc_url) + path,
            name=self._name,
            login=RpcLogin(username, password, eager=True),
        )
        self._fee_atomic_max = fee_atomic_max or FEE_ATOMIC_MAX[currency]
        self._dialect: Dialect | None = None
        self._labelling = asyncio.Lock()

    @property
    def currency(self) -> Currency:
        """The coin this wallet holds."""
        return self._currency

    async def dialect(self) -> Dialect:
        """What this node speaks; asked once."""
        if self._dialect is None:
            self._dialect = await self._probe()
        return self._dialect

    async def new_address(self, label: str) -> str:
        """An address of this wallet; the same label gives the same address."""
        async with self._labelling:
            known = await self._labelled(label)
            if known:
                return min(known)
            # Segwit inputs keep the txid from changing: ask for bech32 where it exists.
            kind = ["bech32"] if (await self.dialect()).segwit else []
            created = await self._call("getnewaddress", label, *kind)
            return text(created, f"{self._name}.getnewaddress")

    async def balance_atomic(self) -> int:
        """Spendable now: confirmed coin and own change, without what is locked."""
        coins = await self._objects("listunspent", 0, _DEPTH_MAX)
        spendable = (coin for coin in coins if is_spendable(coin))
        return sum(coin.number("amount", currency=self._currency) for coin in spendable)

    async def build(self, *, address: str, amount_atomic: int) -> SignedTransaction:
        """Build, sign and verify a payment; its inputs stay locked, nothing is broadcast."""
        if amount_atomic <= 0:
            raise Rejected(f"{self._name}: amount {amount_atomic}: expected more than zero")
        dialect = await self.dialect()
        outputs = {address: format_amount(amount_atomic, self._currency)}
        raw = await self._call("createrawtransaction", [], outputs)
        funded = await self._fund(raw, dialect)
        fee_atomic = funded.number("fee", currency=self._currency)
        inputs = inputs_of(await self._decode(funded.text("hex")))
        try:
            signed = await self._sign(funded.text("hex"), dialect)
            decoded = await self._decode(signed)
            await self._verify(decoded, inputs, (address, amount_atomic), fee_atomic, dialect)
        except (ClientError, asyncio.CancelledError):
            with suppress(ClientError):  # what cannot be unlocked now is an orphan for later
                await self._unlock_inputs(inputs)
            raise
        return SignedTransaction(
            txid=decoded.text("txid"),
            payload=Secret(signed),
            inputs=inputs,
            fee_atomic=fee_atomic,
            amount_atomic=amount_atomic,
            address=address,
        )

    async def release(self, transaction: SignedTransaction) -> None:
        """Give the inputs back.  An input that is spent or not locked is no error."""
        await self._unlock_inputs(transaction.inputs)

    async def hold(self, transaction: SignedTransaction) -> None:
        """Lock the inputs of a live transaction again, after the node's restart."""
        for outpoint in transaction.inputs:
            await self._lock(outpoint, unlock=False)

    async def release_orphans(self, live: Iterable[SignedTransaction]) -> int:
        """Unlock every locked input that no live transaction holds; gives their number.

        Only for the one owner of this wallet, and never while a `build` is on its way: between
        funding and the caller's commit, its locks look like orphans.
        """
        kept = {outpoint for transaction in live for outpoint in transaction.inputs}
        locked = [outpoint_text(coin) for coin in await self._objects("listlockunspent")]
        orphans = [outpoint for outpoint in locked if outpoint not in kept]
        await self._unlock_inputs(orphans)
        return len(orphans)

    async def broadcast(self, transaction: SignedTransaction) -> None:
        """Hand the bytes to the node; one it has already is no error."""
        try:
            await self._raw_call("sendrawtransaction", transaction.payload)
        except RpcError as error:
            if not errors.already_there(error):
                raise errors.translate(error, self._name) from error

    async def look(self, transaction: SignedTransaction) -> Sighting:
        """Where the transaction is (the table above)."""
        known = await self._transaction(transaction.txid)
        depth = known.integer("confirmations") if known else 0
        if known and depth >= 1:
            return mined(known, depth)
        if depth == 0:
            if await self._in_mempool(transaction.txid):
                return Sighting(where="mempool")
            if await self._all_unspent(transaction.inputs, mempool=True):
                return Sighting(where="unseen")
        rival = await self._spent_by_another(transaction, -depth)
        # It may have arrived while we looked: then it was itself that spent its inputs.
        if rival == Sighting(where="conflicted") and await self._in_mempool(transaction.txid):
            return Sighting(where="mempool")
        return rival

    async def received_atomic(self, address: str, *, confirmations: int) -> int:
        """What arrived at one of our addresses, at least that deep."""
        received = await self._call("getreceivedbyaddress", address, confirmations)
        return parse_number(received, self._currency)

    async def unlock(self, passphrase: Secret[str], *, seconds: int) -> None:
        """Unlock for a short time; a wallet without a passphrase is always unlocked."""
        try:
            await self._raw_call("walletpassphrase", passphrase, seconds)
        except RpcError as error:
            if error.code != errors.NOT_ENCRYPTED:
                raise errors.translate(error, self._name) from error

    async def _probe(self) -> Dialect:
        information = Fields(await self._call("getnetworkinfo"), f"{self._name}.getnetworkinfo")
        modern = await self._knows("signrawtransactionwithwallet")
        return Dialect(
            version=information.integer("version"),
            sign_method="signrawtransactionwithwallet" if modern else "signrawtransaction",
            segwit=modern and self._currency is not Currency.DOGE,
            labels=await self._knows("getaddressesbylabel"),
            ownership_method=await self._first_known("getaddressinfo", "validateaddress"),
            history_method=await self._first_known("listtransactions") or "listsinceblock",
        )

    async def _first_known(self, *methods: str) -> str | None:
        for method in methods:
            if await self._knows(method):
                return method
        return None

    async def _knows(self, method: str) -> bool:
        # bitcoind answers help for an unknown method with a text, not with an error.
        shown = str(await self._call("help", method))
        return not shown.strip().lower().startswith("help: unknown command")

    async def _labelled(self, label: str) -> list[str]:
        if not (await self.dialect()).labels:
            known = await self._call("getaddressesbyaccount", label)
            return texts(known, f"{self._name}.getaddressesbyaccount")
        try:
            found = await self._raw_call("getaddressesbylabel", label)
        except RpcError as error:
            if error.code == errors.NO_SUCH_LABEL:
                return []
            raise errors.translate(error, self._name) from error
        entries = Fields(found, f"{self._name}.getaddressesbylabel").entries()
        # The address book also holds strangers' addresses under the same label: purpose "send".
        return [address for address, entry in entries if entry.get("purpose") != "send"]

    async def _fund(self, raw: str, dialect: Dialect) -> Fields:
        options: dict[str, Any] = {"lockUnspents": True}
        if dialect.segwit:
            options |= {"replaceable": False, "change_type": "bech32"}
        funded = await self._call("fundrawtransaction", raw, options)
        return Fields(funded, f"{self._name}.fundrawtransaction")

    async def _sign(self, funded: str, dialect: Dialect) -> str:
        signed = Fields(await self._call(dialect.sign_method, funded), dialect.sign_method)
        if not signed.boolean("complete"):
            raise Rejected(f"{self._name}: signing is incomplete: an input is not this wallet's")
        return signed.text("hex")

    async def _verify(
        self,
        decoded: Fields,
        inputs: tuple[str, ...],
        payment: tuple[str, int],
        fee_atomic: int,
        dialect: Dialect,
    ) -> None:
        paid = paid_by(decoded, self._currency)
        change = [payee for payee, amount in paid if (payee, amount) != payment]
        if paid.count(payment) != 1 or len(change) > 1:
            raise Rejected(f"{self._name}: expected one output {payment} and change, built {paid}")
        if inputs_of(decoded) != inputs:
            raise Rejected(f"{self._name}: signing changed the inputs; not using the result")
        if fee_atomic > self._fee_atomic_max:
            limit = f"expected at most {self._fee_atomic_max}"
            raise Rejected(f"{self._name}: fee {fee_atomic} atomic units: {limit}")
        for payee in change if dialect.ownership_method else []:
            owner = Fields(await self._call(str(dialect.ownership_method), payee), self._name)
            if not owner.boolean("ismine"):
                raise Rejected(f"{self._name}: change goes to {payee!r}, not to this wallet")

    async def _in_mempool(self, txid: str) -> bool:
        return await self._call_or_none("getmempoolentry", txid) is not None

    async def _all_unspent(self, inputs: tuple[str, ...], *, mempool: bool) -> bool:
        for outpoint in inputs:
            if await self._call("gettxout", *outpoint_of(outpoint), mempool) is None:
                return False
        return True

    async def _spent_by_another(self, transaction: SignedTransaction, depth: int) -> Sighting:
        if depth > 0 and (await self.dialect()).segwit:
            return Sighting(where="conflicted", confirmations=depth)
        for rival in await self._recent_spends():
            decoded = await self._decode(rival.text("hex"))
            shared = set(inputs_of(decoded)) & set(transaction.inputs)
            if not shared or decoded.text("txid") == transaction.txid:
                continue
            confirmations = rival.integer("confirmations")
            if same_payment(decoded, transaction, self._currency):
                mempool = Sighting(where="mempool")
                return mined(rival, confirmations) if confirmations else mempool
            depth = max(depth, confirmations)
        if depth == 0 and not await self._all_unspent(transaction.inputs, mempool=False):
            depth = 1  # spent in a block by a transaction this wallet does not list
        return Sighting(where="conflicted", confirmations=depth)

    async def _recent_spends(self) -> list[Fields]:
        if (await self.dialect()).history_method == "listtransactions":
            entries = await self._objects("listtransactions", "*", _RECENT)
        else:
            history = Fields(await self._call("listsinceblock"), f"{self._name}.listsinceblock")
            entries = history.items("transactions")[-_RECENT:]
        sent = {entry.text("txid") for entry in entries if entry.get("category") == "send"}
        found = [await self._transaction(txid) for txid in sorted(sent)]
        return [spend for spend in found if spend and spend.integer("confirmations") >= 0]

    async def _unlock_inputs(self, inputs: Iterable[str]) -> None:
        for outpoint in inputs:
            await self._lock(outpoint, unlock=True)

    async def _lock(self, outpoint: str, *, unlock: bool) -> None:
        # One at a time: bitcoind refuses a whole list when one of it is spent or in that state.
        txid, output = outpoint_of(outpoint)
        try:
            await self._raw_call("lockunspent", unlock, [{"txid": txid, "vout": output}])
        except RpcError as error:
            if error.code != errors.INVALID_PARAMETER:
                raise errors.translate(error, self._name) from error

    async def _transaction(self, txid: str) -> Fields | None:
        known = await self._call_or_none("gettransaction", txid)
        return None if known is None else Fields(known, f"{self._name}.gettransaction")

    async def _decode(self, raw: str) -> Fields:
        decoded = await self._call("decoderawtransaction", raw)
        return Fields(decoded, f"{self._name}.decoderawtransaction")

    async def _objects(self, method: str, *params: Any) -> list[Fields]:
        return objects(await self._call(method, *params), f"{self._name}.{method}")

    async def _call_or_none(self, method: str, *params: Any) -> Any:
        try:
            return await self._raw_call(method, *params)
        except RpcError as error:
            if error.code == errors.NOT_FOUND:
                return None
            raise errors.translate(error, self._name) from error

    async def _call(self, method: str, *params: Any) -> Any:
        try:
            return await self._raw_call(method, *params)
        except RpcError as error:
            raise errors.translate(error, self._name) from error

    async def _raw_call(self, method: str, *params: Any) -> Any:
        return await self._rpc.call(method, list(params))
