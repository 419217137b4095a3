"""The API's routes: from a signed request to a compact JSON answer.

Every signed request goes the same way::

    read the body (bounded) -> verify signature -> count it -> standing -> parse -> handle

A request that is not authentic costs the key nothing; an authentic one counts even when it is
refused afterwards.  Handlers are plain functions and run in threads, so that a command that
takes minutes holds up nobody; the database and the backend are synchronous.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from engine.errors import StoreBusy
from machines.platform import auth, keys, limits, orders
from machines.platform.cluster import (
    Cluster,
    cluster_document,
    pools_document,
    stats_document,
)
from machines.platform.context import PlatformContext
from machines.platform.documents import execution_document, session_document
from machines.platform.execution import Executions
from machines.platform.languages import ALIASES, INTERPRETERS, SHELLS, Probing
from machines.platform.orders import Caller
from machines.platform.refusals import unavailable
from machines.platform.replies import Problem, iso, parse_object, reply
from machines.platform.sandbox.backend import Backend
from machines.platform.sessions import Sessions
from persistence.database import Row

BODY_BYTES_MAX = 16 * 1024 * 1024
REQUESTS_PER_MINUTE_PER_TIER = 7
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,200}")

log = structlog.get_logger("turtles.platform.api")


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One authentic request."""

    key: keys.KeyRow
    body: dict[str, Any]
    path: Mapping[str, str]
    idempotency_key: str | None
    digest: str

    @property
    def caller(self) -> Caller:
        """The part of it that an execution needs."""
        return Caller(
            public_key=self.key.public_key,
            tier=self.key.tier,
            idempotency_key=self.idempotency_key,
            digest=self.digest,
        )


Handler = Callable[[Call], Response]
Endpoint = Callable[[Request], Awaitable[Response]]


