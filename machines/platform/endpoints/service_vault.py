"""The environment vault of a service: `/services/{id}/env` (wire facts, section 6.4).

Where there is no vault everything but a write is answered 404 `no_vault`, as real clients expect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from machines.platform import service_rows, vault
from machines.platform.replies import Problem, bad_field, reply
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
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from machines.platform.api import Api
    from persistence.database import Row
    from persistence.database import Session as Sql

_PATH = "/services/{service_id}/env"
_MASK = "********"
_MASKED: Schema = {"type": "object", "additionalProperties": {"const": _MASK}}
_SHOWN = an_object(
    ("has_vault", "count", "updated_at", "env"),
    has_vault=BOOLEAN,
    count=INTEGER,
    updated_at=INTEGER,
    env=_MASKED,
    keys=array(TEXT),
)
_WRITTEN = an_object(
    ("success", "count", "message", "env"),
    success=BOOLEAN,
    count=INTEGER,
    message=TEXT,
    env=_MASKED,
)
_EXPORT = an_object(("env", "content"), env=TEXT, content=TEXT)


class VaultEndpoints(Feature):
    """Reads, writes and exports vaults."""

    def __init__(self, api: Api) -> None:
        self._context = api.context

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What it serves."""
        return (
            Endpoint(
                method="GET",
                path=_PATH,
                handler=self._show,
                summary="What the vault holds, values hidden; its text with ?format=export.",
                tag="services",
                query={"format": {"type": "string", "enum": ["export"]}},
                # JSON, or text/plain for the export.
                media="*/*",
                answers={200: {**_SHOWN, "type": ["object", "string"]}},
                refusals=frozenset({404}),
            ),
            Endpoint(
                method="PUT",
                path=_PATH,
                handler=self._put,
                summary="Set or update variables: NAME=value text, or JSON.",
                tag="services",
                takes="any",
                answers={200: _WRITTEN},
                refusals=frozenset({404}),
                audited="service",
            ),
            Endpoint(
                method="POST",
                path=_PATH,
                handler=self._post,
                summary="Set or update variables: {env: text} or {NAME: value}.",
                tag="services",
                body=an_object(),
                answers={200: _WRITTEN},
                refusals=frozenset({404}),
                audited="service",
            ),
            Endpoint(
                method="DELETE",
                path=_PATH,
                handler=self._delete,
                summary="Remove the variables that `keys` names, or the whole vault.",
                tag="services",
                body=an_object(keys=array(TEXT)),
                answers={
                    200: an_object(
                        ("success", "deleted", "message"),
                        success=BOOLEAN,
                        deleted=array(TEXT),
                        message=TEXT,
                    )
                },
                refusals=frozenset({404}),
                audited="service",
            ),
            Endpoint(
                method="POST",
                path=f"{_PATH}/export",
                handler=self._export,
                summary="The vault as .env text, with its values.",
                tag="services",
                answers={200: _EXPORT},
                refusals=frozenset({404}),
                audited="service",
            ),
        )

    def _service_id(self, sql: Sql, call: Call) -> str:
        row = service_rows.select_live(sql, call.public_key, call.path["service_id"])
        return str(row["service_id"])

    def _read(self, call: Call) -> tuple[Row, vault.Variables]:
        with self._context.database.reading() as sql:
            service_id = self._service_id(sql, call)
            row = vault.stored(sql, service_id)
            variables = vault.read(sql, self._context.codec, service_id)
        if row is None or variables is None:
            raise _no_vault(service_id)
        return row, variables

    def _show(self, call: Call) -> Response:
        wanted = call.query.get("format")
        if wanted not in (None, "export"):
            raise bad_field("format", wanted, "'export', or nothing")
        row, variables = self._read(call)
        if wanted == "export":
            return Response(vault.dump(variables), media_type="text/plain")
        shown = {
            "has_vault": True,
            "count": row["count"],
            # An integer, unlike other times: one client prints it as a Unix time.
            "updated_at": row["updated_ms"] // 1000,
            "env": _masked(variables),
            "keys": sorted(variables),
        }
        return reply(shown | {"service_id": row["service_id"]})

    def _export(self, call: Call) -> Response:
        _row, variables = self._read(call)
        text = vault.dump(variables)
        return reply({"env": text, "content": text, "count": len(variables)})

    def _put(self, call: Call) -> Response:
        return self._write(call, vault.parse_put(call))

    def _post(self, call: Call) -> Response:
        return self._write(call, vault.parse_json(call.body))

    def _write(self, call: Call, given: vault.Variables) -> Response:
        with self._context.database.transaction() as sql:
            service_id = self._service_id(sql, call)
            variables = vault.update(
                sql, self._context.codec, service_id, given, self._context.clock_ms()
            )
        message = f"{len(given)} set, {len(variables)} in all; redeploy to let the service see them"
        return reply(
            {
                "success": True,
                "service_id": service_id,
                "count": len(variables),
                "message": message,
                "env": _masked(variables),
            }
        )

    def _delete(self, call: Call) -> Response:
        names = vault.parse_names(call.body)
        with self._context.database.transaction() as sql:
            service_id = self._service_id(sql, call)
            gone = vault.remove(
                sql, self._context.codec, service_id, names, self._context.clock_ms()
            )
        if gone is None:
            raise _no_vault(service_id)
        return reply({"success": True, "deleted": gone, "message": f"{len(gone)} removed"})


def _masked(variables: Mapping[str, str]) -> dict[str, Any]:
    return dict.fromkeys(sorted(variables), _MASK)


def _no_vault(service_id: str) -> Problem:
    return Problem(
        404,
        "no_vault",
        f"service {service_id} has no environment vault. Make one: PUT /services/{{id}}/env.",
    )
