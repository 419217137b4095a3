"""What a backend refuses becomes an answer that says what to do."""

from __future__ import annotations

import pytest

from machines.platform.refusals import sandbox_refusals
from machines.platform.replies import Problem
from machines.platform.sandbox.errors import (
    FreezeFailed,
    SandboxError,
    SandboxGone,
    SandboxLimit,
    SandboxUnavailable,
)
from machines.platform.toolbox import ToolboxUnavailable


@pytest.mark.parametrize(
    ("error", "status", "code", "says"),
    [
        (
            SandboxUnavailable("nothing", "do that"),
            503,
            "sandbox_unavailable",
            "Fix: do that",
        ),
        (
            ToolboxUnavailable("no Python", "install one"),
            503,
            "toolbox_unavailable",
            "no toolbox can be shown here: no Python. Fix: install one.",
        ),
        (SandboxLimit("pids 1: expected 16"), 400, "sandbox_limit", "expected 16"),
        (FreezeFailed("one", "it runs"), 503, "freeze_failed", "It goes on as before; try again"),
    ],
)
def test_each_refusal_has_its_answer(
    error: SandboxError, status: int, code: str, says: str
) -> None:
    with pytest.raises(Problem) as refused, sandbox_refusals():
        raise error
    assert (refused.value.status, refused.value.error) == (status, code)
    assert says in str(refused.value)
    assert refused.value.__cause__ is error


def test_the_end_of_a_sandbox_is_for_its_owner_to_tell() -> None:
    with pytest.raises(SandboxGone), sandbox_refusals():
        raise SandboxGone("one", "it was destroyed")
