"""The platform's file: private, migrated, equal to the schema, reopened with everything in it."""

from __future__ import annotations

import hashlib
import re
import shutil

import pytest
from alembic import command
from alembic.config import Config

from engine.errors import SchemaMismatch, StoreCorrupt, StoreError, StoreReadOnly
from machines.platform import database as platform_database
from machines.platform.database import SCRIPT_LOCATION, open_platform_database
from persistence.migrate import current, directory, head, upgrade

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
GIFT_TABLES = {"gift_card", "gift_letter", "gift_pepper", "gift_redemption"}


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
    assert set(schema(database)) >= MONEY_TABLES | GIFT_TABLES
    money, gifts = (
        " ".join((directory(SCRIPT_LOCATION) / "versions" / name).read_text().split())
        for name in ("0001_money.py", "0003_gift_cards.py")
    )
    for name in MONEY_TABLES | GIFT_TABLES:
        again = name in GIFT_TABLES or name in ("invoice", "refund")
        assert schema(database)[name] in (gifts if again else money)
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


def of_version_2(tmp_path):
    """A script location that ends where the version before gift cards ended."""
    old = tmp_path / "old_migrations"
    shutil.copytree(directory(SCRIPT_LOCATION), old, ignore=shutil.ignore_patterns("0003_*"))
    return str(old)


def everything(database):
    with database.reading() as sql:
        names = [
            row["name"] for row in sql.all("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        kept = [name for name in names if name != "alembic_version" and name not in GIFT_TABLES]
        rows = {name: sql.all(f"SELECT * FROM {name}") for name in sorted(kept)}  # noqa: S608
    sequence = {row["name"]: row["seq"] for row in rows.pop("sqlite_sequence")}
    return rows, {name: seq for name, seq in sequence.items() if name not in GIFT_TABLES}


def test_a_populated_file_of_the_version_before_gift_cards_is_upgraded(
    tmp_path, monkeypatch, request
):
    old = of_version_2(tmp_path)
    monkeypatch.setattr(platform_database, "upgrade", lambda database, _: upgrade(database, old))
    world = request.getfixturevalue("file_world")
    assert current(world.database, SCRIPT_LOCATION) == "0002"
    paid, _unpaid = world.invoice("LTC", key="paid"), world.invoice("BTC")
    late = world.invoice("BTC", refund_address=world.own_address("BTC"))
    world.send("LTC", paid["address"], paid["amount_atomic"])
    world.mine("LTC", 6)
    world.now_ms += 3_600_000
    world.send("BTC", late["address"], late["amount_atomic"])
    world.mine("BTC", 3)
    world.invoice("XMR", key="open")
    order = b'{"tier":1,"months":1,"currency":"LTC","email":null,"refund_address":null}'
    with world.database.reading() as sql:  # what the version before wrote
        stored = sql.scalar("SELECT request_hash FROM invoice WHERE idempotency_key = 'paid'")
    assert stored == hashlib.sha256(order).hexdigest()
    before, report = everything(world.database), world.report()
    assert [len(before[0][name]) for name in ("invoice", "refund", "api_key")] == [4, 1, 1]
    monkeypatch.undo()
    world.restart()

    assert current(world.database, SCRIPT_LOCATION) == "0003"
    assert everything(world.database) == before
    assert world.report() == report
    with world.database.reading() as sql:
        assert sql.scalar("PRAGMA integrity_check") == "ok"
        assert sql.all("PRAGMA foreign_key_check") == []
        assert sql.scalar("SELECT count(*) FROM sqlite_temp_master") == 0
    fresh = open_platform_database(None)
    assert schema(world.database) == schema(fresh)
    fresh.close()
    assert world.status(paid)["secret_key"].startswith("unsb-sk-")
    assert world.invoice("LTC", key="paid")["id"] == paid["id"]
    world.mine("BTC", 3)
    assert world.status(late)["status"] == "refunded"
    assert world.request(
        "POST", "/api/gift-cards/create", json={"amount_cents": 700, "payment_method": "LTC"}
    ).is_success


def test_going_back_restores_the_schema_and_refuses_to_lose_a_gift_card(tmp_path, file_world):
    world = file_world
    world.invoice("LTC")
    config = Config()
    config.set_main_option("script_location", str(directory(SCRIPT_LOCATION)))
    config.set_main_option("path_separator", "os")
    with world.database.transaction() as sql:
        config.attributes["connection"] = sql.connection
        command.downgrade(config, "0002")
    world_schema = schema(world.database)
    assert set(world_schema) & GIFT_TABLES == set()
    reference = platform_database.Database(tmp_path / "reference.db")
    upgrade(reference, of_version_2(tmp_path))
    assert world_schema == schema(reference)
    reference.close()

    world.restart()
    body = {"amount_cents": 700, "payment_method": "LTC"}
    assert world.request("POST", "/api/gift-cards/create", json=body).status_code == 201
    with (
        pytest.raises(StoreError, match="NOT NULL"),
        world.database.transaction() as sql,
    ):
        config.attributes["connection"] = sql.connection
        command.downgrade(config, "0002")
    assert current(world.database, SCRIPT_LOCATION) == "0003"


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
