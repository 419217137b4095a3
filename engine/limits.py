"""Sizes that are refused before anything is written, each with the field's name in the error."""

from __future__ import annotations

from engine.errors import TooLarge, UsageError

CONTEXT_BYTES_MAX = 256 * 1024
PAYLOAD_BYTES_MAX = 256 * 1024
KEY_CHARACTERS_MAX = 200
CHILD_DEPTH_MAX = 64


def check_size(what: str, body: bytes, limit_bytes: int) -> None:
    """Refuse an encoded body above its limit.

    Raises:
        TooLarge: names what it is, its size and the limit.
    """
    if len(body) > limit_bytes:
        raise TooLarge(
            f"{what}: {len(body)} bytes encoded, the limit is {limit_bytes}. "
            "Keep large data outside and store a reference to it."
        )


RESERVED = ("$", "child:", "parent:")
"""Keys that begin so are the engine's own messages between runs."""


def check_key(what: str, key: str) -> None:
    """Refuse an empty, overlong or reserved idempotency key."""
    if key.startswith(RESERVED):
        raise UsageError(
            f"{what}: {key[:40]!r} begins with one of {', '.join(RESERVED)}, which the engine "
            "keeps for its own. Use another key."
        )
    if not key or len(key) > KEY_CHARACTERS_MAX:
        raise TooLarge(
            f"{what}: expected 1 to {KEY_CHARACTERS_MAX} characters, got {len(key)} ({key[:40]!r})."
        )
