"""Effects that are SQL in the store's database: their rows are there exactly if their step is."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from engine import Again, Call, Context, Event, GaveUp, Machine, NotDone, Retry, State, effect
from engine.errors import DefinitionError, Permanent, Transient, UsageError
from engine.performing import OutsideCalls
from engine.run import Run
from engine.secrets import SecretsCodec
from engine.testing import Crash, CrashPlan, Harness, Ledger, ManualClock, verify
from persistence.store import SqlStore, open_store

SECRETS = SecretsCodec(b"k" * 32)
METADATA = sa.MetaData()
BOOKING = sa.Table(
    "booking",
    METADATA,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("seat", sa.Integer, unique=True),
)
Script = list[Callable[[sa.Connection], Any]]


class Trip(Context):
    seat: int


class Booked(Event, tag="booked"):
    seat: int


class Full(GaveUp, tag="full"):
    """No seat."""


class Freed(Event, tag="freed"):
    pass


@effect(transaction=True, retry=Retry(attempts=3))
def book(context: Trip, call: Call, sql: sa.Connection) -> Booked | Again:
    sql.execute(sa.insert(BOOKING).values(seat=context.seat))
    script = call.resource(list)
    answer = script.pop(0)(sql) if script else None
    return answer or Booked(seat=context.seat)


@effect(transaction=True)
def free(context: Trip, call: Call, sql: sa.Connection) -> None:
    sql.execute(sa.delete(BOOKING).where(BOOKING.c.seat == context.seat))


class Travel(Machine[Trip]):
    """Books a seat, and waits."""

    booking = State(initial=True, effect=book, on_exhausted="full", compensation=free)
    travelling = State(waits=True)
    home = State(final=True)
    left_behind = State(final=True, failure=True)

    booked = booking.to(travelling)
    full = booking.to(left_behind)
    freed = travelling.to(home)


class World:
    """A store, a clock, and what the next bookings do after they have booked."""

    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self.clock = ManualClock()
        self.script: Script = []
        self.ledger = Ledger()
        with store.database.transaction() as sql:
            METADATA.create_all(sql.connection)

    def harness(self, plan: CrashPlan | None = None) -> Harness:
        return Harness(
            [Travel],
            store=self.store,
            clock=self.clock,
            plan=plan,
            calls=self.ledger,
            resources={list: self.script},
            secrets=SECRETS,
        )

    def travel(self, *, seat: int = 4, key: str = "k", plan: CrashPlan | None = None) -> Run:
        async def main() -> Run:
            async with self.harness(plan) as harness:
                run = await harness.app.start(Travel, Trip(seat=seat), key=key)
                await harness.until_idle()
                return await harness.app.get(run.run_id)

        return asyncio.run(main())

    def seats(self) -> list[int]:
        with self.store.database.reading() as sql:
            return [row["seat"] for row in sql.all("SELECT seat FROM booking ORDER BY seat")]


@pytest.fixture
def world(store: SqlStore) -> Iterator[World]:
    yield World(store)
    assert store.inspector.relations() == []
    with store.database.transaction() as sql:
        METADATA.drop_all(sql.connection)


def raising(error: Exception) -> Callable[[sa.Connection], Any]:
    def do(_sql: sa.Connection) -> None:
        raise error

    return do


def test_rows_and_step_are_committed_together(world):
    run = world.travel()
    assert (run.state, world.seats()) == ("travelling", [4])
    (record,) = world.store.effects.read(run.run_id)
    assert (record.status, record.attempts) == ("done", 1)


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(Transient("busy"), 2), (ValueError("a bug"), 2), (Permanent("no"), 1)],
    ids=["transient", "bug", "permanent"],
)
def test_an_error_takes_the_rows_back(world, error, attempts):
    world.script.append(raising(error))
    run = world.travel()
    given_up = isinstance(error, Permanent)
    assert run.state == ("left_behind" if given_up else "travelling")
    assert world.seats() == ([] if given_up else [4])
    assert world.store.effects.read(run.run_id)[0].attempts == attempts


def test_what_the_database_refuses_is_tried_again_and_given_up(world):
    """The seat is taken: an error of the effect, not of the store."""
    world.travel(key="first")
    run = world.travel(key="second")
    assert (run.state, world.seats()) == ("left_behind", [4])
    assert world.store.effects.read(run.run_id)[0].attempts == 3


def test_again_takes_the_rows_back_and_asks_later(world):
    world.script.append(lambda _sql: Again(after_ms=500))
    run = world.travel()
    assert (run.state, world.seats()) == ("travelling", [4])
    assert len(world.ledger.performed("book")) == 2


def test_an_answer_that_the_machine_refuses_takes_the_rows_back(world):
    world.script.append(lambda _sql: Freed())
    run = world.travel()
    assert (run.status, world.seats()) == ("quarantined", [])
    assert "freed" in (run.last_error or "")


def test_a_swallowed_error_does_not_pass_for_a_booking(world):
    """PostgreSQL takes no statement after one that failed; SQLite goes on."""

    def swallow(sql: sa.Connection) -> None:
        with suppress(sa.exc.IntegrityError):
            sql.execute(sa.insert(BOOKING).values(seat=4))

    world.script.append(swallow)
    run = world.travel()
    assert (run.state, world.seats()) == ("travelling", [4])
    (record,) = world.store.effects.read(run.run_id)
    assert record.attempts == (2 if world.store.database.dialect == "postgresql" else 1)


def test_a_part_can_be_undone_by_the_effect_itself(world):
    def twice(sql: sa.Connection) -> None:
        with pytest.raises(sa.exc.IntegrityError), sql.begin_nested():
            sql.execute(sa.insert(BOOKING).values(seat=4))

    world.script.append(twice)
    assert world.travel().state == "travelling"
    assert world.seats() == [4]


@pytest.mark.parametrize(
    "end",
    [
        lambda sql: sql.commit(),
        lambda sql: sql.rollback(),
        lambda sql: sql.close(),
        lambda sql: sql.exec_driver_sql("COMMIT"),
        lambda sql: sql.exec_driver_sql("ROLLBACK"),
    ],
    ids=["commit", "rollback", "close", "text commit", "text rollback"],
)
def test_it_may_not_end_the_transaction(world, end):
    def ends(sql: sa.Connection) -> None:
        sql.execute(sa.delete(BOOKING))
        end(sql)

    world.script += [ends, ends, ends]
    run = world.travel()
    assert (run.state, world.seats()) == ("left_behind", [])
    (record,) = world.store.effects.read(run.run_id)
    assert "transaction" in (record.last_error or "")


def test_a_compensation_in_the_transaction_undoes_it(world):
    async def main() -> Run:
        async with world.harness() as harness:
            run = await harness.app.start(Travel, Trip(seat=4))
            await harness.until_idle()
            assert world.seats() == [4]
            await harness.app.cancel(run.run_id)
            await harness.until_idle()
            return await harness.app.get(run.run_id)

    assert (asyncio.run(main()).status, world.seats()) == ("cancelled", [])


def test_a_death_at_any_boundary_books_once(world):
    plan = CrashPlan()
    world.travel(seat=0, plan=plan)
    names = [one.name for one in plan.passed]
    assert {"before effect book", "after runs.commit_with"} <= set(names)
    for at in range(1, len(plan.passed) + 1):
        world.clock.advance(3_600_000)
        with pytest.raises(Crash):
            world.travel(seat=at, key=f"k{at}", plan=CrashPlan(at=at))
        world.clock.advance(3_600_000)  # its lease is over
        assert world.travel(seat=at, key=f"k{at}").state == "travelling"
        assert world.seats() == list(range(at + 1))
    # Where its row was not committed, it was performed anew, under the same key.
    assert len(world.ledger.performed("book")) > len(plan.passed) + 1


KILLED = """
import importlib.util, os, signal, sys
from engine.secrets import SecretsCodec
from persistence import sqlite
from persistence.store import open_store

