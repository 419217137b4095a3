"""The embedded platform, kept alive for as long as somebody here needs it.

::

    platform directory
        keeper.json    {"started": [{"pid", "start_time"}]}: living servers that keepers started
        keeper.lock    held (flock, shared) by every keeper; the kernel frees it when one dies

    keeper begins   find the server, or start one and note it, at once, in keeper.json
    meanwhile       one that dies is started again on the same port: the clients know it
    keeper ends     if it is the last keeper, it stops the server - if keeper.json names it

So a server that a person started (`turtles platform serve`) stays, and one that a killed keeper
left behind is taken over, and stopped by whoever ends last.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from machines.platform import server
from machines.platform.sandbox.processes import Identity, boot_id

CHECK_MS = 300
BLOCK_SECONDS = 0.25
"""Time between two blocks of a platform that is started on the way."""


class Started(msgspec.Struct, frozen=True):
    """A server process, as `ready.json` names it too."""

    pid: int
    start_time: str

    @property
    def is_alive(self) -> bool:
        """Whether that very process lives."""
        boot, _, ticks = self.start_time.partition("/")
        known = boot == boot_id() and ticks.isdecimal()
        return known and Identity(self.pid, int(ticks)).is_alive()


class _Record(msgspec.Struct, frozen=True):
    started: tuple[Started, ...] = ()


@contextlib.asynccontextmanager
async def kept_platform(data_dir: Path, **settings: Any) -> AsyncIterator[str]:
    """The base URL of a directory's platform, which is kept alive meanwhile.

    Args:
        data_dir: the platform's own directory.
        settings: those of `machines.platform.server.serve`, for a server that has to be started.

    Raises:
        ServerError: it did not start.
    """
    keeper = PlatformKeeper(data_dir, **settings)
    watch: asyncio.Task[None] | None = None
    try:
        await keeper.start()
        watch = asyncio.create_task(keeper.watch())
        yield keeper.base_url
    finally:
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        await keeper.stop()


class PlatformKeeper:
    """Finds or starts the platform of a directory, starts it again when it dies, and stops it.

    Args:
        data_dir: the platform's own directory.
        settings: those of `machines.platform.server.serve`.
    """

    def __init__(self, data_dir: Path, **settings: Any) -> None:
        self._data_dir = data_dir
        self._settings = settings
        self._info: server.ServerInfo | None = None
        self._presence: int | None = None
        # A cancelled `start` leaves its thread at work; `stop` has to wait for it.
        self._lock = threading.Lock()
        self._ended = False

    @property
    def base_url(self) -> str:
        """Where it listens; the same after a restart."""
        assert self._info is not None
        return self._info.base_url

    async def start(self) -> None:
        """Find it or start it.

        Raises:
            ServerError: it did not start.
        """
        await asyncio.to_thread(self._begin)

    def _begin(self) -> None:
        with self._lock:
            if self._ended:
                return
            server.prepare_data_directory(self._data_dir)
            if self._presence is None:
                self._presence = self._lock_file(fcntl.LOCK_SH)
            self._await_starting()
            self._make(self._last_port())

    def _await_starting(self) -> None:
        """Let a server that a killed keeper had just started get ready, or die.

        Started beside it, ours might win the directory, and leave it waiting for its turn.
        """
        limit = time.monotonic() + server.START_SECONDS
        while self._noted() and server.find_server(self._data_dir) is None:
            if time.monotonic() > limit:
                return
            time.sleep(0.05)

    def _last_port(self) -> int:
        try:
            ready = msgspec.json.decode((self._data_dir / "ready.json").read_bytes())
            return int(ready["port"])
        except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError):
            return 0

    def _make(self, port: int) -> None:
        try:
            self._info = self._start_server(port)
        except server.DataDirectoryRefused:
            raise  # another port would not help
        except server.ServerError:
            if port == 0 or self._info is not None:
                raise
            self._info = self._start_server(0)

    def _start_server(self, port: int) -> server.ServerInfo:
        return server.start_server(self._data_dir, spawned=self._note, port=port, **self._settings)

    async def watch(self) -> None:
        """Start it again whenever it is gone, on the port that the clients know."""
        while True:
            await asyncio.sleep(CHECK_MS / 1000)
            await asyncio.to_thread(self._look_after)

    def _look_after(self) -> None:
        with self._lock:
            if self._ended or self._info is None or server.find_server(self._data_dir) is not None:
                return
            with contextlib.suppress(server.ServerError):
                self._make(self._info.port)

    async def stop(self) -> None:
        """Stop it, if a keeper started it and no other keeper needs it."""
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        with self._lock:
            self._ended = True
            if self._presence is None:
                return
            os.close(self._presence)
            self._presence = None
            try:
                last = self._lock_file(fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # another keeper needs it, and will stop it
            try:
                self._stop_ours()
            finally:
                os.close(last)

    def _stop_ours(self) -> None:
        info = server.find_server(self._data_dir)
        if info is not None and Started(info.pid, info.start_time) in self._noted():
            server.stop_server(info)
            self._write(self._noted())

    # -- what keepers started -------------------------------------------------------------------

    def _note(self, identity: Identity) -> None:
        """Noted before the server is ready, so that whatever dies now, it is known as ours."""
        new = Started(identity.pid, f"{boot_id()}/{identity.start_ticks}")
        self._write((*self._noted(), new))

    def _noted(self) -> tuple[Started, ...]:
        """The living servers that keepers started."""
        try:
            record = msgspec.json.decode(self._file.read_bytes(), type=_Record)
        except (OSError, msgspec.DecodeError):
            return ()
        return tuple(one for one in record.started if one.is_alive)

    def _write(self, started: tuple[Started, ...]) -> None:
        fresh = self._data_dir / f"keeper.json.{os.getpid()}"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(_Record(started)))
        fresh.replace(self._file)

    @property
    def _file(self) -> Path:
        return self._data_dir / "keeper.json"

    def _lock_file(self, how: int) -> int:
        """The descriptor that holds the lock until it is closed."""
        descriptor = os.open(self._data_dir / "keeper.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, how)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