class Api:
    """The signed half of the platform.

    Args:
        context: database, clock and codec.
        backend: where untrusted code runs.
        requests_per_minute_per_tier: 7 by the price list; another figure is shown by `/health`.
    """

    def __init__(
        self,
        context: PlatformContext,
        backend: Backend,
        *,
        requests_per_minute_per_tier: int = REQUESTS_PER_MINUTE_PER_TIER,
    ) -> None:
        self.context = context
        self.backend = backend
        self.sessions = Sessions(context, backend)
        self.executions = Executions(context, backend, self.sessions)
        self._cluster = Cluster(context, self.sessions)
        self._probing = Probing(backend)
        self._per_tier = requests_per_minute_per_tier
        self._problem: str | None = None
        # Commands may take minutes; they must not use up the threads of short requests.
        self._short = anyio.CapacityLimiter(16)
        self._long = anyio.CapacityLimiter(512)

    def start(self) -> None:
        """Probe the sandbox, clear what an earlier process left.  Never fails for the sandbox."""
        self._require_isolation_quietly()
        self.sessions.start()
        self.executions.start()
        self._cluster.start()
        if self._per_tier != REQUESTS_PER_MINUTE_PER_TIER:
            log.warning("rate_limit_changed", requests_per_minute_per_tier=self._per_tier)

    def stop(self) -> None:
        """End every session; running commands end with them."""
        self.sessions.stop()
        self.executions.stop()

    def routes(self) -> list[Route]:
        """Everything this half answers."""
        return [
            Route("/health", self._health, methods=["GET"]),
            self._route("POST", "/keys/validate", self._validate, any_standing=True),
            self._route("GET", "/api/keys/validate", self._validate, any_standing=True),
            self._route("GET", "/keys/self", self._self),
            self._route("GET", "/cluster", self._show_cluster),
            self._route("GET", "/stats", self._show_stats),
            self._route("GET", "/pools", self._show_pools),
            self._route("GET", "/languages", self._languages),
            self._route("GET", "/shells", self._shells),
            self._route("POST", "/execute", self._execute, long=True),
            self._route("POST", "/execute/async", self._submit),
            self._route("GET", "/jobs", self._jobs),
            self._route("GET", "/jobs/{job_id}", self._job),
            self._route("DELETE", "/jobs/{job_id}", self._cancel),
            self._route("POST", "/jobs/{job_id}/cancel", self._cancel),
            self._route("POST", "/sessions", self._create, long=True),
            self._route("GET", "/sessions", self._list),
            self._route("GET", "/sessions/{session_id}", self._show),
            self._route("DELETE", "/sessions/{session_id}", self._delete),
            self._route("POST", "/sessions/{session_id}/execute", self._command, long=True),
            self._route("POST", "/sessions/{session_id}/shell", self._command, long=True),
        ]

    def _route(
        self,
        method: str,
        path: str,
        handler: Handler,
        *,
        any_standing: bool = False,
        long: bool = False,
    ) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                signed = await self._read(request)
                key = await anyio.to_thread.run_sync(
                    self._enter, signed, any_standing, limiter=self._short
                )
                limiter = self._long if long else self._short
                return await anyio.to_thread.run_sync(
                    lambda: handler(_call(request, signed, key)), limiter=limiter
                )
            except Problem as problem:
                return problem.response()
            except StoreBusy:
                busy = Problem(
                    503,
                    "busy",
                    "the platform's database is busy; nothing was done. Try again.",
                    headers={"Retry-After": "1"},
                )
                return busy.response()

        # HEAD would be signed as HEAD and answered as GET; offer only what is documented.
        route = Route(path, endpoint, methods=[method])
        route.methods = {method}
        return route

    async def _read(self, request: Request) -> auth.SignedRequest:
        scope = request.scope
        return auth.from_headers(
            request.method,
            scope.get("raw_path") or scope["path"].encode(),
            scope["query_string"],
            await read_body(request, BODY_BYTES_MAX),
            scope["headers"],
        )

    def _enter(self, signed: auth.SignedRequest, any_standing: bool) -> keys.KeyRow:
        """Verify, count, and check the standing of the key."""
        now_ms = self.context.clock_ms()
        with self.context.database.reading() as sql:
            key = auth.authenticate(
                signed,
                now_ms=now_ms,
                find=lambda public_key: keys.find(sql, public_key),
                secret_of=lambda public_key: keys.secret(sql, public_key),
            )
        allowed = limits.requests_per_minute(key.tier, self._per_tier)
        with self.context.database.transaction() as sql:
            limits.admit(sql, key.public_key, allowed, now_ms)
        if not any_standing:
            auth.check_standing(key, now_ms)
        return key

    async def _health(self, _request: Request) -> Response:
        body: dict[str, Any] = {
            "status": "ok",
            "sandbox": "unavailable" if self._problem else "available",
        }
        if self._problem:
            body["sandbox_problem"] = self._problem
        if self._per_tier != REQUESTS_PER_MINUTE_PER_TIER:
            body["requests_per_minute_per_tier"] = self._per_tier
        return reply(body)

    def _require_isolation(self) -> None:
        """Refuse with the remedy when the last probe failed; probe again, it may be cured.

        Raises:
            Problem: 503 `sandbox_unavailable`.
        """
        if self._problem is None:
            return
        probe = self.backend.probe()
        if not probe.ok:
            problem = unavailable(probe.reason, probe.fix)
            self._problem = problem.message
            raise problem
        self._problem = None

    def _require_isolation_quietly(self) -> None:
        self._problem = "not probed yet"
        try:
            self._require_isolation()
        except Problem as problem:
            log.error("sandbox_unavailable", problem=problem.message)

    def _validate(self, call: Call) -> Response:
        return reply(self._key_document(call.key))

    def _self(self, call: Call) -> Response:
        return reply(self._key_document(call.key))

    def _key_document(self, key: keys.KeyRow) -> dict[str, Any]:
        now_ms = self.context.clock_ms()
        standing = key.standing(now_ms)
        rate = limits.requests_per_minute(key.tier, self._per_tier)
        document: dict[str, Any] = {
            "valid": standing == "active",
            "public_key": key.public_key,
            "tier": key.tier,
            "status": standing,
            "valid_through_datetime": iso(key.expires_ms),
            "expires_at": iso(key.expires_ms),
            "valid_for_human": _human(key.expires_ms - now_ms),
            "rate_per_minute": rate,
            "rate_limit": rate,
            "burst": rate,
            "concurrency": limits.concurrency(key.tier),
        }
        if standing != "active":
            document["reason"] = standing
        if standing == "expired":
            document |= {
                "expired": True,
                "expired_at_datetime": iso(key.expires_ms),
                "expired_ago": _human(now_ms - key.expires_ms),
            }
        return document

    def _show_cluster(self, _call: Call) -> Response:
        return reply(cluster_document(self._cluster.read(self._problem is None)))

    def _show_stats(self, _call: Call) -> Response:
        return reply(stats_document(self._cluster.read(self._problem is None)))

    def _show_pools(self, _call: Call) -> Response:
        return reply(pools_document(self._cluster.read(self._problem is None)))

    def _languages(self, _call: Call) -> Response:
        self._require_isolation()
        names = self._probing.languages()
        aliases = {alias: name for alias, name in ALIASES.items() if name in names}
        return reply({"languages": names, "aliases": aliases, "count": len(names)})

    def _shells(self, _call: Call) -> Response:
        self._require_isolation()
        here = self._probing.shells()
        categories = {
            "shells": [name for name in SHELLS if name in here],
            "interpreters": [name for name in INTERPRETERS if name in here],
        }
        return reply({"shells": sorted(here), "categories": categories, "count": len(here)})

    def _execute(self, call: Call) -> Response:
        self._require_isolation()
        order = orders.parse_code(call.body, self._probing.language)
        return reply(execution_document(self.executions.run_code(call.caller, order)))

    def _submit(self, call: Call) -> Response:
        self._require_isolation()
        order = orders.parse_code(call.body, self._probing.language)
        shown = execution_document(self.executions.submit_code(call.caller, order))
        started = {"status": "pending", "message": f"poll GET /jobs/{shown['job_id']}"}
        return reply(shown | started if shown["status"] == "running" else shown, 202)

    def _cancel(self, call: Call) -> Response:
        row = self.executions.cancel(call.key.public_key, call.path["job_id"])
        return reply(execution_document(row) | {"message": f"job is {row['state']}"})

    def _jobs(self, call: Call) -> Response:
        jobs = [execution_document(row) for row in self.executions.active(call.key.public_key)]
        return reply({"jobs": jobs, "count": len(jobs)})

    def _job(self, call: Call) -> Response:
        row = self.executions.find(call.key.public_key, call.path["job_id"])
        return reply(execution_document(row))

    def _create(self, call: Call) -> Response:
        self._require_isolation()
        order = orders.parse_session(call.body, self._probing.shells)
        return reply(self._session(self.sessions.create(call.caller, order)))

    def _list(self, call: Call) -> Response:
        rows = self.sessions.live(call.key.public_key)
        return reply({"sessions": [self._session(row) for row in rows], "count": len(rows)})

    def _show(self, call: Call) -> Response:
        row = self.sessions.find(call.key.public_key, call.path["session_id"])
        return reply(self._session(row))

    def _delete(self, call: Call) -> Response:
        row = self.sessions.end(call.key.public_key, call.path["session_id"])
        return reply(self._session(row))

    def _session(self, row: Row) -> dict[str, Any]:
        return session_document(row, self.context.clock_ms())

    def _command(self, call: Call) -> Response:
        order = orders.parse_command(call.body)
        row = self.executions.run_command(call.caller, call.path["session_id"], order)
        shown = execution_document(row)
        return reply(shown | {"output": shown["stdout"]})


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


def _call(request: Request, signed: auth.SignedRequest, key: keys.KeyRow) -> Call:
    digest = hashlib.sha256(b"\n".join((signed.method, signed.path, signed.body)))
    return Call(
        key=key,
        body=parse_object(signed.body),
        path=request.path_params,
        idempotency_key=_idempotency_key(request),
        digest=digest.hexdigest(),
    )


def _idempotency_key(request: Request) -> str | None:
    value = request.headers.get("idempotency-key")
    if value is not None and not _IDEMPOTENCY_KEY.fullmatch(value):
        raise Problem(
            400,
            "invalid_request",
            f"header Idempotency-Key: got {value[:40]!r}, expected 1 to 200 visible ASCII "
            "characters.",
        )
    return value


def _human(milliseconds: int) -> str:
    minutes = max(0, milliseconds) // 60_000
    days, hours = minutes // 1440, minutes % 1440 // 60
    return f"{days} days {hours} hours" if days else f"{hours} hours {minutes % 60} minutes"
