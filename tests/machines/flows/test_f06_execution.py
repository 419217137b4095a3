"""Execution: against the embedded platform over its real wire, every branch by name."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clock import minutes, seconds
from engine.secret import Secret
from engine.testing import CrashPlan, Harness
from engine.testing.faults import Crash
from machines.clients.ports import NotFound, ReplyLost, Unauthorized, Unavailable
from machines.clients.ports.executions import (
    Artifact,
    Executions,
    InputFile,
    Job,
    Variable,
)
from machines.clients.ports.refusals import Refusal
from machines.clients.ports.sessions import SessionOrder
from machines.flows import f06_execution
from machines.flows.code_run import (
    POLL_MS,
    CodeRun,
    Ended,
    Missing,
    Output,
    RanOver,
    Refused,
    StillRunning,
    Submitted,
    Unanswered,
)
from machines.flows.f06_execution import Execution
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.errors import SandboxUnavailable
from machines.platform.sandbox.fake import FakeBackend

SECRET_VALUE = "the-sesame-of-the-environment"
Embed = Callable[..., Any]


class Port:
    """The platform's own port, with faults: raised instead of a call, or once it was made."""

    def __init__(self, real: Any = None) -> None:
        self.real = real
        self.faults: dict[str, list[tuple[Any, bool]]] = {}
        self.keys: list[str] = []
        self.calls: list[str] = []
        self.times: list[int] = []
        self.clock: Any = None

    def fail(self, method: str, answer: Any, *, after: bool = False, times: int = 1) -> None:
        """An error to raise, or a job to tell instead."""
        self.faults.setdefault(method, []).extend([(answer, after)] * times)

    async def execute(self, credentials: Any, order: Any, *, key: str) -> Job:
        self.keys.append(key)
        return await self._call("execute", credentials, order, key=key)

    async def submit(self, credentials: Any, order: Any, *, key: str) -> Job:
        self.keys.append(key)
        return await self._call("submit", credentials, order, key=key)

    async def job(self, credentials: Any, job_id: str) -> Job:
        return await self._call("job", credentials, job_id)

    async def cancel(self, credentials: Any, job_id: str) -> Job:
        return await self._call("cancel", credentials, job_id)

    async def _call(self, method: str, *arguments: Any, **options: Any) -> Job:
        self.calls.append(method)
        if self.clock is not None:
            self.times.append(self.clock.now_ms())
        waiting = self.faults.get(method)
        if not waiting:
            done: Job = await getattr(self.real, method)(*arguments, **options)
            return done
        answer, after = waiting.pop(0)
        if after:
            await getattr(self.real, method)(*arguments, **options)
        if isinstance(answer, Exception):
            raise answer
        told: Job = answer
        return told


GOING = Job(job_id="j1", status="running", language="python")
ENDED = Job(job_id="j1", status="completed", language="python", stdout="42\n", exit_code=0)


def _run(key: Any = None, **changes: Any) -> CodeRun:
    pair = {"public_key": "pk", "secret_key": Secret("sk")}
    if key is not None:
        pair = {"public_key": key.public_key, "secret_key": key.secret_key}
    fields: dict[str, Any] = {**pair, "language": "python", "code": "print(42)"}
    return CodeRun(**(fields | changes))


# -- over the wire --------------------------------------------------------------------------------


async def test_code_runs_and_completes(embed: Embed) -> None:
    """Both modes, whatever the exit code, and with the language found out by the platform."""
    world = await embed()
    key = world.key()
    for mode in ("sync", "async"):
        story = await world.run(Execution, _run(key, mode=mode), key=mode)
        assert (story.state, story.status) == ("completed", "completed")
        report = story.output
        assert (report.success, report.language, report.output.stdout) == (True, "python", "42\n")
    story = await world.run(Execution, _run(key, code="import nothing"), key="exit code")
    assert (story.state, story.status) == ("completed", "completed")
    assert (story.output.success, story.output.output.exit_code) == (False, 2)
    source = "#!/usr/bin/env python3\nprint(42)\n"
    variables = (Variable("NAME", Secret("a b&c")),)
    for mode in ("sync", "async"):
        order = _run(key, language="", code=source, mode=mode, environment=variables)
        story = await world.run(Execution, order, key=f"detected {mode}")
        assert (story.state, story.output.language) == ("completed", "python")
    assert world.left() == {}


