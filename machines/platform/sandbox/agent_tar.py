"""Packing a sandbox into a stream, and unpacking one: a program of its own, standard library only.

    python3 agent_tar.py --pack FD {"states": {"python3": FD, ...}, "bytes_max": N}
    python3 agent_tar.py --unpack FD {"states": {"python3": FD, "bash": FD}}

Run by the agent (agent_archive.py, which says what is in an archive), confined as every program
inside, so that a hostile archive cannot reach the agent.  Its report is JSON on stdout.

Nothing in an archive is believed, because whoever runs inside may have written it: names must lie
below the two directories, no part of a path is followed when it is a link, only files, directories
and links are made.  Links may point anywhere, as they may in any sandbox; none is ever followed.
"""

import contextlib
import json
import os
import re
import stat
import sys
import tarfile
from typing import Any, BinaryIO

TOPS = ("root", "tmp")
END = "state/end"  # the last member: an archive without it was cut
BLOCK_BYTES = 1 << 20
HEADER_BYTES = 2048  # of one member, its exact time and what fills up blocks included
LOST_MAX = 500
NAME_CHARACTERS = 200


class Refused(Exception):
    """It cannot be packed or unpacked; the message says what and why."""


def shown(path: str) -> str:
    """A path for a message: without surrogates, and not endless."""
    return os.fsencode(path).decode(errors="replace")[:NAME_CHARACTERS]


# -- packing ---------------------------------------------------------------------------------------


