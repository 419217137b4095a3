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

A request is counted once (`Admission`): alone, before it is handled; or, where the handler's first
change of anything is one transaction, together with that, which saves a commit::

    [count]  handler: [reserve] ... [finish]        any endpoint
             handler: [count, reserve] ... [finish]  an endpoint that `counts`
             handler: refused before that  [count]   an endpoint that `counts`, all the same
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from machines.platform.replies import Problem
from persistence.database import Database, Session

WINDOW_MS = 60_000
CONCURRENCY_RETRY_SECONDS = 5


def requests_per_minute(tier: int, per_tier: int = 7) -> int:
    """The rate of a tier."""
    return per_tier * tier


def concurrency(tier: int) -> int:
    """Sandboxes a tier may have at once."""
    return -(-tier // 4)


class Admission:
    """One authentic request, counted exactly once; one that is refused for its rate, never.

    Args:
        allowed: requests per minute of its key.
        now_ms: when it came.
    """

    def __init__(self, database: Database, public_key: str, allowed: int, now_ms: int) -> None:
        self._database = database
        self._public_key = public_key
        self._allowed = allowed
        self._now_ms = now_ms
        self._settled = False

    def count(self) -> None:
        """Count it, unless that was done.

        Raises:
            Problem: 429 `rate_limit_exceeded`.
        """
        if not self._settled:
            with self.transaction():
                pass

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A write transaction that counts it, too, unless that was done.

        What the block raises undoes the counting with the rest; `count` is then called later.

        Raises:
            Problem: 429 `rate_limit_exceeded`, with nothing done.
        """
        with self._database.transaction() as sql:
            if not self._settled:
                self._admit(sql)
            yield sql
        self._settled = True

    def _admit(self, sql: Session) -> None:
        try:
            admit(sql, self._public_key, self._allowed, self._now_ms)
        except Problem:
            # A later try might fit, and would count what was answered with 429.
            self._settled = True
            raise


def admit(sql: Session, public_key: str, allowed: int, now_ms: int) -> None:
    """Record one request of a key, inside the caller's write transaction.

    Raises:
        Problem: 429 `rate_limit_exceeded`, with `Retry-After` in whole seconds.
    """
    # Two statements, each a range of the index; with OR it would be every row of the key.
    sql.run(
        "DELETE FROM api_request WHERE public_key = :key AND at_ms <= :old",
        key=public_key,
        old=now_ms - WINDOW_MS,
    )
    # Times ahead of the clock by more than a window come from a clock that was set back.
    sql.run(
        "DELETE FROM api_request WHERE public_key = :key AND at_ms > :future",
        key=public_key,
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


# `<>` says nothing new; it is what makes SQLite take the index of those that have not ended.
_SLOTS = """
    SELECT
      (SELECT coalesce(sum(vcpu), 0) FROM session
        WHERE public_key = :key AND state <> 'terminated' AND state IN ('starting', 'running'))
    + (SELECT coalesce(sum(vcpu), 0) FROM service
        WHERE public_key = :key AND state <> 'deleted'
        AND state IN ('starting', 'running', 'redeploying'))
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
