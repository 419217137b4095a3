"""One connection from inside a sandbox to the proxy: one request passed on, or one tunnel.

::

    accept -> token -> head -> allowed? -> resolve, check, dial -> forward or tunnel -> close, note

Whatever fails before an answer has begun is told to the sandbox as JSON; later, cutting the
connection is all that is left, and is what tells it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import h11
import structlog

from machines.platform.egress_policy import OWN_NAMES, Address, denied
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
    response_headers,
)
from machines.platform.replies import Problem

if TYPE_CHECKING:
    from machines.platform.egress import EgressProxy, Served

LIMITED_PAUSE_SECONDS = 0.1
"""A refusal by rate takes this long, so that a flood of requests costs the host little."""
_ABSOLUTE = re.compile(rb"http://([^/?#@]+)([/?].*)?", re.IGNORECASE)
_AUTHORITY = re.compile(rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::([0-9]{1,5}))?")

_Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]
log = structlog.get_logger("turtles.platform.egress")


class Exchange:
    """One connection from inside: one request, or one tunnel."""

    def __init__(self, proxy: EgressProxy, sandbox: Served, connection: socket.socket) -> None:
        self._proxy = proxy
        self._policy = proxy.policy
        self._sandbox = sandbox
        self._connection = connection
        self._meter = Meter(
            bytes_max=self._policy.bytes_max, idle_seconds=self._policy.idle_seconds
        )
        self._method = ""
        self._host = ""
        self._port = 0
        self._status = 0

    async def run(self) -> None:
        """Serve it, whatever it is, and close it."""
        began = time.monotonic()
        reader, writer = await asyncio.open_connection(sock=self._connection)
        inside = Stream(reader, writer, self._meter)
        try:
            async with asyncio.timeout(self._policy.total_seconds):
                await self._answer(Wire(h11.SERVER, inside))
        except (RelayError, TimeoutError, h11.ProtocolError, OSError):
            # Whoever is inside has left, or the answer was cut: nobody is left to be told.
            self._status = self._status or 499
        except asyncio.CancelledError:
            inside.abort()  # the sandbox ends, or is frozen and takes nothing
            raise
        finally:
            self._note(began)
            await inside.close(linger=True)

    async def _answer(self, inside: Wire) -> None:
        try:
            request = await self._request(inside)
            if request is not None:
                await self._relay(inside, request)
        except Problem as problem:
            await self._refuse(inside, problem)
        except (RelayError, h11.RemoteProtocolError) as error:
            await self._refuse(inside, self._explained(error))

    def _explained(self, error: RelayError | h11.RemoteProtocolError) -> Problem:
        """What a failed exchange is to the sandbox."""
        match error:
            case h11.RemoteProtocolError(error_status_hint=status):
                return Problem(status, "invalid_request", f"not a proper request ({error}).")
            case Ambiguous():
                return Problem(400, "invalid_request", f"{error}.")
            case TooMuchData():
                return Problem(413, "too_much_data", f"{error}.")
            case Silence():
                return Problem(504, "egress_timeout", f"{self._host}: {error}.")
            case _:
                return Problem(502, "egress_failed", f"{self._host}: {error}.")

    async def _request(self, inside: Wire) -> h11.Request | None:
        """The request's head; None when the connection was closed before."""
        wait_seconds = self._sandbox.bucket.take(time.monotonic())
        if wait_seconds:
            await asyncio.sleep(LIMITED_PAUSE_SECONDS)
        try:
            async with asyncio.timeout(self._policy.header_seconds):
                event = await inside.receive()
        except TimeoutError as error:
            raise Problem(408, "request_timeout", "no complete request head came.") from error
        if not isinstance(event, h11.Request):
            return None
        self._method = event.method.decode()[:20]
        if wait_seconds:
            raise Problem(
                429,
                "rate_limit_exceeded",
                f"more than {self._policy.requests_per_second:g} requests a second (and "
                f"{self._policy.burst} at once) from this sandbox. Ask less often.",
                headers={"Retry-After": str(max(1, round(wait_seconds)))},
            )
        return event

    async def _relay(self, inside: Wire, request: h11.Request) -> None:
        if self._method == "CONNECT":
            self._host, self._port = _authority(request.target, None)
            if self._port == 80:
                # In a tunnel nobody counts requests, and plain HTTP needs none.
                raise self._denied("port 80 takes GET http://host/path, not CONNECT")
            await self._tunnel(inside)
            return
        found = _ABSOLUTE.fullmatch(request.target)
        if found is None:
            raise Problem(
                400,
                "not_a_proxy_request",
                "this is a proxy. Send GET http://host/path, or CONNECT host:443 for https.",
            )
        self._host, self._port = _authority(found[1], 80)
        chunked = is_chunked(request.headers.raw_items())
        target = found[2] or b"/"
        head = h11.Request(
            method=request.method,
            target=target if target.startswith(b"/") else b"/" + target,
            headers=_request_headers(request, self._host, self._port, chunked),
        )
        async with self._dialled() as stream:
            await self._forward(inside, Wire(h11.CLIENT, stream), head)

    async def _forward(self, inside: Wire, outside: Wire, head: h11.Request) -> None:
        await outside.send(head)
        upload = asyncio.create_task(_upload(inside, outside))
        try:
            response = await first_response(outside, upload)
            self._status = response.status_code
            headers = [*response_headers(response), (b"connection", b"close")]
            await inside.send(h11.Response(status_code=response.status_code, headers=headers))
            async for data in outside.body():
                await inside.send(h11.Data(data=data))
            await inside.send(h11.EndOfMessage())
        except h11.RemoteProtocolError as error:
            if upload.done():
                upload.result()
            raise RelayError("its answer is no proper HTTP") from error
        finally:
            upload.cancel()
            await asyncio.gather(upload, return_exceptions=True)

    async def _tunnel(self, inside: Wire) -> None:
        async with self._dialled() as stream:
            await inside.send(h11.Response(status_code=200, headers=[]))
            self._status = 200
            if inside.unread:
                await stream.write(inside.unread)
            copies = [
                asyncio.create_task(_copy(inside.stream, stream)),
                asyncio.create_task(_copy(stream, inside.stream)),
            ]
            try:
                await asyncio.gather(*copies)
            finally:
                for copy in copies:
                    copy.cancel()
                await asyncio.gather(*copies, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _dialled(self) -> AsyncIterator[Stream]:
        """A connection to where the request goes.

        Raises:
            Problem: 403 not allowed, 502 not reachable.
        """
        if self._host in OWN_NAMES:
            opening = self._open_platform()
        elif self._policy.allows(self._host, self._port):
            opening = self._open_world()
        else:
            raise self._denied("this sandbox may not reach it")
        reader, writer = await opening
        stream = Stream(reader, writer, self._meter)
        try:
            yield stream
        except BaseException:
            stream.abort()
            raise
        finally:
            await stream.close()

    async def _open_platform(self) -> _Ends:
        platform = self._proxy.platform
        if platform is None or self._port not in platform.ports:
            raise self._denied("the platform does not serve this port")
        # On 443 the sandbox speaks TLS itself; on 80 this end does it for a platform that must.
        secure = None
        if platform.certificate is not None and self._port == 80:
            secure = _trusting(platform.certificate)
        address = ipaddress.ip_address(platform.host)
        try:
            return await self._open(address, platform.port, secure)
        except (OSError, TimeoutError) as error:
            raise self._unreachable() from error

    async def _open_world(self) -> _Ends:
        addresses = await self._proxy.addresses(self._sandbox, self._host, self._port)
        for address in addresses[:4]:
            try:
                return await self._open(address, self._port, None)
            except (OSError, TimeoutError):
                continue
        raise self._unreachable()

    async def _open(self, address: Address, port: int, secure: ssl.SSLContext | None) -> _Ends:
        """Connect to exactly this address: no name is looked up here."""
        async with asyncio.timeout(self._policy.connect_seconds):
            return await asyncio.open_connection(
                str(address), port, ssl=secure, server_hostname="" if secure else None
            )

    def _denied(self, why: str) -> Problem:
        return denied(self._host, self._port, why, self._policy, self._proxy.own_ports)

    def _unreachable(self) -> Problem:
        return Problem(502, "egress_failed", f"{self._host}:{self._port}: cannot be reached.")

    async def _refuse(self, inside: Wire, problem: Problem) -> None:
        """Tell the sandbox why, unless an answer has begun: then cutting it is all there is."""
        if inside.has_answered:
            return
        self._status = problem.status
        answer = problem.response()
        headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        headers.append((b"connection", b"close"))
        await inside.send(h11.Response(status_code=problem.status, headers=headers))
        await inside.send(h11.Data(data=bytes(answer.body)))
        await inside.send(h11.EndOfMessage())

    def _note(self, began: float) -> None:
        limited = self._status == 429
        if limited and self._sandbox.is_limited:
            return  # one line for each time it is too fast, not one for each request
        self._sandbox.is_limited = limited
        log.info(
            "egress",
            sandbox_id=self._sandbox.sandbox_id,
            method=self._method,
            host=self._host,
            port=self._port,
            status=self._status,
            moved_bytes=self._meter.total_bytes,
            duration_ms=int((time.monotonic() - began) * 1000),
        )


def _authority(written: bytes, default_port: int | None) -> tuple[str, int]:
    """(host in lower case, port) of `host[:port]`.

    Raises:
        Problem: 400.
    """
    found = _AUTHORITY.fullmatch(written)
    port = int(found[3]) if found and found[3] else default_port
    if found is None or port is None or not 1 <= port <= 65535:
        shown = written[:80].decode("ascii", "replace")
        raise Problem(400, "invalid_request", f"{shown!r}: expected HOST:PORT, without a user.")
    host = (found[1] or found[2]).decode().lower().rstrip(".")
    return host, port


def _request_headers(request: h11.Request, host: str, port: int, chunked: bool) -> list[Header]:
    """Those of the request, for one hop to `host`."""
    shown = f"[{host}]" if ":" in host else host
    own: list[Header] = [
        (b"host", (shown if port == 80 else f"{shown}:{port}").encode()),
        (b"connection", b"close"),
    ]
    if chunked:
        own.append((b"transfer-encoding", b"chunked"))
    kept = end_to_end(request.headers.raw_items())
    # The head is answered for by this proxy: it says 100 itself.
    return own + [pair for pair in kept if pair[0] not in (b"host", b"expect")]


async def _upload(inside: Wire, outside: Wire) -> None:
    """Pass the body on.  What fails outside is left to whoever reads the answer."""
    outside_lives = True
    async for data in inside.body():
        outside_lives = outside_lives and await _sent(outside, h11.Data(data=data))
    if outside_lives:
        await _sent(outside, h11.EndOfMessage())


async def _sent(outside: Wire, event: h11.Event) -> bool:
    try:
        await outside.send(event)
    except RelayError:
        return False
    return True


async def _copy(source: Stream, target: Stream) -> None:
    while data := await source.read():
        await target.write(data)
    target.finish()


def _trusting(certificate: Path) -> ssl.SSLContext:
    """TLS with the one platform whose certificate this is, whatever name it bears."""
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
