"""The MCP server with the official client: in this process, and as a process that is killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from engine.secret import Secret
from machines.agents.host import loopback
from machines.agents.mcp_server import http_app, make_server
from machines.agents.tools import TOOLS

ROOT = Path(__file__).resolve().parents[3]


async def test_every_tool_has_its_schema(bench: Any) -> None:
    async with Client(make_server(bench.dispatcher)) as client:
        listed = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert {tool.name for tool in TOOLS} <= set(listed)
    assert len(listed) == len(bench.dispatcher.offers) > len(TOOLS)
    schema = listed["provision_key"].input_schema
    assert schema["required"] == ["currency"]
    assert schema["properties"]["currency"]["enum"] == ["XMR", "BTC", "LTC", "DOGE"]
    assert {"idempotency_key", "wait_seconds"} <= set(schema["properties"])


async def test_long_work_is_told_step_by_step_and_a_repeat_pays_nothing(bench: Any) -> None:
    heard: list[str] = []

    async def progress(_number: float, _total: float | None, line: str | None) -> None:
        heard.append(line or "")

    async with Client(make_server(bench.dispatcher)) as client:
        asked = {"currency": "XMR"}
        bought = await client.call_tool("provision_key", asked, progress_callback=progress)
        again = await client.call_tool("provision_key", asked)
    assert heard[0] == "Payment pricing" and heard[-1] == "Payment completed"
    assert {"Payment paying", "Payment confirming"} < set(heard)
    one, two = bought.structured_content or {}, again.structured_content or {}
    assert (one["repeated"], two["repeated"]) == (False, True)
    assert one["run_id"] == two["run_id"]
    assert json.loads(bought.content[0].text) == one  # type: ignore[union-attr]
    assert one["output"]["secret_key"] == "***"
    assert bench.embedded.spends() == 1


async def test_what_is_wrong_is_a_result_for_the_model(bench: Any) -> None:
    async with Client(make_server(bench.dispatcher)) as client:
        for name, arguments, words in (
            ("provision_key", {"currency": "EUR"}, "expected one of XMR, BTC, LTC, DOGE"),
            ("provision_keys", {}, "no tool 'provision_keys'. There are: discover, "),
            ("createSession", {}, "no key was named; give public_key. Keys here: none"),
            ("see_run", {"run_id": "r0"}, "no run 'r0'"),
        ):
            answer = await client.call_tool(name, arguments)
            assert answer.is_error
            assert words in (answer.structured_content or {})["message"]


async def test_streamable_http_wants_the_token(bench: Any) -> None:
    served = http_app(bench.dispatcher, Secret("right"), host="127.0.0.1")
    network = httpx.ASGITransport(app=served)
    url = "http://127.0.0.1:8700/mcp"
    async with httpx.AsyncClient(transport=network) as http:
        for given in ({}, {"Authorization": "Bearer wrong"}):
            assert (await http.post(url, json={}, headers=given)).status_code == 401
    headers = {"Authorization": "Bearer right"}
    async with (
        served.served.router.lifespan_context(served.served),
        httpx.AsyncClient(transport=network, headers=headers) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        answer = await client.call_tool("get_prices", {})
    assert len((answer.structured_content or {})["prices"]) == 160


@pytest.mark.parametrize("address", ["0.0.0.0:80", "example.com:1", "127.0.0.1", "127.0.0.1:x",
                                     "127.0.0.1:99999", "[::2]:80"])  # fmt: skip
def test_only_loopback_is_served(address: str) -> None:
    with pytest.raises(Exception, match="expected a loopback address"):
        loopback(address)
    assert loopback("127.0.0.1:8700") == ("127.0.0.1", 8700)
    assert loopback("[::1]:0") == ("::1", 0)


@pytest.mark.acceptance
@pytest.mark.timeout(120)
def test_the_session_on_the_page_is_what_happens(tmp_path: Path) -> None:
    """docs/agents.md: a client over stdio, the server SIGKILLed twice, one payment."""
    text = (ROOT / "docs" / "agents.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (printed,) = re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True,
        timeout=100, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed
