"""What all five adapters call: a name and JSON arguments in, JSON out.

::

    adapter ── name, arguments ──► Dispatcher ──┬── a capability: start (or find) a run, wait for it
                                                ├── a look: at runs, journals, prices
                                                └── one of the 59 tools: a signed call

Calls are safe to repeat.  A capability's run is started under a key, which the client gives
(`idempotency_key`) or which follows from conversation, name and arguments: whatever was killed in
between, the same call is the same run, and pays once.  A tool that creates something is sent to
the platform under such a key, too.  Tools that act on what exists (run a command, freeze, wake,
delete) are another call every time, unless a key is given: the second `freezeSession` is meant.

Keys of the platform: a tool signs with a key that a finished run has bought; its secret is read
from that run, used for the signature, and shown by `reveal_secret` alone.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from engine.cli.output import plain
from engine.errors import TurtlesError, UsageError
from engine.ports import Query
from engine.secret import Secret
from machines.agents.capabilities import (
    CAPABILITIES,
    KEY_ARGUMENT,
    OWNER_ARGUMENT,
    WAIT_ARGUMENT,
    Capability,
    Offer,
    offers,
)
from machines.agents.schemas import BadArguments, check_arguments
from machines.agents.tools import BY_NAME, Tool, request_of
from machines.clients.ports import Credentials, Portal
from machines.clients.ports.calls import Calls

if TYPE_CHECKING:
    from engine.app import App
    from engine.view import Outcome

LIST_PRICE_CENTS = 700
"""Of one tier for one month (paper: "each turtle costs $7/month"); the most it may cost."""
WAIT_SECONDS = 300.0
LOOK_SECONDS = 0.2
SELLERS = ("Payment", "Redemption")
"""Machines whose finished runs give a key."""
UNSIGNED = "healthCheck"
"""The tool that may be called before there is a key."""


class ToolRefused(TurtlesError):
    """A call that cannot be, for a reason beyond its arguments' shape."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A run has come a step further."""

    run_id: str
    machine: str
    state: str
    seq: int

    def line(self) -> str:
        """For people."""
        return f"{self.machine} {self.state}"


Report = Callable[[Progress], Awaitable[None]]


