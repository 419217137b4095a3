"""Plain signed HTTP over the dispatcher (paper, Phase 6: "Custom HTTP", any coin).

For whoever has a socket and HMAC-SHA256 and no framework at all::

    GET  /call                what may be called, with schemas
    POST /call/NAME           arguments as a JSON object -> 200 {...} | 4xx {"error", "message"}

    X-Timestamp: <unix seconds>       at most 300 s away from this clock
    X-Signature: hex(HMAC-SHA256(TOKEN, "<timestamp>:<METHOD>:<path>:<body>"))
    Idempotency-Key: ...              optional, as `idempotency_key` among the arguments

The signature is that of the platform's own wire (platform-api.md 1.1), with the token of the data
directory instead of a key's secret: keys are bought through this door, so nobody has one yet.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from engine.errors import TurtlesError, UsageError
from engine.secret import Secret
from machines.agents.dispatcher import Dispatcher
from machines.clients.ports import ClientError, Unavailable
from machines.clients.signing import sign

SKEW_SECONDS = 300
BODY_BYTES_MAX = 16 * 1024 * 1024


class BadSignature(TurtlesError):
    """Whoever asks does not have the token, or asks with an old request."""


def signed_routes(
    dispatcher: Dispatcher, token: Secret[str], now_ms: Callable[[], int]
) -> list[Route]:
    """The routes of this door.

    Args:
        token: signs every request.
        now_ms: our time, milliseconds since 1970.
    """

    async def offered(request: Request) -> JSONResponse:
        return await _answered(request, lambda _: _listed(dispatcher))

    async def call(request: Request) -> JSONResponse:
        return await _answered(request, lambda body: _called(dispatcher, request, body))

    async def _answered(request: Request, act: Callable[[bytes], Any]) -> JSONResponse:
        try:
            body = await _read(request)
            check_signature(request, body, token, now_ms() // 1000)
            return JSONResponse(await act(body))
        except TurtlesError as error:
            told = {"error": type(error).__name__, "message": str(error)}
            return JSONResponse(told, status_code=_status(error))

    return [
        Route("/call", offered, methods=["GET"]),
        Route("/call/{name}", call, methods=["POST"]),
    ]


async def _read(request: Request) -> bytes:
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > BODY_BYTES_MAX:
            raise UsageError(f"the body has more than {BODY_BYTES_MAX} bytes")
    return bytes(received)


def check_signature(request: Request, body: bytes, token: Secret[str], now_seconds: int) -> None:
    """Refuse what was not signed with the token, about now.

    Raises:
        BadSignature: says which of the two.
    """
    stamp = request.headers.get("x-timestamp", "")
    timestamp = int(stamp) if stamp.isascii() and stamp.isdecimal() and len(stamp) < 12 else 0
    target = request.scope["raw_path"].decode("ascii")
    expected = sign(token, request.method, target, body, timestamp)
    given = request.headers.get("x-signature", "")
    if not hmac.compare_digest(expected.encode(), given.encode()):
        raise BadSignature("X-Signature: does not fit; sign with the token of the data directory")
    if abs(now_seconds - timestamp) > SKEW_SECONDS:
        raise BadSignature(f"X-Timestamp: more than {SKEW_SECONDS} s away from this clock")


async def _listed(dispatcher: Dispatcher) -> dict[str, Any]:
    names = ("name", "description", "parameters")
    return {"tools": [{n: getattr(one, n) for n in names} for one in dispatcher.offers]}


async def _called(dispatcher: Dispatcher, request: Request, body: bytes) -> dict[str, Any]:
    try:
        arguments = json.loads(body or b"{}")
    except ValueError as error:
        raise UsageError("body: expected a JSON object") from error
    key = request.headers.get("idempotency-key")
    if key is not None and isinstance(arguments, dict):
        arguments["idempotency_key"] = key
    return await dispatcher.call(request.path_params["name"], arguments)


def _status(error: TurtlesError) -> int:
    if isinstance(error, BadSignature):
        return 401
    if isinstance(error, UsageError):
        return 400
    if isinstance(error, Unavailable):
        return 503
    return 502 if isinstance(error, ClientError) else 409
