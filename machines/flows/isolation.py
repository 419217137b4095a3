"""From evidence to an isolation profile: which walls are these, how surely, and why.

Each clue that is seen speaks for one or more profiles with a weight in percent; a clue of weight w
leaves (100 - w) % of the doubt::

    confidence = 100 - 100 * (1 - w1/100) * (1 - w2/100) * ...        at most 99

so confidence only grows with evidence, and a clue is never the absence of something unknown.  The
innermost wall counts: a container in a virtual machine is a container.  `bare` is a profile with
evidence of its own; whoever sees nothing does not conclude that there are no walls.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from engine.errors import TurtlesError
from machines.clients.ports import Record
from machines.flows.evidence import EVIDENCE_BYTES_MAX

Profile = Literal["lxc", "docker", "nspawn", "bubblewrap", "vm", "bare"]

CONTAINERS: tuple[Profile, ...] = ("lxc", "docker", "nspawn", "bubblewrap")
SURE_PERCENT = 50
"""A profile below this confidence is not claimed."""
CERTAIN_PERCENT = 99
"""Evidence from inside can be forged: never 100."""

_SEEN_CHARACTERS_MAX = 80
# include/linux/proc_ns.h: the inode numbers of the kernel's first namespaces
_FIRST_NAMESPACES = {
    "ipc": 0xEFFFFFFF,
    "uts": 0xEFFFFFFE,
    "user": 0xEFFFFFFD,
    "pid": 0xEFFFFFFC,
    "cgroup": 0xEFFFFFFB,
}


class BadEvidence(TurtlesError):
    """Evidence too large, not JSON or of another shape than `Evidence`."""


class Evidence(Record, forbid_unknown_fields=True):
    """What `evidence.gather()` saw.  None or empty: could not be learned."""

    format: Literal[1] = 1
    cgroup_versions: tuple[int, ...] = ()
    cgroup_paths: tuple[str, ...] = ()
    memory_limit_bytes: int | None = None
    pids_limit: int | None = None
    cpu_limit_millicores: int | None = None
    address_space_limit_bytes: int | None = None
    namespaces: dict[str, int] = msgspec.field(default_factory=dict)
    uid_map: tuple[tuple[int, int, int], ...] = ()
    init_name: str | None = None
    init_program: str | None = None
    processes: int | None = None
    kernel_threads: bool | None = None
    seccomp: int | None = None
    no_new_privileges: int | None = None
    capabilities: str | None = None
    user_id: int | None = None
    mounts: int | None = None
    root_kind: str | None = None
    root_source: str | None = None
    root_is_subtree: bool | None = None
    root_read_only: bool | None = None
    usr_is_bound: bool | None = None
    masked: tuple[str, ...] = ()
    etc_mounts: tuple[str, ...] = ()
    lxcfs: bool | None = None
    marks: tuple[str, ...] = ()
    container_manager: str | None = None
    hostname: str | None = None
    interfaces: tuple[str, ...] | None = None
    hypervisor: bool | None = None
    hypervisor_kind: str | None = None
    machine_vendor: str | None = None
    virtio_devices: int | None = None
    commands: dict[str, str | None] = msgspec.field(default_factory=dict)
    python_version: str | None = None
    writable: tuple[str, ...] = ()
    unreadable: dict[str, str] = msgspec.field(default_factory=dict)


class Reason(Record):
    """One piece of evidence for the profile: how much it weighs (percent) and what was seen."""

    name: str
    weight: int
    seen: str


class Isolation(Record):
    """The profile that the evidence speaks for, how surely, and why."""

    profile: Profile
    confidence_percent: int
    reasons: tuple[Reason, ...]


class _Clue(NamedTuple):
    name: str
    weights: Mapping[Profile, int]
    see: Callable[[Evidence], object]
    """What was seen; anything false when the clue is absent or unknown."""


def _manager(*names: str) -> Callable[[Evidence], object]:
    """The container manager's name, when it is one of these or begins with one and a dash."""

    def see(seen: Evidence) -> str:
        manager = seen.container_manager or ""
        return manager if manager.split("-")[0] in names or manager in names else ""

    return see


def _group(pattern: str) -> Callable[[Evidence], object]:
    wanted = re.compile(pattern)
    return lambda seen: next((p for p in seen.cgroup_paths if wanted.search(p)), "")


def _mark(*paths: str) -> Callable[[Evidence], object]:
    return lambda seen: next((path for path in paths if path in seen.marks), "")


def _own(name: str) -> Callable[[Evidence], object]:
    def see(seen: Evidence) -> str:
        inode = seen.namespaces.get(name)
        return f"{name}:{inode}" if inode not in (None, _FIRST_NAMESPACES[name]) else ""

    return see


def _first_namespaces(seen: Evidence) -> object:
    known = [name for name in ("user", "pid", "uts", "ipc") if name in seen.namespaces]
    same = all(seen.namespaces[name] == _FIRST_NAMESPACES[name] for name in known)
    return len(known) == 4 and same and "the kernel's first user, pid, uts, ipc"


