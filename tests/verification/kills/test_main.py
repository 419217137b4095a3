"""The command: what it prints, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import structlog

from tests.verification.kills.__main__ import main

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def command(monkeypatch, capsys):
    """The command in this process, which is faster: its exit code and what it prints."""
    before = structlog.get_config()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["kills", *arguments])
        return main(), capsys.readouterr().out

    yield run
    structlog.configure(**before)


HERE = "tests.verification.kills.__main__"


def test_the_figures_as_json(command, monkeypatch):
    monkeypatch.setattr(f"{HERE}.CONTROLS", ("intent after effect",))
    code, printed = command(
        "--kills", "2", "--memory", "30", "--seed", "3", "--jobs", "1", "--json"
    )
    assert code == 0, printed
    said = json.loads(printed)
    assert said["seed"] == 3
    kills, memory = said["campaigns"]
    assert (kills["kind"], memory["kind"]) == ("SIGKILLs", "crashes in memory")
    assert kills["deaths"] >= 2
    assert memory["deaths"] >= 30
    assert kills["violations"] == memory["violations"] == 0


def test_a_violation_is_told_so_that_it_can_be_had_again(command):
    planted = ("--defect", "no dedupe")
    code, printed = command("--memory", "5", "--seed", "3", *planted)
    assert code == 1, printed
    assert "was accepted again under its key" in printed
    (token, *_) = [line.split()[-1] for line in printed.splitlines() if "again: " in line]
    code, printed = command("--memory", "1", "--only", token, *planted)
    assert code == 1, printed
    assert f"sequence {token}:" in printed
    assert "was accepted again under its key" in printed


def test_a_control_that_does_not_fail_is_told(command, monkeypatch):
    monkeypatch.setattr(f"{HERE}.CONTROLS", ("no dedupe",))
    monkeypatch.setattr(f"{HERE}.CONTROL_SEQUENCES", 1)
    monkeypatch.setattr(f"{HERE}.planted", lambda name: nullcontext())
    code, printed = command("--memory", "5", "--seed", "3")
    assert code == 3
    assert "'no dedupe' was not found in 1 sequences" in printed


def test_wrong_options_are_refused(command, capsys):
    for arguments, said in (
        (("--kills", "0"), "expected 1 or more, got 0"),
        (("--only", "7"), "expected SEED:NUMBER"),
    ):
        with pytest.raises(SystemExit) as ended:
            command(*arguments)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_it_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "tests.verification.kills", "--memory", "1", "--only", "3:50"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=28,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "sequence 3:50: nothing is wrong\n  process 1 died at boundary 50,"
    )
