"""The stage of a schedule: workers, clients, the clock and the outside, around one shared store.

::

    w-1, w-2 ...    beat when time has gone by; take what is due, one run at a time, and move it
    heart of w-1    beats while w-1 has a run in hand, as the background task of a program does
    client 1, 2     accept the same runs under the same keys; send events, the second one again
                    what the first has sent
    client 3        sometimes: asks a run to stop, or to pause and to go on
    children        what stand-ins of child machines show and how they end
    clock           goes on to the next due moment, or as far as a lease lasts
    outside         answers calls by chance (`engine.verification.answering`)

A worker may **die** anywhere: its process is gone, what it did not commit never was, and another
one starts in its place.  Or it **freezes** anywhere, until its lease is over and others have taken
its run, and then goes on as if nothing had happened: a zombie.

One thing is assumed, because no engine can do without it: a request reaches the outside within
`SAFETY_MS` of the moment at which the engine decided to make it.  A worker does not freeze, and the
clock does not pass that limit, while a request is under way; its answer may be late for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from engine.app import App
from engine.committer import DirectCommitter
from engine.definition import Machine
from engine.desk import Job
from engine.errors import LostOwnership
from engine.events import Context
from engine.ports import Store, WorkerIdentity
from engine.secrets import SecretsCodec
from engine.table import Table
from engine.testing.clock import ManualClock
from engine.testing.faults import Crash
from engine.verification.answering import Answers, Ledger
from engine.verification.clients import Clients
from engine.verification.environment import Environment
from engine.verification.options import Payloads, Setting
from engine.verification.oracles import Breach
from engine.verification.result import Scope
from engine.verification.scheduler import BEFORE, Actor, Chance, Scheduler, SwitchIo
from engine.verification.snapshot import Snapshots
from engine.verification.watched import Peek, Watch, Watched, Worker
from engine.worker import LEASE_MS, SAFETY_MS
from engine.world import World

STEPS = (20, 80)
HEAL_STEPS = 1_500
HEAL_MOVES = 60
TICKS = 6
TICK_WITHIN = 16
FAULT_WITHIN = 14
THAW_WITHIN = 20


@dataclass(slots=True)
class Frost:
    """A frozen worker, the run it held, and how long others have had that run since."""

    worker: Worker
    run_id: str
    fence: int
    steps: int = 0


class Stage:
    """Everything a schedule needs, made once and set back for each.

    Args:
        table: whose runs are accepted.
        machines: that one and those that it may start as children, or their stand-ins.
        store: in memory; what is in it is lost.
        workers: how many move runs at the same time.
        runs: how many runs are accepted.
        contexts: first contexts; one is picked for each run.
        children: the real tables of the machines for which stand-ins run.
    """

    def __init__(
        self,
        table: Table,
        machines: Sequence[type[Machine[Any]] | Table],
        store: Store,
        *,
        workers: int,
        runs: int,
        contexts: Sequence[Context],
        environment: Environment | None,
        children: Mapping[str, Table],
    ) -> None:
        self.table = table
        self.store = store
        self.peek = Peek(store)
        self.clock = ManualClock(start_ms=0)
        self.watch = Watch(self.peek, self.clock)
        self.ledger = Ledger(self.watch, lambda: self.codec)
        self._machines = machines
        self._runs = runs
        self._contexts = contexts
        self._snapshots = Snapshots(store)
        self._workers = [Worker(WorkerIdentity(f"w-{n}", f"host-{n}", n, ""))
                         for n in range(1, 2 * workers + 1)]  # fmt: skip
        self._spare = workers
        self._ids = 0
        for worker in self._workers:
            worker.app = self._app(worker)
            self._spy(worker)
        self.client = self._app(None)
        self.codec = self.client.codec
        bench: Any = self  # of a bench it uses codec, clock and store alone
        setting = Setting(table=table, scope=Scope(), environment=environment,
                          left_out=frozenset(), children=children)  # fmt: skip
        self.payloads = self.ledger.payloads = Payloads(bench, setting)
        self.clients = Clients(self.client, self.watch, self.payloads, table)
        for worker in self._workers:
            _alone(worker.app.open())
        for worker in self._workers[workers:]:
            store.workers.retire(worker.name)
        self._empty = self._snapshots.save()

    def _app(self, worker: Worker | None) -> App:
        store: Any = lambda store: Watched(self.watch, worker, store)  # noqa: E731
        world = World(clock=self.clock, store=store, io=SwitchIo(lambda: self.watch.said),
                      committer=DirectCommitter, new_id=self._new_id)  # fmt: skip
        if worker is not None:
            world = World(clock=self.clock, store=store, io=world.io, committer=DirectCommitter,
                          new_id=self._new_id, calls=Answers(self.ledger, worker, self.clock),
                          worker=lambda: worker.identity)  # fmt: skip
        return App(self._machines, self.store, secrets=SecretsCodec(bytes(32)), world=world,
                   work=False)  # fmt: skip

    def _new_id(self, now_ms: int) -> str:
        self._ids += 1
        return f"r{self._ids:025d}"

    def _spy(self, worker: Worker) -> None:
        performer: Any = worker.app._runner._performer
        step = performer.step

        async def stepping(job: Job) -> None:
            worker.job = job
            await step(job)

        performer.step = stepping

    # -- one schedule ---------------------------------------------------------------------------

    def play(self, chance: Chance) -> list[Breach]:
        """One schedule from the beginning to rest; what was seen to be wrong on the way."""
        self._begin(chance)
        try:
            self.scheduler.run(STEPS[0] + chance.pick(STEPS[1] - STEPS[0]))
            self._heal()
        except _Endless:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            self.watch.breach("the engine raised", f"{type(error).__name__}: {error}")
        finally:
            self.scheduler.close()
        return self.watch.breaches

    def _begin(self, chance: Chance) -> None:
        self._snapshots.load(self._empty)
        self.clock.advance(-self.clock.now_ms())
        self.scheduler = Scheduler(chance, self._stepped)
        self.chance = chance
        self.watch.begin(self.scheduler)
        self.ledger.begin(chance)
        self._ids = self._held = 0
        self._frost: Frost | None = None
        pick = chance.pick
        self._fault = ("none", "frost", "frost", "death")[pick(4)]
        self._fault_at = 1 + pick(FAULT_WITHIN)
        self._thaw_after = pick(THAW_WITHIN)
        self._ticks_left, self._tick_at = TICKS, pick(TICK_WITHIN)
        chosen = [self._contexts[pick(len(self._contexts))] for _ in range(self._runs)]
        self.clients.begin(chance, self.scheduler, chosen)
        self._cast()

    def _cast(self) -> None:
        self._playing: list[Worker] = []
        for worker in self._workers[: self._spare]:
            self._enter(worker, LEASE_MS)
        self.clients.enter(self.ledger)
        self._clock = self.scheduler.add(Actor("clock", self._tick, self._may_tick))

    def _enter(self, worker: Worker, lease_ms: int) -> None:
        worker.begin(self.clock.now_ms(), lease_ms)
        worker.work = self._works(worker)
        worker.actor = self.scheduler.spawn(
            worker.name, worker.work, lambda: not worker.idle or self._may_find(worker)
        )
        worker.heart = self.scheduler.spawn(
            f"heart of {worker.name}", self._beats(worker),
            lambda: not worker.actor.busy and (worker.beating or self._should_beat(worker)),
        )  # fmt: skip
        self._playing.append(worker)
        worker.work.send(None)

    def _may_find(self, worker: Worker) -> bool:
        if worker.beating or worker.seen == self.watch.version:
            return False
        return self.peek.due(self.clock.now_ms())

    def _should_beat(self, worker: Worker) -> bool:
        return worker.holding is not None and worker.beaten_ms != self.clock.now_ms()

    async def _works(self, worker: Worker) -> None:
        lease: Any = worker.app._lease
        while True:
            worker.idle = True
            await BEFORE
            worker.idle, worker.seen = False, self.watch.version
            if worker.beaten_ms != self.clock.now_ms():
                await self._beat(worker)
            try:
                await worker.app.settle()
                if not lease.safe:
                    worker.seen = -1  # it stopped with work left, and looks again after a beat
            except LostOwnership:
                worker.seen = -1
                self._lost(worker)
            worker.holding = None

    def _lost(self, worker: Worker) -> None:
        self.watch.figures.lost += 1
        if not worker.lapsed:
            self.watch.breach(
                "run lost",
                f"{worker.name} was told that another worker has run {worker.holding}, and its "
                "lease was never over",
            )

    async def _beats(self, worker: Worker) -> None:
        while True:
            worker.beating = True
            await self._beat(worker)
            worker.beating = False
            await BEFORE

    async def _beat(self, worker: Worker) -> None:
        now_ms = self.clock.now_ms()
        await worker.app.beat()
        worker.beaten_ms = now_ms

    # -- time -----------------------------------------------------------------------------------

    def _may_tick(self) -> bool:
        if self._ticks_left <= 0 or not self.clients.roots:
            return False
        if self.scheduler.switches < self._tick_at and self._frost is None:
            others = (actor for actor in self.scheduler.actors if actor is not self._clock)
            if any(actor.ready for actor in others):
                return False
        return bool(self._moments())

    def _moments(self) -> list[int]:
        now_ms = self.clock.now_ms()
        flights = [worker.flight_ms for worker in self._playing if worker.flight_ms is not None]
        last_ms = min(flights) + SAFETY_MS if flights else None
        found = [now_ms + LEASE_MS]
        next_ms = None if self._frost else self.peek.next_ms(now_ms)
        if next_ms is not None:
            found.insert(0, next_ms)
        return [at_ms for at_ms in found if last_ms is None or at_ms < last_ms]

    def _tick(self) -> str:
        self._ticks_left -= 1
        self._tick_at = self.scheduler.switches + self.chance.pick(TICK_WITHIN)
        moments = self._moments()
        return self._go_to(moments[self.chance.pick(len(moments))])

    def _go_to(self, at_ms: int) -> str:
        self.clock.advance_to(at_ms)
        self.watch.version += 1
        for worker in self._playing:
            worker.lapsed = worker.lapsed or worker.lease_ms <= at_ms
        return f"it is {at_ms} ms"

    # -- death and frost ------------------------------------------------------------------------

    def _stepped(self, actor: Actor) -> None:
        if self.ledger.healing:
            return
        if self._frost is not None:
            self._thaw_in_time(self._frost)
        elif self._fault != "none":
            worker = next((one for one in self._playing if one.actor is actor), None)
            if worker is not None and worker.holding is not None:
                self._held += 1
                if self._held >= self._fault_at:
                    self._befall(worker)

    def _befall(self, worker: Worker) -> None:
        if self._fault == "death":
            self._fault = "none"
            self._kill(worker)
        elif worker.flight_ms is None:
            self._fault = "none"
            self._freeze(worker)

    def _kill(self, worker: Worker) -> None:
        self.watch.figures.deaths += 1
        if self.chance.pick(2):
            self.watch.dead.add(worker.name)  # on a host where somebody can see it
        with suppress(Crash):
            worker.work.throw(Crash("killed"))
        worker.actor.done = worker.heart.done = True
        worker.holding = worker.flight_ms = None
        self.watch.version += 1
        self.scheduler.trace.append((worker.name, "dies"))
        self._enter(self._workers[self._workers.index(worker) + self._spare], 0)

    def _freeze(self, worker: Worker) -> None:
        self.watch.figures.zombies += 1
        worker.actor.frozen = worker.heart.frozen = True
        self._ticks_left = max(self._ticks_left, 2)
        run_id = worker.holding or ""
        held = self.peek.standing(run_id)
        self._frost = Frost(worker, run_id, held.fence if held else 0)
        self.scheduler.trace.append((worker.name, "freezes"))

    def _thaw_in_time(self, frost: Frost) -> None:
        now = self.peek.standing(frost.run_id)
        if now is not None and now.fence > frost.fence:
            frost.steps += 1
            if frost.steps > self._thaw_after:
                self._thaw(frost)

    def _thaw(self, frost: Frost) -> None:
        frost.worker.actor.frozen = frost.worker.heart.frozen = False
        self._frost = None
        self.scheduler.trace.append((frost.worker.name, "wakes"))

    def _heal(self) -> None:
        """No more faults: everybody goes on, in turn, and time with them, until all is at rest."""
        self.ledger.healing = True
        self._settle()
        if self._frost is not None:
            self._go_to(self.clock.now_ms() + LEASE_MS)
            self._settle()
            self._thaw(self._frost)
            self._settle()
        for _ in range(HEAL_MOVES):
            next_ms = self.peek.next_ms(self.clock.now_ms())
            if next_ms is None:
                break
            self._go_to(next_ms)
            self._settle()
        else:
            self.watch.figures.unfinished += 1
        if self.peek.owners():  # what a dead worker holds that is not due is freed all the same
            self._go_to(self.clock.now_ms() + LEASE_MS)
            for worker in self._playing:
                if not worker.actor.done:
                    _alone(worker.app.beat())
            self._settle()

    def _settle(self) -> None:
        if not self.scheduler.run_fair(HEAL_STEPS, but=self._clock):
            self.watch.breach("endless", f"{HEAL_STEPS} steps without faults, and no rest")
            raise _Endless


class _Endless(Exception):
    """No rest; the breach is noted already."""


def _alone(work: Any) -> None:
    """Run a coroutine of the engine through all its switches, with nobody else moving."""
    with suppress(StopIteration):
        while True:
            work.send(None)
