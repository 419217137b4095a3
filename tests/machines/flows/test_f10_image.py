"""Image: against the embedded platform over its real wire, every branch by name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engine.clock import seconds
from engine.testing import CrashPlan
from engine.testing.faults import Crash
from machines.clients.ports import NotFound, ReplyLost, Unauthorized
from machines.clients.ports.images import Images
from machines.clients.ports.sessions import SessionOrder
from machines.flows.f10_image import Image
from machines.flows.publication import (
    Grant,
    Keep,
    Publication,
    Remove,
    Revoke,
    Show,
    Spawn,
    Transfer,
)
from machines.platform.sandbox.bubblewrap import BubblewrapBackend

Embed = Callable[..., Any]
SESSION = SessionOrder(shell="bash", network_mode="zerotrust", ttl_seconds=86_400, vcpu=1)  # noqa: S604 - a shell's name


class Port:
    """The platform's own port, with faults: raised instead of a call, or once it was made."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.faults: dict[str, list[tuple[Exception, bool]]] = {}
        self.calls: list[str] = []

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
            return answer

        return call


class Place:
    """A platform with one session to make images of, an owner's key and a guest's."""

    def __init__(self, world: Any, session_id: str, owner: Any) -> None:
        self.world, self.session_id, self.owner = world, session_id, owner
        self.guest = world.key(tier=32)
        self.port = Port(world.clients.images)

    def publication(self, *script: Any, **changes: Any) -> Publication:
        fields: dict[str, Any] = {
            "public_key": self.owner.public_key,
            "secret_key": self.owner.secret_key,
            "source_id": self.session_id,
            "script": script,
        }
        return Publication(**(fields | changes))

    def guests(self, image_id: str, *script: Any, **changes: Any) -> Publication:
        """The same of the guest, who uses an image."""
        fields: dict[str, Any] = {
            "public_key": self.guest.public_key,
            "secret_key": self.guest.secret_key,
            "image_id": image_id,
            "script": script,
        }
        return Publication(**(fields | changes))

    async def run(self, context: Publication, key: str = "the run") -> Any:
        return await self.world.run(Image, context, key=key, instead={Images: self.port})

    def harness(self, plan: Any = None) -> Any:
        return self.world.harness(plan, instead={Images: self.port})

    async def published(self, *script: Any) -> str:
        """The id of an image that is kept."""
        story = await self.run(self.publication(*script), key=f"published {script}")
        assert story.state == "kept", story.context.reason
        return str(story.output.image_id)


async def _place(world: Any) -> Place:
    owner = world.key(tier=32)
    made = await world.clients.sessions.create(owner, SESSION, key="source")
    return Place(world, made.session_id, owner)


@pytest.fixture
async def place(embed: Embed) -> Place:
    return await _place(await embed())


async def test_an_image_is_private_and_then_as_visible_as_asked(place: Place) -> None:
    script = (Show(visibility="unlisted"), Show(visibility="public"), Show(visibility="private"))
    story = await place.run(place.publication(*script, name="image"))
    assert [one for one in story.passed if one != "showing"] == [
        "finding", "publishing", "private", "unlisted", "public", "private", "kept",
    ]  # fmt: skip
    seen = await place.world.clients.images.image(place.owner, story.output.image_id)
    assert (seen.visibility, seen.access) == ("private", "owned")
    assert place.world.left() == {"sessions": 1, "images": 1}


async def test_a_granted_key_spawns_and_a_revoked_one_is_not_granted(place: Place) -> None:
    guest = place.guest.public_key
    image_id = await place.published(Show(visibility="unlisted"), Grant(to_key=guest))
    story = await place.run(place.guests(image_id, Spawn()), key="granted")
    assert story.passed == ["finding", "usable", "spawning", "usable", "spawned"]
    assert place.world.left() == {"sessions": 2, "images": 1}
    revoked = place.publication(Revoke(from_key=guest), image_id=image_id)
    assert (await place.run(revoked, key="revoked")).passed[:2] == ["finding", "unlisted"]
    story = await place.run(place.guests(image_id, Spawn()), key="again")
    assert (story.state, story.status) == ("not_granted", "failed")
    assert place.world.left() == {"sessions": 2, "images": 1}


async def test_a_spawn_without_a_grant_is_not_granted(place: Place) -> None:
    image_id = await place.published()
    story = await place.run(place.guests(image_id, Spawn()), key="guest")
    assert story.passed == ["finding", "not_granted"]
    assert place.world.left() == {"sessions": 1, "images": 1}