def _few_users(seen: Evidence) -> object:
    return bool(seen.uid_map) and sum(row[2] for row in seen.uid_map) <= 2 and f"{seen.uid_map}"


def _shifted_users(seen: Evidence) -> object:
    return any(row[2] >= 65536 and row[1] > 0 for row in seen.uid_map) and f"{seen.uid_map[0]}"


def _system_init(seen: Evidence) -> object:
    inside = bool(_own("pid")(seen))
    return inside and seen.init_name in ("systemd", "init") and f"{seen.init_name} in own pid space"


def _program_as_init(seen: Evidence) -> object:
    inside = bool(_own("pid")(seen)) and seen.init_name not in (None, "systemd", "init")
    return inside and f"{seen.init_name} is process 1 of {seen.processes}"


def _host_init(seen: Evidence) -> object:
    outside = seen.namespaces.get("pid") == _FIRST_NAMESPACES["pid"]
    return outside and seen.init_name in ("systemd", "init") and seen.init_name


_VIRTUAL = re.compile(
    r"qemu|kvm|vmware|virtualbox|innotek|xen|bochs|parallels|bhyve|virtual machine"
    r"|amazon ec2|google compute|openstack|digitalocean|hetzner|firecracker",
    re.IGNORECASE,
)


def _virtual_vendor(seen: Evidence) -> object:
    return _VIRTUAL.search(seen.machine_vendor or "") and seen.machine_vendor


def _real_vendor(seen: Evidence) -> object:
    return not _VIRTUAL.search(seen.machine_vendor or "") and seen.machine_vendor


def _disk_root(seen: Evidence) -> object:
    source = seen.root_source or ""
    return source.startswith("/dev/") and seen.root_is_subtree is False and source


_CLUES = (
    _Clue("manager_lxc", {"lxc": 85}, _manager("lxc", "lxd", "incus")),
    _Clue("manager_docker", {"docker": 85}, _manager("docker", "podman", "oci", "crio")),
    _Clue("manager_nspawn", {"nspawn": 85}, _manager("systemd-nspawn")),
    _Clue("manager_bubblewrap", {"bubblewrap": 85}, _manager("bubblewrap", "flatpak", "bwrap")),
    _Clue("cgroup_lxc", {"lxc": 60}, _group(r"/lxc(\.|/|$)|lxc\.payload")),
    _Clue("cgroup_docker", {"docker": 60}, _group(r"docker|libpod|kubepods|containerd|crio")),
    _Clue("cgroup_nspawn", {"nspawn": 60}, _group(r"nspawn|machine\.slice/machine-")),
    # left behind when a docker image became a machine's disk, so never enough alone
    _Clue("mark_docker", {"docker": 45}, _mark("/.dockerenv")),
    _Clue("mark_podman", {"docker": 70}, _mark("/run/.containerenv")),
    _Clue("mark_lxd", {"lxc": 60}, _mark("/dev/lxd/sock", "/dev/.lxc")),
    _Clue("mark_flatpak", {"bubblewrap": 80}, _mark("/.flatpak-info")),
    _Clue("mark_run_host", {"nspawn": 35, "bubblewrap": 10}, _mark("/run/host")),
    _Clue("lxcfs", {"lxc": 70}, lambda e: e.lxcfs and "lxcfs is mounted"),
    _Clue("overlay_root", {"docker": 35}, lambda e: e.root_kind == "overlay" and "overlay"),
    _Clue("memory_root", {"bubblewrap": 45}, lambda e: e.root_kind == "tmpfs" and "tmpfs"),
    _Clue("subtree_root", {"lxc": 20, "nspawn": 20}, lambda e: e.root_is_subtree and "subtree"),
    _Clue("bound_usr", {"bubblewrap": 30}, lambda e: e.usr_is_bound and "/usr is bound"),
    _Clue(
        "masked_proc",
        {"docker": 30, "nspawn": 15, "lxc": 10},
        lambda e: len(e.masked) >= 3 and ", ".join(e.masked),
    ),
    _Clue("etc_mounts", {"docker": 40}, lambda e: len(e.etc_mounts) >= 2 and e.etc_mounts),
    _Clue("few_users", {"bubblewrap": 40, "docker": 10}, _few_users),
    _Clue("shifted_users", {"lxc": 30, "nspawn": 25, "docker": 10}, _shifted_users),
    _Clue("own_users", {"bubblewrap": 20, "lxc": 10, "nspawn": 10}, _own("user")),
    _Clue("own_processes", {"docker": 15, "lxc": 15, "nspawn": 15, "bubblewrap": 15}, _own("pid")),
    _Clue("own_hostname", {"docker": 10, "lxc": 10, "nspawn": 10, "bubblewrap": 10}, _own("uts")),
    _Clue("system_init", {"lxc": 20, "nspawn": 20}, _system_init),
    _Clue("program_as_init", {"docker": 15, "bubblewrap": 15}, _program_as_init),
    _Clue("bwrap_init", {"bubblewrap": 70}, lambda e: e.init_name == "bwrap" and "bwrap"),
    _Clue("loopback_only", {"bubblewrap": 25}, lambda e: e.interfaces == ("lo",) and "lo"),
    _Clue(
        "nspawn_link",
        {"nspawn": 40},
        lambda e: next((i for i in e.interfaces or () if re.match(r"host0|mv-|vb-", i)), ""),
    ),
    _Clue(
        "container_hostname",
        {"docker": 20},
        lambda e: re.fullmatch(r"[0-9a-f]{12}", e.hostname or "") and e.hostname,
    ),
    _Clue(
        "syscall_filter",
        {"docker": 10, "lxc": 10, "nspawn": 10, "bubblewrap": 10},
        lambda e: e.seccomp == 2 and "seccomp filter",
    ),
    _Clue("no_new_privileges", {"bubblewrap": 20}, lambda e: e.no_new_privileges == 1 and "set"),
    _Clue(
        "powerless_root",
        {"bubblewrap": 20},
        lambda e: e.user_id == 0 and re.fullmatch("0+", e.capabilities or "") and "uid 0, no caps",
    ),
    _Clue("hypervisor_flag", {"vm": 45}, lambda e: e.hypervisor and "hypervisor"),
    _Clue("hypervisor_kind", {"vm": 50}, lambda e: e.hypervisor_kind),
    _Clue("virtual_vendor", {"vm": 60}, _virtual_vendor),
    _Clue("virtio", {"vm": 40}, lambda e: e.virtio_devices and f"{e.virtio_devices} devices"),
    _Clue(
        "virtual_disk",
        {"vm": 25},
        lambda e: re.match(r"/dev/x?vd[a-z]", e.root_source or "") and e.root_source,
    ),
    _Clue("no_hypervisor_flag", {"bare": 35}, lambda e: e.hypervisor is False and "absent"),
    _Clue("real_vendor", {"bare": 25}, _real_vendor),
    _Clue("first_namespaces", {"bare": 30}, _first_namespaces),
    _Clue("kernel_threads", {"bare": 20}, lambda e: e.kernel_threads and "kthreadd is visible"),
    _Clue("disk_root", {"bare": 15}, _disk_root),
    _Clue("host_init", {"bare": 15}, _host_init),
)


