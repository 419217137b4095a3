"""Flow 1, discovery: am I in a sandbox, and what here can orchestrate more of them?  Read-only.

::

    inspecting ──inspected──> sandboxed ─────understood──> searching_tools ──probed──> capable
        │    └──────────────> not_sandboxed ─understood──>      │  ↑│probed (none yet)
        │ not sure,              │ a sandbox is                 │  └┘
        │ inspection_failed      │ required                     │ enough probes
        └────────────────────────┴──────────────────────────────┴────────────────> unaware

Evidence (`evidence.py`: cgroups, namespaces, mounts, marks, ...) is weighed against the profiles of
`isolation.py`: lxc, docker (and podman), nspawn (systemd), bubblewrap (and other bare namespaces),
vm and bare.  Whoever is sure of none of them is `unaware`, not free.

The context may carry evidence gathered elsewhere (a parent layer runs `evidence.command()` inside
its child's sandbox); that text is not trusted and is checked for size and shape.  Otherwise the
`Surroundings` port is asked.  Without a sandbox an agent may still orchestrate (depth 1, on a
laptop), unless `require_sandbox` says otherwise.

A tool that is missing is a finding.  One orchestrating tool is enough; while there is none, the
platform is asked again, because it may only be restarting.  The bound is a number of probes, not
a time, so that a stop of this program in between does not count against the platform.  Whoever
nevertheless stays for an hour inspects again: what was found is old by then.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal, Protocol

import msgspec

from engine.clock import hours, seconds
from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from engine.effects import Call, effect
from engine.errors import Permanent, Transient
from engine.events import Context, Event, GaveUp
from engine.retry import Retry
from machines.clients.ports import ClientError, Platform, Record
from machines.flows import evidence as local_evidence
from machines.flows.isolation import (
    CONTAINERS,
    SURE_PERCENT,
    BadEvidence,
    Profile,
    Reason,
    confidence_percent,
    match,
    read_evidence,
)

Awareness = Literal["unknown", "sandboxed", "not_sandboxed"]

PLATFORM_TOOL = "platform_api"
ORCHESTRATORS = ("un", "turtles", PLATFORM_TOOL)
"""Any one of these can open a sandbox (paper, Flow 1: SANDBOX_API_PACKAGE)."""


class Surroundings(Protocol):
    """The place this process runs in."""

    async def inspect(self) -> dict[str, Any]:
        """What is seen, with the fields of `Evidence`; changes nothing."""


class LocalSurroundings:
    """This very process's surroundings, read in a thread so that a slow disk holds nobody up."""

    async def inspect(self) -> dict[str, Any]:
        """See `evidence.gather`."""
        return await asyncio.to_thread(local_evidence.gather)


class Findings(Context):
    """What is given (first five), and what has been found so far.

    `evidence` is JSON text gathered elsewhere; `observed` the text that was weighed, kept until
    it is understood.  `missing` lists the tools that were looked for and not found.
    """

    evidence: str | None = None
    require_sandbox: bool = False
    inspect_timeout_ms: int = seconds(5)
    probe_timeout_ms: int = seconds(3)
    probes_max: int = 15
    observed: str | None = None
    awareness: Awareness = "unknown"
    profile: Profile | None = None
    confidence_percent: int = 0
    reasons: tuple[Reason, ...] = ()
    memory_limit_bytes: int | None = None
    cpu_limit_millicores: int | None = None
    pids_limit: int | None = None
    writable: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    probes: int = 0
    refusal: str = ""


class Discovered(Record):
    """The outcome, for a parent run.  `refusal` says why the run is unaware, or is empty."""

    awareness: Awareness
    profile: Profile | None
    confidence_percent: int
    tools: tuple[str, ...]
    missing: tuple[str, ...]
    reasons: int
    refusal: str


class Inspected(Event, tag="inspected"):
    """The walls were looked at; `observed` is the evidence as JSON text."""

    profile: Profile
    confidence_percent: int
    reasons: tuple[Reason, ...]
    observed: str


class InspectionFailed(GaveUp, tag="inspection_failed"):
    """The walls could not be looked at, or the evidence given is not evidence."""


class Understood(Event, tag="understood"):
    """What the walls leave: caps (None: no cap was seen), places to write, commands on PATH."""

    memory_limit_bytes: int | None
    cpu_limit_millicores: int | None
    pids_limit: int | None
    writable: tuple[str, ...]
    commands: tuple[str, ...]


