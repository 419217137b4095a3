"""Several machines in processes of their own, within one budget; and progress while they go on."""

from __future__ import annotations

import os
from io import StringIO
from typing import Any

import pytest

from engine import Context, Event, Machine, State
from engine.app import App
from engine.cli import Place
from engine.cli.board import Board
from engine.cli.verifying import Job, Stores, _Pool, _Running, do_all
from engine.table import compile_table
from engine.verification.environment import Environment
from engine.verification.result import Scope
from engine.verification.verify import Tick
from persistence import open_store


class Empty(Context):
    pass


class Count(Context):
    number: int = 0


class Add(Event, tag="add"):
    amount: int


class Small(Machine[Empty]):
    begun = State(initial=True, timeout=1, on_timeout="tick")
    done = State(final=True)
    tick = begun.to(done)


class Endless(Machine[Count]):
    opened = State(initial=True, waits=True)
    closed = State(final=True)
    add = opened.to.itself(on="grow")
    close = opened.to(closed)

    def grow(self, context: Count, event: Add) -> Count:
        return self.but(context, number=context.number + event.amount)


class OfEndless(Environment):
    """Every number counts, so there is always another state."""

    machine = Endless


class Dying(Small):
    """Its environment ends the process."""


class OfDying(Environment):
    machine = Dying

    def contexts(self) -> Any:
        os._exit(9)


def factory(place: Place) -> App:
    return App([Small, Endless], open_store(place.store_url), work=False)


def job(machine: type[Machine[Any]], **options: Any) -> Job:
    return Job(table=compile_table(machine), subject=machine.__name__, factory=factory,
               options={"seed": 1, "known": (), **options})  # fmt: skip


def test_stores_are_made_by_the_program_s_factory_and_differ() -> None:
    with Stores(factory) as stores:
        first, second = stores(), stores()
        assert first is not second and first.key_file is None


def test_answers_come_in_the_order_asked_for() -> None:
    ticks: list[Tick] = []
    jobs = [job(Endless, phases=("static",)), job(Small, phases=("static",))]
    found = do_all(jobs, 20, 2, ticks.append)
    assert [one.machine for one in found] == ["Endless", "Small"]
    assert {tick.machine for tick in ticks if tick.done} == {"Endless", "Small"}


def test_process_that_dies_is_a_finding_and_the_others_go_on() -> None:
    found = do_all([job(Dying, phases=("scope",)), job(Small)], 20, 2, lambda tick: None)
    dead, fine = found
    assert dead.exit == 70 and "code 9" in dead.troubles[0].problem
    assert fine.exit == 0, fine


def test_budget_is_for_all_together() -> None:
    jobs = [job(Small), job(Endless, scope=Scope(messages=12)), job(Endless)]
    jobs[2] = Job(table=jobs[2].table, subject="again", factory=factory, options=jobs[1].options)
    found = do_all(jobs, 6, 2, lambda tick: None)
    assert [one.exhausted for one in found] == [True, False, False]


def test_share_is_by_weight_and_never_more_than_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.cli.verifying.perf_counter", lambda: 0.0)
    pool = _Pool(10, 2, lambda tick: None)
    small, large = job(Small), job(Endless)
    assert large.weight > small.weight
    first = pool._share([small, large])
    assert 5 < first + 0.3 < 10  # of two cores for ten seconds, less than half
    running: Any = _Running(small, None, first, first)
    pool.running = {object(): running}  # type: ignore[dict-item]
    assert pool._share([large]) == pytest.approx(10 - 0.3)


def test_a_machine_that_had_too_little_has_what_the_others_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_Pool, "_share", lambda pool, waiting: next(shares))
    shares = iter([0.001, 20.0, 20.0])
    found = do_all([job(Endless), job(Small)], 60, 2, lambda tick: None)
    assert [one.exit for one in found] == [0, 0]
    assert next(shares, None) is None  # Small once, the other one again


def test_lines_for_what_is_done_and_nothing_when_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with Board(quiet=False, live=False) as board:
        board.tick(Tick("Small", "scope", "12 states"))
        board.tick(Tick("Small", "scope", "", done=True))
    out, err = capsys.readouterr()
    assert out == "" and err.split()[:2] == ["Small", "scope"]
    with Board(quiet=True, live=True) as board:
        board.tick(Tick("Small", "scope", "", done=True))
    assert capsys.readouterr() == ("", "")


def test_table_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Board(quiet=False, live=True) as board:
        board.tick(Tick("[bold]Small", "scope", "12 states"))
        table = board._table()
    from rich.console import Console

    console = Console(width=100, record=True, file=StringIO())
    console.print(table)
    text = console.export_text()
    assert "[bold]Small" in text and "12 states" in text
    assert "Small" not in capsys.readouterr().out
