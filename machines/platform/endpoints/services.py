"""Services: programs that answer on ports, and go on (wire facts, section 6).

Every path takes a service's id or its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from machines.platform import service_orders
from machines.platform.documents import execution_document
from machines.platform.endpoints.service_vault import VaultEndpoints
from machines.platform.orders import COMMAND_TIMEOUT_MS_MAX, VCPUS_MAX
from machines.platform.replies import bad_field, reply
from machines.platform.sandbox.backend import Command
from machines.platform.service_documents import (
    SERVICE_SCHEMA,
    STATE_SCHEMA,
    service_document,
    state_document,
)
from machines.platform.service_rows import domains_of
from machines.platform.service_upkeep import ServiceUpkeep
from machines.platform.wire import (
    BOOLEAN,
    INTEGER,
    TEXT,
    Call,
    Endpoint,
    Feature,
    Handler,
    Schema,
    an_object,
    array,
    integer,
    one_of,
)

if TYPE_CHECKING:
    from machines.platform.api import Api
    from persistence.database import Row

LOG_LINES_DEFAULT = 9_000
LOG_LINES_MAX = 10_000
# One client gives up after two minutes.
WAIT_MS_MAX = 100_000
_ONE = "/services/{service_id}"
_PORTS = array(integer(1, 65_535))
_LOCKED = an_object(("locked",), locked=BOOLEAN)
_NAME: Schema = {"type": "string", "pattern": f"^{service_orders.NAME_PATTERN}$"}
_CREATE = an_object(
    ("name",),
    name=_NAME,
    ports=_PORTS,
    bootstrap=TEXT,
    bootstrap_content=TEXT,
    network_mode=one_of("zerotrust", "semitrusted"),
    custom_domains=array(TEXT),
    vcpu=integer(1, VCPUS_MAX),
    service_type=service_orders.SERVICE_TYPE_SCHEMA,
    unfreeze_on_demand=BOOLEAN,
    input_files=service_orders.FILES_SCHEMA,
)
_CHANGE: Schema = {
    "minProperties": 1,
    **an_object(
        name=_NAME,
        ports=_PORTS,
        domains=array(TEXT),
        custom_domains=array(TEXT),
        vcpu=integer(1, VCPUS_MAX),
        unfreeze_on_demand=BOOLEAN,
        show_freeze_page=BOOLEAN,
    ),
}
_REDEPLOY = an_object(
    bootstrap=TEXT, bootstrap_content=TEXT, input_files=service_orders.FILES_SCHEMA
)
_COMMAND = an_object(
    ("command",),
    command=TEXT,
    timeout=integer(1, COMMAND_TIMEOUT_MS_MAX),
    input_files=service_orders.FILES_SCHEMA,
)
_JOB = an_object(
    ("job_id", "status"),
    job_id=TEXT,
    status=TEXT,
    stdout=TEXT,
    stderr=TEXT,
    exit_code=INTEGER,
)
_DOMAINS = an_object(custom_domains=array(TEXT), add=array(TEXT), remove=array(TEXT))


class ServiceEndpoints(Feature):
    """`/services`, without snapshots, execution and vaults."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._services = api.services
        self._upkeep = ServiceUpkeep(api.context, api.backend, api.services)
        self._vaults = VaultEndpoints(api)

    def start(self) -> None:
        """What an earlier process left is stopped."""
        self._services.start()

    def tick(self) -> None:
        """Sandboxes that died, keys that ended."""
        self._upkeep.tick()

    def stop(self) -> None:
        """Every service ends."""
        self._services.stop()

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What it serves."""
        return (
            Endpoint(
                method="POST",
                path="/services",
                handler=self._create,
                summary="Create a service. It answers `starting` while a bootstrap goes on.",
                tag="services",
                body=_CREATE,
                answers={200: SERVICE_SCHEMA},
                refusals=frozenset({409}),
                long=True,
                audited="service",
            ),
            Endpoint(
                method="GET",
                path="/services",
                handler=self._list,
                summary="The services that are not deleted.",
                tag="services",
                answers={
                    200: an_object(
                        ("services", "count"), services=array(SERVICE_SCHEMA), count=INTEGER
                    )
                },
            ),
            self._of_one("GET", "", self._show, "One service.", audited=False),
            self._of_one(
                "PATCH",
                "",
                self._change,
                "Change a service; more vCPUs take more slots.",
                body=_CHANGE,
                refusals={404, 409},
            ),
            self._of_one(
                "POST",
                "/resize",
                self._resize,
                "Change the vCPUs of a service.",
                body=an_object(("vcpu",), vcpu=integer(1, VCPUS_MAX)),
                refusals={404, 409},
            ),
            self._of_one(
                "DELETE",
                "",
                self._delete,
                "Delete a service.",
                answer=STATE_SCHEMA,
                refusals={404, 409},
            ),
            self._of_one(
                "POST",
                "/freeze",
                self._freeze,
                "Stop its processes and give its slots back.",
                answer=STATE_SCHEMA,
                refusals={404, 409},
            ),
            self._of_one(
                "POST",
                "/unfreeze",
                self._unfreeze,
                "Let its processes go on.",
                answer=STATE_SCHEMA,
                refusals={404, 409},
                aliases=(("POST", f"{_ONE}/wake"),),
            ),
            self._of_one("POST", "/lock", self._lock, "Refuse to delete it.", answer=_LOCKED),
            self._of_one("POST", "/unlock", self._unlock, "Allow to delete it.", answer=_LOCKED),
            self._of_one(
                "POST",
                "/redeploy",
                self._redeploy,
                "Run its bootstrap again, the stored or a given one.",
                body=_REDEPLOY,
                answer=STATE_SCHEMA,
                refusals={404, 409},
                long=True,
            ),
            Endpoint(
                method="GET",
                path=f"{_ONE}/logs",
                handler=self._logs,
                summary="The last lines that its programs printed.",
                tag="services",
                query={"all": BOOLEAN, "lines": integer(1, LOG_LINES_MAX)},
                answers={200: an_object(("log", "logs", "count"), log=TEXT, logs=TEXT)},
                refusals=frozenset({404}),
            ),
            Endpoint(
                method="POST",
                path=f"{_ONE}/execute",
                handler=self._execute,
                summary="Run a command in a service; its result when it ends in time.",
                tag="services",
                body=_COMMAND,
                answers={202: _JOB},
                refusals=frozenset({404, 409}),
                long=True,
            ),
            *self._vaults.endpoints(),
            self._of_one(
                "PUT",
                "/domains",
                self._domains,
                "Replace, add or remove custom domains: exactly one of the three.",
                body=_DOMAINS,
                answer=an_object(("custom_domains",), custom_domains=array(TEXT)),
                refusals={404, 409},
            ),
        )

    def _of_one(
        self,
        method: Any,
        path: str,
        handler: Handler,
        summary: str,
        *,
        answer: Schema = SERVICE_SCHEMA,
        refusals: set[int] | None = None,
        audited: bool = True,
        **others: Any,
    ) -> Endpoint:
        return Endpoint(
            method=method,
            path=_ONE + path,
            handler=handler,
            summary=summary,
            tag="services",
            answers={200: answer},
            refusals=frozenset(refusals or {404}),
            audited="service" if audited else None,
            **others,
        )

    def _find(self, call: Call) -> Row:
        return self._services.find(call.public_key, call.path["service_id"])

    def _shown(self, call: Call, row: Row) -> Response:
        return reply(service_document(row, call.base_url))

    def _create(self, call: Call) -> Response:
        self._api.require_isolation()
        order = service_orders.parse_service(call.body)
        return self._shown(call, self._services.create(call.caller, order))

    def _list(self, call: Call) -> Response:
        rows = self._services.live(call.public_key)
        shown = [service_document(row, call.base_url) for row in rows]
        return reply({"services": shown, "count": len(shown)})

    def _show(self, call: Call) -> Response:
        return self._shown(call, self._find(call))

    def _change(self, call: Call) -> Response:
        wanted = service_orders.parse_change(call.body)
        row = self._services.change(call.caller, self._find(call)["service_id"], wanted)
        return self._shown(call, row)

    def _resize(self, call: Call) -> Response:
        wanted = service_orders.Change(vcpu=service_orders.parse_vcpu(call.body))
        row = self._services.change(call.caller, self._find(call)["service_id"], wanted)
        return self._shown(call, row)

    def _delete(self, call: Call) -> Response:
        row = self._services.delete(call.public_key, self._find(call)["service_id"])
        return reply(state_document(row))

    def _freeze(self, call: Call) -> Response:
        row = self._services.freeze(call.public_key, self._find(call)["service_id"])
        return reply(state_document(row))

    def _unfreeze(self, call: Call) -> Response:
        row, took_ms = self._services.unfreeze(call.public_key, self._find(call)["service_id"])
        return reply(state_document(row) | {"unfreeze_time_ms": took_ms})

    def _lock(self, call: Call) -> Response:
        return self._set_locked(call, True)

    def _unlock(self, call: Call) -> Response:
        return self._set_locked(call, False)

    def _set_locked(self, call: Call, locked: bool) -> Response:
        row = self._services.set_locked(call.public_key, call.path["service_id"], locked)
        return reply({"locked": locked} | state_document(row))

    def _redeploy(self, call: Call) -> Response:
        self._api.require_isolation()
        row = self._find(call)
        order = service_orders.parse_redeploy(call.body, row["network_mode"])
        return reply(state_document(self._services.redeploy(call.caller, row["service_id"], order)))

    def _execute(self, call: Call) -> Response:
        self._api.require_isolation()
        row = self._find(call)
        service_id = row["service_id"]
        order = service_orders.parse_command(call.body)
        command = Command(
            argv=("bash", "-c", order.command),
            files=order.input_files,
            environment=self._services.environment(service_id),
        )
        self._services.touch(service_id)
        job = self._api.executions.submit_in(
            call.caller,
            command,
            service_id=service_id,
            sandbox_id=service_id,
            network_mode=row["network_mode"],
            timeout_seconds=order.timeout_ms / 1000,
            wait_ms=min(order.timeout_ms + 1_000, WAIT_MS_MAX),
            claim=lambda sql: self._services.claim(sql, call.public_key, service_id),
            gone=lambda _error: self._services.died(service_id),
        )
        return reply(execution_document(job) | {"service_id": service_id}, 202)

    def _logs(self, call: Call) -> Response:
        row = self._find(call)
        lines = self._services.logs(row, _limit(call))
        text = "".join(f"{line}\n" for line in lines)
        return reply({"log": text, "logs": text, "count": len(lines), **state_document(row)})

    def _domains(self, call: Call) -> Response:
        wanted = service_orders.parse_domain_change(call.body)
        row = self._services.change_domains(call.public_key, call.path["service_id"], wanted)
        return reply({"custom_domains": domains_of(row)} | state_document(row))


def _limit(call: Call) -> int | None:
    """How many lines: `all` for what is kept, else `lines`, else about 9,000."""
    everything = call.query.get("all", "false").lower()
    if everything not in ("true", "false", "1", "0"):
        raise bad_field("all", everything, "true or false")
    if everything in ("true", "1"):
        return None
    text = call.query.get("lines", str(LOG_LINES_DEFAULT))
    good = text.isascii() and text.isdecimal() and len(text) <= 5
    if not good or not 1 <= int(text) <= LOG_LINES_MAX:
        raise bad_field("lines", text, f"an integer from 1 to {LOG_LINES_MAX}")
    return int(text)
