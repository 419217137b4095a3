"""What a proxy needs on either side: one HTTP/1.1 connection, bounded, and honest headers.

::

    inside a sandbox  -->  [Wire, server role]  platform  [Wire, client role]  -->  upstream

h11 parses and frames both sides, so nothing is passed on that was not understood: a message whose
length could be read in two ways (`Content-Length` beside `Transfer-Encoding`, two lengths) is
refused, and the framing of what goes out is always our own.  Headers that are meant for one hop
(RFC 9110, section 7.6.1) end there.  Every wait is bounded, and so is the sum of all bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable

import h11

from engine.errors import TurtlesError

CHUNK_BYTES = 64 * 1024
CLOSE_SECONDS = 1.0
HEADER_BYTES_MAX = 16 * 1024
Header = tuple[bytes, bytes]

_ONE_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)


class RelayError(TurtlesError):
    """One side of a relayed exchange failed."""


class TooMuchData(RelayError):
    """The exchange moved more bytes than it may."""


class Silence(RelayError):
    """Nothing moved for too long."""


class Ambiguous(RelayError):
    """The length of a message can be read in two ways."""


def end_to_end(headers: Iterable[Header]) -> list[Header]:
    """The headers that are meant for the other end; names in lower case."""
    given = [(name.lower(), value) for name, value in headers]
    named = {
        word.strip().lower()
        for name, value in given
        if name == b"connection"
        for word in value.split(b",")
    }
    return [pair for pair in given if pair[0] not in _ONE_HOP and pair[0] not in named]


def is_chunked(headers: Iterable[Header]) -> bool:
    """Whether a message's body comes in chunks.

    Raises:
        Ambiguous: it names a length as well, or an encoding that is not `chunked`.
    """
    names = [name.lower() for name, _ in headers]
    if b"transfer-encoding" not in names:
        return False
    if b"content-length" in names:
        raise Ambiguous("Content-Length and Transfer-Encoding in one message; send one of them")
    return True


class Meter:
    """Counts the bytes of one exchange, both ways, and knows when it last moved."""

    def __init__(
        self,
        *,
        bytes_max: int,
        idle_seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._moved_at = now()
        self.bytes_max = bytes_max
        self.idle_seconds = idle_seconds
        self.total_bytes = 0

    def moved(self, size: int) -> None:
        """Note that bytes went through.

        Raises:
            TooMuchData: more than `bytes_max` in all.
        """
        self._moved_at = self._now()
        self.total_bytes += size
        if self.total_bytes > self.bytes_max:
            raise TooMuchData(f"more than {self.bytes_max} bytes in one exchange")

    @property
    def is_idle(self) -> bool:
        """Whether nothing has moved for as long as may be."""
        return self._now() - self._moved_at >= self.idle_seconds


class Stream:
    """A connected byte stream whose every wait ends."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, meter: Meter
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._meter = meter

    async def read(self) -> bytes:
        """Some bytes; `b""` at the end.

        Raises:
            Silence, TooMuchData.
            RelayError: the connection broke.
        """
        while True:
            try:
                async with asyncio.timeout(self._meter.idle_seconds):
                    data = await self._reader.read(CHUNK_BYTES)
            except TimeoutError as error:
                if self._meter.is_idle:
                    raise Silence(f"nothing came for {self._meter.idle_seconds:g} s") from error
                continue  # the other direction is alive
            except OSError as error:
                raise RelayError(f"connection lost ({type(error).__name__})") from error
            self._meter.moved(len(data))
            return data

    async def write(self, data: bytes) -> None:
        """Send bytes, and wait until there is room for more.

        Raises:
            Silence: the other end does not take them.
            RelayError: the connection broke.
        """
        try:
            self._writer.write(data)
            async with asyncio.timeout(self._meter.idle_seconds):
                await self._writer.drain()
        except TimeoutError as error:
            raise Silence(f"nothing was taken for {self._meter.idle_seconds:g} s") from error
        except OSError as error:
            raise RelayError(f"connection lost ({type(error).__name__})") from error

    def count(self, size: int) -> None:
        """Count bytes that were sent and did not come through `read`.

        Raises:
            TooMuchData.
        """
        self._meter.moved(size)

    def finish(self) -> None:
        """Say that no more is coming, where the connection can say so."""
        with contextlib.suppress(OSError, RuntimeError):
            if self._writer.can_write_eof():
                self._writer.write_eof()

    def abort(self) -> None:
        """Drop the connection and what waits to be sent."""
        self._writer.transport.abort()

    async def close(self, *, linger: bool = False) -> None:
        """Close it; what cannot be sent within a moment is dropped.

        Args:
            linger: read on for a moment first.  Closing a connection on which something unread
                waits resets it, and the other end may lose the answer that it was sent.
        """
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if linger and not self._writer.is_closing():
                    self.finish()
                    while await self._reader.read(CHUNK_BYTES):
                        pass
                self._writer.close()
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            pass
        finally:
            # A frozen sandbox takes nothing: what waits for it must not wait for ever.
            self.abort()


