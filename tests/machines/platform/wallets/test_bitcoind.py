"""The bitcoin-like nodes over HTTP: the two-phase payment, and every refusal by its code."""

from __future__ import annotations

import json
import re

import pytest

COINS = ("BTC", "LTC", "DOGE")
SIGN = {
    "BTC": "signrawtransactionwithwallet",
    "LTC": "signrawtransactionwithwallet",
    "DOGE": "signrawtransaction",
}
UNKNOWN = "ab" * 32


@pytest.fixture(params=COINS)
def coin(request):
    return request.param


def shop_address(world, coin):
    return world.rpc(coin, "getnewaddress", "sale", wallet="shop")


# The two phases


def test_build_changes_nothing_and_sending_is_harmless_to_repeat(world, coin):
    before = world.rpc(coin, "getbalance")
    address = shop_address(world, coin)
    raw = world.rpc(coin, "createrawtransaction", [], {address: "1.5"})
    funded = world.rpc(coin, "fundrawtransaction", raw, {"lockUnspents": True})
    signed = [world.rpc(coin, SIGN[coin], funded["hex"]) for _ in range(2)]
    assert signed[0] == signed[1]
    assert signed[0]["complete"] is True
    assert world.rpc(coin, "getbalance") == before
    decoded = world.rpc(coin, "decoderawtransaction", signed[0]["hex"])
    assert world.error(coin, "gettransaction", decoded["txid"])[0] == -5

    sent = [world.rpc(coin, "sendrawtransaction", signed[0]["hex"]) for _ in range(3)]
    assert sent == [decoded["txid"]] * 3
    assert world.rpc(coin, "getrawmempool") == [decoded["txid"]]
    world.mine(coin)
    assert world.rpc(coin, "gettransaction", decoded["txid"])["confirmations"] == 1
    listed = world.rpc(coin, "listreceivedbyaddress", 1, False, False, address, wallet="shop")
    assert [each["txids"] for each in listed] == [[decoded["txid"]]]
    assert str(listed[0]["amount"]) == "1.50000000"


def test_exactly_one_output_pays_and_the_rest_is_change(world, coin):
    address = shop_address(world, coin)
    decoded = world.rpc(coin, "decoderawtransaction", world.signed(coin, address, "0.25000000"))
    shown = [
        (out["scriptPubKey"].get("address") or out["scriptPubKey"]["addresses"][0], out["value"])
        for out in decoded["vout"]
    ]
    assert [str(value) for to, value in shown if to == address] == ["0.25000000"]
    assert len(shown) == 2


def test_the_id_is_stable_where_signatures_are_segregated(world, coin):
    raw = world.rpc(coin, "createrawtransaction", [], {shop_address(world, coin): "1"})
    funded = world.rpc(coin, "fundrawtransaction", raw)["hex"]
    signed = world.rpc(coin, SIGN[coin], funded)["hex"]
    ids = [world.rpc(coin, "decoderawtransaction", each)["txid"] for each in (funded, signed)]
    assert (ids[0] == ids[1]) == (coin != "DOGE")


def test_two_builds_share_inputs_unless_reserved(world, coin):
    def inputs(options):
        raw = world.rpc(coin, "createrawtransaction", [], {shop_address(world, coin): "1"})
        funded = world.rpc(coin, "fundrawtransaction", raw, options)["hex"]
        vin = world.rpc(coin, "decoderawtransaction", funded)["vin"]
        return {(place["txid"], place["vout"]) for place in vin}

    assert inputs({}) == inputs({})
    assert not inputs({"lockUnspents": True}) & inputs({"lockUnspents": True})
    assert len(world.rpc(coin, "listlockunspent")) == 2


def test_amounts_are_printed_with_eight_places(world, coin):
    text = world.reply(coin, "getbalance").text
    assert re.search(r'"result":\d+\.\d{8},', text)
    raw = world.rpc(coin, "createrawtransaction", [], {shop_address(world, coin): "0.01000000"})
    assert '"value":0.01000000' in world.reply(coin, "decoderawtransaction", raw).text


