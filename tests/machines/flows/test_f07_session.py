"""Session: against the embedded platform over its real wire, and by messages."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clock import hours, minutes, seconds
from engine.secret import Secret
from engine.testing import CrashPlan
from engine.testing.faults import Crash
from machines.clients.ports import ReplyLost, Unavailable
from machines.clients.ports.sessions import Sessions
from machines.flows.f07_session import Session
from machines.flows.session_run import (
    Ask,
    Boost,
    CellEnded,
    CellResult,
    Created,
    Declined,
    End,
    Execute,
    Extend,
    Freeze,
    Over,
    Refused,
    Seen,
    SessionRun,
    Unanswered,
    Unfreeze,
    problem_of,
)
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.errors import SandboxUnavailable
from machines.platform.sandbox.fake import FakeBackend

Embed = Callable[..., Any]
SOON_MS = seconds(1)


class Port:
    """The platform's own port, with faults: raised instead of a call, or once it was made."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.faults: dict[str, list[tuple[Exception, bool]]] = {}
        self.calls: list[tuple[str, Any]] = []

    def fail(self, method: str, error: Exception, *, after: bool = False, times: int = 1) -> None:
        self.faults.setdefault(method, []).extend([(error, after)] * times)

    def __getattr__(self, method: str) -> Any:
        async def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append((method, options.get("key")))
            waiting = self.faults.get(method)
            if not waiting:
                return await getattr(self.real, method)(*arguments, **options)
            error, after = waiting.pop(0)
            if after:
                await getattr(self.real, method)(*arguments, **options)
            raise error

        return call

    def keys(self, method: str) -> list[Any]:
        return [key for name, key in self.calls if name == method]


def _run(key: Any = None, **changes: Any) -> SessionRun:
    pair: dict[str, Any] = {"public_key": "pk", "secret_key": Secret("sk")}
    if key is not None:
        pair = {"public_key": key.public_key, "secret_key": key.secret_key}
    return SessionRun(**({**pair, "shell": "python3"} | changes))


class Talk:
    """One session, driven by messages; each is followed until the run rests again."""

    def __init__(self, harness: Any, run_id: str) -> None:
        self.harness, self.run_id = harness, run_id

    async def say(self, order: Any, *, key: str | None = None) -> Any:
        """Send, move, and give the receipt and the run."""
        app = self.harness.app
        receipt = await app.send(self.run_id, Ask(order=order), key=key)
        await self.rest()
        return await app.apply(receipt), await app.get(self.run_id)

    async def rest(self, horizon_ms: int = SOON_MS) -> Any:
        await self.harness.until_idle(horizon_ms=horizon_ms)
        return await self.harness.app.get(self.run_id)


async def _talk(harness: Any, context: SessionRun, key: str = "s") -> Talk:
    talk = Talk(harness, (await harness.app.start(Session, context, key=key)).run_id)
    await talk.rest()
    return talk


def _texts(context: SessionRun) -> list[str]:
    return [one.stdout for one in context.results]


async def test_variables_persist_across_cells_and_through_a_freeze(embed: Embed) -> None:
    world = await embed()
    async with world.harness() as harness:
        talk = await _talk(harness, _run(world.key()))
        await talk.say(Execute(command="x = 42"))
        _, run = await talk.say(Execute(command="print(x)"))
        assert (run.state, _texts(run.context), run.context.slots) == ("running", ["", "42\n"], 1)
        _, run = await talk.say(Freeze())
        assert (run.state, run.context.slots) == ("frozen", 0)
        receipt, run = await talk.say(Execute(command="print(x)"))
        assert (receipt.status, run.context.done) == ("rejected", 2), "frozen: it never executes"
        assert "is_possible" in receipt.reason
        _, run = await talk.say(Unfreeze())
        assert run.state == "running"
        _, run = await talk.say(Execute(command="print(x)"))
        assert _texts(run.context)[-1] == "42\n"
        _, run = await talk.say(End())
        assert (run.state, run.status, run.context.reason) == ("terminated", "completed", "deleted")
    assert world.left() == {}


