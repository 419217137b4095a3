"""The agent: the one program of ours that runs inside a sandbox. Standard library only.

It is copied into the sandbox as a read-only file and started by bubblewrap as

    python3 -I -S -B agent.py CHANNEL_FD DOOR_FD    the agent, which forks the doorman

::

    host ==channel==> agent      run, cell, collect, save, load     one after another, may last
         ==door=====> doorman    start_program, stop_program, open_terminal, connect, listen

Protocol on both (stream sockets): frames of a 4-byte big-endian length and that much JSON. The
host asks {"id", "op", ...}, the agent answers {"id", "ok": {...}} or
{"id", "error": {"kind", "message"}}, one request at a time. Bytes travel as base64. Descriptors
travel beside the length of a request or an answer (SCM_RIGHTS): an operation finds those of its
request in request["descriptors"] and appends those of its answer to request["pass"]; both are
closed once it was answered. Operations are the keys of `OPERATIONS` and `DOOR_OPERATIONS`; most
live in files beside this one, which are read when first needed. `setup` goes to both.

`save` and `load` go by the channel, in order with commands; what they write and read travels
through a pipe whose inner end comes with the request (one descriptor). The host moves bytes at its
end until the pipe ends, and only then reads the answer.

When its channel closes the agent ends, and so does the doorman; what they started in the
background ends with process 1, which the host kills.

The agent has no more rights than the code it starts, and that code may kill it: the host believes
nothing it says. What it does guard is its memory (PR_SET_DUMPABLE 0), so that a program cannot
speak in its name while it lives. Limits it sets on the programs it starts: a session of their own,
process count (kept below its own, so that it can always start one more), memory, and a raised
oom_score_adj so that the bomb dies before the agent.
"""

import base64
import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

PR_SET_DUMPABLE = 4
READ_BYTES = 65536
DESCRIPTORS_MAX = 2
DOORMEN = 1
OWN_PROCESSES = 8
INTERRUPT_SECONDS = 0.5
TICK_SECONDS = 0.5
STANDSTILL_SECONDS = 2.0
HEADER = struct.Struct(">I")
DRAIN_BYTES_MAX = 2 * 1024 * 1024
# The two pipes move to numbers that programs do not use, and are closed for what a cell starts.
BASH_LOOP = """
exec 198<&"$1" 199>&"$2"; eval "exec $1<&- $2>&-"; set --
while IFS= read -r -d '' -u 198 turtles_cell; do
  eval "$turtles_cell" </dev/null 198<&- 199>&-
  printf '%d\\n' "$?" >&199
done
"""


class Refused(Exception):
    """A request that cannot be served; `kind` is for programs, the message for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Settings:
    """What the host said in `setup`."""

    environment: Mapping[str, str] = {}
    memory_bytes = 0
    pids = 64
    request_bytes_max = 1024 * 1024


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


class Allowance:
    """How long a program may still run. Time in which we stood still does not count.

    Nothing tells a program that it was frozen, so we never sleep longer than a tick: an interval
    far beyond that was a standstill (or a machine so busy that it is as good as one), and counts
    as one tick. The host has a deadline of its own.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.looked = time.monotonic()

    def left(self) -> float:
        now = time.monotonic()
        passed, self.looked = now - self.looked, now
        self.seconds -= TICK_SECONDS if passed > STANDSTILL_SECONDS else passed
        return self.seconds

    def tick(self) -> float:
        """For how long to sleep at most; 0 or less when the time is over."""
        return min(self.left(), TICK_SECONDS)


class Interpreter:
    """A lasting interpreter: its process and the two pipes that carry code in and an end out."""

    def __init__(self, language: str) -> None:
        request_read, self.request = os.pipe()
        self.reply, reply_write = os.pipe()
        ends = (str(request_read), str(reply_write))
        argv = {
            "python3": [PYTHON, "-B", beside("agent_cells.py"), *ends],
            "bash": ["bash", "--noprofile", "--norc", "-c", BASH_LOOP, "bash", *ends],
        }[language]
        try:
            self.process = start(argv, "/root", {}, (request_read, reply_write))
            if self.process.stdin is not None:
                self.process.stdin.close()
        except BaseException:
            os.close(self.request)
            os.close(self.reply)
            raise
        finally:
            os.close(request_read)
            os.close(reply_write)

    def close(self) -> None:
        """Kill the interpreter with everything in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.request)
        os.close(self.reply)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


SETTINGS = Settings()
INTERPRETERS: dict[str, Interpreter] = {}
PYTHON = sys.executable or "python3"


# -- starting programs ---------------------------------------------------------------------------


def confine() -> None:
    """Limits of a program, set between fork and exec."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what we ignore would be ignored there too
    pids = max(SETTINGS.pids + DOORMEN - OWN_PROCESSES, 1)
    resource.setrlimit(resource.RLIMIT_NPROC, (pids, pids))
    # 1 and not 0: a core_pattern that is a pipe starts a handler on the host whatever the limit,
    # unless it is 1 byte (core(5), and fs/coredump.c).
    core = 1 if resource.getrlimit(resource.RLIMIT_CORE)[1] != 0 else 0
    resource.setrlimit(resource.RLIMIT_CORE, (core, core))
    if SETTINGS.memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (SETTINGS.memory_bytes, SETTINGS.memory_bytes))
    with open("/proc/self/oom_score_adj", "w") as adjustment:  # noqa: PTH123
        adjustment.write("1000")


