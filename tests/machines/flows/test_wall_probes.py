"""The probes themselves: what each sees where there is no wall, and where one thing is closed."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from machines.flows import wall_probes
from machines.flows.canaries import LocalCanaries


@pytest.fixture
async def ask() -> Any:
    async with LocalCanaries().placed() as canary:
        yield canary.ask()


def test_without_a_wall_the_host_is_recognised(ask: Any) -> None:
    for probe in (wall_probes.host_files, wall_probes.host_processes, wall_probes.namespaces):
        assert probe(ask)[0] == "open", probe.__name__


def test_what_is_not_the_hosts_is_closed(ask: Any) -> None:
    other = {
        "places": {"/": [0, 0], "/no/such": [1, 1]},
        "process": [ask["process"][0], 1],
        "namespaces": {"net": "net:[1]"},
    }
    assert wall_probes.host_files(other) == ("closed", "none of 2 folders is the host's")
    assert wall_probes.namespaces(other) == ("closed", "1 are others")
    assert wall_probes.namespaces({"namespaces": {"none": "x"}})[0] == "inconclusive"


class Proxy:
    """Answers every request with one line."""

    def __init__(self, answer: bytes) -> None:
        self.heard: list[bytes] = []
        self._answer = answer
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                self.heard.append(connection.recv(4096))
                connection.sendall(self._answer)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Proxy] = []

    def start(answer: bytes) -> Proxy:
        made.append(Proxy(answer))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{made[-1].port}")
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (b"HTTP/1.1 403 no\r\n\r\n", "closed"),
        (b"HTTP/1.1 200 ok\r\n\r\n", "open"),
        (b"HTTP/1.1 502 tried\r\n\r\n", "open"),
        (b"what?", "inconclusive"),
        (b"", "inconclusive"),
    ],
)
def test_a_proxy_keeps_its_list(proxies: Any, answer: bytes, seen: str) -> None:
    proxy = proxies(answer)
    assert wall_probes.proxy_outside({})[0] == seen
    assert wall_probes.proxy_host({"port": 7})[0] == seen
    if seen == "closed":
        assert [one.split()[1] for one in proxy.heard] == [
            b"http://192.0.2.1/", b"198.51.100.1:443", b"http://127.0.0.1:7/",
            b"http://localhost:7/",
        ]  # fmt: skip


async def test_something_else_on_the_canarys_port_is_no_leak(ask: Any) -> None:
    probed = asyncio.to_thread(wall_probes.host_port, ask | {"token": "x" * 32})
    assert (await probed)[0] == "closed"


@pytest.mark.parametrize(
    ("routed", "seen"), [("192.0.2.1", "open"), ("2001:db8::1", "open"), ("", "closed")]
)
def test_the_outside(monkeypatch: pytest.MonkeyPatch, routed: str, seen: str) -> None:
    """With a route nothing is even tried; without one every connection must fail."""

    def refused(*_arguments: Any) -> Any:
        raise OSError(101, "unreachable")

    monkeypatch.setattr(wall_probes, "_route", lambda address, _port: address == routed)
    monkeypatch.setattr(wall_probes.socket, "socket", refused)
    assert wall_probes.outside({})[0] == seen


@pytest.mark.parametrize("error", [TimeoutError(), None])
def test_a_connection_that_hangs_was_let_out(monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    class Hanging:
        def __init__(self, *_kind: Any) -> None:
            pass

        def __enter__(self) -> Hanging:
            return self

        def __exit__(self, *_error: Any) -> None:
            pass

        def settimeout(self, _seconds: float) -> None:
            pass

        def connect(self, _address: Any) -> None:
            if error is not None:
                raise error

    monkeypatch.setattr(wall_probes, "_route", lambda _address, _port: False)
    monkeypatch.setattr(wall_probes.socket, "socket", Hanging)
    assert wall_probes.outside({})[0] == "open"


def test_a_probe_that_fails_is_inconclusive() -> None:
    seen = wall_probes.tried({})["sights"]
    assert seen["host_port"] == ["inconclusive", "KeyError: 'port'"]
    assert seen["host_files"][0] == "inconclusive"


def test_details_are_printable_and_short() -> None:
    assert wall_probes._clean('a\x1b"é' + "x" * 999) == "a???" + "x" * 116
