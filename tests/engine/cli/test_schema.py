"""`db`, and databases that cannot be used: one message, exit 3, nothing changed."""

from __future__ import annotations

import sqlite3

import pytest


def test_upgrade_makes_the_database_and_current_tells_its_revision(demo):
    upgraded = demo("db", "upgrade", "--json")
    assert upgraded.code == 0
    assert demo("db", "current").out.strip() == upgraded.json["revision"]
    checked = demo("db", "check", "--json")
    assert (checked.code, checked.json) == (0, {"ok": True, "problems": []})


def test_a_newer_schema_is_refused_by_every_command(demo):
    demo.order("o1")
    file = demo.data_dir / "runs.db"
    database = sqlite3.connect(file)
    with database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    for command in (["list"], ["run", "Order", "--input", '{"amount_cents": 1}'], ["doctor"]):
        answer = demo(*command)
        assert answer.code == 3
        assert "schema revision 9999 is unknown here" in answer.err
        assert "Upgrade turtles" in answer.err
    assert demo("db", "current").out == "9999\n"
    check = demo("db", "check")
    assert (check.code, "schema revision is 9999" in check.out) == (1, True)


@pytest.mark.parametrize("command", [["list"], ["doctor"], ["db", "check"], ["db", "upgrade"]])
def test_a_corrupt_file_is_refused(demo, command):
    demo.order("o1")
    file = demo.data_dir / "runs.db"
    file.write_bytes(b"this is no database, whatever its name says" * 100)
    answer = demo(*command, "--json")
    assert answer.code == 3
    assert "not a readable SQLite database" in answer.err
    assert answer.json["error"] == "store_corrupt"
    assert file.read_bytes().startswith(b"this is no database")


def test_a_lost_master_key_is_named(demo):
    demo.order("o1", token="very-secret")
    (demo.data_dir / "runs.db.key").unlink()
    answer = demo("show", "Order:o1", "--json")
    assert answer.code == 3
    assert answer.json["error"] == "secrets_error"
    assert "runs.db.key: missing" in answer.err and "Restore the file" in answer.err


def test_a_directory_that_cannot_be_made_is_refused(demo, tmp_path):
    (tmp_path / "file").write_text("in the way")
    answer = demo("run", "Shipment", "--input", '{"amount_cents": 1}', directory=tmp_path / "file")
    assert answer.code == 3
    assert "cannot be made" in answer.err and "--data-dir" in answer.err
