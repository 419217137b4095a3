"""ToolInstall: every branch by name, over a sandbox that answers as told, and in real ones."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from engine.clock import minutes
from engine.secret import Secret
from engine.secrets import SecretsCodec
from engine.testing import Crash, CrashPlan, Harness, ManualClock
from engine.worker import LEASE_MS
from machines.agents.tools import TOOLS
from machines.clients.ports import (
    Execution,
    NotFound,
    Platform,
    Rejected,
    ReplyLost,
    Unauthorized,
    Unavailable,
)
from machines.clients.ports.tools import Package, Tools
from machines.flows.f05_tool_install import REPAIRS_MAX, TOOLS_COUNT, ToolInstall
from machines.flows.tool_calls import Installation, Installed
from machines.platform.sandbox.backend import Command, Handle
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.wheel import own_wheel
from persistence import open_store

MIB = 1024 * 1024
WHEEL = b"the bytes of a wheel"
DIGEST = hashlib.sha256(WHEEL).hexdigest()
SECRET = "unsb-sk-hidden-hidden"


class FakeTools:
    """The code that is running: a wheel of a few bytes."""

    refusal: Exception | None = None

    async def package(self) -> Package:
        if self.refusal is not None:
            raise self.refusal
        return Package(
            filename="turtles.whl", version="1", sha256=DIGEST, record="R", record_sha256="files"
        )

    async def proof(self, salt: str) -> str:
        if self.refusal is not None:
            raise self.refusal
        return hashlib.sha256(salt.encode() + WHEEL).hexdigest()


class FakeSession:
    """A session that knows the steps by name; `answers` go before what it would say."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answers: dict[str, list[Any]] = {}
        self.wheel = WHEEL
        self.present = False

    def next(self, step: str, *answers: Any) -> None:
        """What the next calls of a step answer or raise, before it is itself again."""
        self.answers.setdefault(step, []).extend(answers)

    @property
    def steps(self) -> list[str]:
        return [step for step, _ in self.asked]

    async def execute(
        self, credentials: Any, session_id: str, command: str, *, key: str
    ) -> Execution:
        assert (credentials.secret_key.reveal(), session_id) == (SECRET, "s-1")
        assert SECRET not in command
        ask = json.loads(command.rpartition("' '")[2].partition("'\n")[0])
        self.asked.append((ask["step"], key))
        waiting = self.answers.get(ask["step"])
        answer = waiting.pop(0) if waiting else getattr(self, ask["step"])(ask)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Execution) else said(answer)

    def fetch(self, ask: dict[str, str]) -> dict[str, Any]:
        self.present = True
        return {
            "digest": hashlib.sha256(self.wheel).hexdigest(),
            "proof": hashlib.sha256(ask["salt"].encode() + self.wheel).hexdigest(),
            "python": "3.11.2",
        }

    def install(self, ask: dict[str, str]) -> dict[str, Any]:
        assert (ask["digest"], ask["filename"], ask["record"]) == (DIGEST, "turtles.whl", "R")
        return {"kept": False, "files": 3}

    def check(self, ask: dict[str, str]) -> dict[str, Any]:
        return {"record": "files", "version": "1", "tools": 59, "unusable": 0, "path": "/p"}

    def remove(self, ask: dict[str, str]) -> dict[str, Any]:
        self.present = False
        return {"removed": True}


def said(document: Any, exit_code: int = 0, stderr: str = "") -> Execution:
    """A command's end; text is printed as it is."""
    stdout = document if isinstance(document, str) else f"noise\n{json.dumps(document)}\n"
    return Execution(stdout=stdout, stderr=stderr, exit_code=exit_code, duration_ms=1)


KILLED = said("", exit_code=137)


class Scene:
    """A run at a time, on a clock that jumps."""

    def __init__(self) -> None:
        self.session, self.tools = FakeSession(), FakeTools()
        self.clock = ManualClock(1_700_000_000_000)
        self.store = open_store("sqlite://")
        self.codec = SecretsCodec(b"m" * 32)

    def harness(self, plan: CrashPlan | None = None) -> Harness:
        resources = {Platform: self.session, Tools: self.tools}
        return Harness(
            [ToolInstall], store=self.store, resources=resources, clock=self.clock, plan=plan,
            secrets=self.codec,
        )  # fmt: skip

    async def run(self, **fields: Any) -> Any:
        context = installation(**fields)
        async with self.harness() as harness:
            run = await harness.app.start(ToolInstall, context, key="run")
            await harness.until_idle(horizon_ms=minutes(120))
            return await harness.app.outcome(run.run_id)


