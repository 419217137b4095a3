"""The rows of sessions: found by either name, moved in one place, watched."""

from __future__ import annotations

from typing import Any

import pytest

from machines.platform.replies import Problem
from machines.platform.session_rows import SessionRows, require, running, select


@pytest.fixture
async def pair(api: Any) -> tuple[str, str]:
    made: tuple[str, str] = api.key(tier=16)
    return made


@pytest.fixture
async def session_id(api: Any, pair: tuple[str, str]) -> str:
    return str((await api.call(pair, "POST", "/sessions", {"ttl": 7200})).json()["id"])


@pytest.fixture
def rows(api: Any) -> SessionRows:
    made: SessionRows = api.app.state.api.sessions
    return made


def move(api: Any, rows: SessionRows, session_id: str, *targets: Any) -> list[bool]:
    with api.database.transaction() as sql:
        return [rows._move(sql, session_id, target, "why") for target in targets]


async def test_a_session_is_found_by_both_of_its_names(
    rows: SessionRows, session_id: str, pair: tuple[str, str]
) -> None:
    container = session_id.replace("unsb-session-", "unsb-vm-")
    assert rows.find(pair[0], container) == rows.find(pair[0], session_id)
    assert rows.named("unsb-vm-none") is None


async def test_a_state_is_moved_along_its_life_only(
    api: Any, rows: SessionRows, session_id: str
) -> None:
    assert move(api, rows, session_id, "running", "frozen", "frozen") == [False, True, False]
    assert move(api, rows, session_id, "running", "terminated") == [True, True]
    assert move(api, rows, session_id, "running", "frozen", "terminated") == [False] * 3
    row = rows.named(session_id)
    assert row is not None
    assert (row["state"], row["reason"], row["ended_ms"]) == ("terminated", "why", api.now_ms)


async def test_who_watches_is_told_after_the_row_says_so(
    api: Any, rows: SessionRows, session_id: str, pair: tuple[str, str]
) -> None:
    told: list[tuple[str, str]] = []

    def watch(name: str, state: str) -> None:
        row = rows.named(name)
        assert row is not None
        assert row["state"] == state
        told.append((name, state))

    rows.watch(watch)
    await api.call(pair, "POST", f"/sessions/{session_id}/freeze")
    rows.died(session_id)
    assert not rows.died(session_id)
    assert told == [(session_id, "frozen"), (session_id, "terminated")]


async def test_only_a_running_session_can_be_claimed(
    api: Any, rows: SessionRows, session_id: str
) -> None:
    api.now_ms += 60_000
    with api.database.transaction() as sql:
        rows.claim(sql, session_id)
        row = require(select(sql, session_id))
    assert row["last_active_ms"] == api.now_ms
    refused = (
        ({**row, "state": "starting"}, 409, "session_starting"),
        ({**row, "state": "frozen"}, 409, "session_frozen"),
        ({**row, "state": "terminated", "reason": "deleted"}, 410, "session_terminated"),
        (None, 410, "session_terminated"),
    )
    for each, status, error in refused:
        with pytest.raises(Problem) as caught:
            running(each, session_id)
        assert (caught.value.status, caught.value.error) == (status, error)
    with pytest.raises(Problem, match="was removed") as caught:
        require(None)
    assert caught.value.status == 404


async def test_what_executes_or_is_frozen_is_not_idle(
    api: Any, rows: SessionRows, session_id: str
) -> None:
    with api.database.transaction() as sql:
        sql.run(
            "INSERT INTO execution (job_id, public_key, session_id, language, network_mode, "
            "state, started_ms, digest) SELECT 'job', public_key, session_id, 'bash', "
            "'zerotrust', 'running', created_ms, 'd' FROM session"
        )
    api.now_ms += 900_000
    assert rows.expire_due() == 0
    with api.database.transaction() as sql:
        sql.run("UPDATE execution SET state = 'lost'")
        rows._move(sql, session_id, "frozen")
    assert rows.expire_due() == 0
    move(api, rows, session_id, "running")
    assert rows.expire_due() == 1
