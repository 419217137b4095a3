"""Retention: whole trees of runs by the time of their end, in short transactions; keys stay."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.codec import digest_of
from engine.testing import Crash, CrashPlan
from persistence.store import SqlStore, open_store

DAY = 86_400_000


@pytest.fixture
def ended(store: SqlStore, make: Any) -> Any:
    """Makes a run that ended then; or one that has not ended."""

    def build(run_id: str, at_ms: int | None, parent: str | None = None, **more: Any) -> None:
        if parent is not None:
            more["parent"] = make.parent(parent)
        start = make.start(run_id, state="done", status="completed", **more)
        alive = make.start(run_id, child=None, **more)
        store.runs.start([alive if at_ms is None else start])
        with store.database.transaction() as sql:
            sql.run("UPDATE turtles_run SET ended_ms = :at WHERE run_id = :id", at=at_ms, id=run_id)

    return build


def rows_of(store: SqlStore) -> dict[str, set[str]]:
    with store.database.reading() as sql:
        return {
            table: {row["run_id"] for row in sql.all(f"SELECT run_id FROM turtles_{table}")}  # noqa: S608
            for table in ("run", "transition", "inbox", "gone")
        }


def test_a_run_goes_by_the_time_of_its_end(store, ended, make):
    ended("old", 5 * DAY, key="k", created_ms=1)
    ended("young", 9 * DAY, created_ms=1)  # began with the other
    ended("alive", None)
    store.inbox.deliver([make.delivery("old")])
    removed = store.retention.remove(8 * DAY, 10 * DAY, most=10)
    assert (removed.trees, removed.runs, removed.kept, removed.after) == (1, 1, 0, None)
    assert rows_of(store) == {
        "run": {"young", "alive"},
        "transition": {"young", "alive"},
        "inbox": set(),
        "gone": {"old"},
    }
    gone = store.retention.gone("old")
    assert (gone.machine, gone.key, gone.status) == ("M", "k", "completed")
    assert (gone.ended_ms, gone.removed_ms) == (5 * DAY, 10 * DAY)
    assert gone.digest == digest_of(make.run().context)
    assert store.retention.gone("young") is None


def test_a_tree_goes_as_a_whole(store, ended):
    ended("root", DAY)
    ended("child", DAY, "root")
    ended("grandchild", DAY, "child")
    assert store.retention.remove(2 * DAY, 3 * DAY, most=1).runs == 3
    assert rows_of(store)["run"] == set()


@pytest.mark.parametrize("last_ms", [None, 2 * DAY, 3 * DAY], ids=["alive", "then", "later"])
def test_a_tree_with_a_member_that_has_not_ended_before_then_is_kept(store, ended, last_ms):
    ended("root", DAY)
    ended("child", DAY, "root")
    ended("grandchild", last_ms, "child")
    ended("other", DAY)
    removed = store.retention.remove(2 * DAY, 3 * DAY, most=10)
    assert (removed.trees, removed.kept) == (1, 1)
    assert rows_of(store)["run"] == {"root", "child", "grandchild"}


def test_children_of_a_live_parent_are_kept(store, ended):
    ended("root", None)
    ended("child", DAY, "root")
    removed = store.retention.remove(2 * DAY, 3 * DAY, most=10)
    assert (removed.trees, removed.kept) == (0, 0)
    assert rows_of(store)["run"] == {"root", "child"}


def test_batches_go_on_where_the_last_one_stopped(store, ended):
    """Also over trees that are kept, of which there may be more than a batch."""
    for number in range(7):
        ended(f"r{number}", DAY + number // 3)
        if number < 3:
            ended(f"c{number}", None, f"r{number}")
    after, seen = None, []
    while True:
        removed = store.retention.remove(2 * DAY, 3 * DAY, most=2, after=after)
        seen.append((removed.trees, removed.kept))
        after = removed.after
        if after is None:
            break
    assert seen == [(0, 2), (1, 1), (2, 0), (1, 0)]
    assert rows_of(store)["gone"] == {"r3", "r4", "r5", "r6"}


def test_only_runs_of_a_machine_and_what_is_below_them(store, ended):
    ended("root", DAY)
    ended("child", DAY, "root")
    assert store.retention.remove(2 * DAY, 3 * DAY, most=10, machine="N").trees == 0
    assert store.retention.remove(2 * DAY, 3 * DAY, most=10, machine="M").runs == 2


def test_a_dry_run_counts_and_changes_nothing(store, ended):
    ended("root", DAY)
    ended("child", DAY, "root")
    before = rows_of(store)
    removed = store.retention.remove(2 * DAY, 3 * DAY, most=10, dry_run=True)
    assert (removed.trees, removed.runs) == (1, 2)
    assert rows_of(store) == before


def test_a_key_of_a_removed_run_stays_in_use(store, ended, make):
    ended("old", DAY, key="k")
    store.retention.remove(2 * DAY, 3 * DAY, most=10)
    (started,) = store.runs.start([make.start("new", key="k")])
    assert (started.run_id, started.created) == ("old", False)
    assert store.runs.find("M", "k") == "old"
    assert rows_of(store)["run"] == set()


def test_a_forgotten_key_may_be_used_anew(store, ended, make):
    ended("old", DAY, key="k")
    store.retention.remove(2 * DAY, 3 * DAY, most=10)
    assert store.retention.forget(3 * DAY, most=10) == 0
    assert store.retention.forget(3 * DAY + 1, most=10) == 1
    assert store.retention.gone("old") is None
    (started,) = store.runs.start([make.start("new", key="k")])
    assert (started.run_id, started.created) == ("new", True)


def test_a_tree_of_more_runs_than_one_statement_names(store, ended, monkeypatch):
    monkeypatch.setattr("persistence.retention.AT_ONCE", 2)
    ended("root", DAY)
    for number in range(5):
        ended(f"c{number}", DAY, "root")
    assert store.retention.remove(2 * DAY, 3 * DAY, most=10).runs == 6
    assert rows_of(store) == {
        "run": set(),
        "transition": set(),
        "inbox": set(),
        "gone": {"root", *(f"c{number}" for number in range(5))},
    }


def test_a_death_at_any_statement_leaves_whole_runs_or_nothing(store, ended, make, monkeypatch):
    """And the key answers with the old run, whole or removed, never half of it."""
    at = 0
    while True:
        at += 1
        run_id = f"r{at}"
        ended(run_id, DAY, key=run_id)
        ended(f"c{at}", DAY, run_id)
        store.inbox.deliver([make.delivery(run_id)])
        plan = CrashPlan(at=at)
        with monkeypatch.context() as patched:
            _crash_within(store, plan, patched)
            with suppress(Crash):
                store.retention.remove(2 * DAY, 3 * DAY, most=10)
        if not plan.dead:
            break
        assert rows_of(store)["gone"] & {run_id, f"c{at}"} == set()
        for table in ("run", "transition"):
            assert {run_id, f"c{at}"} <= rows_of(store)[table]
        assert run_id in rows_of(store)["inbox"]
        (started,) = store.runs.start([make.start("again", key=run_id)])
        assert (started.run_id, started.created) == (run_id, False)
        assert store.retention.remove(2 * DAY, 3 * DAY, most=10).runs == 2
    assert at > 7  # reads, inserts, deletes


def _crash_within(store: SqlStore, plan: CrashPlan, patched: pytest.MonkeyPatch) -> None:
    """Statements of the store's sessions pass by a plan."""
    session = type(store.database)._session

    def crashing(self: Any, *, writes: bool) -> Any:
        opened = session(self, writes=writes)

        class Around:
            def __enter__(self) -> Any:
                sql = opened.__enter__()
                for name in ("_send", "_send_many"):
                    send = getattr(sql, name)
                    setattr(sql, name, lambda text, *rest, send=send: _made(text, send, rest))
                return sql

            def __exit__(self, *error: Any) -> Any:
                return opened.__exit__(*error)

        return Around()

    def _made(text: str, send: Any, rest: Any) -> Any:
        return plan.around(text.split()[0], lambda: send(text, *rest))

    patched.setattr(type(store.database), "_session", crashing)


