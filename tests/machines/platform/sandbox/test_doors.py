"""What a doorman hands out is checked: a wrong kind breaks the channel and is closed."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from machines.platform.sandbox import doors
from machines.platform.sandbox.backend import Command
from machines.platform.sandbox.channel import BrokenChannel, Channel
from machines.platform.sandbox.errors import PortClosed, SandboxLimit

Make = Callable[[ExitStack], list[int]]


class Doorman:
    """The other end of a door: answers one request with what it was given."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.asked: dict[str, object] = {}
        self.came: list[int] = []

    def answer(self, ok: dict[str, object], descriptors: list[int]) -> threading.Thread:
        thread = threading.Thread(target=self._serve, args=(ok, descriptors))
        thread.start()
        return thread

    def _serve(self, ok: dict[str, object], descriptors: list[int]) -> None:
        header, self.came, _, _ = socket.recv_fds(self._end, 4, 2)
        self.asked = json.loads(self._end.recv(struct.unpack(">I", header)[0]))
        body = json.dumps({"id": self.asked["id"], "ok": ok}).encode()
        socket.send_fds(self._end, [struct.pack(">I", len(body)) + body], descriptors)


@pytest.fixture
def door() -> Iterator[tuple[Channel, Doorman]]:
    host, inside = socket.socketpair()
    with host, inside:
        yield Channel(host), Doorman(inside)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def tcp_pair(stack: ExitStack) -> tuple[socket.socket, socket.socket, socket.socket]:
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    client = stack.enter_context(socket.create_connection(server.getsockname()))
    accepted, _ = server.accept()
    return server, client, stack.enter_context(accepted)


def a_file(stack: ExitStack) -> list[int]:
    return [stack.enter_context(Path("/etc/passwd").open()).fileno()]


def a_pipe(stack: ExitStack) -> list[int]:
    ends = os.pipe()
    for end in ends:
        stack.callback(os.close, end)
    return [ends[0]]


def a_unix_socket(stack: ExitStack) -> list[int]:
    ends = socket.socketpair()
    return [stack.enter_context(ends[0]).fileno() for _ in [stack.enter_context(ends[1])]]


def a_datagram_socket(stack: ExitStack) -> list[int]:
    return [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).fileno()]


def an_ipv6_socket(stack: ExitStack) -> list[int]:
    return [stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_STREAM)).fileno()]


def a_listening_socket(stack: ExitStack) -> list[int]:
    return [tcp_pair(stack)[0].fileno()]


def a_connection(stack: ExitStack) -> list[int]:
    return [tcp_pair(stack)[1].fileno()]


def a_slave(stack: ExitStack) -> list[int]:
    ends = os.openpty()
    for end in ends:
        stack.callback(os.close, end)
    return [ends[1]]


def a_master(stack: ExitStack) -> list[int]:
    ends = os.openpty()
    for end in ends:
        stack.callback(os.close, end)
    return [ends[0]]


def nothing(_stack: ExitStack) -> list[int]:
    return []


def two(stack: ExitStack) -> list[int]:
    return a_connection(stack) * 2


def three(stack: ExitStack) -> list[int]:
    return a_connection(stack) * 3


NO_CONNECTION = [a_file, a_pipe, a_unix_socket, a_datagram_socket, an_ipv6_socket, a_master]
NO_CONNECTION += [a_listening_socket, a_connection, nothing, two, three]  # connected elsewhere
NO_TERMINAL = [a_file, a_pipe, a_unix_socket, a_connection, a_slave, nothing, two, three]
NO_LISTENER = [a_file, a_connection, a_unix_socket, a_listening_socket, nothing, two]
USES: list[tuple[Callable[[Channel], object], Make]] = [
    *((lambda door: doors.connect(door, "one", 4), make) for make in NO_CONNECTION),
    *((lambda door: doors.open_terminal(door, ("sh",), 80, 24, {}), make) for make in NO_TERMINAL),
    *((lambda door: doors.listen(door, 4), make) for make in NO_LISTENER),
]


