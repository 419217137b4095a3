"""Sessions: a shell or interpreter that lasts (wire facts, section 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from machines.platform import orders
from machines.platform.documents import execution_document, session_document
from machines.platform.replies import reply
from machines.platform.wire import ANY_OBJECT, Call, Endpoint, Feature

if TYPE_CHECKING:
    from machines.platform.api import Api
    from persistence.database import Row


class SessionEndpoints(Feature):
    """`/sessions`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What it serves."""
        return (
            Endpoint(
                method="POST",
                path="/sessions",
                handler=self._create,
                summary="Create a session.",
                tag="sessions",
                body=ANY_OBJECT,
                long=True,
                refusals=frozenset({409}),
                audited="session",
            ),
            Endpoint(
                method="GET",
                path="/sessions",
                handler=self._list,
                summary="The sessions that have not ended.",
                tag="sessions",
            ),
            Endpoint(
                method="GET",
                path="/sessions/{session_id}",
                handler=self._show,
                summary="One session.",
                tag="sessions",
                refusals=frozenset({404}),
            ),
            Endpoint(
                method="DELETE",
                path="/sessions/{session_id}",
                handler=self._delete,
                summary="End a session.",
                tag="sessions",
                refusals=frozenset({404}),
                audited="session",
            ),
            Endpoint(
                method="POST",
                path="/sessions/{session_id}/execute",
                aliases=(("POST", "/sessions/{session_id}/shell"),),
                handler=self._command,
                summary="Run a command in a session.",
                tag="sessions",
                body=ANY_OBJECT,
                long=True,
                refusals=frozenset({404, 409, 410}),
            ),
        )

    def _create(self, call: Call) -> Response:
        self._api.require_isolation()
        order = orders.parse_session(call.body, self._api.probing.shells)
        return reply(self._session(self._api.sessions.create(call.caller, order)))

    def _list(self, call: Call) -> Response:
        rows = self._api.sessions.live(call.key.public_key)
        return reply({"sessions": [self._session(row) for row in rows], "count": len(rows)})

    def _show(self, call: Call) -> Response:
        row = self._api.sessions.find(call.key.public_key, call.path["session_id"])
        return reply(self._session(row))

    def _delete(self, call: Call) -> Response:
        row = self._api.sessions.end(call.key.public_key, call.path["session_id"])
        return reply(self._session(row))

    def _session(self, row: Row) -> dict[str, Any]:
        return session_document(row, self._api.context.clock_ms())

    def _command(self, call: Call) -> Response:
        order = orders.parse_command(call.body)
        row = self._api.executions.run_command(call.caller, call.path["session_id"], order)
        shown = execution_document(row)
        return reply(shown | {"output": shown["stdout"]})
