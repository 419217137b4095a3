"""Memory, process-count and CPU limits for a whole sandbox, where the machine lets us have them.

Three shapes of machine are told apart once, by `find_tree`:

    cgroup v1 (or hybrid) as root   <controller mount>/<own group>/turtles-...  per controller
    cgroup v2, delegated or root    <own group>/turtles-... or /sys/fs/cgroup/turtles/turtles-...
    anything else                   None: the caller falls back to resource limits ("rlimit")

A group counts as enforcement only when both memory and pids could be limited; CPU share is a
bonus, and so is a way to make it stand still: `cgroup.freeze` in v2, also in the `unified` tree of
a hybrid machine, else v1's `freezer.state`. In v2 a group with controllers for its children must be
empty itself, so an unprivileged platform moves itself into a child group `turtles-supervisor`
first.

A group can be removed when no process is left in it, and frozen ones may not leave even when they
were killed (v1): `remove_groups` thaws, kills and tries again until it is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from machines.platform.sandbox.processes import identify, kill

__all__ = [
    "PREFIX",
    "Cgroup",
    "Tree",
    "find_tree",
    "group_name",
    "group_prefix",
    "remove_groups",
    "thaw_groups",
]

PREFIX = "turtles-"
_SUPERVISOR = f"{PREFIX}supervisor"
_CPU_PERIOD_US = 100_000
_REMOVE_SECONDS = 5.0
_VERSION_1_NAMES = ("memory", "pids", "cpu", "cpuacct")


def group_prefix(root: Path) -> str:
    """What the names of all groups of the sandboxes below a directory begin with."""
    return f"{PREFIX}{sha256(str(root.absolute()).encode()).hexdigest()[:10]}-"


def group_name(root: Path, sandbox_id: str) -> str:
    """The name of a sandbox's group.

    Everybody on this machine can see the groups, and a session lets in who knows its id: so the
    name does not tell it.
    """
    return group_prefix(root) + sha256(sandbox_id.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Tree:
    """Where groups may be made: controller name -> parent directory. v2: one parent for all."""

    version: int
    parents: Mapping[str, Path]

    def group(self, name: str) -> Cgroup:
        """The group of one sandbox; nothing is created yet. `name` must start with PREFIX."""
        directories = {controller: parent / name for controller, parent in self.parents.items()}
        return Cgroup(self.version, directories)


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The group of one sandbox (in v1: one directory per controller)."""

    version: int
    directories: Mapping[str, Path]

    def paths(self) -> tuple[str, ...]:
        """Every directory once."""
        return tuple(dict.fromkeys(str(each) for each in self.directories.values()))

    def create(self, *, memory_bytes: int, pids: int, vcpus: int) -> None:
        """Make the directories and set the limits. OSError when memory or pids cannot be set."""
        for path in self.paths():
            Path(path).mkdir(exist_ok=True)
        if self.version == 1:
            self._write("memory", "memory.limit_in_bytes", memory_bytes)
            self._try_write("memory", "memory.memsw.limit_in_bytes", memory_bytes)
        else:
            self._write("memory", "memory.max", memory_bytes)
            self._try_write("memory", "memory.swap.max", 0)
        self._share_cpu(vcpus)
        self._write("pids", "pids.max", pids)

    def resize(self, *, memory_bytes: int, vcpus: int) -> None:
        """Set other limits. OSError, with nothing changed, when more memory than that is in use.

        v2 would kill to get there; v1 refuses by itself, and wants memory + swap (here always the
        same number) never to be the smaller of the two on the way.
        """
        if (used := self.memory_bytes()) > memory_bytes:
            raise OSError(errno.EBUSY, f"{used} bytes are in use")
        if self.version == 1:
            self._try_write("memory", "memory.memsw.limit_in_bytes", memory_bytes)
            self._write("memory", "memory.limit_in_bytes", memory_bytes)
            self._try_write("memory", "memory.memsw.limit_in_bytes", memory_bytes)
        else:
            self._write("memory", "memory.max", memory_bytes)
        self._share_cpu(vcpus)

    def _share_cpu(self, vcpus: int) -> None:
        if self.version == 1:
            self._try_write("cpu", "cpu.cfs_period_us", _CPU_PERIOD_US)
            self._try_write("cpu", "cpu.cfs_quota_us", vcpus * _CPU_PERIOD_US)
        else:
            self._try_write("cpu", "cpu.max", f"{vcpus * _CPU_PERIOD_US} {_CPU_PERIOD_US}")

    def add(self, pid: int) -> None:
        """Move a process; what it starts from now on belongs to the group too."""
        for path in self.paths():
            (Path(path) / "cgroup.procs").write_text(str(pid))

    def oom_kills(self) -> int:
        """How many processes the memory limit has killed so far."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return self._field("memory", name, "oom_kill")

    def memory_bytes(self) -> int:
        """Memory in use, files included."""
        return self._number("usage_in_bytes" if self.version == 1 else "current")

    def memory_peak_bytes(self) -> int | None:
        """Highest use so far; None on kernels whose v2 has no peak."""
        try:
            return self._number("max_usage_in_bytes" if self.version == 1 else "peak")
        except OSError:
            return None

    def cpu_seconds(self) -> float | None:
        """CPU time used; None where no controller counts it."""
        if self.version == 2 and "cpu" in self.directories:
            return self._field("cpu", "cpu.stat", "usage_usec") / 1e6
        if self.version == 1 and "cpuacct" in self.directories:
            return int((self.directories["cpuacct"] / "cpuacct.usage").read_text()) / 1e9
        return None

    def _number(self, name: str) -> int:
        return int((self.directories["memory"] / f"memory.{name}").read_text())

    def _field(self, controller: str, file_name: str, name: str) -> int:
        for line in (self.directories[controller] / file_name).read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
        return 0

    def _write(self, controller: str, file_name: str, value: int | str) -> None:
        (self.directories[controller] / file_name).write_text(str(value))

    def _try_write(self, controller: str, file_name: str, value: int | str) -> None:
        with contextlib.suppress(OSError, KeyError):
            self._write(controller, file_name, value)


def thaw_groups(paths: tuple[str, ...]) -> None:
    """Let what is in these directories go on; groups that are not ours are left alone."""
    for path in paths:
        if Path(path).name.startswith(PREFIX):
            _thaw(Path(path))


def remove_groups(paths: tuple[str, ...]) -> bool:
    """Kill what is in these directories and remove them; True when none is left.

    Only directories that carry our PREFIX are touched, whatever a record says.
    """
    groups = [Path(path) for path in paths if Path(path).name.startswith(PREFIX)]
    limit = time.monotonic() + _REMOVE_SECONDS
    while groups := [group for group in groups if not _remove(group)]:
        if time.monotonic() > limit:
            return False
        time.sleep(0.002)
    return True


def find_tree(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Tree | None:
    """The place for our groups on this machine, or None when limits cannot be set by group."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    memberships = dict(_memberships(lines))
    return _version_1(root, memberships) or _version_2(root, memberships)


