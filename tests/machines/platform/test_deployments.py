"""Bootstraps in real sandboxes: found ready, found failed, stopped and started again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from machines.platform.deployments import Deployments, bootstrap_command
from machines.platform.program_watch import Lines, ProgramWatch
from machines.platform.sandbox.backend import MIB, Command, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.errors import PortClosed
from machines.platform.service_orders import Bootstrap

SERVER = "cd /root; exec python3 -m http.server 8000"


class Told:
    """What the deployments and the watch said."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self._changed = threading.Condition()

    def add(self, *event: Any) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def lines(self, lines: Lines) -> None:
        for _name, line in lines:
            self.add("line", line)

    def wait(self, *event: Any) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: event in self.events, 20), self.events

    def wait_for_line(self, part: str) -> None:
        with self._changed:
            assert self._changed.wait_for(
                lambda: any(part in str(event[-1]) for event in self.events), 20
            ), self.events


class Stand:
    """A sandbox with deployments in it."""

    def __init__(self, backend: BubblewrapBackend, sandbox_id: str) -> None:
        self.backend = backend
        self.told = Told()
        self.watch = ProgramWatch(self.told.lines, lambda *end: self.deployments.ended(*end))
        self.deployments = Deployments(
            backend,
            self.watch,
            lambda _name, number: self.told.add("ready", number),
            lambda _name, number, reason: self.told.add("failed", number, reason),
            grace_seconds=0.3,
        )
        self.handle = backend.create(
            Spec(sandbox_id, memory_bytes=256 * MIB, disk_bytes=16 * MIB, pids=40)
        )
        self.number = 0

    def launch(
        self, script: str, ports: tuple[int, ...] = (), environment: dict[str, str] | None = None
    ) -> None:
        command = bootstrap_command(Bootstrap(script=script), {}, environment or {})
        self.number += 1
        self.deployments.launch(self.handle, self.number, command, ports)

    def fetch(self, port: int = 8000) -> bytes:
        with self.backend.connect(self.handle, port) as connection:
            connection.settimeout(10)
            connection.sendall(b"GET /page HTTP/1.0\r\n\r\n")
            answer = b""
            while part := connection.recv(4096):
                answer += part
        return answer.partition(b"\r\n\r\n")[2]

    def close(self) -> None:
        self.deployments.forget(self.handle)
        self.backend.destroy(self.handle)
        self.watch.stop()


@pytest.fixture(scope="module")
def bubblewrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BubblewrapBackend]:
    backend = BubblewrapBackend(tmp_path_factory.mktemp("sandboxes"))
    probe = backend.probe()
    assert probe.ok, f"{probe.reason}. Fix: {probe.fix}"
    yield backend
    backend.close()


@pytest.fixture
def stand(bubblewrap: BubblewrapBackend) -> Iterator[Stand]:
    made = Stand(bubblewrap, f"stand-{os.getpid()}")
    yield made
    made.close()


def test_a_server_answers_before_and_after_redeploy_and_freeze(stand: Stand) -> None:
    stand.launch(f"echo first > /root/page; {SERVER}", (8000,))
    stand.told.wait("ready", 1)
    assert stand.fetch() == b"first\n"
    stand.backend.freeze(stand.handle)
    stand.backend.unfreeze(stand.handle)
    assert stand.fetch() == b"first\n"
    stand.deployments.end(stand.handle)
    with pytest.raises(PortClosed):
        stand.fetch()
    stand.launch(f"echo second > /root/page; {SERVER}", (8000,))
    stand.told.wait("ready", 2)
    assert stand.fetch() == b"second\n"
    stand.told.wait_for_line("GET /page HTTP/1.0")
    assert ("failed", 1, "sandbox_died") not in stand.told.events


def test_daemons_that_a_bootstrap_left_end_with_its_deployment(stand: Stand) -> None:
    script = "echo page > /root/page; cd /root; python3 -m http.server 8000 & echo left"
    stand.launch(script, (8000,))
    stand.told.wait("ready", 1)
    stand.told.wait("line", "left")
    stand.deployments.end(stand.handle)
    with pytest.raises(PortClosed):
        stand.fetch()


def test_a_script_may_choose_its_interpreter_and_sees_its_environment(stand: Stand) -> None:
    script = "#!/usr/bin/env python3\nimport os\nprint('I am', os.environ['NAME'])\n"
    stand.launch(script, environment={"NAME": "a service"})
    stand.told.wait("line", "I am a service")
    stand.told.wait("ready", 1)


@pytest.mark.parametrize(
    ("script", "reason"),
    [("echo oops >&2; exit 3", "exit_code_3"), ("kill -9 $$", "exit_code_137")],
)
def test_a_bootstrap_that_fails(stand: Stand, script: str, reason: str) -> None:
    stand.launch(script)
    stand.told.wait("failed", 1, reason)
    assert ("ready", 1) not in stand.told.events


def test_a_program_that_was_ready_and_fails(stand: Stand) -> None:
    stand.launch(
        "read -r _ < /tmp/fifo || true; mkfifo /tmp/fifo; read -r code < /tmp/fifo; exit 5"
    )
    stand.told.wait("ready", 1)
    argv = ("sh", "-c", "echo go > /tmp/fifo")
    assert stand.backend.execute(stand.handle, Command(argv)).exit_code == 0
    stand.told.wait("failed", 1, "exit_code_5")


def test_a_sandbox_that_is_gone(stand: Stand) -> None:
    stand.launch(SERVER, (8000,))
    stand.told.wait("ready", 1)
    stand.backend.destroy(stand.handle)
    stand.told.wait("failed", 1, "sandbox_died")
    stand.deployments.end(stand.handle)


def test_a_url_is_fetched_and_run(stand: Stand) -> None:
    stand.launch(
        "cd /root; printf '#!/bin/sh\\necho fetched $0' > setup; exec python3 -m http.server 8000",
        (8000,),
    )
    stand.told.wait("ready", 1)
    fetching = bootstrap_command(Bootstrap(url="http://127.0.0.1:8000/setup"), {}, {})
    done = stand.backend.execute(stand.handle, fetching)
    assert (done.exit_code, done.stdout) == (0, b"fetched /tmp/.bootstrap\n"), done.stderr
    missing = bootstrap_command(Bootstrap(url="http://127.0.0.1:8000/none"), {}, {})
    failed = stand.backend.execute(stand.handle, missing)
    assert failed.exit_code != 0
    assert b"404" in failed.stderr


def test_files_are_there_before_the_program(stand: Stand) -> None:
    command = bootstrap_command(
        Bootstrap(script="cat /root/input/a.txt"), {"/root/input/a.txt": b"given\n"}, {}
    )
    stand.deployments.launch(stand.handle, 1, command, ())
    stand.told.wait("line", "given")
