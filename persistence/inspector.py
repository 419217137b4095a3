"""The storage rules, one query each: what `turtles doctor` shows and the tests assert.

Every query lists breaches, so an empty answer means that the rule holds.  The rules are those of
`engine.ports`; their names here are what a finding carries.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from engine.ports import Finding, History
from persistence import history
from persistence.database import Database, Row, Session


class SqlInspector:
    """`engine.ports.Inspector` in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def findings(self) -> list[Finding]:
        """Every breach there is; empty when all is well."""
        with self._database.reading() as sql:
            found = [
                Finding(rule=row["rule"], run_id=row["run_id"], problem=str(row["problem"]))
                for row in sql.all(_ALL)
            ]
            return [*found, *_stranded(sql)]

    def relations(self) -> list[Finding]:
        """Breaches between runs, and rows that belong to no run; see `persistence.history`."""
        return list(history.relations(self._database))

    def histories(
        self,
        after_run_id: str = "",
        *,
        runs: int = 500,
        entries: int = 100_000,
        run_id: str | None = None,
    ) -> list[History]:
        """The next runs in the order of their ids, each with all its rows, at one moment."""
        if run_id is not None:
            return history.histories(self._database, run_id, only=True, most_entries=entries)
        return history.histories(self._database, after_run_id, most_runs=runs, most_entries=entries)


_LIVE = "('pending', 'running', 'waiting')"
_TERMINAL = "('completed', 'failed', 'cancelled')"

