"""Services as time goes by: keys that end and come back, sandboxes that die unasked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from machines.platform.replies import Problem
from machines.platform.sandbox.backend import Handle
from machines.platform.service_upkeep import LOOK_EVERY_MS, ServiceUpkeep

MONTH_MS = 32 * 86_400_000


@pytest.fixture
def upkeep(api: Any) -> ServiceUpkeep:
    return ServiceUpkeep(api.context, api.backend, api.app.state.api.services)


async def made(api: Any, pair: tuple[str, str], name: str = "web", **body: Any) -> str:
    answer = await api.call(pair, "POST", "/services", {"name": name} | body)
    assert answer.json()["state"] == "running"
    return str(answer.json()["id"])


def seen(api: Any, pair: tuple[str, str], service_id: str) -> tuple[str, str | None]:
    row = api.app.state.api.services.find(pair[0], service_id)
    return row["state"], row["reason"]


def extend(api: Any, pair: tuple[str, str], until_ms: int) -> None:
    with api.database.transaction() as sql:
        sql.run(
            "UPDATE api_key SET expires_ms = :until WHERE public_key = :key",
            until=until_ms,
            key=pair[0],
        )


async def test_an_expired_key_freezes_its_services_and_an_extended_one_thaws_them(
    api: Any, upkeep: ServiceUpkeep
) -> None:
    pair, other = api.key(tier=8), api.key(tier=8, months=3)
    mine = await made(api, pair, unfreeze_on_demand=True)
    asleep = await made(api, pair, "asleep")
    theirs = await made(api, other, "theirs")
    api.app.state.api.services.freeze(pair[0], asleep)
    api.now_ms += MONTH_MS
    await asyncio.to_thread(upkeep.follow_keys)
    assert seen(api, pair, mine) == ("frozen", "key_expired")
    assert seen(api, other, theirs) == ("running", None)
    # A visitor does not wake it: its owner has to pay first.
    with pytest.raises(Problem) as refused:
        api.app.state.api.services.wake(mine)
    assert refused.value.fields["reason"] == "key_expired"
    await asyncio.to_thread(upkeep.follow_keys)
    assert seen(api, pair, mine) == ("frozen", "key_expired")
    extend(api, pair, api.now_ms + MONTH_MS)
    await asyncio.to_thread(upkeep.follow_keys)
    assert seen(api, pair, mine) == ("running", None)
    assert seen(api, pair, asleep) == ("frozen", None)


async def test_a_thaw_waits_for_a_slot(api: Any, upkeep: ServiceUpkeep) -> None:
    pair = api.key(tier=4)
    service_id = await made(api, pair)
    until_ms = api.now_ms + MONTH_MS
    extend(api, pair, api.now_ms)
    await asyncio.to_thread(upkeep.follow_keys)
    extend(api, pair, until_ms)
    other = await made(api, pair, "other")
    await asyncio.to_thread(upkeep.follow_keys)
    assert seen(api, pair, service_id) == ("frozen", "key_expired")
    await api.call(pair, "DELETE", f"/services/{other}")
    await asyncio.to_thread(upkeep.follow_keys)
    assert seen(api, pair, service_id) == ("running", None)


async def test_a_suspended_key_freezes_its_services(api: Any, upkeep: ServiceUpkeep) -> None:
    pair = api.key()
    service_id = await made(api, pair)
    with api.database.transaction() as sql:
        sql.run("UPDATE api_key SET status = 'suspended' WHERE public_key = :key", key=pair[0])
    await asyncio.to_thread(upkeep.follow_keys)
    assert seen(api, pair, service_id) == ("frozen", "key_suspended")


async def test_sandboxes_that_died_unasked_are_found(api: Any, upkeep: ServiceUpkeep) -> None:
    pair = api.key(tier=12)
    dead, dead_asleep, alive = [await made(api, pair, name) for name in ("a", "b", "c")]
    api.app.state.api.services.freeze(pair[0], dead_asleep)
    for service_id in (dead, dead_asleep):
        api.backend.destroy(Handle(service_id))
    assert await asyncio.to_thread(upkeep.reap) == 2
    assert seen(api, pair, dead) == ("failed", "sandbox_died")
    assert seen(api, pair, dead_asleep) == ("stopped", "sandbox_died")
    assert seen(api, pair, alive) == ("running", None)


async def test_a_deployment_that_was_lost_is_found(api: Any, upkeep: ServiceUpkeep) -> None:
    pair = api.key()
    service_id = await made(api, pair)
    with api.database.transaction() as sql:
        sql.run("UPDATE service SET state = 'redeploying'")
    assert await asyncio.to_thread(upkeep.reap) == 1
    assert seen(api, pair, service_id) == ("failed", "internal_error")


async def test_it_looks_every_few_seconds_only(api: Any, upkeep: ServiceUpkeep) -> None:
    pair = api.key()
    upkeep.tick()
    service_id = await made(api, pair)
    api.backend.destroy(Handle(service_id))
    await asyncio.to_thread(upkeep.tick)
    assert seen(api, pair, service_id) == ("running", None)
    api.now_ms += LOOK_EVERY_MS
    await asyncio.to_thread(upkeep.tick)
    assert seen(api, pair, service_id) == ("failed", "sandbox_died")
