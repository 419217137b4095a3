"""The host's end of the channel to an agent (protocol: see agent.py).

Nothing that arrives is believed: the agent runs with the rights of untrusted code, which may have
taken its place. A frame has a size limit known before it is read, must be one JSON object with the
number of the request, and every field is checked for type and range. Descriptors are taken only
where a request asked for them, at most as many, and closed again when the answer does not fit
(their kind is for the caller to check, see doors.py). Whatever does not fit is a `BrokenChannel`,
after which the sandbox is of no use any more.

A frozen agent is not late: the time of a standstill (`lost_seconds`) does not count.
"""

from __future__ import annotations

import array
import base64
import binascii
import contextlib
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from machines.platform.sandbox.backend import REQUEST_BYTES_MAX, Result
from machines.platform.sandbox.errors import SandboxLimit

__all__ = ["BrokenChannel", "Channel", "close_all", "integer", "read_files", "read_result"]

_HEADER = struct.Struct(">I")
_SMALL_ANSWER_BYTES = 64 * 1024
_SHORTEST_SECONDS = 0.05  # a request that stands still at its deadline looks this often
_PATH_CHARACTERS_MAX = 1000


class BrokenChannel(Exception):
    """The agent is gone, late, or said something that is not in the protocol."""


class Channel:
    """One request at a time; the caller holds the lock of this channel.

    `lost_seconds`: how long the other side has stood still so far, one that lasts included.
    """

    def __init__(
        self, connection: socket.socket, lost_seconds: Callable[[], float] = lambda: 0.0
    ) -> None:
        self._connection = connection
        self._lost_seconds = lost_seconds
        self._last_id = 0
        self._deadline = 0.0

    def request(
        self,
        operation: str,
        fields: Mapping[str, Any],
        *,
        wait_seconds: float,
        answer_bytes_max: int = _SMALL_ANSWER_BYTES,
        descriptors: Sequence[int] = (),
        meanwhile: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Ask the agent; its `ok` object. BrokenChannel on anything else.

        `descriptors` go along and stay the caller's. `meanwhile` is called once all was sent and
        before the answer is read: to close them, to move bytes through a pipe. What it raises
        leaves the answer unread, and the channel of no use.
        SandboxLimit, with nothing sent, when the request is longer than REQUEST_BYTES_MAX.
        """
        document, _ = self._exchange(
            operation, fields, wait_seconds, answer_bytes_max, descriptors, 0, meanwhile
        )
        return document

    def request_descriptors(
        self, operation: str, fields: Mapping[str, Any], *, wait_seconds: float, count_max: int
    ) -> tuple[dict[str, Any], list[int]]:
        """Ask for descriptors: the `ok` object and at most `count_max`, now the caller's.

        They are close-on-exec and of unknown kind.
        """
        return self._exchange(
            operation, fields, wait_seconds, _SMALL_ANSWER_BYTES, (), count_max, None
        )

    def hang_up(self) -> None:
        """End it for both sides, from any thread; a request under way learns it."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close our end; the agent then ends everything inside."""
        self._connection.close()

    def _exchange(
        self,
        operation: str,
        fields: Mapping[str, Any],
        wait_seconds: float,
        answer_bytes_max: int,
        descriptors: Sequence[int],
        count_max: int,
        meanwhile: Callable[[], None] | None,
    ) -> tuple[dict[str, Any], list[int]]:
        self._last_id += 1
        self._deadline = self._moving_seconds() + wait_seconds
        body = json.dumps({"id": self._last_id, "op": operation, **fields}).encode()
        if len(body) > REQUEST_BYTES_MAX:
            raise SandboxLimit(
                f"the request is {len(body)} bytes once encoded, at most {REQUEST_BYTES_MAX} fit"
            )
        came: list[int] = []
        try:
            self._send(_HEADER.pack(len(body)) + body, descriptors)
            if meanwhile is not None:
                meanwhile()
            (size,) = _HEADER.unpack(self._receive(_HEADER.size, came, count_max))
            if size > answer_bytes_max:
                raise BrokenChannel(f"its answer is {size} bytes, at most {answer_bytes_max} fit")
            return self._answer(self._receive(size, came, count_max)), came
        except BaseException as error:
            close_all(came)
            if isinstance(error, TimeoutError):
                late = f"no answer to {operation!r} in {wait_seconds:.1f} s"
                raise BrokenChannel(late) from error
            if isinstance(error, OSError):
                raise BrokenChannel(f"the connection to its agent broke ({error})") from error
            raise

    def _send(self, data: bytes, descriptors: Sequence[int]) -> None:
        """All of `data`, the descriptors beside its first byte."""
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        ancillary = beside if descriptors else []
        view = memoryview(data)
        while view:
            with self._patience():
                sent = self._connection.sendmsg([view[: 1 << 20]], ancillary)
                view, ancillary = view[sent:], []

    def _receive(self, size: int, came: list[int], count_max: int) -> bytes:
        """Exactly `size` bytes; descriptors beside them are added to `came`."""
        data = bytearray()
        while len(data) < size:
            with self._patience():
                piece = self._receive_piece(min(size - len(data), 1 << 20), came, count_max)
                if not piece:
                    raise BrokenChannel("its agent ended")
                data += piece
        return bytes(data)

    def _receive_piece(self, size: int, came: list[int], count_max: int) -> bytes:
        """Without room for descriptors the kernel closes those that were sent."""
        if not count_max:
            return self._connection.recv(size)
        space = socket.CMSG_SPACE(count_max * array.array("i").itemsize)
        piece, beside, flags, _ = self._connection.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in beside:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                came += numbers
        if flags & socket.MSG_CTRUNC or len(came) > count_max:
            raise BrokenChannel(f"its agent passed more than {count_max} descriptors")
        return piece

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        """Let one system call wait; TimeoutError only when the deadline has come.

        After a call that came to nothing the caller asks again: a standstill may have moved it.
        """
        left = self._deadline - self._moving_seconds()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(max(left, _SHORTEST_SECONDS))
        with contextlib.suppress(TimeoutError):
            yield

    def _moving_seconds(self) -> float:
        """A clock that stops while the sandbox stands still."""
        return time.monotonic() - self._lost_seconds()

    def _answer(self, body: bytes) -> dict[str, Any]:
        try:
            document = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BrokenChannel("its agent did not answer in JSON") from error
        if not isinstance(document, dict) or document.get("id") != self._last_id:
            raise BrokenChannel("its agent answered something that was not asked")
        if not isinstance(ok := document.get("ok"), dict):
            raise BrokenChannel(f"its agent failed: {str(document.get('error'))[:300]!r}")
        return ok


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that nobody wants."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def read_files(document: Mapping[str, Any], *, bytes_max: int, count_max: int) -> dict[str, bytes]:
    """Checked files from the answer to `collect`. BrokenChannel when something does not fit."""
    files = document.get("files")
    if not isinstance(files, dict) or len(files) > count_max:
        raise BrokenChannel(f"its agent gave no files, or more than {count_max}")
    for path in files:
        if not _is_relative(path):
            raise BrokenChannel(f"its agent gave a file the name {path[:100]!r}")
    found = {path: _stream(files, path, bytes_max + 1) for path in files}
    if (size := sum(map(len, found.values()))) > bytes_max:
        raise BrokenChannel(f"its agent gave {size} bytes of files, at most {bytes_max} were asked")
    return found


def _is_relative(path: str) -> bool:
    """Whether a path names something below a folder wherever it is put together with one."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    parts = path.split("/")
    return (
        "\0" not in path
        and len(path) <= _PATH_CHARACTERS_MAX
        and all(part not in ("", ".", "..") for part in parts)
    )


def read_result(document: Mapping[str, Any], *, max_output_bytes: int, oom: bool) -> Result:
    """A checked Result from the agent's answer. BrokenChannel when a field does not fit."""
    return Result(
        exit_code=integer(document, "exit_code", 255),
        stdout=_stream(document, "stdout", max_output_bytes),
        stderr=_stream(document, "stderr", max_output_bytes),
        truncated=_flag(document, "truncated"),
        timed_out=_flag(document, "timed_out"),
        oom=oom,
        duration_ms=integer(document, "duration_ms", 10**9),
    )


def integer(document: Mapping[str, Any], name: str, maximum: int) -> int:
    """A field that is a whole number from 0 to `maximum`. BrokenChannel when it is not."""
    value = document.get(name)
    if type(value) is not int or not 0 <= value <= maximum:
        raise BrokenChannel(f"its agent gave {name} = {str(value)[:50]!r}")
    return value


def _flag(document: Mapping[str, Any], name: str) -> bool:
    value = document.get(name)
    if not isinstance(value, bool):
        raise BrokenChannel(f"its agent gave {name} = {str(value)[:50]!r}")
    return value


def _stream(document: Mapping[str, Any], name: str, maximum: int) -> bytes:
    value = document.get(name)
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else None
    except (ValueError, binascii.Error) as error:
        raise BrokenChannel(f"its agent gave a {name} that is not base64") from error
    # A failure message may be longer than a small limit; a stream may not.
    if data is None:
        raise BrokenChannel(f"its agent gave no {name}")
    return data[:maximum]
