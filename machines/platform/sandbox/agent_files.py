"""The operation of the agent that hands files out: `collect`.

Read by the agent when first needed (agent.py). Links are not followed, neither for files nor for
directories, and nothing but regular files is opened. The host checks everything again.
"""

import base64
import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Any

ENTRIES_MAX = 20_000
PATH_CHARACTERS_MAX = 1000


def collect(request: dict[str, Any]) -> dict[str, Any]:
    """Regular files below `directories` by relative path; what does not fit is left out."""
    room = int(request["bytes_max"])
    found: dict[str, str] = {}
    for directory in request["directories"]:
        for path, name, folder_fd in names_below(directory):
            if len(found) >= request["count_max"]:
                break
            content = None if path in found else read(name, folder_fd, room)
            if content is not None:
                found[path] = base64.b64encode(content).decode()
                room -= len(content)
    return {"files": found}


def names_below(directory: str) -> "Iterator[tuple[str, str, int]]":
    """(relative path, name, descriptor of its folder) of what is no directory; a part of too many.

    Absent, locked or impossible directories hold nothing; below some depth nothing is looked for.
    """
    seen = 0
    with contextlib.suppress(OSError, ValueError, RecursionError):
        for folder, folders, names, folder_fd in os.fwalk(directory, follow_symlinks=False):
            folders.sort()
            for name in sorted(names):
                path = os.path.relpath(os.path.join(folder, name), directory)  # noqa: PTH118
                if is_plain(path):
                    yield path, name, folder_fd
            seen += len(folders) + len(names)
            if seen > ENTRIES_MAX:
                return


def is_plain(path: str) -> bool:
    """Whether the name is short enough and text: no bytes that are not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return len(path) <= PATH_CHARACTERS_MAX


def read(name: str, folder_fd: int, bytes_max: int) -> "bytes | None":
    """Content of a regular file; None for anything else, too large or unreadable."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=folder_fd)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > bytes_max:
                return None
            content = file.read(bytes_max + 1)
        except OSError:
            return None
    return content if len(content) <= bytes_max else None
