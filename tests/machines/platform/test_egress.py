"""The proxy on a plain listener: what goes through, what does not, and what is left behind."""

from __future__ import annotations

import http.server
import ipaddress
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from machines.platform.egress import EgressProxy, ProxiedBackend, proxied
from machines.platform.egress_policy import (
    Address,
    Destination,
    EgressPolicy,
    PlatformAddress,
)
from machines.platform.sandbox.backend import Backend, Command, Handle, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.fake import FakeBackend

LOOPBACK = ipaddress.ip_address("127.0.0.1")


class Upstream(http.server.BaseHTTPRequestHandler):
    """Tells what reached it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/large":
            self._large()
            return
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length) if length else self._chunks()
        seen = {
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": body.decode(),
        }
        answer = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("Connection", "X-One-Hop")
        self.send_header("X-One-Hop", "1")
        self.send_header("X-Whole-Way", "2")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_POST = do_PUT = do_HEAD = do_DELETE = do_GET  # noqa: N815 - names of the library

    def _large(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(64):
            self.wfile.write(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunks(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return b""
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_arguments: Any) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[int]:
    """The port of a real server on the loopback."""
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served.server_port
    served.shutdown()
    thread.join()
    served.server_close()


class Inside:
    """A proxy, and what code in one sandbox would see of it."""

    def __init__(self, policy: EgressPolicy, names: dict[str, list[Address]]) -> None:
        self.asked: list[str] = []
        self.names = names
        self.proxy = EgressProxy(policy, resolve=self._resolve)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.proxy.attach("box", listener)
        self.http = httpx.Client(proxy=f"http://127.0.0.1:{self.port}", timeout=10)

    async def _resolve(self, host: str, port: int) -> list[Address]:
        self.asked.append(f"{host}:{port}")
        if host not in self.names:
            raise OSError("no such name")
        return self.names[host]

    def raw(self, request: bytes) -> bytes:
        """All that the proxy answers to these bytes."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while data := connection.recv(65536):
                answer += data
            return answer


Open = Callable[..., Inside]


@pytest.fixture
def inside(upstream: int) -> Iterator[Open]:
    """Opens a proxy that may reach `up.test` at the upstream's port."""
    opened: list[Inside] = []

    def build(**changed: Any) -> Inside:
        names = changed.pop("names", {"up.test": [LOOPBACK]})
        allow = changed.pop("allow", (Destination("up.test", upstream),))
        policy = EgressPolicy(allow=allow, **{"allow_private": True, **changed})
        opened.append(Inside(policy, names))
        return opened[-1]

    yield build
    for one in opened:
        one.http.close()
        one.proxy.close()
        assert one.proxy.attached == frozenset()


def test_an_allowed_request_goes_through_without_its_hop_headers(
    inside: Open, upstream: int
) -> None:
    one = inside()
    answer = one.http.post(
        f"http://UP.test:{upstream}/a?b=c",
        content=b"hello",
        headers={
            "Connection": "X-Mine", "X-Mine": "1", "Proxy-Authorization": "hidden", "X-Kept": "2",
            "TE": "trailers", "Upgrade": "h2c",
        },
    )  # fmt: skip
    seen = answer.json()
    assert (seen["method"], seen["path"], seen["body"]) == ("POST", "/a?b=c", "hello")
    assert seen["headers"]["host"] == f"up.test:{upstream}"
    assert seen["headers"]["x-kept"] == "2"
    assert not {"x-mine", "proxy-authorization", "te", "upgrade"} & set(seen["headers"])
    assert answer.headers["x-whole-way"] == "2"
    assert "x-one-hop" not in answer.headers
    assert one.asked == [f"up.test:{upstream}"], "resolved once, on this side"


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PUT"])
def test_methods_without_a_body(inside: Open, upstream: int, method: str) -> None:
    answer = inside().http.request(method, f"http://up.test:{upstream}")
    assert answer.status_code == 200
    assert method == "HEAD" or answer.json()["path"] == "/"


