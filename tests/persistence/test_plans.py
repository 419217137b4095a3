"""What a worker says at every step walks no table: the cost of a step, a start, a claim, an event
and a look depends neither on how many runs there are nor on what a run has behind it.

The database is asked for the plan of every statement, so this is no matter of time.  PostgreSQL is
asked with its sequential scans switched off: with so few rows it would choose them.
"""

from __future__ import annotations

import pytest

from engine.ports import Batch, Query
from persistence.database import Session
from persistence.postgresql import PgSession
from persistence.sqlite import SqliteSession

LARGE = ("turtles_run", "turtles_transition", "turtles_inbox", "turtles_gone")


@pytest.fixture
def said(monkeypatch):
    """Every statement that is sent from now on, with values it was sent with."""
    texts = {}
    begin = Session.__init__

    def listening(self, database, pooled, send):
        def noted(text, values):
            texts.setdefault(text, values)
            return send(text, values)

        begin(self, database, pooled, noted)

    monkeypatch.setattr(Session, "__init__", listening)
    for kind in (SqliteSession, PgSession):
        many = kind._send_many

        def noted_many(self, text, rows, many=many):
            texts.setdefault(text, rows[0])
            return many(self, text, rows)

        monkeypatch.setattr(kind, "_send_many", noted_many)
    return texts


def plans(store, said):
    """The plan of every statement that can have one."""
    of_server = store.database.dialect == "postgresql"
    explain = "EXPLAIN" if of_server else "EXPLAIN QUERY PLAN"
    found = {}
    for text, values in list(said.items()):
        if text.split(None, 1)[0] in ("SELECT", "UPDATE", "DELETE", "INSERT", "WITH"):
            with store.database.reading() as sql:
                if of_server:
                    sql.run("SET LOCAL enable_seqscan = off")
                found[text] = [
                    str(row[-1]).strip() for row in sql._send(f"{explain} {text}", values)
                ]
    return found


def walks(lines):
    """The lines of a plan that say that a large table is read from end to end."""
    found = []
    for line in lines:
        _, _, table = line.replace("SCAN ", "Seq Scan on ", 1).partition("Seq Scan on ")
        if table.split(" ")[0] in LARGE and "USING" not in line:
            found.append(line)
    return found


def lived(store, make):
    """Everything that a worker and its callers do with runs, at least once."""
    worker = make.worker()
    store.workers.beat(worker, 1000, lease_until_ms=9000)
    store.workers.beat(worker, 1000, lease_until_ms=9000)
    store.workers.reap(1000, dead=lambda _: False)
    store.runs.group(Batch(starts=(make.start("r1", key="k"), make.due("r2", due_ms=5000))))
    store.runs.group(Batch(deliveries=(make.delivery("r1"), make.delivery("r2"))))
    store.runs.next_due_ms([make.version])
    claimed = store.runs.claim("w1", 6000, limit=10, versions=[make.version])
    runs = {one.run.run_id: one for one in claimed}
    effect = make.effect("r1", 2, attempts=1, open=True)
    first = make.step(
        runs["r1"].run, runs["r1"].fence, state="busy", status="running", effect=effect,
        consumed=make.applied(*runs["r1"].inbox),
    )  # fmt: skip
    last = make.step(
        runs["r2"].run, runs["r2"].fence, state="done", status="completed", effect=None,
        outcome="done", output=b"1", release=True,
    )  # fmt: skip
    assert [one.ok for one in store.runs.commit([first, last])] == [True, True]
    stale = make.step(runs["r2"].run, runs["r2"].fence)
    assert not store.runs.commit([stale])[0].ok
    store.runs.claim("w1", 6000, limit=10, versions=[make.version], run_id="r1")
    store.runs.get("r1")
    store.runs.rested(["r1", "r2"])
    store.runs.find("M", "k")
    store.runs.find("M", "another")
    store.runs.select(Query(limit=10))
    store.runs.select(Query(parent_id="r1"))
    store.journal.read("r1", after_seq=1)
    store.effects.read("r1")
    store.inbox.receipt("r1", "k1")
    store.inbox.waiting("r1")
    store.retention.remove(500, 6000, most=10)
    store.retention.forget(500, most=10)
    store.workers.retire("w1")
    return first


def test_no_statement_walks_a_table(said, store, make):
    first = lived(store, make)
    assert first.entry is not None
    found = plans(store, said)
    assert len(found) > 25, found
    assert {text: walks(lines) for text, lines in found.items() if walks(lines)} == {}


def test_a_walk_is_seen(said, store):
    said.clear()
    with store.database.reading() as sql:
        sql._send("SELECT count(*) FROM turtles_transition WHERE status = 'failed'", ())
    (lines,) = plans(store, said).values()
    assert walks(lines)


@pytest.mark.parametrize("seq", [1, 1_000_000])
def test_a_long_past_is_not_read(said, breakable, make, damage, seq):
    """The statements of one step, and how many rows they give, do not depend on the run's seq."""
    breakable.runs.start([make.start("r1")])
    if seq > 1:
        damage(
            breakable,
            f"UPDATE turtles_run SET seq = {seq}, entered_seq = {seq}",  # noqa: S608
            f"UPDATE turtles_transition SET seq = {seq}",  # noqa: S608
        )
    said.clear()
    claimed = make.claim(breakable, "r1")
    run = claimed.run
    assert run.seq == seq
    for _ in range(3):
        write = make.step(run, claimed.fence)
        assert breakable.runs.commit([write])[0].ok
        run = write.after
    assert [entry.seq for entry in breakable.journal.read("r1", after_seq=seq)] == [
        seq + 1,
        seq + 2,
        seq + 3,
    ]
    reads = [text for text in said if "turtles_transition" in text and "INSERT" not in text]
    assert len(reads) == 1, reads  # what this test asked for itself
    assert not any(map(walks, plans(breakable, said).values()))
