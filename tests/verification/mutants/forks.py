"""Work done in forked copies of this process, a few at a time.

A copy starts with everything that was imported and collected, does one piece of work and is gone
with all it changed: each mutant is installed in a process of its own, without starting one.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Result = dict[str, Any]


@dataclass
class _Running:
    key: Any
    pid: int
    until: float
    said: bytearray = field(default_factory=bytearray)


def forked(
    pieces: Iterator[tuple[Any, Callable[[], Result]]], *, jobs: int, timeout_seconds: float
) -> Iterator[tuple[Any, Result]]:
    """Do the pieces of work, `jobs` at a time, and yield each result as it comes.

    A piece is taken when there is room for it, so that it may depend on earlier results.  One that
    does not end in time gives `{"timeout": seconds}`, one that dies `{"died": wait status}`.
    """
    running: dict[int, _Running] = {}
    selector = selectors.DefaultSelector()
    try:
        yield from _forked(pieces, jobs, timeout_seconds, running, selector)
    finally:
        for one in running.values():
            _end(one)
        selector.close()


def _forked(
    pieces: Iterator[tuple[Any, Callable[[], Result]]],
    jobs: int,
    timeout_seconds: float,
    running: dict[int, _Running],
    selector: selectors.BaseSelector,
) -> Iterator[tuple[Any, Result]]:
    more = True
    while more or running:
        while more and len(running) < jobs:
            piece = next(pieces, None)
            if piece is None:
                more = False
                break
            pipe, one = _fork(*piece, time.monotonic() + timeout_seconds)
            running[pipe] = one
            selector.register(pipe, selectors.EVENT_READ)
        ready = {key.fd for key, _ in selector.select(0.5)} if running else set()
        for pipe, one in list(running.items()):
            late = time.monotonic() > one.until
            chunk = os.read(pipe, 65_536) if pipe in ready else None
            if chunk:
                one.said += chunk
            if chunk == b"" or late:
                selector.unregister(pipe)
                os.close(pipe)
                del running[pipe]
                status = _end(one) if late else os.waitpid(one.pid, 0)[1]
                yield one.key, _read(one, status, timeout_seconds if late else None)


def _fork(key: Any, work: Callable[[], Result], until: float) -> tuple[int, _Running]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return reader, _Running(key, pid, until)
    code = 1
    try:
        os.close(reader)
        os.setpgid(0, 0)
        _silence()
        said = json.dumps(work()).encode()
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(said)
        code = 0
    finally:
        os._exit(code)


def _silence() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def _end(one: _Running) -> int:
    """Kill a copy, and whatever it started."""
    try:
        os.killpg(one.pid, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(one.pid, signal.SIGKILL)
    return os.waitpid(one.pid, 0)[1]


def _read(one: _Running, status: int, late_seconds: float | None) -> Result:
    if late_seconds is not None:
        return {"timeout": late_seconds}
    if not one.said:
        return {"died": status}
    found: Result = json.loads(bytes(one.said))
    return found
