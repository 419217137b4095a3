"""The clients of a schedule: they accept runs, send events, repeat what was sent, and interfere.

Two clients accept the same runs under the same keys, whoever comes first; both may send events, and
the second one sends again what either has sent.  A third may ask a run to stop, or to pause and go
on.  Where stand-ins run for child machines, what these show and how they end comes from here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from engine.app import App
from engine.control import CANCEL_EVENT
from engine.events import Context, Event
from engine.ports import Receipt
from engine.table import Table
from engine.verification.answering import Ledger
from engine.verification.options import Payloads
from engine.verification.scheduler import BEFORE, BrokenStage, Chance, Scheduler
from engine.verification.standin import is_stand_in, target_of
from engine.verification.static.outcomes import is_external
from engine.verification.static.subject import Subject
from engine.verification.watched import Watch

MESSAGES = 2
"""So many events by each client, at most."""


@dataclass(slots=True)
class Message:
    """An event that was sent, and the steps at which it was and its first receipt was there."""

    run_id: str
    event: str
    text: str
    key: str
    sent: int
    receipts: list[Receipt] = field(default_factory=list)
    receipt_at: int | None = None


class Clients:
    """Everybody who only looks and sends.

    Args:
        app: which all of them use.
        watch: is told of breaches.
        payloads: what events carry.
        table: the machine whose runs they accept.
    """

    def __init__(self, app: App, watch: Watch, payloads: Payloads, table: Table) -> None:
        self._app = app
        self._watch = watch
        self._payloads = payloads
        self._table = table
        subject = Subject(table, app.tables)
        external = (edge.event for edge in table.all_edges() if is_external(subject, edge))
        self._external = [event for event in dict.fromkeys(external) if event != CANCEL_EVENT]
        self._stand_ins = [name for name, one in app.tables.items() if is_stand_in(one)]
        self.roots: dict[str, list[str]] = {}
        self.messages: list[Message] = []

    def begin(self, chance: Chance, scheduler: Scheduler, contexts: Sequence[Context]) -> None:
        """As before the first step; one run for each context will be accepted."""
        self._pick = chance.pick
        self._scheduler = scheduler
        self._contexts = contexts
        self._created: dict[str, int] = {}
        self.roots = {}
        self.messages = []

    def enter(self, ledger: Ledger) -> None:
        """Everybody comes in."""
        spawn = self._scheduler.spawn
        spawn("client 1", self._sends(), lambda: True)
        spawn("client 2", self._repeats(), lambda: True)
        third = (self._cancels, self._pauses, None, None, None)[self._pick(5)]
        if third is not None:
            spawn("client 3", third(), lambda: bool(self.roots))
        if self._stand_ins:
            peek, names = self._watch.peek, self._stand_ins
            spawn("children", self._children(ledger), lambda: bool(peek.resting(names)))

    async def _start(self) -> None:
        for number, context in enumerate(self._contexts):
            key = f"k{number}"
            ref = await self._app.start(self._table.name, context, key=key)
            told = self.roots.setdefault(key, [])
            told.append(ref.run_id)
            self._created[key] = self._created.get(key, 0) + ref.created
            if self._created[key] > 1 or ref.run_id != told[0]:
                self._watch.breach("accepted twice", f"one key was answered with the runs {told}")

    async def _sends(self) -> None:
        await self._start()
        for _ in range(self._pick(MESSAGES + 1)):
            if self._external:
                await self._send(self._message())

    async def _repeats(self) -> None:
        await self._start()
        for _ in range(self._pick(MESSAGES + 1)):
            if self.messages:
                self._watch.figures.duplicates += 1
                await self._send(self.messages[self._pick(len(self.messages))])
            elif self._external:
                await self._send(self._message())

    async def _cancels(self) -> None:
        await self._app.cancel(self._root())

    async def _pauses(self) -> None:
        run_id = self._root()
        await self._app.pause(run_id)
        await self._app.resume(run_id)

    def _root(self) -> str:
        roots = list(self.roots.values())
        return roots[self._pick(len(roots))][0]

    def _message(self) -> Message:
        try:
            message = self._chosen()
        except Exception as error:  # it would be taken for a failure of the engine
            raise BrokenStage(f"no event for a run of {self._table.name}") from error
        self.messages.append(message)
        return message

    def _chosen(self) -> Message:
        """An event that the state of a run has a use for, if there is one."""
        run_id, pick, table = self._root(), self._pick, self._table
        stored = self._app.store.runs.get(run_id)
        assert stored is not None
        now, now_ms = self._app.codec.open_run(stored.run), self._app.clock.now_ms()
        fitting = [event for event in self._external if (now.state, event) in table.edges]
        events = fitting or self._external
        event = events[pick(len(events))]
        texts = self._payloads.of(table, now, event, now_ms, outcome=False) if fitting else []
        text = texts[pick(len(texts))] if texts else self._payloads.first(table, event)
        return Message(run_id, event, text, f"m{len(self.messages)}", self._scheduler.switches)

    async def _send(self, message: Message) -> None:
        payload = self._payload(self._table, message.event, message.text)
        receipt = await self._app.send(message.run_id, payload, key=message.key)
        if not receipt.duplicate and any(not one.duplicate for one in message.receipts):
            self._watch.breach(
                "duplicate accepted",
                f"event {message.event} was accepted twice under key {message.key}",
            )
        message.receipts.append(receipt)
        if message.receipt_at is None:
            message.receipt_at = self._scheduler.switches

    def _payload(self, table: Table, event: str, text: str) -> Event | str:
        kind = table.payloads.get(event)
        return event if kind is None else self._app.codec.decode(kind, text.encode(), "payload")

    # -- children for which stand-ins run -------------------------------------------------------

    async def _children(self, ledger: Ledger) -> None:
        """What a child shows next, or its end; once faults have stopped, its end if it can."""
        number = 0
        while True:
            resting = self._watch.peek.resting(self._stand_ins)
            run_id = resting[self._pick(len(resting))]
            stored = self._app.store.runs.get(run_id)
            assert stored is not None
            table = self._app.tables[stored.run.machine]
            ways = self._ways(table, stored.run.state, stored.run.context, end=ledger.healing)
            number += 1
            if ways:
                event, text = ways[self._pick(len(ways))]
                await self._app.send(run_id, self._payload(table, event, text), key=f"c{number}")
            await BEFORE

    def _ways(
        self, table: Table, state: str, context: bytes, *, end: bool
    ) -> list[tuple[str, str]]:
        events = [event for event in table.events if (state, event) in table.edges]
        finals = [event for event in events if table.places[target_of(event)].final]
        ended = self._choices(table, state, context, finals) if end else []
        return ended or self._choices(table, state, context, events)

    def _choices(
        self, table: Table, state: str, context: bytes, events: list[str]
    ) -> list[tuple[str, str]]:
        row: Any = SimpleNamespace(state=state, context=context)
        choices = []
        for event in events:
            known = event in table.payloads
            texts = self._payloads.ends(table, row, event) if known else [""]
            choices += [(event, text) for text in texts]
        return choices
