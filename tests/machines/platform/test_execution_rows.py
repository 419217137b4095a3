"""The table of executions: what is inserted is found again, and by whom."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.secrets import SecretsCodec
from machines.platform import execution_rows as rows
from machines.platform import keys, lives
from machines.platform.database import open_platform_database
from machines.platform.orders import Caller
from machines.platform.replies import Problem
from persistence.database import Database

COLUMNS = rows.draft(language="python", network_mode="zerotrust", vcpu=2, detected=1)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_platform_database(tmp_path)
    keys.bind(opened, SecretsCodec(b"k" * 32))
    lives.bind(opened, SecretsCodec(b"k" * 32))
    yield opened
    opened.close()


def caller(database: Database, once: str | None = None) -> Caller:
    with database.transaction() as sql:
        public_key = keys.issue(sql, 4, 1, 0)
    return Caller(public_key=public_key, tier=4, idempotency_key=once, digest="d")


def inserted(database: Database, who: Caller, job_id: str, state: str, at_ms: int = 5) -> Any:
    with database.transaction() as sql:
        rows.insert(sql, who, job_id, state, COLUMNS, at_ms)
        return rows.select(sql, job_id)


def test_a_new_row_has_what_was_said_of_it(database: Database) -> None:
    row = inserted(database, caller(database), "j", "pending")
    assert (row["state"], row["vcpu"], row["detected"], row["started_ms"]) == ("pending", 2, 1, 5)
    assert (row["session_id"], row["service_id"], row["artifacts"]) == (None, None, None)


def test_live_rows_are_those_that_have_not_ended(database: Database) -> None:
    who, stranger = caller(database), caller(database)
    inserted(database, who, "a", "running", 2)
    inserted(database, who, "b", "pending", 1)
    inserted(database, stranger, "c", "running")
    inserted(database, who, "d", "cancelled")
    with database.reading() as sql:
        assert [row["job_id"] for row in rows.live_of(sql, who.public_key)] == ["b", "a"]
        assert {row["job_id"] for row in rows.live(sql)} == {"a", "b", "c"}


def test_an_idempotency_key_finds_its_row_and_refuses_another_request(database: Database) -> None:
    who = caller(database, once="k")
    inserted(database, who, "a", "running")
    with database.reading() as sql:
        known = rows.repeated(sql, who)
        assert known is not None
        assert known["job_id"] == "a"
        nameless = Caller(public_key=who.public_key, tier=4, idempotency_key=None, digest="d")
        assert rows.repeated(sql, nameless) is None
        other = Caller(public_key=who.public_key, tier=4, idempotency_key="k", digest="other")
        with pytest.raises(Problem, match="used before"):
            rows.repeated(sql, other)


def test_output_is_added_to_a_cancelled_row_once(database: Database) -> None:
    who = caller(database)
    output = {
        "stdout": "a",
        "stderr": "",
        "duration_ms": 1,
        "truncated": 0,
        "artifacts": None,
        "kept_bytes": 1,
    }
    for job_id, state in (("a", "cancelled"), ("b", "running")):
        inserted(database, who, job_id, state)
        with database.transaction() as sql:
            rows.add_output(sql, job_id, output)
            rows.add_output(sql, job_id, {**output, "stdout": "later"})
    with database.reading() as sql:
        cancelled, running = rows.select(sql, "a"), rows.select(sql, "b")
    assert cancelled is not None
    assert running is not None
    assert (cancelled["stdout"], running["stdout"]) == ("a", None)


def test_only_old_rows_that_ended_are_forgotten(database: Database) -> None:
    who = caller(database)
    for job_id, state, at_ms in (
        ("old", "cancelled", 0),
        ("young", "cancelled", 1),
        ("unfinished", "running", 0),
    ):
        inserted(database, who, job_id, state, at_ms)
    with database.transaction() as sql:
        assert rows.forget_old(sql, rows.KEPT_MS + 1) == 1
        assert rows.select(sql, "old") is None


def test_a_row_that_is_not_there_is_not_found() -> None:
    with pytest.raises(Problem) as caught:
        rows.require(None, "j")
    assert caught.value.status == 404


def test_a_key_that_keeps_too_much_loses_its_oldest_outputs_and_no_row(database: Database) -> None:
    greedy, modest = caller(database), caller(database)
    for number in range(4):
        inserted(database, greedy, f"g{number}", "cancelled", number)
    inserted(database, modest, "m", "cancelled")
    with database.transaction() as sql:
        sql.run("UPDATE execution SET stdout = 'twelve bytes', kept_bytes = 12")
        assert rows.trim(sql, 25) == 2
        assert rows.trim(sql, 25) == 0
        told = {row["job_id"]: row["stdout"] for row in sql.all("SELECT * FROM execution")}
    kept = "twelve bytes"
    assert told == {"g0": "", "g1": "", "g2": kept, "g3": kept, "m": kept}
