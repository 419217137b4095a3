"""Running code, and the jobs that this makes (wire facts, sections 2 to 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from machines.platform import orders
from machines.platform.documents import execution_document
from machines.platform.languages import ALIASES, INTERPRETERS, SHELLS
from machines.platform.replies import bad_field, reply
from machines.platform.wire import (
    BOOLEAN,
    INTEGER,
    TEXT,
    Call,
    Endpoint,
    Feature,
    Schema,
    an_object,
    array,
    integer,
    one_of,
)

if TYPE_CHECKING:
    from machines.platform.api import Api
    from persistence.database import Row

WAIT_SECONDS_MAX = 960
_NETWORK_MODE = one_of("zerotrust", "semitrusted")
_TTL = integer(1, orders.CODE_TTL_SECONDS_MAX)
_ENVIRONMENT: Schema = {
    "type": "object",
    "additionalProperties": TEXT,
    "maxProperties": orders.ENVIRONMENT_MAX,
}
_ARTIFACT = an_object(
    ("type", "filename", "data", "content_base64", "size"),
    type=one_of("base64"),
    filename=TEXT,
    data=TEXT,
    content_base64=TEXT,
    size=INTEGER,
)
_ORDER = an_object(
    ("language", "code"),
    language={"type": "string", "minLength": 1, "maxLength": 40},
    code={"type": "string", "minLength": 1},
    env=_ENVIRONMENT,
    network_mode=_NETWORK_MODE,
    ttl=_TTL,
    vcpu=integer(1, orders.VCPUS_MAX),
    input_files=array(
        an_object(
            ("filename",),
            filename={"type": "string", "minLength": 1, "maxLength": 255},
            content={"type": "string", "contentEncoding": "base64"},
            content_base64={"type": "string", "contentEncoding": "base64"},
        )
    ),
    return_artifact=BOOLEAN,
    return_wasm_artifact=BOOLEAN,
    stdin=TEXT,
    args=array(TEXT),
)
_JOB = an_object(
    ("job_id", "status", "language", "network_mode", "created_at"),
    id=TEXT,
    job_id=TEXT,
    status=one_of("pending", "running", "completed", "failed", "timeout", "cancelled"),
    state=TEXT,
    language=TEXT,
    detected_language=TEXT,
    network_mode=_NETWORK_MODE,
    vcpu=INTEGER,
    success=BOOLEAN,
    stdout=TEXT,
    stderr=TEXT,
    output=TEXT,
    exit_code=INTEGER,
    total_time_ms=INTEGER,
    execution_time_ms=INTEGER,
    execution_time=INTEGER,
    duration_ms=INTEGER,
    runtime_ms=INTEGER,
    execution_mode=TEXT,
    truncated=BOOLEAN,
    timed_out=BOOLEAN,
    error=TEXT,
    message=TEXT,
    artifacts=array(_ARTIFACT),
    artifacts_omitted=INTEGER,
    artifact=_ARTIFACT,
    wasm_artifact=_ARTIFACT,
    session_id=TEXT,
    service_id=TEXT,
    created_at=TEXT,
    started_at=TEXT,
    completed_at=TEXT,
)
_RUN_QUERY = {
    "network_mode": _NETWORK_MODE,
    "ttl": _TTL,
    "env": {"type": "string", "description": "a JSON object of strings"},
}
_LANGUAGES = an_object(
    ("languages", "aliases", "count"),
    languages=array(TEXT),
    aliases={"type": "object", "additionalProperties": TEXT},
    count=INTEGER,
)
_SHELLS = an_object(
    ("shells", "categories", "count"),
    shells=array(TEXT),
    categories={"type": "object", "additionalProperties": array(TEXT)},
    count=INTEGER,
)


class ExecutionEndpoints(Feature):
    """`/execute`, `/run`, `/jobs`, `/languages`, `/shells`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def tick(self) -> None:
        """Write off and forget executions, now and then."""
        self._api.executions.tick()

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What it serves."""
        return (*self._running_code(), *self._asking_for_jobs(), *self._what_runs_here())

    def _running_code(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(
                method="POST",
                path="/execute",
                handler=self._execute,
                summary="Run code and wait for its end.",
                tag="executions",
                body=_ORDER,
                answers={200: _JOB},
                refusals=frozenset({409}),
                counts=True,
                long=True,
            ),
            Endpoint(
                method="POST",
                path="/execute/async",
                handler=self._submit,
                summary="Run code in the background.",
                tag="executions",
                body=_ORDER,
                answers={202: _JOB},
                refusals=frozenset({409}),
                counts=True,
            ),
            Endpoint(
                method="POST",
                path="/run",
                handler=self._run,
                summary="Run the source in the body, whatever language it is, and wait.",
                tag="executions",
                body=TEXT,
                takes="text",
                query=_RUN_QUERY,
                answers={200: _JOB},
                refusals=frozenset({409}),
                counts=True,
                long=True,
            ),
            Endpoint(
                method="POST",
                path="/run/async",
                handler=self._submit_source,
                summary="Run the source in the body in the background.",
                tag="executions",
                body=TEXT,
                takes="text",
                query=_RUN_QUERY,
                answers={202: _JOB},
                refusals=frozenset({409}),
                counts=True,
            ),
        )

    def _asking_for_jobs(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(
                method="GET",
                path="/jobs",
                handler=self._jobs,
                summary="The jobs that have not ended.",
                tag="jobs",
                answers={200: an_object(("jobs", "count"), jobs=array(_JOB), count=INTEGER)},
            ),
            Endpoint(
                method="GET",
                path="/jobs/{job_id}",
                handler=self._job,
                summary="One job.",
                tag="jobs",
                answers={200: _JOB},
                refusals=frozenset({404}),
            ),
            Endpoint(
                method="GET",
                path="/jobs/{job_id}/wait",
                handler=self._wait,
                summary="One job, when it has ended or the time is over.",
                tag="jobs",
                query={"timeout": integer(0, WAIT_SECONDS_MAX)},
                answers={200: _JOB},
                refusals=frozenset({404}),
                long=True,
            ),
            Endpoint(
                method="DELETE",
                path="/jobs/{job_id}",
                aliases=(("POST", "/jobs/{job_id}/cancel"),),
                handler=self._cancel,
                summary="End a job.",
                tag="jobs",
                answers={200: _JOB},
                refusals=frozenset({404, 409}),
                long=True,
            ),
        )

    def _what_runs_here(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint(
                method="GET",
                path="/languages",
                handler=self._languages,
                summary="The languages that run here.",
                tag="executions",
                answers={200: _LANGUAGES},
            ),
            Endpoint(
                method="GET",
                path="/shells",
                handler=self._shells,
                summary="The shells and interpreters a session may have.",
                tag="executions",
                answers={200: _SHELLS},
            ),
        )

    # -- running code --------------------------------------------------------------------------

    def _execute(self, call: Call) -> Response:
        return reply(execution_document(self._ran(call, self._order(call))))

    def _run(self, call: Call) -> Response:
        return reply(execution_document(self._ran(call, self._source(call))))

    def _submit(self, call: Call) -> Response:
        return self._submitted(call, self._order(call))

    def _submit_source(self, call: Call) -> Response:
        return self._submitted(call, self._source(call))

    def _order(self, call: Call) -> orders.CodeOrder:
        self._api.require_isolation()
        order = orders.parse_code(call.body, self._api.probing.language)
        if order.returns_wasm:
            self._api.probing.require_wasm(order.language)
        return order

    def _source(self, call: Call) -> orders.CodeOrder:
        self._api.require_isolation()
        return orders.parse_source(call.raw, call.query, self._api.probing.language)

    def _ran(self, call: Call, order: orders.CodeOrder) -> Row:
        return self._api.executions.run_code(call.caller, order)

    def _submitted(self, call: Call, order: orders.CodeOrder) -> Response:
        shown = execution_document(self._api.executions.submit_code(call.caller, order))
        if shown["status"] in ("pending", "running"):
            # The job may have begun by now; who asked is told what was true when it was taken.
            shown |= {"status": "pending", "state": "pending"}
        return reply(shown | {"message": f"poll GET /jobs/{shown['job_id']}"}, 202)

    # -- jobs ----------------------------------------------------------------------------------

    def _jobs(self, call: Call) -> Response:
        jobs = [execution_document(row) for row in self._api.executions.active(call.public_key)]
        return reply({"jobs": jobs, "count": len(jobs)})

    def _job(self, call: Call) -> Response:
        row = self._api.executions.find(call.public_key, call.path["job_id"])
        return reply(execution_document(row))

    def _wait(self, call: Call) -> Response:
        timeout_seconds = _seconds(call.query.get("timeout"))
        row = self._api.executions.wait(call.public_key, call.path["job_id"], timeout_seconds)
        return reply(execution_document(row))

    def _cancel(self, call: Call) -> Response:
        row = self._api.executions.cancel(call.public_key, call.path["job_id"])
        shown = execution_document(row)
        return reply(shown | {"message": f"job is {shown['status']}"})

    # -- what runs here ------------------------------------------------------------------------

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


def _seconds(text: str | None) -> float:
    if text is None:
        return WAIT_SECONDS_MAX
    good = len(text) < 10 and text.isascii() and text.isdecimal() and int(text) <= WAIT_SECONDS_MAX
    if not good:
        raise bad_field("timeout", text, f"whole seconds from 0 to {WAIT_SECONDS_MAX}")
    return float(text)
