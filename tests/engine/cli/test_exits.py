"""The table of exit codes is the same wherever it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import errors
from engine.cli.exits import MEANINGS, NotEnded, code_of, code_of_status

DOCUMENT = Path(__file__).parents[3] / "docs" / "cli.md"


def test_the_document_has_the_same_table():
    text = DOCUMENT.read_text().replace("`", "")
    for code, meaning in MEANINGS.items():
        assert f"| {code} | {meaning} |" in text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.Refused("x"), 1),
        (errors.UnknownRun("x"), 2),
        (errors.TooLarge("x"), 2),
        (errors.StoreFull("x"), 3),
        (errors.SchemaMismatch("x"), 3),
        (errors.SecretsError("x"), 3),
        (NotEnded("x"), 4),
        (errors.TurtlesError("x"), 1),
    ],
)
def test_every_error_has_a_documented_code(error, code):
    assert code_of(error) == code and code in MEANINGS


@pytest.mark.parametrize(
    ("status", "code"),
    [("completed", 0), ("failed", 1), ("cancelled", 1), ("quarantined", 4), ("paused", 4)],
)
def test_every_end_of_a_run_has_its_code(status, code):
    assert code_of_status(status) == code
