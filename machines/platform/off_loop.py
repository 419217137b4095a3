"""Handlers that are written for the event loop and talk to the database, run beside it.

The handlers of portal, nodes and wallets read their body and then do one transaction.  In the loop
each of them would hold up every other request, socket and stream for the time of a commit, and for
seconds while the database is busy.  So the body is read in the loop, and the rest runs in a thread;
one at a time, as it was in the loop, so nothing of theirs can overlap that could not before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, request_response
from starlette.types import Message

from machines.platform.unsigned import AsyncHandler, read_body

BODY_BYTES_MAX = 16 * 1024 * 1024


def off_the_loop(routes: Sequence[BaseRoute]) -> list[BaseRoute]:
    """The same routes, whose handlers run one after another in a thread."""
    one_at_a_time = anyio.CapacityLimiter(1)
    for route in routes:
        if isinstance(route, Route):
            route.app = request_response(_beside(route.endpoint, one_at_a_time))
    return list(routes)


def _beside(handler: AsyncHandler, limiter: anyio.CapacityLimiter) -> AsyncHandler:
    async def serve(request: Request) -> Response:
        body = await read_body(request, BODY_BYTES_MAX)
        again = Request(request.scope, _replaying(body))
        return await anyio.to_thread.run_sync(lambda: _run(handler, again), limiter=limiter)

    return serve


def _run(handler: AsyncHandler, request: Request) -> Response:
    async def answer() -> Response:
        return await handler(request)

    return asyncio.run(answer())


def _replaying(body: bytes) -> Any:
    """What gives a body that was read as if it came now."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