def test_a_chunked_body_is_framed_anew(inside: Open, upstream: int) -> None:
    def parts() -> Iterator[bytes]:
        yield from (b"one ", b"two")

    answer = inside().http.post(f"http://up.test:{upstream}/", content=parts())
    assert answer.json()["body"] == "one two"


def test_a_tunnel_carries_bytes_both_ways(inside: Open, upstream: int) -> None:
    one = inside()
    head = f"CONNECT up.test:{upstream} HTTP/1.1\r\nHost: up.test\r\n\r\n"
    answer = one.raw(
        head.encode() + b"GET /through HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"path": "/through"' in answer


@pytest.mark.parametrize(
    "url",
    ["http://other.test/", "http://up.test/", "http://127.0.0.1/",
     "http://up.test.:1/", "http://0x7f.1/", "http://2130706433/", "http://localhost/"],
)  # fmt: skip
def test_what_is_not_named_is_denied_before_it_is_resolved(inside: Open, url: str) -> None:
    one = inside()
    answer = one.http.get(url)
    assert (answer.status_code, answer.json()["error"]) == (403, "egress_denied")
    assert answer.json()["host"] in answer.json()["message"]
    assert answer.json()["allowed"][-1].startswith("up.test:")
    assert one.asked == []


def test_a_literal_of_six_groups_is_denied_as_such(inside: Open) -> None:
    answer = inside().raw(b"GET http://[::1]:8080/ HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403")
    assert b'"host":"::1","port":8080' in answer


def test_a_tunnel_that_is_not_named_is_denied(inside: Open) -> None:
    assert (
        inside()
        .raw(b"CONNECT other.test:443 HTTP/1.1\r\nHost: a\r\n\r\n")
        .startswith(b"HTTP/1.1 403")
    )


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1"]
)
def test_an_allowed_name_that_leads_inward_is_denied(
    inside: Open, upstream: int, address: str
) -> None:
    one = inside(allow_private=False, names={"up.test": [ipaddress.ip_address(address)]})
    answer = one.http.get(f"http://up.test:{upstream}/")
    assert (answer.status_code, answer.json()["error"]) == (403, "egress_denied")
    assert "not one of the open internet" in answer.json()["message"]


def test_an_allowed_literal_that_leads_inward_is_denied(inside: Open, upstream: int) -> None:
    one = inside(allow_private=False, allow=(Destination("127.0.0.1", upstream),))
    assert one.http.get(f"http://127.0.0.1:{upstream}/").status_code == 403


def test_a_name_that_does_not_exist_and_a_port_where_nothing_listens(inside: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    one = inside(allow=(Destination("up.test", port), Destination("gone.test", 80)))
    for url in (f"http://up.test:{port}/", "http://gone.test/"):
        answer = one.http.get(url)
        assert (answer.status_code, answer.json()["error"]) == (502, "egress_failed")


def test_the_platforms_names_lead_to_the_platform_whatever_is_allowed(
    inside: Open, upstream: int
) -> None:
    one = inside(allow=(), allow_private=False)
    assert one.http.get("http://platform.turtles/x").status_code == 403, "it does not serve yet"
    one.proxy.platform = PlatformAddress("127.0.0.1", upstream)
    for name in ("platform.turtles", "api.unsandbox.com", "unsandbox.com"):
        seen = one.http.get(f"http://{name}/x").json()
        assert (seen["path"], seen["headers"]["host"]) == ("/x", name)
    for port in (80, 443):
        head = f"CONNECT platform.turtles:{port} HTTP/1.1\r\nHost: a\r\n\r\n"
        assert one.raw(head.encode()).startswith(b"HTTP/1.1 403"), "no tunnel around the rate"
    assert one.http.get(f"http://platform.turtles:{upstream}/x").status_code == 403
    assert one.asked == []


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: up.test\r\n\r\n", 400),
        (b"GET https://up.test/ HTTP/1.1\r\nHost: up.test\r\n\r\n", 400),
        (b"GET http://user@up.test/ HTTP/1.1\r\nHost: up.test\r\n\r\n", 400),
        (b"GET http://up.test:0/ HTTP/1.1\r\nHost: up.test\r\n\r\n", 400),
        (b"CONNECT up.test HTTP/1.1\r\nHost: up.test\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET http://up.test/ HTTP/1.1\r\n\r\n", 400),
        (b"GET http://up.test/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n"
         b"\r\nab", 400),
        (b"GET http://up.test/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
         b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET http://up.test/ HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", 431),
    ],
)  # fmt: skip
def test_what_is_no_proxy_request_is_told_so(
    inside: Open, request_bytes: bytes, status: int
) -> None:
    answer = inside().raw(request_bytes)
    assert answer.startswith(f"HTTP/1.1 {status}".encode()), answer


