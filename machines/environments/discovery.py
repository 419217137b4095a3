"""What a place and a platform may show to `Discovery`; `turtles verify Discovery` tries it all.

The walls are small pieces of evidence, weighed by the flow's own `isolation.match`, so that what
arrives is what the effect would return: just sure of a wall and not quite, sure of none, and
nothing to see.  Two probes are all there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from engine.verification.environment import Done, Environment, always, payloads, sometimes
from engine.verification.result import Scope
from machines.flows.f01_discovery import (
    ORCHESTRATORS,
    Discovery,
    Findings,
    Inspected,
    Probed,
    Understood,
)
from machines.flows.isolation import SURE_PERCENT, Evidence, match, read_evidence

PROBES_MAX = 2
JUST_SURE = Evidence(hypervisor_kind="kvm")
WITH_A_TOOL = Evidence(hypervisor_kind="kvm", commands={"un": "/usr/bin/un"})
OPEN = Evidence(hypervisor=False, machine_vendor="ACME")
NOT_QUITE = Evidence(hypervisor=False, kernel_threads=True)
NOTHING = Evidence()


class OfDiscovery(Environment):
    """A sandbox, a laptop, a riddle; with and without a tool or a platform."""

    machine = Discovery
    scope = Scope(contexts=2, messages=0)

    def contexts(self) -> Iterator[Findings]:
        """Wherever this is; and only inside a sandbox.  No call is real, so none times out."""
        for require_sandbox in (False, True):
            yield Findings(
                require_sandbox=require_sandbox,
                inspect_timeout_ms=0,
                probe_timeout_ms=0,
                probes_max=PROBES_MAX,
            )

    @payloads("inspected")
    def places(self, context: Findings) -> Iterator[Inspected]:
        """What the effect makes of each piece of evidence."""
        seen = (OPEN,) if context.require_sandbox else (JUST_SURE, WITH_A_TOOL, OPEN)
        for evidence in (*seen, NOT_QUITE, NOTHING):
            found = match(evidence)
            yield Inspected(
                profile=found.profile,
                confidence_percent=found.confidence_percent,
                reasons=found.reasons,
                observed=msgspec.json.encode(evidence).decode(),
            )

    @payloads("understood")
    def remains(self, context: Findings) -> Iterator[Understood]:
        """What the effect reads in the evidence."""
        seen = read_evidence(context.observed or "{}")
        yield Understood(
            memory_limit_bytes=seen.memory_limit_bytes,
            cpu_limit_millicores=seen.cpu_limit_millicores,
            pids_limit=seen.pids_limit,
            writable=seen.writable,
            commands=tuple(name for name in ORCHESTRATORS if seen.commands.get(name)),
        )

    @payloads("probed")
    def answers(self) -> Iterator[Probed]:
        """The platform is there, or it is not."""
        yield Probed(platform_healthy=True)
        yield Probed(platform_healthy=False)

    @always
    def reads_and_nothing_else(self, done: Sequence[Done]) -> bool:
        """Looking, understanding and asking for health are all that it ever does."""
        return {one.effect for one in done} <= {"inspect", "understand", "probe_platform"}

    @always
    def probes_are_counted(self, context: Findings, done: Sequence[Done]) -> bool:
        """Every probe that counts was made; the platform is not asked more often than allowed."""
        made = sum(isinstance(one.event, Probed) for one in done)
        return context.probes <= min(made, PROBES_MAX)

    @always
    def knows_by_looking(self, context: Findings, done: Sequence[Done]) -> bool:
        """What is known about the place is what an inspection found."""
        found = [one.event for one in done if isinstance(one.event, Inspected)]
        return context.profile is None or any(
            one.profile == context.profile and one.reasons == context.reasons for one in found
        )

    @always
    def a_platform_tool_has_answered(self, context: Findings, done: Sequence[Done]) -> bool:
        """The platform counts as a tool only after it was healthy."""
        healthy = any(isinstance(one.event, Probed) and one.event.platform_healthy for one in done)
        return healthy or "platform_api" not in context.tools

    @sometimes
    def capable_without_a_sandbox(self, context: Findings, state: str) -> bool:
        """On a laptop, with a platform."""
        return state == "capable" and context.awareness == "not_sandboxed"

    @sometimes
    def capable_at_the_last_probe(self, context: Findings, state: str) -> bool:
        """The platform was only restarting."""
        return state == "capable" and context.probes == PROBES_MAX

    @sometimes
    def capable_without_a_platform(self, context: Findings, state: str) -> bool:
        """One command on PATH is enough."""
        return state == "capable" and context.tools == ("un",)

    @sometimes
    def just_sure(self, context: Findings, state: str) -> bool:
        """Half of the doubt is gone: that is the bound."""
        return state == "capable" and context.confidence_percent == SURE_PERCENT

    @sometimes
    def looks_again_after_an_hour(self, context: Findings, state: str) -> bool:
        """What was found is old, and the probes that were made still count."""
        return state == "inspecting" and context.probes > 0

    @sometimes
    def cancelled_while_inspecting(self, state: str, status: str) -> bool:
        """Nothing was changed, so nothing is undone."""
        return status == "cancelled" and state == "inspecting"
