"""Handlers beside the loop: the loop stays free, one of them runs at a time, bodies arrive."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from machines.platform.off_loop import off_the_loop


async def test_a_handler_that_blocks_does_not_block_the_loop() -> None:
    go = threading.Event()
    running: list[int] = []

    async def slow(request: Request) -> Response:
        running.append(1)
        assert sum(running) == 1, "two at once"
        go.wait(10)
        running.pop()
        here = threading.current_thread() is threading.main_thread()
        word = request.path_params["word"]
        return PlainTextResponse(f"{word} {await request.body()!r} {request.method} {here}")

    async def quick(_request: Request) -> Response:
        return PlainTextResponse("quick")

    routes = off_the_loop([Route("/slow/{word}", slow, methods=["POST"])])
    app = Starlette(routes=[*routes, Route("/quick", quick)])
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://platform") as http:
        waiting = [asyncio.create_task(http.post(f"/slow/{n}", content=b"abc")) for n in range(3)]
        assert (await http.get("/quick")).text == "quick"
        assert not any(one.done() for one in waiting)
        go.set()
        answers = await asyncio.gather(*waiting)
    assert [one.text for one in answers] == [f"{n} b'abc' POST False" for n in range(3)]


async def test_what_a_handler_raises_is_raised() -> None:
    async def broken(_request: Request) -> Response:
        raise LookupError("this one")

    app = Starlette(routes=off_the_loop([Route("/", broken)]))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://platform") as http:
        with pytest.raises(LookupError, match="this one"):
            await http.get("/")
