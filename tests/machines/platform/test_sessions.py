"""Sessions: idempotent creation, expiry by the clock, death with the platform."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

import pytest

from machines.platform.orders import Caller
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Handle, Spec
from machines.platform.sandbox.errors import SandboxGone, SandboxUnavailable
from machines.platform.sandbox.fake import FakeBackend
from machines.platform.session_orders import parse_session
from machines.platform.sessions import Sessions


class WatchedBackend(FakeBackend):
    """Counts creations; can be slow until let go, or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.created: list[str] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.failure: Exception | None = None
        self.swept = 0

    def create(self, spec: Spec) -> Handle:
        self.created.append(spec.sandbox_id)
        self.entered.set()
        assert self.go.wait(30)
        if self.failure is not None:
            raise self.failure
        return super().create(spec)

    def sweep(self) -> int:
        self.swept += 1
        return super().sweep()

    def alive(self, session_id: str) -> bool:
        try:
            self.stats(Handle(session_id))
        except SandboxGone:
            return False
        return True


@pytest.fixture
def backend() -> WatchedBackend:
    return WatchedBackend()


async def create(api: Any, pair: tuple[str, str], body: Any = None, **options: Any) -> Any:
    return await api.call(pair, "POST", "/sessions", body, **options)


async def status(api: Any, pair: tuple[str, str], session_id: str) -> Any:
    return (await api.call(pair, "GET", f"/sessions/{session_id}")).json()


async def test_the_same_idempotency_key_gives_the_same_session(api: Any, backend: Any) -> None:
    pair = api.key(tier=8)
    first = await create(api, pair, {"ttl": 60}, once="k1")
    again = await create(api, pair, {"ttl": 60}, once="k1")
    other = await create(api, pair, {"ttl": 60}, once="k2")
    assert first.json() == again.json()
    assert other.json()["id"] != first.json()["id"]
    assert len(backend.created) == 2


async def test_idempotency_keys_belong_to_their_owner(api: Any, backend: Any) -> None:
    one, two = api.key(), api.key()
    first, second = await create(api, one, once="k"), await create(api, two, once="k")
    assert first.json()["id"] != second.json()["id"]


async def test_a_reused_idempotency_key_with_another_body_is_refused(api: Any) -> None:
    pair = api.key(tier=8)
    await create(api, pair, {"ttl": 60}, once="k")
    answer = await create(api, pair, {"ttl": 61}, once="k")
    assert (answer.status_code, answer.json()["error"]) == (409, "idempotency_key_reused")


async def test_racing_creates_with_one_key_build_one_sandbox(api: Any, backend: Any) -> None:
    pair = api.key(tier=4)
    backend.go.clear()
    racing = [asyncio.create_task(create(api, pair, once="k")) for _ in range(8)]
    assert await asyncio.to_thread(backend.entered.wait, 10)
    backend.go.set()
    answers = await asyncio.gather(*racing)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert {answer.json()["status"] for answer in answers} == {"running"}
    assert len(backend.created) == 1


async def test_a_failed_create_leaves_nothing_and_frees_its_key(api: Any, backend: Any) -> None:
    pair = api.key(tier=4)
    backend.failure = SandboxUnavailable("walls are gone", "mend them")
    refused = await create(api, pair, once="k")
    assert (refused.status_code, refused.json()["error"]) == (503, "sandbox_unavailable")
    assert (await api.call(pair, "GET", "/sessions")).json()["count"] == 0
    backend.failure = None
    assert (await create(api, pair, once="k")).json()["status"] == "running"


async def test_an_unexpected_failure_is_a_plain_500(api: Any, backend: Any) -> None:
    pair = api.key()
    backend.failure = RuntimeError("secret words")
    answer = await create(api, pair)
    assert (answer.status_code, answer.json()["error"]) == (500, "internal_error")
    assert "secret words" not in answer.text
    assert "date" in answer.headers


async def test_deleting_ends_the_sandbox_and_frees_the_slot(api: Any, backend: Any) -> None:
    pair = api.key(tier=1)
    session_id = (await create(api, pair)).json()["id"]
    assert backend.alive(session_id)
    await api.call(pair, "DELETE", f"/sessions/{session_id}")
    assert not backend.alive(session_id)
    assert (await create(api, pair)).status_code == 200


