"""Snapshot: against the embedded platform over its real wire, every branch by name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engine.clock import seconds
from engine.secret import Secret
from engine.testing import CrashPlan
from engine.testing.faults import Crash
from machines.clients.ports import NotFound, ReplyLost, Unauthorized, Unavailable
from machines.clients.ports.sessions import SessionOrder
from machines.clients.ports.snapshots import Snapshots
from machines.flows.capture import Capture, Clone, Keep, Lock, Remove, Restore, Unlock
from machines.flows.f09_snapshot import Snapshot
from machines.platform.sandbox.bubblewrap import BubblewrapBackend

Embed = Callable[..., Any]


class Port:
    """The platform's own port, with faults: raised instead of a call, or once it was made."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.faults: dict[str, list[tuple[Exception, bool]]] = {}
        self.calls: list[str] = []
        self.changes: dict[str, Callable[[Any], Any]] = {}

    def fail(self, method: str, error: Exception, *, after: bool = False, times: int = 1) -> None:
        """The next calls of `method` fail."""
        self.faults.setdefault(method, []).extend([(error, after)] * times)

    def __getattr__(self, method: str) -> Any:
        async def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append(method)
            waiting = self.faults.get(method)
            error, after = waiting.pop(0) if waiting else (None, True)
            answer = None
            if after:
                answer = await getattr(self.real, method)(*arguments, **options)
            if error is not None:
                raise error
            return self.changes.get(method, lambda told: told)(answer)

        return call


class Place:
    """A platform with one session to take snapshots of."""

    def __init__(self, world: Any, key: Any, session_id: str) -> None:
        self.world, self.key, self.session_id = world, key, session_id
        self.port = Port(world.clients.snapshots)
        self.said = 0

    def capture(self, *script: Any, **changes: Any) -> Capture:
        fields: dict[str, Any] = {
            "public_key": self.key.public_key,
            "secret_key": self.key.secret_key,
            "source_type": "session",
            "source_id": self.session_id,
            "script": script,
        }
        return Capture(**(fields | changes))

    async def run(self, context: Capture, key: str = "the run") -> Any:
        return await self.world.run(Snapshot, context, key=key, instead={Snapshots: self.port})

    async def say(self, command: str, session_id: str = "") -> str:
        """What a command in a session prints."""
        self.said += 1
        where = session_id or self.session_id
        done = await self.world.clients.platform.execute(
            self.key, where, command, key=f"said-{self.said}"
        )
        assert done.exit_code == 0, done.stderr
        return str(done.stdout).strip()


@pytest.fixture
async def place(embed: Embed) -> Place:
    return await _place(await embed())


async def _place(world: Any) -> Place:
    key = world.key(tier=32)
    order = SessionOrder(shell="bash", network_mode="zerotrust", ttl_seconds=86_400, vcpu=1)  # noqa: S604
    made = await world.clients.sessions.create(key, order, key="source")
    return Place(world, key, made.session_id)


async def test_a_snapshot_is_kept_and_its_level_told(place: Place) -> None:
    story = await place.run(place.capture(name="first"))
    assert story.passed == ["capturing", "ready", "kept"]
    assert (story.output.level, story.context.taken_of) == ("files+vars", place.session_id)
    assert place.world.left() == {"sessions": 1, "snapshots": 1}


async def test_a_level_below_what_was_asked_for_is_too_shallow(place: Place) -> None:
    story = await place.run(place.capture(least_level="full"))
    assert (story.state, story.status) == ("too_shallow", "failed")
    assert story.context.reason == "keeps files+vars, expected full at least"
    assert place.world.left() == {"sessions": 1}


async def test_a_restore_undoes_later_writes_and_a_clone_is_independent(place: Place) -> None:
    await place.say("x=before")
    async with place.world.harness() as harness:
        run = await harness.app.start(Snapshot, place.capture(then="wait"), key="attended")
        await harness.until_idle(horizon_ms=seconds(1))
        await place.say("x=later")
        for message in (Restore(), Clone()):
            await harness.app.send(run.run_id, message)
            await harness.until_idle(horizon_ms=seconds(1))
        context = (await harness.app.get(run.run_id)).context
        (made,) = context.clones
        assert await place.say("echo $x") == "before"
        await place.say("x=other")
        assert await place.say("echo $x", made.copy_id) == "before"
        await harness.app.send(run.run_id, Remove())
        await harness.until_idle()
        assert (await harness.app.outcome(run.run_id)).state == "removed"
    assert place.world.left() == {"sessions": 2}


