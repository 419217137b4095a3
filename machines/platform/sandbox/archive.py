"""The host's side of `save` and `load`: bytes through a pipe, counted and hashed, not understood.

::

    save:  pipe -> the agent gets its writing end -> bytes to a file beside the target
           -> the agent's answer -> fsync -> rename -> fsync of the directory
    load:  pipe -> the agent gets its reading end -> the file's bytes -> the agent's answer

What the bytes mean is known inside only (agent_archive.py): no path of a sandbox is ever resolved
here and nothing is unpacked.  The target is complete or absent, and 0600; a death in between leaves
a file that ends in `.part`.

The agent may be hostile.  It may write too much (it is cut off), too slowly (there is a deadline),
or answer nonsense (`BrokenChannel`, which ends the sandbox).  What fails on our side, a full disk
for example, must not: the pipe is then closed, the answer still read, and the sandbox lives on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import select
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from machines.platform.sandbox.backend import MIB, Level, Saved, Spec
from machines.platform.sandbox.channel import BrokenChannel
from machines.platform.sandbox.errors import SandboxLimit

__all__ = ["VARIABLES_BYTES_MAX", "Asking", "bytes_max_for", "load", "save"]

VARIABLES_BYTES_MAX = 256 * MIB
INSIDE_SECONDS = 120.0
PIPE_SECONDS = 130.0
ANSWER_SECONDS = 150.0
_BLOCK_BYTES = MIB
_TICK_SECONDS = 0.5
_ANSWER_BYTES_MAX = MIB
_LOST_MAX = 500
_LOST_CHARACTERS = 300


class Asking(Protocol):
    """What is used of the channel to an agent."""

    def request(
        self,
        operation: str,
        fields: Mapping[str, Any],
        *,
        wait_seconds: float,
        answer_bytes_max: int,
        descriptors: list[int],
        meanwhile: Callable[[], None],
    ) -> dict[str, Any]:
        """Ask; the answer's object."""


def bytes_max_for(spec: Spec) -> int:
    """How large an archive of a sandbox may get: its disk, and variables."""
    return spec.disk_bytes + VARIABLES_BYTES_MAX


def save(
    channel: Asking,
    target: Path,
    *,
    level: Level,
    hot: bool,
    bytes_max: int,
    lost_seconds: Callable[[], float] = lambda: 0.0,
) -> Saved:
    """Receive an archive; the caller holds the sandbox's lock.

    Args:
        lost_seconds: how long the sandbox stood still so far; that time does not count.

    Raises:
        SandboxLimit: it cannot be packed, is too large, or the target cannot be written.
        BrokenChannel: the agent does not keep to the protocol.
    """
    reached: Level = "files" if level == "files" else "files+vars"
    with _Incoming(target, bytes_max) as incoming:
        ends = _Pipe()
        try:
            document = channel.request(
                "save",
                {
                    "level": reached,
                    "hot": hot,
                    "bytes_max": bytes_max,
                    "variables_bytes_max": VARIABLES_BYTES_MAX,
                    "seconds": INSIDE_SECONDS,
                },
                wait_seconds=ANSWER_SECONDS,
                answer_bytes_max=_ANSWER_BYTES_MAX,
                descriptors=[ends.write],
                meanwhile=lambda: _receive(ends, incoming, lost_seconds),
            )
        finally:
            ends.close()
        lost = _lost(document)
        _require_no_error(document, "packed")
        incoming.keep()
        return Saved(reached, incoming.size_bytes, incoming.digest.hexdigest(), lost)


def load(
    channel: Asking, source: Path, *, lost_seconds: Callable[[], float] = lambda: 0.0
) -> tuple[str, ...]:
    """Send an archive in; what could not be made of it.  The caller holds the sandbox's lock.

    Raises:
        SandboxLimit: it cannot be read, or not be unpacked; files inside may be half there.
        BrokenChannel: the agent does not keep to the protocol.
    """
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxLimit(f"{source.name} cannot be read ({error.strerror})") from error
    ends = _Pipe()
    try:
        document = channel.request(
            "load",
            {"seconds": INSIDE_SECONDS},
            wait_seconds=ANSWER_SECONDS,
            answer_bytes_max=_ANSWER_BYTES_MAX,
            descriptors=[ends.read],
            meanwhile=lambda: _send(ends, descriptor, lost_seconds),
        )
    finally:
        ends.close()
        os.close(descriptor)
    _require_no_error(document, "unpacked")
    return _lost(document)


