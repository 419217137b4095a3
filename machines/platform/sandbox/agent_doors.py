"""Operations of the doorman: what passes a descriptor in or out of the sandbox.

Read by the doorman when first needed (agent.py). Every program it starts has a waiter:

    doorman --fork--> waiter --exec--> program ...     programs that fork away become the waiter's

The waiter writes the program's exit code to the status pipe and stays until the last process that
came of the program has ended; `stop_program` kills everything below it. A program may kill its
waiter (it has the same rights): then the status pipe ends without a line.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import termios
import time
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from machines.platform.sandbox import agent
else:
    import agent

PR_SET_CHILD_SUBREAPER = 36
CONNECT_SECONDS = 2.0
STOP_SECONDS = 3.0
WAITERS: dict[int, int] = {}  # number of a program: process number of its waiter
COUNTER = [0]


def reap(*_: object) -> None:
    """Bury every child that ended; for SIGCHLD."""
    try:
        while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            for number in [each for each, waiter in WAITERS.items() if waiter == pid]:
                del WAITERS[number]
    except ChildProcessError:
        return


signal.signal(signal.SIGCHLD, reap)


def refusal(error: Exception, argv: list[str]) -> dict[str, Any]:
    """The answer when a program could not be started."""
    if isinstance(error, FileNotFoundError):
        return {"refused": f"not found: {error.filename or argv[0]}"}
    return {"refused": f"could not start {argv[0]}: {error}"[:300]}


# -- sockets -------------------------------------------------------------------------------------


def connect(request: dict[str, Any]) -> dict[str, Any]:
    """Pass a connection to 127.0.0.1; refused when nothing accepts it in time."""
    try:
        connection = socket.create_connection(("127.0.0.1", request["port"]), CONNECT_SECONDS)
    except OSError as error:
        return {"refused": str(error)}
    request["pass"].append(connection.detach())
    return {}


# -- terminals -----------------------------------------------------------------------------------


def open_terminal(request: dict[str, Any]) -> dict[str, Any]:
    """Start a program as the leader of a session on a new terminal; pass the master side."""
    try:
        master, slave = os.openpty()
    except OSError as error:
        return {"refused": f"no terminal left: {error}"}
    request["pass"].append(master)
    try:
        size = struct.pack("HHHH", request["rows"], request["columns"], 0, 0)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
        environment = {"TERM": "xterm-256color", **request["environment"]}
        agent.start(
            request["argv"], "/root", environment, streams=(slave,) * 3, before=take_terminal
        )
    except (OSError, subprocess.SubprocessError) as error:
        request["pass"].clear()
        os.close(master)
        return refusal(error, request["argv"])
    finally:
        os.close(slave)
    return {}


def take_terminal() -> None:
    """Between fork and exec: the usual limits, and the terminal becomes the controlling one."""
    agent.confine()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


# -- programs in the background ------------------------------------------------------------------


def start_program(request: dict[str, Any]) -> dict[str, Any]:
    """Start a program that writes to the first descriptor; its exit code goes to the second."""
    output, status = request["descriptors"]
    try:
        agent.write_files(request["cwd"], request["files"])
        read_end, report = os.pipe()
    except OSError as error:
        return refusal(error, request["argv"])
    # Not before the number is noted may the waiter be buried.
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        with os.fdopen(read_end, "rb") as said_end:
            try:
                waiter = os.fork()
            except OSError as error:
                os.close(report)
                return refusal(error, request["argv"])
            if waiter == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, signals)
                wait_for(request, output, status, report)
            os.close(report)
            said = said_end.read()
        if said != b"started":
            return {"refused": said.decode(errors="replace") or "its waiter ended"}
        COUNTER[0] += 1
        WAITERS[COUNTER[0]] = waiter
        return {"number": COUNTER[0]}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)


def wait_for(request: dict[str, Any], output: int, status: int, report: int) -> NoReturn:
    """The life of a waiter. Orphans below it become its children, so that it can bury them."""
    try:
        agent.keep_only([output, status, report])
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            streams = (subprocess.DEVNULL, output, output)
            argv, cwd = request["argv"], request["cwd"]
            program = agent.start(argv, cwd, request["environment"], streams=streams)
        except (OSError, subprocess.SubprocessError) as error:
            os.write(report, refusal(error, argv)["refused"].encode())
            os._exit(1)
        os.close(output)
        os.write(report, b"started")
        os.close(report)
        bury(program.pid, status)
    finally:
        os._exit(0)


def bury(program: int, status: int) -> None:
    """Wait for every child; tell how the program ended."""
    while True:
        try:
            pid, how = os.wait()
        except ChildProcessError:
            return
        if pid == program:
            code = os.waitstatus_to_exitcode(how)
            with contextlib.suppress(OSError):  # the host may no longer listen
                os.write(status, b"%d\n" % (code if code >= 0 else 128 - code))
            os.close(status)


def stop_program(request: dict[str, Any]) -> dict[str, Any]:
    """Kill what is below the waiter: halt it all first, lest it forks faster than we kill."""
    waiter = WAITERS.get(request["number"])
    if waiter is None:
        return {}
    halted: set[int] = set()
    limit = time.monotonic() + STOP_SECONDS
    while (fresh := below(waiter) - halted) and time.monotonic() < limit:
        send(fresh, signal.SIGSTOP)
        halted |= fresh
    while (left := below(waiter)) and time.monotonic() < limit:
        send(left, signal.SIGKILL)
        time.sleep(0.002)
    return {}


def send(processes: set[int], number: int) -> None:
    """Signal processes, some of which may be gone."""
    for pid in processes:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def below(ancestor: int) -> set[int]:
    """Numbers of all descendants of a process, the dead that nobody has buried left out."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        children.setdefault(int(parent), []).append(-int(name) if state == "Z" else int(name))
    found: set[int] = set()
    queue = [ancestor]
    while queue:
        for pid in children.get(queue.pop(), []):
            queue.append(abs(pid))
            if pid > 0:
                found.add(pid)
    return found
