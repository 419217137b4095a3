"""The corpus: defects of the engine (patched seams) and of machines (broken twins).

Each `Bug` names the properties by which it may be found.  A defect of the engine is planted while
`planted()` lasts; without it the same machine passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import msgspec

import engine.control
import engine.decide
import engine.runner
import persistence.effects
import persistence.inbox
import persistence.runs
import persistence.writes
from engine.codec import Codec
from engine.definition import Machine
from engine.desk import Desk, Job
from engine.effects import Call, Effect
from engine.journal import Entry
from engine.performing import Performer
from engine.ports import Delivery, InboxEvent, Write
from engine.run import Pending, Run
from engine.runner import Runner
from persistence.inbox import SqlInbox
from persistence.workers import SqlWorkers
from tests.verification.bugs import subjects

Patches = Callable[[], list[Any]]


@dataclass(frozen=True)
class Bug:
    """A defect, the machine that shows it, and its sound twin."""

    name: str
    broken: type[Machine[Any]]
    sound: type[Machine[Any]]
    rules: tuple[str, ...]
    known: tuple[type[Machine[Any]], ...] = ()
    patches: Patches = field(default=list)

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The defect is there meanwhile."""
        with ExitStack() as stack:
            for one in self.patches():
                stack.enter_context(one)
            yield


# -- defects of the engine ------------------------------------------------------------------------


def _no_dedupe() -> list[Any]:
    numbers, deliver = itertools.count(), SqlInbox.deliver

    def fresh(self: SqlInbox, deliveries: list[Delivery]) -> Any:
        renamed = [Delivery(d.run_id, f"{d.key}:{next(numbers)}", d.event, d.payload, d.at_ms)
                   for d in deliveries]  # fmt: skip
        return deliver(self, renamed)

    return [patch.object(SqlInbox, "deliver", fresh)]


def _guess_done() -> list[Any]:
    async def guess(self: Any, job: Job, effect: Effect, pending: Pending, error: Any) -> None:
        await self._apply_outcome(job, effect, subjects.Charged(receipt="?"), 0)

    return [patch.object(Performer, "_still_unknown", guess)]


def _not_counted() -> list[Any]:
    async def count(self: Any, job: Job, pending: Pending, *, doubt: bool) -> None:
        counted = msgspec.structs.replace(pending, attempts=pending.attempts + 1, open=True)
        job.run = job.run.but(effect=counted)
        job.fresh, job.doubt = True, doubt

    return [patch.object(Performer, "_count_attempt", count)]


def _no_reconcile() -> list[Any]:
    async def reconcile(self: Any, job: Job, effect: Effect, pending: Pending) -> None:
        await self._count_attempt(job, pending, doubt=True)

    return [patch.object(Performer, "_reconcile", reconcile)]


def _fresh_key() -> list[Any]:
    make = Performer._call

    def call(self: Performer, job: Job, pending: Pending) -> Call:
        made = make(self, job, pending)
        key = f"{made.key}{made.attempt}"
        return Call(made.run_id, key, made.attempt, made.now_ms, made.resources)

    return [patch.object(Performer, "_call", call)]


def _no_fence() -> list[Any]:
    owned, look = persistence.writes._still_owned, persistence.writes._LOOK

    def still(sql: Any, numbered: Any) -> Any:
        rows = sql.fetch(look, some=[write.before.run_id for _, write in numbered])
        fences = {row.run_id: row.fence for row in rows}
        return owned(sql, [
            (place, msgspec.structs.replace(write, fence=fences[write.before.run_id]))
            for place, write in numbered
        ])  # fmt: skip

    return [patch.object(persistence.writes, "_still_owned", still)]


def _writes_forgotten(chosen: Callable[[Write], bool]) -> Patches:
    """The store says that a write took effect, and it did not."""

    def plant() -> list[Any]:
        owned, apply = persistence.writes._still_owned, persistence.writes._apply
        del owned

        def partly(sql: Any, writes: Any, accept: Any) -> None:
            apply(sql, [write for write in writes if not chosen(write)], accept)

        return [patch.object(persistence.writes, "_apply", partly)]

    return plant


def _stale_timer() -> list[Any]:
    return [patch.object(engine.runner, "_timer_is_next",
                         lambda run, now_ms: run.deadline_ms is not None)]  # fmt: skip


