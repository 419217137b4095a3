"""Ends code of the machine that does not come back: a limit on the time of one step.

::

    watch = Watch(limit_seconds=2)
    watch.run(section)      # TookTooLong is raised in the middle of whatever runs too long
    watch.again()           # said inside the section: one step has ended, the time starts anew

A second thread looks at the clocks and raises in the watched one, so it works in every thread and
leaves signals and timers to whom they belong (pytest's own time limit uses them).  Code that
swallows the exception meets it again at the next look.  What cannot be ended is one call of C code
that never returns, such as `10**10**10`: python runs nothing meanwhile.
"""

from __future__ import annotations

import ctypes
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from engine.verification.reading import _ENGINE, _is_library

LOOKS_PER_LIMIT = 4
WAITING_FACTOR = 10
"""So much longer a step may take if it does not compute; a busy host must not look like a loop."""
T = TypeVar("T")
STEPS_UNTIL_RAISED = 1_000


class TookTooLong(BaseException):
    """Code did not end in time.  No `Exception`, lest the code under watch catches it."""


class Watch:
    """Raises `TookTooLong` in the running thread if a step computes longer than `limit_seconds`.

    Counted is the thread's own time of computing; ten times as long if it only waits.
    """

    def __init__(self, *, limit_seconds: float) -> None:
        self.limit_seconds = limit_seconds
        self._steps = 0
        self._active = False
        self._raised = False
        self._lock = threading.Lock()
        self._over = threading.Event()

    def again(self) -> None:
        """A step has ended; the next has all the time again."""
        self._steps += 1

    def run(self, section: Callable[[], T]) -> T:
        """What `section` returns.  A watch runs one section.

        Raises:
            TookTooLong: a step of it did not end in time.
        """
        self._active = True
        thread = threading.get_ident()
        arguments = (thread, time.pthread_getcpuclockid(thread))  # asked while it surely lives
        threading.Thread(
            target=self._watch, args=arguments, name="turtles-watch", daemon=True
        ).start()
        try:
            return section()
        finally:
            self._active = False  # no call stands before it, so nothing can be raised in between
            self._finish()

    def _finish(self) -> None:
        with self._lock:
            self._over.set()
        if self._raised:
            _swallow()  # one that came too late: the section has ended

    def _watch(self, thread: int, worked: int) -> None:
        with suppress(OSError):  # the thread has ended meanwhile, and with it its clock
            self._look(thread, worked)

    def _look(self, thread: int, worked: int) -> None:
        steps, began, began_working = self._steps, time.monotonic(), time.clock_gettime(worked)
        while not self._over.wait(self.limit_seconds / LOOKS_PER_LIMIT):
            if not self._active:
                return
            now, now_working = time.monotonic(), time.clock_gettime(worked)
            if self._steps != steps:
                steps, began, began_working = self._steps, now, now_working
                continue
            long = now_working - began_working >= self.limit_seconds
            if long or now - began >= WAITING_FACTOR * self.limit_seconds:
                with self._lock:
                    if not self._active:
                        return
                    self._raised = True
                    _raise_in(thread, TookTooLong)


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Raise in a thread at its next step of python."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


def _swallow() -> None:
    """Let an exception that still stands before this thread come, and forget it.

    It is not taken back: CPython 3.11 would go on looking for it at every step for ever after.
    """
    with suppress(TookTooLong):
        for _ in range(STEPS_UNTIL_RAISED):
            pass


def is_of_program(file: str) -> bool:
    """Whether a file is neither the standard library's, nor an installed package's, nor ours."""
    return not _is_library(file) and not file.startswith(_ENGINE)


def where_it_hung(error: BaseException) -> tuple[str, int, str]:
    """(file, line, function) of the innermost code of the program itself; ("", 0, "") if none."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_of_program(f.filename)]
    if not frames:
        return ("", 0, "")
    return (frames[-1].filename, frames[-1].lineno or 0, frames[-1].name)
