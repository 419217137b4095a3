"""The arithmetic of the report: which samples count, medians, ratios, tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

QUIET_CORES = 0.35
"""A sample during which others used more than this is left out, if there are quiet ones."""

Sample = Mapping[str, Any]


def undisturbed(samples: Sequence[Sample]) -> list[Sample]:
    """The samples that foreign load did not touch."""
    return [each for each in samples if each.get("foreign_cores", 0.0) < QUIET_CORES]


def quiet(samples: Sequence[Sample]) -> list[Sample]:
    """The samples that count: the undisturbed ones, or all if there is none."""
    return undisturbed(samples) or list(samples)


def median(samples: Sequence[Sample], name: str) -> float | None:
    """The median of a figure over the quiet samples that have it; None if there is none."""
    found = [float(each[name]) for each in quiet(samples) if each.get(name) is not None]
    return statistics.median(found) if found else None


def spread(samples: Sequence[Sample], name: str) -> tuple[float, float] | None:
    """The least and the greatest over the quiet samples."""
    found = [float(each[name]) for each in quiet(samples) if each.get(name) is not None]
    return (min(found), max(found)) if found else None


def ratio(value: float | None, base: float | None) -> float | None:
    """How often the base goes into the value; None if one of them is not known."""
    if value is None or base is None or base == 0:
        return None
    return value / base


def best(values: Mapping[str, float | None], *, least: bool) -> tuple[str, float] | None:
    """Name and value of the best that was measured."""
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return None
    name = (min if least else max)(known, key=lambda each: known[each])
    return name, known[name]


def number(value: float | None, unit: str = "") -> str:
    """A figure as a person reads it: three digits that matter, thousands with commas."""
    if value is None:
        return "-"
    size = abs(value)
    if size >= 100:
        text = f"{value:,.0f}"
    elif size >= 10:
        text = f"{value:.1f}"
    elif size >= 1:
        text = f"{value:.2f}"
    else:
        text = f"{value:.3f}"
    return f"{text} {unit}".strip()


def verdict(value: float | None, bound: float, *, at_most: bool) -> str:
    """`yes`, `no`, or that it was not measured."""
    if value is None:
        return "not measured"
    return "yes" if (value <= bound if at_most else value >= bound) else "**no**"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    for row in lines:
        if len(row) != len(head):
            raise ValueError(f"a row of {len(row)} cells under {len(head)} headings: {row}")
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)
