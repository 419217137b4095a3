"""The platform as one ASGI application: portal, wallets and API behind one front door.

The outermost layer, `FrontDoor`, gives every answer the platform's own `Date` (clients measure
their clock against it), writes the access log and turns an unexpected error into a plain 500.
The log holds the route, never the raw path, query, headers or body: an invoice id or a gift code
in a path is as good as a password.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from engine.errors import TurtlesError
from machines.platform.api import REQUESTS_PER_MINUTE_PER_TIER, Api
from machines.platform.context import PlatformContext
from machines.platform.misbehaviour import FaultMiddleware, ReplyDropped
from machines.platform.portal import build_money_routes
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Backend

EXPIRY_SECONDS = 1.0
# Looking for dead sandboxes reads all of /proc, so it is done less often.
REAP_EVERY = 10
# Path parameters that are no capability and help to read the log.
_SHOWN = frozenset({"session_id", "job_id", "currency"})

log = structlog.get_logger("turtles.platform.access")


def build_app(
    context: PlatformContext,
    backend: Backend,
    *,
    allow_faults: bool = False,
    requests_per_minute_per_tier: int = REQUESTS_PER_MINUTE_PER_TIER,
) -> Starlette:
    """The application; `app.state.api` is its `Api`.

    Its lifespan clears what an earlier process left, expires sessions while it runs, and ends
    every session when it stops.

    Args:
        context: the money half's database, clock and settings.
        backend: where untrusted code runs.
        allow_faults: whether injected misbehaviour applies.
        requests_per_minute_per_tier: 7 by the price list; `/health` shows another figure.
    """
    api = Api(context, backend, requests_per_minute_per_tier=requests_per_minute_per_tier)
    middleware = [Middleware(FrontDoor, clock_ms=context.clock_ms)]
    if allow_faults:
        middleware.append(Middleware(FaultMiddleware, database=context.database))
    app = Starlette(
        routes=[*api.routes(), *build_money_routes(context)],
        middleware=middleware,
        exception_handlers={HTTPException: _http_problem, Problem: _problem},
        lifespan=_lifespan(api),
    )
    app.state.api = api
    return app


def _lifespan(api: Api) -> Lifespan[Starlette]:
    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(api.start)
        tasks = [asyncio.create_task(_expire(api)), asyncio.create_task(_mine(api))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.to_thread(api.stop)

    return lifespan


async def _expire(api: Api) -> None:
    for tick in itertools.count(1):
        await asyncio.sleep(EXPIRY_SECONDS)
        try:
            await asyncio.to_thread(api.tick)
            if tick % REAP_EVERY == 0:
                await asyncio.to_thread(api.sessions.reap)
        except TurtlesError as error:
            log.warning("expiry_failed", error=str(error))


async def _mine(api: Api) -> None:
    """Blocks on the clock.  A database that fails for a while must not end the server."""
    while api.context.config.block_seconds:
        try:
            await api.context.blocks.run()
        except TurtlesError as error:
            log.error("mining_failed", error=str(error))


async def _http_problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # registered for this type only
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
    message = {
        404: "no such path. See GET /health, /languages, /sessions and the documentation.",
        405: "this path does not take this method.",
    }.get(error.status_code, str(error.detail))
    return Problem(error.status_code, code, message, headers=error.headers).response()


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)  # registered for this type only
    return error.response()


class FrontDoor:
    """Outermost layer: `Date`, access log, and 500 for what nobody expected."""

    def __init__(self, app: ASGIApp, *, clock_ms: Callable[[], int]) -> None:
        self._app = app
        self._clock_ms = clock_ms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0

        async def dated(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                date = formatdate(self._clock_ms() / 1000, usegmt=True).encode()
                kept = [pair for pair in message.get("headers", []) if pair[0].lower() != b"date"]
                message = {**message, "headers": [*kept, (b"date", date)]}
            await send(message)

        try:
            await self._app(scope, receive, dated)
        except ReplyDropped:
            raise
        except ClientDisconnect:
            # Nobody is left to answer.
            log.info("client_left", route=_route(scope))
        except Exception as error:  # noqa: BLE001 - the last place that can answer
            log.error("unexpected_error", route=_route(scope), **describe(error))
            if not status:
                problem = Problem(500, "internal_error", "the platform failed; see its log.")
                await problem.response()(scope, receive, dated)
        finally:
            took_ms = int((time.monotonic() - began) * 1000)
            log.info(
                "request",
                method=scope["method"],
                route=_route(scope),
                status=status,
                duration_ms=took_ms,
            )


def describe(error: BaseException) -> dict[str, object]:
    """An unexpected error for the log: types and places, and only our own messages.

    Messages of foreign errors may quote statements with their values.
    """
    chain = []
    current: BaseException | None = error
    while current is not None:
        own = isinstance(current, TurtlesError)
        chain.append(f"{type(current).__name__}: {current}" if own else type(current).__name__)
        current = current.__cause__ or current.__context__
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return {"error": " < ".join(chain), "where": places}


def _route(scope: Scope) -> str:
    parameters = scope.get("path_params")
    if parameters is None:
        return "(none)"
    path: str = scope["path"]
    for name, value in parameters.items():
        if name not in _SHOWN:
            path = path.replace(str(value), "{" + name + "}")
    return path
