"""Exact kills: what a boundary is, that a sequence repeats, and that kills find what they must."""

from __future__ import annotations

import pytest

from tests.verification.kills.defects import planted
from tests.verification.kills.killing import Killer, work_directory
from tests.verification.kills.tally import Share, Tally


@pytest.fixture(scope="module")
def killer():
    with work_directory() as directory:
        yield Killer(directory)


@pytest.fixture(scope="module")
def boundaries(killer):
    return killer.boundaries()


def test_the_boundaries_are_everywhere_and_always_the_same(killer, boundaries):
    assert killer.boundaries() == boundaries
    for name in (
        "before runs.group",
        "after runs.group",
        "after runs.commit",
        "before runs.claim",
        "before workers.reap",
        "after workers.retire",
        "before machines.register",
        "before effect charge",
        "charge done, not answered",
        "after effect recall",
        "before reconcile charge",
        "before COMMIT",
        "before CREATE TABLE turtles_run",
        "before INSERT INTO turtles_transition",
        "before UPDATE turtles_run SET",
        "after file operation Write",
        "after file operation Sync",
    ):
        assert name in boundaries, name


def test_nothing_is_wrong_after_kills(killer, boundaries):
    tally = Tally()
    share = Share(seed=4, boundaries=len(boundaries), deaths=6)
    for one in share.tallies(killer.sequence):
        tally.add(one)
    assert tally.deaths >= 6
    assert tally.recovering > 0
    assert tally.bad == []


@pytest.mark.parametrize(
    "name", ["before COMMIT", "charge done, not answered", "after runs.commit"]
)
def test_the_process_dies_where_it_was_told(killer, boundaries, name):
    number = boundaries.index(name) + 1
    one = killer.sequence(1, number, len(boundaries))
    assert one.deaths[0] == f"{number} {name}"
    assert one.bad == ()


def test_a_sequence_repeats(killer, boundaries):
    count = len(boundaries)
    assert killer.sequence(1, count + 2, count) == killer.sequence(1, count + 2, count)


@pytest.mark.parametrize(
    ("defect", "name", "problem"),
    [
        ("intent after effect", "charge done, not answered", "0 attempts are recorded"),
        ("effect inside the transaction", "dispatch done, not answered", "attempts are recorded"),
        ("no transactions", "before INSERT INTO turtles_transition", "finding: "),
        ("dead workers keep their runs", "after runs.claim", "still holds its lease"),
    ],
)
def test_a_planted_defect_is_found(killer, boundaries, defect, name, problem):
    found = []
    with planted(defect):
        for number in [n for n, one in enumerate(boundaries, start=1) if one == name][:24]:
            found += killer.sequence(2, number, len(boundaries)).bad
            if any(problem in one for one in found):
                return
    pytest.fail(f"{defect!r} was not found: {found}")


def test_a_process_that_fails_is_a_finding(killer, boundaries, monkeypatch):
    def broken(*_arguments, **_options):
        raise ValueError("no such store")

    monkeypatch.setattr("tests.verification.kills.killing.open_store", broken)
    one = killer.sequence(1, 1, len(boundaries))
    assert one.deaths == ()
    assert "ValueError: no such store" in one.bad[0]
    assert one.bad[-1] == "a process ended with 1"


def test_the_directory_is_left_empty(killer, boundaries):
    killer.sequence(3, 5, len(boundaries))
    assert list(killer._directory.iterdir()) == []