_RULES: tuple[tuple[str, str], ...] = (
    (
        "journal",
        """
        SELECT run_id, problem FROM (
            SELECT r.run_id,
                'run is at seq ' || r.seq || ', its journal has '
                || (SELECT count(*) FROM turtles_transition t WHERE t.run_id = r.run_id)
                || ' entries up to seq '
                || coalesce(
                    (SELECT max(seq) FROM turtles_transition t WHERE t.run_id = r.run_id), 0)
                AS problem,
                r.seq AS seq,
                (SELECT count(*) FROM turtles_transition t WHERE t.run_id = r.run_id) AS entries,
                (SELECT max(seq) FROM turtles_transition t WHERE t.run_id = r.run_id) AS newest
            FROM turtles_run r
        ) AS counted
        WHERE seq <> entries OR newest IS NULL OR seq <> newest
        """,
    ),
    (
        "journal",
        """
        SELECT t.run_id AS run_id,
            'entry ' || t.seq || ' begins in ' || t.source || ', the one before ended in '
            || coalesce(p.target, '(nothing)') AS problem
        FROM turtles_transition t
        LEFT JOIN turtles_transition p ON p.run_id = t.run_id AND p.seq = t.seq - 1
        WHERE t.source <> coalesce(p.target, '')
        """,
    ),
    (
        "journal",
        """
        SELECT r.run_id AS run_id,
            'run is in ' || r.state || ', its last entry (seq ' || t.seq || ') ends in '
            || t.target
            || CASE WHEN t.context <> r.context THEN '; the contexts differ' ELSE '' END AS problem
        FROM turtles_run r
        JOIN turtles_transition t ON t.run_id = r.run_id AND t.seq = r.seq
        WHERE t.target <> r.state OR t.context <> r.context
        """,
    ),
    (
        "owner",
        """
        SELECT r.run_id AS run_id, 'owned by ' || r.owner || ', which holds no lease' AS problem
        FROM turtles_run r
        WHERE r.owner IS NOT NULL
            AND NOT EXISTS (SELECT 1 FROM turtles_worker w WHERE w.worker_id = r.owner)
        """,
    ),
    (
        "inbox",
        """
        SELECT i.run_id AS run_id,
            'event ' || i.number || ' (' || i.event || ') is ' || i.status || ' by transition '
            || coalesce(CAST(i.consumed_seq AS TEXT), '(none)') || ', which is not there' AS problem
        FROM turtles_inbox i
        LEFT JOIN turtles_transition t ON t.run_id = i.run_id AND t.seq = i.consumed_seq
        WHERE (i.status = 'applied' OR i.consumed_seq IS NOT NULL) AND t.seq IS NULL
        """,
    ),
    (
        "inbox",
        """
        SELECT i.run_id AS run_id,
            'event ' || i.number || ' (' || i.event || ') is ' || i.status
            || ' but names transition ' || i.consumed_seq AS problem
        FROM turtles_inbox i
        WHERE i.status <> 'applied' AND i.consumed_seq IS NOT NULL
        """,
    ),
    (
        "effect",
        """
        SELECT e.run_id AS run_id,
            'effect ' || e.name || ' of seq ' || e.seq || ' is ' || coalesce(e.status, '(none)')
            || ', settled at '
            || coalesce(CAST(e.closed_seq AS TEXT), 'nothing')
            || CASE WHEN e.open THEN ', open' ELSE '' END AS problem
        FROM turtles_effect e
        WHERE coalesce(e.status, '') NOT IN ('pending', 'done', 'given_up', 'abandoned')
            OR (e.status = 'pending') <> (e.closed_seq IS NULL)
            OR (e.status <> 'pending' AND e.open)
        """,
    ),
    (
        "effect",
        """
        SELECT e.run_id AS run_id,
            'effect ' || e.name || ' of seq ' || e.seq
            || ' is open, but no attempt was counted' AS problem
        FROM turtles_effect e
        WHERE e.open AND e.calls = 0
        """,
    ),
    (
        "effect",
        """
        SELECT e.run_id AS run_id,
            'effect ' || e.name || ' belongs to seq ' || e.seq || ', which is not in the journal'
            AS problem
        FROM turtles_effect e
        LEFT JOIN turtles_transition t ON t.run_id = e.run_id AND t.seq = e.seq
        WHERE t.seq IS NULL
        """,
    ),
    (
        "effect",
        """
        SELECT e.run_id AS run_id,
            'effect ' || e.name || ' of seq ' || e.seq || ' is recorded ' || count(*) || ' times'
            AS problem
        FROM turtles_effect e
        GROUP BY e.run_id, e.seq, e.name
        HAVING count(*) > 1
        """,
    ),
    (
        "slot",
        """
        SELECT s.run_id AS run_id,
            'slot ' || s.number || ' of ' || s.limit_name || ' ' || s.tenant || ' is held by '
            || coalesce(s.run_id, '(no run)') || ' for ' || coalesce(s.owner, '(nobody)')
            || ', who has not claimed it under that limit' AS problem
        FROM turtles_slot s
        LEFT JOIN turtles_run r ON r.run_id = s.run_id
        WHERE (s.run_id IS NOT NULL OR s.owner IS NOT NULL) AND (
            r.owner IS NULL OR s.owner IS NULL OR r.owner <> s.owner OR r.limits IS NULL
            OR replace(r.limits, ',' || s.limit_name || ',', '') = r.limits)
        """,
    ),
    (
        "slot",
        """
        SELECT r.run_id AS run_id,
            'run is claimed under limit ' || l.name || ' and has '
            || (SELECT count(*) FROM turtles_slot s
                WHERE s.limit_name = l.name AND s.run_id = r.run_id) || ' slots of it' AS problem
        FROM turtles_limit l CROSS JOIN turtles_run r
        WHERE l.slots IS NOT NULL AND r.owner IS NOT NULL
            AND replace(r.limits, ',' || l.name || ',', '') <> r.limits
            AND 1 <> (SELECT count(*) FROM turtles_slot s
                WHERE s.limit_name = l.name AND s.run_id = r.run_id)
        """,
    ),
    (
        "slot",
        """
        SELECT CAST(NULL AS TEXT) AS run_id,
            'limit ' || l.name || ' has ' || l.slots || ' slots, ' || count(*)
            || ' runs are claimed under it' AS problem
        FROM turtles_limit l CROSS JOIN turtles_run r
        WHERE r.owner IS NOT NULL AND replace(r.limits, ',' || l.name || ',', '') <> r.limits
        GROUP BY l.name, l.slots, CASE WHEN l.per_tenant THEN r.tenant ELSE '' END
        HAVING count(*) > l.slots AND l.slots >= (SELECT coalesce(max(s.number), 0)
            FROM turtles_slot s WHERE s.limit_name = l.name AND s.run_id IS NOT NULL)
        """,
    ),
    (
        "parent",
        """
        SELECT c.run_id AS run_id, 'the parent ' || c.parent_id || ' does not exist' AS problem
        FROM turtles_run c
        LEFT JOIN turtles_run p ON p.run_id = c.parent_id
        WHERE c.parent_id IS NOT NULL AND p.run_id IS NULL
        """,
    ),
    (
        "ended",
        f"""
        SELECT r.run_id AS run_id,
            'run is ' || r.status || ' but has '
            || CASE
                WHEN r.due_ms IS NOT NULL THEN 'a due time'
                WHEN r.owner IS NOT NULL THEN 'an owner'
                WHEN r.ready THEN 'a place among the ready'
                WHEN r.ended_ms IS NULL THEN 'no moment at which it ended'
                WHEN EXISTS (SELECT 1 FROM turtles_effect e
                             WHERE e.run_id = r.run_id AND e.status = 'pending')
                    THEN 'a pending effect'
                ELSE 'an event that nothing will consume'
            END AS problem
        FROM turtles_run r
        WHERE r.status IN {_TERMINAL} AND (
            r.due_ms IS NOT NULL
            OR r.owner IS NOT NULL
            OR r.ready
            OR r.ended_ms IS NULL
            OR EXISTS (SELECT 1 FROM turtles_effect e
                       WHERE e.run_id = r.run_id AND e.status = 'pending')
            OR EXISTS (SELECT 1 FROM turtles_inbox i
                       WHERE i.run_id = r.run_id AND i.status = 'accepted')
        )
        """,  # noqa: S608 - constants of this module
    ),
    (
        "stranded",
        f"""
        SELECT r.run_id AS run_id,
            'events wait for it since ' || min(i.at_ms) || ' ms, but it is not due' AS problem
        FROM turtles_run r
        JOIN turtles_inbox i ON i.run_id = r.run_id AND i.status = 'accepted'
        WHERE r.due_ms IS NULL AND r.owner IS NULL
            AND (r.status IN {_LIVE} OR i.event LIKE '$%')
        GROUP BY r.run_id
        """,  # noqa: S608 - constants of this module
    ),
)

