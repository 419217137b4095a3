"""The rows of executions: what is asked of the table, apart from changes of state."""

from __future__ import annotations

from typing import Any

from machines.platform import lives, refusals
from machines.platform.limits import require_slot
from machines.platform.lives.job import Begin, JobLife, JobTerms
from machines.platform.orders import Caller, CodeOrder
from machines.platform.replies import Problem
from persistence.database import Row
from persistence.database import Session as Sql

KEPT_BYTES_MAX = 256 * 1024 * 1024
KEPT_MS = 7 * 86_400_000
LIVE_STATES = ("pending", "running")
"""The states of an execution that has not ended."""

_COLUMNS = (
    "job_id, public_key, session_id, service_id, language, network_mode, vcpu, detected, state, "
    "started_ms, idempotency_key, digest"
)
_OUTPUT = ("stdout", "stderr", "duration_ms", "truncated", "artifacts", "kept_bytes")


def one_off(order: CodeOrder) -> dict[str, Any]:
    """The columns of an execution with a sandbox of its own."""
    return draft(
        language=order.language.name,
        network_mode=order.network_mode,
        vcpu=order.vcpu,
        detected=int(order.detected),
    )


def draft(
    *,
    language: str,
    network_mode: str,
    session_id: str | None = None,
    service_id: str | None = None,
    vcpu: int = 1,
    detected: int = 0,
) -> dict[str, Any]:
    """The columns that say what is run, and where."""
    return {
        "language": language,
        "network_mode": network_mode,
        "session_id": session_id,
        "service_id": service_id,
        "vcpu": vcpu,
        "detected": detected,
    }


def insert(
    sql: Sql, caller: Caller, job_id: str, state: str, columns: dict[str, Any], now_ms: int
) -> None:
    """A new execution, `pending` or `running`."""
    sql.run(
        f"INSERT INTO execution ({_COLUMNS}) VALUES (:job, :key, :session_id, :service_id, "  # noqa: S608 - our columns
        ":language, :network_mode, :vcpu, :detected, :state, :now, :once, :digest)",
        job=job_id,
        key=caller.public_key,
        state=state,
        now=now_ms,
        once=caller.idempotency_key,
        digest=caller.digest,
        **columns,
    )
    if columns["session_id"] is None and columns["service_id"] is None:
        lives.begin(sql, JobLife, job_id, JobTerms(vcpu=columns["vcpu"]), now_ms)
        if state == "running":
            lives.move(sql, JobLife, job_id, Begin(), now_ms)


def repeated(sql: Sql, caller: Caller) -> Row | None:
    """The execution that this idempotency key has already.

    Raises:
        Problem: 409, the key was used for another request.
    """
    return refusals.repeated(sql, caller, "execution")


def claim_slots(sql: Sql, caller: Caller, order: CodeOrder) -> None:
    """Refuse when the key has too few slots free: one for each vCPU.

    Raises:
        Problem: 429.
    """
    require_slot(sql, caller.public_key, caller.tier, order.vcpu)


def select(sql: Sql, job_id: str) -> Row | None:
    """The row of an execution."""
    return sql.one("SELECT * FROM execution WHERE job_id = :job", job=job_id)


def require(row: Row | None, job_id: str) -> Row:
    """A row that must be there.

    Raises:
        Problem: 404, it was forgotten meanwhile.
    """
    if row is None:
        raise Problem(404, "not_found", f"job {job_id!r}: this key has none of that id.")
    return row


def live(sql: Sql) -> list[Row]:
    """Every execution that has not ended, of every key."""
    return sql.all("SELECT * FROM execution WHERE state IN ('pending', 'running')")


def live_of(sql: Sql, public_key: str) -> list[Row]:
    """A key's executions that have not ended, oldest first."""
    return sql.all(
        "SELECT * FROM execution WHERE public_key = :key AND state IN ('pending', 'running') "
        "ORDER BY started_ms, job_id",
        key=public_key,
    )


def add_output(sql: Sql, job_id: str, columns: dict[str, Any]) -> None:
    """What a cancelled program had printed and written until it was ended."""
    sql.run(
        "UPDATE execution SET stdout = :stdout, stderr = :stderr, duration_ms = :duration_ms, "
        "truncated = :truncated, artifacts = :artifacts, kept_bytes = :kept_bytes "
        "WHERE job_id = :job AND state = 'cancelled' AND stdout IS NULL",
        job=job_id,
        **{name: columns[name] for name in _OUTPUT},
    )


def forget_old(sql: Sql, now_ms: int) -> int:
    """Remove the results of executions that began more than seven days ago; how many."""
    forgotten = sql.all(
        "DELETE FROM execution WHERE state NOT IN ('pending', 'running') AND started_ms < :old "
        "RETURNING job_id",
        old=now_ms - KEPT_MS,
    )
    for row in forgotten:
        lives.forget(sql, JobLife, row["job_id"])
    return len(forgotten)


def trim(sql: Sql, most_bytes: int = KEPT_BYTES_MAX) -> int:
    """Forget the oldest outputs of keys that keep too many bytes; how many.

    The rows stay: what ran under an idempotency key must not run again.
    """
    full = sql.all(
        "SELECT public_key FROM execution GROUP BY public_key HAVING sum(kept_bytes) > :most",
        most=most_bytes,
    )
    return sum(_trim(sql, row["public_key"], most_bytes) for row in full)


def _trim(sql: Sql, public_key: str, most_bytes: int) -> int:
    return sql.run(
        """
        UPDATE execution SET stdout = '', stderr = '', artifacts = NULL, truncated = 1,
            kept_bytes = 0
        WHERE job_id IN (SELECT job_id FROM (
            SELECT job_id, kept_bytes, sum(kept_bytes) OVER (
                ORDER BY started_ms DESC, job_id ROWS UNBOUNDED PRECEDING) AS together
            FROM execution WHERE public_key = :key AND kept_bytes > 0)
          WHERE together > :most)
        """,
        key=public_key,
        most=most_bytes,
    )
