"""Moving runs: a batch of writes in one transaction.

::

    for each round (a run has at most one write in it; later writes of the same run wait):
        lock and look     fence, owner, seq and pending effect of every run, the events consumed
        sort out          a write whose run is not as it says is refused: ok=False, no effect at all
        write             journal, effects, inbox, run (compare-and-set again), children, sends
    at the end            what is still unconsumed: wake those runs, refuse it in runs that ended

A write is refused when the worker lost the run (other fence, or owner gone), when the run is at
another seq or has another pending effect than `before`, or when an event it consumes was consumed
already.  The rows looked at cannot change before the commit, so the compare-and-set cannot miss.

A run that has ended is given up whether or not the write says so.  `Written.arrived` is *every*
event of the run that is still unconsumed, oldest first: a worker replaces its list by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from engine.errors import StoreError
from engine.ports import Start, Started, Write, Written
from engine.run import TERMINAL, Run
from persistence import tables
from persistence.database import Session
from persistence.effects import settle_effects
from persistence.inbox import accept_sends, consume, refuse_rest, waiting_by_run, wake, wakes
from persistence.journal import add_entries

_log = structlog.get_logger("turtles.store")
_r, _e, _i = tables.run.c, tables.effect.c, tables.inbox.c
_LOOK = (
    sa.select(_r.run_id, _r.fence, _r.owner, _r.seq, _e.key.label("effect_key"))
    .outerjoin_from(
        tables.run, tables.effect, sa.and_(_e.run_id == _r.run_id, _e.status == tables.PENDING)
    )
    .where(_r.run_id.in_(sa.bindparam("some", expanding=True)))
    .with_for_update(of=tables.run)
)
_UNCONSUMED = sa.select(_i.run_id, _i.number).where(
    _i.number.in_(sa.bindparam("numbers", expanding=True)), _i.status == tables.ACCEPTED
)
_MUTABLE = (
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
)
_MOVE = (
    sa.update(tables.run)
    .where(
        _r.run_id == sa.bindparam("of"),
        _r.fence == sa.bindparam("mine"),
        _r.owner.is_not(None),
        _r.seq == sa.bindparam("expected"),
    )
    .values(
        **{name: sa.bindparam(f"new_{name}") for name in _MUTABLE},
        due_ms=sa.bindparam("new_due_ms"),
        updated_ms=sa.bindparam("at"),
        owner=sa.case((sa.bindparam("release", type_=sa.Boolean), None), else_=_r.owner),
        stalls=sa.case((sa.bindparam("moved", type_=sa.Boolean), 0), else_=_r.stalls),
        output=sa.func.coalesce(sa.bindparam("new_output", type_=sa.LargeBinary), _r.output),
    )
)

AcceptRuns = Callable[[Session, Sequence[Start]], list[Started]]


def commit(sql: Session, writes: Sequence[Write], accept_runs: AcceptRuns) -> list[Written]:
    """Apply every write whose run is as it says; the answers are in the order of the writes."""
    ok = [False] * len(writes)
    for places in _rounds(writes):
        good = _still_owned(sql, [(place, writes[place]) for place in places])
        for place, _ in good:
            ok[place] = True
        _apply(sql, [write for _, write in good], accept_runs)
    last = {write.before.run_id: write for write, done in zip(writes, ok, strict=True) if done}
    arrived = _settle_arrivals(sql, list(last.values())) if last else {}
    return [
        Written(ok=done, arrived=arrived.get(write.before.run_id, ()) if done else ())
        for write, done in zip(writes, ok, strict=True)
    ]


def mutable_columns(run: Run) -> dict[str, Any]:
    """The columns of a run that a step may change, from its encoded value."""
    return {
        "version": run.version,
        "state": run.state,
        "status": run.status,
        "seq": run.seq,
        "entered_seq": run.entered_seq,
        "context": run.context,
        "deadline_ms": run.deadline_ms,
        "child": run.child,
        "undo": msgspec.json.encode(run.undo).decode(),
        "closing": run.closing,
        "cancel_requested": run.cancel_requested,
        "held_from": run.held_from,
        "last_error": run.last_error,
    }


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


def _still_owned(sql: Session, numbered: Sequence[tuple[int, Write]]) -> list[tuple[int, Write]]:
    rows = sql.fetch(_LOOK, some=[write.before.run_id for _, write in numbered])
    found = {row.run_id: row for row in rows}
    numbers = [one.number for _, write in numbered for one in write.consumed]
    unconsumed = (
        {(row.run_id, row.number) for row in sql.fetch(_UNCONSUMED, numbers=numbers)}
        if numbers
        else set()
    )
    return [
        (place, write)
        for place, write in numbered
        if _is_as_said(write, found.get(write.before.run_id), unconsumed)
    ]


def _is_as_said(write: Write, row: Any, unconsumed: set[tuple[str, int]]) -> bool:
    before = write.before
    return (
        row is not None
        and row.owner is not None
        and row.fence == write.fence
        and row.seq == before.seq
        and row.effect_key == (before.effect.key if before.effect else None)
        and all((before.run_id, one.number) in unconsumed for one in write.consumed)
    )


def _apply(sql: Session, writes: Sequence[Write], accept_runs: AcceptRuns) -> None:
    if not writes:
        return
    add_entries(sql, [(write.entry, write.fence) for write in writes if write.entry])
    settle_effects(sql, writes)
    consume(sql, writes)
    moved = sql.execute_many(_MOVE, [_move(write) for write in writes])
    if moved != len(writes):
        raise StoreError(
            f"store: {len(writes)} runs were checked and {moved} could be written; "
            "the transaction was rolled back. This is a defect of turtles, please report it."
        )
    starts = [start for write in writes for start in write.starts]
    if starts:
        accept_runs(sql, starts)
    lost = accept_sends(sql, [send for write in writes for send in write.sends])
    for one in lost:
        _log.warning("send.dropped", event_name=one.event, receiver=one.run_id, why="no such run")


def _move(write: Write) -> dict[str, Any]:
    return {
        "of": write.before.run_id,
        "mine": write.fence,
        "expected": write.before.seq,
        **{f"new_{name}": value for name, value in mutable_columns(write.after).items()},
        "new_due_ms": write.after.due_ms,
        "new_output": write.output,
        "at": write.at_ms,
        "release": write.release or write.after.status in TERMINAL,
        "moved": write.entry is not None,
    }


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
            woken.append((run.run_id, write.at_ms))
    refuse_rest(sql, ended)
    wake(sql, woken)
    return arrived
