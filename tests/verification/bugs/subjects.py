"""Small machines for the corpus: sound ones, and broken twins with one defect each."""

from __future__ import annotations

from typing import Any

from engine import (
    Again,
    Call,
    ChildEnded,
    Context,
    Event,
    GaveUp,
    Machine,
    NotDone,
    State,
    effect,
    ensures,
    invariant,
    seconds,
)
from engine.table import Child


class Order(Context):
    amount: int = 1
    notes: int = 0
    receipt: str = ""
    refused: bool = False


class Charged(Event, tag="charged"):
    receipt: str


class NoCharge(GaveUp, tag="no_charge"):
    """The charge was given up."""


class Shipped(Event, tag="shipped"):
    """It is on its way."""


class NoStock(Event, tag="no_stock"):
    """There is none left."""


@effect()
async def charge(context: Order, call: Call) -> Charged:
    return Charged(receipt=call.key)


@charge.reconcile
async def find_charge(context: Order, call: Call) -> Charged | NotDone:
    return NotDone()


@effect(idempotent=True)
async def refund(context: Order, call: Call) -> Charged:
    return Charged(receipt=call.key)


@effect(idempotent=True)
async def ship(context: Order, call: Call) -> Shipped | NoStock | Again:
    return Shipped()


class Shop(Machine[Order]):
    """Take notes, charge once, ship, or give the money back."""

    payloads = (NoCharge,)
    opened = State(initial=True, waits=True)
    charging = State(effect=charge, on_exhausted="no_charge", compensation=refund)
    shipping = State(effect=ship, every=seconds(1), timeout=seconds(60), on_timeout="too_late")
    done = State(final=True)
    refused = State(final=True, failure=True)
    failed = State(final=True, failure=True)

    note = opened.to.itself(on="take_note", cond="has_room")
    pay = opened.to(charging)
    charged = charging.to(shipping)
    no_charge = charging.to(refused)
    shipped = shipping.to(done)
    no_stock = shipping.to(failed)
    too_late = shipping.to(failed)

    def has_room(self, context: Order) -> bool:
        return context.notes < 2

    def take_note(self, context: Order) -> Order:
        return self.but(context, notes=context.notes + 1)

    def on_charged(self, context: Order, event: Charged) -> Order:
        return self.but(context, receipt=event.receipt)


class Waiter(Machine[Order]):
    """Wait for an answer, or for the end of the time."""

    asking = State(initial=True, timeout=seconds(30), on_timeout="time_up")
    answered = State(final=True)
    unanswered = State(final=True, failure=True)
    answer = asking.to(answered)
    time_up = asking.to(unanswered)


class Packed(Event, tag="packed"):
    """The parcel is closed."""


@effect(idempotent=True)
async def pack(context: Order, call: Call) -> Packed:
    return Packed()


class Trip(Machine[Order]):
    """Two things to undo, in the reverse order."""

    charging = State(initial=True, effect=charge, on_exhausted="no_charge", compensation=refund)
    packing = State(effect=pack, compensation=ship)
    shipping = State(effect=ship, every=seconds(1))
    done = State(final=True)
    failed = State(final=True, failure=True)
    payloads = (NoCharge,)
    charged = charging.to(packing)
    packed = packing.to(shipping)
    shipped = shipping.to(done)
    no_stock = shipping.to(failed)
    no_charge = charging.to(failed)


class KidEnded(ChildEnded, tag="kid_ended"):
    """A child has ended."""


class Parent(Machine[Order]):
    """Two children, one after the other."""

    payloads = (KidEnded,)
    first = State(initial=True, child="kid", on_child="kid_ended")
    second = State(child="kid", on_child="kid_ended")
    done = State(final=True)
    failed = State(final=True, failure=True)
    kid_ended = (
        first.to(second, cond="went_well")
        | first.to(failed)
        | second.to(done, cond="went_well")
        | second.to(failed)
    )

    def kid(self, context: Order) -> Child:
        return Child("Waiter", context)

    def went_well(self, event: KidEnded) -> bool:
        return event.succeeded


class Account(Context):
    held: int = 0
    taken: int = 0
    flag: str = ""


class Hold(Event, tag="hold"):
    amount: int


class Take(Event, tag="take"):
    amount: int


