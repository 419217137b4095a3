"""The JSON-RPC front door under random input: always an answer in the protocol, never a crash."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from machines.platform.wallets.bitcoind_node import DIALECTS, method_names
from machines.platform.wallets.bitcoind_wallet import WalletRpc
from machines.platform.wallets.monero_wallet import MoneroWallet
from machines.platform.wallets.rpc import RpcError, bind, parse_call

AUTHORISED = {"Authorization": "Basic dHVydGxlczpw"}
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=6),
    st.sampled_from(["\ud800", "ab" * 32, "00", "7b7d", "0.1"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["txid", "vout", "address", "amount", "x"]), inner)
    ),
    max_leaves=6,
)
FUZZ = settings(
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
BITCOIN_METHODS = sorted(
    {name for dialect in DIALECTS.values() for name in method_names(WalletRpc, dialect)}
)
MONERO_METHODS = sorted(name[4:] for name in dir(MoneroWallet) if name.startswith("rpc_"))


@FUZZ
@given(
    coin=st.sampled_from(["btc", "ltc", "doge"]),
    wallet=st.sampled_from(["", "wallet/payer", "wallet/none"]),
    method=st.sampled_from(BITCOIN_METHODS) | st.text(max_size=5),
    params=st.lists(VALUES, max_size=4) | VALUES,
)
def test_bitcoin_nodes_answer_anything(world, coin, wallet, method, params):
    content = json.dumps({"id": 7, "method": method, "params": params})
    reply = world.request("POST", f"/rpc/{coin}/{wallet}", content=content, headers=AUTHORISED)
    body = reply.json()
    assert set(body) == {"result", "error", "id"}
    assert (reply.status_code == 200) == (body["error"] is None)
    if body["error"]:
        assert reply.status_code in (404, 500)
        assert isinstance(body["error"]["code"], int)


@FUZZ
@given(
    method=st.sampled_from(MONERO_METHODS) | st.text(max_size=5),
    params=st.dictionaries(
        st.sampled_from(["destinations", "hex", "txid", "address_index", "label", "count", "in"]),
        VALUES,
    )
    | VALUES,
)
def test_monero_wallets_answer_anything(world, method, params):
    content = json.dumps({"id": "0", "method": method, "params": params})
    reply = world.request("POST", "/rpc/xmr/wallet/payer/json_rpc", content=content)
    assert reply.status_code == 200
    assert ("result" in reply.json()) != ("error" in reply.json())


@FUZZ
@given(
    path=st.sampled_from(
        ["json_rpc", "get_transactions", "is_key_image_spent", "send_raw_transaction"]
    ),
    content=st.binary(max_size=20)
    | st.builds(
        lambda name, value: json.dumps({name: value}).encode(),
        st.sampled_from(["txs_hashes", "key_images", "tx_as_hex", "method"]),
        VALUES,
    ),
)
def test_the_monero_daemon_answers_anything(world, path, content):
    reply = world.request("POST", f"/rpc/xmr/daemon/{path}", content=content)
    assert reply.status_code == 200
    assert isinstance(reply.json(), dict)


def test_numbers_are_exact():
    call = parse_call(b'{"method":"m","params":[0.1,12345678901234567890,1e-3],"id":null}')
    assert call.params == [Decimal("0.1"), 12345678901234567890, Decimal("0.001")]


def test_a_call_without_parameters_has_none():
    assert parse_call(b'{"method":"m"}').params == []
    assert parse_call(b'{"method":"m","params":null}').params == []


def sample(name: str, count: int = 1, names: list[str] | None = None) -> str:
    return f"{name}{count}{names}"


def test_arguments_are_bound_by_place_or_name():
    assert bind(sample, ["a", 2])() == "a2None"
    assert bind(sample, {"name": "a", "names": ["b"]})() == "a1['b']"
    assert bind(sample, ["a", 2, None])() == "a2None"


@pytest.mark.parametrize(
    "params", [[], ["a", "b"], [1], ["a", True], ["a", 1, "b"], ["a", 1, [], 1], {"x": 1}]
)
def test_arguments_of_the_wrong_number_or_type_are_refused(params):
    with pytest.raises(TypeError):
        bind(sample, params)


@pytest.mark.parametrize("body", [b"", b"1", b'{"method":"m","params":7}', b"\xff", b"[" * 100_000])
def test_what_is_no_call_is_refused(body):
    with pytest.raises(RpcError):
        parse_call(body)