@pytest.mark.parametrize(("use", "make"), USES)
def test_a_wrong_kind_breaks_the_channel_and_is_closed(
    door: tuple[Channel, Doorman], use: Callable[[Channel], object], make: Make
) -> None:
    channel, doorman = door
    with ExitStack() as stack:
        passed = make(stack)
        before = open_descriptors()
        thread = doorman.answer({}, passed)
        with pytest.raises(BrokenChannel, match="its agent"):
            use(channel)
        thread.join()
        assert open_descriptors() == before


@pytest.mark.parametrize("how", ["stop_program", "start_program"])
def test_a_descriptor_that_nobody_asked_for_never_arrives(
    door: tuple[Channel, Doorman], how: str
) -> None:
    channel, doorman = door
    with ExitStack() as stack:
        passed = a_connection(stack)
        before = open_descriptors()
        thread = doorman.answer({"number": 7}, passed)
        if how == "stop_program":
            doors.stop_program(channel, 3)
        else:
            program = doors.start_program(channel, Command(("true",)))
            for descriptor in (program.output, program.status):
                os.close(descriptor)
        thread.join()
        for descriptor in doorman.came:
            os.close(descriptor)
        assert open_descriptors() == before


@pytest.mark.parametrize("number", [None, -1, "1", True, 2**40])
def test_a_programs_number_is_checked(door: tuple[Channel, Doorman], number: object) -> None:
    channel, doorman = door
    before = open_descriptors()
    thread = doorman.answer({"number": number}, [])
    with pytest.raises(BrokenChannel, match="number"):
        doors.start_program(channel, Command(("true",)))
    thread.join()
    for descriptor in doorman.came:
        os.close(descriptor)
    assert open_descriptors() == before


def test_a_refusal_is_passed_on_short(door: tuple[Channel, Doorman]) -> None:
    channel, doorman = door
    for use, error in (
        (lambda: doors.start_program(channel, Command(("true",))), SandboxLimit),
        (lambda: doors.open_terminal(channel, ("true",), 80, 24, {}), SandboxLimit),
        (lambda: doors.connect(channel, "one", 80), PortClosed),
        (lambda: doors.listen(channel, 80), BrokenChannel),
    ):
        thread = doorman.answer({"refused": "no" * 5000}, [])
        with pytest.raises(error) as refusal:
            use()
        assert len(str(refusal.value)) <= 300
        thread.join()
        for descriptor in doorman.came:
            os.close(descriptor)


def test_a_right_kind_is_passed_on(door: tuple[Channel, Doorman]) -> None:
    channel, doorman = door
    with ExitStack() as stack:
        server, client, _ = tcp_pair(stack)
        port = server.getsockname()[1]
        for use, passed in (
            (lambda: doors.connect(channel, "one", port), client),
            (lambda: doors.listen(channel, port), server),
        ):
            thread = doorman.answer({}, [passed.fileno()])
            with use() as got:
                assert got.getsockname() == passed.getsockname()
                assert not got.getblocking()
                assert not got.get_inheritable()
            thread.join()
        thread = doorman.answer({}, a_master(stack))
        master = doors.open_terminal(channel, ("sh",), 80, 24, {})
        thread.join()
        assert (os.isatty(master), os.get_blocking(master)) == (True, False)
        assert not os.get_inheritable(master)
        os.close(master)


@pytest.mark.parametrize(("columns", "rows"), [(0, 24), (80, 0), (80, 1001), (-1, 1)])
def test_impossible_terminals_are_refused(
    door: tuple[Channel, Doorman], columns: int, rows: int
) -> None:
    with pytest.raises(SandboxLimit, match="expected 1 to 1000"):
        doors.open_terminal(door[0], ("sh",), columns, rows, {})


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_impossible_ports_are_refused(door: tuple[Channel, Doorman], port: int) -> None:
    with pytest.raises(SandboxLimit, match="port"):
        doors.connect(door[0], "one", port)