async def test_script_is_run_and_the_session_ended(embed: Embed) -> None:
    """Also with lost replies: one session, and every cell once."""
    world = await embed()
    port = Port(world.clients.sessions)
    port.fail("create", ReplyLost("cut"), after=True, times=2)
    port.fail("run", ReplyLost("cut"), after=True, times=2)
    port.fail("end", ReplyLost("cut"), after=True)
    cells = ("x = 1", "print(x)", "import nothing")
    story = await world.run(
        Session,
        _run(world.key(), cells=cells, end_after=True),
        instead={Sessions: port},
    )
    assert (story.state, story.status) == ("terminated", "completed")
    assert story.passed == ["creating", "executing", "ending", "terminated"]
    report = story.output
    assert [one.exit_code for one in report.results] == [0, 0, 2]
    assert (report.success, report.done, report.left) == (False, 3, 0)
    assert _rows(world) == (1, 3)
    assert len(set(port.keys("create"))) == 1 and len(set(port.keys("run"))) == 3
    assert world.left() == {}


def _rows(world: Any) -> tuple[int, int]:
    with world.context.database.reading() as sql:
        made = int(sql.scalar("SELECT count(*) FROM session"))
        return made, int(sql.scalar("SELECT count(*) FROM execution"))


async def test_crash_between_send_and_reply_executes_once(embed: Embed) -> None:
    world = await embed()
    context = _run(world.key(tier=32), cells=("x = 1", "print(x)"), end_after=True)
    whole = CrashPlan()
    await _die(world, context, "whole", whole)
    first = next(one.number for one in whole.passed if "runs.group" in one.name)
    numbers = range(first, len(whole.passed), 5)
    for at in numbers:
        plan = CrashPlan(at=at)
        await _die(world, context, f"crash-{at}", plan)
        assert plan.dead, at
        world.clock.advance(seconds(60))
        story = await world.run(Session, context, key=f"crash-{at}")
        assert (story.state, _texts(story.context)) == ("terminated", ["", "1\n"])
    assert _rows(world) == (1 + len(numbers), 2 * (1 + len(numbers)))
    assert world.left() == {}


async def _die(world: Any, context: SessionRun, key: str, plan: CrashPlan) -> None:
    try:
        async with world.harness(plan) as harness:
            await harness.app.start(Session, context, key=key)
            await harness.until_idle(horizon_ms=minutes(1))
    except Crash:
        assert plan.dead


async def test_ends_by_itself_have_names(embed: Embed) -> None:
    """Idle, expired while it is frozen or busy, deleted by somebody else, locked, cancelled."""
    world = await embed()
    key = world.key(tier=32)
    began_ms = world.clock.now_ms()
    story = await world.run(Session, _run(key), key="idle")
    assert (story.state, story.status, story.context.reason) == ("idled", "failed", "expired")
    assert 0 <= world.clock.now_ms() - began_ms - minutes(15) <= seconds(10)
    story = await world.run(Session, _run(key, ttl_seconds=60), key="ttl")
    assert story.state == "expired"
    async with world.harness() as harness:
        talk = await _talk(harness, _run(key, ttl_seconds=7200), "frozen")
        began_ms = world.clock.now_ms()
        await talk.say(Freeze())
        run = await talk.rest(hours(3))
        assert run.state == "expired", "what is frozen is not idle"
        assert abs(world.clock.now_ms() - began_ms - hours(2)) <= seconds(10)

        talk = await _talk(harness, _run(key), "deleted")
        session_id = (await talk.rest()).context.session_id
        await world.clients.sessions.end(key, session_id)
        _, run = await talk.say(Execute(command="x = 1"))
        assert (run.state, run.context.reason) == ("lost", "deleted")
        assert [one.outcome for one in run.context.results] == ["refused"]

        talk = await _talk(harness, _run(key), "cancelled")
        await harness.app.cancel(talk.run_id)
        run = await talk.rest()
        assert (run.state, run.context.slots) == ("cancelled", 0)
    assert world.left() == {}