async def test_refusals_over_the_wire(embed: Embed) -> None:
    world = await embed()
    key, other = world.key(), world.key(tier=4)  # which has one slot
    await world.clients.sessions.create(other, _session_order(), key="holds-the-slot")
    wrong = Secret("unsb-sk-aaaaa-bbbbb-ccccc-ddddd")
    bad_name = (Variable("1NAME", Secret("x")),)
    expected = {
        "undetected": (_run(key, language="", code="mumble"), "could be recognized"),
        "language_missing": (_run(key, language="cobol"), "it comes with gnucobol4"),
        "rejected": (_run(key, environment=bad_name), "not a digit first"),
        "unauthorized": (_run(key, secret_key=wrong), "signature"),
        "no_slot": (_run(other, slot_attempts=3), "1 of 1 sandbox slots"),
    }
    for state, (order, reason) in expected.items():
        story = await world.run(Execution, order, key=state)
        assert (story.state, story.status) == (state, "failed")
        assert reason in story.context.reason
        assert story.output.provides == ("gnucobol4" if state == "language_missing" else "")
    assert world.left() == {"sessions": 1}
    assert _executions(world) == 0


def _session_order() -> SessionOrder:
    return SessionOrder(shell="bash", network_mode="zerotrust", ttl_seconds=86_400, vcpu=1)  # noqa: S604


async def test_platform_without_isolation_is_unavailable(embed: Embed) -> None:
    world = await embed(FakeBackend(SandboxUnavailable("no bubblewrap", "install bubblewrap")))
    story = await world.run(Execution, _run(world.key()))
    assert story.state == "unavailable"
    assert "install bubblewrap" in story.context.reason


def _executions(world: Any) -> int:
    with world.context.database.reading() as sql:
        return int(sql.scalar("SELECT count(*) FROM execution"))


async def test_lost_replies_and_crashes_do_not_run_the_code_twice(embed: Embed) -> None:
    world = await embed()
    key = world.key(tier=32)
    for mode, method in (("sync", "execute"), ("async", "submit")):
        port = Port(world.clients.executions)
        port.fail(method, ReplyLost("cut"), after=True, times=3)
        instead = {Executions: port}
        story = await world.run(Execution, _run(key, mode=mode), key=mode, instead=instead)
        assert (story.state, story.output.output.stdout) == ("completed", "42\n")
        assert len(port.keys) == 4 and len(set(port.keys)) == 1
    context = _run(key, mode="async")
    whole = CrashPlan()
    await _die(world, context, "whole", whole)
    first = next(one.number for one in whole.passed if "runs.group" in one.name)
    numbers = range(first, len(whole.passed), 3)
    for at in numbers:
        plan = CrashPlan(at=at)
        await _die(world, context, f"crash-{at}", plan)
        assert plan.dead, at
        world.clock.advance(seconds(60))
        story = await world.run(Execution, context, key=f"crash-{at}")
        assert (story.state, story.output.output.stdout) == ("completed", "42\n")
    assert len(numbers) >= 6
    assert _executions(world) == 3 + len(numbers), "one for each run, and none twice"


async def _die(world: Any, context: CodeRun, key: str, plan: CrashPlan) -> None:
    with suppress(Crash):
        async with world.harness(plan) as harness:
            await harness.app.start(Execution, context, key=key)
            await harness.until_idle(horizon_ms=minutes(60))


async def test_result_that_the_platform_lost_is_lost(embed: Embed, capsys: Any) -> None:
    """And, on the way, no secret is in any text."""
    world = await embed()
    port = Port(world.clients.executions)
    port.fail("execute", ReplyLost("cut"), after=True)
    key = world.key()
    order = _run(key, environment=(Variable("TOKEN", Secret(SECRET_VALUE)),))
    async with world.harness(instead={Executions: port}) as harness:
        ref = await harness.app.start(Execution, order, key="r")
        await harness.app.settle()
        with world.context.database.transaction() as sql:  # as a platform that died leaves it
            sql.run("UPDATE execution SET state = 'lost', stdout = NULL, exit_code = NULL")
        await harness.until_idle(horizon_ms=minutes(60))
        outcome = await harness.app.outcome(ref.run_id)
        journal = await harness.app.journal(ref.run_id)
        stored = world.store.runs.get(ref.run_id)
    assert (outcome.state, outcome.status) == ("lost", "failed")
    assert "it may have run" in outcome.context.reason
    assert _executions(world) == 1
    text = "".join(capsys.readouterr()) + repr((outcome, journal, stored))
    assert SECRET_VALUE not in text
    assert key.secret_key.reveal() not in text


