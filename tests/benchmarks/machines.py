"""The machines that are measured: ten durable steps, contracts on.

Each step is an effect with the idempotent pure function that every contender runs; its outcome is
the event, and the transition has a guard, an action, a precondition and a postcondition, which are
judged and recorded.  `Half` waits for an event in the middle; `Loop` goes
on for ever, and rests after every so many steps.
"""

from __future__ import annotations

import time

from engine import Call, Context, Event, Machine, State, effect, ensures, requires
from tests.benchmarks.peers.common import HALF, STEPS, pure


class Order(Context):
    """The four keys."""

    count: int = 0
    total: int = 0
    name: str = ""
    done: bool = False


class Stepped(Event, tag="stepped"):
    """One step is done."""

    count: int
    total: int
    name: str
    done: bool


class Go(Event, tag="go"):
    """What a run in the middle waits for."""

    number: int


CALLS = 0
"""How often the effect was performed by this process: W6 looks for work done twice."""


@effect(idempotent=True)
async def step(context: Order, call: Call) -> Stepped:
    """Nothing outside: what is measured is the engine."""
    global CALLS
    CALLS += 1
    data = {
        "count": context.count,
        "total": context.total,
        "name": context.name,
        "done": context.done,
    }
    return Stepped(**pure(data))


class Walk(Machine[Order]):
    """Ten durable steps."""

    walking = State(initial=True, effect=step)
    arrived = State(final=True)
    stepped = walking.to(arrived, cond="last") | walking.to(walking)

    def last(self, context: Order) -> bool:
        """Whether this is the last step."""
        return context.count + 1 >= STEPS

    def on_stepped(self, context: Order, event: Stepped) -> Order:
        """Take what the step computed."""
        return self.but(
            context, count=event.count, total=event.total, name=event.name, done=event.done
        )

    @requires(stepped)
    def forwards(self, context: Order, event: Stepped) -> bool:
        """Steps only go forwards."""
        return event.count == context.count + 1

    @ensures(stepped)
    def counted(self, old: Order, new: Order, event: Stepped) -> bool:
        """Nothing is lost."""
        return new.total == old.total + new.count


class Half(Machine[Order]):
    """Five durable steps, an event from outside, five more."""

    walking = State(initial=True, effect=step)
    waiting = State(waits=True)
    arrived = State(final=True)
    stepped = (
        walking.to(arrived, cond="last") | walking.to(waiting, cond="half") | walking.to(walking)
    )
    go = waiting.to(walking)

    def last(self, context: Order) -> bool:
        """Whether this is the last step."""
        return context.count + 1 >= STEPS

    def half(self, context: Order) -> bool:
        """Whether the run is in its middle after this step."""
        return context.count + 1 == HALF

    def on_stepped(self, context: Order, event: Stepped) -> Order:
        """Take what the step computed."""
        return self.but(
            context, count=event.count, total=event.total, name=event.name, done=event.done
        )

    @requires(stepped)
    def forwards(self, context: Order, event: Stepped) -> bool:
        """Steps only go forwards."""
        return event.count == context.count + 1

    @ensures(stepped)
    def counted(self, old: Order, new: Order, event: Stepped) -> bool:
        """Nothing is lost."""
        return new.total == old.total + new.count

    @requires(go)
    def numbered(self, event: Go) -> bool:
        """Who sends it counts."""
        return event.number >= 0


class Long(Context):
    """How far a long run has come, and after how many steps it rests each time."""

    count: int = 0
    rest_every: int = 200


class Looped(Event, tag="looped"):
    """Once more."""

    count: int


TIMES: list[float] = []
"""When each step of `Loop` was performed in this process, seconds of `perf_counter`."""


@effect(idempotent=True)
async def loop(context: Long, call: Call) -> Looped:
    """Nothing outside; note the time."""
    TIMES.append(time.perf_counter())
    return Looped(count=context.count + 1)


class Loop(Machine[Long]):
    """Goes on as often as it is told to, with rests."""

    looping = State(initial=True, effect=loop)
    resting = State(waits=True)
    ended = State(final=True)
    looped = looping.to(resting, cond="tired") | looping.to(looping)
    go = resting.to(looping)
    end = resting.to(ended)

    def tired(self, context: Long) -> bool:
        """Whether the run rests after this step."""
        return (context.count + 1) % context.rest_every == 0

    def on_looped(self, context: Long, event: Looped) -> Long:
        """Count it."""
        return self.but(context, count=event.count)

    @requires(looped)
    def forwards(self, context: Long, event: Looped) -> bool:
        """Steps only go forwards."""
        return event.count == context.count + 1

    @ensures(looped)
    def counted(self, old: Long, new: Long) -> bool:
        """Nothing is lost."""
        return new.count == old.count + 1

    @requires(go)
    def numbered(self, event: Go) -> bool:
        """Who sends it counts."""
        return event.number >= 0
