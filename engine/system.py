"""What only the machine we run on can tell: the time of day, and random names.

The kernel may know neither; the runtime takes them from here, tests from `engine.testing`.
"""

from __future__ import annotations

import asyncio
import secrets
import time


def new_run_id(now_ms: int) -> str:
    """`r` and 25 hex digits: 11 of time in milliseconds, 14 random."""
    return f"r{now_ms:011x}{secrets.token_hex(7)}"


class SystemClock:
    """The machine's own clock."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch, UTC."""
        return time.time_ns() // 1_000_000

    async def sleep(self, duration_ms: int) -> None:
        """Wait on the event loop."""
        await asyncio.sleep(max(duration_ms, 0) / 1000)
