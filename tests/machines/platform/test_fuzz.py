"""Made-up requests for every operation of the document: no 5xx, and nothing undocumented.

The long form is `python -m tests.acceptance.fuzz`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import settings

from machines.platform import limits
from tests.acceptance.fuzz import Target, fuzz, serving

SECONDS_MAX = 25.0
EXAMPLES = {"dev": 3, "ci": 8, "nightly": 40}


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with serving(tmp_path / "platform") as running:
        running.stock()
        yield running


def test_the_platform_answers_what_its_document_says(
    target: Target, figure: Callable[[str], None]
) -> None:
    known = {40: "dev", 300: "ci"}
    profile = known.get(settings.default.max_examples if settings.default else 40, "nightly")
    report = fuzz(target, seconds=SECONDS_MAX, seed=7, examples=EXAMPLES[profile], rounds=1)
    assert not report.wrong, "\n".join(report.wrong)
    assert {"session_id", "job_id", "service_id", "snapshot_id", "image_id"} <= set(target.ids)
    assert report.requests > 100
    assert {200, 400, 404} <= set(report.statuses)
    figure(
        f"fuzz: {report.requests} requests over {report.operations} operations, "
        f"slowest {report.slowest_seconds * 1000:.0f} ms"
    )


def test_a_document_that_lies_is_caught(target: Target) -> None:
    """The control: each kind of lie is found."""
    truth = requests.get(f"{target.base_url}/openapi.json", timeout=5).json()

    def found(path: str, lie: Callable[[Any], None]) -> str:
        operation = truth["paths"][path]["get"]
        document = {**truth, "paths": {path: {"get": operation}}}
        lie(operation["responses"])
        report = fuzz(target, seconds=10, seed=1, examples=2, rounds=1, document=document)
        return "\n".join(report.wrong)

    assert "Undocumented status code" in found("/pools", lambda told: told.pop("200"))
    content = {"text/csv": {"schema": {}}}
    assert "ontent-Type" in found("/stats", lambda told: told["200"].update(content=content))
    wants = {"application/json": {"schema": {"type": "object", "required": ["no_such_member"]}}}
    assert "no_such_member" in found("/cluster", lambda told: told["200"].update(content=wants))


def test_an_answer_that_fails_is_caught(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = requests.get(f"{target.base_url}/openapi.json", timeout=5).json()
    document = {**truth, "paths": {"/pools": truth["paths"]["/pools"]}}

    def broken(*_arguments: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(limits, "requests_per_minute", broken)
    report = fuzz(target, seconds=10, seed=1, examples=1, rounds=1, document=document)
    assert [": 500 " in wrong for wrong in report.wrong] == [True]
