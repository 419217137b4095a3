"""`Snapshot` in its environment: all of it, and what its properties are there to find."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.verification.environment import Done
from engine.verification.explore import explore
from machines.clients.ports.snapshots import CopyInfo
from machines.environments.snapshot import OfSnapshot, taken
from machines.flows.capture import Capture, Cloned, Declined, Removed
from machines.flows.f09_snapshot import Snapshot
from persistence.store import open_store

OF = OfSnapshot()
FIRST = next(iter(OF.contexts()))
MADE = Done("capture", "k1", taken("files"))
FORKED = Done("clone", "k2", Cloned(copy=CopyInfo(kind="session", copy_id="fork", state="running")))
ENDED = Done("remove", "k3", Removed())
UNDONE = Done("undo", "k4", None)


def _with(**changes: Any) -> Capture:
    return msgspec.structs.replace(FIRST, **changes)


def test_nothing_is_wrong_as_far_as_a_second_goes() -> None:
    """All of it is an acceptance test, and a part of `turtles verify --all`."""
    report = explore(Snapshot, open_store("sqlite://"), environment=OF, budget_seconds=1.5)
    assert (report.failures, report.mismatches) == ([], [])
    assert report.executions > 0


@pytest.mark.acceptance
def test_everything_is_explored_and_nothing_is_wrong() -> None:
    report = explore(Snapshot, open_store("sqlite://"), environment=OF, budget_seconds=60)
    assert (report.failures, report.mismatches) == ([], [])
    assert report.exhausted, f"{report.left} of {report.states} states left"
    assert report.exit_code == 0, (report.coverage.missing_faults, report.coverage.missing_marks)
    assert report.executions < 12_000


def test_no_answer_of_an_honest_platform_quarantines(refused_outcomes: Any) -> None:
    assert refused_outcomes(OF) == []


def _broken(context: Capture, state: str, status: str, *done: Done) -> list[str]:
    return list(OF.broken(context=context, state=state, status=status, now_ms=0, done=done))


def test_properties_hold() -> None:
    assert _broken(FIRST, "capturing", "running") == []
    assert _broken(FIRST, "removed", "completed", MADE, FORKED, ENDED) == []
    assert _broken(FIRST, "unreachable", "failed", MADE, FORKED, UNDONE) == []
    assert _broken(FIRST, "kept", "completed", MADE) == []


def test_properties_can_fail() -> None:
    twice = Done("capture", "k9", MADE.event)
    assert _broken(FIRST, "ready", "running", MADE, twice) == ["one_snapshot"]
    assert _broken(FIRST, "ready", "cancelled", MADE) == ["nothing_is_left_behind"]
    left = _broken(FIRST, "ready", "cancelled", MADE, FORKED, ENDED)
    assert left == ["no_fork_is_left_behind"]
    after = _broken(FIRST, "removed", "completed", MADE, ENDED, FORKED)
    assert after == ["a_removed_one_is_left_alone"]
    refused = Done("capture", "k1", Declined(cause="source_gone", detail="source_gone"))
    assert _broken(_with(reason="source_gone"), "source_gone", "failed", refused) == []
    untrue = _broken(_with(reason="source_gone"), "refused", "failed", refused)
    assert untrue == ["ends_for_the_cause_given"]
    assert _broken(_with(locked=True), "removing", "running") == ["a_lock_is_a_lock"]
