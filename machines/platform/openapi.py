"""The OpenAPI document of this platform, made from what serves it, and two readings of it.

::

    Api.endpoints() (wire.Endpoint) ---+
                                       +--> document() --> /openapi, /openapi.json
    UnsignedRoute.described -----------+         |
                                                 +-------> /docs             a page
                                                 +-------> /static/llms.txt  for language models

The document says what the code does because it is made from the descriptions that routes are made
from; tests walk every route of the application against it, and it is fuzzed.  The coin nodes below
`/rpc/` are no part of the platform's wire (they stand for other people's machines and speak their
own protocols), and what is below `/_test/` exists only where faults are allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute

from machines.platform.replies import reply
from machines.platform.unsigned import Unsigned, UnsignedRoute
from machines.platform.wire import INTEGER, TEXT, Endpoint, Schema, an_object, one_of

VERSION = "3.1.0"
FOREIGN_PREFIXES = ("/rpc/", "/_test/")
"""Paths that are no part of the platform's wire."""

_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}", re.ASCII)
_MEANING = {
    200: "Done.",
    201: "Created.",
    202: "Accepted; it goes on.",
    204: "Done; nothing to say.",
    303: "Created; its page is elsewhere.",
    400: "A field is wrong; `field` names it.",
    401: "The key is unknown, expired or suspended, or the signature or its time does not hold.",
    402: "Too little is on the card.",
    403: "This key may not do that.",
    404: "No such thing, or it is another key's.",
    409: "Not in its present state, or the name or Idempotency-Key is taken.",
    410: "It has ended.",
    413: "The body is too long.",
    415: "The body is of another kind.",
    428: "A one-time code is wanted.",
    429: "Too many requests, or all slots are in use; `Retry-After` says when to try again.",
    500: "The platform failed.",
    501: "This platform does not offer it.",
    502: "What stands behind the platform failed.",
    503: "Not now: the database is busy, or this machine cannot isolate.",
    504: "What stands behind the platform took too long.",
}
_SIGNED: list[dict[str, list[str]]] = [{"publicKey": [], "timestamp": [], "signature": []}]
_SECURITY = {
    "publicKey": {
        "type": "http",
        "scheme": "bearer",
        "description": "The public key (unsb-pk-...).",
    },
    "timestamp": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Timestamp",
        "description": "Unix seconds, at most 300 away from the platform's clock.",
    },
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "X-Signature",
        "description": "hex(HMAC-SHA256(secret key, '<timestamp>:<METHOD>:<path>:<body>')).",
    },
}
_ERROR: Schema = an_object(
    ("error", "message"),
    error={"type": "string", "description": "A code for programs."},
    message={"type": "string", "description": "What was seen, what was expected, what to do."},
    field={"type": "string", "description": "The field that is wrong."},
)
_HEALTH = an_object(
    ("status", "sandbox"),
    status=one_of("ok"),
    sandbox=one_of("available", "unavailable"),
    sandbox_problem=TEXT,
    enforcement=one_of("cgroup", "rlimit", "none"),
    requests_per_minute_per_tier=INTEGER,
)
_ONCE: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A repeat under the same key gets the first answer and does nothing.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,200}$"},
}


