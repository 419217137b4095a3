"""The wallet conformance suite over the simulated nodes, in every dialect we know of.

`python -m tests.acceptance.nodes` runs the same checks against a real litecoind: that, for
`ltc0.21`, is the proof that these are honest.  What only differs between dialects (payments.md 1.7)
is checked below, line by line.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from engine.secrets import SecretsCodec
from machines.clients.ports import Currency
from machines.platform.context import PlatformConfig, open_money
from machines.platform.database import open_platform_database
from machines.platform.ledger import wallets
from machines.platform.misbehaviour import inject
from machines.platform.wallets.bitcoind import bitcoind_routes
from machines.platform.wallets.bitcoind_node import NAMED
from tests.acceptance.nodes.conformance import CHECKS, PASSPHRASE, checked
from tests.acceptance.nodes.daemon import NodeError

COINS = {"core": "BTC", "ltc0": "LTC", "doge": "DOGE"}
CONFIG = PlatformConfig(
    payer_outputs=20, shop_outputs=3, stranger_outputs=3, output_cents=1_000_000,
    rpc_user="u", rpc_password="p",
)  # fmt: skip
CORE = [f"core{major}" for major in range(22, 29)]


class Simulated:
    """The embedded platform's node in one dialect, as a side of the suite."""

    def __init__(self, name: str) -> None:
        coin = COINS[name[:4]]
        self.currency = Currency(coin)
        self.dialect = NAMED[name]
        self.segwit = coin != "DOGE"
        self.wallet_paths = self.dialect.wallet_paths
        self.database = open_platform_database(None)
        self.context = open_money(
            self.database, SecretsCodec(b"k" * 32), lambda: 1_700_000_000_000, CONFIG
        )
        app = Starlette(routes=bitcoind_routes(self.context, {coin: self.dialect}))
        self.network = httpx.ASGITransport(app=app)

    def url(self) -> str:
        return f"http://node.test/rpc/{self.currency.value.lower()}"

    def reply(self, method: str, *params: Any, wallet: str | None = "payer", **also: Any) -> Any:
        path = f"/wallet/{wallet}" if wallet and self.wallet_paths else "/"
        body = {"id": 1, "method": method, "params": list(params)} | also
        login = {"Authorization": "Basic " + base64.b64encode(b"u:p").decode()}

        async def post() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.network) as http:
                return await http.post(
                    self.url() + path, content=json.dumps(body), headers=login
                )  # fmt: skip

        return _in_a_thread(post)

    def call(self, method: str, *params: Any, wallet: str | None = "payer") -> Any:
        answer = json.loads(self.reply(method, *params, wallet=wallet).text, parse_float=Decimal)
        if answer["error"]:
            raise NodeError(method, answer["error"]["code"], answer["error"]["message"])
        return answer["result"]

    def fresh(self, wallet: str) -> str:
        with self.database.transaction() as sql:
            return wallets.new_address(sql, self.currency.value, wallet, "", 0)[0]

    def mine(self, count: int) -> None:
        self.context.blocks.mine(self.currency.value, count)

    def reverse(self, depth: int) -> None:
        with self.database.transaction() as sql:
            inject(sql, "reorg", count=1, now_ms=0, currency=self.currency.value, depth=depth)

    def double_spend(self, inputs: tuple[str, ...], wallet: str) -> str:
        places = [{"txid": i.split(":")[0], "vout": int(i.split(":")[1])} for i in inputs]
        total = sum(
            self.call("gettxout", place["txid"], place["vout"])["value"] for place in places
        )
        target = {self.fresh(wallet): str(total - Decimal("0.02"))}
        raw = self.call("createrawtransaction", places, target)
        old = "signrawtransactionwithwallet" in self.dialect.absent
        sign = "signrawtransaction" if old else "signrawtransactionwithwallet"
        signed: str = self.call(sign, raw)["hex"]
        return signed

    def lock_wallet(self) -> str:
        with self.database.transaction() as sql:
            wallets.encrypt(sql, self.currency.value, "payer", PASSPHRASE)
        return "payer"