def installation(**fields: Any) -> Installation:
    known = {"public_key": "pk", "secret_key": Secret(SECRET), "session_id": "s-1"}
    return Installation(**{**known, **fields})


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.store.close()


async def test_installed(scene: Scene) -> None:
    outcome = await scene.run()
    assert (outcome.state, outcome.status) == ("installed", "completed")
    assert outcome.output == Installed(digest=DIGEST, version="1", tools=59, path="/p")
    assert outcome.context.python == "3.11.2"


async def test_it_costs_three_requests(scene: Scene) -> None:
    await scene.run(digest=DIGEST)
    assert scene.session.steps == ["fetch", "install", "check"]
    assert len({key for _, key in scene.session.asked}) == 3


async def test_unresolved_when_another_wheel_is_asked_for(scene: Scene) -> None:
    outcome = await scene.run(digest="0" * 64)
    assert (outcome.state, scene.session.asked) == ("unresolved", [])
    assert DIGEST in outcome.context.reason
    assert "0" * 64 in outcome.context.reason


async def test_unresolved_when_our_code_cannot_be_packed(scene: Scene) -> None:
    scene.tools.refusal = Rejected("no source files")
    outcome = await scene.run()
    assert (outcome.state, outcome.context.reason) == ("unresolved", "no source files")


async def test_refused_for_its_checksum(scene: Scene) -> None:
    scene.session.wheel = WHEEL[:-1]
    outcome = await scene.run()
    assert outcome.state == "refused"
    assert hashlib.sha256(WHEEL[:-1]).hexdigest() in outcome.context.reason
    assert scene.session.steps == ["fetch", "remove"]
    assert not scene.session.present


async def test_refused_when_our_digest_is_only_repeated(scene: Scene) -> None:
    scene.session.next("fetch", {"digest": DIGEST, "proof": hashlib.sha256(WHEEL).hexdigest()})
    outcome = await scene.run()
    assert (outcome.state, scene.session.steps) == ("refused", ["fetch", "remove"])


REASONS = {
    "unresolved": "unresolved",
    "checksum": "refused",
    "no_toolbox": "no_toolbox",
    "no_python": "no_python",
    "disk_full": "disk_full",
    "unusable": "unusable",
    "made_up_by_the_sandbox": "unusable",
}


@pytest.mark.parametrize("kind", REASONS)
async def test_what_the_sandbox_turns_down_has_a_name(scene: Scene, kind: str) -> None:
    scene.session.next("install", {"refused": kind, "reason": "no\x1b way"})
    outcome = await scene.run()
    assert (outcome.state, outcome.status) == (REASONS[kind], "failed")
    assert outcome.context.reason == "no? way"
    assert not scene.session.present


ERRORS: dict[str, Exception] = {
    "session_gone": NotFound("410 session_terminated"),
    "denied": Unauthorized("401", reason="expired"),
    "unusable": Rejected("409 session_frozen: unfreeze it first"),
}


@pytest.mark.parametrize("step", ["fetch", "install", "check"])
@pytest.mark.parametrize("state", ERRORS)
async def test_what_the_platform_turns_down_has_a_name(scene: Scene, state: str, step: str) -> None:
    scene.session.next(step, ERRORS[state])
    scene.session.next("remove", ERRORS[state])  # as it will be then, too
    outcome = await scene.run()
    assert (outcome.state, outcome.status) == (state, "failed")
    assert scene.session.steps[-2:] == [step, "remove"]
    assert str(ERRORS[state]) in outcome.context.reason


