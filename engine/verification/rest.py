"""What must hold when a schedule has come to rest.

The oracles of `engine.verification.oracles` on all that is stored; every event has been settled, in
the order in which it was sent if one receipt was there before the other was sent; nothing is left
that nobody will move; and what the author of the environment says holds always.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engine.ports import History, StoredRun
from engine.run import HELD
from engine.table import Table
from engine.verification.clients import Message
from engine.verification.environment import Done, Environment
from engine.verification.oracles import (
    Breach,
    check_after_end,
    check_causes,
    check_children,
    check_due,
    check_effects,
    check_fences,
    check_journal,
    check_quarantine,
    check_records,
    check_storage,
    entries_of,
    standing_of,
)
from engine.verification.stage import Stage

VERDICTS_KEPT = 5_000


class AtRest:
    """Looks at a stage whose schedule is over."""

    def __init__(self, stage: Stage, environment: Environment | None) -> None:
        self.stage = stage
        self.environment = environment
        self._verdicts: dict[Any, tuple[Breach, ...]] = {}

    def breaches(self) -> Iterator[Breach]:
        """What is wrong; the same content of the store is looked at once."""
        yield from self._events()
        stage = self.stage
        overdue = stage.peek.due(stage.clock.now_ms())
        key = (stage.peek.content(), overdue, tuple(stage.ledger.done))
        if key not in self._verdicts:
            if len(self._verdicts) >= VERDICTS_KEPT:
                self._verdicts.clear()
            self._verdicts[key] = tuple(self._verdict())
        yield from self._verdicts[key]

    def _verdict(self) -> Iterator[Breach]:
        stage = self.stage
        yield from check_storage(stage.store)
        found = stage.store.inspector.histories()
        live = {one.run_id for one in found if one.stored and not one.stored.run.terminal}
        for one in found:
            if one.stored is None:
                yield Breach("unreadable", one.unreadable or f"run {one.run_id} has no row")
                continue
            yield from self._of_run(one, one.stored, stage.client.tables[one.stored.run.machine])
            yield from _check_rest(one.stored, stage.client.tables, live, stage.clock.now_ms())

    def _of_run(self, history: History, stored: StoredRun, table: Table) -> Iterator[Breach]:
        row = standing_of(stored)
        entries = entries_of(self.stage.store, self.stage.codec, row)
        yield from check_journal(row, table, entries)
        yield from check_after_end(row, entries)
        yield from check_children(entries, table)
        yield from check_fences(stored, entries, history.fences)
        yield from check_records(table, entries, history.effects)
        yield from check_causes(table, entries, history.effects, history.inbox)
        yield from check_effects(row, table, entries, history.effects, self.stage.ledger.done)
        yield from check_due(stored)
        yield from check_quarantine(row, table)
        yield from self._always(stored, table, history)

    def _always(self, stored: StoredRun, table: Table, history: History) -> Iterator[Breach]:
        """What the author says must hold at every quiet moment; here, at rest."""
        if self.environment is None or table is not self.stage.table:
            return
        stage, done = self.stage, []
        for effect in history.effects:
            if effect.key in stage.ledger.done:
                event, text = stage.ledger.done[effect.key]
                kind = table.payloads.get(event)
                payload: Any = stage.codec.decode(kind, text.encode(), "payload") if kind else None
                done.append(Done(effect.name, effect.key, payload))
        current = stage.codec.open_run(stored.run)
        for name in self.environment.broken(
            context=current.context, state=current.state, status=current.status,
            now_ms=stage.clock.now_ms(), done=tuple(done),
        ):  # fmt: skip
            yield Breach(f"always {name}", f"does not hold in {current.state}")

    def _events(self) -> Iterator[Breach]:
        """Every event was settled, and none overtook another that was there before it."""
        stage = self.stage
        if not stage.clients.messages:
            return
        inbox = stage.peek.inbox()
        held = stage.peek.held()
        applied: list[tuple[Message, int]] = []
        for message in stage.clients.messages:
            if message.receipt_at is None:
                continue
            status, seq = inbox.get((message.run_id, message.key), ("lost", None))
            if status == "lost" or (status == "accepted" and message.run_id not in held):
                yield Breach("event not settled", f"event {message.event} ({message.key}) has a "
                                                  f"receipt, and is {status} at rest")  # fmt: skip
            if status == "applied" and seq is not None:
                applied.append((message, seq))
        for first, seq in applied:
            for second, later in applied:
                if (
                    first.run_id == second.run_id
                    and (first.receipt_at or 0) < second.sent
                    and seq >= later
                ):
                    yield Breach("order", f"event {second.event} was sent after the receipt of "
                                          f"{first.event}, and applied before it")  # fmt: skip


def _check_rest(
    stored: StoredRun, tables: Mapping[str, Table], live: set[str], now_ms: int
) -> Iterator[Breach]:
    """Ended, held for a person, or awaiting an event or a child."""
    one, due_ms = stored.run, stored.due_ms
    if one.terminal or one.status in HELD:
        return
    waits = tables[one.machine].places[one.state].waits and one.closing is None
    overdue = due_ms is not None and due_ms <= now_ms
    if stored.owner is not None or overdue or not (waits or one.child in live or due_ms):
        yield Breach("stuck", f"at rest in {one.state} ({one.status}), owned by "
                              f"{stored.owner or 'nobody'}, and nothing leads on")  # fmt: skip
