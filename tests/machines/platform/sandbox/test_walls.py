"""What an inspection sees is compared with what must be seen, wall by wall.

That the walls hold is tried by test_escape.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from machines.platform.sandbox.walls import find_holes


def inspection(**changes: object) -> bytes:
    seen: dict[str, object] = {
        "status": [{"CapEff": "0000000000000000", "Seccomp": "2", "NoNewPrivs": "1"}] * 2,
        "uid_map": ["0", "0", "1"],
        "namespaces": dict.fromkeys(("user", "pid", "net", "ipc", "uts", "mnt"), "other:[1]"),
        "interfaces": ["lo"],
        "processes": 3,
        "writable": [],
    }
    return json.dumps({**seen, **changes}).encode()


STATUS = {"CapEff": "0000000000000000", "Seccomp": "2", "NoNewPrivs": "1"}


@pytest.mark.parametrize(
    ("changes", "hole"),
    [
        ({"status": [STATUS, {**STATUS, "CapEff": "000001ffffffffff"}]}, "capabilities"),
        ({"status": [{**STATUS, "Seccomp": "0"}, STATUS]}, "no system call filter"),
        ({"status": [STATUS, {**STATUS, "NoNewPrivs": "0"}]}, "privileges can be gained"),
        ({"uid_map": ["0", "0", "4294967295"]}, "more than one user"),
        ({"interfaces": ["lo", "eth0"]}, "eth0"),
        ({"processes": 112}, "112 processes"),
        ({"writable": ["/proc/sysrq-trigger"]}, "sysrq-trigger"),
        ({"namespaces": {"user": "x"}}, "could not be inspected"),
        ({"status": None}, "could not be inspected"),
    ],
)
def test_each_missing_wall_is_named(changes: dict[str, object], hole: str) -> None:
    assert any(hole in each for each in find_holes(inspection(**changes), os.getpid()))


def test_a_shared_namespace_is_named() -> None:
    shared = dict.fromkeys(("user", "pid", "ipc", "uts", "mnt"), "other:[1]")
    shared["net"] = str(Path("/proc/self/ns/net").readlink())
    holes = find_holes(inspection(namespaces=shared), os.getpid())
    assert "the host's net namespace is shared" in holes


def test_the_hosts_root_is_no_users_root() -> None:
    assert "its root is the host's root" in find_holes(inspection(), 1)


def test_silence_is_a_hole() -> None:
    assert "could not be inspected" in find_holes(b"", os.getpid())[0]
