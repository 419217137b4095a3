"""What happens next in a random life: one step, by weights.

Rare kinds are preferred, and so is whatever the coverage lacks: a machine's common ways are gone
often enough anyway.  All randomness comes from the `random.Random` of the sequence.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.control import CANCEL
from engine.decide import Decision, decide
from engine.errors import TurtlesError
from engine.events import Context
from engine.table import Table
from engine.verification.bench import Hand
from engine.verification.coverage import Coverage, Transition
from engine.verification.drawing import Drawing
from engine.verification.explore import Rig
from engine.verification.outside import Asked, Choice, may_return, may_say_again, outcome_events
from engine.verification.result import Step
from engine.verification.snapshot import Row


@dataclass(frozen=True, slots=True)
class _Message:
    """An event that may arrive; its payload is drawn when it is chosen."""

    row: Row
    event: str


Option = tuple[float, Step | _Message]
MOVE, CHILD, CLOCK, SEND, STRAY, AGAIN, PROBE = 10.0, 6.0, 3.0, 4.0, 0.7, 1.0, 0.5
CANCELS, PAUSES, RESUMES = 0.3, 0.3, 3.0
LACKING = 4.0
"""Times the weight of what the coverage lacks."""
MOMENTS_MAX, LATER = 3, 0.7
WITH_GOAL = 0.7
"""So many lives have a goal: one transition, of those never seen if there are any."""
ASTRAY = 0.1
ASTRAY_BELOW = 0.5
TRIED_MAX = 4
FAR = 1_000_000
CRASH = 0.15
TROUBLE = (1.0, 1.0, 0.3, 0.1, 0.02)
"""How often faults and people get in the way, as a share of these weights; drawn for each life, so
that some lives get far."""
CRASH_COMMITS = (1, 1, 2, 3)
SMALLEST_FIRST = 0.4
"""So often a payload is one of those that guards tell apart, instead of one out of the blue."""
ANSWERS = {"ok": 10.0, "again": 2.0, "transient": 1.0, "permanent": 0.6, "unsent": 0.8, "lost": 1.0,
           "died": 0.8, "zombie": 0.6, "told": 6.0, "unknown": 1.0, "arrives": 1.5}  # fmt: skip
DONE = frozenset({"ok", "lost", "died", "zombie"})
ORDINARY = frozenset({"ok", "again", "told"})
WITHOUT_FAULTS = frozenset({"ok", "again", "told", "arrives"})


def _distances(coverage: Coverage, goal: str) -> dict[str, int]:
    """How many transitions lie between a state and the goal, for those from which a way leads."""
    back: dict[str, set[str]] = {}
    for source, _, target in coverage.all_transitions:
        back.setdefault(target, set()).add(source)
    found, todo = {goal: 0}, deque([goal])
    while todo:
        state = todo.popleft()
        for source in back.get(state, ()):
            if source not in found:
                found[source] = found[state] + 1
                todo.append(source)
    return found


class Chances:
    """Chooses steps on a rig's bench."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.bench = rig.bench
        self.options = rig.options
        self.scope = rig.scope
        self.drawing = Drawing(rig.bench.codec)
        self.chance = self.drawing.chance
        self.trouble = 1.0
        environment = rig.environment
        self._said = frozenset(environment.events()) if environment else frozenset()
        self.goal: Transition | None = None
        self._contexts: dict[tuple[str, bytes], Context] = {}
        self._far = {state: _distances(rig.coverage, state) for state in rig.table.places}

    def begin(self, chance: random.Random) -> None:
        """A new life."""
        self.chance = self.drawing.chance = chance
        self.trouble = chance.choice(TROUBLE)
        coverage = self.rig.coverage
        goals = coverage.missing_transitions or [(*cell, "") for cell in coverage.missing_cells]
        goals = goals or coverage.all_transitions
        self.goal = chance.choice(goals) if goals and chance.random() < WITH_GOAL else None

    def next(self) -> Step | None:
        """Any step; None: nothing can happen any more."""
        hand = self.bench.hand
        return self._action() if hand is None else self._answer(hand)

    def finishing(self) -> Step | None:
        """A step without faults and messages; None: nothing moves by itself."""
        bench, hand = self.bench, self.bench.hand
        if hand is not None:
            if hand.asked.what == "reconcile":
                return ("call", "told")
            choice, _ = self._good(hand.asked)
            return None if choice is None else ("call", *choice)
        due = bench.due()
        if due:
            return ("move", self.chance.choice(due).number)
        children = self._of_children()
        if children:
            return self.chance.choice(children)
        return ("clock", 0) if bench.moments() else None

    def crash_at(self, step: Step) -> int | None:
        """After which commit of the move the worker dies, if it does."""
        if not self.scope.faults or step[0] not in ("move", "call"):
            return None
        if step[1] in ("died", "zombie", "arrives") or self.chance.random() >= CRASH * self.trouble:
            return None
        hand = self.bench.hand
        if hand is not None:
            return None if hand.zombie else hand.commits + self.chance.choice(CRASH_COMMITS)
        return self.chance.choice((0, *CRASH_COMMITS))

    # -- at a quiet moment ----------------------------------------------------------------------

    def _action(self) -> Step | None:
        bench = self.bench
        rows = bench.rows().runs
        found: list[Option] = [(MOVE, ("move", row.number)) for row in bench.due()]
        found += [(CHILD, step) for step in self._of_children()]
        moments = min(len(bench.moments()), MOMENTS_MAX)
        found += [
            (CLOCK if moment == 0 else LATER * self.trouble, ("clock", moment))
            for moment in range(moments)
        ]
        if bench.sent:
            found.append((AGAIN * self.trouble, ("again", *self.chance.choice(bench.sent))))
        if len(bench.sent) < self.scope.messages:
            found += [option for row in rows for option in self._messages(row)]
        found += self._probes(rows[0])
        if rows[0].live:
            found += self._controls(rows[0])
        while found:
            weights = [weight for weight, _ in found]
            _, chosen = found.pop(self.chance.choices(range(len(found)), weights)[0])
            step = self._sent(chosen) if isinstance(chosen, _Message) else chosen
            if step is not None:
                return step
        return None

    def _of_children(self) -> list[Step]:
        options = self.options
        rows = [row for row in self.bench.rows().runs
                if row.live and row.machine in options.stand_ins]  # fmt: skip
        return [step for row in rows for step in options._of_stand_in(row)]

    def _messages(self, row: Row) -> list[Option]:
        table = self.bench.app.tables[row.machine]
        found: list[Option] = []
        for event in self.options.external[row.machine]:
            taken = row.live and (row.state, event) in table.edges
            weight = SEND if taken else STRAY * self.trouble
            if row.live:
                weight *= self._wanted(table, row.state, event)
            found.append((weight, _Message(row, event)))
        return found

    def _sent(self, message: _Message) -> Step | None:
        row, event = message.row, message.event
        text = self._text(self.bench.app.tables[row.machine], row, event)
        return None if text is None else ("send", event, text, row.number)

    def _controls(self, root: Row) -> list[Option]:
        held = root.status in ("paused", "quarantined")
        found: list[Option] = []
        if self.scope.cancels and not self.bench.cancelled:
            found.append((CANCELS * self.trouble, ("cancel",)))
        if self.scope.pauses and not held:
            found.append((PAUSES * self.trouble, ("pause",)))
        if self.scope.pauses and held:
            found.append((RESUMES, ("resume",)))
        return found

    def _probes(self, root: Row) -> list[Option]:
        """Any event of the machine in a state that does not take it, where nothing else is due."""
        table = self.rig.table
        if root.status in ("paused", "quarantined") or root.closing or root.owner:
            return []
        if root.due_ms is not None and root.due_ms <= self.bench.clock.now_ms():
            return []
        if any(one[0] == root.run_id for one in self.bench.rows().inbox):
            return []
        events = [event for event in table.events if (root.state, event) not in table.edges]
        return [
            (PROBE * self._wanted(table, root.state, event) / len(events),
             ("probe", event, self.options.payloads.first(table, event)))
            for event in events
        ]  # fmt: skip

    def _wanted(self, table: Table, state: str, event: str) -> float:
        """More for what was never seen, and for what leads to the goal of this life."""
        if table is not self.rig.table:
            return 1.0
        if (state, event) not in self.rig.coverage.cells:
            return LACKING
        targets = [edge.target for edge in table.edges.get((state, event), ())]
        return self._leading(state, event, targets, 1.0)

    def _leading(self, state: str, event: str, targets: Sequence[str], otherwise: float) -> float:
        """More for the goal and for what leads towards it, less for what leads nowhere near it."""
        if self.goal is None:
            return otherwise
        if (state, event) == self.goal[:2] and self.goal[2] in targets:
            return LACKING
        far = self._far[self.goal[0]]
        if state not in far:
            return otherwise
        nearest = min((far.get(target, FAR) for target in targets), default=FAR)
        if nearest < far[state]:
            return LACKING
        return 1.0 if nearest < FAR else ASTRAY

    # -- at a call ------------------------------------------------------------------------------

    def _answer(self, hand: Hand) -> Step:
        asked, scope = hand.asked, self.scope
        kinds = self._kinds(asked)
        if not scope.faults:
            kinds = [kind for kind in kinds if kind in WITHOUT_FAULTS]
        row = self.bench.row(asked.call.run_id)
        may_cancel = row is not None and row.parent_id is None and scope.cancels
        may_cancel = may_cancel and not self.bench.cancelled
        external = self.options.external[asked.job.table.name]
        may_send = row is not None and external and len(self.bench.sent) < scope.messages
        if may_send or may_cancel:
            kinds.append("arrives")
        good, worth = (None, 1.0) if asked.what == "reconcile" else self._good(asked)
        astray = good is None or worth < ASTRAY_BELOW
        weights = [self._weight(one, astray) for one in kinds]
        if "permanent" in kinds and self._wants_to_give_up(asked):
            weights[kinds.index("permanent")] = ANSWERS["ok"]
        kind = self.chance.choices(kinds, weights)[0]
        if kind == "arrives" and row is not None:
            if may_cancel and (not may_send or self.chance.random() < CANCELS):
                return ("call", "arrives", CANCEL, "", "1")
            event = self.chance.choice(external)
            text = self._text(asked.job.table, row, event)
            if text is not None:
                return ("call", "arrives", event, text, str(row.number))
            kind = "told" if asked.what == "reconcile" else "ok"
        if kind in DONE:
            choice = good or ("transient",)
            return ("call", kind if choice[0] == "ok" else choice[0], *choice[1:])
        return ("call", kind)

    def _wants_to_give_up(self, asked: Asked) -> bool:
        """Whether the goal lies behind the event that says so."""
        table, state = asked.job.table, asked.job.run.state
        event = table.places[state].on_exhausted
        if self.goal is None or event is None or table is not self.rig.table:
            return False
        return self._wanted(table, state, event) >= LACKING

    def _weight(self, kind: str, astray: bool) -> float:
        """How likely a kind of answer is; rather wait than go where the goal is out of reach."""
        if astray and kind in DONE:
            return ANSWERS[kind] * ASTRAY * self.trouble
        if kind in ORDINARY or (astray and kind == "transient"):
            return ANSWERS[kind]
        return ANSWERS[kind] * self.trouble

    def _kinds(self, asked: Asked) -> list[str]:
        # What was done is done: an honest outside does not say "nothing yet" of it afterwards.
        known = asked.call.key in self.bench.outside.done
        if asked.what == "reconcile":
            again = [] if known or not may_say_again(asked.effect) else ["again"]
            return ["told", *again, "unknown"]
        again = ["again"] if may_return(asked.effect)[1] and not known else []
        return ["ok", *again, "transient", "permanent", "unsent", "lost", "died", "zombie"]

    def _good(self, asked: Asked) -> tuple[Choice | None, float]:
        """An ordinary answer, preferably one that leads to the goal, and how much it is wanted.

        None: the environment's author says that none may come now.
        """
        job = asked.job
        if job.run.effect is None or job.run.effect.undo_of is not None:
            return ("ok", "", ""), 1.0
        state, table = job.run.state, job.table
        events = outcome_events(table, state, asked.effect)
        if table is self.rig.table and state in self.options.setting.left_out:
            events = [event for event in events if (state, event) in table.edges]
        found: list[tuple[float, Choice]] = []
        for event in events:
            texts = self._outcomes(asked, event)
            for text in texts:
                weight = self._worth(asked, event, text) / len(texts)
                found.append((weight, ("ok", event, text)))
        if found:
            weights = [weight for weight, _ in found]
            return self.chance.choices(found, weights)[0][1], max(weights)
        known = asked.call.key in self.bench.outside.done
        return (("again",) if may_return(asked.effect)[1] and not known else None), 1.0

    def _outcomes(self, asked: Asked, event: str) -> list[str]:
        """Some payloads with which a call may answer."""
        table, run = asked.job.table, asked.job.run
        kind = may_return(asked.effect)[0].get(event)
        if kind is not None and table.payloads.get(event) is not kind:
            return self.options.payloads.strange(kind)
        if self.rig.environment is None and self.chance.random() >= SMALLEST_FIRST:
            text = self.drawing.payload(table, event, run.context)
            if text is not None:
                return [text]
        found = self.options.payloads.of(table, run, event, asked.call.now_ms, outcome=True)
        return found if len(found) <= TRIED_MAX else self.chance.sample(found, TRIED_MAX)

    def _worth(self, asked: Asked, event: str, text: str) -> float:
        """How much an answer is wanted, by where it leads."""
        job, table = asked.job, asked.job.table
        state, now_ms = job.run.state, asked.call.now_ms
        worth = self._wanted(table, state, event)
        if self.goal is None or table is not self.rig.table or (state, event) not in table.edges:
            return worth
        kind = table.payloads.get(event)
        try:
            codec = self.bench.codec
            payload = None if kind is None else codec.decode(kind, text.encode(), "payload")
            result = decide(table, job.run, event, payload, now_ms, from_effect=True)
        except TurtlesError:
            return ASTRAY
        if not isinstance(result, Decision):
            return ASTRAY
        return self._leading(state, event, (result.entry.target,), worth)

    # -- payloads -------------------------------------------------------------------------------

    def _text(self, table: Table, row: Row, event: str) -> str | None:
        """A payload for a run as it is stored; None: its author says that there is none now."""
        said = table is self.rig.table and event in self._said
        if not said and self.chance.random() >= SMALLEST_FIRST:
            text = self.drawing.payload(table, event, self._context(table, row))
            if text is not None:
                return text
        try:
            found = self.options.payloads.of_row(table, row, event)
        except TurtlesError:
            return None
        return self.chance.choice(found) if found else None

    def _context(self, table: Table, row: Row) -> Any:
        key = (table.name, row.context)
        if key not in self._contexts:
            if len(self._contexts) > 1_000:
                self._contexts.clear()
            self._contexts[key] = self.bench.codec.decode(table.context, row.context, "context")
        return self._contexts[key]
