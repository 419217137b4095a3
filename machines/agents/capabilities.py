"""What an agent may ask for beyond single calls: runs of our machines, and looks at them.

A capability that names a machine starts one run of it, durable and resumable: the same call again
(by its `idempotency_key`, or by conversation and arguments) is the same run, whatever was killed
meanwhile.  Those without a machine only look.  Schemas are static, so that listing them imports no
machine; a test compares them with the machines' contexts.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from machines.agents.tools import (
    NETWORK,
    NOTHING,
    SECONDS_MAX,
    TOOLS,
    Schema,
    Tool,
    choice,
    flag,
    many,
    takes,
    text,
    whole,
)

KEY_ARGUMENT = "idempotency_key"
OWNER_ARGUMENT = "public_key"
WAIT_ARGUMENT = "wait_seconds"
WAIT_SECONDS_MAX = 3_600
DEPTH_MAX = 8
TIER_MAX = 32


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a machine, or a look.

    Args:
        machine: whose run it starts; None: it only looks, or asks a run to stop.
        fields: names of the machine's context fields, where they differ from the arguments'.
        given: context fields that no argument sets.
        priced: it spends; without `budget_cents` the list price, or what is to be on the card,
            is the most it may.
        keyed: the machine acts with a key that an earlier run has bought; it is filled in.
    """

    name: str
    description: str
    parameters: Schema
    machine: str | None = None
    fields: Mapping[str, str] = msgspec.field(default_factory=dict)
    given: Mapping[str, object] = msgspec.field(default_factory=dict)
    priced: bool = False
    keyed: bool = False


_CURRENCY = choice("Coin to pay with.", "XMR", "BTC", "LTC", "DOGE")
_TIER = whole("Size of the key, 1 to 32: ceil(tier/4) sandboxes at once; 1 unless said.", 1, 32)
_MONTHS = {
    "type": "integer",
    "enum": [1, 3, 6, 12, 24],
    "description": "How long the key lives; 1 unless said.",
}
_BUDGET = whole("The most this may cost, in US cents; the list price unless said.", 0)
_CODE = text("The four words of a gift card.")
_RUN = text("Id of a run, as another tool gave it.")
_WHOSE = text("Which key, unsb-pk-...; needed only where there are several.")
_SMALLEST = {"tier": 1, "months": 1}

