"""Schedules: sound code passes, planted races are found and replayed, and all of it repeats."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from time import process_time
from typing import Any

import pytest

from engine import ChildEnded, Context, Event, Machine, State
from engine.errors import UsageError
from engine.table import Child
from engine.verification.environment import Environment, always, ends, payloads
from engine.verification.scheduler import STRATEGIES, Actor, BrokenStage, Chance, Scheduler
from engine.verification.schedules import ScheduleReport, replay_schedule, schedules
from engine.verification.shortening import shortened
from persistence.store import open_store
from tests.verification.bugs.schedule_bugs import SCHEDULE_BUGS, ScheduleBug
from tests.verification.bugs.subjects import Parent, Shop, Trip, Waiter

SOUND = {"Trip": (Trip, ()), "Shop": (Shop, ()), "Waiter": (Waiter, ()),
         "Parent": (Parent, (Waiter,))}  # fmt: skip
PLENTY_SECONDS = 60.0


def store() -> Any:
    return open_store("sqlite://")


def play(machine: Any, **how: Any) -> ScheduleReport:
    return schedules(machine, store, budget_seconds=PLENTY_SECONDS, **how)


@pytest.mark.parametrize("name", SOUND)
def test_sound_code_passes_with_two_workers(name: str) -> None:
    machine, known = SOUND[name]
    report = play(machine, known=known, workers=2, schedules_max=300)
    assert report.failures == [] and report.mismatches == []
    assert report.schedules == 300 and report.distinct > 250
    assert report.by_strategy == {"random": 150, "pct": 150}
    figures = report.figures
    assert figures.zombies > 30 and figures.deaths > 10 and figures.lost > 5
    assert figures.unfinished == 0


@pytest.mark.parametrize("name", SOUND)
def test_sound_code_passes_with_three_workers_and_two_runs(name: str) -> None:
    machine, known = SOUND[name]
    report = play(machine, known=known, workers=3, runs=2, schedules_max=200)
    assert report.failures == [] and report.mismatches == []


@pytest.mark.parametrize("bug", SCHEDULE_BUGS, ids=lambda bug: bug.name)
def test_planted_race_is_found_and_its_schedule_shows_it_again(bug: ScheduleBug) -> None:
    began = process_time()
    with bug.planted():
        report = play(bug.machine, known=bug.known, workers=bug.workers, first_failure=True,
                      schedules_max=2_000)  # fmt: skip
    assert process_time() - began < 5.0
    assert report.failures, "not found"
    assert report.mismatches == []
    failure = report.failures[0]
    assert failure.rule in bug.rules, failure
    with bug.planted():
        again = replay_schedule(bug.machine, store, failure.schedule, known=bug.known)
    assert again.trace == failure.trace
    assert failure.rule in [breach.rule for breach in again.breaches]
    assert replay_schedule(bug.machine, store, failure.schedule, known=bug.known).breaches == ()


def test_same_seed_plays_the_same_schedules() -> None:
    first, second = (play(Shop, seed=7, schedules_max=60) for _ in range(2))
    other = play(Shop, seed=8, schedules_max=60)
    assert first.figures == second.figures and first.switches == second.switches
    assert first.switches != other.switches


def test_every_schedule_does_the_same_when_its_picks_are_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.verification.schedules.REPEAT_ONE_IN", 1)
    report = play(Trip, schedules_max=60)
    assert report.repeated == 60 and report.mismatches == []


def test_four_workers_are_the_most() -> None:
    assert play(Waiter, workers=4, schedules_max=20).ok
    with pytest.raises(UsageError, match="expected 1 to 4, got 5"):
        play(Waiter, workers=5)


def test_what_cannot_be_played_is_refused(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="more than 0 seconds"):
        schedules(Waiter, store, budget_seconds=0)
    with pytest.raises(UsageError, match="runs: expected at least 1"):
        play(Waiter, runs=0)
    with pytest.raises(UsageError, match="in memory"):
        schedules(Waiter, lambda: open_store(f"sqlite:///{tmp_path}/runs.db"))


def test_budget_ends_it() -> None:
    report = schedules(Waiter, store, budget_seconds=0.2)
    assert report.took_seconds >= 0.2 and report.schedules >= 1


def test_schedule_of_a_failure_is_short() -> None:
    """Each is as short as a bounded number of tries makes it; one of a few is short enough."""
    bug = next(bug for bug in SCHEDULE_BUGS if bug.name == "fence ignored")
    with bug.planted():
        failures = [
            play(bug.machine, first_failure=True, schedules_max=500, seed=seed).failures[0]
            for seed in range(4)
        ]
    failure = min(failures, key=lambda one: len(one.trace))
    assert len(failure.trace) < 60 and len(failure.schedule.picks) < 40
    assert any(label.startswith("claim: ") for _, label in failure.trace)


def test_shortened_picks_fail_alike_and_weigh_no_more() -> None:
    def weigh(picks: Sequence[int]) -> tuple[int, int] | None:
        return (len(picks), sum(picks)) if list(picks).count(3) >= 2 else None

    picks = [random.Random(5).randrange(4) for _ in range(3)] + [3, 1, 0, 3, 2, 2, 3, 0, 1]
    assert shortened(picks, weigh, tries=500) == (3, 3)
    assert weigh(shortened(picks, weigh, tries=5)) is not None
    assert shortened([1, 0, 0], weigh, tries=500) == (1,)  # it never failed; nothing to keep


# -- with an environment ----------------------------------------------------------------------


class Sum(Context):
    total: int = 0


class Add(Event, tag="add"):
    amount: int


class LegEnded(ChildEnded, tag="leg_ended"):
    """A leg is over."""


class Leg(Machine[Sum]):
    walking = State(initial=True, waits=True)
    arrived = State(final=True)
    lost = State(final=True, failure=True)
    arrive = walking.to(arrived)
    lose = walking.to(lost)


class Walk(Machine[Sum]):
    counting = State(initial=True, waits=True)
    walking = State(child="leg", on_child="leg_ended")
    done = State(final=True)
    payloads = (LegEnded,)
    add = counting.to(walking, on="plus")
    leg_ended = walking.to(done)

    def plus(self, context: Sum, event: Add) -> Sum:
        return self.but(context, total=context.total + event.amount)

    def leg(self, context: Sum) -> Child:
        return Child("Leg", {"total": context.total})


class OfWalk(Environment):
    machine = Walk
    stand_ins = (Leg,)

    def contexts(self) -> Iterator[Context]:
        yield Sum(total=10)

    @payloads("add")
    def amounts(self) -> Iterator[Add]:
        yield Add(amount=5)

    @ends(Leg)
    def legs(self) -> Iterator[tuple[str, Any]]:
        yield "arrived", None
        yield "lost", None

    @always
    def in_fives(self, context: Sum) -> bool:
        return context.total in (10, 15)


class Doubtful(OfWalk):
    machine = Walk

    @always
    def never_added(self, context: Sum, status: str) -> bool:
        return context.total == 10 or status != "completed"


class Broken(OfWalk):
    machine = Walk

    @payloads("add")
    def amounts(self) -> Iterator[Add]:
        raise ValueError("no amounts")


def test_environment_says_what_may_arrive_and_what_must_hold() -> None:
    assert play(Walk, environment=OfWalk(), schedules_max=100).failures == []
    report = play(Walk, environment=Doubtful(), schedules_max=100)
    assert [failure.rule for failure in report.failures] == ["always never_added"]
    again = replay_schedule(Walk, store, report.failures[0].schedule, environment=Doubtful())
    assert [breach.rule for breach in again.breaches] == ["always never_added"]


def test_failure_of_the_stage_is_not_taken_for_one_of_the_engine() -> None:
    with pytest.raises(BrokenStage, match="no event for a run of Walk"):
        play(Walk, environment=Broken(), schedules_max=100)


# -- the scheduler ----------------------------------------------------------------------------


def counting(chance: Chance, names: str) -> Scheduler:
    scheduler = Scheduler(chance, lambda actor: None)
    for name in names:
        scheduler.add(Actor(name, lambda: "", lambda: True))
    return scheduler


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_picks_given_again_give_the_same_turns(strategy: Any) -> None:
    for seed in range(20):
        first = Chance(seed, strategy)
        scheduler = counting(first, "abc")
        scheduler.run(50)
        again = counting(Chance(seed, strategy, first.picks), "abc")
        again.run(50)
        assert again.trace == scheduler.trace


def test_pct_moves_one_actor_until_its_priority_is_lowered() -> None:
    for seed in range(50):
        scheduler = counting(Chance(seed, "pct"), "abc")
        scheduler.run(100)
        turns = [name for name, _ in scheduler.trace]
        changes = sum(a != b for a, b in pairwise(turns))
        assert changes <= 2


def test_random_moves_everybody_about_as_often() -> None:
    scheduler = counting(Chance(random.Random(1).randrange(100)), "abc")
    scheduler.run(3_000)
    assert all(800 < actor.steps < 1_200 for actor in scheduler.actors)


def test_nobody_moves_within_his_own_step() -> None:
    scheduler = Scheduler(Chance(3), lambda actor: None)
    depth: list[int] = []

    def step() -> str:
        depth.append(len([actor for actor in scheduler.actors if actor.busy]))
        scheduler.meanwhile()
        return ""

    for name in "ab":
        scheduler.add(Actor(name, step, lambda: True))
    scheduler.run(200)
    assert set(depth) == {1, 2}