async def test_a_grant_that_is_taken_back_meanwhile(place: Place) -> None:
    image_id = await place.published(Grant(to_key=place.guest.public_key))
    place.port.fail("spawn", NotFound("images.spawn: status 404: not_found: no such image"))
    story = await place.run(place.guests(image_id, Spawn()), key="guest")
    assert story.passed == ["finding", "usable", "spawning", "not_granted"]


async def test_only_its_owner_changes_it(place: Place) -> None:
    image_id = await place.published(Show(visibility="public"))
    for order in (Show(visibility="private"), Grant(to_key="unsb-pk-x"), Remove()):
        story = await place.run(place.guests(image_id, order), key=type(order).__name__)
        assert story.state == "not_owner"
        assert "belongs to another key" in story.context.reason
    seen = await place.world.clients.images.image(place.owner, image_id)
    assert (seen.visibility, seen.trusted) == ("public", ())


async def test_ownership_that_is_lost_meanwhile_is_not_owner(place: Place) -> None:
    for order in (Show(visibility="public"), Grant(to_key="unsb-pk-x")):
        name = "set_visibility" if isinstance(order, Show) else "set_trusted"
        place.port.fail(name, NotFound("status 404: not_found: gone"))
        story = await place.run(place.publication(order), key=name)
        assert story.state == "not_owner"
    assert place.world.left() == {"sessions": 1}


async def test_it_is_given_to_another_key(place: Place) -> None:
    guest = place.guest.public_key
    place.port.fail("transfer", ReplyLost("cut"), after=True)
    story = await place.run(place.publication(Transfer(to_key=guest)))
    assert story.passed[-2:] == ["transferring", "transferred"]
    assert place.port.calls.count("transfer") == 1, "it was asked whether that was done"
    seen = await place.world.clients.images.image(place.guest, story.output.image_id)
    assert (seen.owner_key, seen.access) == (guest, "owned")


async def test_a_transfer_that_never_arrived_is_made(place: Place) -> None:
    place.port.fail("transfer", ReplyLost("cut"))
    context = place.publication(Transfer(to_key=place.guest.public_key))
    assert (await place.run(context)).state == "transferred"


async def test_nobody_to_give_it_to_is_not_transferred(place: Place) -> None:
    story = await place.run(place.publication(Transfer(to_key="unsb-pk-no-such-body-here")))
    assert (story.state, story.status) == ("not_transferred", "failed")
    assert place.world.left() == {"sessions": 1}, "what was published is removed"


async def test_what_there_is_no_more_cannot_be_published(place: Place) -> None:
    await place.world.clients.sessions.freeze(place.owner, place.session_id)
    assert (await place.run(place.publication(), key="frozen")).state == "source_idle"
    await place.world.clients.platform.delete_session(place.owner, place.session_id)
    assert (await place.run(place.publication(), key="ended")).state == "source_gone"
    assert place.world.left() == {}


async def test_what_the_platform_refuses_is_refused(place: Place) -> None:
    assert (await place.run(place.publication(name="n" * 300), key="name")).state == "refused"
    nameless = place.publication(Spawn(kind="service", name="-no-"))
    assert (await place.run(nameless, key="spawn")).state == "refused"
    grant = place.publication(Grant(to_key="nobody"))
    assert (await place.run(grant, key="grant")).state == "refused"
    assert place.world.left() == {"sessions": 1}


async def test_no_slot_to_spawn(place: Place) -> None:
    image_id = await place.published(Show(visibility="public"))
    poor = place.world.key(tier=4)
    await place.world.clients.sessions.create(poor, SESSION, key="holds-the-slot")
    context = place.guests(
        image_id, Spawn(), public_key=poor.public_key, secret_key=poor.secret_key
    )
    assert (await place.run(context, key="poor")).state == "no_slot"


async def test_it_is_removed(place: Place) -> None:
    assert (await place.run(place.publication(Spawn(), Remove()))).state == "removed"
    assert place.world.left() == {"sessions": 2}, "what was spawned is what was asked for"


async def test_a_locked_image_is_not_removed(place: Place) -> None:
    image_id = await place.published()
    await place.world.clients.images._signed.reply(
        place.owner, "POST", f"/images/{image_id}/lock", "lock", body={}
    )
    context = place.publication(Remove(), image_id=image_id)
    assert (await place.run(context, key="remove")).state == "not_removed"
    assert place.world.left() == {"sessions": 1, "images": 1}