@pytest.mark.parametrize("amount", ["0.1", 0.1, "1E-1", "0.10000000", 1])
def test_amounts_may_be_strings_or_numbers(world, amount):
    raw = world.rpc("LTC", "createrawtransaction", [], {shop_address(world, "LTC"): amount})
    value = world.rpc("LTC", "decoderawtransaction", raw)["vout"][0]["value"]
    assert str(value) == ("1.00000000" if amount == 1 else "0.10000000")


def test_a_payment_may_spend_unconfirmed_change_up_to_a_limit(worlds):
    world = worlds(payer_outputs=1)
    address = shop_address(world, "LTC")
    for _ in range(25):
        raw = world.signed("LTC", address, "0.01")
        world.rpc("LTC", "sendrawtransaction", raw)
    raw = world.signed("LTC", address, "0.01")
    assert world.error("LTC", "sendrawtransaction", raw) == (-26, "too-long-mempool-chain")
    world.mine("LTC")
    world.rpc("LTC", "sendrawtransaction", raw)


# Dialects


def test_each_node_names_its_dialect(world):
    versions = {coin: world.rpc(coin, "getnetworkinfo", wallet=None)["version"] for coin in COINS}
    assert versions == {"BTC": 280000, "LTC": 210201, "DOGE": 1140600}
    assert "Shibetoshi" in world.rpc("DOGE", "getnetworkinfo")["subversion"]


def test_signing_has_two_names(world):
    for coin in COINS:
        other = {"DOGE": "signrawtransactionwithwallet"}.get(coin, "signrawtransaction")
        assert world.error(coin, other, "00") == (-32601, "Method not found")
        assert "unknown command" in world.rpc(coin, "help", other)
        assert world.rpc(coin, "help", SIGN[coin]) == SIGN[coin]


def test_outputs_as_a_list_are_for_newer_nodes(world):
    for coin in ("BTC", "LTC"):
        world.rpc(coin, "createrawtransaction", [], [{shop_address(world, coin): "1"}])
    outputs = [{shop_address(world, "DOGE"): "1"}]
    assert world.error("DOGE", "createrawtransaction", [], outputs)[0] == -3


def test_scripts_are_shown_per_dialect(world):
    for coin, name in (("BTC", "address"), ("LTC", "addresses"), ("DOGE", "addresses")):
        raw = world.rpc(coin, "createrawtransaction", [], {shop_address(world, coin): "1"})
        script = world.rpc(coin, "decoderawtransaction", raw)["vout"][0]["scriptPubKey"]
        assert name in script


def test_dogecoin_has_one_wallet_at_the_root(world):
    assert world.rpc("DOGE", "getbalance", wallet=None) == world.rpc("DOGE", "getbalance")
    for coin in ("BTC", "LTC"):
        code, message = world.error(coin, "getbalance", wallet=None)
        assert code == -19
        assert "/wallet/<filename>" in message


def test_dogecoin_prefixes_its_refusals(world):
    raw = world.signed("DOGE", shop_address(world, "DOGE"), "5")
    place = world.rpc("DOGE", "decoderawtransaction", raw)["vin"][0]
    spend_elsewhere(world, "DOGE", place)
    assert world.error("DOGE", "sendrawtransaction", raw) == (-26, "18: txn-mempool-conflict")
    world.mine("DOGE")
    assert world.error("DOGE", "sendrawtransaction", raw) == (-25, "Missing inputs")


def test_whose_an_address_is(world, coin):
    method = "validateaddress" if coin == "DOGE" else "getaddressinfo"
    mine, theirs = world.rpc(coin, "getnewaddress", "a"), shop_address(world, coin)
    assert world.rpc(coin, method, mine)["ismine"] is True
    assert world.rpc(coin, method, theirs)["ismine"] is False
    decoded = world.rpc(coin, "decoderawtransaction", world.signed(coin, theirs, "1"))
    change = decoded["vout"][1]["scriptPubKey"]
    change = change.get("address") or change["addresses"][0]
    assert world.rpc(coin, method, change)["ismine"] is True
    assert world.rpc(coin, "validateaddress", "nonsense") == {"isvalid": False}
    assert world.rpc(coin, "validateaddress", theirs)["isvalid"] is True
    assert world.error("LTC", "getaddressinfo", "nonsense")[0] == -5


