"""The audit log: who changed which resource, from where, and whether it worked.

One row for each request to an endpoint that is marked `audited`, written after its answer is
known.  Rows hold ids, never bodies: a body may hold a secret.  (Wire facts, section 11.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from engine.errors import StoreError
from machines.platform.context import PlatformContext
from machines.platform.replies import Problem
from machines.platform.wire import Call, Endpoint
from persistence.database import Row

KEPT_MS = 90 * 86_400_000

log = structlog.get_logger("turtles.platform.audit")


class AuditLog:
    """Writes and reads entries."""

    def __init__(self, context: PlatformContext) -> None:
        self._context = context

    @contextmanager
    def noting(self, endpoint: Endpoint, call: Call) -> Iterator[None]:
        """Note how the request inside ends."""
        result = "failure"
        status = 500
        try:
            yield
            result, status = "success", 200
        except Problem as problem:
            status = problem.status
            raise
        finally:
            self._note(endpoint, call, result, status)

    def _note(self, endpoint: Endpoint, call: Call, result: str, status: int) -> None:
        resource_id = next(iter(call.path.values()), None)
        try:
            with self._context.database.transaction() as sql:
                sql.run(
                    "INSERT INTO audit_entry (public_key, at_ms, action, client_ip, "
                    "resource_type, resource_id, result, status) VALUES "
                    "(:key, :now, :action, :client, :kind, :id, :result, :status)",
                    key=call.public_key,
                    now=self._context.clock_ms(),
                    action=f"{endpoint.method} {endpoint.path}",
                    client=call.client,
                    kind=endpoint.audited,
                    id=resource_id,
                    result=result,
                    status=status,
                )
        except StoreError as error:
            # The answer stands: what it tells of is done.
            log.error("audit_failed", action=endpoint.path, error=str(error))

    def read(self, public_key: str, limit: int) -> list[Row]:
        """The newest entries of a key, newest first."""
        with self._context.database.reading() as sql:
            return sql.all(
                "SELECT * FROM audit_entry WHERE public_key = :key "
                "ORDER BY number DESC LIMIT :limit",
                key=public_key,
                limit=limit,
            )

    def forget_old(self) -> None:
        """Remove entries older than ninety days."""
        with self._context.database.transaction() as sql:
            sql.run(
                "DELETE FROM audit_entry WHERE at_ms < :old",
                old=self._context.clock_ms() - KEPT_MS,
            )