async def test_lost_replies_make_one_image_and_one_spawn(place: Place) -> None:
    for method in ("publish", "spawn", "set_visibility", "set_trusted"):
        place.port.fail(method, ReplyLost("cut"), after=True, times=2)
    script = (Show(visibility="unlisted"), Grant(to_key=place.guest.public_key), Spawn(), Keep())
    story = await place.run(place.publication(*script))
    assert (story.state, len(story.output.spawned)) == ("kept", 1)
    assert place.world.left() == {"sessions": 2, "images": 1}
    seen = await place.world.clients.images.image(place.owner, story.output.image_id)
    assert seen.trusted == story.output.trusted == (place.guest.public_key,)


@pytest.mark.parametrize("method", ["publish", "spawn"])
async def test_giving_up_in_doubt_leaves_nothing_behind(place: Place, method: str) -> None:
    place.port.fail(method, ReplyLost("cut"), after=True)
    place.port.fail(method, Unauthorized("for now", reason="suspended"))
    story = await place.run(place.publication(Spawn()))
    assert story.passed[-2:] == ["clearing_up", "unreachable"]
    assert place.world.left() == {"sessions": 1}


async def test_a_platform_that_answers_nothing_any_more_is_unresolved(place: Place) -> None:
    place.port.fail("publish", Unauthorized("for ever", reason="suspended"), times=2)
    assert (await place.run(place.publication())).state == "unresolved"


async def test_a_cancelled_run_leaves_nothing_unless_it_is_to_be_kept(place: Place) -> None:
    for keep, left in ((False, {"sessions": 1}), (True, {"sessions": 2, "images": 1})):
        async with place.harness() as harness:
            context = place.publication(Spawn(), then="wait", keep=keep)
            run = await harness.app.start(Image, context)
            await harness.until_idle(horizon_ms=seconds(1))
            await harness.app.cancel(run.run_id)
            await harness.until_idle(horizon_ms=seconds(60))
            assert (await harness.app.outcome(run.run_id)).status == "cancelled"
        assert place.world.left() == left


async def test_it_obeys_messages_until_nobody_asks(place: Place) -> None:
    async with place.harness() as harness:
        run = await harness.app.start(Image, place.publication(then="wait", attended_seconds=60))
        for message, state in [
            (Show(visibility="public"), "public"),
            (Grant(to_key=place.guest.public_key), "public"),
            (Revoke(from_key=place.guest.public_key), "public"),
        ]:
            await harness.until_idle(horizon_ms=seconds(1))
            await harness.app.send(run.run_id, message)
            await harness.until_idle(horizon_ms=seconds(1))
            assert (await harness.app.get(run.run_id)).state == state
        await harness.until_idle(horizon_ms=seconds(120))
        assert (await harness.app.outcome(run.run_id)).state == "kept"


async def test_a_crash_anywhere_makes_one_image_and_leaves_none(place: Place) -> None:
    context = place.publication(Grant(to_key=place.guest.public_key), Remove())
    whole = CrashPlan()
    await _die(place, context, "whole", whole)
    numbers = range(len(whole.passed) // 4, len(whole.passed), 9)
    for at in numbers:
        await _die(place, context, f"crash-{at}", CrashPlan(at=at))
        place.world.clock.advance(seconds(60))
        assert (await place.run(context, key=f"crash-{at}")).state == "removed", at
        assert place.world.left() == {"sessions": 1}, at
    assert len(numbers) >= 3


async def _die(place: Place, context: Publication, key: str, plan: CrashPlan) -> None:
    with suppress(Crash):
        async with place.harness(plan) as harness:
            await harness.app.start(Image, context, key=key)
            await harness.until_idle()


async def test_the_secret_is_in_no_text(place: Place, capsys: Any) -> None:
    story = await place.run(place.guests("unsb-image-none"))
    assert story.state == "not_granted"
    told = "".join(capsys.readouterr()) + repr(story)
    assert place.guest.secret_key.reveal() not in told


@pytest.mark.acceptance
async def test_a_real_sandbox_is_shared_by_an_image(embed: Embed, tmp_path: Path) -> None:
    place = await _place(await embed(BubblewrapBackend(tmp_path / "sandboxes")))
    platform = place.world.clients.platform
    await platform.execute(
        place.owner, place.session_id, "echo shared > /root/note; x=42", key="note"
    )
    image_id = await place.published(Grant(to_key=place.guest.public_key))
    story = await place.run(place.guests(image_id, Spawn()), key="guest")
    assert story.state == "spawned", story.context.reason
    made = story.output.spawned[0].copy_id
    told = await platform.execute(place.guest, made, "cat /root/note; echo $x", key="look")
    assert told.stdout.split() == ["shared", "42"]
