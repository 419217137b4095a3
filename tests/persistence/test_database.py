"""When the file or the disk fails: one clear error of the right kind, and no partial transition."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from engine.errors import StoreBusy, StoreCorrupt, StoreError, StoreFull, StoreReadOnly
from persistence.database import Database
from persistence.sqlite import SqliteDatabase
from persistence.store import open_store

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )


def output_of(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


@pytest.fixture
def url(tmp_path, make):
    """A file with one run of one transition, closed."""
    url = f"sqlite:///{tmp_path}/runs.db"
    store = open_store(url)
    store.machines.register(make.machine, make.version, make.shape, 1)
    store.runs.start([make.start("r1")])
    store.close()
    return url


def whole(url: str) -> int:
    """Reopen; every rule must hold.  The run's seq."""
    store = open_store(url)
    assert store.inspector.findings() == []
    seq = store.runs.get("r1").run.seq
    assert len(store.journal.read("r1")) == seq
    store.close()
    return seq


# -- files that cannot be used ------------------------------------------------------------------


def test_a_file_that_is_no_database(tmp_path):
    file = tmp_path / "runs.db"
    file.write_bytes(b"this is not a database, whatever its name says\n" * 100)
    with pytest.raises(StoreCorrupt, match=r"runs\.db: not a readable SQLite database.*backup"):
        open_store(f"sqlite:///{file}")
    assert file.read_bytes().startswith(b"this is not a database")


def test_a_database_with_damaged_pages(url, make):
    file = Path(url.removeprefix("sqlite:///"))
    body = bytearray(file.read_bytes())
    body[4096 : len(body)] = os.urandom(len(body) - 4096)
    file.write_bytes(body)
    with pytest.raises(StoreCorrupt, match="Restore it from a backup"):
        open_store(url).runs.get("r1")


def test_a_directory_that_does_not_exist(tmp_path):
    with pytest.raises(StoreReadOnly, match=r"missing/runs\.db.*directory exists"):
        open_store(f"sqlite:///{tmp_path}/missing/runs.db")


def test_a_path_under_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreReadOnly, match="cannot be opened for writing"):
        open_store(f"sqlite:///{tmp_path}/file/runs.db")


def test_a_directory_in_place_of_the_file(tmp_path):
    with pytest.raises(StoreReadOnly, match="cannot be opened for writing"):
        open_store(f"sqlite:///{tmp_path}")


_AS_NOBODY = f"""
import os, sys
import alembic.command, alembic.autogenerate
from engine.errors import StoreReadOnly
from engine.ports import WorkerIdentity
from persistence.store import open_store
if os.getuid() == 0:
    os.setgid({NOBODY})
    os.setuid({NOBODY})
try:
    store = open_store(sys.argv[1])
    worker = WorkerIdentity(worker_id="w", host="h", pid=1, process_start="0")
    store.workers.beat(worker, 1, lease_until_ms=2)
except StoreReadOnly as error:
    print(error)
"""