KILLED = """
import os, signal, sys
from sqlalchemy import event
from persistence.store import open_store

url, at = sys.argv[1], int(sys.argv[2])
store, left = open_store(url), at
def trace(_statement):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
store.database.sa.dispose()
event.listen(store.database.sa, "connect", lambda driver, _r: driver.set_trace_callback(trace))
after = None
while True:
    after = store.retention.remove(10**15, 10**15, most=2, after=after).after
    if after is None:
        break
print(at - left)
"""


@pytest.mark.acceptance
def test_a_process_killed_at_any_statement_leaves_whole_runs(tmp_path, make):
    """SIGKILL before each statement; then the ids are used again: no old result is given half."""
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    store = open_store(url)

    def fill() -> None:
        for n in range(5):
            done = {"state": "done", "status": "completed"}
            store.runs.start([make.start(f"r{n}", key=f"k{n}", **done)])
            store.runs.start([make.start(f"c{n}", parent=make.parent(f"r{n}"), **done)])

    def process(at: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", KILLED, url, str(at)],
            cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        )  # fmt: skip

    fill()
    counted = process(0)
    statements = int(counted.stdout)
    assert statements > 20, counted.stderr
    for at in range(1, statements + 1):
        store.retention.forget(10**16, most=100)
        fill()
        assert process(at).returncode == -signal.SIGKILL
        found = rows_of(store)
        assert found["run"] == found["transition"]
        assert found["run"] ^ found["gone"] == {f"{a}{n}" for a in "rc" for n in range(5)}
        assert {one[1:] for one in found["run"] if one[0] == "r"} == {
            one[1:] for one in found["run"] if one[0] == "c"
        }
        again = store.runs.start([make.start(f"new{n}", key=f"k{n}") for n in range(5)])
        assert [(one.run_id, one.created) for one in again] == [(f"r{n}", False) for n in range(5)]
        store.retention.remove(10**15, 10**15, most=100)
    store.close()


