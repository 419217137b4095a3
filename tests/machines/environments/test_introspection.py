"""`Introspection` in its environment: all of it, and what its properties are there to find."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.verification.environment import Done
from engine.verification.explore import explore
from engine.verification.result import Scope
from machines.environments.introspection import EVERYTHING, OfIntrospection, only
from machines.flows.f11_introspection import Introspection
from machines.flows.inquiry import TOPICS, Inquiry, Kept, Told
from persistence.store import open_store

OF = OfIntrospection()
NEW, KNOWING = OF.contexts()


def test_everything_is_explored_and_nothing_is_wrong() -> None:
    """With one attempt for each question, so that no time passes; `turtles verify` does it all."""
    scope = Scope(contexts=2, messages=0, cancels=False, attempts=1)
    report = explore(
        Introspection, open_store("sqlite://"), scope=scope, environment=OF, budget_seconds=60
    )
    assert (report.failures, report.mismatches) == ([], [])
    assert report.exhausted, f"{report.left} of {report.states} states left"
    coverage = report.coverage
    assert {event for _, event, _ in coverage.missing_transitions} == {"too_late"}
    assert coverage.missing_marks == []
    assert report.executions < 4_000


@pytest.mark.acceptance
def test_and_somebody_asks_it_to_stop_at_any_moment() -> None:
    scope = msgspec.structs.replace(OF.scope, cancels=True)
    store = open_store("sqlite://")
    report = explore(Introspection, store, environment=OF, scope=scope, budget_seconds=110)
    assert (report.failures, report.mismatches, report.exhausted) == ([], [], True)
    assert report.coverage.complete


def test_no_answer_of_an_honest_platform_quarantines(refused_outcomes: Any) -> None:
    assert refused_outcomes(OF) == []


def _told(topic: Any, key: str) -> Done:
    return Done(f"ask_{topic}", key, Told(topic=topic, answer=only(topic)))


ALL_TOLD = tuple(_told(topic, topic) for topic in TOPICS)
ALL_KEPT = tuple(Done(f"ask_{topic}", topic, Kept()) for topic in TOPICS)
TOLD = msgspec.structs.replace(NEW, known=only("limits"))


def _broken(context: Inquiry, state: str, *done: Done) -> list[str]:
    return list(OF.broken(context=context, state=state, status="running", now_ms=0, done=done))


@pytest.mark.parametrize(
    ("context", "state", "done"),
    [
        (NEW, "asking_health", ()),
        (TOLD, "asking_languages", (_told("limits", "k"),)),
        (KNOWING, "complete", ALL_KEPT),
        (msgspec.structs.replace(NEW, known=EVERYTHING), "complete", ALL_TOLD),
        (KNOWING, "unreachable", ()),
    ],
)
def test_properties_hold(context: Inquiry, state: str, done: Any) -> None:
    assert _broken(context, state, *done) == []


SIX = tuple(_told("limits", f"k{number}") for number in range(6))


@pytest.mark.parametrize(
    ("rule", "context", "state", "done"),
    [
        ("asks_within_the_lowest_rate", TOLD, "asking_limits", SIX),
        ("knows_what_it_was_told", TOLD, "asking_languages", ()),
        ("complete_with_every_answer", KNOWING, "complete", ALL_KEPT[1:]),
        ("unreachable_without_a_word", KNOWING, "unreachable", ALL_TOLD[:3]),
    ],
)
def test_properties_can_fail(rule: str, context: Inquiry, state: str, done: Any) -> None:
    assert _broken(context, state, *done) == [rule]
