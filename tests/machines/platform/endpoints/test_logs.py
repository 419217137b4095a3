"""Operators' log lines over every path that some client uses."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from engine import log as engine_log
from machines.platform.endpoints import logs
from machines.platform.lines import RecentLines

READS = ["/logs", "/paas/logs", "/logs/all", "/logs/api", "/logs/portal", "/logs/pool/local"]
STREAMS = ["/logs/stream", "/paas/logs/stream", "/logs/all/stream", "/logs/pool/local/stream"]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, api: Any) -> RecentLines:
    """A ring of this test's own, which sees what the platform logs."""
    ring = RecentLines(clock_ms=lambda: api.now_ms)
    monkeypatch.setattr(logs, "RECENT", ring)
    engine_log.configure(json=True, level="info", copy=ring.copy)
    return ring


@pytest.fixture
def operator(api: Any) -> tuple[str, str]:
    pair: tuple[str, str] = api.key(tier=32)
    object.__setattr__(api.context.config, "operators", frozenset({pair[0]}))
    return pair


def sandbox_line(lines: RecentLines, sandbox_id: str, level: str = "info") -> None:
    event = {"event": "sandbox.created", "level": level, "sandbox_id": sandbox_id}
    lines.copy(None, level, event)


@pytest.mark.parametrize("path", [*READS, *STREAMS])
async def test_only_operators_read(api: Any, lines: RecentLines, path: str) -> None:
    sandbox_line(lines, "of-somebody")
    answer = await api.call(api.key(), "GET", path)
    assert (answer.status_code, answer.json()["error"]) == (403, "operators_only")
    assert "of-somebody" not in answer.text
    assert (await api.http.get(path)).status_code == 401


async def test_lines_come_from_their_sources(
    api: Any, lines: RecentLines, operator: tuple[str, str]
) -> None:
    await api.http.get("/pricing-for-agents.json")
    await api.call(operator, "GET", "/sessions")
    sandbox_line(lines, "alpha")
    everything = (await api.call(operator, "GET", "/logs")).json()
    assert everything["sources"] == ["api", "portal", "pool/local"]
    assert [each["source"] for each in everything["lines"]] == ["portal", "api", "pool/local"]
    assert everything["count"] == 3
    only = (await api.call(operator, "GET", "/logs/portal")).json()
    assert [json.loads(line)["route"] for line in only["lines"]] == ["/pricing-for-agents.json"]
    pool = (await api.call(operator, "GET", "/logs?source=pool/local")).json()
    assert ["alpha" in line for line in pool["lines"]] == [True]
    body = {"source": "pool/local", "lines": 1, "grep": "ALPHA", "since": "1m", "level": "info"}
    posted = (await api.call(operator, "POST", "/paas/logs", body)).json()
    assert posted["lines"] == pool["lines"]


async def test_lines_are_bounded_by_number_time_and_level(
    api: Any, lines: RecentLines, operator: tuple[str, str]
) -> None:
    sandbox_line(lines, "old", "error")
    api.now_ms += 400_000
    sandbox_line(lines, "new")
    sandbox_line(lines, "newest")

    async def found(query: str) -> list[str]:
        answer = await api.call(operator, "GET", f"/logs/pool/local?{query}")
        return [json.loads(line)["sandbox_id"] for line in answer.json()["lines"]]

    assert await found("lines=1") == ["newest"]
    assert await found("since=5m") == ["new", "newest"]
    assert await found("level=error") == ["old"]
    assert await found("grep=new") == ["new", "newest"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("lines=0", "lines"), ("lines=10001", "lines"), ("lines=many", "lines"),
        ("lines=99999999999999999999", "lines"), ("since=yesterday", "since"), ("since=5", "since"),
        ("since=12345m", "since"), ("level=loud", "level"), ("source=kernel", "source"),
        (f"grep={'x' * 201}", "grep"),
    ],
)  # fmt: skip
async def test_a_bad_query_is_named(
    api: Any, operator: tuple[str, str], query: str, field: str
) -> None:
    answer = await api.call(operator, "GET", f"/logs?{query}")
    assert (answer.status_code, answer.json()["field"]) == (400, field)


async def test_an_unknown_source_is_not_found(api: Any, operator: tuple[str, str]) -> None:
    for path in ("/logs/kernel", "/logs/kernel/stream", "/logs/pool"):
        answer = await api.call(operator, "GET", path)
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found"), path


@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_shows_new_lines_and_ends_with_the_platform(
    api: Any, lines: RecentLines, operator: tuple[str, str], path: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    feature = next(
        each for each in api.app.state.api.features if isinstance(each, logs.LogEndpoints)
    )
    sandbox_line(lines, "before")
    rounds = 0

    async def pause(_seconds: float) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            sandbox_line(lines, "during")
        else:
            feature.stop()

    monkeypatch.setattr(logs, "sleep", pause)
    answer = await asyncio.wait_for(api.call(operator, "GET", path), 10)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[0] == ":keepalive"
    shown = [json.loads(event) for event in events[1:]]
    inside = [each for each in shown if each["source"] == "pool/local"]
    assert [json.loads(each["line"])["sandbox_id"] for each in inside] == ["during"]


async def test_a_quiet_stream_is_kept_alive_and_ends_in_time(
    api: Any, lines: RecentLines, operator: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    async def pause(_seconds: float) -> None:
        now[0] += 20

    monkeypatch.setattr(logs, "sleep", pause)
    monkeypatch.setattr(logs, "monotonic", lambda: now[0])
    answer = await api.call(operator, "GET", "/logs/pool/local/stream")
    assert answer.text.count("data: :keepalive\n\n") == logs.STREAM_SECONDS_MAX // 20 + 1
    feature = next(
        each for each in api.app.state.api.features if isinstance(each, logs.LogEndpoints)
    )
    assert feature._streams == 0
    feature._streams = logs.STREAMS_MAX
    refused = await api.call(operator, "GET", "/logs/stream")
    assert (refused.status_code, refused.json()["error"]) == (429, "concurrency_limit_reached")
