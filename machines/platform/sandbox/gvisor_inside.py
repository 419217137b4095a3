"""Process 1 of a gVisor sandbox: our end of the relay, and the agent below it.

    runsc --pipes--> this (relay) --fork--> agent --fork--> doorman

    python3 -I -S -B gvisor_inside.py

Copied into the sandbox beside agent.py and gvisor_relay.py.  It buries orphans, and ends when the
agent or the host does; with process 1 everything inside ends.

The agent waits for programs by pidfd, which gVisor's kernel does not have; here a thread stands in
for one: a pipe that ends when the program has, without burying it.  Nor does reading the master
side of a terminal fail there once its programs have ended; so we look who has it open.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120

if __name__ == "__main__":
    import agent  # type: ignore[import-not-found]
    import gvisor_relay  # type: ignore[import-not-found]
else:
    from machines.platform.sandbox import agent, gvisor_relay

FIRST_NUMBER = 3
TIOCGPTN = 0x80045430  # the number of a terminal
USERS: dict[int, str] = {}  # of a terminal by number: where in /proc a user of it was seen


def pidfd_by_thread(pid: int, flags: int = 0) -> int:
    """A descriptor that becomes readable when a child of ours has ended."""
    reading, writing = os.pipe()

    def wait() -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.close(writing)

    threading.Thread(target=wait, daemon=True).start()
    return reading


def has_pidfd() -> bool:
    """Whether this kernel has them."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def is_unused(master: int) -> bool:
    """Whether no process has the other side of a terminal open."""
    try:
        (number,) = struct.unpack("i", fcntl.ioctl(master, TIOCGPTN, bytes(4)))
        name = f"/dev/pts/{number}"
        if links_to(USERS.get(number, ""), name):
            return False
        for pid in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
            directory = f"/proc/{pid}/fd"
            for descriptor in list_directory(directory):
                if links_to(f"{directory}/{descriptor}", name):
                    USERS[number] = f"{directory}/{descriptor}"
                    return False
    except OSError:
        return False
    return True


def links_to(path: str, name: str) -> bool:
    """Whether a link leads there."""
    try:
        return os.readlink(path) == name  # noqa: PTH115
    except OSError:
        return False


def list_directory(path: str) -> "list[str]":
    """Its names; none when it is gone."""
    try:
        return os.listdir(path)  # noqa: PTH208
    except OSError:
        return []


def become_agent(channel: socket.socket, door: socket.socket) -> None:
    """The agent's life, in a child of process 1."""
    if not has_pidfd():
        os.pidfd_open = pidfd_by_thread
    agent.main(channel.detach(), door.detach())


def main() -> None:
    """Guard ourselves, start the agent, and relay until one side ends."""
    ctypes.CDLL(None).prctl(agent.PR_SET_DUMPABLE, 0, 0, 0, 0)
    ours = [socket.socketpair() for _ in range(2)]
    child = os.fork()
    if child == 0:
        for end, _ in ours:
            end.close()
        try:
            become_agent(ours[0][1], ours[1][1])
        finally:
            os._exit(0)
    for _, end in ours:
        end.close()

    def bury(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                if pid == child:
                    os._exit(0)

    signal.signal(signal.SIGCHLD, bury)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    relay = gvisor_relay.Relay(source, sink, FIRST_NUMBER, unused=is_unused)
    for number, (end, _) in enumerate(ours):
        relay.add(number, end.detach())
    relay.run()
    os._exit(0)


if __name__ == "__main__":
    main()
