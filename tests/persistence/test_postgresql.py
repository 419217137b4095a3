"""What is special about PostgreSQL: who is let in, what is lost, and what an error means."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading

import pytest
from psycopg import Error, OperationalError
from psycopg.errors import lookup

from engine.errors import (
    CommitUnknown,
    SchemaMismatch,
    StoreBusy,
    StoreError,
    StoreReadOnly,
    StoreUnavailable,
    UsageError,
)
from persistence import postgresql, runs, schema
from persistence.database import open_database
from persistence.postgresql import translate
from persistence.store import open_store


@pytest.fixture
def url(postgres_url):
    return postgres_url


@pytest.fixture
def opened():
    """Opens databases that are closed when the test ends."""
    with contextlib.ExitStack() as stack:

        def open_one(url, **settings):
            return stack.enter_context(contextlib.closing(open_database(url, **settings)))

        yield open_one


@pytest.fixture
def database(url, opened):
    return opened(url)


def name_of(url):
    return url.rpartition("/")[2].partition("?")[0]


def test_the_name_shows_no_password(postgres, url):
    shown = f"postgresql://turtles@127.0.0.1:{postgres.server.port}/{name_of(url)}"
    for given in (f"{url}?application_name=x", url.replace("postgresql", "postgres", 1)):
        store = open_store(given)
        assert store.name == shown
        assert store.key_file is None
        assert not store.in_memory
        store.close()


def test_the_servers_socket_is_as_good(postgres, url):
    store = open_store(postgres.server.url(name_of(url), over_socket=True))
    assert store.machines.shape("v1") is not None
    store.close()


@pytest.mark.parametrize(
    "change, kind, said",
    [
        (("turtles:", "turtles:wrong"), StoreError, "does not let us in.*Check user and password"),
        (("//turtles", "//nobody"), StoreError, "does not let us in"),
        (("/turtles_", "/none_"), StoreError, "no such database.*createdb"),
        (("?", "?bogus=1&"), StoreError, 'invalid connection option "bogus"'),
        (("?", "?sslmode=tight&"), StoreError, "invalid sslmode value"),
        (("?", "?sslmode=require&"), StoreUnavailable, "does not support SSL"),
    ],
)
def test_whom_the_server_does_not_let_in(url, change, kind, said):
    bad = f"{url}?".replace(*change, 1)
    with pytest.raises(kind, match=said) as refused:
        open_store(bad)
    assert refused.type is kind
    assert "postgresql://" in str(refused.value)
    for secret in (url.split(":")[2].split("@")[0], "wrong"):
        assert secret not in str(refused.value).replace("wrongly", "")


def test_nobody_listens():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(StoreUnavailable, match=r"cannot be reached.*Connection refused"):
            open_store(f"postgresql://x:hunter2@127.0.0.1:{port}/y")


@pytest.mark.parametrize("query", ["prepare=maybe", "hints=loud", "pool=0", "pool=many"])
def test_settings_of_ours_are_checked(url, query):
    with pytest.raises(UsageError, match=r"prepare=on\|off, .*\?pool=1 or more") as refused:
        open_store(f"{url}?{query}")
    assert url.split(":")[2] not in str(refused.value)


def test_normal_is_for_sqlite(url):
    with pytest.raises(UsageError, match="synchronous_commit"):
        open_store(url, synchronous="NORMAL")


def test_without_the_driver_it_says_what_to_install():
    script = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from engine.errors import UsageError\n"
        "from persistence.store import open_store\n"
        "open_store('sqlite://').close()\n"
        "try: open_store('postgresql://x/y')\n"
        "except UsageError as error: sys.exit('turtles[postgresql]' not in str(error))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_database_of_another_encoding_is_refused(postgres):
    postgres.server.run("CREATE DATABASE latin ENCODING LATIN1 LOCALE 'C' TEMPLATE template0")
    with pytest.raises(StoreError, match="encoding is LATIN1, expected UTF8"):
        open_store(postgres.server.url("latin"))


def test_a_missing_schema_is_refused_where_migrating_is_not_allowed(postgres):
    with pytest.raises(SchemaMismatch, match=r"is none, .* Run `turtles db upgrade`"):
        open_store(postgres.empty(), migrate=False)


def test_a_newer_schema_is_refused(postgres, url):
    postgres.server.run("UPDATE alembic_version SET version_num = '0999'", database=name_of(url))
    with pytest.raises(SchemaMismatch, match="0999 is unknown here"):
        open_store(url)


def test_a_table_that_went_away_is_a_matter_of_the_schema(postgres, url):
    store = open_store(url)
    postgres.server.run("DROP TABLE turtles_run CASCADE", database=name_of(url))
    with pytest.raises(SchemaMismatch, match=r"missing.*42P01.*turtles db upgrade"):
        store.runs.get("r1")
    store.close()


def test_migrations_lead_to_the_tables(postgres):
    url = postgres.empty()
    assert schema.current(url) is None
    assert "schema revision is none" in schema.check(url)[0]
    assert schema.upgrade(url) == schema.current(url)
    assert schema.check(url) == []


def test_tables_of_others_are_left_alone(postgres, url):
    postgres.server.run("CREATE TABLE orders (id int)", database=name_of(url))
    assert schema.check(url) == []


def test_damage_is_reported(postgres, url, make, damage):
    store = open_store(url)
    store.runs.start([make.start("r1")])
    damage(store, "DELETE FROM turtles_run", "DROP INDEX turtles_run_created")
    store.close()
    found = schema.check(url)
    assert any("rows r1 of turtles_transition name a missing turtles_run" in one for one in found)
    assert any("turtles_run_created" in one for one in found)


def test_many_may_open_an_empty_database_at_once(postgres):
    url = postgres.empty()
    start, failures = threading.Barrier(6), []

    def open_one():
        start.wait()
        try:
            open_store(url).close()
        except StoreError as error:
            failures.append(error)

    threads = [threading.Thread(target=open_one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert schema.check(url) == []


def test_idle_connections_that_died_are_replaced(postgres, url, database):
    with database.transaction(), database.reading():
        pass  # two connections, both in the pool now
    assert postgres.server.terminate_backends(name_of(url)) == 2
    with database.transaction() as sql:
        assert sql.scalar("SELECT 1") == 1


def test_a_connection_lost_in_a_transaction_costs_the_transaction(postgres, url, database):
    def write():
        with database.transaction() as sql:
            sql.run("INSERT INTO turtles_worker VALUES ('w', 'h', 1, '0', 1, 1)")
            postgres.server.terminate_backends(name_of(url))
            sql.scalar("SELECT 1")

    with pytest.raises(StoreUnavailable, match=r"was lost.*57P01.*Nothing was written") as lost:
        write()
    assert lost.type is StoreUnavailable
    with database.reading() as sql:
        assert sql.scalar("SELECT count(*) FROM turtles_worker") == 0


_ADD = "INSERT INTO turtles_worker VALUES ('w', 'h', 1, '0', 1, 1)"


def workers(database):
    with database.reading() as sql:
        return sql.scalar("SELECT count(*) FROM turtles_worker")


def test_a_commit_that_never_arrived_is_known_not_to_have_happened(postgres, url, database):
    with (
        pytest.raises(StoreUnavailable, match="Nothing was written") as lost,
        database.transaction() as sql,
    ):
        sql.run(_ADD)
        postgres.server.terminate_backends(name_of(url))
    assert lost.type is StoreUnavailable
    assert workers(database) == 0


def test_a_commit_whose_answer_was_lost_is_known_to_have_happened(monkeypatch, database):
    commit = postgresql._commit

    def lost_after(driver, name):
        commit(driver, name)
        monkeypatch.undo()
        driver.close()
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(postgresql, "_commit", lost_after)
    with database.transaction() as sql:
        sql.run(_ADD)
    assert workers(database) == 1


def test_where_nobody_can_be_asked_a_commit_is_unknown(postgres, database):
    database.patience_seconds = 0.0
    with (
        pytest.raises(CommitUnknown, match=r"lost during COMMIT.*Read again"),
        database.transaction() as sql,
    ):
        sql.run(_ADD)
        postgres.server.stop("immediate")
    postgres.server.start()
    assert workers(database) == 0


def test_a_number_that_a_crash_gave_to_another_transaction_proves_nothing(postgres, url, database):
    """What the server had not written down is gone, the number of the transaction included."""
    with (
        pytest.raises(CommitUnknown, match=r"lost during COMMIT.*Read again"),
        database.transaction() as sql,
    ):
        sql.run(_ADD)
        number = sql.scalar("SELECT pg_current_xact_id()::text")
        postgres.server.stop("immediate")
        postgres.server.start()
        with postgres.server.connect(name_of(url)) as other:
            taken = ""
            while taken != number:
                taken = other.execute("SELECT pg_current_xact_id()::text").fetchone()[0]
    assert workers(database) == 0


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_comes_back_is_waited_for(postgres, url, make, mode):
    store = open_store(url)
    store.runs.start([make.start("r1")])
    postgres.server.stop(mode)
    back = threading.Timer(0.2, postgres.server.start)
    back.start()
    assert store.runs.start([make.start("r2")])[0].created
    assert store.runs.get("r1").run == make.run("r1")
    back.join()
    store.close()


def test_a_method_that_loses_its_connection_is_done_again(monkeypatch, postgres, url, make):
    store = open_store(url)
    accept = runs.accept_runs

    def cut_first(sql, starts):
        monkeypatch.undo()
        answers = accept(sql, starts)
        postgres.server.terminate_backends(name_of(url))
        return answers

    monkeypatch.setattr(runs, "accept_runs", cut_first)
    assert [one.created for one in store.runs.start([make.start("r1")])] == [True]
    assert len(store.journal.read("r1")) == 1
    store.close()


def lose_answers(monkeypatch, *, times=1):
    """The next batches of plain steps are committed, and their answers lost."""
    together, left = postgresql._together, [times]

    def lost_after(driver, asked):
        rows = together(driver, asked)
        if left[0] == 0:
            return rows
        left[0] -= 1
        driver.close()
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(postgresql, "_together", lost_after)


@pytest.mark.parametrize("count", [1, 3])
def test_a_step_whose_answer_was_lost_is_there_once(monkeypatch, url, make, count):
    store = open_store(url)
    store.runs.start([make.start(f"r{n}") for n in range(count)])
    taken = [make.claim(store, f"r{n}") for n in range(count)]
    steps = [make.step(one.run, one.fence, context=b"2") for one in taken]
    store.inbox.deliver([make.delivery("r0")])
    lose_answers(monkeypatch)
    written = store.runs.commit(steps)
    assert [one.ok for one in written] == [True] * count
    assert [event.key for event in written[0].arrived] == ["k1"]
    for n in range(count):
        assert [one.seq for one in store.journal.read(f"r{n}")] == [1, 2]
        assert store.runs.get(f"r{n}").run == steps[n].after
    assert store.inspector.findings() == []
    store.close()


def test_bookkeeping_whose_answer_was_lost_is_done_again(monkeypatch, url, make):
    store = open_store(url)
    store.runs.start([make.due("r1")])
    taken = make.claim(store, "r1")
    tried = make.effect("r1", 1, attempts=1, open=True)
    note = make.note(taken.run, taken.fence, effect=tried, status="running")
    lose_answers(monkeypatch, times=2)
    assert [one.ok for one in store.runs.commit([note])] == [True]
    assert store.runs.get("r1").run.effect == tried
    store.close()


def test_a_step_of_another_worker_is_not_taken_for_ours(monkeypatch, url, make):
    store, other = open_store(url), open_store(url)
    store.runs.start([make.start("r1")])
    taken = make.claim(store, "r1")
    store.workers.reap(9_000_000, dead=lambda worker: True)
    again = make.claim(other, "r1", worker_id="w2")
    theirs = make.step(again.run, again.fence, context=b"theirs")
    assert other.runs.commit([theirs])[0].ok
    lose_answers(monkeypatch)
    (written,) = store.runs.commit([make.step(taken.run, taken.fence, context=b"ours")])
    assert not written.ok
    assert store.runs.get("r1").run == theirs.after
    for one in (store, other):
        one.close()


def test_a_step_that_nobody_answers_is_unknown(postgres, url, make):
    store = open_store(url)
    store.runs.start([make.start("r1")])
    taken = make.claim(store, "r1")
    store.database.patience_seconds = 0.0
    postgres.server.terminate_backends(name_of(url))
    with pytest.raises(CommitUnknown, match="Read again"):
        store.runs.commit([make.step(taken.run, taken.fence)])
    store.close()


@pytest.mark.parametrize("hints", ["on", "off"])
def test_other_processes_hear_of_work(url, make, hints):
    store, other = open_store(f"{url}?hints={hints}"), open_store(f"{url}?hints={hints}")
    heard = threading.Semaphore(0)
    other.listen(heard.release)
    if hints == "on":
        assert heard.acquire(timeout=10)  # it listens now
    store.runs.start([make.start("r1")])
    assert heard.acquire(timeout=10 if hints == "on" else 0.05) == (hints == "on")
    for one in (store, other):
        one.close()


def test_a_listener_that_was_cut_listens_again(postgres, url, make):
    store, heard = open_store(url), threading.Semaphore(0)
    store.listen(heard.release)
    assert heard.acquire(timeout=10)
    postgres.server.terminate_backends(name_of(url))
    assert heard.acquire(timeout=10)  # once after each LISTEN
    store.runs.start([make.start("r1")])
    assert heard.acquire(timeout=10)
    store.close()


def test_nobody_waits_for_a_store_that_is_closed(postgres, url):
    store = open_store(url)
    postgres.server.stop("fast")
    store.close()
    try:
        with pytest.raises(StoreUnavailable):
            store.runs.get("r1")
    finally:
        postgres.server.start()


def test_the_same_keys_at_the_same_moment_make_one_run_each(url, make):
    """Neither transaction sees the other's rows until one of them is refused, and done again."""
    stores, answers = [open_store(url) for _ in range(4)], []
    together = threading.Barrier(4)

    def start_all(number, store):
        for n in range(10):
            together.wait()
            start = make.start(f"r{number}-{n}", key=f"k{n}")
            answers.extend(store.runs.start([start]))

    threads = [threading.Thread(target=start_all, args=each) for each in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 40
    assert sum(one.created for one in answers) == 10
    assert len({one.run_id for one in answers}) == 10
    for store in stores:
        store.close()


def test_a_lock_that_is_held_too_long(url, opened, database):
    hasty = opened(url, busy_timeout_seconds=0.05)
    with database.transaction() as holder:
        holder.run("LOCK TABLE turtles_worker")
        with (
            pytest.raises(StoreBusy, match=r"held a lock too long.*55P03"),
            hasty.transaction() as sql,
        ):
            sql.run("DELETE FROM turtles_worker")


def test_a_pool_that_is_used_up(url, opened):
    small = opened(f"{url}?pool=1", busy_timeout_seconds=0.05)
    with (
        small.transaction(),
        small.transaction(),
        pytest.raises(StoreBusy, match=r"all 2 connections.*\?pool="),
        small.transaction(),
    ):
        pass


def test_a_statement_over_its_time(url, opened):
    strict = opened(f"{url}?options=-cstatement_timeout%3D30")
    with (
        pytest.raises(StoreBusy, match=r"took too long.*57014.*statement_timeout"),
        strict.transaction() as sql,
    ):
        sql.run("SELECT pg_sleep(5)")


def test_a_transaction_that_stands_still_is_ended(url, opened, database):
    """So that a worker that is stopped in the middle does not keep its locks."""
    still = opened(url, busy_timeout_seconds=0.05)
    with (
        pytest.raises(StoreUnavailable, match=r"stopped in the middle|was lost"),
        still.transaction() as sql,
    ):
        sql.run("LOCK TABLE turtles_worker")
        with database.transaction() as other:
            other.run("LOCK TABLE turtles_worker")  # waits until the server has ended the first
        sql.scalar("SELECT 1")


def test_a_server_that_takes_no_writes(url, opened):
    standby = opened(f"{url}?options=-cdefault_transaction_read_only%3Don")
    with (
        pytest.raises(StoreReadOnly, match=r"does not take writes.*25006.*primary"),
        standby.transaction() as sql,
    ):
        sql.run("DELETE FROM turtles_worker")


def test_a_transaction_that_failed_is_not_called_committed(database):
    with (
        pytest.raises(StoreError, match="had failed, and was rolled back"),
        database.transaction() as sql,
        contextlib.suppress(Error),
    ):
        sql.run("SELECT 1 / 0")


def test_nothing_is_left_in_the_session(url, database):
    """So a pooler may give the connection to somebody else after each transaction."""
    query = "SELECT name, setting FROM pg_settings WHERE source = 'session'"
    with database.reading() as sql:
        before = sql.all(query)
    with database.transaction() as sql:
        sql.guard_schema()
        assert sql.scalar("SELECT current_setting('lock_timeout')") == "0"
    with database.reading() as sql:
        assert sql.all(query) == before
        assert sql.scalar("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == 0


@pytest.mark.parametrize("prepare, kept", [("off", 0), ("on", 1)])
def test_prepared_statements(url, opened, prepare, kept):
    database = opened(f"{url}?prepare={prepare}")
    for _ in range(8):
        with database.reading() as sql:
            assert sql.scalar("SELECT count(*) FROM turtles_worker WHERE pid = :n", n=1) == 0
    with database.reading() as sql:
        assert sql.scalar("SELECT count(*) FROM pg_prepared_statements") == kept


@pytest.mark.parametrize(
    "state, kind, said",
    [
        ("53100", "StoreFull", "no room left"),
        ("XX001", "StoreCorrupt", "damaged data"),
        ("53300", "StoreBusy", "max_connections"),
        ("40P01", "StoreBusy", "got in between"),
        ("57P03", "StoreUnavailable", "cannot be reached"),
        ("42501", "StoreReadOnly", "may write"),
        ("22023", "StoreError", "22023"),
    ],
)
def test_what_an_error_means(state, kind, said):
    meant = translate(lookup(state)("so it says"), "postgresql://here/x")
    assert kind in [each.__name__ for each in type(meant).__mro__]
    assert said in str(meant)
    assert "postgresql://here/x" in str(meant)
    assert "so it says" in str(meant)
