"""Events for runs: accepted once per key, settled once, in the transaction of the step.

::

    deliver -> accepted -+-> applied    caused transition `consumed_seq`
                         +-> rejected   refused, or the run had ended; `reason` says why

The run row is locked before its events are read, so two deliveries to one run come one after the
other and the first receipt stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from engine.errors import UnknownRun
from engine.ports import Consumed, Delivery, InboxEvent, Receipt, Write
from engine.run import HELD, TERMINAL
from persistence import tables
from persistence.database import Database, Session

_i, _r = tables.inbox.c, tables.run.c
_INSERT = sa.insert(tables.inbox)
_RECEIVERS = (
    sa.select(_r.run_id, _r.status)
    .where(_r.run_id.in_(sa.bindparam("some", expanding=True)))
    .order_by(_r.run_id)
    .with_for_update()
)
_USED = sa.select(tables.inbox).where(
    sa.tuple_(_i.run_id, _i.key).in_(sa.bindparam("pairs", expanding=True))
)
_ONE = sa.select(tables.inbox).where(_i.run_id == sa.bindparam("of"), _i.key == sa.bindparam("by"))
_WAITING = (
    sa.select(_i.run_id, _i.number, _i.key, _i.event, _i.payload, _i.at_ms)
    .where(_i.run_id.in_(sa.bindparam("some", expanding=True)), _i.status == tables.ACCEPTED)
    .order_by(_i.number)
)
_CONSUME = (
    sa.update(tables.inbox)
    .where(_i.number == sa.bindparam("the"), _i.status == tables.ACCEPTED)
    .values(
        status=sa.bindparam("became"), reason=sa.bindparam("why"), consumed_seq=sa.bindparam("by")
    )
)
_REFUSE_REST = (
    sa.update(tables.inbox)
    .where(_i.run_id == sa.bindparam("of"), _i.status == tables.ACCEPTED)
    .values(status="rejected", reason=sa.bindparam("why"))
)
_WAKE = (
    sa.update(tables.run)
    .where(_r.run_id == sa.bindparam("of"))
    .values(
        due_ms=sa.case(
            (_r.due_ms < sa.bindparam("at", type_=sa.BigInteger), _r.due_ms),
            else_=sa.bindparam("at", type_=sa.BigInteger),
        ),
        ready=sa.true(),
        # An event needs no slot.  What its effect needs is asked anew by whoever takes the run.
        limits=sa.case(
            (sa.and_(sa.bindparam("unlimited", type_=sa.Boolean), _r.owner.is_(None)), sa.null()),
            else_=_r.limits,
        ),
    )
)


class SqlInbox:
    """`engine.ports.Inbox` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def deliver(self, deliveries: Sequence[Delivery]) -> list[Receipt]:
        """Accept events and make their runs due; all in one transaction.

        Raises:
            UnknownRun: a run does not exist; then none of the events was accepted.
        """
        if not deliveries:
            return []
        with self._database.transaction() as sql:
            statuses = _statuses(sql, deliveries)
            for one in deliveries:
                if one.run_id not in statuses:
                    raise UnknownRun(
                        f"event {one.event!r}: no run has the id {one.run_id!r}. "
                        "Look it up with `turtles list`."
                    )
            return _accept(sql, deliveries, statuses)

    def receipt(self, run_id: str, key: str) -> Receipt | None:
        """What became of an earlier delivery."""
        with self._database.reading() as sql:
            rows = sql.fetch(_ONE, of=run_id, by=key)
        return _receipt(rows[0]) if rows else None

    def waiting(self, run_id: str) -> list[InboxEvent]:
        """Events not consumed yet, oldest first."""
        with self._database.reading() as sql:
            return list(waiting_by_run(sql, [run_id]).get(run_id, ()))


def accept_deliveries(sql: Session, deliveries: Sequence[Delivery]) -> list[Receipt | None]:
    """Accept what several callers give; None for a run that does not exist, for that one alone."""
    statuses = _statuses(sql, deliveries)
    known = [one for one in deliveries if one.run_id in statuses]
    receipts = iter(_accept(sql, known, statuses))
    return [next(receipts) if one.run_id in statuses else None for one in deliveries]