CAPABILITIES: tuple[Capability, ...] = (
    Capability(
        name="discover",
        description="Find out where this program runs, and whether it can get sandboxes here.",
        parameters=takes(require_sandbox=flag("Refuse to go on outside of a sandbox.")),
        machine="Discovery",
    ),
    Capability(
        name="get_prices",
        description="What keys cost: tier, months, US cents. Costs nothing, needs no key.",
        parameters=NOTHING,
    ),
    Capability(
        name="provision_key",
        description="Buy a key with coins of the wallet: price, invoice, payment, confirmations, "
        "key. Takes as long as the chain does. The secret is kept, not shown.",
        parameters=takes(
            "currency", currency=_CURRENCY, tier=_TIER, months=_MONTHS, budget_cents=_BUDGET
        ),
        machine="Payment",
        given=_SMALLEST,
        priced=True,
    ),
    Capability(
        name="prove_key",
        description="Prove that a key works, with a signed call; corrects our clock once.",
        parameters=takes(public_key=_WHOSE),
        machine="Authentication",
        keyed=True,
    ),
    Capability(
        name="buy_gift_card",
        description="Buy a card of credit for somebody else, with coins; its code is kept, and "
        "shown by reveal_gift_code.",
        parameters=takes(
            "amount_cents",
            "currency",
            amount_cents=whole("What is on the card, in US cents.", 700),
            currency=_CURRENCY,
            budget_cents=whole("The most this may cost, in US cents; what is on the card.", 0),
            require_approval=flag("Ask the buyer before a key is given for it."),
            email=text("Where the buyer is asked."),
        ),
        machine="GiftCard",
        priced=True,
    ),
    Capability(
        name="redeem_gift_card",
        description="Get a key for a gift card's code; what is left stays on the card.",
        parameters=takes("code", code=_CODE, tier=_TIER, months=_MONTHS, budget_cents=_BUDGET),
        machine="Redemption",
        given=_SMALLEST,
        priced=True,
    ),
    Capability(
        name="execute_code",
        description="Run code in a fresh sandbox as a run of its own: waits for a free slot, "
        "follows the job, says what is missing if the language is not there.",
        parameters=takes(
            "code",
            code=text("The source text."),
            language=text("Its language; found out unless said."),
            stdin=text("What it reads."),
            network_mode=NETWORK,
            ttl_seconds=whole("Seconds it may run; 60 unless said.", 1, SECONDS_MAX),
            public_key=_WHOSE,
        ),
        machine="Execution",
        keyed=True,
    ),
    Capability(
        name="run_session",
        description="Open a session, run commands in it one after another, and end it; one that "
        "stays is made with createSession.",
        parameters=takes(
            "cells",
            cells=many("The commands, in order.", text("A command.")),
            shell=text("bash unless said; python3, node ... as getShells lists them."),
            network_mode=NETWORK,
            public_key=_WHOSE,
        ),
        machine="Session",
        given={"end_after": True},
        keyed=True,
    ),
    Capability(
        name="start_service",
        description="Start a program that stays up, wait until it answers, and hand it over.",
        parameters=takes(
            "name",
            "bootstrap",
            name=text("Its name, and the first part of its address."),
            bootstrap=text("The script that starts it."),
            ports=many("Ports it listens on.", whole("A port.", 1, 65_535)),
            network_mode=NETWORK,
            public_key=_WHOSE,
        ),
        machine="Service",
        given={"then": "hand_over"},
        keyed=True,
    ),
    Capability(
        name="save_snapshot",
        description="Save what a session or service holds, and see that it is ready.",
        parameters=takes(
            "source_type",
            "source_id",
            source_type=choice("What it is taken of.", "session", "service"),
            source_id=text("Which one."),
            name=text("A name to recognize it by."),
            public_key=_WHOSE,
        ),
        machine="Snapshot",
        keyed=True,
    ),
    Capability(
        name="publish_an_image",
        description="Make an image, which outlives its source, and see that it is published.",
        parameters=takes(
            "source_type",
            "source_id",
            source_type=choice("What it is made of.", "session", "service", "snapshot"),
            source_id=text("Which one."),
            name=text("A name to recognize it by."),
            description=text("What it is for."),
            public_key=_WHOSE,
        ),
        machine="Image",
        keyed=True,
    ),
    Capability(
        name="prove_trust",
        description="Open a session and prove from inside that its walls are as promised.",
        parameters=takes(
            trust=choice("The level.", "zerotrust", "semitrusted", "least"),
            keep=flag("Hand the proven session over; otherwise it is ended."),
            public_key=_WHOSE,
        ),
        machine="Trust",
        given={"keep": False},
        keyed=True,
    ),
    Capability(
        name="install_tools",
        description="Put this program into a session, so that code inside can do all this, too.",
        parameters=takes("session_id", session_id=text("Which session."), public_key=_WHOSE),
        machine="ToolInstall",
        keyed=True,
    ),
    Capability(
        name="introspect",
        description="What the platform is and has, and what this key may ask for.",
        parameters=takes(
            budget_cents=whole("What there is to spend, for the answer to what it buys.", 0),
            public_key=_WHOSE,
        ),
        machine="Introspection",
        keyed=True,
    ),
    Capability(
        name="incept",
        description="A sandbox that buys a sandbox, and so on down: a key for every layer.",
        parameters=takes(
            "currency",
            currency=_CURRENCY,
            depth=whole("Layers, 1 to 8; 2 unless said.", 1, DEPTH_MAX),
            tier=_TIER,
            months=_MONTHS,
            budget_cents=_BUDGET,
            trust=NETWORK,
        ),
        machine="Inception",
        fields={"depth": "max_depth", "trust": "network_mode"},
        given={**_SMALLEST, "depth": 1, "max_depth": 2},
        priced=True,
    ),
    Capability(
        name="self_sandbox",
        description="The whole plan in one run: discover, learn prices, buy a key (or redeem a "
        "card's code), prove it, open a sandbox, run Python in it, freeze it, wake it, see that "
        "its variable is still there, end it.",
        parameters=takes(
            "currency",
            currency=_CURRENCY,
            gift_code=_CODE,
            tier=_TIER,
            months=_MONTHS,
            budget_cents=_BUDGET,
            trust=NETWORK,
        ),
        machine="Agent",
        fields={"trust": "network_mode"},
        given=_SMALLEST,
        priced=True,
    ),
    Capability(
        name="see_run",
        description="How a run stands: its state, its status, what it gave.",
        parameters=takes("run_id", run_id=_RUN),
    ),
    Capability(
        name="wait_for_run",
        description="Wait until a run has ended, and tell what it gave.",
        parameters=takes("run_id", run_id=_RUN),
    ),
    Capability(
        name="list_runs",
        description="The newest runs: id, machine, state, status.",
        parameters=takes(
            machine=text("Only those of this machine."), limit=whole("So many; 20 unless said.", 1)
        ),
    ),
    Capability(
        name="journal",
        description="Every step that a run has made: event, from where, to where.",
        parameters=takes("run_id", run_id=_RUN),
    ),
    Capability(
        name="cancel_run",
        description="Ask a run to stop; what it made is undone, what it paid is followed to its "
        "end.",
        parameters=takes("run_id", run_id=_RUN),
    ),
    Capability(
        name="reveal_gift_code",
        description="Show the code of a card that was bought here. No other tool does. Whoever "
        "has it can spend the card.",
        parameters=takes("run_id", run_id=_RUN),
    ),
    Capability(
        name="reveal_secret",
        description="Show the secret of a key. No other tool does. Whoever has it can use up the "
        "key.",
        parameters=takes(public_key=_WHOSE),
    ),
)
"""Beside the 59 of `tools.TOOLS`."""

