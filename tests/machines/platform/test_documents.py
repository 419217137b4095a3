"""What the API shows of its rows: the names that clients read (wire facts, section 1.7)."""

from __future__ import annotations

from typing import Any

import pytest

from machines.platform.documents import execution_document, session_document

SESSION: dict[str, Any] = {
    "session_id": "unsb-session-1",
    "shell": "bash",
    "network_mode": "zerotrust",
    "vcpu": 2,
    "state": "running",
    "reason": None,
    "created_ms": 0,
    "expires_ms": 3_600_000,
    "last_active_ms": 0,
}
EXECUTION: dict[str, Any] = {
    "job_id": "j",
    "session_id": None,
    "language": "python",
    "network_mode": "zerotrust",
    "state": "completed",
    "started_ms": 0,
    "ended_ms": 1000,
    "exit_code": 0,
    "stdout": "out",
    "stderr": "",
    "duration_ms": 7,
    "truncated": 0,
    "oom": 0,
    "error": None,
}


@pytest.mark.parametrize(
    ("last_active_ms", "now_ms", "remaining"),
    [(0, 0, 900), (0, 899_999, 0), (3_000_000, 3_000_000, 600), (0, 9_999_999, 0)],
)
def test_remaining_time_is_the_nearer_of_the_two_ends(
    last_active_ms: int, now_ms: int, remaining: int
) -> None:
    shown = session_document({**SESSION, "last_active_ms": last_active_ms}, now_ms)
    assert shown["remaining_ttl"] == remaining


def test_a_session_has_both_spellings() -> None:
    shown = session_document(SESSION, 0)
    assert shown["id"] == shown["session_id"] == "unsb-session-1"
    assert shown["status"] == shown["state"] == "running"
    assert shown["memory_mb"] == 4096
    assert "reason" not in shown
    assert session_document({**SESSION, "reason": "deleted"}, 0)["reason"] == "deleted"


def test_no_value_is_null_for_strict_readers() -> None:
    running = {**EXECUTION, "state": "running", "ended_ms": None, "exit_code": None}
    for shown in (
        session_document(SESSION, 0),
        execution_document(EXECUTION),
        execution_document(running),
    ):
        assert None not in shown.values()


@pytest.mark.parametrize(
    ("state", "status", "success"),
    [("completed", "completed", True), ("timeout", "timeout", False), ("lost", "failed", False)],
)
def test_how_an_execution_ended(state: str, status: str, success: bool) -> None:
    shown = execution_document({**EXECUTION, "state": state})
    assert (shown["status"], shown["success"]) == (status, success)
    assert ("error" in shown) == (state != "completed")


def test_a_memory_kill_is_said() -> None:
    shown = execution_document({**EXECUTION, "oom": 1, "exit_code": 137})
    assert shown["error"] == "the sandbox's memory limit ended a process"
    assert shown["success"] is False
