"""When to try again: exponential backoff with a cap, and jitter that is derived, not drawn.

    delay(n) = min(first * factor**(n-1), max) * (1 - jitter * u),   u = hash(seed, n) in [0, 1)

The jitter depends on the seed (the effect's idempotency key) and the attempt alone, so a decision
made twice is made alike.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retry:
    """A retry policy.

    Args:
        attempts: how often the effect may be tried at one step in all.
        first_ms: delay before the second attempt.
        factor: growth of the delay from one attempt to the next.
        max_ms: upper bound of a delay.
        jitter: share of the delay that may be taken off, 0 to 1.
    """

    attempts: int = 10
    first_ms: int = 200
    factor: float = 2.0
    max_ms: int = 60_000
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_ms < 0 or self.max_ms < 0 or self.factor < 1:
            raise ValueError(f"retry policy out of range: {self!r}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"retry policy: jitter must be 0 to 1, got {self.jitter}")

    def delay_ms(self, attempt: int, seed: str) -> int:
        """The wait after attempt number `attempt` (1, 2, ...) failed."""
        exponent = min(attempt - 1, 62)
        full = min(self.first_ms * self.factor**exponent, float(self.max_ms))
        digest = hashlib.sha256(f"{seed}:{attempt}".encode()).digest()
        share = int.from_bytes(digest[:4], "big") / 2**32
        return round(full * (1 - self.jitter * share))

    def exhausted(self, attempt: int) -> bool:
        """Whether no attempt is left after number `attempt`."""
        return attempt >= self.attempts


FOREVER = Retry(attempts=1_000_000_000)
"""Never give up; for calls that must eventually be decided (a broadcast payment)."""
