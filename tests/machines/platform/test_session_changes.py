"""Changes of a session that lasts: what is refused is undone, and what races agrees."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from machines.platform.limits import slots_in_use
from machines.platform.orders import Caller
from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Handle
from machines.platform.sandbox.errors import SandboxGone, SandboxLimit, SandboxUnavailable
from machines.platform.session_orders import parse_session


async def create(api: Any, pair: tuple[str, str]) -> Any:
    return await api.call(pair, "POST", "/sessions")


async def status(api: Any, pair: tuple[str, str], session_id: str) -> Any:
    return (await api.call(pair, "GET", f"/sessions/{session_id}")).json()


def caller_of(pair: tuple[str, str], tier: int) -> Caller:
    return Caller(public_key=pair[0], tier=tier, idempotency_key=None, digest="d")


@pytest.mark.parametrize("verb", ["freeze", "unfreeze", "boost"])
async def test_a_change_that_the_sandbox_refuses_leaves_all_as_it_was(
    api: Any, backend: Any, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    pair = api.key(tier=8)
    session_id = (await create(api, pair)).json()["id"]
    if verb == "unfreeze":
        await api.call(pair, "POST", f"/sessions/{session_id}/freeze")
    before = await status(api, pair, session_id)

    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise SandboxUnavailable("the freezer is broken", "mend it")

    with monkeypatch.context() as patch:
        patch.setattr(backend, {"boost": "resize"}.get(verb, verb), refuse)
        answer = await api.call(pair, "POST", f"/sessions/{session_id}/{verb}")
    assert (answer.status_code, answer.json()["error"]) == (503, "sandbox_unavailable")
    assert await status(api, pair, session_id) == before
    assert (await api.call(pair, "POST", f"/sessions/{session_id}/{verb}")).status_code == 200


async def test_a_freeze_that_fails_when_its_slot_is_taken_ends_the_session(
    api: Any, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = api.key(tier=1)
    session_id = (await create(api, pair)).json()["id"]
    sessions = api.app.state.api.sessions

    def refuse(_handle: Handle) -> None:
        with api.database.transaction() as sql:  # another request takes the slot meanwhile
            sql.run(
                "INSERT INTO session (session_id, public_key, shell, network_mode, vcpu, state, "
                "created_ms, expires_ms, last_active_ms, digest, base_vcpu) SELECT 'thief', "
                "public_key, shell, network_mode, vcpu, 'running', created_ms, expires_ms, "
                "last_active_ms, digest, base_vcpu FROM session WHERE session_id = :id",
                id=session_id,
            )
        raise SandboxUnavailable("the freezer is broken", "mend it")

    monkeypatch.setattr(backend, "freeze", refuse)
    answer = await api.call(pair, "POST", f"/sessions/{session_id}/freeze")
    assert answer.status_code == 503
    assert (await status(api, pair, session_id))["reason"] == "freeze_failed"
    with pytest.raises(SandboxGone):
        backend.stats(Handle(session_id))
    sessions.died("thief")


async def test_a_refused_shrink_keeps_the_slots_that_are_still_used(
    api: Any, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = api.key(tier=8)
    session_id = (await create(api, pair)).json()["id"]
    await api.call(pair, "POST", f"/sessions/{session_id}/boost")

    def refuse(_handle: Handle, **_limits: int) -> None:
        raise SandboxLimit("3 GiB are in use, the new limit would be 2 GiB")

    monkeypatch.setattr(backend, "resize", refuse)
    answer = await api.call(pair, "POST", f"/sessions/{session_id}/unboost")
    assert (answer.status_code, answer.json()["error"]) == (400, "sandbox_limit")
    assert (await status(api, pair, session_id))["vcpu"] == 2
    assert (await create(api, pair)).status_code == 429


async def test_one_of_many_parallel_unfreezes_boosts_and_creates_gets_the_slot(
    api: Any, backend: Any
) -> None:
    sessions = api.app.state.api.sessions
    order = parse_session({"ttl": 600}, lambda: frozenset({"bash"}))
    for _ in range(10):
        caller = caller_of(api.key(tier=8), 8)
        frozen = sessions.create(caller, order)["session_id"]
        sessions.freeze(caller, frozen)
        running = sessions.create(caller, order)["session_id"]
        racing = [
            partial(sessions.unfreeze, caller, frozen),
            partial(sessions.boost, caller, running, 2),
            partial(sessions.create, caller, order),
        ]
        results = await asyncio.to_thread(api.together, racing * 4)
        with api.database.reading() as sql:
            assert slots_in_use(sql, caller.public_key) == 2
        # One of the three won; what it did again cost nothing more.
        won = {number % 3 for number, each in enumerate(results) if not isinstance(each, Problem)}
        assert len(won) == 1


async def test_freezing_and_unfreezing_at_once_leaves_sandbox_and_row_agreed(
    api: Any, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = api.app.state.api.sessions
    caller = caller_of(api.key(tier=8), 8)
    order = parse_session({"ttl": 600}, lambda: frozenset({"bash"}))
    session_id = sessions.create(caller, order)["session_id"]
    told: list[str] = []
    for verb, state in (("freeze", "frozen"), ("unfreeze", "running")):
        original = getattr(backend, verb)

        def note(handle: Handle, original: Any = original, state: str = state) -> None:
            original(handle)
            told.append(state)

        monkeypatch.setattr(backend, verb, note)
    for _ in range(20):
        calls = [
            lambda: sessions.freeze(caller, session_id),
            lambda: sessions.unfreeze(caller, session_id),
        ]
        await asyncio.to_thread(api.together, calls * 4)
        assert sessions.named(session_id)["state"] == (told[-1] if told else "running")
