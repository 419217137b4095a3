"""The engine's own events: pause, resume, cancel, and the end of a run that must undo its effects.

They are pure decisions like every other and stand in the journal under names with a dollar sign::

    $pause      any live run -> paused               $resume     paused, quarantined -> as before
    $cancel     closing as cancelled                 $undone     one compensation has succeeded
    $child_ended  while closing: the child is gone

Compensations run in the reverse order of the effects they undo; each is an effect of its own, with
attempts, retry and reconcile.  A run that is closing accepts no events of its machine.
"""

from __future__ import annotations

import msgspec

from engine.decide import (
    Decision,
    Rejection,
    arm_next_undo,
    entry_for,
    status_of,
)
from engine.run import HELD, Pending, Run
from engine.table import Table

PAUSE, RESUME, CANCEL = "$pause", "$resume", "$cancel"
UNDONE, CHILD_ENDED = "$undone", "$child_ended"
CONTROLS = frozenset({PAUSE, RESUME, CANCEL})
CANCEL_EVENT = "cancel"
"""A machine that declares an event of this name handles cancellation itself, where it does."""


def pause(run: Run, now_ms: int) -> Decision | Rejection:
    """Stop moving the run until it is resumed; nothing is lost meanwhile."""
    if run.terminal or run.status in HELD:
        return _refused(PAUSE, run, f"the run is {run.status}")
    return _step(run, run.but(status="paused", held_from=run.status), PAUSE, now_ms)


def resume(table: Table, run: Run, now_ms: int) -> Decision | Rejection:
    """Go on from a pause or from quarantine.  An effect is tried anew, reconcile first."""
    if run.status not in HELD:
        return _refused(RESUME, run, f"the run is {run.status}, not paused or quarantined")
    after = run.but(held_from=None, last_error=None, effect=_anew(run.effect, now_ms))
    after = after.but(status=status_of(table.places[run.state], after, now_ms))
    return _step(run, after, RESUME, now_ms)


def _anew(effect: Pending | None, now_ms: int) -> Pending | None:
    return effect and msgspec.structs.replace(effect, attempts=0, next_ms=now_ms)


def cancel(table: Table, run: Run, now_ms: int) -> Decision | Rejection:
    """Stop on request.

    Deferred (recorded, and looked at again after every transition) where the state says
    `cancellable=False`.  The caller has already tried the machine's own `cancel` event.
    """
    if run.terminal or run.closing:
        return _refused(CANCEL, run, f"the run is {run.closing or run.status}")
    place = table.places[run.state]
    in_doubt = run.effect is not None and run.effect.open
    if not place.cancellable or in_doubt:
        if run.cancel_requested:
            return _refused(CANCEL, run, "a cancel request is waiting already")
        return _step(run, run.but(cancel_requested=True), CANCEL, now_ms)
    after = run.but(
        child=_child_to_wait_for(table, run),
        closing="cancelled",
        cancel_requested=False,
        deadline_ms=None,
        effect=None,
        held_from=None,
        status="waiting",
    )
    return _step(run, close_further(table, after, run.seq + 1, now_ms), CANCEL, now_ms)


def _child_to_wait_for(table: Table, run: Run) -> str | None:
    """The live child, unless it may outlive its parent."""
    return None if table.places[run.state].on_parent_end == "abandon" else run.child


def undone(table: Table, run: Run, now_ms: int) -> Decision:
    """A compensation has succeeded: the next one, or the end."""
    after = run.but(undo=run.undo[:-1], effect=None)
    return _step(run, close_further(table, after, run.seq + 1, now_ms), UNDONE, now_ms)


def child_ended(table: Table, run: Run, now_ms: int) -> Decision:
    """While closing: the child that had to end first has ended."""
    after = run.but(child=None)
    return _step(run, close_further(table, after, run.seq + 1, now_ms), CHILD_ENDED, now_ms)


def close_further(table: Table, run: Run, seq: int, now_ms: int) -> Run:
    """The next thing to do for a closing run: wait for its child, undo, or end."""
    assert run.closing is not None
    run = run.but(seq=seq)
    if run.child is not None:
        return run.but(status="waiting")
    if run.undo:
        return arm_next_undo(table, run, now_ms).but(status="running")
    return run.but(status=run.closing, closing=None, effect=None, deadline_ms=None)


def quarantined(run: Run, reason: str) -> Run:
    """The run as it is set aside for a person, with the reason; not a transition."""
    return run.but(status="quarantined", held_from=run.status, last_error=reason)


def _step(before: Run, after: Run, event: str, now_ms: int) -> Decision:
    after = after.but(seq=before.seq + 1)
    return Decision(
        before=before, after=after, entry=entry_for(before, after, event, None, (), now_ms)
    )


def _refused(event: str, run: Run, why: str) -> Rejection:
    return Rejection(event=event, state=run.state, reason=why)