# -- before anything is sent ----------------------------------------------------------------------


async def test_unknown_language_is_not_even_asked_for(run_alone: Any) -> None:
    port = Port()
    story = await run_alone(port, _run(language="pyhton"))
    assert (story.state, port.calls) == ("unknown_language", [])
    assert "did you mean python" in story.context.reason


@pytest.mark.parametrize("ttl_seconds", [0, 901, -1])
async def test_ttl_out_of_range(run_alone: Any, ttl_seconds: int) -> None:
    port = Port()
    story = await run_alone(port, _run(ttl_seconds=ttl_seconds))
    assert (story.state, port.calls) == ("out_of_range", [])
    assert "expected 1 to 900" in story.context.reason


REJECTED: list[dict[str, Any]] = [
    {"code": " \n"},
    {"vcpu": 0},
    {"vcpu": 9},
    {"code": "x" * 100_000},
    {"environment": (Variable("A", Secret("x" * 100_000)),)},
    {"files": (InputFile("a/b", ""),)},
    {"files": (InputFile("..", ""),)},
    {"files": (InputFile("a", "?"),)},
    {"files": (InputFile("a", ""),) * 1001},
    {"language": "", "stdin": "x"},
    {"language": "", "vcpu": 2},
]


@pytest.mark.parametrize("changes", REJECTED, ids=lambda one: next(iter(one)))
async def test_rejected_input(run_alone: Any, changes: dict[str, Any]) -> None:
    port = Port()
    story = await run_alone(port, _run(**changes))
    assert (story.state, port.calls) == ("rejected", [])
    assert story.context.reason != ""


# -- the job --------------------------------------------------------------------------------------


@pytest.fixture
def run_alone(make_world: Any) -> Any:
    """Run an execution over a scripted port, on a clock of its own."""

    async def run(port: Port, context: CodeRun, *, cancel_after_ms: int | None = None) -> Any:
        small = make_world()
        port.clock = small.clock
        harness = Harness(
            [Execution],
            store=small.store,
            clock=small.clock,
            resources={Executions: port},
            secrets=small.codec,
        )
        async with harness:
            ref = await harness.app.start(Execution, context)
            if cancel_after_ms is not None:
                await harness.until_idle(horizon_ms=cancel_after_ms)
                await harness.app.cancel(ref.run_id)
            await harness.until_idle()
            return await harness.app.outcome(ref.run_id)

    return run


def _submitting() -> Port:
    port = Port()
    port.fail("submit", GOING)
    return port


async def test_polling_waits_as_the_clients_do(run_alone: Any) -> None:
    port = _submitting()
    port.fail("job", GOING, times=8)
    port.fail("job", ENDED)
    story = await run_alone(port, _run(mode="async"))
    assert story.state == "completed"
    pauses = [after - before for before, after in zip(port.times, port.times[1:], strict=False)]
    assert tuple(pauses) == (*POLL_MS, 2000, 2000)


async def test_five_404s_after_submitting_are_tolerated(run_alone: Any) -> None:
    port = _submitting()
    port.fail("job", NotFound("404"), times=5)
    port.fail("job", ENDED)
    assert (await run_alone(port, _run(mode="async"))).state == "completed"


async def test_six_404s_are_a_lost_job(run_alone: Any) -> None:
    port = _submitting()
    port.fail("job", NotFound("404"), times=6)
    story = await run_alone(port, _run(mode="async"))
    assert (story.state, story.status) == ("lost", "failed")
    assert story.context.reason == "the platform knows no job of this id"


