"""Pages of whole runs, and what must hold between runs."""

from __future__ import annotations

import pytest


@pytest.fixture
def moved(breakable, make):
    """Runs r1 (child r3), r2 and r3; r2 has moved by an event and has an open effect."""
    breakable.runs.start([make.start("r1", state="busy", child="r3")])
    breakable.runs.start([make.start("r3", parent=make.parent("r1"), depth=1)])
    breakable.runs.start([make.start("r2")])
    breakable.inbox.deliver([make.delivery("r2")])
    claimed = make.claim(breakable, "r2")
    effect = make.effect("r2", 2, attempts=1, open=True)
    write = make.step(
        claimed.run, claimed.fence, state="busy", status="running", effect=effect,
        consumed=make.applied(*claimed.inbox),
    )  # fmt: skip
    assert breakable.runs.commit([write])[0].ok
    assert breakable.inspector.relations() == []
    return breakable


def test_a_page_has_whole_runs_in_the_order_of_their_ids(moved):
    one, two, three = moved.inspector.histories()
    assert [one.run_id, two.run_id, three.run_id] == ["r1", "r2", "r3"]
    assert two.stored == moved.runs.get("r2")
    assert [(e.seq, e.event) for e in two.entries] == [
        (e.seq, e.event) for e in moved.journal.read("r2")
    ]
    assert two.fences == (0, two.stored.fence)
    assert len(two.verdicts) == 2
    (effect,) = two.effects
    assert (effect.name, effect.calls, effect.closed_seq) == (effect.name, 1, None)
    (event,) = two.inbox
    assert (event.status, event.consumed_seq) == ("applied", 2)
    assert (one.effects, one.inbox, one.cut) == ((), (), False)


def test_pages_go_on_after_the_last_run(moved):
    inspector = moved.inspector
    assert [one.run_id for one in inspector.histories(runs=2)] == ["r1", "r2"]
    assert [one.run_id for one in inspector.histories("r2", runs=2)] == ["r3"]
    assert inspector.histories("r3") == []


def test_a_page_stops_before_the_journals_grow_too_long(moved):
    inspector = moved.inspector
    assert [one.run_id for one in inspector.histories(entries=2)] == ["r1"]
    (cut,) = inspector.histories("r1", entries=1)
    assert (cut.run_id, cut.cut, len(cut.entries)) == ("r2", True, 1)


def test_one_run_alone(moved):
    (alone,) = moved.inspector.histories(run_id="r2")
    assert alone == moved.inspector.histories()[1]
    assert moved.inspector.histories(run_id="gone") == []


def test_what_cannot_be_read_is_said_of_that_run_alone(damage, moved):
    damage(moved, "UPDATE turtles_run SET undo = '[' WHERE run_id = 'r2'")
    one, two, _ = moved.inspector.histories()
    assert "undo list" in two.unreadable
    assert (one.unreadable, one.stored is None) == (None, False)


def test_a_run_with_two_pending_effects_is_there_once(damage, moved):
    damage(
        moved,
        "UPDATE turtles_transition SET effect_seq = 1, effect_name = 'other',"
        " effect_outcome = 'pending', effect_attempts = 1, effect_calls = 1"
        " WHERE run_id = 'r2' AND seq = 1",
    )
    found = moved.inspector.histories()
    assert [(one.run_id, len(one.effects)) for one in found] == [("r1", 0), ("r2", 2), ("r3", 0)]


@pytest.mark.parametrize(
    "rule, run_id, statement",
    [
        ("no run", "r2", "DELETE FROM turtles_run WHERE run_id = 'r2'"),
        ("child", "r1", "DELETE FROM turtles_run WHERE run_id = 'r3'"),
        ("child", "r1", "UPDATE turtles_run SET parent_id = 'r2' WHERE run_id = 'r3'"),
        ("child", "r3", "UPDATE turtles_run SET depth = 4 WHERE run_id = 'r3'"),
        (
            "orphan child",
            "r3",
            "UPDATE turtles_run SET status = 'completed' WHERE run_id = 'r1'",
        ),
        (
            "parent not told",
            "r1",
            "UPDATE turtles_run SET status = 'completed', seq = 2 WHERE run_id = 'r3'",
        ),
    ],
)
def test_a_breach_between_runs_is_found(damage, moved, rule, run_id, statement):
    damage(moved, statement)
    assert (rule, run_id) in [(one.rule, one.run_id) for one in moved.inspector.relations()]


def test_a_child_that_may_outlive_its_parent_is_no_orphan(damage, moved):
    damage(
        moved,
        "UPDATE turtles_run SET status = 'completed' WHERE run_id = 'r1'",
        "UPDATE turtles_run SET parent = replace(parent, 'cancel', 'abandon') WHERE run_id = 'r3'",
    )
    assert moved.inspector.relations() == []
