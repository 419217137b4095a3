"""Programs, terminals and sockets that the doorman hands out, seen through the backend."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable

import pytest

from machines.platform.sandbox.backend import Command, Handle, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.errors import PortClosed, SandboxGone, SandboxLimit

ReadUntil = Callable[..., bytes]


def shell(text: str) -> Command:
    return Command(("bash", "-c", text))


def names_inside(backend: BubblewrapBackend, handle: Handle) -> bytes:
    """What runs inside, one name a line; the dead that nobody has buried yet left out."""
    living = "grep -sL '^State:.Z' /proc/[0-9]*/status | xargs grep -sh ^Name"
    return backend.execute(handle, shell(living)).stdout


def close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


# -- programs ------------------------------------------------------------------------------------


def test_both_streams_arrive_and_files_are_there(
    bubblewrap: BubblewrapBackend, sandbox: Handle, read_until: ReadUntil
) -> None:
    command = Command(
        ("bash", "main.sh"),
        cwd="/tmp",  # noqa: S108
        environment={"WHO": "turtle"},
        files={"main.sh": b"echo $WHO $PWD; echo err >&2; cat; exit 3"},
    )
    program = bubblewrap.start_program(sandbox, command)
    assert read_until(program.output, None) == b"turtle /tmp\nerr\n"
    assert read_until(program.status, None) == b"3\n"
    close(program.output, program.status)


def test_a_signal_is_128_and_its_number(
    bubblewrap: BubblewrapBackend, sandbox: Handle, read_until: ReadUntil
) -> None:
    program = bubblewrap.start_program(sandbox, shell("kill -TERM $$"))
    assert read_until(program.status, None) == b"143\n"
    close(program.output, program.status)


def test_what_forks_away_is_stopped_too(
    bubblewrap: BubblewrapBackend, sandbox: Handle, read_until: ReadUntil
) -> None:
    """A daemon: its parent ends, it has a session of its own and nothing open."""
    daemon = "setsid sleep 600 </dev/null >/dev/null 2>&1 & disown; exit 5"
    program = bubblewrap.start_program(sandbox, shell(daemon))
    assert read_until(program.status, None) == b"5\n"
    assert b"sleep" in names_inside(bubblewrap, sandbox)
    bubblewrap.stop_program(sandbox, program.number)
    assert b"sleep" not in names_inside(bubblewrap, sandbox)
    close(program.output, program.status)


def test_what_forks_without_end_is_stopped_too(
    bubblewrap: BubblewrapBackend, sandbox: Handle, read_until: ReadUntil
) -> None:
    bomb = "echo up; b() { b | b & sleep 0.01; b; }; b"
    program = bubblewrap.start_program(sandbox, shell(bomb))
    read_until(program.output, b"up")
    bubblewrap.stop_program(sandbox, program.number)
    assert read_until(program.status, None) == b"137\n"
    assert b"sleep" not in names_inside(bubblewrap, sandbox)
    close(program.output, program.status)


def test_a_flood_waits_and_nothing_else_does(
    bubblewrap: BubblewrapBackend, sandbox: Handle, read_until: ReadUntil
) -> None:
    program = bubblewrap.start_program(sandbox, Command(("yes",)))
    read_until(program.output, b"y\n" * 1000)
    assert bubblewrap.execute(sandbox, Command(("true",))).exit_code == 0
    assert select.select([program.status], [], [], 0)[0] == []
    os.close(program.output)  # nobody listens any more: SIGPIPE, as in a shell
    assert read_until(program.status, None) == b"141\n"
    os.close(program.status)


def test_a_program_that_kills_its_waiter_tells_nothing(
    bubblewrap: BubblewrapBackend, sandbox: Handle, read_until: ReadUntil
) -> None:
    suicidal = "until [ -e /root/go ]; do :; done; kill -9 $PPID; echo orphan; sleep 600"
    program = bubblewrap.start_program(sandbox, shell(suicidal))
    bubblewrap.execute(sandbox, Command(("true",), files={"/root/go": b""}))
    assert read_until(program.status, None) == b""
    read_until(program.output, b"orphan")
    bubblewrap.stop_program(sandbox, program.number)
    close(program.output, program.status)


def test_an_impossible_folder_file_or_program_is_refused(
    bubblewrap: BubblewrapBackend, sandbox: Handle
) -> None:
    for command in (
        Command(("true",), cwd="/nowhere"),
        Command(("true",), files={"/usr/evil": b""}),
        Command(("/etc/passwd",)),
        Command(("no-such-program",)),
    ):
        with pytest.raises(SandboxLimit):
            bubblewrap.start_program(sandbox, command)
    assert bubblewrap.execute(sandbox, Command(("true",))).exit_code == 0


def test_no_process_stays_unburied(
    bubblewrap: BubblewrapBackend, sandbox: Handle, read_until: ReadUntil
) -> None:
    before = bubblewrap.stats(sandbox).processes
    for _ in range(10):
        program = bubblewrap.start_program(sandbox, Command(("true",)))
        assert read_until(program.status, None) == b"0\n"
        close(program.output, program.status)
        terminal = bubblewrap.open_terminal(sandbox, ("true",))
        read_until(terminal, None)
        os.close(terminal)
    while bubblewrap.stats(sandbox).processes > before:
        pass


# -- terminals -----------------------------------------------------------------------------------


def test_hanging_up_ends_the_program(
    bubblewrap: BubblewrapBackend, sandbox: Handle, read_until: ReadUntil
) -> None:
    terminal = bubblewrap.open_terminal(sandbox, ("sh", "-c", "echo up; sleep 600"))
    read_until(terminal, b"up")
    assert b"sleep" in names_inside(bubblewrap, sandbox)
    os.close(terminal)
    while b"sleep" in names_inside(bubblewrap, sandbox):
        pass


def test_a_terminal_controls_its_jobs(
    bubblewrap: BubblewrapBackend, sandbox: Handle, read_until: ReadUntil
) -> None:
    terminal = bubblewrap.open_terminal(sandbox, ("bash", "--norc"), environment={"TERM": "dumb"})
    os.write(terminal, b"tty; echo $TERM; sleep 600\n")
    assert b"/dev/pts/" in read_until(terminal, b"dumb\r\n")
    while b"sleep" not in names_inside(bubblewrap, sandbox):
        pass
    os.write(terminal, b"\x03")
    os.write(terminal, b"echo code $?\n")
    read_until(terminal, b"code 130")
    os.close(terminal)


def test_a_terminal_is_confined_like_any_program(
    bubblewrap: BubblewrapBackend, sandbox: Handle, read_until: ReadUntil
) -> None:
    terminal = bubblewrap.open_terminal(
        sandbox, ("bash", "-c", "cat /proc/self/oom_score_adj; ulimit -u; ls /proc/self/fd")
    )
    seen = read_until(terminal, None).split()
    assert seen[0] == b"1000"
    assert int(seen[1]) < 40
    assert seen[2:] == [b"0", b"1", b"2", b"3"]
    os.close(terminal)


# -- sockets -------------------------------------------------------------------------------------


def test_only_the_way_out_listens_and_programs_find_it(
    bubblewrap: BubblewrapBackend, new_spec: Callable[..., Spec]
) -> None:
    handle = bubblewrap.create(new_spec(network="semitrusted"))
    listening = bubblewrap.egress(handle)
    assert listening is not None
    seen = []

    def serve() -> None:
        listening.settimeout(20)
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(20)
            while not (seen and seen[-1].endswith(b"\r\n\r\n")):
                seen.append(connection.recv(4096))
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nby the proxy")

    with listening:
        proxy = threading.Thread(target=serve)
        proxy.start()
        fetch = "import urllib.request as u; print(u.urlopen('http://far.test/x').read().decode())"
        result = bubblewrap.execute(handle, Command(("python3", "-c", fetch)), timeout_seconds=20)
        proxy.join()
    assert result.stdout == b"by the proxy\n"
    assert b"".join(seen).startswith(b"GET http://far.test/x HTTP/1.1\r\n")
    taken = "import socket; socket.create_server(('127.0.0.1', 3128))"
    assert b"in use" in bubblewrap.execute(handle, Command(("python3", "-c", taken))).stderr
    bubblewrap.destroy(handle)


def test_nothing_listens_in_a_zerotrust_sandbox(
    bubblewrap: BubblewrapBackend, sandbox: Handle
) -> None:
    with pytest.raises(PortClosed):
        bubblewrap.connect(sandbox, 3128)
    seen = bubblewrap.execute(sandbox, shell("env | grep -i proxy; wc -l </proc/net/tcp")).stdout
    assert seen == b"1\n"


def test_bytes_go_both_ways(
    bubblewrap: BubblewrapBackend, sandbox: Handle, read_until: ReadUntil
) -> None:
    echo = (
        "import socket\n"
        "server = socket.create_server(('127.0.0.1', 9000))\n"
        "print('up', flush=True)\n"
        "with server.accept()[0] as peer:\n"
        "    while piece := peer.recv(65536): peer.sendall(piece)\n"
    )
    program = bubblewrap.start_program(sandbox, Command(("python3", "-c", echo)))
    read_until(program.output, b"up")
    with bubblewrap.connect(sandbox, 9000) as connection:
        connection.settimeout(20)
        data, back = os.urandom(200_000), b""
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        while len(back) < len(data):
            back += connection.recv(65536)
        sender.join()
        assert back == data
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert read_until(program.status, None) == b"0\n"
    close(program.output, program.status)


# -- the doorman itself --------------------------------------------------------------------------

KILL_DOORMAN = """
for each in /proc/[0-9]*; do
  pid=${each#/proc/}
  if [ $pid != 1 ] && [ $pid != $PPID ] && grep -qs turtles/agent[.]py $each/cmdline; then
    kill -9 $pid
  fi
done
"""


def test_a_killed_doorman_loses_its_sandbox_at_the_next_use(
    bubblewrap: BubblewrapBackend, sandbox: Handle
) -> None:
    bubblewrap.execute(sandbox, shell(KILL_DOORMAN))
    assert bubblewrap.execute(sandbox, shell("echo the agent lives")).exit_code == 0
    with pytest.raises(SandboxGone, match="agent"):
        bubblewrap.connect(sandbox, 80)
    with pytest.raises(SandboxGone, match="does not exist"):
        bubblewrap.execute(sandbox, shell("true"))


def test_the_doorman_cannot_be_looked_into(bubblewrap: BubblewrapBackend, sandbox: Handle) -> None:
    """Its memory and its descriptors, the door among them, are not for programs."""
    look = """
for each in /proc/[0-9]*; do
  if grep -qs turtles/agent[.]py $each/cmdline && [ ${each#/proc/} != 1 ]; then
    for file in $each/mem $each/fd/* $each/environ; do (: <$file) 2>/dev/null && echo $file; done
    echo seen
  fi
done
"""
    assert bubblewrap.execute(sandbox, shell(look)).stdout == b"seen\nseen\n"