def read_evidence(text: str) -> Evidence:
    """Decode evidence that may come from an untrusted place.

    Raises:
        BadEvidence: over 16 KB, not JSON, or a field of another type; says which.
    """
    size = len(text.encode("utf-8", "replace"))
    if size > EVIDENCE_BYTES_MAX:
        raise BadEvidence(
            f"evidence: {size} bytes, at most {EVIDENCE_BYTES_MAX} are read. "
            "Give what evidence.command() printed, unchanged."
        )
    try:
        return msgspec.json.decode(text, type=Evidence)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise BadEvidence(
            f"evidence: {error}. Give what evidence.command() printed, unchanged."
        ) from error


def match(evidence: Evidence | Mapping[str, Any]) -> Isolation:
    """Weigh evidence against every profile: the likeliest container, else vm, else bare.

    Raises:
        BadEvidence: a mapping without the shape of `Evidence`.
    """
    if not isinstance(evidence, Evidence):
        try:
            evidence = msgspec.convert(dict(evidence), Evidence)
        except msgspec.ValidationError as error:
            raise BadEvidence(f"evidence: {error}") from error
    reasons = reasons_by_profile(evidence)
    likeliest = max(CONTAINERS, key=lambda profile: confidence_percent(reasons[profile]))
    for profile in (likeliest, "vm"):
        if (percent := confidence_percent(reasons[profile])) >= SURE_PERCENT:
            return Isolation(profile=profile, confidence_percent=percent, reasons=reasons[profile])
    bare = reasons["bare"]
    return Isolation(profile="bare", confidence_percent=confidence_percent(bare), reasons=bare)


def reasons_by_profile(evidence: Evidence) -> dict[Profile, tuple[Reason, ...]]:
    """Every clue that was seen, under each profile that it speaks for."""
    found: dict[Profile, tuple[Reason, ...]] = dict.fromkeys((*CONTAINERS, "vm", "bare"), ())
    for clue in _CLUES:
        if seen := clue.see(evidence):
            for profile, weight in clue.weights.items():
                reason = Reason(name=clue.name, weight=weight, seen=_shown(seen))
                found[profile] = (*found[profile], reason)
    return found


def _shown(seen: object) -> str:
    text = ", ".join(map(str, seen)) if isinstance(seen, tuple) else str(seen)
    return "".join(c if c.isprintable() else "?" for c in text)[:_SEEN_CHARACTERS_MAX]


def confidence_percent(reasons: tuple[Reason, ...]) -> int:
    """100 minus the doubt that is left when each reason takes away its share; 0 to 99."""
    doubt = 10_000
    for weight in sorted(reason.weight for reason in reasons):
        doubt = doubt * (100 - weight) // 100
    return min((10_000 - doubt) // 100, CERTAIN_PERCENT)
