"""Function tools with the official SDK, against a local stub that speaks the API."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from machines.agents import openai_tools
from machines.agents.capabilities import offers
from machines.agents.openai_tools import TooManyRounds, answer_calls, converse, function_tools


class Stub:
    """An endpoint that answers like a model: the next call that `script` makes of what it read."""

    def __init__(self, script: Any) -> None:
        self.script = script
        self.asked: list[dict[str, Any]] = []
        routes = [Route("/v1/chat/completions", self.complete, methods=["POST"])]
        network = httpx.ASGITransport(app=Starlette(routes=routes))
        self.client = AsyncOpenAI(
            api_key="none", base_url="http://stub/v1",
            http_client=httpx.AsyncClient(transport=network), max_retries=0,
        )  # fmt: skip

    async def complete(self, request: Request) -> JSONResponse:
        body = await request.json()
        self.asked.append(body)
        message = self.script(body["messages"], len(self.asked))
        reason = "tool_calls" if message.get("tool_calls") else "stop"
        reply = {
            "id": "c", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        }  # fmt: skip
        ChatCompletion.model_validate(reply)
        return JSONResponse(reply)


def calling(number: int, *calls: tuple[str, Any]) -> dict[str, Any]:
    made = [
        {"id": f"call_{number}_{place}", "type": "function",
         "function": {"name": name, "arguments": json.dumps(arguments)}}
        for place, (name, arguments) in enumerate(calls)
    ]  # fmt: skip
    return {"role": "assistant", "content": None, "tool_calls": made}


def session(messages: list[dict[str, Any]], number: int) -> dict[str, Any]:
    """A model that gets itself a sandbox, with what the tools told it."""
    told = [json.loads(one["content"]) for one in messages if one["role"] == "tool"]
    match number:
        case 1:
            return calling(1, ("get_prices", {}))
        case 2:
            return calling(2, ("provision_key", {"currency": "BTC"}))
        case 3:
            return calling(3, ("createSession", {"shell": "python3"}), ("healthCheck", {}))
        case 4:
            one = {"session_id": told[2]["id"]}
            return calling(
                4,
                ("executeInSession", {**one, "command": "x = 42"}),
                ("executeInSession", {**one, "command": "print(x)"}),
                ("deleteSession", one),
            )
    return {"role": "assistant", "content": f"it said {told[5]['stdout'].strip()}"}


ASK = [{"role": "user", "content": "get a sandbox and run something"}]


async def test_a_model_gets_itself_a_sandbox(bench: Any) -> None:
    stub = Stub(session)
    said = await converse(stub.client, bench.dispatcher, ASK, model="local", conversation="c")
    assert said[-1]["content"] == "it said 42"
    assert stub.asked[0]["tools"] == function_tools(offers())
    assert (bench.embedded.spends(), bench.embedded.left()) == (1, {})


@pytest.mark.acceptance
async def test_a_conversation_that_is_resumed_calls_nothing_twice(bench: Any) -> None:
    stub = Stub(session)
    whole = await converse(stub.client, bench.dispatcher, ASK, model="local", conversation="c")
    called = next(i for i, one in enumerate(whole) if one.get("tool_calls") and i > 1)
    assert whole[called]["tool_calls"][0]["function"]["name"] == "provision_key"
    bench.revive()
    again = await answer_calls(bench.another(), whole[called]["tool_calls"], conversation="c")
    assert json.loads(again[0]["content"])["repeated"] is True
    assert bench.embedded.spends() == 1


async def test_what_a_model_gets_wrong_is_told_to_it(bench: Any) -> None:
    wrong = calling(1, ("no_such_tool", {}), ("provision_key", {"currency": "EUR"}))["tool_calls"]
    wrong.append({"id": "x", "type": "function", "function": {"name": "run", "arguments": "{"}})
    told = await answer_calls(bench.dispatcher, wrong, conversation="c")
    assert [one["tool_call_id"] for one in told] == ["call_1_0", "call_1_1", "x"]
    errors = [json.loads(one["content"]) for one in told]
    assert [one["error"] for one in errors] == ["UsageError", "BadArguments", "BadArguments"]
    assert errors[2]["message"] == "the arguments are not JSON"


async def test_a_model_that_never_stops_is_stopped(bench: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(openai_tools, "ROUNDS_MAX", 3)
    stub = Stub(lambda messages, number: calling(number, ("list_runs", {})))
    with pytest.raises(TooManyRounds, match="3 answers"):
        await converse(stub.client, bench.dispatcher, ASK, model="m", conversation="c")