class Exactly:
    """A file as long as its header said, whatever happens to it meanwhile."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.changed = False

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        if len(data) < size:
            self.changed = True
        return data.ljust(size, b"\0")


class Packer:
    """Writes the archive; `lost` names what is not in it as it was."""

    def __init__(self, tar: tarfile.TarFile, bytes_max: int) -> None:
        self.tar = tar
        self.left = bytes_max
        self.bytes_max = bytes_max
        self.lost: list[str] = []
        self.linked: dict[tuple[int, int], str] = {}

    def add(self, item: tarfile.TarInfo, content: Any = None) -> None:
        self.left -= item.size + HEADER_BYTES
        if self.left < 0:
            raise Refused(f"its files and variables are more than {self.bytes_max} bytes")
        self.tar.addfile(item, content)
        self.tar.members.clear()  # type: ignore[attr-defined]

    def add_state(self, language: str, number: int) -> None:
        item = tarfile.TarInfo(f"state/{language}")
        with open(number, "rb", closefd=False) as file:
            item.size = os.fstat(number).st_size
            file.seek(0)
            self.add(item, file)

    def add_tree(self, top: str) -> None:
        """One of the two directories, parents first, in the order of names."""
        stack = [top]
        with contextlib.ExitStack() as shut_again:
            while stack:
                name = stack.pop()
                path = "/" + name
                try:
                    info = os.lstat(path)
                    if stat.S_ISDIR(info.st_mode):
                        if info.st_mode & 0o700 != 0o700:
                            shut_again.enter_context(readable(path, info))
                        inside = sorted(os.listdir(path), reverse=True)  # noqa: PTH208
                        self.add(item_of(name, info, tarfile.DIRTYPE))
                        stack += [f"{name}/{each}" for each in inside]
                    else:
                        self.add_entry(name, path, info)
                except OSError as error:
                    self.lost.append(f"{shown(path)} ({error.strerror or error})")

    def add_entry(self, name: str, path: str, info: os.stat_result) -> None:
        identity = (info.st_dev, info.st_ino)
        if stat.S_ISLNK(info.st_mode):
            self.add(item_of(name, info, tarfile.SYMTYPE, os.readlink(path)))  # noqa: PTH115
        elif not stat.S_ISREG(info.st_mode):
            self.lost.append(f"{shown(path)} ({KINDS.get(stat.S_IFMT(info.st_mode), 'special')})")
        elif identity in self.linked:
            self.add(item_of(name, info, tarfile.LNKTYPE, self.linked[identity]))
        else:
            self.add_file(name, path, info)
            if info.st_nlink > 1:
                self.linked[identity] = name

    def add_file(self, name: str, path: str, info: os.stat_result) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with readable(path, info), open(os.open(path, flags), "rb") as file:  # noqa: PTH123
            item = item_of(name, info, tarfile.REGTYPE)
            item.size = os.fstat(file.fileno()).st_size
            exactly = Exactly(file)
            self.add(item, exactly)
        if exactly.changed:
            self.lost.append(f"{shown(path)} (it changed while it was read)")


KINDS = {
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def item_of(name: str, info: os.stat_result, kind: bytes, link: str = "") -> tarfile.TarInfo:
    item = tarfile.TarInfo(name)
    item.mode = stat.S_IMODE(info.st_mode)
    # Exact: tarfile itself would write a float.
    seconds, rest = divmod(info.st_mtime_ns, 10**9)
    item.pax_headers = {"mtime": f"{seconds}.{rest:09d}"} if seconds >= 0 else {}
    item.mtime = max(seconds, 0)
    item.type = kind
    item.linkname = link
    return item


@contextlib.contextmanager
def readable(path: str, info: os.stat_result) -> Any:
    """We own it but have no capability: a mode that shuts us out is changed for a moment."""
    needed = 0o700 if stat.S_ISDIR(info.st_mode) else 0o400
    if info.st_mode & needed == needed:
        yield
        return
    os.chmod(path, stat.S_IMODE(info.st_mode) | needed)  # noqa: PTH101
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.chmod(path, stat.S_IMODE(info.st_mode))  # noqa: PTH101


def pack(number: int, states: dict[str, int], bytes_max: int) -> dict[str, Any]:
    """Write the archive to a descriptor; the report."""
    with (
        os.fdopen(number, "wb") as raw,
        tarfile.open(fileobj=raw, mode="w|", format=tarfile.PAX_FORMAT, bufsize=BLOCK_BYTES) as tar,
    ):
        packer = Packer(tar, bytes_max)
        for language, state in states.items():
            packer.add_state(language, state)
        for top in TOPS:
            packer.add_tree(top)
        packer.add(tarfile.TarInfo(END))
        return {"lost": packer.lost[:LOST_MAX]}


# -- unpacking (a program of its own) ------------------------------------------------------------


class Unpacker:
    """Makes what an archive names, below directories that are opened link by link."""

    def __init__(self, tops: dict[str, str], states: dict[str, int]) -> None:
        self.tops = {name: os.open(path, DIRECTORY) for name, path in tops.items()}
        self.states = states
        self.directories: list[tuple[tuple[str, ...], tarfile.TarInfo]] = []
        self.lost: list[str] = []

    def take(self, tar: tarfile.TarFile, item: tarfile.TarInfo) -> None:
        """One member of the archive."""
        parts = tuple(item.name.split("/"))
        if parts[0] == "state" and len(parts) == 2 and item.isreg():
            self.take_state(parts[1], tar, item)
            return
        check(parts, item.name)
        if item.isdir() and len(parts) == 1:
            self.directories.append((parts, item))
            return
        if len(parts) == 1:
            raise Refused(f"member {shown(item.name)!r}: a directory was expected")
        parent = self.parent_of(parts)
        try:
            self.make(tar, item, parts, parent)
        finally:
            os.close(parent)

    def take_state(self, language: str, tar: tarfile.TarFile, item: tarfile.TarInfo) -> None:
        if language in self.states:
            with open(self.states[language], "wb", closefd=False) as target:
                copy(tar, item, target)

    def make(
        self, tar: tarfile.TarFile, item: tarfile.TarInfo, parts: "tuple[str, ...]", parent: int
    ) -> None:
        name = parts[-1]
        if item.isdir():
            remove_other_than_directory(name, parent)
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
            self.directories.append((parts, item))
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
        if item.isreg():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(name, flags, 0o600, dir_fd=parent), "wb") as file:  # noqa: PTH123
                copy(tar, item, file)
                file.flush()
                finish(file.fileno(), item)
        elif item.issym():
            os.symlink(item.linkname, name, dir_fd=parent)
            set_times(name, item, dir_fd=parent, follow_symlinks=False)
        elif item.islnk():
            self.link(item, name, parent)
        else:
            self.lost.append(f"/{shown(item.name)} (neither file, directory nor link)")

    def link(self, item: tarfile.TarInfo, name: str, parent: int) -> None:
        source = tuple(item.linkname.split("/"))
        check(source, item.linkname)
        if len(source) == 1:
            raise Refused(f"member {shown(item.name)!r}: a link to a directory")
        beside = self.parent_of(source)
        try:
            os.link(source[-1], name, src_dir_fd=beside, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(beside)

    def parent_of(self, parts: "tuple[str, ...]") -> int:
        """The directory of a member, opened step by step without following a link."""
        current = os.dup(self.tops[parts[0]])
        for part in parts[1:-1]:
            try:
                below = open_below(part, current)
            finally:
                os.close(current)
            current = below
        return current

    def close(self) -> None:
        """Modes and times of directories, last, because files in them change the times."""
        for parts, item in reversed(self.directories):
            try:
                parent = self.parent_of((*parts, "."))
            except OSError:  # a later member took its place
                continue
            finish(parent, item)
            os.close(parent)


DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def open_below(part: str, current: int) -> int:
    try:
        return os.open(part, DIRECTORY, dir_fd=current)
    except FileNotFoundError:
        os.mkdir(part, 0o700, dir_fd=current)
        return os.open(part, DIRECTORY, dir_fd=current)


def check(parts: "tuple[str, ...]", name: str) -> None:
    if parts[0] not in TOPS or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise Refused(f"member {shown(name)!r}: outside of /root and /tmp")


def copy(tar: tarfile.TarFile, item: tarfile.TarInfo, target: BinaryIO) -> None:
    content = tar.extractfile(item)
    while content is not None and (piece := content.read(BLOCK_BYTES)):
        target.write(piece)


def finish(number: int, item: tarfile.TarInfo) -> None:
    os.fchmod(number, item.mode & 0o7777)
    set_times(number, item)


def set_times(target: Any, item: tarfile.TarInfo, **options: Any) -> None:
    told = TIME.fullmatch(item.pax_headers.get("mtime", ""))
    with contextlib.suppress(OverflowError, ValueError):
        at_ns = int(item.mtime) * 10**9
        if told is not None:
            at_ns = int(told[1]) * 10**9 + int((told[2] or "0").ljust(9, "0"))
        os.utime(target, ns=(at_ns, at_ns), **options)


TIME = re.compile(r"([0-9]{1,11})(?:\.([0-9]{1,9}))?")


def remove_other_than_directory(name: str, parent: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)


def clear(path: str) -> None:
    """Remove everything below a directory, however deep and however shut.

    Directories are moved up before they are removed, so no path gets long and no call nests.
    """
    prefix, number = f".turtles-{os.urandom(8).hex()}", 0
    top = os.open(path, DIRECTORY)
    try:
        os.fchmod(top, 0o700)
        while names := os.listdir(top):  # noqa: PTH208
            for name in names:
                if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
                    os.unlink(name, dir_fd=top)
                    continue
                os.chmod(name, 0o700, dir_fd=top)
                below = os.open(name, DIRECTORY, dir_fd=top)
                try:
                    for each in os.listdir(below):  # noqa: PTH208
                        if stat.S_ISDIR(os.stat(each, dir_fd=below, follow_symlinks=False).st_mode):
                            number += 1
                            os.chmod(each, 0o700, dir_fd=below)
                            moved = f"{prefix}-{number}"
                            os.rename(each, moved, src_dir_fd=below, dst_dir_fd=top)
                        else:
                            os.unlink(each, dir_fd=below)
                finally:
                    os.close(below)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)


def unpack(number: int, states: dict[str, int], tops: dict[str, str]) -> dict[str, Any]:
    """Replace the directories by what the archive holds; the report."""
    for path in tops.values():
        clear(path)
    unpacker = Unpacker(tops, states)
    with (
        os.fdopen(number, "rb") as raw,
        tarfile.open(fileobj=raw, mode="r|", bufsize=BLOCK_BYTES) as tar,
    ):
        name = ""
        while (item := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]
            name = item.name
            unpacker.take(tar, item)
    if name != END:
        raise Refused("it is no whole archive: its end is missing")
    unpacker.close()
    return {"lost": unpacker.lost[:LOST_MAX]}


def main(mode: str, number: int, arguments: dict[str, Any]) -> None:
    """One archive; the report goes to stdout."""
    try:
        if mode == "--pack":
            report = pack(number, arguments["states"], arguments["bytes_max"])
        else:
            report = unpack(number, arguments["states"], {name: f"/{name}" for name in TOPS})
    except Refused as refused:
        report = {"error": str(refused)}
    except (OSError, tarfile.TarError, ValueError, EOFError, MemoryError) as error:
        report = {"error": f"{type(error).__name__}: {error}"[:300]}
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