async def test_deleted_while_it_is_being_created(api: Any, backend: Any) -> None:
    pair = api.key(tier=8)
    backend.go.clear()
    making = asyncio.create_task(create(api, pair))
    assert await asyncio.to_thread(backend.entered.wait, 10)
    session_id = (await api.call(pair, "GET", "/sessions")).json()["sessions"][0]["id"]
    await api.call(pair, "DELETE", f"/sessions/{session_id}")
    backend.go.set()
    assert (await making).json()["status"] == "terminated"
    assert not backend.alive(session_id)


async def test_time_to_live_ends_a_session(api: Any, backend: Any) -> None:
    pair = api.key()
    session_id = (await create(api, pair, {"ttl": 60})).json()["id"]
    api.now_ms += 59_999
    assert (await status(api, pair, session_id))["status"] == "running"
    api.now_ms += 1
    ended = await status(api, pair, session_id)
    assert (ended["status"], ended["reason"], ended["remaining_ttl"]) == (
        "terminated",
        "expired",
        0,
    )
    assert not backend.alive(session_id)


async def test_fifteen_idle_minutes_end_a_session_and_activity_extends_it(api: Any) -> None:
    pair = api.key()
    session_id = (await create(api, pair)).json()["id"]
    for _ in range(3):
        api.now_ms += 899_000
        ran = await api.call(pair, "POST", f"/sessions/{session_id}/execute", {"command": "echo"})
        assert ran.status_code == 200
    api.now_ms += 900_000
    assert (await status(api, pair, session_id))["status"] == "terminated"


async def test_time_to_live_zero_means_the_cap_of_a_day(api: Any) -> None:
    made = (await create(api, api.key(), {"ttl": 0})).json()
    assert made["expires_at"] == "2023-11-15T22:13:20Z"


async def test_a_dead_sandbox_ends_its_session(api: Any, backend: Any) -> None:
    pair = api.key()
    session_id = (await create(api, pair)).json()["id"]
    backend.destroy(Handle(session_id))
    answer = await api.call(pair, "POST", f"/sessions/{session_id}/execute", {"command": "echo"})
    assert (answer.status_code, answer.json()["error"]) == (410, "session_terminated")
    assert (await status(api, pair, session_id))["reason"] == "sandbox_died"


async def test_a_sandbox_that_died_unasked_is_found_by_the_reaper(api: Any, backend: Any) -> None:
    pair = api.key(tier=8)
    dead, alive = [(await create(api, pair)).json()["id"] for _ in range(2)]
    backend.destroy(Handle(dead))
    assert await asyncio.to_thread(api.app.state.api.sessions.reap) == 1
    assert (await status(api, pair, dead))["reason"] == "sandbox_died"
    assert (await status(api, pair, alive))["status"] == "running"