class _Pipe:
    """Both ends, each closed once."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()

    def close_read(self) -> None:
        """Close the reading end."""
        self.read = _closed(self.read)

    def close_write(self) -> None:
        """Close the writing end."""
        self.write = _closed(self.write)

    def close(self) -> None:
        """Close what is open."""
        self.close_read()
        self.close_write()


def _closed(descriptor: int) -> int:
    if descriptor >= 0:
        os.close(descriptor)
    return -1


class _Incoming:
    """A file beside the target that takes its place when all went well, or goes away."""

    def __init__(self, target: Path, bytes_max: int) -> None:
        self.size_bytes = 0
        self.digest = hashlib.sha256()
        self._target = target
        self._bytes_max = bytes_max
        self._part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        self._refusal: SandboxLimit | None = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(self._part, flags, 0o600)
        except OSError as error:
            raise SandboxLimit(f"{target} cannot be written ({error.strerror})") from error

    def __enter__(self) -> _Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        with contextlib.suppress(FileNotFoundError):
            self._part.unlink()

    def take(self, piece: bytes) -> bool:
        """Write it; False when nothing more is wanted, for `keep` to say why."""
        self.size_bytes += len(piece)
        if self.size_bytes > self._bytes_max:
            return self.refuse(f"its archive is larger than {self._bytes_max} bytes")
        try:
            view = memoryview(piece)
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            return self.refuse(f"{self._target.name} cannot be written ({error.strerror})")
        self.digest.update(piece)
        return True

    def refuse(self, why: str) -> bool:
        """It will not be kept."""
        self._refusal = SandboxLimit(why)
        return False

    def keep(self) -> None:
        """Make it durable, then visible."""
        if self._refusal is not None:
            raise self._refusal
        try:
            os.fsync(self._descriptor)
            self._part.replace(self._target)
            _sync_directory(self._target.parent)
        except OSError as error:
            raise SandboxLimit(f"{self._target} cannot be written ({error.strerror})") from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Patience:
    """A deadline that a standstill moves."""

    def __init__(self, lost_seconds: Callable[[], float]) -> None:
        self._lost_seconds = lost_seconds
        self._limit = time.monotonic() - lost_seconds() + PIPE_SECONDS

    def is_over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() - self._lost_seconds() >= self._limit


def _receive(ends: _Pipe, incoming: _Incoming, lost_seconds: Callable[[], float]) -> None:
    """Take what comes until the pipe ends, or no more is wanted."""
    ends.close_write()
    patience = _Patience(lost_seconds)
    while True:
        if patience.is_over():
            incoming.refuse(f"its archive took more than {PIPE_SECONDS:.0f} s")
            break
        if not select.select([ends.read], [], [], _TICK_SECONDS)[0]:
            continue
        piece = os.read(ends.read, _BLOCK_BYTES)
        if not piece or not incoming.take(piece):
            break
    # Whoever still writes is told so at once.
    ends.close_read()


def _send(ends: _Pipe, source: int, lost_seconds: Callable[[], float]) -> None:
    """Give what the file holds; whoever stops reading says why in the answer."""
    ends.close_read()
    os.set_blocking(ends.write, False)
    patience = _Patience(lost_seconds)
    piece = b""
    with contextlib.suppress(OSError):
        while not patience.is_over() and (piece := piece or os.read(source, _BLOCK_BYTES)):
            if select.select([], [ends.write], [], _TICK_SECONDS)[1]:
                with contextlib.suppress(BlockingIOError):
                    piece = piece[os.write(ends.write, piece) :]
    ends.close_write()


def _require_no_error(document: Mapping[str, Any], done: str) -> None:
    error = document.get("error")
    if error is not None:
        raise SandboxLimit(f"the sandbox could not be {done}: {_text(error)}")


def _lost(document: Mapping[str, Any]) -> tuple[str, ...]:
    lost = document.get("lost", [])
    if not isinstance(lost, list) or len(lost) > _LOST_MAX:
        raise BrokenChannel(f"its agent gave lost = {str(lost)[:50]!r}")
    return tuple(_text(each) for each in lost)


def _text(value: object) -> str:
    """Text from inside, fit for an answer: no surrogates, not endless."""
    if not isinstance(value, str):
        raise BrokenChannel(f"its agent gave {str(value)[:50]!r} where text belongs")
    return value[:_LOST_CHARACTERS].encode(errors="replace").decode().replace("\0", "?")
