"""Planted defects that show only when workers, clients or a zombie get in each other's way.

Each is sound as long as one worker at a time looks at the store; most are what is left when one
line of a protocol is forgotten.  They are patched into seams of the engine and of persistence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import msgspec
import sqlalchemy as sa

import engine.app
import persistence.inbox
import persistence.runs
import persistence.workers
import persistence.writes
from engine.app import App
from engine.definition import Machine
from engine.effects import Effect
from engine.performing import Performer
from engine.ports import Delivery, Receipt, Write
from engine.run import Pending
from engine.worker import LEASE_MS, Lease, Worker
from persistence import tables
from tests.verification.bugs import subjects

_r = tables.run.c


@dataclass(frozen=True)
class ScheduleBug:
    """A defect, a machine that is sound without it, and the properties it may break."""

    name: str
    machine: type[Machine[Any]]
    rules: tuple[str, ...]
    patches: Callable[[], list[Any]]
    known: tuple[type[Machine[Any]], ...] = ()
    workers: int = 2

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The defect is there meanwhile."""
        with ExitStack() as stack:
            for one in self.patches():
                stack.enter_context(one)
            yield


def _moving(*conditions: Any) -> Any:
    """The statement that moves a run, under other conditions."""
    sound: Any = persistence.writes._MOVE
    move = sa.update(tables.run).where(_r.run_id == sa.bindparam("of"), *conditions)
    return move.values(dict(sound._values))


def moved_with(change: Callable[[Write, dict[str, Any]], dict[str, Any]]) -> list[Any]:
    """A step writes other values into its run's row: those that `change` gives, by name."""
    sound, names = persistence.writes._move, persistence.writes._VALUES

    def move(write: Write) -> tuple[Any, ...]:
        found = dict(zip(names, sound(write), strict=True))
        found |= change(write, found)
        return tuple([found[name] for name in names])

    return [patch.object(persistence.writes, "_move", move)]


def fence_ignored() -> list[Any]:
    """A write asks only whether the run is owned, not by whom."""
    said = persistence.writes._is_as_said

    def whoever(write: Write, row: Any, unconsumed: Any) -> bool:
        anyone = write if row is None else msgspec.structs.replace(write, fence=row.fence)
        return said(anyone, row, unconsumed)

    move = _moving(
        _r.owner.is_not(None),
        _r.seq == sa.bindparam("expected"),
        _r.effect_seq.is_not_distinct_from(sa.bindparam("known", type_=sa.Integer)),
    )
    return [patch.object(persistence.writes, "_is_as_said", whoever),
            patch.object(persistence.writes, "_MOVE", move)]  # fmt: skip


def _claim_leaves_the_fence() -> list[Any]:
    """A claim names the new owner under the old fence, so the one before is not shut out."""

    def taking(chosen: Any) -> Any:
        return (
            sa.update(tables.run)
            .where(_r.run_id.in_(chosen.scalar_subquery()), persistence.runs._REGISTERED)
            .values(owner=sa.bindparam("who"), stalls=_r.stalls + 1)
            .returning(*tables.run.c)
        )

    return [patch.object(persistence.runs, "_TAKE_DUE", taking(persistence.runs._DUE))]


def _no_compare_and_set() -> list[Any]:
    """A write finds the run by its id alone: neither owner, fence nor sequence number."""

    def said(write: Write, row: Any, unconsumed: Any) -> bool:
        return row is not None

    return [patch.object(persistence.writes, "_is_as_said", said),
            patch.object(persistence.writes, "_MOVE", _moving())]  # fmt: skip


def _claim_takes_owned() -> list[Any]:
    """A claim looks at what is due, and not at who has it."""
    due = (
        sa.select(_r.run_id)
        .where(_r.ready, persistence.runs._KNOWN)
        .order_by(_r.due_ms)
        .limit(sa.bindparam("most"))
    )
    return [patch.object(persistence.runs, "_TAKE_DUE", persistence.runs._taking(due))]


def _reap_frees_the_living() -> list[Any]:
    """A reap frees the runs of whoever was seen to be late, even if it has beaten since."""
    return [patch.object(persistence.workers, "_FORGET_UNCHANGED",
                         persistence.workers._FORGET.where(
                             sa.bindparam("until", type_=sa.BigInteger).is_not(None)))]  # fmt: skip


def _reap_forgets_the_runs() -> list[Any]:
    """A reap forgets the worker and leaves its runs to it."""
    return [patch.object(persistence.workers, "_free", lambda sql, worker_id: 0)]


def _lease_not_checked() -> list[Any]:
    """A worker that was stopped goes on with its effect, whatever time it has become."""
    return [patch.object(Worker, "may_go_on", lambda self, *term: True)]


def _lease_from_the_answer() -> list[Any]:
    """A heartbeat counts the lease from when its answer came, not from when it was asked for."""

    sound: Any = Lease.beat

    async def beat(self: Any) -> None:
        await sound(self)
        self._until_ms = self._clock.now_ms() + LEASE_MS

    return [patch.object(Lease, "beat", beat)]


