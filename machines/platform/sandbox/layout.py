"""What a sandbox sees, as bubblewrap arguments ("host-usr" mode: the host's /usr, read-only).

    /usr and the links beside it   the host's, read-only          /proc  its own
    /etc                           a few files, made up or public  /dev   null, zero, random, tty
    /root /tmp /dev/shm            empty, in memory, of limited size: the only places to write
    /run/turtles/agent*.py         our agent, read-only
    /opt/turtles                   in one with a toolbox, what machines/platform/toolbox.py tells

The base `/` and /dev are memory file systems without a limit, hence the two --remount-ro at the
end. Namespaces are named one by one because `--unshare-all` silently does without a user namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

from machines.platform.sandbox.backend import EGRESS_PORT, Spec
from machines.platform.sandbox.errors import SandboxUnavailable

__all__ = [
    "AGENT_DIRECTORY",
    "AGENT_PATH",
    "Interpreter",
    "available_programs",
    "environment",
    "file_system",
    "find_interpreter",
    "namespaces",
    "toolbox_mounts",
]

AGENT_DIRECTORY = "/run/turtles"
AGENT_PATH = f"{AGENT_DIRECTORY}/agent.py"
_PROGRAM_DIRECTORIES = ("/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin", "/bin")
_SYSTEM_PYTHONS = ("/usr/bin/python3", "/usr/local/bin/python3")
_BESIDE_USR = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_PUBLIC_ETC = (
    "/etc/alternatives",
    "/etc/ssl/certs",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/java-17-openjdk",
    "/etc/java-21-openjdk",
    "/etc/R",
    "/etc/groovy",
    "/etc/gnucobol",
    "/etc/mono",
    "/etc/nim",
    "/var/lib/ghc",
)
_MADE_UP_ETC = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "/etc/hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
_PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
_NO_PROXY_VARIABLES = ("NO_PROXY", "no_proxy")
_NEEDS = (
    "import base64, ctypes, json, os, selectors, subprocess, sys\n"
    "os.pidfd_open\n"
    "sys.exit(sys.version_info < (3, 10))"
)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python that runs the agent. `prefix` must be bound when it is not below /usr."""

    program: str
    prefix: str | None


@cache
def find_interpreter() -> Interpreter:
    """A Python 3.10 or newer that can be seen inside, the distribution's if there is one.

    Never a virtual environment's: only the base installation is shown inside, so that nothing of
    the platform's own packages is.
    """
    for program in _SYSTEM_PYTHONS:
        if Path(program).resolve().is_relative_to("/usr") and _can_run_agent(program):
            return Interpreter(program, None)
    base = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    prefix = os.path.realpath(sys.base_prefix)
    if prefix.count("/") >= 2 and Path(base).is_relative_to(prefix) and _can_run_agent(base):
        return Interpreter(base, prefix)
    raise SandboxUnavailable(
        "no Python 3.10 or newer that a sandbox may see was found "
        f"(looked for /usr/bin/python3, /usr/local/bin/python3, {base})",
        "install the distribution's Python (`apt-get install python3`)",
    )


def _can_run_agent(program: str) -> bool:
    try:
        done = subprocess.run(  # noqa: S603 - fixed paths, our own line
            [program, "-I", "-S", "-c", _NEEDS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def available_programs(names: Iterable[str]) -> frozenset[str]:
    """Those of `names` that are programs inside. Bare names only, no paths."""
    path = ":".join(_PROGRAM_DIRECTORIES)
    return frozenset(
        name
        for name in names
        if "/" not in name and (found := shutil.which(name, path=path)) and _is_visible(found)
    )


def _is_visible(program: str) -> bool:
    return os.path.realpath(program).startswith("/usr/")


def environment(spec: Spec, interpreter: Interpreter) -> dict[str, str]:
    """Environment of every program inside: a fixed few, then the session's own.

    In a semitrusted sandbox most programs find the proxy by four variables of the fixed few.
    """
    directories = list(_PROGRAM_DIRECTORIES)
    if interpreter.prefix is not None:
        directories.append(str(Path(interpreter.program).parent))
    fixed = {"HOME": "/root", "PATH": ":".join(directories), "LANG": "C.UTF-8", "USER": "root"}
    if spec.network == "semitrusted":
        fixed |= dict.fromkeys(_PROXY_VARIABLES, f"http://127.0.0.1:{EGRESS_PORT}")
        fixed |= dict.fromkeys(_NO_PROXY_VARIABLES, "localhost,127.0.0.1")
    return {**fixed, **spec.environment}


def namespaces(*, can_disable_userns: bool) -> list[str]:
    """The walls: own namespaces, no capability, no way to make further user namespaces."""
    return [
        *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
        "--unshare-cgroup-try",
        *(["--disable-userns"] if can_disable_userns else []),
        *("--uid", "0", "--gid", "0", "--hostname", "sandbox", "--cap-drop", "ALL"),
        *("--die-with-parent", "--new-session", "--clearenv"),
    ]


def file_system(
    disk_bytes: int,
    interpreter: Interpreter,
    agent_fd: int,
    etc_fds: dict[str, int],
    more: Iterable[str] = (),
) -> list[str]:
    """Mounts, in order. `agent_fd` and `etc_fds` hold the content of files made for the sandbox.

    `more`: further mounts (`toolbox_mounts`).
    """
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in _BESIDE_USR:
        arguments += _beside_usr(Path("/") / name)
    for path in _PUBLIC_ETC:
        arguments += ["--ro-bind-try", path, path]
    for path, descriptor in etc_fds.items():
        arguments += ["--perms", "0444", "--file", str(descriptor), path]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    for path, mode, share in (("/root", "0700", 4), ("/tmp", "1777", 3), ("/dev/shm", "1777", 1)):  # noqa: S108
        arguments += ["--perms", mode, "--size", str(disk_bytes * share // 8), "--tmpfs", path]
    if interpreter.prefix is not None:
        arguments += ["--ro-bind", interpreter.prefix, interpreter.prefix]
    arguments += ["--dir", "/var", "--symlink", "/tmp", "/var/tmp"]  # noqa: S108
    arguments += ["--perms", "0444", "--ro-bind-data", str(agent_fd), AGENT_PATH]
    return [*arguments, *more, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/root"]


def toolbox_mounts(
    binds: Iterable[tuple[str, str]], hidden: Iterable[str], files: Iterable[tuple[str, int]]
) -> list[str]:
    """Mounts of a toolbox, in order: `files` are paths with the descriptors of their contents.

    The files lie in the base, which --remount-ro closes at the end; programs are those in bin/.
    """
    binds, files = list(binds), list(files)
    paths = [path for _, path in binds] + [path for path, _ in files]
    above = {str(each) for path in paths for each in PurePosixPath(path).parents if each.name}
    arguments: list[str] = []
    for directory in sorted(above):
        arguments += ["--perms", "0755", "--dir", directory]
    for source, path in binds:
        arguments += ["--ro-bind", source, path]
    for path in hidden:
        arguments += ["--perms", "0555", "--size", "4096", "--tmpfs", path, "--remount-ro", path]
    for path, descriptor in files:
        mode = "0555" if "/bin/" in path else "0444"
        arguments += ["--perms", mode, "--file", str(descriptor), path]
    return arguments


def made_up_files() -> dict[str, bytes]:
    """Files of /etc that say nothing about this host."""
    return {path: text.encode() for path, text in _MADE_UP_ETC.items()}


def _beside_usr(path: Path) -> list[str]:
    if path.is_symlink():
        return ["--symlink", str(path.readlink()), str(path)]
    return ["--ro-bind", str(path), str(path)] if path.is_dir() else []
