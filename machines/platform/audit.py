"""The audit log: who changed which resource, from where, and whether it worked.

One row for each request to an endpoint that is marked `audited`, written after its answer is
known.  Rows hold ids, never bodies: a body may hold a secret.  (Wire facts, section 11.)

The resource is the one in the path; of what was just created, the one in the answer.
"""

from __future__ import annotations

from typing import Any

import msgspec
import structlog
from starlette.responses import Response

from engine.errors import StoreError
from machines.platform.context import PlatformContext
from machines.platform.replies import Problem, iso
from machines.platform.wire import Call, Endpoint
from persistence.database import Row

KEPT_MS = 90 * 86_400_000
_ID_CHARACTERS = 200

log = structlog.get_logger("turtles.platform.audit")


class AuditLog:
    """Writes and reads entries."""

    def __init__(self, context: PlatformContext) -> None:
        self._context = context

    def answer(self, endpoint: Endpoint, call: Call) -> Response:
        """The endpoint's answer, once it is noted how the request ended."""
        status, resource_id = 500, None
        try:
            response = endpoint.handler(call)
            status, resource_id = response.status_code, _created(endpoint, response)
        except Problem as problem:
            status = problem.status
            raise
        finally:
            self._note(endpoint, call, status, resource_id)
        return response

    def _note(self, endpoint: Endpoint, call: Call, status: int, resource_id: str | None) -> None:
        named = next((str(value)[:_ID_CHARACTERS] for value in call.path.values()), None)
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
                    id=named if named is not None else resource_id,
                    result="success" if status < 400 else "failure",
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


def entry_document(row: Row) -> dict[str, Any]:
    """An entry as the API shows it."""
    return {
        "action": row["action"],
        "client_ip": row["client_ip"],
        "metadata": {"status": row["status"]},
        "resource_id": row["resource_id"],
        "resource_type": row["resource_type"],
        "result": row["result"],
        "timestamp": iso(row["at_ms"]),
    }


def _created(endpoint: Endpoint, response: Response) -> str | None:
    """The id in an answer; None when it has none."""
    try:
        body = msgspec.json.decode(response.body)
    except (AttributeError, msgspec.DecodeError):
        return None  # a stream, or no JSON
    if not isinstance(body, dict):
        return None
    found = body.get(f"{endpoint.audited}_id", body.get("id"))
    return found if isinstance(found, str) else None
