"""File operations are seen as SQLite makes them, and only in the watched directory."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from persistence.store import open_store
from tests.verification.power_loss.disk import Disk, Operation, Sync, SyncDirectory, Unlink, Write
from tests.verification.power_loss.recorder import _recorder, recorded

SHAPES = (("one", b"{}"), ("two", b"[]"), ("three", b"3"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path.resolve()


def files(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {name: data for name, data in found.items() if not name.endswith("-shm")}


def play(folder: Path, after: Callable[[], None] = lambda: None, **options: str) -> None:
    """Three commits of the real store."""
    store = open_store(f"sqlite:///{folder / 'runs.db'}", **options)
    for name, shape in SHAPES:
        store.machines.register("M", name, shape, 1)
        after()
    store.close()


def test_the_recording_is_what_is_on_the_disk(folder):
    with recorded(folder) as recording:
        seen = []
        play(folder, lambda: seen.append((len(recording.operations), files(folder))))
    assert len(seen) == len(SHAPES)
    assert all("runs.db-wal" in there for _, there in seen)
    for count, there in seen:
        assert Disk().apply_all(recording.operations[:count]).as_seen() == there
    assert Disk().apply_all(recording.operations).as_seen() == files(folder)
    kinds = {type(operation) for operation in recording.operations}
    assert {Write, Sync, SyncDirectory, Unlink} < kinds


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
def test_full_syncs_every_commit_before_it_is_acknowledged_and_normal_does_not(folder, synchronous):
    commits: list[list[Operation]] = []
    with recorded(folder) as recording:

        def cut() -> None:
            commits.append(recording.operations[sum(map(len, commits)) :])

        play(folder, cut, synchronous=synchronous)
    last = [commit[-1] for commit in commits[1:]]
    assert all(isinstance(one, Sync if synchronous == "FULL" else Write) for one in last)


def test_other_directories_pass_by(folder):
    (folder / "watched").mkdir()
    with recorded(folder / "watched") as recording:
        play(folder)
    assert recording.operations == []


def test_nothing_is_recorded_afterwards(folder):
    with recorded(folder) as recording:
        play(folder)
    count = len(recording.operations)
    play(folder)
    assert len(recording.operations) == count > 0


def test_files_that_were_there_keep_their_numbers(folder):
    play(folder)
    disk = Disk(files(folder))
    with recorded(folder, disk.numbers) as recording, sqlite3.connect(folder / "runs.db") as sql:
        sql.execute("DELETE FROM turtles_machine_version")
        sql.commit()
        assert disk.apply_all(recording.operations).as_seen() == files(folder)
    sql.close()


def test_one_recording_at_a_time(folder):
    with (
        recorded(folder),
        pytest.raises(RuntimeError, match="one recording at a time"),
        recorded(folder),
    ):
        pass


def test_a_failure_of_the_recorder_is_no_recording(folder, monkeypatch):
    def broken(*_: object) -> None:
        raise ValueError("no room")

    monkeypatch.setattr(type(_recorder()), "_note", broken)
    with pytest.raises(RuntimeError, match="worth nothing"), recorded(folder):
        sql = sqlite3.connect(folder / "a.db")
        with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
            sql.execute("CREATE TABLE t (x)")
        sql.close()
