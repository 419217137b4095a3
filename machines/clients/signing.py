"""The platform's request signature: pure, no clock, no I/O.

::

    message   = <unix seconds> ":" <METHOD> ":" <target> ":" <body>
    signature = lower hex of HMAC-SHA256(key = UTF-8 of the whole secret, message)

`target` is the path with its query exactly as it goes on the wire; `body` is the exact bytes sent,
empty when there is none (the message then ends in a colon).  The server refuses a timestamp more
than 300 s away from its own clock.  Source: platform-api.md section 1.1.
"""

from __future__ import annotations

import hashlib
import hmac

from engine.secrets import Secret
from machines.clients.ports import Credentials


def sign(secret: Secret[str], method: str, target: str, body: bytes, timestamp_seconds: int) -> str:
    """The 64 hex digits of `X-Signature`."""
    head = f"{timestamp_seconds}:{method.upper()}:{target}:".encode()
    return hmac.new(secret.reveal().encode(), head + body, hashlib.sha256).hexdigest()


def headers(
    credentials: Credentials, method: str, target: str, body: bytes, timestamp_seconds: int
) -> dict[str, str]:
    """The three headers of a signed request; none of them holds the secret."""
    signature = sign(credentials.secret_key, method, target, body, timestamp_seconds)
    return {
        "Authorization": f"Bearer {credentials.public_key}",
        "X-Timestamp": str(timestamp_seconds),
        "X-Signature": signature,
    }
