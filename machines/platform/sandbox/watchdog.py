"""The memory of whole sandboxes where no cgroup counts it (enforcement "rlimit").

A resource limit holds one process down, and a sandbox may have many. So the host adds up what all
of them use and ends a sandbox that is over its limit:

    every round, per sandbox:  sum of resident memory > limit?  no: fine (it is never too low)
                               yes: sum of proportional memory (PSS) > limit?  yes: end it

Proportional memory counts a page that n processes share as 1/n each; where the kernel does not
tell (smaps_rollup), what a process has to itself is taken: resident without shared. To both comes
what open files made by memfd_create hold without being mapped. Files of /root, /tmp and /dev/shm
have a size of their own, and segments of System V are kept small by the filter (seccomp.py). What
the kernel itself keeps for a sandbox (pipes, sockets) only a cgroup counts.

One thread serves all sandboxes. It starts with the first and ends when none is left.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from machines.platform.sandbox import processes

__all__ = ["Watchdog", "proportional_bytes", "resident_bytes_below"]

_log = structlog.get_logger("turtles.platform.sandbox")

INTERVAL_SECONDS = 0.5
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

Measure = Callable[[int], int]
"""From the number of a process to the bytes that everything below it uses."""


@dataclass(frozen=True, slots=True)
class _Watched:
    pid: int
    limit_bytes: Callable[[], int]
    end: Callable[[str], None]


class Watchdog:
    """Ends sandboxes that are over their limit. Thread-safe.

    `wait(seconds)` is the clock: it returns whether to stop. Tests call `check` themselves.
    """

    def __init__(
        self,
        *,
        resident: Measure | None = None,
        proportional: Measure | None = None,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        self._resident = resident or resident_bytes_below
        self._proportional = proportional or proportional_bytes
        self._wait = wait
        self._lock = threading.Lock()
        self._watched: dict[str, _Watched] = {}
        self._stop: threading.Event | None = None

    def watch(
        self, sandbox_id: str, pid: int, limit_bytes: Callable[[], int], end: Callable[[str], None]
    ) -> None:
        """From now on call `end(reason)` once when what is below `pid` is over the limit."""
        with self._lock:
            self._watched[sandbox_id] = _Watched(pid, limit_bytes, end)
            if self._stop is None:
                self._stop = threading.Event()
                threading.Thread(
                    target=self._rounds,
                    args=(self._stop,),
                    name="turtles-sandbox-watchdog",
                    daemon=True,
                ).start()

    def forget(self, sandbox_id: str) -> None:
        """Watch it no more. One that is not watched is no error."""
        with self._lock:
            self._watched.pop(sandbox_id, None)
            if not self._watched and self._stop is not None:
                self._stop.set()
                self._stop = None

    def check(self) -> list[str]:
        """One round; the sandboxes that were ended in it."""
        with self._lock:
            watched = list(self._watched.items())
        over = [(name, each, used) for name, each in watched if (used := self._excess(each))]
        for name, each, used in over:
            self.forget(name)
            limit = each.limit_bytes()
            _log.warning("sandbox.over_memory", sandbox_id=name, used_bytes=used, limit_bytes=limit)
            each.end(f"its programs used {used} bytes of memory, {limit} are allowed")
        return [name for name, _, _ in over]

    def _excess(self, watched: _Watched) -> int:
        """What it uses when that is too much; else 0."""
        limit = watched.limit_bytes()
        if self._resident(watched.pid) <= limit:
            return 0
        used = self._proportional(watched.pid)
        return used if used > limit else 0

    def _rounds(self, stop: threading.Event) -> None:
        while not self._wait(stop, INTERVAL_SECONDS):
            try:
                self.check()
            except Exception as error:  # noqa: BLE001 - one failure must not end the watch
                _log.warning("sandbox.watchdog_failed", reason=str(error))


def resident_bytes_below(pid: int) -> int:
    """What everything below `pid` holds; shared pages count for each process that has them."""
    below = processes.descendants(pid)
    resident = sum(processes.resident_bytes(each.pid) for each in below)
    return resident + _memory_file_bytes(each.pid for each in below)


def proportional_bytes(pid: int) -> int:
    """What everything below `pid` holds, each page once."""
    below = processes.descendants(pid)
    uses = [_proportional(each.pid) for each in below]
    mapped = sum(shared for _, shared in uses)
    files = _memory_file_bytes(each.pid for each in below)
    return sum(used for used, _ in uses) + max(0, files - mapped)


def _proportional(pid: int, root: Path = Path("/proc")) -> tuple[int, int]:
    """Bytes of one process, and how many of them are mapped memory files; 0 when it is gone."""
    try:
        text = (root / str(pid) / "smaps_rollup").read_text()
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        used, shared = (int(fields[name].split()[0]) * 1024 for name in ("Pss", "Pss_Shmem"))
    except (OSError, ValueError, KeyError, IndexError):
        return _own(pid, root), 0
    return used, shared


def _own(pid: int, root: Path) -> int:
    try:
        _, resident, shared, *_ = (root / str(pid) / "statm").read_text().split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * _PAGE_BYTES


def _memory_file_bytes(pids: Iterable[int], root: Path = Path("/proc")) -> int:
    """What the files hold that these processes made by memfd_create, each file once.

    Nothing is opened: a stat of an open descriptor's entry follows no path of the sandbox.
    """
    sizes: dict[tuple[int, int], int] = {}
    for pid in pids:
        folder = root / str(pid) / "fd"
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):  # noqa: PTH208 - often, and of every process
                with contextlib.suppress(OSError):
                    if os.readlink(f"{folder}/{name}").startswith("/memfd:"):  # noqa: PTH115
                        status = (folder / name).stat()
                        sizes[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())
