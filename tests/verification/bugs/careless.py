"""Machines that lint refuses, or python already when it reads the class.

Each function makes a machine with one defect of its shape; its docstring says which.
"""

from __future__ import annotations

import time
from typing import Any

from engine import Call, Context, Event, Machine, Retry, State, effect, requires, seconds
from engine.events import ChildEnded
from engine.table import Child


class Count(Context):
    number: int = 0


class Weighed(Event, tag="weighed"):
    grams: int


class Answered(Event, tag="answered"):
    grams: int


class LayerEnded(ChildEnded, tag="layer_ended"):
    """The layer below has ended."""


@effect(idempotent=True)
async def weigh(context: Count, call: Call) -> Weighed:
    return Weighed(grams=1)


@effect(idempotent=True, retry=Retry(attempts=10**9))
async def weigh_for_ever(context: Count, call: Call) -> Weighed:
    return Weighed(grams=1)


def guard_gap() -> type[Machine[Any]]:
    """An effect's outcome fulfils none of the guards."""

    class Gap(Machine[Count]):
        weighing = State(initial=True, effect=weigh)
        light = State(final=True)
        heavy = State(final=True)
        weighed = weighing.to(light, cond="is_light") | weighing.to(heavy, cond="is_heavy")

        def is_light(self, event: Weighed) -> bool:
            return event.grams < 10

        def is_heavy(self, event: Weighed) -> bool:
            return event.grams > 10

    return Gap


def guard_overlap() -> type[Machine[Any]]:
    """Two guards are true at once, and the order of the lines decides."""

    class Overlap(Machine[Count]):
        asking = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
        light = State(final=True)
        heavy = State(final=True)
        answered = asking.to(light, cond="is_light") | asking.to(heavy, cond="is_heavy")
        late = asking.to(heavy)

        def is_light(self, event: Answered) -> bool:
            return event.grams <= 10

        def is_heavy(self, event: Answered) -> bool:
            return event.grams >= 10

    return Overlap


def unreachable_state() -> type[Machine[Any]]:
    """No path leads to a state."""

    class Unreachable(Machine[Count]):
        asking = State(initial=True, timeout=seconds(9), on_timeout="late")
        island = State(timeout=seconds(9), on_timeout="late")
        done = State(final=True)
        late = asking.to(done) | island.to(done)

    return Unreachable


def no_way_to_an_end() -> type[Machine[Any]]:
    """From one state on no final state is reached any more."""

    class Trap(Machine[Count]):
        asking = State(initial=True, waits=True, timeout=seconds(9), on_timeout="late")
        one = State(timeout=seconds(9), on_timeout="turn")
        other = State(timeout=seconds(9), on_timeout="turn")
        done = State(final=True)
        late = asking.to(done)
        fall = asking.to(one)
        turn = one.to(other) | other.to(one)

    return Trap


def waiting_without_timeout() -> type[Machine[Any]]:
    """A state waits for somebody outside, for ever."""

    class Waiting(Machine[Count]):
        asking = State(initial=True, waits=True)
        done = State(final=True)
        answered = asking.to(done)

    return Waiting


def polling_without_timeout() -> type[Machine[Any]]:
    """An effect is tried again for ever, and no timer ends it."""

    class Polling(Machine[Count]):
        weighing = State(initial=True, effect=weigh_for_ever)
        done = State(final=True)
        weighed = weighing.to(done)

    return Polling


def unbounded_recursion() -> type[Machine[Any]]:
    """A machine starts itself, and nothing counts the layers."""

    class Endless(Machine[Count]):
        payloads = (LayerEnded,)
        below = State(initial=True, child="next_layer", on_child="layer_ended")
        done = State(final=True)
        layer_ended = below.to(done)

        def next_layer(self, context: Count) -> Child:
            return Child("Endless", context)

    return Endless


def hot_cycle() -> type[Machine[Any]]:
    """Two states ask the outside in turn, as fast as it answers."""

    class Hot(Machine[Count]):
        one = State(initial=True, effect=weigh)
        other = State(effect=weigh)
        done = State(final=True)
        weighed = one.to(other) | other.to(done, cond="is_enough") | other.to(one)

        def is_enough(self, event: Weighed) -> bool:
            return event.grams > 3

    return Hot


def dead_edge() -> type[Machine[Any]]:
    """An edge stands behind one that is always taken."""

    class Dead(Machine[Count]):
        weighing = State(initial=True, effect=weigh)
        light = State(final=True)
        heavy = State(final=True)
        weighed = weighing.to(light) | weighing.to(heavy, cond="is_heavy")

        def is_heavy(self, event: Weighed) -> bool:
            return event.grams > 10

    return Dead


def clock_in_a_guard() -> type[Machine[Any]]:
    """A guard reads the clock, so a replay decides otherwise."""

    class Timed(Machine[Count]):
        weighing = State(initial=True, effect=weigh)
        early = State(final=True)
        late = State(final=True)
        weighed = weighing.to(early, cond="is_early") | weighing.to(late)

        def is_early(self, event: Weighed) -> bool:
            return time.time() < 2_000_000_000

    return Timed


def timer_without_end() -> type[Machine[Any]]:
    """A timer's edge stays in its state, so it fires again at once."""

    class Ticking(Machine[Count]):
        asking = State(initial=True, waits=True, timeout=seconds(9), on_timeout="tick")
        done = State(final=True)
        answered = asking.to(done)
        tick = asking.to.itself(internal=True)

    return Ticking


def effect_nobody_can_ask_about() -> type[Machine[Any]]:
    """An effect is neither idempotent nor can anybody find out whether it was done."""

    @effect()
    async def risky(context: Count, call: Call) -> Weighed:
        return Weighed(grams=1)

    class Risky(Machine[Count]):
        weighing = State(initial=True, effect=risky)
        done = State(final=True)
        weighed = weighing.to(done)

    return Risky


def idle_contract() -> type[Machine[Any]]:
    """A precondition names no edge."""

    class Idle(Machine[Count]):
        weighing = State(initial=True, effect=weigh)
        done = State(final=True)
        weighed = weighing.to(done)

        @requires("heavier")
        def is_heavy(self, event: Weighed) -> bool:
            return event.grams > 10

    return Idle
