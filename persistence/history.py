"""All that is stored, in pages of whole runs: what `verify --history` and `doctor` read.

A page is read in one transaction, so the run, its journal, its effects and its inbox are of the
same moment, whatever is going on meanwhile.  Pages follow the primary keys, so reading on costs
the same anywhere in a large database, and memory is bounded by the page::

    page      runs in the order of their ids, as many as their journals allow
    cut       one run whose journal alone is longer than a page: its beginning
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import sqlalchemy as sa

from engine.ids import idempotency_key
from engine.journal import Entry
from engine.ports import Finding, History, PastEffect, PastEvent
from persistence import runs, tables
from persistence.database import Database, Session
from persistence.journal import tagged

_t, _e, _i = tables.transition.c, tables.effect.c, tables.inbox.c
_FIRST: sa.BindParameter[str] = sa.bindparam("first")
_LAST: sa.BindParameter[str] = sa.bindparam("last")
_JOURNALS = (
    sa.select(tables.transition)
    .where(_t.run_id >= _FIRST, _t.run_id <= _LAST)
    .order_by(_t.run_id, _t.seq)
    .limit(sa.bindparam("most"))
)
_EFFECTS = (
    sa.select(tables.effect)
    .where(_e.run_id >= _FIRST, _e.run_id <= _LAST)
    .order_by(_e.run_id, _e.seq, _e.name)
)
_INBOXES = (
    sa.select(_i.run_id, _i.number, _i.key, _i.event, _i.status, _i.consumed_seq)
    .where(_i.run_id >= _FIRST, _i.run_id <= _LAST)
    .order_by(_i.run_id, _i.number)
)
_by_run = attrgetter("run_id")


def histories(
    database: Database, run_id: str, *, only: bool = False, most_runs: int = 1, most_entries: int
) -> list[History]:
    """See `engine.ports.Inspector.histories`; with `only`, that run instead of those after it."""
    with database.reading() as sql:
        page = runs.page_of(sql, run_id, most_runs, only=only)
        if not page:
            return []
        stored = dict(page)  # a run with two pending effects comes twice
        run_ids, journals, cut = _journals(sql, list(stored), most_entries)
        ends = {"first": run_ids[0], "last": run_ids[-1]}
        effects = _grouped(sql.fetch(_EFFECTS, **ends))
        inboxes = _grouped(sql.fetch(_INBOXES, **ends))
    return [
        _history(
            of,
            stored[of],
            journals.get(of, ()),
            effects.get(of, ()),
            inboxes.get(of, ()),
            cut=cut,
        )
        for of in run_ids
    ]


def _journals(
    sql: Session, run_ids: list[str], most: int
) -> tuple[list[str], dict[str, list[Any]], bool]:
    """The runs of the page whose journals are whole, their rows, and whether the one is cut."""
    rows = sql.fetch(_JOURNALS, first=run_ids[0], last=run_ids[-1], most=most + 1)
    journals = _grouped(rows)
    if len(rows) <= most:
        return run_ids, journals, False
    last = rows[-1].run_id
    whole = [run_id for run_id in run_ids if run_id < last]
    if whole:
        return whole, journals, False
    return [last] if last in run_ids else run_ids[:1], {last: rows[:most]}, True


def _grouped(rows: Iterable[Any]) -> dict[str, list[Any]]:
    return {run_id: list(some) for run_id, some in groupby(rows, _by_run)}


def _history(
    run_id: str,
    stored: Any,
    entries: Sequence[Any],
    effects: Sequence[Any],
    inbox: Sequence[Any],
    *,
    cut: bool,
) -> History:
    if isinstance(stored, str):
        return History(run_id=run_id, unreadable=stored)
    return History(
        run_id=run_id,
        stored=stored,
        entries=tuple(map(_entry, entries)),
        verdicts=tuple([row.verdicts for row in entries]),
        fences=tuple([row.fence for row in entries]),
        effects=tuple(map(_effect, effects)),
        inbox=tuple(map(_event, inbox)),
        cut=cut,
    )


def _entry(row: Any) -> Entry:
    return Entry(
        run_id=row.run_id,
        seq=row.seq,
        event=row.event,
        source=row.source,
        target=row.target,
        payload=row.payload and tagged(row.event, row.payload),
        verdicts=(),
        context=row.context,
        status=row.status,
        at_ms=row.at_ms,
        worker=row.worker,
    )


def _effect(row: Any) -> PastEffect:
    return PastEffect(
        run_id=row.run_id,
        seq=row.seq,
        name=row.name,
        key=idempotency_key(row.run_id, row.seq, row.name),
        attempts=row.attempts,
        open=row.open,
        next_ms=row.next_ms,
        status=row.status,
        undo_of=row.undo_of,
        last_error=row.last_error,
        calls=row.calls,
        closed_seq=row.closed_seq,
    )


def _event(row: Any) -> PastEvent:
    return PastEvent(
        number=row.number,
        key=row.key,
        event=row.event,
        status=row.status,
        consumed_seq=row.consumed_seq,
    )


_TERMINAL = "('completed', 'failed', 'cancelled')"

_RELATIONS: tuple[tuple[str, str], ...] = (
    *(
        (
            "no run",
            f"""
            SELECT DISTINCT o.run_id AS run_id, 'rows of {table}, but no such run' AS problem
            FROM {table} o
            WHERE NOT EXISTS (SELECT 1 FROM turtles_run r WHERE r.run_id = o.run_id)
            """,  # noqa: S608 - constants of this module
        )
        for table in ("turtles_transition", "turtles_effect", "turtles_inbox")
    ),
    (
        "orphan child",
        f"""
        SELECT c.run_id AS run_id,
            'it is ' || c.status || ', but its parent ' || p.run_id || ' is ' || p.status
            || ' and has neither left it nor cancelled it' AS problem
        FROM turtles_run c
        JOIN turtles_run p ON p.run_id = c.parent_id
        WHERE c.parent_id IS NOT NULL
            AND c.status NOT IN {_TERMINAL} AND p.status IN {_TERMINAL}
            AND c.closing IS NULL AND c.parent NOT LIKE '%"on_parent_end":"abandon"%'
            AND NOT EXISTS (
                SELECT 1 FROM turtles_inbox i
                WHERE i.run_id = c.run_id AND i.event = '$cancel'
            )
        """,  # noqa: S608 - constants of this module
    ),
    (
        "parent not told",
        f"""
        SELECT p.run_id AS run_id,
            'its child ' || c.run_id || ' is ' || c.status || ', and it was never told' AS problem
        FROM turtles_run c
        JOIN turtles_run p ON p.run_id = c.parent_id
        WHERE c.parent_id IS NOT NULL AND c.status IN {_TERMINAL} AND c.seq > 1
            AND NOT EXISTS (
                SELECT 1 FROM turtles_inbox i
                WHERE i.run_id = p.run_id AND i.key = 'child:' || c.run_id || ':ended'
            )
        """,  # noqa: S608 - constants of this module
    ),
    (
        "child",
        """
        SELECT p.run_id AS run_id,
            'it follows the run ' || p.child
            || CASE WHEN c.run_id IS NULL THEN ', which does not exist'
                ELSE ', whose parent is ' || coalesce(c.parent_id, 'none') END AS problem
        FROM turtles_run p
        LEFT JOIN turtles_run c ON c.run_id = p.child
        WHERE p.child IS NOT NULL AND (c.run_id IS NULL OR coalesce(c.parent_id, '') <> p.run_id)
        """,
    ),
    (
        "child",
        """
        SELECT c.run_id AS run_id,
            'it is at depth ' || c.depth || ', its parent ' || p.run_id || ' at ' || p.depth
            AS problem
        FROM turtles_run c
        JOIN turtles_run p ON p.run_id = c.parent_id
        WHERE c.parent_id IS NOT NULL AND c.depth <> p.depth + 1
        """,
    ),
)


_ALL = " UNION ALL ".join(
    f"SELECT '{rule}' AS rule, run_id, problem FROM ({query}) AS breach"  # noqa: S608 - constants of ours
    for rule, query in _RELATIONS
)


def relations(database: Database) -> Iterator[Finding]:
    """See `engine.ports.Inspector.relations`."""
    with database.reading() as sql:
        for row in sql.all(_ALL):
            yield Finding(rule=row["rule"], run_id=row["run_id"], problem=str(row["problem"]))
