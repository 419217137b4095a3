"""Runs: accept, find, claim.  `persistence.writes` moves them.

A claim is one statement: it takes rows nobody owns, raises their fence and names the new owner.
Only a registered worker gets anything; one whose lease was taken away must beat first.

``due_ms`` is kept right while a run is owned, too, so that freeing a run is only ``owner = NULL``::

    due_ms = the run's own due time, or the moment an unconsumed event came in, if that is earlier
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from engine.ports import Claimed, Query, Start, Started, StoredRun, Write, Written
from engine.run import TERMINAL, Parent, Pending, Run
from persistence import tables
from persistence.database import Database, Session
from persistence.effects import add_pending
from persistence.inbox import waiting_by_run
from persistence.journal import add_entries
from persistence.writes import commit, mutable_columns

_r, _e = tables.run.c, tables.effect.c
_EFFECT = ("seq", "name", "key", "attempts", "open", "next_ms", "undo_of", "last_error")
_PARENT = msgspec.json.Decoder(Parent)
_UNDO = msgspec.json.Decoder(tuple[str, ...])

_SELECT = sa.select(
    tables.run, *(_e[name].label(f"effect_{name}") for name in _EFFECT)
).outerjoin_from(
    tables.run, tables.effect, sa.and_(_e.run_id == _r.run_id, _e.status == tables.PENDING)
)
_GET = _SELECT.where(_r.run_id == sa.bindparam("of"))
_OF_CLAIM = _SELECT.where(_r.run_id.in_(sa.bindparam("some", expanding=True))).order_by(
    _r.due_ms, _r.run_id
)
_PAGE = (
    _SELECT.where(_r.run_id > sa.bindparam("after")).order_by(_r.run_id).limit(sa.bindparam("most"))
)
_FIND = sa.select(_r.run_id).where(_r.machine == sa.bindparam("m"), _r.key == sa.bindparam("k"))
_BY_KEY = sa.select(_r.run_id, _r.machine, _r.key).where(
    sa.tuple_(_r.machine, _r.key).in_(sa.bindparam("pairs", expanding=True))
)
_BY_ID = sa.select(_r.run_id).where(_r.run_id.in_(sa.bindparam("some", expanding=True)))
_INSERT = sa.insert(tables.run)

_KNOWN = _r.version.in_(sa.bindparam("versions", expanding=True))
_REGISTERED = sa.exists().where(tables.worker.c.worker_id == sa.bindparam("who"))
_DUE = (
    sa.select(_r.run_id)
    .where(_r.due_ms.is_not(None), _r.owner.is_(None), _r.due_ms <= sa.bindparam("now"), _KNOWN)
    .order_by(_r.due_ms)
    .limit(sa.bindparam("most"))
    .with_for_update(skip_locked=True)
)
_THAT = (
    sa.select(_r.run_id)
    .where(
        _r.run_id == sa.bindparam("of"),
        _r.owner.is_(None),
        _r.status.not_in(sorted(TERMINAL)),
        _KNOWN,
    )
    .with_for_update(skip_locked=True)
)
_NEXT_DUE = (
    sa.select(_r.due_ms)
    .where(_r.due_ms.is_not(None), _r.owner.is_(None), _KNOWN)
    .order_by(_r.due_ms)
    .limit(1)
)


def _taking(chosen: sa.Select[Any]) -> sa.Executable:
    return (
        sa.update(tables.run)
        .where(_r.run_id.in_(chosen.scalar_subquery()), _REGISTERED)
        .values(owner=sa.bindparam("who"), fence=_r.fence + 1, stalls=_r.stalls + 1)
        .returning(_r.run_id)
    )


_TAKE_DUE, _TAKE_THAT = _taking(_DUE), _taking(_THAT)


class SqlRuns:
    """`engine.ports.Runs` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def start(self, starts: Sequence[Start]) -> list[Started]:
        """Accept runs; one whose (machine, key) or id exists is answered with the first one's id.

        The content is not compared; the first entry of the journal has what the first start gave.
        """
        if not starts:
            return []
        with self._database.transaction() as sql:
            return accept_runs(sql, starts)

    def get(self, run_id: str) -> StoredRun | None:
        """One run, encoded."""
        with self._database.reading() as sql:
            rows = sql.fetch(_GET, of=run_id)
        return _stored(rows[0]) if rows else None

    def find(self, machine: str, key: str) -> str | None:
        """The id of the run that was started with this key."""
        with self._database.reading() as sql:
            rows = sql.fetch(_FIND, m=machine, k=key)
        return str(rows[0].run_id) if rows else None

    def claim(
        self,
        worker_id: str,
        now_ms: int,
        *,
        limit: int,
        versions: Collection[str],
        run_id: str | None = None,
    ) -> list[Claimed]:
        """Take due, unowned runs of these versions, longest due first.

        With `run_id`: that run alone, due or not, unless it is owned or terminal.  A worker that
        is not registered (it never beat, or its lease was taken away) gets nothing.
        """
        known = sorted(versions)
        with self._database.transaction() as sql:
            if run_id is None:
                taken = sql.fetch(_TAKE_DUE, who=worker_id, now=now_ms, most=limit, versions=known)
            else:
                taken = sql.fetch(_TAKE_THAT, who=worker_id, of=run_id, versions=known)
            if not taken:
                return []
            rows = sql.fetch(_OF_CLAIM, some=[row.run_id for row in taken])
            waiting = waiting_by_run(sql, [row.run_id for row in rows])
        return [
            Claimed(
                run=_run(row),
                fence=row.fence,
                inbox=waiting.get(row.run_id, ()),
                stalls=row.stalls,
            )
            for row in rows
        ]

    def commit(self, writes: Sequence[Write]) -> list[Written]:
        """All writes in one transaction; see `persistence.writes`."""
        if not writes:
            return []
        with self._database.transaction() as sql:
            return commit(sql, writes, accept_runs)

    def next_due_ms(self, versions: Collection[str]) -> int | None:
        """When the next unowned run of these versions falls due."""
        with self._database.reading() as sql:
            rows = sql.fetch(_NEXT_DUE, versions=sorted(versions))
        return rows[0].due_ms if rows else None

    def select(self, query: Query) -> list[StoredRun]:
        """Runs that match, newest first."""
        select = _SELECT.order_by(_r.created_ms.desc(), _r.run_id.desc()).limit(query.limit)
        if query.machine is not None:
            select = select.where(_r.machine == query.machine)
        if query.statuses:
            select = select.where(_r.status.in_(query.statuses))
        if query.parent_id is not None:
            select = select.where(_r.parent_id == query.parent_id)
        with self._database.reading() as sql:
            return [_stored(row) for row in sql.fetch(select)]