def start(
    argv: list[str],
    cwd: str,
    extra: Mapping[str, str],
    pass_fds: tuple[int, ...] = (),
    streams: tuple[int, int, int] = (subprocess.PIPE,) * 3,
    before: "Callable[[], None]" = confine,
) -> "subprocess.Popen[bytes]":
    """Start a program in a session of its own, by default with pipes on its three streams."""
    return subprocess.Popen(  # noqa: S603 - running other people's programs is the purpose
        argv,
        cwd=cwd,
        env={**SETTINGS.environment, "PWD": cwd, **extra},
        stdin=streams[0],
        stdout=streams[1],
        stderr=streams[2],
        start_new_session=True,
        pass_fds=pass_fds,
        preexec_fn=before,
        bufsize=0,
    )


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

    def until(self, done: int, allowance: Allowance) -> bool:
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


# -- operations ----------------------------------------------------------------------------------


def setup(request: dict[str, Any]) -> dict[str, Any]:
    """Limits and environment for everything that follows."""
    SETTINGS.environment = dict(request["environment"])
    SETTINGS.memory_bytes = int(request["rlimit_data_bytes"])
    SETTINGS.pids = int(request["pids"])
    SETTINGS.request_bytes_max = int(request["request_bytes_max"])
    os.environ.clear()
    os.environ.update(SETTINGS.environment)  # subprocess looks programs up by this PATH
    # Inside the user namespace, so that other sandboxes of the same user do not count.
    resource.setrlimit(resource.RLIMIT_NPROC, (SETTINGS.pids + DOORMEN,) * 2)
    return {"pid": os.getpid()}


def listen(request: dict[str, Any]) -> dict[str, Any]:
    """Pass a socket that listens on 127.0.0.1. Here, because some sandboxes begin with it."""
    listening = socket.create_server(("127.0.0.1", request["port"]))
    request["pass"].append(listening.detach())
    return {}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run one program to its end."""
    began = time.monotonic()
    try:
        write_files(request["cwd"], request["files"])
        process = start(request["argv"], request["cwd"], request["environment"])
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
        in_time = pump.until(ended, Allowance(request["timeout_seconds"]))
        if not in_time:
            os.killpg(process.pid, signal.SIGKILL)
        exit_code = process.wait()
        pump.drain()
        return outcome(pump, exit_code, not in_time, began)
    finally:
        os.close(ended)
        pump.close()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def write_files(cwd: str, files: dict[str, str]) -> None:
    """Write files below `cwd` (or at absolute paths), with the folders they need."""
    for path, content in files.items():
        target = os.path.join(cwd, path)  # noqa: PTH118
        os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
        with open(target, "wb") as file:  # noqa: PTH123
            file.write(base64.b64decode(content))


def cell(request: dict[str, Any]) -> dict[str, Any]:
    """Run code in the lasting interpreter of its language."""
    began = time.monotonic()
    language = request["language"]
    try:
        interpreter = INTERPRETERS.get(language) or Interpreter(language)
    except OSError as error:
        return failure(127, f"could not start {language}: {error}")
    INTERPRETERS[language] = interpreter
    pump = Pump(interpreter.process, b"", request["max_output_bytes"])
    exit_code, timed_out = None, False
    try:
        allowance = Allowance(request["timeout_seconds"])
        if send_code(interpreter, language, request["code"], allowance):
            exit_code = read_end(interpreter, pump, allowance)
        if exit_code is None and allowance.left() <= 0:
            timed_out = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(interpreter.process.pid, signal.SIGINT)
            exit_code = read_end(interpreter, pump, Allowance(INTERRUPT_SECONDS))
        if exit_code is None:
            exit_code = end_interpreter(language, pump)
        else:
            pump.drain()
        return outcome(pump, exit_code, timed_out, began)
    finally:
        pump.close()


def send_code(interpreter: Interpreter, language: str, code: str, allowance: Allowance) -> bool:
    """Hand the code over; False when the interpreter is gone or does not read."""
    data = code.encode("utf-8", "surrogateescape")
    if language == "bash" and b"\0" in data:
        raise Refused("bad_request", "bash code must not contain NUL characters")
    data = data + b"\0" if language == "bash" else HEADER.pack(len(data)) + data
    view = memoryview(data)
    os.set_blocking(interpreter.request, False)
    with selectors.DefaultSelector() as selector:
        selector.register(interpreter.request, selectors.EVENT_WRITE)
        while view and (tick := allowance.tick()) > 0:
            if selector.select(tick):
                try:
                    view = view[os.write(interpreter.request, view) :]
                except BrokenPipeError:
                    return False
                except BlockingIOError:
                    continue
    return not view


def read_end(interpreter: Interpreter, pump: Pump, allowance: Allowance) -> "int | None":
    """The exit code the interpreter reports for a cell; None when it ended, lied or is late."""
    if not pump.until(interpreter.reply, allowance):
        return None
    line = os.read(interpreter.reply, 64)
    try:
        return int(line) & 0xFF
    except ValueError:
        return None


def end_interpreter(language: str, pump: Pump) -> int:
    """Bury an interpreter that ended, or will not stop; the next cell gets a new one."""
    interpreter = INTERPRETERS.pop(language)
    with contextlib.suppress(subprocess.TimeoutExpired):
        interpreter.process.wait(0.2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(interpreter.process.pid, signal.SIGKILL)
    exit_code = interpreter.process.wait()
    pump.drain()
    interpreter.close()
    return exit_code


def load(name: str) -> types.ModuleType:
    """A module of ours beside this file; it may `import agent`, which is this one."""
    if name not in sys.modules:
        sys.modules["agent"] = sys.modules[__name__]
        path = beside(f"{name}.py")
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            code = compile(file.read(), path, "exec")
        module = types.ModuleType(name)
        exec(code, module.__dict__)  # noqa: S102 - a read-only file of ours
        sys.modules[name] = module
    return sys.modules[name]


def beside(name: str) -> str:
    """The path of a file of ours beside this one."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), name)  # noqa: PTH100, PTH118, PTH120


