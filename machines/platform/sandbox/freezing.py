"""Making every process of a sandbox stand still, and going on.

    freeze:    mark it frozen (new requests are refused) -> stop -> wait until it really stands
               -> a failure undoes both
    unfreeze:  let its processes go on -> take the mark away

Three ways, the first that the machine has:

    cgroup v2    cgroup.freeze, done when cgroup.events says so
    cgroup v1    freezer.state, done when it reads FROZEN
    signals      SIGSTOP to every process that still moves, again and again until two scans in a
                 row found none: a process that forks while we scan would be missed by one.  One in
                 uninterruptible sleep with the signal sent counts: it stops before it returns to
                 its program (the parent of a vfork waits so for a child that is stopped).

A request may be under way.  It is not waited for: standing still in the middle of a long command is
the purpose.  The channel waits on, because the time of a standstill does not count against any
deadline of the host (`Standstill.lost_seconds`); the agent notices by itself that it stood still
and gives the program that time back (agent.py, `Allowance`).  The answer comes after `unfreeze`.
What is asked of the doorman takes a moment: that is waited for (`Live.freeze`).

Killing works in every way.  v1 delivers SIGKILL after the thaw only, so `destroy` kills, then
thaws: nothing of the sandbox's programs runs in between.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from machines.platform.sandbox import processes
from machines.platform.sandbox.processes import Identity

__all__ = [
    "Freezer",
    "GroupFreezer",
    "SignalFreezer",
    "Standstill",
    "choose_freezer",
    "stand_still",
]

FREEZE_SECONDS = 5.0
_PAUSE_SECONDS = 0.001
_CLEAN_SCANS = 2
_STOPPED = frozenset("TtZX")


class Standstill:
    """Whether a sandbox is frozen, and how many seconds it has lost to that. Thread-safe."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._since: float | None = None
        self._lost_seconds = 0.0

    @property
    def frozen(self) -> bool:
        """Whether new requests must be refused now."""
        return self._since is not None

    def begin(self) -> None:
        """It stands still from now on."""
        with self._lock:
            self._since = self._monotonic()

    def end(self) -> None:
        """It moves again."""
        with self._lock:
            if self._since is not None:
                self._lost_seconds += self._monotonic() - self._since
            self._since = None

    def lost_seconds(self) -> float:
        """Time spent frozen so far, a standstill that lasts included."""
        with self._lock:
            now = 0.0 if self._since is None else self._monotonic() - self._since
            return self._lost_seconds + now


class Freezer(Protocol):
    """One way to stop the processes of one sandbox."""

    def stop(self) -> None:
        """Ask all of them to stop."""

    def still(self) -> bool:
        """Whether nothing moves; asks again what does."""

    def go_on(self) -> None:
        """Let them move. OSError when the system does not take it."""


@dataclass(frozen=True, slots=True)
class GroupFreezer:
    """By cgroup: `switch` takes the word `stopped` or `moving`; `state` then holds `proof`."""

    switch: Path
    stopped: str
    moving: str
    state: Path
    proof: str

    def stop(self) -> None:
        """Freeze the group; what is started in it later freezes too."""
        self.switch.write_text(self.stopped)

    def still(self) -> bool:
        """Whether the kernel says so."""
        return self.proof in self.state.read_text().splitlines()

    def go_on(self) -> None:
        """Thaw the group."""
        self.switch.write_text(self.moving)


@dataclass(slots=True)
class SignalFreezer:
    """By SIGSTOP to everything below process `pid`, which is bubblewrap outside and moves on."""

    pid: int
    _sent: dict[Identity, None] = field(default_factory=dict)
    _clean: int = 0

    def stop(self) -> None:
        """Nothing yet: `still` sends."""
        self._sent.clear()
        self._clean = 0

    def still(self) -> bool:
        """One scan; True after the second in a row in which nothing moved."""
        moving = [each for each in processes.descendants(self.pid) if not self._stands(each)]
        for identity in moving:
            self._sent[identity] = None
            _signal(identity, signal.SIGSTOP)
        self._clean = 0 if moving else self._clean + 1
        return self._clean >= _CLEAN_SCANS

    def go_on(self) -> None:
        """Continue what we stopped, and only that: children first, so that no parent sees one."""
        for identity in reversed(self._sent):
            _signal(identity, signal.SIGCONT)

    def _stands(self, identity: Identity) -> bool:
        sent = identity in self._sent
        return all(state in _STOPPED or (sent and state == "D") for state in _states(identity))


def choose_freezer(directories: Mapping[str, Path] | None, pid: int) -> Freezer:
    """The best way for a sandbox: its cgroup directories by controller, bubblewrap's number."""
    for directory in dict.fromkeys((directories or {}).values()):
        if (directory / "cgroup.freeze").exists():
            events = directory / "cgroup.events"
            return GroupFreezer(directory / "cgroup.freeze", "1", "0", events, "frozen 1")
        if (directory / "freezer.state").exists():
            state = directory / "freezer.state"
            return GroupFreezer(state, "FROZEN", "THAWED", state, "FROZEN")
    return SignalFreezer(pid)


def stand_still(
    freezer: Freezer,
    *,
    given_up: Callable[[], bool] = lambda: False,
    monotonic: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Stop everything and wait until it stands; False, with everything moving again, when not.

    Gives up after FREEZE_SECONDS, or when `given_up` says so (the sandbox is being destroyed).
    """
    limit = monotonic() + FREEZE_SECONDS
    try:
        freezer.stop()
        while not freezer.still():
            if given_up() or monotonic() > limit:
                freezer.go_on()
                return False
            pause(_PAUSE_SECONDS)
    except BaseException:
        with contextlib.suppress(OSError):
            freezer.go_on()
        raise
    return True


def _signal(identity: Identity, number: signal.Signals) -> None:
    """Send to that very process; one that has gone is no error."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except OSError:
        return
    try:
        if processes.identify(identity.pid) == identity:
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


def _states(identity: Identity) -> list[str]:
    """The state letter of every thread; the leader alone may have ended, or stopped first."""
    try:
        threads = list(Path(f"/proc/{identity.pid}/task").iterdir())
    except OSError:
        return []
    letters = []
    for thread in threads:
        with contextlib.suppress(OSError, IndexError):
            text = (thread / "stat").read_text(errors="replace")
            letters.append(text.rpartition(")")[2].split()[0])
    return letters
