"""What may happen next: the steps that can be taken from where the bench is.

At a quiet moment the `actions`, while a worker stands at a call its `answers`.  Both are the same
for the explorer and for random sequences; only the bounds (`Scope`) and the environment limit them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.control import CANCEL_EVENT
from engine.decide import Decision, Violation, decide
from engine.errors import DefinitionError, TurtlesError
from engine.events import Event
from engine.run import Run
from engine.table import Table
from engine.verification.bench import Bench, Hand
from engine.verification.environment import Environment
from engine.verification.outside import (
    FAULTS,
    Asked,
    Choice,
    kind_of,
    may_return,
    may_say_again,
    outcome_events,
)
from engine.verification.result import Scope, Step
from engine.verification.scope import Hints, hints_of, payloads_of, values_of
from engine.verification.snapshot import Row
from engine.verification.standin import is_stand_in, target_of
from engine.verification.static.outcomes import is_external
from engine.verification.static.subject import Subject

MOMENTS_MAX = 4
UNREAD_MAX = 2
"""A stand-in does not move on while its parent has so many events to read: it could go in circles,
and the parent's inbox would grow without end."""
PAYLOADS_MAX = 40
REMEMBERED_MAX = 50_000


@dataclass(frozen=True, slots=True)
class Setting:
    """What an exploration is about.

    Args:
        table: the machine.
        scope: the bounds.
        environment: what its author says of the outside.
        left_out: states whose effect never gives what they do not handle, by their author's word.
        children: the real tables of the machines for which stand-ins run.
    """

    table: Table
    scope: Scope
    environment: Environment | None
    left_out: frozenset[str]
    children: Mapping[str, Table]


