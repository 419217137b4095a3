"""The platform asked about itself: what is read, what is cut, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from engine.secret import Secret
from machines.clients.introspection import HttpFacilities, shown
from machines.clients.ports import Credentials, NotFound, Rejected, Unauthorized, Unavailable
from machines.clients.ports.introspection import (
    ClusterReport,
    HealthReport,
    LanguageList,
    PoolReport,
    ShellList,
)

KEY = Credentials(public_key="unsb-pk-1", secret_key=Secret("unsb-sk-1"))


def _client(served: Any, body: Any, status: int = 200) -> tuple[HttpFacilities, list[Any]]:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, json=body)

    return HttpFacilities("http://platform", served(answer)), seen


Ask = Callable[[HttpFacilities], Any]
CALLS: dict[str, Ask] = {
    "/languages": lambda client: client.languages(KEY),
    "/shells": lambda client: client.shells(KEY),
    "/cluster": lambda client: client.cluster(KEY),
    "/pools": lambda client: client.pools(KEY),
    "/sessions/s": lambda client: client.network_mode(KEY, "s"),
}
CLUSTER = {"mode": "on_demand", "available": 3, "allocated": 1}
POOL = {"id": "local", "total": 4, "available": 3}


async def test_health_is_unsigned(served: Any) -> None:
    client, seen = _client(served, {"status": "ok", "enforcement": "cgroup", "else": 1})
    assert await client.health() == HealthReport(status="ok", enforcement="cgroup")
    assert "Authorization" not in seen[0].headers
    client, _ = _client(served, {"status": "ok", "sandbox_problem": "no\x1bnamespaces"})
    assert (await client.health()).problem == "no?namespaces"


@pytest.mark.parametrize("status", [500, 503, 404])
async def test_health_that_is_no_2xx_is_an_error(served: Any, status: int) -> None:
    client, _ = _client(served, {"error": "no"}, status)
    with pytest.raises((Unavailable, NotFound)):
        await client.health()


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/languages", {"languages": ["python"], "aliases": {"py": "python", "x": 3, "": "y"}},
         LanguageList(languages=("python",), aliases=(("py", "python"),))),
        ("/languages", {"languages": []}, LanguageList(languages=())),
        ("/shells", {"shells": ["bash", "sh"]}, ShellList(shells=("bash", "sh"))),
        ("/cluster", CLUSTER, ClusterReport(mode="on_demand", available=3, allocated=1)),
        ("/pools", {"pools": [POOL]}, (PoolReport(pool_id="local", total=4, available=3),)),
        ("/sessions/s", {"status": "running", "network_mode": "zerotrust"}, "zerotrust"),
        ("/sessions/s", {"state": "terminated", "network_mode": "zerotrust"}, "terminated"),
    ],
)  # fmt: skip
async def test_what_is_read(served: Any, path: str, body: Any, expected: Any) -> None:
    client, seen = _client(served, body)
    assert await CALLS[path](client) == expected
    assert seen[0].url.path == path
    assert seen[0].headers["Authorization"] == "Bearer unsb-pk-1"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/languages", {}),
        ("/languages", {"languages": "python"}),
        ("/languages", {"languages": [1]}),
        ("/languages", {"languages": [""]}),
        ("/shells", []),
        ("/cluster", CLUSTER | {"available": -1}),
        ("/cluster", CLUSTER | {"available": 1.5}),
        ("/cluster", CLUSTER | {"allocated": 1 << 60}),
        ("/cluster", CLUSTER | {"mode": ""}),
        ("/pools", {"pools": [3]}),
        ("/pools", {"pools": [{"id": "x"}]}),
        ("/sessions/s", {"status": "running"}),
    ],
)
async def test_what_makes_no_sense_is_refused(served: Any, path: str, body: Any) -> None:
    client, _ = _client(served, body)
    with pytest.raises(Rejected):
        await CALLS[path](client)


@pytest.mark.parametrize("path", CALLS)
async def test_a_key_that_is_refused(served: Any, path: str) -> None:
    client, _ = _client(served, {"error": "expired"}, 401)
    with pytest.raises(Unauthorized):
        await CALLS[path](client)


async def test_lists_and_names_are_cut(served: Any) -> None:
    client, _ = _client(served, {"languages": ["x" * 99] * 999, "pools": [POOL] * 999})
    found = await client.languages(KEY)
    assert (len(found.languages), len(found.languages[0])) == (200, 64)
    assert len(await client.pools(KEY)) == 200


def test_what_is_shown_is_one_line() -> None:
    assert shown("a\nb\x1b[2Jc", 5) == "a?b?["


async def test_the_embedded_platform_answers_all_of_it(embed: Any) -> None:
    world = await embed()
    client, key = world.clients.facilities, world.key()
    assert (await client.health()).problem == ""
    assert "python" in (await client.languages(key)).languages
    assert dict((await client.languages(key)).aliases)["py"] == "python"
    assert "bash" in (await client.shells(key)).shells
    assert (await client.cluster(key)).allocated == 0
    assert [pool.pool_id for pool in await client.pools(key)] == ["local"]
    made = await world.clients.platform.create_session(  # noqa: S604 - the name of a shell
        key, shell="bash", network_mode="zerotrust", ttl_seconds=60, key="k"
    )
    assert await client.network_mode(key, made.session_id) == "zerotrust"
    await world.clients.platform.delete_session(key, made.session_id)
    assert await client.network_mode(key, made.session_id) == "terminated"
