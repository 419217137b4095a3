"""The capability manifest, and what runs its commands."""

from __future__ import annotations

import json
from typing import Any

import pytest

from machines.agents.capabilities import offers
from machines.agents.manifest import SHAPE, CommandRunner, NoCommand, command_of, manifest


def test_everything_is_in_it() -> None:
    made = manifest()
    assert json.loads(json.dumps(made)) == made
    commands = {one["name"]: one for one in made["capabilities"]}
    assert set(commands) == {one.name for one in offers()} | {"finish"}
    bought = commands["provision_key"]["parameters"]
    assert bought["currency"]["required"] is True and bought["tier"]["required"] is False
    assert bought["currency"]["enum"] == ["XMR", "BTC", "LTC", "DOGE"]


@pytest.mark.parametrize(
    ("reply", "command"),
    [
        ('{"command": {"name": "a", "args": {"x": 1}}}', ("a", {"x": 1})),
        ('{"command": {"name": "a"}}', ("a", {})),
        ('{"command": {"name": "a", "args": null}}', ("a", {})),
        ('I will {do} it:\n```json\n{"thoughts": {}, "command": {"name": "a"}}\n```', ("a", {})),
        ('{"thoughts": {"text": "{"}, "command": {"name": "b"}} {"command": {"name": "c"}}',
         ("b", {})),
    ],
)  # fmt: skip
def test_the_command_is_found(reply: str, command: Any) -> None:
    assert command_of(reply) == command


@pytest.mark.parametrize(
    "reply", ["", "{", "no", "[1]", '{"command": "a"}', '{"command": {"name": 5}}', "{" * 5_000]
)
def test_no_command_is_told_with_what_one_looks_like(reply: str) -> None:
    with pytest.raises(NoCommand) as refused:
        command_of(reply)
    assert SHAPE in str(refused.value)


async def test_commands_run_and_what_is_wrong_comes_back(bench: Any) -> None:
    runner = CommandRunner(bench.dispatcher, conversation="c")

    async def say(name: str, **arguments: Any) -> dict[str, Any]:
        return await runner.run(json.dumps({"command": {"name": name, "args": arguments}}))

    bought = await say("provision_key", currency="DOGE")
    assert (bought["status"], bought["result"]["output"]["paid_cents"]) == ("success", 700)
    assert (await say("provision_key", currency="DOGE"))["result"]["repeated"] is True
    wrong = await say("provision_key", currency="EUR")
    assert (wrong["status"], wrong["result"]["error"]) == ("error", "BadArguments")
    assert (await say("finish"))["status"] == "finished"
    nothing = await runner.run("hello")
    assert (nothing["command"], nothing["result"]["error"]) == ("", "NoCommand")
    assert bench.embedded.spends() == 1
