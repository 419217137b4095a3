"""Attempts to get out: as root and as an ordinary user, zerotrust and semitrusted, and a control.

`scripts/escape.py` sets canaries up on the host (a file, a port, an abstract socket, keys of System
V, the environment, a victim process) and runs `scripts/probes.py` inside; then it sets off bombs
and lets the host's own calls walk by traps that the sandbox laid. Each probe prints what it saw.
A semitrusted sandbox is also shown a toolbox: nested chains run in such ones.
The control is the same without the system call filter: there, probes must get through. No setting
does that; the script puts another function in the place of `build_filter`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from machines.platform.sandbox.program import find_candidates

ORDINARY_USER = 54321  # no account is needed, and none is made
OPEN_WITHOUT_FILTER = {
    "add_key",
    "bpf",
    "kernel_surfaces",
    "keyctl",
    "ptrace_child",
    "read_our_memory",
    "request_key",
    "socket_netlink_other",
    "take_our_descriptors",
    "uncounted_memory",
}
PROBES = 58
TRICKS = {
    "collect_links",
    "load_hostile",
    "save_links",
    "stop_strangers",
    "write_through_links",
}


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
    """What the script found; what each probe saw is shown when the test fails."""
    done = subprocess.run(
        [sys.executable, str(scripts / "escape.py"), str(root), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "TURTLES_BWRAP": str(root / "package" / "_bin" / "bwrap")},
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *seen, last = done.stdout.splitlines()
    print("\n".join(seen))
    found: dict[str, Any] = json.loads(last)
    return found


def reached(results: dict[str, list[Any]]) -> dict[str, Any]:
    """The probes that got through, and to what."""
    return {name: what for name, (what, _saw) in results.items() if what is not None}


def assert_tight(found: dict[str, Any]) -> None:
    assert reached(found["probes"]) == {}
    assert len(found["probes"]) == PROBES
    assert reached(found["tricks"]) == {}
    assert found["tricks"].keys() == TRICKS
    assert found["fork"][:2] == [0, "21 11\n"]  # EAGAIN below the limit of 32 processes
    places = found["disk"][1].splitlines()
    assert [place.split()[1] for place in places[:3]] == ["28"] * 3  # ENOSPC, each of three
    assert int(places[3]) <= 16 * 1024 * 1024
    if found["enforcement"] == "cgroup":
        assert (found["memory"][0], found["memory_oom"]) == (137, True)
        assert found["hoard"] == {"oom": True, "ended": None}
    else:
        assert "MemoryError" in found["memory"][2]
        assert found["hoard"]["ended"].endswith("of memory, 268435456 are allowed")
    assert found["standstill"] == {"moved": True, "still": True, "moves": True}
    assert [found[f"after_{bomb}"] for bomb in ("fork", "memory", "disk")] == ["alive\n"] * 3
    assert found["doors"] == {
        "came": "hi",
        "listens": ["127.0.0.1", 3128],
        "said": "\n",
        "code": "0\n",
        "stty": "37 91\r\n",
    }
    assert found["victim_alive"]
    assert found["left"] == []


SANDBOXES = [("zerotrust", []), ("semitrusted", ["--toolbox"])]


def assert_toolbox(found: dict[str, Any], words: list[str]) -> None:
    assert bool(found["toolbox"]) == ("--toolbox" in words)
    assert set(found["toolbox"]) <= {"bin", "lib", "python", "wheelhouse"}


@pytest.mark.parametrize(("network", "more"), SANDBOXES)
def test_every_wall_stands(reachable: Path, scripts: Path, network: str, more: list[str]) -> None:
    found = escape(reachable, scripts, "--network", network, *more)
    assert found["uid"] == os.geteuid()
    assert_toolbox(found, more)
    assert_tight(found)


@pytest.mark.parametrize(("network", "more"), SANDBOXES)
def test_every_wall_stands_for_an_ordinary_user(
    reachable: Path, scripts: Path, network: str, more: list[str]
) -> None:
    words = ["--network", network, *more]
    if os.geteuid() == 0:  # else the test above was the ordinary user's, and so is this one
        os.chown(reachable, ORDINARY_USER, ORDINARY_USER)
        words += ["--user", str(ORDINARY_USER)]
    found = escape(reachable, scripts, *words)
    assert found["uid"] != 0
    assert_toolbox(found, more)
    assert_tight(found)


def has_vsock() -> bool:
    """Whether this kernel makes such sockets at all."""
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def test_without_the_filter_the_probes_get_through(reachable: Path, scripts: Path) -> None:
    found = escape(reachable, scripts, "--no-filter")
    through = reached(found["probes"])
    assert through.keys() >= OPEN_WITHOUT_FILTER | ({"socket_vsock"} if has_vsock() else set())
    assert set(through["kernel_surfaces"]) >= {"io_uring", "kcmp"}
    assert found["left"] == []