def test_named_parameters(world):
    address = world.rpc("LTC", "getnewaddress", {"label": "named"})
    assert list(world.rpc("LTC", "getaddressesbylabel", {"label": "named"})) == [address]


# Refusals


def spend_elsewhere(world, coin, place):
    """The payer spends an outpoint on something else."""
    txout = world.rpc(coin, "gettxout", place["txid"], place["vout"])
    half = str(int(txout["value"]) // 2)
    address = world.rpc(coin, "getnewaddress", "other")
    raw = world.rpc(coin, "createrawtransaction", [place], {address: half})
    funded = world.rpc(coin, "fundrawtransaction", raw)["hex"]
    return world.rpc(coin, "sendrawtransaction", world.rpc(coin, SIGN[coin], funded)["hex"])


def test_a_wrong_password_is_401_with_an_empty_body(world):
    for headers in ({}, {"Authorization": "Basic dTpw"}, {"Authorization": "Basic !"}):
        reply = world.request("POST", "/rpc/ltc/", content=b"{}", headers=headers)
        assert (reply.status_code, reply.content) == (401, b"")


def test_errors_travel_with_http_500_and_unknown_methods_with_404(world):
    assert world.reply("LTC", "getmempoolentry", UNKNOWN).status_code == 500
    assert world.reply("LTC", "nonsense").status_code == 404
    assert world.error("LTC", "nonsense") == (-32601, "Method not found")
    body = world.reply("LTC", "nonsense").json()
    assert (body["result"], body["id"]) == (None, 1)


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"{", -32700), (b"[1]", -32600), (b'{"method":1}', -32600), (b'{"a":NaN}', -32700)],
)
def test_what_is_no_call(world, content, code):
    headers = {"Authorization": "Basic dHVydGxlczpw"}
    reply = world.request("POST", "/rpc/btc/", content=content, headers=headers)
    assert reply.json()["error"]["code"] == code


def test_wrong_arguments_are_minus_1(world):
    assert world.error("LTC", "getaddressesbylabel")[0] == -1
    assert world.error("LTC", "getblockcount", 1, 2)[0] == -1
    assert world.error("LTC", "listunspent", "one")[0] == -1


@pytest.mark.parametrize(
    ("amount", "message"),
    [
        ("0.123456789", "Invalid amount"),
        ("0.1000000001", "Invalid amount"),
        (0.1 + 0.2, "Invalid amount"),
        ("1_000", "Invalid amount"),
        ("\uff11", "Invalid amount"),
        ("", "Invalid amount"),
        (None, "Invalid amount"),
        (True, "Invalid amount"),
        ("-1", "Amount out of range"),
        (-1, "Amount out of range"),
        ("99999999999999999999", "Amount out of range"),
    ],
)
def test_bad_amounts_are_minus_3(world, coin, amount, message):
    outputs = {shop_address(world, coin): amount}
    assert world.error(coin, "createrawtransaction", [], outputs) == (-3, message)


def test_minus_4_of_funding_means_two_things(world, coin):
    def fund(amount):
        raw = world.rpc(coin, "createrawtransaction", [], {shop_address(world, coin): amount})
        return world.error(coin, "fundrawtransaction", raw)

    assert fund("0.00000001") == (-4, "Transaction amount too small")
    assert fund("0") == (-4, "Transaction amount too small")
    assert fund("90000000000") == (-4, "Insufficient funds")


def test_bad_and_foreign_addresses_are_minus_5(world):
    for address in ("nonsense", shop_address(world, "LTC"), shop_address(world, "DOGE")):
        assert world.error("BTC", "createrawtransaction", [], {address: "1"})[0] == -5


