"""One unsigned route, described once: the portal's calls, pages, and documents.

A buyer has no key yet, so these calls carry no signature.  Their descriptions stand beside the
handlers, and the OpenAPI document is made from them as from the signed endpoints of `wire`.
Whatever a handler raises as a `Problem` is the answer; a busy database is 503 and nothing done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.errors import StoreBusy
from machines.platform.replies import Problem, parse_object
from machines.platform.wire import ANY_OBJECT, Schema

BODY_BYTES_MAX = 64 * 1024
"""Of an unsigned request: an order is a few hundred bytes."""

AsyncHandler = Callable[[Request], Awaitable[Response]]


class Unsigned(msgspec.Struct, frozen=True, kw_only=True):
    """A method and a path that anybody may call.

    Args:
        handler: runs in the event loop; a `Problem` it raises is the answer.
        body: schema of the object it takes; None when it looks at no body.
        body_media: how that object is written.
        query: the schemas of its query's values, by name; all are optional.
        answers: the statuses of success, and the schema of each one's body.
        media: the content type of success.
        refusals: further statuses than those that `statuses` adds by itself.
        bearer: the caller names a key (`Authorization: Bearer`) and proves nothing.
        repeatable: honours `Idempotency-Key`.
        deprecated: an older form, kept for clients that know no other.
    """

    method: Literal["GET", "POST"]
    path: str
    handler: AsyncHandler
    summary: str
    tag: str
    body: Schema | None = None
    body_media: str = "application/json"
    query: Mapping[str, Schema] = msgspec.field(default_factory=dict)
    answers: Mapping[int, Schema] = msgspec.field(default_factory=lambda: {200: ANY_OBJECT})
    media: str = "application/json"
    refusals: frozenset[int] = frozenset()
    bearer: bool = False
    repeatable: bool = False
    deprecated: bool = False

    @property
    def statuses(self) -> frozenset[int]:
        """Every status it may answer."""
        always = {500, 503} | ({400, 413} if self.body is not None or self.query else set())
        return frozenset(self.answers) | frozenset(always) | self.refusals


class UnsignedRoute(Route):
    """A route that knows its description."""

    def __init__(self, described: Unsigned) -> None:
        self.described = described
        super().__init__(described.path, _guarded(described.handler), methods=[described.method])


def _guarded(handler: AsyncHandler) -> AsyncHandler:
    async def serve(request: Request) -> Response:
        try:
            return await handler(request)
        except Problem as problem:
            return problem.response()
        except StoreBusy:
            return busy().response()

    return serve


def busy() -> Problem:
    """503: the database could not be had in time, so nothing was done."""
    return Problem(
        503,
        "busy",
        "the platform's database is busy; nothing was done. Try again.",
        headers={"Retry-After": "1"},
    )


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The request's body.

    Raises:
        Problem: 413, longer than the limit.
    """
    too_large = Problem(
        413, "body_too_large", f"the body is longer than {limit_bytes} bytes. Send less."
    )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise too_large
    return bytes(body)


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object of an unsigned request; `{}` when it has no body.

    Raises:
        Problem: 400 no object; 413 longer than `BODY_BYTES_MAX`.
    """
    return parse_object(await read_body(request, BODY_BYTES_MAX))
