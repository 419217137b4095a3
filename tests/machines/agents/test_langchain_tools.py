"""LangChain tools: schemas, tool calls, and errors for the model."""

from __future__ import annotations

import json
from typing import Any

from langchain_core.utils.function_calling import convert_to_openai_tool

from machines.agents.langchain_tools import langchain_tools
from machines.agents.openai_tools import function_tools


def _tools(bench: Any) -> dict[str, Any]:
    return {tool.name: tool for tool in langchain_tools(bench.dispatcher, conversation="c")}


async def test_the_schema_is_the_same_as_everywhere(bench: Any) -> None:
    tools = _tools(bench)
    for expected in function_tools(bench.dispatcher.offers):
        function = expected["function"]
        made = convert_to_openai_tool(tools[function["name"]])["function"]
        assert made["parameters"]["properties"] == function["parameters"]["properties"]
        assert made["parameters"].get("required", []) == function["parameters"]["required"]
        assert made["description"] == function["description"]


async def test_a_tool_call_gives_a_tool_message(bench: Any) -> None:
    tools = _tools(bench)
    call = {"type": "tool_call", "id": "t1", "name": "provision_key", "args": {"currency": "LTC"}}
    message = await tools["provision_key"].ainvoke(call)
    assert (message.tool_call_id, message.status) == ("t1", "success")
    assert json.loads(message.content)["output"]["paid_cents"] == 700
    again = json.loads(await tools["provision_key"].ainvoke({"currency": "LTC"}))
    assert again["repeated"] is True
    assert bench.embedded.spends() == 1


async def test_what_is_wrong_is_a_message_with_status_error(bench: Any) -> None:
    call = {"type": "tool_call", "id": "t1", "name": "provision_key", "args": {"currency": "EUR"}}
    message = await _tools(bench)["provision_key"].ainvoke(call)
    assert message.status == "error"
    assert "expected one of XMR, BTC, LTC, DOGE" in json.loads(message.content)["message"]
