"""A small shop with a ledger that misbehaves on demand, and the store it runs over."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from engine import (
    Again,
    Call,
    Context,
    Event,
    GaveUp,
    Machine,
    NotDone,
    OutcomeUnknown,
    Permanent,
    Retry,
    State,
    Transient,
    effect,
    ensures,
    hours,
    invariant,
    requires,
)
from engine.journal import fold, replay
from engine.ports import Query
from engine.secrets import SecretsCodec
from engine.testing import Harness, ManualClock
from persistence.store import SqlStore, open_store


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Rendering log lines costs more than what most tests do."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


class Ledger:
    """An outside world: remembers every charge by key, and does as it is told once.

    `script` holds what the next calls do: `ok`, `again`, `later` (Transient), `later 5000`
    (with retry_after), `never` (Permanent), `lost` (done, but no answer), `unsent` (not done, and
    no answer), `broken` (a bug of the effect), `late` (done, TimeoutError).
    `answers` does the same for reconcile: `look` (default), `unknown`.
    """

    def __init__(self) -> None:
        self.charged: list[str] = []
        self.refunded: list[str] = []
        self.asked: list[str] = []
        self.attempts: list[int] = []
        self.script: list[str] = []
        self.answers: list[str] = []

    def charge(self, call: Call) -> Charged | Again:
        self.attempts.append(call.attempt)
        order = self.script.pop(0) if self.script else "ok"
        word, _, number = order.partition(" ")
        if word in ("ok", "lost", "late"):
            self.charged.append(call.key)
        match word:
            case "again":
                return Again(int(number) if number else None)
            case "later":
                raise Transient("try later", retry_after_ms=int(number) if number else None)
            case "never":
                raise Permanent("card refused")
            case "lost" | "unsent":
                raise OutcomeUnknown("no answer")
            case "late":
                raise TimeoutError
            case "broken":
                raise ZeroDivisionError("a secret-ish message")
        return Charged(receipt=f"for {call.key}")

    def find(self, call: Call) -> Charged | NotDone:
        self.asked.append(call.key)
        if self.answers and self.answers.pop(0) == "unknown":
            raise OutcomeUnknown("the bank does not say")
        return Charged(receipt=f"for {call.key}") if call.key in self.charged else NotDone()

    def refund(self, call: Call) -> None:
        if call.key not in self.refunded:
            self.refunded.append(call.key)

    def assert_once(self) -> None:
        assert [key for key, count in Counter(self.charged).items() if count > 1] == []


class Order(Context):
    amount: int = 1
    receipt: str = ""
    notes: int = 0
    parcels: int = 0


class Charged(Event, tag="charged"):
    receipt: str


class Noted(Event, tag="noted"):
    count: int


class Shipped(Event, tag="shipped"):
    parcels: int


class NoCharge(GaveUp, tag="no_charge"):
    """The charge was given up."""


class Returned(Event, tag="returned"):
    """The charge was refunded."""


RETRY = Retry(attempts=3, first_ms=1_000, factor=2, jitter=0)


@effect(retry=RETRY)
async def charge(context: Order, call: Call) -> Charged | Again:
    return call.resource(Ledger).charge(call)


@charge.reconcile
async def find_charge(context: Order, call: Call) -> Charged | NotDone:
    return call.resource(Ledger).find(call)


@effect(idempotent=True, retry=RETRY)
async def refund(context: Order, call: Call) -> Returned:
    call.resource(Ledger).refund(call)
    return Returned()


class Shop(Machine[Order]):
    """Charge once, take notes, ship, or give the money back."""

    payloads = (NoCharge,)

    charging = State(
        initial=True, effect=charge, every=5_000, compensation=refund, on_exhausted="no_charge"
    )
    packing = State(timeout=hours(1), on_timeout="expire")
    shipping = State(waits=True, cancellable=False)
    done = State(final=True, invariant="has_receipt")
    declined = State(final=True, failure=True)
    expired = State(final=True, failure=True)

    charged = charging.to(packing)
    no_charge = charging.to(declined)
    noted = packing.to.itself(cond="is_welcome") | charging.to.itself(cond="is_welcome")
    pack = packing.to(shipping)
    shipped = shipping.to(done)
    expire = packing.to(expired)

    def is_welcome(self, event: Noted) -> bool:
        return event.count >= 0

    def on_charged(self, context: Order, event: Charged) -> Order:
        return self.but(context, receipt=event.receipt)

    def on_noted(self, context: Order, event: Noted) -> Order:
        return self.but(context, notes=context.notes + event.count)

    def on_shipped(self, context: Order, event: Shipped) -> Order:
        return self.but(context, parcels=event.parcels)

    def has_receipt(self, context: Order) -> bool:
        return context.receipt != ""

    @requires(shipped)
    def something_to_ship(self, event: Shipped) -> bool:
        return event.parcels > 0

    @ensures(noted)
    def notes_add_up(self, old: Order, new: Order, event: Noted) -> bool:
        return new.notes == old.notes + event.count and event.count != 13

    @invariant
    def amount_positive(self, context: Order) -> bool:
        return context.amount > 0


@effect(idempotent=True, retry=RETRY)
async def fetch(context: Order, call: Call) -> Charged | Again:
    return call.resource(Ledger).charge(call)


class Errand(Machine[Order]):
    """One idempotent effect, and nothing that handles its giving up."""

    fetching = State(initial=True, effect=fetch)
    home = State(final=True)

    charged = fetching.to(home)

    def on_charged(self, context: Order, event: Charged) -> Order:
        return self.but(context, receipt=event.receipt)


class Bench:
    """One store, one clock and one ledger; harnesses come and go over them like processes."""

    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self.clock = ManualClock()
        self.secrets = SecretsCodec(b"k" * 32)
        self.ledger = Ledger()

    def harness(self, *machines: Any, **options: Any) -> Harness:
        resources = {Ledger: self.ledger, **options.pop("resources", {})}
        return Harness(
            machines or (Shop, Errand),
            store=self.store,
            clock=self.clock,
            resources=resources,
            secrets=self.secrets,
            **options,
        )

    async def sound(self, harness: Harness) -> None:
        """Every journal folds to its stored run and replays; every storage rule holds."""
        assert self.store.inspector.findings() == []
        for stored in self.store.runs.select(Query(limit=1_000)):
            run = await harness.app.get(stored.run.run_id)
            journal = await harness.app.journal(stored.run.run_id)
            folded = fold(journal)
            assert (folded.seq, folded.state, folded.context) == (run.seq, run.state, run.context)
            assert folded.status == run.status or {folded.status, run.status} <= MOVING
            assert replay(harness.app.tables[run.machine], journal) == []


MOVING = {"pending", "running", "waiting", "quarantined"}
"""Statuses between which bookkeeping moves a run without a transition."""


@pytest.fixture
def store() -> Iterator[SqlStore]:
    """A store in memory.  When the test ends, the storage rules must hold."""
    opened = open_store("sqlite://")
    yield opened
    findings = opened.inspector.findings()
    opened.close()
    assert findings == []


@pytest.fixture
def bench(store: SqlStore) -> Bench:
    return Bench(store)


@pytest.fixture
def make_bench() -> Iterator[Callable[[], Bench]]:
    """Many stores in one test (one for each crash); they are closed at its end."""
    stores: list[SqlStore] = []

    def make() -> Bench:
        stores.append(open_store("sqlite://"))
        return Bench(stores[-1])

    yield make
    for one in stores:
        one.close()


@pytest.fixture
def zoo() -> SimpleNamespace:
    """The machines and payloads of this file; test modules cannot import from each other."""
    return SimpleNamespace(
        Bench=Bench, Charged=Charged, Errand=Errand, Ledger=Ledger, NoCharge=NoCharge,
        Noted=Noted, Order=Order, RETRY=RETRY, Shipped=Shipped, Shop=Shop, charge=charge,
    )  # fmt: skip