@pytest.mark.parametrize(
    ("kind", "asked_ms", "waits_ms"),
    [
        ("rate_limit", None, 10_000),
        ("rate_limit", 42_000, 42_000),
        ("concurrency", None, 5_000),
        ("concurrency", 7_000, 7_000),
    ],
)
async def test_429_backs_off_by_kind(
    run_alone: Any, kind: str, asked_ms: int | None, waits_ms: int
) -> None:
    port = Port()
    port.fail("execute", Unavailable("429", kind=kind, retry_after_ms=asked_ms))
    port.fail("execute", ENDED)
    assert (await run_alone(port, _run())).state == "completed"
    assert port.times[1] - port.times[0] == waits_ms
    assert len(set(port.keys)) == 1


async def test_time_out(run_alone: Any) -> None:
    port = Port()
    ended = Job(
        job_id="j1", status="timeout", language="c", stdout="half", exit_code=137, error="too long"
    )
    port.fail("execute", ended)
    story = await run_alone(port, _run())
    assert (story.state, story.status, story.context.reason) == ("timed_out", "failed", "too long")
    assert (story.output.output.exit_code, story.output.output.stdout) == (None, "half")


async def test_platform_side_failure(run_alone: Any) -> None:
    port = Port()
    port.fail("execute", Job(job_id="j1", status="failed", language="c", error="no disk"))
    story = await run_alone(port, _run())
    assert (story.state, story.context.reason) == ("failed", "no disk")


async def test_completed_without_an_exit_code_is_a_failure(run_alone: Any) -> None:
    port = Port()
    port.fail("execute", Job(job_id="j1", status="completed", language="c"))
    story = await run_alone(port, _run())
    assert (story.state, story.output.success) == ("failed", False)
    assert "tells no exit code" in story.context.reason


async def test_cancelled_run_cancels_its_job(run_alone: Any) -> None:
    port = _submitting()
    port.fail("job", GOING, times=50)
    port.fail("cancel", Job(job_id="j1", status="cancelled", language="c", stdout="half"))
    story = await run_alone(port, _run(mode="async"), cancel_after_ms=5_000)
    assert (story.state, story.output.output.stdout) == ("cancelled", "half")
    assert port.calls[-1] == "cancel"


async def test_job_that_is_quicker_than_its_cancellation(run_alone: Any) -> None:
    port = _submitting()
    port.fail("job", GOING, times=50)
    port.fail("cancel", GOING, times=2)
    port.fail("cancel", ENDED)
    story = await run_alone(port, _run(mode="async"), cancel_after_ms=5_000)
    assert (story.state, story.status) == ("completed", "completed")


async def test_job_that_ended_by_somebody_else(run_alone: Any) -> None:
    port = _submitting()
    port.fail("job", Job(job_id="j1", status="cancelled", language="c"))
    assert (await run_alone(port, _run(mode="async"))).state == "cancelled"


async def test_overdue_job_is_ended(run_alone: Any) -> None:
    port = _submitting()
    port.fail("job", GOING, times=100)
    port.fail("cancel", Unavailable("down"), times=3)
    port.fail("cancel", Job(job_id="j1", status="cancelled", language="c"))
    story = await run_alone(port, _run(mode="async", ttl_seconds=20))
    assert (story.state, story.status) == ("overdue", "failed")
    assert port.times[-5] - port.times[0] >= seconds(80)


async def test_silent_platform_is_unreachable_and_its_job_ended(run_alone: Any) -> None:
    port = _submitting()
    port.fail("job", Unavailable("down"), times=30)
    port.fail("cancel", Job(job_id="j1", status="cancelled", language="c"))
    story = await run_alone(port, _run(mode="async"))
    assert (story.state, story.context.reason) == ("unreachable", "down")
    assert port.calls == ["submit", *["job"] * 30, "cancel"]


async def test_platform_that_never_comes_back_is_unreachable(run_alone: Any) -> None:
    port = _submitting()
    port.fail("job", Unavailable("down"), times=500)
    port.fail("cancel", Unavailable("down"), times=500)
    story = await run_alone(port, _run(mode="async"))
    assert (story.state, story.status) == ("unreachable", "failed")
    assert port.times[-1] - port.times[0] > minutes(16), "its job has ended by itself by now"


