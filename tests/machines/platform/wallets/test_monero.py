"""monerod and monero-wallet-rpc over HTTP: the two-phase payment, and every refusal by its code."""

from __future__ import annotations

import json

import pytest

UNKNOWN = "ab" * 32
AMOUNT = 1_500_000_000_000


def shop_address(world):
    return world.xmr("create_address", "shop", label="sale")["result"]["address"]


def pay(world, address, amount, **options):
    return world.xmr("transfer", destinations=[{"address": address, "amount": amount}], **options)


def balances(world, wallet="payer"):
    found = world.xmr("get_balance", wallet)["result"]
    return found["balance"], found["unlocked_balance"]


def where(world, txid):
    reply = world.daemon("get_transactions", txs_hashes=[txid])
    assert reply["status"] == "OK"
    if reply.get("missed_tx") == [txid]:
        return "missed"
    (found,) = reply["txs"]
    return "pool" if found["in_pool"] else found["block_height"]


def spent(world, built):
    images = built["spent_key_images"]["key_images"]
    return world.daemon("is_key_image_spent", key_images=images)["spent_status"]


def test_building_changes_nothing(world):
    before = balances(world)
    built = world.built(shop_address(world), AMOUNT)
    assert balances(world) == before
    assert world.xmr("get_transfer_by_txid", txid=built["tx_hash"])["error"]["code"] == -8
    assert where(world, built["tx_hash"]) == "missed"
    assert spent(world, built) == [0]


def test_relaying_is_harmless_to_repeat(world):
    address = shop_address(world)
    built = world.built(address, AMOUNT)
    for _ in range(3):
        reply = world.xmr("relay_tx", hex=built["tx_metadata"])
        assert reply["result"]["tx_hash"] == built["tx_hash"]
    assert where(world, built["tx_hash"]) == "pool"
    assert spent(world, built) == [2]
    pending = world.xmr("get_transfer_by_txid", txid=built["tx_hash"])["result"]["transfer"]
    assert pending["type"] == "pending"
    assert "confirmations" not in pending
    incoming = world.xmr("get_transfer_by_txid", "shop", txid=built["tx_hash"])["result"]
    assert incoming["transfer"]["type"] == "pool"

    world.mine("XMR")
    height = world.daemon("json_rpc", method="get_block_count")["result"]["count"]
    assert where(world, built["tx_hash"]) == height - 1
    assert spent(world, built) == [1]
    assert world.xmr("relay_tx", hex=built["tx_metadata"])["result"]["tx_hash"] == built["tx_hash"]
    mined = world.xmr("get_transfer_by_txid", txid=built["tx_hash"])["result"]
    assert [each["type"] for each in mined["transfers"]] == ["out"]
    assert mined["transfer"]["confirmations"] == 1
    listed = world.xmr("get_transfers", "shop", **{"in": True})["result"]["in"]
    assert [(each["txid"], each["amount"], each["address"]) for each in listed] == [
        (built["tx_hash"], AMOUNT, address)
    ]


def test_two_builds_share_their_key_images_and_only_one_can_win(world):
    address = shop_address(world)
    one, two = world.built(address, AMOUNT), world.built(address, AMOUNT)
    assert one["tx_hash"] != two["tx_hash"]
    assert one["spent_key_images"] == two["spent_key_images"]
    world.xmr("relay_tx", hex=one["tx_metadata"])
    refused = world.xmr("relay_tx", hex=two["tx_metadata"])["error"]
    assert (refused["code"], refused["message"]) == (-4, "Failed to commit tx.")
    world.mine("XMR")
    assert world.xmr("relay_tx", hex=two["tx_metadata"])["error"]["code"] == -4


def test_frozen_outputs_are_not_chosen_and_still_relay(world):
    address = shop_address(world)
    one = world.built(address, AMOUNT)
    (image,) = one["spent_key_images"]["key_images"]
    world.xmr("freeze", key_image=image)
    two = world.built(address, AMOUNT)
    assert image not in two["spent_key_images"]["key_images"]
    assert "result" in world.xmr("relay_tx", hex=one["tx_metadata"])
    (other,) = two["spent_key_images"]["key_images"]
    world.xmr("freeze", key_image=other)
    world.xmr("thaw", key_image=other)
    assert other in world.built(address, AMOUNT)["spent_key_images"]["key_images"]
    assert world.xmr("freeze", key_image=UNKNOWN)["error"]["code"] == -1


