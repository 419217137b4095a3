"""`Session` in its environment: all of it, and what its properties are there to find."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.verification.environment import Done
from engine.verification.explore import explore
from machines.environments.session import ID, SHORT_MS, OfSession
from machines.flows.f07_session import Session
from machines.flows.session_run import (
    CellEnded,
    CellResult,
    Created,
    Over,
    Refused,
    SessionRun,
)
from persistence.store import open_store

OF = OfSession()
SCRIPT, PLAIN = OF.contexts()
GOOD = CellResult("completed", 0)
MADE = Done("create", "k1", Created(session_id=ID, vcpu=1, expires_ms=SHORT_MS, idles_ms=SHORT_MS))


@pytest.mark.acceptance
def test_everything_is_explored_and_nothing_is_wrong() -> None:
    report = explore(Session, open_store("sqlite://"), environment=OF, budget_seconds=60)
    assert (report.failures, report.mismatches) == ([], [])
    assert report.exhausted, f"{report.left} of {report.states} states left"
    assert report.exit_code == 0, (report.coverage.missing_faults, report.coverage.missing_marks)


def test_no_answer_of_an_honest_platform_quarantines(refused_outcomes: Any) -> None:
    assert refused_outcomes(OF) == []


def _broken(context: SessionRun, state: str, *done: Done) -> list[str]:
    return list(OF.broken(context=context, state=state, status="running", now_ms=0, done=done))


def test_properties_hold() -> None:
    ran = Done("run_cell", "k2", CellEnded(result=GOOD, at_ms=0))
    over = Done("finish", "k3", Over(reason="deleted"))
    assert _broken(PLAIN, "creating") == []
    after = msgspec.structs.replace(SCRIPT, cells=("b",), done=1, session_id=ID)
    assert _broken(after, "executing", MADE, ran) == []
    assert _broken(after, "terminated", MADE, ran, over) == []


def test_properties_can_fail() -> None:
    again = Done("create", "k2", MADE.event)
    assert _broken(PLAIN, "running", MADE, again) == ["makes_one_session"]
    twice = [Done("run_cell", key, CellEnded(result=GOOD, at_ms=0)) for key in ("k2", "k3")]
    assert _broken(SCRIPT, "executing", *twice) == ["runs_each_cell_under_one_key"]
    more = msgspec.structs.replace(SCRIPT, done=1)
    assert _broken(more, "executing") == ["keeps_to_its_script"]
    assert _broken(PLAIN, "lost", MADE) == ["is_gone_only_when_the_platform_says_so"]
    full = msgspec.structs.replace(SCRIPT, reason="no_slot")
    said = Done("create", "k1", Refused(kind="no_slot", detail="no_slot"))
    assert _broken(full, "no_slot", said) == []
    assert _broken(full, "rejected", said) == ["ends_for_the_reason_given"]
    assert _broken(SCRIPT, "no_slot", said) == ["ends_for_the_reason_given"]
