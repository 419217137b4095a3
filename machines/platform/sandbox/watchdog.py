"""The memory of whole sandboxes where no cgroup counts it (enforcement "rlimit").

A resource limit holds one process down, and a sandbox may have many. So the host adds up what all
of them use and ends a sandbox that is over its limit:

    every round, per sandbox:  sum of resident memory > limit?  no: fine (it is never too low)
                               yes: sum of proportional memory (PSS) > limit?  yes: end it

Proportional memory counts a page that n processes share as 1/n each; where the kernel does not
tell (smaps_rollup), what a process has to itself is taken: resident without shared. In files that
no program has mapped (also those made by memfd_create) memory stays uncounted here; /root, /tmp and
/dev/shm have a size of their own.

One thread serves all sandboxes. It starts with the first and ends when none is left.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
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
    """Resident memory of everything below `pid`; shared pages count for each that has them."""
    return sum(processes.resident_bytes(each.pid) for each in processes.descendants(pid))


def proportional_bytes(pid: int) -> int:
    """Proportional memory of everything below `pid`."""
    return sum(_proportional(each.pid) for each in processes.descendants(pid))


def _proportional(pid: int, root: Path = Path("/proc")) -> int:
    """Bytes of one process; 0 when it is gone."""
    try:
        for line in (root / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return _own(pid, root)


def _own(pid: int, root: Path) -> int:
    try:
        _, resident, shared, *_ = (root / str(pid) / "statm").read_text().split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * _PAGE_BYTES
