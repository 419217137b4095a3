"""The platform's file: private, migrated, equal to the schema, reopened with everything in it."""

from __future__ import annotations

import re

import pytest

from engine.errors import SchemaMismatch, StoreCorrupt, StoreError, StoreReadOnly
from machines.platform.database import SCRIPT_LOCATION, open_platform_database
from persistence.migrate import current, directory, head

MONEY_TABLES = {
    "api_key",
    "block",
    "fault",
    "invoice",
    "ledger_input",
    "ledger_output",
    "ledger_tx",
    "output_lock",
    "refund",
    "stale_tx",
    "wallet",
    "wallet_address",
}


def schema(database):
    with database.reading() as sql:
        rows = sql.all("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {row["name"]: " ".join(row["sql"].split()) for row in rows}


def test_the_directory_and_the_file_are_private(tmp_path):
    data_dir = tmp_path / "a" / "b"
    open_platform_database(data_dir).close()
    assert data_dir.stat().st_mode & 0o777 == 0o700
    for file in data_dir.iterdir():
        assert file.stat().st_mode & 0o077 == 0


def test_a_directory_that_exists_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o755)
    open_platform_database(tmp_path).close()
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_the_tables_are_those_of_the_migrations(tmp_path):
    database = open_platform_database(tmp_path)
    assert current(database, SCRIPT_LOCATION) == head(SCRIPT_LOCATION)
    assert set(schema(database)) >= MONEY_TABLES
    written = " ".join((directory(SCRIPT_LOCATION) / "versions/0001_money.py").read_text().split())
    for name in MONEY_TABLES:
        assert schema(database)[name] in written
    in_memory = open_platform_database(None)
    assert schema(in_memory) == schema(database)
    database.close()
    in_memory.close()


def test_upgrade_and_downgrade_name_the_same_tables():
    written = (directory(SCRIPT_LOCATION) / "versions/0001_money.py").read_text()
    assert set(re.findall(r"CREATE TABLE (\w+)", written)) == MONEY_TABLES
    dropped = written.split("def downgrade", 1)[1]
    assert set(re.findall(r'"(\w+)"', dropped)) >= MONEY_TABLES


def test_a_populated_file_reopens_whole(file_world):
    world = file_world
    invoice = world.invoice("XMR", key="once")
    world.send("XMR", invoice["address"], invoice["amount_atomic"])
    world.mine("XMR", 4)
    world.fault("stall_blocks", count=2, currency="XMR")
    before = world.report()
    world.restart()
    assert world.report() == before
    assert world.invoice("XMR", key="once")["id"] == invoice["id"]
    assert world.mine("XMR", 2) == []
    with world.database.reading() as sql:
        assert sql.scalar("PRAGMA integrity_check") == "ok"
        assert sql.all("PRAGMA foreign_key_check") == []


def test_a_newer_file_is_refused(tmp_path):
    database = open_platform_database(tmp_path)
    with database.transaction() as sql:
        sql.run("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(SchemaMismatch, match="written by a newer version"):
        open_platform_database(tmp_path)


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "platform.db").write_bytes(b"hello, this is not a database at all" * 100)
    with pytest.raises(StoreCorrupt, match=r"platform\.db"):
        open_platform_database(tmp_path)


def test_a_path_that_is_no_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreReadOnly, match="--data-dir"):
        open_platform_database(tmp_path / "file")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_output SET amount_atomic = 1.5",
        "UPDATE ledger_output SET amount_atomic = 'x'",
        "UPDATE ledger_output SET amount_atomic = -1",
        "UPDATE ledger_tx SET state = 'lost'",
        "UPDATE ledger_tx SET block_id = NULL",
    ],
)
def test_the_schema_refuses_nonsense(world, statement):
    with pytest.raises(StoreError), world.database.transaction() as sql:
        sql.run(statement)