_KEY = {
    "type": "string",
    "pattern": "^[!-~]{1,100}$",
    "description": "Names this call: the same again gets the first answer and does nothing. "
    "Give another one to do the same a second time.",
}
_WAIT = whole("Answer after so many seconds, even if it is still going on.", 0, WAIT_SECONDS_MAX)


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A tool or a capability as every adapter offers it: three things, whatever the framework."""

    name: str
    description: str
    parameters: Schema


def offers() -> tuple[Offer, ...]:
    """All of them: capabilities first, then the 59 tools."""
    return (*map(_of_capability, CAPABILITIES), *map(_of_tool, TOOLS))


def _of_capability(one: Capability) -> Offer:
    more = {} if one.machine is None else {KEY_ARGUMENT: _KEY}
    waits = one.machine is not None or one.name == "wait_for_run"
    return _offer(one, more | ({WAIT_ARGUMENT: _WAIT} if waits else {}))


def _of_tool(tool: Tool) -> Offer:
    acts = {} if tool.method == "GET" else {KEY_ARGUMENT: _KEY}
    return _offer(tool, {OWNER_ARGUMENT: _WHOSE} | acts)


def _offer(one: Tool | Capability, more: Mapping[str, Schema]) -> Offer:
    properties = one.parameters["properties"] | more
    return Offer(
        name=one.name,
        description=one.description,
        parameters=one.parameters | {"properties": properties},
    )


def catalogue() -> dict[str, object]:
    """What `turtles tools --json` prints."""
    tools = [msgspec.to_builtins(tool) for tool in TOOLS]
    runs = [msgspec.to_builtins(one) for one in CAPABILITIES]
    return {"count": len(tools), "tools": tools, "capabilities": runs}