class Dispatcher:
    """Calls capabilities and tools over one app.

    Args:
        app: whose worker moves the runs.
        portal: tells prices.
        calls: what the 59 tools are sent through.
        conversation: what keys are derived from, unless a call names another.
        poll_ms: pause between two looks at chain and portal, of runs that are started here.
        wait_seconds: how long a call waits for its run, unless it says.
    """

    def __init__(
        self,
        app: App,
        portal: Portal,
        calls: Calls,
        *,
        conversation: str = "default",
        poll_ms: int | None = None,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self.app = app
        self._portal = portal
        self._calls = calls
        self._conversation = conversation
        self._poll_ms = poll_ms
        self._wait_seconds = wait_seconds
        self._offers: Mapping[str, Offer] = {one.name: one for one in offers()}
        self._runs = {one.name: one for one in CAPABILITIES if one.machine is not None}
        self._looks: Mapping[str, Callable[..., Awaitable[Any]]] = {
            "get_prices": self._prices,
            "see_run": self._see,
            "wait_for_run": self._wait,
            "list_runs": self._list,
            "journal": self._journal,
            "cancel_run": self._cancel,
            "reveal_gift_code": self._reveal_code,
            "reveal_secret": self._reveal,
        }

    @property
    def offers(self) -> tuple[Offer, ...]:
        """What may be called."""
        return tuple(self._offers.values())

    async def call(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        conversation: str | None = None,
        call_id: str | None = None,
        report: Report | None = None,
    ) -> dict[str, Any]:
        """The answer of a call, as JSON values.

        Args:
            arguments: as the offer's schema says.
            conversation: in which the call is made.
            call_id: the framework's own name of this call, where it has one that lasts: what
                would be another call every time is one call under it.
            report: told each step of a run that is waited for.

        Raises:
            TurtlesError: a message that a model can act on; no secret is in it.
        """
        offer = self._offers.get(name)
        if offer is None:
            raise UsageError(f"no tool {name!r}. There are: {', '.join(self._offers)}.")
        check_arguments(name, offer.parameters, {} if arguments is None else arguments)
        given = dict(arguments or {})
        key = given.pop(KEY_ARGUMENT, None)
        if name in self._looks:
            return _object(await self._looks[name](report=report, **given))
        if name in self._runs:
            spoken = conversation or self._conversation
            return await self._run(self._runs[name], given, spoken, key, report)
        spoken = conversation or self._conversation
        return await self._tool(BY_NAME[name], given, spoken, key, call_id)

    # -- runs -----------------------------------------------------------------------------------

    async def _run(
        self,
        capability: Capability,
        given: dict[str, Any],
        conversation: str,
        key: str | None,
        report: Report | None,
    ) -> dict[str, Any]:
        wait_seconds = given.pop(WAIT_ARGUMENT, self._wait_seconds)
        assert capability.machine is not None
        table = self.app.tables.get(capability.machine)
        if table is None:
            raise ToolRefused(f"tool {capability.name}: this program has no {capability.machine}")
        key = key or derived(conversation, capability.name, given)
        fields = await self._fields(capability, given, table.context.__struct_fields__)
        try:
            context = msgspec.convert(fields, table.context, dec_hook=_secret)
        except msgspec.ValidationError as error:
            raise BadArguments(f"tool {capability.name}: {error}") from error
        begun = await self.app.start(table.name, context, key=f"{capability.name}:{key}")
        outcome = await self._follow(begun.run_id, wait_seconds, report)
        return {**told(outcome), "repeated": not begun.created, KEY_ARGUMENT: key}

    async def _fields(
        self, capability: Capability, given: Mapping[str, Any], known: tuple[str, ...]
    ) -> dict[str, Any]:
        fields = dict(capability.given)
        fields |= {capability.fields.get(name, name): value for name, value in given.items()}
        if capability.priced:
            fields.setdefault("budget_cents", _list_price_cents(fields))
        if capability.keyed:
            credentials = await self.credentials(given.get(OWNER_ARGUMENT))
            fields["public_key"] = credentials.public_key
            fields["secret_key"] = credentials.secret_key
        if self._poll_ms is not None and "poll_ms" in known:
            fields["poll_ms"] = self._poll_ms
        return fields

    async def _follow(self, run_id: str, wait_seconds: float, report: Report | None) -> Outcome:
        """Wait until a run has ended, or for so long; tell of its steps meanwhile."""
        left = int(wait_seconds / LOOK_SECONDS)
        told_seq = -1
        while True:
            outcome = await self.app.outcome(run_id)
            if report is not None and outcome.seq > told_seq:
                for step in await self._steps(outcome, told_seq):
                    await report(step)
                told_seq = outcome.seq
            if _has_ended(outcome) or left <= 0:
                return outcome
            left -= 1
            try:
                await self.app.wait(run_id, timeout_seconds=LOOK_SECONDS)
            except TimeoutError:
                continue

    async def _steps(self, outcome: Outcome, after_seq: int) -> list[Progress]:
        """What has happened since, one for each state that was entered."""
        entries = await self.app.journal(outcome.run_id)
        return [
            Progress(run_id=e.run_id, machine=outcome.machine, state=e.target, seq=e.seq)
            for e in entries
            if after_seq < e.seq <= outcome.seq and e.source != e.target
        ]

    # -- looks ----------------------------------------------------------------------------------

    async def _prices(self, *, report: Report | None) -> dict[str, Any]:
        quotes = await self._portal.quotes()
        return {"prices": [msgspec.to_builtins(quote) for quote in quotes]}

    async def _see(self, *, report: Report | None, run_id: str) -> dict[str, Any]:
        return told(await self.app.outcome(run_id))

    async def _wait(
        self, *, report: Report | None, run_id: str, wait_seconds: float | None = None
    ) -> dict[str, Any]:
        seconds = self._wait_seconds if wait_seconds is None else wait_seconds
        return told(await self._follow(run_id, seconds, report))

    async def _list(
        self, *, report: Report | None, machine: str | None = None, limit: int = 20
    ) -> dict[str, Any]:
        runs = [one.run for one in await self.app.runs(Query(machine=machine, limit=limit))]
        rows = [
            {"run_id": r.run_id, "machine": r.machine, "state": r.state, "status": r.status}
            for r in runs
        ]
        return {"runs": rows}

    async def _journal(self, *, report: Report | None, run_id: str) -> dict[str, Any]:
        entries = await self.app.journal(run_id)
        steps = [{"event": e.event, "from": e.source, "to": e.target} for e in entries]
        return {"run_id": run_id, "steps": steps}

    async def _cancel(self, *, report: Report | None, run_id: str) -> dict[str, Any]:
        receipt = await self.app.cancel(run_id)
        return {"run_id": run_id, "asked": receipt.status}

    async def _reveal(
        self, *, report: Report | None, public_key: str | None = None
    ) -> dict[str, Any]:
        credentials = await self.credentials(public_key)
        secret = credentials.secret_key.reveal()
        return {"public_key": credentials.public_key, "secret_key": secret}

    async def _reveal_code(self, *, report: Report | None, run_id: str) -> dict[str, Any]:
        outcome = await self.app.outcome(run_id)
        if outcome.machine != "GiftCard" or outcome.output is None:
            raise ToolRefused(f"run {run_id}: expected a card that was bought")
        return {"run_id": run_id, "code": outcome.output.code.reveal()}

    # -- tools ----------------------------------------------------------------------------------

    async def _tool(
        self,
        tool: Tool,
        given: dict[str, Any],
        conversation: str,
        key: str | None,
        call_id: str | None,
    ) -> dict[str, Any]:
        owner = given.pop(OWNER_ARGUMENT, None)
        credentials = await self.credentials(owner, required=tool.name != UNSIGNED)
        request = request_of(tool, given)
        lasting = derived(conversation, tool.name, given) if tool.creates else call_id or once()
        # The platform scopes keys by owner alone: the tool's name keeps them apart.
        sent = f"{tool.name}:{key or lasting}" if tool.method == "POST" else None
        answer = await self._calls.call(
            credentials,
            request.method,
            request.path,
            name=tool.name,
            body=request.body,
            text=request.text,
            key=sent,
        )
        return _object(answer)

    async def credentials(
        self, public_key: str | None, *, required: bool = True
    ) -> Credentials | Any:
        """A key that was bought here: the one named, or the only one.

        Raises:
            ToolRefused: there is none, or which one is not clear.
        """
        held = await self._held()
        if public_key is not None and public_key in held:
            return held[public_key]
        if public_key is None and len(held) == 1:
            return next(iter(held.values()))
        if not required and public_key is None:
            return None
        known = ", ".join(held) or "none; buy one with provision_key"
        asked = "no key was named" if public_key is None else f"key {public_key!r} is not known"
        raise ToolRefused(f"{asked}; give {OWNER_ARGUMENT}. Keys here: {known}.")

    async def _held(self) -> dict[str, Credentials]:
        """Every key that a finished run has given, newest first."""
        held: dict[str, Credentials] = {}
        for machine in (name for name in SELLERS if name in self.app.tables):
            for stored in await self.app.runs(
                Query(machine=machine, statuses=("completed",), limit=1_000)
            ):
                output = (await self.app.outcome(stored.run.run_id)).output
                if getattr(output, "secret_key", None) is not None:  # a Payment may buy a card
                    held.setdefault(
                        output.public_key,
                        Credentials(public_key=output.public_key, secret_key=output.secret_key),
                    )
        return held


def _list_price_cents(fields: Mapping[str, Any]) -> int:
    """What a run costs at most that is not told a budget."""
    if "amount_cents" in fields:
        return int(fields["amount_cents"])
    layers = int(fields.get("max_depth", 1))
    return LIST_PRICE_CENTS * int(fields["tier"]) * int(fields["months"]) * layers


def derived(conversation: str, name: str, arguments: Mapping[str, Any]) -> str:
    """The key of a call that was given none: the same in the same conversation for the same."""
    text = json.dumps([conversation, name, arguments], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def once() -> str:
    """The key of a call that is another one every time."""
    return secrets.token_hex(16)


def told(outcome: Outcome) -> dict[str, Any]:
    """A run as a model sees it, secrets as `***`."""
    output = plain(outcome.output) if outcome.output is not None else None
    answer = {
        "run_id": outcome.run_id,
        "machine": outcome.machine,
        "state": outcome.state,
        "status": outcome.status,
        "ended": _has_ended(outcome),
        "output": output,
    }
    context = outcome.context
    refusal = (
        outcome.last_error or getattr(context, "refusal", "") or getattr(context, "reason", "")
    )
    return answer | ({"refusal": refusal} if refusal else {})


def _has_ended(outcome: Outcome) -> bool:
    return outcome.status in ("completed", "failed", "cancelled", "quarantined", "paused")


def _secret(kind: Any, value: Any) -> Any:
    if isinstance(value, Secret):
        return value
    return Secret(value)


def _object(answer: Any) -> dict[str, Any]:
    """A reply as JSON values; a list is wrapped, for every answer is an object."""
    shown = _numbers(answer)
    return shown if isinstance(shown, dict) else {"items": shown}


def _numbers(value: Any) -> Any:
    """Loads and times come as `Decimal`; none of them is money, which is whole."""
    if isinstance(value, dict):
        return {name: _numbers(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_numbers(each) for each in value]
    return float(value) if isinstance(value, Decimal) else value
