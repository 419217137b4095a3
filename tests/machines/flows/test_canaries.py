"""Canaries: they answer, they count, and they leave nothing."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from machines.flows.canaries import LocalCanaries
from machines.flows.wall_probes import started_ticks


async def _said(*address: object) -> bytes:
    if len(address) == 1:
        reader, writer = await asyncio.open_unix_connection("\0" + str(address[0]))
    else:
        reader, writer = await asyncio.open_connection(*address)
    said = await reader.read()
    writer.close()
    return said


async def test_port_and_socket_answer_the_token_and_are_counted() -> None:
    async with LocalCanaries().placed() as canary:
        assert await _said("127.0.0.1", canary.port) == canary.token.encode()
        assert await _said(canary.socket) == canary.token.encode()
        assert canary.hits == 2
    for address in (("127.0.0.1", canary.port), (canary.socket,)):
        with pytest.raises(ConnectionError):
            await _said(*address)


async def test_each_has_words_of_its_own() -> None:
    async with LocalCanaries().placed() as one, LocalCanaries().placed() as other:
        assert one.port != other.port
        assert len({one.token, other.token, one.nonce, other.nonce}) == 4
        assert one.socket != other.socket


async def test_what_it_tells_is_of_this_host_and_process() -> None:
    async with LocalCanaries().placed() as canary:
        ask = canary.ask()
    root = Path("/").stat()  # noqa: ASYNC240 - one look
    assert ask["places"]["/"] == [root.st_dev, root.st_ino]
    assert ask["process"] == [os.getpid(), started_ticks("self")]
    assert ask["namespaces"]["net"].startswith("net:[")
    assert "hits" not in ask


async def test_a_failure_inside_closes_it() -> None:
    with pytest.raises(KeyError):
        async with LocalCanaries().placed() as canary:
            raise KeyError
    with pytest.raises(ConnectionError):
        await _said("127.0.0.1", canary.port)
