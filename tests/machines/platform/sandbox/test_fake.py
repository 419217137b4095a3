"""The fake says when it does not know, and never pretends."""

from __future__ import annotations

import pytest

from machines.platform.sandbox.backend import Command, Spec
from machines.platform.sandbox.errors import SandboxUnavailable
from machines.platform.sandbox.fake import FakeBackend


@pytest.mark.parametrize(
    "argv",
    [
        ("python3", "-c", "import os"),
        ("python3", "-c", "print(open('/etc/passwd'))"),
        ("python3", "-c", "print(1, end='')"),
        ("python3", "-c", "x = __import__('os')"),
        ("python3", "absent.py"),
        ("sh", "-c", "rm -rf /"),
        ("sh", "-c", "echo a > b"),
        ("sh", "-c", "echo 'unclosed"),
        ("bash",),
    ],
)
def test_what_it_does_not_know_is_exit_code_2(argv: tuple[str, ...]) -> None:
    backend = FakeBackend()
    result = backend.execute(backend.create(Spec("one")), Command(argv))
    assert result.exit_code == 2
    assert b"does not execute" in result.stderr
    assert result.stdout == b""


def test_what_came_before_the_unknown_line_is_kept() -> None:
    backend = FakeBackend()
    result = backend.cell(backend.create(Spec("one")), "python3", "print(1)\nimport os\nprint(2)")
    assert (result.exit_code, result.stdout) == (2, b"1\n")


def test_a_machine_without_isolation_can_be_played() -> None:
    refusal = SandboxUnavailable("no namespaces", "get some")
    backend = FakeBackend(refusal)
    probe = backend.probe()
    assert (probe.ok, probe.reason, probe.fix) == (False, "no namespaces", "get some")
    with pytest.raises(SandboxUnavailable, match="will not be run without isolation"):
        backend.create(Spec("one"))
