"""What stands between one worker and the server: a TCP relay that can lose, delay and cut.

::

    cut()                  every connection, now
    cut_commits(when)      from now on every COMMIT costs its connection:
        "before"           it is not forwarded
        "sent"             it is forwarded, and nobody waits for the answer
        "answered"         the server has committed, but the answer is lost
    delay_seconds          added to everything that is sent, either way
    hold() / let_go()      nothing is forwarded meanwhile, and nothing is lost: a partition
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Literal

When = Literal["before", "sent", "answered"]


class Proxy:
    """A relay to `port` of this host; `listen` says where it listens."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._commits: When | None = None
        self._open = asyncio.Event()
        self._open.set()
        self.delay_seconds = 0.0
        self.cuts = 0
        """Connections cut so far."""

    async def listen(self) -> int:
        """Start; the port."""
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop."""
        if self._server is not None:
            self._server.close()
        self.let_go()
        self.cut()

    def cut(self) -> None:
        """Cut every connection."""
        for writer in list(self._writers):
            self._abort(writer)

    def cut_commits(self, when: When | None) -> None:
        """Cut each connection at its next COMMIT; None: no longer."""
        self._commits = when

    def hold(self) -> None:
        """Forward nothing."""
        self._open.clear()

    def let_go(self) -> None:
        """Forward what was held."""
        self._open.set()

    def _abort(self, writer: asyncio.StreamWriter) -> None:
        self.cuts += 1
        self._writers.discard(writer)
        writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream, downstream = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()  # the server is down, and so says this
            return
        both = (writer, downstream)
        self._writers.update(both)
        answer_lost = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._questions(reader, both, answer_lost))
                group.create_task(self._answers(upstream, both, answer_lost))
        except* (ConnectionError, OSError):
            pass
        finally:
            for one in both:
                self._writers.discard(one)
                one.transport.abort()

    async def _questions(
        self,
        reader: asyncio.StreamReader,
        both: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        answer_lost: asyncio.Event,
    ) -> None:
        while data := await reader.read(65_536):
            when = self._commits if b"COMMIT" in data else None
            await self._late()
            if when == "before":
                break
            if when == "answered":
                answer_lost.set()
            await _send(both[1], data)
            if when == "sent":
                break
        self._end(both, cut=bool(data))

    async def _answers(
        self,
        reader: asyncio.StreamReader,
        both: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        answer_lost: asyncio.Event,
    ) -> None:
        data = b""
        while data := await reader.read(65_536):
            if answer_lost.is_set():
                break
            await self._late()
            await _send(both[0], data)
        self._end(both, cut=bool(data))

    async def _late(self) -> None:
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        await self._open.wait()

    def _end(self, both: tuple[asyncio.StreamWriter, asyncio.StreamWriter], *, cut: bool) -> None:
        self.cuts += cut
        for one in both:
            with contextlib.suppress(OSError):
                if cut:
                    one.transport.abort()
                else:
                    one.close()


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.transport.is_closing():
        writer.write(data)
        await writer.drain()
