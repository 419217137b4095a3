"""Who may enter the data directory, and who may read what is in it: nobody but its owner.

The directory holds keys, wallets, the master key, snapshots and images.  Its own mode keeps others
out, but a mode is changed in a moment, so what is inside is looked at, too::

    secret   master.key, platform.db*, *.key, snapshots/, images/   refused at the start
    other    logs, locks, ready.json                                   warned about

Files of sandboxes belong to what runs in them and get the modes it likes; only the directory
`sandboxes/` itself is looked at, for nobody passes through it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from machines.platform.server import DataDirectoryRefused

_SECRET_NAMES = ("master.key", "platform.db", "platform.db-wal", "platform.db-shm")
_SECRET_SUFFIXES = (".key",)
_SECRET_DIRECTORIES = ("snapshots", "images", "sandboxes")
_WALKED_DIRECTORIES = ("snapshots", "images")
FILES_LOOKED_AT_MAX = 100_000


class Loose(msgspec.Struct, frozen=True, kw_only=True):
    """A path that others than its owner can use.  `secret`: what is in it must not be read."""

    path: Path
    mode: int
    secret: bool
    directory: bool

    @property
    def message(self) -> str:
        """What is wrong, and the command that cures it."""
        right = "700" if self.directory else "600"
        return f"{self.path}: mode {self.mode:o} lets others in. Run: chmod {right} {self.path}"


def loose_paths(data_dir: Path) -> list[Loose]:
    """Everything in a data directory that its group or others can use, sorted by path.

    Symbolic links are not followed: what they lead to has a mode of its own.
    """
    return [found for path in _looked_at(data_dir) if (found := _look(data_dir, path))]


def require_private(data_dir: Path) -> list[Loose]:
    """What is loose and no secret.

    Raises:
        DataDirectoryRefused: a secret is open to others; names each, with the remedy.
    """
    found = loose_paths(data_dir)
    secrets = [each.message for each in found if each.secret]
    if secrets:
        raise DataDirectoryRefused("data directory: " + " ".join(secrets))
    return found


def _looked_at(data_dir: Path) -> Iterator[Path]:
    yield data_dir
    count = 0
    for path in sorted(data_dir.iterdir()):
        yield path
        if path.name not in _WALKED_DIRECTORIES:
            continue
        for inner in sorted(path.rglob("*")):
            count += 1
            if count > FILES_LOOKED_AT_MAX:
                return
            yield inner


def _look(data_dir: Path, path: Path) -> Loose | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None  # a server just removed it
    mode = stat.S_IMODE(status.st_mode) & 0o777
    if stat.S_ISLNK(status.st_mode) or not mode & 0o077:
        return None
    directory = stat.S_ISDIR(status.st_mode)
    return Loose(path=path, mode=mode, secret=_is_secret(data_dir, path), directory=directory)


def _is_secret(data_dir: Path, path: Path) -> bool:
    if path == data_dir:
        return True
    top = path.relative_to(data_dir).parts[0]
    return top in _SECRET_NAMES or top in _SECRET_DIRECTORIES or path.suffix in _SECRET_SUFFIXES
