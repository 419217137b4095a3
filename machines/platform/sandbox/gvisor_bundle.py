"""What a gVisor sandbox sees, as an OCI bundle (the same as layout.py makes by bubblewrap).

    rootfs (one for all, read-only)   /etc made up, /run/turtles our agent, empty mount points
    /usr and what lies beside it      the host's, read-only, by the gofer
    /root /tmp /dev/shm               in memory, of limited size

Everything else (/proc, /sys, /dev) is made up by gVisor's kernel and is none of the host's.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from machines.platform.sandbox import layout

__all__ = ["INSIDE_PATH", "make_rootfs", "write_bundle"]

INSIDE_PATH = f"{layout.AGENT_DIRECTORY}/gvisor_inside.py"
_SOURCES = Path(__file__).parent
_DIRECTORIES = ("usr", "proc", "sys", "dev/shm", "root", "tmp", "etc", "run/turtles", "var")
_TEMPORARY = (("/root", "0700", 4), ("/tmp", "1777", 3), ("/dev/shm", "1777", 1))  # noqa: S108
_CAPABILITIES = ("bounding", "effective", "inheritable", "permitted", "ambient")
_NAMESPACES = ("pid", "network", "ipc", "uts", "mount")


def make_rootfs(parent: Path) -> Path:
    """A fresh directory that every sandbox of a backend may share; the caller removes it."""
    rootfs = parent / f"rootfs-{secrets.token_hex(4)}"
    for name in _DIRECTORIES:
        (rootfs / name).mkdir(parents=True)
    (rootfs / "var" / "tmp").symlink_to("/tmp")  # noqa: S108
    for link, target in _links():
        (rootfs / link.lstrip("/")).symlink_to(target)
    for path in _bound():
        place = rootfs / path.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
    for path, content in _files().items():
        place = rootfs / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        place.chmod(0o444)
    return rootfs


def write_bundle(
    bundle: Path, rootfs: Path, disk_bytes: int, interpreter: layout.Interpreter
) -> None:
    """Write `bundle`/config.json."""
    bundle.mkdir(mode=0o700, exist_ok=True)
    document = {
        "ociVersion": "1.0.0",
        "process": _process(interpreter),
        "root": {"path": str(rootfs), "readonly": True},
        "hostname": "sandbox",
        "mounts": _mounts(disk_bytes, interpreter),
        "linux": {"namespaces": [{"type": name} for name in _NAMESPACES]},
    }
    (bundle / "config.json").write_text(json.dumps(document))


def _process(interpreter: layout.Interpreter) -> dict[str, Any]:
    return {
        "user": {"uid": 0, "gid": 0},
        "args": [interpreter.program, "-I", "-S", "-B", INSIDE_PATH],
        "env": ["PATH=/usr/bin:/bin", "LANG=C.UTF-8"],
        "cwd": "/root",
        "capabilities": {name: [] for name in _CAPABILITIES},
        "noNewPrivileges": True,
    }


def _mounts(disk_bytes: int, interpreter: layout.Interpreter) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        *(_bind(path) for path in _bound()),
    ]
    for path, mode, share in _TEMPORARY:
        options = ["nosuid", "nodev", f"mode={mode}", f"size={disk_bytes * share // 8}"]
        mounts.append({"destination": path, "type": "tmpfs", "source": "tmpfs", "options": options})
    if interpreter.prefix is not None:
        mounts.append(_bind(interpreter.prefix))
    return mounts


def _bind(path: str) -> dict[str, Any]:
    return {
        "destination": path,
        "type": "bind",
        "source": os.path.realpath(path),
        "options": ["ro", "rbind", "nosuid", "nodev"],
    }


def _bound() -> list[str]:
    """Directories of the host that are shown, read-only."""
    beside = [Path("/") / name for name in layout._BESIDE_USR]
    directories = [str(path) for path in beside if path.is_dir() and not path.is_symlink()]
    public = [path for path in layout._PUBLIC_ETC if Path(path).is_dir()]
    return ["/usr", *directories, *public]


def _links() -> list[tuple[str, str]]:
    beside = [Path("/") / name for name in layout._BESIDE_USR]
    return [(str(path), str(path.readlink())) for path in beside if path.is_symlink()]


def _files() -> dict[str, bytes]:
    """Files of the rootfs: of /etc, and our agent."""
    public = [Path(path) for path in layout._PUBLIC_ETC if Path(path).is_file()]
    ours = [_SOURCES / "agent.py", *sorted(_SOURCES.glob("agent_*.py"))]
    ours += [_SOURCES / "gvisor_inside.py", _SOURCES / "gvisor_relay.py"]
    return {
        **{str(path): path.read_bytes() for path in public},
        **layout.made_up_files(),
        **{f"{layout.AGENT_DIRECTORY}/{path.name}": path.read_bytes() for path in ours},
    }
