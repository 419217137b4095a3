"""Time is an argument.  The kernel takes `now_ms`; only a `Clock` knows what time it is.

Durations are written with the helpers below and are integers of milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable


def seconds(count: float) -> int:
    """A duration in milliseconds."""
    return round(count * 1000)


def minutes(count: float) -> int:
    """A duration in milliseconds."""
    return seconds(count * 60)


def hours(count: float) -> int:
    """A duration in milliseconds."""
    return minutes(count * 60)


class Clock(Protocol):
    """What time it is, and a way to wait."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch, UTC."""

    async def sleep(self, duration_ms: int) -> None:
        """Wait; may return early, never matters for correctness."""


@runtime_checkable
class Follower(Protocol):
    """A clock that can be told the time of a database that several hosts share."""

    def follow(self, ask: Callable[[], int | None]) -> None:
        """Go by what `ask` answers (milliseconds since the epoch) from now on; None: as before."""
