"""A dispatcher over a whole platform in this process, and a clock that runs by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from engine.clock import minutes
from engine.ports import Query
from machines.agents.dispatcher import Dispatcher
from machines.clients.calls import HttpCalls
from machines.clients.ports import Currency
from machines.flows.money import POLL_MS

UNDER_WAY = ("running", "waiting", "pending")


class Bench:
    """One platform, one app, one dispatcher; whatever is due is moved meanwhile."""

    def __init__(self, embedded: Any, harness: Any) -> None:
        self.embedded = embedded
        self.harness = harness
        self.app = harness.app
        self.dispatcher = self.another()

    def another(self, **options: Any) -> Dispatcher:
        """A dispatcher over the same app, as after a restart of the program."""
        calls = HttpCalls("http://platform", self.embedded.clients.transport)
        portal = self.embedded.clients.portal
        return Dispatcher(self.app, portal, calls, **{"wait_seconds": 20.0, **options})

    async def pump(self) -> None:
        """Let time go by for as long as this is not cancelled, with a block at every poll."""
        while True:
            pays = await self.app.runs(Query(machine="Payment", statuses=UNDER_WAY, limit=1))
            await self.harness.until_idle(horizon_ms=POLL_MS if pays else minutes(5))
            if pays:
                for currency in Currency:
                    self.embedded.context.blocks.mine(currency.value)
            await asyncio.sleep(0.002)

    def revive(self) -> None:
        """A minute goes by in which nobody asks: the rate is fresh again."""
        self.embedded.clock.advance(60_000)


@pytest.fixture
async def bench(embed: Callable[..., Any]) -> AsyncIterator[Bench]:
    """The bench, with a wallet of every coin that is full."""
    embedded = await embed()
    async with embedded.harness() as harness:
        made = Bench(embedded, harness)
        task = asyncio.create_task(made.pump())
        yield made
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