def test_a_locked_wallet_funds_but_does_not_sign(world, coin):
    world.fault("lock_wallet", currency=coin, wallet="payer", passphrase="open sesame")
    raw = world.rpc(coin, "createrawtransaction", [], {shop_address(world, coin): "1"})
    funded = world.rpc(coin, "fundrawtransaction", raw)["hex"]
    code, message = world.error(coin, SIGN[coin], funded)
    assert code == -13
    assert "walletpassphrase" in message
    assert world.rpc(coin, "getwalletinfo")["unlocked_until"] == 0

    assert world.error(coin, "walletpassphrase", "wrong", 2)[0] == -14
    world.rpc(coin, "walletpassphrase", "open sesame", 2)
    assert world.rpc(coin, "getwalletinfo")["unlocked_until"] == world.now_ms // 1000 + 2
    assert world.rpc(coin, SIGN[coin], funded)["complete"] is True
    world.now_ms += 2000
    assert world.error(coin, SIGN[coin], funded)[0] == -13

    world.rpc(coin, "walletpassphrase", "open sesame", 60)
    world.rpc(coin, "walletlock")
    assert world.error(coin, SIGN[coin], funded)[0] == -13


def test_a_passphrase_for_a_wallet_without_one_is_minus_15(world):
    assert world.error("LTC", "walletpassphrase", "p", 2)[0] == -15
    assert world.error("LTC", "walletlock")[0] == -15
    assert "unlocked_until" not in world.rpc("LTC", "getwalletinfo")


def test_unknown_things(world, coin):
    assert world.error(coin, "gettransaction", UNKNOWN)[0] == -5
    assert world.error(coin, "getmempoolentry", UNKNOWN) == (-5, "Transaction not in mempool")
    assert world.error(coin, "listsinceblock", UNKNOWN) == (-5, "Block not found")
    if coin == "DOGE":
        assert world.rpc(coin, "getaddressesbyaccount", "none") == []
        assert world.error(coin, "getaddressesbylabel", "none")[0] == -32601
    else:
        assert world.error(coin, "getaddressesbylabel", "none")[0] == -11
    assert world.error(coin, "getbalance", wallet="none")[0] == -18
    assert world.rpc(coin, "gettxout", UNKNOWN, 0) is None
    assert world.error(coin, "getreceivedbyaddress", shop_address(world, coin))[0] == -4


def test_a_transaction_of_others_is_unknown_to_a_wallet(world):
    txid = world.send("LTC", shop_address(world, "LTC"), 10**7)
    assert world.error("LTC", "gettransaction", txid, wallet="stranger")[0] == -5


def test_what_is_no_transaction_is_minus_22(world):
    for text in ("zz", "00", "", world.signed("BTC", shop_address(world, "BTC"), "0.001")):
        assert world.error("LTC", "sendrawtransaction", text) == (-22, "TX decode failed")


def test_locking_outputs_is_minus_8_when_it_makes_no_sense(world):
    place = world.rpc("LTC", "listunspent")[0]
    outpoint = {"txid": place["txid"], "vout": place["vout"]}
    assert world.rpc("LTC", "lockunspent", False, [outpoint]) is True
    listed = world.rpc("LTC", "listunspent")
    assert outpoint not in [{"txid": p["txid"], "vout": p["vout"]} for p in listed]
    assert world.error("LTC", "lockunspent", False, [outpoint]) == (
        -8,
        "Invalid parameter, output already locked",
    )
    assert world.rpc("LTC", "lockunspent", True, [outpoint]) is True
    assert world.error("LTC", "lockunspent", True, [outpoint]) == (
        -8,
        "Invalid parameter, expected locked output",
    )
    spend_elsewhere(world, "LTC", outpoint)
    assert world.error("LTC", "lockunspent", False, [outpoint]) == (
        -8,
        "Invalid parameter, expected unspent output",
    )
    unknown = {"txid": UNKNOWN, "vout": 0}
    assert world.error("LTC", "lockunspent", False, [unknown])[0] == -8
    assert world.error("LTC", "lockunspent", False, [{"txid": 1}])[0] == -8


def test_all_reservations_are_given_back_at_once(world):
    world.signed("LTC", shop_address(world, "LTC"), "1")
    assert len(world.rpc("LTC", "listlockunspent")) == 1
    assert world.rpc("LTC", "lockunspent", True) is True
    assert world.rpc("LTC", "listlockunspent") == []


