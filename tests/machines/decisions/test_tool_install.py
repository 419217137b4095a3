"""ToolInstall, edge by edge."""

from __future__ import annotations

from typing import Any

import pytest

from engine.decide import Decision, decide
from engine.secret import Secret
from engine.table import compile_table
from machines.flows.f05_tool_install import REPAIRS_MAX, TOOLS_COUNT, ToolInstall
from machines.flows.tool_calls import (
    KINDS,
    BrokeOff,
    Checked,
    Compared,
    Downloaded,
    Installation,
    Installed,
    Resolved,
    TurnedDown,
    Unanswered,
    Unpacked,
)

BASE = Installation(
    public_key="pk", secret_key=Secret("sk"), session_id="s", digest="ours", timeout_ms=600
)
KNOWN = {"filename": "w.whl", "version": "1", "record": "R", "record_sha256": "files"}
FETCHED = {**KNOWN, "seen": "ours", "proof": "proof", "salt": "salt"}
SENDS = {"on_timeout": "nobody_answers", "on_exhausted": "unanswered"}
BUSY: dict[str, Any] = {
    "status": "running",
    "due": lambda c, now_ms: now_ms + 600,
    "sends": SENDS,
}
FAILED = {"status": "failed"}
STEPS = ("resolving", "downloading", "verifying", "installing", "checking")
FINALS = {
    "unresolved": "unresolved",
    "checksum": "refused",
    "no_toolbox": "no_toolbox",
    "no_python": "no_python",
    "session_gone": "session_gone",
    "disk_full": "disk_full",
    "denied": "denied",
    "unusable": "unusable",
}
"""Where each reason leads, where a step can have it."""
HEARD: dict[str, set[str]] = {
    "downloading": set(KINDS) - {"checksum"},
    "installing": set(KINDS),
    "checking": set(KINDS) - {"unresolved", "checksum", "disk_full"},
}
PLACES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(STEPS, BUSY),
    "installed": {"status": "completed"},
    **dict.fromkeys((*FINALS.values(), "damaged", "incomplete", "unreachable"), FAILED),
}


def _checked(**changes: Any) -> Checked:
    fields = {
        "record_sha256": "files", "version": "1", "tools": TOOLS_COUNT, "unusable": 0, "path": "/p",
        **changes,
    }  # fmt: skip
    return Checked(**fields)


def _gave_up(state: str) -> list[dict[str, Any]]:
    unanswered = Unanswered(effect="install", reason="silence", attempts=200)
    return [
        {"state": state, "given": FETCHED, "event": unanswered, "to": "unreachable",
         "gives": {"reason": "silence"}},
        {"state": state, "given": FETCHED, "event": "nobody_answers", "to": "unreachable"},
    ]  # fmt: skip


def _turned_down(state: str, kind: Any) -> dict[str, Any]:
    to = FINALS[kind] if kind in HEARD[state] else "unusable"
    return {
        "state": state, "given": FETCHED, "event": TurnedDown(kind=kind, reason="why"), "to": to,
        "gives": {"reason": "why"},
    }  # fmt: skip


def _broke_off(state: str, again: str, end: str) -> list[dict[str, Any]]:
    event = BrokeOff(reason="killed")
    return [
        {"state": state, "given": FETCHED, "event": event, "to": again,
         "gives": {"repairs": 1, "reason": "killed"}},
        {"state": state, "given": {**FETCHED, "repairs": REPAIRS_MAX - 1}, "event": event,
         "to": again, "gives": {"repairs": REPAIRS_MAX, "reason": "killed"}},
        {"state": state, "given": {**FETCHED, "repairs": REPAIRS_MAX}, "event": event, "to": end,
         "gives": {"reason": "killed"}},
    ]  # fmt: skip