def stored_run(sql: Session, run_id: str) -> Run:
    """One run that exists, encoded, inside the caller's transaction."""
    return _run(sql.fetch(_GET, of=run_id)[0])


def accept_runs(sql: Session, starts: Sequence[Start]) -> list[Started]:
    """Insert the runs that do not exist yet, with their first entry and effect."""
    by_key, by_id = _existing(sql, starts)
    answers, new = [], []
    for start in starts:
        run = start.run
        first = by_key.get((run.machine, run.key)) if run.key is not None else None
        if first is None and run.run_id in by_id:
            first = run.run_id
        answers.append(Started(run_id=first or run.run_id, created=first is None))
        if first is None:
            new.append(start)
            by_id.add(run.run_id)
            if run.key is not None:
                by_key[run.machine, run.key] = run.run_id
    sql.execute_many(_INSERT, [_new_row(start.run) for start in new])
    add_entries(sql, [(start.entry, 0) for start in new])
    add_pending(sql, [start.run for start in new])
    children = [child for start in new for child in start.children]
    if children:
        accept_runs(sql, children)
    return answers


def _existing(sql: Session, starts: Sequence[Start]) -> tuple[dict[tuple[str, str], str], set[str]]:
    pairs = [(one.run.machine, one.run.key) for one in starts if one.run.key is not None]
    keyed = sql.fetch(_BY_KEY, pairs=pairs) if pairs else ()
    by_key = {(row.machine, row.key): row.run_id for row in keyed}
    by_id = {row.run_id for row in sql.fetch(_BY_ID, some=[one.run.run_id for one in starts])}
    return by_key, by_id


def page_of(
    sql: Session, run_id: str, limit: int, *, only: bool = False
) -> list[tuple[str, StoredRun | str]]:
    """The runs after this one in the order of ids, or it alone; if unreadable, why instead."""
    rows = sql.fetch(_GET, of=run_id) if only else sql.fetch(_PAGE, after=run_id, most=limit)
    return [(row.run_id, _stored_or_why_not(row)) for row in rows]


def _stored_or_why_not(row: sa.Row[Any]) -> StoredRun | str:
    try:
        return _stored(row)
    except msgspec.MsgspecError as error:
        return f"undo list or parent of the run: {error}"


def _new_row(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "machine": run.machine,
        "key": run.key,
        "created_ms": run.created_ms,
        "updated_ms": run.created_ms,
        "parent_id": run.parent.run_id if run.parent else None,
        "parent": msgspec.json.encode(run.parent).decode() if run.parent else None,
        "depth": run.depth,
        "due_ms": run.due_ms,
        **mutable_columns(run),
    }


def _stored(row: sa.Row[Any]) -> StoredRun:
    return StoredRun(
        run=_run(row),
        fence=row.fence,
        owner=row.owner,
        due_ms=row.due_ms,
        stalls=row.stalls,
        updated_ms=row.updated_ms,
        output=row.output,
    )


def _run(row: sa.Row[Any]) -> Run:
    return Run(
        run_id=row.run_id,
        machine=row.machine,
        version=row.version,
        key=row.key,
        state=row.state,
        status=row.status,
        seq=row.seq,
        entered_seq=row.entered_seq,
        context=row.context,
        created_ms=row.created_ms,
        deadline_ms=row.deadline_ms,
        effect=_pending(row),
        child=row.child,
        undo=_UNDO.decode(row.undo),
        closing=row.closing,
        cancel_requested=row.cancel_requested,
        held_from=row.held_from,
        parent=_PARENT.decode(row.parent) if row.parent else None,
        depth=row.depth,
        last_error=row.last_error,
    )


def _pending(row: sa.Row[Any]) -> Pending | None:
    if row.effect_key is None:
        return None
    return Pending(
        seq=row.effect_seq,
        name=row.effect_name,
        key=row.effect_key,
        attempts=row.effect_attempts,
        open=row.effect_open,
        next_ms=row.effect_next_ms,
        undo_of=row.effect_undo_of,
        last_error=row.effect_last_error,
    )
