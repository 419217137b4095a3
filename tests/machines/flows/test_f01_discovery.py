"""Discovery: every branch through the pure step, with the effects awaited against fakes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clock import hours, seconds
from engine.decide import Decision, Rejection, begin, decide
from engine.definition import Oracle
from engine.effects import Call
from engine.errors import EffectError, Permanent, Transient
from engine.events import Event
from engine.run import Run
from engine.table import compile_table
from machines.clients.ports import Platform, Unavailable
from machines.flows.evidence import EVIDENCE_BYTES_MAX
from machines.flows.f01_discovery import (
    ORCHESTRATORS,
    Discovered,
    Discovery,
    Findings,
    Inspected,
    InspectionFailed,
    LocalSurroundings,
    Probed,
    Surroundings,
    Understood,
)
from machines.flows.isolation import Reason, confidence_percent

TABLE = compile_table(Discovery)
NOW_MS = 1_700_000_000_000
FIRST = {"user": 4026531837, "pid": 4026531836, "uts": 4026531838, "ipc": 4026531839}
SANDBOX: dict[str, Any] = {
    "namespaces": {**FIRST, "user": 7, "pid": 8},
    "uid_map": [[0, 1000, 1]],
    "interfaces": ["lo"],
    "memory_limit_bytes": 268435456,
    "pids_limit": 128,
}
LAPTOP: dict[str, Any] = {"namespaces": FIRST, "hypervisor": False, "kernel_threads": True}
WITH_CLI = {"commands": {"un": "/usr/local/bin/un", "turtles": None, "python3": "/usr/bin/python3"}}


class Place:
    """Surroundings that show what they are told to, fail first, or never answer."""

    def __init__(self, shown: dict[str, Any], *errors: Exception, hangs: bool = False) -> None:
        self.shown, self.errors, self.hangs = shown, list(errors), hangs
        self.asked = 0

    async def inspect(self) -> dict[str, Any]:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.errors:
            raise self.errors.pop(0)
        return self.shown


class Health:
    """The one question discovery asks a platform; answers in turn, the last one for ever."""

    def __init__(self, *answers: bool | Exception, hangs: bool = False) -> None:
        self.answers, self.hangs = list(answers), hangs
        self.asked = 0

    async def healthy(self) -> bool:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


UP, DOWN = Health(True), Health(False)


def start(context: Findings) -> Run:
    begun = begin(TABLE, run_id="run", context=context, now_ms=NOW_MS)
    assert isinstance(begun, Decision)
    return begun.after


async def perform(run: Run, place: Any, platform: Any) -> Event:
    """One attempt of the state's effect."""
    effect = TABLE.places[run.state].effect
    assert effect is not None
    resources = {Surroundings: place, Platform: platform}
    call = Call(run_id="run", key="key", attempt=1, now_ms=NOW_MS, resources=resources)
    outcome = await effect.perform(run.context, call)
    assert isinstance(outcome, Event)
    return outcome


async def step(run: Run, place: Any, platform: Any) -> Run:
    """Perform the state's effect as often as its retries allow, and apply what comes out."""
    effect = TABLE.places[run.state].effect
    assert effect is not None
    for attempt in range(1, effect.retry.attempts + 1):
        try:
            outcome = await perform(run, place, platform)
            break
        except EffectError as error:
            outcome = InspectionFailed(effect=effect.name, reason=str(error), attempts=attempt)
            if isinstance(error, Permanent):
                break
    return send(run, outcome, from_effect=not isinstance(outcome, InspectionFailed))


def send(run: Run, payload: Event, *, from_effect: bool = False) -> Run:
    tag = str(payload.__struct_config__.tag)
    decision = decide(TABLE, run, tag, payload, NOW_MS, from_effect=from_effect)
    assert isinstance(decision, Decision), decision
    return decision.after


async def finish(context: Findings, place: Any, platform: Any = DOWN) -> tuple[list[str], Run]:
    """Run to the end; the states passed, and the run."""
    run = start(context)
    states = [run.state]
    while not TABLE.places[run.state].final:
        run = await step(run, place, platform)
        states.append(run.state)
        assert len(states) < 50
    return states, run


async def test_sandboxed_with_a_platform_is_capable() -> None:
    states, run = await finish(Findings(), Place(SANDBOX), UP)
    assert states == ["inspecting", "sandboxed", "searching_tools", "capable"]
    assert run.status == "completed"
    assert TABLE.output({"context": run.context}) == Discovered(
        awareness="sandboxed",
        profile="bubblewrap",
        confidence_percent=run.context.confidence_percent,
        tools=("platform_api",),
        missing=("un", "turtles"),
        reasons=4,
        refusal="",
    )
    assert (run.context.memory_limit_bytes, run.context.pids_limit) == (268435456, 128)
    assert run.context.observed is None


