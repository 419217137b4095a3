"""What the machines leave in a database is clean by every oracle, whatever happened to them."""

from __future__ import annotations

from typing import Any

import pytest

from engine.verification.history import check_history
from machines.clients.ports import Currency, Unavailable
from machines.flows.f03_payment import Payment

DOWN = Unavailable("portal: refused")


async def examine(world: Any) -> Any:
    async with world.harness() as harness:
        return check_history(harness.app)


@pytest.mark.parametrize("currency", list(Currency))
async def test_a_payment_is_clean(make_world: Any, currency: Currency) -> None:
    world = make_world(currency)
    story = await world.run(Payment, world.purchase())
    report = await examine(world)
    assert story.status == "completed"
    assert (report.findings, report.notes) == ([], [])
    assert report.runs >= 3  # the payment, its spend and the confirmation
    assert report.transitions >= len(story.events)


async def test_a_payment_that_is_too_dear_is_clean(world: Any) -> None:
    story = await world.run(Payment, world.purchase(budget_cents=1))
    assert story.status == "failed"
    assert (await examine(world)).findings == []


async def test_a_payment_that_died_many_times_is_clean(world: Any) -> None:
    world.portal.fail("create_invoice", DOWN, after=True)
    await world.run(Payment, world.purchase(), crash_at=(5, 9, 14, 20, 27))
    assert world.crashes == 5
    report = await examine(world)
    assert report.errors == []
    assert report.notes == []
