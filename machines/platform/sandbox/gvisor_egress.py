"""A listening socket that stands on the host for one inside, and that nobody on the host reaches.

A socket stays in the network namespace in which it was made.  So one thread moves into an empty
namespace, makes the listening socket there, and later each connection to it: other programs of the
host, and other sandboxes, have no way to it.  The namespace goes with the thread and the sockets.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

from machines.platform.sandbox.backend import EGRESS_PORT

__all__ = ["Elsewhere"]

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_CONNECT_SECONDS = 1.0


class Elsewhere:
    """An empty network namespace of this process.  OSError where it cannot be had."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "turtles-egress")
        try:
            self._thread.submit(_move_away).result()
        except BaseException:
            self.close()
            raise

    def listen(self) -> socket.socket:
        """Listen on 127.0.0.1:EGRESS_PORT there."""
        address = ("127.0.0.1", EGRESS_PORT)
        return self._thread.submit(socket.create_server, address, backlog=128).result()

    def connect(self) -> socket.socket:
        """A connection to it."""
        address = ("127.0.0.1", EGRESS_PORT)
        return self._thread.submit(socket.create_connection, address, _CONNECT_SECONDS).result()

    def close(self) -> None:
        """Let the thread end."""
        self._thread.shutdown(wait=False)


def _move_away() -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"a network namespace cannot be made ({os.strerror(number)})")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
