"""Discovery, edge by edge."""

from __future__ import annotations

from typing import Any

import pytest

from engine.clock import hours
from machines.flows.f01_discovery import (
    ORCHESTRATORS,
    Discovered,
    Discovery,
    Findings,
    Inspected,
    InspectionFailed,
    Probed,
    Understood,
)
from machines.flows.isolation import Reason

FINDINGS = Findings(evidence="{}", probes_max=3)
LOOKING = {"status": "running", "sends": {"on_exhausted": "inspection_failed"}}
PLACES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("inspecting", "sandboxed", "not_sandboxed"), LOOKING),
    "searching_tools": {
        "status": "running",
        "due": lambda c, now_ms: now_ms + hours(1),
        "sends": {"on_timeout": "outdated"},
        "moved": True,
    },
    "capable": {"status": "completed"},
    "unaware": {"status": "failed"},
}
SURE, HALF, UNSURE = (
    (Reason(name="r", weight=weight, seen="s"),) for weight in (99, 50, 49)
)  # fmt: skip
INSIDE = {"awareness": "sandboxed", "profile": "docker", "confidence_percent": 99}
OUTSIDE = {"awareness": "not_sandboxed", "profile": "bare", "confidence_percent": 99}
NO_TOOL = "no tool that orchestrates sandboxes: looked for un, turtles, platform_api"


def _inspected(
    profile: Any, reasons: Any, percent: int, to: str, awareness: str, **gives: Any
) -> dict[str, Any]:
    told = {"profile": profile, "confidence_percent": percent, "reasons": reasons,
            "observed": "seen"}  # fmt: skip
    changed = {**told, **({} if awareness == "unknown" else {"awareness": awareness}), **gives}
    return {"state": "inspecting", "event": Inspected(**told), "to": to, "gives": changed}


def _understood(state: str, to: str, given: dict[str, Any], **gives: Any) -> dict[str, Any]:
    caps = {"memory_limit_bytes": 1, "cpu_limit_millicores": 2, "pids_limit": 3,
            "writable": ("/tmp",)}  # fmt: skip  # noqa: S108
    return {
        "state": state,
        "event": Understood(commands=("un",), **caps),
        "given": {"observed": "seen", **given},
        "to": to,
        "gives": {**caps, "observed": None, "tools": ("un",),
                  "missing": ("turtles", "platform_api"), **gives},
    }  # fmt: skip


def _probed(
    healthy: bool, to: str, *, tools: Any = (), probes: int = 0, **gives: Any
) -> dict[str, Any]:
    missing = tuple(name for name in ORCHESTRATORS if name not in tools)
    return {
        "state": "searching_tools",
        "event": Probed(platform_healthy=healthy),
        "given": {**INSIDE, "tools": tools, "missing": missing, "probes": probes},
        "to": to,
        "gives": {"probes": probes + 1, **gives},
    }


