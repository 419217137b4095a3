"""Reading a node's JSON."""

from __future__ import annotations

from typing import Any

import pytest

from engine.secrets import Secret
from machines.clients.bitcoind_shapes import is_spendable, paid_by, same_payment
from machines.clients.fields import Fields
from machines.clients.ports import Currency, Rejected, SignedTransaction

PAYMENT = SignedTransaction(
    txid="t1",
    payload=Secret("hex"),
    inputs=("c1:0", "c2:7"),
    fee_atomic=1,
    amount_atomic=29_000_000,
    address="Dshop",
)


def decoded(inputs: list[tuple[str, int]], value: str, script: Any) -> Fields:
    vin = [{"txid": txid, "vout": vout} for txid, vout in inputs]
    vout = [{"value": value, "n": 0, "scriptPubKey": script}]
    return Fields({"txid": "t2", "vin": vin, "vout": vout}, "node")


@pytest.mark.parametrize(
    ("inputs", "value", "payee", "same"),
    [
        ([("c2", 7), ("c1", 0)], "0.29000000", "Dshop", True),
        ([("c1", 0)], "0.29000000", "Dshop", False),
        ([("c1", 0), ("c2", 7), ("c3", 0)], "0.29000000", "Dshop", False),
        ([("c1", 0), ("c2", 7)], "0.28999999", "Dshop", False),
        ([("c1", 0), ("c2", 7)], "0.29000000", "Dother", False),
    ],
)
def test_a_twin_spends_the_same_inputs_for_the_same_payment(
    inputs: list[tuple[str, int]], value: str, payee: str, same: bool
) -> None:
    twin = decoded(inputs, value, {"addresses": [payee]})
    assert same_payment(twin, PAYMENT, Currency.DOGE) is same


@pytest.mark.parametrize(
    ("script", "payee"),
    [
        ({"address": "a"}, "a"),
        ({"addresses": ["a"]}, "a"),
        ({"addresses": ["a", "b"]}, ""),
        ({"hex": "6a"}, ""),
    ],
)
def test_who_is_paid(script: dict[str, Any], payee: str) -> None:
    assert paid_by(decoded([], "1", script), Currency.BTC) == [(payee, 100_000_000)]


@pytest.mark.parametrize("script", [None, "a", {"address": 5}, {"addresses": "a"}])
def test_a_script_of_another_shape(script: Any) -> None:
    with pytest.raises(Rejected):
        paid_by(decoded([], "1", script), Currency.BTC)


@pytest.mark.parametrize(
    ("coin", "spendable"),
    [
        ({"safe": True, "confirmations": 0}, True),
        ({"safe": False, "confirmations": 9}, False),
        ({"confirmations": 1}, True),
        ({"confirmations": 0}, False),
        ({"safe": True, "spendable": False, "confirmations": 1}, False),
    ],
)
def test_what_can_be_spent(coin: dict[str, Any], spendable: bool) -> None:
    assert is_spendable(Fields(coin, "node")) is spendable