def test_a_second_request_on_the_connection_is_not_served(inside: Open, upstream: int) -> None:
    one = f"GET http://up.test:{upstream}/1 HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    answer = inside().raw(one + one)
    assert answer.count(b"HTTP/1.1 200") == 1


def test_a_sandbox_that_asks_too_fast_is_told_when_to_come_back(
    inside: Open, upstream: int
) -> None:
    one = inside(requests_per_second=0.01, burst=3)
    with capture_logs() as lines:
        answers = [one.http.get(f"http://up.test:{upstream}/") for _ in range(5)]
    assert [each.status_code for each in answers] == [200, 200, 200, 429, 429]
    assert int(answers[3].headers["retry-after"]) >= 1
    assert answers[3].json()["error"] == "rate_limit_exceeded"
    told = [line["status"] for line in lines if line["event"] == "egress"]
    assert told.count(429) == 1, "a flood is one line"


def test_another_sandbox_has_a_rate_of_its_own(inside: Open, upstream: int) -> None:
    one = inside(requests_per_second=0.01, burst=1)
    other = socket.create_server(("127.0.0.1", 0))
    one.proxy.attach("other", other)
    assert one.http.get(f"http://up.test:{upstream}/").status_code == 200
    assert one.http.get(f"http://up.test:{upstream}/").status_code == 429
    with httpx.Client(proxy=f"http://127.0.0.1:{other.getsockname()[1]}") as client:
        assert client.get(f"http://up.test:{upstream}/").status_code == 200


def test_too_many_bytes_are_cut(inside: Open, upstream: int) -> None:
    one = inside(bytes_max=100_000)
    with pytest.raises(httpx.RemoteProtocolError):
        one.http.get(f"http://up.test:{upstream}/large")
    answer = one.http.post(f"http://up.test:{upstream}/", content=b"x" * 200_000)
    assert (answer.status_code, answer.json()["error"]) == (413, "too_much_data")


def test_one_slow_sandbox_does_not_hold_up_another(inside: Open, upstream: int) -> None:
    one = inside(connections=2, header_seconds=30)
    stuck = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(8)]
    other = socket.create_server(("127.0.0.1", 0))
    one.proxy.attach("other", other)
    with httpx.Client(proxy=f"http://127.0.0.1:{other.getsockname()[1]}") as client:
        assert client.get(f"http://up.test:{upstream}/").status_code == 200
    for each in stuck:
        each.close()
    assert one.http.get(f"http://up.test:{upstream}/").status_code == 200


