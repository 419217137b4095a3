"""`verify --history DB`: every oracle over what production has recorded, which stays untouched.

A database in use cannot be opened without leaving traces (SQLite makes files beside it, an older
schema would be brought up to date, a worker would register).  So it is copied first, and the copy
is examined and removed::

    runs.db, nobody has it open     a copy of the file
    runs.db with runs.db-wal        SQLite's backup over a connection that can only read
    runs.db.key                     a copy, so that secrets in contexts can be opened;
                                    without it such runs are folded only, and that is noted
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from engine.cli import output
from engine.cli.looking import look
from engine.cli.place import STORE_FILE, AppFactory
from engine.errors import StoreCorrupt, StoreError

OK = 0
SAFETY = 3
TRIES = 5
MASTER_KEY = "TURTLES_MASTER_KEY"


def check(
    factory: AppFactory, environments: Sequence[str], database: Path, *, as_json: bool
) -> int:
    """Examine a database file, or that of a data directory; 3 if a promise was broken.

    Raises:
        UsageError: there is no such file.
        StoreError: it cannot be read, or is of a newer version.
    """
    from engine.cli.verify import import_environments
    from engine.verification.history import (
        examine_history,
        history_json,
        history_lines,
        require_database,
    )

    path = database / STORE_FILE if database.is_dir() else database
    require_database(path)
    import_environments(environments)
    with TemporaryDirectory(prefix="turtles-history-") as place:
        copy_database(path, Path(place))
        report = look(factory, Path(place), examine_history)
    report.store = str(path)
    code = OK if report.ok else SAFETY
    if as_json:
        output.emit(history_json(report) | {"exit": code})
    else:
        output.write("\n".join([*history_lines(report), f"exit {code}"]))
    return code


def copy_database(path: Path, into: Path) -> None:
    """A copy of a database and its key, as of one moment, in another directory.

    Raises:
        StoreError: it cannot be read, or does not stand still.
    """
    try:
        for _ in range(TRIES):
            if _copied(path, into / STORE_FILE):
                break
        else:
            raise StoreError(f"history {path}: it changes faster than it can be copied. Try again.")
        _copy_key(path.with_name(f"{path.name}.key"), into / f"{STORE_FILE}.key")
    except sqlite3.Error as error:
        raise StoreCorrupt(
            f"history {path}: cannot be read ({error}); nothing was changed"
        ) from error
    except OSError as error:
        raise StoreError(f"history {path}: cannot be copied ({error.strerror or error}: "
                         f"{error.filename})") from error  # fmt: skip


def _copy_key(key: Path, target: Path) -> None:
    """The key, or one that opens nothing: then contexts with secrets are not decided again."""
    if key.is_file():
        shutil.copy(key, target)
    elif MASTER_KEY not in os.environ:
        target.write_bytes(base64.b64encode(secrets.token_bytes(32)))
        target.chmod(0o600)


def _copied(path: Path, target: Path) -> bool:
    """Whether the copy is of one moment."""
    log, shared = (path.with_name(path.name + end) for end in ("-wal", "-shm"))
    if log.exists() and shared.exists():
        _backed_up(path, target)
        return True
    before = _stamps(path, log)
    shutil.copyfile(path, target)
    if log.exists():
        shutil.copyfile(log, target.with_name(f"{target.name}-wal"))
    return _stamps(path, log) == before and not shared.exists()


def _stamps(*paths: Path) -> list[tuple[int, int] | None]:
    found = [path.stat() if path.exists() else None for path in paths]
    return [(one.st_mtime_ns, one.st_size) if one else None for one in found]


def _backed_up(path: Path, target: Path) -> None:
    address = f"file:{quote(str(path.resolve()))}?mode=ro"
    with (
        closing(sqlite3.connect(address, uri=True)) as source,
        closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
