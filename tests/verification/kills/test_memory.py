"""Crashes in memory: every boundary, repetition, and that crashes find what they must."""

from __future__ import annotations

import pytest

from tests.verification.kills.defects import planted
from tests.verification.kills.memory import Memory
from tests.verification.kills.tally import Share, Tally


@pytest.fixture(scope="module")
def memory():
    made = Memory()
    yield made
    made.close()


@pytest.fixture(scope="module")
def count(memory):
    return len(memory.boundaries())


def test_nothing_is_wrong_after_crashes(memory, count):
    tally = Tally()
    for one in Share(seed=4, boundaries=count, deaths=120).tallies(memory.sequence):
        tally.add(one)
    assert tally.deaths >= 120
    assert tally.recovering > tally.sequences
    assert tally.bad == []


def test_a_sequence_repeats(memory, count):
    one = memory.sequence(1, count + 7, count)
    assert one == memory.sequence(1, count + 7, count)
    assert one != memory.sequence(2, count + 7, count)


@pytest.mark.parametrize(
    ("defect", "problem"),
    [
        ("intent after effect", "0 attempts are recorded"),
        ("effect inside the transaction", "attempts are recorded"),
        ("no dedupe", "accepted again under its key"),
        ("compensation skipped", "undid []"),
        ("child not in the transaction", "stranded"),
        ("completion lost", "LostOwnership"),
    ],
)
def test_a_planted_defect_is_found(memory, count, defect, problem):
    found = []
    with planted(defect):
        for number in range(1, 61):
            found += memory.sequence(3, count + number, count).bad
            if any(problem in one for one in found):
                return
    pytest.fail(f"{defect!r} was not found: {found}")
