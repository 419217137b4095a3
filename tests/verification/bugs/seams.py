"""Defects of the engine: each function gives the patches that plant one.

They are patched into seams of the engine and of persistence; without them the machines are sound.
The docstring of each is what the table of the corpus says of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import msgspec

import engine.control
import engine.decide
import engine.runner
import persistence.inbox
import persistence.runs
import persistence.writes
from engine.app import App
from engine.codec import Codec
from engine.committer import DirectCommitter
from engine.desk import Desk, Job
from engine.effects import Call, Effect
from engine.journal import Entry
from engine.performing import Performer
from engine.ports import Consumed, Delivery, InboxEvent, Write, Written
from engine.run import Pending, Run
from engine.runner import Runner
from persistence.effects import PENDING_COLUMNS, pending_values
from persistence.inbox import SqlInbox
from persistence.workers import SqlWorkers
from tests.verification.bugs import schedule_bugs, subjects

Patches = Callable[[], list[Any]]


def no_dedupe() -> list[Any]:
    """An event under a key that was used before is accepted again."""
    numbers, deliver = itertools.count(), SqlInbox.deliver
    accept = persistence.runs.accept_deliveries

    def renamed(deliveries: Sequence[Delivery]) -> list[Delivery]:
        return [Delivery(d.run_id, f"{d.key}:{next(numbers)}", d.event, d.payload, d.at_ms)
                for d in deliveries]  # fmt: skip

    return [patch.object(SqlInbox, "deliver",
                         lambda self, deliveries: deliver(self, renamed(deliveries))),
            patch.object(persistence.runs, "accept_deliveries",
                         lambda sql, deliveries: accept(sql, renamed(deliveries)))]  # fmt: skip


def guess_done() -> list[Any]:
    """Nobody knows whether a call was done, and it is taken for done."""

    async def guess(self: Any, job: Job, effect: Effect, pending: Pending, error: Any) -> None:
        await self._apply_outcome(job, effect, subjects.Charged(receipt="?"), 0)

    return [patch.object(Performer, "_still_unknown", guess)]


def not_counted() -> list[Any]:
    """The attempt is recorded in the transaction of its outcome, after the call."""

    async def count(self: Any, job: Job, pending: Pending, *, doubt: bool) -> None:
        counted = msgspec.structs.replace(pending, attempts=pending.attempts + 1, open=True)
        job.run = job.run.but(effect=counted)
        job.fresh, job.doubt = True, doubt

    return [patch.object(Performer, "_count_attempt", count)]


def no_reconcile() -> list[Any]:
    """A call whose end nobody knows is made again, without asking."""

    async def reconcile(self: Any, job: Job, effect: Effect, pending: Pending) -> None:
        await self._count_attempt(job, pending, doubt=True)

    return [patch.object(Performer, "_reconcile", reconcile)]


def fresh_key() -> list[Any]:
    """Each attempt has an idempotency key of its own."""
    make = Performer._call

    def call(self: Performer, job: Job, pending: Pending) -> Call:
        made = make(self, job, pending)
        key = f"{made.key}{made.attempt}"
        return Call(made.run_id, key, made.attempt, made.now_ms, made.resources)

    return [patch.object(Performer, "_call", call)]


def no_fence() -> list[Any]:
    """A write asks whether the run is owned, not by whom."""
    return schedule_bugs.fence_ignored()


def writes_forgotten(chosen: Callable[[Write], bool]) -> Patches:
    """The store says that a write took effect, and it did not."""

    def plant() -> list[Any]:
        apply = persistence.writes._apply

        def partly(sql: Any, writes: Any, accept: Any) -> None:
            apply(sql, [write for write in writes if not chosen(write)], accept)

        return [patch.object(persistence.writes, "_apply", partly)]

    return plant


def stale_timer() -> list[Any]:
    """A timer fires whatever time it is."""
    return [patch.object(engine.runner, "_timer_is_next",
                         lambda run, now_ms: run.deadline_ms is not None)]  # fmt: skip


def child_told_twice() -> list[Any]:
    """A child says under two keys that it has ended."""
    sends = Desk._sends

    def twice(self: Desk, job: Job, decision: Any, after: Run) -> Any:
        found, output = sends(self, job, decision, after)
        more = tuple(Delivery(one.run_id, f"echo:{one.key}", one.event, one.payload, one.at_ms)
                     for one in found if one.key.endswith(":ended"))  # fmt: skip
        return (*found, *more), output

    return [patch.object(Desk, "_sends", twice)]


def child_never_tells() -> list[Any]:
    """A child does not say that it has ended."""
    return [patch.object(Desk, "_sends", lambda self, job, decision, after: ((), None))]


def child_not_accepted() -> list[Any]:
    """The parent's step is written, and its child is not."""
    apply = persistence.writes._apply

    def without(sql: Any, writes: Any, accept: Any) -> None:
        apply(sql, [msgspec.structs.replace(write, starts=()) for write in writes], accept)

    return [patch.object(persistence.writes, "_apply", without)]


def no_compensation() -> list[Any]:
    """An effect that succeeded is not put on the list of what to undo."""
    return [patch.object(engine.decide, "_note_success", lambda place, run: run)]


def oldest_first() -> list[Any]:
    """What is to be undone is undone in the order in which it was done."""
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


