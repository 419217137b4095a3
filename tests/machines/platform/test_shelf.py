"""Shelves: where archives stand, who may read them, and what is swept."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from machines.platform.replies import Problem
from machines.platform.shelf import Shelf
from persistence.sqlite import SqliteDatabase


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    database = SqliteDatabase(tmp_path / "platform.db")
    yield Shelf(database, "snapshots")
    database.close()


def put(shelf: Shelf, archive_id: str, content: bytes = b"bytes") -> Path:
    path = shelf.path(archive_id)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, content)
    os.close(descriptor)
    return path


def test_it_stands_beside_the_database_for_its_owner_only(shelf: Shelf, tmp_path: Path) -> None:
    assert not (tmp_path / "snapshots").exists()
    (tmp_path / "snapshots").mkdir(mode=0o755)
    assert shelf.path("one") == tmp_path / "snapshots" / "one.tar"
    assert stat.S_IMODE((tmp_path / "snapshots").stat().st_mode) == 0o700


def test_a_database_in_memory_has_a_shelf_that_goes_with_it() -> None:
    database = SqliteDatabase(None)
    shelf = Shelf(database, "images")
    path = put(shelf, "one")
    assert path.is_file()
    del shelf
    assert not path.parent.exists()
    database.close()


def test_a_link_outlives_its_source(shelf: Shelf) -> None:
    source = put(shelf, "one")
    shelf.add_link(source, "two")
    assert shelf.holds("two")
    shelf.remove("one")
    shelf.remove("one")  # again is no error
    assert not shelf.holds("one")
    assert shelf.path("two").read_bytes() == b"bytes"
    with pytest.raises(FileNotFoundError):
        shelf.add_link(source, "three")


def test_without_links_the_file_is_copied(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: Path, _target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    source = put(shelf, "one")
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    shelf.add_link(source, "two")
    assert shelf.path("two").stat().st_ino != source.stat().st_ino
    assert stat.S_IMODE(shelf.path("two").stat().st_mode) == 0o600
    assert shelf.sweep({"one", "two"}) == 0


def test_a_sweep_leaves_what_is_kept(shelf: Shelf) -> None:
    assert shelf.sweep(set()) == 0  # nothing was ever there
    for name in ("one", "two"):
        put(shelf, name)
    put(shelf, "one").with_name(".one.tar.part").write_bytes(b"half")
    assert shelf.sweep({"one"}) == 2
    assert [entry.name for entry in shelf.directory.iterdir()] == ["one.tar"]


def test_bytes_that_changed_are_no_archive(shelf: Shelf) -> None:
    path = put(shelf, "one")
    digest = hashlib.sha256(b"bytes").hexdigest()
    assert shelf.checked("one", digest) == path
    path.write_bytes(b"other")
    with pytest.raises(Problem, match="Nothing was restored"):
        shelf.checked("one", digest)
    path.unlink()
    with pytest.raises(Problem, match="not there any more"):
        shelf.checked("one", digest)
