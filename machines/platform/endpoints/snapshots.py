"""Snapshots of sessions and services (wire facts, section 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from machines.platform import archive_orders, copies
from machines.platform.archive_documents import SNAPSHOT_SCHEMA, snapshot_document
from machines.platform.copies import COPY_SCHEMA, Kind
from machines.platform.documents import session_document
from machines.platform.replies import reply
from machines.platform.service_documents import service_document
from machines.platform.wire import (
    BOOLEAN,
    INTEGER,
    TEXT,
    Call,
    Endpoint,
    Feature,
    Handler,
    an_object,
    array,
    one_of,
)

if TYPE_CHECKING:
    from machines.platform.api import Api
    from machines.platform.snapshots import SnapshotOrder
    from persistence.database import Row

_KIND = one_of("session", "service")
_RESTORED = an_object(
    ("id", "snapshot_id", "type", "status", "message"),
    id=TEXT,
    snapshot_id=TEXT,
    session_id=TEXT,
    service_id=TEXT,
    type=_KIND,
    status=TEXT,
    state=TEXT,
    message=TEXT,
    level=TEXT,
    lost=array(TEXT),
)
COPIED = an_object(
    ("id", "type", "status", "state", "level", "lost"),
    id=TEXT,
    session_id=TEXT,
    service_id=TEXT,
    name=TEXT,
    type=_KIND,
    status=TEXT,
    state=TEXT,
    url=TEXT,
    level=TEXT,
    lost=array(TEXT),
)
_TAKING = frozenset({404, 409, 410})


class SnapshotEndpoints(Feature):
    """`/snapshots`, and the snapshots of `/sessions` and `/services`."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What it serves."""
        return (
            Endpoint(
                method="POST",
                path="/snapshots",
                handler=self._create,
                summary="Take a snapshot of a session or service.",
                tag="snapshots",
                body=archive_orders.SNAPSHOT_BODY,
                answers={200: SNAPSHOT_SCHEMA},
                refusals=_TAKING,
                long=True,
                audited="snapshot",
            ),
            Endpoint(
                method="GET",
                path="/snapshots",
                handler=self._list,
                summary="The snapshots of this key, or those of one `source_type`.",
                tag="snapshots",
                query={"source_type": _KIND},
                answers={
                    200: an_object(
                        ("snapshots", "count"), snapshots=array(SNAPSHOT_SCHEMA), count=INTEGER
                    )
                },
            ),
            Endpoint(
                method="GET",
                path="/snapshots/{snapshot_id}",
                handler=self._show,
                summary="One snapshot.",
                tag="snapshots",
                answers={200: SNAPSHOT_SCHEMA},
                refusals=frozenset({404}),
            ),
            Endpoint(
                method="DELETE",
                path="/snapshots/{snapshot_id}",
                handler=self._delete,
                summary="Delete a snapshot.  409 while it is locked.",
                tag="snapshots",
                answers={
                    200: an_object(
                        ("id", "snapshot_id", "status"), id=TEXT, snapshot_id=TEXT, status=TEXT
                    )
                },
                refusals=frozenset({404, 409}),
                audited="snapshot",
            ),
            self._locking("lock", self._lock, "Refuse to delete it."),
            self._locking("unlock", self._unlock, "Allow to delete it again."),
            Endpoint(
                method="POST",
                path="/snapshots/{snapshot_id}/restore",
                handler=self._restore,
                summary="Write a snapshot back to what it was taken of, in place.",
                tag="snapshots",
                body=an_object(),
                answers={200: _RESTORED},
                refusals=_TAKING,
                long=True,
                audited="snapshot",
            ),
            Endpoint(
                method="POST",
                path="/snapshots/{snapshot_id}/clone",
                handler=self._clone,
                summary="Make a new session or service of a snapshot; independent of it.",
                tag="snapshots",
                body=COPY_SCHEMA,
                answers={200: COPIED},
                refusals=frozenset({404, 409}),
                long=True,
                audited="snapshot",
            ),
            *self._of("session"),
            *self._of("service"),
        )

    def _of(self, kind: Kind) -> tuple[Endpoint, ...]:
        """Below `/sessions/{session_id}` and `/services/{service_id}`."""
        inferred = "" if kind == "session" else "  (INFERRED from that of sessions.)"
        return (
            Endpoint(
                method="POST",
                path=f"/{kind}s/{{{kind}_id}}/snapshot",
                handler=self._create_of(kind),
                summary=f"Take a snapshot of a {kind}.",
                tag="snapshots",
                body=archive_orders.SNAPSHOT_OF_BODY,
                answers={200: SNAPSHOT_SCHEMA},
                refusals=_TAKING,
                long=True,
                audited="snapshot",
            ),
            Endpoint(
                method="POST",
                path=f"/{kind}s/{{{kind}_id}}/restore",
                handler=self._restore_of(kind),
                summary=f"Write a snapshot over a {kind}, which keeps its id.{inferred}",
                tag="snapshots",
                body=an_object(("snapshot_id",), snapshot_id=TEXT),
                answers={200: _RESTORED},
                refusals=_TAKING,
                long=True,
                audited=kind,
            ),
        )

    def _locking(self, verb: str, handler: Handler, summary: str) -> Endpoint:
        return Endpoint(
            method="POST",
            path=f"/snapshots/{{snapshot_id}}/{verb}",
            handler=handler,
            summary=summary,
            tag="snapshots",
            body=an_object(),
            answers={
                200: an_object(
                    ("id", "snapshot_id", "locked"), id=TEXT, snapshot_id=TEXT, locked=BOOLEAN
                )
            },
            refusals=frozenset({404}),
            audited="snapshot",
        )

    def start(self) -> None:
        """Put right what an earlier process left."""
        self._api.snapshots.start()

    def tick(self) -> None:
        """Delete what is over its ttl."""
        self._api.snapshots.expire_due()

    # -- handlers ------------------------------------------------------------------------------

    def _create(self, call: Call) -> Response:
        return self._take(call, archive_orders.parse_snapshot(call.body))

    def _create_of(self, kind: Kind) -> Handler:
        def handler(call: Call) -> Response:
            source_id = call.path[f"{kind}_id"]
            return self._take(call, archive_orders.parse_snapshot_of(call.body, kind, source_id))

        return handler

    def _take(self, call: Call, order: SnapshotOrder) -> Response:
        self._api.require_isolation()
        return reply(snapshot_document(self._api.snapshots.create(call.caller, order)))

    def _list(self, call: Call) -> Response:
        wanted = archive_orders.parse_listing(call.query)
        rows = self._api.snapshots.kept(call.public_key, wanted)
        return reply({"snapshots": [snapshot_document(row) for row in rows], "count": len(rows)})

    def _show(self, call: Call) -> Response:
        row = self._api.snapshots.find(call.public_key, call.path["snapshot_id"])
        return reply(snapshot_document(row))

    def _delete(self, call: Call) -> Response:
        row = self._api.snapshots.delete(call.public_key, call.path["snapshot_id"])
        return reply(snapshot_document(row))

    def _lock(self, call: Call) -> Response:
        return self._locked(call, True)

    def _unlock(self, call: Call) -> Response:
        return self._locked(call, False)

    def _locked(self, call: Call, locked: bool) -> Response:
        snapshot_id = call.path["snapshot_id"]
        row = self._api.snapshots.set_locked(call.public_key, snapshot_id, locked)
        return reply(snapshot_document(row))

    def _restore(self, call: Call) -> Response:
        self._api.require_isolation()
        snapshot, target = self._api.snapshots.restore(call.caller, call.path["snapshot_id"])
        return reply(_restored(snapshot, target, snapshot["source_type"]) | {"status": "restored"})

    def _restore_of(self, kind: Kind) -> Handler:
        def handler(call: Call) -> Response:
            snapshot_id = archive_orders.parse_snapshot_id(call.body)
            self._api.require_isolation()
            onto = (kind, call.path[f"{kind}_id"])
            snapshot, target = self._api.snapshots.restore(call.caller, snapshot_id, onto)
            return reply(_restored(snapshot, target, kind))

        return handler

    def _clone(self, call: Call) -> Response:
        snapshots = self._api.snapshots
        row = snapshots.ready(call.public_key, call.path["snapshot_id"])
        kind = copies.parse_kind(call.body, "type", row["source_type"])
        return copied(self._api, call, row, kind, snapshots.filler(row))


