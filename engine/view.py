"""Looking at runs: what they are, what they did, what they would accept.  Nothing is moved.

`engine.app.App` is a `View` that also has doors and a worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from engine.clock import Clock
from engine.codec import Codec
from engine.committer import Io
from engine.decide import Decision, decide
from engine.definition import Machine
from engine.errors import RunRemoved, UnknownMachine, UnknownRun
from engine.events import Event, event_id
from engine.journal import Entry, explained
from engine.ports import EffectRecord, Gone, Query, Store, StoredRun
from engine.run import Run
from engine.table import Table


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a run stands, usually at its end.  `output` is what the machine's `output` gave."""

    run_id: str
    machine: str
    state: str
    status: str
    seq: int
    context: Any
    output: Any
    last_error: str | None


class Permission(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an event would be accepted now, and why not."""

    event: str
    allowed: bool
    reason: str


class View:
    """Runs in a store, decoded by the machines that are known."""

    def __init__(
        self, *, tables: Mapping[str, Table], store: Store, codec: Codec, clock: Clock, io: Io
    ) -> None:
        self.tables = tables
        self.store = store
        self.codec = codec
        self.clock = clock
        self._io = io

    async def get(self, run_id: str) -> Run:
        """A run as it stands, with its typed context."""
        return self.codec.open_run((await self._stored(run_id)).run)

    async def outcome(self, run_id: str) -> Outcome:
        """How a run stands now."""
        return self._outcome(self.codec.open_run((await self._stored(run_id)).run))

    def _outcome(self, run: Run) -> Outcome:
        table = self.codec.table(run.machine)
        ended = run.terminal
        return Outcome(
            run_id=run.run_id,
            machine=run.machine,
            state=run.state,
            status=run.status,
            seq=run.seq,
            context=run.context,
            output=table.output({"context": run.context}) if ended else None,
            last_error=run.last_error,
        )

    async def find(self, machine: type[Machine[Any]] | str, key: str) -> str | None:
        """The id of the run started with this key."""
        name = self._table(machine).name
        return await self._io(lambda: self.store.runs.find(name, key))

    async def runs(self, query: Query | None = None) -> list[StoredRun]:
        """Stored runs, newest first; contexts are still encoded."""
        wanted = query or Query()
        return await self._io(lambda: self.store.runs.select(wanted))

    async def journal(self, run_id: str) -> list[Entry]:
        """Every transition of a run, decoded."""
        machine = (await self._stored(run_id)).run.machine
        entries = await self._io(lambda: self._all_entries(run_id))
        opened = [self.codec.open_entry(machine, entry) for entry in entries]
        return explained(self.codec.table(machine), opened)

    def _all_entries(self, run_id: str) -> list[Entry]:
        entries: list[Entry] = []
        while page := self.store.journal.read(run_id, after_seq=len(entries)):
            entries += page
        return entries

    async def effects(self, run_id: str) -> list[EffectRecord]:
        """Every recorded effect of a run."""
        return await self._io(lambda: self.store.effects.read(run_id))

    async def can(self, run_id: str, event: Event | str) -> Permission:
        """Whether the run would accept the event now, and which clause says no."""
        run = await self.get(run_id)
        table = self.codec.table(run.machine)
        name = event if isinstance(event, str) else event_id(type(event))
        payload = None if isinstance(event, str) else event
        result = decide(table, run, name, payload, self.clock.now_ms())
        if isinstance(result, Decision):
            return Permission(event=name, allowed=True, reason=f"-> {result.after.state}")
        return Permission(event=name, allowed=False, reason=result.reason)

    async def allowed(self, run_id: str) -> list[Permission]:
        """Every event of the machine: whether the run would take it, as far as can be told.

        An event that carries a payload is judged by state alone.
        """
        run = await self.get(run_id)
        table = self.codec.table(run.machine)
        found = []
        for name in table.events:
            if name in table.payloads:
                over = run.terminal or run.closing is not None
                handled = (run.state, name) in table.edges and not over
                reason = "depends on its payload" if handled else f"not handled in {run.state!r}"
                if over:
                    reason = f"the run is {run.closing or run.status}"
                found.append(Permission(event=name, allowed=handled, reason=reason))
            else:
                result = decide(table, run, name, None, self.clock.now_ms())
                ok = isinstance(result, Decision)
                why = f"-> {result.after.state}" if isinstance(result, Decision) else result.reason
                found.append(Permission(event=name, allowed=ok, reason=why))
        return found

    def _table(self, machine: type[Machine[Any]] | str) -> Table:
        name = machine if isinstance(machine, str) else machine.__name__
        table = self.tables.get(name)
        if table is None:
            known = ", ".join(sorted(self.tables)) or "none"
            raise UnknownMachine(f"no machine {name!r} in this app. It has: {known}.")
        return table

    async def _stored(self, run_id: str) -> StoredRun:
        stored = await self._io(lambda: self.store.runs.get(run_id))
        if stored is None:
            gone = await self._io(lambda: self.store.retention.gone(run_id))
            raise missing_run(run_id, gone, self.store.name)
        return stored


def missing_run(run_id: str, gone: Gone | None, store: str) -> UnknownRun:
    """What to say of a run that is not there."""
    if gone is None:
        return UnknownRun(f"no run {run_id!r} in {store}. List them with: turtles list")
    key = f" (key {gone.key!r})" if gone.key is not None else ""
    return RunRemoved(
        f"run {run_id} of machine {gone.machine}{key}: ended as {gone.status} on "
        f"{_moment(gone.ended_ms)}, and was removed by gc on {_moment(gone.removed_ms)}. Its key "
        "stays in use; its journal is only in backups."
    )


def _moment(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms // 1000, UTC):%Y-%m-%d %H:%M:%S}Z"
