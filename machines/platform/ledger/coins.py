"""The four coins: units, fees, and how their amounts are written.

Bitcoin-like nodes speak decimal coins with exactly eight places, monero speaks integers.  Inside
there are only integers of the atomic unit; a float never comes near (payments.md, section 4.3).
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Literal

import msgspec

from engine.errors import UsageError

MAXIMUM_ATOMIC = 2**63 - 1
_PLAIN = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?", re.ASCII)


class Coin(msgspec.Struct, frozen=True, kw_only=True):
    """One currency's constants.

    Args:
        exponent: decimal places of the atomic unit.
        dust_atomic: the least an output may hold.
        fee_per_byte_atomic: what a transaction pays for each byte of `size`.
        unlock_depth: confirmations before an output may be spent (monero: 10).
        scheme: of a payment URI; `uri_amount` is its amount parameter.
        address_prefix: what its addresses begin with.
    """

    name: str
    family: Literal["bitcoin", "monero"]
    exponent: int
    dust_atomic: int
    fee_per_byte_atomic: int
    unlock_depth: int
    scheme: str
    uri_amount: str
    address_prefix: str


COINS = {
    coin.name: coin
    for coin in (
        Coin(
            name="BTC",
            family="bitcoin",
            exponent=8,
            dust_atomic=294,
            fee_per_byte_atomic=2,
            unlock_depth=0,
            scheme="bitcoin",
            uri_amount="amount",
            address_prefix="bcrt1",
        ),
        Coin(
            name="LTC",
            family="bitcoin",
            exponent=8,
            dust_atomic=2940,
            fee_per_byte_atomic=10,
            unlock_depth=0,
            scheme="litecoin",
            uri_amount="amount",
            address_prefix="rltc1",
        ),
        Coin(
            name="DOGE",
            family="bitcoin",
            exponent=8,
            dust_atomic=1_000_000,
            fee_per_byte_atomic=1000,
            unlock_depth=0,
            scheme="dogecoin",
            uri_amount="amount",
            address_prefix="D",
        ),
        Coin(
            name="XMR",
            family="monero",
            exponent=12,
            dust_atomic=1,
            fee_per_byte_atomic=20_000,
            unlock_depth=10,
            scheme="monero",
            uri_amount="tx_amount",
            address_prefix="8",
        ),
    )
}


def size_bytes(inputs: int, outputs: int) -> int:
    """The virtual size that fees are charged for."""
    return 11 + 68 * inputs + 31 * outputs


def fee_atomic(currency: str, inputs: int, outputs: int) -> int:
    """The network fee of a transaction with that many inputs and outputs."""
    return COINS[currency].fee_per_byte_atomic * size_bytes(inputs, outputs)


def format_coins(currency: str, amount_atomic: int) -> str:
    """The amount in coins with all its places, never an exponent: `0.00014000`."""
    exponent = COINS[currency].exponent
    sign = "-" if amount_atomic < 0 else ""
    whole, part = divmod(abs(amount_atomic), 10**exponent)
    return f"{sign}{whole}.{part:0{exponent}d}"


def parse_coins(currency: str, value: object) -> int:
    """Atomic units from a decimal string, a `Decimal` or an integer number of coins.

    Raises:
        UsageError: not a number, or more places than the coin has.  Zeros behind them do not count
            (seen on litecoin 0.21).
    """
    text = str(value) if isinstance(value, Decimal | int | str) else ""
    if isinstance(value, bool) or not _PLAIN.fullmatch(text):
        raise UsageError(f"amount: got {value!r}, expected a number of {currency} such as '0.5'")
    exponent = COINS[currency].exponent
    sign, digits, places = Decimal(text).as_tuple()
    while isinstance(places, int) and -places > exponent and digits[-1] == 0 and len(digits) > 1:
        digits, places = digits[:-1], places + 1
    if not isinstance(places, int) or -places > exponent or places > 12:
        raise UsageError(f"amount: got {text}, expected at most {exponent} decimal places")
    magnitude = int("".join(map(str, digits))) * int(10 ** (exponent + places))
    return -magnitude if sign else magnitude
