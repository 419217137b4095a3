"""One way out to the network for every client.

What may be concluded when no reply came::

    connect refused, no such host, connect timeout      Unavailable: not a byte was taken
    no free connection in the pool                      Unavailable: not a byte was taken
    anything later: timeout, cut, garbage, too large    ReplyLost: it may have happened

No hidden retries, no redirects, no proxies or credentials from the environment, no cookies, no
compression (so that the size cap is the real one).  A connection idle for more than two seconds is
not used again: servers close theirs after five, and a request that meets the closing is lost.

Nothing that is logged holds a URL, a header or a body: an invoice id in a path is enough to fetch
a secret.  httpx and httpcore log URLs and response headers themselves; their records about our
own calls are dropped, those about anybody else's calls are left alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from urllib.parse import quote

import httpx
import structlog

from machines.clients.ports import ClientError, Rejected, ReplyLost, Unavailable
from machines.clients.replies import Reply, translate

_log = structlog.get_logger("turtles.clients")
_ours: ContextVar[bool] = ContextVar("turtles_http_call", default=False)
_FOREIGN_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy")
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout)

RESPONSE_BYTES_MAX = 8 * 1024 * 1024
CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0


class Transport:
    """Sends one request, gives one reply or one typed error.

    Args:
        clock_ms: our time, for elapsed times and `Retry-After` dates.
        network: an httpx transport to use instead of sockets, e.g. `httpx.ASGITransport`.
        proxy: the one way out of a semitrusted sandbox, ``http://127.0.0.1:3128``.
        connect_seconds: how long a connection may take.
        read_seconds: how long the whole exchange may take after that, unless a call says otherwise.
    """

    def __init__(
        self,
        clock_ms: Callable[[], int],
        *,
        network: httpx.AsyncBaseTransport | None = None,
        proxy: str | None = None,
        connect_seconds: float = CONNECT_SECONDS,
        read_seconds: float = READ_SECONDS,
        response_bytes_max: int = RESPONSE_BYTES_MAX,
    ) -> None:
        self.clock_ms = clock_ms
        self._connect_seconds = connect_seconds
        self._read_seconds = read_seconds
        self._response_bytes_max = response_bytes_max
        self._client = _client(network, proxy)
        _quieten_foreign_loggers()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def request(
        self,
        method: str,
        url: str,
        *,
        call: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        repeatable: bool | None = None,
        read_seconds: float | None = None,
    ) -> Reply:
        """A 2xx reply, or the error its status means.

        Args:
            call: what this is, for logs and messages; no ids in it.
            repeatable: whether repeating is harmless; by default everything but an unkeyed POST.
        """
        sent = dict(headers or {})
        harmless = method != "POST" or "Idempotency-Key" in sent
        reply = await self.exchange(
            method, url, call=call, body=body, headers=sent, read_seconds=read_seconds
        )
        if 200 <= reply.status < 300:
            return reply
        raise translate(
            reply,
            call=call,
            repeatable=harmless if repeatable is None else repeatable,
            now_ms=self.clock_ms(),
        )

    async def request_json(self, method: str, url: str, *, call: str, **options: Any) -> Any:
        """As `request`, and the reply's JSON.  A 2xx that is not JSON is a lost reply."""
        return parsed(await self.request(method, url, call=call, **options), call)

    async def exchange(
        self,
        method: str,
        url: str,
        *,
        call: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        auth: httpx.Auth | None = None,
        read_seconds: float | None = None,
    ) -> Reply:
        """Whatever came back, whatever its status; an error only when nothing did."""
        seconds = self._read_seconds if read_seconds is None else read_seconds
        started_ms = self.clock_ms()
        try:
            with _translated(call), _marked():
                async with asyncio.timeout(self._connect_seconds + seconds):
                    reply = await self._send(method, url, body, headers or {}, auth, seconds)
        except ClientError as error:
            self._report(call, method, started_ms, outcome=type(error).__name__)
            raise
        self._report(call, method, started_ms, status=reply.status)
        return reply

    async def _send(
        self,
        method: str,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        auth: httpx.Auth | None,
        seconds: float,
    ) -> Reply:
        request = self._build(method, url, body, headers, seconds)
        response = await self._client.send(request, stream=True, auth=auth)
        try:
            return Reply(response.status_code, response.headers, await self._body(response))
        finally:
            await response.aclose()

    def _build(
        self, method: str, url: str, body: bytes, headers: Mapping[str, str], seconds: float
    ) -> httpx.Request:
        connect = self._connect_seconds
        try:
            return self._client.build_request(
                method,
                url,
                content=body or None,
                headers={"Content-Type": "application/json", **headers} if body else dict(headers),
                timeout=httpx.Timeout(connect=connect, read=seconds, write=seconds, pool=connect),
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise Rejected(f"{method} request: its URL or a header cannot be sent") from error

    async def _body(self, response: httpx.Response) -> bytes:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise httpx.DecodingError("the reply is compressed, which was not asked for")
        received = bytearray()
        async for chunk in response.aiter_bytes():
            received += chunk
            if len(received) > self._response_bytes_max:
                raise httpx.ReadError(f"the reply exceeds {self._response_bytes_max} bytes")
        return bytes(received)

    def _report(self, call: str, method: str, started_ms: int, **outcome: int | str) -> None:
        elapsed_ms = self.clock_ms() - started_ms
        _log.debug("http_call", call=call, method=method, elapsed_ms=elapsed_ms, **outcome)


def parsed(reply: Reply, call: str) -> Any:
    """The JSON of a 2xx reply.

    Raises:
        ReplyLost: it is not JSON, so what happened cannot be told.
    """
    try:
        return reply.json()
    except ValueError as error:
        raise ReplyLost(f"{call}: status {reply.status}, but the reply is {error}") from error


def base_of(url: str) -> str:
    """A base URL without its final slash.

    Raises:
        Rejected: not http(s), no host, or a user name or password inside.
    """
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise Rejected("base URL: not a URL; expected e.g. http://127.0.0.1:8000") from error
    if parts.userinfo:
        raise Rejected("base URL: holds a user name or password; give them separately")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise Rejected(f"base URL {url!r}: expected http://HOST[:PORT] or https://HOST[:PORT]")
    return url.rstrip("/")


def segment(identifier: str) -> str:
    """An id as one path segment; one that would climb out of its place is refused."""
    if identifier in ("", ".", ".."):
        raise Rejected(f"id {identifier!r}: expected a name, it would change the path")
    return quote(identifier, safe="")


def _client(network: httpx.AsyncBaseTransport | None, proxy: str | None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=network,
        proxy=proxy,
        follow_redirects=False,
        trust_env=False,
        limits=httpx.Limits(max_connections=100, keepalive_expiry=2.0),
        headers={"User-Agent": f"turtles/{_own_version()}", "Accept-Encoding": "identity"},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )


def _own_version() -> str:
    try:
        return version("turtles")
    except PackageNotFoundError:
        return "checkout"


@contextmanager
def _translated(call: str) -> Iterator[None]:
    try:
        yield
    except _UNSENT as error:
        raise Unavailable(f"{call}: no connection ({type(error).__name__})") from error
    except httpx.PoolTimeout as error:
        raise Unavailable(f"{call}: all connections are busy", kind="overloaded") from error
    except httpx.UnsupportedProtocol as error:
        raise Rejected(f"{call}: the URL is neither http nor https") from error
    except (httpx.HTTPError, httpx.StreamError, TimeoutError) as error:
        problem = type(error).__name__
        raise ReplyLost(f"{call}: sent, but no usable reply ({problem})") from error


@contextmanager
def _marked() -> Iterator[None]:
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)


def _not_ours(record: logging.LogRecord) -> bool:
    return not _ours.get()


def _quieten_foreign_loggers() -> None:
    for name in _FOREIGN_LOGGERS:
        logging.getLogger(name).addFilter(_not_ours)
