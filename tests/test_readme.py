"""Every Python block of the README runs, and prints what the block below it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^turtles (\w+)(?: (\w+))?", re.MULTILINE)


def blocks() -> list[tuple[str, str]]:
    """(program, expected output) of every Python block in the README and the docs."""
    texts = [(ROOT / "README.md").read_text()]
    return [match.groups(default="") for text in texts for match in BLOCK.finditer(text)]


@pytest.mark.parametrize("number", range(len(blocks())))
def test_python_block(number: int, tmp_path: Path) -> None:
    program, expected = blocks()[number]
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert expected, "a Python block is followed by its real output"
    assert [line.rstrip() for line in done.stdout.splitlines()] == expected.splitlines()
    assert done.stderr == ""


def test_commands_exist() -> None:
    from typer.main import get_command

    from machines.cli import cli

    known = get_command(cli).commands  # type: ignore[attr-defined]
    for command, sub in COMMAND.findall((ROOT / "README.md").read_text()):
        assert command in known, f"README names `turtles {command}`"
        below = getattr(known[command], "commands", None)
        assert below is None or sub in below, f"README names `turtles {command} {sub}`"


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
