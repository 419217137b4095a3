"""The outside of an explored machine: every answer a call may get, and a ledger of what was done.

The explorer's world performs nothing.  Each call stops at `Paused`, and the bench goes on there
with an answer that `engine.verification.options` offers::

    perform     ok E        done, and answers E               transient   not done, try again
                again       nothing to report yet             permanent   not done, and never will
                lost E      done, the answer is lost          unsent      not done, nobody knows
                died E      done, and the worker died         zombie E    done, but the run was lost
    reconcile   told        the truth of the ledger           unknown     nobody can say
    both        arrives M   a message comes in meanwhile

E is each event that the effect's annotation allows, with one payload for each way in which guards
and contracts judge the small payloads of `engine.verification.scope`.  The ledger is keyed by
idempotency key; an effect that is not idempotent may be done once under its key, and once only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

from engine.desk import Job
from engine.effects import Again, Call, Effect, NotDone
from engine.errors import OutcomeUnknown, Permanent, Transient
from engine.events import Event
from engine.table import Table
from engine.testing.faults import Crash
from engine.verification.static.subject import outcomes_of, sent_by_engine

Choice = tuple[str, ...]
"""A kind, and for kinds with an event its name and its encoded payload."""

FAULTS = frozenset({"transient", "permanent", "lost", "unsent", "died", "zombie", "unknown"})


class Paused(BaseException):
    """A call whose answer is not chosen yet; no code of the engine catches it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The call at which a move stands."""

    what: str
    effect: Effect
    call: Call
    job: Job


@dataclass
class Outside:
    """`Calls` that are answered by script.

    Args:
        decode: a payload from what is stored, by type.
        deliver: a message arrives while the worker is busy.
        lose: another worker takes the run away.
        check: called before every call, with the call.
    """

    decode: Callable[[type[Event], str], Event]
    deliver: Callable[[str, str, str], None]
    lose: Callable[[str], None]
    check: Callable[[Asked], None]
    breach: Callable[[str, str], None]
    script: list[Choice] = field(default_factory=list)
    done: dict[str, tuple[str, str]] = field(default_factory=dict)
    job: Job | None = None
    asked: Asked | None = None

    async def perform(self, effect: Effect, context: Any, call: Call) -> Any:
        """Answer as the script says."""
        choice = self._choice("perform", effect, call)
        match choice[0]:
            case "again":
                return Again()
            case "transient":
                raise Transient("the outside is busy")
            case "permanent":
                raise Permanent("the outside refuses")
            case "unsent":
                raise OutcomeUnknown("no answer")
        self._note(effect, call, choice)
        if choice[0] == "lost":
            raise OutcomeUnknown("no answer")
        if choice[0] == "died":
            raise Crash("after the call was done")
        if choice[0] == "zombie":
            self.lose(call.run_id)
        return self._event(effect, choice)

    async def reconcile(self, effect: Effect, context: Any, call: Call) -> Any:
        """Answer truthfully from the ledger, or not at all."""
        choice = self._choice("reconcile", effect, call)
        if choice[0] == "again":
            return Again()
        if choice[0] == "unknown":
            raise OutcomeUnknown("the outside cannot say")
        if call.key not in self.done:
            return NotDone()
        return self._event(effect, ("ok", *self.done[call.key]))

    def _choice(self, what: str, effect: Effect, call: Call) -> Choice:
        assert self.job is not None
        self.asked = Asked(what, effect, call, self.job)
        self.check(self.asked)
        while self.script:
            choice = self.script.pop(0)
            if choice[0] != "arrives":
                return choice
            self.deliver(choice[1], choice[2], choice[3])
        raise Paused

    def _note(self, effect: Effect, call: Call, choice: Choice) -> None:
        if call.key in self.done and not effect.idempotent:
            self.breach(
                "effect performed twice",
                f"effect {effect.name} was done already under its key, and is done again "
                f"(attempt {call.attempt})",
            )
        self.done[call.key] = (choice[1], choice[2])

    def _event(self, effect: Effect, choice: Choice) -> Event | None:
        assert self.job is not None
        if not choice[1]:
            return None  # a compensation's answer means only that it is done
        kind = kind_of(self.job.table, effect, choice[1])
        if kind is None:  # an old token; the effect does not return this any more
            self.script.insert(0, choice)
            raise Paused
        return self.decode(kind, choice[2])


def kind_of(table: Table, effect: Effect, event: str) -> type[Event] | None:
    """The payload type of an effect's outcome."""
    return may_return(effect)[0].get(event) or table.payloads.get(event)


def outcome_events(table: Table, state: str, effect: Effect) -> list[str]:
    """The events that an effect may return: those of its annotation, else what its state takes."""
    events, _, known = may_return(effect)
    if known and events:
        return list(events)
    sent = sent_by_engine(table.places[state])
    return [event for place, event in table.edges
            if place == state and event not in sent and event in table.payloads]  # fmt: skip


_KNOWN: dict[Any, tuple[dict[str, type[Event]], bool, bool]] = {}


def may_return(effect: Effect) -> tuple[dict[str, type[Event]], bool, bool]:
    """`outcomes_of`, looked up once."""
    key = (effect.perform, effect.ask)
    if key not in _KNOWN:
        _KNOWN[key] = outcomes_of(effect)
    return _KNOWN[key]


def may_say_again(effect: Effect) -> bool:
    """Whether its reconcile may answer `Again`."""
    returned = get_type_hints(effect.ask).get("return") if effect.ask else None
    return Again in get_args(returned) or returned is Again
