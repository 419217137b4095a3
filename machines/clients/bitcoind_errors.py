"""What a bitcoind-style error means: pure.  Code and text together; some codes say two things.

::

    -28 -9 -10 -18        not ready: warming up, no peers, syncing, wallet not loaded
    -13, no key left      WalletLocked (-12, and -4 "call keypoolrefill": seen on litecoin 0.21)
    "insufficient funds"  InsufficientFunds, but "too small" is Rejected; either comes as -4 from
                          fundrawtransaction and as -6 from sendtoaddress
    -25 -26               BroadcastRefused; and every unknown code of a broadcast.  `policy`: the
                          fee is under the node's minimum or above its maximum, too long a chain
    -27, "already known"  fine: it is there
    -5 -3 -8 -1 -14 -22   Rejected, like every code not named

Source: payments.md 1.1, 1.7 and Appendix B.
"""

from __future__ import annotations

from machines.clients.jsonrpc import RpcError
from machines.clients.ports import (
    BroadcastRefused,
    ClientError,
    InsufficientFunds,
    Rejected,
    Unavailable,
    WalletLocked,
)

NOT_FOUND = -5
INVALID_PARAMETER = -8
NO_SUCH_LABEL = -11
NOT_ENCRYPTED = -15
METHOD_NOT_FOUND = -32601
_ALREADY_IN_CHAIN = -27
_NOT_READY = (-28, -9, -10, -18)
_OVERLOADED = (-7, -20, -32603)
_WRONG_FOR_EVER = (-22, -32600, -32601, -32602, -1)
_FUNDS_CODES = (-4, -6, -32603)  # funding, sendtoaddress, funding before 0.15 (dogecoin)
_FUNDS_TEXTS = ("insufficient funds", "requires a transaction fee of at least")
_POLICY_TEXTS = (
    "min relay fee not met",
    "mempool min fee not met",
    "min fee not met",
    "insufficient fee",
    "insufficient priority",
    "too-long-mempool-chain",
    "mempool full",
    "max fee exceeded",
    "fee exceeds maximum",
    "absurdly-high-fee",
)
_KNOWN_TEXTS = ("already-known", "already-in-mempool", "already in the mempool", "already in block")


def already_there(error: RpcError) -> bool:
    """Whether a refused broadcast says the node has the transaction."""
    text = error.text.lower()
    return error.code == _ALREADY_IN_CHAIN or any(known in text for known in _KNOWN_TEXTS)


def is_policy(error: RpcError) -> bool:
    """Whether a refused broadcast says "not now, or not at this fee": the bytes stay valid."""
    text = error.text.lower()
    return error.code in (-25, -26) and any(policy in text for policy in _POLICY_TEXTS)


def translate(error: RpcError, wallet: str) -> ClientError:
    """The typed error; `wallet` names the wallet in the message."""
    message = f"{wallet}: {error}"
    text = error.text.lower()
    if error.code in _NOT_READY or "fee estimation failed" in text:
        return Unavailable(message, kind="not_ready")
    # A locked wallet makes no keys: each attempt to fund takes one, until none is left.
    if error.code == -13 or "keypool ran out" in text or "keypoolrefill" in text:
        return WalletLocked(f"{message}. Unlock it with walletpassphrase.")
    if error.code in _FUNDS_CODES and any(funds in text for funds in _FUNDS_TEXTS):
        return InsufficientFunds(message)
    if error.code in _OVERLOADED:
        return Unavailable(message, kind="overloaded")
    if error.method == "sendrawtransaction" and error.code not in _WRONG_FOR_EVER:
        return BroadcastRefused(message, policy=is_policy(error))
    return Rejected(message)
