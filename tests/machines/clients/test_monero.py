"""A monero wallet: two phases, monerod as the only witness, look before send."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from engine.secrets import Secret
from machines.clients import MoneroWallet, Transport
from machines.clients.ports import (
    BroadcastRefused,
    ClientError,
    InsufficientFunds,
    NotFound,
    Rejected,
    ReplyLost,
    Sighting,
    SignedTransaction,
    Unavailable,
    WalletLocked,
)

Serve = Callable[..., Transport]
SHOP = "8shop"
PAYMENT = SignedTransaction(
    txid="f615",
    payload=Secret("metadata-hex"),
    inputs=("8b98", "17c5"),
    fee_atomic=2_605_200_000,
    amount_atomic=1_500_000_000_000,
    address=SHOP,
)
TRANSFER = {
    "tx_hash": "f615",
    "amount": 1_500_000_000_000,
    "fee": 2_605_200_000,
    "tx_key": "k",
    "tx_metadata": "metadata-hex",
    "tx_blob": "blob-hex",
    "spent_key_images": {"key_images": ["8b98", "17c5"]},
}
MISSED = {"status": "OK", "missed_tx": ["f615"]}


def make_wallet(transport: Transport, name: str | None = "payer") -> MoneroWallet:
    return MoneroWallet(
        "http://node.test/wallet/json_rpc",
        "http://node.test/daemon",
        transport,
        wallet_name=name,
        username="user",
        password=Secret("hunter2"),
    )


@pytest.fixture
def wallet(node: Any, served: Serve) -> MoneroWallet:
    node.error_status = 200
    return make_wallet(served(node))


async def build(wallet: MoneroWallet) -> SignedTransaction:
    return await wallet.build(address=SHOP, amount_atomic=1_500_000_000_000)


async def test_build_signs_without_relaying(wallet: MoneroWallet, node: Any) -> None:
    node.answers["transfer"] = TRANSFER
    assert await build(wallet) == PAYMENT
    assert node.named("transfer") == [
        {
            "destinations": [{"address": SHOP, "amount": 1_500_000_000_000}],
            "account_index": 0,
            "do_not_relay": True,
            "get_tx_metadata": True,
            "get_tx_key": True,
            "get_tx_hex": True,
        }
    ]
    (request,) = node.requests
    assert (request.url.path, json.loads(request.content)["jsonrpc"]) == ("/wallet/json_rpc", "2.0")
    assert "Authorization" not in request.headers


async def test_nothing_to_pay_is_rejected(wallet: MoneroWallet, node: Any) -> None:
    with pytest.raises(Rejected):
        await wallet.build(address=SHOP, amount_atomic=0)
    assert not node.calls


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"amount": 1_499_999_999_999}, "signed 1499999999999"),
        ({"fee": 50_000_000_001}, "fee 50000000001"),
        ({"fee": -1}, "fee -1"),
        ({"spent_key_images": None}, "spent_key_images"),
        ({"spent_key_images": {"key_images": []}}, "spent_key_images"),
        ({"tx_metadata": ""}, "tx_metadata"),
        ({"tx_hash": None}, "tx_hash"),
    ],
)
async def test_a_wrong_result_is_refused(
    wallet: MoneroWallet, node: Any, change: dict[str, Any], named: str
) -> None:
    node.answers["transfer"] = TRANSFER | change
    with pytest.raises(Rejected, match=named) as caught:
        await build(wallet)
    assert "metadata-hex" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (-17, InsufficientFunds),
        (-16, InsufficientFunds),
        (-37, InsufficientFunds),
        (-2, Rejected),
        (-20, Rejected),
        (-46, Rejected),
        (-32602, Rejected),
        (-32700, Rejected),
        (-3, Unavailable),
        (-4, Unavailable),
        (-19, Unavailable),
        (-38, Unavailable),
        (-13, WalletLocked),
    ],
)
async def test_errors_while_building(
    wallet: MoneroWallet, node: Any, code: int, expected: type[ClientError]
) -> None:
    node.error("transfer", code, "because")
    with pytest.raises(expected, match="because") as caught:
        await build(wallet)
    assert getattr(caught.value, "unlocks_later", False) is (code == -37)
    assert getattr(caught.value, "kind", "not_ready") == "not_ready"


async def test_without_a_wallet_name_a_closed_wallet_is_not_ready(node: Any, served: Serve) -> None:
    node.error("transfer", -13, "No wallet file")
    with pytest.raises(Unavailable):
        await build(make_wallet(served(node), None))


async def test_broadcast_relays_what_monerod_does_not_know(wallet: MoneroWallet, node: Any) -> None:
    node.answers |= {
        "get_transactions": MISSED,
        "is_key_image_spent": {"status": "OK", "spent_status": [0, 0]},
        "relay_tx": {"tx_hash": "f615"},
    }
    await wallet.broadcast(PAYMENT)
    assert node.named("relay_tx") == [{"hex": "metadata-hex"}]
    names = [name for name, _ in node.calls]
    assert names == ["get_transactions", "is_key_image_spent", "relay_tx"]


@pytest.mark.parametrize("place", [{"in_pool": True}, {"in_pool": False, "confirmations": 4}])
async def test_broadcast_never_relays_what_monerod_knows(
    wallet: MoneroWallet, node: Any, place: dict[str, Any]
) -> None:
    node.answers["get_transactions"] = {"status": "OK", "txs": [{"tx_hash": "f615", **place}]}
    await wallet.broadcast(PAYMENT)
    assert not node.named("relay_tx")


async def test_broadcast_never_relays_what_lost_its_inputs(wallet: MoneroWallet, node: Any) -> None:
    node.answers |= {
        "get_transactions": MISSED,
        "is_key_image_spent": {"status": "OK", "spent_status": [2, 0]},
    }
    with pytest.raises(BroadcastRefused):
        await wallet.broadcast(PAYMENT)
    assert not node.named("relay_tx")


@pytest.mark.parametrize(
    ("code", "expected"), [(-4, BroadcastRefused), (-1, BroadcastRefused), (-40, Rejected)]
)
async def test_a_refused_relay(
    wallet: MoneroWallet, node: Any, code: int, expected: type[ClientError]
) -> None:
    node.answers |= {
        "get_transactions": MISSED,
        "is_key_image_spent": {"status": "OK", "spent_status": [0, 0]},
    }
    node.error("relay_tx", code, "Failed to commit tx.")
    with pytest.raises(expected) as caught:
        await wallet.broadcast(PAYMENT)
    assert "metadata-hex" not in str(caught.value)


async def test_a_lost_relay_is_a_lost_reply(wallet: MoneroWallet, node: Any) -> None:
    def cut(_params: Any) -> httpx.Response:
        raise httpx.RemoteProtocolError("cut")

    node.answers |= {
        "get_transactions": MISSED,
        "is_key_image_spent": {"status": "OK", "spent_status": [0, 0]},
        "relay_tx": cut,
    }
    with pytest.raises(ReplyLost):
        await wallet.broadcast(PAYMENT)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ({"in_pool": True, "double_spend_seen": True}, Sighting(where="mempool")),
        (
            {"in_pool": False, "block_height": 90, "confirmations": 10},
            Sighting(where="mined", confirmations=10),
        ),
        ({"in_pool": False, "block_height": 97}, Sighting(where="mined", confirmations=3)),
    ],
)
async def test_look_where_monerod_has_it(
    wallet: MoneroWallet, node: Any, place: dict[str, Any], expected: Sighting
) -> None:
    node.answers |= {
        "get_transactions": {"status": "OK", "txs": [{"tx_hash": "f615", **place}]},
        "get_block_count": {"count": 100, "status": "OK"},
    }
    assert await wallet.look(PAYMENT) == expected
    assert node.named("get_transactions") == [{"txs_hashes": ["f615"]}]
    assert node.requests[0].url.path == "/daemon/get_transactions"


@pytest.mark.parametrize(
    ("spent", "expected"),
    [([0, 0], Sighting(where="unseen")), ([0, 2], Sighting(where="conflicted"))],
)
async def test_look_by_key_images(
    wallet: MoneroWallet, node: Any, spent: list[int], expected: Sighting
) -> None:
    node.answers |= {
        "get_transactions": MISSED,
        "is_key_image_spent": {"status": "OK", "spent_status": spent},
    }
    assert await wallet.look(PAYMENT) == expected
    assert node.named("is_key_image_spent") == [{"key_images": ["8b98", "17c5"]}]


def with_rival(node: Any, rival_height: int) -> None:
    """A chain of 100 blocks, one of which spends the second key image."""

    def block(params: Any) -> dict[str, Any]:
        return {"tx_hashes": ["r1"]} if params["height"] == rival_height else {"tx_hashes": []}

    def transactions(params: Any) -> dict[str, Any]:
        if params["txs_hashes"] == ["f615"]:
            return MISSED
        spends = json.dumps({"vin": [{"key": {"k_image": "17c5"}}]})
        return {"status": "OK", "txs": [{"tx_hash": "r1", "as_json": spends}]}

    node.answers |= {
        "get_transactions": transactions,
        "is_key_image_spent": {"status": "OK", "spent_status": [0, 1]},
        "get_block_count": {"count": 100, "status": "OK"},
        "get_block": block,
    }


@pytest.mark.parametrize(("height", "depth"), [(99, 1), (90, 10), (10, 20)])
async def test_look_counts_how_deep_the_rival_lies(
    wallet: MoneroWallet, node: Any, height: int, depth: int
) -> None:
    with_rival(node, height)
    assert await wallet.look(PAYMENT) == Sighting(where="conflicted", confirmations=depth)


async def test_look_with_one_rival_mined_and_another_in_the_pool(
    wallet: MoneroWallet, node: Any
) -> None:
    with_rival(node, 98)
    node.answers["is_key_image_spent"] = {"status": "OK", "spent_status": [2, 1]}
    assert await wallet.look(PAYMENT) == Sighting(where="conflicted", confirmations=2)


async def test_look_at_a_daemon_without_blocks_gives_a_floor(
    wallet: MoneroWallet, node: Any
) -> None:
    with_rival(node, 90)
    node.error("get_block", -32601, "Method not found")
    assert await wallet.look(PAYMENT) == Sighting(where="conflicted", confirmations=1)


@pytest.mark.parametrize(
    ("method", "answer", "expected"),
    [
        ("get_transactions", {"status": "BUSY"}, Unavailable),
        ("get_transactions", {}, Rejected),
        ("get_transactions", httpx.Response(500, text="x"), Unavailable),
        ("is_key_image_spent", {"status": "OK", "spent_status": [0]}, Rejected),
        ("is_key_image_spent", {"status": "OK", "spent_status": ["1", 0]}, Rejected),
    ],
)
async def test_a_confused_daemon_is_an_error_not_an_answer(
    wallet: MoneroWallet, node: Any, method: str, answer: Any, expected: type[ClientError]
) -> None:
    node.answers["get_transactions"] = MISSED
    node.answers[method] = answer
    with pytest.raises(expected):
        await wallet.look(PAYMENT)


async def test_balance_is_what_is_unlocked(wallet: MoneroWallet, node: Any) -> None:
    node.answers["get_balance"] = {"balance": 9, "unlocked_balance": 5}
    assert await wallet.balance_atomic() == 5


async def test_a_label_has_one_address(wallet: MoneroWallet, node: Any) -> None:
    book = [{"address": "4main", "label": "Primary account"}]

    def create(params: Any) -> dict[str, Any]:
        book.append({"address": "8new", "label": params["label"]})
        return {"address": "8new", "address_index": 1}

    node.answers |= {
        "get_address": lambda _params: {"address": "4main", "addresses": book},
        "create_address": create,
    }
    assert await wallet.new_address("run-1") == await wallet.new_address("run-1") == "8new"
    assert node.named("create_address") == [{"account_index": 0, "label": "run-1"}]


@pytest.mark.parametrize(("depth", "expected"), [(0, 111), (1, 11), (10, 10)])
async def test_received_counts_by_address_and_depth(
    wallet: MoneroWallet, node: Any, depth: int, expected: int
) -> None:
    def transfers(params: Any) -> dict[str, Any]:
        pool = [{"address": "8a", "amount": 100}]
        mined = [
            {"address": "8a", "amount": 1, "confirmations": 9},
            {"address": "8a", "amount": 10, "confirmations": 10},
            {"address": "8b", "amount": 1000, "confirmations": 99},
        ]
        return {"in": mined} | ({"pool": pool} if params["pool"] else {})

    node.answers["get_transfers"] = transfers
    assert await wallet.received_atomic("8a", confirmations=depth) == expected


async def test_received_nothing(wallet: MoneroWallet, node: Any) -> None:
    node.answers["get_transfers"] = {}
    assert await wallet.received_atomic("8a", confirmations=1) == 0


async def test_unlock_opens_the_file(wallet: MoneroWallet, node: Any) -> None:
    node.answers["open_wallet"] = {}
    await wallet.unlock(Secret("open sesame"), seconds=30)
    assert node.named("open_wallet") == [{"filename": "payer", "password": "open sesame"}]
    node.error("open_wallet", -1, "Failed to open wallet")
    with pytest.raises(Rejected) as caught:
        await wallet.unlock(Secret("open sesame"), seconds=30)
    assert "sesame" not in str(caught.value)


async def test_unlock_and_release_without_anything_to_do(node: Any, served: Serve) -> None:
    nameless = make_wallet(served(node), None)
    await nameless.unlock(Secret("open sesame"), seconds=30)
    await nameless.release(PAYMENT)
    assert not node.calls


async def test_an_unknown_transaction_of_the_wallet(wallet: MoneroWallet, node: Any) -> None:
    node.error("get_transfers", -8, "Transaction not found.")
    with pytest.raises(NotFound):
        await wallet.received_atomic("8a", confirmations=1)
