"""The way in: requests for `NAME.on.*` and custom domains go to the service of that name.

::

    visitor -> FrontDoor -> ByHost -- a service's host --> wake -> backend.connect -> its port
                               `----- any other host ----> the platform's own routes

`NAME.on.example.org` leads to the first declared port of service NAME, `NAME--8081.on.example.org`
to its declared port 8081.  An unknown NAME is 404 `no_such_service`; a host that is no service's
custom domain is the platform's.  The platform's own names cannot be taken by a custom domain.

A frozen service that wants it is woken by the request.  Else the visitor sees a page that leads
to the extension of its key (or JSON, with `show_freeze_page` off).  One that is starting is 503
with `Retry-After`, one that failed 502.  Bodies are streamed both ways, bounded in time and size;
a service's answer that breaks off is cut, never completed.  Sockets: machines/platform/sockets.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from html import escape
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.parse import quote

import anyio
import anyio.to_thread
import h11
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.errors import StoreBusy
from machines.platform import service_rows
from machines.platform.egress_policy import OWN_NAMES
from machines.platform.relay import (
    Ambiguous,
    Header,
    Meter,
    RelayError,
    Silence,
    Stream,
    TooMuchData,
    Wire,
    end_to_end,
    first_response,
    is_chunked,
    own_cookies,
    response_headers,
)
from machines.platform.replies import Problem
from machines.platform.sandbox.errors import PortClosed, SandboxError
from machines.platform.sockets import relay_socket
from machines.platform.unsigned import busy
from persistence.database import Row

if TYPE_CHECKING:
    from machines.platform.api import Api

__all__ = ["ByHost", "Inbound", "is_service_host"]

MIB = 1024 * 1024
BYTES_MAX = 1024 * MIB
IDLE_SECONDS = 60.0
TOTAL_SECONDS = 3600.0
THREADS_MAX = 64
SERVICE_THREADS_MAX = 8
"""Threads that wait for one service to wake or to take a connection: it may never do so."""
VISITS_MAX = 64
"""Requests of visitors that one service may have open at once."""
_PORT = re.compile(r"(?P<name>.+)--(?P<port>[1-9][0-9]{0,4})")
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto")

_Result = TypeVar("_Result")


class _Target(NamedTuple):
    """A service, and the port of it that is wanted (None: its first)."""

    row: Row
    port: int | None


class _VisitorLeft(RelayError):
    """Nobody waits for the answer any more."""


def host_of(scope: Scope) -> str:
    """The host of a request, in lower case, without its port."""
    host = next((value for name, value in scope["headers"] if name == b"host"), b"")
    name = host.decode("latin-1").strip().lower()
    return (name if name.endswith("]") else name.rpartition(":")[0] or name).rstrip(".")


def is_service_host(host: str) -> bool:
    """Whether a host has the form `NAME.on.*`."""
    labels = host.split(".")
    return len(labels) >= 3 and labels[1] == "on"


def may_be_custom(host: str) -> bool:
    """Whether a host may be a service's own domain: the platform's names never are."""
    if "." not in host or host in OWN_NAMES:
        return False
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return True
    return False


class ByHost:
    """ASGI layer: requests for the host of a service go there, all others on.

    Args:
        app: the platform's own routes.
        api: whose services these are.
    """

    def __init__(self, app: ASGIApp, *, api: Api) -> None:
        self._app = app
        self._inbound = Inbound(api)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or socket."""
        host = host_of(scope) if scope["type"] in ("http", "websocket") else ""
        if not is_service_host(host) and not may_be_custom(host):
            await self._app(scope, receive, send)
            return
        try:
            target = await self._inbound.find(host)
            if target is None:
                await self._app(scope, receive, send)
                return
            # For the access log; the path of a service is its own affair.
            scope["turtles_route"] = "(service)"
            await self._inbound.serve(target, scope, receive, send)
        except Problem as problem:
            await problem.response()(scope, receive, send)
        except StoreBusy:
            await busy().response()(scope, receive, send)


