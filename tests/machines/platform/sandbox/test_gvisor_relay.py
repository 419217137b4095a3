"""The relay, both ends in one process: streams, descriptors, credit, pauses, and hostile frames."""

from __future__ import annotations

import os
import select
import socket
import struct
import termios
import threading
from collections.abc import Callable, Iterator

import pytest

from machines.platform.sandbox import gvisor_relay
from machines.platform.sandbox.gvisor_relay import HEADER, PASSED, Relay

ReadUntil = Callable[..., bytes]
SECONDS = 20


class Pair:
    """Two relays over two pipes; `host` and `inside` are the free ends of stream 0."""

    def __init__(self) -> None:
        self.relays, self.threads, self.ends = [], [], []
        to_inside, to_host = os.pipe(), os.pipe()
        for number, (source, sink) in enumerate(
            ((to_host[0], to_inside[1]), (to_inside[0], to_host[1]))
        ):
            relay = Relay(source, sink, 2 + number)
            for stream in (0, 1):
                mine, theirs = socket.socketpair()
                mine.settimeout(SECONDS)
                relay.add(stream, theirs.detach())
                self.ends.append(mine)
            self.relays.append(relay)
            self.threads.append(threading.Thread(target=relay.run, daemon=True))
            self.threads[-1].start()
        self.host, self.host_door, self.inside, self.inside_door = self.ends

    def close(self) -> None:
        for end in self.ends:
            end.close()
        for thread in self.threads:
            thread.join(SECONDS)
            assert not thread.is_alive()

    def pass_on(self, descriptor: int, *, outwards: bool) -> int:
        """What comes out at the other side for a descriptor."""
        sender, receiver = (self.inside, self.host) if outwards else (self.host, self.inside)
        socket.send_fds(sender, [b"x"], [descriptor])
        data, came, _, _ = socket.recv_fds(receiver, 1, 2)
        assert (data, len(came)) == (b"x", 1)
        return came[0]


