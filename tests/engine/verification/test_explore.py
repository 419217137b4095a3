"""What an exploration claims: complete, repeatable, shortest, within its scope."""

from __future__ import annotations

import random
from typing import Any

import pytest

from engine import Call, Context, Event, Machine, NotDone, State, effect, invariant, seconds
from engine.errors import UsageError
from engine.verification.bench import Bench, run
from engine.verification.explore import Scope, explore, repeat
from engine.verification.report import diagram, pytest_file, read_token, token_of
from persistence.store import open_store


class Count(Context):
    number: int = 0


class Made(Event, tag="made"):
    number: int


@effect()
async def make(context: Count, call: Call) -> Made:
    return Made(number=1)


@make.reconcile
async def find(context: Count, call: Call) -> Made | NotDone:
    return NotDone()


class Maker(Machine[Count]):
    making = State(initial=True, effect=make)
    waiting = State(waits=True, timeout=seconds(5), on_timeout="over")
    done = State(final=True)
    late = State(final=True, failure=True)
    made = making.to(waiting)
    collect = waiting.to(done)
    over = waiting.to(late)


class Broken(Machine[Count]):
    open_ = State(initial=True, waits=True)
    shut = State(final=True)
    add = open_.to.itself(on="one_more")
    close = open_.to(shut)

    def one_more(self, context: Count) -> Count:
        return self.but(context, number=context.number + 1)

    @invariant
    def at_most_one(self, context: Count) -> bool:
        return 0 <= context.number <= 1


ONE = Scope(messages=1, cancels=False)


def store() -> Any:
    return open_store("sqlite://")


def test_small_machine_is_exhausted_and_covered() -> None:
    report = explore(Maker, store(), budget_seconds=30)
    assert report.exhausted and report.exit_code == 0
    assert report.coverage.missing_transitions == [] == report.coverage.missing_cells
    assert report.deaths > 100


def test_two_explorations_are_alike() -> None:
    first, second = explore(Maker, store(), scope=ONE), explore(Maker, store(), scope=ONE)
    assert (first.states, first.executions, first.depth) == (
        second.states,
        second.executions,
        second.depth,
    )


def test_every_state_repeated_from_the_start_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.verification.explore.REPEAT_ONE_IN", 1)
    report = explore(Maker, store(), budget_seconds=60, scope=ONE)
    assert report.repeated == report.states
    assert report.mismatches == []


def test_way_to_a_failure_is_a_shortest_one() -> None:
    report = explore(Broken, store(), budget_seconds=10)
    failure = report.failures[0]
    assert report.exit_code == 3
    assert failure.rule == "quarantined"
    # accepted; two events, each taken by a worker, or both taken by one
    assert [step[0] for step in failure.steps] == ["start", "send", "send", "move"]


def test_budget_that_is_over_is_said() -> None:
    report = explore(Maker, store(), budget_seconds=0.02)
    assert report.left > 0 and not report.exhausted
    assert report.exit_code == 2


def test_budget_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="more than 0 seconds"):
        explore(Maker, store(), budget_seconds=0)


def test_store_in_a_file_is_refused(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="store in memory"):
        explore(Maker, open_store(f"sqlite:///{tmp_path}/runs.db"))


def test_without_faults_nobody_dies() -> None:
    report = explore(Maker, store(), scope=Scope(faults=False, messages=1, cancels=False))
    assert report.exhausted and report.deaths <= report.executions
    assert report.states < explore(Maker, store(), scope=ONE).states


def test_retry_policies_are_given_back() -> None:
    before = make.retry
    explore(Maker, store(), budget_seconds=0.2)
    assert make.retry is before


def test_guard_that_is_not_deterministic_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.verification.explore.REPEAT_ONE_IN", 1)
    chance = random.Random(1)

    class Fickle(Machine[Count]):
        here = State(initial=True, timeout=1, on_timeout="tick")
        there = State(waits=True)
        end = State(final=True)
        tick = here.to(there, cond="sometimes") | here.to(end)
        finish = there.to(end)

        def sometimes(self, context: Count) -> bool:
            return chance.random() < 0.5

    report = explore(Fickle, store(), budget_seconds=10)
    assert not report.ok
    assert report.exit_code in (3, 5)


def test_token_is_read_back_and_shows_the_failure_again() -> None:
    report = explore(Broken, store(), budget_seconds=10)
    token = read_token(token_of(report.table, report.failures[0]))
    assert (token.machine, token.rule) == ("Broken", "quarantined")
    found = repeat(Broken, store(), token.steps)
    assert [breach.rule for breach in found.breaches] == ["quarantined"]
    assert "Broken open_ (quarantined)" in found.states[-1]


@pytest.mark.parametrize("text", ["", "pv1:abc", "tv1:", "tv1:%%%", "tv1:eJyrVkrOT0"])
def test_damaged_token_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="token"):
        read_token(text)


def test_step_that_is_not_possible_any_more_is_named() -> None:
    start = ("start", "Maker", '{"number":0}')
    with pytest.raises(UsageError, match="not possible any more"):
        repeat(Maker, store(), [start, ("move", 7)])


def test_way_that_a_repair_has_closed_is_gone_as_far_as_it_can_be() -> None:
    start = ("start", "Maker", '{"number":0}')
    found = repeat(Maker, store(), [start, ("move", 7)], as_far=True)
    assert not found.whole and found.breaches == () and len(found.states) == 1
    assert repeat(Maker, store(), [start], as_far=True).whole


def test_failure_as_diagram_and_test() -> None:
    report = explore(Broken, store(), budget_seconds=10)
    failure = report.failures[0]
    assert diagram(failure).startswith("sequenceDiagram")
    text = pytest_file(report.table, failure)
    compile(text, "test_generated.py", "exec")
    assert "hypothesis" not in text


def test_engine_runs_without_an_event_loop_under_names_of_our_own() -> None:
    moved: list[str] = []
    bench = Bench(
        [Maker],
        store(),
        moved=lambda decision: moved.append(decision.entry.event),
        refused=lambda job, event: None,
    )
    assert bench.start("Maker", '{"number":0}')
    assert bench.root == f"r{1:025d}"
    spot = bench.spot()
    assert bench.move(1).end == "paused"
    bench.go(spot)
    assert bench.move(1, [("ok", "made", '{"event":"made","number":1}')]).end == "ended"
    assert moved == ["made"]
    assert run(bench.app.get(bench.root)).state == "waiting"
    bench.close()


def test_snapshot_brings_back_the_whole_store() -> None:
    bench = Bench([Maker], store(), moved=lambda decision: None, refused=lambda job, event: None)
    bench.start("Maker", '{"number":0}')
    spot, before = bench.spot(), bench.fingerprint()
    bench.move(1, [("lost", "made", '{"event":"made","number":1}')])
    assert bench.fingerprint() != before
    bench.go(spot)
    assert bench.fingerprint() == before
    assert bench.snapshots.save() == spot.saved
    bench.close()
