"""What goes into a sandbox with a program, and what comes out of it afterwards.

Input files are written to /tmp/input; the wire facts (section 2.1) know two more places, so links
with their names stand in /tmp, and /root/input is a link to the directory.  A name that is taken
(the program's own source, a directory) keeps its meaning: it gets no link.

Artifacts are the regular files below /tmp/artifacts and /root/artifacts, read inside the sandbox.
At most `ARTIFACTS_MAX` files with `ARTIFACT_BYTES_MAX` bytes in all are kept; how many were left
out is said.  They are stored with their execution as JSON::

    {"artifacts": [{"filename", "size", "data"}], "omitted": 0, "artifact": {...}}

`data` is base64.  A sandbox that ends meanwhile, as a cancelled one may, gives nothing.

Names come from inside: what could lead out of the directory a client saves them to is left out.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

import msgspec

from machines.platform.sandbox.backend import Backend, Command, Handle
from machines.platform.sandbox.errors import SandboxError

ARTIFACT_DIRECTORIES = ("/tmp/artifacts", "/root/artifacts")  # noqa: S108 - inside the sandbox
ARTIFACT_BYTES_MAX = 8 * 1024 * 1024
ARTIFACTS_MAX = 100
INPUT_DIRECTORY = "/tmp/input"  # noqa: S108 - a path inside the sandbox
_CARRY_SECONDS = 10.0
_LINK = (
    f"mkdir -p {INPUT_DIRECTORY}; ln -sT {INPUT_DIRECTORY} /root/input; "
    f'for name; do ln -sT "{INPUT_DIRECTORY}/$name" "/tmp/$name"; done; true'
)
_COUNT = ("find", *ARTIFACT_DIRECTORIES, "-type", "f", "-printf", ".")
_COPY_OUT = 'mkdir -p "$1" && cp -- "$2" "$1/"'
_BUILT_DIRECTORY = "/tmp/.built"  # noqa: S108 - a path inside the sandbox


class Artifact(msgspec.Struct, frozen=True):
    """A file that came out.  `data` is base64."""

    filename: str
    size: int
    data: str


class Yield(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that came out of one execution."""

    artifacts: tuple[Artifact, ...] = ()
    omitted: int = 0
    artifact: Artifact | None = None
    wasm_artifact: Artifact | None = None

    def packed(self) -> str | None:
        """As it is stored; None when nothing came out."""
        if self == Yield():
            return None
        return msgspec.json.encode(self).decode()


def unpacked(stored: str | None) -> Yield:
    """What `Yield.packed` made."""
    return Yield() if stored is None else msgspec.json.decode(stored, type=Yield)


def link_inputs(
    backend: Backend, handle: Handle, paths: Iterable[str], taken: Iterable[str] = ()
) -> None:
    """Let input files below /tmp/input be found in /tmp and /root/input, too.

    The files need not be there yet.  Names in `taken` get no link in /tmp.
    """
    prefix = INPUT_DIRECTORY + "/"
    kept = set(taken)
    names = [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]
    if names:
        argv = ("sh", "-c", _LINK, "sh", *(name for name in names if name not in kept))
        # A name that is taken is no error, hence the outcome is not looked at.
        backend.execute(handle, Command(argv=argv), timeout_seconds=_CARRY_SECONDS)


def collect_artifacts(backend: Backend, handle: Handle) -> Yield:
    """The files that a program left for its caller; nothing when the sandbox has ended."""
    try:
        counted = backend.execute(handle, Command(argv=_COUNT), timeout_seconds=_CARRY_SECONDS)
        # 1: a directory is not there.  Without `find` inside (127), only what was left out is
        # unknown.
        if counted.exit_code in (0, 1) and not counted.stdout:
            return Yield()
        files = backend.collect(
            handle, ARTIFACT_DIRECTORIES, bytes_max=ARTIFACT_BYTES_MAX, count_max=ARTIFACTS_MAX
        )
    except SandboxError:
        return Yield()
    kept = tuple(_artifact(*each) for each in sorted(files.items()) if _is_below(each[0]))
    return Yield(artifacts=kept, omitted=max(0, len(counted.stdout) - len(kept)))


def collect_file(backend: Backend, handle: Handle, path: str) -> Artifact | None:
    """One file, such as a compiled program; None when it is absent or too large."""
    argv = ("sh", "-c", _COPY_OUT, "sh", _BUILT_DIRECTORY, path)
    try:
        backend.execute(handle, Command(argv=argv), timeout_seconds=_CARRY_SECONDS)
        files = backend.collect(handle, (_BUILT_DIRECTORY,), bytes_max=ARTIFACT_BYTES_MAX)
    except SandboxError:
        return None
    name = path.rpartition("/")[2]
    return _artifact(name, files[name]) if name in files else None


def shown(artifact: Artifact) -> dict[str, Any]:
    """An artifact under every name that some client reads (wire facts, section 2.3)."""
    return {
        "type": "base64",
        "filename": artifact.filename,
        "data": artifact.data,
        "content_base64": artifact.data,
        "size": artifact.size,
    }


def _is_below(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/") and "\0" not in name


def _artifact(name: str, content: bytes) -> Artifact:
    # A name that is no UTF-8 comes with surrogates, which JSON cannot carry.
    shown_name = name.encode("utf-8", "replace").decode()
    return Artifact(shown_name, len(content), base64.b64encode(content).decode())
