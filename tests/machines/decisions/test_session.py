"""Session, edge by edge."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from engine.clock import minutes
from engine.secret import Secret
from engine.table import compile_table
from machines.flows.f07_session import Session
from machines.flows.session_run import (
    Ask,
    Boost,
    CellEnded,
    CellResult,
    Created,
    Declined,
    End,
    Execute,
    Extend,
    Freeze,
    Over,
    RefusalKind,
    Refused,
    Seen,
    SessionReport,
    SessionRun,
    Unanswered,
    Unfreeze,
)

ASKED = SessionRun(public_key="pk", secret_key=Secret("sk"), look_ms=500)
AWAKE = {"session_id": "s1", "slots": 2, "expires_ms": 90_000, "idles_ms": 60_000}
ASLEEP = {**AWAKE, "slots": 0, "frozen": True}
SCRIPT = {"cells": ("a", "b"), "end_after": True}
LAST = {"cells": ("b",), "end_after": True}
OPERATION: dict[str, Any] = {"status": "running", "sends": {"on_exhausted": "unanswered"}}
PLACES: dict[str, dict[str, Any]] = {
    "creating": OPERATION,
    "running": {
        "status": "waiting",
        "due": lambda c, now_ms: now_ms + max(min(c.expires_ms, c.idles_ms) - now_ms, 500),
        "sends": {"on_timeout": "time_to_look"},
        "moved": True,
    },
    "frozen": {
        "status": "waiting",
        "due": lambda c, now_ms: now_ms + max(c.expires_ms - now_ms, 500),
        "sends": {"on_timeout": "time_to_look"},
    },
    "executing": OPERATION,
    "freezing": OPERATION,
    "unfreezing": OPERATION,
    "extending": OPERATION,
    "boosting": OPERATION,
    "checking": OPERATION,
    "ending": {**OPERATION, "waits_for_cancel": True},
    "terminated": {"status": "completed"},
    **{
        state: {"status": "failed"}
        for state in (
            "cancelled",
            "locked",
            "expired",
            "idled",
            "lost",
            "unreachable",
            *get_args(RefusalKind),
        )
    },
}
CREATED = Created(session_id="s1", vcpu=2, expires_ms=90_000, idles_ms=60_000)
GOOD = CellResult("completed", 0, "out")
GAVE_UP = Unanswered(effect="look", reason="silence", attempts=30)
SILENT = "the platform did not answer"
NO = Declined(detail="no")


def _seen(frozen: bool = False, **fields: Any) -> Seen:
    return Seen(
        **({"frozen": frozen, "vcpu": 2, "expires_ms": 90_000, "idles_ms": 60_000} | fields)
    )


def _row(state: str, event: Any, to: str, given: Any = None, **gives: Any) -> dict[str, Any]:
    """Something that happens to a session that is there."""
    return {"state": state, "event": event, "to": to, "gives": gives,
            "given": {**AWAKE, **(given or {})}}  # fmt: skip


def _no(state: str, event: Any, refused: str, given: Any = None) -> dict[str, Any]:
    return {"state": state, "event": event, "refused": refused,
            "given": {**AWAKE, **(given or {})}}  # fmt: skip


BUSY: dict[str, dict[str, Any]] = {
    "freezing": {}, "unfreezing": {"frozen": True, "slots": 0}, "extending": {"amount": 5},
    "boosting": {"amount": 3},
}  # fmt: skip

ROWS = [
    # creating
    {"state": "creating", "event": CREATED, "to": "running", "gives": AWAKE},
    {"state": "creating", "event": CREATED, "given": {"cells": ("a",), "problem": "old"},
     "to": "executing", "gives": {**AWAKE, "problem": ""}},
    {"state": "creating", "to": "running",
     "event": Created(session_id="s1", vcpu=1, expires_ms=90_000, idles_ms=60_000),
     "gives": {**AWAKE, "slots": 1}},
    *({"state": "creating", "refused": "session_has_a_name",
       "event": Created(session_id=name, vcpu=vcpu, expires_ms=1, idles_ms=1)}
      for name, vcpu in [("", 1), ("s1", 0)]),
    *({"state": "creating", "event": Refused(kind=kind, detail=f"said {kind}"), "to": kind,
       "gives": {"reason": f"said {kind}"}} for kind in get_args(RefusalKind)),
    {"state": "creating", "event": GAVE_UP, "to": "unreachable",
     "gives": {"reason": "silence", "problem": SILENT}},
    # messages
    _row("running", Ask(order=Execute(command="x", timeout_seconds=9)), "executing",
         {"problem": "old"}, cells=("x",), cell_seconds=9, problem=""),
    *(_no("running", Ask(order=Execute(command="x", timeout_seconds=bad)), "is_possible")
      for bad in (0, 901)),
    *(_row("running", Ask(order=Execute(command="x", timeout_seconds=good)), "executing",
           cells=("x",), cell_seconds=good) for good in (1, 900)),
    _no("running", Ask(order=Execute(command=" ")), "is_possible"),
    _row("running", Ask(order=Freeze()), "freezing", {"problem": "old"}, problem=""),
    _row("frozen", Ask(order=Unfreeze()), "unfreezing", {**ASLEEP, "problem": "old"}, problem=""),
    *(_row(state, Ask(order=Extend(seconds=n)), "extending", {**given, "problem": "old"}, amount=n,
           problem="")
      for state, given in (("running", {}), ("frozen", ASLEEP)) for n in (1, 86_400)),
    *(_no("running", Ask(order=Extend(seconds=n)), "is_possible") for n in (0, 86_401)),
    *(_row("running", Ask(order=Boost(vcpu=n)), "boosting", {"problem": "old"}, amount=n,
           problem="") for n in (1, 8)),
    _no("running", Ask(order=Unfreeze()), "is_possible"),
    *(_no("running", Ask(order=Boost(vcpu=n)), "is_possible") for n in (0, 9)),
    _row("running", Ask(order=End()), "ending", {"problem": "old"}, problem=""),
    _row("frozen", Ask(order=End()), "ending", {**ASLEEP, "problem": "old"}, problem=""),
    _row("running", "time_to_look", "checking", {"problem": "old"}, problem=""),
    _row("frozen", "time_to_look", "checking", {**ASLEEP, "problem": "old"}, problem=""),
    *(_no("frozen", Ask(order=order), "is_possible", ASLEEP)
      for order in (Execute(command="x"), Freeze(), Boost(vcpu=1))),
    _no("executing", Ask(order=Execute(command="x")), "does not handle it", LAST),
    # cells
    _row("executing", CellEnded(result=GOOD, at_ms=0), "executing", {**SCRIPT, "done": 4},
         cells=("b",), done=5, results=(GOOD,), idles_ms=minutes(15)),
    _row("executing", CellEnded(result=GOOD, at_ms=0), "ending",
         {**LAST, "idles_ms": 10**9, "problem": "old"}, cells=(), done=1, results=(GOOD,),
         problem=""),
    _row("executing", CellEnded(result=GOOD, at_ms=5), "running",
         {"cells": ("b",), "results": (CellResult("unknown"),) * 12}, cells=(), done=1,
         results=(*(CellResult("unknown"),) * 11, GOOD), idles_ms=minutes(15) + 5),
    _row("executing", NO, "checking", SCRIPT, cells=("b",), done=1, problem="no",
         results=(CellResult("refused"),)),
    _row("executing", GAVE_UP, "checking", SCRIPT, cells=("b",), done=1, problem=SILENT,
         results=(CellResult("unknown"),)),
    # operations
    _row("freezing", _seen(True), "frozen", {"amount": 7, **LAST}, frozen=True, slots=0, amount=0,
         cells=(), end_after=False, dropped=1),
    _row("unfreezing", _seen(idles_ms=70_000), "running", ASLEEP, frozen=False, slots=2,
         idles_ms=70_000),
    _row("extending", _seen(expires_ms=95_000), "running", BUSY["extending"], amount=0,
         expires_ms=95_000),
    _row("extending", _seen(True), "frozen", {**ASLEEP, **LAST, "amount": 5}, amount=0, cells=(),
         end_after=False, dropped=1),
    _row("boosting", _seen(vcpu=3, expires_ms=1, idles_ms=1), "running", BUSY["boosting"], slots=3,
         amount=0),
    *(_row(state, NO, "checking", given, problem="no",
           **({"amount": 0} if "amount" in given else {})) for state, given in BUSY.items()),
    *(_row(state, GAVE_UP, "checking", given, problem=SILENT,
           **({"amount": 0} if "amount" in given else {})) for state, given in BUSY.items()),
    # the platform's truth
    _row("checking", _seen(), "running", ASLEEP, frozen=False, slots=2),
    _row("checking", _seen(vcpu=3), "executing", {**SCRIPT, "problem": "old"}, problem="",
         slots=3),
    _row("checking", _seen(vcpu=3), "ending", {"end_after": True, "problem": "old"}, problem="",
         slots=3),
    _row("checking", _seen(True), "frozen", {**SCRIPT, "dropped": 1}, frozen=True, slots=0,
         cells=(), end_after=False, dropped=3),
    *(_row("checking", Over(reason=reason, idle=idle), to, reason=reason, slots=0)
      for reason, idle, to in [("expired", False, "expired"), ("expired", True, "idled"),
                               ("sandbox_died", False, "lost")]),
    _row("checking", GAVE_UP, "unreachable", problem=SILENT, reason="silence"),
    # the end
    _row("ending", Over(reason="deleted"), "terminated", reason="deleted", slots=0),
    _row("ending", Over(reason="deleted"), "cancelled", {"cancelling": True}, reason="deleted",
         slots=0),
    _row("ending", NO, "checking", {"end_after": True}, problem="no", end_after=False),
    _row("ending", NO, "locked", {"cancelling": True}, problem="no"),
    _row("ending", GAVE_UP, "unreachable", problem=SILENT, reason="silence"),
    *(_row(state, "cancel", "ending", {**given, "problem": "old"}, cancelling=True, problem="",
           **({"amount": 0} if "amount" in given else {}))
      for state, given in {**BUSY, "running": {}, "frozen": ASLEEP, "checking": {},
                           "executing": SCRIPT}.items()),
    _row("ending", "cancel", "ending", cancelling=True),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['state']}-{row.get('to')}")
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(Session, ASKED, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(Session, ASKED, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(Session, ASKED, PLACES)


@pytest.mark.parametrize("late", [{"expires_ms": 10_100}, {"idles_ms": 10_100}])
def test_looks_are_not_too_many(check_row: Any, late: dict[str, int]) -> None:
    row = _row("unfreezing", _seen(expires_ms=0, idles_ms=0), "running", {**ASLEEP, **late},
               frozen=False, slots=2)  # fmt: skip
    check_row(Session, ASKED, PLACES, **row)


def test_a_frozen_session_is_not_idle(check_row: Any) -> None:
    row = _row("freezing", _seen(True), "frozen", {"idles_ms": 1, "expires_ms": 10_100},
               frozen=True, slots=0, idles_ms=60_000, expires_ms=90_000)  # fmt: skip
    check_row(Session, ASKED, PLACES, **row)


BAD = CellResult("completed", 1)


@pytest.mark.parametrize(
    ("fields", "success", "left"),
    [
        ({"results": (GOOD, GOOD)}, True, 0),
        ({}, True, 0),
        ({"results": (GOOD, BAD)}, False, 0),
        ({"results": (CellResult("unknown"),)}, False, 0),
        ({"results": (GOOD,), "cells": ("b",)}, False, 1),
        ({"results": (GOOD,), "dropped": 2}, False, 2),
        ({"cells": ("b",), "dropped": 2}, False, 3),
    ],
)
def test_output(output_of: Any, fields: dict[str, Any], success: bool, left: int) -> None:
    expected = SessionReport(  # noqa: S604 - the name of a shell
        shell="bash",
        success=success,
        done=7,
        left=left,
        results=fields.get("results", ()),
        reason="r",
    )
    assert output_of(Session, ASKED, done=7, reason="r", **fields) == expected


@pytest.mark.parametrize(
    ("clause", "good", "bad"),
    [
        ("is_not_there_yet", {}, [{"session_id": "s"}, {"slots": 1}, {"done": 1}]),
        ("rests", AWAKE, [{"session_id": ""}, {"frozen": True}, {"slots": 0}, {"cells": ("a",)},
                          {"end_after": True}, {"amount": 1}]),
        ("stands_still", ASLEEP, [{"session_id": ""}, {"frozen": False}, {"slots": 1},
                                  {"cells": ("a",)}, {"end_after": True}, {"amount": 1}]),
        ("can_execute", {**AWAKE, "cells": ("a",)}, [{"session_id": ""}, {"frozen": True},
                                                     {"slots": 0}, {"cells": ()}]),
        ("is_awake", AWAKE, [{"session_id": ""}, {"frozen": True}, {"slots": 0}]),
        ("is_asleep", ASLEEP, [{"session_id": ""}, {"frozen": False}]),
        ("has_a_session", AWAKE, [{"session_id": ""}]),
        ("never_was", {"reason": "r"}, [{"session_id": "s"}, {"done": 1}, {"reason": ""}]),
        ("holds_nothing", {"reason": "r"}, [{"slots": 1}, {"reason": ""}]),
        ("was_to_be_cancelled", {"cancelling": True, "problem": "p"},
         [{"cancelling": False}, {"problem": ""}]),
        ("slots_are_those_of_what_runs", AWAKE, [{"session_id": ""}, {"frozen": True},
                                                 {"slots": -1}]),
        ("slots_are_those_of_what_runs", {}, []),
    ],
)  # fmt: skip
def test_invariants(
    verdicts: Any, clause: str, good: dict[str, Any], bad: list[dict[str, Any]]
) -> None:
    holds = verdicts(Session, ASKED)
    assert holds(clause, **good)
    for one in bad:
        assert not holds(clause, **{**good, **one}), one


def test_postconditions(ensured: Any, run_in: Any) -> None:
    """Each at its limit."""
    holds = ensured(Session, ASKED)
    event = CellEnded(result=GOOD, at_ms=0)
    before = run_in(Session, ASKED, "executing", cells=("a", "b")).context
    good = {"old": before, "event": event, "cells": ("b",), "done": 1, "results": (BAD, GOOD)}
    assert holds("one_cell_has_ended", **good)
    for one in ({"cells": ("a",)}, {"done": 0}, {"done": 2}, {"results": (GOOD, BAD)}):
        assert not holds("one_cell_has_ended", **{**good, **one}), one
    assert holds("deadlines_never_come_nearer")
    assert not holds("deadlines_never_come_nearer", expires_ms=-1)
    assert not holds("deadlines_never_come_nearer", idles_ms=-1)
    assert holds("keeps_its_session") and not holds("keeps_its_session", session_id="s2")


def test_only_extending_is_asked_about() -> None:
    """It would add again; everything else is the same once or twice."""
    places = compile_table(Session).places.values()
    effects = {place.name: place.effect for place in places if place.effect is not None}
    assert [name for name, one in effects.items() if not one.idempotent] == ["extending"]
    assert effects["extending"].ask is not None
