"""Starting the processes of one sandbox.

    platform --fork--> /bin/sh (other user, waits at a gate) --exec--> bwrap -> process 1 -> agent

While the shell waits, the platform writes its number to the record and moves it into the cgroup;
only then does it open the gate, so that nothing ever runs unrecorded or unlimited. If the platform
dies first, the gate's pipe ends and the shell goes away.

`--die-with-parent` ends a sandbox when the *thread* that started it ends (PR_SET_PDEATHSIG), and
the threads that serve requests come and go: all starts therefore go through one lasting thread.
Arguments, filter and agent travel as descriptors, so that /proc/1/cmdline inside says nothing.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from machines.platform.sandbox import layout
from machines.platform.sandbox.program import Opened
from machines.platform.sandbox.seccomp import build_filter
from machines.platform.toolbox import Toolbox

__all__ = ["Plan", "Started", "start_behind_gate"]

_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="turtles-sandbox-starter")
_GATE = 'read -r go && exec "$@" </dev/null'
_AGENT_SOURCE = Path(__file__).with_name("agent.py")
# What the agent reads when it first needs it.
_AGENT_PARTS = sorted(_AGENT_SOURCE.parent.glob("agent_*.py"))


@dataclass(frozen=True, slots=True)
class Plan:
    """How to start: which Python for the agent, file sizes, the user to become (None: stay).

    `toolbox`: what is shown besides.
    """

    interpreter: layout.Interpreter
    disk_bytes: int
    can_disable_userns: bool
    user_id: int | None
    toolbox: Toolbox | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A process waiting at the gate, our ends of the agent's two channels, the gate, and a pipe.

    The pipe carries what bubblewrap says. It must not be a file of the host: its process 1 keeps
    the descriptor, and code inside could open it again through /proc/1/fd.
    """

    process: subprocess.Popen[bytes]
    connection: socket.socket
    door: socket.socket
    gate: int
    said: int

    def read_said(self) -> str:
        """What bubblewrap said so far (its start); for after it ended."""
        os.set_blocking(self.said, False)
        try:
            return os.read(self.said, 4096).decode(errors="replace")
        except BlockingIOError:
            return ""

    def open_gate(self) -> None:
        """Let bubblewrap begin."""
        try:
            os.write(self.gate, b"go\n")
        finally:
            os.close(self.gate)

    def abandon(self) -> None:
        """Give up before the gate was opened."""
        os.close(self.gate)
        os.close(self.said)
        self.connection.close()
        self.door.close()
        self.process.kill()
        self.process.wait()


def start_behind_gate(plan: Plan, program: Opened) -> Started:
    """Fork the waiting process. OSError when that fails."""
    host_end, agent_end = socket.socketpair()
    host_door, agent_door = socket.socketpair()
    gate_read, gate_write = os.pipe()
    said_read, said_write = os.pipe()
    try:
        with _passed_files(plan) as (arguments_fd, descriptors):
            argv = [
                *("/bin/sh", "-c", _GATE, "sh", program.path, "--args", str(arguments_fd), "--"),
                *(plan.interpreter.program, "-I", "-S", "-B", layout.AGENT_PATH),
                *(str(agent_end.fileno()), str(agent_door.fileno())),
            ]
            channels = (agent_end.fileno(), agent_door.fileno())
            inherited = (*program.descriptors, *descriptors, *channels)
            start = partial(_fork, argv, plan.user_id, program, inherited, gate_read, said_write)
            process = _STARTER.submit(start).result()
    except BaseException:
        os.close(gate_write)
        os.close(said_read)
        host_end.close()
        host_door.close()
        raise
    finally:
        os.close(gate_read)
        os.close(said_write)
        agent_end.close()
        agent_door.close()
    return Started(process, host_end, host_door, gate_write, said_read)


def _fork(
    argv: list[str],
    user_id: int | None,
    program: Opened,
    inherited: tuple[int, ...],
    gate: int,
    said: int,
) -> subprocess.Popen[bytes]:
    """As root: become another user for each sandbox, without a way back and without groups."""
    return subprocess.Popen(  # noqa: S603 - fixed words and descriptors of ours
        argv,
        stdin=gate,
        stdout=said,
        stderr=said,
        cwd="/",
        env=dict(program.environment),
        pass_fds=inherited,
        start_new_session=True,
        user=user_id,
        group=user_id,
        extra_groups=None if user_id is None else [],
    )


@contextmanager
def _passed_files(plan: Plan) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Memory files for bubblewrap: (the one with its arguments, all of them)."""
    descriptors: list[int] = []

    def memory_file(content: bytes) -> int:
        descriptor = os.memfd_create("turtles")
        descriptors.append(descriptor)
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    try:
        agent_fd = memory_file(_AGENT_SOURCE.read_bytes())
        etc_fds = {path: memory_file(text) for path, text in layout.made_up_files().items()}
        for path in _AGENT_PARTS:
            etc_fds[f"{layout.AGENT_DIRECTORY}/{path.name}"] = memory_file(path.read_bytes())
        more: list[str] = []
        if (box := plan.toolbox) is not None:
            files = [(path, memory_file(content)) for path, content in box.files]
            more = layout.toolbox_mounts(box.binds, box.hidden, files)
        arguments = [
            *layout.namespaces(can_disable_userns=plan.can_disable_userns),
            *layout.file_system(plan.disk_bytes, plan.interpreter, agent_fd, etc_fds, more),
        ]
        arguments += ["--seccomp", str(memory_file(build_filter()))]
        arguments_fd = memory_file(b"".join(word.encode() + b"\0" for word in arguments))
        yield arguments_fd, tuple(descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
