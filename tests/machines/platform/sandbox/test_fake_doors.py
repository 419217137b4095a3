"""Behind the fake's descriptors stands what its head promises."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from machines.platform.sandbox.backend import Command, Handle, Spec
from machines.platform.sandbox.errors import SandboxLimit
from machines.platform.sandbox.fake import FakeBackend

ReadUntil = Callable[..., bytes]
SERVER = Command(("python3", "-m", "http.server", "8000"))


@pytest.fixture
def fake() -> Iterator[FakeBackend]:
    backend = FakeBackend()
    yield backend
    backend.close()


@pytest.fixture
def one(fake: FakeBackend) -> Handle:
    return fake.create(Spec("one", network="semitrusted", environment={"WHO": "turtle"}))


def test_a_port_answers_with_what_it_was_asked(fake: FakeBackend, one: Handle) -> None:
    program = fake.start_program(one, SERVER)
    with fake.connect(one, 8000) as connection:
        assert not connection.getblocking()
        connection.settimeout(20)
        request = b"PUT /a?b HTTP/1.1\r\nHost: h\r\nX-One: 1\r\nContent-Length: 4\r\n\r\nbody"
        for _ in range(2):  # a connection is kept
            connection.sendall(request)
            seen = b""
            while not seen.endswith(b"body"):
                seen += connection.recv(4096)
            head, _, text = seen.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert text == b"PUT /a?b HTTP/1.1\nHost: h\nX-One: 1\nContent-Length: 4\n\nbody"
    os.close(program.output)
    os.close(program.status)


def test_a_destroyed_sandbox_hangs_up(
    fake: FakeBackend, one: Handle, read_until: ReadUntil
) -> None:
    program = fake.start_program(one, SERVER)
    with fake.connect(one, 8000) as connection:
        connection.settimeout(20)
        fake.destroy(one)
        assert connection.recv(1) == b""
    assert read_until(program.status, None) == b""
    os.close(program.output)
    os.close(program.status)


def test_a_terminal_knows_the_statements_and_its_environment(
    fake: FakeBackend, one: Handle, read_until: ReadUntil
) -> None:
    terminal = fake.open_terminal(one, ("bash",), environment={"MORE": "rain"})
    os.write(terminal, b"echo $WHO $MORE\n")
    read_until(terminal, b"turtle rain\r\n")
    os.write(terminal, b"rm -rf /\n")
    read_until(terminal, b"does not execute 'rm -rf /'")
    os.write(terminal, b"exit\n")
    read_until(terminal, None)
    os.close(terminal)


def test_an_unknown_program_prints_that_it_is(
    fake: FakeBackend, one: Handle, read_until: ReadUntil
) -> None:
    program = fake.start_program(one, Command(("bash", "-c", "curl x\nsleep infinity")))
    assert read_until(program.status, None) == b"2\n"
    assert b"does not execute 'curl x'" in read_until(program.output, None)
    os.close(program.output)
    os.close(program.status)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 1}', '{"files": {"a": 5}}'])
def test_what_was_not_saved_cannot_be_loaded(
    fake: FakeBackend, one: Handle, tmp_path: Path, content: str
) -> None:
    (tmp_path / "bad").write_text(content)
    with pytest.raises(SandboxLimit, match="bad is no saved sandbox"):
        fake.load(one, tmp_path / "bad")
