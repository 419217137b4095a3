"""A money world: portal, nodes and wallets over one database, with a clock that tests move."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware

from engine.secrets import SecretsCodec
from machines.platform.context import PlatformConfig, open_money
from machines.platform.database import open_platform_database
from machines.platform.ledger.report import ledger_report
from machines.platform.misbehaviour import FaultMiddleware, inject
from machines.platform.portal import build_money_routes

CONFIG = PlatformConfig(
    payer_outputs=20,
    shop_outputs=6,
    stranger_outputs=3,
    output_cents=100_000_000,
    allow_faults=True,
    rpc_password="p",
)


class World:
    """One platform's money.  `restart` closes the file and opens it again."""

    def __init__(self, data_dir: Path | None, config: PlatformConfig = CONFIG) -> None:
        self.data_dir = data_dir
        self.config = config
        self.now_ms = 1_700_000_000_000
        self.codec = SecretsCodec(b"k" * 32)
        self.runner = asyncio.Runner()
        self._open()

    def _open(self) -> None:
        self.database = open_platform_database(self.data_dir)
        self.context = open_money(self.database, self.codec, lambda: self.now_ms, self.config)
        self.app = Starlette(
            routes=build_money_routes(self.context),
            middleware=[Middleware(FaultMiddleware, database=self.database)],
        )

    def restart(self) -> None:
        self.database.close()
        self._open()

    def close(self) -> None:
        self.runner.close()
        self.database.close()

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://portal") as http:
                return await http.request(method, path, **arguments)

        return self.runner.run(call())

    def invoice(self, currency: str = "LTC", **fields: Any) -> dict[str, Any]:
        key = fields.pop("key", None)
        body = {"tier_level": 1, "months": 1, "payment_method": currency, **fields}
        headers = {"Idempotency-Key": key} if key else {}
        reply = self.request("POST", "/api/invoices", json=body, headers=headers)
        assert reply.status_code in (200, 201), reply.text
        return reply.json()

    def status(self, invoice: dict[str, Any]) -> dict[str, Any]:
        reply = self.request("GET", f"/payment/{invoice['id']}/status")
        assert reply.status_code == 200, reply.text
        return reply.json()

    def mine(self, currency: str, count: int = 1) -> list[str]:
        return self.context.blocks.mine(currency, count)

    def fault(self, name: str, *, count: int = 1, **arguments: Any) -> None:
        with self.database.transaction() as sql:
            inject(sql, name, count=count, **({"now_ms": self.now_ms} | arguments))

    def reply(self, coin: str, method: str, *params: Any, wallet: str | None = "payer") -> Any:
        """The HTTP reply of a bitcoin-like node; a dict as the only parameter names them."""
        named = params[0] if len(params) == 1 and isinstance(params[0], dict) else list(params)
        path = f"/rpc/{coin.lower()}/" + (f"wallet/{wallet}" if wallet else "")
        credentials = f"{self.config.rpc_user}:{self.config.rpc_password}".encode()
        return self.request(
            "POST",
            path,
            content=json.dumps({"id": 1, "method": method, "params": named}),
            headers={"Authorization": "Basic " + base64.b64encode(credentials).decode()},
        )

    def rpc(self, coin: str, method: str, *params: Any, wallet: str | None = "payer") -> Any:
        """The result of a call that must succeed."""
        body = json.loads(
            self.reply(coin, method, *params, wallet=wallet).text, parse_float=Decimal
        )
        assert body["error"] is None, body
        return body["result"]

    def error(
        self, coin: str, method: str, *params: Any, wallet: str | None = "payer"
    ) -> tuple[int, str]:
        """Code and message of a call that must fail."""
        reply = self.reply(coin, method, *params, wallet=wallet)
        assert reply.status_code in (404, 500), reply.text
        error = reply.json()["error"]
        return error["code"], error["message"]

    def signed(self, coin: str, address: str, amount: str, wallet: str = "payer") -> str:
        """Build, fund (reserving the inputs) and sign; the bytes in hex."""
        raw = self.rpc(coin, "createrawtransaction", [], {address: amount}, wallet=wallet)
        funded = self.rpc(coin, "fundrawtransaction", raw, {"lockUnspents": True}, wallet=wallet)
        suffix = "" if coin == "DOGE" else "withwallet"
        return self.rpc(coin, "signrawtransaction" + suffix, funded["hex"], wallet=wallet)["hex"]

    def xmr(self, method: str, wallet: str = "payer", **params: Any) -> Any:
        """The whole reply of a monero wallet: `result` or `error`."""
        reply = self.request(
            "POST",
            f"/rpc/xmr/wallet/{wallet}/json_rpc",
            json={"jsonrpc": "2.0", "id": "0", "method": method, "params": params},
        )
        assert reply.status_code == 200
        return reply.json()

    def built(self, address: str, amount_atomic: int, wallet: str = "payer") -> dict[str, Any]:
        """A monero payment, built and not relayed."""
        reply = self.xmr(
            "transfer",
            wallet,
            destinations=[{"address": address, "amount": amount_atomic}],
            do_not_relay=True,
            get_tx_key=True,
            get_tx_metadata=True,
            get_tx_hex=True,
        )
        return reply["result"]

    def daemon(self, path: str, **body: Any) -> dict[str, Any]:
        """A reply of the monero daemon."""
        return self.request("POST", f"/rpc/xmr/daemon/{path}", json=body).json()

    def send(self, currency: str, address: str, amount_atomic: int) -> str:
        """Pay from the payer's wallet; the txid."""
        if currency == "XMR":
            built = self.built(address, amount_atomic)
            assert "result" in self.xmr("relay_tx", hex=built["tx_metadata"])
            return built["tx_hash"]
        amount = f"{amount_atomic // 10**8}.{amount_atomic % 10**8:08d}"
        return self.rpc(currency, "sendrawtransaction", self.signed(currency, address, amount))

    def own_address(self, currency: str, label: str = "refund") -> str:
        """A fresh address of the payer."""
        if currency == "XMR":
            return self.xmr("create_address", label=label)["result"]["address"]
        return self.rpc(currency, "getnewaddress", label)

    def received(self, currency: str, address: str, depth: int = 0) -> int:
        """What arrived at an address of the payer, at least that deep."""
        if currency == "XMR":
            listed = self.xmr("get_transfers", **{"in": True, "pool": True})["result"]
            entries = [*listed.get("in", []), *listed.get("pool", [])]
            return sum(
                each["amount"]
                for each in entries
                if each["address"] == address and each.get("confirmations", 0) >= depth
            )
        amount = self.rpc(currency, "getreceivedbyaddress", address, depth)
        return int(amount.scaleb(8))

    def report(self) -> dict[str, Any]:
        found = ledger_report(self.database)
        assert found["consistent"], found["currencies"]
        return found


@pytest.fixture
def world() -> Iterator[World]:
    """A platform in memory."""
    made = World(None)
    yield made
    made.close()


@pytest.fixture
def file_world(tmp_path: Path) -> Iterator[World]:
    """A platform in a file, to be restarted."""
    made = World(tmp_path / "data")
    yield made
    made.close()


@pytest.fixture
def reopened() -> Iterator[Callable[[Path, int], World]]:
    """Open a platform over a data directory that exists, at a moment."""
    made: list[World] = []

    def open_(data_dir: Path, now_ms: int) -> World:
        made.append(World(data_dir))
        made[-1].now_ms = now_ms
        return made[-1]

    yield open_
    for each in made:
        each.close()


@pytest.fixture
def worlds() -> Iterator[Any]:
    """Make platforms in memory with other settings: `worlds(invoice_seconds=60)`."""
    made: list[World] = []

    def make(**settings: Any) -> World:
        made.append(World(None, replace(CONFIG, **settings)))
        return made[-1]

    yield make
    for each in made:
        each.close()
