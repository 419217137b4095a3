"""One process, from its start to its end, or to the death that a plan has for it.

The client beside it behaves as clients do: it goes through its steps until each is acknowledged,
after a restart in another order, repeating under the same key what it has had an answer for.
Whatever is wrong is noted, and the process goes on.
"""

from __future__ import annotations

import random

from engine.app import RunRef
from engine.errors import KeyConflict
from engine.secrets import SecretsCodec
from engine.testing import CrashPlan, Harness
from persistence.store import SqlStore
from tests.verification.kills.checks import after_death, at_end
from tests.verification.kills.notes import NotedClock, Notes
from tests.verification.kills.purchase import Basket, Noted, Outside, Parcel, Purchase

SECRETS = SecretsCodec(b"k" * 32)
Step = tuple[str, str]
_STARTS: tuple[Step, ...] = (
    ("good", "start"),
    ("bad", "start"),
    ("stopped", "start"),
    ("lapsing", "start"),
)
_EVENTS: tuple[Step, ...] = (
    ("good", "note-1"),
    ("good", "note-2"),
    ("stopped", "approve"),
    ("good", "approve"),
    ("bad", "approve"),
)
_CANCEL: Step = ("stopped", "cancel")
_LATE: Step = ("lapsing", "note-late")


class Life:
    """A process that works on a store.

    Args:
        store: open, in whatever state it is.
        notes, clock: the world, which goes on whatever happens here.
        plan: where to die, if anywhere.
        chance: the order of the client's steps and its repetitions; None: the canonical order.
    """

    def __init__(
        self,
        store: SqlStore,
        notes: Notes,
        clock: NotedClock,
        plan: CrashPlan,
        chance: random.Random | None,
    ) -> None:
        self._store, self._notes, self._plan, self._chance = store, notes, plan, chance
        self._harness = Harness(
            [Purchase, Parcel],
            store=store,
            clock=clock,
            plan=plan,
            resources={Outside: Outside(notes, plan.pass_by)},
            secrets=SECRETS,
            new_id=notes.new_id,
        )
        self._app = self._harness.app

    async def live(self) -> None:
        """Look at what there is, go on with it, and leave nothing to do."""
        for problem in after_death(self._store, self._notes):
            self._bad(problem)
        await self._app.open()
        if len(self._store.workers.all()) > 1:
            self._bad("a dead worker still holds its lease")
        for number, step in enumerate(self._steps()):
            await self._repeat(0.2)
            await self._take(step)
            if number % 3 == 2 if self._chance is None else self._chance.random() < 0.3:
                await self._app.settle()
        await self._app.settle()
        await self._take(_CANCEL)
        await self._harness.until_idle()
        await self._take(_LATE)
        await self._repeat(0.8)
        for problem in await at_end(self._app, self._store, self._notes):
            self._bad(problem)
        await self._app.stop()

    def _bad(self, problem: str) -> None:
        self._notes.write("bad", problem)

    def _steps(self) -> list[Step]:
        starts, events = list(_STARTS), list(_EVENTS)
        if self._chance is not None:
            self._chance.shuffle(starts)
            self._chance.shuffle(events)
        return [*starts, *events]

    def _acks(self) -> dict[Step, tuple[str, str]]:
        """What was acknowledged: the run and the key of each step."""
        return {(w[1], w[2]): (w[3], w[4]) for w in self._notes.all("ack")}

    async def _take(self, step: Step) -> None:
        acks = self._acks()
        if step in acks:
            return
        order, kind = step
        if kind == "start":
            run_id, key = (await self._start(order)).run_id, order
        else:
            run_id = acks[order, "start"][0]
            key = await self._send(run_id, kind)
        self._notes.write("ack", order, kind, run_id, key)

    async def _start(self, order: str) -> RunRef:
        return await self._app.start(Purchase, Basket(arrives=order != "bad"), key=order)

    async def _send(self, run_id: str, kind: str) -> str:
        if kind == "cancel":
            return (await self._app.cancel(run_id)).key
        event = Noted(text=kind) if kind.startswith("note") else kind
        return (await self._app.send(run_id, event, key=kind)).key

    async def _repeat(self, likely: float) -> None:
        """Say again, under its key, something that was acknowledged; or something else."""
        acks = self._acks()
        if self._chance is None or not acks or self._chance.random() >= likely:
            return
        (order, kind), (run_id, key) = self._chance.choice(sorted(acks.items()))
        if kind == "start":
            again = await self._start(order)
            if (again.run_id, again.created) != (run_id, False):
                self._bad(f"{order} was started again: {again}")
        elif kind != "cancel":
            await self._say_again(run_id, kind, key)

    async def _say_again(self, run_id: str, kind: str, key: str) -> None:
        assert self._chance is not None
        if self._chance.random() < 0.3:
            try:
                await self._app.send(run_id, Noted(text="something else"), key=key)
            except KeyConflict:
                return
            self._bad(f"{kind} was accepted with another content under its key")
            return
        event = Noted(text=kind) if kind.startswith("note") else kind
        receipt = await self._app.send(run_id, event, key=key)
        if not receipt.duplicate:
            self._bad(f"{kind} was accepted again under its key")
