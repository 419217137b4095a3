"""Sessions as the wire tells them.  The calls are tested against the platform, in f07's tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from engine.secrets import Secret
from machines.clients import Transport
from machines.clients.ports import Credentials, Rejected
from machines.clients.ports.sessions import CellEnd, SessionView
from machines.clients.sessions import IDLE_MS, HttpSessions

Serve = Callable[..., Transport]
KEY = Credentials(public_key="pk", secret_key=Secret("sk"), offset_ms=5_000)
SHOWN = {
    "id": "s1", "status": "terminated", "shell": "bash", "vcpu": 2, "reason": "expired",
    "expires_at": "2023-11-14T22:13:20Z", "last_activity": "2023-11-14T22:13:20",
}  # fmt: skip


def _sessions(served: Serve, body: Any) -> HttpSessions:
    return HttpSessions("http://api.test", served(lambda _request: httpx.Response(200, json=body)))


async def test_moments_are_on_our_clock(served: Serve) -> None:
    view = await _sessions(served, SHOWN).look(KEY, "s1")
    ours_ms = 1_700_000_000_000 - 5_000
    assert view == SessionView(  # noqa: S604 - the name of a shell
        session_id="s1", status="terminated", shell="bash", vcpu=2, expires_ms=ours_ms,
        idles_ms=ours_ms + IDLE_MS, reason="expired",
    )  # fmt: skip


async def test_a_moment_that_is_none_is_refused(served: Serve) -> None:
    with pytest.raises(Rejected, match="ISO-8601"):
        await _sessions(served, {**SHOWN, "expires_at": "soon"}).look(KEY, "s1")


@pytest.mark.parametrize(
    ("body", "end"),
    [
        ({"output": "o", "exit_code": 1}, CellEnd("completed", "o", "", 1, 0)),
        (
            {"status": "timeout", "stderr": "e", "duration_ms": 3},
            CellEnd("timeout", "", "e", None, 3),
        ),
    ],
)
async def test_cells(served: Serve, body: Any, end: CellEnd) -> None:
    assert await _sessions(served, body).run(KEY, "s1", "x", timeout_ms=1_000, key="k") == end