class Probed(Event, tag="probed"):
    """One round of probes."""

    platform_healthy: bool


@effect(idempotent=True, timeout_ms=seconds(60), retry=Retry(attempts=3))
async def inspect(context: Findings, call: Call) -> Inspected:
    """Weigh the evidence given, or else gather it here."""
    observed = context.evidence
    if observed is None:
        observed = await _look_around(call.resource(Surroundings), context.inspect_timeout_ms)  # type: ignore[type-abstract]
    try:
        found = match(read_evidence(observed))
    except BadEvidence as error:
        raise Permanent(str(error)) from error
    return Inspected(
        profile=found.profile,
        confidence_percent=found.confidence_percent,
        reasons=found.reasons,
        observed=observed,
    )


async def _look_around(surroundings: Surroundings, timeout_ms: int) -> str:
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            return msgspec.json.encode(await surroundings.inspect()).decode()
    except TimeoutError as error:
        raise Transient(f"looking at the surroundings took over {timeout_ms} ms") from error
    except OSError as error:
        raise Transient(f"the surroundings cannot be read: {type(error).__name__}") from error


@effect(idempotent=True)
async def understand(context: Findings, call: Call) -> Understood:
    """Take from the evidence what the walls allow, and the commands on PATH."""
    try:
        seen = read_evidence(context.observed or "{}")
    except BadEvidence as error:
        raise Permanent(str(error)) from error
    return Understood(
        memory_limit_bytes=seen.memory_limit_bytes,
        cpu_limit_millicores=seen.cpu_limit_millicores,
        pids_limit=seen.pids_limit,
        writable=seen.writable,
        commands=tuple(name for name in ORCHESTRATORS if seen.commands.get(name)),
    )


@effect(idempotent=True)
async def probe_platform(context: Findings, call: Call) -> Probed:
    """Ask the platform's `/health`; whatever goes wrong means that it is not there."""
    platform = call.resource(Platform)  # type: ignore[type-abstract]
    try:
        async with asyncio.timeout(context.probe_timeout_ms / 1000):
            return Probed(platform_healthy=await platform.healthy())
    except (TimeoutError, OSError, ClientError):
        return Probed(platform_healthy=False)


def aware_and_able(context: Findings) -> bool:
    """Knows where it is, that place is allowed, and something here can orchestrate."""
    placed = context.awareness == "sandboxed" or (
        context.awareness == "not_sandboxed" and not context.require_sandbox
    )
    return placed and any(tool in ORCHESTRATORS for tool in context.tools)


def says_why(context: Findings) -> bool:
    """A run that ends unaware names its reason."""
    return bool(context.refusal)


