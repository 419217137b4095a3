"""Retention seen from the front door: what is removed is said to be, and its key stays in use."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine import Context, Machine, State
from engine.errors import KeyConflict, RunRemoved, UsageError
from engine.ports import Query
from engine.secrets import SecretsCodec
from engine.testing import Harness
from persistence.store import SqlStore, open_store

HOUR = 3_600_000


class Note(Context):
    text: str


class Life(Machine[Note]):
    """Waits to be closed."""

    open_ = State(initial=True, waits=True)
    closed = State(final=True)
    close = open_.to(closed)


@pytest.fixture
def store() -> Iterator[SqlStore]:
    opened = open_store("sqlite://")
    yield opened
    assert opened.inspector.findings() == []
    opened.close()


def harness(store: SqlStore) -> Harness:
    return Harness([Life], store=store, secrets=SecretsCodec(b"k" * 32))


async def ended(world: Harness, key: str) -> str:
    run = await world.app.start(Life, Note(text=key), key=key)
    await world.app.send(run.run_id, "close")
    await world.until_idle()
    return run.run_id


async def test_a_removed_run_is_said_to_be_removed(store):
    async with harness(store) as world:
        run_id = await ended(world, "a")
        world.clock.advance(2 * HOUR)
        await world.app.beat()
        done = await world.app.collect(HOUR)
        assert (done.trees, done.runs, done.kept, done.forgotten) == (1, 1, 0, 0)
        app = world.app
        for look in (
            app.get(run_id),
            app.outcome(run_id),
            app.wait(run_id),
            app.send(run_id, "close"),
            app.cancel(run_id),
        ):
            with pytest.raises(RunRemoved, match=r"\(key 'a'\): ended as completed on 20.* gc on"):
                await look


async def test_a_start_with_its_key_is_answered_with_its_id(store):
    async with harness(store) as world:
        run_id = await ended(world, "a")
        world.clock.advance(2 * HOUR)
        await world.app.beat()
        await world.app.collect(HOUR)
        again = await world.app.start(Life, Note(text="a"), key="a")
        assert (again.run_id, again.created) == (run_id, False)
        with pytest.raises(KeyConflict, match=r"by run r\w+ \(since removed\), with another con"):
            await world.app.start(Life, Note(text="other"), key="a")
        assert await world.app.find(Life, "a") == run_id
        done = await world.app.collect(HOUR, forget_keys_after_ms=HOUR)
        assert done.forgotten == 0
        world.clock.advance(2 * HOUR)
        await world.app.beat()
        done = await world.app.collect(HOUR, forget_keys_after_ms=HOUR)
        assert done.forgotten == 1
        anew = await world.app.start(Life, Note(text="other"), key="a")
        assert anew.created


async def test_only_what_ended_long_enough_ago_goes_batch_by_batch(store):
    async with harness(store) as world:
        for key in ("a", "b", "c"):
            await ended(world, key)
        world.clock.advance(2 * HOUR)
        await world.app.beat()
        young = await ended(world, "young")
        alive = (await world.app.start(Life, Note(text=""))).run_id
        counted = await world.app.collect(HOUR, machine=Life, batch=2, dry_run=True)
        done = await world.app.collect(HOUR, machine=Life, batch=2)
        assert (counted.runs, done.runs) == (3, 3)
        left = {one.run.run_id for one in store.runs.select(Query())}
        assert left == {young, alive}


async def test_what_makes_no_sense_is_refused(store):
    async with harness(store) as world:
        with pytest.raises(UsageError, match="older_than_ms is -1"):
            await world.app.collect(-1)
        with pytest.raises(UsageError, match="batch is 0"):
            await world.app.collect(1, batch=0)