def _memberships(lines: list[str]) -> Iterator[tuple[str, str]]:
    """/proc/self/cgroup as (controller, path); controller "" is the v2 tree."""
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path.lstrip("/")


def _version_1(root: Path, memberships: Mapping[str, str]) -> Tree | None:
    parents = {
        controller: root / controller / memberships[controller]
        for controller in _VERSION_1_NAMES
        if controller in memberships
    }
    usable = {name: path for name, path in parents.items() if os.access(path, os.W_OK)}
    if not {"memory", "pids"} <= usable.keys():
        return None
    return Tree(1, {**usable, **_standstill(root, memberships)})


def _standstill(root: Path, memberships: Mapping[str, str]) -> dict[str, Path]:
    """Where a group can be made to stand still: v2's tree of a hybrid machine, or v1's freezer."""
    for directory, name in (("unified", ""), ("freezer", "freezer")):
        if name in memberships:
            parent = root / directory / memberships[name]
            if os.access(parent, os.W_OK) and (parent / "cgroup.procs").exists():
                return {directory: parent}
    return {}


def _version_2(root: Path, memberships: Mapping[str, str]) -> Tree | None:
    if "" not in memberships or not (root / "cgroup.controllers").exists():
        return None
    own = root / memberships[""]
    parent = own.parent if own.name == _SUPERVISOR else own
    for attempt in (_delegated, _below_root):
        with contextlib.suppress(OSError):
            return attempt(root, parent)
    return None


def _delegated(_root: Path, parent: Path) -> Tree:
    """Our own group, when it is ours alone: we step down into a child and share out the rest."""
    members = (parent / "cgroup.procs").read_text().split()
    if any(member != str(os.getpid()) for member in members):
        raise PermissionError(f"{parent} holds other processes too")
    if members:
        (parent / _SUPERVISOR).mkdir(exist_ok=True)
        (parent / _SUPERVISOR / "cgroup.procs").write_text(members[0])
    return _with_controllers(parent)


def _below_root(root: Path, _parent: Path) -> Tree:
    """The system's root group, as root: it alone may hold processes and share out controllers."""
    _with_controllers(root)
    (root / "turtles").mkdir(exist_ok=True)
    return _with_controllers(root / "turtles")


def _with_controllers(parent: Path) -> Tree:
    available = (parent / "cgroup.controllers").read_text().split()
    if not {"memory", "pids"} <= set(available):
        raise FileNotFoundError(f"{parent} has only the controllers {available}")
    wanted = [name for name in ("memory", "pids", "cpu") if name in available]
    (parent / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in wanted))
    return Tree(2, dict.fromkeys(wanted, parent))


def _remove(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        _thaw(group)
        with contextlib.suppress(OSError):
            for pid in (group / "cgroup.procs").read_text().split():
                if (identity := identify(int(pid))) is not None:
                    kill(identity, wait_seconds=0.05)
        return False
    return True


def _thaw(group: Path) -> None:
    """v1 holds killed processes back; v2 does not, but bubblewrap must move to bury its child."""
    for name, moving in (("cgroup.freeze", "0"), ("freezer.state", "THAWED")):
        if (group / name).exists():
            with contextlib.suppress(OSError):
                (group / name).write_text(moving)
