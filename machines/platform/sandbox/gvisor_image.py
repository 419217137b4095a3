"""The file of a full snapshot: what gVisor wrote, sealed by the platform that had it written.

    magic line | JSON line {"runsc", "mac", "files": {name: size}} | the files one after another

Restoring such an image gives whoever made it a say in gVisor's kernel, so only images of this very
platform are taken: `mac` is an HMAC-SHA256 over the JSON of the other fields and all bytes, with a
key that never leaves the platform's directory.  An archive packed *inside* a sandbox cannot pass
for one.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from machines.platform.sandbox.backend import MIB, Saved
from machines.platform.sandbox.errors import SandboxLimit

__all__ = ["is_full", "load_key", "pack", "unpack"]

_MAGIC = b"turtles full snapshot 1\n"
_HEAD_BYTES_MAX = 64 * 1024
_FILES = frozenset({"checkpoint.img", "pages.img", "pages_meta.img"})


def load_key(path: Path) -> bytes:
    """The platform's key; made (0600) when there is none."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
    key = path.read_bytes()
    if len(key) != 32:
        raise SandboxLimit(f"{path} holds {len(key)} bytes, 32 are expected; remove it")
    return key


def is_full(source: Path) -> bool:
    """Whether it says that it is a full snapshot."""
    try:
        with source.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise SandboxLimit(f"{source.name} cannot be read ({error.strerror})") from error


def pack(directory: Path, target: Path, *, key: bytes, runsc: str, bytes_max: int) -> Saved:
    """Put the files of an image directory into `target` (0600, complete or absent)."""
    sizes = {each.name: each.stat().st_size for each in sorted(directory.iterdir())}
    if (size := sum(sizes.values())) > bytes_max:
        raise SandboxLimit(f"its image is {size} bytes, at most {bytes_max} are kept")
    sealed = {"runsc": runsc, "files": sizes}
    mac = _seal(key, sealed)
    for name in sizes:
        with (directory / name).open("rb") as file:
            _copy(file, None, sizes[name], mac)
    head = _MAGIC + json.dumps({**sealed, "mac": mac.hexdigest()}).encode() + b"\n"
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    digest = hashlib.sha256()
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(head)
            digest.update(head)
            for name in sizes:
                with (directory / name).open("rb") as file:
                    _copy(file, out, sizes[name], digest)
            out.flush()
            os.fsync(out.fileno())
        part.replace(target)
        _sync_directory(target.parent)
    except OSError as error:
        raise SandboxLimit(f"{target} cannot be written ({error.strerror})") from error
    finally:
        part.unlink(missing_ok=True)
    return Saved("full", len(head) + size, digest.hexdigest())


def unpack(source: Path, directory: Path, *, key: bytes, runsc: str) -> None:
    """Write the image's files to a directory.  SandboxLimit for what this platform did not seal."""
    with source.open("rb") as file:
        sealed, claimed = _read_head(file, source.name)
        mac = _seal(key, sealed)
        for name, size in sealed["files"].items():
            with (directory / name).open("wb") as out:
                _copy(file, out, size, mac)
        if file.read(1) or not hmac.compare_digest(mac.hexdigest(), claimed):
            raise SandboxLimit(f"{source.name} is not a full snapshot made by this platform")
    if sealed["runsc"] != runsc:
        raise SandboxLimit(
            f"{source.name} was made by {sealed['runsc']}, here is {runsc}; a full snapshot can "
            "be restored by the same version only"
        )


def _read_head(file: BinaryIO, name: str) -> tuple[dict[str, Any], str]:
    try:
        file.seek(len(_MAGIC))
        document = json.loads(file.readline(_HEAD_BYTES_MAX))
        files = {str(key): int(size) for key, size in document["files"].items()}
        if not files.keys() <= _FILES or min(files.values(), default=0) < 0:
            raise ValueError(f"files {list(files)}")
        return {"runsc": str(document["runsc"]), "files": files}, str(document["mac"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SandboxLimit(f"{name} is not a full snapshot made by this platform") from error


def _seal(key: bytes, sealed: Mapping[str, Any]) -> hmac.HMAC:
    return hmac.new(key, json.dumps(sealed, sort_keys=True).encode(), hashlib.sha256)


def _copy(source: BinaryIO, target: BinaryIO | None, size: int, digest: Any) -> None:
    """`size` bytes, through the digest; fewer end in a digest that does not fit."""
    while size > 0 and (piece := source.read(min(size, MIB))):
        digest.update(piece)
        if target is not None:
            target.write(piece)
        size -= len(piece)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
