"""What background programs print, and how they end: one thread for all of them.

::

    watch(name, deployment, program)      lines -> on_lines, in batches
                                          the end -> on_end(name, deployment, exit code or None)
    drop(name)                            nothing more is told of it

Reading never waits for a program: descriptors are non-blocking, and a program that prints faster
than `BYTES_PER_ROUND` per round is slowed down by its full pipe.  One that prints more lines than
`LINES_AT_ONCE`, and more than `LINES_PER_SECOND` from then on, has its oldest lines left out, which
is told.  All lines that came before an
end are told before the end is.  No exit code means that the sandbox died with it.  The thread
alone closes descriptors, so none is ever read after it was given out anew.
"""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from engine.errors import TurtlesError
from machines.platform.sandbox.backend import Program

BYTES_PER_ROUND = 65_536
LINES_AT_ONCE = 9_000
LINES_PER_SECOND = 1_000
LINE_BYTES_MAX = 4_000
LINES_WAITING_MAX = 20_000
ROUND_SECONDS = 0.05
RETRY_SECONDS = 0.5
_DRAIN_BYTES_MAX = 1 << 20

log = structlog.get_logger("turtles.platform.program_watch")

Lines = list[tuple[str, str]]
"""(name, line) pairs, oldest first."""


@dataclass(slots=True)
class _Watched:
    name: str
    deployment: int
    program: Program
    partial: bytearray = field(default_factory=bytearray)
    status: bytearray = field(default_factory=bytearray)
    lines_left: float = LINES_AT_ONCE
    noted_at: float = field(default_factory=time.monotonic)

    def may_say(self) -> int:
        """How many lines it may say now: saved up as time goes by."""
        now = time.monotonic()
        saved_up = self.lines_left + (now - self.noted_at) * LINES_PER_SECOND
        self.lines_left, self.noted_at = min(saved_up, LINES_AT_ONCE), now
        return int(self.lines_left)


