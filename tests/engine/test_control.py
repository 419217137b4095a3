"""The engine's own events are decisions like every other: pure, and in the journal."""

from __future__ import annotations

import pytest

from engine import control
from engine.decide import Decision, Rejection, begin, decide
from engine.table import compile_table

NOW = 5_000


@pytest.fixture
def table(zoo):
    return compile_table(zoo.Shop)


@pytest.fixture
def fresh(table, zoo):
    return begin(table, run_id="r1", context=zoo.Order(), now_ms=NOW).after


@pytest.fixture
def paid(table, fresh, zoo):
    done = decide(table, fresh, "charged", zoo.Charged(receipt="x"), NOW, from_effect=True)
    return done.after


def test_pause_and_resume_come_back_to_the_same(table, paid):
    paused = control.pause(paid, NOW)
    assert (paused.after.status, paused.after.held_from, paused.after.seq) == (
        "paused",
        "waiting",
        3,
    )
    assert (paused.entry.event, paused.entry.source, paused.entry.target) == (
        "$pause", "packing", "packing",
    )  # fmt: skip
    assert paused.after.due_ms is None
    resumed = control.resume(table, paused.after, NOW + 1)
    assert resumed.after == paid.but(seq=4)


def test_resume_tries_the_effect_anew_but_keeps_its_doubt(table, fresh):
    from msgspec.structs import replace

    doubted = fresh.but(
        effect=replace(fresh.effect, attempts=3, open=True, next_ms=NOW + 90_000),
        status="quarantined", held_from="waiting", last_error="unknown",
    )  # fmt: skip
    after = control.resume(table, doubted, NOW).after
    assert (after.effect.attempts, after.effect.open, after.effect.next_ms) == (0, True, NOW)
    assert (after.status, after.last_error) == ("running", None)


@pytest.mark.parametrize(
    ("change", "pause", "resume", "cancel"),
    [
        ({"status": "completed"}, "completed", "completed, not paused", "completed"),
        ({"status": "paused"}, "paused", None, None),
        ({"status": "quarantined"}, "quarantined", None, None),
        ({"closing": "failed", "status": "running"}, None, "running, not paused", "failed"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(table, paid, change, pause, resume, cancel):
    run = paid.but(**change)
    for result, reason in (
        (control.pause(run, NOW), pause),
        (control.resume(table, run, NOW), resume),
        (control.cancel(table, run, NOW), cancel),
    ):
        if reason is None:
            assert isinstance(result, Decision)
        else:
            assert isinstance(result, Rejection)
            assert result.reason.startswith(f"the run is {reason}")


def test_cancel_undoes_what_there_is(table, paid):
    closing = control.cancel(table, paid, NOW).after
    assert (closing.closing, closing.status, closing.deadline_ms) == ("cancelled", "running", None)
    assert (closing.effect.name, closing.effect.undo_of, closing.effect.seq) == (
        "refund", "charging", 3,
    )  # fmt: skip
    ended = control.undone(table, closing, NOW).after
    assert (ended.status, ended.closing, ended.undo, ended.effect) == ("cancelled", None, (), None)


def test_cancel_with_nothing_to_undo_is_the_end(table, fresh):
    ended = control.cancel(table, fresh, NOW).after
    assert (ended.status, ended.effect, ended.due_ms) == ("cancelled", None, None)


def test_cancel_waits_for_doubt_and_for_the_state(table, fresh, paid):
    from msgspec.structs import replace

    doubted = fresh.but(effect=replace(fresh.effect, attempts=1, open=True))
    for run in (doubted, paid.but(state="shipping")):
        waiting = control.cancel(table, run, NOW)
        assert waiting.after == run.but(cancel_requested=True, seq=run.seq + 1)
        again = control.cancel(table, waiting.after, NOW)
        assert again.reason == "a cancel request is waiting already"


def test_a_closing_run_waits_for_its_child_first(table, paid):
    closing = control.cancel(table, paid.but(child="r-child"), NOW).after
    assert (closing.status, closing.child, closing.effect) == ("waiting", "r-child", None)
    after = control.child_ended(table, closing, NOW).after
    assert (after.child, after.effect.name) == (None, "refund")


def test_quarantine_is_no_transition(paid):
    aside = control.quarantined(paid, "why")
    assert aside == paid.but(status="quarantined", held_from="waiting", last_error="why")
    assert aside.due_ms is None
