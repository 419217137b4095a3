"""One gVisor sandbox of this process: what carries its streams, other limits, its end.

    platform -> Channel <=socket pair=> Relay (a thread) <=two pipes=> runsc -> relay, agent inside

`start` begins it, or goes on from an image, in the same place; `connect_channels` makes both
channels anew.  Locks are those of live.py.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from machines.platform.sandbox import doors, processes
from machines.platform.sandbox.backend import EGRESS_PORT, MIB, Spec
from machines.platform.sandbox.cgroups import Cgroup, thaw_groups
from machines.platform.sandbox.channel import Channel
from machines.platform.sandbox.errors import FreezeFailed, SandboxLimit
from machines.platform.sandbox.freezing import GroupFreezer, Standstill, choose_freezer
from machines.platform.sandbox.gvisor_egress import Elsewhere
from machines.platform.sandbox.gvisor_relay import Relay
from machines.platform.sandbox.gvisor_runsc import Running, Runsc
from machines.platform.sandbox.launch import Place, set_up
from machines.platform.sandbox.live import Live
from machines.platform.sandbox.selection import Ready

__all__ = ["START_SECONDS", "Sandbox", "begin", "set_limits"]

START_SECONDS = 30.0
_KERNEL_BYTES = 128 * MIB  # of gVisor's kernel and file server, beside what programs were promised
_KERNEL_THREADS = 256
_FIRST_NUMBER = 2


@dataclass(slots=True, kw_only=True)
class Sandbox(Live):
    """One sandbox.  `running` and `relay` change with every full snapshot."""

    place: Place
    runsc: Runsc
    running: Running
    relay: Relay
    elsewhere: Elsewhere | None

    def resize(self, *, vcpus: int, memory_bytes: int) -> None:
        """Other limits. SandboxLimit, with nothing changed, when more memory is in use."""
        with self.changing:
            spec = replace(self.spec, vcpus=vcpus, memory_bytes=memory_bytes)
            if self.cgroup is not None:
                try:
                    self.cgroup.resize(memory_bytes=memory_bytes + _KERNEL_BYTES, vcpus=vcpus)
                except OSError as error:
                    self._require_not_ending()
                    raise SandboxLimit(
                        f"memory_bytes {memory_bytes}: the sandbox cannot be made that small "
                        f"({error.strerror}); end programs or remove files first"
                    ) from error
            self.spec = spec
            self.limits_stale = self.door_stale = self.cgroup is None

    def freeze(self) -> bool:
        """Stop every process; False when they stood already. FreezeFailed when that fails.

        By group, which stops gVisor's kernel, too; without one by that kernel.  Signals would
        not do: the kernel traces its programs and would take them for theirs.
        """
        if self._has_group_freezer():
            return super(Sandbox, self).freeze()  # by name: a class with slots is made twice
        with self.door_lock, self.changing:
            if self.frozen:
                return False
            self.standstill.begin()
            try:
                self.runsc.pause(self.directory, self.running.name)
            except OSError as error:
                self.standstill.end()
                self._require_not_ending()
                raise FreezeFailed(self.spec.sandbox_id, str(error)) from error
        return True

    def unfreeze(self) -> bool:
        """Let its processes go on; False when they did already."""
        if self._has_group_freezer():
            return super(Sandbox, self).unfreeze()
        with self.changing:
            if not self.frozen:
                return False
            try:
                self.runsc.resume(self.directory, self.running.name)
            except OSError as error:
                raise self.gone() from error
            self.standstill.end()
        return True

    def _has_group_freezer(self) -> bool:
        directories = self.cgroup.directories if self.cgroup else None
        return isinstance(choose_freezer(directories, self.process.pid), GroupFreezer)

    def meet(self, ready: Ready) -> None:
        """Tell the agent its limits, hear where it listens, and record what runs."""
        set_up(self, ready, self.channel)
        set_up(self, ready, self.door)
        if self.elsewhere is not None:
            self.listening = doors.listen(self.door, EGRESS_PORT)
        self.note_processes()

    def note_processes(self) -> None:
        """Record what must be killed when our process dies."""
        self.inside = self.running.inside = tuple(processes.descendants(self.process.pid))
        outer = processes.identify(self.process.pid)
        self.place.record((*self.inside, *((outer,) if outer else ())))

    def go_on(self, image: Path) -> None:
        """Start what is in `image` in the place of what has ended. OSError."""
        self.running = _start(self.runsc, self.place, image)
        self.process = self.running.process

    def connect_channels(self) -> None:
        """New channels, over a new relay, to the agent that runs now."""
        self.relay, self.channel, self.door = _relayed(
            self.running, self.elsewhere, self.standstill
        )

    def hang_up(self) -> None:
        """Let go of both channels, of the relay, and of the listening socket."""
        for channel in (self.channel, self.door):
            channel.hang_up()
            channel.close()
        self.relay.post(self.relay.stop)
        with self.listening_lock:
            if self.listening is not None:
                self.listening.close()
            self.listening = None

    def end(self) -> None:
        """Kill runsc with all its processes, then let go of everything here.

        What is frozen is thawed after the signals were sent, so that nothing of it runs again.
        """
        self.ending.set()
        if self.oom_kills() and not self.ended_because:
            self.ended_because = "it used more memory than its limit, which ends all of it"
        self.running.send_kill()
        thaw_groups(self.cgroup.paths() if self.cgroup else ())
        self.running.kill()
        for channel in (self.channel, self.door):
            channel.hang_up()
        with self.lock, self.door_lock:  # what was under way has seen the end by now
            self.running.kill()  # a snapshot may have started another meanwhile
            self.hang_up()
        if self.elsewhere is not None:
            self.elsewhere.close()


def begin(spec: Spec, runsc: Runsc, place: Place) -> Sandbox:
    """Start a sandbox whose agent nobody has spoken to yet. OSError, SubprocessError."""
    standstill = Standstill()
    elsewhere = Elsewhere() if spec.network == "semitrusted" else None
    try:
        running = _start(runsc, place, None)
    except BaseException:
        if elsewhere is not None:
            elsewhere.close()
        raise
    relay, channel, door = _relayed(running, elsewhere, standstill)
    return Sandbox(
        spec,
        place.directory,
        running.process,
        channel,
        door,
        place.cgroup,
        place.user_id,
        standstill=standstill,
        place=place,
        runsc=runsc,
        running=running,
        relay=relay,
        elsewhere=elsewhere,
    )


def set_limits(cgroup: Cgroup, spec: Spec) -> None:
    """What gVisor needs itself comes on top of the limits of a new group."""
    if "pids" in cgroup.directories:
        limit = 2 * spec.pids + _KERNEL_THREADS
        (cgroup.directories["pids"] / "pids.max").write_text(str(limit))
    cgroup.resize(memory_bytes=spec.memory_bytes + _KERNEL_BYTES, vcpus=spec.vcpus)


def _start(runsc: Runsc, place: Place, image: Path | None) -> Running:
    """Fork, record and limit it, then let it begin."""
    running = runsc.start(place.directory, f"turtles-{secrets.token_hex(8)}", image)
    try:
        waiting = processes.identify(running.process.pid)
        place.record((waiting,) if waiting else ())
        if place.cgroup is not None:
            place.cgroup.add(running.process.pid)
        running.open_gate()
    except BaseException:
        running.kill()
        os.close(running.source)
        os.close(running.sink)
        raise
    return running


def _relayed(
    running: Running, elsewhere: Elsewhere | None, standstill: Standstill
) -> tuple[Relay, Channel, Channel]:
    """A serving relay, which owns the pipes from now on, and the two channels over it."""
    relay = Relay(
        running.source,
        running.sink,
        _FIRST_NUMBER,
        elsewhere.listen if elsewhere else None,
        elsewhere.connect if elsewhere else None,
    )
    ends = []
    for number in range(2):
        mine, theirs = socket.socketpair()
        relay.add(number, theirs.detach())
        ends.append(Channel(mine, standstill.lost_seconds))
    threading.Thread(target=relay.run, name="turtles-sandbox-relay", daemon=True).start()
    return relay, ends[0], ends[1]
