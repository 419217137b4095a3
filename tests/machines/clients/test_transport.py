"""Every way a request can end has one typed error; nothing secret is ever logged."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from machines.clients import Transport
from machines.clients.ports import (
    ClientError,
    NotFound,
    Rejected,
    ReplyLost,
    Unauthorized,
    Unavailable,
)
from machines.clients.ports.refusals import Refusal
from machines.clients.transport import base_of, segment

Serve = Callable[..., Transport]
URL = "http://platform.test/thing"
DATE = "Tue, 14 Nov 2023 22:13:30 GMT"  # ten seconds after the transport's clock


def answering(status: int, **options: Any) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _request: httpx.Response(status, **options)


async def failure(transport: Transport, method: str = "POST", **options: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        await transport.request_json(method, URL, call="a.call", **options)
    return caught.value


@pytest.mark.parametrize("status", [400, 402, 403, 405, 409, 413, 415, 422, 428])
async def test_a_wrong_request_is_rejected_with_the_servers_words(
    served: Serve, status: int
) -> None:
    body = {"error": "bad_field", "message": "vcpu\nout of range"}
    error = await failure(served(answering(status, json=body, headers={"X-Note": "hdr"})))
    assert type(error) is Refusal
    assert str(error) == f"a.call: status {status}: bad_field: vcpu out of range"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(served: Serve, status: int) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, headers={"Location": "http://elsewhere.test/"})

    assert type(await failure(served(handler))) is Refusal
    assert len(seen) == 1


@pytest.mark.parametrize("status", [404, 410])
async def test_gone_and_unknown_are_not_found(served: Serve, status: int) -> None:
    assert type(await failure(served(answering(status)))) is NotFound


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"error": "invalid_timestamp"}, "invalid_timestamp"),
        ({"error": "invalid_signature", "message": "timestamp fine"}, "invalid_signature"),
        ({"error": "unauthorized", "message": "Request timestamp expired"}, "invalid_timestamp"),
        ({"error": "unauthorized", "message": "bad Signature"}, "invalid_signature"),
        ({"valid": False, "reason": "expired"}, "expired"),
        ({"error": "key suspended"}, "suspended"),
        ({"error": "nope"}, "invalid_key"),
        ({}, "invalid_key"),
    ],
)
async def test_401_names_its_reason(served: Serve, body: dict[str, Any], reason: str) -> None:
    error = await failure(served(answering(401, json=body, headers={"Date": DATE})))
    assert isinstance(error, Unauthorized)
    assert (error.reason, error.server_ms) == (reason, 1_700_000_010_000)


async def test_401_without_a_date_or_a_readable_body(served: Serve) -> None:
    error = await failure(served(answering(401, content=b"<html>")))
    assert isinstance(error, Unauthorized)
    assert (error.reason, error.server_ms) == ("invalid_key", None)


@pytest.mark.parametrize(
    ("body", "headers", "kind", "retry_after_ms"),
    [
        ({"error": "rate_limit_exceeded"}, {"Retry-After": "42"}, "rate_limit", 42_000),
        ({"error": "concurrency_limit_reached", "retry_after": 3}, {}, "concurrency", 3_000),
        ({"error": "rate_limit_exceeded", "retry_after_ms": 250}, {}, "rate_limit", 250),
        ({}, {"Retry-After": "Tue, 14 Nov 2023 22:13:35 GMT"}, "rate_limit", 15_000),
        (
            {},
            {"Retry-After": "Tue, 14 Nov 2023 22:13:35 GMT", "Date": DATE},
            "rate_limit",
            5_000,
        ),
        ({}, {"Retry-After": "soon"}, "rate_limit", None),
    ],
)
async def test_429_says_which_limit_and_how_long(
    served: Serve,
    body: dict[str, Any],
    headers: dict[str, str],
    kind: str,
    retry_after_ms: int | None,
) -> None:
    error = await failure(served(answering(429, json=body, headers=headers)))
    assert isinstance(error, Unavailable)
    assert (error.kind, error.retry_after_ms) == (kind, retry_after_ms)


@pytest.mark.parametrize("status", [502, 503])
async def test_a_closed_door_is_unavailable(served: Serve, status: int) -> None:
    error = await failure(served(answering(status, headers={"Retry-After": "1"})))
    assert isinstance(error, Unavailable)
    assert (error.kind, error.retry_after_ms) == ("overloaded", 1000)


@pytest.mark.parametrize("status", [500, 504, 599])
async def test_a_failed_server_is_a_lost_reply_only_where_repeating_could_harm(
    served: Serve, status: int
) -> None:
    transport = served(answering(status, text="boom"))
    assert type(await failure(transport, "POST")) is ReplyLost
    for harmless in (
        await failure(transport, "GET"),
        await failure(transport, "DELETE"),
        await failure(transport, "POST", headers={"Idempotency-Key": "k"}),
        await failure(transport, "POST", repeatable=True),
    ):
        assert isinstance(harmless, Unavailable)
        assert harmless.kind == "overloaded"


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (httpx.ConnectError, Unavailable),
        (httpx.ConnectTimeout, Unavailable),
        (httpx.PoolTimeout, Unavailable),
        (httpx.ReadTimeout, ReplyLost),
        (httpx.WriteTimeout, ReplyLost),
        (httpx.ReadError, ReplyLost),
        (httpx.WriteError, ReplyLost),
        (httpx.RemoteProtocolError, ReplyLost),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_network_failures(
    served: Serve, raised: type[httpx.TransportError], expected: type[ClientError], method: str
) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise raised("secret-in-foreign-text", request=request)

    error = await failure(served(handler), method)
    assert type(error) is expected
    assert "secret-in-foreign-text" not in str(error)
    assert isinstance(error.__cause__, raised)


@pytest.mark.parametrize(
    "reply",
    [
        {"content": b"<html>"},
        {"content": b""},
        {"content": b'{"a":NaN}'},
        {"content": b"[" * 200_000},
        {"content": b"\xff"},
        {"content": gzip.compress(b"{}"), "headers": {"Content-Encoding": "gzip"}},
    ],
    ids=["html", "empty", "nan", "deep", "not-utf8", "compressed"],
)
async def test_a_success_that_cannot_be_read_is_a_lost_reply(
    served: Serve, reply: dict[str, Any]
) -> None:
    error = await failure(served(answering(200, **reply)))
    assert type(error) is ReplyLost


async def test_a_reply_is_read_up_to_its_cap(served: Serve) -> None:
    exact = served(answering(200, content=b'"' + b"x" * 98 + b'"'), response_bytes_max=100)
    assert await exact.request_json("GET", URL, call="a.call") == "x" * 98
    larger = served(answering(200, content=b'"' + b"x" * 99 + b'"'), response_bytes_max=100)
    assert type(await failure(larger)) is ReplyLost


async def test_numbers_are_decimals(served: Serve) -> None:
    data = await served(answering(200, content=b'{"a":0.1,"b":7}')).request_json(
        "GET", URL, call="a.call"
    )
    assert data == {"a": Decimal("0.1"), "b": 7}
    assert isinstance(data["a"], Decimal)


async def test_what_every_request_carries(served: Serve) -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={}, headers={"Set-Cookie": "session=1; Path=/"})

    transport = served(handler)
    await transport.request("POST", URL, call="a.call", body=b"{}")
    await transport.request("GET", URL, call="a.call")
    first, second = seen
    assert first.headers["User-Agent"].startswith("turtles/")
    assert first.headers["Accept-Encoding"] == "identity"
    assert first.headers["Content-Type"] == "application/json"
    assert "Content-Type" not in second.headers
    assert "Cookie" not in second.headers


async def test_an_unsendable_header_is_rejected(served: Serve) -> None:
    headers = {"Idempotency-Key": "k\u00fc"}
    assert type(await failure(served(answering(200)), headers=headers)) is Rejected


@pytest.mark.parametrize(
    "url", ["", "ftp://host", "http://", "host:80", "http://user:hunter2@host", "http://ho st:x"]
)
def test_base_urls_that_cannot_be(url: str) -> None:
    with pytest.raises(Rejected) as caught:
        base_of(url)
    assert "hunter2" not in str(caught.value)


def test_base_url_and_path_segment() -> None:
    assert base_of("http://127.0.0.1:8000/") == "http://127.0.0.1:8000"
    assert segment("a/b c") == "a%2Fb%20c"
    for climbing in ("", ".", ".."):
        with pytest.raises(Rejected):
            segment(climbing)


async def test_logs_hold_the_call_and_nothing_secret(
    served: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    transport = served(answering(200, json={"secret_key": "reply-secret"}))
    with capture_logs() as events:
        await transport.request(
            "POST",
            "http://platform.test/payment/path-secret/status",
            call="portal.payment_status",
            body=b'{"a":"body-secret"}',
            headers={"Authorization": "header-secret"},
        )
    assert [(event["event"], event["call"], event["status"]) for event in events] == [
        ("http_call", "portal.payment_status", 200)
    ]
    assert "-secret" not in repr(events) + caplog.text
    assert not [record for record in caplog.records if record.name.startswith("http")]


async def test_other_peoples_httpx_logs_are_left_alone(
    served: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await served(answering(200, json={})).request("GET", URL, call="a.call")
    async with httpx.AsyncClient(transport=httpx.MockTransport(answering(200))) as theirs:
        await theirs.get("http://theirs.test/")
    assert ["theirs.test" in record.getMessage() for record in caplog.records] == [True]


@asynccontextmanager
async def listening(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A real server on the loopback; gives its URL, and ends when every connection has ended."""
    connections: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.ensure_future(serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield f"http://127.0.0.1:{port}/"
        await asyncio.gather(*connections)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def on_sockets(url: str, **options: Any) -> ClientError:
    transport = Transport(lambda: 0, **options)
    try:
        with pytest.raises(ClientError) as caught:
            await transport.request_json("POST", url, call="a.call", body=b"{}")
        return caught.value
    finally:
        await transport.aclose()


async def test_real_socket_closed_port_is_unavailable() -> None:
    error = await on_sockets(f"http://127.0.0.1:{closed_port()}/")
    assert isinstance(error, Unavailable)
    assert error.kind == "unreachable"


async def test_real_socket_unknown_host_is_unavailable() -> None:
    assert isinstance(await on_sockets("http://no-such-host.invalid/"), Unavailable)


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{", b"nonsense\r\n\r\n"]
)
async def test_real_socket_cut_after_the_request_is_a_lost_reply(said: bytes) -> None:
    received: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"{}"))
        writer.write(said)
        await writer.drain()

    async with listening(answer) as url:
        assert type(await on_sockets(url)) is ReplyLost
    assert len(received) == 1, "a request whose reply was lost must not be sent again"


