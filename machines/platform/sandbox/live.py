"""One sandbox of this process: what is held of it, turns, standing still, other limits, its end.

    create -> [moving] <-freeze, unfreeze-> [frozen]      resize in both, at any time
                  `------------ end ----------'           from any thread, once

Two locks: `lock` for the agent's channel, where a command may take hours, `door_lock` for the
doorman's, where nothing takes long. Neither waits for the other. `changing` orders freeze, unfreeze
and resize, and a freeze takes `door_lock` before it; `end` waits for none of them: it sets
`ending`, at which a freeze gives up.
"""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from machines.platform.sandbox import processes
from machines.platform.sandbox.backend import Enforcement, Spec, Stats
from machines.platform.sandbox.cgroups import Cgroup, thaw_groups
from machines.platform.sandbox.channel import Channel
from machines.platform.sandbox.errors import (
    FreezeFailed,
    SandboxFrozen,
    SandboxGone,
    SandboxLimit,
)
from machines.platform.sandbox.freezing import Freezer, Standstill, choose_freezer, stand_still
from machines.platform.sandbox.processes import Identity
from machines.platform.sandbox.watchdog import proportional_bytes

__all__ = ["Live"]

_KILL_SECONDS = 5.0
_TURN_SECONDS = 0.2  # how often a request that waits for its turn looks whether all stands still


@dataclass(slots=True)
class Live:
    """One sandbox of this process."""

    spec: Spec
    directory: Path
    process: subprocess.Popen[bytes]
    channel: Channel
    door: Channel
    cgroup: Cgroup | None
    user_id: int | None
    inside: tuple[Identity, ...] = ()
    listening: socket.socket | None = None  # on EGRESS_PORT inside
    lock: threading.Lock = field(default_factory=threading.Lock)
    door_lock: threading.Lock = field(default_factory=threading.Lock)
    listening_lock: threading.Lock = field(default_factory=threading.Lock)  # held for a moment
    changing: threading.Lock = field(default_factory=threading.Lock)  # freeze, unfreeze, resize
    standstill: Standstill = field(default_factory=Standstill)
    freezer: Freezer | None = None  # what freezes it now
    limits_stale: bool = False  # the agent has yet to hear of a resize
    door_stale: bool = False  # and so has its doorman
    ending: threading.Event = field(default_factory=threading.Event)
    ended_because: str = ""

    @property
    def frozen(self) -> bool:
        """Whatever needs the agent then raises SandboxFrozen."""
        return self.standstill.frozen

    @property
    def enforcement(self) -> Enforcement:
        """What holds it to its limits."""
        return "rlimit" if self.cgroup is None else "cgroup"

    def oom_kills(self) -> int:
        """Processes of it that the kernel killed for memory, as far as that is counted."""
        return 0 if self.cgroup is None else self.cgroup.oom_kills()

    @contextmanager
    def turn(self, lock: threading.Lock) -> Iterator[None]:
        """Hold a channel's lock. SandboxFrozen when all stands still before it is our turn."""
        while not lock.acquire(timeout=_TURN_SECONDS):
            self._require_moving()
        try:
            self._require_moving()
            yield
        finally:
            lock.release()

    def egress(self) -> socket.socket | None:
        """A duplicate of the socket that listens on EGRESS_PORT inside, non-blocking."""
        with self.listening_lock:
            try:
                return None if self.listening is None else self.listening.dup()
            except OSError as error:
                raise self.gone() from error

    def stats(self) -> Stats:
        """Use now; from its cgroup, or summed over its processes."""
        inside = processes.descendants(self.process.pid)
        if self.cgroup is None:
            return Stats("rlimit", len(inside), proportional_bytes(self.process.pid))
        try:
            return Stats(
                "cgroup",
                len(inside),
                self.cgroup.memory_bytes(),
                self.cgroup.memory_peak_bytes(),
                self.cgroup.cpu_seconds(),
                self.cgroup.oom_kills(),
            )
        except OSError as error:
            raise self.gone() from error

    def freeze(self) -> bool:
        """Stop every process; False when they stood already.

        FreezeFailed, with everything moving on, when something would not stop.  What is asked of
        the doorman is answered first, for that takes a moment, or never: a request to one that
        stands still would hold a thread of the platform for as long.
        """
        with self.door_lock, self.changing:
            if self.frozen:
                return False
            self.standstill.begin()
            directories = self.cgroup.directories if self.cgroup else None
            self.freezer = choose_freezer(directories, self.process.pid)
            try:
                stands = stand_still(self.freezer, given_up=self.ending.is_set)
            except BaseException as error:
                self.standstill.end()
                if not isinstance(error, OSError):
                    raise
                self._require_not_ending()
                raise FreezeFailed(self.spec.sandbox_id, str(error)) from error
            if not stands:
                self.standstill.end()
                self._require_not_ending()
                raise FreezeFailed(self.spec.sandbox_id, "some of its processes did not stop")
        return True

    def unfreeze(self) -> bool:
        """Let its processes go on; False when they did already."""
        with self.changing:
            if not self.frozen or self.freezer is None:
                return False
            try:
                self.freezer.go_on()
            except OSError as error:
                raise self.gone() from error
            self.standstill.end()
        return True

    def resize(self, *, vcpus: int, memory_bytes: int) -> None:
        """Other limits. SandboxLimit, with nothing changed, when more memory is in use."""
        with self.changing:
            spec = replace(self.spec, vcpus=vcpus, memory_bytes=memory_bytes)
            if self.cgroup is not None:
                try:
                    self.cgroup.resize(memory_bytes=memory_bytes, vcpus=vcpus)
                except OSError as error:
                    self._require_not_ending()
                    raise SandboxLimit(
                        f"memory_bytes {memory_bytes}: the sandbox cannot be made that small "
                        f"({error.strerror}); end programs or remove files first"
                    ) from error
            self.spec = spec
            self.limits_stale = self.door_stale = self.cgroup is None

    def end(self) -> None:
        """Kill process 1 inside, which takes everything with it, then bubblewrap outside.

        What is frozen is thawed after the signal was sent, so that nothing of it runs again.
        """
        self.ending.set()
        for identity in self.inside:
            processes.kill(identity, wait_seconds=0)
        for channel in (self.channel, self.door):
            channel.hang_up()  # an agent without a process 1 around it ends by that
        thaw_groups(self.cgroup.paths() if self.cgroup else ())
        try:
            self.process.wait(_KILL_SECONDS if self.inside else 0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        processes.wait_until_gone(list(self.inside), _KILL_SECONDS)
        with self.lock:  # a request that was under way has seen the end by now
            self.channel.close()
        with self.door_lock:
            self.door.close()
        with self.listening_lock:
            if self.listening is not None:
                self.listening.close()

    def gone(self) -> SandboxGone:
        """For whoever found it and then lost it to `end`."""
        return SandboxGone(self.spec.sandbox_id, "it was destroyed meanwhile")

    def _require_moving(self) -> None:
        if self.frozen:
            raise SandboxFrozen(self.spec.sandbox_id)

    def _require_not_ending(self) -> None:
        if self.ending.is_set():
            raise self.gone()