FOUND = {"tools": ("platform_api",), "missing": ("un", "turtles")}
FAILED = InspectionFailed(effect="inspect", reason="no", attempts=3)
ROWS: list[dict[str, Any]] = [
    _inspected("docker", SURE, 99, "sandboxed", "sandboxed"),
    _inspected("vm", HALF, 50, "sandboxed", "sandboxed"),
    _inspected("bare", SURE, 99, "not_sandboxed", "not_sandboxed"),
    _inspected("bare", HALF, 50, "not_sandboxed", "not_sandboxed"),
    *(_inspected(profile, UNSURE, 49, "unaware", "unknown",
                 refusal="no profile reached 50 % confidence") for profile in ("docker", "bare")),
    {"state": "inspecting", "event": Inspected(profile="vm", confidence_percent=98, reasons=SURE,
     observed=""), "refused": "confidence_comes_from_reasons"},
    *({"state": state, "event": FAILED, "to": "unaware",
       "gives": {"refusal": "inspection failed: no"}}
      for state in ("inspecting", "sandboxed", "not_sandboxed")),
    _understood("sandboxed", "searching_tools", INSIDE),
    _understood("sandboxed", "searching_tools", {**INSIDE, "require_sandbox": True}),
    _understood("not_sandboxed", "searching_tools", OUTSIDE),
    _understood("not_sandboxed", "unaware", {**OUTSIDE, "require_sandbox": True},
                refusal="a sandbox is required and this is none"),
    *({"state": "sandboxed", "event": Understood(memory_limit_bytes=None,
       cpu_limit_millicores=None, pids_limit=None, writable=(), commands=commands),
       "refused": "commands_are_orchestrators"}
      for commands in (("ls",), ("un", "un"), ("platform_api",))),
    _probed(True, "capable") | {"gives": {"probes": 1, **FOUND}},
    _probed(False, "capable", tools=("un",)),
    _probed(True, "capable", tools=("un",)) | {
        "gives": {"probes": 1, "tools": ("un", "platform_api"), "missing": ("turtles",)}},
    _probed(False, "searching_tools", probes=0),
    _probed(False, "searching_tools", probes=1),
    _probed(False, "unaware", probes=2, refusal=NO_TOOL),
    _probed(False, "unaware", probes=2, refusal=NO_TOOL) | {
        "given": {**OUTSIDE, "missing": ORCHESTRATORS, "probes": 2}},
    _probed(False, "unaware", probes=2, refusal=NO_TOOL) | {
        "given": {**INSIDE, "missing": ORCHESTRATORS, "probes": 2, "require_sandbox": True}},
    {"state": "sandboxed", "event": Understood(memory_limit_bytes=None, cpu_limit_millicores=None,
     pids_limit=None, writable=(), commands=("un", "turtles")),
     "given": {**INSIDE, "observed": "x"}, "to": "searching_tools",
     "gives": {"observed": None, "tools": ("un", "turtles"), "missing": ("platform_api",)}},
    _probed(True, "capable", probes=2) | {"gives": {"probes": 3, **FOUND}},
    {"state": "searching_tools", "event": "outdated", "given": INSIDE, "to": "inspecting"},
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['state']}-{row.get('to')}")
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(Discovery, FINDINGS, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(Discovery, FINDINGS, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(Discovery, FINDINGS, PLACES)


def test_a_refusal_is_kept(check_row: Any) -> None:
    """The first reason counts, not a later one."""
    row = _probed(False, "unaware", probes=2)
    row["given"] |= {"refusal": "earlier"}
    check_row(Discovery, FINDINGS, PLACES, **row)


def test_output(output_of: Any) -> None:
    fields = {**INSIDE, "tools": ("un",), "missing": ("turtles",), "refusal": "so"}
    told = output_of(Discovery, FINDINGS, reasons=SURE, **fields)
    assert told == Discovered(reasons=1, **fields)


def test_contracts(verdicts: Any) -> None:
    """Each at its limit."""
    holds = verdicts(Discovery, FINDINGS)
    awareness = "awareness_needs_confidence"
    assert holds(awareness) and holds(awareness, profile="bare", confidence_percent=99)
    assert holds(awareness, **{**INSIDE, "confidence_percent": 50})
    assert not holds(awareness, **{**INSIDE, "confidence_percent": 49})
    assert not holds(awareness, **{**INSIDE, "profile": "bare"})
    assert holds(awareness, **{**INSIDE, "profile": "vm"})
    assert holds(awareness, **OUTSIDE)
    assert not holds(awareness, **{**OUTSIDE, "confidence_percent": 49})
    assert not holds(awareness, **{**OUTSIDE, "profile": "vm"})
    assert holds("says_why", refusal="x") and not holds("says_why")
    assert holds("aware_and_able", **INSIDE, tools=("un",))
    assert not holds("aware_and_able", **INSIDE)
    assert not holds("aware_and_able", **INSIDE, tools=("ls",))
    assert holds("aware_and_able", **OUTSIDE, tools=("un",))
    assert not holds("aware_and_able", **OUTSIDE, tools=("un",), require_sandbox=True)
    assert not holds("aware_and_able", tools=("un",))
