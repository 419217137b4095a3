"""Runs and events in the caller's own transaction: there exactly if it commits."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from engine import Context, Event, Machine, State, hours, invariant, requires
from engine.app import App
from engine.blocking import BlockingApp
from engine.errors import KeyConflict, Refused, StoreBusy, UnknownEvent, UnknownRun, UsageError
from engine.secrets import SecretsCodec
from persistence.store import SqlStore, open_store

SECRETS = SecretsCodec(b"k" * 32)
METADATA = sa.MetaData()
ORDERS = sa.Table("orders", METADATA, sa.Column("number", sa.Integer, primary_key=True))


class Order(Context):
    number: int


class Paid(Event, tag="paid"):
    cents: int


class Life(Machine[Order]):
    """Waits to be paid."""

    waiting = State(initial=True, waits=True, timeout=hours(1), on_timeout="forget")
    over = State(final=True)
    paid = waiting.to(over)
    forget = waiting.to(over)

    @invariant
    def numbered(self, context: Order) -> bool:
        return context.number > 0

    @requires(paid)
    def something(self, event: Paid) -> bool:
        return event.cents > 0


class Callers:
    """A program with tables of its own beside the store's, and an app over the store."""

    def __init__(self, url: str) -> None:
        self.store = open_store(url)
        self.app = App([Life], self.store, secrets=SECRETS, work=False)
        self.url = sa.make_url(url.replace("postgresql://", "postgresql+psycopg://"))
        self.database = sa.create_engine(self.url)
        METADATA.create_all(self.database)

    def start(self, connection: sa.Connection, key: str = "k1", number: int = 1) -> str:
        connection.execute(sa.insert(ORDERS).values(number=number))
        return self.app.start_within(connection, Life, Order(number=number), key=key).run_id

    def orders(self) -> list[int]:
        with self.database.connect() as connection:
            return list(connection.execute(sa.select(ORDERS.c.number)).scalars())

    def runs(self) -> list[str]:
        return [one.run.run_id for one in asyncio.run(self.app.runs())]


def opened(url: str) -> Iterator[Callers]:
    callers = Callers(url)
    yield callers
    assert callers.store.inspector.findings() == []
    assert callers.store.inspector.relations() == []
    METADATA.drop_all(callers.database)
    callers.database.dispose()
    callers.store.close()


@pytest.fixture
def callers(shared_url: str) -> Iterator[Callers]:
    yield from opened(shared_url)


@pytest.fixture
def on_a_file(tmp_path: Path) -> Iterator[Callers]:
    yield from opened(f"sqlite:///{tmp_path / 'runs.db'}")


def test_a_run_is_there_if_the_caller_commits(callers):
    with callers.database.begin() as connection:
        run_id = callers.start(connection)
        assert callers.runs() == []
    assert callers.runs() == [run_id]
    assert callers.orders() == [1]
    stored = callers.store.runs.get(run_id)
    assert (stored.owner, stored.fence, stored.run.status) == (None, 0, "waiting")


def test_a_rollback_leaves_nothing(callers):
    with callers.database.connect() as connection, connection.begin() as transaction:
        run_id = callers.start(connection)
        callers.app.send_within(connection, run_id, Paid(cents=5), key="p1")
        transaction.rollback()
    assert callers.runs() == []
    assert callers.orders() == []
    with callers.database.begin() as connection:
        callers.start(connection)
    assert len(callers.runs()) == 1


def test_an_event_is_there_if_the_caller_commits(callers):
    run_id = asyncio.run(callers.app.start(Life, Order(number=1))).run_id
    with callers.database.connect() as connection, connection.begin() as transaction:
        callers.app.send_within(connection, run_id, Paid(cents=5), key="p1")
        transaction.rollback()
    assert callers.store.inbox.waiting(run_id) == []
    with callers.database.begin() as connection:
        receipt = callers.app.send_within(connection, run_id, Paid(cents=5), key="p1")
        again = callers.app.send_within(connection, run_id, Paid(cents=5), key="p1")
    assert (receipt.status, again.duplicate) == ("accepted", True)
    assert [one.key for one in callers.store.inbox.waiting(run_id)] == ["p1"]