class Options:
    """The next steps on a bench."""

    def __init__(self, bench: Bench, setting: Setting) -> None:
        self.bench = bench
        self.setting = setting
        self.payloads = Payloads(bench, setting)
        self.stand_ins = {name for name, table in bench.app.tables.items() if is_stand_in(table)}
        self.external = {
            name: [] if name in self.stand_ins else _external(table, bench.app.tables)
            for name, table in bench.app.tables.items()
        }

    def next(self) -> Iterator[Step]:
        """The steps from here."""
        hand = self.bench.hand
        if hand is None:
            yield from self.actions()
        else:
            yield from (("call", *choice) for choice in self.answers(hand))

    def actions(self) -> Iterator[Step]:
        """What may happen at a quiet moment."""
        bench, scope = self.bench, self.setting.scope
        rows = bench.rows().runs
        for row in bench.due():
            yield ("move", row.number)
        for row in rows:
            if row.live and row.machine in self.stand_ins:
                yield from self._of_stand_in(row)
        for moment in range(min(len(bench.moments()), MOMENTS_MAX)):
            yield ("clock", moment)
        for sent in dict.fromkeys(bench.sent):
            yield ("again", *sent)
        if not rows[0].live:
            return
        if len(bench.sent) < scope.messages:
            for row in rows:
                if row.live:
                    yield from self._messages("send", row)
        if scope.cancels and not bench.cancelled:
            yield ("cancel",)
        if scope.pauses and not bench.paused and rows[0].status not in ("paused", "quarantined"):
            yield ("pause",)
        if scope.pauses and rows[0].status in ("paused", "quarantined"):
            yield ("resume",)

    def _messages(self, kind: str, row: Row) -> Iterator[Step]:
        """Events from outside, with a payload for each way in which the state judges them."""
        table = self.bench.app.tables[row.machine]
        for event in self.external[row.machine]:
            if (row.state, event) in table.edges:
                texts = self.payloads.of_row(table, row, event)
            elif kind == "send":
                continue  # refused now; that cell is probed, and the state does not change
            else:
                texts = [self.payloads.first(table, event)]
            for text in texts:
                yield (kind, event, text, row.number)

    def _of_stand_in(self, row: Row) -> Iterator[Step]:
        """What a child may show next."""
        bench = self.bench
        if row.due_ms is not None or row.status in ("paused", "quarantined") or row.closing:
            return  # it has something to do by itself first
        waiting = [one[0] for one in bench.rows().inbox]
        if row.run_id in waiting or waiting.count(row.parent_id or "") >= UNREAD_MAX:
            return
        table = bench.app.tables[row.machine]
        for event in table.events:
            if (row.state, event) not in table.edges:
                continue
            if event not in table.payloads:
                yield ("child", event, "", row.number)
            else:
                for text in self.payloads.ends(table, row, event):
                    yield ("child", event, text, row.number)

    def answers(self, hand: Hand) -> list[Choice]:
        """What the call may get for an answer."""
        asked, bench, scope = hand.asked, self.bench, self.setting.scope
        found = self._options(asked)
        state, table = asked.job.run.state, asked.job.table
        if table is self.setting.table and state in self.setting.left_out:
            found = [c for c in found if len(c) < 3 or not c[1] or (state, c[1]) in table.edges]
        if not scope.faults:
            found = [choice for choice in found if choice[0] not in FAULTS]
        row = bench.row(asked.call.run_id)
        if row is not None and len(bench.sent) < scope.messages:
            found += [(kind, event, text, str(number))
                      for kind, event, text, number in self._messages("arrives", row)]  # fmt: skip
        if asked.call.run_id == bench.root and scope.cancels and not bench.cancelled:
            found.append(("arrives", "$cancel", "", "1"))
        return found

    def _options(self, asked: Asked) -> list[Choice]:
        """Every answer that a call may get by itself; the ordinary ones first."""
        if asked.what == "reconcile":
            known = asked.call.key in self.bench.outside.done
            again = [] if known or not may_say_again(asked.effect) else [("again",)]
            return [("told",), *again, ("unknown",)]
        events = self._outcomes(asked)
        found: list[Choice] = [("ok", *one) for one in events]
        if may_return(asked.effect)[1] and asked.call.key not in self.bench.outside.done:
            found.append(("again",))  # what was done once is not "nothing yet" afterwards
        found += [("transient",), ("permanent",), ("unsent",)]
        found += [("lost", *one) for one in events]
        found += [("died", *one) for one in events]
        return [*found, *(("zombie", *one) for one in events)]

    def _outcomes(self, asked: Asked) -> list[tuple[str, str]]:
        job, now_ms = asked.job, asked.call.now_ms
        if job.run.effect is None or job.run.effect.undo_of is not None:
            return [("", "")]
        return [
            (event, text)
            for event in outcome_events(job.table, job.run.state, asked.effect)
            for text in self._texts(asked, event, now_ms)
        ]

    def _texts(self, asked: Asked, event: str, now_ms: int) -> list[str]:
        table, kind = asked.job.table, kind_of(asked.job.table, asked.effect, event)
        if kind is not None and table.payloads.get(event) is not kind:
            return self.payloads.strange(kind)  # unknown to the machine; the engine has to cope
        return self.payloads.of(table, asked.job.run, event, now_ms, outcome=True)