async def test_nobody_asks_any_more(place: Place) -> None:
    story = await place.run(place.capture(then="wait", attended_seconds=1))
    assert story.state == "removed"
    story = await place.run(place.capture(then="wait", attended_seconds=1, keep=True), key="k")
    assert story.state == "kept"


async def test_a_locked_snapshot_is_not_removed(place: Place) -> None:
    story = await place.run(place.capture(Lock(), Remove()))
    assert story.passed == ["capturing", "ready", "locking", "ready", "locked"]
    assert "is locked: unlock it" in story.context.reason
    assert place.world.left() == {"sessions": 1, "snapshots": 1}, "a lock keeps it"
    story = await place.run(place.capture(Lock(), Unlock(), Remove()), key="unlocked")
    assert story.state == "removed"


async def test_a_message_to_remove_what_is_locked_is_refused_by_name(place: Place) -> None:
    async with place.world.harness() as harness:
        run = await harness.app.start(Snapshot, place.capture(Lock(), then="wait"))
        await harness.until_idle(horizon_ms=seconds(1))
        receipt = await harness.app.apply(await harness.app.send(run.run_id, Remove()))
        assert (receipt.status, "is_not_locked" in str(receipt.reason)) == ("rejected", True)
        await harness.app.cancel(run.run_id)
        await harness.until_idle(horizon_ms=seconds(60))
        assert (await harness.app.outcome(run.run_id)).status == "cancelled"
    assert place.world.left() == {"sessions": 1, "snapshots": 1}


async def test_a_terminated_session_is_source_gone(place: Place) -> None:
    await place.world.clients.platform.delete_session(place.key, place.session_id)
    story = await place.run(place.capture())
    assert (story.state, story.status) == ("source_gone", "failed")
    assert place.world.left() == {}


async def test_a_frozen_source_is_source_idle(place: Place) -> None:
    await place.world.clients.sessions.freeze(place.key, place.session_id)
    assert (await place.run(place.capture())).state == "source_idle"
    assert place.world.left() == {"sessions": 1}


async def test_what_the_platform_refuses_is_refused(place: Place) -> None:
    story = await place.run(place.capture(name="n" * 300))
    assert (story.state, "name" in story.context.reason) == ("refused", True)
    story = await place.run(place.capture(Clone(kind="service")), key="nameless")
    assert story.state == "refused"
    assert place.world.left() == {"sessions": 1}


async def test_a_snapshot_that_somebody_deleted_is_gone(place: Place) -> None:
    for order in (Restore(), Clone(), Lock(), Unlock()):
        place.port.changes["take"] = lambda told: told
        context = place.capture(order)
        name = {Restore: "restore", Clone: "clone"}.get(type(order), "set_locked")
        place.port.fail(name, NotFound("snapshots: status 404: not_found: gone"))
        place.port.fail("snapshot", NotFound("snapshots: status 404: not_found: gone"))
        story = await place.run(context, key=type(order).__name__)
        assert story.state == "gone"
        place.port.faults.clear()
    assert place.world.left() == {"sessions": 1}


async def test_a_restore_over_what_has_ended_is_source_gone(place: Place) -> None:
    async with place.world.harness() as harness:
        run = await harness.app.start(Snapshot, place.capture(then="wait"))
        await harness.until_idle(horizon_ms=seconds(1))
        await place.world.clients.platform.delete_session(place.key, place.session_id)
        await harness.app.send(run.run_id, Restore())
        await harness.until_idle()
        assert (await harness.app.outcome(run.run_id)).state == "source_gone"
    assert place.world.left() == {}


async def test_a_lost_reply_makes_no_second_snapshot_and_no_second_clone(place: Place) -> None:
    for method in ("take", "clone", "restore", "remove"):
        place.port.fail(method, ReplyLost("cut"), after=True, times=2)
    story = await place.run(place.capture(Restore(), Clone(), Remove()))
    assert (story.state, len(story.output.clones)) == ("removed", 1)
    assert place.port.calls.count("take") == place.port.calls.count("clone") == 3
    assert place.world.left() == {"sessions": 2}