async def test_a_backend_that_cannot_sweep_does_not_stop_the_platform(
    api: Any, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise SandboxUnavailable("no /proc", "mount /proc")

    monkeypatch.setattr(backend, "sweep", refuse)
    assert Sessions(api.context, backend).start() == 0


async def test_sessions_die_with_the_platform_and_are_reported(api: Any, backend: Any) -> None:
    pair = api.key(tier=4)
    session_id = (await create(api, pair, once="k")).json()["id"]
    swept = backend.swept
    # What the next process does at its start, over the same database.
    Sessions(api.context, backend).start()
    assert backend.swept == swept + 1
    ended = await status(api, pair, session_id)
    assert (ended["status"], ended["reason"]) == ("terminated", "platform_restarted")
    path = f"/sessions/{session_id}"
    gone = await api.call(pair, "POST", path + "/execute", {"command": "echo"})
    assert (gone.status_code, gone.json()["error"]) == (410, "session_terminated")
    assert (await api.call(pair, "DELETE", path)).status_code == 200
    assert (await create(api, pair, once="k")).json()["id"] == session_id
    assert (await create(api, pair, once="k2")).json()["status"] == "running"


async def test_a_stopping_platform_ends_sessions_and_refuses_new_ones(
    api: Any, backend: Any
) -> None:
    pair = api.key()
    session_id = (await create(api, pair)).json()["id"]
    await asyncio.to_thread(api.app.state.api.stop)
    assert not backend.alive(session_id)
    answer = await create(api, pair)
    assert (answer.status_code, answer.json()["error"]) == (503, "stopping")


async def test_shell_and_language_choose_the_program(api: Any) -> None:
    pair = api.key(tier=16)
    for body, shell in (
        ({"shell": "python3"}, "python3"),
        ({"language": "python"}, "python3"),
        ({"language": "bash"}, "bash"),
        ({}, "bash"),
    ):
        assert (await create(api, pair, body)).json()["shell"] == shell


async def test_time_to_live_runs_on_while_frozen_and_idle_time_does_not(api: Any) -> None:
    pair = api.key(tier=8)
    session_id = (await create(api, pair, {"ttl": 7200})).json()["id"]
    await api.call(pair, "POST", f"/sessions/{session_id}/freeze")
    api.now_ms += 7_199_000
    assert (await status(api, pair, session_id))["status"] == "frozen"
    thawed = (await api.call(pair, "POST", f"/sessions/{session_id}/unfreeze")).json()
    assert (thawed["status"], thawed["remaining_ttl"]) == ("running", 1)
    await api.call(pair, "POST", f"/sessions/{session_id}/freeze")
    api.now_ms += 1_000
    ended = await status(api, pair, session_id)
    assert (ended["status"], ended["reason"]) == ("terminated", "expired")


async def test_unfreezing_begins_the_idle_time_anew(api: Any) -> None:
    pair = api.key(tier=8)
    session_id = (await create(api, pair, {"ttl": 7200})).json()["id"]
    await api.call(pair, "POST", f"/sessions/{session_id}/freeze")
    api.now_ms += 3_600_000
    await api.call(pair, "POST", f"/sessions/{session_id}/unfreeze")
    api.now_ms += 899_000
    assert (await status(api, pair, session_id))["status"] == "running"
    api.now_ms += 1_000
    assert (await status(api, pair, session_id))["status"] == "terminated"


async def test_every_live_session_dies_with_the_platform(api: Any, backend: Any) -> None:
    pair = api.key(tier=16)
    running, frozen, locked = [(await create(api, pair)).json()["id"] for _ in range(3)]
    await api.call(pair, "POST", f"/sessions/{frozen}/freeze")
    await api.call(pair, "POST", f"/sessions/{locked}/lock")
    backend.go.clear()
    backend.entered.clear()
    making = asyncio.create_task(create(api, pair))
    assert await asyncio.to_thread(backend.entered.wait, 10)
    Sessions(api.context, backend).start()
    backend.go.set()
    assert (await making).json()["reason"] == "platform_restarted"
    for session_id in (running, frozen, locked, backend.created[-1]):
        ended = await status(api, pair, session_id)
        assert (ended["status"], ended["reason"]) == ("terminated", "platform_restarted")
    assert not backend.alive(backend.created[-1])


async def test_a_dead_session_of_a_repeated_key_says_that_it_is_dead(
    api: Any, backend: Any
) -> None:
    pair = api.key()
    session_id = (await create(api, pair, once="k")).json()["id"]
    await api.call(pair, "DELETE", f"/sessions/{session_id}")
    again = (await create(api, pair, once="k")).json()
    assert (again["id"], again["status"], again["reason"]) == (session_id, "terminated", "deleted")
    assert again["remaining_ttl"] == 0
    assert len(backend.created) == 1


def caller_of(pair: tuple[str, str], tier: int) -> Caller:
    return Caller(public_key=pair[0], tier=tier, idempotency_key=None, digest="d")


async def test_one_of_64_parallel_creates_gets_the_one_slot(api: Any, backend: Any) -> None:
    sessions = api.app.state.api.sessions
    order = parse_session({"ttl": 600}, lambda: frozenset({"bash"}))
    for _ in range(20):
        caller = caller_of(api.key(tier=1), 1)
        made = await asyncio.to_thread(api.together, [partial(sessions.create, caller, order)] * 64)
        refused = [each for each in made if isinstance(each, Problem)]
        assert {each.error for each in refused} == {"concurrency_limit_reached"}
        assert len(refused) == 63
        assert [row["state"] for row in sessions.live(caller.public_key)] == ["running"]
