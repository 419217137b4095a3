"""Snapshot, edge by edge."""

from __future__ import annotations

from typing import Any

import pytest

from engine.secret import Secret
from engine.table import compile_table
from machines.clients.ports.snapshots import CopyInfo
from machines.flows.capture import (
    Barred,
    Capture,
    Captured,
    ClearedUp,
    Clone,
    Cloned,
    Declined,
    Keep,
    Lock,
    LockSet,
    NotClearedUp,
    Remove,
    Removed,
    Restore,
    RestoreDone,
    SnapshotReport,
    Unlock,
)
from machines.flows.capture_calls import undo
from machines.flows.errands import NoAnswer
from machines.flows.f09_snapshot import Snapshot

COPY = CopyInfo(kind="session", copy_id="fork", state="running")
CAPTURE = Capture(
    public_key="pk",
    secret_key=Secret("sk"),
    source_type="session",
    source_id="here",
    poll_seconds=3,
    attended_seconds=7,
    snapshot_id="s1",
    taken_of="there",
    level="files",
)
GIVES_UP = {"on_exhausted": "no_answer"}
CALLS: dict[str, Any] = {"status": "running", "sends": GIVES_UP}
FAILS = {"status": "failed"}
PLACES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("capturing", "restoring", "cloning", "locking", "unlocking", "removing"), CALLS
    ),
    "ready": {
        "status": "running",
        "due": lambda c, now_ms: now_ms + 7_000,
        "sends": GIVES_UP | {"on_timeout": "nobody_asks"},
        "moved": True,
    },
    "clearing_up": {
        "status": "running",
        "sends": {"on_exhausted": "not_cleared_up"},
        "waits_for_cancel": True,
    },
    **{key: {"status": "completed"} for key in ("kept", "removed")},
    **dict.fromkeys(
        ("source_gone", "source_idle", "too_shallow", "gone", "refused", "locked", "not_removed",
         "unreachable", "unresolved"),
        FAILS,
    ),
}  # fmt: skip
NO_ANSWER = NoAnswer(effect="call", reason="silence", attempts=3)


def _captured(level: str) -> Captured:
    return Captured(
        snapshot_id="s2", source_id="elsewhere", level=level, lost=("ttys",), size_bytes=9
    )


def _kept(level: str) -> dict[str, Any]:
    return {"snapshot_id": "s2", "taken_of": "elsewhere", "level": level, "lost": ("ttys",),
            "size_bytes": 9}  # fmt: skip


def _taken(least: str, level: str, *, enough: bool) -> dict[str, Any]:
    given = {"level": "", "snapshot_id": "", "taken_of": "", "least_level": least}
    row = {"state": "capturing", "event": _captured(level), "given": given, "gives": _kept(level)}
    if enough:
        return row | {"to": "ready"}
    reason = f"keeps {level or 'nothing known'}, expected {least} at least"
    gives = {name: value for name, value in _kept(level).items() if value != ""}
    return row | {"to": "too_shallow", "gives": gives | {"reason": reason}}


def _declined(state: str, cause: Any, to: str) -> dict[str, Any]:
    event = Declined(cause=cause, detail=f"said {cause}")
    return {"state": state, "event": event, "to": to, "gives": {"reason": f"said {cause}"}}


def _ordered(event: Any, to: str, **gives: Any) -> list[dict[str, Any]]:
    """As a message, as a line of the script, and as one that is done."""
    kind = type(event)
    first = {"state": "ready", "event": event, "to": to, "gives": gives}
    line = {"state": "ready", "event": kind(at=2), "given": {"line": 1}, "to": to}
    late = {"state": "ready", "event": kind(at=2), "given": {"line": 4}, "to": to}
    wanted = {"wanted": kind(at=2)} if "wanted" in gives else {}
    return [first, line | {"gives": {"line": 2} | wanted}, late | {"gives": wanted}]