tests, url, seat, at = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
left = at
def trace(_statement):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
prepare = sqlite.SqliteDatabase._prepare
def traced(self, connection, record):
    prepare(self, connection, record)
    connection.set_trace_callback(trace)
sqlite.SqliteDatabase._prepare = traced
spec = importlib.util.spec_from_file_location("lending", tests)
lending = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lending)
world = lending.World(open_store(url))
assert world.travel(seat=seat, key=str(seat)).state == "travelling"
print(at - left)
"""


@pytest.mark.acceptance
def test_a_process_killed_at_any_statement_books_once(tmp_path):
    """SIGKILL before each statement of a process that opens a store, starts a run and books."""
    url = f"sqlite:///{tmp_path / 'runs.db'}"

    def process(seat: int, at: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", KILLED, __file__, url, str(seat), str(at)],
            cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert process(0, 0).returncode == 0  # makes the tables
    counted = process(1, 0)
    assert counted.returncode == 0, counted.stderr
    statements = int(counted.stdout.split()[-1])
    assert statements > 20
    for at in range(1, statements + 1):
        died = process(at + 1, at)
        assert died.returncode == -signal.SIGKILL, died.stderr
        world = World(open_store(url))
        assert set(world.seats()) <= set(range(at + 2))
        assert world.travel(seat=at + 1, key=str(at + 1)).state == "travelling"
        assert world.seats() == list(range(at + 2))
        assert world.store.inspector.findings() == []
        world.store.close()


def test_a_zombie_leaves_no_rows(world):
    """Another worker took the run while its effect was in the transaction."""

    def lose(sql: sa.Connection) -> None:
        sql.execute(sa.text("UPDATE turtles_run SET fence = fence + 1"))

    async def main() -> None:
        async with world.harness() as harness:
            await harness.app.start(Travel, Trip(seat=4))
            world.script.append(lose)
            (claimed,) = await harness.app._worker.claim(limit=1)
            with pytest.raises(Exception, match="moved by another worker"):
                await harness.app._runner.advance(claimed)
            assert world.seats() == []

    asyncio.run(main())


def test_it_is_verified_like_an_idempotent_effect():
    """A death after the call is told apart from none only where the database does it."""
    verification = verify(Travel, budget=4, allow_gaps=True, phases=("scope",))
    assert verification.found == []
    assert verification.coverage is not None
    assert {event for _, event, _ in verification.coverage.transitions} >= {"booked", "full"}


def test_definitions_that_make_no_sense_are_refused():
    with pytest.raises(DefinitionError, match="plain function"):

        @effect(transaction=True)
        async def wait(context: Trip, call: Call, sql: Any) -> Booked: ...

    with pytest.raises(DefinitionError, match="never a doubt"):

        @book.reconcile
        async def look(context: Trip, call: Call) -> NotDone: ...


def test_calls_that_hide_the_transaction_are_refused():
    call = Call(run_id="r", key="k", attempt=1, now_ms=1, resources={})
    with pytest.raises(UsageError, match="have no method `within`"):
        asyncio.run(OutsideCalls().perform(book, Trip(seat=1), call))
