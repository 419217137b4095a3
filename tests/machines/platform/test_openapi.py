"""The document says what is served, all of it, and nothing else."""

from __future__ import annotations

import re
from typing import Any

import jsonschema_rs
import openapi_spec_validator
import pytest
import schemathesis
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError
from starlette.routing import Route

from machines.platform.openapi import FOREIGN_PREFIXES, build_document, operations, written
from machines.platform.unsigned import Unsigned
from machines.platform.wire import Endpoint, integer

NUMBERED = """
POST /execute; POST /execute/async; POST /run; POST /run/async; GET /jobs; GET /jobs/{job_id};
DELETE /jobs/{job_id}; GET /languages; GET /shells; POST /sessions; GET /sessions;
GET /sessions/{session_id}; DELETE /sessions/{session_id}; POST /sessions/{session_id}/execute;
POST /sessions/{session_id}/shell; POST /sessions/{session_id}/freeze;
POST /sessions/{session_id}/unfreeze; POST /sessions/{session_id}/boost;
POST /sessions/{session_id}/unboost; POST /sessions/{session_id}/lock;
POST /sessions/{session_id}/unlock; POST /sessions/{session_id}/snapshot;
POST /sessions/{session_id}/restore; POST /services; GET /services; GET /services/{service_id};
PATCH /services/{service_id}; DELETE /services/{service_id}; POST /services/{service_id}/freeze;
POST /services/{service_id}/unfreeze; POST /services/{service_id}/lock;
POST /services/{service_id}/unlock; POST /services/{service_id}/redeploy;
POST /services/{service_id}/execute; GET /services/{service_id}/logs;
POST /services/{service_id}/snapshot; PUT /services/{service_id}/domains;
GET /services/{service_id}/env; PUT /services/{service_id}/env; POST /services/{service_id}/env;
DELETE /services/{service_id}/env; POST /services/{service_id}/env/export; POST /snapshots;
GET /snapshots; GET /snapshots/{snapshot_id}; DELETE /snapshots/{snapshot_id};
POST /snapshots/{snapshot_id}/lock; POST /snapshots/{snapshot_id}/unlock;
POST /snapshots/{snapshot_id}/restore; POST /snapshots/{snapshot_id}/clone; POST /images;
GET /images; GET /images/owned; GET /images/shared; GET /images/public; GET /images/{image_id};
DELETE /images/{image_id}; POST /images/{image_id}/lock; POST /images/{image_id}/unlock;
POST /images/{image_id}/visibility; POST /images/{image_id}/grant; POST /images/{image_id}/revoke;
GET /images/{image_id}/trusted; POST /images/{image_id}/transfer; POST /images/{image_id}/spawn;
POST /images/{image_id}/clone; POST /image; POST /keys/validate; GET /keys/self; GET /health;
GET /cluster; GET /stats; GET /pools; GET /logs; GET /logs/stream; GET /openapi;
GET /pricing-for-agents.json; GET /pricing-for-agents.xml; GET /pricing-for-agents.yaml;
GET /pricing-for-agents; POST /api/invoices; GET /payment/{invoice_id}/status;
GET /api/keys/validate; GET /api/gift-cards/pricing; POST /api/gift-cards/create;
POST /api/gift-cards/redeem; GET /api/gift-cards/{gift_id}/status; GET /keys/extend;
GET /logs/{source}; GET /logs/{source}/stream; POST /jobs/{job_id}/cancel; GET /jobs/{job_id}/wait;
POST /services/{service_id}/resize; POST /services/{service_id}/wake; POST /images/publish;
GET /images/{image_id}/access; POST /images/{image_id}/access;
POST /images/{image_id}/access/grant; POST /images/{image_id}/access/revoke;
DELETE /images/{image_id}/access/{key}; POST /images/{image_id}/grant-access;
POST /images/{image_id}/revoke-access; GET /paas/logs; POST /paas/logs; GET /paas/logs/stream;
POST /keys/am-i-throttled; POST /keys/stats; GET /docs; GET /static/llms.txt; POST /api/checkout;
GET /pay/{invoice_id}
"""
"""The wire facts' list (ii), 1 to 110, but the socket of number 16."""


def unnamed(path: str) -> str:
    """A path with its parameters' names taken off."""
    return re.sub(r"\{\w+\}", "{}", written(path))


@pytest.fixture
async def document(api: Any) -> Any:
    return (await api.http.get("/openapi.json")).json()


