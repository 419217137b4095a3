"""A clock that stands still until a test moves it."""

from __future__ import annotations

import asyncio

EPOCH_MS = 1_700_000_000_000


class ManualClock:
    """Time that moves by hand.  `sleep` moves nothing and lets other tasks run once."""

    def __init__(self, start_ms: int = EPOCH_MS) -> None:
        self._now_ms = start_ms

    def now_ms(self) -> int:
        """The time that was last set."""
        return self._now_ms

    def advance(self, duration_ms: int) -> None:
        """Move forwards (or, to test a bad clock, backwards)."""
        self._now_ms += duration_ms

    def advance_to(self, at_ms: int) -> None:
        """Move forwards to a moment; never backwards."""
        self._now_ms = max(self._now_ms, at_ms)

    async def sleep(self, duration_ms: int) -> None:
        """Give way to other tasks."""
        await asyncio.sleep(0)
