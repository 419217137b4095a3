"""Going ways again, to see whether they break a rule and could have come about.

A walk takes steps that nobody would offer: the answer of another effect, an event with a payload
that its environment rules out, a probe of an event that is not refused.  What is broken on such a
way means nothing, so `Judge` asks at each of these steps whether it is among the options there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

from engine.errors import TurtlesError, UsageError
from engine.events import Context, Event
from engine.table import Table
from engine.verification.explore import Rig, _Explorer
from engine.verification.options import Options
from engine.verification.oracles import Breach
from engine.verification.outside import kind_of
from engine.verification.result import Scope, Step
from engine.verification.walk import Walk

Way = tuple[Step, ...]
EVERYTHING = Scope(messages=1_000_000, cancels=True, pauses=True, faults=True)
OFFERED = frozenset({"start", "send", "again", "child", "probe", "call"})
"""Steps that a walk takes also where nobody would offer them."""
DONE = frozenset({"ok", "lost", "died", "zombie"})


class _Strict(Walk):
    """Whoever stands at a call gets an answer before anything else happens."""

    _paused = False

    def _go(self, left: list[Step]) -> Any:
        self._paused = False
        return super()._go(left)

    def _remember(self) -> None:
        if self._paused:
            raise LookupError("a step is taken while a worker stands at a call")
        self._paused = self.bench.hand is not None
        super()._remember()


class Judge:
    """Goes ways again on one rig, and remembers which of them break the rule.

    Attributes:
        seen, problem: what was wrong on the last way, and what the rule's breach said.
    """

    def __init__(self, rig: Rig, rule: str, contexts: Sequence[Context], *, liveness: bool) -> None:
        self.rig = rig
        self.rule = rule
        self.contexts = contexts
        self.liveness = liveness
        self.options = Options(rig.bench, replace(rig.options.setting, scope=EVERYTHING))
        self.walk = rig.walk = _Strict(rig.bench)
        self.last = float("inf")
        self.seen: tuple[Breach, ...] = ()
        self.problem = ""
        self.tried = 0
        self._known: set[Way] = set()

    def fails(self, way: Way) -> bool:
        """Whether the way is one that could come about, and breaks the rule.

        Raises:
            TimeoutError: the time is over.
        """
        if way in self._known:
            return False
        if perf_counter() > self.last:
            raise TimeoutError
        if self.breaks(way) and self._may_come(way):
            return True
        self._known.add(way)
        return False

    def breaks(self, way: Way) -> bool:
        """Whether the way can be gone and breaks the rule; "stuck" is broken where it ends."""
        self.tried += 1
        self.rig.report.failures.clear()
        try:
            self.seen = _Explorer(self.rig, None).repeat(way, liveness=self.liveness).breaches
        except (UsageError, LookupError):
            self.seen = ()
        found = [one.problem for one in self.seen if one.rule == self.rule]
        self.problem = found[0] if found else ""
        if found and self.liveness:
            return any(failure.steps == way for failure in self.rig.report.failures)
        return bool(found)

    def _may_come(self, way: Way) -> bool:
        """Whether each answer is one that its call may get, and each payload one that may come.

        A call that is left out hands its answer to the next one, which may be of another effect.
        """
        return all(
            self.at(way[:place]) and is_option(self, step)
            for place, step in enumerate(way)
            if step[0] in OFFERED
        )

    def at(self, way: Way) -> bool:
        """Go to the end of the beginning of a way; false if nothing can be asked there."""
        try:
            self.walk.go(way)
        except (LookupError, ValueError, TurtlesError):
            return False
        return True


# -- what may come ------------------------------------------------------------------------------


def is_option(judge: Judge, step: Step) -> bool:
    """Whether a step is offered where the bench stands, its payload aside if that is free."""
    bench, hand = judge.rig.bench, judge.rig.bench.hand
    if step[0] == "call":
        choices = judge.options.answers(hand) if hand is not None else []
        if step[1:3] not in [choice[:2] for choice in choices]:
            return False
    if step[0] == "probe":
        root = bench.rows().runs[0]
        held = root.status in ("paused", "quarantined") or root.closing or root.owner
        busy = any(one[0] == root.run_id for one in bench.rows().inbox)
        return not (held or busy) and (root.state, step[1]) not in judge.rig.table.edges
    if step[0] == "child":
        return step in judge.options.actions()
    column = column_of(step)
    if column is None or not step[column]:
        return True
    _, among = allowed(judge, step)
    return among is None or step[column] in among


def allowed(judge: Judge, step: Step) -> tuple[Any, tuple[str, ...] | None]:
    """The type of a step's payload, and what it may be; the bench stands before the step."""
    rig = judge.rig
    if step[0] == "start":
        environment = rig.environment
        given = list(judge.contexts) or (list(environment.contexts()) if environment else [])
        texts = tuple(rig.bench.codec.encode(one).decode() for one in given)
        return rig.bench.app.tables[step[1]].context, texts or None
    if step[0] == "call" and step[1] != "arrives":
        return _of_call(judge, step[2])
    if step[0] == "probe":
        return rig.table.payloads.get(step[1]), None
    event, _, number = message_of(step) or (step[1], step[2], step[3])
    row = next((row for row in rig.bench.rows().runs if row.number == number), None)
    if row is None:
        return None, ()
    table = rig.bench.app.tables[row.machine]
    if step[0] == "child":
        return None, tuple(judge.options.payloads.ends(table, row, event))
    if not _is_said(rig, table, event):
        return table.payloads.get(event), None
    return table.payloads.get(event), tuple(judge.options.payloads.of_row(table, row, event))


def _of_call(judge: Judge, event: str) -> tuple[Any, tuple[str, ...] | None]:
    hand = judge.rig.bench.hand
    if hand is None:
        return None, ()
    job, now_ms = hand.asked.job, hand.asked.call.now_ms
    kind: type[Event] | None = kind_of(job.table, hand.asked.effect, event)
    if not _is_said(judge.rig, job.table, event):
        return kind, None
    texts = judge.options.payloads.of(job.table, job.run, event, now_ms, outcome=True)
    return kind, tuple(texts)


def _is_said(rig: Rig, table: Table, event: str) -> bool:
    """Whether the environment says what the event carries."""
    return rig.environment is not None and table is rig.table and event in rig.environment.events()


def message_of(step: Step) -> tuple[Any, ...] | None:
    """Event, payload and run of a message, however it comes."""
    if step[0] in ("send", "again"):
        return tuple(step[1:])
    if step[:2] == ("call", "arrives"):
        return (step[2], step[3], int(step[4]))
    return None


def column_of(step: Step) -> int | None:
    """Where a step has its encoded value."""
    if step[0] == "call":
        return 3 if step[1] in (*DONE, "arrives") else None
    return 2 if step[0] in ("start", "send", "again", "child", "probe") else None
