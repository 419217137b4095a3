"""A stand-in shows its parent all that the real child could, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine import ChildEnded, ChildMoved, Context, Machine, State
from engine.errors import DefinitionError
from engine.table import Child, compile_table
from engine.verification.environment import Environment, ends
from engine.verification.explore import explore
from engine.verification.result import Scope
from engine.verification.standin import is_stand_in, stand_in
from persistence.store import open_store


class Job(Context):
    size: int
    left: int = 3


class Worker(Machine[Job]):
    """Counts down, tells of its half, ends well or badly."""

    working = State(initial=True, timeout=1_000, on_timeout="tick")
    half = State(milestone=True, timeout=1_000, on_timeout="tock", cancellable=False)
    resting = State(timeout=1_000, on_timeout="tock")
    done = State(final=True)
    broken = State(final=True, failure=True)
    tick = working.to(half)
    tock = half.to(resting) | resting.to(done, cond="is_small") | resting.to(broken)

    def is_small(self, context: Job) -> bool:
        return context.size < 2

    def output(self, context: Job) -> Job:
        return context


class Order(Context):
    size: int = 1
    heard: bool = False
    result: int = 0


class Halfway(ChildMoved, tag="halfway"):
    pass


class Ended(ChildEnded, tag="ended"):
    output: Job | None = None


class Boss(Machine[Order]):
    waiting = State(initial=True, child="job", on_child="ended", on_child_moved="halfway")
    happy = State(final=True)
    sad = State(final=True, failure=True)
    halfway = waiting.to.itself(on="hear")
    ended = waiting.to(happy, cond="went_well", on="keep") | waiting.to(sad)

    def job(self, context: Order) -> Child:
        return Child("Worker", Job(size=context.size))

    def went_well(self, event: Ended) -> bool:
        return event.succeeded

    def hear(self, context: Order, event: Halfway) -> Order:
        return self.but(context, heard=True)

    def keep(self, context: Order, event: Ended) -> Order:
        return self.but(context, result=event.output.left if event.output else 0)


class OfBoss(Environment):
    machine = Boss
    stand_ins = (Worker,)
    scope = Scope(messages=0)

    @ends(Worker)
    def worker(self, context: Job) -> Iterator[tuple[str, Job | None]]:
        yield "done", context
        yield "broken", None


def test_a_stand_in_has_the_milestones_and_ends_of_the_real_one() -> None:
    table = compile_table(stand_in(Worker))
    assert is_stand_in(table) and table.name == "Worker"
    assert list(table.places) == ["working", "half", "half_held", "done", "broken"]
    ways = {(edge.source, edge.target) for edge in table.all_edges()}
    assert ways == {
        ("working", "half"), ("half", "half_held"), ("half", "done"), ("half", "broken"),
        ("half_held", "done"), ("half_held", "broken"),
    }  # fmt: skip
    assert table.places["half"].milestone and not table.places["half_held"].milestone
    assert table.places["broken"].failure


def test_what_can_be_stopped_in_part_is_both() -> None:
    places = compile_table(stand_in(Worker)).places
    assert not places["half"].cancellable and places["half_held"].cancellable


def test_a_parent_is_explored_against_every_end() -> None:
    report = explore(Boss, open_store("sqlite://"))
    assert report.exhausted and report.failures == [] and report.mismatches == []
    assert report.coverage.complete and report.stand_ins == ("Worker",)


def test_the_real_child_shows_nothing_that_the_stand_in_did_not() -> None:
    class Alone(OfBoss):
        machine = Boss
        stand_ins = ()

    OfBoss.__init_subclass__()
    real = explore(Boss, open_store("sqlite://"), known=[Worker], environment=Alone())
    assert real.exhausted and real.failures == []
    stood = explore(Boss, open_store("sqlite://"))
    assert real.coverage.transitions <= stood.coverage.transitions


def test_an_end_that_the_child_has_not_is_refused() -> None:
    class Wrong(OfBoss):
        machine = Boss

        @ends(Worker)
        def worker(self, context: Job) -> Iterator[tuple[str, Job | None]]:
            yield "finished", None

    OfBoss.__init_subclass__()
    with pytest.raises(DefinitionError, match="Its final states: done, broken"):
        explore(Boss, open_store("sqlite://"), environment=Wrong())
