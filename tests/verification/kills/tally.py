"""Sequences of deaths, and how they are counted and shared out among processes."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

TALLY_EVERY = 20
Make = Callable[[int, int, int], "Sequence"]
"""Makes the sequence of a seed and a number, given how many boundaries there are."""


@dataclass(frozen=True)
class Sequence:
    """A process, those that followed it, and what was wrong."""

    token: str
    """`SEED:NUMBER`; gives the same sequence again."""
    deaths: tuple[str, ...]
    """Each boundary at which one was killed, as `NUMBER NAME`."""
    bad: tuple[str, ...] = ()


@dataclass
class Tally:
    """Sequences counted together."""

    sequences: int = 0
    deaths: int = 0
    recovering: int = 0
    """Those of a process that went on after a dead one."""
    boundaries: set[int] = field(default_factory=set)
    """Those at which a first process died."""
    bad: list[Sequence] = field(default_factory=list)

    def count(self, one: Sequence) -> None:
        """Count a sequence in."""
        self.sequences += 1
        self.deaths += len(one.deaths)
        self.recovering += max(len(one.deaths) - 1, 0)
        self.boundaries |= {int(death.split()[0]) for death in one.deaths[:1]}
        self.bad += [one] if one.bad else []

    def add(self, other: Tally) -> None:
        """Count another tally in."""
        self.sequences += other.sequences
        self.deaths += other.deaths
        self.recovering += other.recovering
        self.boundaries |= other.boundaries
        self.bad += other.bad


@dataclass(frozen=True)
class Share:
    """What one of several processes has to do.

    Args:
        deaths: how many at least; None: every boundary once, and no more.
        process, processes: which of how many.
    """

    seed: int
    boundaries: int
    deaths: int | None
    process: int = 0
    processes: int = 1

    def numbers(self) -> Iterator[int]:
        """The sequences: every boundary in an order of chance, then whatever the seed chooses."""
        every = list(range(1, self.boundaries + 1))
        random.Random(self.seed).shuffle(every)
        yield from every[self.process :: self.processes]
        if self.deaths is not None:
            yield from itertools.count(self.boundaries + 1 + self.process, self.processes)

    def tallies(self, make: Make) -> Iterator[Tally]:
        """Make them; what came of it, now and then."""
        made, tally = 0, Tally()
        for number in self.numbers():
            tally.count(make(self.seed, number, self.boundaries))
            if self.deaths is not None and made + tally.deaths >= self.deaths:
                break
            if tally.sequences == TALLY_EVERY:
                yield tally
                made, tally = made + tally.deaths, Tally()
        yield tally
