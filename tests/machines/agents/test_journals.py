"""Five frameworks, one algorithm: the same plan gives the same journals, but for what must differ.

Paired as in the paper: MCP pays in XMR, function tools in BTC, LangChain in LTC, the manifest in
DOGE, plain HTTP in any.  Each goes two ways: step by step with tools, and the whole plan at once.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from mcp import Client
from starlette.applications import Starlette

from engine.secret import Secret
from machines.agents.journals import Step, Story, differences, hidden, story_of
from machines.agents.langchain_tools import langchain_tools
from machines.agents.manifest import CommandRunner
from machines.agents.mcp_server import make_server
from machines.agents.openai_tools import converse
from machines.agents.plain_http import signed_routes

PYTHON = {"shell": "python3"}
Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


# -- the five -------------------------------------------------------------------------------------


async def by_mcp(bench: Any, conversation: str, plan: Callable[[Call], Awaitable[Any]]) -> Any:
    async with Client(make_server(bench.another(conversation=conversation))) as client:

        async def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
            answer = await client.call_tool(name, arguments)
            assert not answer.is_error, answer.structured_content
            return dict(answer.structured_content or {})

        return await plan(call)


async def by_functions(bench: Any, conversation: str, plan: Any) -> Any:
    """A model of one call at a time: it says what the plan says."""

    async def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        asked = [{"role": "user", "content": f"please {name}"}]
        said = await converse(
            SimpleNamespace(chat=SimpleNamespace(completions=OneCall(name, arguments))),
            bench.dispatcher, asked, model="any", conversation=conversation,
        )  # fmt: skip
        (told,) = [json.loads(one["content"]) for one in said if one["role"] == "tool"]
        return told

    return await plan(call)


class OneCall:
    """A model that calls one tool and is content."""

    def __init__(self, name: str, arguments: dict[str, Any]) -> None:
        self.function = {"name": name, "arguments": json.dumps(arguments)}

    async def create(self, *, messages: list[Any], **_options: Any) -> Any:
        message: dict[str, Any] = {"role": "assistant", "content": "done"}
        if messages[-1]["role"] == "user":
            call = {"id": str(id(self)), "type": "function", "function": self.function}
            message = {"role": "assistant", "tool_calls": [call]}
        reply = SimpleNamespace(model_dump=lambda exclude_none: message)
        return SimpleNamespace(choices=[SimpleNamespace(message=reply)])


async def by_langchain(bench: Any, conversation: str, plan: Any) -> Any:
    tools = {t.name: t for t in langchain_tools(bench.dispatcher, conversation=conversation)}

    async def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        return dict(json.loads(await tools[name].ainvoke(arguments)))

    return await plan(call)


async def by_manifest(bench: Any, conversation: str, plan: Any) -> Any:
    runner = CommandRunner(bench.dispatcher, conversation=conversation)

    async def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        reply = {"thoughts": {"text": "next"}, "command": {"name": name, "args": arguments}}
        told = await runner.run(f"```json\n{json.dumps(reply)}\n```")
        assert told["status"] == "success", told
        return dict(told["result"])

    return await plan(call)


async def by_http(bench: Any, conversation: str, plan: Any) -> Any:
    token, now_seconds = "a token", 1_700_000_000
    dispatcher = bench.another(conversation=conversation)
    routes = signed_routes(dispatcher, Secret(token), lambda: now_seconds * 1_000)
    network = httpx.ASGITransport(app=Starlette(routes=routes))
    async with httpx.AsyncClient(transport=network, base_url="http://agents") as http:

        async def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
            body = json.dumps(arguments).encode()
            signed = f"{now_seconds}:POST:/call/{name}:".encode() + body
            headers = {
                "X-Timestamp": str(now_seconds),
                "X-Signature": hmac.new(token.encode(), signed, hashlib.sha256).hexdigest(),
            }
            answer = await http.post(f"/call/{name}", content=body, headers=headers, timeout=60)
            assert answer.status_code == 200, answer.text
            return dict(answer.json())

        return await plan(call)


FIVE = {
    "mcp": (by_mcp, "XMR"),
    "functions": (by_functions, "BTC"),
    "langchain": (by_langchain, "LTC"),
    "manifest": (by_manifest, "DOGE"),
    "http": (by_http, "LTC"),
}


# -- the plan -------------------------------------------------------------------------------------


def stepwise(bench: Any, currency: str, *, code: str = "x = 42", freezes: bool = True) -> Any:
    """The paper's algorithm, call by call; its answers, in order."""

    async def plan(call: Call) -> list[tuple[str, dict[str, Any]]]:
        answers: list[tuple[str, dict[str, Any]]] = []

        async def step(name: str, **arguments: Any) -> dict[str, Any]:
            answers.append((name, await call(name, arguments)))
            return answers[-1][1]

        await step("discover")
        await step("get_prices")
        bought = await step("provision_key", currency=currency, budget_cents=700)
        key = {"public_key": bought["output"]["public_key"]}
        await step("prove_key", **key)
        made = await step("createSession", **PYTHON, **key)
        one = {"session_id": made["session_id"], **key}
        await step("executeInSession", command=code, **one)
        if freezes:
            await step("freezeSession", **one)
            await step("unfreezeSession", **one)
        bench.revive()  # a key of tier 1 may ask seven times a minute
        await step("executeInSession", command="print(x)", **one)
        await step("deleteSession", **one)
        return answers

    return plan


