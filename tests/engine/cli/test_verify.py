"""`turtles verify`: what docs/verification.md promises a newcomer, done as written there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def call(where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def verify(where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return call(where, "-m", "machines.cli", "verify", *words)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    text = (ROOT / "docs" / "verification.md").read_text()
    (tmp_path / "till.py").write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0])
    return tmp_path


def mend(place: Path) -> None:
    file = place / "till.py"
    text = file.read_text()
    assert "context.taken + 1\n" in text
    file.write_text(text.replace("context.taken + 1\n", "context.taken\n"))


def test_newcomer_finds_keeps_and_mends_the_mistake(place: Path) -> None:
    found = verify(place, "till.py:Till", "--out", "found")
    assert found.returncode == 3, found.stdout + found.stderr
    assert "FAIL safety: quarantined  (3 steps)" in found.stdout
    assert "never_more_than_held does not hold" in found.stdout
    token = re.findall(r"tv1:\S+", found.stdout)[0]
    kept = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir=.", "found")
    assert call(place, *kept).returncode == 1
    again = verify(place, "till.py:Till", "--replay", token)
    assert again.returncode == 3 and "never_more_than_held" in again.stdout

    mend(place)
    assert call(place, *kept).returncode == 0
    fixed = verify(place, "till.py:Till", "--replay", token)
    assert fixed.returncode == 0 and "FIXED" in fixed.stdout
    passed = verify(place, "till.py:Till")
    assert passed.returncode == 0, passed.stdout
    assert "EXHAUSTED" in passed.stdout and "0 mismatches" in passed.stdout


def test_json_has_figures_and_what_to_keep(place: Path) -> None:
    answered = verify(place, "till.py:Till", "--json", "--seed", "7")
    told: dict[str, Any] = json.loads(answered.stdout)
    assert (told["exit"], told["seed"], told["mismatches"]) == (3, 7, 0)
    failure = told["failures"][0]
    assert failure["diagram"].startswith("sequenceDiagram")
    assert failure["token"].startswith("tv1:") and failure["token"][:40] in failure["test"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("Nothing",), "no machine 'Nothing'"),
        (("till.py:Till", "--budget", "0"), "more than 0 seconds"),
        (("till.py:Till", "--replay", "pv1:abc"), "token"),
    ],
)
def test_wrong_use_is_answered_in_words(place: Path, words: tuple[str, ...], said: str) -> None:
    answered = verify(place, *words)
    assert answered.returncode == 2
    assert said in answered.stderr
    assert "Traceback" not in answered.stderr
