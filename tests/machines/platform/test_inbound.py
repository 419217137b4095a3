"""Visitors of services: found by host, woken, passed on, or told why not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from machines.platform.inbound import (
    SERVICE_THREADS_MAX,
    VISITS_MAX,
    freeze_page,
    host_of,
    is_service_host,
    may_be_custom,
)
from machines.platform.orders import Caller
from machines.platform.sandbox.backend import Handle
from machines.platform.sandbox.errors import PortClosed
from machines.platform.sandbox.fake import FakeBackend
from machines.platform.service_orders import ServiceOrder

Talk = Callable[[socket.socket], None]


class Visited(FakeBackend):
    """Every port of every sandbox is one of these: how a program there talks."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: dict[int, Talk] = {}
        self.threads: list[threading.Thread] = []

    def connect(self, handle: Handle, port: int) -> socket.socket:
        self._awake(handle)
        if port not in self.ports:
            raise PortClosed(handle.sandbox_id, port)
        near, far = socket.socketpair()
        thread = threading.Thread(target=self._talk, args=(far, self.ports[port]))
        thread.start()
        self.threads.append(thread)
        return near

    def _talk(self, far: socket.socket, talk: Talk) -> None:
        # The platform may have closed its side before all was said.
        with far, contextlib.suppress(ConnectionError):
            talk(far)


@pytest.fixture
def backend() -> Iterator[Visited]:
    made = Visited()
    yield made
    made.close()
    for thread in made.threads:
        thread.join(10)


def read_request(connection: socket.socket) -> bytes:
    """A request with its body, when that has a length or chunks; what came, if it breaks off."""
    seen = b""
    while not is_whole(seen) and (data := connection.recv(65536)):
        seen += data
    return seen


def is_whole(seen: bytes) -> bool:
    head, end, body = seen.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        return seen.endswith(b"0\r\n\r\n")
    length = re.search(rb"content-length: ([0-9]+)", head.lower())
    return bool(end) and len(body) >= int(length[1] if length else 0)


def echo(connection: socket.socket) -> None:
    """Answers with what it was asked."""
    seen = read_request(connection)
    head = b"HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-Kept: 2\r\n"
    connection.sendall(head + f"Content-Length: {len(seen)}\r\n\r\n".encode() + seen)


def says(answer: bytes) -> Talk:
    """Answers so, whatever it was asked."""

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer)

    return talk


async def service(api: Any, name: str = "web", **changed: Any) -> str:
    """A running service with ports 80 and 81; its id."""
    pair = api.key(tier=32)
    caller = Caller(public_key=pair[0], tier=32, idempotency_key=None, digest="d")
    order = ServiceOrder(**{"name": name, "ports": (80, 81), **changed})
    services = api.app.state.api.services
    row = await asyncio.to_thread(services.create, caller, order)
    assert row["state"] == "running"
    return str(row["service_id"])


async def visit(api: Any, host: str, path: str = "/", **more: Any) -> httpx.Response:
    method = more.pop("method", "GET")
    headers = {**more.pop("headers", {}), "Host": host}
    return await api.http.request(method, path, headers=headers, **more)


@pytest.mark.parametrize("host", ["web.on.unsandbox.com", "WEB.on.localhost:8000", "web.on.x."])
async def test_a_request_goes_to_the_first_port(api: Any, backend: Visited, host: str) -> None:
    backend.ports[80] = echo
    await service(api)
    answer = await visit(
        api, host, "/a%20b?c=d", method="POST", content=b"hello",
        headers={"X-Forwarded-For": "6.6.6.6", "Connection": "X-Mine", "X-Mine": "1", "X-K": "2"},
    )  # fmt: skip
    assert answer.status_code == 200
    lines = answer.text.split("\r\n")
    assert lines[0] == "POST /a%20b?c=d HTTP/1.1"
    seen = dict(line.split(": ", 1) for line in lines[1 : lines.index("")])
    seen = {name.lower(): value for name, value in seen.items()}
    assert (seen["host"], seen["x-forwarded-host"]) == (host, host)
    assert (seen["x-forwarded-for"], seen["x-forwarded-proto"]) == ("127.0.0.1", "http")
    assert (seen["x-k"], seen["connection"], lines[-1]) == ("2", "close", "hello")
    assert "x-mine" not in seen
    assert "x-hop" not in answer.headers
    assert answer.headers["x-kept"] == "2"