def _in_a_thread(post: Callable[[], Any]) -> Any:
    """The checks run in a loop of their own; this call needs another one."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(post())).result()


@pytest.fixture
def simulated() -> Iterator[Callable[[str], Simulated]]:
    made: list[Simulated] = []

    def make(name: str) -> Simulated:
        made.append(Simulated(name))
        return made[-1]

    yield make
    for each in made:
        each.database.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["core22", "core28", "ltc0.21", "doge1.14"])
def test_a_simulated_node_conforms(simulated: Any, name: str, check: Any) -> None:
    checked(simulated(name), check)


# -- what differs between the dialects, line by line (payments.md 1.7) --------------------------


def _sent(side: Simulated) -> tuple[str, str]:
    """A payment in the mempool: txid and bytes."""
    raw = side.call("createrawtransaction", [], {side.fresh("shop"): "0.5"})
    funded = side.call("fundrawtransaction", raw, {"lockUnspents": True})["hex"]
    old = "signrawtransactionwithwallet" in side.dialect.absent
    signed = side.call("signrawtransaction" if old else "signrawtransactionwithwallet", funded)
    return side.call("sendrawtransaction", signed["hex"]), signed["hex"]


def _error(side: Simulated, method: str, *params: Any) -> tuple[int, str]:
    with pytest.raises(NodeError) as caught:
        side.call(method, *params)
    return caught.value.code, caught.value.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("core22", "Transaction already in block chain"),
        ("core27", "Transaction already in block chain"),
        ("core28", "Transaction outputs already in utxo set"),
        ("ltc0.21", "Transaction already in block chain"),
        ("doge1.14", "transaction already in block chain"),
    ],
)
def test_a_mined_transaction_is_minus_27_in_the_words_of_each(
    simulated: Any, name: str, text: str
) -> None:
    side = simulated(name)
    txid, raw = _sent(side)
    assert side.call("sendrawtransaction", raw) == txid  # waiting: the same txid, no error
    side.mine(1)
    assert _error(side, "sendrawtransaction", raw) == (-27, text)


@pytest.mark.parametrize(
    ("name", "in_the_mempool", "in_a_block"),
    [
        ("core22", "txn-mempool-conflict", "bad-txns-inputs-missingorspent"),
        ("core28", "txn-mempool-conflict", "bad-txns-inputs-missingorspent"),
        ("ltc0.21", "txn-mempool-conflict", "bad-txns-inputs-missingorspent"),
        ("doge1.14", "18: txn-mempool-conflict", "Missing inputs"),
    ],
)
def test_a_rival_is_minus_26_then_minus_25(
    simulated: Any, name: str, in_the_mempool: str, in_a_block: str
) -> None:
    side = simulated(name)
    raw = side.call("createrawtransaction", [], {side.fresh("shop"): "0.5"})
    funded = side.call("fundrawtransaction", raw, {"lockUnspents": True})["hex"]
    places = side.call("decoderawtransaction", funded)["vin"]
    old = "signrawtransactionwithwallet" in side.dialect.absent
    sign = "signrawtransaction" if old else "signrawtransactionwithwallet"
    ours = side.call(sign, funded)["hex"]
    rival = side.double_spend(tuple(f"{p['txid']}:{p['vout']}" for p in places), "payer")
    side.call("sendrawtransaction", rival)
    assert _error(side, "sendrawtransaction", ours) == (-26, in_the_mempool)
    side.mine(1)
    assert _error(side, "sendrawtransaction", ours) == (-25, in_a_block)


@pytest.mark.parametrize("name", NAMED)
def test_each_says_who_it_is_and_has_the_methods_of_its_time(simulated: Any, name: str) -> None:
    side = simulated(name)
    version = side.call("getnetworkinfo", wallet=None)["version"]
    assert version == {"ltc0.21": 210_201, "doge1.14": 1_140_600}.get(name, side.dialect.version)

    def knows(method: str) -> bool:
        return not str(side.call("help", method)).startswith("help: unknown command")

    assert knows("signrawtransaction") == (name == "doge1.14")
    assert knows("signrawtransactionwithwallet") == (name != "doge1.14")
    assert knows("testmempoolaccept") == (name != "doge1.14")
    assert knows("getaddressesbylabel") == (name != "doge1.14")
    assert knows("gettxspendingprevout") == (name in CORE[2:])


@pytest.mark.parametrize("name", NAMED)
def test_arguments_and_members_come_with_their_version(simulated: Any, name: str) -> None:
    side = simulated(name)
    txid, raw = _sent(side)
    persistent = side.reply("lockunspent", True, None, True).json()["error"]
    assert (persistent is None) == (name in CORE[1:])
    burns = side.reply("sendrawtransaction", raw, None, "0").json()["error"]
    assert (burns is None) == (name in CORE[3:])
    assert ("lastprocessedblock" in side.call("getwalletinfo")) == (name in CORE[4:])
    assert ("mempoolconflicts" in side.call("gettransaction", txid)) == (name == "core28")
    script = side.call("decoderawtransaction", raw)["vout"][0]["scriptPubKey"]
    assert ("address" in script, "addresses" in script) == (name in CORE, name not in CORE)
    assert ("removed" in side.call("listsinceblock")) == (name != "doge1.14")


@pytest.mark.parametrize("name", NAMED)
def test_version_two_of_json_rpc_is_answered_by_core28_only(simulated: Any, name: str) -> None:
    """So our client says no version: there an error would come with HTTP 200."""
    side = simulated(name)
    failed = side.reply("gettransaction", "ab" * 32, jsonrpc="2.0")
    good = side.reply("getblockcount", jsonrpc="2.0")
    if name == "core28":
        assert (failed.status_code, "result" in failed.json()) == (200, False)
        assert (good.status_code, "error" in good.json()) == (200, False)
    else:
        assert (failed.status_code, failed.json()["result"]) == (500, None)
        assert good.json()["error"] is None


@pytest.mark.parametrize("name", ["core22", "core28", "ltc0.21"])
def test_a_trial_says_what_a_broadcast_would(simulated: Any, name: str) -> None:
    side = simulated(name)
    txid, raw = _sent(side)
    waiting = {"txid": txid, "allowed": False, "reject-reason": "txn-already-in-mempool"}
    assert side.call("testmempoolaccept", [raw]) == [waiting]
    side.mine(1)
    words = side.dialect.refusals["already_mined"][1]
    assert side.call("testmempoolaccept", [raw])[0]["reject-reason"] == words


@pytest.mark.parametrize("name", CORE[2:])
def test_who_spends_an_output_is_told_from_24_on(simulated: Any, name: str) -> None:
    side = simulated(name)
    txid, raw = _sent(side)
    place = side.call("decoderawtransaction", raw)["vin"][0]
    wanted = {"txid": place["txid"], "vout": place["vout"]}
    assert side.call("gettxspendingprevout", [wanted]) == [wanted | {"spendingtxid": txid}]
    side.mine(1)
    assert side.call("gettxspendingprevout", [wanted]) == [wanted]
