"""What a bitcoin-like node answers about its chain, in the dialect of one daemon.

BTC speaks like Bitcoin Core 28 (or any from 22 on), LTC like Litecoin Core 0.21, DOGE like Dogecoin
Core 1.14 (payments.md, section 1.7).  The differences that matter to a client are in `Dialect`;
`NAMED` holds all of them, `DIALECTS` the one that each coin speaks unless it is told otherwise.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from msgspec import Raw

from engine.errors import UsageError
from machines.platform.ledger import chain, mempool, transaction
from machines.platform.ledger.addresses import is_address, script_hex
from machines.platform.ledger.coins import MAXIMUM_ATOMIC, format_coins, parse_coins, size_bytes
from machines.platform.ledger.transaction import Outpoint, Output, Transaction
from machines.platform.wallets.rpc import RpcError
from persistence.database import Session


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """How one family of daemons differs from the others.

    Args:
        wallet_paths: several wallets, chosen by `/wallet/<name>` (DOGE: one, at the root).
        array_outputs: `createrawtransaction` also takes a list of outputs.
        json_rpc_two: a call that says "jsonrpc": "2.0" is answered so: errors with HTTP 200, and
            no null members.
        persistent_locks: `lockunspent` takes `persistent`.
        burn_limit: `sendrawtransaction` takes `maxburnamount`.
        tells_processed_block: wallet answers say `lastprocessedblock`.
        tells_mempool_conflicts: `gettransaction` says `mempoolconflicts`.
        overloaded_status: HTTP status of a full work queue.
        absent: methods of ours that this dialect lacks.
        refusals: code and message of each reason to refuse a transaction.
    """

    version: int
    subversion: str
    wallet_paths: bool
    array_outputs: bool
    single_address: bool
    json_rpc_two: bool = False
    persistent_locks: bool = False
    burn_limit: bool = False
    tells_processed_block: bool = False
    tells_mempool_conflicts: bool = False
    overloaded_status: int = 500
    absent: frozenset[str]
    refusals: dict[str, tuple[int, str]]


_REFUSALS = {
    "already_mined": (-27, "Transaction already in block chain"),
    "already_mined_spent": (-25, "bad-txns-inputs-missingorspent"),
    "missing_inputs": (-25, "bad-txns-inputs-missingorspent"),
    "mempool_conflict": (-26, "txn-mempool-conflict"),
    "bad_signature": (-26, "mandatory-script-verify-flag-failed (Signature must be valid)"),
    "in_below_out": (-26, "bad-txns-in-belowout"),
    "fee_too_low": (-26, "min relay fee not met"),
    "dust": (-26, "dust"),
    "locked_inputs": (-26, "non-final"),
    "too_long_chain": (-26, "too-long-mempool-chain"),
    "malformed": (-26, "bad-txns-vin-empty"),
}
_DOGE_REFUSALS = {
    reason: (code, f"64: {message}" if code == -26 else message)
    for reason, (code, message) in _REFUSALS.items()
} | {
    "already_mined": (-27, "transaction already in block chain"),
    "already_mined_spent": (-25, "Missing inputs"),
    "missing_inputs": (-25, "Missing inputs"),
    "mempool_conflict": (-26, "18: txn-mempool-conflict"),
    "fee_too_low": (-26, "66: min relay fee not met"),
}

_NOT_NEW = frozenset({"signrawtransaction", "getaddressesbyaccount"})
_SINCE_24 = frozenset({"gettxspendingprevout"})
_NOT_DOGE = frozenset(
    {
        "signrawtransactionwithwallet",
        "getaddressesbylabel",
        "getaddressinfo",
        "testmempoolaccept",
        *_SINCE_24,
    }
)
_IN_UTXO_SET = {"already_mined": (-27, "Transaction outputs already in utxo set")}


def _core(major: int) -> Dialect:
    """Bitcoin Core of a major version."""
    return Dialect(
        version=major * 10_000,
        subversion=f"/Satoshi:{major}.0.0/",
        wallet_paths=True,
        array_outputs=True,
        single_address=True,
        json_rpc_two=major >= 28,
        persistent_locks=major >= 23,
        burn_limit=major >= 25,
        tells_processed_block=major >= 26,
        tells_mempool_conflicts=major >= 28,
        overloaded_status=503,
        absent=_NOT_NEW if major >= 24 else _NOT_NEW | _SINCE_24,
        refusals=_REFUSALS | _IN_UTXO_SET if major >= 28 else _REFUSALS,
    )


NAMED = {
    **{f"core{major}": _core(major) for major in range(22, 29)},
    "ltc0.21": Dialect(
        version=210201,
        subversion="/LitecoinCore:0.21.2.1/",
        wallet_paths=True,
        array_outputs=True,
        single_address=False,
        absent=_NOT_NEW | _SINCE_24,
        refusals=_REFUSALS,
    ),
    "doge1.14": Dialect(
        version=1140600,
        subversion="/Shibetoshi:1.14.6/",
        wallet_paths=False,
        array_outputs=False,
        single_address=False,
        absent=_NOT_DOGE,
        refusals=_DOGE_REFUSALS,
    ),
}
DIALECTS = {"BTC": NAMED["core28"], "LTC": NAMED["ltc0.21"], "DOGE": NAMED["doge1.14"]}


def method_names(kind: type[NodeRpc], dialect: Dialect) -> list[str]:
    """The methods that a node, or a wallet, of a dialect has."""
    names = (name.removeprefix("rpc_") for name in dir(kind) if name.startswith("rpc_"))
    return sorted(name for name in names if name not in dialect.absent)


class NodeRpc:
    """One call's view of a node: methods `rpc_<name>`, parameters named as in the protocol."""

    def __init__(
        self, sql: Session, currency: str, now_ms: int, dialect: Dialect | None = None
    ) -> None:
        self.sql = sql
        self.currency = currency
        self.now_ms = now_ms
        self.dialect = dialect or DIALECTS[currency]

    def method_names(self) -> list[str]:
        """The methods this dialect has."""
        return method_names(type(self), self.dialect)

    def rpc_help(self, command: str = "") -> str:
        """The list of methods, or a line about one."""
        if not command:
            return "\n".join(self.method_names())
        if command not in self.method_names():
            return f"help: unknown command: {command}"
        return command

    def rpc_getnetworkinfo(self) -> dict[str, Any]:
        """Version and name: what a client learns the dialect from."""
        return {
            "version": self.dialect.version,
            "subversion": self.dialect.subversion,
            "protocolversion": 70016,
            "connections": 0,
            "networkactive": True,
            "relayfee": self.coins(1000),
            "warnings": "",
        }

    def rpc_getblockcount(self) -> int:
        """Height of the newest block."""
        return chain.tip(self.sql, self.currency).height

    def rpc_getbestblockhash(self) -> str:
        """Hash of the newest block."""
        return chain.tip(self.sql, self.currency).hash

    def rpc_getrawmempool(self) -> list[str]:
        """Txids that wait for a block."""
        rows = self.sql.all(
            "SELECT txid FROM ledger_tx WHERE currency = :currency AND state = 'mempool' "
            "ORDER BY id",
            currency=self.currency,
        )
        return [row["txid"] for row in rows]

    def rpc_getmempoolentry(self, txid: str) -> dict[str, Any]:
        """A waiting transaction."""
        row = chain.find(self.sql, self.currency, txid)
        if row is None or row["state"] != "mempool":
            raise RpcError(-5, "Transaction not in mempool")
        parsed = transaction.from_hex(row["payload"])
        return {
            "vsize": size_bytes(len(parsed.inputs), len(parsed.outputs)),
            "fee": self.coins(row["fee_atomic"]),
            "time": row["seen_ms"] // 1000,
            "height": chain.tip(self.sql, self.currency).height,
            "depends": [],
        }

    def rpc_gettxout(
        self, txid: str, n: int, include_mempool: bool = True
    ) -> dict[str, Any] | None:
        """An unspent output, or null when it is spent or unknown."""
        outpoint = Outpoint(txid, n)
        place = chain.output(self.sql, self.currency, outpoint)
        if place is None or (place["state"] == "mempool" and not include_mempool):
            return None
        rival = chain.spender(self.sql, self.currency, outpoint)
        if rival is not None and (include_mempool or rival["state"] == "mined"):
            return None
        tip = chain.tip(self.sql, self.currency)
        mined = place["state"] == "mined"
        return {
            "bestblock": tip.hash,
            "confirmations": tip.height - place["height"] + 1 if mined else 0,
            "value": self.coins(place["amount_atomic"]),
            "scriptPubKey": self.script(place["address"]),
            "coinbase": bool(place["coinbase"]),
        }

    def rpc_createrawtransaction(
        self,
        inputs: list[Any],
        outputs: Any,
        locktime: int = 0,
        replaceable: bool = False,
    ) -> str:
        """An unsigned transaction in hex."""
        del locktime, replaceable  # there is no time lock and no replacement here
        if not isinstance(inputs, list):
            raise RpcError(-3, f"Expected type array, got {_kind(inputs)}")
        unsigned = Transaction(
            currency=self.currency,
            inputs=tuple(self.outpoint(item) for item in inputs),
            outputs=tuple(self._outputs(outputs)),
        )
        return unsigned.hex

    def rpc_decoderawtransaction(self, hexstring: str, iswitness: bool = True) -> dict[str, Any]:
        """What a transaction in hex says."""
        del iswitness
        parsed = self.parse_transaction(hexstring)
        size = size_bytes(len(parsed.inputs), len(parsed.outputs))
        vout = [
            {
                "value": self.coins(out.amount_atomic),
                "n": number,
                "scriptPubKey": self.script(out.address),
            }
            for number, out in enumerate(parsed.outputs)
        ]
        return {
            "txid": parsed.txid,
            "hash": hashlib.sha256(parsed.encode()).hexdigest(),
            "version": 2,
            "size": size,
            "vsize": size,
            "locktime": 0,
            "vin": [{"txid": place.txid, "vout": place.vout} for place in parsed.inputs],
            "vout": vout,
        }

    def rpc_gettxspendingprevout(self, outputs: list[Any]) -> list[dict[str, Any]]:
        """Which transaction of the mempool spends each output, if one does."""
        answer = []
        for place in map(self.outpoint, outputs):
            rival = chain.spender(self.sql, self.currency, place)
            waits = rival is not None and rival["state"] == "mempool"
            spender = {"spendingtxid": rival["txid"]} if rival is not None and waits else {}
            answer.append({"txid": place.txid, "vout": place.vout} | spender)
        return answer

    def rpc_testmempoolaccept(
        self, rawtxs: list[Any], maxfeerate: Any = None
    ) -> list[dict[str, Any]]:
        """Whether one transaction would be taken; one that waits already is said to be so."""
        del maxfeerate
        if len(rawtxs) != 1:
            raise RpcError(-8, "Array must contain exactly one raw transaction for now")
        parsed = self.parse_transaction(rawtxs[0])
        known = chain.find(self.sql, self.currency, parsed.txid)
        if known is not None and known["state"] == "mempool":
            refused = "txn-already-in-mempool"
        else:
            reason = mempool.refusal_of(self.sql, parsed)
            refused = self.dialect.refusals[reason][1] if reason else ""
        told = {"reject-reason": refused} if refused else {}
        return [{"txid": parsed.txid, "allowed": not refused} | told]

    def rpc_sendrawtransaction(
        self, hexstring: str, maxfeerate: Any = None, maxburnamount: Any = None
    ) -> str:
        """Hand a signed transaction to the network; harmless to repeat while it is waiting."""
        del maxfeerate
        if maxburnamount is not None and not self.dialect.burn_limit:
            raise RpcError(-1, "sendrawtransaction hexstring ( maxfeerate )")
        return self.broadcast(self.parse_transaction(hexstring))

    def broadcast(self, signed: Transaction) -> str:
        """Accept into the mempool, or refuse in this dialect's words."""
        try:
            return mempool.accept(self.sql, signed, self.now_ms)
        except mempool.Refusal as refusal:
            raise RpcError(*self.dialect.refusals[refusal.reason]) from refusal

    def parse_transaction(self, hexstring: Any) -> Transaction:
        """A transaction of this coin, or -22."""
        if not isinstance(hexstring, str):
            raise RpcError(-3, f"Expected type string, got {_kind(hexstring)}")
        try:
            parsed = transaction.from_hex(hexstring)
        except UsageError as error:
            raise RpcError(-22, "TX decode failed") from error
        foreign = parsed.currency != self.currency
        if foreign or not all(is_address(self.currency, out.address) for out in parsed.outputs):
            raise RpcError(-22, "TX decode failed")
        return parsed

    def outpoint(self, item: Any) -> Outpoint:
        """`{"txid": ..., "vout": ...}`."""
        if not isinstance(item, dict) or not isinstance(item.get("txid"), str):
            raise RpcError(-8, "Invalid parameter, missing txid key")
        vout = item.get("vout")
        if isinstance(vout, bool) or not isinstance(vout, int) or not 0 <= vout < 2**32:
            raise RpcError(-8, "Invalid parameter, missing vout key")
        return Outpoint(item["txid"], vout)

    def amount(self, value: Any) -> int:
        """Atomic units from a number or a string; refusals as the nodes word them."""
        try:
            atomic = parse_coins(self.currency, value)
        except UsageError as error:
            raise RpcError(-3, "Invalid amount") from error
        if not 0 <= atomic <= MAXIMUM_ATOMIC:
            raise RpcError(-3, "Amount out of range")
        return atomic

    def address(self, text: Any) -> str:
        """A well-formed address, or -5."""
        if not isinstance(text, str) or not is_address(self.currency, text):
            raise RpcError(-5, f"Invalid address: {text}")
        return text

    def coins(self, amount_atomic: int) -> Raw:
        """The amount as nodes print it: a JSON number with exactly eight places."""
        return Raw(format_coins(self.currency, amount_atomic).encode())

    def script(self, address: str) -> dict[str, Any]:
        """An output script as this dialect shows it."""
        shown: dict[str, Any] = {"hex": script_hex(self.currency, address)}
        if self.dialect.single_address:
            return shown | {"address": address}
        return shown | {"reqSigs": 1, "addresses": [address]}

    def _outputs(self, outputs: Any) -> list[Output]:
        if isinstance(outputs, list) and self.dialect.array_outputs:
            pairs = [pair for item in outputs for pair in _items(item)]
        elif isinstance(outputs, dict):
            pairs = list(outputs.items())
        else:
            raise RpcError(-3, f"Expected type object, got {_kind(outputs)}")
        return [Output(self.address(address), self.amount(value)) for address, value in pairs]


def _items(item: Any) -> list[tuple[Any, Any]]:
    if not isinstance(item, dict) or len(item) != 1:
        raise RpcError(-8, "Invalid parameter, key-value pair must contain exactly one key")
    return list(item.items())


def _kind(value: Any) -> str:
    kinds = {list: "array", dict: "object", str: "string", bool: "bool", type(None): "null"}
    return kinds.get(type(value), "number")
