"""The command: what it prints last, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.verification.power_loss", "--seed", "5", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=110,
        check=False,
    )


def test_it_ends_with_the_figures():
    done = command("--losses", "40", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "seed 5, 40 power losses, 2 processes"
    assert lines[1].startswith("control: NORMAL lost commits in ")
    assert lines[-1] == "power loss: 40 simulated, 0 acknowledged commits lost"


def test_what_was_lost_is_named_and_kept(tmp_path):
    done = command(
        "--losses", "60", "--jobs", "1", "--synchronous", "NORMAL", "--keep", str(tmp_path)
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "acknowledged, and lost: " in done.stdout
    assert list(tmp_path.glob("*/runs.db"))


def test_a_budget_of_nothing_is_refused():
    done = command("--losses", "0")
    assert done.returncode == 2
    assert "expected 1 or more, got 0" in done.stderr