def test_the_key_of_a_transaction_proves_what_it_paid(world):
    address = shop_address(world)
    built = world.built(address, AMOUNT)
    world.xmr("relay_tx", hex=built["tx_metadata"])

    def proof(**changes):
        arguments = {"txid": built["tx_hash"], "tx_key": built["tx_key"], "address": address}
        return world.xmr("check_tx_key", "shop", **(arguments | changes))

    assert proof()["result"] == {"confirmations": 0, "in_pool": True, "received": AMOUNT}
    world.mine("XMR", 4)
    assert proof()["result"] == {"confirmations": 4, "in_pool": False, "received": AMOUNT}
    assert proof(address=shop_address(world))["result"]["received"] == 0
    assert proof(tx_key=UNKNOWN)["error"]["code"] == -25
    assert proof(txid=UNKNOWN)["error"]["code"] == -8


def test_change_is_locked_for_ten_blocks(worlds):
    world = worlds(payer_outputs=1)
    address = shop_address(world)
    pay(world, address, AMOUNT)
    world.mine("XMR", 9)
    assert pay(world, address, AMOUNT)["error"]["code"] == -37
    assert balances(world)[1] == 0
    assert world.xmr("get_balance")["result"]["blocks_to_unlock"] == 1
    world.mine("XMR")
    assert "result" in pay(world, address, AMOUNT)


@pytest.mark.parametrize("amount", [4.52, 4520000000000.0, -1, "4.5", "1e3", None, True, "\uff11"])
def test_amounts_that_are_no_integers_are_minus_32602(world, amount):
    assert pay(world, shop_address(world), amount)["error"]["code"] == -32602


def test_an_amount_may_be_a_string_of_digits(world):
    assert pay(world, shop_address(world), str(AMOUNT))["result"]["amount"] == AMOUNT


def test_refusals_of_a_transfer(world):
    address = shop_address(world)
    assert pay(world, address, 2**64)["error"]["code"] == -32700
    assert pay(world, address, 2**64 - 1)["error"]["code"] == -17
    assert pay(world, address, 10**18)["error"]["code"] == -17
    assert pay(world, address, 0)["error"]["code"] == -46
    assert pay(world, "nonsense", 1)["error"]["code"] == -2
    assert pay(world, address[:-1] + "1", 1)["error"]["code"] == -2
    assert pay(world, world.own_address("LTC"), 1)["error"]["code"] == -2
    assert world.xmr("transfer", destinations=[])["error"]["code"] == -20
    assert world.xmr("transfer")["error"]["code"] == -32602
    assert world.xmr("transfer", destinations=[7])["error"]["code"] == -32602
    assert world.xmr("transfer", destinations={}, oops=1)["error"]["code"] == -32602


def test_other_refusals(world):
    assert world.xmr("nonsense")["error"]["code"] == -32601
    assert world.xmr("relay_tx", hex="zz")["error"]["code"] == -40
    assert world.xmr("relay_tx")["error"]["code"] == -40
    assert world.xmr("get_transfer_by_txid", txid="short")["error"]["code"] == -8
    assert world.xmr("get_balance", "none")["error"]["code"] == -13
    reply = world.request("POST", "/rpc/xmr/wallet/payer/json_rpc", content=b"{")
    assert reply.json()["error"]["code"] == -32700
    assert world.daemon("json_rpc", method="nonsense")["error"]["code"] == -32601
    assert world.daemon("get_transactions", txs_hashes=7)["status"].startswith("Failed")
    assert world.daemon("is_key_image_spent")["status"].startswith("Failed")


def test_a_locked_wallet_is_closed_until_it_is_opened(world):
    built = world.built(shop_address(world), AMOUNT)
    world.fault("lock_wallet", currency="XMR", wallet="payer", passphrase="open sesame")
    for method in ("get_balance", "transfer", "create_address"):
        assert world.xmr(method)["error"]["code"] == -13
    assert world.xmr("relay_tx", hex=built["tx_metadata"])["error"]["code"] == -13

    def open_wallet(filename, password):
        return world.xmr("open_wallet", filename=filename, password=password)

    assert open_wallet("payer", "wrong")["error"]["code"] == -1
    assert open_wallet("other", "open sesame")["error"]["code"] == -1
    assert open_wallet("payer", 7)["error"]["code"] == -1
    assert open_wallet("payer", "open sesame")["result"] == {}
    assert "result" in world.xmr("relay_tx", hex=built["tx_metadata"])
    world.xmr("close_wallet")
    assert world.xmr("get_balance")["error"]["code"] == -13


