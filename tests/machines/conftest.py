"""A money world: portal, nodes and wallets over one database, with a clock that tests move."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware

from engine.secret import Secret
from engine.secrets import SecretsCodec
from engine.testing import CrashPlan, Harness, ManualClock
from machines.clients import clients_for
from machines.clients.ports import Credentials
from machines.platform import keys
from machines.platform.app import build_app
from machines.platform.context import PlatformConfig, open_money
from machines.platform.database import open_platform_database
from machines.platform.ledger.report import ledger_report
from machines.platform.misbehaviour import FaultMiddleware, inject
from machines.platform.portal import build_money_routes
from machines.platform.sandbox.fake import FakeBackend
from persistence.store import open_store

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
            if name == "reorg":
                self.context.blocks.judge(sql)

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


# -- machines against a whole platform ----------------------------------------------------------


class Wire(httpx.AsyncBaseTransport):
    """The way to a platform, on which somebody may change answers: `changes[path](body)`."""

    def __init__(self, app: Any) -> None:
        self.changes: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {}
        self.is_cut = False
        self._inner = httpx.ASGITransport(app=app)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.is_cut:
            raise httpx.ConnectError("the wire is cut", request=request)
        answer = await self._inner.handle_async_request(request)
        change = self.changes.get(request.url.path)
        if change is None or answer.status_code >= 300:
            return answer
        body = change(json.loads(await answer.aread()))
        headers = {name: value for name, value in answer.headers.items() if name == "date"}
        return httpx.Response(answer.status_code, headers=headers, json=body)


class Embedded:
    """A platform in this process, its clients over ASGI, and machines that run against it.

    Platform and machines share one clock, which the harness moves to whatever is due next.
    """

    def __init__(self, data_dir: Path, backend: Any, app: Any, context: Any, clock: Any) -> None:
        self.data_dir, self.backend, self.app, self.context = data_dir, backend, app, context
        self.clock = clock
        self.store = open_store("sqlite://")
        self.codec = SecretsCodec(b"c" * 32)
        self.wire = Wire(app)
        self.clients = clients_for(
            "http://platform",
            rpc_username=CONFIG.rpc_user,
            rpc_password=Secret(CONFIG.rpc_password or ""),
            clock_ms=clock.now_ms,
            network=self.wire,
        )

    def key(self, tier: int = 8, months: int = 1) -> Credentials:
        """A key that is paid for in no ledger: the platform's own gift."""
        with self.context.database.transaction() as sql:
            public_key = keys.issue(sql, tier, months, self.clock.now_ms())
            return Credentials(
                public_key=public_key, secret_key=Secret(keys.secret(sql, public_key))
            )

    def harness(self, plan: CrashPlan | None = None, instead: Any = None) -> Harness:
        """An app with every machine over this platform; some resources may be others."""
        from machines.app import MACHINES, resources_of

        return Harness(
            MACHINES,
            store=self.store,
            resources=resources_of(self.clients) | (instead or {}),
            clock=self.clock,
            plan=plan,
            secrets=self.codec,
        )

    async def run(
        self, machine: Any, context: Any, *, key: str = "the run", instead: Any = None
    ) -> Any:
        """Run a machine until nothing moves it any more; the outcome, `passed` with its states."""
        async with self.harness(instead=instead) as harness:
            run_id = (await harness.app.start(machine, context, key=key)).run_id
            await harness.until_idle(horizon_ms=7 * 24 * 3_600_000)
            outcome = await harness.app.outcome(run_id)
            journal = await harness.app.journal(run_id)
        passed = [e.target for i, e in enumerate(journal) if i == 0 or e.target != e.source]
        return SimpleNamespace(
            run_id=run_id,
            state=outcome.state,
            status=outcome.status,
            context=outcome.context,
            output=outcome.output,
            passed=passed,
        )

    def left(self) -> dict[str, int]:
        """What lives in the platform, by kind, of all keys; empty when nothing was left behind."""
        with self.context.database.reading() as sql:
            counted = {name: int(sql.scalar(statement)) for name, statement in _LIVING.items()}
        return {name: number for name, number in counted.items() if number}

    def spends(self) -> int:
        """Transactions on any chain that anybody made; what blocks brought is none."""
        with self.context.database.reading() as sql:
            return int(sql.scalar(_SPENT))


_LIVING = {
    "sessions": "SELECT count(*) FROM session WHERE state <> 'terminated'",
    "executions": "SELECT count(*) FROM execution WHERE state IN ('pending', 'running')",
    "services": "SELECT count(*) FROM service WHERE state <> 'deleted'",
    "snapshots": "SELECT count(*) FROM snapshot WHERE status <> 'deleted'",
    "images": "SELECT count(*) FROM image WHERE status <> 'deleted'",
}
_SPENT = "SELECT count(*) FROM ledger_tx WHERE NOT coinbase AND state IN ('mempool', 'mined')"


@pytest.fixture
async def embed(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """`await embed(backend)`: a started platform; a fake backend unless another is given."""
    numbers = itertools.count()
    async with AsyncExitStack() as stack:

        async def start(backend: Any = None, **settings: Any) -> Embedded:
            data_dir = tmp_path / f"platform-{next(numbers)}"
            data_dir.mkdir(mode=0o700)
            clock = ManualClock(1_700_000_000_000)
            database = open_platform_database(data_dir)
            stack.callback(database.close)
            config = replace(CONFIG, **settings)
            codec = SecretsCodec(b"k" * 32)
            context = open_money(database, codec, clock.now_ms, config)
            backend = FakeBackend() if backend is None else backend
            app = build_app(context, backend, allow_faults=True)
            await stack.enter_async_context(app.router.lifespan_context(app))
            made = Embedded(data_dir, backend, app, context, clock)
            stack.callback(made.store.close)
            stack.push_async_callback(made.clients.aclose)
            return made

        yield start


@pytest.fixture
def new_world() -> Callable[[], World]:
    """Make platforms in memory that their user closes."""
    return lambda: World(None)
