"""The platform's own log lines, and the audit log of a key (wire facts, sections 11 and 13).

The lines are about every tenant, so only operators may read them: keys named in the platform's
configuration.  Every other key is refused with 403.  Clients disagree about paths, and all are
served::

    GET  /logs, /paas/logs            source= lines= since= grep= level=
    POST /paas/logs                   the same as a JSON object
    GET  /logs/stream, /paas/logs/stream
    GET  /logs/{source}, /logs/{source}/stream      source: all, api, portal, pool/local

A stream is server-sent events, `data: {"source":"...","line":"..."}`, with `data: :keepalive` when
nothing happens.  It ends by itself after `STREAM_SECONDS_MAX`, and with the platform.

`GET /audit` is for every key: what it did itself.  (Its path is INFERRED; no source states it.)
"""

from __future__ import annotations

import re
import threading
from asyncio import sleep
from collections.abc import AsyncIterator, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response, StreamingResponse

from engine.log import LEVELS
from machines.platform.audit import entry_document
from machines.platform.lines import RECENT, SOURCES, Line
from machines.platform.replies import Problem, bad_field, reply
from machines.platform.wire import (
    INTEGER,
    TEXT,
    Call,
    Endpoint,
    Feature,
    an_object,
    array,
    integer,
    one_of,
)

if TYPE_CHECKING:
    from machines.platform.api import Api

LINES_DEFAULT, LINES_MAX = 100, 10_000
AUDIT_DEFAULT, AUDIT_MAX = 100, 1_000
STREAM_SECONDS_MAX = 600
STREAMS_MAX = 16
KEEPALIVE_SECONDS = 15.0
LOOK_SECONDS = 0.2
_FORGET_EVERY = 3600
_SINCE = re.compile(r"([0-9]{1,4})([smhd])", re.ASCII)
_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