def test_a_signed_blob_can_be_sent_to_the_daemon(world):
    built = world.built(shop_address(world), AMOUNT)
    assert world.daemon("send_raw_transaction", tx_as_hex=built["tx_blob"])["status"] == "OK"
    assert where(world, built["tx_hash"]) == "pool"
    other = world.built(shop_address(world), AMOUNT)
    world.fault("evict", currency="XMR")
    sibling = world.built(shop_address(world), AMOUNT)
    assert world.daemon("send_raw_transaction", tx_as_hex=sibling["tx_blob"])["status"] == "OK"
    refused = world.daemon("send_raw_transaction", tx_as_hex=built["tx_blob"])
    assert (refused["status"], refused["double_spend"]) == ("Failed", True)
    assert world.daemon("send_raw_transaction", tx_as_hex="00")["status"] == "Failed"
    assert where(world, other["tx_hash"]) == "missed"


def test_an_evicted_transaction_is_forgotten_and_relays_again(world):
    built = world.built(shop_address(world), AMOUNT)
    world.xmr("relay_tx", hex=built["tx_metadata"])
    world.fault("evict", currency="XMR", txid=built["tx_hash"])
    world.mine("XMR")
    assert world.xmr("get_transfer_by_txid", txid=built["tx_hash"])["error"]["code"] == -8
    assert where(world, built["tx_hash"]) == "missed"
    assert spent(world, built) == [0]
    assert world.xmr("relay_tx", hex=built["tx_metadata"])["result"]["tx_hash"] == built["tx_hash"]


def test_a_reorganisation_puts_it_back_into_the_pool(world):
    built = world.built(shop_address(world), AMOUNT)
    world.xmr("relay_tx", hex=built["tx_metadata"])
    world.mine("XMR", 3)
    world.fault("reorg", currency="XMR", depth=3)
    assert where(world, built["tx_hash"]) == "pool"
    assert spent(world, built) == [2]


def test_a_double_spend_makes_it_vanish(world):
    built = world.built(shop_address(world), AMOUNT)
    world.xmr("relay_tx", hex=built["tx_metadata"])
    world.mine("XMR", 3)
    world.fault("reorg", currency="XMR", depth=3, double_spend=True)
    for wallet in ("payer", "shop"):
        reply = world.xmr("get_transfer_by_txid", wallet, txid=built["tx_hash"])
        assert reply["error"]["code"] == -8
    assert where(world, built["tx_hash"]) == "missed"
    assert spent(world, built) == [1]
    assert world.xmr("relay_tx", hex=built["tx_metadata"])["error"]["code"] == -4
    world.report()


def test_a_rival_is_found_in_its_block_by_the_key_images(world):
    built = world.built(shop_address(world), AMOUNT)
    world.xmr("relay_tx", hex=built["tx_metadata"])
    world.mine("XMR", 2)
    world.fault("reorg", currency="XMR", depth=2, double_spend=True)
    world.mine("XMR", 4)
    count = world.daemon("json_rpc", method="get_block_count")["result"]["count"]

    def block(height):
        return world.daemon("json_rpc", method="get_block", params={"height": height})

    depths = {
        count - height: block(height)["result"]["tx_hashes"] for height in range(count - 8, count)
    }
    ((depth, hashes),) = [(depth, found) for depth, found in depths.items() if found]
    assert depth == 7
    (rival,) = world.daemon("get_transactions", txs_hashes=hashes, decode_as_json=True)["txs"]
    spent_images = [each["key"]["k_image"] for each in json.loads(rival["as_json"])["vin"]]
    assert spent_images == built["spent_key_images"]["key_images"]
    assert rival["tx_hash"] != built["tx_hash"]
    assert block(0)["result"]["tx_hashes"] == []
    assert (
        block(1)["result"]["block_header"]["prev_hash"]
        == (block(0)["result"]["block_header"]["hash"])
    )
    for height in (count, -1, "1", None, True):
        assert block(height)["error"]["code"] == -2


def test_addresses_are_listed_with_their_labels(world):
    made = world.xmr("create_address", label="refund")["result"]
    two = world.xmr("create_address", label="many", count=2)["result"]
    assert len(two["addresses"]) == 2
    found = world.xmr("get_address")["result"]
    assert found["address"].startswith("4")
    labels = {each["address"]: each["label"] for each in found["addresses"]}
    assert labels[made["address"]] == "refund"
    only = world.xmr("get_address", address_index=[made["address_index"]])["result"]["addresses"]
    assert [each["address"] for each in only] == [made["address"]]


def test_the_daemon_describes_itself(world):
    info = world.daemon("json_rpc", method="get_info")["result"]
    assert info["nettype"] == "fakechain"
    assert info["height"] == world.xmr("get_height")["result"]["height"]
    pay(world, shop_address(world), AMOUNT)
    assert world.daemon("json_rpc", method="get_info")["result"]["tx_pool_size"] == 1
    assert world.xmr("get_version")["result"]["version"] == 65561
    assert world.xmr("refresh")["result"]["blocks_fetched"] == 0
    assert world.xmr("store")["result"] == {}