class Described:
    """The documents of one application; made when first asked for, since routes do not change.

    Args:
        endpoints: the signed half.
        routes: every route of the application.
    """

    def __init__(
        self, endpoints: Callable[[], Iterable[Endpoint]], routes: Callable[[], Iterable[BaseRoute]]
    ) -> None:
        self._endpoints = endpoints
        self._routes = routes
        self._made: dict[str, Any] | None = None

    def calls(self) -> list[Unsigned]:
        """The calls that serve the documents."""
        return [
            self._call("/openapi", self._openapi, "This document."),
            self._call("/openapi.json", self._openapi, "This document, under its usual name."),
            self._call("/docs", self._page, "This document as a page.", media="text/html"),
            self._call(
                "/static/llms.txt", self._text, "The calls, for language models.", "text/plain"
            ),
        ]

    def document(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self._made is None:
            unsigned = [
                route.described for route in self._routes() if isinstance(route, UnsignedRoute)
            ]
            self._made = build_document(self._endpoints(), unsigned)
        return self._made

    def _call(
        self, path: str, handler: Any, summary: str, media: str = "application/json"
    ) -> Unsigned:
        schema = an_object(("openapi", "paths")) if media == "application/json" else TEXT
        return Unsigned(
            method="GET",
            path=path,
            handler=handler,
            summary=summary,
            tag="documents",
            answers={200: schema},
            media=media,
        )

    async def _openapi(self, _request: Request) -> Response:
        return reply(self.document())

    async def _page(self, _request: Request) -> Response:
        return HTMLResponse(write_docs(self.document()))

    async def _text(self, request: Request) -> Response:
        base_url = str(request.base_url).rstrip("/")
        return PlainTextResponse(write_llms(self.document(), base_url))


def build_document(endpoints: Iterable[Endpoint], unsigned: Iterable[Unsigned]) -> dict[str, Any]:
    """An OpenAPI 3.1 document of signed and unsigned calls, sorted by path."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        for number, (method, path) in enumerate(endpoint.routes):
            _add(paths, method, path, _signed(endpoint, path, older=number > 0))
    for call in unsigned:
        if not call.path.startswith(FOREIGN_PREFIXES):
            _add(paths, call.method, call.path, _unsigned(call))
    _add(paths, "GET", "/health", _health())
    return {
        "openapi": VERSION,
        "info": {
            "title": "turtles platform",
            "version": "1",
            "description": "Sandboxes for programs: run code, keep sessions and services, take "
            "snapshots, publish images; keys are bought with simulated coins. "
            "Fields that no endpoint knows are ignored.",
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "paths": dict(sorted(paths.items())),
        "components": {"securitySchemes": _SECURITY, "schemas": {"Error": _ERROR}},
    }


def written(path: str) -> str:
    """A route's path as OpenAPI writes it: `/logs/{source:path}` is `/logs/{source}`."""
    return _PARAMETER.sub(r"{\1}", path)


def _add(paths: dict[str, dict[str, Any]], method: str, path: str, operation: Any) -> None:
    identity = f"{method} {written(path)}".lower()
    operation["operationId"] = re.sub(r"[^a-z0-9]+", "_", identity).strip("_")
    paths.setdefault(written(path), {})[method.lower()] = operation


def _signed(endpoint: Endpoint, path: str, *, older: bool) -> dict[str, Any]:
    parameters = [*_path_parameters(path), *_query_parameters(endpoint.query)]
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "security": _SIGNED,
        "parameters": [*parameters, *([_ONCE] if endpoint.method == "POST" else [])],
        "responses": _responses(endpoint.answers, endpoint.media, endpoint.statuses),
    }
    if older:
        operation["deprecated"] = True
    if endpoint.takes == "json" and endpoint.body is not None:
        operation["requestBody"] = _body({"application/json": endpoint.body}, endpoint.body)
    elif endpoint.takes == "text":
        operation["requestBody"] = _body({"text/plain": TEXT}, TEXT)
    elif endpoint.takes == "any" and endpoint.body is not None:
        media = {"application/json": endpoint.body, "text/plain": TEXT}
        operation["requestBody"] = _body(media, endpoint.body)
    return operation


def _unsigned(call: Unsigned) -> dict[str, Any]:
    parameters = [*_path_parameters(call.path), *_query_parameters(call.query)]
    operation: dict[str, Any] = {
        "summary": call.summary,
        "tags": [call.tag],
        "security": [{"publicKey": []}] if call.bearer else [],
        "parameters": [*parameters, *([_ONCE] if call.repeatable else [])],
        "responses": _responses(call.answers, call.media, call.statuses),
    }
    if call.deprecated:
        operation["deprecated"] = True
    if call.body is not None:
        operation["requestBody"] = _body({call.body_media: call.body}, call.body)
    return operation


