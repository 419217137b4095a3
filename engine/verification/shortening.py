"""Shorter schedules that show the same failure.

A schedule is a list of picks.  Pieces of it are left out, or made 0 (the first way of all), from
large pieces to single picks, as long as the failure stays and the schedule does not become longer
(delta debugging, Zeller and Hildebrandt, TSE 2002).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

Weight = tuple[int, int]


def shortened(
    picks: Sequence[int], weigh: Callable[[Sequence[int]], Weight | None], *, tries: int
) -> tuple[int, ...]:
    """The lightest picks found.

    Args:
        picks: a schedule that fails.
        weigh: how heavy a schedule is; None: it does not fail in the same way.
        tries: so many schedules are played, at most.
    """
    best = _without_zeros_at_end(picks)
    weight = weigh(best)
    size = max(len(best) // 2, 1)
    while weight is not None and size and tries > 0:
        shorter = False
        for candidate in _candidates(best, size):
            tries -= 1
            found = weigh(candidate)
            if found is not None and (found, candidate) < (weight, best):
                best, weight, shorter = _without_zeros_at_end(candidate), found, True
                break
            if tries <= 0:
                break
        if not shorter:
            size //= 2
    return best


def _candidates(picks: tuple[int, ...], size: int) -> Iterator[tuple[int, ...]]:
    for place in reversed(range(0, len(picks), size)):
        yield picks[:place] + picks[place + size :]
        if any(picks[place : place + size]):
            yield picks[:place] + (0,) * min(size, len(picks) - place) + picks[place + size :]


def _without_zeros_at_end(picks: Sequence[int]) -> tuple[int, ...]:
    last = max((place for place, pick in enumerate(picks) if pick), default=-1)
    return tuple(picks[: last + 1])
