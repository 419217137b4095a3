"""Attempts to get out, as root and as an ordinary user, and a control that shows they can succeed.

`scripts/escape.py` sets canaries up on the host and runs `scripts/probes.py` inside.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from machines.platform.sandbox.program import find_candidates
from machines.platform.sandbox.walls import find_holes

ORDINARY_USER = 54321  # no account is needed, and none is made
OPEN_WITHOUT_FILTER = {"socket_netlink_other", "ptrace_child", "keyctl", "add_key"}


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that another user can reach (pytest's own are 0700), with bubblewrap in it."""
    root = Path(tempfile.mkdtemp(prefix="turtles-escape-"))
    program = find_candidates()[0]
    shutil.copytree(program.program.parent, root / "package" / "_bin")
    if program.libraries is not None:
        shutil.copytree(program.libraries, root / "package.libs")
    root.chmod(0o755)
    yield root
    shutil.rmtree(root)


def escape(root: Path, scripts: Path, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(scripts / "escape.py"), str(root), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "TURTLES_BWRAP": str(root / "package" / "_bin" / "bwrap")},
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def assert_tight(found: dict[str, Any]) -> None:
    assert {name: seen for name, seen in found["probes"].items() if seen is not None} == {}
    assert len(found["probes"]) >= 37
    assert found["fork"][:2] == [0, "21 11\n"]  # EAGAIN below the limit of 32 processes
    places = found["disk"][1].splitlines()
    assert [place.split()[1] for place in places[:3]] == ["28"] * 3  # ENOSPC, each of three
    assert int(places[3]) <= 16 * 1024 * 1024
    if found["enforcement"] == "cgroup":
        assert (found["memory"][0], found["memory_oom"]) == (137, True)
    else:
        assert "MemoryError" in found["memory"][2]
    assert [found[f"after_{bomb}"] for bomb in ("fork", "memory", "disk")] == ["alive\n"] * 3
    assert found["victim_alive"]
    assert found["left"] == []


def test_every_wall_stands(reachable: Path, scripts: Path) -> None:
    found = escape(reachable, scripts)
    assert found["uid"] == os.geteuid()
    assert_tight(found)


def test_every_wall_stands_for_an_ordinary_user(reachable: Path, scripts: Path) -> None:
    if os.geteuid() != 0:  # then the test above was the ordinary user's
        assert_tight(escape(reachable, scripts))
        return
    os.chown(reachable, ORDINARY_USER, ORDINARY_USER)
    found = escape(reachable, scripts, "--user", str(ORDINARY_USER))
    assert found["uid"] == ORDINARY_USER
    assert_tight(found)


def test_without_the_filter_the_probes_get_through(reachable: Path, scripts: Path) -> None:
    found = escape(reachable, scripts, "--no-filter")
    reached = {name for name, seen in found["probes"].items() if seen is not None}
    assert reached >= OPEN_WITHOUT_FILTER
    assert set(found["probes"]["kernel_surfaces"]) & {"io_uring", "userfaultfd", "bpf", "perf"}


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
