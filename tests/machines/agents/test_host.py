"""What `turtles mcp` stands on: options, the token, both doors over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from typer.testing import CliRunner

from engine.errors import UsageError
from machines import cli
from machines.agents.host import HostOptions, read_token, serve_http


def test_the_token_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    token = read_token(tmp_path)
    assert len(token.reveal()) > 40 and token.reveal() not in repr(token)
    assert read_token(tmp_path) == token
    assert stat.S_IMODE((tmp_path / "agents.token").stat().st_mode) == 0o600


def test_options_that_cannot_be(tmp_path: Path) -> None:
    HostOptions(data_dir=tmp_path, http="127.0.0.1:0").check()
    for wrong in ({"http": "0.0.0.0:80"}, {"conversation": ""}):
        with pytest.raises(UsageError):
            HostOptions(data_dir=tmp_path, **wrong).check()
    told = CliRunner().invoke(cli.cli, ["mcp", "--http", "example.com:1"])
    assert told.exit_code == 2 and "expected a loopback address" in told.stderr


async def test_both_doors_over_real_sockets(bench: Any, tmp_path: Path) -> None:
    token, said = read_token(tmp_path), []
    ready = asyncio.Event()

    def say(line: str) -> None:
        said.append(line)
        ready.set()

    serving = asyncio.create_task(serve_http(bench.dispatcher, token, "127.0.0.1", 0, say=say))
    try:
        await asyncio.wait_for(ready.wait(), 20)
        url = said[0].removeprefix("ready ")
        headers = {"Authorization": f"Bearer {token.reveal()}"}
        async with (
            httpx.AsyncClient(headers=headers, trust_env=False) as http,
            Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
        ):
            answer = await client.call_tool("get_prices", {})
            assert len((answer.structured_content or {})["prices"]) == 160
            assert (await http.get(f"{url}/call")).status_code == 401
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
