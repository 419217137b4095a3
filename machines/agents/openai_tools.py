"""OpenAI-style function tools over the dispatcher (paper, Phase 6: BTC).

The schema is what the OpenAI SDK and the Vercel AI SDK take; the loop is theirs, too::

    messages ──► model ──► tool_calls ──► dispatcher ──► tool messages ──► model ──► ... ──► text

`client` is an `openai.AsyncOpenAI`, or whatever has its `chat.completions.create`; nothing of the
SDK is imported here, so the schemas and the dispatching need no extra.

What a model gets wrong (a tool that is not, arguments that are no JSON) is told to it as the
result of its call.  A conversation that is resumed with its messages calls nothing twice: what was
begun under a `tool_call_id` is found again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from engine.errors import TurtlesError
from machines.agents.capabilities import Offer
from machines.agents.dispatcher import Dispatcher, Report

ROUNDS_MAX = 40
"""A model that still calls tools after so many answers goes in circles."""


class TooManyRounds(TurtlesError):
    """The model never stopped calling tools."""


def function_tools(offers: Iterable[Offer]) -> list[dict[str, Any]]:
    """The `tools` of a request."""
    return [
        {
            "type": "function",
            "function": {
                "name": one.name,
                "description": one.description,
                "parameters": one.parameters,
            },
        }
        for one in offers
    ]


async def answer_calls(
    dispatcher: Dispatcher,
    calls: Iterable[Mapping[str, Any]],
    *,
    conversation: str,
    report: Report | None = None,
) -> list[dict[str, Any]]:
    """The tool messages that answer a model's calls, in their order.

    Args:
        calls: `tool_calls` of an assistant's message, as JSON objects.
    """
    messages = []
    for call in calls:
        answer = await _answer(dispatcher, call, conversation, report)
        content = json.dumps(answer, ensure_ascii=False)
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})
    return messages


async def _answer(
    dispatcher: Dispatcher, call: Mapping[str, Any], conversation: str, report: Report | None
) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return {"error": "BadArguments", "message": "the arguments are not JSON"}
    try:
        return await dispatcher.call(
            function["name"],
            arguments,
            conversation=conversation,
            call_id=f"{conversation}:{call['id']}",
            report=report,
        )
    except TurtlesError as error:
        return {"error": type(error).__name__, "message": str(error)}


async def converse(
    client: Any,
    dispatcher: Dispatcher,
    messages: Iterable[Mapping[str, Any]],
    *,
    model: str,
    conversation: str,
    report: Report | None = None,
) -> list[dict[str, Any]]:
    """Let a model talk and call tools until it only talks; all messages, the new ones at the end.

    Raises:
        TooManyRounds: it calls tools without end.
    """
    said = [dict(one) for one in messages]
    tools = function_tools(dispatcher.offers)
    for _ in range(ROUNDS_MAX):
        last = said[-1] if said else {}
        if not last.get("tool_calls"):
            reply = await client.chat.completions.create(model=model, messages=said, tools=tools)
            last = reply.choices[0].message.model_dump(exclude_none=True)
            said.append(last)
        if not last.get("tool_calls"):
            return said
        said += await answer_calls(
            dispatcher, last["tool_calls"], conversation=conversation, report=report
        )
    raise TooManyRounds(f"the model called tools in {ROUNDS_MAX} answers, one after another")