_ALL = " UNION ALL ".join(
    f"SELECT '{rule}' AS rule, run_id, problem FROM ({query}) AS breach"  # noqa: S608 - constants of ours
    for rule, query in _RULES
)
"""Every rule in one statement: the explorer asks at every state it finds."""

_IDLE = f"""
    SELECT r.run_id, r.status, r.state, r.version, r.machine, r.closing, m.shape,
        c.status AS child_status,
        CASE WHEN c.status IN {_TERMINAL} THEN 1 ELSE 0 END AS child_ended
    FROM turtles_run r
    LEFT JOIN turtles_run c ON c.run_id = r.child
    LEFT JOIN turtles_machine_version m ON m.version = r.version
    WHERE r.status IN {_LIVE} AND r.due_ms IS NULL AND r.owner IS NULL
"""  # noqa: S608 - constants of this module


class _State(msgspec.Struct):
    name: str
    waits: bool = False


class _Edge(msgspec.Struct):
    source: str


class _Shape(msgspec.Struct):
    """The part of `engine.table.Table.shape` that says which states await events."""

    states: list[_State]
    edges: list[_Edge]

    def awaiting(self) -> frozenset[str]:
        leaving = {edge.source for edge in self.edges}
        return frozenset(s.name for s in self.states if s.waits and s.name in leaving)


def _stranded(sql: Session) -> Iterator[Finding]:
    """Runs that nothing will ever move: not due, not owned, and neither child nor event to come."""
    awaiting: dict[str, frozenset[str]] = {}
    for row in sql.all(_IDLE):
        if row["child_status"] is not None and not row["child_ended"]:
            continue
        if row["shape"] is not None and row["version"] not in awaiting:
            awaiting[row["version"]] = msgspec.json.decode(row["shape"], type=_Shape).awaiting()
        expected = awaiting.get(row["version"], frozenset())
        if row["status"] == "waiting" and row["closing"] is None and row["state"] in expected:
            continue
        yield Finding(rule="stranded", run_id=row["run_id"], problem=_why_stranded(row))


def _why_stranded(row: Row) -> str:
    where = f"{row['status']} in {row['state']}, not due and not owned"
    if row["shape"] is None:
        return f"{where}; version {row['version']} of {row['machine']} is not registered"
    if row["child_ended"]:
        return f"{where}; its child has ended and nobody told it"
    return f"{where}; the state awaits no event and there is no child"
