"""Trust: real sandboxes at both levels, one that leaks on purpose, and every branch by name."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.clock import hours
from engine.errors import Refused
from engine.secret import Secret
from engine.secrets import SecretsCodec
from engine.testing import Crash, CrashPlan, Harness
from machines.clients.ports import Execution, NotFound, Platform, Rejected, ReplyLost, Unavailable
from machines.clients.ports.introspection import Facilities
from machines.flows import wall_probes
from machines.flows.canaries import Canaries, LocalCanaries
from machines.flows.f12_trust import Trust
from machines.flows.trial import (
    PROBES,
    PROMISES,
    Gone,
    NotOpened,
    Opened,
    Probed,
    Promised,
    SessionLost,
    Sight,
    Trial,
    Withdrawn,
    chosen,
    judge,
)
from machines.flows.trial_calls import read_sights
from machines.platform.egress import EgressProxy, proxied
from machines.platform.egress_policy import EgressPolicy
from machines.platform.sandbox.backend import Handle, Result, Spec
from machines.platform.sandbox.bubblewrap import BubblewrapBackend
from machines.platform.sandbox.fake import FakeBackend
from machines.platform.sandbox.gvisor import GvisorBackend
from persistence.store import open_store

SECRET = "unsb-sk-aaaaa-bbbbb-ccccc-ddddd"


def _trial(credentials: Any = None, **changes: Any) -> Trial:
    fields: dict[str, Any] = {
        "public_key": credentials.public_key if credentials else "unsb-pk-1",
        "secret_key": credentials.secret_key if credentials else Secret(SECRET),
    }
    return Trial(**(fields | changes))


# -- real walls ---------------------------------------------------------------------------------


async def _nobody(_host: str, _port: int) -> list[ipaddress.IPv4Address]:
    raise OSError("no name is looked up here")


def _walled(root: Path, kind: str = "bubblewrap") -> Any:
    backend: Any = GvisorBackend(root) if kind == "gvisor" else BubblewrapBackend(root)
    return proxied(backend, EgressProxy(EgressPolicy(), resolve=_nobody))


HAS_GVISOR = shutil.which("runsc") is not None and os.geteuid() == 0
KINDS = ["bubblewrap", *([pytest.param("gvisor", marks=pytest.mark.acceptance)] * HAS_GVISOR)]


class Traitor(FakeBackend):
    """Runs what it is given on the host, without a wall, whatever was promised."""

    def cell(self, handle: Handle, language: str, code: str, **_options: Any) -> Result:
        done = subprocess.run([language, "-c", code], capture_output=True, check=False, timeout=30)
        return Result(done.returncode, done.stdout, done.stderr)


class Careless:
    """Builds semitrusted sandboxes for those who asked for zerotrust."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def create(self, spec: Spec) -> Handle:
        return self._backend.create(replace(spec, network="semitrusted"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ["zerotrust", "semitrusted"])
async def test_real_walls_keep_what_their_level_promises(
    embed: Any, tmp_path: Path, level: str, kind: str
) -> None:
    world = await embed(_walled(tmp_path / "sandboxes", kind))
    story = await world.run(Trust, _trial(world.key(), needs_platform=level == "semitrusted"))
    assert (story.state, story.context.reason) == ("proven", "")
    assert story.passed == ["requested", "created", "probing", "proven"]
    report = story.output
    assert report.trust == level
    assert {one.probe: one.seen for one in report.sights} == PROMISES[level]
    assert report.hits == 0
    details = {one.probe: one.detail for one in report.sights}
    assert details["proxy_outside"] == (
        "403" if level == "semitrusted" else "no proxy: ECONNREFUSED"
    )
    assert world.left() == {"sessions": 1}, "it is the caller's from here"


async def test_a_session_that_is_only_tried_is_ended(embed: Any, tmp_path: Path) -> None:
    world = await embed(_walled(tmp_path / "sandboxes"))
    story = await world.run(Trust, _trial(world.key(), keep=False))
    assert story.passed == ["requested", "created", "probing", "destroying", "proven"]
    assert story.output.session_id == ""
    assert world.left() == {}


async def test_a_semitrusted_session_promised_as_zerotrust_is_breached(
    embed: Any, tmp_path: Path
) -> None:
    world = await embed(Careless(_walled(tmp_path / "sandboxes")))
    story = await world.run(Trust, _trial(world.key()))
    assert story.passed == ["requested", "created", "probing", "destroying", "breached"]
    assert story.context.reason == "proxy: it takes connections"
    assert (world.left(), story.output.session_id) == ({}, "")


async def test_a_session_without_walls_is_breached_and_destroyed(embed: Any) -> None:
    world = await embed(Traitor())
    story = await world.run(Trust, _trial(world.key()))
    assert (story.state, story.status) == ("breached", "failed")
    assert world.left() == {}
    opened = {one.probe for one in story.output.sights if one.seen == "open"}
    assert opened >= {"host_port", "host_socket", "host_files", "host_processes", "namespaces"}
    assert story.output.hits == 2, "the canaries counted who came"


async def test_a_session_that_cannot_run_the_probes_is_inconclusive(embed: Any) -> None:
    world = await embed(FakeBackend())
    story = await world.run(Trust, _trial(world.key()))
    assert story.passed == ["requested", "created", "probing", "destroying", "inconclusive"]
    assert "the probes" in story.context.reason
    assert world.left() == {}


@pytest.mark.acceptance
async def test_a_crash_at_any_boundary_leaves_one_session_and_none_alive(embed: Any) -> None:
    """Of a session that proves nothing: it is created once and destroyed, whoever dies when."""
    world = await embed(FakeBackend())
    key = world.key(tier=32)
    died, at = 0, 1
    while True:
        plan, name = CrashPlan(at=at), f"run-{at}"
        with contextlib.suppress(Crash):
            async with world.harness(plan) as harness:
                await harness.app.start(Trust, _trial(key), key=name)
                await harness.until_idle(horizon_ms=hours(1))
        if not plan.dead:
            break
        died, at = died + 1, at + 1
        world.clock.advance(20_000)  # the dead worker's lease runs out
        story = await world.run(Trust, _trial(key), key=name)
        assert story.state == "inconclusive"
        assert world.left() == {}, f"after a death at boundary {plan.at}"
        world.clock.advance(60_000)
    with world.context.database.reading() as sql:
        assert int(sql.scalar("SELECT count(*) FROM session")) == died + 1
    assert died > 10


async def test_no_slot_is_refused_and_nothing_is_left(embed: Any) -> None:
    world = await embed(FakeBackend())
    key = world.key(tier=1)
    await world.clients.platform.create_session(  # noqa: S604 - the name of a shell
        key, shell="bash", network_mode="zerotrust", ttl_seconds=86_400, key="other"
    )
    story = await world.run(Trust, _trial(key))
    assert story.passed == ["requested", "withdrawing", "refused"]
    assert story.context.reason == "no session within 600000 ms"
    assert world.left() == {"sessions": 1}, "the other one, which took the slot"


async def test_a_refused_key_is_refused(embed: Any) -> None:
    world = await embed(FakeBackend())
    story = await world.run(Trust, _trial(world.key(), secret_key=Secret("unsb-sk-wrong")))
    assert story.state == "refused"
    assert "no session: " in story.context.reason
    assert "unsb-sk-wrong" not in repr(story)
    assert world.left() == {}


# -- a platform that is told what to do ---------------------------------------------------------


class Told:
    """Platform and facilities of one session; `errors[method]`: the last one for ever."""

    def __init__(self) -> None:
        self.errors: dict[str, list[Exception | None]] = {}
        self.calls: list[str] = []
        self.live: set[str] = set()
        self.by_key: dict[str, str] = {}
        self.mode: str | None = None
        self.stdout: Any = None
        self.exit_code = 0
        self.visits = 0

    def _called(self, method: str) -> None:
        self.calls.append(method)
        waiting = self.errors.get(method)
        if waiting:
            error = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            if error is not None:
                raise error

    async def create_session(self, _credentials: Any, **order: Any) -> Any:
        late = "create_late" in self.errors
        if not late:
            self._called("create_session")
        made = self.by_key.setdefault(order["key"], f"session-{len(self.by_key)}")
        self.live.add(made)
        self.mode = self.mode or order["network_mode"]
        if late:
            self._called("create_late")
        return _Session(made)

    async def delete_session(self, _credentials: Any, session_id: str) -> None:
        self._called("delete_session")
        self.live.discard(session_id)

    async def network_mode(self, _credentials: Any, _session_id: str) -> str:
        self._called("network_mode")
        return self.mode or ""

    async def execute(self, _credentials: Any, _session: str, command: str, *, key: str) -> Any:
        self._called("execute")
        ask = msgspec.json.decode(command.rpartition("<<'TURTLES'\n")[2].partition("\n")[0])
        for _ in range(self.visits):
            await _visit(ask["port"])
        stdout = self.stdout(ask) if callable(self.stdout) else self.stdout
        return Execution(stdout=stdout, stderr="", exit_code=self.exit_code, duration_ms=1)


class _Session:
    def __init__(self, session_id: str) -> None:
        self.session_id = session_id


async def _visit(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await reader.read()
    writer.close()


def _says(ask: dict[str, Any], **changed: str) -> str:
    seen = {**PROMISES["zerotrust"], **changed}
    sights = {probe: [how, "so"] for probe, how in seen.items() if how}
    return msgspec.json.encode({"nonce": ask["nonce"], "sights": sights}).decode()


@pytest.fixture
def told() -> Told:
    made = Told()
    made.stdout = _says
    return made


async def _run(told: Told, **changes: Any) -> Any:
    resources = {Platform: told, Facilities: told, Canaries: LocalCanaries()}
    store = open_store("sqlite://")
    async with Harness(
        [Trust], store=store, resources=resources, secrets=SecretsCodec(bytes(32))
    ) as harness:
        run_id = (await harness.app.start(Trust, _trial(**changes))).run_id
        await harness.until_idle(horizon_ms=hours(24))
        outcome = await harness.app.outcome(run_id)
        journal = await harness.app.journal(run_id)
    store.close()
    passed = [entry.target for entry in journal]
    return SimpleNamespace(
        run_id=run_id,
        state=outcome.state,
        status=outcome.status,
        context=outcome.context,
        output=outcome.output,
        passed=passed,
    )


async def test_as_promised_is_proven(told: Told) -> None:
    story = await _run(told)
    assert story.state == "proven"
    assert told.live == {story.output.session_id}


async def test_a_liar_is_betrayed_by_the_canary(told: Told) -> None:
    told.visits = 1
    story = await _run(told)
    assert (story.state, story.context.reason) == (
        "breached", "1 visits to this host's canaries",
    )  # fmt: skip
    assert told.live == set()


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("level", ["zerotrust", "semitrusted"])
def test_one_probe_is_enough_for_no_proof(probe: str, level: Any) -> None:
    """Seen otherwise, or not at all."""
    promise = PROMISES[level]
    trial = _trial(trust=level)
    worst = "breached" if promise[probe] == "closed" else "proven"
    expected = {
        "open": worst,
        "closed": "proven",
        "inconclusive": "inconclusive",
        "": "inconclusive",
    }
    if promise[probe] == "open":
        expected["closed"] = "inconclusive"
    for seen, verdict in expected.items():
        sights = [(p, seen if p == probe else how) for p, how in promise.items()]
        told = tuple(Sight(probe=p, seen=how) for p, how in sights if how)
        assert judge(trial, Probed(sights=told, hits=0)) == verdict


@pytest.mark.parametrize(
    ("seen", "state"),
    [("open", "breached"), ("inconclusive", "inconclusive"), ("", "inconclusive")],
)
async def test_one_sight_that_differs(told: Told, seen: str, state: str) -> None:
    told.stdout = lambda ask: _says(ask, vsock=seen)
    story = await _run(told)
    assert (story.state, told.live) == (state, set())
    assert story.context.reason.startswith("vsock")


@pytest.mark.parametrize(
    ("stdout", "reason"),
    [
        ("", "the probes said nothing that makes sense"),
        ("[]", "the probes said nothing that makes sense"),
        ('{"nonce":"old","sights":{}}', "the probes answered another question"),
        ("x" * 20_000, "the probes said 20000 characters"),
        ("\ud800", "the probes said nothing that makes sense"),
    ],
)
async def test_nonsense_is_inconclusive(told: Told, stdout: str, reason: str) -> None:
    told.stdout = stdout
    story = await _run(told)
    assert (story.state, story.context.reason) == ("inconclusive", reason)
    assert told.live == set()


async def test_probes_that_fail_are_inconclusive_even_if_they_claim_a_proof(told: Told) -> None:
    told.exit_code = 127
    story = await _run(told)
    assert (story.state, story.context.reason) == ("inconclusive", "the probes exited 127")


async def test_the_platform_promises_more_than_was_asked_for(told: Told) -> None:
    told.mode = "semitrusted"
    story = await _run(told)
    assert story.passed == ["requested", "created", "destroying", "breached"]
    assert "execute" not in told.calls


async def test_the_platform_promises_less_than_was_asked_for(told: Told) -> None:
    told.mode = "zerotrust"
    story = await _run(told, needs_platform=True)
    assert story.passed == ["requested", "created", "destroying", "inconclusive"]


@pytest.mark.parametrize("method", ["network_mode", "execute"])
async def test_the_session_dies_first(told: Told, method: str) -> None:
    told.errors[method] = [NotFound("404")]
    story = await _run(told)
    assert (story.state, told.live) == ("lost", set())


async def test_a_session_that_has_ended_is_lost(told: Told) -> None:
    told.mode = "terminated"
    assert (await _run(told)).state == "lost"


@pytest.mark.parametrize("method", ["network_mode", "execute"])
@pytest.mark.parametrize("error", [Rejected("400"), Unavailable("down")])
async def test_a_platform_that_does_not_answer_proves_nothing(
    told: Told, method: str, error: Exception
) -> None:
    told.errors[method] = [error]
    story = await _run(told)
    assert (story.state, told.live) == ("inconclusive", set())


async def test_a_platform_that_is_down_for_a_while_is_waited_for(told: Told) -> None:
    for method in ("create_session", "network_mode", "execute", "delete_session"):
        told.errors[method] = [Unavailable("down"), ReplyLost("cut"), Unavailable("down"), None]
    story = await _run(told, keep=False)
    assert (story.state, told.live) == ("proven", set())


async def test_a_session_whose_birth_was_never_told_is_found_and_ended(told: Told) -> None:
    told.errors["create_late"] = [ReplyLost("cut"), None]
    story = await _run(told, opening_ms=1)
    assert story.passed == ["requested", "withdrawing", "refused"]
    assert (told.by_key.keys(), told.live) == ({f"trust-{story.run_id}"}, set())


async def test_a_session_of_which_nobody_can_tell_is_said_to_be_left(told: Told) -> None:
    told.errors["create_late"] = [ReplyLost("cut")]
    story = await _run(told)
    assert story.passed == ["requested", "withdrawing", "refused"]
    assert "one may live on to its ttl" in story.context.reason


async def test_a_breached_session_that_cannot_be_ended_takes_a_person(told: Told) -> None:
    told.visits = 1
    told.errors["delete_session"] = [Rejected("409: locked")]
    story = await _run(told)
    assert (story.state, story.status) == ("destroying", "quarantined")
    assert story.context.verdict == "breached"


async def test_zerotrust_that_needs_the_platform_cannot_begin(told: Told) -> None:
    with pytest.raises(Refused, match="wanted_is_possible"):
        await _run(told, trust="zerotrust", needs_platform=True)
    assert told.calls == []


@pytest.mark.parametrize(
    ("trust", "needs", "level"),
    [
        ("least", False, "zerotrust"),
        ("least", True, "semitrusted"),
        ("semitrusted", False, "semitrusted"),
        ("zerotrust", False, "zerotrust"),
    ],
)
def test_the_least_level_that_serves(trust: Any, needs: bool, level: str) -> None:
    assert chosen(_trial(trust=trust, needs_platform=needs)) == level


def test_strange_probes_are_not_believed() -> None:
    told = '{"nonce":"n","sights":{"walls":["closed",""]}}'
    assert read_sights(told, "n") == ((), "the probes tell of 1 things that nobody asked")


def test_what_a_session_says_is_shown_and_short() -> None:
    told = msgspec.json.encode({"nonce": "n", "sights": {"dns": ["open", "\x1b[2J" * 99]}})
    ((sight,), problem) = read_sights(told.decode(), "n")
    assert (len(sight.detail), problem, "\x1b" in sight.detail) == (120, "", False)


def test_the_secret_is_in_no_text(capsys: Any) -> None:
    assert SECRET not in repr(_trial()) + "".join(capsys.readouterr())


# -- any sequence of events ---------------------------------------------------------------------

SEEN = st.sampled_from(["open", "closed", "inconclusive"])
SIGHTS = st.one_of(
    st.just(tuple(Sight(probe=p, seen=s) for p, s in PROMISES["zerotrust"].items())),
    st.just(tuple(Sight(probe=p, seen=s) for p, s in PROMISES["semitrusted"].items())),
    st.lists(st.builds(Sight, probe=st.sampled_from(PROBES), seen=SEEN), max_size=3).map(tuple),
)
EVENTS = st.one_of(
    st.sampled_from(["no_slot_in_time", "unread_in_time", "probes_stuck"]),
    st.sampled_from([Gone(), SessionLost(), Withdrawn()]),
    st.builds(Opened, session_id=st.just("session")),
    st.builds(NotOpened, effect=st.just("x"), reason=st.just("down"), attempts=st.just(1)),
    st.builds(Promised, network_mode=st.sampled_from(["zerotrust", "semitrusted", "other"])),
    st.builds(Probed, sights=SIGHTS, hits=st.integers(0, 1), problem=st.sampled_from(["", "p"])),
)
STEPS = st.lists(st.tuples(EVENTS, st.integers(0, hours(1))), max_size=8)


@settings(max_examples=100)
@given(steps=STEPS, needs=st.booleans(), keep=st.booleans())
def test_the_table_does_what_the_library_does(
    library_agrees: Any, steps: Any, needs: bool, keep: bool
) -> None:
    library_agrees(Trust, _trial(needs_platform=needs, keep=keep), steps)


@settings(max_examples=100)
@given(steps=STEPS, needs=st.booleans(), keep=st.booleans())
def test_contracts_hold_whatever_happens(walk: Any, steps: Any, needs: bool, keep: bool) -> None:
    for run in walk(Trust, _trial(needs_platform=needs, keep=keep), steps):
        if run.state == "proven":
            sights = {one.probe: one.seen for one in run.context.sights}
            assert sights == PROMISES[chosen(run.context)]
            assert bool(run.context.session_id) == keep
        elif run.state in ("breached", "inconclusive", "lost", "refused"):
            assert (run.context.session_id, bool(run.context.reason)) == ("", True)


@given(sights=SIGHTS, hits=st.integers(0, 1), needs=st.booleans())
def test_judgement_is_monotone(sights: Any, hits: int, needs: bool) -> None:
    """More that is open, or a visit more, never makes a verdict better."""
    worse = ("proven", "inconclusive", "breached")
    trial = _trial(needs_platform=needs)
    now = worse.index(judge(trial, Probed(sights=sights, hits=hits)))
    opened = tuple(
        msgspec.structs.replace(one, seen="open") if one.probe != "proxy" else one for one in sights
    )
    assert worse.index(judge(trial, Probed(sights=opened, hits=hits))) >= now
    assert worse.index(judge(trial, Probed(sights=sights, hits=1))) == 2


def test_the_script_needs_nothing_but_the_standard_library() -> None:
    assert wall_probes.source().startswith('"""')
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", wall_probes.source()],
        input=b"{}\n", capture_output=True, check=True, timeout=30,
    )  # fmt: skip
    sights = msgspec.json.decode(done.stdout)["sights"]
    assert set(sights) == set(PROBES)
    assert sights["host_port"][0] == "inconclusive", "without a canary nothing can be told"
