"""Snapshots, services and images on the wire are tested against the platform itself, in the flows.

Here is what a platform of another mind may answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from engine.secret import Secret
from machines.clients import Transport
from machines.clients.ports import Credentials, Rejected
from machines.clients.ports.snapshots import CopyInfo, Restored, SnapshotInfo
from machines.clients.snapshots import HttpSnapshots

Serve = Callable[..., Transport]
CREDENTIALS = Credentials(public_key="unsb-pk-1", secret_key=Secret("unsb-sk-1"))
LEAST = {"id": "s1", "type": "session", "source_id": "here"}


def _client(served: Serve, body: Any, status: int = 200) -> tuple[HttpSnapshots, list[Any]]:
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(status, json=body)

    return HttpSnapshots("http://api.test", served(answer)), requests


async def test_the_least_that_a_platform_may_say(served: Serve) -> None:
    client, requests = _client(served, LEAST)
    taken = await client.take(
        CREDENTIALS, source_type="session", source_id="here", name="", hot=False,
        ttl_seconds=0, key="once",
    )  # fmt: skip
    assert taken == SnapshotInfo(
        snapshot_id="s1", status="ready", source_type="session", source_id="here", level="",
        lost=(), locked=False, size_bytes=0,
    )  # fmt: skip
    assert requests[0].headers["Idempotency-Key"] == "once"
    assert await client.snapshot(CREDENTIALS, "s/1") == taken
    assert requests[1].url.raw_path == b"/snapshots/s%2F1"


async def test_names_of_other_clients_are_read(served: Serve) -> None:
    client, _ = _client(served, {"id": "x", "type": "service", "service_id": "v1", "level": "full"})
    restored = await client.restore(CREDENTIALS, "s1")
    assert restored == Restored(kind="service", target_id="v1", level="full")
    client, _ = _client(served, {"id": "v2", "state": "starting"})
    made = await client.clone(CREDENTIALS, "s1", kind="service", name="web", key="k")
    assert made == CopyInfo(kind="service", copy_id="v2", state="starting")


async def test_a_kind_that_nobody_knows_is_refused(served: Serve) -> None:
    client, _ = _client(served, LEAST | {"type": "volume"})
    with pytest.raises(Rejected, match="'volume': expected 'session' or 'service'"):
        await client.snapshot(CREDENTIALS, "s1")


@pytest.mark.parametrize("status", [404, 410])
async def test_what_is_gone_is_removed(served: Serve, status: int) -> None:
    client, requests = _client(served, {"error": "not_found"}, status)
    await client.remove(CREDENTIALS, "s1")
    await client.remove_copy(CREDENTIALS, "session", "x1")
    assert [one.url.path for one in requests] == ["/snapshots/s1", "/sessions/x1"]
