"""The words a person reads."""

from __future__ import annotations

from machines.platform.sandbox.errors import SandboxGone, SandboxUnavailable


def test_a_refusal_names_reason_rule_and_remedy() -> None:
    assert str(SandboxUnavailable("it failed.", "do this.")) == (
        "it failed. Untrusted code will not be run without isolation. Fix: do this."
    )


def test_a_lost_sandbox_is_named() -> None:
    gone = SandboxGone("abc", "it ended")
    assert str(gone) == "sandbox abc is gone: it ended. Create a new one."
    assert gone.sandbox_id == "abc"