def test_reservations_are_lost_when_the_node_restarts(file_world):
    world = file_world
    raw = world.signed("LTC", shop_address(world, "LTC"), "1")
    world.restart()
    assert world.rpc("LTC", "listlockunspent") == []
    world.rpc("LTC", "sendrawtransaction", raw)


@pytest.mark.parametrize(
    ("coin", "text"),
    [
        ("BTC", "Transaction outputs already in utxo set"),
        ("LTC", "Transaction already in block chain"),
        ("DOGE", "transaction already in block chain"),
    ],
)
def test_already_mined_is_minus_27_while_an_output_is_unspent(world, coin, text):
    raw = world.signed(coin, shop_address(world, coin), "2")
    world.rpc(coin, "sendrawtransaction", raw)
    world.mine(coin)
    assert world.error(coin, "sendrawtransaction", raw) == (-27, text)


def test_already_mined_and_spent_looks_like_missing_inputs(world):
    """Confirmed, and yet the node says -25: only looking it up tells the truth."""
    raw = world.signed("LTC", shop_address(world, "LTC"), "2")
    txid = world.rpc("LTC", "sendrawtransaction", raw)
    world.mine("LTC")
    for wallet in ("shop", "payer"):
        for place in world.rpc("LTC", "listunspent", wallet=wallet):
            if place["txid"] == txid:
                drain(world, wallet, place)
    world.mine("LTC")
    assert world.error("LTC", "sendrawtransaction", raw) == (
        -25,
        "bad-txns-inputs-missingorspent",
    )
    assert world.rpc("LTC", "gettransaction", txid)["confirmations"] == 2


def outpoint(place):
    return {"txid": place["txid"], "vout": place["vout"]}


def drain(world, wallet, place):
    address = world.rpc("LTC", "getnewaddress", "drain", wallet=wallet)
    inputs = [outpoint(place)]
    raw = world.rpc("LTC", "createrawtransaction", inputs, {address: "0.5"}, wallet=wallet)
    funded = world.rpc("LTC", "fundrawtransaction", raw, wallet=wallet)["hex"]
    signed = world.rpc("LTC", SIGN["LTC"], funded, wallet=wallet)["hex"]
    world.rpc("LTC", "sendrawtransaction", signed, wallet=wallet)


def test_a_stolen_input_is_minus_26_then_minus_25(world):
    raw = world.signed("LTC", shop_address(world, "LTC"), "1")
    place = world.rpc("LTC", "decoderawtransaction", raw)["vin"][0]
    spend_elsewhere(world, "LTC", place)
    assert world.error("LTC", "sendrawtransaction", raw) == (-26, "txn-mempool-conflict")
    assert world.rpc("LTC", "gettxout", place["txid"], place["vout"], True) is None
    assert world.rpc("LTC", "gettxout", place["txid"], place["vout"], False) is not None
    world.mine("LTC")
    assert world.error("LTC", "sendrawtransaction", raw) == (
        -25,
        "bad-txns-inputs-missingorspent",
    )


def test_an_unsigned_or_tampered_transaction_is_refused(world):
    raw = world.rpc("LTC", "createrawtransaction", [], {shop_address(world, "LTC"): "1"})
    funded = world.rpc("LTC", "fundrawtransaction", raw)["hex"]
    assert world.error("LTC", "sendrawtransaction", funded)[0] == -26
    foreign = world.rpc("LTC", SIGN["LTC"], funded, wallet="shop")
    assert foreign["complete"] is False
    assert foreign["errors"]
    assert world.error("LTC", "sendrawtransaction", foreign["hex"])[0] == -26
    signed = bytes.fromhex(world.rpc("LTC", SIGN["LTC"], funded)["hex"])
    richer = signed.replace(b"100000000", b"200000000")
    assert richer != signed
    assert world.error("LTC", "sendrawtransaction", richer.hex())[0] == -26