class Inbound:
    """Serves the visitors of services.

    Args:
        api: whose services these are.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._visits: Counter[str] = Counter()
        # Waking and connecting may take seconds; they must not use up the threads of the API.
        self._threads = anyio.CapacityLimiter(THREADS_MAX)
        self._doors: dict[str, anyio.Semaphore] = {}

    async def find(self, host: str) -> _Target | None:
        """Which service a host means; None when it is not a service's.

        Raises:
            Problem: 404, of the form of a service's host and no service.
        """
        row = await self._run(lambda: self._api.services.by_host(host))
        if row is not None:
            return _Target(row, None)
        if not is_service_host(host):
            return None
        label, rest = host.split(".", 1)
        if found := _PORT.fullmatch(label):
            row = await self._run(lambda: self._api.services.by_host(f"{found['name']}.{rest}"))
            if row is not None:
                return _Target(row, int(found["port"]))
        raise Problem(
            404,
            "no_such_service",
            f"host {host[:80]!r}: no service of that name. List yours: GET /services.",
        )

    async def serve(self, target: _Target, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request or socket on.

        Raises:
            Problem: why it cannot be.
        """
        service_id = target.row["service_id"]
        if self._visits[service_id] >= VISITS_MAX:
            raise Problem(
                503,
                "service_busy",
                f"service {target.row['name']} has {VISITS_MAX} requests open. Try again.",
                headers={"Retry-After": "1"},
            )
        self._visits[service_id] += 1
        try:
            await self._visit(target, scope, receive, send)
        finally:
            self._visits[service_id] -= 1
            if not self._visits[service_id]:
                del self._visits[service_id]
                self._doors.pop(service_id, None)

    async def _visit(self, target: _Target, scope: Scope, receive: Receive, send: Send) -> None:
        service_id = target.row["service_id"]
        async with self._doors.setdefault(service_id, anyio.Semaphore(SERVICE_THREADS_MAX)):
            row = await self._run(lambda: self._awake(service_id))
            if not isinstance(row, Problem):
                await self._run(lambda: self._api.services.touch(service_id))
                connection = await self._connect(row, _port(row, target.port))
        if isinstance(row, Problem):
            await not_awake(target.row, row, scope)(scope, receive, send)
            return
        meter = Meter(bytes_max=BYTES_MAX, idle_seconds=IDLE_SECONDS)
        async with _streaming(connection, meter) as stream:
            if scope["type"] == "websocket":
                await relay_socket(stream, scope, receive, send, forwarded(scope))
            else:
                await _Exchange(stream, scope, receive, send).run()

    def _awake(self, service_id: str) -> Row | Problem:
        """The service, running, or why it does not."""
        try:
            return self._api.services.wake(service_id)
        except Problem as problem:
            return problem

    async def _connect(self, row: Row, port: int) -> socket.socket:
        def connect() -> socket.socket:
            return self._api.backend.connect(self._api.services.sandbox(row), port)

        try:
            return await self._run(connect)
        except PortClosed as error:
            raise Problem(
                502,
                "service_unreachable",
                f"service {row['name']}: nothing listens on its port {port}.",
                fields={"port": port},
            ) from error
        except SandboxError as error:
            raise Problem(
                503,
                "service_unavailable",
                f"service {row['name']} cannot be reached now. Try again.",
                headers={"Retry-After": "2"},
            ) from error

    async def _run(self, work: Callable[[], _Result]) -> _Result:
        return await anyio.to_thread.run_sync(work, limiter=self._threads)


def _port(row: Row, wanted: int | None) -> int:
    """The port to connect to.

    Raises:
        Problem: 404, not declared; 502, none is.
    """
    declared = service_rows.ports_of(row)
    if wanted is not None and wanted not in declared:
        raise Problem(
            404,
            "no_such_port",
            f"service {row['name']} does not offer port {wanted}.",
            fields={"ports": list(declared)},
        )
    if not declared:
        raise Problem(502, "no_port", f"service {row['name']} declares no port to connect to.")
    return declared[0] if wanted is None else wanted


def not_awake(row: Row, problem: Problem, scope: Scope) -> Response:
    """What a visitor of a service that does not run is told."""
    state = problem.fields.get("state", row["state"])
    if state == "failed":
        return Problem(502, problem.error, problem.message, fields=problem.fields).response()
    if state != "frozen" or not row["show_freeze_page"] or scope["type"] != "http":
        if problem.status == 503:
            return problem.response()
        headers = {"Retry-After": "5", **problem.headers}
        return Problem(503, problem.error, problem.message, headers=headers).response()
    server = scope.get("server") or ("127.0.0.1", None)
    shown = f"[{server[0]}]" if ":" in server[0] else server[0]
    base_url = f"{scope['scheme']}://{shown}" + (f":{server[1]}" if server[1] else "")
    page = freeze_page(row["name"], f"{base_url}/keys/extend?key={quote(row['public_key'])}")
    return HTMLResponse(page, 503, {"Retry-After": "5", "Cache-Control": "no-store"})


