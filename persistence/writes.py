"""Moving runs: a batch of writes in one transaction.

::

    for each round (a run has at most one write in it; later writes of the same run wait):
        move      compare-and-set of every run: owner, fence, seq and pending effect as said
        settle    the events consumed, each once
        write     journal, children, sends
    at the end    what is still unconsumed: wake those runs, refuse it in runs that ended

Nothing is read before it is written.  When a count says that not every run was as its write says,
`Missed` takes the whole transaction back, and it is made again with a look before each round that
tells which writes to refuse: `ok=False`, no effect at all.  So it is when the worker lost the run
(other fence, or owner gone), when the run is at another seq or has another pending effect than
`before`, or when an event it consumes was consumed already.

A run that has ended is given up whether or not the write says so.  `Written.arrived` is *every*
event of the run that is still unconsumed, oldest first: a worker replaces its list by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from engine.ports import Start, Started, Write, Written
from engine.run import TERMINAL, Run
from persistence import tables
from persistence.database import Session
from persistence.effects import PENDING_COLUMNS, pending_values
from persistence.inbox import accept_sends, consume, refuse_rest, waiting_by_run, wake, wakes
from persistence.journal import add_transitions
from persistence.limits import free_slots

_log = structlog.get_logger("turtles.store")
_r, _i = tables.run.c, tables.inbox.c
_LOOK = (
    sa.select(_r.run_id, _r.fence, _r.owner, _r.seq, _r.effect_seq)
    .where(_r.run_id.in_(sa.bindparam("some", expanding=True)))
    .order_by(_r.run_id)
    .with_for_update()
)
_UNCONSUMED = sa.select(_i.run_id, _i.number).where(
    _i.number.in_(sa.bindparam("numbers", expanding=True)), _i.status == tables.ACCEPTED
)
MUTABLE = (
    "version",
    "state",
    "status",
    "seq",
    "entered_seq",
    "context",
    "deadline_ms",
    "child",
    "undo",
    "closing",
    "cancel_requested",
    "held_from",
    "last_error",
    *PENDING_COLUMNS,
)
_STEP = (*MUTABLE, "due_ms", "ready", "limits", "updated_ms", "ended_ms")
_MOVE = (
    sa.update(tables.run)
    .where(
        _r.run_id == sa.bindparam("of"),
        _r.fence == sa.bindparam("mine"),
        _r.owner.is_not(None),
        _r.seq == sa.bindparam("expected"),
        _r.effect_seq.is_not_distinct_from(sa.bindparam("known", type_=sa.Integer)),
    )
    .values(
        **{name: sa.bindparam(f"new_{name}", type_=_r[name].type) for name in _STEP},
        owner=sa.case((sa.bindparam("release", type_=sa.Boolean), sa.null()), else_=_r.owner),
        stalls=sa.case(
            (sa.bindparam("moved", type_=sa.Boolean), sa.literal_column("0")), else_=_r.stalls
        ),
        output=sa.func.coalesce(sa.bindparam("new_output", type_=sa.LargeBinary), _r.output),
    )
)

# In the order of the statement, so that no row has to be put in order.
_VALUES = (
    "new_version",
    "new_state",
    "new_status",
    "new_seq",
    "new_entered_seq",
    "release",
    "new_due_ms",
    "new_ready",
    "new_limits",
    "moved",
    "new_updated_ms",
    "new_ended_ms",
    "new_deadline_ms",
    *(f"new_{name}" for name in PENDING_COLUMNS),
    "new_child",
    "new_undo",
    "new_closing",
    "new_cancel_requested",
    "new_held_from",
    "new_last_error",
    "new_context",
    "new_output",
    "of",
    "mine",
    "expected",
    "known",
)

AcceptRuns = Callable[[Session, Sequence[Start]], list[Started]]


class Missed(Exception):
    """Not every run was as its write says; nothing may be kept of this transaction."""


def commit(
    sql: Session, writes: Sequence[Write], accept_runs: AcceptRuns, *, look: bool = True
) -> list[Written]:
    """Apply every write whose run is as it says; the answers are in the order of the writes.

    Args:
        look: first see whether the runs are as the writes say.

    Raises:
        Missed: one is not, and `look` is false.
    """
    ok = [True] * len(writes)
    for places in _rounds(writes):
        some = [writes[place] for place in places]
        if look:
            good = _still_owned(sql, some)
            for place, write in zip(places, some, strict=True):
                ok[place] = write in good
            some = good
        _apply(sql, some, accept_runs)
    last = {write.before.run_id: write for write, done in zip(writes, ok, strict=True) if done}
    arrived = _settle_arrivals(sql, list(last.values())) if last else {}
    nothing = Written(ok=True)
    return [
        (
            Written(ok=True, arrived=arrived[write.before.run_id])
            if write.before.run_id in arrived
            else nothing
        )
        if done
        else Written(ok=False)
        for write, done in zip(writes, ok, strict=True)
    ]


UNDO_NONE = "[]"


def mutable_values(run: Run) -> tuple[Any, ...]:
    """What a step may change of a run, encoded, in the order of `MUTABLE`."""
    return (
        run.version,
        run.state,
        run.status,
        run.seq,
        run.entered_seq,
        run.context,
        run.deadline_ms,
        run.child,
        msgspec.json.encode(run.undo).decode() if run.undo else UNDO_NONE,
        run.closing,
        run.cancel_requested,
        run.held_from,
        run.last_error,
        *pending_values(run.effect),
    )


def _rounds(writes: Sequence[Write]) -> list[list[int]]:
    rounds: list[list[int]] = []
    turn: dict[str, int] = {}
    for place, write in enumerate(writes):
        number = turn.get(write.before.run_id, 0)
        turn[write.before.run_id] = number + 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(place)
    return rounds


def _still_owned(sql: Session, writes: Sequence[Write]) -> list[Write]:
    rows = sql.fetch(_LOOK, some=[write.before.run_id for write in writes])
    found = {row.run_id: row for row in rows}
    numbers = [one.number for write in writes for one in write.consumed]
    unconsumed = (
        {(row.run_id, row.number) for row in sql.fetch(_UNCONSUMED, numbers=numbers)}
        if numbers
        else set()
    )
    return [
        write for write in writes if _is_as_said(write, found.get(write.before.run_id), unconsumed)
    ]


def _is_as_said(write: Write, row: Any, unconsumed: set[tuple[str, int]]) -> bool:
    before = write.before
    return (
        row is not None
        and row.owner is not None
        and row.fence == write.fence
        and row.seq == before.seq
        and row.effect_seq == (before.effect.seq if before.effect else None)
        and all((before.run_id, one.number) in unconsumed for one in write.consumed)
    )


def _apply(sql: Session, writes: Sequence[Write], accept_runs: AcceptRuns) -> None:
    consumed = sum([len(write.consumed) for write in writes])
    moved = sql.execute_rows(_MOVE, _VALUES, list(map(_move, writes)))
    if moved != len(writes) or (consumed and consume(sql, writes) != consumed):
        raise Missed
    add_transitions(sql, [write for write in writes if write.entry])
    held = [write for write in writes if write.held]
    if held:
        free_slots(sql, held)
    starts = [start for write in writes for start in write.starts]
    if starts:
        accept_runs(sql, starts)
    sends = [send for write in writes for send in write.sends]
    for one in accept_sends(sql, sends) if sends else ():
        _log.warning("send.dropped", event_name=one.event, receiver=one.run_id, why="no such run")


def _move(write: Write) -> tuple[Any, ...]:
    """The values of `_VALUES`."""
    before, after, at_ms = write.before, write.after, write.at_ms
    due_ms, ended = after.due_ms, after.status in TERMINAL
    return (
        after.version,
        after.state,
        after.status,
        after.seq,
        after.entered_seq,
        write.release or ended,
        due_ms,
        due_ms is not None and due_ms <= at_ms,
        write.limits,
        write.entry is not None,
        at_ms,
        at_ms if ended else None,
        after.deadline_ms,
        *pending_values(after.effect),
        after.child,
        msgspec.json.encode(after.undo).decode() if after.undo else UNDO_NONE,
        after.closing,
        after.cancel_requested,
        after.held_from,
        after.last_error,
        after.context,
        write.output,
        before.run_id,
        write.fence,
        before.seq,
        None if before.effect is None else before.effect.seq,
    )


def _settle_arrivals(sql: Session, writes: Sequence[Write]) -> dict[str, Any]:
    """Wake the runs for which events wait; refuse what is left over in those that have ended."""
    arrived = waiting_by_run(sql, [write.after.run_id for write in writes])
    woken, ended = [], []
    for write in writes:
        run, events = write.after, arrived.get(write.after.run_id, ())
        if run.status in TERMINAL and events:
            ended.append((run.run_id, run.status))
            del arrived[run.run_id]
        elif wakes(run.status, [one.event for one in events]):
            woken.append((run.run_id, write.at_ms, _goes_before_limits(run, events)))
    refuse_rest(sql, ended)
    wake(sql, woken)
    return arrived


def _goes_before_limits(run: Run, events: Sequence[Any]) -> bool:
    """Whether a worker can do something with these events while the run's effect may not be made.

    Not so when an attempt is in doubt: reconciling it comes before all but operators' requests.
    """
    doubt = run.effect is not None and run.effect.open
    return not doubt or any(one.event.startswith("$") for one in events)


MOVING = (_MOVE, _VALUES, _move)
"""The statement that moves a run, the names of its values, and what makes them of a write."""
