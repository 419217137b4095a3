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
from machines.platform.inbound import ByHost
from machines.platform.misbehaviour import FaultMiddleware, ReplyDropped
from machines.platform.off_loop import off_the_loop
from machines.platform.openapi import Described
from machines.platform.portal import build_money_routes
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Backend
from machines.platform.unsigned import UnsignedRoute

EXPIRY_SECONDS = 1.0
# Looking for dead sandboxes reads all of /proc, so it is done less often.
REAP_EVERY = 10
# Path parameters that are no capability and help to read the log.
_SHOWN = frozenset({"job_id", "currency"})
_HOST_ONLY = ("/rpc/", "/_test/")
_NOT_FROM_INSIDE = Problem(
    403, "not_from_inside", "wallets, nodes and faults cannot be reached from inside a sandbox."
)

# A socket has no status until it is accepted (101) or closed before (403, as servers send it).
_STATUS_OF = {"websocket.accept": 101, "websocket.close": 403}

log = structlog.get_logger("turtles.platform.access")


def build_app(
    context: PlatformContext,
    backend: Backend,
    *,
    allow_faults: bool = False,
    requests_per_minute_per_tier: int = REQUESTS_PER_MINUTE_PER_TIER,
    inside_port: int | None = None,
) -> Starlette:
    """The application; `app.state.api` is its `Api`.

    Its lifespan clears what an earlier process left, expires sessions while it runs, and ends
    every session when it stops.

    Args:
        context: the money half's database, clock and settings.
        backend: where untrusted code runs.
        allow_faults: whether injected misbehaviour applies.
        requests_per_minute_per_tier: 7 by the price list; `/health` shows another figure.
        inside_port: the port on which sandboxes reach this platform, if they can.
    """
    api = Api(context, backend, requests_per_minute_per_tier=requests_per_minute_per_tier)
    middleware = [
        Middleware(FrontDoor, clock_ms=context.clock_ms),
        Middleware(NoWallets, inside_port=inside_port),
        Middleware(ByHost, api=api),
    ]
    if allow_faults:
        middleware.append(Middleware(FaultMiddleware, database=context.database))
    documents = Described(api.endpoints, lambda: app.routes)
    routes = [
        *map(UnsignedRoute, documents.calls()),
        *api.routes(),
        *off_the_loop(build_money_routes(context)),
    ]
    app = Starlette(
        routes=routes,
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


class NoWallets:
    """What comes from inside a sandbox gets portal, API and services.

    Not the wallets and nodes of the host that runs it, nor the switches of its tests.
    """

    def __init__(self, app: ASGIApp, *, inside_port: int | None) -> None:
        self._app = app
        self._inside_port = inside_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        server = scope.get("server")
        inside = self._inside_port is not None and server and server[1] == self._inside_port
        if inside and scope["path"].startswith(_HOST_ONLY):
            await _NOT_FROM_INSIDE.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)


class FrontDoor:
    """Outermost layer: `Date`, access log, and 500 for what nobody expected."""

    def __init__(self, app: ASGIApp, *, clock_ms: Callable[[], int]) -> None:
        self._app = app
        self._clock_ms = clock_ms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0

        async def dated(message: Message) -> None:
            nonlocal status
            status = status or _STATUS_OF.get(message["type"], 0)
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
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
            if not status and scope["type"] == "http":
                problem = Problem(500, "internal_error", "the platform failed; see its log.")
                await problem.response()(scope, receive, dated)
        finally:
            took_ms = int((time.monotonic() - began) * 1000)
            log.info(
                "request",
                method=scope.get("method", "WEBSOCKET"),
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
    if "turtles_route" in scope:
        return str(scope["turtles_route"])
    parameters = scope.get("path_params")
    if parameters is None:
        return "(none)"
    path: str = scope["path"]
    for name, value in parameters.items():
        if name == "session_id":  # the whole of it opens the terminal's socket
            path = path.replace(str(value), f"{str(value)[:17]}...")
        elif name not in _SHOWN:
            path = path.replace(str(value), "{" + name + "}")
    return path
