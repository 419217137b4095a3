"""Every storage rule is broken on purpose, and the finding names the run and the breach."""

from __future__ import annotations

import pytest

# What the journal never says of an effect, and what a run that has ended never has.
_PENDING = (
    "UPDATE turtles_transition SET effect_seq = 1, effect_name = 'call',"
    " effect_outcome = 'pending', effect_attempts = 1, effect_calls = 1 WHERE seq = 2"
)
_OPEN = (
    "UPDATE turtles_run SET effect_seq = 1, effect_name = 'call', effect_attempts = 0,"
    " effect_calls = 0, effect_open = (1 = 0), effect_next_ms = 1 WHERE run_id = 'r0'"
)


def found_after(damage, store, *statements):
    """Damage the database past its constraints; what the inspector says then."""
    damage(store, *statements)
    return [(one.rule, one.run_id) for one in store.inspector.findings()]


@pytest.fixture
def moved(breakable, make):
    """A store with run r1 at seq 2, owned by w1, in `busy` with an open effect; r0 ended."""
    breakable.runs.start([make.start("r1"), make.start("r0", state="done", status="completed")])
    breakable.inbox.deliver([make.delivery("r1")])
    claimed = make.claim(breakable, "r1")
    effect = make.effect("r1", 2, attempts=1, open=True)
    write = make.step(
        claimed.run, claimed.fence, state="busy", status="running", effect=effect,
        consumed=make.applied(*claimed.inbox),
    )  # fmt: skip
    assert breakable.runs.commit([write])[0].ok
    assert breakable.inspector.findings() == []
    return breakable


@pytest.mark.parametrize(
    "rule, statement",
    [
        ("journal", "DELETE FROM turtles_transition WHERE run_id = 'r1' AND seq = 2"),
        ("journal", "UPDATE turtles_transition SET seq = 3 WHERE run_id = 'r1' AND seq = 2"),
        ("journal", "UPDATE turtles_transition SET source = 'done' WHERE seq = 2"),
        ("journal", "UPDATE turtles_transition SET source = 'idle' WHERE seq = 1"),
        ("journal", "UPDATE turtles_run SET seq = 7 WHERE run_id = 'r1'"),
        ("journal", "UPDATE turtles_run SET state = 'idle' WHERE run_id = 'r1'"),
        ("journal", "UPDATE turtles_transition SET context = verdicts WHERE seq = 2"),
        ("owner", "DELETE FROM turtles_worker"),
        ("inbox", "UPDATE turtles_inbox SET consumed_seq = 9"),
        ("inbox", "UPDATE turtles_inbox SET consumed_seq = NULL"),
        ("inbox", "UPDATE turtles_inbox SET status = 'rejected'"),
        ("effect", _PENDING),
        ("effect", "UPDATE turtles_run SET effect_calls = 0 WHERE run_id = 'r1'"),
        ("effect", "UPDATE turtles_run SET effect_seq = 5 WHERE run_id = 'r1'"),
        ("parent", "UPDATE turtles_run SET parent_id = 'gone' WHERE run_id = 'r1'"),
    ],
)
def test_a_breach_is_found(damage, moved, rule, statement):
    assert (rule, "r1") in found_after(damage, moved, statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE turtles_run SET due_ms = 5 WHERE run_id = 'r0'",
        "UPDATE turtles_run SET owner = 'w1' WHERE run_id = 'r0'",
        _OPEN,
        "UPDATE turtles_inbox SET run_id = 'r0', status = 'accepted', consumed_seq = NULL",
    ],
)
def test_a_run_that_has_ended_has_nothing_left(damage, moved, statement):
    assert ("ended", "r0") in found_after(damage, moved, statement)


def test_two_pending_effects_are_found(damage, moved):
    found = found_after(damage, moved, _PENDING)
    assert set(found) == {("effect", "r1")}


@pytest.mark.parametrize("status", ["pending", "running", "waiting"])
def test_a_run_that_nothing_will_move_is_found(breakable, make, status):
    breakable.runs.start([make.start("r1", state="busy", status=status)])
    (finding,) = breakable.inspector.findings()
    assert (finding.rule, finding.run_id) == ("stranded", "r1")
    assert f"{status} in busy" in finding.problem


def test_a_state_that_awaits_events_needs_the_status_waiting(breakable, make):
    breakable.runs.start([make.start("r1"), make.start("r2", status="running")])
    assert [one.run_id for one in breakable.inspector.findings()] == ["r2"]


def test_a_run_of_an_unregistered_version_is_found(breakable, make):
    breakable.runs.start([make.start("r1", version="v7")])
    (finding,) = breakable.inspector.findings()
    assert "version v7 of M is not registered" in finding.problem


def test_a_parent_that_was_not_told_is_found(damage, breakable, make):
    child = make.start("r2", parent=make.parent("r1"), depth=1)
    breakable.runs.start([make.start("r1", state="busy", child="r2"), child])
    assert breakable.inspector.findings() == []
    ending = "UPDATE turtles_run SET status = 'completed' WHERE run_id = 'r2'"
    found = found_after(damage, breakable, ending)
    assert ("stranded", "r1") in found


@pytest.mark.parametrize("status, event", [("waiting", "go"), ("paused", "$resume")])
def test_an_event_that_wakes_nobody_is_found(damage, breakable, make, status, event):
    breakable.runs.start([make.start("r1", status=status)])
    breakable.inbox.deliver([make.delivery(event=event)])
    assert breakable.inspector.findings() == []
    found = found_after(damage, breakable, "UPDATE turtles_run SET due_ms = NULL")
    assert ("stranded", "r1") in found


def test_a_held_run_with_other_events_is_well(breakable, make):
    breakable.runs.start([make.start("r1", status="paused")])
    breakable.runs.start([make.start("r2", status="quarantined")])
    breakable.inbox.deliver([make.delivery("r1"), make.delivery("r2")])
    assert breakable.inspector.findings() == []
