"""The ring of log lines: what is kept, where it belongs, what is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import structlog

from engine import log as engine_log
from machines.platform.lines import LINE_CHARACTERS_MAX, POOL, RecentLines, source_of


@pytest.fixture
def lines() -> RecentLines:
    ring = RecentLines(kept=5, clock_ms=lambda: ring_time[0])
    ring_time[0] = 1_000
    return ring


ring_time = [0]


def note(lines: RecentLines, event: str, **fields: object) -> None:
    lines.copy(None, "info", {"event": event, "level": "info", **fields})


def test_the_newest_lines_stay_in_order(lines: RecentLines) -> None:
    for number in range(8):
        note(lines, "request", number=number)
    found = lines.find()
    assert [json.loads(line.text)["number"] for line in found] == [3, 4, 5, 6, 7]
    assert [line.number for line in found] == [4, 5, 6, 7, 8]
    assert lines.newest == 8
    assert [line.number for line in lines.find(limit=2)] == [7, 8]
    assert [line.number for line in lines.find(after=6)] == [7, 8]


def test_lines_are_found_by_source_time_text_and_level(lines: RecentLines) -> None:
    note(lines, "request", route="/sessions")
    ring_time[0] = 2_000
    note(lines, "request", route="/payment/{invoice_id}/status")
    lines.copy(None, "error", {"event": "sandbox.created", "level": "error", "sandbox_id": "Alpha"})
    assert [line.source for line in lines.find()] == ["api", "portal", POOL]
    assert [line.number for line in lines.find(source="portal")] == [2]
    assert [line.number for line in lines.find(since_ms=2_000)] == [2, 3]
    assert [line.number for line in lines.find(grep="ALPHA")] == [3]
    assert [line.number for line in lines.find(level="warning")] == [3]


@pytest.mark.parametrize(
    ("event", "source"),
    [
        ({"event": "request", "route": "/api/keys/validate"}, "api"),
        ({"event": "request", "route": "/api/invoices"}, "portal"),
        ({"event": "request", "route": "/keys/extend"}, "portal"),
        ({"event": "wrong_gift_code"}, "portal"),
        ({"event": "sandbox_unavailable"}, POOL),
        ({"event": "listening"}, "api"),
        ({}, "api"),
    ],
)
def test_a_line_belongs_to_one_source(event: dict[str, object], source: str) -> None:
    assert source_of(event) == source


def test_odd_fields_and_long_lines_are_kept_within_bounds(lines: RecentLines) -> None:
    note(lines, "odd", path=Path("/tmp/x"), exc_info=True)  # noqa: S108
    note(lines, "long", text="x" * 10_000)
    odd, long = lines.find()
    assert json.loads(odd.text) == {"event": "odd", "level": "info", "path": "/tmp/x"}  # noqa: S108
    assert len(long.text) == LINE_CHARACTERS_MAX


def test_what_is_logged_is_copied_without_its_secrets(
    lines: RecentLines, capsys: pytest.CaptureFixture[str]
) -> None:
    engine_log.configure(json=True, level="info", copy=lines.copy)
    logger = structlog.get_logger("turtles.platform.access")
    logger.info("request", route="/x", secret_key="unsb-sk-hidden")
    logger.debug("request", route="/not/written")
    (line,) = lines.find()
    assert json.loads(line.text)["secret_key"] == "***"
    assert "unsb-sk-hidden" not in capsys.readouterr().err


def test_lines_too_small_to_be_written_are_copied(
    lines: RecentLines, capsys: pytest.CaptureFixture[str]
) -> None:
    engine_log.configure(json=True, level="error")
    engine_log.copy_lines(lines.copy)
    logger = structlog.get_logger("turtles.platform.access")
    logger.debug("request", route="/never")
    logger.info("request", route="/copied")
    logger.error("request", route="/both")
    assert [json.loads(line.text)["route"] for line in lines.find()] == ["/copied", "/both"]
    assert [json.loads(line)["route"] for line in capsys.readouterr().err.splitlines()] == ["/both"]