async def test_each_activity_adds_fifteen_minutes(embed: Embed) -> None:
    world = await embed()
    async with world.harness() as harness:
        talk = await _talk(harness, _run(world.key()))
        for _ in range(3):
            run = await talk.rest(minutes(14))
            assert run.state == "running"
            world.clock.advance(minutes(14) - (world.clock.now_ms() % 1))
            _, run = await talk.say(Execute(command="x = 1"))
            assert run.context.idles_ms >= world.clock.now_ms() + minutes(14)
        _, run = await talk.say(Extend(seconds=3600))
        assert run.context.expires_ms >= world.clock.now_ms() + hours(1)
        assert run.state == "running"


async def test_operations_that_are_refused_leave_the_session_alive(embed: Embed) -> None:
    world = await embed()
    key, other = world.key(tier=8), world.key(tier=8)  # two slots
    async with world.harness() as harness:
        talk = await _talk(harness, _run(key, slot_attempts=2))
        _, run = await talk.say(Boost(vcpu=2))
        assert (run.state, run.context.slots, run.context.problem) == ("running", 2, "")
        _, run = await talk.say(Boost(vcpu=8))
        run = await talk.rest(minutes(2))
        assert (run.state, run.context.slots) == ("running", 2)
        assert "sandbox slots of this key are in use" in run.context.problem
        _, run = await talk.say(Freeze())
        held = [await _talk(harness, _run(key), f"holds-{n}") for n in range(2)]
        await talk.say(Unfreeze())
        run = await talk.rest(minutes(2))
        assert (run.state, run.context.slots) == ("frozen", 0)
        assert "sandbox slots" in run.context.problem
        await held[0].say(End())
        await held[1].say(End())
        _, run = await talk.say(Unfreeze())
        assert (run.state, run.context.problem) == ("running", "")
        for event in (Execute(command=" "), Execute(command="x", timeout_seconds=901),
                      Extend(seconds=0), Boost(vcpu=9)):  # fmt: skip
            receipt, run = await talk.say(event)
            assert (receipt.status, run.state) == ("rejected", "running")
        receipt, _ = await talk.say(Execute(command="y = 1"), key="once")
        again, run = await talk.say(Execute(command="y = 1"), key="once")
        assert (again.seq, run.context.done) == (receipt.seq, 1)
        assert other.public_key != key.public_key


async def test_locked_by_somebody_else(embed: Embed) -> None:
    world = await embed()
    key = world.key()
    async with world.harness() as harness:
        talk = await _talk(harness, _run(key))
        session_id = (await talk.rest()).context.session_id
        with world.context.database.transaction() as sql:
            sql.run("UPDATE session SET locked = 1")
        _, run = await talk.say(End())
        assert run.state == "running" and "is locked" in run.context.problem
        await harness.app.cancel(talk.run_id)
        run = await talk.rest()
        assert (run.state, run.status) == ("locked", "failed")
        assert (await world.clients.sessions.look(key, session_id)).status == "running"


async def test_frozen_by_somebody_else(embed: Embed) -> None:
    world = await embed()
    key = world.key()
    async with world.harness() as harness:
        talk = await _talk(harness, _run(key))
        session_id = (await talk.rest()).context.session_id
        await world.clients.sessions.freeze(key, session_id)
        _, run = await talk.say(Execute(command="x = 1"))
        assert (run.state, run.context.results[-1].outcome) == ("frozen", "refused")
        _, run = await talk.say(Extend(seconds=60))
        assert run.state == "frozen"
        _, run = await talk.say(Unfreeze())
        assert run.state == "running"


