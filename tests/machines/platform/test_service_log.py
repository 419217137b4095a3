"""Lines of services: kept in order, bounded, gone with their service."""

from __future__ import annotations

from typing import Any

import pytest

from machines.platform import service_log
from machines.platform.service_log import ServiceLog


@pytest.fixture
async def service_id(api: Any) -> str:
    made = await api.call(api.key(), "POST", "/services", {"name": "web"})
    return str(made.json()["id"])


async def test_lines_are_read_oldest_first(api: Any, service_id: str) -> None:
    log = ServiceLog(api.context)
    log.append([(service_id, f"line {number}") for number in range(5)])
    assert log.read(service_id, None) == [f"line {number}" for number in range(5)]
    assert log.read(service_id, 2) == ["line 3", "line 4"]


async def test_only_the_last_lines_are_kept(
    api: Any, service_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_log, "LINES_KEPT", 10)
    monkeypatch.setattr(service_log, "TRIM_EVERY", 4)
    log = ServiceLog(api.context)
    counts = []
    for number in range(20):
        log.append([(service_id, f"line {number}")])
        counts.append(len(log.read(service_id, None)))
    assert max(counts) <= 10 + 4
    assert log.read(service_id, 10) == [f"line {number}" for number in range(10, 20)]


async def test_a_batch_larger_than_what_is_kept(
    api: Any, service_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_log, "LINES_KEPT", 10)
    log = ServiceLog(api.context)
    log.append([(service_id, f"line {number}") for number in range(100)])
    assert log.read(service_id, 1) == ["line 99"]
    assert len(log.read(service_id, None)) <= 20


async def test_lines_of_services_that_are_gone_are_dropped(api: Any) -> None:
    log = ServiceLog(api.context)
    log.append([("unsb-service-0", "too late")])
    assert log.read("unsb-service-0", None) == []