GROWTH = 300


@pytest.mark.parametrize("statement", [
    pytest.param("claim", id="claim"),
    pytest.param("start", id="start"),
    pytest.param("commit", id="commit"),
    pytest.param("resume", id="resume"),
    pytest.param("next_due_ms", id="next_due_ms"),
    pytest.param("gc", id="gc"),
])  # fmt: skip
def test_nothing_scans_what_has_ended_or_waits(tmp_path, make, statement):
    """Every statement of the hot path and of retention finds its rows by an index."""
    store = open_store(f"sqlite:///{tmp_path / 'runs.db'}")
    store.machines.register(make.machine, make.version, b'{"states": [], "edges": []}', 1)
    store.runs.start([make.due(f"d{n}") for n in range(3)])
    store.runs.start([make.start(f"w{n}", key=f"w{n}") for n in range(GROWTH)])
    store.runs.start(
        [make.start(f"e{n}", key=f"e{n}", state="done", status="completed") for n in range(GROWTH)]
    )
    work = {
        "claim": lambda: claim(store, make),
        "start": lambda: store.runs.start([make.start("new", key="k")]),
        "commit": lambda: step(store, make),
        "resume": lambda: store.inbox.deliver([make.delivery("w1")]),
        "next_due_ms": lambda: store.runs.next_due_ms([make.version]),
        "gc": lambda: store.retention.remove(2 * DAY, 3 * DAY, most=10, machine="M"),
    }[statement]
    with store.database.transaction() as sql:
        sql.run("ANALYZE")
    plans = plans_of(store, work)
    assert plans
    scans = [(text, line) for text, lines in plans for line in lines if is_scan(line)]
    assert scans == []
    store.close()


def claim(store: SqlStore, make: Any) -> Any:
    store.workers.beat(make.worker(), 1000, lease_until_ms=9_000_000)
    return store.runs.claim("w1", 1000, limit=2, versions=[make.version])


def step(store: SqlStore, make: Any) -> None:
    claimed = claim(store, make)[0]
    run = claimed.run
    after = msgspec.structs.replace(run.effect, attempts=1)
    store.runs.commit([make.note(run, claimed.fence, effect=after)])
    store.runs.commit(
        [make.step(run.but(effect=after), claimed.fence, effect=None, status="completed",
                   state="done", outcome="done")]
    )  # fmt: skip


def is_scan(line: str) -> bool:
    """Whether a line of EXPLAIN QUERY PLAN walks a table, or an index without looking for a key.

    The partial indexes of what is ready or due hold nothing else, and are walked in their order.
    """
    if not line.startswith("SCAN"):
        return False
    small = ("turtles_run_ready", "turtles_run_due", "turtles_worker", "CONSTANT", "VALUES", "(")
    return not any(word in line for word in small)


def plans_of(store: SqlStore, work: Any) -> list[tuple[str, list[str]]]:
    """Every statement that the work sends, with its plan."""
    texts: list[tuple[str, Any]] = []
    session = type(store.database)._session
    patch = pytest.MonkeyPatch()

    def noting(text: str, values: Any) -> None:
        texts.append((text, values))

    patch.setattr(type(store.database), "_session", _noting(session, noting))
    try:
        work()
    finally:
        patch.undo()
    found = []
    with store.database.reading() as sql:
        for text, values in texts:
            rows = sql._send(f"EXPLAIN QUERY PLAN {text}", values)
            found.append((text, [row[3] for row in rows]))
    return found


def _noting(session: Any, note: Any) -> Any:
    def opened(self: Any, *, writes: bool) -> Any:
        inner = session(self, writes=writes)

        class Around:
            def __enter__(self) -> Any:
                sql = inner.__enter__()
                one, many = sql._send, sql._send_many

                def send(text: str, values: Any) -> Any:
                    note(text, values)
                    return one(text, values)

                def send_many(text: str, rows: Any) -> Any:
                    note(text, rows[0])
                    return many(text, rows)

                sql._send, sql._send_many = send, send_many
                return sql

            def __exit__(self, *error: Any) -> Any:
                return inner.__exit__(*error)

        return Around()

    return opened


def test_the_check_sees_a_scan(tmp_path):
    """What the growth test looks for is told apart."""
    store = open_store(f"sqlite:///{tmp_path / 'runs.db'}")

    def scan() -> None:
        with store.database.reading() as sql:
            sql._send("SELECT * FROM turtles_run WHERE state = ?", ("x",))

    ((_, (line,)),) = plans_of(store, scan)
    assert is_scan(line)
    store.close()
