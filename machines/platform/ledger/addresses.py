"""Addresses in each coin's own alphabet, with a checksum, so that a typing error is refused.

BTC and LTC use bech32 (BIP 173, witness version 0, regression-test prefixes), DOGE uses base58
with the usual double SHA-256 checksum, XMR 95 base58 characters of which the last six are a
checksum of ours (real ones need curve points, which nothing here has).
"""

from __future__ import annotations

import hashlib

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_PREFIX = {"BTC": "bcrt", "LTC": "rltc"}
_GENERATORS = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_DOGE_VERSION = b"\x1e"


def make_address(currency: str, seed: str, index: int) -> str:
    """The address number `index` of a wallet; the same seed and index give the same address."""
    digest = hashlib.sha512(f"{currency}:{seed}:{index}".encode()).digest()
    if currency in _PREFIX:
        return _bech32(_PREFIX[currency], digest[:20])
    if currency == "DOGE":
        return _base58_check(_DOGE_VERSION + digest[:20])
    body = ("4" if index == 0 else "8") + _base58(int.from_bytes(digest + digest[:8], "big"), 88)
    return body + _monero_checksum(body)


def is_address(currency: str, text: str) -> bool:
    """Whether the text is a well-formed address of this coin."""
    if currency in _PREFIX:
        return _is_bech32(_PREFIX[currency], text)
    if currency == "DOGE":
        return _is_base58_check(text)
    well_formed = len(text) == 95 and text[0] in "48" and all(c in _BASE58 for c in text)
    return well_formed and text[89:] == _monero_checksum(text[:89])


def script_hex(currency: str, address: str) -> str:
    """The output script that pays an address: what a node shows as `scriptPubKey.hex`."""
    if currency in _PREFIX:
        data = [_BECH32.index(c) for c in address[len(_PREFIX[currency]) + 2 : -6]]
        return "0014" + _regroup(data).hex()
    payload = _base58_bytes(address)[1:21]
    return f"76a914{payload.hex()}88ac"


def _bech32(prefix: str, program: bytes) -> str:
    bits = int.from_bytes(program, "big")
    data = [0, *((bits >> shift) & 31 for shift in range(155, -1, -5))]
    expanded = _expand(prefix)
    polymod = _polymod([*expanded, *data, 0, 0, 0, 0, 0, 0]) ^ 1
    checksum = [(polymod >> 5 * (5 - place)) & 31 for place in range(6)]
    return prefix + "1" + "".join(_BECH32[value] for value in (*data, *checksum))


def _is_bech32(prefix: str, text: str) -> bool:
    body = text.removeprefix(prefix + "1")
    if len(text) != len(prefix) + 40 or len(body) != 39 or any(c not in _BECH32 for c in body):
        return False
    data = [_BECH32.index(c) for c in body]
    return data[0] == 0 and _polymod([*_expand(prefix), *data]) == 1


def _expand(prefix: str) -> list[int]:
    return [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]


def _polymod(values: list[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_GENERATORS):
            check ^= generator if (top >> bit) & 1 else 0
    return check


def _regroup(data: list[int]) -> bytes:
    bits = 0
    for value in data:
        bits = bits << 5 | value
    return bits.to_bytes(20, "big")


def _base58(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 58)
        digits.append(_BASE58[digit])
    return "".join(reversed(digits))


def _base58_check(payload: bytes) -> str:
    return _base58(int.from_bytes(payload + _double_sha(payload)[:4], "big"), 34)


def _base58_bytes(text: str) -> bytes:
    number = 0
    for character in text:
        number = number * 58 + _BASE58.index(character)
    return number.to_bytes(25, "big") if number < 1 << 200 else b""


def _is_base58_check(text: str) -> bool:
    if len(text) != 34 or any(c not in _BASE58 for c in text):
        return False
    raw = _base58_bytes(text)
    return raw[:1] == _DOGE_VERSION and _double_sha(raw[:21])[:4] == raw[21:]


def _double_sha(data: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(data).digest()).digest()


def _monero_checksum(body: str) -> str:
    return _base58(int.from_bytes(hashlib.sha256(body.encode()).digest(), "big"), 6)
