"""Plain steps on PostgreSQL, one round trip for a whole batch of them.

A step is plain that neither takes events out of the inbox nor starts or tells other runs nor holds
slots: most are.  Two statements are sent together, and the server commits them together::

    1   move the runs that are as their writes say, and add the transitions of those
    2   what waits in the inboxes of these runs: wake them, or refuse it where a run has ended

The second is a statement of its own because it must see events that came in while the first waited
for a row.  A run that is not as its write says is left alone, and so is its journal: `ok=False`.

When the answer is lost, nobody knows whether the batch was committed; it is then sent again.  Runs
that had moved are missed by that, and the journal is asked: a transition with our number, fence,
worker and time is ours, and there can be only one, because run and number are the primary key.
Bookkeeping that had been done is done again, which changes nothing, for it says what shall be.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from engine.ports import Batch, InboxEvent, Write, Written
from engine.run import HELD, TERMINAL
from persistence.arrays import packed
from persistence.compiled import plan_set, rows_text
from persistence.journal import ADDING
from persistence.writes import MOVING

_MOVE, _MOVE_NAMES, _move_values = MOVING
_ADD, _ADD_NAMES, _add_values = ADDING
_ENDED = ", ".join(f"'{status}'" for status in sorted(TERMINAL))
_STOPPED = ", ".join(f"'{status}'" for status in sorted(HELD))
_ARRIVED = f"""
WITH waiting AS (
    SELECT i.number, i.run_id, i.key, i.event, i.payload, i.at_ms, r.status AS of_run, a.now_ms
    FROM unnest($1::TEXT[], $2::BIGINT[]) AS a(run_id, now_ms)
    JOIN turtles_inbox i ON i.run_id = a.run_id AND i.status = 'accepted'
    JOIN turtles_run r ON r.run_id = a.run_id
), refused AS (
    UPDATE turtles_inbox i SET status = 'rejected', reason = 'the run is ' || w.of_run
    FROM waiting w WHERE i.number = w.number AND w.of_run IN ({_ENDED})
), woken AS (
    UPDATE turtles_run r SET ready = true,
        due_ms = CASE WHEN r.due_ms < w.now_ms THEN r.due_ms ELSE w.now_ms END
    FROM (
        SELECT DISTINCT run_id, now_ms FROM waiting
        WHERE of_run NOT IN ({_ENDED}) AND (of_run NOT IN ({_STOPPED}) OR event LIKE '$%')
    ) w
    WHERE r.run_id = w.run_id
)
SELECT number, run_id, key, event, payload, at_ms FROM waiting
WHERE of_run NOT IN ({_ENDED}) ORDER BY number
"""  # noqa: S608 - constants of the kernel
_NUMBERED = """
SELECT t.run_id, t.seq, t.fence, t.worker, t.at_ms
FROM unnest($1::TEXT[], $2::INTEGER[]) AS asked(run_id, seq)
JOIN turtles_transition t ON t.run_id = asked.run_id AND t.seq = asked.seq
"""


class Asked(NamedTuple):
    """A statement with its values."""

    text: str
    values: Sequence[Any]


def plain(batch: Batch) -> bool:
    """Whether all that is asked are plain steps, at most one of each run."""
    if batch.starts or batch.deliveries or not batch.writes:
        return False
    ids = {write.before.run_id for write in batch.writes}
    return len(ids) == len(batch.writes) and all(map(_plain, batch.writes))


def _plain(write: Write) -> bool:
    return not (
        write.consumed or write.starts or write.sends or write.held or write.limits is not None
    )


def steps(writes: Sequence[Write]) -> tuple[Asked, Asked]:
    """The two statements for these writes; the first answers the ids of the runs it moved."""
    ids = packed("TEXT", [write.before.run_id for write in writes])
    arrived = Asked(_ARRIVED, (ids, packed("BIGINT", [write.at_ms for write in writes])))
    entries = [write for write in writes if write.entry is not None]
    if len(writes) == 1:
        values = [*_move_values(writes[0]), *(_add_values(writes[0]) if entries else ())]
        return Asked(_one_text(bool(entries)), values), arrived
    text, kinds = _many_text(bool(entries))
    columns = [*zip(*map(_move_values, writes), strict=True)]
    if entries:
        columns += zip(*map(_add_values, entries), strict=True)
    return Asked(text, list(map(packed, kinds, columns))), arrived


def numbered(writes: Sequence[Write]) -> Asked:
    """Asks what the journal has under the numbers that these writes would give."""
    ids = packed("TEXT", [write.before.run_id for write in writes])
    return Asked(_NUMBERED, (ids, packed("INTEGER", [write.after.seq for write in writes])))


def ours(writes: Sequence[Write], found: Sequence[Sequence[Any]]) -> set[str]:
    """The runs of which the journal has what these writes would add."""
    there = set(map(tuple, found))
    return {
        entry.run_id
        for write in writes
        if (entry := write.entry) is not None
        and (entry.run_id, entry.seq, write.fence, entry.worker, entry.at_ms) in there
    }


def answers(
    writes: Sequence[Write], moved: set[str], waiting: Sequence[Sequence[Any]]
) -> list[Written]:
    """What each caller is told."""
    arrived: dict[str, tuple[InboxEvent, ...]] = {}
    for number, run_id, key, event, payload, at_ms in waiting:
        one = InboxEvent(number=number, key=key, event=event, payload=payload, at_ms=at_ms)
        arrived[run_id] = (*arrived.get(run_id, ()), one)
    return [
        Written(ok=True, arrived=arrived.get(write.before.run_id, ()))
        if write.before.run_id in moved
        else Written(ok=False)
        for write in writes
    ]


@lru_cache(maxsize=2)
def _one_text(adds: bool) -> str:
    move = rows_text(_MOVE, _MOVE_NAMES) + " RETURNING turtles_run.run_id"
    if not adds:
        return move
    head, _, values = rows_text(_ADD, _ADD_NAMES).partition(" VALUES (")
    add = f"{head} SELECT {_after(values[:-1], len(_MOVE_NAMES))} FROM moved"  # noqa: S608
    return _both(move, add)


@lru_cache(maxsize=2)
def _many_text(adds: bool) -> tuple[str, tuple[str, ...]]:
    move, kinds, brought = plan_set(_MOVE, _MOVE_NAMES)
    move += " RETURNING turtles_run.run_id"
    assert not brought, move
    if not adds:
        return move, kinds
    add, more, brought = plan_set(_ADD, _ADD_NAMES)
    assert not brought, add
    add = _after(add, len(kinds)) + ' JOIN moved ON moved.run_id = given."run_id"'
    return _both(move, add), (*kinds, *more)


def _both(move: str, add: str) -> str:
    return f"WITH moved AS ({move}), added AS ({add}) SELECT run_id FROM moved"  # noqa: S608


def _after(text: str, count: int) -> str:
    """The same text for values that come after so many others."""
    return re.sub(r"\$(\d+)", lambda match: f"${int(match[1]) + count}", text)