async def test_platform_that_never_answers_is_unreachable(run_alone: Any) -> None:
    port = Port()
    port.fail("execute", ReplyLost("cut"), times=500)
    story = await run_alone(port, _run())
    assert (story.state, story.status) == ("unreachable", "failed")
    assert len(set(port.keys)) == 1


@pytest.mark.parametrize(
    "error", [Unauthorized("401", reason="expired"), Refusal("no", code="x", status=403)]
)
async def test_key_that_died_meanwhile(run_alone: Any, error: Exception) -> None:
    port = _submitting()
    port.fail("job", error)
    port.fail("cancel", error)
    story = await run_alone(port, _run(mode="async"))
    assert story.state == "unreachable"
    assert story.context.reason == str(error)


async def test_output_is_bounded_as_it_is_stored(run_alone: Any) -> None:
    port = Port()
    many = tuple(Artifact(f"{n}.bin" + "\1" * 200, 1, "0" * 64) for n in range(100))
    loud = Job(job_id="j1", status="completed", language="c", stdout="\0" * 200_000,
               stderr="é\ud800" * 100_000, exit_code=0, artifacts=many)  # fmt: skip
    port.fail("execute", loud)
    story = await run_alone(port, _run())
    output = story.output.output
    assert (story.state, output.truncated) == ("completed", True)
    assert (len(output.stdout), len(output.stderr)) == (5461, 21_844)
    assert len(output.artifacts) + output.artifacts_left_out == 100
    assert 0 < len(output.artifacts) < 30


def test_every_code_of_the_platform_leads_to_a_state() -> None:
    places = {state.id for state in Execution.states}
    assert set(f06_execution.KINDS.values()) <= places


# -- real sandboxes -------------------------------------------------------------------------------


@pytest.fixture
def sandboxes(tmp_path: Path) -> Any:
    backend = BubblewrapBackend(tmp_path / "sandboxes")
    yield backend
    backend.close()


async def test_in_a_real_sandbox(embed: Embed, sandboxes: Any) -> None:
    """Arguments, standard input, environment, input files and artifacts of a real program."""
    world = await embed(sandboxes)
    code = (
        "import os, pathlib, sys\n"
        "print(sys.argv[1], sys.stdin.read(), os.environ['TOKEN'] == 'hush',\n"
        "      pathlib.Path('/tmp/input/in.txt').read_text())\n"
        "pathlib.Path('/tmp/artifacts').mkdir()\n"
        "pathlib.Path('/tmp/artifacts/out.txt').write_text('made inside')\n"
        "print('careful', file=sys.stderr)\n"
        "sys.exit(7)\n"
    )
    order = _run(
        world.key(),
        code=code,
        mode="async",
        arguments=("one",),
        stdin="two",
        environment=(Variable("TOKEN", Secret("hush")),),
        files=(InputFile("in.txt", base64.b64encode(b"three").decode()),),
    )
    story = await _really(world, order)
    assert (story.state, story.output.success) == ("completed", False)
    output = story.output.output
    assert (output.exit_code, output.stdout, output.stderr) == (
        7,
        "one two True three\n",
        "careful\n",
    )
    digest = hashlib.sha256(b"made inside").hexdigest()
    assert output.artifacts == (Artifact("out.txt", 11, digest),)
    assert world.left() == {}


async def _really(world: Any, context: CodeRun, *, key: str = "r") -> Any:
    """Run beside a real sandbox, which does not wait for the clock of a test."""
    async with world.harness() as harness:
        ref = await harness.app.start(Execution, context, key=key)
        for _ in range(600):
            await harness.app.beat()
            await harness.app.settle()
            outcome = await harness.app.outcome(ref.run_id)
            if outcome.status in ("completed", "failed", "quarantined"):
                return outcome
            if outcome.state == "running":
                rows = world.left().get("executions", 0)
                if not rows:
                    world.clock.advance(2_000)
            await asyncio.sleep(0.01)
    raise AssertionError("the program did not end")


