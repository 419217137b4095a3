"""`Inception` in its environment: all of it, and what its properties are there to find."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.table import compile_table
from engine.verification.environment import Done
from engine.verification.explore import explore
from engine.verification.result import Scope
from machines.environments import inception
from machines.environments.inception import OfInception
from machines.flows import f01_discovery, f03_payment
from machines.flows.f13_inception import Inception
from machines.flows.layer import Layer
from machines.flows.layer_events import ClearedUp, Created, Equipped, Released
from persistence.store import open_store

OF = OfInception()
ALONE, *_, AGAIN = OF.contexts()
FIRST = next(one for one in OF.contexts() if inception.is_first(one))
NOBODY_CANCELS = Scope(contexts=8, messages=0, cancels=False)


@pytest.mark.acceptance
def test_everything_is_explored_and_nothing_is_wrong() -> None:
    """Without requests to stop, which treble the work."""
    report = explore(Inception, open_store("sqlite://"), scope=NOBODY_CANCELS, budget_seconds=25)
    coverage = report.coverage
    assert (report.failures, report.mismatches) == ([], [])
    assert report.exhausted, f"{report.left} of {report.states} states left"
    assert (coverage.missing_transitions, coverage.missing_cells) == ([], [])
    assert coverage.missing_marks == ["cancelled_with_a_sandbox"]
    assert report.executions < 16_000


@pytest.mark.parametrize(
    ("shown", "real"),
    [
        (inception.Discovery, f01_discovery.Discovery),
        (inception.Payment, f03_payment.Payment),
    ],
)
def test_what_is_shown_of_a_child_is_what_it_has(shown: Any, real: Any) -> None:
    """Name, milestones, ends, and where it can be stopped."""
    short, full = compile_table(shown), compile_table(real)
    assert (short.name, short.context, short.initial) == (full.name, full.context, full.initial)
    milestones = [place.name for place in short.places.values() if place.milestone]
    assert milestones == [place.name for place in full.places.values() if place.milestone]
    for name, place in short.places.items():
        theirs = full.places[name]
        assert (place.final, place.failure) == (theirs.final, theirs.failure)
        assert place.cancellable == theirs.cancellable


CREATED = Created(session_id="sandbox-1")


def _done(effect: str, count: int = 1) -> tuple[Done, ...]:
    events = {
        "equip": Equipped(digest="digest", offset_ms=0),
        "create_session": CREATED,
        "delete_session": Released(),
        "clear_sessions": ClearedUp(),
    }
    return tuple(Done(effect, f"{effect}-{n}", events[effect]) for n in range(count))


def _broken(context: Layer, status: str, *done: Done) -> list[str]:
    return list(OF.broken(context=context, state="done", status=status, now_ms=0, done=done))


def _with(context: Layer, **changes: Any) -> Layer:
    return msgspec.structs.replace(context, **changes)


@pytest.mark.parametrize(
    ("status", "done"),
    [
        ("running", ()),
        ("running", (*_done("equip"), *_done("create_session"))),
        ("completed", (*_done("equip"), *_done("create_session"), *_done("delete_session"))),
    ],
)
def test_properties_hold(status: str, done: Any) -> None:
    assert _broken(ALONE, status, *done) == []


@pytest.mark.parametrize(
    ("rule", "context", "status", "done"),
    [
        (
            "no_sandbox_outlives_its_layer",
            ALONE,
            "completed",
            (*_done("equip"), *_done("create_session")),
        ),
        (
            "one_sandbox_at_a_time",
            ALONE,
            "running",
            (*_done("equip"), *_done("create_session", 2)),
        ),
        ("no_sandbox_without_a_tool", ALONE, "running", _done("create_session")),
        ("spends_within_budget", _with(ALONE, paid_cents=10), "running", ()),
        ("a_card_pays_within_budget", _with(FIRST, paid_cents=1, card_cents=2), "running", ()),
        (
            "what_the_card_has_left_is_known",
            _with(FIRST, card_cents=1, card_left_cents=2),
            "running",
            (),
        ),
        ("orphans_end_first", AGAIN, "running", (*_done("equip"), *_done("create_session"))),
    ],
)
def test_properties_can_fail(rule: str, context: Any, status: str, done: Any) -> None:
    assert _broken(context, status, *done) == [rule]