def till(**wrong: Any) -> type[Machine[Any]]:
    """An account from which never more is taken than is held; `wrong` names a defect."""
    most: int = wrong.get("slack", 0)

    class Till(Machine[Account]):
        opened = State(initial=True, waits=True)
        closed = State(final=True)
        hold = opened.to.itself(cond="is_positive", on="add")
        take = opened.to.itself(cond="is_covered", on="subtract")
        close = opened.to(closed)

        def is_positive(self, context: Account, event: Hold) -> bool:
            return event.amount > 0 and context.held + event.amount <= 4

        def is_covered(self, context: Account, event: Take) -> bool:
            if wrong.get("sign"):
                return event.amount <= context.held - context.taken
            return 0 < event.amount <= context.held - context.taken + most

        def add(self, context: Account, event: Hold) -> Account:
            return self.but(context, held=context.held + event.amount)

        def subtract(self, context: Account, event: Take) -> Account:
            taken = context.taken + event.amount
            if wrong.get("rounding"):
                taken += taken % 2
            return self.but(context, taken=taken)

        @ensures(take)
        def takes_what_was_asked(self, old: Account, new: Account, event: Take) -> bool:
            return new.taken - old.taken == event.amount

        @invariant
        def never_more_than_held(self, context: Account) -> bool:
            return 0 <= context.taken <= context.held

    return Till


def pair(*, order_matters: bool) -> type[Machine[Any]]:
    """Two events in any order; the broken twin's postcondition is false in one of the orders."""

    class Pair(Machine[Account]):
        none = State(initial=True, waits=True)
        left = State(waits=True)
        right = State(waits=True)
        both = State(final=True)
        a = none.to(left, on="see_a") | right.to(both, on="see_a")
        b = none.to(right, on="see_b") | left.to(both, on="see_b")

        def see_a(self, context: Account) -> Account:
            return self.but(context, flag=context.flag + "a")

        def see_b(self, context: Account) -> Account:
            return self.but(context, flag=context.flag + "b")

        @ensures(a, b)
        def flags_are_known(self, new: Account) -> bool:
            return new.flag in (("a", "b", "ab") if order_matters else ("a", "b", "ab", "ba"))

    return Pair


def pendulum(*, ends: bool) -> type[Machine[Any]]:
    """Two states that time drives to and fro; the broken twin's way out is never open."""

    class Pendulum(Machine[Account]):
        to = State(initial=True, timeout=seconds(1), on_timeout="tick")
        fro = State(timeout=seconds(1), on_timeout="tick")
        rest = State(final=True)
        tick = to.to(fro) | fro.to(rest, cond="has_swung") | fro.to(to, on="swing")

        def has_swung(self, context: Account) -> bool:
            return context.taken >= (2 if ends else 100)

        def swing(self, context: Account) -> Account:
            return self.but(context, taken=min(context.taken + 1, 3))

    return Pendulum


class Weighed(Event, tag="weighed"):
    grams: int


class Strange(Event, tag="strange"):
    """Nobody expects it."""


