"""What stands behind the descriptors that the fake backend hands out (fake.py)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

from machines.platform.sandbox.fake_statements import interpret, shell

__all__ = ["Running", "listening_port", "serve_http", "serve_terminal", "shut"]


@dataclass(slots=True)
class Running:
    """A program that goes on: the ends it would write to, and where it listens."""

    output: int
    status: int
    port: int | None

    def end(self, said: bytes) -> None:
        """Write its last line and close both."""
        with contextlib.suppress(OSError):
            os.write(self.status, said)
        os.close(self.output)
        os.close(self.status)


def listening_port(argv: tuple[str, ...]) -> int | None:
    """The port of `python3 -m http.server PORT`."""
    if argv[:3] == ("python3", "-m", "http.server") and len(argv) == 4 and argv[3].isdigit():
        return int(argv[3])
    return None


def serve_terminal(slave: int, ended: int, names: dict[str, Any]) -> None:
    """Read statements until `exit`, the other side hangs up, or the sandbox ends."""
    with contextlib.suppress(OSError):
        while ended not in select.select([slave, ended], [], [])[0]:
            line = os.read(slave, 4096).decode(errors="replace").strip()
            if line == "exit":
                break
            if line == "stty size":
                size = fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8))
                os.write(slave, b"%d %d\n" % struct.unpack("HHHH", size)[:2])
                continue
            result = interpret(shell, line, names)
            os.write(slave, result.stdout + result.stderr)
    os.close(slave)
    os.close(ended)


class _EchoHandler(BaseHTTPRequestHandler):
    """Answers with what it was asked."""

    protocol_version = "HTTP/1.1"

    def parse_request(self) -> bool:
        """Every method is answered alike; the loop of the base class goes on with the next."""
        if not super().parse_request():
            return False
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        echo = f"{self.requestline}\n{self.headers}".encode() + body
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(echo)))
        self.end_headers()
        self.wfile.write(echo)
        return False

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Nothing is logged."""


def serve_http(connection: socket.socket) -> None:
    """Answer requests until the other side closes."""
    with connection, contextlib.suppress(OSError, ValueError):
        _EchoHandler(connection, ("127.0.0.1", 0), None)  # type: ignore[arg-type]


def shut(connection: socket.socket) -> None:
    """End a connection for both sides."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
