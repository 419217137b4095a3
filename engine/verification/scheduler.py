"""A seeded scheduler: several workers of the real engine over one store, one step at a time.

No event loop runs.  Each worker, client and the clock is an `Actor`; a step takes an actor from one
switch point to the next.  A coroutine of the engine has one before and one after every use of the
store and every call of an effect; what a worker does in between (one transaction) is one step, as
it is for a database.  Where one use of the store is several transactions (a heartbeat, a reap),
others may move in between, too (`Scheduler.meanwhile`).

Everything that could have gone another way is a `pick`: whose turn it is, what time it becomes,
what an effect answers, who freezes or dies and where.  The picks are kept, so that a schedule is a
list of small numbers, which does the same when it is given again.

Strategies: `random` takes any ready actor.  `pct` (probabilistic concurrency testing, Burckhardt
and others, ASPLOS 2010) gives every actor a random priority, always moves the highest, and lowers
it at `DEPTH` - 1 random steps: an ordering bug of depth d in k steps by n actors is found with a
probability of at least 1 / (n * k ** (d - 1)) in each schedule.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Strategy = Literal["random", "pct"]
STRATEGIES: tuple[Strategy, ...] = ("random", "pct")
DEPTH = 3
STEPS_OF_PCT = 60
MEANWHILE_MAX = 8
Trace = list[tuple[str, str]]


class BrokenStage(BaseException):
    """The stage itself failed, in the hands of the engine; nothing of the engine catches this."""


class Chance:
    """The picks of one schedule: by chance, or as given.

    Args:
        seed: of the chance.
        given: picks to make again; those after the last one are 0.
    """

    def __init__(
        self, seed: int, strategy: Strategy = "random", given: Sequence[int] | None = None
    ) -> None:
        self._random = random.Random(seed)  # noqa: S311 - which schedules are tried
        self._given = None if given is None else iter(given)
        self._priorities: dict[str, float] | None = None if strategy == "random" else {}
        self._lowered_at = [] if strategy == "random" else [
            self._random.randrange(1, STEPS_OF_PCT) for _ in range(DEPTH - 1)
        ]  # fmt: skip
        self._turns = 0
        self.picks: list[int] = []

    def pick(self, count: int) -> int:
        """One of `count` ways, from 0."""
        if count <= 1:
            return 0
        if self._given is not None:
            return self._keep(min(next(self._given, 0), count - 1))
        return self._keep(int(self._random.random() * count))

    def turn(self, ready: Sequence[Actor]) -> Actor:
        """Whose turn it is."""
        if self._priorities is None or self._given is not None:
            return ready[self.pick(len(ready))]
        self._turns += 1
        place = self._highest(ready)
        if self._turns in self._lowered_at:
            self._priorities[ready[place].name] = -float(self._turns)
            place = self._highest(ready)
        if len(ready) > 1:
            self._keep(place)
        return ready[place]

    def _highest(self, ready: Sequence[Actor]) -> int:
        assert self._priorities is not None
        best, highest = 0, -float("inf")
        for place, actor in enumerate(ready):
            if actor.name not in self._priorities:
                self._priorities[actor.name] = self._random.random()
            if self._priorities[actor.name] > highest:
                best, highest = place, self._priorities[actor.name]
        return best

    def _keep(self, picked: int) -> int:
        self.picks.append(picked)
        return picked


class Switch:
    """Awaiting it gives way to the other actors; `label` says at what."""

    __slots__ = ("label",)

    def __init__(self, label: str) -> None:
        self.label = label

    def __await__(self) -> Generator[str, None, None]:
        yield self.label


BEFORE = Switch("")


class Actor:
    """Whoever takes steps.

    Args:
        name: unique in a schedule.
        step: goes on to the next switch point, and says what was done.
        wants: whether there is anything to do now.
    """

    __slots__ = ("busy", "done", "frozen", "name", "step", "steps", "wants")

    def __init__(self, name: str, step: Callable[[], str], wants: Callable[[], bool]) -> None:
        self.name = name
        self.step = step
        self.wants = wants
        self.steps = 0
        self.busy = False
        self.done = False
        self.frozen = False

    @property
    def ready(self) -> bool:
        """Whether it can take a step now."""
        return not (self.done or self.frozen or self.busy) and self.wants()


class SwitchIo:
    """An `engine.committer.Io`: each use of the store is one step, with a switch on either side.

    Args:
        said: what the last use of the store was, for the trace.
    """

    in_place = False

    def __init__(self, said: Callable[[], str]) -> None:
        self._said = said

    async def __call__(self, call: Callable[[], T]) -> T:
        """The result of the call."""
        await BEFORE
        result = call()
        await Switch(self._said())
        return result

    def close(self) -> None:
        """Nothing to let go of."""


class Scheduler:
    """Moves actors, one at a time.

    Args:
        chance: whose turn it is.
        stepped: called after every step, with its actor.
    """

    def __init__(self, chance: Chance, stepped: Callable[[Actor], None]) -> None:
        self.chance = chance
        self.actors: list[Actor] = []
        self.trace: Trace = []
        self.switches = 0
        self._stepped = stepped
        self._spawned: list[Coroutine[Any, Any, None]] = []
        self._fair = False

    def add(self, actor: Actor) -> Actor:
        """Another actor."""
        self.actors.append(actor)
        return actor

    def spawn(self, name: str, work: Coroutine[Any, Any, None], wants: Callable[[], bool]) -> Actor:
        """A coroutine as an actor; it is done when it returns."""

        def step() -> str:
            try:
                label: str = work.send(None)
            except StopIteration:
                actor.done = True
                return "end"
            return label

        actor = Actor(name, step, wants)
        self._spawned.append(work)
        return self.add(actor)

    def close(self) -> None:
        """Nobody goes on."""
        for work in self._spawned:
            work.close()

    def run(self, steps: int) -> None:
        """At most so many steps, by chance; less when nobody is ready."""
        last = self.switches + steps
        while self.switches < last:
            ready = [actor for actor in self.actors if actor.ready]
            if not ready:
                return
            self.take(self.chance.turn(ready))

    def run_fair(self, steps: int, *, but: Actor) -> bool:
        """Everybody in turn until nobody but one is ready; false when the steps did not suffice."""
        self._fair = True
        last = self.switches + steps
        while self.switches < last:
            ready = [actor for actor in self.actors if actor is not but and actor.ready]
            if not ready:
                return True
            for actor in ready:
                if actor.ready:
                    self.take(actor)
        return False

    def take(self, actor: Actor) -> None:
        """One step of an actor."""
        self.switches += 1
        actor.steps += 1
        actor.busy = True
        try:
            label = actor.step()
        finally:
            actor.busy = False
        self.trace.append((actor.name, label))
        self._stepped(actor)

    def meanwhile(self) -> None:
        """Others move while one stands between two transactions of one use of the store."""
        if not self._fair:
            self.run(self.chance.pick(MEANWHILE_MAX))
