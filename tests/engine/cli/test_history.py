"""`verify --history`: finds what `doctor` finds, in a database that stays exactly as it was."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from engine.cli.history import copy_database
from engine.errors import StoreError


def contents(directory: Path) -> dict[str, tuple[int, str]]:
    """Every file with its time of change and its hash."""
    return {
        one.name: (one.stat().st_mtime_ns, hashlib.sha256(one.read_bytes()).hexdigest())
        for one in sorted(directory.iterdir())
        if one.is_file()
    }


def test_a_clean_history_is_clean_and_untouched(demo: Any) -> None:
    demo.order("o1")
    demo("run", "Shipment", "--input", '{"amount_cents": 5}')
    before = contents(demo.data_dir)
    answer = demo("verify", "--history", str(demo.data_dir / "runs.db"))
    assert answer.code == 0, answer
    assert "2 runs" in answer.out and "clean" in answer.out and "exit 0" in answer.out
    told = demo("verify", "--history", str(demo.data_dir), "--json").json
    assert (told["ok"], told["runs"], told["exit"]) == (True, 2, 0)
    assert told["store"] == str(demo.data_dir / "runs.db")
    assert contents(demo.data_dir) == before


def test_damage_is_found_with_exit_3(demo: Any) -> None:
    demo.order("o1")
    with closing(sqlite3.connect(demo.data_dir / "runs.db")) as database, database:
        database.execute("UPDATE turtles_run SET state = 'forgotten'")
    before = contents(demo.data_dir)
    answer = demo("verify", "--history", str(demo.data_dir))
    assert answer.code == 3 and "FAIL" in answer.out and "exit 3" in answer.out
    assert contents(demo.data_dir) == before


def test_a_database_in_use_is_read_beside_its_users(demo: Any) -> None:
    demo.order("o1")
    with closing(sqlite3.connect(demo.data_dir / "runs.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE turtles_run SET state = 'forgotten'")  # not committed
        before = contents(demo.data_dir)
        assert "runs.db-wal" in before
        answer = demo("verify", "--history", str(demo.data_dir))
        other.rollback()
        assert answer.code == 0, answer
        assert contents(demo.data_dir).keys() == before.keys()


def test_what_was_committed_and_not_yet_checkpointed_counts(demo: Any, tmp_path: Path) -> None:
    demo.order("o1")
    left = tmp_path / "left"
    left.mkdir()
    with closing(sqlite3.connect(demo.data_dir / "runs.db")) as other:
        other.execute("UPDATE turtles_run SET state = 'forgotten'")
        other.commit()
        for name in ("runs.db", "runs.db-wal"):  # as a copy of the two files, without -shm
            (left / name).write_bytes((demo.data_dir / name).read_bytes())
    before = contents(left)
    assert demo("verify", "--history", str(left)).code == 3
    assert contents(left) == before


@pytest.mark.parametrize("text", [b"", b"not a database at all, whatever its name says"])
def test_what_is_no_database_is_told(demo: Any, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "runs.db").write_bytes(text)
    answer = demo("verify", "--history", str(tmp_path / "runs.db"))
    assert answer.code == 66 and "not an SQLite database" in answer.err


def test_a_damaged_database_is_told(demo: Any, tmp_path: Path) -> None:
    demo.order("o1")
    body = bytearray((demo.data_dir / "runs.db").read_bytes())
    body[100:] = b"\xff" * (len(body) - 100)
    (tmp_path / "runs.db").write_bytes(bytes(body))
    answer = demo("verify", "--history", str(tmp_path / "runs.db"))
    assert answer.code == 66, answer
    assert "Traceback" not in answer.err


def test_a_database_of_another_program_is_told(demo: Any, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as other, other:
        other.execute("CREATE TABLE alembic_version (version_num TEXT)")
        other.execute("CREATE TABLE cats (name TEXT)")
    answer = demo("verify", "--history", str(tmp_path / "other.db"))
    assert answer.code == 66 and "another program" in answer.err
    assert sorted(one.name for one in tmp_path.glob("*.db*")) == ["other.db"]


def test_a_database_that_never_stands_still_is_told(
    demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo.order("o1")
    moments = iter(range(100))
    monkeypatch.setattr("engine.cli.history._stamps", lambda *paths: [(next(moments), 0)])
    with pytest.raises(StoreError, match="changes faster"):
        copy_database(demo.data_dir / "runs.db", tmp_path)