ROWS: list[dict[str, Any]] = [
    _taken("files", "files", enough=True),
    _taken("files", "full", enough=True),
    _taken("files", "", enough=False),
    _taken("files+vars", "files", enough=False),
    _taken("files+vars", "files+vars", enough=True),
    _taken("files+vars", "full", enough=True),
    _taken("full", "files+vars", enough=False),
    _taken("full", "full", enough=True),
    *_ordered(Restore(), "restoring"),
    *_ordered(Clone(kind="service", name="web"), "cloning",
              wanted=Clone(kind="service", name="web")),
    *_ordered(Lock(), "locking"),
    *_ordered(Unlock(), "unlocking"),
    *_ordered(Remove(), "removing"),
    *_ordered(Keep(), "kept"),
    {"state": "ready", "event": Remove(), "given": {"locked": True}, "refused": "is_not_locked"},
    {"state": "ready", "event": Barred(), "given": {"locked": True}, "to": "locked",
     "gives": {"reason": "snapshot s1 is locked: unlock it"}},
    {"state": "ready", "event": "nobody_asks", "to": "removing"},
    {"state": "ready", "event": "nobody_asks", "given": {"locked": True}, "to": "kept"},
    {"state": "ready", "event": "nobody_asks", "given": {"keep": True}, "to": "kept"},
    {"state": "restoring", "event": RestoreDone(target_id="there"), "to": "ready",
     "gives": {"restores": 1}},
    {"state": "restoring", "event": RestoreDone(target_id="here"),
     "refused": "went_back_where_it_came_from"},
    {"state": "cloning", "event": Cloned(copy=COPY), "to": "ready", "gives": {"clones": (COPY,)}},
    {"state": "cloning", "event": Cloned(copy=COPY), "given": {"clones": (COPY,)},
     "refused": "clone_is_another"},
    {"state": "cloning", "event": Cloned(copy=COPY), "given": {"taken_of": "fork"},
     "refused": "clone_is_another"},
    {"state": "cloning", "event": Cloned(copy=COPY),
     "given": {"wanted": Clone(kind="service")}, "refused": "clone_is_another"},
    {"state": "locking", "event": LockSet(locked=True), "to": "ready", "gives": {"locked": True}},
    {"state": "unlocking", "event": LockSet(locked=False), "given": {"locked": True},
     "to": "ready", "gives": {"locked": False}},
    {"state": "removing", "event": Removed(), "to": "removed", "gives": {"snapshot_id": ""}},
    _declined("capturing", "source_gone", "source_gone"),
    _declined("capturing", "source_idle", "source_idle"),
    _declined("capturing", "gone", "refused"),
    _declined("capturing", "refused", "refused"),
    *(_declined("restoring", cause, cause)
      for cause in ("gone", "source_gone", "source_idle", "refused")),
    _declined("cloning", "gone", "gone"),
    *(_declined("cloning", cause, "refused")
      for cause in ("source_gone", "source_idle", "refused")),
    *(_declined(state, cause, "gone") for state in ("ready", "locking", "unlocking")
      for cause in ("gone", "refused")),
    *({"state": state, "event": NO_ANSWER, "to": to, "gives": {"reason": "call was given up"}}
      for state, to in [("capturing", "clearing_up"), ("cloning", "clearing_up"),
                        ("removing", "not_removed"), ("ready", "unreachable"),
                        ("restoring", "unreachable"), ("locking", "unreachable"),
                        ("unlocking", "unreachable")]),
    {"state": "clearing_up", "event": ClearedUp(), "to": "unreachable"},
    {"state": "clearing_up", "event": NotClearedUp(effect="asking", reason="", attempts=3),
     "given": {"reason": "it failed"}, "to": "unresolved",
     "gives": {"reason": "it failed, and so was asking"}},
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['state']}-{row.get('to')}")
def test_row(check_row: Any, row: dict[str, Any]) -> None:
    check_row(Snapshot, CAPTURE, PLACES, **row)


@pytest.mark.parametrize("state", PLACES)
def test_place(check_place: Any, state: str) -> None:
    check_place(Snapshot, CAPTURE, state, PLACES[state])


def test_begins(check_begin: Any) -> None:
    check_begin(Snapshot, CAPTURE, PLACES)


def test_output(output_of: Any) -> None:
    told = output_of(Snapshot, CAPTURE, lost=("ttys",), restores=2, clones=(COPY,), reason="why")
    assert told == SnapshotReport(
        snapshot_id="s1", level="files", lost=("ttys",), restores=2, clones=(COPY,), reason="why"
    )


def test_pauses_between_looks() -> None:
    every = compile_table(Snapshot).places["ready"].every
    assert every is not None and every({"context": CAPTURE}) == 3_000


def test_contracts(verdicts: Any, ensured: Any) -> None:
    """Each at its limit."""
    holds = verdicts(Snapshot, CAPTURE)
    assert holds("only_what_is_there_is_locked", locked=True)
    assert holds("only_what_is_there_is_locked", snapshot_id="")
    assert not holds("only_what_is_there_is_locked", snapshot_id="", locked=True)
    assert holds("is_good_enough") and not holds("is_good_enough", snapshot_id="")
    assert not holds("is_good_enough", least_level="files+vars")
    assert not holds("is_good_enough", level="")
    assert holds("is_good_enough", least_level="files+vars", level="files+vars")
    assert holds("is_there") and not holds("is_there", snapshot_id="")
    assert holds("is_nowhere", snapshot_id="") and not holds("is_nowhere")
    assert holds("is_locked", locked=True) and not holds("is_locked")
    keeps = ensured(Snapshot, CAPTURE)
    assert keeps("lock_is_as_asked", event=LockSet(locked=True), locked=True)
    assert not keeps("lock_is_as_asked", event=LockSet(locked=True))


def test_what_a_look_told_and_was_lost_is_asked_for_again() -> None:
    places = compile_table(Snapshot).places
    looks = {name for name, one in places.items() if one.every is not None}
    assert looks == {"ready"}
    for name in looks:
        look = places[name].effect
        assert look is not None and not look.idempotent and look.ask is not None


def test_what_is_undone_by_what() -> None:
    places = compile_table(Snapshot).places
    undone = {name: one.compensation for name, one in places.items() if one.compensation}
    assert undone == {"capturing": undo}
    assert {name for name, one in places.items() if one.undoes == "capturing"} == {"removing"}