class Discovery(Machine[Findings]):
    """Find out where this agent is and whether it can orchestrate; change nothing."""

    inspecting = State(initial=True, effect=inspect, on_exhausted="inspection_failed")
    sandboxed = State(effect=understand, on_exhausted="inspection_failed")
    not_sandboxed = State(effect=understand, on_exhausted="inspection_failed")
    searching_tools = State(
        effect=probe_platform,
        every=seconds(2),
        timeout=hours(1),
        on_timeout="outdated",
        milestone=True,
    )
    capable = State(final=True, invariant=aware_and_able)
    unaware = State(final=True, failure=True, invariant=says_why)

    inspected = (
        inspecting.to(sandboxed, cond="walled_in")
        | inspecting.to(not_sandboxed, cond="in_the_open")
        | inspecting.to(unaware)
    )
    inspection_failed = unaware.from_(inspecting, sandboxed, not_sandboxed)
    understood = (
        sandboxed.to(searching_tools)
        | not_sandboxed.to(unaware, cond="sandbox_required")
        | not_sandboxed.to(searching_tools)
    )
    probed = (
        searching_tools.to(capable, cond="can_orchestrate")
        | searching_tools.to(  # turtles: ignore[V005] a last probe that finds a tool counts
            unaware, cond="probed_enough"
        )
        | searching_tools.to(searching_tools)
    )
    outdated = searching_tools.to(inspecting)

    def walled_in(self, event: Inspected) -> bool:
        """Surely inside something."""
        return event.profile != "bare" and event.confidence_percent >= SURE_PERCENT

    def in_the_open(self, event: Inspected) -> bool:
        """Surely inside nothing."""
        return event.profile == "bare" and event.confidence_percent >= SURE_PERCENT

    def sandbox_required(self, context: Findings) -> bool:
        """Whoever started this run wants it inside a sandbox only."""
        return context.require_sandbox

    def can_orchestrate(self, context: Findings, event: Probed) -> bool:
        """At least one tool that opens sandboxes."""
        return event.platform_healthy or bool(context.tools)

    def probed_enough(self, context: Findings) -> bool:
        """This was the last probe."""
        return context.probes + 1 >= context.probes_max

    def on_inspected(self, context: Findings, event: Inspected) -> Findings:
        """Keep the isolation and the evidence it rests on."""
        awareness: Awareness = "unknown"
        if event.confidence_percent >= SURE_PERCENT:
            awareness = "not_sandboxed" if event.profile == "bare" else "sandboxed"
        return self.but(
            context,
            awareness=awareness,
            profile=event.profile,
            confidence_percent=event.confidence_percent,
            reasons=event.reasons,
            observed=event.observed,
        )

    def on_inspection_failed(self, context: Findings, event: InspectionFailed) -> Findings:
        """Keep why."""
        return self.but(context, refusal=f"inspection failed: {event.reason}")

    def on_understood(self, context: Findings, event: Understood) -> Findings:
        """Keep caps and commands; the evidence has served its purpose."""
        return self.but(
            context,
            observed=None,
            memory_limit_bytes=event.memory_limit_bytes,
            cpu_limit_millicores=event.cpu_limit_millicores,
            pids_limit=event.pids_limit,
            writable=event.writable,
            tools=event.commands,
            missing=tuple(name for name in ORCHESTRATORS if name not in event.commands),
        )

    def on_probed(self, context: Findings, event: Probed) -> Findings:
        """Count the probe, and list the platform where it belongs."""
        commands = tuple(tool for tool in context.tools if tool != PLATFORM_TOOL)
        tools = (*commands, PLATFORM_TOOL) if event.platform_healthy else commands
        missing = tuple(name for name in ORCHESTRATORS if name not in tools)
        return self.but(context, tools=tools, missing=missing, probes=context.probes + 1)

    def on_enter_unaware(self, context: Findings) -> Findings:
        """Say what was lacking."""
        if context.refusal:
            return context
        refusal = f"no tool that orchestrates sandboxes: looked for {', '.join(ORCHESTRATORS)}"
        if context.awareness == "unknown":
            refusal = f"no profile reached {SURE_PERCENT} % confidence"
        elif context.awareness == "not_sandboxed" and context.require_sandbox:
            refusal = "a sandbox is required and this is none"
        return self.but(context, refusal=refusal)

    @requires(inspected)
    def confidence_comes_from_reasons(self, event: Inspected) -> bool:
        """Nobody may claim more than the reasons given add up to."""
        return event.confidence_percent == confidence_percent(event.reasons)

    @requires(understood)
    def commands_are_orchestrators(self, event: Understood) -> bool:
        """Only a known command counts, each once; the platform must answer for itself."""
        known = {name for name in ORCHESTRATORS if name != PLATFORM_TOOL}
        return set(event.commands) <= known and len(set(event.commands)) == len(event.commands)

    @ensures(probed)
    def no_command_is_lost(self, old: Findings, new: Findings) -> bool:
        """A probe of the platform changes nothing about the commands."""
        return set(old.tools) - {PLATFORM_TOOL} == set(new.tools) - {PLATFORM_TOOL}

    @ensures(understood, probed)
    def each_tool_is_found_or_missing(self, new: Findings) -> bool:
        """Every tool looked for is reported, on one side."""
        return sorted((*new.tools, *new.missing)) == sorted(ORCHESTRATORS)

    @ensures(outdated)
    def given_evidence_is_kept(self, old: Findings, new: Findings) -> bool:
        """A second inspection looks at the same place."""
        return old.evidence == new.evidence

    @invariant
    def awareness_needs_confidence(self, context: Findings) -> bool:
        """To know where one is takes a sure profile of that side."""
        sure = context.confidence_percent >= SURE_PERCENT
        if context.awareness == "sandboxed":
            return sure and context.profile in (*CONTAINERS, "vm")
        return context.awareness == "unknown" or (sure and context.profile == "bare")

    def output(self, context: Findings) -> Discovered:
        """What a parent run receives."""
        return Discovered(
            awareness=context.awareness,
            profile=context.profile,
            confidence_percent=context.confidence_percent,
            tools=context.tools,
            missing=context.missing,
            reasons=len(context.reasons),
            refusal=context.refusal,
        )