def scale(**wrong: Any) -> type[Machine[Any]]:
    """One effect; `wrong` names a defect in how its outcome is taken."""

    @effect(idempotent=True)
    async def weigh(context: Account, call: Call) -> Weighed | Strange:
        return Weighed(grams=1)

    class NoWeight(GaveUp, tag="no_weight"):
        """The scale is broken."""

    class Scale(Machine[Account]):
        payloads = (NoWeight,)
        weighing = State(initial=True, effect=weigh, on_exhausted="no_weight")
        done = State(final=True)
        given_up = State(final=True, failure=True)
        weighed = weighing.to(done, on="divide")
        no_weight = weighing.to(given_up, cond="may_give_up")
        heavy = weighing.to(given_up)
        if not wrong.get("unhandled"):
            strange = weighing.to(given_up)

        def may_give_up(self, event: NoWeight) -> bool:
            return not wrong.get("stubborn")

        def divide(self, context: Account, event: Weighed) -> Account:
            shares = event.grams if wrong.get("division") else max(event.grams, 1)
            return self.but(context, taken=100 // shares)

    return Scale


class Deep(Context):
    depth: int = 1
    depth_max: int = 2


class Below(ChildEnded, tag="below"):
    """The layer below has ended."""


def ladder(*, slack: int) -> type[Machine[Any]]:
    """A layer starts the one below until the bound; the broken twin goes one too far."""

    class Ladder(Machine[Deep]):
        payloads = (Below,)
        looking = State(initial=True, timeout=1, on_timeout="decide")
        going = State(child="next_one", on_child="below")
        done = State(final=True)
        decide = looking.to(going, cond="may_go") | looking.to(done)
        below = going.to(done)

        def may_go(self, context: Deep) -> bool:
            return context.depth < context.depth_max + slack

        def next_one(self, context: Deep) -> Child:
            return Child("Ladder", self.but(context, depth=context.depth + 1))

        @invariant
        def bounded(self, context: Deep) -> bool:
            return 1 <= context.depth <= context.depth_max

    return Ladder


def lamp(*, dead_edge: bool) -> type[Machine[Any]]:
    """A switch; the broken twin has a final state that no guard ever lets in."""

    class Lamp(Machine[Account]):
        dark = State(initial=True, waits=True)
        bright = State(waits=True)
        out = State(final=True)
        broken = State(final=True, failure=True)
        press = dark.to(bright, on="count") | bright.to(dark)
        smash = bright.to(broken, cond="was_pressed")
        unplug = dark.to(out)

        def count(self, context: Account) -> Account:
            return self.but(context, taken=min(context.taken + 1, 2))

        def was_pressed(self, context: Account) -> bool:
            return context.taken > (3 if dead_edge else 0)

    return Lamp


class Rung(Context):
    depth: int = 1
    depth_max: int = 10


class Created(Event, tag="created"):
    """A resource of our own."""


class NotCreated(GaveUp, tag="not_created"):
    """There is none to be had."""


class Destroyed(Event, tag="destroyed"):
    """It is gone."""


class BelowEnded(ChildEnded, tag="below_ended"):
    """The step below has ended."""


@effect()
async def create(context: Rung, call: Call) -> Created:
    return Created()


@create.reconcile
async def find_created(context: Rung, call: Call) -> Created | NotDone:
    return NotDone()


@effect(idempotent=True)
async def destroy(context: Rung, call: Call) -> Destroyed:
    return Destroyed()


class Chain(Machine[Rung]):
    """Create something, let a child do the next step, and undo all of it if any step fails."""

    payloads = (NotCreated, BelowEnded)
    creating = State(initial=True, effect=create, compensation=destroy, on_exhausted="not_created")
    below = State(child="next_step", on_child="below_ended")
    done = State(final=True)
    failed = State(final=True, failure=True)
    created = creating.to(below, cond="goes_on") | creating.to(done)
    not_created = creating.to(failed)
    below_ended = below.to(done, cond="went_well") | below.to(failed)

    def goes_on(self, context: Rung) -> bool:
        return context.depth < context.depth_max

    def went_well(self, event: BelowEnded) -> bool:
        return event.succeeded

    def next_step(self, context: Rung) -> Child:
        return Child("Chain", self.but(context, depth=context.depth + 1))

    @invariant
    def is_bounded(self, context: Rung) -> bool:
        return 1 <= context.depth <= context.depth_max


class Guardian(Machine[Order]):
    """Waits for a child, but not for ever."""

    payloads = (KidEnded,)
    watching = State(initial=True, child="kid", on_child="kid_ended",
                     timeout=seconds(5), on_timeout="tired")  # fmt: skip
    done = State(final=True)
    failed = State(final=True, failure=True)
    kid_ended = watching.to(done)
    tired = watching.to(failed)

    def kid(self, context: Order) -> Child:
        return Child("Waiter", context)


def _published(name: str, machine: type[Machine[Any]]) -> type[Machine[Any]]:
    """The machine under the name by which a generated test imports it."""
    machine.__qualname__ = name
    return machine


Till = _published("Till", till())
GenerousTill = _published("GenerousTill", till(slack=1))
SignlessTill = _published("SignlessTill", till(sign=True))
RoundingTill = _published("RoundingTill", till(rounding=True))
Pair = _published("Pair", pair(order_matters=False))
OrderedPair = _published("OrderedPair", pair(order_matters=True))
Pendulum = _published("Pendulum", pendulum(ends=True))
EndlessPendulum = _published("EndlessPendulum", pendulum(ends=False))
Scale = _published("Scale", scale())
WildScale = _published("WildScale", scale(unhandled=True))
DividingScale = _published("DividingScale", scale(division=True))
StubbornScale = _published("StubbornScale", scale(stubborn=True))
Ladder = _published("Ladder", ladder(slack=0))
DeepLadder = _published("DeepLadder", ladder(slack=1))
Lamp = _published("Lamp", lamp(dead_edge=False))
DeadLamp = _published("DeadLamp", lamp(dead_edge=True))
