"""`Service` in its environment: all of it, and what its properties are there to find."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.secret import Secret
from engine.verification.environment import Done
from engine.verification.explore import explore
from machines.environments.service import URL, OfService
from machines.flows.deployment import Created, Declined, Deployment, Gone, Ready
from machines.flows.f08_service import Service
from persistence.store import open_store

OF = OfService()
FIRST = next(iter(OF.contexts()))
MADE = Done("create", "k1", Created(service_id="s", url=URL, deployment=1))
ANSWERED = Done("await_answer", "k2", Ready(url=URL, deployment=1, http_status=200))
ENDED = Done("destroy", "k3", Gone())


def _with(**changes: Any) -> Deployment:
    return msgspec.structs.replace(FIRST, **changes)


def test_nothing_is_wrong_as_far_as_a_second_goes() -> None:
    """All of it is an acceptance test, and a part of `turtles verify --all`."""
    report = explore(Service, open_store("sqlite://"), environment=OF, budget_seconds=1.5)
    assert (report.failures, report.mismatches) == ([], [])
    assert report.executions > 0


@pytest.mark.acceptance
def test_everything_is_explored_and_nothing_is_wrong() -> None:
    report = explore(Service, open_store("sqlite://"), environment=OF, budget_seconds=60)
    assert (report.failures, report.mismatches) == ([], [])
    assert report.exhausted, f"{report.left} of {report.states} states left"
    assert report.exit_code == 0, (report.coverage.missing_faults, report.coverage.missing_marks)
    assert report.executions < 12_000


@pytest.mark.acceptance
def test_and_somebody_asks_it_to_stop_at_any_moment() -> None:
    scope = msgspec.structs.replace(OF.scope, cancels=True)
    store = open_store("sqlite://")
    report = explore(Service, store, environment=OF, scope=scope, budget_seconds=120)
    assert (report.failures, report.exhausted) == ([], True)


def test_no_answer_of_an_honest_platform_quarantines(refused_outcomes: Any) -> None:
    assert refused_outcomes(OF) == []


def _broken(context: Deployment, state: str, status: str, *done: Done) -> list[str]:
    return list(OF.broken(context=context, state=state, status=status, now_ms=0, done=done))


def test_properties_hold() -> None:
    assert _broken(FIRST, "creating", "running") == []
    assert _broken(_with(address=URL), "running", "running", MADE, ANSWERED) == []
    assert _broken(FIRST, "destroyed", "completed", MADE, ANSWERED, ENDED) == []
    assert _broken(FIRST, "handed_over", "completed", MADE) == []


def test_properties_can_fail() -> None:
    twice = Done("create", "k9", MADE.event)
    after = Done("freeze", "k4", None)
    assert _broken(FIRST, "starting", "running", MADE, twice) == ["one_service"]
    assert _broken(FIRST, "failed", "failed", MADE) == ["nothing_is_left_behind"]
    left = _broken(FIRST, "destroyed", "completed", MADE, ENDED, after)
    assert left == ["a_destroyed_one_is_left_alone"]
    early = _broken(_with(address=URL), "running", "running", MADE)
    assert early == ["runs_because_it_answered"]
    refused = Done("create", "k1", Declined(cause="no_slot", detail="no_slot"))
    assert _broken(_with(reason="no_slot"), "no_slot", "running", refused) == []
    untrue = _broken(_with(reason="no_slot"), "name_taken", "running", refused)
    assert untrue == ["ends_for_the_cause_given"]
    kept = _broken(_with(env=Secret("A=1")), "running", "running")
    assert kept == ["a_written_secret_is_forgotten"]
