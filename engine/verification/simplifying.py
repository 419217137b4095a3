"""What is simpler than a way: candidates, in the order in which they are tried.  See `reduce`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

import msgspec

from engine.errors import TurtlesError
from engine.verification import simpler
from engine.verification.judging import DONE, Judge, Way, allowed, column_of, message_of
from engine.verification.outside import FAULTS
from engine.verification.result import Step

Weight = tuple[int, int, int, int]
BELONGS = frozenset({"call", "crash"})
PAIRED_MAX = 12
"""Of more numbers than that no pairs are tried: there are too many."""


def weight_of(way: Way) -> Weight:
    """Steps, faults, payloads, moments: what is to become less, in this order."""
    faults = sum(step[0] == "call" and step[1] in FAULTS for step in way)
    moments = sum(step[1] for step in way if step[0] in ("clock", "crash"))
    texts = (step[column_of(step) or 0] for step in way if column_of(step) is not None)
    payloads = sum(simpler.weight(msgspec.json.decode(text)) for text in texts if text)
    return len(way), faults, payloads, moments


def candidates(judge: Judge, way: Way) -> Iterator[Way]:
    yield from _fewer(way)
    yield from _without_faults(judge, way)
    values, known = _values(judge, way)
    yield from known
    yield from _payloads(judge, way, values)
    yield from _moments(way)
    yield from _in_pairs(judge, way, values)


def _groups(way: Way) -> list[Way]:
    """The actions, each with the calls and the crash that belong to it."""
    groups: list[list[Step]] = []
    for step in way:
        if step[0] in BELONGS and groups:
            groups[-1].append(step)
        else:
            groups.append([step])
    return [tuple(group) for group in groups]


def _fewer(way: Way) -> Iterator[Way]:
    first, *groups = _groups(way)
    size = max(len(groups) // 2, 1)
    while groups and size:
        for place in reversed(range(0, len(groups), size)):
            yield (*first, *_joined(groups[:place] + groups[place + size :]))
        size //= 2
    for place, step in enumerate(way):
        if step[0] in BELONGS:
            end = _end_of_calls(way, place)
            yield way[:place]
            for until in range(place + 1, end + 1):
                yield way[:place] + way[until:]


def _joined(groups: Iterable[Way]) -> Way:
    return tuple(step for group in groups for step in group)


def _end_of_calls(way: Way, place: int) -> int:
    """The place after a call's group."""
    end = place + 1
    while end < len(way) and way[end][0] in BELONGS:
        end += 1
    return end


def _without_faults(judge: Judge, way: Way) -> Iterator[Way]:
    """An ordinary answer instead of a fault, and without what the fault led to, wherever it ends.

    Also later moves may have been about nothing but the fault: they recovered from it.
    """
    for place, step in enumerate(way):
        if step[0] == "call" and step[1] in FAULTS:
            for answer in _ordinary(judge, way, place):
                for until in range(place + 1, len(way) + 1):
                    yield (*way[:place], answer, *way[until:])


def _ordinary(judge: Judge, way: Way, place: int) -> list[Step]:
    """The ordinary answers that a call may get instead of a fault."""
    step = way[place]
    if step[1] in DONE:
        return [("call", "ok", *step[2:])]
    hand = judge.rig.bench.hand if judge.at(way[:place]) else None
    choices = judge.options.answers(hand) if hand is not None else []
    return [("call", *choice) for choice in choices if choice[0] in ("ok", "told")]


def _moments(way: Way) -> Iterator[Way]:
    for place, step in enumerate(way):
        if step[0] in ("clock", "crash"):
            for moment in range(step[1]):
                yield (*way[:place], (step[0], moment), *way[place + 1 :])


# -- payloads -------------------------------------------------------------------------------------


class Site(msgspec.Struct, frozen=True):
    """A payload on a way.

    Args:
        places: the steps that carry it: an event and its duplicates.
        kind: what it must decode to.
        among: what it may be, by the word of an environment; None: anything of its type.
    """

    places: tuple[int, ...]
    text: str
    kind: Any
    among: tuple[str, ...] | None


