"""The command: what it prints, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DECISIONS = "tests/machines/decisions/test_authentication.py"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.verification.mutants", "--machine", "Authentication",
         "--explore", "0", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=110,
        check=False,
    )  # fmt: skip


def test_a_machine_whose_tests_see_everything():
    done = command("--tests", DECISIONS, "--sample", "15", "--seed", "7", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["judged"] == 15
    assert told["killed"] + told["accepted"] == 15
    assert {one["by"] for one in told["machines"][0]["fates"]} >= {"tests"}


def test_a_test_that_sees_little_leaves_survivors(tmp_path):
    blind = tmp_path / "test_blind.py"
    blind.write_text("def test_nothing():\n    assert True\n")
    done = command("--tests", str(blind), "--sample", "15")
    assert done.returncode == 1, done.stdout
    assert "machines/flows/f04_authentication.py:" in done.stdout
    assert "no test looks where" in done.stdout
    assert " 0 accepted, " in done.stdout.splitlines()[-1]


def test_tests_that_fail_by_themselves_prove_nothing(tmp_path):
    broken = tmp_path / "test_broken.py"
    broken.write_text("def test_broken():\n    raise AssertionError('as it is')\n")
    done = command("--tests", str(broken), "--sample", "1")
    assert done.returncode == 3
    assert "test_broken: AssertionError: as it is" in done.stderr


def test_tests_that_cannot_be_read_prove_nothing(tmp_path):
    broken = tmp_path / "test_unreadable.py"
    broken.write_text("import nothing_of_this_name\n")
    done = command("--tests", str(broken), "--sample", "1")
    assert done.returncode == 3
    assert "nothing_of_this_name" in done.stderr


def test_a_sample_of_nothing_is_refused():
    done = command("--sample", "0")
    assert done.returncode == 2
    assert "expected 1 or more, got 0" in done.stderr
