"""How much a key may ask for: requests per minute and sandboxes at once, by tier.

==================  =======================  =========================================
limit               value                    source
==================  =======================  =========================================
requests / minute   7 x tier                 wire facts, section 1.8
sandboxes at once   ceil(tier / 4)           the same
==================  =======================  =========================================

The window slides: what counts is the number of admitted requests in the last 60 s; refused ones
do not count.  A slot is one vCPU of a live session, a running service or
a running one-off execution; what is frozen holds none.  Both checks run inside
the write transaction that records what they admit, so parallel requests cannot pass together.
"""

from __future__ import annotations

from machines.platform.replies import Problem
from persistence.database import Session

WINDOW_MS = 60_000
CONCURRENCY_RETRY_SECONDS = 5


def requests_per_minute(tier: int, per_tier: int = 7) -> int:
    """The rate of a tier."""
    return per_tier * tier


def concurrency(tier: int) -> int:
    """Sandboxes a tier may have at once."""
    return -(-tier // 4)


def admit(sql: Session, public_key: str, allowed: int, now_ms: int) -> None:
    """Record one request of a key, inside the caller's write transaction.

    Raises:
        Problem: 429 `rate_limit_exceeded`, with `Retry-After` in whole seconds.
    """
    # Times ahead of the clock by more than a window come from a clock that was set back.
    sql.run(
        "DELETE FROM api_request WHERE public_key = :key AND (at_ms <= :old OR at_ms > :future)",
        key=public_key,
        old=now_ms - WINDOW_MS,
        future=now_ms + WINDOW_MS,
    )
    used = sql.scalar("SELECT count(*) FROM api_request WHERE public_key = :key", key=public_key)
    if used >= allowed:
        # The request that must leave the window before one more fits.
        leaving_ms = sql.scalar(
            "SELECT at_ms FROM api_request WHERE public_key = :key ORDER BY at_ms "
            "LIMIT 1 OFFSET :earlier",
            key=public_key,
            earlier=used - allowed,
        )
        raise rate_exceeded(leaving_ms + WINDOW_MS - now_ms, allowed)
    sql.run(
        "INSERT INTO api_request (public_key, at_ms) VALUES (:key, :now)",
        key=public_key,
        now=now_ms,
    )


def rate_exceeded(wait_ms: int, allowed: int) -> Problem:
    """429 that says when the next request fits."""
    wait_seconds = max(1, -(-wait_ms // 1000))
    return Problem(
        429,
        "rate_limit_exceeded",
        f"{allowed} requests per minute are allowed for this key. "
        f"Try again in {wait_seconds} s, or buy a higher tier.",
        headers={"Retry-After": str(wait_seconds)},
        fields={"rate_limit": allowed, "retry_after": wait_seconds},
    )


def slots_in_use(sql: Session, public_key: str) -> int:
    """The slots that a key holds: one for each vCPU of what runs now; what is frozen holds none."""
    return int(sql.scalar(_SLOTS, key=public_key))


_SLOTS = """
    SELECT
      (SELECT coalesce(sum(vcpu), 0) FROM session
        WHERE public_key = :key AND state IN ('starting', 'running'))
    + (SELECT coalesce(sum(vcpu), 0) FROM service
        WHERE public_key = :key AND state IN ('starting', 'running', 'redeploying'))
    + (SELECT coalesce(sum(vcpu), 0) FROM execution
        WHERE public_key = :key AND state IN ('pending', 'running')
        AND session_id IS NULL AND service_id IS NULL)
"""


def require_slot(sql: Session, public_key: str, tier: int, vcpu: int = 1) -> None:
    """Refuse when too few slots are free; the caller writes in the same write transaction.

    Args:
        vcpu: slots that are needed: one for each vCPU.

    Raises:
        Problem: 429 `concurrency_limit_reached`.
    """
    used, allowed = slots_in_use(sql, public_key), concurrency(tier)
    if used + vcpu > allowed:
        needed = "" if vcpu == 1 else f" {vcpu} more are needed, one for each vCPU."
        raise Problem(
            429,
            "concurrency_limit_reached",
            f"{used} of {allowed} sandbox slots of this key are in use.{needed} "
            "Delete or freeze a session, wait for an execution to end, or buy a higher tier.",
            headers={"Retry-After": str(CONCURRENCY_RETRY_SECONDS)},
            fields={"active_executions": used, "concurrency_limit": allowed},
        )
