"""Who is calling: HMAC-signed requests, verified over the bytes that arrived.

::

    Authorization: Bearer <public key>
    X-Timestamp:   <unix seconds>
    X-Signature:   hex(HMAC-SHA256(secret, "<timestamp>:<METHOD>:<path>:<body>"))

Clients disagree about two details (wire facts, section 1.3), and exactly these forms pass:

- the path as sent with its query, the path without its query, or the percent-decoded target;
- for a body of exactly `{}`, also a signature over no body at all.

Nothing else is normalised: the method, time, path and body are never rewritten.  Every form is
compared, in constant time each, so the time taken does not tell which one matched.  A stale
time is answered before the signature is looked at, with the word `timestamp`, so that a client
with a wrong clock can measure the offset from `Date` and correct itself.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import msgspec

from machines.platform.replies import Problem

if TYPE_CHECKING:
    from machines.platform.keys import KeyRow

TOLERANCE_SECONDS = 300
_TIMESTAMP = re.compile(rb"[0-9]{1,12}", re.ASCII)
_SIGNATURE = re.compile(rb"[0-9a-f]{64}", re.ASCII)
_PUBLIC_KEY = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)


class SignedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a request that a signature covers, as bytes from the wire."""

    method: bytes
    path: bytes
    query: bytes
    body: bytes
    authorization: bytes
    timestamp: bytes
    signature: bytes

    @property
    def public_key(self) -> str:
        """The key the caller names.

        Raises:
            Problem: 401 `invalid_key`, no `Authorization: Bearer`.
        """
        scheme, _, key = self.authorization.decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not _PUBLIC_KEY.fullmatch(key.strip()):
            raise _refused(
                "invalid_key",
                "no public key. Send the header 'Authorization: Bearer unsb-pk-...'.",
            )
        return key.strip()


def from_headers(
    method: str, path: bytes, query: bytes, body: bytes, headers: Iterable[tuple[bytes, bytes]]
) -> SignedRequest:
    """Collect the signed parts of a request.

    Raises:
        Problem: 400 when one of the three headers is sent twice.
    """
    found = {b"authorization": b"", b"x-timestamp": b"", b"x-signature": b""}
    seen = set()
    for name, value in headers:
        if name in found:
            if name in seen:
                raise Problem(
                    400, "invalid_request", f"header {name.decode()}: sent twice. Send it once."
                )
            seen.add(name)
            found[name] = value
    return SignedRequest(
        method=method.encode(),
        path=path,
        query=query,
        body=body,
        authorization=found[b"authorization"],
        timestamp=found[b"x-timestamp"],
        signature=found[b"x-signature"],
    )


def sign(secret: str, timestamp: bytes, method: bytes, path: bytes, body: bytes) -> bytes:
    """64 lowercase hex digits over `timestamp:METHOD:path:body`."""
    message = b":".join((timestamp, method, path, body))
    return hmac.new(secret.encode(), message, hashlib.sha256).hexdigest().encode()


def accepted_signatures(secret: str, request: SignedRequest) -> tuple[bytes, ...]:
    """Every signature this request may carry, the plain form first."""
    target = request.path + (b"?" + request.query if request.query else b"")
    paths = dict.fromkeys((target, request.path, unquote_to_bytes(target)))
    bodies = (request.body, b"") if request.body == b"{}" else (request.body,)
    return tuple(
        sign(secret, request.timestamp, request.method, path, body)
        for path in paths
        for body in bodies
    )


def check_time(request: SignedRequest, now_ms: int) -> None:
    """Refuse a timestamp more than 300 s from now, on either side.

    Raises:
        Problem: 401 `invalid_timestamp`.
    """
    if not _TIMESTAMP.fullmatch(request.timestamp):
        raise _refused(
            "invalid_timestamp",
            "X-Timestamp: expected the timestamp as unix seconds, in decimal digits.",
        )
    apart_seconds = int(request.timestamp) - now_ms // 1000
    if abs(apart_seconds) > TOLERANCE_SECONDS:
        side = "ahead of" if apart_seconds > 0 else "behind"
        raise _refused(
            "invalid_timestamp",
            f"the request timestamp is {abs(apart_seconds)} s {side} the server's clock; "
            f"at most {TOLERANCE_SECONDS} s are allowed. Set the clock, or correct by 'Date'.",
        )


def check_signature(request: SignedRequest, secret: str) -> None:
    """Refuse a signature that none of the accepted forms gives.

    Raises:
        Problem: 401 `invalid_signature`.
    """
    matched = False
    for expected in accepted_signatures(secret, request):
        # Not `any`: every form is evaluated, whichever matches.
        matched |= hmac.compare_digest(expected, request.signature)
    if not (_SIGNATURE.fullmatch(request.signature) and matched):
        raise _refused(
            "invalid_signature",
            "X-Signature does not match. Expected hex(HMAC-SHA256(secret key, "
            "'<timestamp>:<METHOD>:<path>:<body>')) over the exact bytes sent.",
        )


def authenticate(
    request: SignedRequest,
    *,
    now_ms: int,
    find: Callable[[str], KeyRow | None],
    secret_of: Callable[[str], str],
) -> KeyRow:
    """The key that signed the request, whatever its standing (see `check_standing`).

    Raises:
        Problem: 401 with `invalid_timestamp`, `invalid_key` or `invalid_signature`.
    """
    public_key = request.public_key
    check_time(request, now_ms)
    row = find(public_key)
    if row is None:
        raise _refused("invalid_key", f"unknown public key {public_key}. Buy or check the key.")
    check_signature(request, secret_of(public_key))
    return row


def check_standing(key: KeyRow, now_ms: int) -> None:
    """Refuse an authentic key that may not work now.

    Raises:
        Problem: 401 `expired` or `suspended`.
    """
    standing = key.standing(now_ms)
    if standing != "active":
        remedy = {"expired": "Extend it or buy another.", "suspended": "Ask its seller."}
        raise _refused(
            standing, f"key {key.public_key} is {standing}. {remedy.get(standing, '')}".rstrip()
        )


def _refused(error: str, message: str) -> Problem:
    """401.  `valid` and `reason` are what clients of `/keys/validate` read (section 10.1)."""
    reason = {"invalid_signature": "invalid_key"}.get(error, error)
    return Problem(401, error, message, fields={"valid": False, "reason": reason})
