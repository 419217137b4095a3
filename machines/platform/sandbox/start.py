"""Starting the processes of one sandbox.

    platform --fork--> /bin/sh, other user, waiting at a gate --exec--> bwrap --> process 1 --> agent

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
from pathlib import Path

from machines.platform.sandbox import layout
from machines.platform.sandbox.program import Opened
from machines.platform.sandbox.seccomp import build_filter

__all__ = ["Plan", "Started", "start_behind_gate"]

_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="turtles-sandbox-starter")
_GATE = 'read -r go && exec "$@" </dev/null'
_AGENT_SOURCE = Path(__file__).with_name("agent.py")


@dataclass(frozen=True, slots=True)
class Plan:
    """How to start: which Python for the agent, file sizes, the user to become (None: stay)."""

    interpreter: layout.Interpreter
    disk_bytes: int
    can_disable_userns: bool
    user_id: int | None
    with_filter: bool = True


@dataclass(frozen=True, slots=True)
class Started:
    """A process waiting at the gate, our end of the agent's channel, and the gate."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    gate: int

    def open_gate(self) -> None:
        """Let bubblewrap begin."""
        try:
            os.write(self.gate, b"go\n")
        finally:
            os.close(self.gate)

    def abandon(self) -> None:
        """Give up before the gate was opened."""
        os.close(self.gate)
        self.connection.close()
        self.process.kill()
        self.process.wait()


def start_behind_gate(plan: Plan, program: Opened, log: Path) -> Started:
    """Fork the waiting process. `log` receives what bubblewrap says. OSError when that fails."""
    host_end, agent_end = socket.socketpair()
    gate_read, gate_write = os.pipe()
    try:
        with _passed_files(plan) as (arguments_fd, descriptors), log.open("wb") as said:
            argv = [
                *("/bin/sh", "-c", _GATE, "sh", program.path, "--args", str(arguments_fd), "--"),
                *(plan.interpreter.program, "-I", "-S", "-B", layout.AGENT_PATH),
                str(agent_end.fileno()),
            ]
            process = _STARTER.submit(
                subprocess.Popen,
                argv,
                stdin=gate_read,
                stdout=said,
                stderr=said,
                cwd="/",
                env=dict(program.environment),
                pass_fds=(*program.descriptors, *descriptors, agent_end.fileno()),
                start_new_session=True,
                **_identity(plan.user_id),
            ).result()
    except BaseException:
        os.close(gate_write)
        host_end.close()
        raise
    finally:
        os.close(gate_read)
        agent_end.close()
    return Started(process, host_end, gate_write)


def _identity(user_id: int | None) -> dict[str, object]:
    """As root: another user for each sandbox, without a way back and without its groups."""
    return {} if user_id is None else {"user": user_id, "group": user_id, "extra_groups": []}


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
        arguments = [
            *layout.namespaces(can_disable_userns=plan.can_disable_userns),
            *layout.file_system(plan.disk_bytes, plan.interpreter, agent_fd, etc_fds),
        ]
        if plan.with_filter:
            arguments += ["--seccomp", str(memory_file(build_filter()))]
        arguments_fd = memory_file(b"".join(word.encode() + b"\0" for word in arguments))
        yield arguments_fd, tuple(descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