async def test_a_command_alone_is_enough_and_the_platform_a_finding() -> None:
    states, run = await finish(Findings(), Place({**SANDBOX, **WITH_CLI}), DOWN)
    assert states[-1] == "capable"
    assert run.context.tools == ("un",)
    assert run.context.missing == ("turtles", "platform_api")


async def test_without_a_sandbox_a_laptop_may_still_orchestrate() -> None:
    states, run = await finish(Findings(), Place(LAPTOP), UP)
    assert states == ["inspecting", "not_sandboxed", "searching_tools", "capable"]
    assert (run.context.awareness, run.context.profile) == ("not_sandboxed", "bare")


async def test_without_a_sandbox_where_one_is_required_ends_unaware() -> None:
    health = Health(True)
    states, run = await finish(Findings(require_sandbox=True), Place(LAPTOP), health)
    assert states == ["inspecting", "not_sandboxed", "unaware"]
    assert (run.status, run.context.refusal) == ("failed", "a sandbox is required and this is none")
    assert health.asked == 0


async def test_a_required_sandbox_that_is_there_is_capable() -> None:
    states, _ = await finish(Findings(require_sandbox=True), Place(SANDBOX), UP)
    assert states[-1] == "capable"


async def test_evidence_for_nothing_ends_unaware() -> None:
    states, run = await finish(Findings(), Place({"hostname": "somewhere"}), UP)
    assert states == ["inspecting", "unaware"]
    assert run.context.awareness == "unknown"
    assert run.context.refusal == "no profile reached 50 % confidence"


async def test_no_tool_ends_unaware_after_the_last_probe() -> None:
    health = Health(False)
    states, run = await finish(Findings(probes_max=3), Place(SANDBOX), health)
    assert states[-3:] == ["searching_tools", "searching_tools", "unaware"]
    assert (health.asked, run.status, run.context.probes) == (3, "failed", 3)
    assert "un, turtles, platform_api" in run.context.refusal


async def test_a_platform_that_is_restarting_is_waited_for() -> None:
    health = Health(False, Unavailable("warming up"), ConnectionResetError(), True)
    states, run = await finish(Findings(), Place(SANDBOX), health)
    assert (states[-1], health.asked) == ("capable", 4)
    assert run.context.tools == ("platform_api",)


async def test_probes_pause_between_each_other() -> None:
    run = start(Findings())
    for _ in range(3):
        run = await step(run, Place(SANDBOX), DOWN)
    assert run.state == "searching_tools"
    assert run.effect is not None
    assert run.effect.next_ms == NOW_MS + seconds(2)
    assert run.deadline_ms == NOW_MS + hours(1)


async def test_a_platform_that_never_answers_is_not_there() -> None:
    context = Findings(probe_timeout_ms=1, probes_max=1)
    states, _ = await finish(context, Place(SANDBOX), Health(hangs=True))
    assert states[-1] == "unaware"


async def test_evidence_given_is_used_and_the_surroundings_are_not_asked() -> None:
    place = Place(LAPTOP)
    context = Findings(evidence=json.dumps(SANDBOX), require_sandbox=True)
    states, run = await finish(context, place, UP)
    assert (states[1], states[-1], place.asked) == ("sandboxed", "capable", 0)
    assert run.context.evidence == context.evidence


@pytest.mark.parametrize(
    ("given_text", "says"),
    [
        ("not json", "malformed"),
        ('{"hostname": 7}', "hostname"),
        (" " * (EVIDENCE_BYTES_MAX + 1), "16384"),
    ],
)
async def test_what_is_given_but_is_no_evidence_ends_unaware(given_text: str, says: str) -> None:
    place = Place(LAPTOP)
    states, run = await finish(Findings(evidence=given_text), place, UP)
    assert (states, place.asked) == (["inspecting", "unaware"], 0)
    assert says in run.context.refusal


async def test_surroundings_that_fail_once_are_asked_again() -> None:
    place = Place(SANDBOX, PermissionError("no"))
    states, _ = await finish(Findings(), place, UP)
    assert (states[-1], place.asked) == ("capable", 2)


async def test_surroundings_that_never_answer_end_unaware() -> None:
    place = Place({}, hangs=True)
    states, run = await finish(Findings(inspect_timeout_ms=1), place, UP)
    assert (states, place.asked) == (["inspecting", "unaware"], 3)
    assert "took over 1 ms" in run.context.refusal
    with pytest.raises(Transient):
        await perform(start(Findings(inspect_timeout_ms=1)), place, UP)


async def test_after_an_hour_the_same_place_is_inspected_again() -> None:
    run = start(Findings(evidence=json.dumps(SANDBOX)))
    for _ in range(3):
        run = await step(run, Place(LAPTOP), DOWN)
    late = decide(TABLE, run, "outdated", None, NOW_MS + hours(1))
    assert isinstance(late, Decision)
    assert (late.after.state, late.after.context.probes) == ("inspecting", 1)
    run = await step(late.after, Place(LAPTOP), UP)
    assert run.state == "sandboxed"


