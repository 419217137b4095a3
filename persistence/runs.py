"""Runs: accept, find, claim.  `persistence.writes` moves them.

A claim takes ready rows that nobody owns, raises their fence and names the new owner, in one
statement that also reads them.  Only a registered worker gets anything; one whose lease was taken
away must beat first.  Before it, the timers that have come due are promoted: made ready.

``due_ms`` and ``ready`` are kept right while a run is owned, too, so that freeing a run is only
``owner = NULL``::

    due_ms = the run's own due time, or the moment an unconsumed event came in, if that is earlier
    ready  = due_ms had come when the row was written or promoted
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from engine.errors import StoreError
from engine.ports import Batch, Claimed, Done, Query, Start, Started, StoredRun, Write, Written
from engine.run import HELD, TERMINAL, Parent, Run
from persistence import tables
from persistence.database import Database, Session
from persistence.effects import pending_of
from persistence.fairness import Key, Turns
from persistence.inbox import accept_deliveries, waiting_by_run
from persistence.journal import add_first_entries
from persistence.lending import lent
from persistence.limits import LIMITED, SqlLimits, let_overdue_go
from persistence.writes import MUTABLE, UNDO_NONE, Missed, commit, mutable_values

_r = tables.run.c
_PARENT = msgspec.json.Decoder(Parent)
_UNDO = msgspec.json.Decoder(tuple[str, ...])

_SELECT = sa.select(tables.run)
_GET = _SELECT.where(_r.run_id == sa.bindparam("of"))
_PAGE = (
    _SELECT.where(_r.run_id > sa.bindparam("after")).order_by(_r.run_id).limit(sa.bindparam("most"))
)
_RESTED = _SELECT.where(
    _r.run_id.in_(sa.bindparam("some", expanding=True)), _r.status.in_(sorted(TERMINAL | HELD))
)
_FIND, _FIND_GONE = (
    sa.select(of.run_id).where(of.machine == sa.bindparam("m"), of.key == sa.bindparam("k"))
    for of in (_r, tables.gone.c)
)
_BY_KEY, _BY_KEY_GONE = (
    sa.select(of.run_id, of.machine, of.key).where(
        of.machine == sa.bindparam("m"), of.key.in_(sa.bindparam("keys", expanding=True))
    )
    for of in (_r, tables.gone.c)
)
_BY_ID = sa.select(_r.run_id).where(_r.run_id.in_(sa.bindparam("some", expanding=True)))
_INSERT = sa.insert(tables.run)
_NEW = (
    "run_id",
    "machine",
    "key",
    "created_ms",
    "updated_ms",
    "ended_ms",
    "parent_id",
    "parent",
    "depth",
    "priority",
    "tenant",
    "limits",
    "due_ms",
    "ready",
    "owner",
    "fence",
    "stalls",
    *MUTABLE,
)

_WORKERS = sa.select(tables.worker.c.worker_id).where(
    tables.worker.c.worker_id.in_(sa.bindparam("some", expanding=True))
)
_KNOWN = _r.version.in_(sa.bindparam("versions", expanding=True))
_REGISTERED = sa.exists().where(tables.worker.c.worker_id == sa.bindparam("who"))
_READY_WHERE = "ready AND owner IS NULL AND limits IS NULL"
_IS_READY = sa.text(_READY_WHERE)
_IS_LATER = sa.text("due_ms IS NOT NULL AND owner IS NULL AND NOT ready")
_TENANT = sa.select(_r.tenant).where(_IS_READY).limit(1).correlate(None)
_FIRST_TENANT = _TENANT.order_by(_r.tenant).scalar_subquery()
_LAST_TENANT = _TENANT.order_by(_r.tenant.desc()).scalar_subquery()
_TENANTS = sa.select(_FIRST_TENANT.label("first"), _LAST_TENANT.label("last"))
_DUE = (  # takes nothing where several tenants have work: they have their turns
    sa.select(_r.run_id)
    .where(_IS_READY, _KNOWN)
    .order_by(_r.tenant, _r.priority.desc(), _r.due_ms)
    .limit(
        sa.case((_FIRST_TENANT == _LAST_TENANT, sa.bindparam("most", type_=sa.BigInteger)), else_=0)
    )
    .with_for_update(skip_locked=True)
)
_DUE_OF = (
    sa.select(_r.run_id)
    .where(_IS_READY, _KNOWN, _r.tenant == sa.bindparam("whose"))
    .order_by(_r.priority.desc(), _r.due_ms)
    .limit(sa.bindparam("most"))
    .with_for_update(skip_locked=True)
)
_LATER = (
    sa.select(_r.run_id)
    .where(_IS_LATER, _r.due_ms <= sa.bindparam("now"))
    .order_by(_r.due_ms)
    .limit(sa.bindparam("most"))
    .with_for_update(skip_locked=True)
)
_PROMOTE = (
    sa.update(tables.run).where(_r.run_id.in_(_LATER.scalar_subquery())).values(ready=sa.true())
)
_ANY_LATER = sa.select(_r.due_ms).where(_IS_LATER).order_by(_r.due_ms).limit(1)
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
_NEXT_READY = sa.select(_r.due_ms).where(_IS_READY, _KNOWN).limit(1)
_NEXT_DUE = (
    sa.select(_r.due_ms, _r.version)
    .where(_IS_LATER)
    .order_by(_r.due_ms)
    .limit(sa.bindparam("most"))
)


def _taking(chosen: sa.Select[Any]) -> sa.Update:
    return (
        sa.update(tables.run)
        .where(_r.run_id.in_(chosen.scalar_subquery()), _REGISTERED)
        .values(owner=sa.bindparam("who"), fence=_r.fence + 1, stalls=_r.stalls + 1)
        .returning(*tables.run.c)
    )


_TAKE_DUE, _TAKE_DUE_OF, _TAKE_LIMITED = _taking(_DUE), _taking(_DUE_OF), _taking(LIMITED)
_TAKE_THAT = _taking(_THAT).values(limits=sa.null())


PARAMETERS_MOST = 10_000
"""How many values one statement brings; SQLite takes 32,766."""
LOOKED_AT_MOST = 32
"""How many timers `next_due_ms` looks at to find one of a known version."""
PROMOTED_MOST = 1_000
"""How many timers one claim makes ready: after an outage they come in such portions."""


Take = Callable[[int], list[Any]]
"""Takes at most so many ready runs, and gives their rows."""


def _take_due(sql: Session, now_ms: int, limit: int, take: Take) -> list[Any]:
    """Take what is ready, and timers that have come due.

    After an outage overdue timers are older than all new work.  So they are made ready for half of
    the places only (an odd place is theirs every other time), and for those that nobody else wants.
    """
    half = (limit + 1 - now_ms % 2) // 2
    more = _promote(sql, now_ms, half)
    rows = take(limit)
    if more and len(rows) < limit and _promote(sql, now_ms, limit - half):
        rows = [*rows, *take(limit - len(rows))]
    return rows


def _promote(sql: Session, now_ms: int, most: int) -> bool:
    """Make timers ready; whether there are any."""
    later = sql.fetch(_ANY_LATER)
    if not later or later[0].due_ms > now_ms:
        return False
    if most:
        sql.execute(_PROMOTE, now=now_ms, most=min(most, PROMOTED_MOST))
    return True


class SqlRuns:
    """`engine.ports.Runs` in SQL."""

    def __init__(self, database: Database, limits: SqlLimits) -> None:
        self._database = database
        self._limits = limits
        self._limited_first = False
        self._tenants = Turns(("tenant",), _READY_WHERE)

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
            return find_stored(sql, run_id)

    def rested(self, run_ids: Sequence[str]) -> list[StoredRun]:
        """Those of these runs that have ended or are held for a person."""
        with self._database.reading() as sql:
            return [
                _stored(row)
                for first in range(0, len(run_ids), PARAMETERS_MOST)
                for row in sql.fetch(_RESTED, some=run_ids[first : first + PARAMETERS_MOST])
            ]

    def find(self, machine: str, key: str) -> str | None:
        """The id of the run that was started with this key, also when it has been removed."""
        with self._database.reading() as sql:
            rows = sql.fetch(_FIND, m=machine, k=key) or sql.fetch(_FIND_GONE, m=machine, k=key)
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
        """Take due, unowned runs of these versions.

        Tenants in turn; of each tenant by priority, then longest due first.  With `run_id`: that
        run alone, due or not, unless it is owned or terminal.  A worker that is not registered (it
        never beat, or its lease was taken away) gets nothing.
        """
        known = sorted(versions)
        with self._database.transaction() as sql:
            if run_id is None:
                rows = self._take(sql, worker_id, now_ms, limit, known)
            else:
                rows = sql.fetch(_TAKE_THAT, who=worker_id, of=run_id, versions=known)
            if not rows:
                return []
            waiting = waiting_by_run(sql, [row.run_id for row in rows])
        return [
            Claimed(
                run=_run(row),
                fence=row.fence,
                inbox=waiting.get(row.run_id, ()),
                stalls=row.stalls,
                limits=row.limits,
            )
            for row in sorted(rows, key=_in_turn)
        ]

    def _take(
        self, sql: Session, worker_id: str, now_ms: int, limit: int, known: Sequence[str]
    ) -> list[Any]:
        def ready(most: int) -> list[Any]:
            rows = sql.fetch(_TAKE_DUE, who=worker_id, most=most, versions=known) if most else []
            found = () if rows or not most else sql.fetch(_TENANTS)
            if not found or found[0].first == found[0].last:
                return rows

            def of_tenant(tenant: Key, most: int) -> list[Any]:
                return sql.fetch(
                    _TAKE_DUE_OF, who=worker_id, whose=tenant[0], most=most, versions=known
                )

            return self._tenants.serve(self._tenants.next(sql), most, of_tenant)

        if not self._limits.any:
            return _take_due(sql, now_ms, limit, ready)

        def of_group(group: Key, most: int) -> list[Any]:
            needed, tenant = group
            return sql.fetch(
                _TAKE_LIMITED,
                who=worker_id, needed=needed, whose=tenant, most=most, versions=known,
            )  # fmt: skip

        def limited(most: int) -> list[Any]:
            return self._limits.claim(sql, worker_id, now_ms, most, of_group)

        let_overdue_go(sql, now_ms)
        self._limited_first = not self._limited_first
        if self._limited_first:  # else whoever has the larger backlog would have all places
            rows = limited(limit)
            return rows + _take_due(sql, now_ms, limit - len(rows), ready)
        rows = _take_due(sql, now_ms, limit, ready)
        return rows + limited(limit - len(rows))

    def commit(self, writes: Sequence[Write]) -> list[Written]:
        """All writes in one transaction; see `persistence.writes`."""
        return self.group(Batch(writes=tuple(writes))).written if writes else []

    def group(self, batch: Batch) -> Done:
        """Starts, deliveries and writes of many callers in one transaction, in this order."""
        at_once = self._database.at_once(batch)
        if at_once is not None:
            return Done(started=[], receipts=[], written=at_once)
        try:
            return self._group(batch, look=False)
        except Missed:
            pass
        try:
            return self._group(batch, look=True)
        except Missed:
            raise StoreError(
                f"database {self._database.name}: runs were looked at and could not be moved; the "
                "transaction was rolled back. This is a defect of turtles, please report it."
            ) from None

    def _group(self, batch: Batch, *, look: bool) -> Done:
        with self._database.transaction() as sql:
            started = accept_runs(sql, batch.starts) if batch.starts else []
            receipts = accept_deliveries(sql, batch.deliveries) if batch.deliveries else []
            written = commit(sql, batch.writes, accept_runs, look=look) if batch.writes else []
        return Done(started=started, receipts=receipts, written=written)

    def commit_with(self, work: Callable[[Any], Write]) -> Written:
        """One write in a transaction that also holds what `work` does with its connection."""
        try:
            with self._database.transaction() as sql:
                with lent(sql) as connection:
                    write = work(connection)
                (written,) = commit(sql, [write], accept_runs, look=False)
        except Missed:
            return Written(ok=False)
        return written

    def next_due_ms(self, versions: Collection[str]) -> int | None:
        """When the next unowned run of these versions falls due."""
        known = sorted(versions)
        with self._database.reading() as sql:
            rows = sql.fetch(_NEXT_READY, versions=known)
            if rows:
                return int(rows[0].due_ms)
            rows = sql.fetch(_NEXT_DUE, most=LOOKED_AT_MOST)
            limited = self._limits.next_ms(sql, known) if self._limits.any else None
        ours = [row.due_ms for row in rows if row.version in versions]
        # Beyond so many timers of others, look again when the last of them is due.
        due_ms = ours[0] if ours else rows[-1].due_ms if len(rows) == LOOKED_AT_MOST else None
        return min((at for at in (due_ms, limited) if at is not None), default=None)

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


def find_stored(sql: Session, run_id: str) -> StoredRun | None:
    """One run if it exists, encoded, inside the caller's transaction."""
    rows = sql.fetch(_GET, of=run_id)
    return _stored(rows[0]) if rows else None