class Payloads:
    """What events carry: as the environment says, else the smallest of each kind.

    Of small values one is taken for each way in which guards and contracts judge them.
    """

    def __init__(self, bench: Bench, setting: Setting) -> None:
        self._bench = bench
        self._setting = setting
        self._small: dict[Any, list[Event | None]] = {}
        self._found: dict[Any, list[str]] = {}
        self._hints: dict[str, Hints] = {}

    def first(self, table: Table, event: str) -> str:
        """The encoded first small payload."""
        return self._text(self._of_type(table, event)[0])

    def of_row(self, table: Table, row: Row, event: str) -> list[str]:
        """Encoded payloads of an event from outside, for a run as it is stored."""
        now_ms = self._bench.clock.now_ms()
        key = (table.name, row.state, event, row.context, row.undo, row.closing, now_ms)
        if key not in self._found:
            stored = self._bench.store.runs.get(row.run_id)
            assert stored is not None
            run = self._bench.codec.open_run(stored.run)
            self._remember(key, self._made(table, run, event, now_ms, outcome=False))
        return self._found[key]

    def of(self, table: Table, run: Run, event: str, now_ms: int, *, outcome: bool) -> list[str]:
        """Encoded payloads, "" for an event without payload."""
        key = (table.name, run.state, event, self._bench.codec.encode(run.context), run.undo,
               run.closing, now_ms, outcome)  # fmt: skip
        if key not in self._found:
            self._remember(key, self._made(table, run, event, now_ms, outcome=outcome))
        return self._found[key]

    def _remember(self, key: Any, texts: list[str]) -> None:
        if len(self._found) >= REMEMBERED_MAX:
            self._found.clear()
        self._found[key] = texts

    def strange(self, kind: type[Event]) -> list[str]:
        """One encoded payload of any type."""
        return [self._text(next(iter(values_of(kind, limit=1))))]

    def ends(self, table: Table, row: Row, event: str) -> list[str]:
        """Encoded ends of a child for which a stand-in runs."""
        key = (table.name, row.state, event, row.context)
        if key not in self._found:
            self._remember(key, list(self._ends(table, row, event)))
        return self._found[key]

    def _ends(self, table: Table, row: Row, event: str) -> Iterator[str]:
        kind, state = table.payloads[event], target_of(event)
        played = self._bench.codec.decode(table.context, row.context, "context")
        real = self._setting.children[table.name]
        context = real.context(**{n: getattr(played, n) for n in real.context.__struct_fields__})
        environment = self._setting.environment
        given = environment.ends_of(table.name, context, row.state) if environment else None
        if given is None:
            yield self._text(kind())
            return
        known = real.places
        for end, output in given:
            if end not in known or not known[end].final:
                finals = ", ".join(name for name, place in known.items() if place.final)
                raise DefinitionError(
                    f"environment of {self._setting.table.name}: {table.name} cannot end in "
                    f"{end!r}. Its final states: {finals}."
                )
            if end == state:
                yield self._text(kind(output=output))

    def _made(self, table: Table, run: Run, event: str, now_ms: int, *, outcome: bool) -> list[str]:
        environment = self._setting.environment
        if environment is not None and table is self._setting.table:
            given = environment.payloads_of(
                event, context=run.context, state=run.state, now_ms=now_ms
            )
            if given is not None:
                return list(dict.fromkeys(self._checked(table, event, one) for one in given))
        return self._distinct(table, run, event, now_ms, outcome=outcome)

    def _checked(self, table: Table, event: str, payload: Event) -> str:
        expected = table.payloads.get(event)
        if expected is None or type(payload) is not expected:
            wanted = expected.__name__ if expected else "no payload"
            raise DefinitionError(
                f"environment of {table.name}: event {event} carries {wanted}, "
                f"got {type(payload).__name__}."
            )
        return self._text(payload)

    def _distinct(
        self, table: Table, run: Run, event: str, now_ms: int, *, outcome: bool
    ) -> list[str]:
        found: dict[Any, str] = {}
        for payload in self._of_type(table, event):
            try:
                result = decide(table, run, event, payload, now_ms, from_effect=outcome)
            except TurtlesError as error:
                found.setdefault(type(error), self._text(payload))
                continue
            target = result.after.state if isinstance(result, Decision) else ""
            entry = result.entry if isinstance(result, Decision) else result
            verdicts = tuple((v.clause, v.ok) for v in entry.verdicts)
            reason = result.reason if isinstance(result, Violation) and not verdicts else ""
            found.setdefault((type(result), target, verdicts, reason), self._text(payload))
        return list(found.values())

    def _of_type(self, table: Table, event: str) -> Sequence[Event | None]:
        key = (table.name, event)
        if key not in self._small:
            if table.name not in self._hints:
                self._hints[table.name] = hints_of(table)
            hints = self._hints[table.name]
            made = payloads_of(table, event, limit=PAYLOADS_MAX, hints=hints)
            self._small[key] = list(made)
        return self._small[key]

    def _text(self, payload: Event | None) -> str:
        return "" if payload is None else self._bench.codec.encode(payload).decode()


def _external(table: Table, tables: Mapping[str, Table]) -> list[str]:
    """The events of a machine that somebody outside sends."""
    subject = Subject(table, tables)
    events: Iterable[str] = (e.event for e in table.all_edges() if is_external(subject, e))
    return [event for event in dict.fromkeys(events) if event != CANCEL_EVENT]
