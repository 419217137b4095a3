"""Sessions: a shell or interpreter that lasts (wire facts, section 5).

`{session_id}` may also be the name of the session's container (`unsb-vm-...`), which is what the
command-line client shows.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any

from starlette.responses import Response
from starlette.routing import WebSocketRoute

from machines.platform import orders, session_orders
from machines.platform.documents import execution_document, session_document
from machines.platform.recordings import Recordings
from machines.platform.replies import reply
from machines.platform.session_orders import (
    LISTINGS,
    MULTIPLEXERS,
    SESSION_TTL_SECONDS_MAX,
    SessionOrder,
)
from machines.platform.shell import Shells
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
    from collections.abc import Callable

    from machines.platform.api import Api
    from machines.platform.sandbox.backend import Handle
    from persistence.database import Row

_STATES = one_of("starting", "running", "frozen", "terminated")
_SESSION: dict[str, Schema] = {
    "id": TEXT,
    "session_id": TEXT,
    "container_name": TEXT,
    "status": _STATES,
    "state": _STATES,
    "reason": TEXT,
    "shell": TEXT,
    "network_mode": one_of("zerotrust", "semitrusted"),
    "vcpu": integer(1, orders.VCPUS_MAX),
    "base_vcpu": integer(1, orders.VCPUS_MAX),
    "boosted": BOOLEAN,
    "memory_mb": INTEGER,
    "locked": BOOLEAN,
    "audit": BOOLEAN,
    "toolbox": BOOLEAN,
    "multiplexer": one_of(*MULTIPLEXERS),
    "image": TEXT,
    "remaining_ttl": {"type": "integer", "minimum": 0},
    "created_at": TEXT,
    "expires_at": TEXT,
    "last_activity": TEXT,
    "websocket_url": TEXT,
    "domain": TEXT,
}
_OPTIONAL = frozenset({"reason", "multiplexer", "image"})
_REQUIRED = tuple(name for name in _SESSION if name not in _OPTIONAL)
SESSION = an_object(_REQUIRED, **_SESSION)
_RESULT = an_object(
    ("job_id", "status", "stdout", "stderr", "output", "exit_code", "success"),
    job_id=TEXT,
    status=TEXT,
    stdout=TEXT,
    stderr=TEXT,
    output=TEXT,
    exit_code=INTEGER,
    success=BOOLEAN,
)
_FILE = an_object(("filename",), filename=TEXT, content=TEXT, content_base64=TEXT)
_CREATE = an_object(
    shell=TEXT,
    language=TEXT,
    network_mode=one_of("zerotrust", "semitrusted"),
    ttl=integer(0, SESSION_TTL_SECONDS_MAX),
    vcpu=integer(1, orders.VCPUS_MAX),
    multiplexer=one_of(*MULTIPLEXERS),
    tmux=BOOLEAN,
    screen=BOOLEAN,
    input_files=array(_FILE),
    image=TEXT,
    toolbox={
        **BOOLEAN,
        "description": "Show this product inside, read-only, below /opt/turtles: an interpreter, "
        "its libraries and its wheel.  (Ours: the published API has no such field.)",
    },
)
_COMMAND = an_object(command=TEXT, code=TEXT, timeout=integer(1, orders.COMMAND_TIMEOUT_MS_MAX))
_ARTIFACT = an_object(
    ("type", "filename", "data", "content_base64"),
    type=one_of("base64"),
    filename=TEXT,
    data=TEXT,
    content_base64=TEXT,
    truncated=BOOLEAN,
)
_AUDIT = {"audit": one_of("0", "1")}


class SessionEndpoints(Feature):
    """`/sessions`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._recordings = Recordings(api.context)
        self.shells = Shells(api, self._recordings)

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What it serves."""
        return (
            Endpoint(
                method="POST",
                path="/sessions",
                handler=self._create,
                summary="Create a session.",
                tag="sessions",
                body=_CREATE,
                query=_AUDIT,
                answers={200: SESSION},
                long=True,
                refusals=frozenset({404, 409}),
                audited="session",
            ),
            Endpoint(
                method="GET",
                path="/sessions",
                handler=self._list,
                summary="The sessions that have not ended: all, or some by `status`.",
                tag="sessions",
                query={"status": one_of(*LISTINGS)},
                answers={
                    200: an_object(("sessions", "count"), sessions=array(SESSION), count=INTEGER)
                },
            ),
            Endpoint(
                method="GET",
                path="/sessions/{session_id}",
                handler=self._show,
                summary="One session.",
                tag="sessions",
                answers={200: SESSION},
                refusals=frozenset({404}),
            ),
            Endpoint(
                method="DELETE",
                path="/sessions/{session_id}",
                handler=self._delete,
                summary="End a session; with `audit=1`, its recording.  409 while it is locked.",
                tag="sessions",
                query=_AUDIT,
                answers={
                    200: an_object(_REQUIRED, **_SESSION, artifacts=array(_ARTIFACT)),
                },
                refusals=frozenset({404, 409}),
                audited="session",
            ),
            Endpoint(
                method="POST",
                path="/sessions/{session_id}/execute",
                aliases=(("POST", "/sessions/{session_id}/shell"),),
                handler=self._command,
                summary="Run a command in a session.",
                tag="sessions",
                body=_COMMAND,
                answers={200: _RESULT},
                long=True,
                refusals=frozenset({404, 409, 410}),
                counts=True,
            ),
            *self._changes(),
        )

    def _changes(self) -> tuple[Endpoint, ...]:
        return (
            self._change("freeze", self._freeze, "Stop its processes; it keeps memory and files."),
            self._change(
                "unfreeze",
                self._unfreeze,
                "Let its processes go on.  429 when too few slots are free.",
                answer=an_object(
                    (*_REQUIRED, "unfreeze_time_ms"), **_SESSION, unfreeze_time_ms=INTEGER
                ),
            ),
            self._change(
                "boost",
                self._boost,
                "More vCPUs, with 2 GiB of memory and one slot each.",
                body=an_object(vcpu=integer(1, orders.VCPUS_MAX)),
            ),
            self._change("unboost", self._unboost, "Back to the vCPUs that it was made with."),
            self._change("lock", self._lock, "Refuse to delete it."),
            self._change("unlock", self._unlock, "Allow to delete it again."),
            self._change(
                "extend",
                self._extend,
                "Add `ttl` seconds to its time to live, up to 24 h from now.  (INFERRED: the "
                "published tool extendSession names no path.)",
                body=an_object(ttl=integer(1, SESSION_TTL_SECONDS_MAX)),
            ),
        )

    def _change(
        self,
        verb: str,
        handler: Callable[[Call], Response],
        summary: str,
        *,
        body: Schema | None = None,
        answer: Schema = SESSION,
    ) -> Endpoint:
        return Endpoint(
            method="POST",
            path=f"/sessions/{{session_id}}/{verb}",
            handler=handler,
            summary=summary,
            tag="sessions",
            # An empty object is what clients send; it is parsed even where nothing is read of it.
            body=an_object() if body is None else body,
            answers={200: answer},
            long=True,
            refusals=frozenset({404, 409, 410}),
            audited="session",
        )

    def routes(self) -> tuple[Any, ...]:
        """The terminal of a session, over a WebSocket."""
        return (WebSocketRoute("/sessions/{session_id}/shell", self.shells.serve),)

    def start(self) -> None:
        """Forget old recordings."""
        self._recordings.forget_old()

    def tick(self) -> None:
        """Write down what terminals did: their output where it is recorded, and their activity."""
        self._recordings.flush()
        self.shells.tick()

    def stop(self) -> None:
        """Write down what is recorded."""
        self._recordings.flush()

    # -- handlers ------------------------------------------------------------------------------

    def _create(self, call: Call) -> Response:
        self._api.require_isolation()
        order = session_orders.parse_session(call.body, self._api.probing.shells, call.query)
        row = self._api.sessions.create(call.caller, order, self._base(call, order))
        return self._shown(call, row)

    def _base(self, call: Call, order: SessionOrder) -> Callable[[Handle], None] | None:
        """What fills the new sandbox from the wanted image.

        It looks for the image only when it fills: a repeated create must give its session also
        when the image has been deleted since.  Raises `Problem` then: 404, 409 not ready.
        """
        wanted = order.image
        if wanted is None:
            return None
        images = self._api.images

        def fill(handle: Handle) -> None:
            images.filler(images.ready(call.public_key, wanted))(handle)

        return fill

    def _list(self, call: Call) -> Response:
        listing = session_orders.parse_listing(call.query)
        rows = self._api.sessions.live(call.public_key, listing)
        return reply({"sessions": [self._session(call, row) for row in rows], "count": len(rows)})

    def _show(self, call: Call) -> Response:
        return self._shown(call, self._find(call))

    def _delete(self, call: Call) -> Response:
        wanted = session_orders.parse_audit(call.query)
        row = self._api.sessions.end(call.public_key, call.path["session_id"])
        if not wanted:
            return self._shown(call, row)
        return self._shown(call, row, artifacts=self._artifacts(row))

    def _artifacts(self, row: Row) -> list[dict[str, Any]]:
        if not row["audited"]:
            return []
        recording = self._recordings.read(row["session_id"])
        data = b64encode(recording.output).decode()
        artifact: dict[str, Any] = {
            "type": "base64",
            "filename": f"{row['session_id']}.log",
            "data": data,
            "content_base64": data,
            "truncated": recording.truncated,
        }
        return [artifact]

    def _command(self, call: Call) -> Response:
        order = orders.parse_command(call.body)
        row = self._api.executions.run_command(call.caller, call.path["session_id"], order)
        shown = execution_document(row)
        return reply(shown | {"output": shown.get("stdout", "")})

    def _freeze(self, call: Call) -> Response:
        return self._shown(call, self._api.sessions.freeze(call.caller, call.path["session_id"]))

    def _unfreeze(self, call: Call) -> Response:
        row, took_ms = self._api.sessions.unfreeze(call.caller, call.path["session_id"])
        return self._shown(call, row, unfreeze_time_ms=took_ms)

    def _boost(self, call: Call) -> Response:
        vcpu = session_orders.parse_boost(call.body)
        name = call.path["session_id"]
        return self._shown(call, self._api.sessions.boost(call.caller, name, vcpu))

    def _unboost(self, call: Call) -> Response:
        return self._shown(call, self._api.sessions.unboost(call.caller, call.path["session_id"]))

    def _lock(self, call: Call) -> Response:
        return self._locked(call, True)

    def _unlock(self, call: Call) -> Response:
        return self._locked(call, False)

    def _locked(self, call: Call, locked: bool) -> Response:
        name = call.path["session_id"]
        return self._shown(call, self._api.sessions.lock(call.public_key, name, locked))

    def _extend(self, call: Call) -> Response:
        ttl_seconds = session_orders.parse_extension(call.body)
        name = call.path["session_id"]
        return self._shown(call, self._api.sessions.extend(call.public_key, name, ttl_seconds))

    # -- answers -------------------------------------------------------------------------------

    def _find(self, call: Call) -> Row:
        return self._api.sessions.find(call.public_key, call.path["session_id"])

    def _shown(self, call: Call, row: Row, **more: Any) -> Response:
        return reply(self._session(call, row) | more)

    def _session(self, call: Call, row: Row) -> dict[str, Any]:
        return session_document(row, self._api.context.clock_ms(), call.base_url)
