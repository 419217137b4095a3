"""`Agent` in its environment: all of it, and what its properties are there to find."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.verification.environment import Done
from engine.verification.explore import explore
from machines.environments.agent import OfAgent
from machines.flows.agent_plan import Ended, Frozen, Opened, Ran, Woken
from machines.flows.f14_agent import Agent
from persistence.store import open_store

OF = OfAgent()
COINS, CARD = OF.contexts()


def test_nothing_is_wrong_as_far_as_a_second_goes() -> None:
    """All of it is an acceptance test, and a part of `turtles verify --all`."""
    report = explore(Agent, open_store("sqlite://"), environment=OF, budget_seconds=1.5)
    assert (report.failures, report.mismatches) == ([], [])
    assert report.executions > 0


@pytest.mark.acceptance
def test_everything_is_explored_and_nothing_is_wrong() -> None:
    report = explore(Agent, open_store("sqlite://"), environment=OF, budget_seconds=60)
    assert (report.failures, report.mismatches) == ([], [])
    assert report.exhausted, f"{report.left} of {report.states} states left"
    assert report.exit_code == 0, (report.coverage.missing_faults, report.coverage.missing_marks)
    assert report.executions < 10_000


def _broken(state: str, *done: Done, **fields: Any) -> list[str]:
    context = msgspec.structs.replace(COINS, **fields)
    return list(OF.broken(context=context, state=state, status="running", now_ms=0, done=done))


OPENED, ENDED = (
    Done("open_session", "k1", Opened(session_id="s")),
    Done("end_session", "k6", Ended()),
)
RAN = Done("run_second", "k5", Ran(stdout="42\n", exit_code=0))
WHOLE = (OPENED, Done("freeze", "k3", Frozen()), Done("unfreeze", "k4", Woken()), RAN, ENDED)


def test_properties_hold() -> None:
    assert _broken("discovering") == []
    assert _broken("done", *WHOLE) == []
    assert _broken("forgotten", OPENED, ENDED, refusal="it had forgotten") == []


def test_properties_can_fail() -> None:
    assert _broken("done", OPENED, RAN, ENDED) == ["is_done_by_what_it_saw"]
    assert _broken("stuck", OPENED, refusal="no") == ["leaves_no_sandbox"]
    assert _broken("done", *WHOLE, session_id="s") == ["leaves_no_sandbox"]
    assert _broken("freezing") == ["acts_with_a_key_only"]
    assert _broken("unfunded") == ["says_why"]