def test_a_run_started_in_the_transaction_takes_events_in_it(callers):
    with callers.database.begin() as connection:
        run_id = callers.start(connection)
        callers.app.send_within(connection, run_id, Paid(cents=5), key="p1")
    assert [one.event for one in callers.store.inbox.waiting(run_id)] == ["paid"]


def test_a_key_counts_once_and_another_context_is_refused(callers):
    first = asyncio.run(callers.app.start(Life, Order(number=1), key="k1"))
    with callers.database.begin() as connection:
        again = callers.app.start_within(connection, Life, Order(number=1), key="k1")
        with pytest.raises(KeyConflict, match="another context"):
            callers.app.start_within(connection, Life, Order(number=2), key="k1")
        connection.execute(sa.insert(ORDERS).values(number=7))
    assert (again.run_id, again.created) == (first.run_id, False)
    assert callers.orders() == [7]


def test_a_refusal_leaves_the_transaction_as_it_was(callers):
    with callers.database.begin() as connection:
        connection.execute(sa.insert(ORDERS).values(number=3))
        with pytest.raises(UnknownRun, match="no run 'r0'"):
            callers.app.send_within(connection, "r0", Paid(cents=1))
        connection.execute(sa.insert(ORDERS).values(number=4))
    assert callers.orders() == [3, 4]


def test_a_session_of_the_orm_lends_its_connection(callers):
    with Session(callers.database) as session, session.begin():
        callers.start(session.connection())
    assert len(callers.runs()) == 1


def test_a_connection_for_asyncio_is_used_where_its_driver_can_wait(callers):
    class ForAsyncio:
        """What SQLAlchemy's AsyncConnection offers."""

        def __init__(self, connection: sa.Connection) -> None:
            self.sync_connection = connection

        async def run_sync(self, call: Any) -> Any:
            return call(self.sync_connection)

    async def main(connection: sa.Connection) -> None:
        lent: Any = ForAsyncio(connection)
        run = await callers.app.start(Life, Order(number=1), key="k1", connection=lent)
        await callers.app.send(run.run_id, Paid(cents=1), connection=lent)

    with callers.database.begin() as connection:
        asyncio.run(main(connection))
    assert len(callers.runs()) == 1


def test_a_worker_is_woken_by_the_commit(callers):
    async def main() -> str:
        app = App([Life], callers.store, secrets=SECRETS)
        async with app:
            app._worker._poll_ms = 60_000
            with callers.database.begin() as connection:
                run = await app.start(Life, Order(number=1), connection=connection)
                await app.send(run.run_id, Paid(cents=1), connection=connection)
                assert (await app.runs()) == []
            return (await app.wait(run.run_id, timeout_seconds=20)).state

    assert asyncio.run(main()) == "over"


def test_a_blocking_app_uses_the_connection_in_the_callers_thread(callers):
    with BlockingApp(App([Life], callers.store, secrets=SECRETS)) as app:
        with callers.database.begin() as connection:
            run = app.start(Life, Order(number=1), connection=connection)
            app.send(run.run_id, Paid(cents=1), connection=connection)
        assert app.wait(run.run_id, timeout_seconds=20).state == "over"


def test_what_is_no_connection_is_refused(callers):
    with pytest.raises(UsageError, match="expected a SQLAlchemy Connection"):
        callers.app.start_within(callers.database, Life, Order(number=1))
    with callers.database.connect() as connection:
        pass
    with pytest.raises(UsageError, match="closed"):
        callers.app.start_within(connection, Life, Order(number=1))


