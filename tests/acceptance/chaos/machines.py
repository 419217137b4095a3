"""What the workers of the chaos suite move, and the outside that they must not touch twice.

::

    Parcel   collecting --tick x3--> charging --charged--> resting --(0.3 s) woke--> labelling
             --label_ended--> shipping --shipped--> gone
    Label    printing --printed--> stuck

The three events come from outside, each under a key and perhaps more than once; the three calls
(charge, print, ship) may be made once each.  So a parcel that was moved exactly once through
everything has a journal of 8 entries, its label one of 2, and the ledger three lines.

The ledger is one file for all workers.  A line is appended and synced before the call's answer,
which takes some more milliseconds to arrive: that is where workers die.  It never looks whether the
call was made before: it is the engine that has to see to that.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import NamedTuple

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
    seconds,
)

TICKS = 3
PARCEL_SEQ, LABEL_SEQ = 8, 2
ENTRIES_EACH = PARCEL_SEQ + LABEL_SEQ
CALLS = ("charge", "print", "ship")
ANSWER_MS = 20
_RETRY = Retry(attempts=1_000, first_ms=200, max_ms=1_000)


class Line(NamedTuple):
    """One call that was made: by which worker, and when (ns since boot)."""

    key: str
    name: str
    run_id: str
    worker: str
    at_ns: int


class Ledger:
    """The outside, as one worker sees it.

    Args:
        path: the file that all share.
        worker: who calls.
    """

    def __init__(self, path: Path, worker: str) -> None:
        self._path = path
        self._worker = worker
        self._file = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)
        self._read_bytes = 0
        self._keys: set[str] = set()

    def do(self, name: str, call: Call) -> None:
        """Make the call, whether or not it was made before."""
        line = f"{call.key} {name} {call.run_id} {self._worker} {time.monotonic_ns()}\n"
        os.write(self._file, line.encode())
        os.fdatasync(self._file)

    def did(self, call: Call) -> bool:
        """Whether a call was made under this key."""
        with self._path.open("rb") as file:
            file.seek(self._read_bytes)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        self._keys.update(line.split()[0].decode() for line in whole.splitlines())
        return call.key in self._keys


def read_ledger(path: Path) -> list[Line]:
    """Every call that was made, in order."""
    text = path.read_text() if path.exists() else ""
    fields = (line.split() for line in text.splitlines())
    return [Line(key, name, run, worker, int(at)) for key, name, run, worker, at in fields]


class Goods(Context):
    """Both machines' context: which parcel it is, and how often it was told to go."""

    number: int
    ticks: int = 0


class Charged(Event, tag="charged"):
    """The money is there."""


class Printed(Event, tag="printed"):
    """The label is there."""


class Shipped(Event, tag="shipped"):
    """It is on its way."""


class LabelEnded(ChildEnded, tag="label_ended"):
    """The label's run has ended."""


async def _make(name: str, context: Goods, call: Call) -> None:
    call.resource(Ledger).do(name, call)
    await asyncio.sleep((context.number * 7 % ANSWER_MS) / 1000)


@effect(retry=_RETRY)
async def charge(context: Goods, call: Call) -> Charged:
    """Take the money."""
    await _make("charge", context, call)
    return Charged()


@charge.reconcile
async def find_charge(context: Goods, call: Call) -> Charged | NotDone:
    """Whether it was taken."""
    return Charged() if call.resource(Ledger).did(call) else NotDone()


@effect(retry=_RETRY, name="print")
async def print_label(context: Goods, call: Call) -> Printed:
    """Print the label."""
    await _make("print", context, call)
    return Printed()


@print_label.reconcile
async def find_label(context: Goods, call: Call) -> Printed | NotDone:
    """Whether it was printed."""
    return Printed() if call.resource(Ledger).did(call) else NotDone()


@effect(retry=_RETRY)
async def ship(context: Goods, call: Call) -> Shipped:
    """Send it."""
    await _make("ship", context, call)
    return Shipped()


@ship.reconcile
async def find_shipment(context: Goods, call: Call) -> Shipped | NotDone:
    """Whether it was sent."""
    return Shipped() if call.resource(Ledger).did(call) else NotDone()


class Label(Machine[Goods]):
    """Print one label, once."""

    printing = State(initial=True, effect=print_label)
    stuck = State(final=True)

    printed = printing.to(stuck)


class Parcel(Machine[Goods]):
    """Send one parcel, once."""

    collecting = State(initial=True, waits=True)
    charging = State(effect=charge)
    resting = State(timeout=seconds(0.3), on_timeout="woke")
    labelling = State(child="label", on_child="label_ended")
    shipping = State(effect=ship)
    gone = State(final=True)

    tick = collecting.to(charging, cond="is_last", on="count") | collecting.to.itself(on="count")
    charged = charging.to(resting)
    woke = resting.to(labelling)
    label_ended = labelling.to(shipping)
    shipped = shipping.to(gone)

    payloads = (LabelEnded,)

    def is_last(self, context: Goods) -> bool:
        """Whether this is the last tick."""
        return context.ticks + 1 >= TICKS

    def count(self, context: Goods) -> Goods:
        """One more."""
        return self.but(context, ticks=context.ticks + 1)

    def label(self, context: Goods) -> Child:
        """The child run."""
        return Child("Label", Goods(number=context.number))
