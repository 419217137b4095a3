"""`Trust` in its environment: all of it, and what its properties are there to find."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.verification.environment import Done
from engine.verification.explore import explore
from engine.verification.result import Scope
from machines.environments.trust import OfTrust, as_promised, but
from machines.flows.f12_trust import Trust
from machines.flows.trial import MAY_BE_LEFT, Gone, Opened, Probed, Promised, Trial, Withdrawn
from persistence.store import open_store

OF = OfTrust()
NOBODY_CANCELS = Scope(contexts=2, messages=0, cancels=False, attempts=2)
KEPT, TRIED = OF.contexts()
OPENED = Done("open_session", "k1", Opened(session_id="session"))
GONE = Done("end_session", "k2", Gone())
WITHDRAWN = Done("withdraw", "k3", Withdrawn())


def _seen(context: Trial, hits: int = 0) -> Done:
    return Done("probe_walls", "k4", Probed(sights=as_promised(context), hits=hits))


def test_everything_is_explored_and_nothing_is_wrong() -> None:
    """Without requests to stop, which treble the work."""
    report = explore(
        Trust, open_store("sqlite://"), scope=NOBODY_CANCELS, environment=OF, budget_seconds=60
    )
    assert (report.failures, report.mismatches) == ([], [])
    assert report.exhausted, f"{report.left} of {report.states} states left"
    coverage = report.coverage
    assert (coverage.missing_transitions, coverage.missing_cells) == ([], [])
    assert coverage.missing_marks == ["cancelled_with_a_session"]
    assert report.executions < 4_000


def test_no_answer_of_an_honest_platform_quarantines(refused_outcomes: Any) -> None:
    assert refused_outcomes(OF) == []


def test_there_are_walls_that_are_open_and_doubts() -> None:
    told = [
        one
        for context in (KEPT, TRIED)
        for one in OF.payloads_of("probed", context=context, state="probing", now_ms=0) or ()
        if isinstance(one, Probed)
    ]
    assert [one.hits for one in told].count(1) == 1
    assert any(one.problem for one in told)
    assert len({one.sights for one in told}) == 5


def _broken(context: Trial, state: str, status: str, *done: Done) -> list[str]:
    return list(OF.broken(context=context, state=state, status=status, now_ms=0, done=done))


PROVEN = msgspec.structs.replace(KEPT, session_id="session", sights=as_promised(KEPT))
BREACHED = msgspec.structs.replace(KEPT, sights=but(as_promised(KEPT), "dns", "open"))
LEAK = Done("probe_walls", "k5", Probed(sights=BREACHED.sights, hits=0))
UNTOLD = msgspec.structs.replace(KEPT, reason=f"no session; {MAY_BE_LEFT}: down")
OTHER = Done("read_promise", "k6", Promised(network_mode="semitrusted"))
SAME = Done("read_promise", "k6", Promised(network_mode="zerotrust"))


@pytest.mark.parametrize(
    ("context", "state", "status", "done"),
    [
        (KEPT, "requested", "running", ()),
        (PROVEN, "proven", "completed", (OPENED, _seen(KEPT))),
        (TRIED, "proven", "completed", (OPENED, _seen(TRIED), GONE)),
        (KEPT, "refused", "failed", (OPENED, WITHDRAWN)),
        (KEPT, "lost", "failed", (OPENED, GONE)),
        (KEPT, "refused", "failed", ()),
        (UNTOLD, "refused", "failed", (OPENED,)),
        (BREACHED, "breached", "failed", (OPENED, LEAK, GONE)),
        (KEPT, "breached", "failed", (OPENED, OTHER, GONE)),
    ],
)
def test_properties_hold(context: Trial, state: str, status: str, done: Any) -> None:
    assert _broken(context, state, status, *done) == []


@pytest.mark.parametrize(
    ("rule", "context", "state", "status", "done"),
    [
        ("no_session_without_a_proof", KEPT, "lost", "failed", (OPENED,)),
        ("proven_by_probes_alone", PROVEN, "proven", "completed", (OPENED,)),
        ("proven_by_probes_alone", PROVEN, "proven", "completed", (OPENED, _seen(KEPT, 1))),
        ("proven_by_probes_alone", PROVEN, "proven", "completed", (OPENED, LEAK)),
        ("breached_by_evidence", BREACHED, "breached", "failed", (OPENED, SAME, GONE)),
        ("hands_over_what_is_wanted", PROVEN, "proven", "completed", (_seen(KEPT), GONE)),
        ("hands_over_what_is_wanted", TRIED, "proven", "completed", (OPENED, _seen(TRIED))),
        ("hands_over_what_is_wanted", KEPT, "proven", "completed", (OPENED, _seen(KEPT))),
    ],
)
def test_properties_can_fail(rule: str, context: Trial, state: str, status: str, done: Any) -> None:
    assert _broken(context, state, status, *done) == [rule]
