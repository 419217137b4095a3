"""A crash before and after every transaction of the store and every call of an effect.

A story is told once without a crash, to count its boundaries; then once for each of them, with the
process dying there, the store reopened from its file, and another process going on after the dead
one's lease.  The platform is the real one, in this process; only its sandboxes are fakes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from engine.journal import fold, replay
from engine.run import TERMINAL
from engine.secrets import Secret, SecretsCodec
from engine.testing import Crash, CrashPlan, Harness, ManualClock
from engine.worker import LEASE_MS
from machines.app import MACHINES, resources_of
from machines.clients import clients_for
from machines.clients.inprocess import InProcess
from machines.clients.ports import Currency
from machines.flows import evidence
from machines.flows.f03_payment import Payment
from machines.flows.f13_inception import Inception
from machines.flows.layer import Layer
from machines.flows.purchase import Purchase
from machines.platform.app import build_app
from machines.platform.context import PlatformConfig, open_money
from machines.platform.database import open_platform_database
from machines.platform.ledger.report import ledger_report
from machines.platform.sandbox.backend import Handle, Result
from machines.platform.sandbox.fake import FakeBackend
from persistence import open_store

TURNS_MAX = 400
EVIDENCE = json.dumps(evidence.gather())


class Sandboxes(FakeBackend):
    """Fake sandboxes that answer a layer's greeting as a real one does."""

    def cell(self, handle: Handle, language: str, code: str, **limits: Any) -> Result:
        """The greeting's line, then evidence; anything else as the fake does."""
        if not code.startswith("echo 'turtle "):
            return super().cell(handle, language, code, **limits)
        line = code.partition("'")[2].partition("'")[0]
        self.stats(handle)  # raises for a sandbox that is gone
        return Result(0, f"{line}\n{EVIDENCE}\n".encode(), b"")

    def live(self) -> list[str]:
        """The sandboxes that nobody has destroyed."""
        return sorted(self._sandboxes)


class Town:
    """One platform and one store file that outlive any number of our processes."""

    def __init__(self, place: Path, currency: Currency) -> None:
        place.mkdir(parents=True)
        self.clock = ManualClock()
        self.currency = currency
        self.url = f"sqlite:///{place / 'runs.db'}"
        self.secrets = SecretsCodec(b"s" * 32)
        self.database = open_platform_database(None)
        few = PlatformConfig(payer_outputs=4, shop_outputs=1, stranger_outputs=1)
        self.money = open_money(self.database, SecretsCodec(b"k" * 32), self.clock.now_ms, few)
        self.backend = Sandboxes()
        self.web = build_app(self.money, self.backend)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """While the platform runs."""
        async with self.web.router.lifespan_context(self.web):
            yield
        self.database.close()

    async def live(self, plan: CrashPlan, machine: Any, context: Any) -> bool:
        """One life of our process: start or go on; True when the run has ended."""
        clients = clients_for(
            "http://platform.test",
            rpc_username="turtles",
            rpc_password=Secret("turtles"),
            clock_ms=self.clock.now_ms,
            network=InProcess(self.web),
        )
        store = open_store(self.url, synchronous="NORMAL")
        try:
            async with Harness(
                MACHINES,
                store=store,
                resources=resources_of(clients),
                clock=self.clock,
                plan=plan,
                secrets=self.secrets,
            ) as harness:
                run = await harness.app.start(machine, context, key="story")
                for _ in range(TURNS_MAX):
                    await harness.app.settle()
                    if (await harness.app.get(run.run_id)).status in TERMINAL:
                        return True
                    self.money.blocks.mine(self.currency.value)
                    self.clock.advance(context.poll_ms)
                    await harness.app.beat()
                raise AssertionError(f"not ended after {TURNS_MAX} turns")
        finally:
            store.close()
            await clients.aclose()

    async def tell(self, plan: CrashPlan, machine: Any, context: Any) -> None:
        """Live until the run has ended, dying where the plan says so."""
        with contextlib.suppress(Crash):
            if await self.live(plan, machine, context):
                return
        self.clock.advance(LEASE_MS + 1)
        assert await self.live(CrashPlan(), machine, context)

    async def check(self, layers: int) -> None:
        """What must hold whatever died where."""
        ledger = ledger_report(self.database)
        assert ledger["consistent"]
        assert [i["confirmed_spends"] for i in ledger["invoices"]] == [1] * layers
        assert [len(i["transactions"]) for i in ledger["invoices"]] == [1] * layers
        store = open_store(self.url)
        try:
            assert store.inspector.findings() == []
            async with Harness(MACHINES, store=store, secrets=self.secrets) as harness:
                for stored in await harness.app.runs():
                    run = await harness.app.get(stored.run.run_id)
                    entries = await harness.app.journal(run.run_id)
                    folded = fold(entries)
                    assert (folded.seq, folded.state) == (run.seq, run.state)
                    assert folded.context == run.context
                    assert replay(harness.app.tables[run.machine], entries) == []
                    assert run.status == "completed", (run.machine, run.state, run.last_error)
        finally:
            store.close()
        assert self.backend.live() == []


Story = tuple[Any, Callable[[Currency], Any], int]
STORIES: dict[str, Story] = {
    "payment": (
        Payment,
        lambda currency: Purchase(
            tier=1, months=1, currency=currency, budget_cents=700, poll_ms=5_000
        ),
        1,
    ),
    "inception": (
        Inception,
        lambda currency: Layer(
            depth=1, max_depth=2, currency=currency.value, budget_cents=1400, poll_ms=5_000
        ),
        2,
    ),
}


async def survive_every(
    name: str, place: Path, chosen: Callable[[int], bool], currency: Currency = Currency.XMR
) -> str:
    """Crash at the chosen boundaries, one life after another; what was done, as a sentence."""
    machine, context, layers = STORIES[name]
    first, town = CrashPlan(), Town(place / "first", currency)
    async with town.open():
        await town.tell(first, machine, context(currency))
        await town.check(layers)
    numbers = [one.number for one in first.passed if chosen(one.number)]
    for number in numbers:
        plan, town = CrashPlan(at=number), Town(place / str(number), currency)
        async with town.open():
            await town.tell(plan, machine, context(currency))
            assert plan.dead, f"boundary {number} was not reached again"
            await town.check(layers)
        shutil.rmtree(place / str(number))
    shown = ", ".join(str(number) for number in numbers[:3])
    return (
        f"{name}: {len(first.passed)} boundaries, {len(numbers)} crashes "
        f"({shown}, ...), all survived"
    )


@pytest.mark.acceptance
@pytest.mark.parametrize("shard", range(4))
async def test_payment_survives_a_crash_at_every_boundary(
    shard: int, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    figure(await survive_every("payment", tmp_path, lambda number: number % 4 == shard))


@pytest.mark.acceptance
async def test_inception_survives_a_crash_at_every_ninth_boundary(
    tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """The quick form; the next test is the whole one."""
    figure(await survive_every("inception", tmp_path, lambda number: number % 9 == 0))


@pytest.mark.acceptance
@pytest.mark.timeout(900)
@pytest.mark.parametrize("shard", range(8))
async def test_inception_survives_a_crash_at_every_boundary(
    shard: int, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    figure(await survive_every("inception", tmp_path, lambda number: number % 8 == shard))