def _dedupe_in_two_steps() -> list[Any]:
    """An event is looked up in one transaction and inserted in another."""
    delivered: Callable[..., Any] = App._deliver

    async def deliver(self: Any, one: Delivery) -> Receipt:
        first = await self._io(lambda: self.store.inbox.receipt(one.run_id, one.key))
        if first is not None:
            duplicate: Receipt = msgspec.structs.replace(first, duplicate=True)
            return duplicate
        receipt: Receipt = await delivered(self, one)
        if not receipt.duplicate:
            return receipt
        again = msgspec.structs.replace(one, key=f"{one.key}-inserted-again")
        (second,) = await self._io(lambda: self.store.inbox.deliver([again]))
        inserted: Receipt = second
        return inserted

    return [patch.object(App, "_deliver", deliver)]


def _start_in_two_steps() -> list[Any]:
    """A run's key is looked up in one transaction and the run inserted in another."""
    start: Callable[..., Any] = App.start

    async def started(self: Any, machine: Any, context: Any, *, key: str | None = None) -> Any:
        found = await self._io(lambda: self.store.runs.find(machine, key))
        if found is not None:
            return engine.app.RunRef(found, False)
        ref = await start(self, machine, context, key=key)
        return ref if ref.created else await start(self, machine, context, key=f"{key}-again")

    return [patch.object(App, "start", started)]


def _wake_lost() -> list[Any]:
    """A worker gives a run up as it knew it: an event that came meanwhile wakes nobody."""
    return [patch.object(persistence.writes, "_settle_arrivals", lambda sql, writes: {})]


def _reconcile_believes_the_count() -> list[Any]:
    """An attempt that another worker left open is made again, without asking what became of it."""

    async def reconcile(self: Any, job: Any, effect: Effect, pending: Pending) -> None:
        await self._count_attempt(job, pending, doubt=True)

    return [patch.object(Performer, "_reconcile", reconcile)]


def _newest_event_first() -> list[Any]:
    """The inbox is read from its end."""
    sound: Any = persistence.inbox._WAITING
    newest = sound.order_by(None).order_by(tables.inbox.c.number.desc())
    return [patch.object(persistence.inbox, "_WAITING", newest)]


def _attempt_counted_in_memory() -> list[Any]:
    """An attempt is counted where only its own worker sees it; if that dies, nobody asks."""

    async def count(self: Any, job: Any, pending: Pending, *, doubt: bool) -> None:
        counted = msgspec.structs.replace(pending, attempts=pending.attempts + 1, open=True)
        job.run = job.run.but(effect=counted)
        job.fresh, job.doubt = True, doubt

    return [patch.object(Performer, "_count_attempt", count)]


def _ended_runs_are_claimed() -> list[Any]:
    """A run that ends stays due, and its last event is looked at again."""

    def kept(write: Write, found: dict[str, Any]) -> dict[str, Any]:
        due = {"new_due_ms": write.at_ms, "new_ready": True}
        return due if write.after.terminal else {}

    return moved_with(kept)


TRIP, SHOP, WAITER = subjects.Trip, subjects.Shop, subjects.Waiter

SCHEDULE_BUGS: tuple[ScheduleBug, ...] = (
    ScheduleBug("fence ignored", TRIP, ("fence",), fence_ignored),
    ScheduleBug("claim leaves the fence", TRIP, ("fence",), _claim_leaves_the_fence),
    ScheduleBug("no compare and set", TRIP, ("fence", "the engine raised"), _no_compare_and_set),
    ScheduleBug("claim takes owned runs", TRIP, ("two owners",), _claim_takes_owned),
    ScheduleBug("reap frees the living", TRIP, ("run lost",), _reap_frees_the_living),
    ScheduleBug("reap forgets the runs", TRIP, ("stuck", "storage: owner"), _reap_forgets_the_runs),
    ScheduleBug("lease not checked", TRIP, ("call by another",), _lease_not_checked),
    ScheduleBug("lease counted from the answer", TRIP, ("call by another",),
                _lease_from_the_answer),
    ScheduleBug("dedupe in two steps", SHOP, ("duplicate accepted",), _dedupe_in_two_steps),
    ScheduleBug("start in two steps", WAITER, ("accepted twice",), _start_in_two_steps),
    ScheduleBug("arrival wakes nobody", SHOP, ("event not settled",), _wake_lost),
    ScheduleBug("left attempt made again", TRIP, ("effect performed twice",),
                _reconcile_believes_the_count),
    ScheduleBug("newest event first", SHOP, ("order",), _newest_event_first),
    ScheduleBug("attempt counted in memory", TRIP, ("call without record",),
                _attempt_counted_in_memory),
    ScheduleBug("ended runs are claimed", WAITER, ("ended run moved", "storage: ended"),
                _ended_runs_are_claimed),
)  # fmt: skip
