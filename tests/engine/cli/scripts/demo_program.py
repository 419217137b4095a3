"""A program that embeds turtles: one machine, and the generic commands over it."""

from __future__ import annotations

import asyncio

from engine import (
    Context,
    Event,
    Machine,
    Secret,
    State,
    effect,
    ensures,
    invariant,
    requires,
    seconds,
)
from engine.app import App
from engine.cli import Place, build_cli
from engine.effects import Call
from engine.retry import FOREVER
from persistence import open_store, schema


class Bill(Context):
    amount_cents: int
    token: Secret[str] | None = None
    paid_cents: int = 0
    linger_seconds: float = 0.0


class Paid(Event, tag="paid"):
    amount_cents: int
    token: Secret[str] | None = None


class Shipped(Event, tag="shipped"):
    parcel: str


@effect(idempotent=True, retry=FOREVER)
async def ship(context: Bill, call: Call) -> Shipped:
    await asyncio.sleep(context.linger_seconds)
    return Shipped(parcel=f"parcel-{context.amount_cents}")


def in_full(context: Bill) -> bool:
    return context.paid_cents >= context.amount_cents


class Order(Machine[Bill]):
    """One order: paid, shipped, done; or given up."""

    awaiting = State(initial=True, waits=True, timeout=seconds(3600), on_timeout="forget")
    shipping = State(effect=ship, invariant=in_full)
    end = State(final=True)
    forgotten = State(final=True, failure=True)

    paid = awaiting.to(shipping, cond="enough") | awaiting.to.itself()
    shipped = shipping.to(end)
    forget = awaiting.to(forgotten)

    def enough(self, context: Bill, event: Paid) -> bool:
        return context.paid_cents + event.amount_cents >= context.amount_cents

    def on_paid(self, context: Bill, event: Paid) -> Bill:
        return self.but(context, paid_cents=context.paid_cents + event.amount_cents)

    @requires(paid)
    def not_negative(self, event: Paid) -> bool:
        return event.amount_cents > 0

    @ensures(paid)
    def grows(self, old: Bill, new: Bill) -> bool:
        return new.paid_cents > old.paid_cents

    @invariant
    def costs_something(self, context: Bill) -> bool:
        return context.amount_cents > 0


class Shipment(Machine[Bill]):
    """Ships at once."""

    shipping = State(initial=True, effect=ship)
    end = State(final=True)
    shipped = shipping.to(end)


def make_app(place: Place) -> App:
    store = open_store(place.store_url)
    return App([Order, Shipment], store, work=place.work, moved=place.moved)


cli = build_cli(make_app, about="A demonstration.", version="demo 1.0", schema=lambda: schema)

if __name__ == "__main__":
    cli()
