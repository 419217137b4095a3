"""The machines that are killed, and the outside that remembers what they did to it.

A purchase takes notes from outside until it is approved, reserves (the outside knows the key),
charges (it does not: doing it twice is a loss), sends a parcel as a child run, and cools down on a
timer.  What went wrong later is undone, newest first.  So every kind of write of the store occurs:
start, delivery, claim, commit with and without an entry, a child's start, sends between runs,
timers, retries, doubts, compensations, a cancel, a refusal.

The outside answers a first call badly: a charge is done and its answer lost, a dispatch is refused
for a while, and whether the charge was done cannot be said at first.
"""

from __future__ import annotations

from collections.abc import Callable

from engine import (
    Again,
    Call,
    ChildEnded,
    Context,
    Event,
    Machine,
    NotDone,
    OutcomeUnknown,
    Retry,
    State,
    Transient,
    effect,
    hours,
    minutes,
)
from engine.table import Child
from tests.verification.kills.notes import Notes

RETRY = Retry(attempts=1_000, first_ms=1_000, factor=1, jitter=0)
ONCE = frozenset({"charge", "refund", "dispatch", "recall"})
"""What is not idempotent."""
UNDO = {"reserve": "release", "charge": "refund", "dispatch": "recall"}
PATHS = {"Purchase": ["reserve", "charge"], "Parcel": ["dispatch"]}
"""What a run that has completed did."""
_LOST_AT_FIRST = frozenset({"reserve", "charge", "refund"})


class Outside:
    """The world: does things under keys, and notes them where no death of ours reaches.

    Args:
        notes: the ledger.
        pass_by: told of the moment between a deed and its answer, at which a process can die.
    """

    def __init__(self, notes: Notes, pass_by: Callable[[str], None]) -> None:
        self._notes = notes
        self._pass_by = pass_by

    def did(self, key: str) -> bool:
        """Whether something was done under this key."""
        return any(words[1] == key for words in self._notes.all("did"))

    def do(self, name: str, call: Call) -> None:
        """Do it; only what is idempotent is recognised by its key.

        Raises:
            Transient: refused, the first time a parcel is dispatched.
            OutcomeUnknown: done, and the answer is lost, the first time for some.
        """
        first = not self._count("tried", call.key)
        self._notes.write("tried", call.key)
        if first and name == "dispatch":
            raise Transient("the carrier is busy")
        if name in ONCE or not self.did(call.key):
            self._notes.write("did", call.key, name, call.run_id)
        self._pass_by(f"{name} done, not answered")
        if first and name in _LOST_AT_FIRST:
            raise OutcomeUnknown("no answer")

    def ask(self, name: str, call: Call) -> bool:
        """Whether it was done; cannot be said the first time for a charge.

        Raises:
            OutcomeUnknown: it cannot be said.
        """
        first = not self._count("asked", call.key)
        self._notes.write("asked", call.key)
        if first and name == "charge":
            raise OutcomeUnknown("the bank is closed")
        return self.did(call.key)

    def looks(self, key: str) -> int:
        """How often this was looked at, this time included."""
        self._notes.write("looked", key)
        return self._count("looked", key)

    def _count(self, kind: str, key: str) -> int:
        return sum(words[1] == key for words in self._notes.all(kind))


class Basket(Context):
    """What is bought, and whether its parcel will arrive."""

    arrives: bool
    notes: int = 0


class Address(Context):
    """Where a parcel goes."""

    arrives: bool


class Noted(Event, tag="noted"):
    """The customer wrote something."""

    text: str


class Reserved(Event, tag="reserved"):
    """It is kept for the customer."""


class Charged(Event, tag="charged"):
    """The money is there."""


class Dispatched(Event, tag="dispatched"):
    """The carrier has it."""


class Undone(Event, tag="undone"):
    """The answer of a compensation."""


class Arrived(Event, tag="arrived"):
    """The parcel is there."""


class Lost(Event, tag="lost"):
    """The parcel is nowhere."""