async def test_giving_up_in_doubt_leaves_nothing_behind(place: Place) -> None:
    place.port.fail("take", ReplyLost("cut"), after=True)
    place.port.fail("take", Unauthorized("for now", reason="suspended"))
    story = await place.run(place.capture())
    assert story.passed == ["capturing", "clearing_up", "unreachable"]
    assert place.world.left() == {"sessions": 1}
    place.port.fail("clone", ReplyLost("cut"), after=True)
    place.port.fail("clone", Unauthorized("for now", reason="suspended"))
    story = await place.run(place.capture(Clone()), key="clone")
    assert story.passed[-2:] == ["clearing_up", "unreachable"]
    assert place.world.left() == {"sessions": 1}


async def test_a_platform_that_answers_nothing_any_more_is_unresolved(place: Place) -> None:
    place.port.fail("take", Unauthorized("for ever", reason="suspended"), times=2)
    story = await place.run(place.capture())
    assert story.state == "unresolved"
    assert story.context.reason == "capture was given up, and so was clear_up"


async def test_a_platform_down_for_a_while_is_waited_out(place: Place) -> None:
    for method in ("take", "restore", "remove"):
        place.port.fail(method, Unavailable("down"), times=5)
    assert (await place.run(place.capture(Restore(), Remove()))).state == "removed"


async def test_a_cancelled_run_leaves_nothing_unless_it_is_to_be_kept(place: Place) -> None:
    for keep, left in ((False, {"sessions": 1}), (True, {"sessions": 2, "snapshots": 1})):
        async with place.world.harness() as harness:
            context = place.capture(Clone(), then="wait", keep=keep)
            run = await harness.app.start(Snapshot, context)
            await harness.until_idle(horizon_ms=seconds(1))
            await harness.app.cancel(run.run_id)
            await harness.until_idle(horizon_ms=seconds(60))
            assert (await harness.app.outcome(run.run_id)).status == "cancelled"
        assert place.world.left() == left


async def test_a_crash_anywhere_makes_one_snapshot_and_leaves_none(place: Place) -> None:
    script = (Restore(), Clone(), Remove())
    whole = CrashPlan()
    await _die(place, place.capture(*script[::2]), "whole", whole)
    numbers = range(len(whole.passed) // 4, len(whole.passed), 5)
    for at in numbers:
        context = place.capture(*script)
        plan = CrashPlan(at=at)
        await _die(place, context, f"crash-{at}", plan)
        place.world.clock.advance(seconds(60))
        story = await place.run(context, key=f"crash-{at}")
        assert (story.state, len(story.output.clones)) == ("removed", 1)
        assert place.world.left() == {"sessions": 2}, at
        await place.world.clients.platform.delete_session(place.key, story.output.clones[0].copy_id)
    assert len(numbers) >= 4


async def _die(place: Place, context: Capture, key: str, plan: CrashPlan) -> None:
    with suppress(Crash):
        async with place.world.harness(plan) as harness:
            await harness.app.start(Snapshot, context, key=key)
            await harness.until_idle()


async def test_the_secret_is_in_no_text(place: Place, capsys: Any) -> None:
    secret = place.key.secret_key.reveal()
    story = await place.run(place.capture(secret_key=Secret(secret), source_id="nowhere"))
    assert story.state == "source_gone"
    assert secret not in "".join(capsys.readouterr()) + repr(story)


@pytest.mark.acceptance
async def test_a_real_sandbox_is_saved_written_back_and_forked(
    embed: Embed, tmp_path: Path
) -> None:
    place = await _place(await embed(BubblewrapBackend(tmp_path / "sandboxes")))
    await place.say("echo before > /root/note; x=42")
    async with place.world.harness() as harness:
        run = await harness.app.start(Snapshot, place.capture(then="wait"))
        await harness.until_idle(horizon_ms=seconds(1))
        await place.say("echo after > /root/note; x=0")
        for message in (Restore(), Clone(), Keep()):
            await harness.app.send(run.run_id, message)
            await harness.until_idle(horizon_ms=seconds(1))
        outcome = await harness.app.outcome(run.run_id)
    assert outcome.state == "kept" and outcome.output.level == "files+vars"
    assert await place.say("cat /root/note; echo $x # 1") == "before\n42"
    fork = outcome.output.clones[0].copy_id
    await place.say("echo other > /root/note")
    assert await place.say("cat /root/note; echo $x # 2", fork) == "before\n42"