def _child_told_twice() -> list[Any]:
    sends = Desk._sends

    def twice(self: Desk, job: Job, decision: Any, after: Run) -> Any:
        found, output = sends(self, job, decision, after)
        more = tuple(Delivery(one.run_id, f"echo:{one.key}", one.event, one.payload, one.at_ms)
                     for one in found if one.key.endswith(":ended"))  # fmt: skip
        return (*found, *more), output

    return [patch.object(Desk, "_sends", twice)]


def _child_never_tells() -> list[Any]:
    return [patch.object(Desk, "_sends", lambda self, job, decision, after: ((), None))]


def _child_not_accepted() -> list[Any]:
    apply = persistence.writes._apply

    def without(sql: Any, writes: Any, accept: Any) -> None:
        apply(sql, [msgspec.structs.replace(write, starts=()) for write in writes], accept)

    return [patch.object(persistence.writes, "_apply", without)]


def _no_compensation() -> list[Any]:
    return [patch.object(engine.decide, "_note_success", lambda place, run: run)]


def _oldest_first() -> list[Any]:
    arm = engine.decide.arm_next_undo

    def oldest(table: Any, run: Run, now_ms: int) -> Run:
        turned = arm(table, run.but(undo=run.undo[::-1]), now_ms)
        return turned.but(undo=run.undo)

    def undone(table: Any, run: Run, now_ms: int) -> Any:
        after = run.but(undo=run.undo[1:], effect=None)
        after = engine.control.close_further(table, after, run.seq + 1, now_ms)
        return engine.control._step(run, after, engine.control.UNDONE, now_ms)

    return [patch.object(engine.decide, "arm_next_undo", oldest),
            patch.object(engine.control, "arm_next_undo", oldest),
            patch.object(engine.control, "undone", undone)]  # fmt: skip


def _cancel_in_doubt() -> list[Any]:
    cancel = engine.control.cancel

    def careless(table: Any, run: Run, now_ms: int) -> Any:
        effect = run.effect and msgspec.structs.replace(run.effect, open=False)
        return cancel(table, run.but(effect=effect), now_ms)

    return [patch.object(engine.control, "cancel", careless)]


def _rejection_forgets() -> list[Any]:
    async def reject(self: Any, job: Job, event: InboxEvent, reason: str) -> None:
        consumed = engine.runner.Consumed(number=event.number, status="rejected", reason=reason)
        await self._desk.write(job, job.run.but(effect=None), consumed=(consumed,))

    return [patch.object(Runner, "_reject", reject)]


def _nobody_wakes() -> list[Any]:
    return [patch.object(persistence.inbox, "wake", lambda sql, runs: None)]


def _late_events_stay() -> list[Any]:
    return [patch.object(persistence.writes, "refuse_rest", lambda sql, ended: None)]


def _nobody_reaps() -> list[Any]:
    return [patch.object(SqlWorkers, "reap", lambda self, now_ms, dead: 0)]


def _no_timer() -> list[Any]:
    return [patch.object(engine.decide, "_deadline", lambda place, context, now_ms: None)]


def _stale_context() -> list[Any]:
    seal = Codec.seal_entry

    def stale(self: Codec, entry: Entry, worker: str, *, context: bytes) -> Entry:
        return seal(self, entry, worker, context=context + b" ")

    return [patch.object(Codec, "seal_entry", stale)]


def _event_stays() -> list[Any]:
    return [patch.object(persistence.writes, "consume", lambda sql, writes: None)]


def _effect_never_closed() -> list[Any]:
    settle = persistence.writes.settle_effects

    def keeping(sql: Any, writes: Any) -> None:
        settle(sql, [write for write in writes if write.outcome is None])

    return [patch.object(persistence.writes, "settle_effects", keeping)]


def _seq_twice() -> list[Any]:
    columns = persistence.writes.mutable_columns

    def ahead(run: Run) -> dict[str, Any]:
        found = columns(run)
        return {**found, "seq": found["seq"] + (run.status == "completed")}

    return [patch.object(persistence.writes, "mutable_columns", ahead)]


SHOP, TRIP, WAITER, PARENT = subjects.Shop, subjects.Trip, subjects.Waiter, subjects.Parent
KID = (WAITER,)
STORAGE = ("storage: stranded", "storage: journal", "storage: ended", "storage: effect",
           "storage: inbox", "storage: owner")  # fmt: skip
