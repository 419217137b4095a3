"""A run as the kernel sees it, and what it is waiting for.

`Run` is a value: a decision makes a new one.  What the store adds (owner, fence) is not here.

A run is always in one of these situations (`status`):

==============  ==========================================================================
pending         accepted, not yet moved by any worker
running         something is due now
waiting         a due time in the future, an expected event, or a child run
paused          stopped by an operator; events are kept
completed       reached a final state
failed          reached a final state marked `failure`, and what it had made is undone
cancelled       stopped on request, and what it had made is undone
quarantined     stopped without progress, with its last error kept for a person
==============  ==========================================================================
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Status = Literal[
    "pending", "running", "waiting", "paused", "completed", "failed", "cancelled", "quarantined"
]
TERMINAL: frozenset[str] = frozenset({"completed", "failed", "cancelled"})
HELD: frozenset[str] = frozenset({"paused", "quarantined"})
_RESTING = TERMINAL | HELD


class Pending(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """An effect that was decided and has no outcome yet.

    `open` means that an attempt was recorded whose end nobody knows: reconcile before anything
    else.  `undo_of` names the state whose effect this one compensates.  `attempts` is what the
    retry policy counts and begins anew when a run is resumed; `calls` counts all there have been.
    """

    seq: int
    name: str
    key: str
    attempts: int
    open: bool
    next_ms: int
    undo_of: str | None = None
    last_error: str | None = None
    calls: int = 0


class Parent(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Whom to tell, and with which events."""

    run_id: str
    machine: str
    on_ended: str
    on_moved: str | None
    on_parent_end: str


class Run(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One durable instance of a machine.

    `entered_seq` is the transition that entered the present state; a timer belongs to it.
    `undo` lists the states whose effects succeeded and would have to be compensated, oldest first.
    `closing` is the status the run will have when its compensations are done.
    """

    run_id: str
    machine: str
    version: str
    key: str | None
    state: str
    status: Status
    seq: int
    entered_seq: int
    context: Any
    created_ms: int
    deadline_ms: int | None = None
    effect: Pending | None = None
    child: str | None = None
    undo: tuple[str, ...] = ()
    closing: Status | None = None
    cancel_requested: bool = False
    held_from: Status | None = None
    parent: Parent | None = None
    depth: int = 0
    priority: int = 0
    tenant: str = ""
    last_error: str | None = None

    @property
    def terminal(self) -> bool:
        """Whether nothing will ever move this run again."""
        return self.status in TERMINAL

    @property
    def due_ms(self) -> int | None:
        """When a worker has something to do for this run, if ever."""
        if self.status in _RESTING:
            return None
        if self.effect is None:
            return self.deadline_ms
        effect_ms = self.effect.next_ms
        if self.deadline_ms is None or effect_ms < self.deadline_ms:
            return effect_ms
        return self.deadline_ms

    def but(self, **changes: Any) -> Run:
        """A copy with some fields changed."""
        return msgspec.structs.replace(self, **changes)
