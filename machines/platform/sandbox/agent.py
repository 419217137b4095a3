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
import signal
import socket
import struct
import subprocess
import sys
import time
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from machines.platform.sandbox import agent_interpreters

PR_SET_DUMPABLE = 4
DESCRIPTORS_MAX = 2
DOORMEN = 1
OWN_PROCESSES = 8
TICK_SECONDS = 0.5
STANDSTILL_SECONDS = 2.0
HEADER = struct.Struct(">I")


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


SETTINGS = Settings()
INTERPRETERS: "dict[str, agent_interpreters.Interpreter]" = {}
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


def write_files(cwd: str, files: dict[str, str]) -> None:
    """Write files below `cwd` (or at absolute paths), with the folders they need."""
    for path, content in files.items():
        target = os.path.join(cwd, path)  # noqa: PTH118
        os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120
        with open(target, "wb") as file:  # noqa: PTH123
            file.write(base64.b64decode(content))


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
    "run": elsewhere("agent_programs", "run"),
    "cell": elsewhere("agent_interpreters", "cell"),
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