async def test_cancelled_run_leaves_nothing_running(embed: Embed, sandboxes: Any) -> None:
    world = await embed(sandboxes)
    order = _run(world.key(), language="bash", code="echo begun; sleep 600", mode="async")
    async with world.harness() as harness:
        ref = await harness.app.start(Execution, order, key="r")
        await harness.app.settle()
        assert world.left() == {"executions": 1}
        await harness.app.cancel(ref.run_id)
        await harness.until_idle(horizon_ms=minutes(1))
        outcome = await harness.app.outcome(ref.run_id)
    assert (outcome.state, outcome.context.stopping) == ("cancelled", "cancel")
    assert world.left() == {}


LANGUAGES = {
    "python": 'print("turtles", 6 * 7)',
    "javascript": "console.log(`turtles ${6 * 7}`);",
    "ruby": 'puts "turtles #{6 * 7}"',
    "perl": 'print "turtles ", 6 * 7, "\\n";',
    "php": '<?php echo "turtles ", 6 * 7, "\\n";',
    "lua": 'print("turtles " .. 6 * 7)',
    "bash": "echo turtles $((6 * 7))",
    "tcl": "puts [list turtles [expr {6 * 7}]]",
    "awk": 'BEGIN { print "turtles", 6 * 7 }',
    "c": '#include <stdio.h>\nint main(void) { printf("turtles %d\\n", 6 * 7); return 0; }',
    "cpp": '#include <iostream>\nint main() { std::cout << "turtles " << 6 * 7 << "\\n"; }',
    "go": 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("turtles", 6*7) }\n',
    "rust": 'fn main() { println!("turtles {}", 6 * 7); }',
    "java": "public class Main { public static void main(String[] arguments) {\n"
    '  System.out.println("turtles " + 6 * 7); } }',
    "fortran": "program turtles\n  print '(A, I0)', 'turtles ', 6 * 7\nend program turtles\n",
    "scheme": '(display "turtles ")\n(display (* 6 7))\n(newline)',
    "ocaml": 'let () = print_endline ("turtles " ^ string_of_int (6 * 7))',
    "forth": '6 7 * ." turtles " 0 .r cr bye\n',
    "prolog": ":- initialization(main).\nmain :- N is 6 * 7, write(turtles), write(' '), "
    "write(N), nl, halt.\n",
}


@pytest.mark.acceptance
@pytest.mark.timeout(300)
async def test_ten_languages_run_through_the_machine(embed: Embed, sandboxes: Any) -> None:
    """And one that is not there says what would bring it."""
    world = await embed(sandboxes)
    key = world.key(tier=32)
    ran, missing = [], {}
    for name, code in LANGUAGES.items():
        story = await _really(world, _run(key, language=name, code=code), key=name)
        if story.state == "language_missing":
            missing[name] = story.output.provides
            continue
        assert story.state == "completed", (name, story.context.reason)
        output = story.output.output
        assert (output.exit_code, output.stdout.strip()) == (0, "turtles 42"), (name, output.stderr)
        ran.append(name)
    assert len(ran) >= 10, ran
    assert all(missing.values()), missing


# -- any sequence of events ---------------------------------------------------------------------

EVENTS = st.one_of(
    st.sampled_from(["time_up", "time_to_look", "cancel"]),
    st.builds(Submitted, job_id=st.sampled_from(["", "j"]), language=st.just("c"),
              at_ms=st.integers(0, 9)),
    st.builds(Refused, kind=st.sampled_from(sorted(set(f06_execution.KINDS.values()))),
              detail=st.just("no")),
    st.builds(Ended, outcome=st.sampled_from(["completed", "failed", "timed_out", "cancelled"]),
              output=st.builds(Output, exit_code=st.none() | st.integers(0, 2))),
    st.builds(StillRunning), st.builds(Missing), st.builds(RanOver),
    st.builds(Unanswered, effect=st.just("look"), reason=st.just("down"), attempts=st.just(30)),
)  # fmt: skip
STEPS = st.lists(st.tuples(EVENTS, st.integers(0, 600)), max_size=12)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_the_table_does_what_the_library_does(library_agrees: Any, steps: Any) -> None:
    library_agrees(Execution, _run(), steps)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_contracts_hold_whatever_happens(walk: Any, steps: Any) -> None:
    for run in walk(Execution, _run(), steps):
        exit_code = run.context.output.exit_code
        assert (exit_code is not None) == (run.state == "completed")