class Wire:
    """One HTTP/1.1 message exchange over a stream, in either role.

    Args:
        role: `h11.SERVER` (reads a request) or `h11.CLIENT` (reads a response).
        stream: the connection.
    """

    def __init__(self, role: type[h11.CLIENT] | type[h11.SERVER], stream: Stream) -> None:
        self.stream = stream
        self._http = h11.Connection(role, max_incomplete_event_size=HEADER_BYTES_MAX)

    async def receive(self) -> h11.Event:
        """The next event.

        Raises:
            h11.RemoteProtocolError: what came is no proper HTTP.
            RelayError: the connection failed.
        """
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Request | h11.Response | h11.InformationalResponse):
                _refuse_long_head(event)
            if isinstance(event, h11.Event):
                return event
            if event is h11.PAUSED:
                return h11.ConnectionClosed()
            if self._http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            self._http.receive_data(await self.stream.read())

    async def send(self, event: h11.Event) -> None:
        """Send an event."""
        data = self._http.send(event)
        if data:
            await self.stream.write(data)

    async def body(self) -> AsyncIterator[bytes]:
        """The rest of a message's body."""
        while True:
            event = await self.receive()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise RelayError("the message ended before its end")

    @property
    def has_answered(self) -> bool:
        """In the server role: whether a response has begun."""
        return self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    @property
    def unread(self) -> bytes:
        """What came behind the message, for a tunnel."""
        return self._http.trailing_data[0]


def _refuse_long_head(head: h11.Request | h11.Response | h11.InformationalResponse) -> None:
    """h11 bounds only heads that come in pieces."""
    size = sum(len(name) + len(value) + 4 for name, value in head.headers)
    if isinstance(head, h11.Request):
        size += len(head.target)
    if size > HEADER_BYTES_MAX:
        raise h11.RemoteProtocolError(
            f"its head is longer than {HEADER_BYTES_MAX} bytes", error_status_hint=431
        )


async def first_response(upstream: Wire, upload: asyncio.Task[None]) -> h11.Response:
    """The final response's head, unless the request's body fails before.

    Raises:
        what `upload` raised, h11.RemoteProtocolError, RelayError.
    """
    answer = asyncio.create_task(read_response(upstream))
    try:
        await asyncio.wait({answer, upload}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            upload.result()
        return await answer
    finally:
        answer.cancel()


async def read_response(upstream: Wire) -> h11.Response:
    """The final response's head; interim ones (1xx) are dropped.

    Raises:
        h11.RemoteProtocolError, RelayError.
    """
    while True:
        event = await upstream.receive()
        if isinstance(event, h11.Response):
            return event
        if not isinstance(event, h11.InformationalResponse):
            raise RelayError("the connection was closed before an answer")


def response_headers(response: h11.Response) -> list[Header]:
    """What of a response's headers is passed on: framed by one length, or by us."""
    kept = end_to_end(response.headers.raw_items())
    if any(name.lower() == b"transfer-encoding" for name, _ in response.headers):
        kept = [pair for pair in kept if pair[0] != b"content-length"]
    return kept


def own_cookies(headers: Iterable[Header]) -> list[Header]:
    """The same headers, whose cookies are for the host that sets them and no other.

    `NAME.on.example.org` could else set cookies for all of `on.example.org`, where its neighbours
    are other people's services.
    """
    return [
        (name, _host_only(value) if name.lower() == b"set-cookie" else value)
        for name, value in headers
    ]


def _host_only(cookie: bytes) -> bytes:
    parts = cookie.split(b";")
    kept = [each for each in parts[1:] if each.partition(b"=")[0].strip().lower() != b"domain"]
    return b";".join([parts[0], *kept])