async def test_every_route_is_in_the_document_and_the_reverse(api: Any, document: Any) -> None:
    served = {
        (method, written(route.path))
        for route in api.app.routes
        if isinstance(route, Route) and not route.path.startswith(FOREIGN_PREFIXES)
        for method in route.methods or ()
        if method != "HEAD"
    }
    told = {(method, path) for method, path, _ in operations(document)}
    assert told == served


async def test_every_number_of_the_wire_facts_is_there(document: Any) -> None:
    told = {(method, unnamed(path)) for method, path, _ in operations(document)}
    wanted = {
        (method, unnamed(path))
        for method, _, path in (each.strip().partition(" ") for each in NUMBERED.split(";"))
    }
    assert len(wanted) == 111  # 110, less the socket; number 78 stands for four paths, 108 for 69
    assert wanted <= told


async def test_the_document_is_one(document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    openapi_spec_validator.validate(document)
    broken = {**document, "paths": {"/x": {"get": {"responses": {"200": {}}}}}}
    with pytest.raises(OpenAPIValidationError):
        openapi_spec_validator.validate(broken)
    schema = schemathesis.openapi.from_dict(document)
    found = [result.ok() for result in schema.get_all_operations()]
    assert len(found) == len(list(operations(document)))
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        assert operation["summary"], where
        inside = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
        assert inside == re.findall(r"\{(\w+)\}", path), where
        # What is not offered here has no success: image generation.
        wanted = ("5",) if path == "/image" else ("2", "3")
        assert any(status.startswith(wanted) for status in operation["responses"]), where
        for status, answer in operation["responses"].items():
            assert answer["description"], (where, status)
            for content in answer.get("content", {}).values():
                check_schema(content["schema"])
        for content in operation.get("requestBody", {}).get("content", {}).values():
            check_schema(content["schema"])


def check_schema(schema: Any) -> None:
    if schema != {"$ref": "#/components/schemas/Error"}:
        jsonschema_rs.meta.validate(
            {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
        )


async def test_signed_calls_say_so_and_may_be_refused(document: Any) -> None:
    for method, path, operation in operations(document):
        signed = operation["security"] == [{"publicKey": [], "timestamp": [], "signature": []}]
        assert signed == ("429" in operation["responses"] and "401" in operation["responses"]) or (
            path.startswith(("/keys/am-i", "/keys/stats"))
        ), (method, path)


async def test_the_same_document_has_two_names(api: Any, document: Any) -> None:
    other = await api.http.get("/openapi")
    assert other.json() == document
    assert other.headers["content-type"] == "application/json"
    assert ": " not in other.text.split("description")[0]


async def test_the_page_and_the_text_name_every_current_call(api: Any, document: Any) -> None:
    page = await api.http.get("/docs")
    text = await api.http.get("/static/llms.txt")
    assert page.headers["content-type"].startswith("text/html")
    assert text.headers["content-type"].startswith("text/plain")
    assert "http://platform" in text.text
    for method, path, operation in operations(document):
        assert f"<td>{method}</td><td>{path}</td>" in page.text
        assert (f"- {method} {path}: " in text.text) != bool(operation.get("deprecated"))


def test_what_a_description_says_is_what_the_document_says() -> None:
    def nothing(_: Any) -> Any: ...

    endpoint = Endpoint(
        method="POST",
        path="/things/{thing:path}/turn",
        handler=nothing,
        summary="Turn a thing.",
        tag="things",
        body={"type": "object", "required": ["by"], "properties": {"by": integer(1, 3)}},
        query={"fast": {"type": "boolean"}},
        answers={202: {"type": "object"}},
        refusals=frozenset({404}),
        aliases=(("PUT", "/things/{thing}"),),
    )
    call = Unsigned(method="GET", path="/_test/x", handler=nothing, summary="x", tag="x")
    made = build_document([endpoint], [call])
    assert set(made["paths"]) == {"/things/{thing}/turn", "/things/{thing}", "/health"}
    first = made["paths"]["/things/{thing}/turn"]["post"]
    assert set(first["responses"]) == {"202", "400", "401", "404", "413", "429", "500", "503"}
    assert first["requestBody"]["required"] is True
    assert "deprecated" not in first
    assert made["paths"]["/things/{thing}"]["put"]["deprecated"] is True
    names = [(each["name"], each["in"]) for each in first["parameters"]]
    assert names == [("thing", "path"), ("fast", "query"), ("Idempotency-Key", "header")]