def stored_run(sql: Session, run_id: str) -> Run:
    """One run that exists, encoded, inside the caller's transaction."""
    return _run(sql.fetch(_GET, of=run_id)[0])


def accept_runs(sql: Session, starts: Sequence[Start]) -> list[Started]:
    """Insert the runs that do not exist yet, with their first entry and effect.

    A key of a run that retention removed is in use like any other.
    """
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
    owners = {start.owner for start in new if start.owner is not None}
    live = {row.worker_id for row in sql.fetch(_WORKERS, some=sorted(owners))} if owners else ()
    sql.execute_rows(_INSERT, _NEW, [_new_row(start, start.owner in live) for start in new])
    if live:
        owned = {start.run.run_id for start in new if start.owner in live}
        answers = [
            msgspec.structs.replace(one, owned=one.created and one.run_id in owned)
            for one in answers
        ]
    add_first_entries(sql, [start.entry for start in new])
    children = [child for start in new for child in start.children]
    if children:
        accept_runs(sql, children)
    return answers


def _existing(sql: Session, starts: Sequence[Start]) -> tuple[dict[tuple[str, str], str], set[str]]:
    keys: dict[str, list[str]] = {}
    for start in starts:
        if start.run.key is not None:
            keys.setdefault(start.run.machine, []).append(start.run.key)
    # Machine by machine: as a list of pairs SQLite may take it for worth a walk over all runs.
    by_key = {
        (row.machine, row.key): row.run_id
        for machine, some in keys.items()
        for query in (_BY_KEY_GONE, _BY_KEY)
        for row in sql.fetch(query, m=machine, keys=some)
    }
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


def _new_row(start: Start, owned: bool) -> tuple[Any, ...]:
    run = start.run
    due_ms = run.due_ms
    return (
        run.run_id,
        run.machine,
        run.key,
        run.created_ms,
        run.created_ms,
        run.created_ms if run.terminal else None,
        run.parent.run_id if run.parent else None,
        msgspec.json.encode(run.parent).decode() if run.parent else None,
        run.depth,
        run.priority,
        run.tenant,
        start.limits,
        due_ms,
        due_ms is not None and due_ms <= run.created_ms,
        start.owner if owned else None,
        1 if owned else 0,
        1 if owned else 0,
        *mutable_values(run),
    )


def _in_turn(row: Any) -> tuple[Any, ...]:
    return (-row.priority, row.due_ms is None, row.due_ms, row.run_id)


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
        effect=pending_of(row),
        child=row.child,
        undo=_UNDO.decode(row.undo) if row.undo != UNDO_NONE else (),
        closing=row.closing,
        cancel_requested=row.cancel_requested,
        held_from=row.held_from,
        parent=_PARENT.decode(row.parent) if row.parent else None,
        depth=row.depth,
        priority=row.priority,
        tenant=row.tenant,
        last_error=row.last_error,
    )
