"""`Image` in its environment: all of it, and what its properties are there to find."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.verification.environment import Done
from engine.verification.explore import explore
from machines.clients.ports.snapshots import CopyInfo
from machines.environments.image import IMAGE, OfImage
from machines.flows.f10_image import Image
from machines.flows.publication import (
    Declined,
    FoundImage,
    Given,
    Publication,
    Published,
    Shown,
    Spawned,
)
from persistence.store import open_store

OF = OfImage()
FIRST = next(iter(OF.contexts()))
MADE = Done("publish", "k1", Published(image_id=IMAGE, visibility="private"))
COPY = CopyInfo(kind="session", copy_id="made", state="running")
SPAWNED = Done("spawn", "k2", Spawned(copy=COPY))
GIVEN = Done("transfer", "k3", Given())
SHOWN = Done("show", "k4", Shown(visibility="public"))


def _with(**changes: Any) -> Publication:
    return msgspec.structs.replace(FIRST, **changes)


def test_nothing_is_wrong_as_far_as_a_second_goes() -> None:
    """All of it is an acceptance test, and a part of `turtles verify --all`."""
    report = explore(Image, open_store("sqlite://"), environment=OF, budget_seconds=1.5)
    assert (report.failures, report.mismatches) == ([], [])
    assert report.executions > 0


@pytest.mark.acceptance
def test_everything_is_explored_and_nothing_is_wrong() -> None:
    report = explore(Image, open_store("sqlite://"), environment=OF, budget_seconds=60)
    assert (report.failures, report.mismatches) == ([], [])
    assert report.exhausted, f"{report.left} of {report.states} states left"
    assert report.exit_code == 0, (report.coverage.missing_faults, report.coverage.missing_marks)
    assert report.executions < 12_000


@pytest.mark.acceptance
def test_and_somebody_asks_it_to_stop_at_any_moment() -> None:
    scope = msgspec.structs.replace(OF.scope, cancels=True)
    store = open_store("sqlite://")
    report = explore(Image, store, environment=OF, scope=scope, budget_seconds=120)
    assert (report.failures, report.exhausted) == ([], True)


def test_no_answer_of_an_honest_platform_quarantines(refused_outcomes: Any) -> None:
    assert refused_outcomes(OF) == []


def _broken(context: Publication, state: str, status: str, *done: Done) -> list[str]:
    return list(OF.broken(context=context, state=state, status=status, now_ms=0, done=done))


def test_properties_hold() -> None:
    assert _broken(FIRST, "finding", "running") == []
    assert _broken(_with(visibility="public"), "public", "running", MADE, SHOWN) == []
    undone = (Done("undo_spawns", "k8", None), Done("undo_image", "k9", None))
    assert _broken(FIRST, "private", "cancelled", MADE, SPAWNED, *undone) == []
    assert _broken(FIRST, "transferred", "completed", MADE, GIVEN) == []


def test_properties_can_fail() -> None:
    twice = Done("publish", "k9", MADE.event)
    assert _broken(FIRST, "private", "running", MADE, twice) == ["one_image"]
    assert _broken(FIRST, "private", "cancelled", MADE) == ["nothing_is_left_behind"]
    assert _broken(FIRST, "private", "cancelled", SPAWNED) == ["nothing_is_left_behind"]
    guest = Done("find", "k0", FoundImage(access="public", visibility="private"))
    assert _broken(FIRST, "usable", "running", guest, GIVEN) == ["only_its_owner_changes_it"]
    untold = _broken(_with(visibility="public"), "public", "running", MADE)
    assert untold == ["is_as_visible_as_was_told"]
    late = _broken(_with(visibility="public"), "transferred", "completed", MADE, GIVEN, SHOWN)
    assert late == ["what_is_given_away_is_left_alone"]
    refused = Done("spawn", "k2", Declined(cause="no_slot", detail="no_slot"))
    assert _broken(_with(reason="no_slot"), "no_slot", "failed", refused) == []
    untrue = _broken(_with(reason="no_slot"), "not_granted", "failed", refused)
    assert untrue == ["ends_for_the_cause_given"]