async def test_the_real_surroundings_give_a_verdict() -> None:
    _, run = await finish(Findings(), LocalSurroundings(), UP)
    assert run.state == "capable"
    assert run.context.confidence_percent >= 50
    assert run.context.reasons


async def test_no_effect_needs_undoing() -> None:
    """Read-only: nothing here has a compensation, and all of it may be repeated."""
    effects = [place.effect for place in TABLE.places.values() if place.effect]
    assert len(effects) == 4
    assert all(effect.idempotent for effect in effects)
    assert not any(place.compensation for place in TABLE.places.values())


def test_a_claim_without_reasons_is_rejected() -> None:
    forged = Inspected(profile="lxc", confidence_percent=90, reasons=(), observed="{}")
    answer = decide(TABLE, start(Findings()), "inspected", forged, NOW_MS)
    assert isinstance(answer, Rejection)
    assert "confidence_comes_from_reasons" in answer.reason


async def test_a_tool_nobody_looked_for_is_rejected() -> None:
    run = await step(start(Findings()), Place(SANDBOX), UP)
    for commands in (("platform_api",), ("rm",), ("un", "un")):
        answer = decide(TABLE, run, "understood", understood(commands), NOW_MS)
        assert isinstance(answer, Rejection)
        assert "commands_are_orchestrators" in answer.reason


async def test_evidence_that_was_swapped_after_weighing_ends_unaware() -> None:
    reason = Reason(name="clue", weight=80, seen="x")
    event = Inspected(profile="vm", confidence_percent=80, reasons=(reason,), observed="swapped")
    run = await step(send(start(Findings()), event), Place(SANDBOX), UP)
    assert run.state == "unaware"
    assert "evidence" in run.context.refusal


def understood(commands: tuple[str, ...]) -> Understood:
    return Understood(
        memory_limit_bytes=None,
        cpu_limit_millicores=None,
        pids_limit=None,
        writable=(),
        commands=commands,
    )


def surely(profile: Any) -> Inspected:
    reasons = (Reason(name="clue", weight=80, seen="x"),)
    return Inspected(profile=profile, confidence_percent=80, reasons=reasons, observed="{}")


@st.composite
def inspections(draw: st.DrawFn) -> Inspected:
    weights = draw(st.lists(st.integers(1, 99), max_size=4))
    reasons = tuple(Reason(name="clue", weight=weight, seen="x") for weight in weights)
    honest = confidence_percent(reasons)
    return Inspected(
        profile=draw(st.sampled_from(("lxc", "docker", "nspawn", "bubblewrap", "vm", "bare"))),
        confidence_percent=draw(st.just(honest) | st.integers(0, 120)),
        reasons=reasons,
        observed="{}",
    )


FAILURES = st.builds(
    InspectionFailed,
    effect=st.just("inspect"),
    reason=st.sampled_from(("", "x")),
    attempts=st.just(1),
)
EVENTS = st.one_of(
    inspections(),
    FAILURES,
    st.lists(st.sampled_from((*ORCHESTRATORS, "rm")), max_size=3).map(
        lambda c: understood(tuple(c))
    ),
    st.builds(Probed, platform_healthy=st.booleans()),
    st.just("outdated"),
)
CONTEXTS = st.builds(Findings, require_sandbox=st.booleans(), probes_max=st.integers(0, 3))


OPENINGS = st.sampled_from(
    (
        (),
        (surely("vm"),),
        (surely("bare"),),
        (surely("lxc"), understood(())),
        (surely("bare"), understood(("un",))),
        (surely("docker"), understood(()), "outdated"),
    )
)


@settings(max_examples=200, deadline=None)
@given(CONTEXTS, OPENINGS, st.lists(EVENTS, max_size=8))
def test_the_table_does_what_the_library_does_and_no_event_breaks_a_contract(
    context: Findings, opening: tuple[Any, ...], events: list[Any]
) -> None:
    run = start(context)
    for event in (*opening, *events):
        payload = None if isinstance(event, str) else event
        name = event if payload is None else str(payload.__struct_config__.tag)
        oracle = Oracle(Discovery, run.state, run.context)
        moved = oracle.send(name, payload, NOW_MS)
        decision = decide(TABLE, run, name, payload, NOW_MS)
        if isinstance(decision, Decision):
            assert moved
            assert (oracle.state, oracle.context) == (decision.after.state, decision.after.context)
            run = decision.after
        else:
            assert isinstance(decision, Rejection), decision
            assert moved == decision.reason.startswith("precondition")
    if run.state == "capable":
        assert run.context.awareness != "unknown"
        assert run.context.tools


def test_the_context_survives_storage() -> None:
    context = Findings(reasons=(Reason(name="a", weight=9, seen="b"),), tools=("un",))
    assert msgspec.json.decode(msgspec.json.encode(context), type=Findings) == context
