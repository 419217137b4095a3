"""Answers of the outside by chance, with a ledger of what was done by idempotency key.

A call that is made may be done and answered, done with its answer lost, or not done: refused for
now, refused for good, or never arrived.  Of the events of its annotation only those are answered
that the machine has a use for, so what goes wrong is not the machine's fault.  Whoever asks later
is told the truth of the ledger, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from engine.codec import Codec
from engine.decide import Decision, decide
from engine.effects import Again, Call, Effect, NotDone
from engine.errors import OutcomeUnknown, Permanent, Transient, TurtlesError
from engine.events import Event
from engine.verification.options import Payloads
from engine.verification.outside import (
    Asked,
    Choice,
    kind_of,
    may_return,
    may_say_again,
    outcome_events,
)
from engine.verification.scheduler import BrokenStage, Chance, Switch
from engine.verification.watched import Watch, Worker

MOVING_KEPT = 50_000


class Ledger:
    """What the outside has done, and what it answers.

    Args:
        watch: is told of breaches.
        codec, payloads: what events carry.
    """

    def __init__(self, watch: Watch, codec: Callable[[], Codec]) -> None:
        self._watch = watch
        self._codec = codec
        self.payloads: Payloads
        self._moving: dict[Any, bool] = {}
        self.begin(Chance(0))

    def begin(self, chance: Chance) -> None:
        """Nothing was done."""
        self.chance = chance
        self.done: dict[str, tuple[str, str]] = {}
        self.healing = False

    def check(self, worker: Worker, what: str, effect: Effect, call: Call) -> None:
        """No call but by the owner of the run, recorded before, under the recorded key."""
        self._watch.figures.calls += 1
        owner, *seen = self._watch.peek.pending(call.run_id)
        if owner != worker.name:
            if what == "perform":  # whoever only asks does no harm
                self._watch.breach(
                    "call by another",
                    f"effect {effect.name} by {worker.name}, but the run belongs to "
                    f"{owner or 'nobody'}",
                )
        elif seen != [call.key, True, call.attempt]:
            self._watch.breach(
                "call without record",
                f"{what} of effect {effect.name}: attempt {call.attempt}, recorded is {seen[1:]}",
            )

    def do(self, effect: Effect, call: Call, choice: Choice) -> None:
        """The outside does it, and keeps that."""
        if call.key in self.done and not effect.idempotent:
            self._watch.breach(
                "effect performed twice",
                f"effect {effect.name} was done already under its key, and is done again "
                f"(attempt {call.attempt})",
            )
        self.done.setdefault(call.key, (choice[1], choice[2]))

    def answer(self, asked: Asked) -> Choice:
        """One of the answers that the machine has a use for; without faults when healing."""
        try:
            return self._asked(asked) if asked.what == "reconcile" else self._performed(asked)
        except Exception as error:  # the engine would take it for an answer of the outside
            raise BrokenStage(f"no answer for {asked.what} of {asked.effect.name}") from error

    def _asked(self, asked: Asked) -> Choice:
        pick = self.chance.pick
        if self.healing or pick(4):
            return ("told",)
        again = asked.call.key not in self.done and may_say_again(asked.effect)
        return ("again",) if again and pick(2) else ("unknown",)

    def _performed(self, asked: Asked) -> Choice:
        known, pick = self.done.get(asked.call.key), self.chance.pick
        oks = [known] if known else self._outcomes(asked)
        # What was done stays done: a later call that has nothing to tell would deny it.
        again = known is None and may_return(asked.effect)[1]
        if not oks:
            return ("again",) if again else ("permanent",)
        if self.healing or pick(2):
            return ("ok", *oks[pick(len(oks))])
        faults: list[Choice] = [("transient",), ("unsent",), ("permanent",)]
        faults += [("again",)] if again else []
        faults += [("lost", *one) for one in (*oks, oks[0])]
        return faults[pick(len(faults))]

    def _outcomes(self, asked: Asked) -> list[tuple[str, str]]:
        """What an effect may give that moves the run; ("", "") is the end of a compensation."""
        job, now_ms = asked.job, asked.call.now_ms
        pending = job.run.effect
        if pending is None or pending.undo_of is not None:
            return [("", "")]
        return [
            (event, text)
            for event in outcome_events(job.table, job.run.state, asked.effect)
            if (job.run.state, event) in job.table.edges
            for text in self.payloads.of(job.table, job.run, event, now_ms, outcome=True)
            if self._moves(asked, event, text)
        ]

    def _moves(self, asked: Asked, event: str, text: str) -> bool:
        job, now_ms = asked.job, asked.call.now_ms
        kind = kind_of(job.table, asked.effect, event)
        if job.table.payloads.get(event) is not kind:
            return False
        context = self._codec().encode(job.run.context)
        key = (job.table.name, job.run.state, context, event, text, now_ms)
        if key not in self._moving:
            if len(self._moving) >= MOVING_KEPT:
                self._moving.clear()
            payload = self._decoded(kind, text)
            try:
                result = decide(job.table, job.run, event, payload, now_ms, from_effect=True)
                self._moving[key] = isinstance(result, Decision)
            except TurtlesError:
                self._moving[key] = False
        return self._moving[key]

    def event(self, asked: Asked, known: Sequence[str]) -> Event | None:
        """What an answer says; None for a compensation's, which means only that it is done."""
        if not known[0]:
            return None
        return self._decoded(kind_of(asked.job.table, asked.effect, known[0]), known[1])

    def _decoded(self, kind: type[Event] | None, text: str) -> Event | None:
        if kind is None:
            return None
        found: Event = self._codec().decode(kind, text.encode(), "payload")
        return found


class Answers:
    """`engine.performing.Calls` of one worker, from the ledger of all."""

    def __init__(self, ledger: Ledger, worker: Worker, clock: Any) -> None:
        self._ledger, self._worker, self._clock = ledger, worker, clock

    async def perform(self, effect: Effect, context: Any, call: Call) -> Any:
        """One legal answer."""
        ledger, worker = self._ledger, self._worker
        asked = self._asked("perform", effect, call)
        worker.flight_ms = self._clock.now_ms()
        await Switch(f"calls {effect.name}")
        worker.flight_ms = None
        choice = ledger.answer(asked)
        if choice[0] in ("ok", "lost"):
            ledger.do(effect, call, choice)
        await Switch(f"{effect.name} answers {' '.join(choice[:2])}")
        match choice[0]:
            case "again":
                return Again()
            case "transient":
                raise Transient("the outside is busy")
            case "permanent":
                raise Permanent("the outside refuses")
            case "unsent" | "lost":
                raise OutcomeUnknown("no answer")
        return ledger.event(asked, choice[1:])

    async def reconcile(self, effect: Effect, context: Any, call: Call) -> Any:
        """The truth of the ledger, or nothing."""
        ledger = self._ledger
        asked = self._asked("reconcile", effect, call)
        await Switch(f"asks {effect.name}")
        known, choice = ledger.done.get(call.key), ledger.answer(asked)
        await Switch(f"{effect.name} is told {choice[0]}")
        if choice[0] == "again":
            return Again()
        if choice[0] == "unknown":
            raise OutcomeUnknown("the outside cannot say")
        return NotDone() if known is None else ledger.event(asked, known)

    def _asked(self, what: str, effect: Effect, call: Call) -> Asked:
        assert self._worker.job is not None
        self._ledger.check(self._worker, what, effect, call)
        return Asked(what, effect, call, self._worker.job)
