"""What happens to services as time goes by: sandboxes that died unasked, keys that ended.

The owner of a key that has expired can ask for nothing any more, so their services are frozen, not
deleted, and go on by themselves when the key is extended and has slots for them (wire facts,
section 6.5).  Two queries every few seconds, whatever the number of services.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from engine.errors import StoreError
from machines.platform.context import PlatformContext
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Backend, Handle
from machines.platform.sandbox.errors import SandboxError, SandboxGone
from machines.platform.services import Services
from persistence.database import Row

LOOK_EVERY_MS = 5_000

log = structlog.get_logger("turtles.platform.services")


class ServiceUpkeep:
    """Looks after the services of every key."""

    def __init__(self, context: PlatformContext, backend: Backend, services: Services) -> None:
        self._context = context
        self._backend = backend
        self._services = services
        self._looked_ms = 0

    def tick(self) -> None:
        """Look, unless that was done a moment ago."""
        now_ms = self._context.clock_ms()
        if 0 <= now_ms - self._looked_ms < LOOK_EVERY_MS:
            return
        self._looked_ms = now_ms
        self.reap()
        self.follow_keys()

    def reap(self) -> int:
        """Find the services whose sandbox died unasked, or whose deployment was lost; how many."""
        with self._context.database.reading() as sql:
            rows = sql.all(_LIVING)
        return sum(self._reap(row["service_id"], row["state"]) for row in rows)

    def _reap(self, service_id: str, state: str) -> bool:
        if state in ("starting", "redeploying"):
            return self._services.fail_forgotten(service_id)
        if self._lives(Handle(service_id)):
            return False
        self._services.died(service_id)
        return True

    def _lives(self, handle: Handle) -> bool:
        try:
            stats = self._backend.stats(handle)
        except SandboxGone:
            return False
        # Enforcement "none" is a backend that runs nothing and has no processes to count.
        return stats.enforcement == "none" or stats.processes > 0

    def follow_keys(self) -> None:
        """Freeze what belongs to keys that are not good; let go on what belongs to good ones."""
        now_ms = self._context.clock_ms()
        with self._context.database.reading() as sql:
            ended = sql.all(_ENDED, now=now_ms)
            good = sql.all(_GOOD_AGAIN, now=now_ms)
        for row in ended:
            self._attempt(self._freeze, row)
        for row in good:
            self._attempt(self._thaw, row)

    def _freeze(self, row: Row) -> None:
        self._services.freeze_for(row["service_id"], row["reason"])

    def _thaw(self, row: Row) -> None:
        self._services.thaw(row["service_id"])

    def _attempt(self, action: Callable[[Row], None], row: Row) -> None:
        try:
            action(row)
        except (Problem, SandboxError, StoreError) as error:
            # Tried again at the next look: a slot may be free then.
            log.info("service_waits", service_id=row["service_id"], error=str(error))


_LIVING = """
    SELECT service_id, state FROM service
    WHERE state IN ('starting', 'running', 'redeploying', 'frozen')
"""
_ENDED = """
    SELECT service_id, CASE WHEN status = 'active' THEN 'key_expired' ELSE 'key_suspended' END
        AS reason
    FROM service JOIN api_key USING (public_key)
    WHERE state = 'running' AND (status <> 'active' OR expires_ms <= :now)
"""
_GOOD_AGAIN = """
    SELECT service_id FROM service JOIN api_key USING (public_key)
    WHERE state = 'frozen' AND reason IN ('key_expired', 'key_suspended')
        AND status = 'active' AND expires_ms > :now
    ORDER BY last_active_ms DESC
"""