class ProgramWatch:
    """Reads every program it was given.

    Args:
        on_lines: told in the thread; when it raises `TurtlesError` the lines are told again.
        on_end: told in a thread of its own, once for each watched program at the most.
    """

    def __init__(
        self,
        on_lines: Callable[[Lines], None],
        on_end: Callable[[str, int, int | None], None],
    ) -> None:
        self._on_lines = on_lines
        self._on_end = on_end
        self._lock = threading.Lock()
        self._wanted: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._wake_end, self._wake = os.pipe()
        for end in (self._wake_end, self._wake):
            os.set_blocking(end, False)
        self._selector.register(self._wake_end, selectors.EVENT_READ, None)
        self._watched: dict[str, list[_Watched]] = {}
        self._lines: deque[tuple[str, str]] = deque(maxlen=LINES_WAITING_MAX)

    def watch(self, name: str, deployment: int, program: Program) -> None:
        """Read it from now on; its descriptors belong to the watch."""
        one = _Watched(name, deployment, program)
        self._do(lambda: self._add(one))

    def drop(self, name: str) -> None:
        """Say nothing more about the programs of this name that are watched now."""
        self._do(lambda: self._drop(name))

    def stop(self) -> None:
        """Tell what was read, and end the thread.  Nothing can be watched afterwards."""
        with self._lock:
            if self._stopping.is_set():
                return
            self._stopping.set()
            self._nudge()
        if self._thread is not None:
            self._thread.join()
        self._selector.close()
        os.close(self._wake)
        os.close(self._wake_end)

    def _do(self, action: Callable[[], None]) -> None:
        with self._lock:
            if self._stopping.is_set():
                return
            self._wanted.append(action)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="programs", daemon=True)
                self._thread.start()
            self._nudge()

    def _nudge(self) -> None:
        try:
            os.write(self._wake, b"\0")
        except BlockingIOError:
            return  # it is awake already

    def _run(self) -> None:
        while not self._stopping.is_set():
            events = self._selector.select(RETRY_SECONDS if self._lines else None)
            while self._wanted:
                self._wanted.popleft()()
            for key, _mask in events:
                if key.data is None:
                    os.read(self._wake_end, 4096)
                elif self._is_registered(key):  # not dropped a moment ago
                    self._read(key.fd, key.data)
            self._tell()
            # A little later there is more to write down in one transaction.
            self._stopping.wait(ROUND_SECONDS)
        for name in list(self._watched):
            self._drop(name)
        self._tell()

    def _is_registered(self, key: selectors.SelectorKey) -> bool:
        now = self._selector.get_map().get(key.fd)
        return now is not None and now.data is key.data

    def _add(self, one: _Watched) -> None:
        self._watched.setdefault(one.name, []).append(one)
        for descriptor in (one.program.output, one.program.status):
            self._selector.register(descriptor, selectors.EVENT_READ, one)

    def _drop(self, name: str) -> None:
        for one in self._watched.pop(name, []):
            self._close(one.program.output)
            self._close(one.program.status)

    def _close(self, descriptor: int) -> None:
        if descriptor in self._selector.get_map():
            self._selector.unregister(descriptor)
            os.close(descriptor)

    def _read(self, descriptor: int, one: _Watched) -> None:
        if descriptor == one.program.output:
            self._read_output(one, BYTES_PER_ROUND)
        else:
            self._read_status(one)

    def _read_output(self, one: _Watched, limit: int) -> None:
        chunk = _read_some(one.program.output, limit)
        if chunk is None:
            return
        one.partial += chunk
        self._note(one, _take_lines(one.partial, ended=not chunk))
        if not chunk:
            self._close(one.program.output)

    def _read_status(self, one: _Watched) -> None:
        chunk = _read_some(one.program.status, 64)
        if chunk is None:
            return
        one.status += chunk
        if chunk and b"\n" not in one.status:
            return
        self._close(one.program.status)
        self._drain(one)
        self._tell()
        arguments = (one.name, one.deployment, _exit_code(bytes(one.status)))
        threading.Thread(target=self._on_end, args=arguments, daemon=True).start()

    def _drain(self, one: _Watched) -> None:
        """Take what it printed before it ended.  Others it started may go on printing."""
        for _ in range(_DRAIN_BYTES_MAX // BYTES_PER_ROUND):
            if one.program.output not in self._selector.get_map():
                return
            before = len(self._lines), len(one.partial)
            self._read_output(one, BYTES_PER_ROUND)
            if before == (len(self._lines), len(one.partial)):
                break
        self._note(one, _take_lines(one.partial, ended=True))

    def _note(self, one: _Watched, lines: list[str]) -> None:
        left_out = max(0, len(lines) - one.may_say())
        one.lines_left -= len(lines) - left_out
        if left_out:
            words = f"[platform] {left_out} lines left out: printed too fast"
            lines = [words, *lines[left_out:]]
        self._lines.extend((one.name, line) for line in lines)

    def _tell(self) -> None:
        if not self._lines:
            return
        lines = list(self._lines)
        try:
            self._on_lines(lines)
        except TurtlesError as error:
            log.warning("service_lines_wait", lines=len(lines), error=str(error))
            return
        self._lines.clear()


def _read_some(descriptor: int, limit: int) -> bytes | None:
    """What is there: empty at the end, None when there is nothing yet."""
    try:
        return os.read(descriptor, limit)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _take_lines(partial: bytearray, *, ended: bool) -> list[str]:
    """Take whole lines, and pieces of lines that are too long, out of what was read."""
    *whole, rest = bytes(partial).split(b"\n")
    partial[:] = rest
    if rest and (ended or len(rest) >= LINE_BYTES_MAX):
        whole.append(rest)
        partial.clear()
    return [text for line in whole for text in _pieces(line)]


def _pieces(line: bytes) -> list[str]:
    text = line.rstrip(b"\r").decode("utf-8", "replace").replace("\0", "\ufffd")
    return [text[at : at + LINE_BYTES_MAX] for at in range(0, len(text), LINE_BYTES_MAX)] or [""]


def _exit_code(status: bytes) -> int | None:
    """The code in a status line; None when there is none (it is foreign data: it may be junk)."""
    word = status.partition(b"\n")[0].strip()
    digits = word.removeprefix(b"-")
    return int(word) if b"\n" in status and digits.isdigit() and len(digits) <= 6 else None
