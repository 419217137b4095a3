"""The host's end believes nothing: every wrong answer is a BrokenChannel, never something else."""

from __future__ import annotations

import json
import socket
import struct
from base64 import b64encode
from collections.abc import Iterator

import pytest

from machines.platform.sandbox.backend import REQUEST_BYTES_MAX
from machines.platform.sandbox.channel import BrokenChannel, Channel, read_result
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