def test_paying_more_than_one_holds_is_refused(world, coin):
    place = world.rpc(coin, "listunspent")[0]
    more = str(place["amount"] + 1)
    outputs = {shop_address(world, coin): more}
    raw = world.rpc(coin, "createrawtransaction", [outpoint(place)], outputs)
    signed = world.rpc(coin, SIGN[coin], raw)["hex"]
    code, message = world.error(coin, "sendrawtransaction", signed)
    assert code == -26
    assert message.endswith("bad-txns-in-belowout")


def test_paying_no_fee_is_refused(world):
    place = world.rpc("LTC", "listunspent")[0]
    outputs = {shop_address(world, "LTC"): str(place["amount"])}
    raw = world.rpc("LTC", "createrawtransaction", [outpoint(place)], outputs)
    signed = world.rpc("LTC", SIGN["LTC"], raw)["hex"]
    assert world.error("LTC", "sendrawtransaction", signed) == (-26, "min relay fee not met")


def test_mined_with_one_output_spent_is_still_minus_27(world):
    raw = world.signed("LTC", shop_address(world, "LTC"), "2")
    txid = world.rpc("LTC", "sendrawtransaction", raw)
    world.mine("LTC")
    (place,) = [each for each in world.rpc("LTC", "listunspent") if each["txid"] == txid]
    drain(world, "payer", place)
    assert world.error("LTC", "sendrawtransaction", raw)[0] == -27


def test_sending_ends_the_reservation(world):
    raw = world.signed("LTC", shop_address(world, "LTC"), "2")
    txid = world.rpc("LTC", "sendrawtransaction", raw)
    world.fault("evict", currency="LTC", txid=txid)
    assert world.rpc("LTC", "listlockunspent") == []


def test_a_strangers_unconfirmed_coin_is_not_counted(world):
    before = world.rpc("LTC", "getbalance", wallet="shop")
    world.send("LTC", shop_address(world, "LTC"), 10**8)
    assert world.rpc("LTC", "getbalance", wallet="shop") == before
    listed = world.rpc("LTC", "listunspent", 0, wallet="shop")
    assert [each["safe"] for each in listed if each["confirmations"] == 0] == [False]
    world.mine("LTC")
    assert world.rpc("LTC", "getbalance", wallet="shop") == before + 1


def test_named_inputs_are_used(world):
    place = world.rpc("LTC", "listunspent")[3]
    outpoint = {"txid": place["txid"], "vout": place["vout"]}
    txid = spend_elsewhere(world, "LTC", outpoint)
    raw = world.rpc("LTC", "gettransaction", txid)["hex"]
    assert world.rpc("LTC", "decoderawtransaction", raw)["vin"] == [outpoint]


# Reorganisations


def test_a_reorganisation_gives_the_transaction_back(world):
    address = shop_address(world, "LTC")
    txid = world.send("LTC", address, 10**8)
    hashes = world.mine("LTC", 3)
    assert world.rpc("LTC", "gettransaction", txid)["blockhash"] == hashes[0]
    world.fault("reorg", currency="LTC", depth=3)
    back = world.rpc("LTC", "gettransaction", txid)
    assert back["confirmations"] == 0
    assert "blockhash" not in back
    assert world.rpc("LTC", "getmempoolentry", txid)["fee"] > 0
    since = world.rpc("LTC", "listsinceblock", hashes[2])
    assert {each["txid"] for each in since["removed"]} == {txid}
    assert {each["txid"] for each in since["transactions"]} == {txid}
    (mined,) = world.mine("LTC")
    assert mined not in hashes
    assert world.rpc("LTC", "gettransaction", txid)["blockhash"] == mined


