"""A directory of archives, `<id>.tar` each: snapshots stand on one shelf, images on another.

::

    <data directory>/snapshots/ (0700)    unsb-snapshot-....tar (0600)
    <data directory>/images/    (0700)    unsb-image-....tar    (0600)

A file counts only when a row says `ready`: rows come first and go first, so what a death leaves is
a file without such a row, and `sweep` removes it.  A platform whose database is in memory keeps its
shelves in a temporary directory that goes with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Collection
from pathlib import Path

from machines.platform.replies import Problem
from persistence.database import Database

_BLOCK_BYTES = 1024 * 1024


class Shelf:
    """Archives of one kind.

    Args:
        database: the platform's; the shelf stands beside its file.
        name: `snapshots` or `images`.
    """

    def __init__(self, database: Database, name: str) -> None:
        if database.path is None:
            self.directory = Path(tempfile.mkdtemp(prefix=f"turtles-{name}-"))
            weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)
        else:
            self.directory = database.path.parent / name

    def path(self, archive_id: str) -> Path:
        """Where the archive of that id stands, or will.  The directory is there afterwards.

        Raises:
            OSError: it cannot be made.
        """
        self.directory.mkdir(mode=0o700, exist_ok=True)
        self.directory.chmod(0o700)
        return self.directory / f"{archive_id}.tar"

    def add_link(self, source: Path, archive_id: str) -> None:
        """Put up the same file under another id; it stays when the source goes.

        Raises:
            OSError: it cannot be linked or copied.
        """
        target = self.path(archive_id)
        try:
            target.hardlink_to(source)
        except FileNotFoundError:
            raise
        except OSError:  # another file system, or one without links
            part = target.with_name(f".{target.name}.part")
            shutil.copyfile(source, part)
            part.chmod(0o600)
            part.replace(target)
        _sync_directory(self.directory)

    def remove(self, archive_id: str) -> None:
        """Take an archive away; one that is not there is no error."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (self.directory / f"{archive_id}.tar").unlink()

    def sweep(self, kept: Collection[str]) -> int:
        """Remove every file but the archives of these ids; how many."""
        names = {f"{archive_id}.tar" for archive_id in kept}
        swept = 0
        if not self.directory.is_dir():
            return 0
        for entry in self.directory.iterdir():
            if entry.name not in names and not entry.is_dir():
                entry.unlink(missing_ok=True)
                swept += 1
        return swept

    def holds(self, archive_id: str) -> bool:
        """Whether the archive's file is there."""
        return (self.directory / f"{archive_id}.tar").is_file()

    def checked(self, archive_id: str, sha256: str) -> Path:
        """The archive's file, when it is what was written.

        Raises:
            Problem: 409, it was removed meanwhile, or its bytes changed.
        """
        path = self.directory / f"{archive_id}.tar"
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:
                while piece := file.read(_BLOCK_BYTES):
                    digest.update(piece)
        except OSError as error:
            raise Problem(
                409, "archive_missing", f"the archive of {archive_id} is not there any more."
            ) from error
        if digest.hexdigest() != sha256:
            raise Problem(
                409,
                "archive_damaged",
                f"the archive of {archive_id} is not what was written: its SHA-256 is "
                f"{digest.hexdigest()}, expected {sha256}. Nothing was restored. Delete it.",
            )
        return path


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
