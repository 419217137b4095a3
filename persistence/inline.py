"""Runs that move inside the caller's own transaction.

A program whose rows and whose runs must change together, or not at all, moves them together::

    with database.transaction() as sql:
        sql.run("UPDATE session SET state = 'frozen' WHERE session_id = :id", id=session_id)
        lives.move(sql, SessionLife, session_id, Frozen(), now_ms=now_ms)

The step is the engine's own: `decide` checks guards and contracts, and what it decides is written
by the statements that a worker's commit uses, journal and fence included.  So `turtles doctor`,
`verify --history` and `replay` read these runs like any other.  The run's key is the row's id.

There is no worker here, hence machines with effects, timers or children are refused: nobody would
perform them.  The database must have the engine's tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from engine.codec import Codec
from engine.decide import Decision, Rejection, Violation, begin, decide
from engine.definition import Machine
from engine.errors import DefinitionError, Refused, StoreError, UnknownRun
from engine.events import Context, Event, event_id
from engine.ports import Consumed, Delivery, Start, Write
from engine.run import Run
from engine.secrets import SecretsCodec
from engine.table import Table, compile_table
from persistence import machines as machine_versions
from persistence.database import Session
from persistence.inbox import accept_sends
from persistence.runs import accept_runs, stored_run
from persistence.writes import commit

_OWNER = "inline"
_FIND = "SELECT run_id FROM turtles_run WHERE machine = :machine AND key = :key"
_TAKE = (
    "UPDATE turtles_run SET owner = :owner, fence = fence + 1 "
    "WHERE run_id = :id AND owner IS NULL RETURNING fence"
)
_ARRIVED = "SELECT number FROM turtles_inbox WHERE run_id = :id AND key = :key"


class InlineRuns:
    """Begins and moves runs of some machines, in transactions that others begin and end.

    Args:
        machines: classes without effects, timers and children.
        secrets: seals `Secret` fields.

    Raises:
        DefinitionError: a machine needs a worker.
    """

    def __init__(self, machines: Iterable[type[Machine[Any]]], secrets: SecretsCodec) -> None:
        self._tables = {machine.__name__: _alone(compile_table(machine)) for machine in machines}
        self._codec = Codec(secrets, self._tables)

    @property
    def tables(self) -> dict[str, Table]:
        """What it can move, by name."""
        return dict(self._tables)

    def register(self, sql: Session, now_ms: int) -> None:
        """Remember the shapes of the machines, as an `App` does when it opens."""
        for table in self._tables.values():
            shape = msgspec.json.encode(table.shape)
            machine_versions.register(sql, table.name, table.fingerprint, shape, now_ms)

    def begin(
        self, sql: Session, machine: type[Machine[Any]], key: str, context: Context, *, now_ms: int
    ) -> Run:
        """Accept a run in its initial state.  One that exists under this key is left as it is.

        Raises:
            Refused: the context breaks an invariant of the machine.
        """
        table = self._tables[machine.__name__]
        run_id = f"{machine.__name__.lower()}-{key}"
        begun = begin(table, run_id=run_id, context=context, now_ms=now_ms, key=key)
        if isinstance(begun, Violation):
            raise Refused(f"{table.name} {key} cannot begin: {begun.reason}")
        run = self._codec.seal_run(begun.after)
        entry = self._codec.seal_entry(begun.entry, _OWNER, context=run.context)
        accept_runs(sql, [Start(run=run, entry=entry)])
        return begun.after

    def move(
        self, sql: Session, machine: type[Machine[Any]], key: str, event: Event, *, now_ms: int
    ) -> Run:
        """Send one event to the run of that key; the run after it.

        Raises:
            UnknownRun: no run has this key.
            Refused: the machine does not take the event now; the message names state and clause.
        """
        table = self._tables[machine.__name__]
        stored = self._stored(sql, table, key)
        run = self._codec.open_run(stored).but(version=table.fingerprint)
        name = event_id(type(event))
        # An event that carries nothing is told by its name alone.
        payload = None if name not in table.payloads and not event.__struct_fields__ else event
        result = decide(table, run, name, payload, now_ms)
        if not isinstance(result, Decision):
            raise _refused(table, key, result)
        number = self._delivered(sql, stored, result, now_ms)
        self._write(sql, stored, result, number, now_ms)
        return result.after

    def find(self, sql: Session, machine: type[Machine[Any]], key: str) -> Run | None:
        """The run of that key, or None."""
        table = self._tables[machine.__name__]
        run_id = sql.scalar(_FIND, machine=table.name, key=key)
        return None if run_id is None else self._codec.open_run(stored_run(sql, run_id))

    def forget(self, sql: Session, machine: type[Machine[Any]], key: str) -> None:
        """Remove the run of that key with its history; for rows that are removed, too."""
        run_id = sql.scalar(_FIND, machine=machine.__name__, key=key)
        for table in ("inbox", "transition", "run"):
            sql.run(f"DELETE FROM turtles_{table} WHERE run_id = :id", id=run_id)  # noqa: S608

    def _stored(self, sql: Session, table: Table, key: str) -> Run:
        run_id = sql.scalar(_FIND, machine=table.name, key=key)
        if run_id is None:
            raise UnknownRun(f"{table.name} {key!r}: no run of that key; begin it first")
        return stored_run(sql, run_id)

    def _delivered(self, sql: Session, stored: Run, decision: Decision, now_ms: int) -> int:
        """The event in the run's inbox, so that the transition has a cause to be shown."""
        entry, key = decision.entry, f"inline:{decision.entry.seq}"
        what = f"event {entry.event} of run {stored.run_id}"
        delivery = Delivery(
            run_id=stored.run_id,
            key=key,
            event=entry.event,
            payload=self._codec.seal_payload(entry.payload, what),
            at_ms=now_ms,
        )
        accept_sends(sql, [delivery])
        return int(sql.scalar(_ARRIVED, id=stored.run_id, key=key))

    def _write(
        self, sql: Session, stored: Run, decision: Decision, number: int, now_ms: int
    ) -> None:
        fence = sql.scalar(_TAKE, owner=_OWNER, id=stored.run_id)
        if fence is None:
            raise StoreError(
                f"run {stored.run_id}: a worker owns it; machines that are moved inside "
                "transactions must not be given to an App that works"
            )
        after = self._codec.seal_run(decision.after)
        write = Write(
            fence=fence,
            before=stored,
            after=after,
            entry=self._codec.seal_entry(decision.entry, _OWNER, context=after.context),
            consumed=(Consumed(number=number, status="applied"),),
            at_ms=now_ms,
            release=True,
        )
        (written,) = commit(sql, [write], accept_runs)
        if not written.ok:
            raise StoreError(f"run {stored.run_id}: it has a pending effect, which nobody performs")


def _alone(table: Table) -> Table:
    for place in table.places.values():
        needs = {"an effect": place.effect, "a timer": place.timeout, "a child": place.child}
        for what, value in needs.items():
            if value is not None:
                raise DefinitionError(
                    f"machine {table.name}: state {place.name!r} has {what}, which nobody would "
                    "perform: runs moved inside transactions have no worker. Use an App."
                )
    return table


def _refused(table: Table, key: str, result: Rejection | Violation) -> Refused:
    return Refused(
        f"{table.name} {key}: event {result.event!r} in state {result.state!r}: {result.reason}"
    )
