"""The host's side of the door: what passes a descriptor in or out (operations: agent_doors.py).

Of a descriptor that comes out nothing is believed either: what it is, is asked of the kernel, and
anything but what was asked for is closed and breaks the channel. A pipe is better than that: we
make it, and only its other end goes in.

What stays true: a socket or terminal that came out is one open file description with its copy
inside, if the doorman kept one. A doorman that was taken over could clear O_NONBLOCK on it, so
readers that must never wait poll first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from machines.platform.sandbox.backend import Command, Program
from machines.platform.sandbox.channel import BrokenChannel, Channel, close_all, integer
from machines.platform.sandbox.errors import PortClosed, SandboxLimit

__all__ = [
    "check_port",
    "check_size",
    "connect",
    "listen",
    "open_terminal",
    "start_program",
    "stop_program",
]

_WAIT_SECONDS = 20.0
_NUMBER_MAX = 2**31
_TERMINAL_CELLS_MAX = 1000
_PORT_MAX = 65535
_TIOCGPTN = 0x80045430  # the number of a terminal: only its master side has one


def check_port(port: int) -> None:
    """SandboxLimit for what cannot be a TCP port."""
    if not 1 <= port <= _PORT_MAX:
        raise SandboxLimit(f"port {port}: expected 1 to {_PORT_MAX}")


def check_size(columns: int, rows: int) -> None:
    """SandboxLimit for a terminal of an impossible size."""
    for name, value in (("columns", columns), ("rows", rows)):
        if not 1 <= value <= _TERMINAL_CELLS_MAX:
            raise SandboxLimit(f"{name} {value}: expected 1 to {_TERMINAL_CELLS_MAX}")


def listen(door: Channel, port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1:`port` inside, non-blocking. BrokenChannel when not."""
    came = _ask(door, "listen", {"port": port})
    if came is None:
        raise BrokenChannel(f"its agent could not listen on port {port}")
    listening = _as_socket(came, listens=True)
    if listening.getsockname() != ("127.0.0.1", port):
        listening.close()
        raise BrokenChannel("its agent listens elsewhere")
    listening.setblocking(False)
    return listening


def connect(door: Channel, sandbox_id: str, port: int) -> socket.socket:
    """A connection to 127.0.0.1:`port` inside, non-blocking. PortClosed; SandboxLimit."""
    check_port(port)
    came = _ask(door, "connect", {"port": port})
    if came is None:
        raise PortClosed(sandbox_id, port)
    connection = _as_socket(came, listens=False)
    try:
        peer = connection.getpeername()
        connection.setblocking(False)
    except OSError as error:  # it may have been reset already: what came is a socket nevertheless
        connection.close()
        raise PortClosed(sandbox_id, port) from error
    if peer != ("127.0.0.1", port):
        connection.close()
        raise BrokenChannel("its agent connected elsewhere")
    return connection


def open_terminal(
    door: Channel, argv: tuple[str, ...], columns: int, rows: int, environment: Mapping[str, str]
) -> int:
    """The master side of a terminal on which `argv` runs. SandboxLimit when it cannot."""
    check_size(columns, rows)
    command = Command(argv, environment=environment)
    fields = {"argv": list(command.argv), "environment": dict(command.environment)}
    document, came = door.request_descriptors(
        "open_terminal",
        {**fields, "columns": columns, "rows": rows},
        wait_seconds=_WAIT_SECONDS,
        count_max=1,
    )
    _raise_refusal(document, came)
    master = _only(came)
    try:
        if not stat.S_ISCHR(os.fstat(master).st_mode) or not os.isatty(master):
            raise BrokenChannel("its agent passed something that is no terminal")
        fcntl.ioctl(master, _TIOCGPTN, bytes(4))
        os.set_blocking(master, False)
    except OSError as error:
        os.close(master)
        raise BrokenChannel(f"its agent passed no master side of a terminal ({error})") from error
    except BrokenChannel:
        os.close(master)
        raise
    return master


def start_program(door: Channel, command: Command) -> Program:
    """Start it with our pipes. SandboxLimit when it cannot be started."""
    output, output_end = os.pipe()
    status, status_end = os.pipe()
    files = {path: b64encode(content).decode() for path, content in command.files.items()}
    try:
        os.set_blocking(output, False)
        os.set_blocking(status, False)
        document = door.request(
            "start_program",
            {
                "argv": list(command.argv),
                "cwd": command.cwd,
                "environment": dict(command.environment),
                "files": files,
            },
            wait_seconds=_WAIT_SECONDS,
            descriptors=(output_end, status_end),
        )
        _raise_refusal(document, [])
        return Program(integer(document, "number", _NUMBER_MAX), output, status)
    except BaseException:
        close_all((output, status))
        raise
    finally:
        close_all((output_end, status_end))


def stop_program(door: Channel, number: int) -> None:
    """Kill all that came of it; nothing when it has ended."""
    door.request("stop_program", {"number": number}, wait_seconds=_WAIT_SECONDS)


def _ask(door: Channel, operation: str, fields: Mapping[str, Any]) -> int | None:
    """The one descriptor that was asked for; None when the agent refused."""
    document, came = door.request_descriptors(
        operation, fields, wait_seconds=_WAIT_SECONDS, count_max=1
    )
    if "refused" in document and not came:
        return None
    return _only(came)


def _only(came: list[int]) -> int:
    if len(came) != 1:
        close_all(came)
        raise BrokenChannel(f"its agent passed {len(came)} descriptors instead of 1")
    return came[0]


def _raise_refusal(document: Mapping[str, Any], came: list[int]) -> None:
    if (refused := document.get("refused")) is None:
        return
    close_all(came)
    raise SandboxLimit(str(refused)[:300])


def _as_socket(descriptor: int, *, listens: bool) -> socket.socket:
    """The descriptor as a TCP socket over IPv4 in the wanted state; else it is closed."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise BrokenChannel("its agent passed something that is no socket")
        seen = socket.socket(fileno=descriptor)
    except BaseException as error:
        close_all([descriptor])
        if isinstance(error, OSError):
            raise BrokenChannel(f"its agent passed something odd ({error})") from error
        raise
    kinds = (socket.SO_DOMAIN, socket.SO_TYPE, socket.SO_PROTOCOL, socket.SO_ACCEPTCONN)
    wanted = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, int(listens))
    with contextlib.ExitStack() as wrong:
        wrong.callback(seen.close)
        found = tuple(seen.getsockopt(socket.SOL_SOCKET, kind) for kind in kinds)
        if found != wanted:
            raise BrokenChannel(f"its agent passed a socket of another kind {found}")
        wrong.pop_all()
    return seen