@pytest.fixture
def readable_by_all():
    """A directory outside of pytest's private one; root ignores modes, so a child gives root up."""
    folder = Path(tempfile.mkdtemp(prefix="turtles-test-"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_directory(readable_by_all):
    readable_by_all.chmod(0o555)
    message = output_of(child(_AS_NOBODY, f"sqlite:///{readable_by_all}/runs.db"))
    assert "cannot be opened for writing" in message
    assert list(readable_by_all.iterdir()) == []


def test_a_read_only_file(readable_by_all, url):
    file = readable_by_all / "runs.db"
    shutil.copy(url.removeprefix("sqlite:///"), file)
    file.chmod(0o444)
    readable_by_all.chmod(0o555)
    message = output_of(child(_AS_NOBODY, f"sqlite:///{file}"))
    assert "cannot be opened for writing" in message
    readable_by_all.chmod(0o755)
    file.chmod(0o644)
    assert whole(f"sqlite:///{file}") == 1


# -- modes --------------------------------------------------------------------------------------


def modes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}


def test_a_new_file_and_its_log_are_for_its_owner_alone(tmp_path):
    mask = os.umask(0o022)
    try:
        database = SqliteDatabase(tmp_path / "new.db")
        assert modes(tmp_path) == {}
        with database.transaction() as sql:
            sql.run("CREATE TABLE t (n INTEGER)")
        assert modes(tmp_path) == {"new.db": 0o600, "new.db-wal": 0o600, "new.db-shm": 0o600}
        database.close()
    finally:
        os.umask(mask)


def test_the_mode_of_a_file_that_exists_is_left_alone(tmp_path):
    (tmp_path / "old.db").touch(mode=0o640)
    database = SqliteDatabase(tmp_path / "old.db")
    with database.transaction() as sql:
        sql.run("CREATE TABLE t (n INTEGER)")
    assert modes(tmp_path)["old.db"] == 0o640
    database.close()


# -- disk full ----------------------------------------------------------------------------------

_STEPS = """
import resource, sys
from engine.errors import StoreFull
from engine.journal import Entry
from engine.ports import WorkerIdentity, Write
from persistence.store import open_store
url, limit_bytes, context_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = open_store(url)
worker = WorkerIdentity(worker_id="w", host="h", pid=1, process_start="0")
store.workers.beat(worker, 1000, lease_until_ms=9000)
(claimed,) = store.runs.claim("w", 1000, limit=1, versions=["v1"], run_id="r1")
run = claimed.run
if limit_bytes:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
print("ready", flush=True)
while True:
    after = run.but(seq=run.seq + 1, context=b"x" * context_bytes)
    entry = Entry(run_id="r1", seq=after.seq, event="go", source=run.state, target=after.state,
                  payload=None, verdicts=(), context=after.context, status="waiting", at_ms=1)
    write = Write(fence=claimed.fence, before=run, after=after, entry=entry, at_ms=1)
    try:
        (written,) = store.runs.commit([write])
    except StoreFull as error:
        print(error)
        print(store.runs.get("r1").run.seq)
        break
    assert written.ok
    run = after
    print(run.seq, flush=True)
"""


def test_a_full_disk(url):
    lines = output_of(child(_STEPS, url, str(512 * 1024), "20000")).splitlines()
    committed = int(lines[-3])
    assert "Free some space" in lines[-2] or "Check free space" in lines[-2]
    assert "last transition was not committed" in lines[-2]
    assert int(lines[-1]) == committed > 3
    assert whole(url) == committed


def test_a_full_disk_when_the_file_is_made(tmp_path):
    code = (
        "import resource, sys; from persistence.store import open_store\n"
        "from engine.errors import StoreFull\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n"
        "try: open_store(sys.argv[1])\n"
        "except StoreFull as error: print(error)"
    )
    url = f"sqlite:///{tmp_path}/runs.db"
    assert "not committed" in output_of(child(code, url))
    store = open_store(url)
    assert store.runs.get("r1") is None
    assert store.inspector.findings() == []
    store.close()


def test_a_database_that_may_not_grow(url, make):
    store = open_store(url)
    claimed = make.claim(store, "r1")
    with store.database.reading() as sql:
        pages = sql.scalar("PRAGMA page_count")
        sql.run(f"PRAGMA max_page_count = {pages + 2}")
    write = make.step(claimed.run, claimed.fence, context=b"x" * 50_000)
    with pytest.raises(StoreFull, match=r"no space left.*not committed"):
        store.runs.commit([write])
    assert store.runs.get("r1").run == claimed.run
    assert store.runs.commit([make.step(claimed.run, claimed.fence, context=b"x")])[0].ok
    store.close()
    assert whole(url) == 2


# -- a second process ---------------------------------------------------------------------------


def test_a_second_process_that_holds_the_lock(url, make):
    holder, store = open_store(url), open_store(url, busy_timeout_seconds=0.05)
    claimed = make.claim(store, "r1")
    write = make.step(claimed.run, claimed.fence)
    with holder.database.transaction():
        with pytest.raises(StoreBusy, match=r"held the write lock.*nothing was written"):
            store.runs.commit([write])
        assert store.runs.get("r1").run.seq == 1  # reading goes on
    assert store.runs.commit([write])[0].ok
    store.close()
    holder.close()
    assert whole(url) == 2


def test_a_second_process_that_has_locked_the_whole_file(tmp_path):
    file = tmp_path / "runs.db"
    holder = sa.create_engine(f"sqlite:///{file}")
    with holder.connect() as connection:
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        with pytest.raises(StoreBusy, match="Stop the other process or try again"):
            open_store(f"sqlite:///{file}", busy_timeout_seconds=0.05)
    holder.dispose()
    open_store(f"sqlite:///{file}").close()


# -- sudden ends --------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_a_process_killed_while_it_commits(url, steps):
    process = child(_STEPS, url, "0", "3000")
    seen = 1
    for line in process.stdout:
        seen = int(line) if line.strip().isdigit() else seen
        if seen >= steps:
            break
    process.send_signal(signal.SIGKILL)
    with process:  # not communicate(): it passes by the lines that are buffered here
        rest = process.stdout.read()
    last = max([seen, *(int(line) for line in rest.split() if line.isdigit())])
    assert process.returncode == -signal.SIGKILL
    assert whole(url) in (last, last + 1)  # what was told is there; perhaps one more


def test_a_copy_taken_at_a_power_loss(url, make, tmp_path):
    """Any prefix of the write-ahead log is a state that was committed."""
    store = open_store(url)
    claimed = make.claim(store, "r1")
    run, file = claimed.run, Path(url.removeprefix("sqlite:///"))
    for number in range(6):
        write = make.step(run, claimed.fence, context=b"%d" % number * 5000)
        assert store.runs.commit([write])[0].ok
        run = write.after
    log = file.with_name(file.name + "-wal").read_bytes()
    body = file.read_bytes()
    store.close()
    cuts = random.Random(7)
    seqs = set()
    for number, length in enumerate([*(cuts.randrange(len(log)) for _ in range(25)), len(log)]):
        copy = tmp_path / f"copy{number}.db"
        copy.write_bytes(body)
        copy.with_name(copy.name + "-wal").write_bytes(log[:length])
        with contextlib.closing(SqliteDatabase(copy)) as database, database.reading() as sql:
            made = sql.scalar("SELECT 1 FROM sqlite_master WHERE name = 'turtles_run'")
            accepted = made and sql.scalar("SELECT count(*) FROM turtles_run")
        seqs.add(whole(f"sqlite:///{copy}") if accepted else 0)
    assert run.seq in seqs
    assert len(seqs) > 3


# -- the seam -----------------------------------------------------------------------------------


def test_other_errors_of_the_driver_are_store_errors(tmp_path):
    with contextlib.closing(SqliteDatabase(tmp_path / "x.db")) as database:
        with pytest.raises(StoreError, match=r"x\.db: no such table"), database.reading() as sql:
            sql.one("SELECT * FROM nowhere")
        with pytest.raises(StoreError, match="syntax"), database.transaction() as sql:
            sql.run("NONSENSE")


def test_a_block_that_raises_writes_nothing(tmp_path):
    with contextlib.closing(SqliteDatabase(tmp_path / "x.db")) as database:
        with database.transaction() as sql:
            sql.run("CREATE TABLE t (n INTEGER)")
        with pytest.raises(ZeroDivisionError), database.transaction() as sql:
            sql.run("INSERT INTO t VALUES (:n)", n=1)
            raise ZeroDivisionError
        with database.transaction() as sql:
            sql.run_many("INSERT INTO t VALUES (:n)", [{"n": 2}, {"n": 3}])
            assert sql.run("UPDATE t SET n = n + 1") == 2
        with database.reading() as sql:
            assert sql.all("SELECT n FROM t ORDER BY n") == [{"n": 3}, {"n": 4}]


# -- transactions -------------------------------------------------------------------------------


@pytest.fixture(params=["file", "memory"])
def numbers(request, tmp_path):
    """A database with the empty table `t`."""
    database = SqliteDatabase(tmp_path / "x.db" if request.param == "file" else None)
    with database.transaction() as sql:
        sql.run("CREATE TABLE t (n INTEGER CHECK (n < 100))")
    yield database
    database.close()


def content(database: Database) -> list[int]:
    with database.reading() as sql:
        return [row["n"] for row in sql.all("SELECT n FROM t ORDER BY n")]


@pytest.mark.parametrize("reason", [ValueError, KeyboardInterrupt, SystemExit, StoreFull])
def test_whatever_ends_a_block_writes_nothing(numbers, reason):
    with pytest.raises(reason), numbers.transaction() as sql:
        sql.run("INSERT INTO t VALUES (1)")
        raise reason("no")
    assert content(numbers) == []


def test_a_commit_that_fails_writes_nothing(numbers):
    with numbers.transaction() as sql:
        sql.run("CREATE TABLE owner (id INTEGER PRIMARY KEY)")
        sql.run("CREATE TABLE owned (id REFERENCES owner DEFERRABLE INITIALLY DEFERRED)")
    with pytest.raises(StoreError, match="FOREIGN KEY"), numbers.transaction() as sql:
        sql.run("INSERT INTO t VALUES (1)")
        sql.run("INSERT INTO owned VALUES (7)")
    assert content(numbers) == []
    with numbers.transaction() as sql:
        sql.run("INSERT INTO t VALUES (2)")
    assert content(numbers) == [2]


def test_a_statement_that_failed_and_was_caught_loses_no_other(numbers):
    with numbers.transaction() as sql:
        sql.run("INSERT INTO t VALUES (1)")
        with pytest.raises(sqlite3.IntegrityError):
            sql.run("INSERT INTO t VALUES (100)")
        sql.run("INSERT INTO t VALUES (2)")
    assert content(numbers) == [1, 2]


def test_what_sqlite_rolled_back_itself_is_not_taken_for_committed(numbers):
    with pytest.raises(StoreError, match="no transaction is active"), numbers.transaction() as sql:
        sql.run("INSERT INTO t VALUES (1)")
        with pytest.raises(sqlite3.IntegrityError):
            sql.run("INSERT OR ROLLBACK INTO t VALUES (100)")
    assert content(numbers) == []


def test_several_threads_take_turns(numbers):
    def add() -> None:
        for _ in range(20):
            with numbers.transaction() as sql:
                sql.run("INSERT INTO t SELECT count(*) FROM t")
            content(numbers)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(add) for _ in range(4)]:
            done.result()
    assert content(numbers) == list(range(80))


