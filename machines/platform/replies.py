"""What the platform answers: compact JSON, and refusals that say what to do.

Section 1.7 of the wire facts: no blank after `:` or `,` (one client reads JSON by substring),
`created_at` an ISO-8601 string, unknown extra fields ignored.  A refusal is an object with
`error` (a code) and `message` (a sentence); readers look at `error` first.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.responses import Response

from engine.errors import TurtlesError

MAXIMUM_DEPTH = 32
# An exact decimal is a number on the wire, with the places it has.
_JSON = msgspec.json.Encoder(decimal_format="number")


class Problem(TurtlesError):
    """A request that is refused.

    Args:
        status: the HTTP status.
        error: the code that programs read, such as `invalid_signature`.
        message: for people: what was seen, what was expected, what to do.
        headers: extra headers, such as `Retry-After`.
        fields: extra members of the body.
    """

    def __init__(
        self,
        status: int,
        error: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.message = message
        self.headers = dict(headers or {})
        self.fields = dict(fields or {})

    def response(self) -> Response:
        """The refusal as an HTTP response."""
        body = {"error": self.error, "message": self.message, **self.fields}
        return reply(body, self.status, self.headers)


def reply(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A compact JSON response."""
    return Response(
        _JSON.encode(body),
        status_code=status,
        headers=dict(headers or {}),
        media_type="application/json",
    )


def iso(at_ms: int) -> str:
    """Milliseconds since 1970 as ISO-8601 in UTC, to the second."""
    moment = datetime.fromtimestamp(at_ms // 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a request body; an empty body counts as `{}`.

    Raises:
        Problem: 400, not JSON, not an object, or nested deeper than 32 levels.
    """
    if not body.strip():
        return {}
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(
            400, "invalid_json", f"body: not JSON ({error}). Send one JSON object."
        ) from error
    if not isinstance(value, dict):
        raise Problem(
            400,
            "invalid_json",
            f"body: got a JSON {_kind(value)}, expected an object such as {{}}.",
        )
    _refuse_deep(value)
    return value


def _refuse_deep(value: Any) -> None:
    level = [value]
    for _ in range(MAXIMUM_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        if not inner:
            return
        level = inner
    raise Problem(400, "invalid_json", f"body: nested deeper than {MAXIMUM_DEPTH} levels.")


def bad_field(name: str, value: Any, expected: str) -> Problem:
    """400 that names the field, the value seen and what was expected."""
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return Problem(
        400,
        "invalid_request",
        f"field {name!r}: got {shown}, expected {expected}.",
        fields={"field": name},
    )


def text_field(
    body: Mapping[str, Any], name: str, default: str | None = None, *, limit: int = 1_000_000
) -> str:
    """A non-empty string member, or the default when absent or null."""
    value = body.get(name)
    if value is None:
        value = default
    if not isinstance(value, str) or not value or len(value) > limit:
        raise bad_field(name, value, f"a non-empty string of at most {limit} characters")
    return value


def int_field(body: Mapping[str, Any], name: str, default: int, *, least: int, most: int) -> int:
    """An integer member within bounds, or the default when absent or null."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise bad_field(name, value, f"an integer from {least} to {most}")
    return value


def _kind(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
