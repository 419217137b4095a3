"""Unsigned routes: bounded bodies, refusals, a busy database."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from engine.errors import StoreBusy
from machines.platform.replies import Problem, reply
from machines.platform.unsigned import BODY_BYTES_MAX, Unsigned, UnsignedRoute, read_object
from machines.platform.wire import ANY_OBJECT


async def echo(request: Request) -> Response:
    return reply(await read_object(request))


async def refuse(_request: Request) -> Response:
    raise Problem(418, "teapot", "no coffee here")


async def busy(_request: Request) -> Response:
    raise StoreBusy("locked")


@pytest.fixture
def http() -> httpx.AsyncClient:
    routes = [
        UnsignedRoute(
            Unsigned(
                method="POST", path=f"/{handler.__name__}", handler=handler, summary="", tag=""
            )
        )
        for handler in (echo, refuse, busy)
    ]
    transport = httpx.ASGITransport(app=Starlette(routes=routes))
    return httpx.AsyncClient(transport=transport, base_url="http://platform")


async def test_an_object_is_read(http: httpx.AsyncClient) -> None:
    assert (await http.post("/echo", json={"a": 1})).json() == {"a": 1}
    assert (await http.post("/echo")).json() == {}


async def test_a_problem_and_a_busy_database_are_answers(http: httpx.AsyncClient) -> None:
    refused = await http.post("/refuse")
    assert (refused.status_code, refused.json()["error"]) == (418, "teapot")
    waits = await http.post("/busy")
    assert (waits.status_code, waits.json()["error"]) == (503, "busy")
    assert waits.headers["retry-after"] == "1"


@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff", b"1"])
async def test_what_is_no_object_is_refused(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post("/echo", content=body)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_json")


async def test_a_long_body_is_refused_announced_or_not(http: httpx.AsyncClient) -> None:
    async def pieces():
        for _ in range(3):
            yield b" " * (BODY_BYTES_MAX // 2)

    long = b" " * (BODY_BYTES_MAX + 1)
    for answer in (
        await http.post("/echo", content=long),
        await http.post("/echo", content=pieces()),
    ):
        assert (answer.status_code, answer.json()["error"]) == (413, "body_too_large")
    assert (await http.post("/echo", content=long[1:])).status_code == 200


def test_statuses_follow_from_the_description() -> None:
    plain = Unsigned(method="GET", path="/x", handler=echo, summary="", tag="")
    assert plain.statuses == {200, 500, 503}
    taking = Unsigned(
        method="POST",
        path="/x",
        handler=echo,
        summary="",
        tag="",
        body=ANY_OBJECT,
        refusals=frozenset({404}),
    )
    assert taking.statuses == {200, 400, 404, 413, 500, 503}
