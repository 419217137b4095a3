"""Runs that move in the caller's transaction: with the rows beside them, or not at all."""

from __future__ import annotations

import pytest

from engine import App, Context, Event, Machine, State, effect, requires
from engine.errors import DefinitionError, Refused, StoreError, UnknownRun
from engine.secrets import SecretsCodec
from engine.verification.history import check_history
from persistence.inline import InlineRuns
from persistence.store import open_store


class Door(Context):
    opened: int = 0


class Open(Event, tag="push"):
    """Push."""


class Shut(Event, tag="shut"):
    """Pull."""


class Remove(Event, tag="remove"):
    """Take it away."""


class DoorLife(Machine[Door]):
    """A door that is opened three times at most."""

    closed = State(initial=True, waits=True)
    ajar = State(waits=True)
    gone = State(final=True)

    push = closed.to(ajar)
    shut = ajar.to(closed)
    remove = closed.to(gone)

    def on_push(self, context: Door) -> Door:
        return self.but(context, opened=context.opened + 1)

    @requires(push)
    def is_not_worn_out(self, context: Door) -> bool:
        return context.opened < 3


@effect(idempotent=True)
async def knock(context: Door, call) -> Open:
    return Open()


class Knocking(Machine[Door]):
    """Needs somebody who knocks."""

    waiting = State(initial=True, effect=knock)
    done = State(final=True)
    push = waiting.to(done)


@pytest.fixture
def world(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/doors.db")
    runs = InlineRuns([DoorLife], SecretsCodec(b"k" * 32))
    with store.database.transaction() as sql:
        runs.register(sql, 1)
        runs.begin(sql, DoorLife, "front", Door(), now_ms=1)
        sql.run("CREATE TABLE door (name TEXT, state TEXT)")
        sql.run("INSERT INTO door VALUES ('front', 'closed')")
    yield store, runs
    store.close()


def move(world, event, now_ms=2):
    store, runs = world
    with store.database.transaction() as sql:
        sql.run("UPDATE door SET state = :to", to=type(event).__name__)
        return runs.move(sql, DoorLife, "front", event, now_ms=now_ms)


def row(world):
    with world[0].database.reading() as sql:
        return sql.scalar("SELECT state FROM door")


def test_a_run_moves_with_its_row(world):
    after = move(world, Open())
    assert (after.state, after.context.opened, row(world)) == ("ajar", 1, "Open")
    store, runs = world
    with store.database.reading() as sql:
        found = runs.find(sql, DoorLife, "front")
        assert found is not None
        assert (found.state, found.seq) == ("ajar", 2)
        assert runs.find(sql, DoorLife, "back") is None


def test_what_the_machine_refuses_leaves_the_row_as_it_was(world):
    with pytest.raises(Refused, match=r"DoorLife front: event 'shut' in state 'closed'"):
        move(world, Shut())
    assert row(world) == "closed"
    for _ in range(3):
        move(world, Open())
        move(world, Shut())
    with pytest.raises(Refused, match="is_not_worn_out"):
        move(world, Open())
    assert row(world) == "Shut"


def test_nothing_moves_after_the_end(world):
    move(world, Remove())
    with pytest.raises(Refused, match="completed"):
        move(world, Open())


def test_an_unknown_run_is_named(world):
    store, runs = world
    with pytest.raises(UnknownRun, match="'back'"), store.database.transaction() as sql:
        runs.move(sql, DoorLife, "back", Open(), now_ms=2)


def test_beginning_again_changes_nothing(world):
    move(world, Open())
    store, runs = world
    with store.database.transaction() as sql:
        runs.begin(sql, DoorLife, "front", Door(), now_ms=9)
        found = runs.find(sql, DoorLife, "front")
    assert found is not None
    assert found.state == "ajar"


def test_a_machine_that_needs_a_worker_is_refused():
    with pytest.raises(DefinitionError, match="'waiting' has an effect"):
        InlineRuns([Knocking], SecretsCodec(b"k" * 32))


def test_a_run_that_a_worker_owns_is_left_alone(world):
    store, _ = world
    with store.database.transaction() as sql:
        sql.run("UPDATE turtles_run SET owner = 'somebody'")
    with pytest.raises(StoreError, match="a worker owns it"):
        move(world, Open())
    assert row(world) == "closed"


async def test_every_reader_of_histories_finds_them_sound(world):
    for event in (Open(), Shut(), Open(), Shut(), Remove()):
        move(world, event)
    store, _ = world
    assert store.inspector.findings() == []
    assert store.inspector.relations() == []
    app = App([DoorLife], store, work=False, secrets=SecretsCodec(b"k" * 32))
    report = check_history(app)
    assert report.ok, [str(one)[:600] for one in report.findings]
    assert report.runs == 1
