"""Flow 9: save what is in a session or service; write it back, fork it, or remove it.

::

    capturing ── captured ──► ready ── restore ──► restoring ── restored ──► ready
       │   │                   ▲ │ ├── clone ────► cloning ──── cloned ────► ready
       │   │                   │ │ ├── lock, unlock ► locking, unlocking ──► ready
       │   └─ keeps too little │ │ ├── remove ───► removing ──► removed
       │      ▼                └─┘ ├── keep ─────► kept
       │   too_shallow   (a look)  ├── barred ───► locked
       │                           └── declined ─► gone
       ├── declined ──► source_gone, source_idle, refused
       └── no_answer ─► clearing_up ──► unreachable, unresolved

Promise: `level` says how much was kept (files; files and variables; whole processes), and a run
that was asked for more than the platform kept ends `too_shallow`, with nothing left behind.  A
restore writes over the source that the snapshot was taken of and nothing else; a clone is another
session or service, with a life of its own.  However often replies are lost, there is one snapshot
and one clone for each order.

What was made is removed when the run fails or is cancelled, unless the context says `keep`; clones
of a run that ends well are what it was asked for, and stay.  A lock is stronger: what is locked
was locked on purpose and stays, whoever asks (`locked`).

Source: platform-api.md 7; paper, Flow 9.
"""

from __future__ import annotations

from engine.clock import seconds
from engine.contracts import ensures, invariant, requires
from engine.definition import Machine, State
from machines.flows.capture import (
    RANKS,
    Capture,
    Captured,
    Clone,
    Cloned,
    Declined,
    Keep,
    Lock,
    LockSet,
    NotClearedUp,
    Remove,
    Restore,
    RestoreDone,
    SnapshotReport,
    Unlock,
)
from machines.flows.capture_calls import (
    capture,
    clear_up,
    clone,
    heed,
    lock,
    remove,
    restore,
    undo,
    unlock,
)
from machines.flows.errands import NoAnswer, noted


