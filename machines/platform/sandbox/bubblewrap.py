"""The backend: bubblewrap namespaces, a seccomp filter, limits, and an agent inside.

    reserve id -> record -> cgroup -> start, until the agent answers (launch.py) -> ready

A failure at any step undoes the steps before it. Before the first sandbox of this process one is
built for inspection only (selection.py); while no bubblewrap program passes, `create` refuses.
There is no other way of running anything.

Every sandbox has a network namespace of its own with nothing but `lo`. In a semitrusted one the
doorman hands out, before anything foreign runs, the socket on which the platform's proxy listens.

What is held of one sandbox, with its locks, is `Live` (live.py). Here is which there are.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import structlog

from machines.platform.sandbox import archive, commands, doors, layout, processes, remedies, walls
from machines.platform.sandbox.backend import (
    FILES_BYTES_MAX,
    OUTPUT_BYTES_DEFAULT,
    Command,
    Enforcement,
    Handle,
    Level,
    Probe,
    Program,
    Result,
    Saved,
    Spec,
    Stats,
    check_cell,
    check_request,
)
from machines.platform.sandbox.cgroups import (
    Cgroup,
    Tree,
    find_tree,
    group_name,
    group_prefix,
    remove_groups,
)
from machines.platform.sandbox.channel import BrokenChannel, Channel
from machines.platform.sandbox.errors import (
    SandboxFrozen,
    SandboxGone,
    SandboxLimit,
    SandboxUnavailable,
)
from machines.platform.sandbox.launch import START_SECONDS, Place, launch, set_up
from machines.platform.sandbox.live import Live
from machines.platform.sandbox.orphans import remove_orphan
from machines.platform.sandbox.processes import Identity
from machines.platform.sandbox.records import remove_directory
from machines.platform.sandbox.selection import Ready, require_tight, select
from machines.platform.sandbox.users import free_user_id
from machines.platform.sandbox.watchdog import Watchdog

__all__ = ["BubblewrapBackend"]

_T = TypeVar("_T")
_log = structlog.get_logger("turtles.platform.sandbox")

_AGENT_PROCESSES = 5  # bubblewrap twice, the agent, its doorman, and one to spare


class BubblewrapBackend:
    """`Backend` by bubblewrap. `root`: directory for records, made 0700; not shared with others."""

    name = "bubblewrap"

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root.chmod(0o700)
        self._owner = processes.identify(os.getpid())
        # Group names of two platforms on one machine must differ.
        self._group_prefix = group_prefix(self._root)
        self._lock = threading.Lock()
        self._select_lock = threading.Lock()
        self._ready: Ready | None = None
        self._tree: Tree | None = find_tree()
        self._watchdog = Watchdog()
        self._live: dict[str, Live] = {}
        self._building: dict[str, int | None] = {}

    # -- is isolation possible here ------------------------------------------------------------

    def probe(self) -> Probe:
        """Build a sandbox, inspect it, destroy it. Never raises."""
        try:
            self._select()
        except SandboxUnavailable as refused:
            return Probe(False, refused.reason, refused.fix, self._enforcement())
        except Exception as error:  # noqa: BLE001 - the port promises an answer, not an exception
            reason = f"the probe itself failed ({type(error).__name__}: {error})"
            return Probe(False, reason, "look at the platform's log", self._enforcement())
        return Probe(True, "every wall stands", "", self._enforcement())

    def _select(self) -> Ready:
        """What passes inspection now; remembered for this process."""
        try:
            self._ready = select(self._inspect)
        except SandboxUnavailable:
            self._ready = None
            raise
        return self._ready

    def _inspect(self, ready: Ready) -> None:
        """Build one with it and look. SandboxUnavailable when a wall is missing."""
        spec = Spec(f"probe-{secrets.token_hex(6)}", environment={})
        handle = self._build(spec, ready)
        try:
            command = Command((ready.interpreter.program, "-I", "-S", "-c", walls.INSPECTION))
            result = self.execute(handle, command, timeout_seconds=START_SECONDS)
            live = self._find(handle)
            agent_pid = live.inside[-1].pid if live.inside else live.process.pid
            require_tight(ready, result.stdout, agent_pid)
        except SandboxGone as gone:
            raise remedies.unavailable(str(gone)) from gone
        finally:
            self.destroy(handle)

    def _require_ready(self) -> Ready:
        with self._select_lock:
            return self._ready or self._select()

    def _enforcement(self) -> Enforcement:
        return "rlimit" if self._tree is None else "cgroup"

    # -- create --------------------------------------------------------------------------------

    def create(self, spec: Spec) -> Handle:
        """Build a sandbox. SandboxUnavailable, or SandboxLimit when the id is in use."""
        return self._build(spec, self._require_ready())

    def _build(self, spec: Spec, ready: Ready) -> Handle:
        user_id = self._reserve(spec.sandbox_id)
        directory = self._root / spec.sandbox_id
        cgroup: Cgroup | None = None
        try:
            cgroup = self._make_cgroup(spec, directory)
            live = self._launch(spec, ready, directory, cgroup, user_id)
            with self._lock:
                self._live[spec.sandbox_id] = live
            if cgroup is None:
                self._watch(live)
        except (OSError, subprocess.SubprocessError) as error:
            self._erase(directory, cgroup)
            raise SandboxUnavailable(
                f"a sandbox could not be started below {self._root} ({error})",
                "free what the error names (space, processes, open files) and try again",
            ) from error
        except BaseException:
            self._erase(directory, cgroup)
            raise
        finally:
            with self._lock:
                self._building.pop(spec.sandbox_id, None)
        _log.info("sandbox.created", sandbox_id=spec.sandbox_id, enforcement=live.enforcement)
        return Handle(spec.sandbox_id)

    def _reserve(self, sandbox_id: str) -> int | None:
        """Take the id, and as root a user id that no other sandbox of ours runs as."""
        with self._lock:
            taken = sandbox_id in self._live or sandbox_id in self._building
            if taken or (self._root / sandbox_id).exists():
                raise SandboxLimit(f"sandbox_id {sandbox_id!r} is in use; choose another")
            used = {live.user_id for live in self._live.values()} | set(self._building.values())
            user_id = free_user_id(used)
            self._building[sandbox_id] = user_id
            return user_id

    def _make_cgroup(self, spec: Spec, directory: Path) -> Cgroup | None:
        """The record names the groups before they exist, so that a sweep finds them."""
        name = group_name(self._root, spec.sandbox_id)
        cgroup = None if self._tree is None else self._tree.group(name)
        Place(directory, self._me(), cgroup, None).record()
        if cgroup is None:
            return None
        try:
            cgroup.create(
                memory_bytes=spec.memory_bytes,
                pids=spec.pids + _AGENT_PROCESSES,
                vcpus=spec.vcpus,
            )
        except OSError as error:
            remove_groups(cgroup.paths())
            _log.warning("sandbox.cgroup_refused", reason=str(error), enforcement="rlimit")
            self._tree = None
            return None
        return cgroup

    def _launch(
        self,
        spec: Spec,
        ready: Ready,
        directory: Path,
        cgroup: Cgroup | None,
        user_id: int | None,
    ) -> Live:
        return launch(spec, ready, Place(directory, self._me(), cgroup, user_id))

    # -- use -----------------------------------------------------------------------------------

    def execute(
        self,
        handle: Handle,
        command: Command,
        *,
        timeout_seconds: float = 60.0,
        stdin: bytes = b"",
        max_output_bytes: int = OUTPUT_BYTES_DEFAULT,
    ) -> Result:
        """Run a command to its end; waits while the sandbox serves another request."""
        fields = commands.run_fields(command, stdin)
        return self._ask(handle, "run", fields, timeout_seconds, max_output_bytes)

    def cell(
        self,
        handle: Handle,
        language: str,
        code: str,
        *,
        timeout_seconds: float = 60.0,
        max_output_bytes: int = OUTPUT_BYTES_DEFAULT,
    ) -> Result:
        """Run code in the sandbox's lasting interpreter of `language` (CELL_LANGUAGES)."""
        check_cell(language, code)
        fields = {"language": language, "code": code}
        return self._ask(handle, "cell", fields, timeout_seconds, max_output_bytes)

    def _ask(
        self,
        handle: Handle,
        operation: str,
        fields: Mapping[str, Any],
        timeout_seconds: float,
        max_output_bytes: int,
    ) -> Result:
        check_request(timeout_seconds, max_output_bytes)
        live = self._find_moving(handle)
        try:
            with live.turn(live.lock):
                self._hear_of_resize(live)
                return commands.ask(
                    live,
                    operation,
                    fields,
                    timeout_seconds=timeout_seconds,
                    max_output_bytes=max_output_bytes,
                )
        except (BrokenChannel, OSError) as error:
            self.destroy(handle)
            raise SandboxGone(handle.sandbox_id, live.ended_because or str(error)) from error

    def collect(
        self,
        handle: Handle,
        directories: Iterable[str],
        *,
        bytes_max: int = FILES_BYTES_MAX,
        count_max: int = 100,
    ) -> dict[str, bytes]:
        """Regular files below directories inside; see agent_files.py."""
        commands.check_collection(bytes_max, count_max)
        return self._transfer(
            handle,
            lambda live: commands.collect(
                live.channel, directories, bytes_max=bytes_max, count_max=count_max
            ),
        )

    # -- snapshots -----------------------------------------------------------------------------

    def save(self, handle: Handle, target: Path, *, level: Level, hot: bool = False) -> Saved:
        """Write its files, and variables, to `target`, made 0600 (archive.py)."""
        return self._transfer(
            handle,
            lambda live: archive.save(
                live.channel,
                target,
                level=level,
                hot=hot,
                bytes_max=archive.bytes_max_for(live.spec),
                lost_seconds=live.standstill.lost_seconds,
            ),
        )

    def load(self, handle: Handle, source: Path) -> None:
        """Make its files and variables those that `save` wrote; programs go on over them."""
        lost = self._transfer(
            handle,
            lambda live: archive.load(
                live.channel, source, lost_seconds=live.standstill.lost_seconds
            ),
        )
        _log.info("sandbox.loaded", sandbox_id=handle.sandbox_id, left_out=len(lost))

    def _transfer(self, handle: Handle, use: Callable[[Live], _T]) -> _T:
        """Move files by the agent's channel. A wrong answer ends the sandbox."""
        live = self._find_moving(handle)
        try:
            with live.turn(live.lock):
                self._hear_of_resize(live)
                return use(live)
        except BrokenChannel as error:
            self.destroy(handle)
            raise SandboxGone(handle.sandbox_id, live.ended_because or str(error)) from error

    # -- what passes a descriptor --------------------------------------------------------------

    def start_program(self, handle: Handle, command: Command) -> Program:
        """Start a program and leave it running (doors.py)."""
        return self._at_door(handle, lambda door: doors.start_program(door, command))

    def stop_program(self, handle: Handle, number: int) -> None:
        """Kill a program with all that came of it, also what forked away. Idempotent."""
        self._at_door(handle, lambda door: doors.stop_program(door, number))

    def open_terminal(
        self,
        handle: Handle,
        argv: tuple[str, ...],
        *,
        columns: int = 80,
        rows: int = 24,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """The master side of a new terminal on which `argv` runs (doors.py)."""
        return self._at_door(
            handle, lambda door: doors.open_terminal(door, argv, columns, rows, environment or {})
        )

    def connect(self, handle: Handle, port: int) -> socket.socket:
        """A connection to 127.0.0.1:`port` inside, non-blocking (doors.py)."""
        return self._at_door(handle, lambda door: doors.connect(door, handle.sandbox_id, port))

    def egress(self, handle: Handle) -> socket.socket | None:
        """A duplicate of the socket that listens on EGRESS_PORT inside, non-blocking.

        Also while everything stands still, for it asks nobody.
        """
        return self._find(handle).egress()

    def _at_door(self, handle: Handle, use: Callable[[Channel], _T]) -> _T:
        """Ask the doorman. A wrong answer ends the sandbox."""
        live = self._find_moving(handle)
        try:
            with live.turn(live.door_lock):
                if live.door_stale:
                    live.door_stale = False
                    set_up(live, self._require_ready(), live.door)
                return use(live.door)
        except BrokenChannel as error:
            self.destroy(handle)
            raise SandboxGone(handle.sandbox_id, live.ended_because or str(error)) from error

    # -- what is known without asking ----------------------------------------------------------

    def available_programs(self, names: Iterable[str]) -> frozenset[str]:
        """Those of `names` that are programs below the host's /usr."""
        return layout.available_programs(names)

    def stats(self, handle: Handle) -> Stats:
        """Use of the sandbox now; from its cgroup, or summed over its processes."""
        return self._find(handle).stats()

    def _find(self, handle: Handle) -> Live:
        with self._lock:
            live = self._live.get(handle.sandbox_id)
        if live is None:
            raise SandboxGone(handle.sandbox_id, "it does not exist in this process")
        return live

    def _find_moving(self, handle: Handle) -> Live:
        """The sandbox, for what needs its agent."""
        live = self._find(handle)
        if live.frozen:
            raise SandboxFrozen(handle.sandbox_id)
        return live

    # -- standing still, other limits ----------------------------------------------------------

    def freeze(self, handle: Handle) -> None:
        """Stop every process; a request under way is answered after `unfreeze` (freezing.py).

        Idempotent. FreezeFailed, with everything moving on, when something would not stop.
        """
        if self._find(handle).freeze():
            _log.info("sandbox.frozen", sandbox_id=handle.sandbox_id)

    def unfreeze(self, handle: Handle) -> None:
        """Let its processes go on. Idempotent."""
        if self._find(handle).unfreeze():
            _log.info("sandbox.unfrozen", sandbox_id=handle.sandbox_id)

    def resize(self, handle: Handle, *, vcpus: int, memory_bytes: int) -> None:
        """Give it other limits, at once by cgroup; else for programs started from now on.

        SandboxLimit, with nothing changed, when they are out of range or more is in use. A frozen
        or busy sandbox is resized, too: its agent hears of it before the next request.
        """
        self._find(handle).resize(vcpus=vcpus, memory_bytes=memory_bytes)

    def _watch(self, live: Live) -> None:
        """No group counts its memory as a whole, so somebody must."""
        sandbox_id = live.spec.sandbox_id

        def end(reason: str) -> None:
            live.ended_because = reason
            self.destroy(Handle(sandbox_id))

        self._watchdog.watch(sandbox_id, live.process.pid, lambda: live.spec.memory_bytes, end)
        if live.ending.is_set():  # destroyed before it was watched
            self._watchdog.forget(sandbox_id)

    def _hear_of_resize(self, live: Live) -> None:
        """The caller holds the sandbox's lock."""
        if live.limits_stale:
            live.limits_stale = False
            set_up(live, self._require_ready(), live.channel)

    # -- end -----------------------------------------------------------------------------------

    def destroy(self, handle: Handle) -> None:
        """End the sandbox and remove its groups and directory. Idempotent, from any thread."""
        with self._lock:
            live = self._live.pop(handle.sandbox_id, None)
        if live is None:
            return
        self._watchdog.forget(handle.sandbox_id)
        live.end()
        self._erase(live.directory, live.cgroup)
        _log.info("sandbox.destroyed", sandbox_id=handle.sandbox_id)

    def _erase(self, directory: Path, cgroup: Cgroup | None) -> None:
        """Remove groups, then the directory; what cannot be removed stays for a sweep."""
        if cgroup is None or remove_groups(cgroup.paths()):
            remove_directory(directory)
        else:
            _log.warning("sandbox.groups_left", directory=str(directory))

    def close(self) -> None:
        """Destroy every sandbox of this process. Idempotent."""
        with self._lock:
            handles = [Handle(sandbox_id) for sandbox_id in self._live]
        for handle in handles:
            self.destroy(handle)

    def sweep(self) -> int:
        """Kill and remove what dead platform processes left below the root."""
        swept = 0
        for directory in sorted(each for each in self._root.iterdir() if each.is_dir()):
            with self._lock:
                ours = directory.name in self._live or directory.name in self._building
            if not ours and remove_orphan(directory, self._me()):
                _log.info("sandbox.swept", sandbox_id=directory.name)
                swept += 1
        return swept

    def _me(self) -> Identity:
        if self._owner is None:
            raise SandboxUnavailable("/proc of this process cannot be read", "mount /proc")
        return self._owner
