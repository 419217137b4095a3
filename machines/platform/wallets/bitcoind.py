"""JSON-RPC 1.0 over HTTP, as bitcoind, litecoind and dogecoind speak it.

::

    POST /rpc/{btc,ltc,doge}/                  the node (DOGE: also its one wallet, `payer`)
    POST /rpc/{btc,ltc,doge}/wallet/{name}     a wallet

HTTP basic authentication; a wrong password is 401 with an empty body.  An error travels as
HTTP 500 (404 for an unknown method) with `{"result":null,"error":{code,message},"id":...}`; a node
that knows JSON-RPC 2.0 answers a call of that version with HTTP 200 and without null members.
Each call is one transaction: an error leaves nothing behind.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from machines.platform.context import PlatformContext
from machines.platform.ledger import wallets
from machines.platform.wallets.bitcoind_node import DIALECTS, Dialect, NodeRpc, method_names
from machines.platform.wallets.bitcoind_wallet import WalletRpc
from machines.platform.wallets.rpc import Call, RpcError, bind, parse_call, says_version_two
from persistence.database import Session

_DEFAULT_WALLET = "payer"


def bitcoind_routes(
    context: PlatformContext, dialects: Mapping[str, Dialect] = DIALECTS
) -> list[Route]:
    """The nodes and wallets of the three bitcoin-like coins, each in its dialect."""
    daemon = Bitcoind(context, dialects)
    return [
        Route("/rpc/{coin:str}", daemon.handle, methods=["POST"]),
        Route("/rpc/{coin:str}/", daemon.handle, methods=["POST"]),
        Route("/rpc/{coin:str}/wallet/{wallet}", daemon.handle, methods=["POST"]),
    ]


class Bitcoind:
    """Handles the calls of every node; the path says which."""

    def __init__(
        self, context: PlatformContext, dialects: Mapping[str, Dialect] = DIALECTS
    ) -> None:
        self._context = context
        self._dialects = dialects

    async def handle(self, request: Request) -> Response:
        """One JSON-RPC call."""
        currency = request.path_params["coin"].upper()
        if currency not in self._dialects:
            return Response(status_code=404)
        if not self._authorised(request):
            challenge = {"WWW-Authenticate": 'Basic realm="jsonrpc"'}
            return Response(status_code=401, headers=challenge)
        return self._answer(currency, request.path_params.get("wallet"), await request.body())

    def _answer(self, currency: str, wallet: str | None, body: bytes) -> Response:
        call_id: Any = None
        try:
            call = parse_call(body)
            call_id = call.id
            with self._context.database.transaction() as sql:
                result = _invoke(self._node(sql, currency, wallet), call)
        except RpcError as error:
            shown = {"code": error.code, "message": error.message}
            if self._in_version_two(currency, body):
                return _reply({"jsonrpc": "2.0", "error": shown, "id": call_id}, 200)
            return _reply({"result": None, "error": shown, "id": call_id}, error.status)
        if self._in_version_two(currency, body):
            return _reply({"jsonrpc": "2.0", "result": result, "id": call_id}, 200)
        return _reply({"result": result, "error": None, "id": call_id}, 200)

    def _in_version_two(self, currency: str, body: bytes) -> bool:
        return self._dialects[currency].json_rpc_two and says_version_two(body)

    def _node(self, sql: Session, currency: str, wallet: str | None) -> NodeRpc:
        now_ms, dialect = self._context.clock_ms(), self._dialects[currency]
        if wallet is None and dialect.wallet_paths:
            return NodeRpc(sql, currency, now_ms, dialect)
        row = wallets.find(sql, currency, wallet or _DEFAULT_WALLET)
        if row is None:
            raise RpcError(-18, "Requested wallet does not exist or is not loaded")
        return WalletRpc(sql, currency, now_ms, row, dialect)

    def _authorised(self, request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        config = self._context.config
        expected = f"{config.rpc_user}:{config.rpc_password}".encode()
        try:
            credentials = base64.b64decode(given, validate=True)
        except binascii.Error:
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(credentials, expected)


def _invoke(node: NodeRpc, call: Call) -> Any:
    if call.method not in node.method_names():
        if not isinstance(node, WalletRpc) and call.method in method_names(WalletRpc, node.dialect):
            raise RpcError(
                -19,
                "Wallet file not specified (must request wallet RPC through /wallet/<filename> "
                "uri-path).",
            )
        raise RpcError(-32601, "Method not found", status=404)
    try:
        ready = bind(getattr(node, f"rpc_{call.method}"), call.params)
    except TypeError as error:
        raise RpcError(-1, f"{call.method}: {error}") from error
    return ready()


def _reply(body: dict[str, Any], status: int) -> Response:
    return Response(msgspec.json.encode(body), status, media_type="application/json")