def write_and_close(descriptor: int, data: bytes) -> None:
    os.write(descriptor, data)
    os.close(descriptor)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A pair that ends with the test."""
    made = Pair()
    yield made
    made.close()


def test_bytes_pass_in_both_directions(pair: Pair) -> None:
    pair.host.sendall(b"question")
    assert pair.inside.recv(99) == b"question"
    pair.inside_door.sendall(b"answer")
    assert pair.host_door.recv(99) == b"answer"


def test_what_a_program_prints_comes_out_until_its_end(pair: Pair, read_until: ReadUntil) -> None:
    reading, writing = os.pipe()
    inside = pair.pass_on(writing, outwards=False)
    os.close(writing)
    os.write(inside, b"hello")
    assert read_until(reading, b"hello") == b"hello"
    os.write(inside, b"last")
    os.close(inside)
    assert read_until(reading, None) == b"last"
    os.close(reading)


def test_a_file_goes_in_until_its_end(pair: Pair, read_until: ReadUntil) -> None:
    reading, writing = os.pipe()
    inside = pair.pass_on(reading, outwards=False)
    os.close(reading)
    sender = threading.Thread(target=write_and_close, args=(writing, b"y" * 10**6))
    sender.start()
    assert read_until(inside, None) == b"y" * 10**6
    sender.join()
    os.close(inside)


def test_a_connection_is_closed_one_direction_at_a_time(pair: Pair) -> None:
    near, far = socket.socketpair()
    with socket.socket(fileno=pair.pass_on(far.detach(), outwards=True)) as out, near:
        near.settimeout(SECONDS)
        out.settimeout(SECONDS)
        out.sendall(b"request")
        out.shutdown(socket.SHUT_WR)
        assert near.recv(99) == b"request"
        assert near.recv(99) == b""
        near.sendall(b"response")
        near.close()
        assert out.recv(99) == b"response"
        assert out.recv(99) == b""


def test_a_terminal_passes_with_its_size_and_its_end(pair: Pair, read_until: ReadUntil) -> None:
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (37, 91))
    out = pair.pass_on(master, outwards=True)
    os.close(master)
    assert termios.tcgetwinsize(out) == (37, 91)
    os.write(slave, b"prompt")
    assert read_until(out, b"prompt") == b"prompt"
    termios.tcsetwinsize(out, (50, 132))
    os.write(out, b"typed\n")
    assert read_until(slave, b"typed\n") == b"typed\n"
    assert termios.tcgetwinsize(slave) == (50, 132)
    os.close(slave)
    read_until(out, None)
    os.close(out)


def test_a_reader_that_sleeps_holds_up_its_own_stream_only(pair: Pair) -> None:
    reading, writing = os.pipe()
    inside = pair.pass_on(writing, outwards=False)
    os.close(writing)
    os.set_blocking(inside, False)
    written = 0
    while select.select([], [inside], [], 0.3)[1]:  # until the whole way is full
        written += os.write(inside, b"z" * 65536)
    assert written < 1 << 20
    pair.host.sendall(b"still")
    assert pair.inside.recv(99) == b"still"
    os.close(inside)
    seen = 0
    while piece := os.read(reading, 1 << 20):
        seen += len(piece)
    assert seen == written
    os.close(reading)


def test_nothing_is_lost_over_a_pause(pair: Pair) -> None:
    near, far = socket.socketpair()
    host = pair.relays[0]
    with socket.socket(fileno=pair.pass_on(far.detach(), outwards=True)) as out, near:
        out.settimeout(SECONDS)
        near.settimeout(SECONDS)
        out.sendall(b"before")
        assert near.recv(99) == b"before"
        host.post(host.hold)
        assert host.paused.wait(SECONDS)
        out.sendall(b"meanwhile")
        near.sendall(b"meanwhile, too")
        assert select.select([near, out], [], [], 0.2)[0] == []
        pipes = os.dup(host.source), os.dup(host.sink)  # those of the restored kernel, really
        host.post(lambda: host.resume(*pipes))
        assert near.recv(99) == b"meanwhile"
        assert out.recv(99) == b"meanwhile, too"


HOSTILE = {
    "too long": HEADER.pack(gvisor_relay.DATA, 0, 1 << 20),
    "an unknown kind": HEADER.pack(77, 0, 0),
    "more than is welcome": (HEADER.pack(gvisor_relay.DATA, 1, 60_000) + bytes(60_000)) * 40,
    "a number of ours": HEADER.pack(gvisor_relay.PASS, 2, PASSED.size)
    + PASSED.pack(0, gvisor_relay.SOCKET, 0, 0),
    "a channel anew": HEADER.pack(gvisor_relay.PASS, 1, PASSED.size)
    + PASSED.pack(0, gvisor_relay.SOCKET, 0, 0),
    "an unknown form": HEADER.pack(gvisor_relay.PASS, 3, PASSED.size) + PASSED.pack(0, 99, 0, 0),
    "a listener nobody asked for": HEADER.pack(gvisor_relay.PASS, 3, PASSED.size)
    + PASSED.pack(0, gvisor_relay.LISTENING, 0, 0),
    "a connection to no listener": HEADER.pack(gvisor_relay.PASS, 3, PASSED.size)
    + PASSED.pack(0, gvisor_relay.ACCEPTED, 0, 0),
    "too many descriptors at once": b"".join(
        HEADER.pack(gvisor_relay.PASS, 3 + 2 * number, PASSED.size)
        + PASSED.pack(0, gvisor_relay.SOCKET, 0, 0)
        for number in range(5)
    ),
    "a short size": HEADER.pack(gvisor_relay.SIZE, 0, 1) + b"x",
    "the end of a channel": HEADER.pack(gvisor_relay.CLOSE, 0, 0),
}


@pytest.mark.parametrize("frames", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_frame_ends_the_relay_and_closes_everything(frames: bytes) -> None:
    to_host, to_inside = os.pipe(), os.pipe()
    relay = Relay(to_host[0], to_inside[1], 2)
    channel, theirs = socket.socketpair()
    door, their_door = socket.socketpair()
    relay.add(0, theirs.detach())
    relay.add(1, their_door.detach())
    serving = threading.Thread(target=relay.run)
    serving.start()
    sink = to_host[1]
    with channel, door:
        channel.settimeout(SECONDS)
        try:
            view = memoryview(frames)
            while view:
                view = view[os.write(sink, view) :]
        except BrokenPipeError:
            pass
        serving.join(SECONDS)
        assert not serving.is_alive()
        assert channel.recv(1) == b""
    os.close(sink)
    while os.read(to_inside[0], 10**6):
        continue  # until the end: the relay has closed its pipe
    os.close(to_inside[0])


def test_other_streams_than_the_channels_do_not_survive_a_new_host() -> None:
    to_inside, to_host = os.pipe(), os.pipe()
    relay = Relay(to_inside[0], to_host[1], 3)
    channel, theirs = socket.socketpair()
    relay.add(0, theirs.detach())
    kept_read, kept_write = os.pipe()
    near, far = socket.socketpair()
    for descriptor in (kept_read, far.detach()):
        relay.announce(descriptor, 0)
    relay.reset()
    near.settimeout(SECONDS)
    assert near.recv(1) == b""
    assert [stream.number for stream in relay.streams.values()] == [0, -1]
    serving = threading.Thread(target=relay.run)
    serving.start()
    for _ in range(40):  # more than any window: what a program prints is read on, for nobody
        os.write(kept_write, bytes(60_000))
    os.close(kept_write)
    channel.sendall(b"to the new host")
    header = HEADER.size
    seen = b""
    while len(seen) < 2 * (header + PASSED.size) + header + 15:
        seen += os.read(to_host[0], 4096)
    assert seen.endswith(struct.pack(">BII", gvisor_relay.DATA, 0, 15) + b"to the new host")
    channel.sendall(b"more")
    assert os.read(to_host[0], 4096).endswith(b"more")
    assert list(relay.streams) == [0]
    relay.post(relay.stop)
    serving.join(SECONDS)
    for each in (near, channel):
        each.close()
    for descriptor in (to_inside[1], to_host[0]):
        os.close(descriptor)
