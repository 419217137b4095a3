"""A way gone from the start leads where the explorer's snapshots led."""

from __future__ import annotations

import pytest

from engine import Call, Context, Event, Machine, NotDone, State, effect
from engine.errors import UsageError
from engine.verification.bench import silence
from engine.verification.explore import Rig, explore
from engine.verification.result import Scope, Step
from engine.verification.walk import take
from persistence.store import open_store


class Empty(Context):
    pass


class Made(Event, tag="made"):
    number: int


@effect()
async def make(context: Empty, call: Call) -> Made:
    raise AssertionError("never called")


@make.reconcile
async def find(context: Empty, call: Call) -> Made | NotDone:
    raise AssertionError("never called")


class Maker(Machine[Empty]):
    making = State(initial=True, effect=make)
    waiting = State(waits=True)
    done = State(final=True)
    made = making.to(waiting)
    collect = waiting.to(done)


START: Step = ("start", "Maker", "{}")
PENDING = "Maker making (pending)"
LOST: Step = ("call", "lost", "made", '{"event":"made","number":1}')


def rig() -> Rig:
    return Rig(Maker, open_store("sqlite://"))


def states(*steps: Step) -> list[str]:
    made = rig()
    with silence():
        made.walk.go([START, *steps])
    assert made.walk.breaches == []
    return made.walk.states


def test_an_answer_that_is_lost_is_found_again() -> None:
    found = states(("move", 1), LOST, ("clock", 0), ("move", 1), ("call", "told"))
    assert found == [
        PENDING,
        "Maker making (waiting)",
        "Maker making (waiting)",
        "Maker waiting (waiting)",
    ]


def test_a_death_in_the_middle_of_a_move() -> None:
    assert states(("move", 1), ("crash", 1)) == [PENDING, "Maker making (running)"]
    answered = ("call", "ok", *LOST[2:])
    found = states(("move", 1), answered, ("crash", 2))
    assert found == [PENDING, "Maker waiting (waiting)"]


def test_a_death_before_the_first_commit_changes_nothing() -> None:
    found = states(
        ("move", 1), LOST, ("clock", 0), ("move", 1), ("crash", 0), ("move", 1), ("call", "told")
    )
    assert found[-1] == "Maker waiting (waiting)"


@pytest.mark.parametrize(
    "steps",
    [[("move", 2)], [("move", 1), LOST, ("crash", 9)], [("again", "collect", "", 1)],
     [("move", 1), LOST, LOST]],
    ids=["no such run", "no such commit", "never sent", "no such call"],
)  # fmt: skip
def test_what_is_not_possible_is_said(steps: list[Step]) -> None:
    with silence(), pytest.raises(LookupError):
        rig().walk.go([START, *steps])


def test_a_step_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="is not known"):
        take(rig().bench, ("fly", 1))


def test_every_way_of_an_exploration_leads_to_the_same_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.verification.explore.REPEAT_ONE_IN", 1)
    report = explore(Maker, open_store("sqlite://"), scope=Scope(messages=1, cancels=False))
    assert report.exhausted and report.repeated == report.states > 50
    assert report.mismatches == [] and report.failures == []
