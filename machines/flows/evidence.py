"""What a process can see of the walls around it: reading only, one JSON object.

This file is one self-contained script of the standard library (Python 3.9 and newer), because its
own text is sent into a child sandbox and run there::

    command()  ->  python3 -I -B -c '<this file>'  ->  {"cgroup_versions": [2], ...}   < 16 KB

It opens regular files for reading, lists folders, reads links and asks `access(2)`; it never
creates, changes or connects anything, not even a bytecode file (`-B`). Whether a place is writable
is asked of mode bits and mount flags, never tried. Every read is bounded. A file that is missing
or forbidden is a finding (`unreadable`), not an error; what could not be learned is null or empty.
Only names are taken from process 1, never its arguments or environment, which may hold secrets.
The shape is `isolation.Evidence`.
"""

from __future__ import annotations

import json
import os
import shlex
import stat
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

EVIDENCE_BYTES_MAX = 16 * 1024
_READ_BYTES_MAX = 256 * 1024
_NAMES_MAX = 5000
_LISTED_MAX = 16
_TEXT_MAX = 120
_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" with the largest page-aligned number

_NAMESPACES = ("user", "pid", "net", "ipc", "uts", "mnt", "cgroup", "time")
_MARKS = (
    "/.dockerenv",
    "/run/.containerenv",
    "/.flatpak-info",
    "/dev/lxd/sock",
    "/dev/.lxc",
    "/run/host",
)
_MANAGER_FILES = ("/run/systemd/container", "/run/host/container-manager")
_COMMANDS = ("un", "turtles", "python3", "curl")
_PLACES = ("/", "/tmp", "/var/tmp", "/dev/shm", "/run", "/root", "/home", "/mnt")  # noqa: S108 - asked about, not used
_ETC_OF_CONTAINERS = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")


class _Mount(NamedTuple):
    """One line of mountinfo: subtree mounted, where, flags, kind, source, options of the kind."""

    root: str
    point: str
    flags: str
    kind: str
    source: str
    options: str


