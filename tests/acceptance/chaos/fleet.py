"""The fleet under test: its store, its workers, each behind a proxy of its own, and the load.

Workers that die are replaced at once, as a supervisor would.  The load is steady: so many parcels
a second, whatever state the database is in; a start or an event that fails is given again under
the same key until the store says that it has it.  What was accepted may not be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from engine import App
from engine.errors import StoreError
from persistence.store import SqlStore, open_store
from tests.acceptance.chaos.machines import TICKS, Goods, Parcel
from tests.acceptance.chaos.proxy import Proxy
from tests.postgres_server import PostgresServer

ROOT = Path(__file__).resolve().parents[3]
READY_SECONDS = 60.0


@dataclass
class Hand:
    """One worker: its process, and how it reaches the store."""

    number: str
    url: str
    proxy: Proxy | None
    process: asyncio.subprocess.Process | None = None
    keeper: asyncio.Task[None] | None = None
    stopped: list[tuple[int, int]] = field(default_factory=list)
    """When it was stopped by SIGSTOP, from and to, ns since boot."""
    deaths: int = 0


class Fleet:
    """Workers over one store.

    Args:
        folder: for the ledger, the workers' errors, and the file of SQLite.
        postgres: the server; None for SQLite.
        lease_seconds: of every worker.
    """

    def __init__(self, folder: Path, postgres: PostgresServer | None, lease_seconds: float) -> None:
        self.folder = folder
        self.postgres = postgres
        self.lease_seconds = lease_seconds
        self.ledger = folder / "ledger"
        self.url = postgres.create_database() if postgres else f"sqlite:///{folder}/runs.db"
        self.store: SqlStore = open_store(self.url)
        self.hands: list[Hand] = []
        self._ending = False

    async def start(self, workers: int) -> None:
        """Start the workers and wait until each is ready."""
        for number in range(1, workers + 1):
            proxy, url = None, self.url
            if self.postgres is not None:
                proxy = Proxy(self.postgres.port)
                port = await proxy.listen()
                url = sa.make_url(self.url).set(port=port).render_as_string(hide_password=False)
            hand = Hand(str(number), url, proxy)
            self.hands.append(hand)
        await asyncio.gather(*(self._launch(hand) for hand in self.hands))
        for hand in self.hands:
            hand.keeper = asyncio.create_task(self._keep(hand))

    async def stop(self) -> list[str]:
        """Stop every worker as a supervisor would; what went wrong."""
        self._ending = True
        problems = []
        for hand in self.hands:
            assert hand.process is not None
            with contextlib.suppress(ProcessLookupError):
                hand.process.send_signal(signal.SIGTERM)
        for hand in self.hands:
            assert hand.process is not None and hand.keeper is not None
            try:
                await asyncio.wait_for(hand.process.wait(), 30)
            except TimeoutError:
                hand.process.kill()
                problems.append(f"worker {hand.number} did not stop within 30 s")
            await hand.keeper
            if hand.process.returncode != 0:
                problems.append(f"worker {hand.number} ended with {hand.process.returncode}")
            if hand.proxy is not None:
                await hand.proxy.close()
        return problems

    async def _keep(self, hand: Hand) -> None:
        while True:
            assert hand.process is not None
            await hand.process.wait()
            if self._ending:
                return
            hand.deaths += 1
            await self._launch(hand)

    async def _launch(self, hand: Hand) -> None:
        """Start the worker's process, again if it ends before it is ready."""
        until = time.monotonic() + READY_SECONDS
        while not self._ending:
            with (self.folder / f"worker-{hand.number}.err").open("ab") as errors:
                hand.process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "tests.acceptance.chaos.worker", hand.url,
                    str(self.ledger), hand.number, str(self.lease_seconds),
                    stdout=subprocess.PIPE, stderr=errors, cwd=ROOT,
                )  # fmt: skip
            assert hand.process.stdout is not None
            if await hand.process.stdout.readline() == b"ready\n":
                return
            await hand.process.wait()
            if time.monotonic() > until:
                raise RuntimeError(f"worker {hand.number} does not start; see {self.folder}")
            await asyncio.sleep(0.2)

    def signal(self, hand: Hand, number: signal.Signals) -> None:
        """Send a worker a signal."""
        assert hand.process is not None
        with contextlib.suppress(ProcessLookupError):
            hand.process.send_signal(number)

    def set_clock(self, hand: Hand, seconds: int) -> None:
        """Step a worker's wall clock."""
        Path(f"{self.ledger}.clock.{hand.number}").write_text(str(seconds))
        self.signal(hand, signal.SIGUSR1)

    def errors(self) -> list[str]:
        """The ends of what the workers said on stderr, for a failed run."""
        files = sorted(self.folder.glob("worker-*.err"))
        return [f"{file.name}: {file.read_text(errors='replace')[-1500:]}" for file in files]

    def traces(self) -> list[str]:
        """Python tracebacks among them: a worker never ends with one."""
        found = []
        for file in sorted(self.folder.glob("worker-*.err")):
            text = file.read_text(errors="replace")
            if "worker.job_failed" in text:
                at = text.index("worker.job_failed")
                found.append(f"{file.name}: {text[max(at - 200, 0) : at + 1500]}")
        return found


class Load:
    """Steady work: `rate` parcels a second, each with its three ticks."""

    def __init__(self, app: App, rate: float, chance: random.Random) -> None:
        self._app = app
        self._rate = rate
        self._chance = chance
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending = False
        self.accepted: dict[int, str] = {}
        self.repeated = 0
        """Calls that had to be made again."""

    async def run(self) -> None:
        """Give parcels until `end`; returns when every one of them is accepted."""
        began, number = time.monotonic(), 0
        while not self._ending:
            number += 1
            task = asyncio.create_task(self._parcel(number))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(max(began + number / self._rate - time.monotonic(), 0))
        while self._tasks:
            await asyncio.wait(self._tasks)

    def end(self) -> None:
        """Give no more."""
        self._ending = True

    async def _parcel(self, number: int) -> None:
        while True:
            with contextlib.suppress(StoreError):
                run = await self._app.start(Parcel, Goods(number=number), key=f"p{number}")
                break
            await self._again()
        self.accepted[number] = run.run_id
        for tick in range(TICKS):
            while True:
                with contextlib.suppress(StoreError):
                    await self._app.send(run.run_id, "tick", key=f"t{tick}")
                    break
                await self._again()

    async def _again(self) -> None:
        self.repeated += 1
        await asyncio.sleep(self._chance.uniform(0.05, 0.4))
