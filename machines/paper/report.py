"""The paper's table with ours beside it, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from machines.paper.count import Counted
from machines.paper.figures import Figure
from machines.paper.rows import PAPER_TOTAL, ROWS, Row


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One row: the paper's count, and what ours is made of."""

    flow: str
    title: str
    paper: int
    checks: int
    figures: int
    counted: tuple[Counted, ...]
    failed: tuple[str, ...]

    @property
    def ours(self) -> int:
        """Everything that was checked."""
        return self.checks + self.figures

    @property
    def good(self) -> bool:
        """As much as in the paper, and all of it true."""
        return self.ours >= self.paper and not self.failed


def lines_of(counted: Mapping[str, Counted], figures: Sequence[Figure]) -> list[Line]:
    """The table's rows, in the paper's order."""
    return [_line(row, counted, figures) for row in ROWS]


def _line(row: Row, counted: Mapping[str, Counted], figures: Sequence[Figure]) -> Line:
    mine = tuple(counted[name] for name in row.machines)
    own = [one for one in figures if one.title == row.title]
    failed = [f"{one.machine}: {problem}" for one in mine for problem in one.broken]
    failed += [f"{one.machine}: not explored to the end" for one in mine if not one.exhausted]
    failed += [f"{one.says}: {one.problem}" for one in own if one.problem]
    return Line(
        flow=row.flow,
        title=row.title,
        paper=row.paper,
        checks=sum(one.checks for one in mine),
        figures=len(own),
        counted=mine,
        failed=tuple(failed),
    )


HEADS = ("FLOW", "", "PAPER", "OURS", "CONTRACTS", "CELLS", "FAULTS", "ORACLES", "FIGURES",
         "JUDGED", "STATES", "EDGES", "EXECUTIONS", "MUTANTS")  # fmt: skip


def cells_of(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """The table's cells, with a line of sums."""
    return [*map(_cells, lines), _sums(lines)]


def _cells(line: Line) -> tuple[str, ...]:
    return (line.flow, line.title, f"{line.paper:,}", f"{line.ours:,}", *_numbers([line]))


def _sums(lines: Sequence[Line]) -> tuple[str, ...]:
    ours = sum(line.ours for line in lines)
    return ("", "Total", f"{PAPER_TOTAL:,}", f"{ours:,}", *_numbers(lines))


def _numbers(lines: Sequence[Line]) -> Iterator[str]:
    counted = [one for line in lines for one in line.counted]
    for name in ("contracts", "cells", "faults", "oracles"):
        yield f"{sum(getattr(one, name) for one in counted):,}"
    yield f"{sum(line.figures for line in lines):,}"
    yield f"{sum(one.judgements + one.answers for one in counted):,}"
    for name in ("states", "transitions", "executions"):
        yield f"{sum(getattr(one, name) for one in counted):,}"
    killed, tried = (sum(getattr(one, name) for one in counted) for name in ("killed", "mutants"))
    yield f"{killed}/{tried}"


def as_json(lines: Sequence[Line]) -> dict[str, Any]:
    """The table as plain data."""
    rows = [{**msgspec.to_builtins(line), "ours": line.ours, "good": line.good} for line in lines]
    total = {"paper": PAPER_TOTAL, "ours": sum(line.ours for line in lines)}
    return {"rows": rows, "total": total, "good": all(line.good for line in lines)}