async def test_another_port_and_a_custom_domain(api: Any, backend: Visited) -> None:
    backend.ports[80] = says(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n0")
    backend.ports[81] = says(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
    await service(api, custom_domains=("www.example.org",))
    assert (await visit(api, "web.on.x.org")).text == "0"
    assert (await visit(api, "web--81.on.x.org")).text == "1"
    assert (await visit(api, "WWW.example.org:8000")).text == "0"
    missing = await visit(api, "web--82.on.x.org")
    assert (missing.status_code, missing.json()["error"]) == (404, "no_such_port")
    unknown = await visit(api, "other.on.x.org")
    assert (unknown.status_code, unknown.json()["error"]) == (404, "no_such_service")
    ours = await visit(api, "www.example.net", "/health")
    assert ours.json()["status"] == "ok", "a host that is nobody's is the platform's"


async def test_nobody_takes_the_platforms_own_names(api: Any, backend: Visited) -> None:
    backend.ports[80] = echo
    await service(api, custom_domains=("api.unsandbox.com", "platform.turtles"))
    for host in ("api.unsandbox.com", "platform.turtles", "127.0.0.1:80", "[::1]:80", "localhost"):
        assert (await visit(api, host, "/health")).json()["status"] == "ok"


async def test_a_chunked_body_and_an_answer_without_a_length(api: Any, backend: Visited) -> None:
    async def parts() -> Any:
        for part in (b"one ", b"two"):
            yield part

    def until_closed(connection: socket.socket) -> None:
        seen = read_request(connection)
        connection.sendall(b"HTTP/1.1 203 Odd\r\n\r\n" + seen)

    backend.ports[80] = until_closed
    await service(api)
    answer = await visit(
        api, "web.on.x.org", method="PUT", content=parts(),
        headers={"Transfer-Encoding": "chunked"},
    )  # fmt: skip
    assert answer.status_code == 203
    assert answer.text.endswith("4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 101 Up\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "
               + b"y" * 40_000 + b"\r\n\r\n"],
)  # fmt: skip
async def test_a_service_that_speaks_no_http(api: Any, backend: Visited, answer: bytes) -> None:
    backend.ports[80] = says(answer)
    await service(api)
    failed = await visit(api, "web.on.x.org")
    assert (failed.status_code, failed.json()["error"]) == (502, "service_failed")


async def test_two_lengths_are_passed_to_nobody(api: Any, backend: Visited) -> None:
    backend.ports[80] = echo
    await service(api)
    answer = await visit(
        api, "web.on.x.org", method="POST", content=b"0\r\n\r\n",
        headers={"Transfer-Encoding": "chunked", "Content-Length": "5"},
    )  # fmt: skip
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


async def test_nothing_listens_yet(api: Any, backend: Visited) -> None:
    await service(api)
    answer = await visit(api, "web.on.x.org")
    assert (answer.status_code, answer.json()["error"]) == (502, "service_unreachable")


async def test_a_service_without_ports(api: Any, backend: Visited) -> None:
    await service(api, ports=())
    assert (await visit(api, "web.on.x.org")).json()["error"] == "no_port"


async def freeze(api: Any, service_id: str) -> None:
    await asyncio.to_thread(api.app.state.api.services.freeze_for, service_id, None)


async def test_a_frozen_service_shows_its_page_or_json(api: Any, backend: Visited) -> None:
    backend.ports[80] = echo
    service_id = await service(api)
    await freeze(api, service_id)
    page = await visit(api, "web.on.x.org")
    assert (page.status_code, page.headers["content-type"]) == (503, "text/html; charset=utf-8")
    assert "web is frozen" in page.text
    assert "/keys/extend?key=" in page.text
    assert page.headers["retry-after"]
    with api.database.transaction() as sql:
        sql.run("UPDATE service SET show_freeze_page = 0")
    plain = await visit(api, "web.on.x.org")
    assert (plain.status_code, plain.json()["error"]) == (503, "service_frozen")


async def test_a_frozen_service_that_wants_it_is_woken(api: Any, backend: Visited) -> None:
    backend.ports[80] = echo
    service_id = await service(api, unfreeze_on_demand=True)
    await freeze(api, service_id)
    answers = await asyncio.gather(*(visit(api, "web.on.x.org") for _ in range(5)))
    assert [answer.status_code for answer in answers] == [200] * 5
    with api.database.reading() as sql:
        assert sql.scalar("SELECT state FROM service") == "running"


async def test_a_visit_is_activity(api: Any, backend: Visited) -> None:
    backend.ports[80] = echo
    await service(api)
    api.now_ms += 60_000
    await visit(api, "web.on.x.org")
    with api.database.reading() as sql:
        assert sql.scalar("SELECT last_active_ms FROM service") == api.now_ms


@pytest.mark.parametrize(("state", "status"), [("starting", 503), ("failed", 502)])
async def test_a_service_that_does_not_run(
    api: Any, backend: Visited, state: str, status: int
) -> None:
    await service(api)
    with api.database.transaction() as sql:
        sql.run("UPDATE service SET state = :state", state=state)
    answer = await visit(api, "web.on.x.org")
    assert (answer.status_code, answer.json()["error"]) == (status, f"service_{state}")
    assert status == 502 or answer.headers["retry-after"]


async def test_one_service_cannot_use_up_the_platform(
    api: Any, backend: Visited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("machines.platform.inbound.VISITS_MAX", 2)
    go = threading.Event()
    inside = threading.Semaphore(0)

    def slow(connection: socket.socket) -> None:
        read_request(connection)
        inside.release()
        go.wait(10)
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    backend.ports[80] = slow
    await service(api)
    open_ones = [asyncio.create_task(visit(api, "web.on.x.org")) for _ in range(2)]
    await asyncio.to_thread(lambda: [inside.acquire() for _ in range(2)])
    refused = await visit(api, "web.on.x.org")
    assert (refused.status_code, refused.json()["error"]) == (503, "service_busy")
    go.set()
    assert [each.status_code for each in await asyncio.gather(*open_ones)] == [204, 204]


@pytest.mark.parametrize(("host", "domain"), [("web.on.x.org", ""), ("a.b.org", "; Domain=b.org")])
async def test_a_service_sets_no_cookies_for_its_neighbours(
    api: Any, backend: Visited, host: str, domain: str
) -> None:
    await service(api, custom_domains=("a.b.org",))
    backend.ports[80] = says(
        b"HTTP/1.1 200 OK\r\nSet-Cookie: s=Domain=1; Path=/"
        + (b"; DOMAIN = x.org;domain" if not domain else domain.encode())
        + b"; Secure\r\nContent-Length: 0\r\n\r\n"
    )
    answer = await visit(api, host)
    assert answer.headers["set-cookie"] == f"s=Domain=1; Path=/{domain}; Secure"


async def test_a_service_that_takes_no_connection_holds_up_no_other(
    api: Any, backend: Visited, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = await service(api, "hostile")
    await service(api, "web")
    backend.ports[80] = says(b"HTTP/1.1 204 No Content\r\n\r\n")
    go, inside, connect = threading.Event(), threading.Semaphore(0), backend.connect

    def never(handle: Handle, port: int) -> socket.socket:
        if handle.sandbox_id == hostile:
            inside.release()
            assert go.wait(20)
        return connect(handle, port)

    monkeypatch.setattr(backend, "connect", never)
    stuck = [asyncio.create_task(visit(api, "hostile.on.x.org")) for _ in range(VISITS_MAX)]
    await asyncio.to_thread(lambda: [inside.acquire() for _ in range(SERVICE_THREADS_MAX)])
    async with asyncio.timeout(10):
        assert (await visit(api, "web.on.x.org")).status_code == 204
    go.set()
    assert {each.status_code for each in await asyncio.gather(*stuck)} == {204}


async def test_the_log_says_nothing_of_what_a_visitor_asked(api: Any, backend: Visited) -> None:
    backend.ports[80] = echo
    await service(api)
    with capture_logs() as lines:
        await visit(api, "web.on.x.org", "/hidden?hidden=1")
    (line,) = [line for line in lines if line["event"] == "request"]
    assert (line["route"], line["status"]) == ("(service)", 200)
    assert "hidden" not in str(lines)


def test_the_page_is_escaped() -> None:
    page = freeze_page("<script>", 'http://h/keys/extend?key="><script>')
    assert "<script>" not in page


@pytest.mark.parametrize(
    ("header", "host"),
    [(b"A.b:80", "a.b"), (b"[::1]:80", "[::1]"), (b"[::1]", "[::1]"), (b"a.b.", "a.b"), (b"", "")],
)
def test_hosts(header: bytes, host: str) -> None:
    assert host_of({"headers": [(b"host", header)]}) == host
    assert host_of({"headers": []}) == ""
    assert not is_service_host(host)
    assert may_be_custom(host) == (host == "a.b")


# -- sockets -------------------------------------------------------------------------------------


class Visitor:
    """A socket's visitor, over ASGI."""

    def __init__(self, api: Any, host: str) -> None:
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.inbox.put_nowait({"type": "websocket.connect"})
        scope = {
            "type": "websocket", "scheme": "ws", "path": "/x", "raw_path": b"/x", "root_path": "",
            "query_string": b"q=1", "headers": [(b"host", host.encode()), (b"x-k", b"1")],
            "subprotocols": ["chat"], "client": ("127.0.0.1", 9), "server": ("127.0.0.1", 80),
            "extensions": {"websocket.http.response": {}},
        }  # fmt: skip
        self.task = asyncio.create_task(api.app(scope, self.inbox.get, self.sent.put))

    async def next(self) -> dict[str, Any]:
        return await asyncio.wait_for(self.sent.get(), 10)


def socket_service(connection: socket.socket) -> None:
    """Takes the subprotocol, pings, echoes, and closes with 4000 when told `bye`."""
    from wsproto import ConnectionType, WSConnection
    from wsproto import events as told

    side = WSConnection(ConnectionType.SERVER)
    while data := connection.recv(65536):
        side.receive_data(data)
        for event in side.events():
            if isinstance(event, told.Request):
                assert (event.host, event.target) == ("web.on.x.org", "/x?q=1")
                assert (b"x-k", b"1") in event.extra_headers
                assert (b"x-forwarded-for", b"127.0.0.1") in event.extra_headers
                connection.sendall(side.send(told.AcceptConnection(subprotocol="chat")))
                connection.sendall(side.send(told.Ping(payload=b"?")))
            elif isinstance(event, told.TextMessage) and event.data == "bye":
                connection.sendall(side.send(told.CloseConnection(code=4000)))
                return
            elif isinstance(event, told.TextMessage | told.BytesMessage):
                connection.sendall(side.send(type(event)(data=event.data)))
            elif isinstance(event, told.CloseConnection):
                return


async def test_a_socket_is_passed_on_both_ways(api: Any, backend: Visited) -> None:
    backend.ports[80] = socket_service
    await service(api)
    visitor = Visitor(api, "web.on.x.org")
    accepted = await visitor.next()
    assert (accepted["type"], accepted["subprotocol"]) == ("websocket.accept", "chat")
    visitor.inbox.put_nowait({"type": "websocket.receive", "text": "héllo"})
    assert (await visitor.next())["text"] == "héllo"
    visitor.inbox.put_nowait({"type": "websocket.receive", "bytes": b"\0\xff" * 30_000})
    assert (await visitor.next())["bytes"] == b"\0\xff" * 30_000
    visitor.inbox.put_nowait({"type": "websocket.receive", "text": "bye"})
    closed = await visitor.next()
    assert (closed["type"], closed["code"]) == ("websocket.close", 4000)
    await visitor.task


async def test_a_visitor_that_leaves_ends_the_services_side(api: Any, backend: Visited) -> None:
    backend.ports[80] = socket_service
    await service(api)
    visitor = Visitor(api, "web.on.x.org")
    await visitor.next()
    visitor.inbox.put_nowait({"type": "websocket.disconnect", "code": 1001})
    await visitor.task
    await asyncio.to_thread(backend.threads[0].join, 10)
    assert not backend.threads[0].is_alive()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", b"nonsense\r\n\r\n"]
)
async def test_a_refused_handshake_is_told(api: Any, backend: Visited, answer: bytes) -> None:
    backend.ports[80] = says(answer)
    await service(api)
    visitor = Visitor(api, "web.on.x.org")
    start = await visitor.next()
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 502)
    body = json.loads((await visitor.next())["body"])
    assert body["error"] == "service_failed"
    await visitor.task


async def test_a_socket_for_nobody(api: Any) -> None:
    visitor = Visitor(api, "other.on.x.org")
    assert (await visitor.next())["status"] == 404
    await visitor.task
