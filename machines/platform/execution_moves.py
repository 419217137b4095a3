"""Where the state of an execution changes, and its life cycle with it.

    pending -> running -> completed | timeout | failed | cancelled | lost      (lives/job.py)

Commands in sessions and services change their rows only: they hold no slot, so they have no life.
"""

from __future__ import annotations

from typing import Any

from engine.events import Event
from machines.platform import lives
from machines.platform.lives.job import Begin, Fail, Finish, JobLife, Lose, Withdraw
from persistence.database import Row
from persistence.database import Session as Sql


def move(sql: Sql, job_id: str, state: str, now_ms: int, **columns: Any) -> Row | None:
    """The one place where a state changes: the row; None when it had ended already."""
    sources = "('pending')" if state == "running" else "('pending', 'running')"
    if state != "running":
        columns["ended_ms"] = now_ms
    changes = ", ".join(f"{name} = :{name}" for name in ("state", *columns))
    row = sql.one(
        f"UPDATE execution SET {changes} WHERE job_id = :job AND state IN {sources} "  # noqa: S608 - our columns
        "RETURNING *",
        job=job_id,
        state=state,
        **columns,
    )
    if row is not None and row["session_id"] is None and row["service_id"] is None:
        _live(sql, job_id, state, columns, now_ms)
    return row


def forget_running(sql: Sql, job_id: str) -> None:
    """An execution that the sandbox refused before it began was never there."""
    sql.run("DELETE FROM execution WHERE job_id = :job AND state = 'running'", job=job_id)
    lives.forget(sql, JobLife, job_id)


def _live(sql: Sql, job_id: str, state: str, columns: dict[str, Any], now_ms: int) -> None:
    """The life cycle moves with the row, unless the row is older than these machines."""
    if lives.find(sql, JobLife, job_id) is None:
        return
    event: Event
    match state:
        case "running":
            event = Begin()
        case "completed" | "timeout":
            event = Finish(exit_code=columns["exit_code"], timed_out=state == "timeout")
        case "failed":
            event = Fail(reason=columns["error"])
        case "cancelled":
            event = Withdraw()
        case _:
            event = Lose()
    lives.move(sql, JobLife, job_id, event, now_ms)