def _values(judge: Judge, way: Way) -> tuple[dict[Site, Any], list[Way]]:
    """The payloads that may be anything, decoded; and ways with those that an environment gives."""
    sites = list(_sites(judge, way))
    known = [_with(way, {site: text}) for site in sites for text in site.among or ()]
    return {s: msgspec.json.decode(s.text) for s in sites if s.among is None}, known


def _payloads(judge: Judge, way: Way, values: dict[Site, Any]) -> Iterator[Way]:
    yield from _together(judge, way, values)
    for site, value in values.items():
        for path, node in simpler.nodes(value):
            for new in simpler.simpler(node) if _may_change(site, path) else ():
                yield from _tried(judge, way, {site: simpler.put(value, path, new)})


def _in_pairs(judge: Judge, way: Way, values: dict[Site, Any]) -> Iterator[Way]:
    """Two numbers less by as much: what keeps a difference, or a sum and one of its parts."""
    leaves = [
        (site, path, node)
        for site, value in values.items()
        for path, node in simpler.nodes(value)
        if type(node) is int and node > 0 and _may_change(site, path)
    ]
    for one, other in combinations(leaves, 2) if len(leaves) <= PAIRED_MAX else ():
        least = min(one[2], other[2])
        for by in dict.fromkeys((least, least - 1, 1)):
            changed = dict(values)
            for site, path, node in (one, other):
                changed[site] = simpler.put(changed[site], path, node - by)
            if by:
                yield from _tried(judge, way, changed)


def _together(judge: Judge, way: Way, values: dict[Site, Any]) -> Iterator[Way]:
    """Equal leaves of all payloads at once; then all numbers by as much."""
    leaves: dict[tuple[type, Any], int] = {}
    for site, value in values.items():
        for path, node in simpler.nodes(value):
            if _may_change(site, path) and type(node) in (int, str):
                key = (type(node), node)
                leaves[key] = leaves.get(key, 0) + 1
    for (_, old), times in leaves.items():
        for new in simpler.simpler(old) if times > 1 else ():
            changed = {s: _kept(s, v, simpler.everywhere(v, old, new)) for s, v in values.items()}
            yield from _tried(judge, way, changed)
    most = max((node for kind, node in leaves if kind is int), default=0)
    for by in dict.fromkeys((most - 1, most // 2, 1)):
        if by > 0:
            changed = {s: _kept(s, v, simpler.lowered(v, by)) for s, v in values.items()}
            yield from _tried(judge, way, changed)


def _may_change(site: Site, path: simpler.Path) -> bool:
    """Everything but the name of the event."""
    tag = getattr(getattr(site.kind, "__struct_config__", None), "tag_field", None)
    return bool(path) and path != (tag,)


def _kept(site: Site, before: Any, after: Any) -> Any:
    """The value with the name that its event had."""
    tag = getattr(getattr(site.kind, "__struct_config__", None), "tag_field", None)
    return {**after, tag: before[tag]} if tag in before else after


def _tried(judge: Judge, way: Way, values: dict[Site, Any]) -> Iterator[Way]:
    """The way with these values, if each is one of its type."""
    codec = judge.rig.bench.codec
    texts: dict[Site, str] = {}
    for site, value in values.items():
        try:
            given = codec.decode(site.kind, msgspec.json.encode(value), "payload")
        except TurtlesError:
            return
        texts[site] = codec.encode(given).decode()
    if any(text != site.text for site, text in texts.items()):
        yield _with(way, texts)


def _with(way: Way, texts: dict[Site, str]) -> Way:
    steps = list(way)
    for site, text in texts.items():
        for place in site.places:
            column = column_of(steps[place]) or 0
            steps[place] = (*steps[place][:column], text, *steps[place][column + 1 :])
    return tuple(steps)


def _sites(judge: Judge, way: Way) -> Iterator[Site]:
    duplicates = {tuple(step[1:]) for step in way if step[0] == "again"}
    taken: set[int] = set()
    for place, step in enumerate(way):
        column = column_of(step)
        if column is None or not step[column] or place in taken:
            continue
        places = [place]
        message = message_of(step)
        if message in duplicates:
            places = [at for at, one in enumerate(way) if message_of(one) == message]
        taken.update(places)
        if judge.at(way[:place]):
            kind, among = allowed(judge, step)
            if kind is not None or among:
                yield Site(tuple(places), step[column], kind, among)
