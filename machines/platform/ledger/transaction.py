"""A transaction as bytes: self-describing, deterministic, signed.

The encoding is ours (compact JSON in hex), its properties are those that matter to a payer:

- signing the same unsigned bytes twice gives the same bytes;
- BTC, LTC and XMR: the id does not depend on the signatures (segregated witness);
- DOGE: the id covers the signatures too, so it is known only once signed.

An input is signed with `sha256(seed of the wallet, outpoint, unsigned body)`; nodes check it.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

from engine.errors import UsageError


class Outpoint(msgspec.Struct, frozen=True, array_like=True):
    """A place where money lies: output number `vout` of transaction `txid`."""

    txid: str
    vout: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


class Output(msgspec.Struct, frozen=True, array_like=True):
    """Money put at an address, in atomic units."""

    address: str
    amount_atomic: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Transaction(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Inputs spent, outputs made, and one signature for each input (none while unsigned).

    `salt` makes coinbases and monero transactions unique; there it is the hash of the
    transaction's secret key, with which a payer proves what it paid.
    """

    currency: str
    inputs: tuple[Outpoint, ...]
    outputs: tuple[Output, ...]
    salt: str = ""
    signatures: tuple[str, ...] = ()

    @property
    def body(self) -> bytes:
        """What the signatures cover."""
        return msgspec.json.encode(msgspec.structs.replace(self, signatures=()))

    @property
    def txid(self) -> str:
        """64 hex digits naming the transaction."""
        covered = self.encode() if self.currency == "DOGE" else self.body
        return hashlib.sha256(hashlib.sha256(covered).digest()).hexdigest()

    def encode(self) -> bytes:
        """The bytes that travel."""
        return msgspec.json.encode(self)

    @property
    def hex(self) -> str:
        """The bytes that travel, in hex."""
        return self.encode().hex()

    def signed(self, signatures: tuple[str, ...]) -> Transaction:
        """The same transaction with these signatures."""
        return msgspec.structs.replace(self, signatures=signatures)

    def signature(self, seed: str, outpoint: Outpoint) -> str:
        """What the owner of `seed` signs for one input."""
        covered = f"{seed}:{outpoint.txid}:{outpoint.vout}:".encode() + self.body
        return hashlib.sha256(covered).hexdigest()


def from_hex(text: str) -> Transaction:
    """The transaction in a hex string.

    Raises:
        UsageError: not hex, or not a transaction of ours.
    """
    try:
        return msgspec.json.decode(bytes.fromhex(text), type=Transaction)
    except (ValueError, msgspec.DecodeError) as error:
        raise UsageError("TX decode failed: not a transaction in hex") from error


def key_image(currency: str, outpoint: Outpoint) -> str | None:
    """The mark a monero output leaves when it is spent; None for the other coins."""
    if currency != "XMR":
        return None
    return hashlib.sha256(f"key image:{outpoint.txid}:{outpoint.vout}".encode()).hexdigest()
