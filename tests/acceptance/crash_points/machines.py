"""What is killed: small machines, one for each thing that can be half done, and their outside.

::

    Errand    one call that may be made once (charge), and nothing else
    Sale      waits for `pay` (or lapses after an hour), reserves, charges, waits for `pack`;
              cancelled, it refunds and releases
    Family    `go` starts a Nap as its child and waits for its end; a Nap lasts an hour
    Alarm     rings after an hour, unless it was stopped
    Fickle    its guard, action and postcondition do as its context says

The outside remembers every call under its key, in order, and does it again if it is told to: it is
the engine that has to see to it that nobody is charged twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine import (
    Call,
    Child,
    ChildEnded,
    Context,
    Event,
    Machine,
    NotDone,
    Retry,
    State,
    effect,
    ensures,
    hours,
)

RETRY = Retry(attempts=100, first_ms=1_000, factor=1, jitter=0)


class Outside:
    """The world: what was done and asked, in order.

    Args:
        write: keeps one line where no death of ours reaches.
        read: every line so far.
    """

    def __init__(self, write: Callable[[str], None], read: Callable[[], list[str]]) -> None:
        self._write, self._read = write, read

    def do(self, name: str, call: Call) -> None:
        """Do it, whether or not it was done before."""
        self._write(f"{name} {call.key} {call.run_id}")

    def did(self, name: str, call: Call) -> bool:
        """Whether it was done under this key; that it was asked is remembered, too."""
        found = any(line.split()[:2] == [name, call.key] for line in self._read())
        self._write(f"asked-{name} {call.key} {call.run_id}")
        return found

    def names(self) -> list[str]:
        """What was done and asked, in order, without the keys."""
        return [line.split()[0] for line in self._read()]

    def done(self) -> list[str]:
        """What was done, in order."""
        return [name for name in self.names() if not name.startswith("asked-")]


class Basket(Context):
    """What is sold."""

    notes: int = 0
    word: str = ""


class Done(Event, tag="done"):
    """The call was made."""

    word: str = ""


class Reserved(Event, tag="reserved"):
    """It is kept for the customer."""


class Charged(Event, tag="charged"):
    """The money is there."""


class Undone(Event, tag="undone"):
    """The answer of a compensation."""


class NapEnded(ChildEnded, tag="nap_ended"):
    """The child run has ended."""


def _once(name: str, event: type[Event]) -> Any:
    """An effect that the outside does not recognise: doing it twice is a loss."""

    @effect(retry=RETRY, name=name)
    async def perform(context: Basket, call: Call) -> Event:
        call.resource(Outside).do(name, call)
        return event()

    @perform.reconcile
    async def find(context: Basket, call: Call) -> Event | NotDone:
        return event() if call.resource(Outside).did(name, call) else NotDone()

    return perform


@effect(retry=RETRY)
async def run(context: Basket, call: Call) -> Done:
    """Make the call; its answer is as long as the context says."""
    call.resource(Outside).do("run", call)
    return Done(word=_answer(context))


@run.reconcile
async def find_run(context: Basket, call: Call) -> Done | NotDone:
    """Whether the call was made."""
    return Done(word=_answer(context)) if call.resource(Outside).did("run", call) else NotDone()


def _answer(context: Basket) -> str:
    return context.word * (300_000 if context.word == "long" else 1)


class Errand(Machine[Basket]):
    """One call, once."""

    running = State(initial=True, effect=run)
    home = State(final=True)

    done = running.to(home, on="keep")

    def keep(self, context: Basket, event: Done) -> Basket:
        """Keep the answer."""
        return self.but(context, word=event.word)


class Sale(Machine[Basket]):
    """Sell one basket, once."""

    payloads = (Reserved, Charged)

    opened = State(initial=True, timeout=hours(1), on_timeout="lapse")
    reserving = State(effect=_once("reserve", Reserved), compensation=_once("release", Undone))
    charging = State(effect=_once("charge", Charged), compensation=_once("refund", Undone))
    packing = State(waits=True)
    sold = State(final=True)
    lapsed = State(final=True, failure=True)

    note = opened.to.itself(on="count")
    pay = opened.to(reserving)
    lapse = opened.to(lapsed)
    reserved = reserving.to(charging)
    charged = charging.to(packing)
    pack = packing.to(sold)

    def count(self, context: Basket) -> Basket:
        """One more note."""
        return self.but(context, notes=context.notes + 1)


class Nap(Machine[Basket]):
    """Rest for an hour, having reserved a bed; cancelled, give it back."""

    payloads = (Reserved,)

    lying_down = State(
        initial=True, effect=_once("reserve", Reserved), compensation=_once("release", Undone)
    )
    asleep = State(timeout=hours(1), on_timeout="wake")
    rested = State(final=True)

    reserved = lying_down.to(asleep)
    wake = asleep.to(rested)


class Family(Machine[Basket]):
    """A parent that waits for its child."""

    payloads = (NapEnded,)

    opened = State(initial=True, waits=True)
    above = State(child="nap", on_child="nap_ended")
    done = State(final=True)

    go = opened.to(above)
    nap_ended = above.to(done)

    def nap(self, context: Basket) -> Child:
        """The child run."""
        return Child("Nap", Basket())


class Alarm(Machine[Basket]):
    """Ring after an hour, unless stopped."""

    armed = State(initial=True, timeout=hours(1), on_timeout="ring")
    rung = State(final=True)
    stopped = State(final=True)

    ring = armed.to(rung)
    stop = armed.to(stopped)


class Fickle(Machine[Basket]):
    """Code that raises, or promises what it does not keep, where its context says so."""

    idle = State(initial=True, waits=True)
    moved = State(final=True)

    move = idle.to(moved, cond="guarded", on="act")

    def guarded(self, context: Basket) -> bool:
        """A guard that may raise."""
        if context.word == "guard":
            raise ZeroDivisionError
        return True

    def act(self, context: Basket) -> Basket:
        """An action that may raise."""
        if context.word == "action":
            raise ZeroDivisionError
        return self.but(context, notes=1)

    @ensures(move)
    def kept(self, old: Basket, new: Basket) -> bool:
        """A promise that is broken for some."""
        return new.notes == old.notes + 1 and old.word != "postcondition"


MACHINES: dict[str, type[Machine[Basket]]] = {
    one.__name__: one for one in (Errand, Sale, Family, Nap, Alarm, Fickle)
}