def elsewhere(module: str, name: str) -> "Callable[[dict[str, Any]], dict[str, Any]]":
    """The operation `name` of a module that is loaded when it is first asked for."""

    def operation(request: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = getattr(load(module), name)(request)
        return answer

    return operation


OPERATIONS: "dict[str, Callable[[dict[str, Any]], dict[str, Any]]]" = {
    "setup": setup,
    "run": run,
    "cell": cell,
    "collect": elsewhere("agent_files", "collect"),
    "save": elsewhere("agent_archive", "save"),
    "load": elsewhere("agent_archive", "load"),
}
DOOR_OPERATIONS: "dict[str, Callable[[dict[str, Any]], dict[str, Any]]]" = {
    "setup": setup,
    "listen": listen,
    "connect": elsewhere("agent_doors", "connect"),
    "open_terminal": elsewhere("agent_doors", "open_terminal"),
    "start_program": elsewhere("agent_doors", "start_program"),
    "stop_program": elsewhere("agent_doors", "stop_program"),
}


# -- the channels --------------------------------------------------------------------------------


def receive(channel: socket.socket, size: int, descriptors: list[int]) -> bytes:
    """Exactly `size` bytes; empty when the host closed the channel. Adds to `descriptors`."""
    data = bytearray()
    while len(data) < size:
        room = DESCRIPTORS_MAX - len(descriptors)
        piece, came, _, _ = socket.recv_fds(channel, min(size - len(data), 1 << 20), room)
        for descriptor in came:
            os.set_inheritable(descriptor, False)
        descriptors += came
        if not piece:
            return b""
        data += piece
    return bytes(data)


def answer(
    operations: "Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]", request: dict[str, Any]
) -> dict[str, Any]:
    """Dispatch one request. Whatever goes wrong becomes an answer: the agent lives on."""
    try:
        operation = operations.get(request["op"])
        if operation is None:
            raise Refused("unknown_operation", f"no operation {request['op']!r}")
        return {"id": request["id"], "ok": operation(request)}
    except Refused as refused:
        return {
            "id": request["id"],
            "error": {"kind": refused.kind, "message": str(refused)},
        }
    except Exception as error:  # noqa: BLE001 - the host learns of it, see above
        return {
            "id": request.get("id"),
            "error": {"kind": "agent_failed", "message": f"{type(error).__name__}: {error}"[:500]},
        }


def serve(
    channel: socket.socket,
    operations: "Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]",
) -> None:
    """Answer requests until the host closes the channel."""
    descriptors: list[int] = []
    while header := receive(channel, HEADER.size, descriptors):
        size = HEADER.unpack(header)[0]
        if size > SETTINGS.request_bytes_max:
            return
        body = receive(channel, size, descriptors)
        if not body:
            return
        passed: list[int] = []
        request = {**json.loads(body), "descriptors": descriptors, "pass": passed}
        reply = json.dumps(answer(operations, request)).encode()
        socket.send_fds(channel, [HEADER.pack(len(reply))], passed)
        channel.sendall(reply)
        for descriptor in (*descriptors, *passed):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        descriptors = []


def keep_only(descriptors: "list[int]") -> None:
    """Close every descriptor above the three streams but these."""
    low = 3
    for descriptor in sorted(descriptors):
        os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, 65536)


def main(channel_fd: int, door_fd: int) -> None:
    """Guard ourselves, forget every other descriptor, become two, and serve."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    nothing = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    keep_only([channel_fd, door_fd])
    for number in (channel_fd, door_fd):
        os.set_inheritable(number, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.fork() == 0:
        os.close(channel_fd)
        with socket.socket(fileno=door_fd) as door:
            serve(door, DOOR_OPERATIONS)
        os._exit(0)
    os.close(door_fd)
    with socket.socket(fileno=channel_fd) as channel:
        serve(channel, OPERATIONS)
    for interpreter in INTERPRETERS.values():
        interpreter.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