def accept_sends(sql: Session, sends: Sequence[Delivery]) -> list[Delivery]:
    """Accept what runs send each other; returns those whose receiver does not exist."""
    if not sends:
        return []
    statuses = _statuses(sql, sends)
    _accept(sql, [one for one in sends if one.run_id in statuses], statuses)
    return [one for one in sends if one.run_id not in statuses]


def waiting_by_run(sql: Session, run_ids: Sequence[str]) -> dict[str, tuple[InboxEvent, ...]]:
    """The unconsumed events of these runs, oldest first."""
    found: dict[str, tuple[InboxEvent, ...]] = {}
    for row in sql.fetch(_WAITING, some=list(run_ids)) if run_ids else ():
        one = InboxEvent(
            number=row.number, key=row.key, event=row.event, payload=row.payload, at_ms=row.at_ms
        )
        found[row.run_id] = (*found.get(row.run_id, ()), one)
    return found


def consume(sql: Session, writes: Sequence[Write]) -> int:
    """Settle the events that these writes consume; how many still could be."""
    return sql.execute_many(
        _CONSUME, [_consumed(write, one) for write in writes for one in write.consumed]
    )


def wakes(status: str, events: Sequence[str]) -> bool:
    """Whether these unconsumed events make a run of this status due: if held, `$...` only."""
    if status in HELD:
        return any(event.startswith("$") for event in events)
    return bool(events) and status not in TERMINAL


def wake(sql: Session, some: Sequence[tuple[str, int, bool]]) -> None:
    """Make runs due at a moment, or leave them due earlier; and whether that needs no limits."""
    sql.execute_many(
        _WAKE,
        [{"of": run_id, "at": at_ms, "unlimited": free} for run_id, at_ms, free in some],
    )


def refuse_rest(sql: Session, ended: Sequence[tuple[str, str]]) -> None:
    """Reject every event left over in runs that have just ended with this status."""
    sql.execute_many(
        _REFUSE_REST, [{"of": run_id, "why": _ended(status)} for run_id, status in ended]
    )


def _ended(status: str) -> str:
    return f"the run is {status}"


def _consumed(write: Write, one: Consumed) -> dict[str, Any]:
    by = write.after.seq if one.status == "applied" else None
    return {"the": one.number, "became": one.status, "why": one.reason, "by": by}


def _statuses(sql: Session, deliveries: Sequence[Delivery]) -> dict[str, str]:
    run_ids = sorted({one.run_id for one in deliveries})
    return {row.run_id: row.status for row in sql.fetch(_RECEIVERS, some=run_ids)}


def _accept(
    sql: Session, deliveries: Sequence[Delivery], statuses: dict[str, str]
) -> list[Receipt]:
    pairs = list({(one.run_id, one.key) for one in deliveries})
    used: dict[tuple[str, str], Any] = {
        (row.run_id, row.key): row for row in sql.fetch(_USED, pairs=pairs)
    }
    receipts, rows, woken = [], [], []
    for one in deliveries:
        first = used.get((one.run_id, one.key))
        if first is None:
            row = _Row(_new_row(one, statuses[one.run_id]))
            used[one.run_id, one.key] = row
            rows.append(row)
            receipts.append(_receipt(row))
            if wakes(statuses[one.run_id], (one.event,)):
                woken.append((one.run_id, one.at_ms, True))
        else:
            receipts.append(_receipt(first, again=one))
    sql.execute_many(_INSERT, rows)
    wake(sql, woken)
    return receipts


class _Row(dict[str, Any]):
    """A row about to be inserted, which reads like one that was fetched."""

    __getattr__ = dict.__getitem__


def _new_row(one: Delivery, run_status: str) -> dict[str, Any]:
    ended = run_status in TERMINAL
    return {
        "run_id": one.run_id,
        "key": one.key,
        "event": one.event,
        "at_ms": one.at_ms,
        "status": "rejected" if ended else "accepted",
        "reason": _ended(run_status) if ended else None,
        "consumed_seq": None,
        "payload": one.payload,
    }


def _receipt(row: Any, again: Delivery | None = None) -> Receipt:
    return Receipt(
        run_id=row.run_id,
        key=row.key,
        status=row.status,
        duplicate=again is not None,
        same=again is None or (row.event, row.payload) == (again.event, again.payload),
        seq=row.consumed_seq,
        reason=row.reason,
    )