def _restored(snapshot: Row, target: Row, kind: Kind) -> dict[str, Any]:
    target_id = target[f"{kind}_id"]
    shown = snapshot_document(snapshot)
    return {
        "id": target_id,
        "snapshot_id": snapshot["snapshot_id"],
        f"{kind}_id": target_id,
        "type": kind,
        "status": target["state"],
        "state": target["state"],
        "message": f"{kind} {target_id} holds again what snapshot {shown['id']} kept",
        "level": shown["level"],
        "lost": shown["lost"],
    }


def copied(
    api: Api, call: Call, row: Row, kind: Kind, prepare: Any, image_id: str | None = None
) -> Response:
    """A new session or service made of an archive's row."""
    recipe = copies.recipe_of(row)
    shown: dict[str, Any] = {"level": row["level"], "lost": msgspec.json.decode(row["lost"])}
    if kind == "session":
        session = copies.parse_session_copy(call.body, recipe, api.probing.shells)
        session = msgspec.structs.replace(session, image=image_id)
        api.require_isolation()
        made = api.sessions.create(call.caller, session, prepare)
        document = session_document(made, api.context.clock_ms(), call.base_url)
    else:
        service = copies.parse_service_copy(call.body, recipe)
        service = msgspec.structs.replace(service, prepare=prepare, source_image=image_id)
        api.require_isolation()
        made = api.services.create(call.caller, service)
        document = service_document(made, call.base_url)
    return reply({"type": kind, **document, **shown})
