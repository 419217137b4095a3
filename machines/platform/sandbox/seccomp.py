"""A classic BPF seccomp filter, written without any library.

`build_filter()` returns the bytes of `struct sock_filter[]` that `bwrap --seccomp FD` installs:

    wrong architecture -> kill the process      x32, clone3      -> ENOSYS (glibc falls back)
    clone(CLONE_NEW*)  -> EPERM                 ioctl(TIOCSTI/TIOCLINUX)      -> EPERM
    socket families    -> UNIX; INET and INET6 for TCP, UDP and ping; NETLINK for routes only
    shmget, over 64 KiB -> EINVAL, as beyond the kernel's own limit
    calls of `_DENIED` -> EPERM                 everything else               -> allow

It is a second wall: namespaces already hide the host, the filter takes away kernel surface and the
one thing that network namespaces do not cover, AF_VSOCK. Numbers are from the kernel's
unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64).
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterator

from machines.platform.sandbox.errors import SandboxUnavailable

__all__ = ["ARCHITECTURES", "build_filter"]

_LOAD_WORD, _AND, _RETURN = 0x20, 0x54, 0x06
_JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_ANY_BIT = 0x15, 0x35, 0x45
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _EINVAL, _ENOSYS, _EPROTONOSUPPORT = 1, 22, 38, 93

# Offsets in struct seccomp_data; arguments are 64 bit, little-endian on both architectures. The
# low half decides: the kernel reads these particular arguments as 32-bit ints.
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16

_X32_BIT = 0x40000000
_CLONE_NEW_ANY = 0x7E020000  # NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_SOCK_TYPE_MASK, _SOCK_STREAM, _SOCK_DGRAM = 0xF, 1, 2
_SOCK_RAW, _SOCK_PACKET = 3, 10
# By the type alone, TCP, UDP, and the two that ping uses; others would load a module of the kernel.
_PROTOCOLS = (0, 6, 17, 1, 58)
_NETLINK_ROUTE = 0
_SEGMENT_BYTES_MAX = 64 * 1024

# name: (x86_64, aarch64); None where the architecture has no such call.
_SPECIAL = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "ioctl": (16, 29),
    "shmget": (29, 194),
    "socket": (41, 198),
}
_DENIED: dict[str, tuple[int, int | None]] = {
    # mounts and roots
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    # other processes' memory and descriptors
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # keys: not covered by any namespace that bwrap makes
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # wide kernel surfaces
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "memfd_secret": (447, 447),
    # namespaces, handles
    "setns": (308, 268),
    "unshare": (272, 97),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "settimeofday": (164, 170),
    "adjtimex": (159, 171),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
}
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}


def build_filter(architecture: str | None = None) -> bytes:
    """The filter for `architecture` ("x86_64", "aarch64"; default: this machine's).

    Raises SandboxUnavailable on any other architecture.
    """
    name = architecture or platform.machine()
    if name not in ARCHITECTURES:
        raise SandboxUnavailable(
            f"no system call filter is known for the processor architecture {name!r}",
            f"run on one of {', '.join(sorted(ARCHITECTURES))}",
        )
    column = _COLUMN[name]
    special = {call: numbers[column] for call, numbers in _SPECIAL.items()}
    denied = [numbers[column] for numbers in _DENIED.values()]
    body = [
        *_architecture(ARCHITECTURES[name], has_x32=name == "x86_64"),
        *_when(_JUMP_EQUAL, special["clone3"], [_errno(_ENOSYS)]),
        *_when(_JUMP_EQUAL, special["clone"], list(_clone())),
        *_when(_JUMP_EQUAL, special["ioctl"], list(_ioctl())),
        *_when(_JUMP_EQUAL, special["shmget"], list(_shmget())),
        *_when(_JUMP_EQUAL, special["socket"], list(_socket())),
        *_refuse_each(number for number in denied if number is not None),
        _return(_ALLOW),
    ]
    return b"".join(body)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _return(verdict: int) -> bytes:
    return _instruction(_RETURN, verdict)


def _errno(number: int) -> bytes:
    return _return(_ERRNO | number)


def _load_argument(index: int) -> bytes:
    return _instruction(_LOAD_WORD, _ARGUMENTS_AT + 8 * index)


def _when(jump: int, value: int, then: list[bytes]) -> list[bytes]:
    """`then` when the loaded word matches; it is skipped otherwise."""
    return [_instruction(jump, value, 0, len(then)), *then]


def _architecture(audit: int, *, has_x32: bool) -> Iterator[bytes]:
    yield _instruction(_LOAD_WORD, _ARCHITECTURE_AT)
    yield _instruction(_JUMP_EQUAL, audit, 1, 0)
    yield _return(_KILL_PROCESS)
    yield _instruction(_LOAD_WORD, _NUMBER_AT)
    if has_x32:
        yield from _when(_JUMP_GREATER_EQUAL, _X32_BIT, [_errno(_ENOSYS)])


def _clone() -> Iterator[bytes]:
    yield _load_argument(0)
    yield from _when(_JUMP_ANY_BIT, _CLONE_NEW_ANY, [_errno(_EPERM)])
    yield _return(_ALLOW)


def _ioctl() -> Iterator[bytes]:
    yield _load_argument(1)
    yield from _refuse_each(iter((_TIOCSTI, _TIOCLINUX)))
    yield _return(_ALLOW)


def _shmget() -> Iterator[bytes]:
    """Segments live on with nobody attached, where only a cgroup counts them. There may be 4096."""
    yield _instruction(_LOAD_WORD, _ARGUMENTS_AT + 8 + 4)  # the upper half of the size
    yield _instruction(_JUMP_EQUAL, 0, 1, 0)
    yield _errno(_EINVAL)
    yield _load_argument(1)
    yield from _when(_JUMP_GREATER_EQUAL, _SEGMENT_BYTES_MAX + 1, [_errno(_EINVAL)])
    yield _return(_ALLOW)


def _socket() -> Iterator[bytes]:
    yield _load_argument(0)
    # glibc asks for interface addresses through a route socket, whose type is raw.
    route_only = [
        _load_argument(2),
        *_when(_JUMP_EQUAL, _NETLINK_ROUTE, [_return(_ALLOW)]),
        _errno(_EPERM),
    ]
    yield from _when(_JUMP_EQUAL, _AF_NETLINK, route_only)
    unix = [_load_argument(1), _instruction(_AND, _SOCK_TYPE_MASK)]
    unix += [*_refuse_each(iter((_SOCK_RAW, _SOCK_PACKET))), _return(_ALLOW)]
    yield from _when(_JUMP_EQUAL, _AF_UNIX, unix)
    yield _instruction(_JUMP_EQUAL, _AF_INET, 2, 0)
    yield _instruction(_JUMP_EQUAL, _AF_INET6, 1, 0)
    yield _errno(_EPERM)
    yield _load_argument(1)
    yield _instruction(_AND, _SOCK_TYPE_MASK)
    yield _instruction(_JUMP_EQUAL, _SOCK_STREAM, 2, 0)
    yield _instruction(_JUMP_EQUAL, _SOCK_DGRAM, 1, 0)
    yield _errno(_EPERM)
    yield _load_argument(2)
    for protocol in _PROTOCOLS:
        yield from _when(_JUMP_EQUAL, protocol, [_return(_ALLOW)])
    # What a kernel without the protocol says: programs that try another first take TCP then.
    yield _errno(_EPROTONOSUPPORT)


def _refuse_each(values: Iterator[int]) -> Iterator[bytes]:
    for value in values:
        yield from _when(_JUMP_EQUAL, value, [_errno(_EPERM)])