def test_a_double_spend_makes_confirmations_negative_for_both_sides(world, coin):
    address = shop_address(world, coin)
    raw = world.signed(coin, address, "2")
    txid = world.rpc(coin, "sendrawtransaction", raw)
    world.mine(coin, 2)
    world.fault("reorg", currency=coin, depth=2, double_spend=True)
    for wallet in ("payer", "shop"):
        lost = world.rpc(coin, "gettransaction", txid, wallet=wallet)
        assert lost["confirmations"] == -3
        assert lost["trusted"] is False
        assert len(lost["walletconflicts"]) == 1
    world.mine(coin)
    assert world.rpc(coin, "gettransaction", txid)["confirmations"] == -4
    assert world.error(coin, "sendrawtransaction", raw)[0] == -25
    assert world.rpc(coin, "getreceivedbyaddress", address, 0, wallet="shop") == 0
    rival = world.rpc(coin, "gettransaction", txid)["walletconflicts"][0]
    assert world.rpc(coin, "gettransaction", rival)["confirmations"] == 4

    # The rival's branch is itself reorganised away: the original may be sent again.
    world.fault("reorg", currency=coin, depth=4)
    world.fault("evict", currency=coin)
    assert world.rpc(coin, "gettransaction", txid)["confirmations"] == 0
    assert world.rpc(coin, "sendrawtransaction", raw) == txid


def test_what_spends_a_lost_transaction_is_lost_with_it(worlds):
    world = worlds(payer_outputs=1)
    parent = world.send("LTC", shop_address(world, "LTC"), 10**7)
    child = world.send("LTC", shop_address(world, "LTC"), 10**7)
    world.mine("LTC")
    world.fault("reorg", currency="LTC", depth=1, double_spend=True)
    for txid in (parent, child):
        assert world.rpc("LTC", "gettransaction", txid)["confirmations"] == -2
    world.report()


def test_an_evicted_transaction_is_known_but_not_in_the_mempool(world):
    raw = world.signed("LTC", shop_address(world, "LTC"), "1")
    txid = world.rpc("LTC", "sendrawtransaction", raw)
    world.fault("evict", currency="LTC", txid=txid)
    assert world.rpc("LTC", "gettransaction", txid)["confirmations"] == 0
    assert world.error("LTC", "getmempoolentry", txid)[0] == -5
    world.mine("LTC")
    assert world.rpc("LTC", "gettransaction", txid)["confirmations"] == 0
    assert world.rpc("LTC", "sendrawtransaction", raw) == txid


# History


def test_amounts_of_the_history_are_signed_and_exclude_the_fee(world, coin):
    txid = world.send(coin, shop_address(world, coin), 3 * 10**8)
    payer = world.rpc(coin, "gettransaction", txid)
    shop = world.rpc(coin, "gettransaction", txid, wallet="shop")
    assert str(payer["amount"]) == "-3.00000000"
    assert payer["fee"] < 0
    assert str(shop["amount"]) == "3.00000000"
    assert "fee" not in shop
    assert [each["category"] for each in shop["details"]] == ["receive"]
    assert [each["category"] for each in payer["details"]] == ["send"]


def test_listsinceblock_starts_after_the_block(world):
    first = world.send("LTC", shop_address(world, "LTC"), 10**7)
    (anchor,) = world.mine("LTC")
    second = world.send("LTC", shop_address(world, "LTC"), 10**7)
    everything = world.rpc("LTC", "listsinceblock")
    assert {each["txid"] for each in everything["transactions"]} == {first, second}
    since = world.rpc("LTC", "listsinceblock", anchor)
    assert {each["txid"] for each in since["transactions"]} == {second}
    assert since["lastblock"] == world.rpc("LTC", "getbestblockhash") == anchor
    assert "removed" not in world.rpc("DOGE", "listsinceblock")


def test_sendtoaddress_pays_by_hand(world):
    address = shop_address(world, "LTC")
    txid = world.rpc("LTC", "sendtoaddress", address, "0.3")
    assert world.rpc("LTC", "getrawmempool") == [txid]
    assert world.error("LTC", "sendtoaddress", address, "0")[0] == -6
    assert world.error("LTC", "sendtoaddress", address, "99999999") == (-6, "Insufficient funds")


def test_blocks_count_up(world, coin):
    height = world.rpc(coin, "getblockcount", wallet=None)
    (mined,) = world.mine(coin)
    assert world.rpc(coin, "getblockcount", wallet=None) == height + 1
    assert world.rpc(coin, "getbestblockhash", wallet=None) == mined


def test_an_unknown_coin_is_404(world):
    assert world.request("POST", "/rpc/eth/", content=json.dumps({})).status_code == 404
