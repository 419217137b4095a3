"""A visitor's WebSocket, passed on to a service: message by message, both ways.

::

    visitor <-ASGI-> here <-wsproto-> service

The service's refusal of the handshake is the visitor's refusal.  Messages are bounded; pings are
answered here on either side.  When one side closes, the other is closed with the same code.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from urllib.parse import quote

from starlette.types import Message, Receive, Scope, Send
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from machines.platform.relay import (
    Header,
    RelayError,
    Stream,
    TooMuchData,
    end_to_end,
    own_cookies,
)
from machines.platform.replies import Problem

MESSAGE_BYTES_MAX = 1024 * 1024
HANDSHAKE_SECONDS = 10.0
_HANDSHAKE = frozenset(
    {
        b"host",
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-key",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
        b"content-length",
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    }
)


async def relay_socket(
    stream: Stream, scope: Scope, receive: Receive, send: Send, ours: Sequence[Header]
) -> None:
    """Pass one socket on until either side closes it.

    Args:
        stream: a fresh connection to the service.
        ours: headers that say who asks; the first is `host`.

    Raises:
        Problem: the service did not take it.
    """
    service = _ServiceSocket(stream)
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            await receive()  # websocket.connect
            accepted = await service.open(scope, ours)
    except (RelayError, RemoteProtocolError, LocalProtocolError, TimeoutError) as error:
        raise Problem(502, "service_failed", "the service took no WebSocket here.") from error
    await send(
        {
            "type": "websocket.accept",
            "subprotocol": accepted.subprotocol,
            "headers": own_cookies(_passed_on(accepted.extra_headers)),
        }
    )
    await _both_ways(service, receive, send)


async def _both_ways(service: _ServiceSocket, receive: Receive, send: Send) -> None:
    visitor_to_service = asyncio.create_task(_from_visitor(service, receive))
    service_to_visitor = asyncio.create_task(_from_service(service, send))
    tasks = (visitor_to_service, service_to_visitor)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _from_visitor(service: _ServiceSocket, receive: Receive) -> None:
    """Ends when the visitor has left or the service cannot be reached."""
    try:
        while (message := await receive())["type"] == "websocket.receive":
            await service.send(_to_service(message))
        await service.send(CloseConnection(code=_good(message.get("code"))))
    except (RelayError, LocalProtocolError):
        return


def _to_service(message: Message) -> Event:
    if (text := message.get("text")) is not None:
        return TextMessage(data=text)
    return BytesMessage(data=message.get("bytes") or b"")


async def _from_service(service: _ServiceSocket, send: Send) -> None:
    """Ends when the service has closed, or fails: then the visitor's socket is closed."""
    code = 1011
    try:
        while isinstance(whole := await service.message(), str | bytes):
            kind = "text" if isinstance(whole, str) else "bytes"
            await send({"type": "websocket.send", kind: whole})
        code = _good(whole)
    except TooMuchData:
        code = 1009
    except (RelayError, RemoteProtocolError, LocalProtocolError):
        pass
    await send({"type": "websocket.close", "code": code})


def _good(code: object) -> int:
    """A code that may be sent: 1005 and 1006 only tell that none came."""
    allowed = isinstance(code, int) and (code in range(1000, 1004) or code in range(1007, 5000))
    return code if allowed and isinstance(code, int) and code != 1015 else 1000


class _ServiceSocket:
    """The service's side."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._socket = WSConnection(ConnectionType.CLIENT)
        self._events: list[Event] = []

    async def open(self, scope: Scope, ours: Sequence[Header]) -> AcceptConnection:
        """Shake hands.

        Raises:
            RelayError, RemoteProtocolError: it does not want to.
        """
        path = scope.get("raw_path") or quote(scope["path"]).encode()
        query = scope["query_string"]
        target = path + b"?" + query if query else path
        given = _passed_on(scope["headers"])
        await self.send(
            Request(
                host=ours[0][1].decode("latin-1"),
                target=target.decode("latin-1"),
                extra_headers=[*ours[1:], *given],
                subprotocols=list(scope.get("subprotocols", [])),
            )
        )
        event = await self._next()
        if isinstance(event, AcceptConnection):
            return event
        status = event.status_code if isinstance(event, RejectConnection) else "no answer"
        raise RelayError(f"the handshake was refused ({status})")

    async def send(self, event: Event) -> None:
        """Send an event."""
        await self._stream.write(self._socket.send(event))

    async def message(self) -> str | bytes | int | None:
        """The next whole message, or the code with which the socket was closed.

        Raises:
            TooMuchData: longer than `MESSAGE_BYTES_MAX`.
            RelayError, RemoteProtocolError.
        """
        parts: list[str | bytes] = []
        size = 0
        while True:
            event = await self._next()
            if isinstance(event, CloseConnection):
                return event.code
            if isinstance(event, Ping):
                await self.send(event.response())
            if not isinstance(event, TextMessage | BytesMessage):
                continue
            part = event.data if isinstance(event.data, str) else bytes(event.data)
            size += len(part)
            if size > MESSAGE_BYTES_MAX:
                raise TooMuchData(f"a message longer than {MESSAGE_BYTES_MAX} bytes")
            parts.append(part)
            if event.message_finished:
                return _joined(parts)

    async def _next(self) -> Event:
        while not self._events:
            data = await self._stream.read()
            # None tells wsproto that the connection has ended.
            self._socket.receive_data(data or None)
            self._events = list(self._socket.events())
            if not data and not self._events:
                raise RelayError("the service has closed the connection")
        return self._events.pop(0)


def _joined(parts: list[str | bytes]) -> str | bytes:
    if isinstance(parts[0], str):
        return "".join(part for part in parts if isinstance(part, str))
    return b"".join(part for part in parts if isinstance(part, bytes))


def _passed_on(headers: Sequence[Header]) -> list[Header]:
    return [pair for pair in end_to_end(headers) if pair[0] not in _HANDSHAKE]
