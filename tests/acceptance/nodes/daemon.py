"""What the fixtures of all daemons share: free ports, processes killed by their id, plain calls.

The calls here are the tests' own (http.client), not the product's: what judges a payment must not
share its code with what made it.
"""

from __future__ import annotations

import base64
import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

READY_SECONDS = 60.0
CALL_SECONDS = 60.0
STOP_SECONDS = 20.0
PAUSE_SECONDS = 0.02
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_LIBC = ctypes.CDLL(None)


class BinariesMissing(Exception):
    """A daemon is not installed.  The suite fails: it never passes by not running."""


class NodeError(Exception):
    """The node's own error.

    Args:
        code: the JSON-RPC code.
        text: its message.
    """

    def __init__(self, method: str, code: int, text: str) -> None:
        super().__init__(f"{method}: {text} (code {code})")
        self.code = code
        self.text = text


class NotReady(Exception):
    """No JSON came: refused, warming up, a full queue."""


def need(path: str, package: str) -> str:
    """The path of a binary.

    Raises:
        BinariesMissing: it is not there; says what to install.
    """
    if not os.access(path, os.X_OK):
        raise BinariesMissing(
            f"{path} is missing: apt-get install -y --no-install-recommends {package}"
        )
    return path


def die_with_parent() -> None:
    """From now on this process gets SIGKILL when its parent ends, however that ends."""
    _LIBC.prctl(_DEATH_SIGNAL, signal.SIGKILL)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Daemon:
    """One process of somebody else's, in its own session, with its output in a file."""

    def __init__(self, command: list[str], log: Path) -> None:
        self.command = command
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it; `wait_until` waits for what it can do."""
        with self.log.open("ab") as out:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL: what it had not written is gone."""
        if self._process is not None:
            if self._process.poll() is None:
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for one that does not listen."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def wait_until(self, ready: Any) -> None:
        """Ask until it answers, through all that a starting node says first.

        Raises:
            AssertionError: it ended, or is not ready after a minute; with the end of its log.
        """
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                ready()
                return
            except (OSError, NotReady, NodeError) as error:
                last = error
            if not self.alive or time.monotonic() > deadline:
                tail = self.log.read_bytes()[-2_000:].decode(errors="replace")
                raise AssertionError(f"{self.command[0]} is not ready: {last}\n{tail}")
            time.sleep(PAUSE_SECONDS)


def post(port: int, path: str, body: dict[str, Any], login: str = "") -> Any:
    """One POST with JSON on both sides; decimals stay decimals.

    Raises:
        NotReady: refused, or the answer is not JSON.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CALL_SECONDS)
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    try:
        connection.request("POST", path, json.dumps(body), headers)
        reply = connection.getresponse()
        content = reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotReady(f"port {port}: {error}") from error
    finally:
        connection.close()
    if not content.lstrip().startswith((b"{", b"[")):
        raise NotReady(f"port {port}: status {reply.status}: {content[:80]!r}")
    return json.loads(content, parse_float=Decimal)


def rpc(port: int, path: str, method: str, params: Any, login: str = "", **envelope: Any) -> Any:
    """One JSON-RPC call: its result.

    Raises:
        NodeError: the node's own error.
    """
    answer = post(port, path, {"id": "0", "method": method, "params": params} | envelope, login)
    if answer.get("error"):
        raise NodeError(method, answer["error"]["code"], answer["error"]["message"])
    return answer["result"]
