"""monerod and monero-wallet-rpc over HTTP.

::

    POST /rpc/xmr/daemon/json_rpc               get_info, get_block_count, get_block
    POST /rpc/xmr/daemon/get_transactions       where transactions are: pool, block or nowhere
    POST /rpc/xmr/daemon/is_key_image_spent     0 unspent, 1 spent in a block, 2 spent in the pool
    POST /rpc/xmr/daemon/send_raw_transaction   a signed blob, should the wallet be away
    POST /rpc/xmr/wallet/{name}/json_rpc        the wallet

The truth about a payment is the daemon's, never the wallet's.  A wallet with a passphrase is
closed (-13) until `open_wallet` is called with the right one.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.errors import UsageError
from machines.platform.context import PlatformContext
from machines.platform.ledger import chain, mempool, wallets
from machines.platform.ledger.transaction import Outpoint, from_hex, key_image
from machines.platform.wallets.monero_wallet import XMR, MoneroWallet, parse_blob
from machines.platform.wallets.rpc import Call, RpcError, bind, parse_call, parse_json
from persistence.database import Row, Session

_OPEN_FOR_EVER_MS = 2**62


def monero_routes(context: PlatformContext) -> list[Route]:
    """The monero daemon and its wallets."""
    node = Monerod(context)
    base = "/rpc/xmr/daemon"
    return [
        Route(f"{base}/json_rpc", node.json_rpc, methods=["POST"]),
        Route(f"{base}/get_transactions", node.get_transactions, methods=["POST"]),
        Route(f"{base}/is_key_image_spent", node.is_key_image_spent, methods=["POST"]),
        Route(f"{base}/send_raw_transaction", node.send_raw_transaction, methods=["POST"]),
        Route("/rpc/xmr/wallet/{wallet}/json_rpc", WalletHost(context).json_rpc, methods=["POST"]),
    ]


class Monerod:
    """The daemon: what the chain and the pool hold."""

    def __init__(self, context: PlatformContext) -> None:
        self._context = context

    async def json_rpc(self, request: Request) -> Response:
        """`get_info`, `get_block_count` and `get_block`."""
        call_id: Any = "0"
        try:
            call = parse_call(await request.body())
            call_id = call.id
            with self._context.database.reading() as sql:
                return _result(call_id, self._call(sql, call))
        except RpcError as error:
            return _error(call_id, error)

    async def get_transactions(self, request: Request) -> Response:
        """Where each of `txs_hashes` is; with `decode_as_json`, also what it spends and makes."""
        try:
            body = parse_json(await request.body())
            hashes = _strings(body, "txs_hashes")
        except RpcError as error:
            return _json({"status": f"Failed: {error.message}"})
        with self._context.database.reading() as sql:
            rows = {txid: chain.find(sql, XMR, txid) for txid in hashes}
            height = chain.tip(sql, XMR).height
        live = {
            txid: row
            for txid, row in rows.items()
            if row is not None and row["state"] in ("mempool", "mined")
        }
        answer: dict[str, Any] = {"status": "OK"}
        if live:
            decoded = body.get("decode_as_json") is True
            answer["txs"] = [_whereabouts(row, height, decoded) for row in live.values()]
        missed = [txid for txid in hashes if txid not in live]
        return _json(answer | ({"missed_tx": missed} if missed else {}))

    async def is_key_image_spent(self, request: Request) -> Response:
        """Whether each of `key_images` is unspent (0), spent in a block (1) or the pool (2)."""
        try:
            images = _strings(parse_json(await request.body()), "key_images")
        except RpcError as error:
            return _json({"status": f"Failed: {error.message}"})
        with self._context.database.reading() as sql:
            spent = [_spent_status(sql, image) for image in images]
        return _json({"status": "OK", "spent_status": spent})

    async def send_raw_transaction(self, request: Request) -> Response:
        """Take `tx_as_hex` into the pool."""
        try:
            body = parse_json(await request.body())
            signed = parse_blob(body.get("tx_as_hex") if isinstance(body, dict) else None)
            with self._context.database.transaction() as sql:
                mempool.accept(sql, signed, self._context.clock_ms())
        except (RpcError, UsageError) as error:
            return _json({"status": "Failed", "reason": str(error)})
        except mempool.Refusal as refusal:
            double = refusal.reason in ("mempool_conflict", "missing_inputs")
            reason = "double spend" if double else refusal.reason
            return _json({"status": "Failed", "reason": reason, "double_spend": double})
        return _json({"status": "OK", "reason": "", "double_spend": False, "not_relayed": False})

    def _call(self, sql: Session, call: Call) -> dict[str, Any]:
        tip = chain.tip(sql, XMR)
        if call.method == "get_block_count":
            return {"count": tip.height + 1, "status": "OK"}
        if call.method == "get_block":
            return _block(sql, call.params)
        if call.method != "get_info":
            raise RpcError(-32601, "Method not found")
        pool = sql.scalar(
            "SELECT COUNT(*) FROM ledger_tx WHERE currency = 'XMR' AND state = 'mempool'"
        )
        return {
            "height": tip.height + 1,
            "top_block_hash": tip.hash,
            "tx_pool_size": pool,
            "nettype": "fakechain",
            "synchronized": True,
            "offline": True,
            "version": "0.18.0.0",
            "status": "OK",
        }


class WalletHost:
    """The wallets, one path for each."""

    def __init__(self, context: PlatformContext) -> None:
        self._context = context

    async def json_rpc(self, request: Request) -> Response:
        """One call; errors come with HTTP 200."""
        name, call_id = request.path_params["wallet"], "0"
        try:
            call = parse_call(await request.body())
            call_id = call.id
            with self._context.database.transaction() as sql:
                result = self._call(sql, name, call)
        except RpcError as error:
            return _error(call_id, error)
        return _result(call_id, result)

    def _call(self, sql: Session, name: str, call: Call) -> Any:
        now_ms = self._context.clock_ms()
        row = wallets.find(sql, XMR, name)
        if call.method == "open_wallet":
            return _open_wallet(sql, row, call)
        if row is None or wallets.is_locked(row, now_ms):
            raise RpcError(-13, "No wallet file")
        if call.method == "close_wallet":
            wallets.set_unlocked(sql, row, 0)
            return {}
        method = getattr(MoneroWallet(sql, row, now_ms), f"rpc_{call.method}", None)
        if method is None:
            raise RpcError(-32601, "Method not found")
        if not isinstance(call.params, dict) and call.params:
            raise RpcError(-32602, "Invalid params")
        try:
            ready = bind(method, call.params or {})
        except TypeError as error:
            raise RpcError(-32602, "Invalid params") from error
        return ready()


def _open_wallet(sql: Session, row: Row | None, call: Call) -> dict[str, Any]:
    """The same -1 for a wrong password and for a missing file, as the real one."""
    params = call.params if isinstance(call.params, dict) else {}
    password = params.get("password", "")
    if row is not None and params.get("filename", row["name"]) == row["name"]:
        if row["passphrase_hash"] is None:
            return {}
        if isinstance(password, str) and wallets.unlock(sql, row, password, _OPEN_FOR_EVER_MS):
            return {}
    raise RpcError(-1, "Failed to open wallet")


def _block(sql: Session, params: list[Any] | dict[str, Any]) -> dict[str, Any]:
    """A block of the best chain by `height`, with the transactions in it."""
    height = params.get("height") if isinstance(params, dict) else None
    top = chain.tip(sql, XMR).height
    if isinstance(height, bool) or not isinstance(height, int) or not 0 <= height <= top:
        raise RpcError(-2, f"Requested block height: {height} greater than current top: {top}")
    rows = sql.all(
        """
        SELECT b.hash, b.previous_hash, b.mined_ms, t.txid, t.coinbase
        FROM block b LEFT JOIN ledger_tx t ON t.block_id = b.id
        WHERE b.currency = 'XMR' AND b.state = 'best' AND b.height = :height ORDER BY t.id
        """,
        height=height,
    )
    header = {
        "height": height,
        "hash": rows[0]["hash"],
        "prev_hash": rows[0]["previous_hash"],
        "timestamp": rows[0]["mined_ms"] // 1000,
        "depth": top - height,
        "orphan_status": False,
    }
    hashes = [row["txid"] for row in rows if row["txid"] is not None and not row["coinbase"]]
    return {"block_header": header, "tx_hashes": hashes, "status": "OK"}


def _as_json(payload: str) -> str:
    """What `decode_as_json` shows: the key images spent; amounts are hidden, as on the chain."""
    parsed = from_hex(payload)
    spent: list[dict[str, Any]] = [
        {"key": {"amount": 0, "key_offsets": [], "k_image": key_image(XMR, place)}}
        for place in parsed.inputs
    ]
    made = [{"amount": 0} for _ in parsed.outputs]
    return msgspec.json.encode({"version": 2, "vin": spent, "vout": made}).decode()


def _whereabouts(row: Row, height: int, decoded: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "tx_hash": row["txid"],
        "as_hex": row["payload"],
        "in_pool": row["state"] == "mempool",
        "double_spend_seen": False,
    }
    if decoded:
        answer["as_json"] = _as_json(row["payload"])
    if row["state"] == "mined":
        answer |= {
            "block_height": row["height"],
            "block_timestamp": row["mined_ms"] // 1000,
            "confirmations": height - row["height"] + 1,
        }
    return answer


def _spent_status(sql: Session, image: str) -> int:
    place = sql.one(
        "SELECT txid, vout FROM ledger_output WHERE currency = 'XMR' AND key_image = :image",
        image=image,
    )
    rival = chain.spender(sql, XMR, Outpoint(place["txid"], place["vout"])) if place else None
    if rival is None:
        return 0
    return 1 if rival["state"] == "mined" else 2


def _strings(body: Any, name: str) -> list[str]:
    value = body.get(name) if isinstance(body, dict) else None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise RpcError(-32602, f"{name}: expected a list of strings")
    return value


def _result(call_id: Any, result: Any) -> Response:
    return _json({"id": call_id, "jsonrpc": "2.0", "result": result})


def _error(call_id: Any, error: RpcError) -> Response:
    shown = {"code": error.code, "message": error.message}
    return _json({"id": call_id, "jsonrpc": "2.0", "error": shown})


def _json(body: Any) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
