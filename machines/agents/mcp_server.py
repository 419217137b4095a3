"""An MCP server over the dispatcher, with the official `mcp` package (paper, Phase 6: XMR).

Every capability and tool is an MCP tool with its schema.  What goes wrong is a result with
`isError` and a message for the model, never a broken connection.  While a run is waited for, its
steps are progress notifications, to a client that asked for them with a progress token.

A client may name a call by `idempotency_key` among the arguments; otherwise the name follows from
the server's conversation, so that a client which asks again after this process was killed and
started again meets the same run.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Sequence
from typing import Any

import mcp_types as types
from mcp.server.lowlevel.server import Server
from mcp.server.stdio import stdio_server
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from engine.errors import TurtlesError
from engine.secret import Secret
from machines.agents.dispatcher import Dispatcher, Progress

INSTRUCTIONS = (
    "Sandboxes that you pay for yourself. Start with get_prices and provision_key; then "
    "createSession, executeInSession, freezeSession; or self_sandbox for all of it at once. "
    "A repeated call under the same idempotency_key does nothing twice."
)


def make_server(dispatcher: Dispatcher, *, version: str = "") -> Server[Any]:
    """The MCP server of a dispatcher; how it is connected is the caller's."""

    async def list_tools(
        _context: Any, _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        tools = [
            types.Tool(name=one.name, description=one.description, input_schema=one.parameters)
            for one in dispatcher.offers
        ]
        return types.ListToolsResult(tools=tools)

    async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        async def report(step: Progress) -> None:
            await context.session.report_progress(step.seq, None, step.line())

        try:
            answer = await dispatcher.call(params.name, params.arguments, report=report)
        except TurtlesError as error:
            return _result({"error": type(error).__name__, "message": str(error)}, failed=True)
        return _result(answer, failed=False)

    return Server(
        "turtles",
        version=version,
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _result(answer: dict[str, Any], *, failed: bool) -> types.CallToolResult:
    text = json.dumps(answer, ensure_ascii=False)
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text)],
        structured_content=answer,
        is_error=failed,
    )


class TokenGuard:
    """Lets pass, below `/mcp`, whoever shows the token; whatever else is its own affair."""

    def __init__(self, served: Starlette, token: Secret[str]) -> None:
        self.served = served
        self._expected = f"Bearer {token.reveal()}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection."""
        if scope["type"] == "http" and scope["path"].startswith("/mcp"):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                told = {"error": "BadToken", "message": "Authorization: Bearer TOKEN is missing"}
                await JSONResponse(told, status_code=401)(scope, receive, send)
                return
        await self.served(scope, receive, send)


def http_app(
    dispatcher: Dispatcher, token: Secret[str], *, host: str, routes: Sequence[Route] = ()
) -> TokenGuard:
    """Streamable HTTP at `/mcp` for whoever shows the token, beside other routes."""
    server = make_server(dispatcher)
    served = server.streamable_http_app(host=host, custom_starlette_routes=[*routes])
    return TokenGuard(served, token)


async def serve_stdio(dispatcher: Dispatcher, *, version: str = "") -> None:
    """Serve one client over stdin and stdout, until it hangs up."""
    server = make_server(dispatcher, version=version)
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())
