"""LangChain tools over the dispatcher (paper, Phase 6: LTC); needs the extra `langchain`.

One `StructuredTool` for each capability and tool, with the same JSON Schema as everywhere, so that
`model.bind_tools(langchain_tools(dispatcher))` offers them and an agent's executor calls them.
Answers are JSON text.  What goes wrong is an answer, too (`status="error"` of a `ToolMessage`),
for the model to act on.
"""

from __future__ import annotations

import json
from typing import Any

from langchain_core.tools import StructuredTool, ToolException

from engine.errors import TurtlesError
from machines.agents.capabilities import Offer
from machines.agents.dispatcher import Dispatcher, Report


def langchain_tools(
    dispatcher: Dispatcher, *, conversation: str, report: Report | None = None
) -> list[StructuredTool]:
    """Everything the dispatcher offers, as LangChain tools; asynchronous (`ainvoke`)."""
    return [_tool(dispatcher, one, conversation, report) for one in dispatcher.offers]


def _tool(
    dispatcher: Dispatcher, offer: Offer, conversation: str, report: Report | None
) -> StructuredTool:
    async def call(**arguments: Any) -> str:
        try:
            answer = await dispatcher.call(
                offer.name, arguments, conversation=conversation, report=report
            )
        except TurtlesError as error:
            told = {"error": type(error).__name__, "message": str(error)}
            raise ToolException(json.dumps(told, ensure_ascii=False)) from error
        return json.dumps(answer, ensure_ascii=False)

    return StructuredTool(
        name=offer.name,
        description=offer.description,
        args_schema=offer.parameters,
        coroutine=call,
        handle_tool_error=True,
    )
