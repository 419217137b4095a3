"""What a key is and may: `/keys/...` (wire facts, section 10).

======================  =====================================================================
`/keys/validate`        signed; whatever the key's standing, what it is and may.  A request that
                        is not authentic is 401 like every other, with `valid:false` and a `reason`
`/keys/self`            signed, by a key that may work now
`/keys/am-i-throttled`  names a key and proves nothing: a few numbers, no more
`/keys/stats`           the same
======================  =====================================================================

The unsigned two cost the key none of its requests, so they have a limit of their own, by the
caller's address.  They tell whether a public key exists, as the page that extends it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from machines.platform import auth, keys, limits
from machines.platform.keys import KeyRow
from machines.platform.replies import Problem, iso, reply
from machines.platform.unsigned import BODY_BYTES_MAX, Unsigned, UnsignedRoute, read_body
from machines.platform.wire import (
    BOOLEAN,
    INTEGER,
    TEXT,
    Call,
    Endpoint,
    Feature,
    an_object,
    one_of,
)

if TYPE_CHECKING:
    from machines.platform.api import Api

ASKED_PER_MINUTE_MAX = 60
"""Of one address, for the two calls that are not signed."""
_ADDRESSES_MAX = 10_000

KEY = an_object(
    ("valid", "public_key", "tier", "status", "rate_per_minute", "concurrency"),
    valid=BOOLEAN,
    public_key=TEXT,
    tier=INTEGER,
    status=one_of("active", "expired", "suspended"),
    reason=one_of("expired", "suspended"),
    valid_through_datetime=TEXT,
    expires_at=TEXT,
    expired=BOOLEAN,
    rate_per_minute=INTEGER,
    rate_limit=INTEGER,
    burst=INTEGER,
    concurrency=INTEGER,
)
_THROTTLED = an_object(
    ("requests_last_60s", "active_executions", "throttled"),
    requests_last_60s=INTEGER,
    active_executions=INTEGER,
    throttled=BOOLEAN,
    rate_limit=INTEGER,
    concurrency_limit=INTEGER,
)
_STATS = an_object(
    ("requests_last_60s", "executions", "sessions", "services", "snapshots", "images"),
    requests_last_60s=INTEGER,
    active_executions=INTEGER,
    executions=INTEGER,
    sessions=INTEGER,
    services=INTEGER,
    snapshots=INTEGER,
    images=INTEGER,
)


class KeyEndpoints(Feature):
    """Reads keys."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._asked: dict[str, list[int]] = {}

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What it serves."""
        return (
            Endpoint(
                method="POST",
                path="/keys/validate",
                aliases=(("GET", "/api/keys/validate"),),
                handler=self._validate,
                summary="Whether the key that signed is good, and what it may.",
                tag="keys",
                takes="any",
                answers={200: KEY},
                any_standing=True,
            ),
            Endpoint(
                method="GET",
                path="/keys/self",
                handler=self._validate,
                summary="The key that signed.",
                tag="keys",
                answers={200: KEY},
            ),
        )

    def routes(self) -> tuple[Route, ...]:
        """The two calls that name a key without proof."""
        shared: dict[str, Any] = {
            "method": "POST",
            "tag": "keys",
            "bearer": True,
            "refusals": frozenset({400, 401, 413, 429}),
            "deprecated": True,
        }
        return (
            UnsignedRoute(
                Unsigned(
                    path="/keys/am-i-throttled",
                    handler=self._am_i_throttled,
                    summary="Whether a key's next request would be refused.",
                    answers={200: _THROTTLED},
                    **shared,
                )
            ),
            UnsignedRoute(
                Unsigned(
                    path="/keys/stats",
                    handler=self._stats,
                    summary="How much a key is used.",
                    answers={200: _STATS},
                    **shared,
                )
            ),
        )

    def _validate(self, call: Call) -> Response:
        return reply(self._document(call.key, call.base_url))

    def _document(self, key: KeyRow, base_url: str) -> dict[str, Any]:
        now_ms = self._api.context.clock_ms()
        standing = key.standing(now_ms)
        rate = self._rate(key)
        left = human(key.expires_ms - now_ms)
        document: dict[str, Any] = {
            "valid": standing == "active",
            "public_key": key.public_key,
            "account_id": key.public_key,
            "tier": key.tier,
            "plan": f"tier {key.tier}",
            "status": standing,
            "created_at": iso(key.created_ms),
            "valid_through_datetime": iso(key.expires_ms),
            "expires_at": iso(key.expires_ms),
            "valid_for_human": left,
            "time_remaining": left,
            "expired": now_ms >= key.expires_ms,
            "rate_per_minute": rate,
            "rate_limit": rate,
            "burst": rate,
            "concurrency": limits.concurrency(key.tier),
            "renew_url": f"{base_url}/keys/extend?pk={key.public_key}",
        }
        if standing != "active":
            document |= {"error": standing, "reason": standing}
        if standing == "expired":
            document |= {
                "expired_at_datetime": iso(key.expires_ms),
                "expired_ago": human(now_ms - key.expires_ms),
            }
        return document

    def _rate(self, key: KeyRow) -> int:
        return limits.requests_per_minute(key.tier, self._api.requests_per_minute_per_tier)

    async def _am_i_throttled(self, request: Request) -> Response:
        public_key = await self._named(request)
        return reply(await anyio.to_thread.run_sync(self._throttle_document, public_key))

    async def _stats(self, request: Request) -> Response:
        public_key = await self._named(request)
        return reply(await anyio.to_thread.run_sync(self._stats_document, public_key))

    async def _named(self, request: Request) -> str:
        """The key that the request names."""
        self._be_patient(request.client.host if request.client else "-")
        await read_body(request, BODY_BYTES_MAX)
        headers = request.scope["headers"]
        return auth.from_headers(request.method, b"", b"", b"", headers).public_key

    def _be_patient(self, address: str) -> None:
        """Refuse an address that asks too often.  In memory: a restart forgets, and that is fine.

        Raises:
            Problem: 429.
        """
        now_ms = self._api.context.clock_ms()
        if len(self._asked) >= _ADDRESSES_MAX and address not in self._asked:
            self._asked.clear()
        since = now_ms - limits.WINDOW_MS
        recent = [at_ms for at_ms in self._asked.get(address, ()) if since < at_ms <= now_ms]
        self._asked[address] = recent
        if len(recent) >= ASKED_PER_MINUTE_MAX:
            raise limits.rate_exceeded(recent[0] - since, ASKED_PER_MINUTE_MAX)
        recent.append(now_ms)

    def _throttle_document(self, public_key: str) -> dict[str, Any]:
        with self._api.context.database.reading() as sql:
            key = _find(keys.find(sql, public_key))
            requests = sql.scalar(
                _REQUESTS, key=public_key, since=self._api.context.clock_ms() - limits.WINDOW_MS
            )
            active = limits.slots_in_use(sql, public_key)
        rate, slots = self._rate(key), limits.concurrency(key.tier)
        return {
            "requests_last_60s": requests,
            "active_executions": active,
            "throttled": requests >= rate or active >= slots,
            "rate_limit": rate,
            "concurrency_limit": slots,
        }

    def _stats_document(self, public_key: str) -> dict[str, Any]:
        numbers = self._throttle_document(public_key)
        with self._api.context.database.reading() as sql:
            return numbers | {
                name: sql.scalar(statement, key=public_key) for name, statement in _COUNTS.items()
            }


def human(milliseconds: int) -> str:
    """A span of time for a person, to the hour or the minute."""
    minutes = max(0, milliseconds) // 60_000
    days, hours = minutes // 1440, minutes % 1440 // 60
    return f"{days} days {hours} hours" if days else f"{hours} hours {minutes % 60} minutes"


def _find(key: KeyRow | None) -> KeyRow:
    if key is None:
        raise Problem(
            401, "invalid_key", "unknown public key. Buy or check the key.", fields=_INVALID
        )
    return key


_INVALID = {"valid": False, "reason": "invalid_key"}
_REQUESTS = "SELECT count(*) FROM api_request WHERE public_key = :key AND at_ms > :since"
_COUNTS = {
    "executions": "SELECT count(*) FROM execution WHERE public_key = :key",
    "sessions": "SELECT count(*) FROM session WHERE public_key = :key AND state <> 'terminated'",
    "services": "SELECT count(*) FROM service WHERE public_key = :key AND state <> 'deleted'",
    "snapshots": "SELECT count(*) FROM snapshot WHERE public_key = :key AND status <> 'deleted'",
    "images": "SELECT count(*) FROM image WHERE owner_key = :key AND status <> 'deleted'",
}
