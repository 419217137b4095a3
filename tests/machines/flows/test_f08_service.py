"""Service: against the embedded platform over its real wire, every branch by name."""

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
from machines.clients.ports.services import Services
from machines.flows.deployment import (
    Deployment,
    Destroy,
    Freeze,
    Lock,
    Redeploy,
    SetEnv,
    Unfreeze,
    Unlock,
    Wake,
)
from machines.flows.f08_service import Service
from machines.platform.sandbox.backend import Command, Handle, Program
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.fake import FakeBackend

Embed = Callable[..., Any]
SERVER = "echo hello\nsleep infinity"
LONG = 10**6
VALUE = "the-sesame-of-the-vault"


class Listening(FakeBackend):
    """What goes on in it listens on port 8000."""

    def start_program(self, handle: Handle, command: Command) -> Program:
        program = super().start_program(handle, command)
        running = self._sandboxes[handle.sandbox_id].programs.get(program.number)
        if running is not None:
            running.port = 8000
        return program


class Port:
    """The platform's own port, with faults: raised instead of a call, or once it was made."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.faults: dict[str, list[tuple[Exception, bool]]] = {}
        self.calls: list[str] = []
        self.answers: list[str] = []

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
            if method == "visit":
                self.answers.append(answer.text)
            return answer

        return call


class Place:
    """A platform, and a key with slots on it."""

    def __init__(self, world: Any, tier: int = 8) -> None:
        self.world, self.key = world, world.key(tier=tier)
        self.port = Port(world.clients.services)
        # A program that goes on counts as running soon; the platform's own time is real.
        world.app.state.api.services._deployments._grace_seconds = 0.02

    def deployment(self, *script: Any, **changes: Any) -> Deployment:
        fields: dict[str, Any] = {
            "public_key": self.key.public_key,
            "secret_key": self.key.secret_key,
            "name": "web",
            "ready_seconds": LONG,
            "script": script,
        }
        return Deployment(**(fields | changes))

    async def run(self, context: Deployment, key: str = "the run") -> Any:
        return await self.world.run(Service, context, key=key, instead={Services: self.port})

    def harness(self, plan: Any = None) -> Any:
        return self.world.harness(plan, instead={Services: self.port})

    async def other(self, **changes: Any) -> Any:
        """A service that somebody else has made."""
        fields: dict[str, Any] = {
            "name": "web", "ports": (), "bootstrap": "", "network_mode": "zerotrust", "vcpu": 1,
            "unfreeze_on_demand": False, "key": "other",
        }  # fmt: skip
        return await self.world.clients.services.create(self.key, **(fields | changes))


@pytest.fixture
async def place(embed: Embed) -> Place:
    return Place(await embed(Listening()))


async def test_it_is_created_asked_and_destroyed(place: Place) -> None:
    context = place.deployment(Destroy(), ports=(8000,), bootstrap=SERVER, health_path="/ready")
    story = await place.run(context)
    assert story.passed == ["creating", "starting", "running", "destroying", "destroyed"], (
        story.context.reason
    )
    assert story.context.http_status == 200
    assert "GET /ready" in place.port.answers[-1], "it was asked through the platform"
    assert place.world.left() == {}


async def test_every_order_of_a_script(place: Place) -> None:
    script = (
        SetEnv(env=Secret(f"A={VALUE}")), Redeploy(), Freeze(), Unfreeze(), Freeze(), Wake(),
        Lock(), Unlock(), Destroy(),
    )  # fmt: skip
    context = place.deployment(*script, ports=(8000,), bootstrap=SERVER, unfreeze_on_demand=True)
    story = await place.run(context)
    assert story.state == "destroyed"
    assert [one for one in story.passed if one not in ("starting", "running")] == [
        "creating", "setting_env", "redeploying", "freezing", "frozen", "thawing", "freezing",
        "frozen", "waking", "locking", "unlocking", "destroying", "destroyed",
    ]  # fmt: skip
    assert (story.output.deployments, story.context.thaws) == (2, 2)
    assert place.world.left() == {}


async def test_it_obeys_messages(place: Place) -> None:
    async with place.harness() as harness:
        run = await harness.app.start(Service, place.deployment())
        for message, state in [
            (None, "running"),
            (Freeze(), "frozen"),
            (Unfreeze(), "running"),
            (Lock(), "running"),
        ]:
            if message is not None:
                await harness.app.send(run.run_id, message)
            await harness.until_idle(horizon_ms=seconds(5))
            found = await harness.app.get(run.run_id)
            assert (found.state, bool(found.context.address)) == (state, state == "running")
        receipt = await harness.app.apply(await harness.app.send(run.run_id, Destroy()))
        assert (receipt.status, "is_not_locked" in str(receipt.reason)) == ("rejected", True)
        for message in (Unlock(), Destroy()):
            await harness.app.send(run.run_id, message)
            await harness.until_idle(horizon_ms=seconds(5))
        assert (await harness.app.outcome(run.run_id)).state == "destroyed"


async def test_it_may_be_handed_over(place: Place) -> None:
    story = await place.run(place.deployment(then="hand_over"))
    assert (story.state, story.output.url) == ("handed_over", "http://web.on.platform/")
    assert place.world.left() == {"services": 1}


async def test_a_locked_service_is_not_destroyed(place: Place) -> None:
    story = await place.run(place.deployment(Lock(), Destroy()))
    assert (story.state, story.status) == ("locked", "failed")
    assert place.world.left() == {"services": 1}, "a lock keeps it"


async def test_somebody_elses_lock_is_not_destroyed_either(place: Place) -> None:
    async with place.harness() as harness:
        run = await harness.app.start(Service, place.deployment())
        await harness.until_idle(horizon_ms=seconds(5))
        found = await harness.app.get(run.run_id)
        await place.world.clients.services.set_locked(
            place.key, found.context.service_id, locked=True
        )
        await harness.app.send(run.run_id, Destroy())
        await harness.until_idle()
        assert (await harness.app.outcome(run.run_id)).state == "not_destroyed"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ((Unfreeze(),), "Unfreeze: service web is running"),
        ((Freeze(), Redeploy()), "Redeploy: service web is frozen"),
        ((Freeze(), Wake()), "web does not wake on demand"),
    ],
)
async def test_an_order_at_the_wrong_time_is_out_of_turn(
    place: Place, script: Any, reason: str
) -> None:
    story = await place.run(place.deployment(*script))
    assert (story.state, story.context.reason) == ("out_of_turn", reason)
    assert place.world.left() == {}


async def test_a_name_that_is_taken(place: Place) -> None:
    await place.other()
    story = await place.run(place.deployment())
    assert (story.state, story.status) == ("name_taken", "failed")
    assert place.world.left() == {"services": 1}


async def test_no_slot_is_left(embed: Embed) -> None:
    place = Place(await embed(), tier=4)
    await place.other(name="first")
    assert (await place.run(place.deployment())).state == "no_slot"
    assert place.world.left() == {"services": 1}


async def test_what_the_platform_refuses_is_refused(place: Place) -> None:
    assert (await place.run(place.deployment(vcpu=99))).state == "refused"
    assert (await place.run(place.deployment(Redeploy()), key="no bootstrap")).state == "refused"
    assert place.world.left() == {}


async def test_a_bootstrap_that_fails_has_failed(place: Place) -> None:
    story = await place.run(place.deployment(bootstrap="nonsense"))
    assert (story.state, story.context.reason) == ("failed", "failed: exit_code_2")
    assert place.world.left() == {}


async def test_what_never_answers_is_never_ready(place: Place) -> None:
    place.port.fail("visit", Unavailable("not yet"), times=10**4)
    context = place.deployment(ports=(8000,), bootstrap=SERVER, ready_seconds=200)
    assert (await place.run(context)).state == "never_ready"
    assert place.world.left() == {}


async def test_a_service_that_dies_is_deployed_again_and_in_the_end_has_failed(
    place: Place,
) -> None:
    context = place.deployment(bootstrap="sleep infinity", restarts_max=1)
    async with place.harness() as harness:
        run = await harness.app.start(Service, context)
        for restart in range(2):
            found = await _until(harness, run.run_id, "running", restart)
            place.world.backend.destroy(Handle(found.context.service_id))
        for _ in range(500):
            await harness.until_idle(horizon_ms=seconds(20))
            if (await harness.app.get(run.run_id)).status == "failed":
                break
        outcome = await harness.app.outcome(run.run_id)
    assert (outcome.state, outcome.output.restarts) == ("failed", 1)
    assert "sandbox_died" in outcome.context.reason
    assert place.world.left() == {}


async def _until(harness: Any, run_id: str, state: str, restarts: int) -> Any:
    """Move the clock until the run is there again; what threads of the platform do takes time."""
    for _ in range(500):
        await harness.until_idle(horizon_ms=seconds(20))
        found = await harness.app.get(run_id)
        if (found.state, found.context.restarts) == (state, restarts):
            return found
    raise AssertionError(f"still {found.state} after {found.context.restarts} restarts")


async def test_it_follows_what_others_do_to_the_service(place: Place) -> None:
    services = place.world.clients.services
    async with place.harness() as harness:
        run = await harness.app.start(Service, place.deployment())
        await harness.until_idle(horizon_ms=seconds(5))
        service_id = (await harness.app.get(run.run_id)).context.service_id
        for frozen in (True, False):
            await services.set_frozen(place.key, service_id, frozen=frozen)
            await harness.until_idle(horizon_ms=seconds(5))
            state = (await harness.app.get(run.run_id)).state
            assert state == ("frozen" if frozen else "running")
        await services.destroy(place.key, service_id)
        await harness.until_idle()
        assert (await harness.app.outcome(run.run_id)).state == "gone"


async def test_what_is_gone_is_gone_for_every_order(place: Place) -> None:
    calls = {"set_env": SetEnv(env=Secret("A=1")), "redeploy": Redeploy(), "set_locked": Lock(),
             "set_frozen": Freeze()}  # fmt: skip
    for method, order in calls.items():
        place.port.fail(method, NotFound("status 404: not_found: gone"))
        story = await place.run(place.deployment(order), key=method)
        assert story.state == "gone"
    assert place.world.left() == {}


async def test_no_slot_to_thaw(place: Place) -> None:
    full = Unavailable("status 429: concurrency_limit_reached: full", kind="concurrency")
    place.port.fail("set_frozen", NotFound("status 404"), times=0)
    async with place.harness() as harness:
        run = await harness.app.start(Service, place.deployment(Freeze()))
        await harness.until_idle(horizon_ms=seconds(5))
        place.port.fail("set_frozen", full)
        await harness.app.send(run.run_id, Unfreeze())
        await harness.until_idle()
        assert (await harness.app.outcome(run.run_id)).state == "no_slot"


async def test_lost_replies_make_one_service_and_one_deployment(place: Place) -> None:
    for method in ("create", "redeploy", "set_frozen", "destroy"):
        place.port.fail(method, ReplyLost("cut"), after=True)
    script = (Redeploy(), Freeze(), Unfreeze(), Destroy())
    story = await place.run(place.deployment(*script, bootstrap="sleep infinity"))
    assert (story.state, story.output.deployments) == ("destroyed", 2)
    assert (place.port.calls.count("create"), place.port.calls.count("redeploy")) == (2, 1)
    assert place.world.left() == {}


async def test_a_redeploy_that_never_arrived_is_made(place: Place) -> None:
    place.port.fail("redeploy", ReplyLost("cut"))
    story = await place.run(place.deployment(Redeploy(), Destroy(), bootstrap="sleep infinity"))
    assert (story.state, story.output.deployments) == ("destroyed", 2)


async def test_giving_up_in_doubt_leaves_nothing_behind(place: Place) -> None:
    place.port.fail("create", ReplyLost("cut"), after=True)
    place.port.fail("create", Unauthorized("for now", reason="suspended"))
    story = await place.run(place.deployment())
    assert story.passed == ["creating", "clearing_up", "unreachable"]
    assert place.world.left() == {}


async def test_a_platform_that_answers_nothing_any_more_is_unresolved(place: Place) -> None:
    place.port.fail("create", Unauthorized("for ever", reason="suspended"), times=2)
    assert (await place.run(place.deployment())).state == "unresolved"


async def test_a_cancelled_run_destroys_its_service(place: Place) -> None:
    async with place.harness() as harness:
        run = await harness.app.start(Service, place.deployment())
        await harness.until_idle(horizon_ms=seconds(5))
        assert place.world.left() == {"services": 1}
        await harness.app.cancel(run.run_id)
        await harness.until_idle(horizon_ms=seconds(60))
        assert (await harness.app.outcome(run.run_id)).status == "cancelled"
    assert place.world.left() == {}


async def test_nobody_asks_any_more(place: Place) -> None:
    assert (await place.run(place.deployment(attended_seconds=1))).state == "destroyed"
    story = await place.run(place.deployment(Lock(), attended_seconds=1), key="locked")
    assert story.state == "handed_over"


async def test_a_crash_anywhere_makes_one_service_and_leaves_none(place: Place) -> None:
    context = place.deployment(Redeploy(), Freeze(), Destroy(), bootstrap="sleep infinity")
    whole = CrashPlan()
    await _die(place, context, "whole", whole)
    numbers = range(len(whole.passed) // 4, len(whole.passed), 9)
    for at in numbers:
        await _die(place, context, f"crash-{at}", CrashPlan(at=at))
        place.world.clock.advance(seconds(60))
        story = await place.run(context, key=f"crash-{at}")
        assert (story.state, story.output.deployments) == ("destroyed", 2), at
        assert place.world.left() == {}, at
    assert len(numbers) >= 4


async def _die(place: Place, context: Deployment, key: str, plan: CrashPlan) -> None:
    with suppress(Crash):
        async with place.harness(plan) as harness:
            await harness.app.start(Service, context, key=key)
            await harness.until_idle()


async def test_vault_and_key_are_in_no_text(place: Place, capsys: Any) -> None:
    secret = place.key.secret_key.reveal()
    async with place.harness() as harness:
        context = place.deployment(SetEnv(env=Secret(f"A={VALUE}")), Destroy())
        run = await harness.app.start(Service, context)
        await harness.until_idle()
        shown = repr(await harness.app.journal(run.run_id))
        assert (await harness.app.outcome(run.run_id)).state == "destroyed"
    stored = "".join(str(row) for row in place.world.store.database.sa.raw_connection()
                     .driver_connection.iterdump())  # fmt: skip
    told = shown + stored + "".join(capsys.readouterr())
    assert VALUE not in told and secret not in told


COUNTER = """\
cat > /root/app.py <<'END'
import http.server, os, pathlib
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        count = pathlib.Path("/root/count")
        number = int(count.read_text()) + 1 if count.exists() else 1
        count.write_text(str(number))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{number} {os.environ.get('WORD', '-')}".encode())
    def log_message(self, *args): pass
http.server.HTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
END
exec python3 /root/app.py
"""


@pytest.mark.acceptance
async def test_a_real_service_keeps_its_files_over_a_redeploy(embed: Embed, tmp_path: Path) -> None:
    place = Place(await embed(BubblewrapBackend(tmp_path / "sandboxes")))
    script = (SetEnv(env=Secret("WORD=sesame")), Redeploy(), Freeze(), Wake(), Destroy())
    context = place.deployment(
        *script, ports=(8000,), bootstrap=COUNTER, unfreeze_on_demand=True, ready_seconds=10**7
    )
    story = await place.run(context)
    assert story.state == "destroyed", story.context.reason
    numbers = [text for text in place.port.answers if text[:1].isdigit()]
    assert numbers[0] == "1 -", "asked once before it counted as running"
    assert [text.split()[1] for text in numbers[1:]] == ["sesame"] * (len(numbers) - 1)
    assert [int(text.split()[0]) for text in numbers] == list(range(1, len(numbers) + 1))
    assert place.world.left() == {}
