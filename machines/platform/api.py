"""The API's routes: from a signed request to a compact JSON answer.

Every signed request goes the same way::

    read the body (bounded) -> verify signature -> count it -> standing -> parse -> handle

A request that is not authentic costs the key nothing; an authentic one counts even when it is
refused afterwards.  Endpoints that `count` do so in the transaction that takes the order, or after
a refusal (see limits.py): one commit less.  All of it is one visit to a thread: handlers are plain
functions, the database and the backend are synchronous, and a command that takes minutes holds up
nobody.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.to_thread
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from engine.errors import StoreBusy
from machines.platform import auth, keys, limits
from machines.platform.audit import AuditLog
from machines.platform.context import PlatformContext
from machines.platform.endpoints.cluster import ClusterEndpoints
from machines.platform.endpoints.executions import ExecutionEndpoints
from machines.platform.endpoints.images import ImageEndpoints
from machines.platform.endpoints.keys import KeyEndpoints
from machines.platform.endpoints.logs import LogEndpoints
from machines.platform.endpoints.services import ServiceEndpoints
from machines.platform.endpoints.sessions import SessionEndpoints
from machines.platform.endpoints.snapshots import SnapshotEndpoints
from machines.platform.execution import Executions
from machines.platform.images import Images
from machines.platform.languages import Probing
from machines.platform.refusals import unavailable
from machines.platform.replies import Problem, parse_object, reply
from machines.platform.sandbox.backend import Backend, Enforcement
from machines.platform.services import Services
from machines.platform.sessions import Sessions
from machines.platform.snapshots import Snapshots
from machines.platform.sources import Sources
from machines.platform.unsigned import busy, read_body
from machines.platform.wire import Call, Endpoint, Feature

BODY_BYTES_MAX = 16 * 1024 * 1024
LARGE_BODY_BYTES = 64 * 1024
REQUESTS_PER_MINUTE_PER_TIER = 7
LONG_REQUESTS_MAX = 64
"""Requests that may take minutes, of one key at once: they share threads with those of others."""
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,200}")

log = structlog.get_logger("turtles.platform.api")


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
        self.services = Services(context, backend, self.sessions)
        sources = Sources(context, backend, self.sessions, self.services)
        self.snapshots = Snapshots(context, backend, sources)
        self.images = Images(context, backend, sources, self.snapshots)
        self.services.refill = self.images.refill
        self.audit = AuditLog(context)
        self.probing = Probing(backend)
        self.requests_per_minute_per_tier = requests_per_minute_per_tier
        self._problem: str | None = None
        self._enforcement: Enforcement = "none"
        # Commands may take minutes; they must not use up the threads of short requests.
        self._short = anyio.CapacityLimiter(16)
        self._long = anyio.CapacityLimiter(512)
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.features: tuple[Feature, ...] = (
            KeyEndpoints(self),
            ClusterEndpoints(self),
            LogEndpoints(self),
            ExecutionEndpoints(self),
            SessionEndpoints(self),
            ServiceEndpoints(self),
            SnapshotEndpoints(self),
            ImageEndpoints(self),
        )

    def start(self) -> None:
        """Probe the sandbox, clear what an earlier process left.  Never fails for the sandbox."""
        self._require_isolation_quietly()
        self.sessions.start()
        self.executions.start()
        for feature in self.features:
            feature.start()
        if self.requests_per_minute_per_tier != REQUESTS_PER_MINUTE_PER_TIER:
            log.warning(
                "rate_limit_changed", requests_per_minute_per_tier=self.requests_per_minute_per_tier
            )

    def stop(self) -> None:
        """End every session; running commands end with them."""
        for feature in self.features:
            feature.stop()
        self.sessions.stop()
        self.executions.stop()

    def tick(self) -> None:
        """About a second has passed: end what is over."""
        self.sessions.expire_due()
        for feature in self.features:
            feature.tick()

    @property
    def can_isolate(self) -> bool:
        """Whether the last probe of the sandbox was good."""
        return self._problem is None

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Every signed endpoint."""
        return tuple(one for feature in self.features for one in feature.endpoints())

    def routes(self) -> list[BaseRoute]:
        """Everything this half answers."""
        routes: list[BaseRoute] = [Route("/health", self._health, methods=["GET"])]
        for endpoint in self.endpoints():
            routes += [self._route(endpoint, method, path) for method, path in endpoint.routes]
        for feature in self.features:
            routes += feature.routes()
        return routes

    def _route(self, endpoint: Endpoint, method: str, path: str) -> Route:
        limiter = self._long if endpoint.long else self._short

        async def serve(request: Request) -> Response:
            try:
                signed = await self._read(request)
                return await anyio.to_thread.run_sync(
                    self._answer, endpoint, request, signed, limiter=limiter
                )
            except Problem as problem:
                return problem.response()
            except StoreBusy:
                return busy().response()

        # HEAD would be signed as HEAD and answered as GET; offer only what is documented.
        route = Route(path, serve, methods=[method])
        route.methods = {method}
        return route

    def _answer(self, endpoint: Endpoint, request: Request, signed: auth.SignedRequest) -> Response:
        now_ms = self.context.clock_ms()
        key, admission = self._recognise(signed, now_ms)
        # A large body is dear to read, so it is counted before.
        if not endpoint.counts or len(signed.body) > LARGE_BODY_BYTES:
            admission.count()
        try:
            if not endpoint.any_standing:
                auth.check_standing(key, now_ms)
            call = _call(endpoint, request, signed, key, admission)
            with self._share(endpoint, key.public_key):
                if endpoint.audited is None:
                    return endpoint.handler(call)
                return self.audit.answer(endpoint, call)
        finally:
            # Too many requests comes before whatever else is wrong with one.
            admission.count()

    @contextmanager
    def _share(self, endpoint: Endpoint, public_key: str) -> Iterator[None]:
        """One of the threads of long requests, of which a key may have so many.

        Raises:
            Problem: 429.
        """
        if not endpoint.long:
            yield
            return
        with self._lock:
            if self._open[public_key] >= LONG_REQUESTS_MAX:
                raise _too_many_open()
            self._open[public_key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[public_key] -= 1
                self._open += Counter()  # drops what is at zero

    async def _read(self, request: Request) -> auth.SignedRequest:
        scope = request.scope
        return auth.from_headers(
            request.method,
            scope.get("raw_path") or scope["path"].encode(),
            scope["query_string"],
            await read_body(request, BODY_BYTES_MAX),
            scope["headers"],
        )

    def enter(self, signed: auth.SignedRequest, any_standing: bool) -> keys.KeyRow:
        """Verify, count, and check the standing of the key."""
        now_ms = self.context.clock_ms()
        key, admission = self._recognise(signed, now_ms)
        admission.count()
        if not any_standing:
            auth.check_standing(key, now_ms)
        return key

    def _recognise(
        self, signed: auth.SignedRequest, now_ms: int
    ) -> tuple[keys.KeyRow, limits.Admission]:
        """Whose request it is, and what counts it."""
        with self.context.database.reading() as sql:
            key = auth.authenticate(
                signed,
                now_ms=now_ms,
                find=lambda public_key: keys.find(sql, public_key),
                secret_of=lambda public_key: keys.secret(sql, public_key),
            )
        allowed = limits.requests_per_minute(key.tier, self.requests_per_minute_per_tier)
        return key, limits.Admission(self.context.database, key.public_key, allowed, now_ms)

    async def _health(self, _request: Request) -> Response:
        body: dict[str, Any] = {
            "status": "ok",
            "sandbox": "unavailable" if self._problem else "available",
        }
        if self._problem:
            body["sandbox_problem"] = self._problem
        else:
            body["enforcement"] = self._enforcement
        if self.requests_per_minute_per_tier != REQUESTS_PER_MINUTE_PER_TIER:
            body["requests_per_minute_per_tier"] = self.requests_per_minute_per_tier
        return reply(body)

    def require_isolation(self) -> None:
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
        self._problem, self._enforcement = None, probe.enforcement

    def _require_isolation_quietly(self) -> None:
        self._problem = "not probed yet"
        try:
            self.require_isolation()
        except Problem as problem:
            log.error("sandbox_unavailable", problem=problem.message)


def _call(
    endpoint: Endpoint,
    request: Request,
    signed: auth.SignedRequest,
    key: keys.KeyRow,
    admission: limits.Admission,
) -> Call:
    # Without a query as it always was: stored digests must go on to match.
    target = signed.path + (b"?" + signed.query if signed.query else b"")
    digest = hashlib.sha256(b"\n".join((signed.method, target, signed.body)))
    return Call(
        key=key,
        body=parse_object(signed.body) if endpoint.takes == "json" else {},
        path=request.path_params,
        idempotency_key=_idempotency_key(request),
        digest=digest.hexdigest(),
        raw=signed.body,
        query=dict(request.query_params),
        content_type=request.headers.get("content-type", ""),
        client=request.client.host if request.client else "",
        base_url=str(request.base_url).rstrip("/"),
        admission=admission,
    )


def _too_many_open() -> Problem:
    return Problem(
        429,
        "concurrency_limit_reached",
        f"{LONG_REQUESTS_MAX} requests of this key are under way that may take minutes. "
        "Wait for one, or use the asynchronous form and poll.",
        headers={"Retry-After": str(limits.CONCURRENCY_RETRY_SECONDS)},
        fields={"active_executions": LONG_REQUESTS_MAX, "concurrency_limit": LONG_REQUESTS_MAX},
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
