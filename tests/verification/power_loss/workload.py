"""A program over the real engine and the real store, and a note of everything it was promised.

The program is a small shop: it starts orders with keys, sends them events with keys, and lets an
`App` move them (effects with and without an idempotent outside, timers, refusals), in an order that
a seed chooses, with checkpoints, small `wal_autocheckpoint`, and processes that stop or die in
between.  It may be run again over what an earlier run left behind, and then goes on where that
stopped.

`Promises` stands between the app and the store.  Each writing method of a port is one transaction;
when it has returned, the promise is noted together with the number of file operations that had
happened by then.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from engine import (
    Again,
    Call,
    Context,
    Event,
    GaveUp,
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
from engine.ports import Batch, Done, Store
from engine.secrets import SecretsCodec
from engine.testing import Harness, ManualClock
from engine.worker import LEASE_MS
from persistence.database import Synchronous
from persistence.store import SqlStore, open_store

SECRETS = SecretsCodec(b"k" * 32)
RETRY = Retry(attempts=20, first_ms=1_000, factor=2, jitter=0)


class Ledger:
    """The outside world, which no power loss of ours touches: what was done, when, by which key."""

    def __init__(self, now: Callable[[], int], done: list[tuple[int, str]]) -> None:
        self.done = list(done)
        self._now = now
        self._calls = 0

    @property
    def keys(self) -> list[str]:
        """The keys of everything that was done, oldest first."""
        return [key for _, key in self.done]

    def do(self, key: str) -> None:
        """Do it now; answer, stay silent, or refuse for a while, in turns."""
        self._calls += 1
        if self._calls % 5 == 3:
            raise Transient("try later")
        self.done.append((self._now(), key))
        if self._calls % 5 == 1:
            raise OutcomeUnknown("no answer")


class Order(Context):
    """What a customer wants."""

    amount: int
    note: str = ""
    notes: int = 0


class Charged(Event, tag="charged"):
    """The money is there."""


class Noted(Event, tag="noted"):
    """The customer wrote something."""

    text: str


class Shipped(Event, tag="shipped"):
    """The parcel is on its way."""


class Unpaid(GaveUp, tag="unpaid"):
    """The money cannot be had."""


@effect(retry=RETRY)
async def charge(context: Order, call: Call) -> Charged:
    """Not idempotent: charged twice is a loss."""
    call.resource(Ledger).do(call.key)
    return Charged()


@charge.reconcile
async def find_charge(context: Order, call: Call) -> Charged | NotDone:
    """Whether the charge was done."""
    return Charged() if call.key in call.resource(Ledger).keys else NotDone()


@effect(idempotent=True, retry=RETRY)
async def ship(context: Order, call: Call) -> Shipped | Again:
    """Idempotent outside: the same key ships once."""
    ledger = call.resource(Ledger)
    if call.key not in ledger.keys:
        ledger.do(call.key)
        return Again()
    return Shipped()


class Shop(Machine[Order]):
    """Charge, take notes until it is packed or the time is up, ship."""

    payloads = (Unpaid,)

    charging = State(initial=True, effect=charge, on_exhausted="unpaid")
    packing = State(timeout=hours(1), on_timeout="close")
    shipping = State(effect=ship, every=minutes(1))
    done = State(final=True)
    declined = State(final=True, failure=True)

    charged = charging.to(packing)
    unpaid = charging.to(declined)
    noted = packing.to.itself(cond="is_short") | charging.to.itself(cond="is_short")
    pack = packing.to(shipping)
    close = packing.to(shipping)
    shipped = shipping.to(done)

    def is_short(self, event: Noted) -> bool:
        """Whether the note fits on the parcel."""
        return len(event.text) < 700

    def on_noted(self, context: Order, event: Noted) -> Order:
        """Keep the note."""
        return self.but(context, note=event.text, notes=context.notes + 1)


@dataclass(frozen=True)
class Promise:
    """A transaction that the store has acknowledged, after so many file operations."""

    operations: int
    label: str
    kept: Callable[[SqlStore], bool]
    """Whether a store has what was promised; asked of the state right after the promise."""


@dataclass
class Book:
    """Every promise of one run of the program."""

    now: Callable[[], int]
    promises: list[Promise] = field(default_factory=list)

    def note(self, label: str, kept: Callable[[SqlStore], bool]) -> None:
        """The store has just acknowledged something."""
        self.promises.append(Promise(self.now(), label, kept))


_WRITING = {
    "runs": ("start", "claim", "commit", "group"),
    "inbox": ("deliver",),
    "workers": ("beat", "reap", "retire"),
    "machines": ("register",),
}


class _Noun:
    """One port of the store, whose acknowledged writes are noted."""

    def __init__(self, inner: Any, name: str, book: Book) -> None:
        self._inner, self._name, self._book = inner, name, book

    def __getattr__(self, method: str) -> Any:
        call = getattr(self._inner, method)
        if method not in _WRITING[self._name]:
            return call

        def noted(*arguments: Any, **options: Any) -> Any:
            answer = call(*arguments, **options)
            label = f"{self._name}.{method}"
            self._book.note(label, _witness(label, arguments, answer))
            return answer

        return noted


class Promises:
    """`engine.ports.Store` that notes what it acknowledges."""

    def __init__(self, inner: Store, book: Book) -> None:
        self._inner = inner
        for noun in _WRITING:
            setattr(self, noun, _Noun(getattr(inner, noun), noun, book))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _witness(label: str, arguments: tuple[Any, ...], answer: Any) -> Callable[[SqlStore], bool]:
    """What must be in the store now that a method has returned this answer."""
    match label:
        case "runs.start":
            return lambda store: all(store.journal.read(one.run_id, limit=1) for one in answer)
        case "runs.group":
            return _of_group(*arguments, answer)
        case "runs.commit":
            pairs = [(w, a.ok) for w, a in zip(arguments[0], answer, strict=True)]
            return lambda store: all(_is_written(store, write) for write, ok in pairs if ok)
        case "runs.claim":
            return lambda store: all(
                (row := store.runs.get(one.run.run_id)) is not None
                and (row.owner, row.fence) == (arguments[0], one.fence)
                for one in answer
            )
        case "inbox.deliver":
            return lambda store: all(
                store.inbox.receipt(one.run_id, one.key) is not None for one in arguments[0]
            )
        case "workers.beat":
            return lambda store: arguments[0] in [worker for worker, _ in store.workers.all()]
        case "workers.retire":
            return lambda store: arguments[0] not in [w.worker_id for w, _ in store.workers.all()]
        case "workers.reap":
            return lambda store: all(until > arguments[0] for _, until in store.workers.all())
    return lambda store: store.machines.shape(arguments[1]) is not None


def _of_group(batch: Batch, done: Done) -> Callable[[SqlStore], bool]:
    """All that shared one transaction."""
    parts = [
        _witness("runs.start", (batch.starts,), done.started),
        _witness("inbox.deliver", (batch.deliveries,), done.receipts),
        _witness("runs.commit", (batch.writes,), done.written),
    ]
    return lambda store: all(kept(store) for kept in parts)


def _is_written(store: SqlStore, write: Any) -> bool:
    stored = store.runs.get(write.after.run_id)
    entries = store.journal.read(write.after.run_id)
    return (
        stored is not None
        and (stored.run.seq, stored.run.context) == (write.after.seq, write.after.context)
        and (write.after.effect or stored.run.effect) == stored.run.effect
        and (write.entry is None or entries[-1].seq == write.entry.seq == len(entries))
    )


class Program:
    """One machine's life between two power losses.

    Args:
        file: the database, whatever state it is in.
        book: where promises are noted.
        ledger, clock: the world, which goes on whatever happens here.
        checkpoint_pages: after how many pages in its log SQLite copies them to the database; small
            numbers chosen by chance when None.
    """

    def __init__(
        self,
        file: Path,
        *,
        synchronous: Synchronous,
        book: Book,
        ledger: Ledger,
        clock: ManualClock,
        chance: random.Random,
        checkpoint_pages: int | None = None,
    ) -> None:
        self._file, self._synchronous, self._book = file, synchronous, book
        self._ledger, self._clock, self._chance = ledger, clock, chance
        self._pages = checkpoint_pages or chance.choice((2, 5, 12, 40, 1_000))
        self._orders: dict[str, str] = {}

    async def run(self, *, orders: int) -> None:
        """Start the orders, do with them what chance wants, and go on until all have ended.

        Raises:
            AssertionError: an order did not end well, or the ledger shows something twice.
        """
        keys = [f"order-{number}" for number in range(orders)]
        todo = [*keys, *(("note", key, n) for key in keys for n in range(2))]
        todo += [*(("pack", key, 0) for key in keys[::2]), "stop", "die", "checkpoint"]
        self._chance.shuffle(todo)
        todo.sort(key=lambda step: step not in keys[:1])  # an order first, then anything
        bystander = sqlite3.connect(self._file) if self._chance.random() < 0.5 else None
        try:
            while todo:
                await self._process(todo, bystander)
            await self._process([], None, finish=True)
        finally:
            if bystander is not None:
                bystander.close()

    async def _process(
        self, todo: list[Any], bystander: sqlite3.Connection | None, *, finish: bool = False
    ) -> None:
        """One process: opens the store, takes steps, stops in good order or just ends.

        A bystander that has the database open, too, keeps the log from being deleted with the
        last connection of a process, and what it reads from being checkpointed.
        """
        store = open_store(
            f"sqlite:///{self._file}", synchronous=self._synchronous, busy_timeout_seconds=0
        )
        pages = self._pages
        try:
            sa.event.listen(
                store.database.sa,
                "checkout",
                lambda connection, *_: connection.execute(f"PRAGMA wal_autocheckpoint={pages}"),
            )
            self._book.note("open_store", lambda store: True)
            if bystander is not None:
                bystander.rollback()
                bystander.execute("BEGIN")
                bystander.execute("SELECT count(*) FROM turtles_run").fetchall()
            self._clock.advance(LEASE_MS + 1)
            harness = self._harness(store)
            await harness.app.open()
            if await self._steps(harness, store, todo) != "die":
                if finish:
                    await harness.until_idle()
                    await self._check(harness)
                await harness.app.stop()
        finally:
            store.close()

    def _harness(self, store: SqlStore) -> Harness:
        noting: Any = Promises(store, self._book)
        return Harness(
            [Shop],
            store=noting,
            clock=self._clock,
            resources={Ledger: self._ledger},
            secrets=SECRETS,
        )

    async def _steps(self, harness: Harness, store: SqlStore, todo: list[Any]) -> str:
        """Take steps until one ends the process; which one, or nothing when none is left."""
        app = harness.app
        while todo:
            step = todo.pop(0)
            if step in ("stop", "die"):
                return str(step)
            if step == "checkpoint":
                mode = self._chance.choice(("PASSIVE", "FULL", "RESTART", "TRUNCATE"))
                _checkpoint(store, mode)
            elif isinstance(step, str):
                context = Order(amount=int(step.partition("-")[2]) + 1)
                self._orders[step] = (await app.start(Shop, context, key=step)).run_id
            else:
                await self._send(harness, todo, step)
            if self._chance.random() < 0.5:
                await app.settle()
                self._clock.advance(self._chance.choice((0, 500, 3_000)))
                await app.beat()
        return ""

    async def _send(self, harness: Harness, todo: list[Any], step: tuple[str, str, int]) -> None:
        kind, key, number = step
        if key not in self._orders:
            todo.append(step)  # not ordered yet
            return
        event = Noted(text=_text(key, number)) if kind == "note" else "pack"
        await harness.app.send(self._orders[key], event, key=f"{kind}-{number}")

    async def _check(self, harness: Harness) -> None:
        for key, run_id in self._orders.items():
            outcome = await harness.app.outcome(run_id)
            assert outcome.state == "done", f"{key}: {outcome.state}, expected done: {outcome}"
            effects = [one.key for one in await harness.app.effects(run_id)]
            counts = [self._ledger.keys.count(one) for one in effects]
            assert counts == [1, 1], f"{key}: effects {effects} are {counts} times in the ledger"


def _text(key: str, number: int) -> str:
    """The same for the same key, from a few bytes to more than the shop takes."""
    return f"{key} {number} " * (1 + 23 * (int(key.partition("-")[2]) + 2 * number))


def _checkpoint(store: SqlStore, mode: str) -> None:
    connection = store.database.sa.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA wal_checkpoint({mode})")
        cursor.fetchall()
        cursor.close()
    finally:
        connection.close()
