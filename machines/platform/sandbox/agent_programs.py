"""The operation of the agent that runs one program to its end, `run`, and what `cell` needs, too.

Read by the agent when first needed (agent.py). A program is pumped: its input goes in and its
output comes out, at most so much of it, until it ends or its time is over. What it left running in
the background may hold its pipes open and is not waited for.
"""

import base64
import contextlib
import os
import selectors
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from machines.platform.sandbox import agent
else:
    import agent

READ_BYTES = 65536
DRAIN_BYTES_MAX = 2 * 1024 * 1024


class Captured:
    """The start of one output stream: at most `limit` bytes are kept, the rest is read away."""

    def __init__(self, limit: int) -> None:
        self.kept = bytearray()
        self.limit = limit
        self.truncated = False

    def take(self, piece: bytes) -> None:
        room = self.limit - len(self.kept)
        self.kept += piece[:room]
        self.truncated = self.truncated or len(piece) > room


class Pump:
    """Moves bytes between one program and us until it ends or its time is over."""

    def __init__(self, process: "subprocess.Popen[bytes]", stdin: bytes, limit: int) -> None:
        self.selector = selectors.DefaultSelector()
        self.captured = {1: Captured(limit), 2: Captured(limit)}
        self.stdin = memoryview(stdin)
        self.process = process
        for number, stream in ((1, process.stdout), (2, process.stderr)):
            if stream is not None and not stream.closed:
                os.set_blocking(stream.fileno(), False)
                self.selector.register(stream, selectors.EVENT_READ, number)

    def feed(self) -> None:
        """Send the program its input; closing it is how the program sees the end."""
        stream = self.process.stdin
        if stream is None or stream.closed:
            return
        if self.stdin:
            os.set_blocking(stream.fileno(), False)
            self.selector.register(stream, selectors.EVENT_WRITE, 0)
        else:
            stream.close()

    def until(self, done: int, allowance: agent.Allowance) -> bool:
        """Pump until `done` (a descriptor) is readable; False when the time was over first."""
        self.selector.register(done, selectors.EVENT_READ, -1)
        try:
            while (tick := allowance.tick()) > 0:
                for key, _ in self.selector.select(tick):
                    if key.data == -1:
                        return True
                    self._serve(key)
            return False
        finally:
            self.selector.unregister(done)

    def drain(self) -> None:
        """Take what is left in the pipes. A program still running in the background may hold
        them open or go on writing; it is not waited for."""
        for _ in range(DRAIN_BYTES_MAX // READ_BYTES):
            ready = [key for key, _ in self.selector.select(0) if key.data > 0]
            for key in ready:
                self._serve(key)
            if not ready:
                return

    def close(self) -> None:
        self.selector.close()

    def _serve(self, key: selectors.SelectorKey) -> None:
        try:
            if key.data == 0:
                self.stdin = self.stdin[os.write(key.fd, self.stdin[:READ_BYTES]) :]
                finished = not self.stdin
            else:
                piece = os.read(key.fd, READ_BYTES)
                self.captured[key.data].take(piece)
                finished = not piece
        except BlockingIOError:
            return
        except OSError:
            finished = True
        if finished:
            self.selector.unregister(key.fileobj)
            if not isinstance(key.fileobj, int):
                key.fileobj.close()  # type: ignore[attr-defined]


def outcome(pump: Pump, exit_code: int, timed_out: bool, began: float) -> dict[str, Any]:
    """The answer to `run` and `cell`."""
    out, err = pump.captured[1], pump.captured[2]
    return {
        "exit_code": exit_code if exit_code >= 0 else 128 - exit_code,
        "stdout": base64.b64encode(out.kept).decode(),
        "stderr": base64.b64encode(err.kept).decode(),
        "truncated": out.truncated or err.truncated,
        "timed_out": timed_out,
        "duration_ms": int((time.monotonic() - began) * 1000),
    }


def failure(exit_code: int, message: str) -> dict[str, Any]:
    """The answer when a program could not be started, in the shell's manner."""
    return {
        "exit_code": exit_code,
        "stdout": "",
        "stderr": base64.b64encode(f"{message}\n".encode()).decode(),
        "truncated": False,
        "timed_out": False,
        "duration_ms": 0,
    }


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run one program to its end."""
    began = time.monotonic()
    try:
        agent.write_files(request["cwd"], request["files"])
        process = agent.start(request["argv"], request["cwd"], request["environment"])
    except FileNotFoundError as error:
        return failure(127, f"not found: {error.filename}")
    except PermissionError as error:
        return failure(126, f"not permitted: {error.filename or request['argv'][0]}")
    except (OSError, subprocess.SubprocessError) as error:
        return failure(126, f"could not start {request['argv'][0]}: {error}")
    pump = Pump(process, base64.b64decode(request["stdin"]), request["max_output_bytes"])
    pump.feed()
    ended = os.pidfd_open(process.pid)
    try:
        in_time = pump.until(ended, agent.Allowance(request["timeout_seconds"]))
        if not in_time:
            os.killpg(process.pid, signal.SIGKILL)
        exit_code = process.wait()
        pump.drain()
        return outcome(pump, exit_code, not in_time, began)
    finally:
        os.close(ended)
        pump.close()
        close_streams(process)


def close_streams(process: "subprocess.Popen[bytes]") -> None:
    """Close our ends of its pipes, those that are still open."""
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
