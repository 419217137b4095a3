"""Writes down every file operation that SQLite makes in this process, in order, with its bytes.

How: a VFS of our own, put with `ctypes` into the very library that Python's `sqlite3` module is
linked with (its symbols are reached through the module's shared object)::

    persistence.open_store -> SQLAlchemy -> sqlite3 -> libsqlite3 -> our VFS -> unix VFS -> disk
                                                                        |
                                                                     Operation

So everything above the disk is what production runs: same driver, same library, same pool.  The
other ways were weighed and left:

- apsw carries a SQLite of its own: its VFS never sees our connections, and an adapter under
  SQLAlchemy would test another library and another driver than the ones we ship;
- `strace` and `LD_PRELOAD` need a Debian package, ptrace or a compiler, and see no more than this.

Our VFS is a copy of `unix` that opens and deletes files itself; of an open file only the table of
methods is replaced, and there only write, truncate and sync.  Directory syncs are seen by wrapping
the system call `openDirectory`, which SQLite makes for nothing else.  Shared memory (`-shm`) is
mapped, not written, and passes by: after a power loss its content is arbitrary anyway.

Only files in the watched directory are recorded; whatever else the process has open passes by.
"""

from __future__ import annotations

import _sqlite3  # type: ignore[import-not-found,unused-ignore]
import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.verification.power_loss.disk import (
    Create,
    Operation,
    Sync,
    SyncDirectory,
    Truncate,
    Unlink,
    Write,
)

_NAME = b"turtles-recorder"
_OK, _IO_ERROR = 0, 10
_P, _INT, _I64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_OPEN = ctypes.CFUNCTYPE(_INT, _P, _P, _P, _INT, _P)
_DELETE = ctypes.CFUNCTYPE(_INT, _P, _P, _INT)
_WRITE = ctypes.CFUNCTYPE(_INT, _P, _P, _INT, _I64)
_TRUNCATE = ctypes.CFUNCTYPE(_INT, _P, _I64)
_SYNC = ctypes.CFUNCTYPE(_INT, _P, _INT)
_OPEN_DIRECTORY = ctypes.CFUNCTYPE(_INT, ctypes.c_char_p, _P)
_SET_CALL = ctypes.CFUNCTYPE(_INT, _P, ctypes.c_char_p, _P)
_GET_CALL = ctypes.CFUNCTYPE(_P, _P, ctypes.c_char_p)


class _Vfs(ctypes.Structure):
    """`sqlite3_vfs`, version 3."""

    _fields_ = [
        ("version", _INT), ("file_size", _INT), ("path_max", _INT), ("next", _P),
        ("name", ctypes.c_char_p), ("app_data", _P), ("open", _P), ("delete", _P),
        *((name, _P) for name in (
            "access", "full_pathname", "dl_open", "dl_error", "dl_sym", "dl_close", "randomness",
            "sleep", "current_time", "last_error", "current_time_ms", "set_call", "get_call",
            "next_call",
        )),
    ]  # fmt: skip


class _Methods(ctypes.Structure):
    """`sqlite3_io_methods`, version 3."""

    _fields_ = [
        ("version", _INT), ("close", _P), ("read", _P), ("write", _P), ("truncate", _P),
        ("sync", _P),
        *((name, _P) for name in (
            "file_size", "lock", "unlock", "check_reserved", "file_control", "sector_size",
            "characteristics", "shm_map", "shm_lock", "shm_barrier", "shm_unmap", "fetch",
            "unfetch",
        )),
    ]  # fmt: skip


class Recording:
    """What happened to the files of one directory.

    Files have numbers, because a name may be given to another file later.
    """

    def __init__(self, directory: Path, names: dict[str, int]) -> None:
        self.directory = directory
        self.operations: list[Operation] = []
        self.names = dict(names)
        self._next = max(names.values(), default=0) + 1

    def opened(self, name: str) -> int:
        """The number of a file that was opened; one not seen before was created."""
        if name not in self.names:
            self.names[name] = self._next
            self._next += 1
            self.operations.append(Create(name, self.names[name]))
        return self.names[name]

    def unlinked(self, name: str) -> None:
        """A name is about to be taken away."""
        if self.names.pop(name, None) is not None:
            self.operations.append(Unlink(name))