@pytest.mark.parametrize("step", ["fetch", "install", "check"])
@pytest.mark.parametrize(
    "end", [KILLED, said("Killed\n"), said(""), said("{"), said("[1]"), said({"digest": 5})]
)
async def test_a_step_that_breaks_off_is_done_again(
    scene: Scene, step: str, end: Execution
) -> None:
    scene.session.next(step, end)
    outcome = await scene.run()
    assert (outcome.state, outcome.context.repairs) == ("installed", 1)
    keys = [key for name, key in scene.session.asked if name == step]
    assert len(keys) == len(set(keys)) == 2


async def test_damage_is_mended(scene: Scene) -> None:
    scene.session.next("check", {"damaged": ["engine/run.py"]})
    outcome = await scene.run()
    assert outcome.state == "installed"
    assert scene.session.steps == ["fetch", "install", "check", "install", "check"]


async def test_damaged_when_it_cannot_be_mended(scene: Scene) -> None:
    scene.session.next("check", *[{"damaged": ["engine/run.py"]}] * (REPAIRS_MAX + 1))
    outcome = await scene.run()
    assert (outcome.state, outcome.context.reason) == ("damaged", "damaged: engine/run.py")
    assert len(scene.session.asked) <= 7 + 1  # a minute of tier 1, and the removal
    assert not scene.session.present


async def test_damaged_when_the_files_are_another_wheels(scene: Scene) -> None:
    told = {"record": "others", "version": "1", "tools": 59, "unusable": 0, "path": "/p"}
    scene.session.next("check", told)
    outcome = await scene.run()
    assert (outcome.state, scene.session.present) == ("damaged", False)


async def test_unusable_when_the_session_never_answers_as_asked(scene: Scene) -> None:
    """A session whose shell is no bash, say."""
    wrong = said("", exit_code=1, stderr="SyntaxError: invalid syntax\n")
    scene.session.next("fetch", *[wrong] * (REPAIRS_MAX + 1))
    outcome = await scene.run()
    assert outcome.state == "unusable"
    assert "SyntaxError" in outcome.context.reason


async def test_incomplete_when_a_tool_is_missing(scene: Scene) -> None:
    told = {"record": "files", "version": "1", "tools": 58, "unusable": 1, "path": "/p"}
    scene.session.next("check", told)
    outcome = await scene.run()
    assert (outcome.state, scene.session.present) == ("incomplete", False)
    assert "58 tools" in outcome.context.reason


async def test_a_lost_answer_is_asked_for_again_under_the_same_key(scene: Scene) -> None:
    scene.session.next("install", ReplyLost("cut"), Unavailable("429", kind="rate_limit"))
    outcome = await scene.run()
    assert (outcome.state, outcome.context.repairs) == ("installed", 0)
    assert len({key for name, key in scene.session.asked if name == "install"}) == 1


async def test_unreachable_when_nobody_answers(scene: Scene) -> None:
    scene.session.next("install", *[Unavailable("down")] * 400)
    outcome = await scene.run(timeout_ms=minutes(1))
    assert (outcome.state, outcome.status) == ("unreachable", "failed")
    assert not scene.session.present


async def test_cancelled_leaves_nothing(scene: Scene) -> None:
    scene.session.next("install", *[Unavailable("down")] * 400)
    async with scene.harness() as harness:
        run = await harness.app.start(ToolInstall, installation(), key="run")
        await harness.until_idle(horizon_ms=1_000)
        assert scene.session.present
        await harness.app.cancel(run.run_id)
        await harness.until_idle(horizon_ms=minutes(30))
        outcome = await harness.app.outcome(run.run_id)
    assert outcome.status == "cancelled"
    assert not scene.session.present


async def test_a_death_anywhere_ends_in_one_installation() -> None:
    """Whatever step the process dies at, the next one goes on under the same keys."""
    for death in itertools.count(1):
        scene = Scene()
        plan = CrashPlan(at=death)
        with contextlib.suppress(Crash):
            async with scene.harness(plan) as harness:
                await harness.app.start(ToolInstall, installation(), key="run")
                await harness.until_idle()
        scene.clock.advance(2 * LEASE_MS)
        outcome = await scene.run()
        assert outcome.state == "installed"
        assert len(set(scene.session.asked)) == 3
        scene.store.close()
        if not plan.dead:
            assert death > 10
            return


