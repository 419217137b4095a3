"""A bitcoind-style wallet: two-phase build, verified; harmless broadcasts; the truth table."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from engine.secrets import Secret
from machines.clients import BitcoindWallet, Transport
from machines.clients.ports import (
    BroadcastRefused,
    ClientError,
    Currency,
    InsufficientFunds,
    Rejected,
    ReplyLost,
    Sighting,
    SignedTransaction,
    Unavailable,
    WalletLocked,
)

Serve = Callable[..., Transport]
SHOP, CHANGE, STRANGER = "bcrt1shop", "bcrt1change", "bcrt1stranger"
LABELLED = {"getaddressesbylabel", "getaddressinfo", "signrawtransactionwithwallet"}
CORE = LABELLED | {"listtransactions"}
DOGE = {"signrawtransaction", "validateaddress", "listtransactions"}
UNKNOWN = httpx.Response(500, json={"error": {"code": -5, "message": "no such transaction"}})
PAYMENT = SignedTransaction(
    txid="t1",
    payload=Secret("signed-hex"),
    inputs=("c1:0", "c2:7"),
    fee_atomic=282,
    amount_atomic=29_000_000,
    address=SHOP,
)


def decoded(
    txid: str = "t1", payee: str = SHOP, inputs: tuple[str, ...] = PAYMENT.inputs
) -> dict[str, Any]:
    outputs = [("0.29000000", payee), ("1.50000000", CHANGE)]
    return {
        "txid": txid,
        "vin": [{"txid": i.split(":")[0], "vout": int(i.split(":")[1])} for i in inputs],
        "vout": [
            {"value": value, "n": n, "scriptPubKey": {"hex": "00", "address": address}}
            for n, (value, address) in enumerate(outputs)
        ],
    }


def make_node(node: Any, known: set[str] = CORE) -> None:
    """A node that can pay 0.29 from two coins."""
    node.answers |= {
        "getnetworkinfo": {"version": 280000, "subversion": "/Satoshi:28.0.0/"},
        "help": lambda params: (
            params[0] if params[0] in known else f"help: unknown command: {params[0]}\n"
        ),
        "createrawtransaction": "raw-hex",
        "fundrawtransaction": b'{"hex":"funded-hex","fee":0.00000282,"changepos":1}',
        "decoderawtransaction": decoded(),
        "signrawtransactionwithwallet": {"hex": "signed-hex", "complete": True},
        "signrawtransaction": {"hex": "signed-hex", "complete": True},
        "getaddressinfo": {"ismine": True},
        "validateaddress": {"isvalid": True, "ismine": True},
        "lockunspent": True,
    }


@pytest.fixture
def wallet(node: Any, served: Serve) -> BitcoindWallet:
    make_node(node)
    return make_wallet(Currency.BTC, served(node), "payer")


def make_wallet(currency: Currency, transport: Transport, name: str | None) -> BitcoindWallet:
    return BitcoindWallet(
        currency,
        "http://node.test/rpc/coin/",
        transport,
        wallet_name=name,
        username="user",
        password=Secret("hunter2"),
    )


async def build(wallet: BitcoindWallet) -> SignedTransaction:
    return await wallet.build(address=SHOP, amount_atomic=29_000_000)


async def test_build_in_the_words_of_core(wallet: BitcoindWallet, node: Any) -> None:
    assert await build(wallet) == PAYMENT
    assert node.named("createrawtransaction") == [[[], {SHOP: "0.29000000"}]]
    options = {"lockUnspents": True, "replaceable": False, "change_type": "bech32"}
    assert node.named("fundrawtransaction") == [["raw-hex", options]]
    assert node.named("signrawtransactionwithwallet") == [["funded-hex"]]
    assert node.named("getaddressinfo") == [[CHANGE]]
    assert not node.named("lockunspent")
    assert {request.url.path for request in node.requests} == {"/rpc/coin/wallet/payer"}
    expected = "Basic " + base64.b64encode(b"user:hunter2").decode()
    assert {request.headers["Authorization"] for request in node.requests} == {expected}
    assert all("jsonrpc" not in json.loads(request.content) for request in node.requests)


async def test_build_in_the_words_of_dogecoin(node: Any, served: Serve) -> None:
    make_node(node, DOGE)
    shown = decoded()
    for output in shown["vout"]:
        output["scriptPubKey"]["addresses"] = [output["scriptPubKey"].pop("address")]
    node.answers["decoderawtransaction"] = shown
    assert await build(make_wallet(Currency.DOGE, served(node), None)) == PAYMENT
    assert node.named("fundrawtransaction") == [["raw-hex", {"lockUnspents": True}]]
    assert node.named("signrawtransaction") == [["funded-hex"]]
    assert node.named("validateaddress") == [[CHANGE]]
    assert {request.url.path for request in node.requests} == {"/rpc/coin/"}


async def test_the_dialect_is_asked_once(wallet: BitcoindWallet, node: Any) -> None:
    await build(wallet)
    await build(wallet)
    assert len(node.named("getnetworkinfo")) == 1


async def test_nothing_to_pay_is_rejected_before_the_node_is_asked(
    wallet: BitcoindWallet, node: Any
) -> None:
    with pytest.raises(Rejected):
        await wallet.build(address=SHOP, amount_atomic=0)
    assert not node.calls


def pays_twice() -> dict[str, Any]:
    twice = decoded()
    twice["vout"].append(twice["vout"][0])
    return twice


def pays_one_less() -> dict[str, Any]:
    less = decoded()
    less["vout"][0]["value"] = "0.28999999"
    return less


def pays_a_shared_script() -> dict[str, Any]:
    shared = decoded()
    shared["vout"][0]["scriptPubKey"] = {"addresses": [SHOP, STRANGER]}
    return shared


@pytest.mark.parametrize(
    ("method", "answer", "named"),
    [
        ("signrawtransactionwithwallet", {"hex": "x", "complete": False}, "incomplete"),
        ("decoderawtransaction", decoded(payee=STRANGER), "expected one output"),
        ("decoderawtransaction", pays_twice(), "expected one output"),
        ("decoderawtransaction", pays_one_less(), "expected one output"),
        ("decoderawtransaction", pays_a_shared_script(), "expected one output"),
        ("getaddressinfo", {"ismine": False}, "change goes to"),
        ("fundrawtransaction", b'{"hex":"f","fee":0.00200001}', "fee 200001"),
    ],
)
async def test_a_wrong_result_is_refused_and_its_inputs_given_back(
    wallet: BitcoindWallet, node: Any, method: str, answer: Any, named: str
) -> None:
    node.answers[method] = answer
    with pytest.raises(Rejected, match=named):
        await build(wallet)
    unlocked = [params[1][0] for params in node.named("lockunspent") if params[0] is True]
    assert unlocked == [{"txid": "c1", "vout": 0}, {"txid": "c2", "vout": 7}]


async def test_signing_that_changes_the_inputs_is_refused(
    wallet: BitcoindWallet, node: Any
) -> None:
    replies = iter([decoded(), decoded(inputs=("c9:0",))])
    node.answers["decoderawtransaction"] = lambda _params: next(replies)
    with pytest.raises(Rejected, match="changed the inputs"):
        await build(wallet)


@pytest.mark.parametrize(
    ("method", "code", "message", "expected"),
    [
        ("fundrawtransaction", -6, "Insufficient funds", InsufficientFunds),
        ("fundrawtransaction", -4, "Insufficient funds", InsufficientFunds),
        ("fundrawtransaction", -32603, "Insufficient funds", InsufficientFunds),
        ("fundrawtransaction", -4, "Transaction amount too small", Rejected),
        (
            "fundrawtransaction",
            -12,
            "Error: Keypool ran out, please call keypoolrefill first",
            WalletLocked,
        ),
        (
            "fundrawtransaction",
            -4,
            "Transaction needs a change address, but we can't generate it. "
            "Please call keypoolrefill first.",
            WalletLocked,
        ),
        ("fundrawtransaction", -4, "Insufficient funds", InsufficientFunds),
        ("fundrawtransaction", -6, "Transaction amount too small", Rejected),
        (
            "fundrawtransaction",
            -4,
            "This transaction requires a transaction fee of at least 0.01",
            InsufficientFunds,
        ),
        ("fundrawtransaction", -4, "Fee estimation failed. Fallbackfee is off", Unavailable),
        ("fundrawtransaction", -4, "Keypool ran out, call keypoolrefill first", WalletLocked),
        ("signrawtransactionwithwallet", -13, "Please enter the passphrase", WalletLocked),
        ("createrawtransaction", -5, "Invalid address: x", Rejected),
        ("createrawtransaction", -3, "Invalid amount", Rejected),
        ("createrawtransaction", -8, "Invalid parameter", Rejected),
        ("createrawtransaction", -28, "Loading block index...", Unavailable),
        ("createrawtransaction", -18, "Requested wallet is not loaded", Unavailable),
        ("createrawtransaction", -32603, "internal", Unavailable),
        ("createrawtransaction", -1, "wrong arguments", Rejected),
    ],
)
async def test_errors_while_building(
    wallet: BitcoindWallet,
    node: Any,
    method: str,
    code: int,
    message: str,
    expected: type[ClientError],
) -> None:
    node.error(method, code, message)
    with pytest.raises(expected, match=r"btc_wallet: .*code -"):
        await build(wallet)


async def test_a_locked_wallet_gets_its_inputs_back(wallet: BitcoindWallet, node: Any) -> None:
    node.error("signrawtransactionwithwallet", -13, "locked")
    with pytest.raises(WalletLocked):
        await build(wallet)
    assert len(node.named("lockunspent")) == 2


async def test_a_node_that_dies_while_giving_back_hides_no_error(
    wallet: BitcoindWallet, node: Any
) -> None:
    node.error("signrawtransactionwithwallet", -13, "locked")
    node.answers["lockunspent"] = httpx.Response(503)
    with pytest.raises(WalletLocked):
        await build(wallet)


async def test_release_tolerates_spent_inputs(wallet: BitcoindWallet, node: Any) -> None:
    node.error("lockunspent", -8, "Invalid parameter, expected unspent output")
    await wallet.release(PAYMENT)
    assert [params[0] for params in node.named("lockunspent")] == [True, True]
    node.error("lockunspent", -28, "warming up")
    with pytest.raises(Unavailable):
        await wallet.release(PAYMENT)


async def test_hold_locks_again(wallet: BitcoindWallet, node: Any) -> None:
    await wallet.hold(PAYMENT)
    assert [params[0] for params in node.named("lockunspent")] == [False, False]


async def test_orphan_locks_are_released_and_live_ones_kept(
    wallet: BitcoindWallet, node: Any
) -> None:
    node.answers["listlockunspent"] = [
        {"txid": "c1", "vout": 0},
        {"txid": "c1", "vout": 1},
        {"txid": "lost", "vout": 0},
    ]
    assert await wallet.release_orphans([PAYMENT]) == 2
    unlocked = [params[1][0]["txid"] for params in node.named("lockunspent")]
    assert unlocked == ["c1", "lost"]


async def test_broadcast_sends_the_bytes(wallet: BitcoindWallet, node: Any) -> None:
    node.answers["sendrawtransaction"] = "t1"
    await wallet.broadcast(PAYMENT)
    await wallet.broadcast(PAYMENT)
    assert node.named("sendrawtransaction") == [["signed-hex"]] * 2


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (-27, "Transaction already in block chain"),
        (-27, "Transaction outputs already in utxo set"),
        (-26, "257: txn-already-known"),
    ],
)
async def test_a_broadcast_of_what_is_there_is_fine(
    wallet: BitcoindWallet, node: Any, code: int, message: str
) -> None:
    node.error("sendrawtransaction", code, message)
    await wallet.broadcast(PAYMENT)


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        (-25, "bad-txns-inputs-missingorspent", BroadcastRefused),
        (-26, "txn-mempool-conflict", BroadcastRefused),
        (-26, "66: min relay fee not met", BroadcastRefused),
        (-99, "something new", BroadcastRefused),
        (-22, "TX decode failed", Rejected),
        (-28, "warming up", Unavailable),
    ],
)
async def test_refused_broadcasts(
    wallet: BitcoindWallet, node: Any, code: int, message: str, expected: type[ClientError]
) -> None:
    node.error("sendrawtransaction", code, message)
    with pytest.raises(expected) as caught:
        await wallet.broadcast(PAYMENT)
    assert "signed-hex" not in str(caught.value)


async def test_a_lost_broadcast_is_a_lost_reply(wallet: BitcoindWallet, node: Any) -> None:
    def cut(_params: Any) -> httpx.Response:
        raise httpx.ReadError("cut")

    node.answers["sendrawtransaction"] = cut
    with pytest.raises(ReplyLost):
        await wallet.broadcast(PAYMENT)


def known(confirmations: int, **more: Any) -> dict[str, Any]:
    return {"txid": "t1", "confirmations": confirmations, "hex": "signed-hex", **more}


@pytest.mark.parametrize("depth", [1, 3])
async def test_look_mined(wallet: BitcoindWallet, node: Any, depth: int) -> None:
    node.answers["gettransaction"] = known(depth, blockhash="b")
    seen = Sighting(where="mined", confirmations=depth, block_hash="b")
    assert await wallet.look(PAYMENT) == seen


@pytest.mark.parametrize("wallet_knows", [True, False])
async def test_look_mempool(wallet: BitcoindWallet, node: Any, wallet_knows: bool) -> None:
    node.answers |= {
        "gettransaction": known(0) if wallet_knows else UNKNOWN,
        "getmempoolentry": {"vsize": 1},
    }
    assert await wallet.look(PAYMENT) == Sighting(where="mempool")


@pytest.mark.parametrize("wallet_knows", [True, False])
async def test_look_unseen_or_evicted(
    wallet: BitcoindWallet, node: Any, wallet_knows: bool
) -> None:
    node.answers |= {
        "gettransaction": known(0) if wallet_knows else UNKNOWN,
        "getmempoolentry": UNKNOWN,
        "gettxout": {"value": "1"},
    }
    assert await wallet.look(PAYMENT) == Sighting(where="unseen")
    assert node.named("gettxout") == [["c1", 0, True], ["c2", 7, True]]


async def test_look_conflicted_by_the_wallets_count(wallet: BitcoindWallet, node: Any) -> None:
    node.answers["gettransaction"] = known(-4)
    assert await wallet.look(PAYMENT) == Sighting(where="conflicted", confirmations=4)


def rival_answers(node: Any, rival: dict[str, Any], shown: dict[str, Any], **ours: Any) -> None:
    """A wallet whose latest spend is `rival`, which decodes to `shown`."""
    node.answers |= {
        "gettransaction": lambda params: rival if params == ["r1"] else ours.get("known", UNKNOWN),
        "getmempoolentry": UNKNOWN,
        "gettxout": lambda params: None if params[:2] == ["c2", 7] else {"value": "1"},
        "listtransactions": [
            {"txid": "r1", "category": "send"},
            {"txid": "in", "category": "receive"},
        ],
        "decoderawtransaction": shown,
    }


@pytest.mark.parametrize("depth", [0, 5])
async def test_look_conflicted_by_a_rival_the_wallet_lists(
    wallet: BitcoindWallet, node: Any, depth: int
) -> None:
    rival = {"txid": "r1", "confirmations": depth, "hex": "rival-hex"}
    rival_answers(node, rival, decoded("r1", STRANGER, ("c2:7",)))
    if depth == 0:
        node.answers["gettxout"] = lambda params: None if params[2] else {"value": "1"}
    assert await wallet.look(PAYMENT) == Sighting(where="conflicted", confirmations=depth)


async def test_look_conflicted_by_a_rival_nobody_lists(wallet: BitcoindWallet, node: Any) -> None:
    rival_answers(node, {"txid": "r1", "confirmations": 2, "hex": "x"}, decoded("r1", inputs=()))
    assert await wallet.look(PAYMENT) == Sighting(where="conflicted", confirmations=1)


@pytest.mark.parametrize("ours", [UNKNOWN, known(-2)])
async def test_look_finds_a_malleated_twin(node: Any, served: Serve, ours: Any) -> None:
    make_node(node, DOGE)
    rival = {"txid": "r1", "confirmations": 2, "hex": "x", "blockhash": "b2"}
    rival_answers(node, rival, decoded("r1"), known=ours)
    doge = make_wallet(Currency.DOGE, served(node), None)
    seen = Sighting(where="mined", confirmations=2, block_hash="b2")
    assert await doge.look(PAYMENT) == seen


async def test_look_is_not_fooled_by_an_arrival_while_it_looks(
    wallet: BitcoindWallet, node: Any
) -> None:
    entries = iter([UNKNOWN, {"vsize": 1}])
    node.answers |= {
        "gettransaction": UNKNOWN,
        "getmempoolentry": lambda _params: next(entries),
        "gettxout": lambda params: None if params[2] else {"value": "1"},
        "listtransactions": [],
    }
    assert await wallet.look(PAYMENT) == Sighting(where="mempool")


async def test_look_at_a_dying_node_is_an_error_not_an_answer(
    wallet: BitcoindWallet, node: Any
) -> None:
    node.answers["gettransaction"] = httpx.Response(500, text="Work queue depth exceeded")
    with pytest.raises(Unavailable):
        await wallet.look(PAYMENT)


async def test_balance_counts_what_can_be_spent_now(wallet: BitcoindWallet, node: Any) -> None:
    node.answers["listunspent"] = (
        b'[{"amount":0.29000000,"safe":true,"spendable":true,"confirmations":0},'
        b'{"amount":1.00000000,"safe":false,"spendable":true,"confirmations":0},'
        b'{"amount":2.00000000,"safe":true,"spendable":false,"confirmations":9},'
        b'{"amount":4.00000000,"confirmations":1},{"amount":8.00000000,"confirmations":0}]'
    )
    assert await wallet.balance_atomic() == 429_000_000


async def test_a_label_has_one_address(wallet: BitcoindWallet, node: Any) -> None:
    book: list[str] = []

    def find(_params: Any) -> Any:
        missing = httpx.Response(500, json={"error": {"code": -11, "message": "No addresses"}})
        return {address: {"purpose": "receive"} for address in book} if book else missing

    def create(_params: Any) -> str:
        book.append("bcrt1new")
        return book[-1]

    node.answers |= {"getaddressesbylabel": find, "getnewaddress": create}
    assert await wallet.new_address("run-1") == await wallet.new_address("run-1") == "bcrt1new"
    assert node.named("getnewaddress") == [["run-1", "bech32"]]


async def test_a_dogecoin_account_has_one_address(node: Any, served: Serve) -> None:
    make_node(node, DOGE)
    book: list[str] = []
    node.answers |= {
        "getaddressesbyaccount": lambda _params: book,
        "getnewaddress": lambda _params: book.append("Dnew") or book[-1],
    }
    doge = make_wallet(Currency.DOGE, served(node), None)
    assert await doge.new_address("run-1") == await doge.new_address("run-1") == "Dnew"
    assert node.named("getnewaddress") == [["run-1"]]


async def test_received(wallet: BitcoindWallet, node: Any) -> None:
    node.answers["getreceivedbyaddress"] = b"0.29000000"
    assert await wallet.received_atomic("bcrt1mine", confirmations=3) == 29_000_000
    assert node.named("getreceivedbyaddress") == [["bcrt1mine", 3]]


async def test_unlock(wallet: BitcoindWallet, node: Any) -> None:
    node.answers["walletpassphrase"] = None
    await wallet.unlock(Secret("open sesame"), seconds=30)
    assert node.named("walletpassphrase") == [["open sesame", 30]]
    node.error("walletpassphrase", -15, "running with an unencrypted wallet")
    await wallet.unlock(Secret("open sesame"), seconds=30)


async def test_a_wrong_passphrase_stays_wrong_and_secret(wallet: BitcoindWallet, node: Any) -> None:
    node.error("walletpassphrase", -14, "The wallet passphrase entered was incorrect.")
    with pytest.raises(Rejected) as caught:
        await wallet.unlock(Secret("open sesame"), seconds=30)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("fundrawtransaction", {"fee": "0.1"}),
        ("fundrawtransaction", []),
        ("decoderawtransaction", {"txid": "t1", "vin": [{}], "vout": []}),
        ("decoderawtransaction", {"txid": "t1", "vin": "x", "vout": []}),
        ("signrawtransactionwithwallet", {"hex": "x"}),
        ("getnetworkinfo", {}),
    ],
)
async def test_an_answer_of_another_shape_is_rejected(
    wallet: BitcoindWallet, node: Any, method: str, answer: Any
) -> None:
    node.answers[method] = answer
    with pytest.raises(Rejected):
        await build(wallet)


@pytest.mark.parametrize(
    ("code", "text", "policy"),
    [
        (-26, "min relay fee not met, 100 < 282", True),
        (-26, "66: min relay fee not met", True),
        (-26, "mempool min fee not met", True),
        (-26, "too-long-mempool-chain, too many descendants for tx [limit: 25]", True),
        (-25, "Fee exceeds maximum configured by user (e.g. -maxtxfee, maxfeerate)", True),
        (-26, "256: absurdly-high-fee", True),
        (-26, "txn-mempool-conflict", False),
        (-25, "bad-txns-inputs-missingorspent", False),
        (-25, "Missing inputs", False),
        (-26, "mandatory-script-verify-flag-failed (Signature must be valid)", False),
    ],
)
async def test_a_refusal_says_whether_the_bytes_may_be_taken_later(
    wallet: BitcoindWallet, node: Any, code: int, text: str, policy: bool
) -> None:
    node.error("sendrawtransaction", code, text)
    with pytest.raises(BroadcastRefused) as caught:
        await wallet.broadcast(PAYMENT)
    assert caught.value.policy is policy