def test_reading_within_a_transaction_of_a_file_sees_what_was_committed(tmp_path):
    with contextlib.closing(SqliteDatabase(tmp_path / "x.db")) as database:
        with database.transaction() as sql:
            sql.run("CREATE TABLE t (n INTEGER)")
        with database.transaction() as sql:
            sql.run("INSERT INTO t VALUES (1)")
            assert content(database) == []
        assert content(database) == [1]


@pytest.mark.parametrize("within", [Database.transaction, Database.reading])
def test_the_only_connection_has_one_transaction_at_a_time(within):
    with contextlib.closing(SqliteDatabase(None)) as database:
        with database.transaction() as sql:
            sql.run("CREATE TABLE t (n INTEGER)")
            with pytest.raises(StoreError, match="open on its only connection"), within(database):
                raise AssertionError("it must not begin")
            sql.run("INSERT INTO t VALUES (1)")
        assert content(database) == [1]  # the outer one went on


def test_core_and_the_driver_share_the_transaction(numbers):
    with pytest.raises(ZeroDivisionError), numbers.transaction() as sql:
        sql.connection.execute(sa.text("INSERT INTO t VALUES (1)"))
        assert sql.connection.in_transaction()
        assert sql.scalar("SELECT n FROM t") == 1
        raise ZeroDivisionError
    assert content(numbers) == []
    with pytest.raises(StoreError, match="no such table"), numbers.transaction() as sql:
        sql.connection.execute(sa.text("SELECT * FROM nowhere"))
    with numbers.transaction() as sql:
        sql.connection.execute(sa.text("INSERT INTO t VALUES (2)"))
    gc.collect()
    assert content(numbers) == [2]


def test_a_closed_database_in_memory_is_gone():
    database = SqliteDatabase(None)
    database.close()
    with pytest.raises(StoreError, match="closed"), database.reading():
        raise AssertionError("it must not begin")


def test_values_of_text_statements(numbers):
    with numbers.transaction() as sql:
        sql.run("INSERT INTO t VALUES (:n)", n=True)
        assert sql.one("SELECT n, :a AS a, :b AS b, :c AS c FROM t", a=None, b=b"x", c="y") == {
            "n": 1, "a": None, "b": b"x", "c": "y"
        }  # fmt: skip
        assert sql.one("SELECT n FROM t WHERE n = :n", n=5) is None
        assert sql.scalar("SELECT n FROM t WHERE n = :n", n=5) is None
        assert sql.scalar("INSERT INTO t VALUES (3) RETURNING n") == 3
        assert sql.run("UPDATE t SET n = n + :more", more=1) == 2
        sql.run_many("INSERT INTO t VALUES (:n)", [])
    assert content(numbers) == [2, 4]