def at_once(currency: str, **changes: Any) -> Any:
    """The same as one run."""

    async def plan(call: Call) -> dict[str, Any]:
        return await call("self_sandbox", {"currency": currency, "budget_cents": 700, **changes})

    return plan


async def stories(bench: Any, answers: list[tuple[str, dict[str, Any]]]) -> list[Story]:
    runs = [told["run_id"] for _, told in answers if "run_id" in told]
    return [await story_of(bench.app, run_id) for run_id in runs]


# -- what must hold -------------------------------------------------------------------------------


@pytest.mark.acceptance
async def test_five_frameworks_go_the_same_way_step_by_step(bench: Any) -> None:
    told: dict[str, Any] = {}
    for name, (drive, currency) in FIVE.items():
        answers = await drive(bench, name, stepwise(bench, currency))
        assert answers[-2][1]["stdout"].strip() == "42"
        shown = [(tool, hidden(_lasting(answer))) for tool, answer in answers]
        told[name] = (shown, await stories(bench, answers))
        bench.revive()
    first = told.pop("mcp")
    assert [story.machine for story in first[1]] == ["Discovery", "Payment", "Authentication"]
    for name, other in told.items():
        assert "\n".join(differences(first, other)) == "", name
    assert bench.embedded.spends() == 5
    assert bench.embedded.left() == {}


async def test_five_frameworks_go_the_same_way_at_once(bench: Any) -> None:
    told = {}
    for name, (drive, currency) in FIVE.items():
        answer = await drive(bench, name, at_once(currency))
        assert (answer["state"], answer["output"]["second_stdout"]) == ("done", "42\n"), answer
        told[name] = await story_of(bench.app, answer["run_id"])
        bench.revive()
    first = told.pop("mcp")
    passed = [step.target for step in first.steps]
    assert passed == [
        "discovering", "learning_prices", "provisioning", "proving", "opening", "executing",
        "freezing", "unfreezing", "executing_again", "ending", "done",
    ]  # fmt: skip
    assert [child.machine for child in first.children] == [
        "Discovery", "Payment", "Authentication",
    ]  # fmt: skip
    for name, other in told.items():
        assert "\n".join(differences(first, other)) == "", name
    assert bench.embedded.spends() == 5
    assert bench.embedded.left() == {}


def _lasting(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without how long things took, and without what only the caller chose."""
    dropped = {"execution_time", "duration", "runtime", "idempotency_key"}
    return {name: each for name, each in answer.items() if name not in dropped}


@pytest.mark.acceptance
@pytest.mark.parametrize(
    "wrong",
    [
        {"code": "x = 41"},
        {"freezes": False},
    ],
)
async def test_a_framework_that_does_something_else_is_found_out(bench: Any, wrong: Any) -> None:
    right = await by_mcp(bench, "right", stepwise(bench, "LTC"))
    bench.revive()
    other = await by_mcp(bench, "wrong", stepwise(bench, "LTC", **wrong))
    shown = [[(tool, hidden(_lasting(one))) for tool, one in told] for told in (right, other)]
    assert differences(*shown) != []


@pytest.mark.acceptance
@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        ({"first_code": "x = 41"}, "forgotten"),
        ({"tier": 2}, "unaffordable"),
        ({"gift_code": "no-such-card-here"}, "card_refused"),
    ],
)
async def test_a_plan_that_goes_another_way_is_found_out(
    bench: Any, wrong: dict[str, Any], place: str
) -> None:
    right = await by_http(bench, "right", at_once("LTC"))
    bench.revive()
    dispatcher = bench.another(conversation="wrong")
    if "first_code" in wrong:
        context = (await bench.app.get(right["run_id"])).context
        changed = {"currency": "LTC", "budget_cents": 700, "poll_ms": context.poll_ms, **wrong}
        begun = await bench.app.start("Agent", msgspec.convert(changed, type(context)))
        other = await dispatcher.call("wait_for_run", {"run_id": begun.run_id})
    else:
        asked = {"currency": "LTC", "budget_cents": 700, **wrong}
        other = await dispatcher.call("self_sandbox", asked)
    assert other["state"] == place
    one, two = [await story_of(bench.app, told["run_id"]) for told in (right, other)]
    assert differences(one, two) != []
    assert bench.embedded.left() == {}


def test_what_must_differ_is_hidden_and_nothing_else() -> None:
    shown = hidden(
        {"run_id": "r", "paid_cents": 700, "expires_ms": 5, "address": "a", "public_key": "k",
         "stdout": "42", "currency": "BTC", "reason": "", "deep": [{"txid": "t", "state": "s"}],
         "secret_key": None}
    )  # fmt: skip
    assert shown == {
        "run_id": "*", "paid_cents": 700, "expires_ms": "*", "address": "*", "public_key": "*",
        "stdout": "42", "currency": "*", "reason": "", "deep": [{"txid": "*", "state": "s"}],
        "secret_key": None,
    }  # fmt: skip


def _story(*targets: str) -> Story:
    return Story("M", tuple(Step("e", None, target, None, {"n": 1}) for target in targets))


def test_differences_are_told_with_their_place() -> None:
    assert differences(_story("a", "b"), _story("a", "b")) == []
    assert differences(_story("a", "b"), _story("a", "c")) == ['.steps[1].target: "b" / "c"']
    (length,) = differences(_story("a"), _story("a", "b"))
    assert length.startswith(".steps: [")
    assert differences({"a": 1}, {"b": 1}) == [".a: 1 / null", ".b: null / 1"]
