"""A run is a value; when it is due follows from what it waits for."""

from __future__ import annotations

import pytest

from engine.run import HELD, TERMINAL, Pending, Run

RUN = Run(
    run_id="r1", machine="M", version="v", key=None, state="s", status="waiting", seq=1,
    entered_seq=1, context=None, created_ms=0,
)  # fmt: skip
EFFECT = Pending(seq=1, name="e", key="k", attempts=0, open=False, next_ms=700)


@pytest.mark.parametrize(
    ("changes", "due_ms"),
    [
        ({}, None),
        ({"deadline_ms": 500}, 500),
        ({"effect": EFFECT}, 700),
        ({"deadline_ms": 500, "effect": EFFECT}, 500),
        ({"deadline_ms": 900, "effect": EFFECT}, 700),
        ({"deadline_ms": 0}, 0),
    ],
)
def test_due_is_the_earlier_of_timer_and_effect(changes, due_ms):
    assert RUN.but(**changes).due_ms == due_ms


@pytest.mark.parametrize("status", sorted(TERMINAL | HELD))
def test_what_has_ended_or_is_held_is_never_due(status):
    run = RUN.but(status=status, deadline_ms=1, effect=EFFECT)
    assert run.due_ms is None
    assert run.terminal == (status in TERMINAL)


def test_a_change_makes_a_copy():
    assert RUN.but(state="t").state == "t"
    assert RUN.state == "s"
    with pytest.raises(AttributeError):
        RUN.state = "t"
