"""The filter, run by a small interpreter of classic BPF: verdicts for single calls."""

from __future__ import annotations

import struct

import pytest

from machines.platform.sandbox import seccomp
from machines.platform.sandbox.errors import SandboxUnavailable
from machines.platform.sandbox.seccomp import ARCHITECTURES, build_filter

ALLOW, KILL, EPERM, ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
EINVAL, EPROTONOSUPPORT = 0x00050016, 0x0005005D
NUMBERS = {
    "x86_64": {
        "shmget": 29,
        "clone": 56, "clone3": 435, "ioctl": 16, "socket": 41, "read": 0, "execve": 59,
        "mount": 165, "ptrace": 101, "unshare": 272, "bpf": 321, "keyctl": 250,
    },
    "aarch64": {
        "shmget": 194,
        "clone": 220, "clone3": 435, "ioctl": 29, "socket": 198, "read": 63, "execve": 221,
        "mount": 40, "ptrace": 117, "unshare": 97, "bpf": 280, "keyctl": 219,
    },
}  # fmt: skip


def verdict(program: bytes, audit: int, number: int, *arguments: int) -> int:
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, audit, 0, *padded)
    lines = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator, at = 0, 0
    while True:
        code, if_true, if_false, value = lines[at]
        at += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x35:
                at += if_true if accumulator >= value else if_false
            case 0x45:
                at += if_true if accumulator & value else if_false
            case 0x06:
                return value
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("read", (), ALLOW),
        ("execve", (), ALLOW),
        ("clone3", (), ENOSYS),
        ("clone", (0x01200011,), ALLOW),
        ("clone", (0x10000011,), EPERM),
        ("clone", (0x00020011,), EPERM),
        ("clone", (0x40000011,), EPERM),
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x5412), EPERM),
        ("ioctl", (0, 0x1_0000_5412), EPERM),
        ("ioctl", (0, 0x541C), EPERM),
        ("socket", (1, 1), ALLOW),
        ("socket", (1, 5), ALLOW),
        ("socket", (2, 1 | 0o2000000, 6), ALLOW),
        ("socket", (10, 2), ALLOW),
        ("socket", (10, 2, 17), ALLOW),
        ("socket", (2, 2, 1), ALLOW),
        ("socket", (10, 2, 58), ALLOW),
        ("socket", (2, 1, 132), EPROTONOSUPPORT),
        ("socket", (10, 1, 262), EPROTONOSUPPORT),
        ("socket", (2, 2 | 0o2000000, 136), EPROTONOSUPPORT),
        ("socket", (2, 5, 132), EPERM),
        ("socket", (2, 6, 33), EPERM),
        ("socket", (1, 3), EPERM),
        ("socket", (2, 3, 1), EPERM),
        ("socket", (2, 3 | 0o2000000, 1), EPERM),
        ("socket", (10, 3), EPERM),
        ("socket", (2, 10), EPERM),
        ("socket", (16, 3, 0), ALLOW),
        ("socket", (16, 3, 12), EPERM),
        ("socket", (17, 3), EPERM),
        ("socket", (38, 5), EPERM),
        ("socket", (40, 1), EPERM),
        ("socket", (0x1_0000_0028, 1), EPERM),
        ("shmget", (0, 65536, 0o600), ALLOW),
        ("shmget", (7, 0, 0), ALLOW),
        ("shmget", (0, 65537, 0o600), EINVAL),
        ("shmget", (0, 0x1_0000_0001, 0o600), EINVAL),
        ("mount", (), EPERM),
        ("ptrace", (), EPERM),
        ("unshare", (), EPERM),
        ("bpf", (), EPERM),
        ("keyctl", (), EPERM),
    ],
)
def test_verdicts(architecture: str, name: str, arguments: tuple[int, ...], expected: int) -> None:
    program = build_filter(architecture)
    number = NUMBERS[architecture][name]
    assert verdict(program, ARCHITECTURES[architecture], number, *arguments) == expected


def test_another_architecture_is_killed(architecture: str) -> None:
    assert verdict(build_filter(architecture), 0x40000003, 0) == KILL


def test_x32_calls_do_not_exist() -> None:
    assert verdict(build_filter("x86_64"), ARCHITECTURES["x86_64"], 0x40000000 | 165) == ENOSYS


def test_every_denied_call_is_denied(architecture: str) -> None:
    program = build_filter(architecture)
    column = sorted(ARCHITECTURES, reverse=True).index(architecture)
    numbers = [pair[column] for pair in seccomp._DENIED.values() if pair[column] is not None]
    assert len(set(numbers)) == len(numbers) > 45
    audit = ARCHITECTURES[architecture]
    assert {verdict(program, audit, number) for number in numbers if number} == {EPERM}


def test_the_kernels_limit_of_instructions_is_kept(architecture: str) -> None:
    assert len(build_filter(architecture)) // 8 < 4096


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(SandboxUnavailable, match="'sparc64'"):
        build_filter("sparc64")