async def test_the_secret_shows_up_nowhere(scene: Scene) -> None:
    scene.session.next("fetch", Unauthorized("401", reason="invalid_signature"))
    with capture_logs() as lines:
        outcome = await scene.run()
    assert SECRET not in repr(lines) + repr(outcome)


def test_as_many_tools_are_expected_as_there_are() -> None:
    assert len(TOOLS) == TOOLS_COUNT


# -- in real sandboxes --------------------------------------------------------------------------


@pytest.fixture
async def sandboxes(tmp_path: Path) -> AsyncIterator[BubblewrapBackend]:
    backend = BubblewrapBackend(tmp_path / "sandboxes")
    yield backend
    backend.close()


@pytest.fixture
async def open_session(
    embed: Callable[..., Any], sandboxes: BubblewrapBackend
) -> Callable[..., Any]:
    """`await open_session(toolbox=...)`: a platform, an order for its session, a shell in it."""

    async def open_(*, toolbox: bool = True, shell: str = "bash") -> Any:
        platform = await embed(sandboxes)
        credentials = platform.key()
        session = await platform.clients.platform.create_session(
            credentials, shell=shell, network_mode="zerotrust", ttl_seconds=600, key="once",
            toolbox=toolbox,
        )  # fmt: skip
        order = Installation(
            public_key=credentials.public_key,
            secret_key=credentials.secret_key,
            session_id=session.session_id,
        )

        def inside(line: str) -> str:
            handle = Handle(session.session_id)
            done = sandboxes.execute(handle, Command(("sh", "-c", line)), timeout_seconds=30)
            assert done.exit_code == 0, done.stderr
            return done.stdout.decode()

        return platform, order, inside

    return open_


async def test_this_product_runs_in_a_sandbox_and_is_mended_there(open_session: Any) -> None:
    platform, order, inside = await open_session()
    first = await platform.run(ToolInstall, order, key="first")
    assert first.state == "installed", first.context.reason
    wheel = own_wheel()
    program = "/root/.turtles/bin/turtles"
    assert first.output == Installed(
        digest=wheel.sha256, version=wheel.version, tools=59, path=program
    )
    assert inside(f"{program} --version") == f"turtles {wheel.version}\n"
    # It packs itself: what it would hand on to the next layer is the same wheel.
    again = "import machines.wheel as w; print(w.own_wheel().sha256, w.__file__)"
    variables = f"PYTHONPATH=/root/.turtles/{wheel.sha256}:/opt/turtles/lib"
    digest, file = inside(f"{variables} /opt/turtles/bin/python -c '{again}'").split()
    assert (digest, file) == (wheel.sha256, f"/root/.turtles/{wheel.sha256}/machines/wheel.py")
    inside(f"truncate -s 10 /root/.turtles/{wheel.sha256}/engine/run.py")
    second = await platform.run(ToolInstall, order, key="second")
    assert (second.state, second.output) == ("installed", first.output)
    assert int(inside(f"stat -c %s /root/.turtles/{wheel.sha256}/engine/run.py")) > 10


async def test_a_session_without_a_toolbox(open_session: Any) -> None:
    platform, order, _ = await open_session(toolbox=False)
    assert (await platform.run(ToolInstall, order)).state == "no_toolbox"


async def test_a_session_of_another_language(open_session: Any) -> None:
    platform, order, _ = await open_session(shell="python3")  # noqa: S604 - a name
    outcome = await platform.run(ToolInstall, order)
    assert outcome.state == "unusable"
    assert "SyntaxError" in outcome.context.reason


async def test_a_session_that_was_terminated(open_session: Any) -> None:
    platform, order, _ = await open_session()
    credentials = platform.key()
    await platform.clients.platform.delete_session(
        type(credentials)(public_key=order.public_key, secret_key=order.secret_key),
        order.session_id,
    )
    assert (await platform.run(ToolInstall, order)).state == "session_gone"


async def test_a_disk_that_is_full(open_session: Any) -> None:
    platform, order, inside = await open_session()
    inside("head -c 254M /dev/zero > /root/full")
    outcome = await platform.run(ToolInstall, order)
    assert outcome.state == "disk_full", outcome.context.reason
    assert inside("ls -A /root/.turtles").split() in ([], ["bin"])
