"""Foreign text that is kept in a context: bounded by what it takes when it is stored."""

from __future__ import annotations

import msgspec


def kept(text: str, bytes_max: int) -> tuple[str, bool]:
    """The beginning of a text that takes at most so many bytes as JSON; whether it was cut.

    Half of a surrogate pair, which no store may keep, becomes a question mark.
    """
    clean = text.encode("utf-8", "replace").decode()
    if _size(clean) <= bytes_max:
        return clean, False
    low, high = 0, min(len(clean), bytes_max)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _size(clean[:middle]) <= bytes_max else (low, middle - 1)
    return clean[:low], True


def _size(text: str) -> int:
    return len(msgspec.json.encode(text))