def test_a_connection_without_a_transaction_is_refused(callers):
    with (
        callers.database.connect() as connection,
        pytest.raises(UsageError, match="no transaction"),
    ):
        callers.app.start_within(connection, Life, Order(number=1))
    alone = callers.database.execution_options(isolation_level="AUTOCOMMIT")
    with alone.begin() as connection, pytest.raises(UsageError, match="no transaction"):
        callers.app.start_within(connection, Life, Order(number=1))
    assert callers.runs() == []


def test_another_database_is_refused(callers, tmp_path, request):
    others = [sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}"), sa.create_engine("sqlite://")]
    if callers.store.database.dialect == "postgresql":
        made = request.getfixturevalue("postgres").url()
        others.append(sa.create_engine(made.replace("postgresql://", "postgresql+psycopg://")))
    for other in others:
        with other.begin() as connection, pytest.raises(UsageError, match="and the store is"):
            callers.app.start_within(connection, Life, Order(number=1))
        other.dispose()


def test_a_link_to_the_same_file_is_the_same_database(on_a_file, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    database = sa.create_engine(f"sqlite:///{tmp_path / 'link' / 'runs.db'}")
    with database.begin() as connection:
        on_a_file.start(connection)
    assert len(on_a_file.runs()) == 1
    database.dispose()


def test_a_store_in_memory_has_no_doors():
    store = open_store("sqlite://")
    app = App([Life], store, work=False)
    with (
        sa.create_engine("sqlite://").begin() as connection,
        pytest.raises(UsageError, match="in memory"),
    ):
        app.start_within(connection, Life, Order(number=1))
    store.close()


def test_the_write_lock_is_taken_or_refused(on_a_file, tmp_path):
    """The driver begins a deferred transaction at the first statement that writes."""
    path = tmp_path / "runs.db"
    hasty = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 0.05})
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with hasty.begin() as connection, pytest.raises(StoreBusy, match="write lock"):
            on_a_file.app.start_within(connection, Life, Order(number=1))
        other.execute("ROLLBACK")
    other.close()
    with hasty.begin() as connection:
        connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql("SELECT * FROM orders").all()
        asyncio.run(on_a_file.app.start(Life, Order(number=2)))
        with pytest.raises(StoreBusy, match="another has written since"):
            on_a_file.app.start_within(connection, Life, Order(number=1))
    hasty.dispose()
    assert len(on_a_file.runs()) == 1


def test_a_taken_lock_keeps_others_out_until_the_end(on_a_file, tmp_path):
    with on_a_file.database.begin() as connection:
        on_a_file.app.start_within(connection, Life, Order(number=1))
        with (
            sqlite3.connect(tmp_path / "runs.db", timeout=0) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("BEGIN IMMEDIATE")
        other.close()


def test_a_context_that_cannot_begin_is_refused_before_anything(callers):
    with callers.database.begin() as connection:
        with pytest.raises(Refused, match="numbered"):
            callers.app.start_within(connection, Life, Order(number=0))
        with pytest.raises(UnknownEvent, match="vanish"):
            callers.app.send_within(connection, callers.start(connection), "vanish")
    assert len(callers.runs()) == 1


def test_two_callers_with_one_key_start_one_run(callers):
    """The second waits for the first, and finds its run when that has committed."""

    def second() -> tuple[str, bool]:
        with callers.database.begin() as connection:
            run = callers.app.start_within(connection, Life, Order(number=1), key="k1")
        return run.run_id, run.created

    with ThreadPoolExecutor(1) as thread:
        with callers.database.begin() as connection:
            first = callers.app.start_within(connection, Life, Order(number=1), key="k1")
            answer = thread.submit(second)
            if callers.store.database.dialect == "postgresql":
                until_somebody_waits(callers.store)
        assert answer.result() == (first.run_id, False)
    assert callers.runs() == [first.run_id]


def until_somebody_waits(store: SqlStore) -> None:
    """Wait until a transaction of this database waits for another one."""
    waits = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    for _ in range(100_000):
        with store.database.reading() as sql:
            if sql.scalar(waits):
                return
    raise AssertionError("nobody waits")