async def test_one_that_ended_before_its_name_was_heard_is_looked_at_soon(embed: Embed) -> None:
    world = await embed()
    port = Port(world.clients.sessions)
    port.fail("create", ReplyLost("cut"), after=True)
    async with world.harness(instead={Sessions: port}) as harness:
        key = world.key()
        run_id = (await harness.app.start(Session, _run(key), key="s")).run_id
        await harness.app.settle()
        with world.context.database.reading() as sql:
            session_id = str(sql.scalar("SELECT session_id FROM session"))
        await world.clients.sessions.end(key, session_id)
        run = await Talk(harness, run_id).rest(seconds(20))
        assert (run.state, run.context.reason) == ("lost", "deleted")
        assert len(set(port.keys("create"))) == 1 and _rows(world) == (1, 0)


async def test_result_that_the_platform_lost_is_unknown_and_not_run_again(embed: Embed) -> None:
    world = await embed()
    port = Port(world.clients.sessions)
    port.fail("run", ReplyLost("cut"), after=True)
    async with world.harness(instead={Sessions: port}) as harness:
        talk = await _talk(harness, _run(world.key()))
        await harness.app.send(talk.run_id, Ask(order=Execute(command="x = 1")))
        await harness.app.settle()
        with world.context.database.transaction() as sql:  # as a platform that died leaves it
            sql.run("UPDATE execution SET state = 'lost', stdout = NULL, exit_code = NULL")
        run = await talk.rest()
        assert (run.state, run.context.results) == ("running", (CellResult("unknown"),))
        assert _rows(world) == (1, 1)


async def test_extending_twice_is_asked_about(embed: Embed) -> None:
    world = await embed()
    port = Port(world.clients.sessions)
    port.fail("extend", ReplyLost("cut"), after=True)
    port.fail("extend", ReplyLost("cut"))
    async with world.harness(instead={Sessions: port}) as harness:
        talk = await _talk(harness, _run(world.key()))
        before = (await talk.rest()).context.expires_ms
        _, run = await talk.say(Extend(seconds=100))
        assert run.context.expires_ms - before == seconds(100)
        assert len(port.keys("extend")) == 1, "the second was found to have happened"
        _, run = await talk.say(Extend(seconds=100))
        assert run.context.expires_ms - before == seconds(200)


async def test_refusals_at_creation(embed: Embed) -> None:
    world = await embed()
    key, small = world.key(), world.key(tier=4)
    await world.run(Session, _run(small, ttl_seconds=60), key="warm up")
    async with world.harness() as harness:
        await _talk(harness, _run(small), "holds-the-slot")
        wrong = Secret("unsb-sk-aaaaa-bbbbb-ccccc-ddddd")
        expected = {
            "no_slot": _run(small, slot_attempts=2),
            "unauthorized": _run(key, secret_key=wrong),
            "rejected": _run(key, shell="cobol"),  # noqa: S604 - the name of a shell
            "out_of_range": _run(key, ttl_seconds=86_401),
        }
        for state, context in expected.items():
            talk = await _talk(harness, context, state)
            run = await talk.rest(minutes(2))
            assert (run.state, run.status) == (state, "failed"), run.context.reason
            assert run.context.reason != "" and run.context.session_id == ""
    assert world.left() == {"sessions": 1}


