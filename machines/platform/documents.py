"""Rows as the API shows them, with every alias that some client reads.

The names are those of the wire facts, sections 1.7, 2.1, 3 and 5: a client that knows only one of
`id` and `session_id`, `status` and `state`, or five spellings of a duration, finds its own.
"""

from __future__ import annotations

from typing import Any

from machines.platform.replies import iso
from persistence.database import Row

IDLE_SECONDS = 900
MEMORY_MIB_PER_VCPU = 2048


def session_document(row: Row, now_ms: int) -> dict[str, Any]:
    """A session as the API shows it (wire facts, sections 1.7 and 5)."""
    idle_ms = row["last_active_ms"] + IDLE_SECONDS * 1000
    ends_ms = min(row["expires_ms"], idle_ms)
    live = row["state"] != "terminated"
    left_seconds = max(0, (ends_ms - now_ms) // 1000) if live else 0
    document: dict[str, Any] = {
        "id": row["session_id"],
        "session_id": row["session_id"],
        "container_name": row["session_id"].replace("unsb-session-", "unsb-vm-"),
        "status": row["state"],
        "state": row["state"],
        "shell": row["shell"],
        "network_mode": row["network_mode"],
        "vcpu": row["vcpu"],
        "memory_mb": row["vcpu"] * MEMORY_MIB_PER_VCPU,
        "remaining_ttl": left_seconds,
        "created_at": iso(row["created_ms"]),
        "expires_at": iso(row["expires_ms"]),
        "last_activity": iso(row["last_active_ms"]),
    }
    if row["reason"]:
        document["reason"] = row["reason"]
    return document


def execution_document(row: Row) -> dict[str, Any]:
    """An execution as the API shows it, with every alias that a client reads (section 2.1)."""
    shown: dict[str, Any] = {
        "job_id": row["job_id"],
        "status": {"lost": "failed"}.get(row["state"], row["state"]),
        "language": row["language"],
        "network_mode": row["network_mode"],
        "created_at": iso(row["started_ms"]),
        "started_at": iso(row["started_ms"]),
    }
    if row["session_id"]:
        shown["session_id"] = row["session_id"]
    if row["ended_ms"] is not None:
        shown["completed_at"] = iso(row["ended_ms"])
    if row["state"] in ("completed", "timeout"):
        shown |= _outcome(row)
    elif row["state"] != "running":
        shown |= {"success": False, "error": row["error"] or "the result was lost"}
    return shown


def _outcome(row: Row) -> dict[str, Any]:
    milliseconds = row["duration_ms"]
    shown = {
        "success": row["exit_code"] == 0 and row["state"] == "completed",
        "stdout": row["stdout"],
        "stderr": row["stderr"],
        "exit_code": row["exit_code"],
        "total_time_ms": milliseconds,
        "execution_time_ms": milliseconds,
        "execution_time": milliseconds,
        "duration_ms": milliseconds,
        "runtime_ms": milliseconds,
        "execution_mode": "on_demand",
        "artifacts": [],
        "truncated": bool(row["truncated"]),
        "timed_out": row["state"] == "timeout",
    }
    if row["oom"]:
        shown["error"] = "the sandbox's memory limit ended a process"
    if row["state"] == "timeout":
        shown["error"] = "stopped at its time limit"
    return shown
