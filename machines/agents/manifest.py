"""An AutoGPT-style capability manifest, and what runs its commands (paper, Phase 6: DOGE).

The manifest is JSON that goes into a model's prompt; the model answers with JSON that names one
command, and reads what came of it in the next prompt::

    {"thoughts": {...}, "command": {"name": "provision_key", "args": {"currency": "DOGE"}}}
    {"command": "provision_key", "status": "success", "result": {...}}

Whatever the model writes around the JSON (fences, prose) is passed over; what is no command at all
is answered by saying what one looks like.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from engine.errors import TurtlesError
from machines.agents.capabilities import Offer, offers
from machines.agents.dispatcher import Dispatcher, Report

SHAPE = '{"command": {"name": "NAME", "args": {...}}}'
FINISH = "finish"
"""The command with which a model says that it has done what it wanted."""


def manifest(offered: Iterable[Offer] | None = None) -> dict[str, Any]:
    """Everything that may be commanded."""
    commands = [_command(one) for one in (offers() if offered is None else offered)]
    commands.append({"name": FINISH, "description": "Stop here.", "parameters": {}})
    return {
        "schema_version": "v1",
        "name_for_model": "turtles",
        "description_for_model": "Sandboxes that the agent pays for itself.",
        "reply_with": SHAPE,
        "capabilities": commands,
    }


def _command(offer: Offer) -> dict[str, Any]:
    required = offer.parameters["required"]
    parameters = {
        name: {**schema, "required": name in required}
        for name, schema in offer.parameters["properties"].items()
    }
    return {"name": offer.name, "description": offer.description, "parameters": parameters}


class NoCommand(TurtlesError):
    """The model's reply names no command."""


def command_of(reply: str) -> tuple[str, Mapping[str, Any]]:
    """Name and arguments of the command in a model's reply.

    Raises:
        NoCommand: there is none.
    """
    decoder = json.JSONDecoder()
    for start in (place for place, letter in enumerate(reply) if letter == "{"):
        try:
            found, _ = decoder.raw_decode(reply, start)
        except (ValueError, RecursionError):
            continue
        command = found.get("command")
        if isinstance(command, dict) and isinstance(command.get("name"), str):
            arguments = command.get("args", {})
            return command["name"], arguments if isinstance(arguments, dict) else {}
    raise NoCommand(f"the reply names no command; expected {SHAPE}")


class CommandRunner:
    """Runs one command after another, for one conversation."""

    def __init__(
        self, dispatcher: Dispatcher, *, conversation: str, report: Report | None = None
    ) -> None:
        self._dispatcher = dispatcher
        self._conversation = conversation
        self._report = report

    async def run(self, reply: str) -> dict[str, Any]:
        """What came of the command in a model's reply; never raises what the model can mend."""
        name = ""
        try:
            name, arguments = command_of(reply)
            if name == FINISH:
                return {"command": name, "status": "finished", "result": {}}
            result = await self._dispatcher.call(
                name, arguments, conversation=self._conversation, report=self._report
            )
        except TurtlesError as error:
            told = {"error": type(error).__name__, "message": str(error)}
            return {"command": name, "status": "error", "result": told}
        return {"command": name, "status": "success", "result": result}
