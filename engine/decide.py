"""The pure step: one event, one decision.

    decide(table, run, event, payload, now_ms) -> Decision | Rejection | Violation

No I/O, no clock, no randomness: the same input gives the same output for ever.  In this order:

    known event? known state? -> guards choose -> preconditions -> actions on a copy
    -> postconditions -> invariants of the target and of the machine -> Decision

A `Rejection` changes nothing, and says which clause refused and what it saw.  A `Violation` means
that the machine's own code is wrong (a postcondition or invariant is false, a clause raised):
nothing is committed but the evidence, and the run is quarantined.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from engine.contracts import Clause, Verdict
from engine.effects import Effect
from engine.events import Event
from engine.ids import child_run_id, idempotency_key
from engine.journal import START, Entry
from engine.run import Parent, Pending, Run, Status
from engine.table import Child, Edge, Place, Table


class ChildStart(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A child run to be started in the transaction of its parent's transition."""

    run_id: str
    child: Child
    parent: Parent


class Decision(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What one event does: the run after it, the journal's entry, and what must be started."""

    before: Run | None
    after: Run
    entry: Entry
    child: ChildStart | None = None
    moved: bool = False
    """Whether the parent is to be told (a state marked `milestone` was entered)."""


class Rejection(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The event is refused here; nothing changes."""

    event: str
    state: str
    reason: str
    verdicts: tuple[Verdict, ...] = ()


class Violation(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """The machine broke its own contract; nothing changes but the evidence."""

    event: str
    state: str
    reason: str
    verdicts: tuple[Verdict, ...] = ()


class _Broken(Exception):
    """A clause or action raised; carries what to say about it."""


def begin(
    table: Table,
    *,
    run_id: str,
    context: Any,
    now_ms: int,
    key: str | None = None,
    parent: Parent | None = None,
    depth: int = 0,
    priority: int = 0,
    tenant: str = "",
) -> Decision | Violation:
    """Accept a run in its initial state: transition 1, event `$start`."""
    run = Run(
        run_id=run_id,
        machine=table.name,
        version=table.fingerprint,
        key=key,
        state="",
        status="pending",
        seq=0,
        entered_seq=0,
        context=context,
        created_ms=now_ms,
        parent=parent,
        depth=depth,
        priority=priority,
        tenant=tenant,
    )
    place = table.places[table.initial]
    try:
        verdicts: list[Verdict] = []
        failed = _judge((*place.invariants, *table.invariants), {"context": context}, verdicts)
        if failed is not None:
            return _violation(START, "", failed, verdicts)
        decision = _enter(table, run, place, context, verdicts, START, None, now_ms)
    except _Broken as broken:
        return Violation(event=START, state="", reason=str(broken))
    if decision.after.status == "running":
        accepted = decision.after.but(status="pending")
        entry = msgspec.structs.replace(decision.entry, status="pending")
        return msgspec.structs.replace(decision, before=None, after=accepted, entry=entry)
    return msgspec.structs.replace(decision, before=None)


def decide(
    table: Table,
    run: Run,
    event: str,
    payload: Event | None,
    now_ms: int,
    *,
    from_effect: bool = False,
) -> Decision | Rejection | Violation:
    """Decide what `event` does to `run`.

    Args:
        from_effect: the event is the outcome of the state's effect, which therefore succeeded.

    Raises:
        UnknownEvent, BadPayload: the event is not one of the machine's.
    """
    table.check_payload(event, payload)
    values = {"context": run.context, "event": payload, "now_ms": now_ms}
    try:
        choice = _choose(table, run, event, values)
        if isinstance(choice, Rejection):
            return choice
        edge, seen = choice
        failed = _judge(edge.requires, values, seen)
        if failed is not None:
            return Rejection(
                event=event,
                state=run.state,
                reason=f"precondition {failed.clause} does not hold ({_show(failed.saw)})",
                verdicts=tuple(seen),
            )
        return _take(table, run, edge, values, seen, from_effect)
    except _Broken as broken:
        return Violation(event=event, state=run.state, reason=str(broken))


def _choose(
    table: Table, run: Run, event: str, values: dict[str, Any]
) -> tuple[Edge, list[Verdict]] | Rejection:
    edges = table.edges.get((run.state, event), ())
    if not edges or run.closing is not None or run.terminal:
        handled = sorted(name for state, name in table.edges if state == run.state)
        why = f"state {run.state!r} does not handle it (it handles: {', '.join(handled) or 'none'})"
        if run.closing is not None or run.terminal:
            why = f"the run is {run.status if run.terminal else f'closing as {run.closing}'}"
        return Rejection(event=event, state=run.state, reason=why)
    seen: list[Verdict] = []
    for edge in edges:
        if _all_hold(edge.guards, values, seen):
            return edge, seen
    # What false guards saw matters only now that no other way was open.
    guards = {clause.name: clause for edge in edges for clause in edge.guards}
    seen = [v if v.ok else guards[v.clause].refusal(values) for v in seen]
    failed = [v for v in seen if not v.ok]
    reason = "; ".join(f"guard {v.clause} is false ({_show(v.saw)})" for v in failed)
    return Rejection(event=event, state=run.state, reason=reason, verdicts=tuple(seen))


def _take(
    table: Table,
    run: Run,
    edge: Edge,
    values: dict[str, Any],
    verdicts: list[Verdict],
    from_effect: bool,
) -> Decision | Violation:
    now_ms: int = values["now_ms"]
    context = _act(table, edge, values)
    place = table.places[edge.target]
    after = {**values, "old": run.context, "new": context, "context": context}
    broken = (
        _judge(edge.ensures, after, verdicts),
        _judge(place.invariants, after, verdicts),
        _judge(table.invariants, after, verdicts),
    )
    if broken != _NONE_BROKEN:
        failed = next(verdict for verdict in broken if verdict is not None)
        return _violation(edge.event, run.state, failed, verdicts)
    payload = values["event"]
    if from_effect:
        run = _note_success(table.places[run.state], run)
    if edge.stays:
        return _stay(run, place, context, verdicts, edge.event, payload, now_ms, from_effect)
    return _enter(table, run, place, context, verdicts, edge.event, payload, now_ms)


def _act(table: Table, edge: Edge, values: dict[str, Any]) -> Any:
    context = values["context"]
    for action in edge.actions:
        try:
            context = action({**values, "context": context})
        except Exception as error:
            raise _Broken(f"an action of {edge.event} raised {_describe(error)}") from error
        if type(context) is not table.context:
            raise _Broken(
                f"an action of {edge.event} returned {type(context).__name__}, "
                f"expected {table.context.__name__}; return the new context"
            )
    return context


def _note_success(place: Place, run: Run) -> Run:
    """The state's effect succeeded: remember what would have to be undone, forget what was."""
    undo = run.undo
    if place.undoes is not None:
        undo = tuple(name for name in undo if name != place.undoes)
    if place.compensation is not None and place.name not in undo:
        undo = (*undo, place.name)
    return run.but(undo=undo)


def _enter(
    table: Table,
    run: Run,
    place: Place,
    context: Any,
    verdicts: list[Verdict],
    event: str,
    payload: Event | None,
    now_ms: int,
) -> Decision:
    seq = run.seq + 1
    child = _child(run, place, context, seq)
    if place.follows_child and run.child is None:
        raise _Broken(f"state {place.name} follows a child, but none is alive")
    kept = run.child if place.follows_child else None
    effect = armed(place.effect, run.run_id, seq, now_ms)
    follows = child.run_id if child else kept
    after = msgspec.structs.replace(
        run,
        state=place.name,
        seq=seq,
        entered_seq=seq,
        context=context,
        deadline_ms=_deadline(place, context, now_ms),
        effect=effect,
        child=follows,
        closing="failed" if place.failure and run.undo else None,
        status=_status(place, effect, follows, now_ms),
    )
    if after.closing:
        after = arm_next_undo(table, after, now_ms)
        after = after.but(status=status_of(place, after, now_ms))
    return Decision(
        before=run,
        after=after,
        entry=entry_for(run, after, event, payload, verdicts, now_ms),
        child=child,
        moved=place.milestone,
    )


def _stay(
    run: Run,
    place: Place,
    context: Any,
    verdicts: list[Verdict],
    event: str,
    payload: Event | None,
    now_ms: int,
    from_effect: bool,
) -> Decision:
    """A transition to the same state: its timer goes on; its own effect is performed again."""
    seq = run.seq + 1
    pending = run.effect
    if from_effect:
        pending = armed(place.effect, run.run_id, seq, now_ms + pause_ms(place, context))
    child = None if event == place.on_child else run.child
    status = _status(place, pending, child, now_ms)
    after = msgspec.structs.replace(
        run, seq=seq, context=context, effect=pending, child=child, status=status
    )
    entry = entry_for(run, after, event, payload, verdicts, now_ms)
    return Decision(before=run, after=after, entry=entry)


def status_of(place: Place, run: Run, now_ms: int) -> Status:
    """The status of a run that has just arrived at `place` or stayed in it."""
    return _status(place, run.effect, run.child, now_ms)


def _status(place: Place, effect: Pending | None, child: str | None, now_ms: int) -> Status:
    if effect is None and child is None and place.final:
        return "failed" if place.failure else "completed"
    if effect is not None and effect.next_ms <= now_ms:
        return "running"
    return "waiting"


def armed(
    effect: Effect | None, run_id: str, seq: int, next_ms: int, undo_of: str | None = None
) -> Pending | None:
    """The record of an effect decided by transition `seq`, due at `next_ms`."""
    if effect is None:
        return None
    return Pending(
        seq=seq,
        name=effect.name,
        key=idempotency_key(run_id, seq, effect.name),
        attempts=0,
        open=False,
        next_ms=next_ms,
        undo_of=undo_of,
    )


def arm_next_undo(table: Table, run: Run, now_ms: int) -> Run:
    """The same run, about to undo the newest effect that is not undone yet."""
    if not run.undo:
        return run.but(effect=None, deadline_ms=None)
    state = run.undo[-1]
    compensation = table.places[state].compensation
    return run.but(
        effect=armed(compensation, run.run_id, run.seq, now_ms, undo_of=state), deadline_ms=None
    )


def pause_ms(place: Place, context: Any) -> int:
    """How long to wait before the state's effect is performed again."""
    if place.every is None:
        return 0
    try:
        return max(int(place.every({"context": context})), 0)
    except Exception as error:
        raise _Broken(f"the every= of {place.name} raised {_describe(error)}") from error


def _deadline(place: Place, context: Any, now_ms: int) -> int | None:
    if place.timeout is None:
        return None
    try:
        return now_ms + max(int(place.timeout({"context": context, "now_ms": now_ms})), 0)
    except Exception as error:
        raise _Broken(f"the timeout of {place.name} raised {_describe(error)}") from error


def _child(run: Run, place: Place, context: Any, seq: int) -> ChildStart | None:
    if place.child is None or place.on_child is None:
        return None
    try:
        child = place.child({"context": context})
    except Exception as error:
        raise _Broken(f"the child of {place.name} raised {_describe(error)}") from error
    parent = Parent(
        run_id=run.run_id,
        machine=run.machine,
        on_ended=place.on_child,
        on_moved=place.on_child_moved,
        on_parent_end=place.on_parent_end,
    )
    return ChildStart(run_id=child_run_id(run.run_id, seq), child=child, parent=parent)


def entry_for(
    before: Run,
    after: Run,
    event: str,
    payload: Event | None,
    verdicts: Iterable[Verdict],
    now_ms: int,
) -> Entry:
    """The journal's entry for going from `before` to `after`."""
    return Entry(
        run_id=after.run_id,
        seq=after.seq,
        event=event,
        source=before.state,
        target=after.state,
        payload=payload,
        verdicts=tuple(verdicts),
        context=after.context,
        status=after.status,
        at_ms=now_ms,
    )


_NONE_BROKEN = (None, None, None)


def _judge(
    clauses: Iterable[Clause], values: dict[str, Any], verdicts: list[Verdict]
) -> Verdict | None:
    """Judge them all, add the verdicts; the first that is false."""
    failed = None
    for clause in clauses:
        try:
            verdict = clause.holds if clause.call(values) else clause.refusal(values)
        except Exception as error:
            raise _raised(clause, error) from error
        verdicts.append(verdict)
        if failed is None and not verdict.ok:
            failed = verdict
    return failed


def _all_hold(clauses: Iterable[Clause], values: dict[str, Any], verdicts: list[Verdict]) -> bool:
    """Judge until one is false, add the verdicts."""
    for clause in clauses:
        try:
            holds = clause.call(values)
        except Exception as error:
            raise _raised(clause, error) from error
        if not holds:
            verdicts.append(clause.fails)
            return False
        verdicts.append(clause.holds)
    return True


def _raised(clause: Clause, error: Exception) -> _Broken:
    return _Broken(f"{clause.kind} {clause.name} raised {_describe(error)}")


def _violation(event: str, state: str, failed: Verdict, verdicts: list[Verdict]) -> Violation:
    return Violation(
        event=event,
        state=state,
        reason=f"{failed.kind} {failed.clause} does not hold ({_show(failed.saw)})",
        verdicts=tuple(verdicts),
    )


def _describe(error: Exception) -> str:
    """The kind of error and where, without its message, which may hold a secret."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    where = f" at line {trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}{where}"


def _show(saw: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in saw.items()) or "nothing to see"
