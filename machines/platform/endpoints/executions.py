"""Running code, and the jobs that this makes (wire facts, sections 2 to 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from machines.platform import orders
from machines.platform.documents import execution_document
from machines.platform.languages import ALIASES, INTERPRETERS, SHELLS
from machines.platform.replies import reply
from machines.platform.wire import ANY_OBJECT, Call, Endpoint, Feature

if TYPE_CHECKING:
    from machines.platform.api import Api


class ExecutionEndpoints(Feature):
    """`/execute`, `/run`, `/jobs`, `/languages`, `/shells`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What it serves."""
        return (
            Endpoint(
                method="GET",
                path="/languages",
                handler=self._languages,
                summary="The languages that run here.",
                tag="executions",
            ),
            Endpoint(
                method="GET",
                path="/shells",
                handler=self._shells,
                summary="The shells and interpreters a session may have.",
                tag="executions",
            ),
            Endpoint(
                method="POST",
                path="/execute",
                handler=self._execute,
                summary="Run code and wait for its end.",
                tag="executions",
                body=ANY_OBJECT,
                long=True,
            ),
            Endpoint(
                method="POST",
                path="/execute/async",
                handler=self._submit,
                summary="Run code in the background.",
                tag="executions",
                body=ANY_OBJECT,
                answers={202: ANY_OBJECT},
            ),
            Endpoint(
                method="GET",
                path="/jobs",
                handler=self._jobs,
                summary="The jobs that have not ended.",
                tag="jobs",
            ),
            Endpoint(
                method="GET",
                path="/jobs/{job_id}",
                handler=self._job,
                summary="One job.",
                tag="jobs",
                refusals=frozenset({404}),
            ),
            Endpoint(
                method="DELETE",
                path="/jobs/{job_id}",
                aliases=(("POST", "/jobs/{job_id}/cancel"),),
                handler=self._cancel,
                summary="End a job.",
                tag="jobs",
                refusals=frozenset({404, 409}),
            ),
        )

    def _languages(self, _call: Call) -> Response:
        self._api.require_isolation()
        names = self._api.probing.languages()
        aliases = {alias: name for alias, name in ALIASES.items() if name in names}
        return reply({"languages": names, "aliases": aliases, "count": len(names)})

    def _shells(self, _call: Call) -> Response:
        self._api.require_isolation()
        here = self._api.probing.shells()
        categories = {
            "shells": [name for name in SHELLS if name in here],
            "interpreters": [name for name in INTERPRETERS if name in here],
        }
        return reply({"shells": sorted(here), "categories": categories, "count": len(here)})

    def _execute(self, call: Call) -> Response:
        self._api.require_isolation()
        order = orders.parse_code(call.body, self._api.probing.language)
        return reply(execution_document(self._api.executions.run_code(call.caller, order)))

    def _submit(self, call: Call) -> Response:
        self._api.require_isolation()
        order = orders.parse_code(call.body, self._api.probing.language)
        shown = execution_document(self._api.executions.submit_code(call.caller, order))
        started = {"status": "pending", "message": f"poll GET /jobs/{shown['job_id']}"}
        return reply(shown | started if shown["status"] == "running" else shown, 202)

    def _cancel(self, call: Call) -> Response:
        row = self._api.executions.cancel(call.key.public_key, call.path["job_id"])
        return reply(execution_document(row) | {"message": f"job is {row['state']}"})

    def _jobs(self, call: Call) -> Response:
        jobs = [execution_document(row) for row in self._api.executions.active(call.key.public_key)]
        return reply({"jobs": jobs, "count": len(jobs)})

    def _job(self, call: Call) -> Response:
        row = self._api.executions.find(call.key.public_key, call.path["job_id"])
        return reply(execution_document(row))
