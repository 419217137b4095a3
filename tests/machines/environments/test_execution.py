"""`Execution` in its environment: all of it, and what its properties are there to find."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.verification.environment import Done
from engine.verification.explore import explore
from machines.environments.execution import JOB, OfExecution
from machines.flows.code_run import (
    CodeRun,
    Ended,
    Missing,
    Output,
    RanOver,
    Refused,
    StillRunning,
    Submitted,
)
from machines.flows.f06_execution import Execution
from persistence.store import open_store

OF = OfExecution()
(RUN,) = OF.contexts()
GOOD = Ended(outcome="completed", output=Output(exit_code=0, stdout="1"))
TAKEN = msgspec.structs.replace(RUN, job_id=JOB, give_up_ms=2_000)


def test_nothing_is_wrong_as_far_as_a_second_goes() -> None:
    """All of it is an acceptance test, and a part of `turtles verify --all`."""
    report = explore(Execution, open_store("sqlite://"), environment=OF, budget_seconds=1.5)
    assert (report.failures, report.mismatches) == ([], [])
    assert report.executions > 0


@pytest.mark.acceptance
def test_everything_is_explored_and_nothing_is_wrong() -> None:
    report = explore(Execution, open_store("sqlite://"), environment=OF, budget_seconds=60)
    assert (report.failures, report.mismatches) == ([], [])
    assert report.exhausted, f"{report.left} of {report.states} states left"
    assert report.exit_code == 0, (report.coverage.missing_faults, report.coverage.missing_marks)
    assert report.executions < 15_000


def test_no_answer_of_an_honest_platform_quarantines(refused_outcomes: Any) -> None:
    assert refused_outcomes(OF) == []


def _payloads(event: str, context: CodeRun, now_ms: int) -> list[Any]:
    return OF.payloads_of(event, context=context, state="polling", now_ms=now_ms) or []


def test_a_job_is_over_only_after_its_time() -> None:
    assert _payloads("still_running", TAKEN, 1_999) == [StillRunning()]
    assert _payloads("ran_over", TAKEN, 1_999) == []
    assert _payloads("still_running", TAKEN, 2_000) == []
    assert _payloads("ran_over", TAKEN, 2_000) == [RanOver()]
    assert _payloads("submitted", RUN, 7) == [Submitted(job_id=JOB, language="python", at_ms=7)]


def test_every_refusal_and_every_outcome_is_tried() -> None:
    assert len(_payloads("refused", RUN, 0)) == 9
    ends = [(one.outcome, one.output.exit_code) for one in _payloads("ended", RUN, 0)]
    assert ends == [
        ("completed", 0), ("completed", 1), ("failed", None), ("timed_out", None),
        ("cancelled", None),
    ]  # fmt: skip


def _broken(context: CodeRun, state: str, *done: Done) -> list[str]:
    return list(OF.broken(context=context, state=state, status="running", now_ms=0, done=done))


def test_properties_hold() -> None:
    taken = Done("submit", "k1", Submitted(job_id=JOB, language="python", at_ms=0))
    told = msgspec.structs.replace(TAKEN, outcome="completed", output=GOOD.output)
    assert _broken(RUN, "submitting") == []
    assert _broken(TAKEN, "polling", taken) == []
    assert _broken(told, "completed", taken, Done("look", "k2", GOOD)) == []
    assert _broken(TAKEN, "cancelled", taken, Done("withdraw", "k3", Missing())) == []


def test_properties_can_fail() -> None:
    twice = [Done("submit", key, GOOD) for key in ("k1", "k2")]
    assert _broken(RUN, "submitting", *twice) == ["runs_once"]
    made_up = msgspec.structs.replace(TAKEN, outcome="completed", output=GOOD.output)
    assert _broken(made_up, "completed") == ["tells_what_the_platform_told"]
    no_slot = msgspec.structs.replace(RUN, reason="full")
    said = Done("submit", "k1", Refused(kind="no_slot", detail="full"))
    assert _broken(no_slot, "no_slot", said) == []
    assert _broken(no_slot, "rejected", said) == ["refuses_for_the_reason_given"]
    assert _broken(RUN, "no_slot", said) == ["refuses_for_the_reason_given"]
    assert _broken(TAKEN, "cancelled") == ["leaves_no_job_behind"]
    assert _broken(TAKEN, "overdue") == ["leaves_no_job_behind"]
    assert _broken(TAKEN, "lost") == ["is_patient_with_a_late_job"]
