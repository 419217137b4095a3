"""Rows as the API shows them, with every alias that some client reads.

The names are those of the wire facts, sections 1.7, 2.1, 3 and 5: a client that knows only one of
`id` and `session_id`, `status` and `state`, or five spellings of a duration, finds its own.
"""

from __future__ import annotations

from typing import Any

from machines.platform import transfers
from machines.platform.replies import iso
from persistence.database import Row

IDLE_SECONDS = 900
MEMORY_MIB_PER_VCPU = 2048
_SESSION = "unsb-session-"
_CONTAINER = "unsb-vm-"


def container_name_of(session_id: str) -> str:
    """What the wire calls the container of a session."""
    return session_id.replace(_SESSION, _CONTAINER, 1)


def session_id_of(name: str) -> str:
    """The id of the session that a client names by its id or its container's name."""
    return name.replace(_CONTAINER, _SESSION, 1) if name.startswith(_CONTAINER) else name


def session_document(row: Row, now_ms: int, base_url: str = "") -> dict[str, Any]:
    """A session as the API shows it (wire facts, sections 1.7 and 5).

    `base_url` is how the caller names this platform; with it the address of the session's
    terminal is shown: `websocket_url`, and `domain`, the host (and port) in it.
    """
    session_id = row["session_id"]
    vcpu = row["vcpu"]
    document: dict[str, Any] = {
        "id": session_id,
        "session_id": session_id,
        "container_name": container_name_of(session_id),
        "status": row["state"],
        "state": row["state"],
        "shell": row["shell"],
        "network_mode": row["network_mode"],
        "vcpu": vcpu,
        "base_vcpu": row["base_vcpu"],
        "boosted": vcpu > row["base_vcpu"],
        "memory_mb": vcpu * MEMORY_MIB_PER_VCPU,
        "locked": bool(row["locked"]),
        "audit": bool(row["audited"]),
        "toolbox": bool(row["toolbox"]),
        "remaining_ttl": _seconds_left(row, now_ms),
        "created_at": iso(row["created_ms"]),
        "expires_at": iso(row["expires_ms"]),
        "last_activity": iso(row["last_active_ms"]),
    }
    for name, column in (("multiplexer", "multiplexer"), ("image", "image_id")):
        if row[column]:
            document[name] = row[column]
    if row["reason"]:
        document["reason"] = row["reason"]
    if base_url:
        scheme, _, host = base_url.partition("://")
        document["websocket_url"] = (
            f"{'wss' if scheme == 'https' else 'ws'}://{host}/sessions/{session_id}/shell"
        )
        document["domain"] = host.partition("/")[0]
    return document


def _seconds_left(row: Row, now_ms: int) -> int:
    """Until its time is over: the time to live, or 15 idle minutes (which a frozen one lacks)."""
    if row["state"] == "terminated":
        return 0
    ends_ms = row["expires_ms"]
    if row["state"] != "frozen":
        ends_ms = min(ends_ms, row["last_active_ms"] + IDLE_SECONDS * 1000)
    return int(max(0, (ends_ms - now_ms) // 1000))


def execution_document(row: Row) -> dict[str, Any]:
    """An execution as the API shows it, with every alias that a client reads (section 2.1)."""
    shown: dict[str, Any] = {
        "id": row["job_id"],
        "job_id": row["job_id"],
        "status": _shown_state(row),
        "state": _shown_state(row),
        "language": row["language"],
        "network_mode": row["network_mode"],
        "vcpu": row["vcpu"],
        "created_at": iso(row["started_ms"]),
        "started_at": iso(row["started_ms"]),
    }
    if row["detected"]:
        shown["detected_language"] = row["language"]
    for name in ("session_id", "service_id"):
        if row[name]:
            shown[name] = row[name]
    if row["ended_ms"] is not None:
        shown["completed_at"] = iso(row["ended_ms"])
    if row["state"] not in ("pending", "running"):
        shown |= _outcome(row)
    return shown


def _shown_state(row: Row) -> str:
    return "failed" if row["state"] == "lost" else str(row["state"])


def _outcome(row: Row) -> dict[str, Any]:
    """What came of it; a job that was cancelled or lost has what could be fetched."""
    milliseconds = row["duration_ms"] or 0
    shown = {
        "success": row["exit_code"] == 0 and row["state"] == "completed",
        "stdout": row["stdout"] or "",
        "stderr": row["stderr"] or "",
        "output": row["stdout"] or "",
        "total_time_ms": milliseconds,
        "execution_time_ms": milliseconds,
        "execution_time": milliseconds,
        "duration_ms": milliseconds,
        "runtime_ms": milliseconds,
        "execution_mode": "on_demand",
        "truncated": bool(row["truncated"]),
        "timed_out": row["state"] == "timeout",
        **_yield_document(row["artifacts"]),
    }
    if row["exit_code"] is not None:
        shown["exit_code"] = row["exit_code"]
    if error := _error(row):
        shown["error"] = error
    return shown


def _yield_document(stored: str | None) -> dict[str, Any]:
    yielded = transfers.unpacked(stored)
    document: dict[str, Any] = {"artifacts": [transfers.shown(each) for each in yielded.artifacts]}
    if yielded.omitted:
        document["artifacts_omitted"] = yielded.omitted
        document["artifacts_note"] = (
            f"{yielded.omitted} more files were left out: at most {transfers.ARTIFACTS_MAX} files "
            f"with {transfers.ARTIFACT_BYTES_MAX} bytes in all are kept"
        )
    for name in ("artifact", "wasm_artifact"):
        if (one := getattr(yielded, name)) is not None:
            document[name] = transfers.shown(one)
    return document


def _error(row: Row) -> str | None:
    if row["state"] == "timeout":
        return "stopped at its time limit"
    if row["oom"]:
        return "the sandbox's memory limit ended a process"
    if row["state"] == "completed":
        return None
    return str(row["error"] or "the result was lost")