def cancel_in_doubt() -> list[Any]:
    """A request to stop drops an effect that may have been done."""
    cancel = engine.control.cancel

    def careless(table: Any, run: Run, now_ms: int) -> Any:
        effect = run.effect and msgspec.structs.replace(run.effect, open=False)
        return cancel(table, run.but(effect=effect), now_ms)

    return [patch.object(engine.control, "cancel", careless)]


def rejection_forgets() -> list[Any]:
    """An event that is refused takes the pending effect with it."""

    async def reject(self: Any, job: Job, event: InboxEvent, reason: str) -> None:
        consumed = Consumed(number=event.number, status="rejected", reason=reason)
        await self._desk.write(job, job.run.but(effect=None), consumed=(consumed,))

    return [patch.object(Runner, "_reject", reject)]


def nobody_wakes() -> list[Any]:
    """An event is stored, and its run is not made due."""
    return [patch.object(persistence.inbox, "wake", lambda sql, runs: None)]


def late_events_stay() -> list[Any]:
    """Events wait for ever in runs that have ended."""
    return [patch.object(persistence.writes, "refuse_rest", lambda sql, ended: None)]


def nobody_reaps() -> list[Any]:
    """Nobody frees the runs of a worker that is gone."""
    return [patch.object(SqlWorkers, "reap", lambda self, now_ms, dead: 0)]


def no_timer() -> list[Any]:
    """A state with a timeout is entered without a deadline."""
    return [patch.object(engine.decide, "_deadline", lambda place, context, now_ms: None)]


def stale_context() -> list[Any]:
    """The journal's context is not the one that is stored."""
    seal = Codec.seal_entry

    def stale(self: Codec, entry: Entry, worker: str, *, context: bytes) -> Entry:
        return seal(self, entry, worker, context=context + b" ")

    return [patch.object(Codec, "seal_entry", stale)]


def event_stays() -> list[Any]:
    """An event is applied, and not marked as consumed."""

    def settled(sql: Any, writes: Sequence[Write]) -> int:
        return sum(len(write.consumed) for write in writes)

    return [patch.object(persistence.writes, "consume", settled)]


def effect_never_closed() -> list[Any]:
    """The record of an effect stays pending when its outcome is there."""

    def keeping(write: Write, found: dict[str, Any]) -> dict[str, Any]:
        kept = pending_values(write.before.effect)
        names = [f"new_{name}" for name in PENDING_COLUMNS]
        return {} if write.outcome is None else dict(zip(names, kept, strict=True))

    return schedule_bugs.moved_with(keeping)


def seq_twice() -> list[Any]:
    """The run's number runs ahead of its journal's."""

    def ahead(write: Write, found: dict[str, Any]) -> dict[str, Any]:
        return {"new_seq": found["new_seq"] + (write.after.status == "completed")}

    return schedule_bugs.moved_with(ahead)


def no_key() -> list[Any]:
    """A call goes out without an idempotency key."""
    make = Performer._call

    def call(self: Performer, job: Job, pending: Pending) -> Call:
        made = make(self, job, pending)
        return Call(made.run_id, "", made.attempt, made.now_ms, made.resources)

    return [patch.object(Performer, "_call", call)]


def done_before_effect() -> list[Any]:
    """An effect is written down as done, and then made."""
    perform = Performer._perform

    async def early(self: Any, job: Job, effect: Effect, pending: Pending) -> None:
        if effect is not subjects.pack:
            await perform(self, job, effect, pending)
            return
        call, context = self._call(job, pending), job.run.context
        await self._apply_outcome(job, effect, subjects.Packed(), self._clock.now_ms())
        await self._calls.perform(effect, context, call)

    return [patch.object(Performer, "_perform", early)]


def outbox_apart() -> list[Any]:
    """What a step sends to other runs is written in a second transaction."""
    make, write = App.__init__, DirectCommitter.write

    def with_inbox(self: Any, *given: Any, **named: Any) -> None:
        make(self, *given, **named)
        self._desk._committer.inbox = self.store.inbox

    async def in_two(self: Any, one: Write) -> Written:
        written = await write(self, msgspec.structs.replace(one, sends=()))
        if one.sends:
            await self._io(lambda: self.inbox.deliver(list(one.sends)))
        return written

    return [patch.object(App, "__init__", with_inbox),
            patch.object(DirectCommitter, "write", in_two)]  # fmt: skip


def row_count_ignored() -> list[Any]:
    """A write that changed no row counts as written."""
    commit = persistence.writes.commit

    def always_well(sql: Any, writes: Any, accept: Any, *, look: bool = True) -> list[Written]:
        found = commit(sql, writes, accept, look=look)
        return [msgspec.structs.replace(one, ok=True) for one in found]

    return [patch.object(persistence.runs, "commit", always_well)]


def retry_count_lost() -> list[Any]:
    """Every attempt counts as the first one, so an effect is never given up."""

    async def count(self: Any, job: Job, pending: Pending, *, doubt: bool) -> None:
        counted = msgspec.structs.replace(pending, attempts=1, open=True)
        await self._desk.write(job, job.run.but(effect=counted, status="running"))
        job.fresh, job.doubt = True, doubt

    return [patch.object(Performer, "_count_attempt", count)]


def end_not_looked_at() -> list[Any]:
    """A late request moves a run that has ended: nobody asks whether it has."""
    return [patch.object(Run, "terminal", property(lambda self: False))]


def orphan_left() -> list[Any]:
    """A parent goes on, and its child is not asked to stop."""
    return [patch.object(Desk, "_orphan", lambda self, job, decision, after: None)]