class ParcelEnded(ChildEnded, tag="parcel_ended"):
    """The child run has ended."""


@effect(idempotent=True, retry=RETRY)
async def reserve(context: Basket, call: Call) -> Reserved:
    """Keep it for the customer."""
    call.resource(Outside).do("reserve", call)
    return Reserved()


@effect(idempotent=True, retry=RETRY)
async def release(context: Basket, call: Call) -> Undone:
    """Keep it no longer."""
    call.resource(Outside).do("release", call)
    return Undone()


@effect(retry=RETRY)
async def charge(context: Basket, call: Call) -> Charged:
    """Take the money."""
    call.resource(Outside).do("charge", call)
    return Charged()


@charge.reconcile
async def find_charge(context: Basket, call: Call) -> Charged | NotDone:
    """Whether the money was taken."""
    return Charged() if call.resource(Outside).ask("charge", call) else NotDone()


@effect(retry=RETRY)
async def refund(context: Basket, call: Call) -> Undone:
    """Give the money back."""
    call.resource(Outside).do("refund", call)
    return Undone()


@refund.reconcile
async def find_refund(context: Basket, call: Call) -> Undone | NotDone:
    """Whether the money was given back."""
    return Undone() if call.resource(Outside).ask("refund", call) else NotDone()


@effect(retry=RETRY)
async def dispatch(context: Address, call: Call) -> Dispatched:
    """Hand the parcel over."""
    call.resource(Outside).do("dispatch", call)
    return Dispatched()


@dispatch.reconcile
async def find_dispatch(context: Address, call: Call) -> Dispatched | NotDone:
    """Whether the carrier has it."""
    return Dispatched() if call.resource(Outside).ask("dispatch", call) else NotDone()


@effect(retry=RETRY)
async def recall(context: Address, call: Call) -> Undone:
    """Call the parcel back."""
    call.resource(Outside).do("recall", call)
    return Undone()


@recall.reconcile
async def find_recall(context: Address, call: Call) -> Undone | NotDone:
    """Whether it was called back."""
    return Undone() if call.resource(Outside).ask("recall", call) else NotDone()


@effect(idempotent=True, retry=RETRY)
async def track(context: Address, call: Call) -> Arrived | Lost | Again:
    """Where the parcel is; known at the second look."""
    if call.resource(Outside).looks(call.key) < 2:
        return Again()
    return Arrived() if context.arrives else Lost()


class Parcel(Machine[Address]):
    """Send one parcel."""

    dispatching = State(initial=True, effect=dispatch, compensation=recall)
    travelling = State(effect=track, every=minutes(1))
    there = State(final=True)
    gone = State(final=True, failure=True)

    dispatched = dispatching.to(travelling)
    arrived = travelling.to(there)
    lost = travelling.to(gone)


class Purchase(Machine[Basket]):
    """Sell one basket, once."""

    payloads = (ParcelEnded,)

    opened = State(initial=True, timeout=hours(1_000), on_timeout="lapse")
    reserving = State(effect=reserve, compensation=release)
    charging = State(effect=charge, compensation=refund)
    sending = State(child="parcel", on_child="parcel_ended")
    cooling = State(timeout=hours(500), on_timeout="settle")
    done = State(final=True)
    returned = State(final=True, failure=True)
    lapsed = State(final=True, failure=True)

    noted = opened.to.itself(on="count")
    approve = opened.to(reserving)
    lapse = opened.to(lapsed)
    reserved = reserving.to(charging)
    charged = charging.to(sending)
    parcel_ended = sending.to(cooling, cond="went_well") | sending.to(returned)
    settle = cooling.to(done)

    def count(self, context: Basket, event: Noted) -> Basket:
        """One more note."""
        return self.but(context, notes=context.notes + 1)

    def parcel(self, context: Basket) -> Child:
        """The child run."""
        return Child("Parcel", Address(arrives=context.arrives))

    def went_well(self, event: ParcelEnded) -> bool:
        """Whether the parcel arrived."""
        return event.succeeded
