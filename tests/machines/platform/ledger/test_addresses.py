"""Addresses: one alphabet for each coin, and a typing error never passes."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machines.platform.ledger.addresses import is_address, make_address, script_hex

CURRENCIES = ("BTC", "LTC", "DOGE", "XMR")
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@given(currency=st.sampled_from(CURRENCIES), seed=st.text(max_size=5), index=st.integers(0, 99))
def test_an_address_belongs_to_its_coin_only(currency, seed, index):
    address = make_address(currency, seed, index)
    assert address == make_address(currency, seed, index)
    assert [each for each in CURRENCIES if is_address(each, address)] == [currency]
    assert address != make_address(currency, seed, index + 1)


@given(
    currency=st.sampled_from(CURRENCIES),
    place=st.integers(0, 200),
    letter=st.sampled_from(ALPHABET),
)
def test_a_changed_letter_is_noticed(currency, place, letter):
    address = make_address(currency, "seed", 1)
    place %= len(address)
    changed = address[:place] + letter + address[place + 1 :]
    assert is_address(currency, changed) == (changed == address)


@pytest.mark.parametrize(
    "text", ["", "1", "bcrt1", "D" * 34, "8" * 95, "é" * 44, "bcrt1" + "q" * 39]
)
def test_nonsense_is_no_address(text):
    assert not any(is_address(currency, text) for currency in CURRENCIES)


def test_bech32_agrees_with_the_standard():
    """BIP 173's example: a witness program of zeroes and ones, with the mainnet prefix."""
    from machines.platform.ledger.addresses import _bech32

    program = bytes.fromhex("751e76e8199196d454941c45d1b3a323f1433bd6")
    assert _bech32("bc", program) == "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"
    assert _bech32("tb", program) == "tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx"


def test_scripts_hold_the_hash_of_the_address():
    assert script_hex("BTC", make_address("BTC", "s", 1)).startswith("0014")
    digest = hashlib.sha512(b"DOGE:s:1").digest()[:20].hex()
    assert script_hex("DOGE", make_address("DOGE", "s", 1)) == f"76a914{digest}88ac"
    digest = hashlib.sha512(b"LTC:s:1").digest()[:20].hex()
    assert script_hex("LTC", make_address("LTC", "s", 1)) == f"0014{digest}"


def test_monero_accounts_begin_with_4_and_subaddresses_with_8():
    assert make_address("XMR", "s", 0)[0] == "4"
    assert make_address("XMR", "s", 1)[0] == "8"
