"""`open_store`: urls, settings, and one file for several processes."""

from __future__ import annotations

import pytest

from engine.errors import UsageError
from engine.ports import Store
from persistence.store import SqlStore, open_store


def as_port(store: SqlStore) -> Store:
    """Type-checked: the store is what the runtime asks for."""
    return store


@pytest.mark.parametrize(
    "url, seen",
    [
        ("oracle://localhost/x", "oracle"),
        ("mysql://root:hunter2@localhost/x", "mysql"),
        ("runs.db", "one without a scheme"),
        ("sqlite://runs.db", "sqlite"),
        ("", "one without a scheme"),
    ],
)
def test_another_url_is_refused_without_showing_it(url, seen):
    with pytest.raises(UsageError, match=f"expected sqlite:///.*got {seen}") as refused:
        open_store(url)
    assert "hunter2" not in str(refused.value)


def test_relative_and_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_store("sqlite:///relative.db").close()
    open_store(f"sqlite:///{tmp_path}/absolute.db").close()
    assert {path.name for path in tmp_path.glob("*.db")} == {"relative.db", "absolute.db"}


def test_a_store_carries_every_noun(opener):
    store = as_port(opener())
    nouns = ("runs", "journal", "inbox", "workers", "effects", "machines", "inspector")
    assert all(getattr(store, noun) is not None for noun in nouns)
    assert store.name
    store.close()


def test_what_is_written_is_there_after_reopening(shared_url, make):
    first = open_store(shared_url)
    first.runs.start([make.start("r1")])
    first.close()
    second = open_store(shared_url)
    assert second.runs.get("r1").run == make.run("r1")
    second.close()


def test_two_stores_in_memory_share_nothing(make):
    one, other = open_store("sqlite://"), open_store("sqlite://")
    one.runs.start([make.start("r1")])
    assert other.runs.get("r1") is None
    one.close()
    other.close()


@pytest.mark.parametrize("synchronous, level", [("FULL", 2), ("NORMAL", 1)])
def test_how_a_file_is_opened(tmp_path, synchronous, level):
    store = open_store(f"sqlite:///{tmp_path}/runs.db", synchronous=synchronous)
    with store.database.reading() as sql:
        settings = [sql.scalar(f"PRAGMA {name}") for name in
                    ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")]  # fmt: skip
    store.close()
    assert settings == ["wal", level, 1, 10_000]


def test_a_database_in_memory_has_small_pages(tmp_path):
    """The explorer saves and restores it whole; a file keeps the pages that suit a disk."""
    sizes = []
    for url in ("sqlite://", f"sqlite:///{tmp_path}/runs.db"):
        store = open_store(url)
        with store.database.reading() as sql:
            sizes.append(sql.scalar("PRAGMA page_size"))
        store.close()
    assert sizes == [512, 4096]


def test_the_hot_path_uses_the_partial_indexes(tmp_path, make):
    """No statement of a worker's life reads a table from end to end."""
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    store.runs.start([make.due("r1"), make.due("r2")])
    with store.database.reading() as sql:  # the one pooled connection
        driver = sql.connection.connection.driver_connection
    seen = []
    driver.set_trace_callback(seen.append)
    store.inbox.deliver([make.delivery("r1")])
    store.workers.beat(make.worker(), 1000, lease_until_ms=9000)
    claimed, other = store.runs.claim("w1", 2000, limit=5, versions=["v1"])
    store.runs.commit(
        [
            make.step(
                claimed.run, claimed.fence, effect=None, state="idle", status="waiting",
                consumed=make.applied(*claimed.inbox), sends=(make.delivery("r2"),),
            ),
            make.note(other.run, other.fence, release=True),
        ]
    )  # fmt: skip
    store.runs.next_due_ms(["v1"])
    store.workers.retire("w1")
    driver.set_trace_callback(None)

    plans = {}
    for statement in seen:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            rows = driver.execute(f"EXPLAIN QUERY PLAN {statement}")
            plans[statement] = [row[3] for row in rows]
    store.close()
    whole = {
        statement: plan
        for statement, plan in plans.items()
        if any(line.startswith("SCAN turtles_") and " USING " not in line for line in plan)
    }
    assert whole == {}
    used = " ".join(line for plan in plans.values() for line in plan)
    for index in ("run_ready", "run_due", "run_owner", "inbox_waiting"):
        assert f"turtles_{index}" in used, index


def test_a_claim_reads_neither_future_timers_nor_ended_runs(tmp_path, make):
    """What a claim costs depends on what is due: it walks the two partial indexes, and no table."""
    store = open_store(f"sqlite:///{tmp_path}/runs.db")
    store.runs.start([make.due(f"later{n}", 9_000_000) for n in range(50)])
    store.runs.start([make.start(f"over{n}", state="done", status="completed") for n in range(50)])
    store.runs.start([make.due("r1"), make.due("r2", 1500)])
    store.workers.beat(make.worker(), 1000, lease_until_ms=9000)
    with store.database.reading() as sql:
        driver = sql.connection.connection.driver_connection
        driver.execute("ANALYZE")  # the planner may not turn to the table when it knows its size
    seen = []
    driver.set_trace_callback(seen.append)
    claimed = store.runs.claim("w1", 2000, limit=5, versions=["v1"])
    store.runs.next_due_ms(["v1"])
    driver.set_trace_callback(None)
    assert {one.run.run_id for one in claimed} == {"r1", "r2"}
    plans = [
        " ".join(row[3] for row in driver.execute(f"EXPLAIN QUERY PLAN {statement}"))
        for statement in seen
        if statement.startswith(("SELECT", "UPDATE")) and "turtles_run" in statement
    ]
    store.close()
    assert len(plans) >= 4  # the next timer, its promotion, the claim, the next moment
    for plan in plans:
        assert "turtles_run_ready" in plan or "turtles_run_due" in plan, plan
        assert "SCAN turtles_run " not in plan.replace("SCAN turtles_run USING", "SCAN_BY"), plan
