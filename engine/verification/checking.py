"""Everything that must hold at a quiet moment on the bench, and whether all is settled there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.errors import TurtlesError
from engine.events import Context
from engine.journal import Entry
from engine.table import Table
from engine.verification.bench import Bench
from engine.verification.coverage import Coverage
from engine.verification.environment import Done
from engine.verification.options import Setting
from engine.verification.oracles import (
    Breach,
    check_children,
    check_effects,
    check_journal,
    check_quarantine,
    check_relations,
    check_storage,
    entries_of,
)
from engine.verification.outside import outcome_events
from engine.verification.snapshot import Row
from engine.verification.standin import is_stand_in

JOURNALS_KEPT = 5_000
ORACLES = ("storage", "quarantine", "journal", "replay", "child", "effects")
"""Asked of the first run in every state that is explored."""


class Checking:
    """The oracles over a bench.

    Args:
        coverage: where marks of the environment are noted.
    """

    def __init__(self, bench: Bench, setting: Setting, coverage: Coverage) -> None:
        self.bench = bench
        self.setting = setting
        self.coverage = coverage
        self._journals: dict[Any, tuple[list[Entry], list[Breach]]] = {}
        self._contexts: dict[bytes, Context] = {}
        self._honest = {setting.table.name: _honest(setting)}
        self._stand_ins = {n for n, table in bench.app.tables.items() if is_stand_in(table)}

    def breaches(self) -> list[Breach]:
        """What does not hold here."""
        try:
            return list(self._breaches())
        except TurtlesError as error:
            return [Breach("unreadable", str(error))]

    def _breaches(self) -> Iterator[Breach]:
        bench = self.bench
        yield from check_storage(bench.store)
        stored = bench.rows()
        self.coverage.asked(stored.runs[0].state, ORACLES)
        if len(stored.runs) > 1:
            self.coverage.asked(stored.runs[0].state, ("relations",))
            yield from check_relations(bench.store)
        for row in stored.runs:
            if row.machine in self._stand_ins:
                continue  # there is no code of it that could be wrong
            table = bench.app.tables[row.machine]
            entries, breaches = self._journal(row, table)
            yield from check_quarantine(row, table, honest=self._honest.get(row.machine, ()))
            yield from breaches
            mine = [effect for effect in stored.effects if effect.run_id == row.run_id]
            yield from check_effects(row, table, entries, mine, bench.outside.done)
        yield from self._properties(stored.runs[0])

    def _journal(self, row: Row, table: Table) -> tuple[list[Entry], list[Breach]]:
        """A journal and what is wrong with it; the same journal is decided again once."""
        key = (row.run_id, row.state, row.seq, self.bench.snapshots.journal(row.run_id))
        if key not in self._journals:
            if len(self._journals) >= JOURNALS_KEPT:
                self._journals.clear()
            entries = entries_of(self.bench.store, self.bench.codec, row)
            breaches = [*check_journal(row, table, entries), *check_children(entries, table)]
            self._journals[key] = entries, breaches
        return self._journals[key]

    def _properties(self, root: Row) -> Iterator[Breach]:
        """What the environment's author says, of the first run."""
        environment, coverage = self.setting.environment, self.coverage
        if environment is None:
            return
        open_ = [one for one in environment.properties("sometimes") if one[0] not in coverage.seen]
        claims = environment.properties("always")
        if not (open_ or claims):
            return
        values = self._values(root)
        coverage.seen.update(name for name, holds in open_ if holds(values))
        coverage.asked(root.state, (name for name, _ in claims))
        for name, holds in claims:
            try:
                problem = None if holds(values) else f"in {root.state}"
            except Exception as error:  # noqa: BLE001 - the author's own code
                problem = f"it raised {type(error).__name__} in {root.state}"
            if problem is not None:
                yield Breach(f"always {name}", problem)

    def _values(self, root: Row) -> dict[str, Any]:
        if root.context not in self._contexts:
            if len(self._contexts) >= JOURNALS_KEPT:
                self._contexts.clear()
            kind = self.setting.table.context
            found = self.bench.codec.decode(kind, root.context, "context")
            self._contexts[root.context] = found
        return {
            "context": self._contexts[root.context],
            "state": root.state,
            "status": root.status,
            "now_ms": self.bench.clock.now_ms(),
            "done": tuple(self._done()),
        }

    def _done(self) -> Iterator[Done]:
        bench, table = self.bench, self.setting.table
        for effect in bench.rows().effects:
            if effect.run_id == bench.root and effect.key in bench.outside.done:
                event, text = bench.outside.done[effect.key]
                kind = table.payloads.get(event)
                payload = (
                    None if kind is None else bench.codec.decode(kind, text.encode(), "payload")
                )
                yield Done(effect.name, effect.key, payload)

    def is_settled(self) -> bool:
        """Whether every run has ended, is held for a person, or awaits an event or a child."""
        now_ms = self.bench.clock.now_ms()
        rows = self.bench.rows().runs
        live = {row.run_id for row in rows if row.live}
        held = {row.run_id for row in rows if row.status in ("paused", "quarantined")}
        for row in rows:
            if not row.live or row.run_id in held:
                continue
            if row.machine in self._stand_ins:
                if row.parent_id in held:
                    continue  # nobody reads what it has to tell
                return False  # it will move on, by its own choice
            place = self.bench.app.tables[row.machine].places[row.state]
            due = row.due_ms is not None and row.due_ms <= now_ms
            waits = place.waits and row.closing is None and not due
            if row.owner is not None or not (waits or row.child in live):
                return False
        return True


def _honest(setting: Setting) -> frozenset[str]:
    """The states of whose effect the environment says all that it may give."""
    told = set(setting.environment.events()) if setting.environment else set()
    return frozenset(
        name
        for name, place in setting.table.places.items()
        if place.effect is not None
        and set(outcome_events(setting.table, name, place.effect)) <= told
    )