def freeze_page(name: str, extend_url: str) -> str:
    """The page of a frozen service."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{escape(name)} is frozen</title>"
        f"<h1>{escape(name)} is frozen</h1>"
        "<p>Its owner can unfreeze it. If the key that it runs under has expired, anybody may "
        f'<a href="{escape(extend_url)}">pay for more time</a>.</p></html>\n'
    )


def forwarded(scope: Scope) -> list[Header]:
    """Who asks, how and for what: our word, whatever the visitor says."""
    client = scope.get("client")
    host = next((value for name, value in scope["headers"] if name == b"host"), b"")
    scheme = "https" if scope["scheme"] in ("https", "wss") else "http"
    return [
        (b"host", host),
        (b"x-forwarded-for", (str(client[0]) if client else "unknown").encode()),
        (b"x-forwarded-host", host),
        (b"x-forwarded-proto", scheme.encode()),
    ]


def visitor_headers(headers: Iterable[Header]) -> list[Header]:
    """What of a visitor's headers the service sees."""
    ours = (b"host", b"expect", *_FORWARDED)
    return [pair for pair in end_to_end(headers) if pair[0] not in ours]


@contextlib.asynccontextmanager
async def _streaming(connection: socket.socket, meter: Meter) -> AsyncIterator[Stream]:
    try:
        reader, writer = await asyncio.open_connection(sock=connection)
    except BaseException:
        connection.close()
        raise
    stream = Stream(reader, writer, meter)
    try:
        yield stream
    finally:
        stream.abort()


class _Exchange:
    """One HTTP request of a visitor, and its answer."""

    def __init__(self, stream: Stream, scope: Scope, receive: Receive, send: Send) -> None:
        self._service = Wire(h11.CLIENT, stream)
        self._scope = scope
        self._receive = receive
        self._send = send
        self._has_begun = False

    async def run(self) -> None:
        """Pass it on.

        Raises:
            Problem: it failed before the answer began.  Later the answer is just cut.
        """
        try:
            async with asyncio.timeout(TOTAL_SECONDS):
                await self._both_ways()
        except _VisitorLeft:
            return
        except (RelayError, h11.ProtocolError, TimeoutError) as error:
            if not self._has_begun:
                raise _explained(error) from error

    async def _both_ways(self) -> None:
        await self._service.send(self._head())
        upload = asyncio.create_task(self._upload())
        download = asyncio.create_task(self._download(upload))
        try:
            await asyncio.wait({upload, download}, return_when=asyncio.FIRST_COMPLETED)
            if not download.done():
                upload.result()
            await download
        finally:
            for task in (upload, download):
                task.cancel()
            await asyncio.gather(upload, download, return_exceptions=True)

    def _head(self) -> h11.Request:
        given: list[Header] = list(self._scope["headers"])
        headers = [*forwarded(self._scope), (b"connection", b"close"), *visitor_headers(given)]
        if is_chunked(given):
            headers.append((b"transfer-encoding", b"chunked"))
        path = self._scope.get("raw_path") or quote(self._scope["path"]).encode()
        query = self._scope["query_string"]
        return h11.Request(
            method=self._scope["method"],
            target=path + b"?" + query if query else path,
            headers=headers,
        )

    async def _upload(self) -> None:
        """The visitor's body, then watch whether the visitor stays."""
        service_takes = True
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _VisitorLeft("the visitor has left")
            if not service_takes:
                continue
            try:
                if data := message.get("body", b""):
                    await self._service.send(h11.Data(data=data))
                    self._service.stream.count(len(data))
                if not message.get("more_body", False):
                    await self._service.send(h11.EndOfMessage())
                    service_takes = False
            except TooMuchData:
                raise
            except RelayError:
                service_takes = False  # its answer, if there is one, says why

    async def _download(self, upload: asyncio.Task[None]) -> None:
        response = await first_response(self._service, upload)
        self._has_begun = True
        headers = response_headers(response)
        if is_service_host(host_of(self._scope)):
            headers = own_cookies(headers)
        await self._send(
            {
                "type": "http.response.start",
                "status": response.status_code,
                "headers": headers,
            }
        )
        async for data in self._service.body():
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _explained(error: Exception) -> Problem:
    match error:
        case Ambiguous():
            return Problem(400, "invalid_request", f"{error}.")
        case h11.LocalProtocolError():
            return Problem(400, "invalid_request", "this request cannot be passed on as HTTP/1.1.")
        case TooMuchData():
            return Problem(413, "body_too_large", f"{error}.")
        case Silence() | TimeoutError():
            return Problem(504, "service_timeout", "the service did not answer in time.")
        case _:
            return Problem(502, "service_failed", "the service gave no proper HTTP answer.")