RESOLVED = Resolved(digest="ours", **KNOWN)
OTHER = "what is installed is {} with other files than 1"
SHORT = "{} tools have a schema and {} have none, 59 are expected"
WHOLE = {"found_sha256": "files", "tools": TOOLS_COUNT, "path": "/p"}
ROWS: list[dict[str, Any]] = [
    {"state": "resolving", "event": RESOLVED, "to": "downloading", "gives": KNOWN},
    {"state": "resolving", "given": {"digest": ""}, "event": RESOLVED, "to": "downloading",
     "gives": {**KNOWN, "digest": "ours"}},
    {"state": "resolving", "given": {"digest": "another"}, "event": RESOLVED,
     "refused": "is_what_was_asked_for"},
    *({"state": state, "event": TurnedDown(kind="unresolved", reason="why"), "to": "unresolved",
       "gives": {"reason": "why"}} for state in ("resolving", "verifying")),
    {"state": "downloading", "given": KNOWN,
     "event": Downloaded(digest="ours", proof="proof", salt="salt", python="3.11"),
     "to": "verifying",
     "gives": {"seen": "ours", "proof": "proof", "salt": "salt", "python": "3.11"}},
    {"state": "downloading", "given": KNOWN,
     "event": Downloaded(digest="ours", proof="proof", salt="", python="3.11"),
     "refused": "was_read_after_we_asked"},
    {"state": "verifying", "given": FETCHED, "event": Compared(proof="proof"), "to": "installing"},
    {"state": "verifying", "given": FETCHED, "event": Compared(proof="other"), "to": "refused",
     "gives": {"reason": "the sandbox told our digest without having our wheel"}},
    {"state": "verifying", "given": {**FETCHED, "seen": "theirs"}, "event": Compared(proof="proof"),
     "to": "refused",
     "gives": {"reason": "the wheel in the sandbox has the digest theirs, not ours"}},
    *({"state": "installing", "given": FETCHED, "event": Unpacked(kept=kept), "to": "checking"}
      for kept in (False, True)),
    {"state": "checking", "given": FETCHED, "event": _checked(), "to": "installed", "gives": WHOLE},
    {"state": "checking", "given": FETCHED, "event": _checked(record_sha256="x"), "to": "damaged",
     "gives": {**WHOLE, "found_sha256": "x", "reason": OTHER.format("1")}},
    {"state": "checking", "given": FETCHED, "event": _checked(version="2"), "to": "damaged",
     "gives": {**WHOLE, "reason": OTHER.format("2")}},
    *({"state": "checking", "given": FETCHED, "event": _checked(tools=tools), "to": "incomplete",
       "gives": {**WHOLE, "tools": tools, "reason": SHORT.format(tools, 0)}} for tools in (58, 60)),
    {"state": "checking", "given": FETCHED, "event": _checked(unusable=1), "to": "incomplete",
     "gives": {**WHOLE, "reason": SHORT.format(59, 1)}},
    {"state": "checking", "given": FETCHED, "event": _checked(version="2", tools=58),
     "to": "damaged", "gives": {**WHOLE, "tools": 58, "reason": OTHER.format("2")}},
    *_broke_off("downloading", "downloading", "unusable"),
    *_broke_off("installing", "installing", "damaged"),
    *_broke_off("checking", "installing", "damaged"),
    *(_turned_down(state, kind) for state in HEARD for kind in KINDS),
    *(row for state in STEPS for row in _gave_up(state)),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['state']}-{row.get('to')}")
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(ToolInstall, BASE, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(ToolInstall, BASE, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(ToolInstall, BASE, PLACES)


def test_output(run_in: Any) -> None:
    """Nothing until the installation has been looked at."""
    table = compile_table(ToolInstall)
    run = run_in(ToolInstall, BASE, "checking", **FETCHED).but(child=None)
    assert table.output({"context": run.context}) is None
    checked = decide(table, run, "checked", _checked(), 0, from_effect=True)
    assert isinstance(checked, Decision)
    found = table.output({"context": checked.after.context})
    assert found == Installed(digest="ours", version="1", tools=59, path="/p")


def test_contracts(verdicts: Any) -> None:
    """Each at its limit."""
    holds = verdicts(ToolInstall, BASE)
    assert holds("repairs_are_bounded", repairs=REPAIRS_MAX) and holds("repairs_are_bounded")
    assert not holds("repairs_are_bounded", repairs=REPAIRS_MAX + 1)
    assert not holds("repairs_are_bounded", repairs=-1)
    assert holds("is_verified", seen="ours") and not holds("is_verified", seen="theirs")
    assert not holds("is_verified", seen="", digest="")
    whole = {"record_sha256": "r", "found_sha256": "r", "tools": TOOLS_COUNT}
    assert holds("is_whole", **whole) and not holds("is_whole", **{**whole, "tools": 58})
    assert not holds("is_whole", **{**whole, "found_sha256": "x"})
    assert not holds("is_whole", **{**whole, "record_sha256": "", "found_sha256": ""})


def test_what_resolving_leads_to_is_removed_when_it_fails(run_in: Any) -> None:
    """From the first request on, whatever became of its answer."""
    table = compile_table(ToolInstall)
    run = run_in(ToolInstall, BASE, "resolving").but(child=None)
    resolved = decide(table, run, "resolved", RESOLVED, 0, from_effect=True)
    assert isinstance(resolved, Decision) and resolved.after.undo == ("resolving",)
    ended = decide(table, resolved.after, "nobody_answers", None, 0)
    assert isinstance(ended, Decision)
    assert ended.after.effect is not None
    assert (ended.after.effect.name, ended.after.effect.undo_of) == ("uninstall", "resolving")
