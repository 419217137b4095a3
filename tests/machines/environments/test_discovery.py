"""`Discovery` in its environment: all of it, and what its properties are there to find."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.verification.environment import Done
from engine.verification.explore import explore
from engine.verification.result import Scope
from machines.environments.discovery import OfDiscovery
from machines.flows.f01_discovery import Discovery, Findings, Inspected, Probed
from machines.flows.isolation import SURE_PERCENT
from persistence.store import open_store

OF = OfDiscovery()
ANYWHERE, INSIDE = OF.contexts()
NOBODY_CANCELS = Scope(contexts=2, messages=0, cancels=False)


def _places(context: Findings) -> list[Inspected]:
    found: Any = OF.payloads_of("inspected", context=context, state="inspecting", now_ms=0)
    return list(found)


def test_everything_is_explored_and_nothing_is_wrong() -> None:
    """Without requests to stop, which double the work."""
    report = explore(Discovery, open_store("sqlite://"), scope=NOBODY_CANCELS, budget_seconds=25)
    coverage = report.coverage
    assert (report.failures, report.mismatches) == ([], [])
    assert report.exhausted, f"{report.left} of {report.states} states left"
    assert (coverage.missing_transitions, coverage.missing_cells) == ([], [])
    assert coverage.missing_marks == ["cancelled_while_inspecting"]
    assert report.executions < 9_000


def test_somebody_thinks_better_of_it() -> None:
    report = explore(Discovery, open_store("sqlite://"), budget_seconds=1.5)
    assert report.ok, report.failures
    assert "cancelled_while_inspecting" in report.coverage.seen


def test_places_are_on_both_sides_of_sure() -> None:
    found = [(one.profile, one.confidence_percent) for one in _places(ANYWHERE)]
    assert ("vm", SURE_PERCENT) in found
    assert any(profile == "bare" and percent >= SURE_PERCENT for profile, percent in found)
    assert any(SURE_PERCENT - 5 < percent < SURE_PERCENT for _, percent in found)
    assert ("bare", 0) in found


PLACE = _places(ANYWHERE)[0]
KNOWN = msgspec.structs.replace(ANYWHERE, profile=PLACE.profile, reasons=PLACE.reasons)
INSPECTED = Done("inspect", "k1", PLACE)
HEALTHY = Done("probe_platform", "k2", Probed(platform_healthy=True))
DOWN = Done("probe_platform", "k3", Probed(platform_healthy=False))


def _broken(context: Findings, *done: Done) -> list[str]:
    values = {"state": "searching_tools", "status": "running", "now_ms": 0}
    return list(OF.broken(context=context, done=done, **values))


@pytest.mark.parametrize(
    ("context", "done"),
    [
        (INSIDE, ()),
        (KNOWN, (INSPECTED,)),
        (msgspec.structs.replace(KNOWN, probes=1, tools=("platform_api",)), (INSPECTED, HEALTHY)),
    ],
)
def test_properties_hold(context: Any, done: Any) -> None:
    assert _broken(context, *done) == []


@pytest.mark.parametrize(
    ("rule", "context", "done"),
    [
        ("reads_and_nothing_else", KNOWN, (INSPECTED, Done("install", "k4", None))),
        ("probes_are_counted", msgspec.structs.replace(KNOWN, probes=2), (INSPECTED, DOWN)),
        ("knows_by_looking", KNOWN, (DOWN,)),
        (
            "a_platform_tool_has_answered",
            msgspec.structs.replace(KNOWN, probes=1, tools=("platform_api",)),
            (INSPECTED, DOWN),
        ),
    ],
)
def test_properties_can_fail(rule: str, context: Any, done: Any) -> None:
    assert _broken(context, *done) == [rule]
