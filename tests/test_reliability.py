"""The crash points of docs/reliability.md: twenty rows, each with both kinds of test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
FILES = dict(re.findall(r"`([A-Z])`\s+(tests/\S+\.py)", PAGE))
NAMED = re.compile(r"`([A-Z]) (test_\w+)`")
ROWS = re.findall(r"^\| (\d+) \|[^|]+\|[^|]+\|([^|]+)\|([^|]+)\|$", PAGE, re.MULTILINE)


def names_in(file: str) -> set[str]:
    """The names of the test functions of a file."""
    tree = ast.parse((ROOT / file).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = (node.name for node in ast.walk(tree) if isinstance(node, functions))
    return {name for name in names if name.startswith("test_")}


def test_there_are_twenty_rows():
    assert [int(number) for number, _, _ in ROWS] == list(range(1, 21))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_each_row_is_tested_in_process_and_with_real_processes(row):
    _, in_process, real = row
    assert NAMED.findall(in_process)
    assert NAMED.findall(real)


def test_every_test_that_is_named_exists():
    known = {letter: names_in(file) for letter, file in FILES.items()}
    named = NAMED.findall(PAGE)
    assert [one for one in named if one[1] not in known[one[0]]] == []


def test_every_test_of_a_row_is_named():
    """A crash point that is tested is in the table."""
    named = {name for _, name in NAMED.findall(PAGE)}
    for file in FILES.values():
        rows = {name for name in names_in(file) if re.match(r"test_row_\d\d_", name)}
        assert rows <= named, file


def test_real_processes_are_killed_by_acceptance_tests():
    """What is named as real either is marked so, or starts processes in the default suite."""
    for _, _, real in ROWS:
        for letter, _ in NAMED.findall(real):
            source = (ROOT / FILES[letter]).read_text()
            assert "pytest.mark.acceptance" in source or "SIGKILL" in source, FILES[letter]
