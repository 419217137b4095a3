"""What the API shows of its rows: the names that clients read (wire facts, section 1.7)."""

from __future__ import annotations

from typing import Any

import pytest

from machines.platform.documents import (
    container_name_of,
    execution_document,
    session_document,
    session_id_of,
)
from machines.platform.transfers import Artifact, Yield

SESSION: dict[str, Any] = {
    "session_id": "unsb-session-1",
    "shell": "bash",
    "network_mode": "zerotrust",
    "vcpu": 2,
    "base_vcpu": 1,
    "locked": 0,
    "audited": 0,
    "toolbox": 0,
    "multiplexer": None,
    "image_id": None,
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
    "service_id": None,
    "vcpu": 1,
    "artifacts": None,
    "detected": 0,
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


def test_a_frozen_session_has_its_time_to_live_and_an_ended_one_nothing() -> None:
    frozen = {**SESSION, "state": "frozen"}
    assert session_document(frozen, 1_000_000)["remaining_ttl"] == 2600
    assert session_document({**SESSION, "state": "terminated"}, 0)["remaining_ttl"] == 0


def test_a_session_says_what_it_was_asked_for_and_what_it_has() -> None:
    shown = session_document(SESSION, 0)
    assert (shown["vcpu"], shown["base_vcpu"], shown["boosted"]) == (2, 1, True)
    assert (shown["locked"], shown["audit"]) == (False, False)
    assert not {"multiplexer", "image", "websocket_url", "domain"} & set(shown)
    changed = {"base_vcpu": 2, "locked": 1, "audited": 1, "multiplexer": "tmux", "image_id": "i"}
    shown = session_document({**SESSION, **changed}, 0)
    assert (shown["boosted"], shown["locked"], shown["audit"]) == (False, True, True)
    assert (shown["multiplexer"], shown["image"]) == ("tmux", "i")


@pytest.mark.parametrize(
    ("base_url", "websocket_url", "domain"),
    [
        ("http://127.0.0.1:8000", "ws://127.0.0.1:8000", "127.0.0.1:8000"),
        ("https://api.unsandbox.com", "wss://api.unsandbox.com", "api.unsandbox.com"),
    ],
)
def test_a_session_says_where_its_terminal_is(
    base_url: str, websocket_url: str, domain: str
) -> None:
    shown = session_document(SESSION, 0, base_url)
    assert shown["websocket_url"] == f"{websocket_url}/sessions/unsb-session-1/shell"
    assert shown["domain"] == domain


def test_a_session_and_its_container_are_one_thing() -> None:
    assert container_name_of("unsb-session-1") == "unsb-vm-1"
    assert session_id_of("unsb-vm-1") == session_id_of("unsb-session-1") == "unsb-session-1"
    assert session_id_of("other") == "other"


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


@pytest.mark.parametrize("state", ["cancelled", "lost", "failed"])
def test_what_has_no_result_still_has_its_fields(state: str) -> None:
    shown = execution_document(
        {**EXECUTION, "state": state, "stdout": None, "stderr": None, "exit_code": None}
        | {"duration_ms": None}
    )
    assert (shown["stdout"], shown["stderr"], shown["artifacts"]) == ("", "", [])
    assert "exit_code" not in shown
    assert None not in shown.values()


def test_artifacts_have_every_name_that_is_read() -> None:
    one = Artifact("a.txt", 1, "MQ==")
    stored = Yield(artifacts=(one,), omitted=2, artifact=one).packed()
    shown = execution_document({**EXECUTION, "artifacts": stored})
    expected = {"type": "base64", "filename": "a.txt", "size": 1}
    assert shown["artifacts"] == [expected | {"data": "MQ==", "content_base64": "MQ=="}]
    assert shown["artifact"] == shown["artifacts"][0]
    assert shown["artifacts_omitted"] == 2
    assert "2 more files" in shown["artifacts_note"]
    assert "wasm_artifact" not in shown


def test_a_detected_language_is_said() -> None:
    assert "detected_language" not in execution_document(EXECUTION)
    assert execution_document({**EXECUTION, "detected": 1})["detected_language"] == "python"
