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

from engine.errors import SchemaMismatch
from persistence import migrate, schema, tables
from persistence.database import Database
from persistence.sqlite import SqliteDatabase
from persistence.store import open_store

ROOT = Path(__file__).resolve().parents[2]
REVISIONS = ["0001"]


def written_schema(database: Database) -> dict[str, str]:
    """Every CREATE statement as SQLite keeps it, without layout."""
    with database.reading() as sql:
        rows = sql.all("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {
        row["name"]: re.sub(r"\s+", " ", row["sql"].replace('"', "")).replace("( ", "(")
        for row in rows
        if row["name"] not in ("alembic_version", "sqlite_sequence")
    }


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
    """Rows as revision 0001 had them: a run with a journal, an effect, an event and a worker.

    Plain SQL on purpose: it must stay as it is when the tables change.
    """
    statements = (
        "INSERT INTO turtles_run (run_id, machine, version, key, state, status, seq, entered_seq,"
        " fence, owner, due_ms, stalls, created_ms, updated_ms, undo, cancel_requested, depth,"
        " context) VALUES ('r1', 'M', 'v1', 'k', 'busy', 'running', 2, 2, 3, 'w1', 500, 1, 100,"
        " 200, '[]', 0, 0, x'7b7d')",
        "INSERT INTO turtles_transition (run_id, seq, event, source, target, status, at_ms,"
        " worker, fence, payload, verdicts, context) VALUES"
        " ('r1', 1, '$start', '', 'idle', 'waiting', 100, '', 0, NULL, x'5b5d', x'7b7d'),"
        " ('r1', 2, 'go', 'idle', 'busy', 'running', 200, 'w1', 3, x'7b7d', x'5b5d', x'7b7d')",
        "INSERT INTO turtles_effect (run_id, seq, name, key, status, attempts, calls, open,"
        " next_ms) VALUES ('r1', 2, 'call', 'ek', 'pending', 1, 1, 1, 500)",
        "INSERT INTO turtles_inbox (run_id, key, event, at_ms, status, consumed_seq)"
        " VALUES ('r1', 'd1', 'go', 150, 'applied', 2), ('r1', 'd2', 'go', 160, 'accepted', NULL)",
        "INSERT INTO turtles_worker VALUES ('w1', 'here', 7, '0', 100, 900)",
        "INSERT INTO turtles_machine_version VALUES ('v1', 'M', x'7b7d', 50)",
    )
    with database.transaction() as sql:
        for statement in statements:
            sql.run(statement)


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


def test_downgrade_takes_everything_back(tmp_path):
    database = migrated(tmp_path / "runs.db", "head")
    with database.transaction() as sql:
        config = Config()
        config.set_main_option("script_location", str(migrate.directory(schema.SCRIPT_LOCATION)))
        config.attributes["connection"] = sql.connection
        command.downgrade(config, "base")
    assert written_schema(database) == {}
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


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_populated_database_survives_the_upgrade(tmp_path, revision):
    database = migrated(tmp_path / "runs.db", revision)
    populate(database)
    database.close()
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    store = open_store(url)
    stored = store.runs.get("r1")
    assert (stored.run.state, stored.run.seq, stored.fence, stored.owner) == ("busy", 2, 3, "w1")
    assert (stored.run.effect.key, stored.run.effect.open) == ("ek", True)
    assert [entry.event for entry in store.journal.read("r1")] == ["$start", "go"]
    assert [event.key for event in store.inbox.waiting("r1")] == ["d2"]
    assert store.inbox.receipt("r1", "d1").seq == 2
    assert store.machines.shape("v1") == b"{}"
    assert store.inspector.findings() == []
    assert store.workers.reap(900, dead=lambda worker: False) == 1
    store.close()
    assert schema.check(url) == []


def test_an_older_schema_is_refused_where_migrating_is_not_allowed(tmp_path):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    with pytest.raises(SchemaMismatch, match=r"is none, .* needs 0001.*turtles db upgrade"):
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
    with pytest.raises(SchemaMismatch, match=r"0999.*0001.*Upgrade turtles"):
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


def test_damage_is_reported(tmp_path):
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    store = open_store(url)
    populate(store.database)
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