class Snapshot(Machine[Capture]):
    """Take one snapshot, obey orders about it, and leave nothing behind that nobody wanted."""

    payloads = (NoAnswer, NotClearedUp)

    capturing = State(initial=True, effect=capture, compensation=undo, on_exhausted="no_answer")
    ready = State(
        effect=heed,
        every="pause",
        timeout="attention",
        on_timeout="nobody_asks",
        on_exhausted="no_answer",
        invariant="is_good_enough",
        milestone=True,
    )
    restoring = State(effect=restore, on_exhausted="no_answer")
    cloning = State(effect=clone, on_exhausted="no_answer")
    locking = State(effect=lock, on_exhausted="no_answer")
    unlocking = State(effect=unlock, on_exhausted="no_answer")
    removing = State(effect=remove, undoes="capturing", on_exhausted="no_answer")
    clearing_up = State(effect=clear_up, on_exhausted="not_cleared_up", cancellable=False)
    kept = State(final=True, invariant="is_there")
    removed = State(final=True, invariant="is_nowhere")
    source_gone = State(final=True, failure=True)
    source_idle = State(final=True, failure=True)
    too_shallow = State(final=True, failure=True)
    gone = State(final=True, failure=True)
    refused = State(final=True, failure=True)
    locked = State(final=True, failure=True, invariant="is_locked")
    not_removed = State(final=True, failure=True)
    unreachable = State(final=True, failure=True)
    unresolved = State(final=True, failure=True)

    captured = capturing.to(ready, cond="keeps_enough") | capturing.to(too_shallow)
    restore = ready.to(restoring)
    clone = ready.to(cloning)
    lock = ready.to(locking)
    unlock = ready.to(unlocking)
    remove = ready.to(removing)
    keep = ready.to(kept)
    barred = ready.to(locked)
    nobody_asks = ready.to(kept, cond="is_to_stay") | ready.to(removing)
    restored = restoring.to(ready)
    cloned = cloning.to(ready)
    lock_set = locking.to(ready) | unlocking.to(ready)
    removed_it = removing.to(removed)
    declined = (
        capturing.to(source_gone, cond="has_no_source")
        | capturing.to(source_idle, cond="has_an_idle_source")
        | capturing.to(refused)
        | restoring.to(gone, cond="has_no_snapshot")
        | restoring.to(source_gone, cond="has_no_source")
        | restoring.to(source_idle, cond="has_an_idle_source")
        | restoring.to(refused)
        | cloning.to(gone, cond="has_no_snapshot")
        | cloning.to(refused)
        | ready.to(gone)
        | locking.to(gone)
        | unlocking.to(gone)
    )
    no_answer = (
        capturing.to(clearing_up)
        | cloning.to(clearing_up)
        | removing.to(not_removed)
        | ready.to(unreachable)
        | restoring.to(unreachable)
        | locking.to(unreachable)
        | unlocking.to(unreachable)
    )
    cleared_up = clearing_up.to(unreachable)
    not_cleared_up = clearing_up.to(unresolved)

    def pause(self, context: Capture) -> int:
        return seconds(context.poll_seconds)

    def attention(self, context: Capture) -> int:
        return seconds(context.attended_seconds)

    # -- guards ---------------------------------------------------------------------------------

    def keeps_enough(self, context: Capture, event: Captured) -> bool:
        """As much as was asked for, or more."""
        return RANKS.get(event.level, 0) >= RANKS[context.least_level]

    def has_no_source(self, event: Declined) -> bool:
        return event.cause == "source_gone"

    def has_an_idle_source(self, event: Declined) -> bool:
        return event.cause == "source_idle"

    def has_no_snapshot(self, event: Declined) -> bool:
        return event.cause == "gone"

    def is_to_stay(self, context: Capture) -> bool:
        """Nobody may delete it, or nobody wants to."""
        return context.locked or context.keep

    # -- actions --------------------------------------------------------------------------------

    def on_captured(self, context: Capture, event: Captured) -> Capture:
        """Keep which it is and how much is in it."""
        return self.but(
            context,
            snapshot_id=event.snapshot_id,
            taken_of=event.source_id,
            level=event.level,
            lost=event.lost,
            size_bytes=event.size_bytes,
        )

    def on_enter_too_shallow(self, context: Capture) -> Capture:
        """Say what was asked for, and what there is."""
        kept = context.level or "nothing known"
        return self.but(context, reason=f"keeps {kept}, expected {context.least_level} at least")

    def on_restore(self, context: Capture, event: Restore) -> Capture:
        return noted(context, event)

    def on_clone(self, context: Capture, event: Clone) -> Capture:
        """Keep what is to be made."""
        return self.but(noted(context, event), wanted=event)

    def on_lock(self, context: Capture, event: Lock) -> Capture:
        return noted(context, event)

    def on_unlock(self, context: Capture, event: Unlock) -> Capture:
        return noted(context, event)

    def on_remove(self, context: Capture, event: Remove) -> Capture:
        return noted(context, event)

    def on_keep(self, context: Capture, event: Keep) -> Capture:
        return noted(context, event)

    def on_barred(self, context: Capture) -> Capture:
        return self.but(context, reason=f"snapshot {context.snapshot_id} is locked: unlock it")

    def on_restored(self, context: Capture) -> Capture:
        return self.but(context, restores=context.restores + 1)

    def on_cloned(self, context: Capture, event: Cloned) -> Capture:
        return self.but(context, clones=(*context.clones, event.copy))

    def on_lock_set(self, context: Capture, event: LockSet) -> Capture:
        return self.but(context, locked=event.locked)

    def on_removed_it(self, context: Capture) -> Capture:
        return self.but(context, snapshot_id="")

    def on_declined(self, context: Capture, event: Declined) -> Capture:
        return self.but(context, reason=event.detail)

    # The journal has the words of the last refusal.
    def on_no_answer(self, context: Capture, event: NoAnswer) -> Capture:
        return self.but(context, reason=f"{event.effect} was given up")

    def on_not_cleared_up(self, context: Capture, event: NotClearedUp) -> Capture:
        """Keep that something may live on."""
        return self.but(context, reason=f"{context.reason}, and so was {event.effect}")

    # -- contracts ------------------------------------------------------------------------------

    @requires(remove)
    def is_not_locked(self, context: Capture) -> bool:
        """What was locked on purpose is unlocked on purpose, first."""
        return not context.locked

    @requires(restored)
    def went_back_where_it_came_from(self, context: Capture, event: RestoreDone) -> bool:
        """A restore in place: the source keeps its id."""
        return event.target_id == context.taken_of

    @requires(cloned)
    def clone_is_another(self, context: Capture, event: Cloned) -> bool:
        """Not the source, and none that was made before."""
        known = {context.taken_of, *(made.copy_id for made in context.clones)}
        return event.copy.copy_id not in known and event.copy.kind == context.wanted.kind

    @ensures(lock_set)
    def lock_is_as_asked(self, new: Capture, event: LockSet) -> bool:
        return new.locked == event.locked

    @invariant
    def only_what_is_there_is_locked(self, context: Capture) -> bool:
        return not context.locked or bool(context.snapshot_id)

    def is_good_enough(self, context: Capture) -> bool:
        """It is there, and keeps what was asked for."""
        enough = RANKS.get(context.level, 0) >= RANKS[context.least_level]
        return bool(context.snapshot_id) and enough

    def is_there(self, context: Capture) -> bool:
        return bool(context.snapshot_id)

    def is_nowhere(self, context: Capture) -> bool:
        return not context.snapshot_id

    def is_locked(self, context: Capture) -> bool:
        return context.locked

    def output(self, context: Capture) -> SnapshotReport:
        """What is kept where, and what was made of it."""
        return SnapshotReport(
            snapshot_id=context.snapshot_id,
            level=context.level,
            lost=context.lost,
            restores=context.restores,
            clones=context.clones,
            reason=context.reason,
        )