_SOURCE = one_of("all", *SOURCES)
_QUERY = {
    "lines": integer(1, LINES_MAX),
    "since": {"type": "string", "pattern": "^[0-9]{1,4}[smhd]$"},
    "grep": {"type": "string", "maxLength": 200},
    "level": one_of(*LEVELS),
}
_STREAM_QUERY = {"grep": _QUERY["grep"], "level": _QUERY["level"]}
_LINES = an_object(
    ("lines", "count"),
    sources=array(TEXT),
    lines={
        "type": "array",
        "items": {"anyOf": [TEXT, an_object(("source", "line"), source=TEXT, line=TEXT)]},
    },
    count=INTEGER,
)
_ENTRY = an_object(
    ("action", "client_ip", "metadata", "resource_type", "result", "timestamp"),
    action=TEXT,
    client_ip=TEXT,
    metadata={"type": "object"},
    resource_id={"type": ["string", "null"]},
    resource_type=TEXT,
    result=one_of("success", "failure"),
    timestamp=TEXT,
)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines are asked for, checked."""

    source: str
    lines: int
    since_ms: int
    grep: str
    level: str


class LogEndpoints(Feature):
    """`/logs`, `/paas/logs`, `/audit`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._stopping = threading.Event()
        self._streams = 0
        self._ticks = 0

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What it serves; the words `stream` before any name of a source."""
        operators: dict[str, Any] = {"tag": "logs", "refusals": frozenset({403})}
        return (
            Endpoint(
                method="GET",
                path="/audit",
                handler=self._audit,
                summary="What this key changed, the newest first.",
                tag="keys",
                query={"limit": integer(1, AUDIT_MAX)},
                answers={
                    200: an_object(("entries", "count"), entries=array(_ENTRY), count=INTEGER)
                },
            ),
            Endpoint(
                method="GET",
                path="/logs",
                aliases=(("GET", "/paas/logs"),),
                handler=self._read_query,
                summary="The platform's log lines, for operators.",
                query={"source": _SOURCE, **_QUERY},
                answers={200: _LINES},
                **operators,
            ),
            Endpoint(
                method="POST",
                path="/paas/logs",
                handler=self._read_body,
                summary="The same, asked for with a JSON object.",
                body=an_object((), source=_SOURCE, **_QUERY),
                answers={200: _LINES},
                **operators,
            ),
            Endpoint(
                method="GET",
                path="/logs/stream",
                aliases=(("GET", "/paas/logs/stream"),),
                handler=self._stream_all,
                summary="The platform's log lines as they come, for operators.",
                query={"source": _SOURCE, **_STREAM_QUERY},
                answers={200: TEXT},
                media="text/event-stream",
                **operators,
            ),
            Endpoint(
                method="GET",
                path="/logs/{source:path}/stream",
                handler=self._stream_source,
                summary="The lines of one source as they come, for operators.",
                query=_STREAM_QUERY,
                answers={200: TEXT},
                media="text/event-stream",
                tag="logs",
                refusals=frozenset({403, 404}),
            ),
            Endpoint(
                method="GET",
                path="/logs/{source:path}",
                handler=self._read_source,
                summary="The lines of one source, for operators.",
                query=_QUERY,
                answers={200: _LINES},
                tag="logs",
                refusals=frozenset({403, 404}),
            ),
        )

    def start(self) -> None:
        """Streams may be opened."""
        self._stopping.clear()

    def tick(self) -> None:
        """Once an hour, forget old entries of the audit log."""
        if self._ticks % _FORGET_EVERY == 0:
            self._api.audit.forget_old()
        self._ticks += 1

    def stop(self) -> None:
        """End the streams."""
        self._stopping.set()

    def _audit(self, call: Call) -> Response:
        limit = _number(call.query, "limit", AUDIT_DEFAULT, AUDIT_MAX)
        entries = [entry_document(row) for row in self._api.audit.read(call.public_key, limit)]
        return reply({"entries": entries, "count": len(entries)})

    def _read_query(self, call: Call) -> Response:
        return self._read(call, call.query)

    def _read_body(self, call: Call) -> Response:
        return self._read(call, call.body)

    def _read_source(self, call: Call) -> Response:
        return self._read(call, {**call.query, "source": _named_source(call)})

    def _read(self, call: Call, fields: Mapping[str, Any]) -> Response:
        self._require_operator(call)
        wanted = parse_wanted(fields, RECENT.now_ms())
        found = RECENT.find(
            source=wanted.source,
            since_ms=wanted.since_ms,
            grep=wanted.grep,
            level=wanted.level,
            limit=wanted.lines,
        )
        if wanted.source != "all":
            return reply({"lines": [line.text for line in found], "count": len(found)})
        lines = [_document(line) for line in found]
        return reply({"sources": list(SOURCES), "lines": lines, "count": len(lines)})

    def _stream_all(self, call: Call) -> Response:
        return self._stream(call, call.query)

    def _stream_source(self, call: Call) -> Response:
        return self._stream(call, {**call.query, "source": _named_source(call)})

    def _stream(self, call: Call, fields: Mapping[str, Any]) -> Response:
        self._require_operator(call)
        wanted = parse_wanted(fields, RECENT.now_ms())
        if self._streams >= STREAMS_MAX:
            raise Problem(
                429,
                "concurrency_limit_reached",
                f"{STREAMS_MAX} log streams are open. Close one, or read /logs.",
                headers={"Retry-After": "5"},
            )
        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(
            self._events(wanted), headers=headers, media_type="text/event-stream"
        )

    async def _events(self, wanted: Wanted) -> AsyncIterator[bytes]:
        self._streams += 1
        began = spoke = monotonic()
        number = RECENT.newest
        try:
            yield b"data: :keepalive\n\n"
            while not self._stopping.is_set():
                now = monotonic()
                if now - began > STREAM_SECONDS_MAX:
                    return
                found = RECENT.find(
                    source=wanted.source, after=number, grep=wanted.grep, level=wanted.level
                )
                for line in found:
                    yield b"data: " + msgspec.json.encode(_document(line)) + b"\n\n"
                if found:
                    number, spoke = found[-1].number, now
                elif now - spoke > KEEPALIVE_SECONDS:
                    spoke = now
                    yield b"data: :keepalive\n\n"
                await sleep(LOOK_SECONDS)
        finally:
            self._streams -= 1

    def _require_operator(self, call: Call) -> None:
        if call.public_key not in self._api.context.config.operators:
            raise Problem(
                403,
                "operators_only",
                "these lines are about every tenant; only the operators of this platform may read "
                "them. What your own key did is at GET /audit.",
            )


def parse_wanted(fields: Mapping[str, Any], now_ms: int) -> Wanted:
    """Check a request for lines, given as a query or as a JSON object.

    Raises:
        Problem: 400 naming the field, the value seen and what was expected.
    """
    source = _given(fields, "source", "all")
    if source not in ("all", *SOURCES):
        raise bad_field("source", source, f"one of all, {', '.join(SOURCES)}")
    grep = _given(fields, "grep", "")
    if not isinstance(grep, str) or len(grep) > 200:
        raise bad_field("grep", grep, "a text of at most 200 characters")
    level = _given(fields, "level", "debug")
    if level not in LEVELS:
        raise bad_field("level", level, f"one of {', '.join(LEVELS)}")
    return Wanted(
        source=source,
        lines=_number(fields, "lines", LINES_DEFAULT, LINES_MAX),
        since_ms=_since(fields.get("since"), now_ms),
        grep=grep,
        level=level,
    )


def _given(fields: Mapping[str, Any], name: str, default: str) -> Any:
    value = fields.get(name)
    return default if value is None else value


def _since(value: Any, now_ms: int) -> int:
    if value is None:
        return 0
    found = _SINCE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise bad_field("since", value, "a span such as 30s, 5m, 1h or 1d")
    return now_ms - int(found[1]) * _UNIT_MS[found[2]]


def _number(fields: Mapping[str, Any], name: str, default: int, most: int) -> int:
    value = fields.get(name)
    if value is None:
        return default
    number = value if isinstance(value, int) and not isinstance(value, bool) else None
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        number = int(value)
    if number is None or not 1 <= number <= most:
        raise bad_field(name, value, f"an integer from 1 to {most}")
    return number


def _named_source(call: Call) -> str:
    source = call.path["source"]
    if source not in ("all", *SOURCES):
        raise Problem(404, "not_found", f"no such source. There are: all, {', '.join(SOURCES)}.")
    return source


def _document(line: Line) -> dict[str, str]:
    return {"source": line.source, "line": line.text}
