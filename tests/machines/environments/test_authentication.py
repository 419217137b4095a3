"""`Authentication` in its environment: all of it, and what its properties are there to find."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.verification.environment import Done
from engine.verification.explore import explore
from machines.environments.authentication import OfAuthentication
from machines.flows.f04_authentication import Accepted, Authentication, Denied, OutOfStep, Proof
from persistence.store import open_store

OF = OfAuthentication()
NEW, PROVEN = OF.contexts()
ACCEPTED = Accepted(tier=1, concurrency=1, requests_per_minute=1)


def test_everything_is_explored_and_nothing_is_wrong() -> None:
    report = explore(Authentication, open_store("sqlite://"), environment=OF, budget_seconds=60)
    assert (report.failures, report.mismatches) == ([], [])
    assert report.exhausted, f"{report.left} of {report.states} states left"
    assert report.exit_code == 0, (report.coverage.missing_faults, report.coverage.missing_marks)
    assert report.executions < 15_000


def test_no_answer_of_an_honest_platform_quarantines(refused_outcomes: Any) -> None:
    assert refused_outcomes(OF) == []


@pytest.mark.parametrize("context", [NEW, PROVEN])
@pytest.mark.parametrize("now_ms", [0, 500])
def test_every_clock_and_every_reason_is_tried_in_any_order(context: Proof, now_ms: int) -> None:
    clocks = OF.payloads_of("out_of_step", context=context, state="verifying", now_ms=now_ms)
    times = [one.server_ms for one in clocks or () if isinstance(one, OutOfStep)]
    off = [time and time - now_ms for time in times]
    assert set(off) == {None, 1_000, -1_000, 1_001}
    reasons = OF.payloads_of("denied", context=context, state="verifying", now_ms=now_ms)
    assert {one.reason for one in reasons or () if isinstance(one, Denied)} == {
        "expired", "suspended", "invalid_signature", "invalid_key", "other",
    }  # fmt: skip


def test_each_reason_comes_first_somewhere() -> None:
    first = {
        (OF.payloads_of("denied", context=context, state="verifying", now_ms=now_ms) or [None])[0]
        for context in (NEW, PROVEN)
        for now_ms in (0, 500)
    }
    assert len(first) == 4


def _broken(context: Proof, state: str, *done: Done) -> list[str]:
    return list(OF.broken(context=context, state=state, status="running", now_ms=0, done=done))


def test_properties_hold() -> None:
    measured = Done("prove", "k1", OutOfStep(server_ms=7, local_ms=2))
    followed = msgspec.structs.replace(NEW, offset_ms=5, resyncs=1)
    assert _broken(NEW, "verifying") == []
    assert _broken(followed, "resyncing", measured) == []
    assert _broken(followed, "authenticated", measured, Done("prove", "k2", ACCEPTED)) == []


def test_properties_can_fail() -> None:
    answers = [Done("prove", f"k{number}", ACCEPTED) for number in range(3)]
    drifted = msgspec.structs.replace(NEW, offset_ms=5)
    assert _broken(NEW, "resyncing", *answers) == ["asks_with_two_clocks_at_most"]
    assert _broken(NEW, "authenticated") == ["is_authenticated_by_the_platform_alone"]
    refused = Done("prove", "k1", Denied(reason="expired", detail="expired"))
    expired = msgspec.structs.replace(NEW, reason="expired")
    assert _broken(expired, "expired", refused) == []
    assert _broken(expired, "suspended", refused) == ["ends_for_the_reason_given"]
    assert _broken(NEW, "expired", refused) == ["ends_for_the_reason_given"]
    assert _broken(expired, "skewed", refused) == ["ends_for_the_reason_given"]
    assert _broken(drifted, "resyncing") == ["offset_was_measured"]
