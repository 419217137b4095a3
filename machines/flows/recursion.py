"""Whether code in a sandbox can make a sandbox beside it: it tries, and says what came of it.

This file is one self-contained script of the standard library (Python 3.9 and newer), because its
own text is sent into a child sandbox and run there::

    command({"url": ...})  ->  python3 -I -B -c '<this file>' < one line of JSON
                           ->  {"sibling": "unsb-session-...", "reason": ""}
                           ->  {"sibling": "", "reason": "URLError: ... Name or service not known"}

What it needs comes by standard input: the platform's address as seen from inside, and in a
semitrusted sandbox the key.  So the secret is in no argument, environment or file; a zerotrust
sandbox is given none, and the same code says why it got nowhere.  The sibling, which lives a
minute at most, is ended at once; whoever asked ends what may have been left.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import shlex
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

INSIDE_URL = "http://platform.turtles"
"""The platform, by the name that its own proxy knows."""
SIBLING_SECONDS = 60
_ATTEMPTS = 4
_WAIT_SECONDS_MAX = 5.0
_ANSWER_BYTES_MAX = 64 * 1024
_REASON_CHARACTERS_MAX = 200


class Refused(Exception):
    """The platform said no, and why."""


def attempt(ask: dict[str, Any]) -> dict[str, str]:
    """Make a sibling and end it.

    Args:
        ask: `url`; `public_key` and `secret_key` of a key, if there is one.
    """
    sibling = ""
    try:
        order = {"shell": "bash", "network_mode": "zerotrust", "ttl": SIBLING_SECONDS}
        made = _call(ask, "POST", "/sessions", order)
        sibling = str(made["session_id"])
        _call(ask, "DELETE", "/sessions/" + sibling, None)
    except (Refused, OSError, ValueError, KeyError) as error:
        reason = f"{type(error).__name__}: {getattr(error, 'reason', error)}"
        return {"sibling": sibling, "reason": reason[:_REASON_CHARACTERS_MAX]}
    return {"sibling": sibling, "reason": ""}


def _call(ask: dict[str, Any], method: str, path: str, body: Any) -> dict[str, Any]:
    """One call, again after a pause while the platform is busy."""
    content = b"" if body is None else json.dumps(body).encode()
    left = _ATTEMPTS
    while True:
        left -= 1
        headers = _signed(ask, method, path, content)
        request = urllib.request.Request(  # noqa: S310 - to the platform that we are told
            ask["url"] + path, content or None, headers, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                found: dict[str, Any] = json.loads(answer.read(_ANSWER_BYTES_MAX))
                return found
        except urllib.error.HTTPError as error:
            if error.code not in (429, 503) or not left:
                said = error.read(_REASON_CHARACTERS_MAX).decode("utf-8", "replace")
                raise Refused(f"{method} {path}: {error.code} {said}") from None
            time.sleep(min(float(error.headers.get("Retry-After") or 1), _WAIT_SECONDS_MAX))


def _signed(ask: dict[str, Any], method: str, path: str, content: bytes) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if not ask.get("secret_key"):
        return headers
    timestamp = str(int(time.time()))
    message = f"{timestamp}:{method}:{path}:".encode() + content
    signature = hmac.new(ask["secret_key"].encode(), message, hashlib.sha256).hexdigest()
    return {
        **headers,
        "Authorization": "Bearer " + ask["public_key"],
        "X-Timestamp": timestamp,
        "X-Signature": signature,
    }


def source() -> str:
    """The text of this script."""
    return Path(__file__).read_text(encoding="utf-8")


def command(ask: dict[str, Any]) -> str:
    """A bash command that runs this script where it is run; it needs only `python3`."""
    return f"python3 -I -B -c {shlex.quote(source())} <<'TURTLES'\n{json.dumps(ask)}\nTURTLES"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(attempt(json.loads(sys.stdin.readline()))) + "\n")
