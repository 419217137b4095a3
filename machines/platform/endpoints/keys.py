"""What a key is and may: `/keys/...` (wire facts, section 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from machines.platform import limits
from machines.platform.keys import KeyRow
from machines.platform.replies import iso, reply
from machines.platform.wire import Call, Endpoint, Feature

if TYPE_CHECKING:
    from machines.platform.api import Api


class KeyEndpoints(Feature):
    """Reads keys."""

    def __init__(self, api: Api) -> None:
        self._api = api

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
                any_standing=True,
            ),
            Endpoint(
                method="GET",
                path="/keys/self",
                handler=self._validate,
                summary="The key that signed.",
                tag="keys",
            ),
        )

    def _validate(self, call: Call) -> Response:
        return reply(self._document(call.key))

    def _document(self, key: KeyRow) -> dict[str, Any]:
        now_ms = self._api.context.clock_ms()
        standing = key.standing(now_ms)
        rate = limits.requests_per_minute(key.tier, self._api.requests_per_minute_per_tier)
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


def _human(milliseconds: int) -> str:
    minutes = max(0, milliseconds) // 60_000
    days, hours = minutes // 1440, minutes % 1440 // 60
    return f"{days} days {hours} hours" if days else f"{hours} hours {minutes % 60} minutes"
