"""Small machines whose environments say what else must hold, and what must be seen."""

from __future__ import annotations

from typing import Any

from engine import Call, Context, Event, GaveUp, Machine, NotDone, State, effect
from engine.verification.environment import Done, Environment, always, sometimes

# -- an effect that is given up after some attempts -----------------------------------------------


class Tries(Context):
    attempts: int = 0


class Rang(Event, tag="rang"):
    """Somebody answered."""


class NoAnswer(GaveUp, tag="no_answer"):
    """Nobody did."""


@effect(idempotent=True)
async def ring(context: Tries, call: Call) -> Rang:
    return Rang()


class Patient(Machine[Tries]):
    """Rings three times before it gives up."""

    payloads = (NoAnswer,)
    ringing = State(initial=True, effect=ring, on_exhausted="no_answer")
    done = State(final=True)
    failed = State(final=True, failure=True)
    rang = ringing.to(done)
    no_answer = ringing.to(failed, on="note")

    def note(self, context: Tries, event: NoAnswer) -> Tries:
        return self.but(context, attempts=event.attempts)


class OfPatient(Environment):
    machine = Patient

    @sometimes
    def gives_up_after_three(self, context: Tries) -> bool:
        return context.attempts == 3


# -- a secret that can be read once ---------------------------------------------------------------


class Room(Context):
    secret: str = ""


class Revealed(Event, tag="revealed"):
    secret: str


class Opened(Event, tag="opened"):
    """The door is open."""


class Refused(Event, tag="refused"):
    """It does not open."""


@effect()
async def reveal(context: Room, call: Call) -> Revealed:
    return Revealed(secret="s")


@reveal.reconcile
async def find_revealed(context: Room, call: Call) -> Revealed | NotDone:
    return NotDone()


@effect(idempotent=True)
async def look_up(context: Room, call: Call) -> Revealed:
    return Revealed(secret=context.secret)


@effect(idempotent=True)
async def unlock(context: Room, call: Call) -> Opened | Refused:
    return Opened()


def vault(*, careless: bool) -> type[Machine[Any]]:
    """Read the secret and use it; refused once, look it up, where the broken twin reads it anew."""

    class Vault(Machine[Room]):
        reading = State(initial=True, effect=reveal)
        opening = State(effect=unlock)
        checking = State(effect=reveal if careless else look_up)
        trying_again = State(effect=unlock)
        done = State(final=True)
        failed = State(final=True, failure=True)
        revealed = reading.to(opening, on="keep") | checking.to(trying_again, on="keep")
        opened = opening.to(done) | trying_again.to(done)
        refused = opening.to(checking) | trying_again.to(failed)

        def keep(self, context: Room, event: Revealed) -> Room:
            return self.but(context, secret=event.secret)

    class OfVault(Environment):
        machine = Vault

        @always
        def read_once(self, done: tuple[Done, ...]) -> bool:
            return [one.effect for one in done].count("reveal") <= 1

    return Vault


# -- a payment that needs approval ----------------------------------------------------------------


class Bill(Context):
    cents: int = 0
    approved: bool = False


class Claimed(Event, tag="claimed"):
    cents: int


def desk(*, hasty: bool) -> type[Machine[Any]]:
    """Somebody claims and somebody approves; the broken twin has a shortcut for small amounts."""

    class Desk(Machine[Bill]):
        waiting = State(initial=True, waits=True)
        asking = State(waits=True)
        granted = State(waits=True)
        done = State(final=True)
        denied = State(final=True, failure=True)
        claimed = (
            waiting.to(granted, cond="is_small", on="note") | waiting.to(asking, on="note")
            if hasty
            else waiting.to(asking, on="note")
        )
        approve = asking.to(granted, on="mark")
        deny = asking.to(denied)
        pay = granted.to(done)

        def is_small(self, event: Claimed) -> bool:
            return event.cents < 2

        def note(self, context: Bill, event: Claimed) -> Bill:
            return self.but(context, cents=event.cents)

        def mark(self, context: Bill) -> Bill:
            return self.but(context, approved=True)

    class OfDesk(Environment):
        machine = Desk

        @always
        def granted_means_approved(self, context: Bill, state: str) -> bool:
            return context.approved or state not in ("granted", "done")

    return Desk


def _published(name: str, machine: type[Machine[Any]]) -> type[Machine[Any]]:
    machine.__qualname__ = name
    return machine


Vault = _published("Vault", vault(careless=False))
CarelessVault = _published("CarelessVault", vault(careless=True))
Desk = _published("Desk", desk(hasty=False))
HastyDesk = _published("HastyDesk", desk(hasty=True))
