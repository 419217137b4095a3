"""Removing runs that ended long ago, and remembering that they were.

::

    one transaction    lock some roots that ended before the watermark, oldest first
                       walk down: children, their children, ...
                       keep a tree with a member that has not ended, or ended later
                       remember each run in turtles_gone; delete inbox, journal, run

A tree goes as a whole or stays as a whole, and a transaction holds whole trees: a death at any
moment leaves no run without its journal, and no child without its parent.  The watermark is the
time of *completion*, so a run that took a year is not gone the moment it ends.

What has been removed is found by the partial index on `ended_ms` and by the index on `parent_id`;
runs that are alive are never walked.  Roots are locked and those that another process has locked
are passed over, so two such processes share the work.

A row of `turtles_gone` keeps a key in use: a start with it is answered with the run's old id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from engine.codec import digest_of
from engine.ports import Gone, Removed
from persistence import tables
from persistence.database import Database, Session

_r, _g, _t = tables.run.c, tables.gone.c, tables.transition.c
_ENDED = sa.text("ended_ms IS NOT NULL")
_NODE = (_r.run_id, _r.machine, _r.key, _r.status, _r.ended_ms)
_SOME: sa.BindParameter[Any] = sa.bindparam("some", expanding=True)
_ROOTS = (
    sa.select(*_NODE)
    .where(
        _ENDED,
        _r.ended_ms < sa.bindparam("before"),
        _r.ended_ms >= sa.bindparam("after_ms"),
        sa.or_(_r.ended_ms > sa.bindparam("after_ms"), _r.run_id > sa.bindparam("after_id")),
        _r.parent_id.is_(None),
    )
    .order_by(_r.ended_ms, _r.run_id)
    .limit(sa.bindparam("most"))
)
_OF_MACHINE = _ROOTS.where(_r.machine == sa.bindparam("of"))
_BELOW = sa.select(*_NODE, _r.parent_id).where(_r.parent_id.in_(_SOME))
_FIRST = sa.select(_t.run_id, _t.context).where(_t.run_id.in_(_SOME), _t.seq == 1)
_REMEMBER = sa.insert(tables.gone)
_DELETE = tuple(
    sa.delete(table).where(table.c.run_id.in_(_SOME))
    for table in (tables.inbox, tables.transition, tables.run)
)
_GONE = sa.select(tables.gone).where(_g.run_id == sa.bindparam("of"))
_GONE_FIELDS = Gone.__struct_fields__
_OLD = (
    sa.select(_g.run_id)
    .where(_g.removed_ms < sa.bindparam("before"))
    .order_by(_g.removed_ms)
    .limit(sa.bindparam("most"))
)
_FORGET = sa.delete(tables.gone).where(_g.run_id.in_(_SOME))


class SqlRetention:
    """`engine.ports.Retention` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def remove(
        self,
        before_ms: int,
        now_ms: int,
        *,
        most: int,
        machine: str | None = None,
        after: tuple[int, str] | None = None,
        dry_run: bool = False,
    ) -> Removed:
        """Look at the next `most` trees, and remove those that ended before `before_ms`."""
        with self._database.reading() if dry_run else self._database.transaction() as sql:
            roots = _roots(sql, before_ms, most, machine, after or (0, ""), lock=not dry_run)
            levels = _levels(sql, roots, before_ms, lock=not dry_run)
            if not dry_run:
                _remove(sql, levels, now_ms)
        last = roots[-1] if roots else None
        return Removed(
            trees=len(levels[0]),
            runs=sum(map(len, levels)),
            kept=len(roots) - len(levels[0]),
            after=None if last is None or len(roots) < most else (last.ended_ms, last.run_id),
        )

    def gone(self, run_id: str) -> Gone | None:
        """What is remembered of a run that has been removed."""
        with self._database.reading() as sql:
            return find_gone(sql, run_id)

    def forget(self, before_ms: int, *, most: int) -> int:
        """Forget runs that were removed before then, and their keys; at most so many."""
        with self._database.transaction() as sql:
            old = [row.run_id for row in sql.fetch(_OLD, before=before_ms, most=most)]
            return sql.execute(_FORGET, some=old) if old else 0


def find_gone(sql: Session, run_id: str) -> Gone | None:
    """What is remembered of a run that has been removed, in the caller's transaction."""
    rows = sql.fetch(_GONE, of=run_id)
    return Gone(**{name: getattr(rows[0], name) for name in _GONE_FIELDS}) if rows else None


def _roots(
    sql: Session,
    before_ms: int,
    most: int,
    machine: str | None,
    after: tuple[int, str],
    *,
    lock: bool,
) -> list[Any]:
    query = _ROOTS_OF[machine is not None, lock]
    of = {} if machine is None else {"of": machine}
    return sql.fetch(query, before=before_ms, after_ms=after[0], after_id=after[1], most=most, **of)


_ROOTS_OF = {
    (named, lock): query.with_for_update(skip_locked=True) if lock else query
    for named, query in ((False, _ROOTS), (True, _OF_MACHINE))
    for lock in (False, True)
}
_BELOW_OF = {False: _BELOW, True: _BELOW.with_for_update()}


def _levels(sql: Session, roots: Sequence[Any], before_ms: int, *, lock: bool) -> list[list[Any]]:
    """The trees that may go, level by level from the roots."""
    tree = {row.run_id: row.run_id for row in roots}
    kept: set[str] = set()
    levels = [list(roots)]
    while levels[-1]:
        parents = [row.run_id for row in levels[-1]]
        below = sql.fetch(_BELOW_OF[lock], some=parents)
        for row in below:
            tree[row.run_id] = tree[row.parent_id]
            if row.ended_ms is None or row.ended_ms >= before_ms:
                kept.add(tree[row.run_id])
        levels.append(below)
    return [[row for row in level if tree[row.run_id] not in kept] for level in levels]


AT_ONCE = 500
"""So many runs are named in one statement; a tree may have more."""


def _remove(sql: Session, levels: Sequence[Sequence[Any]], now_ms: int) -> None:
    for level in reversed(levels):  # children before parents
        for start in range(0, len(level), AT_ONCE):
            some = level[start : start + AT_ONCE]
            run_ids = [row.run_id for row in some]
            sql.execute_many(_REMEMBER, list(_remembered(sql, some, run_ids, now_ms)))
            for statement in _DELETE:
                sql.execute(statement, some=run_ids)


def _remembered(
    sql: Session, rows: Sequence[Any], run_ids: list[str], now_ms: int
) -> Iterable[dict[str, Any]]:
    first = {row.run_id: row.context for row in sql.fetch(_FIRST, some=run_ids)}
    for row in rows:
        yield {
            "run_id": row.run_id,
            "machine": row.machine,
            "key": row.key,
            "status": row.status,
            "ended_ms": row.ended_ms,
            "removed_ms": now_ms,
            "digest": digest_of(first.get(row.run_id, b"")),
        }
