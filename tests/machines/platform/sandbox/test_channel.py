"""The host's end believes nothing: every wrong answer is a BrokenChannel, never something else."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from machines.platform.sandbox.backend import REQUEST_BYTES_MAX
from machines.platform.sandbox.channel import (
    BrokenChannel,
    Channel,
    close_all,
    read_files,
    read_result,
)
from machines.platform.sandbox.errors import SandboxLimit

GOOD = {
    "exit_code": 0,
    "stdout": b64encode(b"out").decode(),
    "stderr": "",
    "truncated": False,
    "timed_out": False,
    "duration_ms": 3,
}


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    host, agent = socket.socketpair()
    with host, agent:
        yield Channel(host), agent


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def test_a_good_answer_is_its_ok_object(pair: tuple[Channel, socket.socket]) -> None:
    channel, agent = pair
    agent.sendall(frame(json.dumps({"id": 1, "ok": {"pid": 2}}).encode()))
    assert channel.request("setup", {"pids": 3}, wait_seconds=5) == {"pid": 2}
    (size,) = struct.unpack(">I", agent.recv(4))
    assert json.loads(agent.recv(size)) == {"id": 1, "op": "setup", "pids": 3}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (frame(b"not json"), "did not answer in JSON"),
        (frame(b"\xff\xfe"), "did not answer in JSON"),
        (frame(b"[" * 50_000), "did not answer in JSON"),
        (frame(b'{"id": ' + b"9" * 5000 + b"}"), "did not answer in JSON"),
        (frame(b"[]"), "not asked"),
        (frame(b'{"id": 2, "ok": {}}'), "not asked"),
        (frame(b'{"id": 1, "ok": []}'), "failed"),
        (frame(b'{"id": 1, "error": {"kind": "x"}}'), "failed"),
        (struct.pack(">I", 0xFFFFFFFF), "at most"),
        (struct.pack(">I", 100) + b"short", "ended"),
        (b"\0", "ended"),
        (b"", "ended"),
    ],
)
def test_anything_else_breaks_the_channel(
    pair: tuple[Channel, socket.socket], answer: bytes, said: str
) -> None:
    channel, agent = pair
    agent.sendall(answer)
    agent.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenChannel, match=said):
        channel.request("run", {}, wait_seconds=5)


def test_an_agent_that_says_nothing_is_given_up(pair: tuple[Channel, socket.socket]) -> None:
    with pytest.raises(BrokenChannel, match="no answer to 'run'"):
        pair[0].request("run", {}, wait_seconds=0.05)


def test_too_long_a_request_is_refused_before_it_is_sent(
    pair: tuple[Channel, socket.socket],
) -> None:
    channel, agent = pair
    with pytest.raises(SandboxLimit, match="request"):
        channel.request("run", {"code": "x" * REQUEST_BYTES_MAX}, wait_seconds=5)
    agent.setblocking(False)
    with pytest.raises(BlockingIOError):
        agent.recv(1)


# -- descriptors ---------------------------------------------------------------------------------


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def send(agent: socket.socket, ok: dict[str, object], count: int, *, late: bool = False) -> None:
    """An answer with `count` descriptors beside its length, or beside its body."""
    body = json.dumps({"id": 1, "ok": ok}).encode()
    header = struct.pack(">I", len(body))
    passed = [agent.fileno()] * count
    if late:
        agent.sendall(header)
        socket.send_fds(agent, [body], passed)
    else:
        socket.send_fds(agent, [header], passed)
        agent.sendall(body)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_as_many_descriptors_come_as_were_asked_for(
    pair: tuple[Channel, socket.socket], count: int, late: bool
) -> None:
    channel, agent = pair
    before = open_descriptors()
    send(agent, {"fine": 1}, count, late=late)
    document, came = channel.request_descriptors("x", {}, wait_seconds=5, count_max=2)
    assert (document, len(came)) == ({"fine": 1}, count)
    assert not any(os.get_inheritable(each) for each in came)
    close_all(came)
    assert open_descriptors() == before


@pytest.mark.parametrize(("count", "count_max"), [(2, 1), (3, 1), (3, 2), (200, 2)])
def test_more_descriptors_than_asked_for_break_the_channel(
    pair: tuple[Channel, socket.socket], count: int, count_max: int
) -> None:
    channel, agent = pair
    before = open_descriptors()
    send(agent, {}, count)
    with pytest.raises(BrokenChannel, match=f"more than {count_max} descriptors"):
        channel.request_descriptors("x", {}, wait_seconds=5, count_max=count_max)
    assert open_descriptors() == before


def test_descriptors_beside_a_broken_answer_are_closed(
    pair: tuple[Channel, socket.socket],
) -> None:
    channel, agent = pair
    before = open_descriptors()
    socket.send_fds(agent, [struct.pack(">I", 100) + b"short"], [agent.fileno()])
    agent.shutdown(socket.SHUT_WR)
    with pytest.raises(BrokenChannel, match="ended"):
        channel.request_descriptors("x", {}, wait_seconds=5, count_max=1)
    assert open_descriptors() == before


def test_descriptors_that_nobody_asked_for_are_not_taken(
    pair: tuple[Channel, socket.socket],
) -> None:
    channel, agent = pair
    before = open_descriptors()
    send(agent, {"fine": 1}, 3)
    assert channel.request("x", {}, wait_seconds=5) == {"fine": 1}
    assert open_descriptors() == before


def test_descriptors_go_along_once_and_stay_the_callers(
    pair: tuple[Channel, socket.socket],
) -> None:
    channel, agent = pair
    read_end, write_end = os.pipe()
    seen: list[bytes] = []

    def meanwhile() -> None:
        os.close(write_end)
        _, came, _, _ = socket.recv_fds(agent, 4, 2)
        os.write(came[0], b"through the pipe")
        close_all(came)
        send(agent, {"fine": 1}, 0)
        seen.append(os.read(read_end, 100))

    channel.request("x", {}, wait_seconds=5, descriptors=(write_end,), meanwhile=meanwhile)
    assert seen == [b"through the pipe"]
    assert os.read(read_end, 1) == b""
    os.close(read_end)


def test_time_that_is_lost_does_not_count(pair: tuple[Channel, socket.socket]) -> None:
    """Twice the limit passes while the other side stands still; then it answers."""
    lost = iter([0.0, 0.0, 0.0, 0.9, 1.8])
    channel = Channel(pair[0]._connection, lambda: next(lost, 1.8))

    def meanwhile() -> None:
        threading.Timer(1.0, send, (pair[1], {"fine": 1}, 0)).start()

    assert channel.request("x", {}, wait_seconds=0.5, meanwhile=meanwhile) == {"fine": 1}


# -- what an answer holds ------------------------------------------------------------------------


def test_good_files_are_read() -> None:
    files = {"a": "", "b/c d": b64encode(b"12").decode()}
    assert read_files({"files": files}, bytes_max=2, count_max=2) == {"a": b"", "b/c d": b"12"}


@pytest.mark.parametrize(
    "files",
    [
        None,
        [],
        {"/absolute": ""},
        {"../up": ""},
        {"a/../../b": ""},
        {"a//b": ""},
        {"./a": ""},
        {"a/": ""},
        {"": ""},
        {"nul\0": ""},
        {"half \udc80": ""},
        {"l" * 1001: ""},
        {"a": "not base64!"},
        {"a": 1},
        {"a": "AAAA"},
        {"a": "AAA=", "b": "AA=="},
        {"a": "", "b": "", "c": ""},
    ],
)
def test_files_that_do_not_fit_break_the_channel(files: object) -> None:
    with pytest.raises(BrokenChannel, match="its agent gave"):
        read_files({"files": files}, bytes_max=2, count_max=2)


def test_a_good_result_is_read() -> None:
    result = read_result(GOOD, max_output_bytes=10, oom=True)
    assert (result.exit_code, result.stdout, result.duration_ms, result.oom) == (0, b"out", 3, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("exit_code", -1),
        ("exit_code", 256),
        ("exit_code", True),
        ("exit_code", "0"),
        ("stdout", None),
        ("stdout", "not base64!"),
        ("stderr", ["x"]),
        ("truncated", 1),
        ("timed_out", None),
        ("duration_ms", 1e9),
        ("duration_ms", 10**12),
    ],
)
def test_a_field_that_does_not_fit_breaks_the_channel(name: str, value: object) -> None:
    with pytest.raises(BrokenChannel, match=name):
        read_result({**GOOD, name: value}, max_output_bytes=10, oom=False)


def test_a_stream_longer_than_asked_for_is_cut_again() -> None:
    assert read_result(GOOD, max_output_bytes=2, oom=False).stdout == b"ou"