STUCK = ("stuck", *STORAGE)
LOST = ("run lost", "endless move", "the engine raised", "call without record", *STUCK)

BUGS: tuple[Bug, ...] = (
    Bug("no dedupe", SHOP, SHOP, ("duplicate accepted",), patches=_no_dedupe),
    Bug("unknown counts as done", TRIP, TRIP, ("effect never done",), patches=_guess_done),
    Bug("attempt not recorded", TRIP, TRIP, ("call without record",), patches=_not_counted),
    Bug("performed again, no reconcile", TRIP, TRIP, ("effect performed twice",),
        patches=_no_reconcile),
    Bug("fresh key for each attempt", TRIP, TRIP, ("call without record",), patches=_fresh_key),
    Bug("fence ignored", TRIP, TRIP, ("fence",), patches=_no_fence),
    Bug("completion lost", TRIP, TRIP, LOST,
        patches=_writes_forgotten(lambda write: write.outcome == "done")),
    Bug("release lost", TRIP, TRIP, LOST, patches=_writes_forgotten(
        lambda write: write.release and write.entry is None)),
    Bug("retry lost", TRIP, TRIP, LOST, patches=_writes_forgotten(
        lambda write: write.entry is None and write.after.effect is not None
        and write.after.effect.last_error is not None)),
    Bug("stale timer accepted", SHOP, SHOP, ("timer too early",), patches=_stale_timer),
    Bug("timer never armed", WAITER, WAITER, STUCK, patches=_no_timer),
    Bug("parent told twice", PARENT, PARENT, ("child told twice",), KID, _child_told_twice),
    Bug("parent never told", PARENT, PARENT, STUCK, KID, _child_never_tells),
    Bug("child not in the transaction", PARENT, PARENT, STUCK, KID, _child_not_accepted),
    Bug("compensation skipped", TRIP, TRIP, ("compensation skipped",), patches=_no_compensation),
    Bug("compensations oldest first", TRIP, TRIP, ("compensation order",), patches=_oldest_first),
    Bug("cancel ignores doubt", TRIP, TRIP, ("cancel lost an effect",), patches=_cancel_in_doubt),
    Bug("rejection drops the effect", SHOP, SHOP, ("rejection changed the run",),
        patches=_rejection_forgets),
    Bug("accepted event wakes nobody", SHOP, SHOP, STUCK, patches=_nobody_wakes),
    Bug("late events stay in ended runs", TRIP, TRIP, ("storage: ended",),
        patches=_late_events_stay),
    Bug("dead workers keep their runs", TRIP, TRIP, STUCK, patches=_nobody_reaps),
    Bug("journal has another context", WAITER, WAITER, ("storage: journal",),
        patches=_stale_context),
    Bug("event applied, not consumed", SHOP, SHOP, ("endless move", *STORAGE),
        patches=_event_stays),
    Bug("effect never closed", TRIP, TRIP, LOST, patches=_effect_never_closed),
    Bug("sequence runs ahead of the journal", WAITER, WAITER, ("storage: journal",),
        patches=_seq_twice),
    Bug("guard off by one", subjects.till(slack=1), subjects.till(), ("quarantined",)),
    Bug("sign error", subjects.till(sign=True), subjects.till(), ("quarantined",)),
    Bug("rounding up", subjects.till(rounding=True), subjects.till(), ("quarantined",)),
    Bug("postcondition false in one order", subjects.pair(order_matters=True),
        subjects.pair(order_matters=False), ("quarantined",)),
    Bug("way out never opens", subjects.pendulum(ends=False), subjects.pendulum(ends=True),
        ("stuck",)),
    Bug("outcome not handled", subjects.scale(unhandled=True), subjects.scale(),
        ("quarantined",)),
    Bug("action divides by zero", subjects.scale(division=True), subjects.scale(),
        ("quarantined",)),
    Bug("giving up is refused", subjects.scale(stubborn=True), subjects.scale(),
        ("quarantined",)),
    Bug("one layer too deep", subjects.ladder(slack=1), subjects.ladder(slack=0),
        ("quarantined",)),
    Bug("final state no guard lets in", subjects.lamp(dead_edge=True),
        subjects.lamp(dead_edge=False), ("coverage",)),
)  # fmt: skip