def test_a_head_that_never_ends_is_given_up(inside: Open) -> None:
    one = inside(header_seconds=0.05)
    with socket.create_connection(("127.0.0.1", one.port), 10) as connection:
        connection.sendall(b"GET http://up.test/ HTTP/1.1\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_an_upstream_that_says_nothing_is_given_up(inside: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        one = inside(allow=(Destination("up.test", port),), idle_seconds=0.05)
        answer = one.http.get(f"http://up.test:{port}/")
    assert (answer.status_code, answer.json()["error"]) == (504, "egress_timeout")


@pytest.mark.parametrize(
    "reply",
    [b"nonsense\r\n\r\n", b"", b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"],
)  # fmt: skip
def test_an_upstream_that_speaks_no_http(inside: Open, reply: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as odd:
        port = odd.getsockname()[1]

        def serve() -> None:
            connection, _ = odd.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        answer = inside(allow=(Destination("up.test", port),)).http.get(f"http://up.test:{port}/")
        thread.join()
    assert (answer.status_code, answer.json()["error"]) == (502, "egress_failed")


def test_the_log_names_hosts_and_never_what_was_asked(inside: Open, upstream: int) -> None:
    one = inside()
    with capture_logs() as lines:
        one.http.post(
            f"http://up.test:{upstream}/hidden?hidden=1",
            content=b"hidden",
            headers={"X-Secret": "hidden"},
        )
        one.http.get("http://denied.test/hidden")
        one.proxy.detach("box")  # lines are written when their answers are out
    told = [line for line in lines if line["event"] == "egress"]
    assert [(line["method"], line["host"], line["status"]) for line in told] == [
        ("POST", "up.test", 200),
        ("GET", "denied.test", 403),
    ]
    assert told[0]["sandbox_id"] == "box"
    assert "hidden" not in str(lines)


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _until_open(count: int) -> None:
    """So many files are open, at last: the upstream's threads close their ends a little later."""
    limit = time.monotonic() + 10
    while (now := _open_files()) != count:
        assert time.monotonic() < limit, f"{now} open files, expected {count}"
        os.sched_yield()


def test_a_detached_sandbox_leaves_nothing_open(inside: Open, upstream: int) -> None:
    one = inside()
    one.proxy.detach("box")
    before = _open_files()
    for number in range(5):
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        one.proxy.attach(f"box-{number}", listener)
        tunnel = socket.create_connection(("127.0.0.1", port))
        tunnel.sendall(f"CONNECT up.test:{upstream} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert tunnel.recv(100).startswith(b"HTTP/1.1 200")
        one.proxy.detach(f"box-{number}")
        one.proxy.detach(f"box-{number}")
        assert tunnel.recv(100) == b"", "open tunnels end with the sandbox"
        tunnel.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    _until_open(before)


# -- around a backend ----------------------------------------------------------------------------


class Doored(FakeBackend):
    """A fake backend whose semitrusted sandboxes have a real socket."""

    def __init__(self) -> None:
        super().__init__()
        self.sockets: dict[str, socket.socket] = {}
        self.fails = False

    def create(self, spec: Spec) -> Handle:
        handle = super().create(spec)
        if spec.network == "semitrusted":
            self.sockets[spec.sandbox_id] = socket.create_server(("127.0.0.1", 0))
        return handle

    def egress(self, handle: Handle) -> socket.socket | None:
        if self.fails:
            raise OSError("no descriptors")
        found = self.sockets.get(handle.sandbox_id)
        return found.dup() if found else None

    def destroy(self, handle: Handle) -> None:
        super().destroy(handle)
        if found := self.sockets.pop(handle.sandbox_id, None):
            found.close()


def test_a_backend_gets_a_way_out_for_semitrusted_sandboxes_only() -> None:
    proxy = EgressProxy(EgressPolicy())
    doored = Doored()
    backend = proxied(doored, proxy)
    trusted = backend.create(Spec("a", network="semitrusted"))
    backend.create(Spec("b"))
    assert proxy.attached == {"a"}
    port = doored.sockets["a"].getsockname()[1]
    answer = httpx.get("http://x.test/", proxy=f"http://127.0.0.1:{port}")
    assert answer.status_code == 403
    assert backend.name == "fake", "the rest is the backend's own"
    backend.destroy(trusted)
    backend.destroy(trusted)
    assert proxy.attached == frozenset()
    backend.destroy(Handle("b"))
    backend.close()


def test_a_sandbox_whose_socket_cannot_be_had_is_not_left_behind() -> None:
    doored = Doored()
    doored.fails = True
    backend = ProxiedBackend(doored, EgressProxy(EgressPolicy()))
    with pytest.raises(OSError, match="no descriptors"):
        backend.create(Spec("a", network="semitrusted"))
    assert doored.sockets == {}
    backend.close()


# -- from inside real walls ------------------------------------------------------------------------

ASK = """
import json, socket, sys, urllib.error, urllib.request
def ask(url):
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return [answer.status, answer.read(200).decode()]
    except urllib.error.HTTPError as error:
        return [error.code, json.loads(error.read())["error"]]
    except OSError as error:
        return [0, type(getattr(error, "reason", error)).__name__]
def dial(port):
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
        return "open"
    except OSError as error:
        return type(error).__name__
port = int(sys.argv[1])
print(json.dumps([ask(f"http://up.test:{port}/a"), ask("http://denied.test/"), dial(port)]))
"""


@pytest.fixture
def walled(tmp_path: Path) -> Iterator[Callable[[EgressProxy], Backend]]:
    """Puts a proxy around real sandboxes."""
    real = BubblewrapBackend(tmp_path)
    probe = real.probe()
    assert probe.ok, f"{probe.reason}. Fix: {probe.fix}"
    yield lambda proxy: proxied(real, proxy)
    real.close()


def look(backend: Backend, handle: Handle, upstream: int) -> Any:
    command = Command(("python3", "-c", ASK, str(upstream)))
    ran = backend.execute(handle, command, timeout_seconds=25)
    assert ran.exit_code == 0, ran.stderr
    return json.loads(ran.stdout)


def test_code_inside_reaches_what_is_allowed_and_nothing_else(
    inside: Open, upstream: int, walled: Callable[[EgressProxy], Backend]
) -> None:
    backend = walled(inside().proxy)
    spec = Spec("inside", memory_bytes=256 << 20, disk_bytes=16 << 20, network="semitrusted")
    handle = backend.create(spec)
    allowed, refused, direct = look(backend, handle, upstream)
    assert allowed[0] == 200
    assert '"path": "/a"' in allowed[1]
    assert refused == [403, "egress_denied"]
    assert direct == "ConnectionRefusedError"
    backend.freeze(handle)
    backend.unfreeze(handle)
    assert look(backend, handle, upstream)[0][0] == 200
    backend.destroy(handle)


def test_code_inside_a_zerotrust_sandbox_reaches_nothing(
    inside: Open, upstream: int, walled: Callable[[EgressProxy], Backend]
) -> None:
    backend = walled(inside().proxy)
    handle = backend.create(Spec("alone", memory_bytes=256 << 20, disk_bytes=16 << 20))
    allowed, refused, direct = look(backend, handle, upstream)
    assert allowed == refused == [0, "gaierror"]
    assert direct == "ConnectionRefusedError"
    backend.destroy(handle)


def test_what_a_frozen_sandbox_left_open_ends_with_it(
    inside: Open, upstream: int, walled: Callable[[EgressProxy], Backend]
) -> None:
    one = inside()
    one.proxy.detach("box")
    backend = walled(one.proxy)
    backend.create(Spec("warm", memory_bytes=256 << 20, disk_bytes=16 << 20))
    backend.destroy(Handle("warm"))
    before = _open_files()
    spec = Spec("ice", memory_bytes=256 << 20, disk_bytes=16 << 20, network="semitrusted")
    handle = backend.create(spec)
    request = f"GET http://up.test:{upstream}/large HTTP/1.1\r\nHost: a\r\n\r\n"
    # Asks for more than it ever reads.
    code = (
        "import socket\n"
        "s = socket.create_connection(('127.0.0.1', 3128), 10)\n"
        f"s.sendall({request.encode()!r})\n"
        "print(len(s.recv(1)))\n"
    )
    assert backend.cell(handle, "python3", code).stdout == b"1\n"
    backend.freeze(handle)
    backend.destroy(handle)
    assert one.proxy.attached == frozenset()
    _until_open(before)