class _Recorder:
    """The VFS, made once for the process: SQLite keeps pointers into it while a file is open."""

    def __init__(self) -> None:
        library = _library()
        self.recording: Recording | None = None
        self.failure: BaseException | None = None
        self._library = library
        self._unix = library.sqlite3_vfs_find(b"unix").contents
        self._files: dict[int, tuple[Recording, int]] = {}
        self._methods: dict[int, _Methods] = {}
        self._kept: list[Any] = []
        self.vfs = _Vfs.from_buffer_copy(self._unix)
        self.vfs.next, self.vfs.name = None, _NAME
        self.vfs.open = self._pointer(_OPEN, self._open, _OPEN(self._unix.open))
        self.vfs.delete = self._pointer(_DELETE, self._delete, _DELETE(self._unix.delete))
        self._watch_directories()

    def _watch_directories(self) -> None:
        original = _GET_CALL(self._unix.get_call)(ctypes.addressof(self._unix), b"openDirectory")
        ours = self._pointer(_OPEN_DIRECTORY, self._directory, _OPEN_DIRECTORY(original))
        _SET_CALL(self._unix.set_call)(ctypes.addressof(self._unix), b"openDirectory", ours)

    def _pointer(self, kind: Any, method: Any, original: Any) -> int | None:
        """A C function that calls our method with the original; errors become I/O errors."""

        def call(*arguments: Any) -> int:
            try:
                return int(method(original, *arguments))
            except BaseException as error:  # noqa: BLE001 - C cannot be given an exception
                self.failure = error
                return _IO_ERROR

        function = kind(call)
        self._kept += [function, original]
        return ctypes.cast(function, _P).value

    def register(self, default: bool) -> None:
        """Put our VFS in as the default one, or take it out."""
        if default:
            self._library.sqlite3_vfs_register(ctypes.byref(self.vfs), 1)
        else:
            self._library.sqlite3_vfs_unregister(ctypes.byref(self.vfs))

    def _name(self, address: int | None) -> str | None:
        """The name of a path in the watched directory, else None."""
        if self.recording is None or not address:
            return None
        path = os.fsdecode(ctypes.string_at(address))
        folder, _, name = path.rpartition("/")
        return name if folder == str(self.recording.directory) else None

    def _open(self, original: Any, vfs: int, path: int, file: int, flags: int, out: int) -> int:
        result: int = original(vfs, path, file, flags, out)
        name = self._name(path)
        if result == _OK and name is not None and self.recording is not None:
            self._files[file] = (self.recording, self.recording.opened(name))
            slot = ctypes.cast(file, ctypes.POINTER(_P)).contents
            slot.value = ctypes.addressof(self._recorded(slot.value or 0))
        return result

    def _recorded(self, address: int) -> _Methods:
        """The methods at this address, with ours in the place of three."""
        if address not in self._methods:
            methods = _Methods.from_buffer_copy(_Methods.from_address(address))
            methods.write = self._pointer(_WRITE, self._write, _WRITE(methods.write))
            methods.truncate = self._pointer(_TRUNCATE, self._truncate, _TRUNCATE(methods.truncate))
            methods.sync = self._pointer(_SYNC, self._sync, _SYNC(methods.sync))
            self._methods[address] = methods
        return self._methods[address]

    def _write(self, original: Any, file: int, data: int, size: int, offset: int) -> int:
        result: int = original(file, data, size, offset)
        self._note(result, file, lambda n: Write(n, offset, ctypes.string_at(data, size)))
        return result

    def _truncate(self, original: Any, file: int, size: int) -> int:
        result: int = original(file, size)
        self._note(result, file, lambda n: Truncate(n, size))
        return result

    def _sync(self, original: Any, file: int, flags: int) -> int:
        result: int = original(file, flags)
        self._note(result, file, Sync)
        return result

    def _note(self, result: int, file: int, make: Any) -> None:
        recording, number = self._files[file]
        if result == _OK:
            recording.operations.append(make(number))

    def _delete(self, original: Any, vfs: int, path: int, sync_directory: int) -> int:
        name = self._name(path)
        if name is not None and self.recording is not None:
            self.recording.unlinked(name)  # before the directory sync that may follow at once
        return int(original(vfs, path, sync_directory))

    def _directory(self, original: Any, path: bytes, descriptor: int) -> int:
        if self.recording is not None and Path(os.fsdecode(path)).parent == (
            self.recording.directory
        ):
            self.recording.operations.append(SyncDirectory())
        return int(original(path, descriptor))


def _library() -> ctypes.CDLL:
    """The SQLite that Python's `sqlite3` uses.

    Raises:
        RuntimeError: it is built into Python without exported symbols.
    """
    library = ctypes.CDLL(_sqlite3.__file__)
    try:
        library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
        library.sqlite3_vfs_find.argtypes = [ctypes.c_char_p]
        library.sqlite3_vfs_register.argtypes = [_P, _INT]
        library.sqlite3_vfs_unregister.argtypes = [_P]
    except AttributeError as error:
        raise RuntimeError(
            f"{_sqlite3.__file__} hides the functions of its SQLite, so that file operations "
            "cannot be recorded. Run this with a Python that is linked with the system's "
            "libsqlite3 (Debian's, pyenv's or the official image's)."
        ) from error
    return library


@functools.cache
def _recorder() -> _Recorder:
    return _Recorder()


@contextmanager
def recorded(directory: Path, names: dict[str, int] | None = None) -> Iterator[Recording]:
    """Record what SQLite does to the files of a directory, in the connections opened meanwhile.

    Args:
        directory: absolute and without links, as SQLite will spell it.
        names: the files that are there already, with their numbers.

    Raises:
        RuntimeError: SQLite cannot be reached, or the recorder itself failed.
    """
    recorder = _recorder()
    if recorder.recording is not None:
        raise RuntimeError("one recording at a time; another one is going on in this process")
    recording = Recording(directory, names or {})
    recorder.recording, recorder.failure = recording, None
    recorder.register(True)
    try:
        yield recording
    finally:
        recorder.register(False)
        recorder.recording = None
    if recorder.failure is not None:
        raise RuntimeError("the recorder failed; its recording is worth nothing") from (
            recorder.failure
        )