async def test_real_socket_a_dribbling_reply_is_cut_off_as_a_whole() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not reader.at_eof():  # a byte every 10 ms until the client hangs up
            writer.write(b" ")
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.01)

    async with listening(answer) as url:
        assert type(await on_sockets(url, connect_seconds=0.1, read_seconds=0.2)) is ReplyLost


async def test_real_socket_a_silent_server_is_a_lost_reply() -> None:
    release = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        await release.wait()

    async with listening(answer) as url:
        assert type(await on_sockets(url, read_seconds=0.1)) is ReplyLost
        release.set()


async def test_real_socket_the_environment_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("NO_PROXY", "elsewhere.test")
    monkeypatch.delenv("no_proxy", raising=False)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n7")

    transport = Transport(lambda: 0)
    async with listening(answer) as url:
        assert await transport.request_json("POST", url, call="a.call", body=b"{}") == 7
    await transport.aclose()


async def test_real_socket_a_proxy_is_told_where_to_go() -> None:
    """The one way out of a semitrusted sandbox: the whole URL in the first line."""
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"{}"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n7")

    async with listening(answer) as proxy:
        transport = Transport(lambda: 0, proxy=proxy)
        url = "http://platform.turtles/keys"
        assert await transport.request_json("POST", url, call="a.call", body=b"{}") == 7
        await transport.aclose()
    assert heads[0].startswith(b"POST http://platform.turtles/keys HTTP/1.1\r\n")


async def test_a_proxy_that_is_not_there_took_nothing() -> None:
    transport = Transport(lambda: 0, proxy=f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(Unavailable):
        await transport.request("GET", "http://platform.turtles/", call="a.call")
    await transport.aclose()
