"""What a status code allows the caller to conclude: pure, no I/O.

::

    2xx              the reply
    401              Unauthorized (reason from the body, the server's time from Date)
    404, 410         NotFound
    503 `sandbox_unavailable`   Refusal: nothing will change until somebody repairs the platform
    429              Unavailable rate_limit | concurrency
    408, 425         Unavailable overloaded: the server says it did not start
    502, 503         Unavailable overloaded: nothing behind the door took the request
    other 5xx        Unavailable when repeating is harmless, else ReplyLost
    anything else    Refusal with the server's own code; redirects included: none is followed

Error text comes from the server's `error` or `message` and nowhere else; never from headers.
Source: platform-api.md section 1.6.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any

from machines.clients.ports import (
    ClientError,
    NotFound,
    ReplyLost,
    Unauthorized,
    Unavailable,
)
from machines.clients.ports.refusals import Refusal

_TEXT_LENGTH_MAX = 300
_CODE_LENGTH_MAX = 60
_FOR_GOOD = ("sandbox_unavailable",)
"""Codes of a 5xx after which waiting does not help."""
_REASONS = ("invalid_timestamp", "invalid_signature", "suspended", "expired", "invalid_key")
_REASON_WORDS = (
    ("timestamp", "invalid_timestamp"),
    ("clock", "invalid_timestamp"),
    ("signature", "invalid_signature"),
    ("suspended", "suspended"),
    ("expired", "expired"),
)


@dataclass(frozen=True, repr=False)
class Reply:
    """What came back, whatever its status.  No repr: the body may hold a secret."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def server_ms(self) -> int | None:
        """The server's `Date`, in milliseconds since 1970."""
        return _date_ms(self.headers.get("date", ""))

    def json(self) -> Any:
        """The body as JSON, numbers with a fraction as `Decimal`.

        Raises:
            ValueError: not JSON, or NaN/Infinity.
        """
        try:
            return json.loads(self.body, parse_float=Decimal, parse_constant=_refuse_constant)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        except ValueError:
            # The cause is cut off on purpose: a JSONDecodeError carries the whole body.
            raise ValueError("not JSON") from None


def translate(reply: Reply, *, call: str, repeatable: bool, now_ms: int) -> ClientError:
    """The error for a reply that is no 2xx.

    Args:
        call: what was asked, for the message.
        repeatable: repeating the request is harmless (a read, or a write with a key).
        now_ms: our time, for a `Retry-After` given as a date when the server sent no `Date`.
    """
    status, data = reply.status, _object(reply)
    message = f"{call}: status {status}: {error_text(data) or 'no explanation given'}"
    if status == 401:
        return Unauthorized(message, reason=_reason(data), server_ms=reply.server_ms)
    if status in (404, 410):
        return NotFound(message)
    if status == 429:
        return Unavailable(
            message, kind=_limit_kind(data), retry_after_ms=_retry_after_ms(reply, data, now_ms)
        )
    refusal = Refusal(
        message,
        code=_word(data, "error", _CODE_LENGTH_MAX) or "other",
        status=status,
        provides=_word(data, "package", _TEXT_LENGTH_MAX),
    )
    if refusal.code in _FOR_GOOD:
        return refusal
    if status in (408, 425, 502, 503) or (status >= 500 and repeatable):
        wait_ms = _retry_after_ms(reply, data, now_ms)
        return Unavailable(message, kind="overloaded", retry_after_ms=wait_ms)
    if status >= 500:
        return ReplyLost(f"{message}; it may have happened all the same")
    return refusal


def error_text(data: Mapping[str, Any]) -> str:
    """The server's `error` and `message`, on one line and cut to a readable length."""
    said = [value for name in ("error", "message") if isinstance(value := data.get(name), str)]
    return readable(": ".join(dict.fromkeys(said)))


def readable(text: str) -> str:
    """Foreign text without control characters, at most 300 characters."""
    clean = "".join(letter if letter.isprintable() else " " for letter in text)
    return clean[:_TEXT_LENGTH_MAX]


def _object(reply: Reply) -> dict[str, Any]:
    try:
        data = reply.json()
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _word(data: Mapping[str, Any], name: str, length_max: int) -> str:
    value = data.get(name)
    return value[:length_max] if isinstance(value, str) and value.isprintable() else ""


def _reason(data: Mapping[str, Any]) -> str:
    codes = [data.get(name) for name in ("error", "reason", "code")]
    exact = next((code for code in codes if code in _REASONS), None)
    if isinstance(exact, str):
        return exact
    text = error_text(data).lower()
    return next((reason for word, reason in _REASON_WORDS if word in text), "invalid_key")


def _limit_kind(data: Mapping[str, Any]) -> str:
    return "concurrency" if "concurrency" in error_text(data).lower() else "rate_limit"


def _retry_after_ms(reply: Reply, data: Mapping[str, Any], now_ms: int) -> int | None:
    header = reply.headers.get("retry-after", "").strip()
    if header.isascii() and header.isdigit() and len(header) < 10:
        return int(header) * 1000
    until_ms = _date_ms(header)
    if until_ms is not None:
        return max(0, until_ms - (reply.server_ms or now_ms))
    for name, factor in (("retry_after_ms", 1), ("retry_after", 1000)):
        value = data.get(name)
        if isinstance(value, int | Decimal) and not isinstance(value, bool) and 0 <= value < 10**9:
            return int(value * factor)
    return None


def _date_ms(text: str) -> int | None:
    try:
        return int(parsedate_to_datetime(text).timestamp()) * 1000
    except (ValueError, OverflowError):
        return None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number")