async def test_platform_without_isolation_and_one_that_never_answers(embed: Embed) -> None:
    world = await embed(FakeBackend(SandboxUnavailable("no bubblewrap", "install bubblewrap")))
    story = await world.run(Session, _run(world.key()))
    assert (story.state, "install bubblewrap" in story.context.reason) == ("unavailable", True)
    port = Port(world.clients.sessions)
    port.fail("create", Unavailable("down"), times=500)
    story = await world.run(Session, _run(world.key()), key="down", instead={Sessions: port})
    assert (story.state, story.context.reason) == ("unreachable", "down")
    assert len(set(port.keys("create"))) == 1


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"ttl_seconds": 0}, "out_of_range"),
        ({"ttl_seconds": 86_400}, None),
        ({"cell_seconds": 901}, "out_of_range"),
        ({"vcpu": 9}, "out_of_range"),
        ({"end_after": True}, "rejected"),
        ({"cells": ("",)}, "rejected"),
        ({"cells": ("x" * 10_001,)}, "rejected"),
        ({"cells": ("x" * 10_000,) * 7}, "rejected"),
    ],
)
def test_problems_that_need_no_platform(changes: dict[str, Any], kind: str | None) -> None:
    problem = problem_of(_run(**changes))
    assert (problem and problem.kind) == kind


async def test_in_a_real_sandbox(embed: Embed, tmp_path: Path) -> None:
    """x = 42, freeze, unfreeze, print 42: with a real interpreter behind it."""
    backend = BubblewrapBackend(tmp_path / "sandboxes")
    world = await embed(backend)
    try:
        async with world.harness() as harness:
            talk = await _talk(harness, _run(world.key()))
            await talk.say(Execute(command="x = 42"))
            _, run = await talk.say(Freeze())
            assert run.state == "frozen"
            await talk.say(Unfreeze())
            _, run = await talk.say(Execute(command="print(x)"))
            assert _texts(run.context) == ["", "42\n"]
            _, run = await talk.say(Execute(command="import sys; sys.stderr.write('e'); 1 / 0"))
            assert run.context.results[-1].exit_code == 1
            await harness.app.cancel(talk.run_id)
            assert (await talk.rest()).state == "cancelled"
        assert world.left() == {}
    finally:
        backend.close()


# -- any sequence of events ---------------------------------------------------------------------

MOMENTS = st.integers(0, 9_000)
EVENTS = st.one_of(
    st.sampled_from(["time_to_look", "cancel"]),
    st.builds(Ask, order=st.one_of(
        st.builds(Unfreeze), st.builds(End),
        st.builds(Execute, command=st.sampled_from(["", "x"])),
        st.builds(Extend, seconds=st.integers(0, 1)), st.builds(Boost, vcpu=st.integers(0, 2)))),
    st.builds(Created, session_id=st.just("s"), vcpu=st.just(1), expires_ms=MOMENTS,
              idles_ms=MOMENTS),
    st.builds(Refused, kind=st.sampled_from(["no_slot", "rejected"]), detail=st.just("no")),
    st.builds(CellEnded, result=st.just(CellResult("completed", 0)), at_ms=MOMENTS),
    st.builds(Over, reason=st.sampled_from(["expired", "deleted"]), idle=st.booleans()),
    st.builds(Declined, detail=st.just("no")),
    st.builds(Unanswered, effect=st.just("look"), reason=st.just("down"), attempts=st.just(30)),
    # No `Freeze`: its effect answers with what is frozen, and that is another event.
    st.just(lambda context: Seen(frozen=False, vcpu=1, expires_ms=5_000, idles_ms=1_000)),
)  # fmt: skip
STEPS = st.lists(st.tuples(EVENTS, st.integers(0, 600)), max_size=14)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS, cells=st.sampled_from([(), ("a", "b")]))
def test_the_table_does_what_the_library_does(library_agrees: Any, steps: Any, cells: Any) -> None:
    library_agrees(Session, _run(cells=cells, end_after=bool(cells)), steps)


@settings(max_examples=25, deadline=None)
@given(steps=STEPS, cells=st.sampled_from([(), ("a", "b")]))
def test_contracts_hold_whatever_happens(walk: Any, steps: Any, cells: Any) -> None:
    runs = walk(Session, _run(cells=cells, end_after=bool(cells)), steps)
    for before, run in pairwise(runs):
        assert run.state != "executing" or not run.context.frozen
        assert run.state != "frozen" or run.context.slots == 0
        assert run.context.done - before.context.done in (0, 1)
