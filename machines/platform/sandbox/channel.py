"""The host's end of the channel to an agent (protocol: see agent.py).

Nothing that arrives is believed: the agent runs with the rights of untrusted code, which may have
taken its place. A frame has a size limit known before it is read, must be one JSON object with the
number of the request, and every field is checked for type and range. Whatever does not fit is a
`BrokenChannel`, after which the sandbox is of no use any more.
"""

from __future__ import annotations

import base64
import binascii
import json
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from machines.platform.sandbox.backend import REQUEST_BYTES_MAX, Result
from machines.platform.sandbox.errors import SandboxLimit

__all__ = ["BrokenChannel", "Channel", "read_result"]

_HEADER = struct.Struct(">I")
_SMALL_ANSWER_BYTES = 64 * 1024


class BrokenChannel(Exception):
    """The agent is gone, late, or said something that is not in the protocol."""


class Channel:
    """One request at a time; the caller holds the sandbox's lock."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._last_id = 0

    def request(
        self,
        operation: str,
        fields: Mapping[str, Any],
        *,
        wait_seconds: float,
        answer_bytes_max: int = _SMALL_ANSWER_BYTES,
    ) -> dict[str, Any]:
        """Ask the agent; its `ok` object. BrokenChannel on anything else.

        SandboxLimit, with nothing sent, when the request is longer than REQUEST_BYTES_MAX.
        """
        self._last_id += 1
        deadline = time.monotonic() + wait_seconds
        body = json.dumps({"id": self._last_id, "op": operation, **fields}).encode()
        if len(body) > REQUEST_BYTES_MAX:
            raise SandboxLimit(
                f"the request is {len(body)} bytes once encoded, at most {REQUEST_BYTES_MAX} fit"
            )
        try:
            self._connection.settimeout(wait_seconds)
            self._connection.sendall(_HEADER.pack(len(body)) + body)
            (size,) = _HEADER.unpack(self._receive(_HEADER.size, deadline))
            if size > answer_bytes_max:
                raise BrokenChannel(f"its answer is {size} bytes, at most {answer_bytes_max} fit")
            return self._answer(self._receive(size, deadline))
        except TimeoutError as error:
            raise BrokenChannel(f"no answer to {operation!r} in {wait_seconds:.1f} s") from error
        except OSError as error:
            raise BrokenChannel(f"the connection to its agent broke ({error})") from error

    def close(self) -> None:
        """Close our end; the agent then ends everything inside."""
        self._connection.close()

    def _receive(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._connection.settimeout(left)
            piece = self._connection.recv(min(size - len(data), 1 << 20))
            if not piece:
                raise BrokenChannel("its agent ended")
            data += piece
        return bytes(data)

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


def read_result(document: Mapping[str, Any], *, max_output_bytes: int, oom: bool) -> Result:
    """A checked Result from the agent's answer. BrokenChannel when a field does not fit."""
    return Result(
        exit_code=_integer(document, "exit_code", 255),
        stdout=_stream(document, "stdout", max_output_bytes),
        stderr=_stream(document, "stderr", max_output_bytes),
        truncated=_flag(document, "truncated"),
        timed_out=_flag(document, "timed_out"),
        oom=oom,
        duration_ms=_integer(document, "duration_ms", 10**9),
    )


def _integer(document: Mapping[str, Any], name: str, maximum: int) -> int:
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