class _Look:
    """Reading below `root` ("/" but for tests), within bounds, remembering what was refused."""

    def __init__(self, root: str, environment: Mapping[str, str]) -> None:
        self.root = root.rstrip("/")
        self.environment = environment
        self.unreadable: dict[str, str] = {}

    def path(self, path: str) -> str:
        return self.root + path

    def text(self, path: str, *, expected: bool = True) -> str | None:
        """The beginning of a regular file, or None. O_NONBLOCK: a pipe must not hold us."""
        try:
            descriptor = os.open(self.path(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise ValueError("not a regular file")
                return _drain(descriptor).decode("utf-8", "replace")
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            if expected:
                self.refused(path, error)
            return None

    def lines(self, path: str) -> list[str]:
        return (self.text(path) or "").splitlines()

    def names(self, path: str) -> list[str] | None:
        """Names in a folder, at most `_NAMES_MAX`, or None."""
        try:
            with os.scandir(self.path(path)) as entries:
                return sorted(entry.name for entry in islice(entries, _NAMES_MAX))
        except OSError as error:
            self.refused(path, error)
            return None

    def refused(self, path: str, error: Exception) -> None:
        if len(self.unreadable) < _LISTED_MAX:
            self.unreadable[_clean(path)] = type(error).__name__

    def mounts(self) -> list[_Mount]:
        found = []
        for line in self.lines("/proc/self/mountinfo"):
            place, _, kind = line.partition(" - ")
            left, right = place.split(), kind.split()
            if len(left) >= 6 and len(right) >= 3:
                point = left[4].replace("\\040", " ")
                found.append(_Mount(left[3], point, left[5], right[0], right[1], right[2]))
        return found


def _drain(descriptor: int) -> bytes:
    read, chunk = bytearray(), b"-"
    while chunk and len(read) < _READ_BYTES_MAX:
        chunk = os.read(descriptor, 65536)
        read += chunk
    return bytes(read[:_READ_BYTES_MAX])


def _clean(text: str, limit: int = _TEXT_MAX) -> str:
    """Printable ASCII of bounded length: nothing in a name may reach a terminal or grow in JSON."""
    return "".join(c if " " <= c <= "~" and c not in '"\\' else "?" for c in text.strip()[:limit])


def _number(text: str | None) -> int | None:
    """A limit, or None for `max`, -1 and everything that means "no limit"."""
    word = (text or "").strip()
    value = int(word) if word.isascii() and word.isdigit() else _UNLIMITED
    return value if value < _UNLIMITED else None


def _cgroups(look: _Look) -> dict[str, Any]:
    """Own groups and the tightest limits on the way up to the root that can be seen."""
    groups = [line.split(":", 2) for line in look.lines("/proc/self/cgroup")]
    groups = [group for group in groups if len(group) == 3][:_LISTED_MAX]
    mounts = [mount for mount in look.mounts() if mount.kind in ("cgroup", "cgroup2")]
    memory, processes, processor = [], [], []
    for folder in _group_folders(groups, mounts):
        for name in ("memory.max", "memory.limit_in_bytes"):
            memory.append(_number(look.text(f"{folder}/{name}", expected=False)))
        processes.append(_number(look.text(f"{folder}/pids.max", expected=False)))
        processor.append(_processor_limit(look, folder))
    return {
        "cgroup_versions": sorted({2 if mount.kind == "cgroup2" else 1 for mount in mounts}),
        "cgroup_paths": sorted({_clean(path) for _, _, path in groups if path != "/"}),
        "memory_limit_bytes": _tightest(memory),
        "pids_limit": _tightest(processes),
        "cpu_limit_millicores": _tightest(processor),
    }


def _group_folders(groups: list[list[str]], mounts: list[_Mount]) -> list[str]:
    found: dict[str, None] = {}
    for _, controllers, path in groups:
        for mount in mounts:
            wanted = controllers.split(",") if controllers else []
            same = mount.kind == "cgroup" and set(wanted) & set(mount.options.split(","))
            if same or (mount.kind == "cgroup2" and not controllers):
                inner = path[len(mount.root) :] if path.startswith(mount.root) else path
                words = [word for word in inner.split("/") if word]
                words = [] if ".." in words else words[:_LISTED_MAX]
                for end in range(len(words), -1, -1):
                    found["/".join([mount.point.rstrip("/"), *words[:end]])] = None
    return list(found)


def _processor_limit(look: _Look, folder: str) -> int | None:
    both = (look.text(f"{folder}/cpu.max", expected=False) or "").split()
    if len(both) != 2:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        both = [look.text(f"{folder}/{name}", expected=False) or "" for name in names]
    quota, period = _number(both[0]), _number(both[1])
    return quota * 1000 // period if quota is not None and period else None


def _tightest(limits: list[int | None]) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _namespaces(look: _Look) -> dict[str, Any]:
    """Inode numbers: the kernel gives its first namespaces fixed ones."""
    found: dict[str, int] = {}
    for name in _NAMESPACES:
        path = f"/proc/self/ns/{name}"
        try:
            digits = str(Path(look.path(path)).readlink()).partition("[")[2].rstrip("]")
            found[name] = int(digits)
        except (OSError, ValueError) as error:
            look.refused(path, error)
    rows = [line.split() for line in look.lines("/proc/self/uid_map")[:_LISTED_MAX]]
    user_map = [[int(word) for word in row] for row in rows if len(row) == 3]
    return {"namespaces": found, "uid_map": user_map}


def _processes(look: _Look) -> dict[str, Any]:
    """Names only: the arguments of process 1 may hold secrets."""
    comm, line = look.text("/proc/1/comm"), look.text("/proc/1/cmdline")
    program = (line or "").split("\0")[0].rpartition("/")[2]
    numbers = [name for name in look.names("/proc") or () if name.isdigit()]
    second = (look.text("/proc/2/comm", expected=False) or "").strip()
    return {
        "init_name": None if comm is None else _clean(comm),
        "init_program": None if line is None else _clean(program, 40),
        "processes": len(numbers) or None,
        "kernel_threads": second == "kthreadd" if numbers else None,
    }


def _status(look: _Look) -> dict[str, Any]:
    pairs = [line.partition(":") for line in look.lines("/proc/self/status")]
    status = {name: value.split() for name, _, value in pairs if value.split()}

    def first(name: str) -> str | None:
        return _clean(status[name][0]) if name in status else None

    address_space = None
    for line in look.lines("/proc/self/limits"):
        if line.startswith("Max address space"):
            address_space = _number(line.split()[3])
    return {
        "seccomp": _number(first("Seccomp")),
        "no_new_privileges": _number(first("NoNewPrivs")),
        "capabilities": first("CapEff"),
        "user_id": _number(first("Uid")),
        "address_space_limit_bytes": address_space,
    }


def _mounts(look: _Look) -> dict[str, Any]:
    mounts = look.mounts()
    at = {mount.point: mount for mount in mounts}  # the last one mounted at a place is on top
    root = at.get("/")
    masked = [point for point in at if point.startswith("/proc/") and "binfmt" not in point]
    usr = at.get("/usr")
    return {
        "mounts": len(mounts),
        "root_kind": _clean(root.kind) if root else None,
        "root_source": _clean(root.source) if root else None,
        "root_is_subtree": root.root != "/" if root else None,
        "root_read_only": "ro" in root.flags.split(",") if root else None,
        "usr_is_bound": usr is not None and usr.root != "/",
        "masked": [_clean(point) for point in sorted(masked)][:_LISTED_MAX],
        "etc_mounts": [point for point in _ETC_OF_CONTAINERS if point in at],
        "lxcfs": any("lxcfs" in (mount.kind + mount.source) for mount in mounts),
    }


def _marks(look: _Look) -> dict[str, Any]:
    manager = look.environment.get("container", "")
    for path in _MANAGER_FILES:
        manager = manager or look.text(path, expected=False) or ""
    return {
        "marks": [path for path in _MARKS if os.path.lexists(look.path(path))],
        "container_manager": _clean(manager, 40) or None,
        "hostname": _clean(look.text("/proc/sys/kernel/hostname") or "", 64) or None,
    }


def _network(look: _Look) -> dict[str, Any]:
    text = look.text("/proc/self/net/dev")
    names = [line.partition(":")[0] for line in (text or "").splitlines() if ":" in line]
    found = [_clean(name, 20) for name in names][:_LISTED_MAX]
    return {"interfaces": None if text is None else found}


def _machine(look: _Look) -> dict[str, Any]:
    lines = look.lines("/proc/cpuinfo")
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    names = ("/sys/class/dmi/id/sys_vendor", "/sys/class/dmi/id/product_name")
    vendor = " ".join(_clean(look.text(name) or "", 40) for name in names).strip()
    kind = look.text("/sys/hypervisor/type", expected=False) or ""
    devices = look.names("/sys/bus/virtio/devices")
    return {
        "hypervisor": None if flags is None else "hypervisor" in flags,
        "hypervisor_kind": _clean(kind, 40) or None,
        "machine_vendor": vendor or None,
        "virtio_devices": None if devices is None else len(devices),
    }


def _tools(look: _Look) -> dict[str, Any]:
    folders = [f for f in look.environment.get("PATH", os.defpath).split(":") if f.startswith("/")]
    places = dict.fromkeys([look.environment.get("HOME", "/"), *_PLACES])
    return {
        "commands": {name: _find(look, name, folders[:64]) for name in _COMMANDS},
        "python_version": ".".join(str(part) for part in sys.version_info[:3]),
        "writable": [
            _clean(place)
            for place in places
            if place.startswith("/") and os.access(look.path(place), os.W_OK | os.X_OK)
        ],
    }


def _find(look: _Look, name: str, folders: list[str]) -> str | None:
    for folder in folders:
        path = look.path(f"{folder}/{name}")
        if os.access(path, os.X_OK) and not Path(path).is_dir():
            return _clean(f"{folder}/{name}")
    return None


_PROBES = (
    *(_cgroups, _namespaces, _processes, _status, _mounts, _marks, _network, _machine, _tools),
)


def gather(root: str = "/", environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The evidence that this process sees; see `isolation.Evidence` for the fields.

    Args:
        root: where to look instead of "/" (a recorded tree).
        environment: variables instead of this process's.
    """
    look = _Look(root, os.environ if environment is None else environment)
    seen: dict[str, Any] = {"format": 1}
    for probe in _PROBES:
        try:
            seen.update(probe(look))
        except (OSError, ValueError, LookupError) as error:
            look.refused(f"probe {probe.__name__}", error)
    seen["unreadable"] = look.unreadable
    return seen


def source() -> str:
    """The text of this file: run by Python it writes one line of JSON, under 16 KB."""
    return Path(__file__).read_text(encoding="utf-8")


def command() -> str:
    """A shell command that gathers the evidence where it is run; it needs only `python3`.

    `-I` ignores the working directory and Python's variables, `-B` writes no bytecode.
    """
    return f"python3 -I -B -c {shlex.quote(source())}"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(gather()) + "\n")
