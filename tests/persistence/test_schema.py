"""Migrations lead to exactly the tables; databases of other versions are upgraded or refused."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from engine.contracts import Verdict
from engine.errors import SchemaMismatch
from engine.ports import WorkerIdentity
from engine.run import Pending
from persistence import migrate, schema, tables
from persistence.database import Database
from persistence.sqlite import SqliteDatabase
from persistence.store import SqlStore, open_store

ROOT = Path(__file__).resolve().parents[2]
REVISIONS = ["0001", "0002"]


def written_schema(database: Database) -> dict[str, tuple[str, ...]]:
    """Every CREATE statement as SQLite keeps it, without layout.

    The columns and constraints of a table come sorted: a column that a migration adds is the last.
    """
    with database.reading() as sql:
        rows = sql.all("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {
        row["name"]: _parts(re.sub(r"\s+", " ", row["sql"].replace('"', "")).strip())
        for row in rows
        if row["name"] not in ("alembic_version", "sqlite_sequence")
    }


def _parts(statement: str) -> tuple[str, ...]:
    if not statement.startswith("CREATE TABLE"):
        return (statement.replace("( ", "("),)
    head, _, body = statement.partition("(")
    parts, depth = [""], 0
    for sign in body.rpartition(")")[0]:
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return (head.strip(), *sorted(part.strip() for part in parts))


def migrated(path: Path, revision: str) -> Database:
    """A file at this revision, as the version of that time would have made it."""
    database = SqliteDatabase(path)
    with database.transaction() as sql:
        config = Config()
        config.set_main_option("script_location", str(migrate.directory(schema.SCRIPT_LOCATION)))
        config.attributes["connection"] = sql.connection
        command.upgrade(config, revision)
    return database


def populate(database: Database) -> None:
    """Rows as revision 0001 had them: runs with journals, effects, events and a worker.

    Run r1 is in the middle of an effect, r2 went wrong and undid what it had made, r3 waits for a
    timer after an effect that it left behind.  Plain SQL on purpose: it must stay as it is when the
    tables change, and so must the keys of effects, under which the outside knows what was done.
    """
    verdicts = (
        b'[{"clause":"enough","kind":"guard","ok":true,"saw":{"context.n":3}},'
        b'{"clause":"grew","kind":"ensures","ok":false,"saw":{}}]'
    )
    statements = (
        "INSERT INTO turtles_run (run_id, machine, version, key, state, status, seq, entered_seq,"
        " fence, owner, due_ms, stalls, created_ms, updated_ms, undo, cancel_requested, depth,"
        " context) VALUES ('r1', 'M', 'v1', 'k', 'busy', 'running', 2, 2, 3, 'w1', 500, 1, 100,"
        " 200, '[]', 0, 0, x'7b7d')",
        "INSERT INTO turtles_transition (run_id, seq, event, source, target, status, at_ms,"
        " worker, fence, payload, verdicts, context) VALUES"
        " ('r1', 1, '$start', '', 'idle', 'waiting', 100, '', 0, NULL, x'5b5d', x'7b7d'),"
        " ('r1', 2, 'go', 'idle', 'busy', 'running', 200, 'w1', 3, x'7b7d',"
        " :verdicts, x'7b7d')",
        "INSERT INTO turtles_effect (run_id, seq, name, key, status, attempts, calls, open,"
        " next_ms, last_error)"
        " VALUES ('r1', 2, 'call', 't44a89e67ce4232a30887a8cc4', 'pending', 1, 4, 1, 500, 'lost')",
        "INSERT INTO turtles_run (run_id, machine, version, key, state, status, seq, entered_seq,"
        " fence, due_ms, stalls, created_ms, updated_ms, undo, cancel_requested, depth, context,"
        " output) VALUES"
        " ('r2', 'M', 'v1', NULL, 'done', 'failed', 4, 3, 2, NULL, 0, 100, 400, '[]', 0, 0,"
        " x'7b7d', x'31'),"
        " ('r3', 'M', 'v1', NULL, 'busy', 'waiting', 2, 2, 1, 700, 0, 100, 300, '[]', 0, 0,"
        " x'7b7d', NULL)",
        "UPDATE turtles_run SET deadline_ms = 700 WHERE run_id = 'r3'",
        "INSERT INTO turtles_transition (run_id, seq, event, source, target, status, at_ms,"
        " worker, fence, payload, verdicts, context) VALUES"
        " ('r2', 1, '$start', '', 'idle', 'running', 100, '', 0, NULL, x'5b5d', x'7b7d'),"
        " ('r2', 2, 'booked', 'idle', 'busy', 'running', 200, 'w', 1, NULL, x'5b5d', x'7b7d'),"
        " ('r2', 3, 'refused', 'busy', 'done', 'running', 300, 'w', 1, NULL, x'5b5d', x'7b7d'),"
        " ('r2', 4, '$undone', 'done', 'done', 'failed', 400, 'w', 2, NULL, x'5b5d', x'7b7d'),"
        " ('r3', 1, '$start', '', 'idle', 'running', 100, '', 0, NULL, x'5b5d', x'7b7d'),"
        " ('r3', 2, 'go', 'idle', 'busy', 'waiting', 300, 'w', 1, NULL, x'5b5d', x'7b7d')",
        "INSERT INTO turtles_effect (run_id, seq, name, key, status, attempts, calls, open,"
        " next_ms, undo_of, last_error, closed_seq) VALUES"
        " ('r2', 1, 'book', 't4bef33c8ef93a7a156a79b08b', 'done', 1, 1, 0, 100, NULL, NULL, 2),"
        " ('r2', 2, 'rent', 't3f69bbdb464436b43474ea50d', 'given_up', 3, 5, 0, 250, NULL, 'no', 3),"
        " ('r2', 3, 'unbook', 't0b2ec1e65869ecd4910c2c0a5', 'done', 2, 2, 0, 300, 'idle', 'x', 4),"
        " ('r3', 1, 'call', 't35287587b7130fc5a75d00e97', 'abandoned', 0, 0, 0, 100, NULL, NULL,"
        " 2)",
        "INSERT INTO turtles_inbox (run_id, key, event, at_ms, status, consumed_seq)"
        " VALUES ('r1', 'd1', 'go', 150, 'applied', 2), ('r1', 'd2', 'go', 160, 'accepted', NULL)",
        "INSERT INTO turtles_worker VALUES ('w1', 'here', 7, '0', 100, 900)",
        "INSERT INTO turtles_machine_version VALUES ('v1', 'M', x'7b7d', 50)",
    )
    with database.transaction() as sql:
        for statement in statements:
            sql.run(statement, **({"verdicts": verdicts} if ":verdicts" in statement else {}))


def test_the_revisions_are_known_here():
    """A new revision must be added to REVISIONS, so that upgrading to it is tested."""
    assert sorted(migrate.revisions(schema.SCRIPT_LOCATION)) == REVISIONS
    assert migrate.head(schema.SCRIPT_LOCATION) == REVISIONS[-1]


def test_migrations_lead_to_the_tables(tmp_path):
    database = migrated(tmp_path / "migrated.db", "head")
    made = SqliteDatabase(tmp_path / "made.db")
    schema.create(made)
    assert written_schema(database) == written_schema(made)
    with database.reading() as sql:
        assert schema.differences(sql) == []
    database.close()
    made.close()


def test_a_difference_is_seen(tmp_path):
    database = migrated(tmp_path / "runs.db", "head")
    with database.transaction() as sql:
        sql.run("ALTER TABLE turtles_run ADD COLUMN extra TEXT")
        sql.run("DROP INDEX turtles_run_due")
    database.close()
    problems = schema.check(f"sqlite:///{tmp_path / 'runs.db'}")
    assert len(problems) == 2
    assert "extra" in "".join(problems)
    assert "turtles_run_due" in "".join(problems)


def downgrade(database: Database) -> None:
    with database.transaction() as sql:
        config = Config()
        config.set_main_option("script_location", str(migrate.directory(schema.SCRIPT_LOCATION)))
        config.attributes["connection"] = sql.connection
        command.downgrade(config, "base")


def test_downgrade_of_the_first_revision_takes_everything_back(tmp_path):
    database = migrated(tmp_path / "runs.db", "0001")
    downgrade(database)
    assert written_schema(database) == {}
    database.close()


def test_a_downgrade_that_would_lose_what_was_stored_is_refused(tmp_path):
    database = migrated(tmp_path / "runs.db", "head")
    before = written_schema(database)
    with pytest.raises(RuntimeError, match="0002 cannot be taken back; restore the backup"):
        downgrade(database)
    assert written_schema(database) == before
    assert migrate.current(database, schema.SCRIPT_LOCATION) == REVISIONS[-1]
    database.close()


def test_a_database_in_memory_has_the_newest_revision():
    store = open_store("sqlite://")
    assert migrate.current(store.database, schema.SCRIPT_LOCATION) == REVISIONS[-1]
    schema.require_current(store.database)
    store.close()


def test_an_empty_file_is_upgraded(tmp_path):
    (tmp_path / "runs.db").touch()
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    assert schema.current(url) is None
    assert schema.upgrade(url) == REVISIONS[-1]
    assert schema.upgrade(url) == REVISIONS[-1]
    assert (schema.current(url), schema.check(url)) == (REVISIONS[-1], [])


@pytest.mark.parametrize("revision", ["0001"])
def test_a_populated_database_survives_the_upgrade(tmp_path, revision):
    database = migrated(tmp_path / "runs.db", revision)
    populate(database)
    database.close()
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    store = open_store(url)
    stored = store.runs.get("r1")
    assert (stored.run.state, stored.run.seq, stored.fence, stored.owner) == ("busy", 2, 3, "w1")
    assert stored.run.effect == Pending(
        seq=2, name="call", key="t44a89e67ce4232a30887a8cc4", attempts=1, open=True, next_ms=500,
        last_error="lost", calls=4,
    )  # fmt: skip
    assert [entry.event for entry in store.journal.read("r1")] == ["$start", "go"]
    assert [event.key for event in store.inbox.waiting("r1")] == ["d2"]
    assert store.inbox.receipt("r1", "d1").seq == 2
    assert store.machines.shape("v1") == b"{}"
    assert store.inspector.findings() == []
    assert store.inspector.relations() == []
    assert store.workers.reap(900, dead=lambda worker: False) == 1
    store.close()
    assert schema.check(url) == []


def upgraded(tmp_path: Path) -> SqlStore:
    database = migrated(tmp_path / "runs.db", "0001")
    populate(database)
    database.close()
    return open_store(f"sqlite:///{tmp_path / 'runs.db'}")


def test_what_became_of_effects_survives_the_upgrade(tmp_path):
    store = upgraded(tmp_path)
    found = {
        one.key: (one.seq, one.name, one.status, one.attempts, one.undo_of, one.last_error)
        for run_id in ("r1", "r2", "r3")
        for one in store.effects.read(run_id)
    }
    assert found == {
        "t44a89e67ce4232a30887a8cc4": (2, "call", "pending", 1, None, "lost"),
        "t4bef33c8ef93a7a156a79b08b": (1, "book", "done", 1, None, None),
        "t3f69bbdb464436b43474ea50d": (2, "rent", "given_up", 3, None, "no"),
        "t0b2ec1e65869ecd4910c2c0a5": (3, "unbook", "done", 2, "idle", "x"),
        "t35287587b7130fc5a75d00e97": (1, "call", "abandoned", 0, None, None),
    }
    (past,) = store.inspector.histories(run_id="r2")
    assert [(one.calls, one.closed_seq) for one in past.effects] == [(1, 2), (5, 3), (2, 4)]
    store.close()


def test_verdicts_and_the_ends_of_runs_survive_the_upgrade(tmp_path):
    store = upgraded(tmp_path)
    assert [entry.verdicts for entry in store.journal.read("r1")] == [
        (),
        (Verdict("enough", "guard", True), Verdict("grew", "ensures", False)),
    ]
    with store.database.reading() as sql:
        ended = {row["run_id"]: row["ended_ms"] for row in sql.all("SELECT * FROM turtles_run")}
    assert ended == {"r1": None, "r2": 400, "r3": None}
    assert store.runs.get("r2").output == b"1"
    store.close()


def test_runs_of_the_older_revision_are_claimed_when_they_are_due(tmp_path):
    store = upgraded(tmp_path)
    identity = WorkerIdentity(worker_id="w2", host="here", pid=8, process_start="0")
    store.workers.beat(identity, 900, lease_until_ms=9_000)
    assert store.workers.reap(900, dead=lambda worker: False) == 1  # w1, which had r1
    assert store.runs.next_due_ms(["v1"]) == 500
    (first,) = store.runs.claim("w2", 600, limit=9, versions=["v1"])
    assert (first.run.run_id, first.fence, [one.key for one in first.inbox]) == ("r1", 4, ["d2"])
    assert store.runs.next_due_ms(["v1"]) == 700
    (second,) = store.runs.claim("w2", 700, limit=9, versions=["v1"])
    assert (second.run.run_id, second.fence) == ("r3", 2)
    assert store.inspector.findings() == []
    store.close()


def test_an_older_schema_is_refused_where_migrating_is_not_allowed(tmp_path):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    with pytest.raises(SchemaMismatch, match=r"is none, .* needs 0002.*turtles db upgrade"):
        open_store(url, migrate=False)
    schema.upgrade(url)
    open_store(url, migrate=False).close()


@pytest.mark.parametrize("migrating", [True, False])
def test_a_newer_schema_is_refused(tmp_path, migrating):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    store = open_store(url)
    with store.database.transaction() as sql:
        sql.run("UPDATE alembic_version SET version_num = '0999'")
    store.close()
    with pytest.raises(SchemaMismatch, match=r"0999.*0002.*Upgrade turtles"):
        open_store(url, migrate=migrating)
    assert schema.current(url) == "0999"
    (problem,) = schema.check(url)
    assert "0999" in problem
    with pytest.raises(SchemaMismatch, match="0999"):
        schema.upgrade(url)


@pytest.mark.parametrize("ask", [open_store, schema.upgrade, schema.check])
def test_the_database_of_another_program_is_refused(tmp_path, ask):
    """The platform's file, say: its revisions have the same names as ours."""
    database = SqliteDatabase(tmp_path / "platform.db")
    migrate.upgrade(database, "migrations/platform")
    before = written_schema(database)
    with database.transaction() as sql:
        sql.run("UPDATE alembic_version SET version_num = '0001'")
    with pytest.raises(SchemaMismatch, match=r"platform\.db: holds the tables of another program"):
        ask(f"sqlite:///{tmp_path / 'platform.db'}")
    assert written_schema(database) == before
    database.close()


def test_asking_about_a_database_does_not_make_it(tmp_path):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    assert schema.current(url) is None
    assert "schema revision is none" in schema.check(url)[0]
    assert list(tmp_path.iterdir()) == []


def test_damage_is_reported(tmp_path, make):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    store = open_store(url)
    store.runs.start([make.start("r1")])
    connection = store.database.sa.raw_connection()
    connection.cursor().execute("PRAGMA foreign_keys=OFF")
    connection.cursor().execute("DELETE FROM turtles_run")
    connection.close()
    store.close()
    problems = schema.check(url)
    assert any("names a missing turtles_run" in problem for problem in problems)


def test_alembic_itself_finds_the_migrations(tmp_path):
    """`[tool.alembic]` in pyproject.toml is what the alembic command reads."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["alembic"]
    assert settings["script_location"] == "%(here)s/migrations/engine"
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    for words in (["upgrade", "head"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "alembic", "-x", f"url={url}", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert schema.current(url) == REVISIONS[-1]


def test_every_table_has_our_prefix():
    assert all(name.startswith("turtles_") for name in tables.metadata.tables)