def _health() -> dict[str, Any]:
    return {
        "summary": "Whether the platform serves, and whether it can isolate.",
        "tags": ["cluster"],
        "security": [],
        "parameters": [],
        "responses": _responses({200: _HEALTH}, "application/json", frozenset({200, 500})),
    }


def _body(content: Mapping[str, Schema], schema: Schema) -> dict[str, Any]:
    required = bool(schema.get("required")) or schema.get("type") == "string"
    return {
        "required": required,
        "content": {media: {"schema": each} for media, each in content.items()},
    }


def _path_parameters(path: str) -> Iterator[dict[str, Any]]:
    for name in _PARAMETER.findall(path):
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1},
        }


def _query_parameters(query: Mapping[str, Schema]) -> Iterator[dict[str, Any]]:
    for name, schema in query.items():
        yield {"name": name, "in": "query", "required": False, "schema": schema}


def _responses(
    answers: Mapping[int, Schema], media: str, statuses: frozenset[int]
) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status in sorted(statuses):
        shown: dict[str, Any] = {"description": _MEANING.get(status) or HTTPStatus(status).phrase}
        if status in answers:
            if status != 204:
                shown["content"] = {media: {"schema": answers[status]}}
        else:
            refusal = {"schema": {"$ref": "#/components/schemas/Error"}}
            shown["content"] = {"application/json": refusal}
        if status == 429:
            shown["headers"] = {"Retry-After": {"schema": INTEGER}}
        responses[str(status)] = shown
    return responses


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Every (method, path, operation) of a document."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def write_docs(document: Mapping[str, Any]) -> str:
    """The document as a page: one table for each tag."""
    tags: dict[str, list[str]] = {}
    for method, path, operation in operations(document):
        signed = "signed" if operation["security"] == _SIGNED else ""
        older = "older form" if operation.get("deprecated") else ""
        statuses = ", ".join(operation["responses"])
        cells = (method, path, operation["summary"], signed or older, statuses)
        row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        tags.setdefault(operation["tags"][0], []).append(f"<tr>{row}</tr>")
    tables = "".join(
        f"<h2>{escape(tag)}</h2><table>{''.join(rows)}</table>"
        for tag, rows in sorted(tags.items())
    )
    title, about = document["info"]["title"], document["info"]["description"]
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title></head><body><h1>{escape(title)}</h1><p>{escape(about)}</p>"
        '<p><a href="/openapi.json">OpenAPI document</a></p>'
        f"{tables}</body></html>"
    )


def write_llms(document: Mapping[str, Any], base_url: str) -> str:
    """The document as plain text for a language model."""
    lines = [
        f"# {document['info']['title']}",
        "",
        f"> {document['info']['description']}",
        "",
        f"Base address: {base_url}",
        "",
        "Signed calls carry three headers: Authorization: Bearer <public key>, X-Timestamp: "
        "<unix seconds>, and X-Signature: "
        "hex(HMAC-SHA256(secret key, '<timestamp>:<METHOD>:<path>:<body>')).",
        "To get a key: GET /pricing-for-agents.json, POST /api/invoices, pay, poll the status.",
        "",
    ]
    tags: dict[str, list[str]] = {}
    for method, path, operation in operations(document):
        if operation.get("deprecated"):
            continue
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        fields = ", ".join(body["schema"].get("properties", {})) if body else ""
        signed = "signed; " if operation["security"] == _SIGNED else ""
        takes = f" Takes: {fields}." if fields else ""
        tags.setdefault(operation["tags"][0], []).append(
            f"- {method} {path}: {signed}{operation['summary']}{takes}"
        )
    for tag, entries in sorted(tags.items()):
        lines += [f"## {tag}", "", *entries, ""]
    return "\n".join(lines)
