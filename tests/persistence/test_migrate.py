"""Bringing a database up to date: once, by one of many, and never backwards."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from engine.errors import SchemaMismatch, StoreError
from persistence.migrate import current, head, upgrade
from persistence.sqlite import SqliteDatabase

ENVIRONMENT = """
from alembic import context
context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
"""
REVISION = """
from alembic import op
revision = "{revision}"
down_revision = {down!r}
def upgrade():
    op.execute("{statement}")
"""


@pytest.fixture
def location(tmp_path):
    """A script location with one revision; `add` writes more."""
    versions = tmp_path / "scripts" / "versions"
    versions.mkdir(parents=True)
    (versions.parent / "env.py").write_text(ENVIRONMENT)
    (versions / "__init__.py").write_text("")
    add(versions.parent, "0001", None, "CREATE TABLE thing (name TEXT)")
    return str(versions.parent)


def add(location, revision, down, statement):
    from pathlib import Path

    text = REVISION.format(revision=revision, down=down, statement=statement)
    # Alembic and the head reader want double quotes, as ruff writes them.
    text = text.replace("'", '"')
    (Path(location) / "versions" / f"{revision}_x.py").write_text(text)


@pytest.fixture
def database(tmp_path):
    made = SqliteDatabase(tmp_path / "x.db")
    yield made
    made.close()


def columns(database, table):
    with database.reading() as sql:
        rows = sql.all("SELECT name FROM pragma_table_info(:table)", table=table)
    return [row["name"] for row in rows]


def test_an_empty_file_gets_everything(database, location):
    assert current(database, location) is None
    upgrade(database, location)
    assert current(database, location) == head(location) == "0001"
    assert columns(database, "thing") == ["name"]


def test_only_what_is_missing_is_run(database, location):
    upgrade(database, location)
    with database.transaction() as sql:
        sql.run("INSERT INTO thing VALUES ('kept')")
    add(location, "0002", "0001", "ALTER TABLE thing ADD COLUMN size INTEGER")
    assert head(location) == "0002"
    upgrade(database, location)
    upgrade(database, location)
    assert columns(database, "thing") == ["name", "size"]
    with database.reading() as sql:
        assert sql.scalar("SELECT name FROM thing") == "kept"


def test_a_newer_database_is_refused(database, location):
    upgrade(database, location)
    with database.transaction() as sql:
        sql.run("UPDATE alembic_version SET version_num = '0099'")
    with pytest.raises(SchemaMismatch, match=r"0099.*written by a newer version"):
        upgrade(database, location)
    assert current(database, location) == "0099"


def test_a_migration_that_fails_leaves_nothing(database, location):
    upgrade(database, location)
    add(location, "0002", "0001", "CREATE TABLE second (x INTEGER)")
    add(location, "0003", "0002", "CREATE TABLE broken (")
    with pytest.raises(StoreError):
        upgrade(database, location)
    assert current(database, location) == "0001"
    assert columns(database, "second") == []


def test_two_newest_revisions_are_an_error(location):
    add(location, "0002", "0001", "SELECT 1")
    add(location, "0003", "0001", "SELECT 1")
    with pytest.raises(StoreError, match=r"0002.*0003"):
        head(location)


def test_no_revisions_are_an_error(tmp_path):
    with pytest.raises(StoreError, match="none"):
        head(str(tmp_path))


def test_many_may_start_at_once(tmp_path, location):
    databases = [SqliteDatabase(tmp_path / "x.db") for _ in range(8)]
    start, failures = threading.Barrier(8), []

    def open_one(database):
        start.wait()
        try:
            upgrade(database, location)
        except StoreError as error:
            failures.append(error)

    threads = [threading.Thread(target=open_one, args=(each,)) for each in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert columns(databases[0], "thing") == ["name"]
    for each in databases:
        each.close()


def test_an_up_to_date_database_needs_no_alembic(tmp_path, location):
    database = SqliteDatabase(tmp_path / "x.db")
    upgrade(database, location)
    database.close()
    script = (
        "import sys; from pathlib import Path\n"
        "from persistence.sqlite import SqliteDatabase\n"
        "from persistence.migrate import upgrade\n"
        f"upgrade(SqliteDatabase(Path({str(tmp_path / 'x.db')!r})), {location!r})\n"
        "sys.exit('alembic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
