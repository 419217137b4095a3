"""The table of the corpus, as text, as JSON, and as it stands in docs/verification.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import msgspec

from tests.verification.bugs.hunt import BUDGET_SECONDS, Case, Found

PAGE = Path(__file__).parents[3] / "docs" / "verification.md"
BEGIN, END = "<!-- corpus -->", "<!-- /corpus -->"
SHOWN_MAX = 40


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One planted bug, and how it was found.

    Args:
        steps_found, steps: of the counterexample as it was found and as it was made simpler; 0
            where there is none.
        reduce_ms, tried: how long that took, and how many ways were gone for it.
    """

    bug: str
    what: str
    phase: str
    found_as: str
    missed: bool
    took_ms: int
    steps_found: int
    steps: int
    reduce_ms: int
    tried: int


def row_of(case: Case, found: Found) -> Row:
    """A line of the table."""
    reduced = found.reduced
    return Row(
        bug=case.name,
        what=case.what,
        phase=case.phase,
        found_as=_short(found.rule),
        missed=is_missed(case, found),
        took_ms=found.took_ms,
        steps_found=len(found.way) or found.steps,
        steps=found.steps,
        reduce_ms=reduced.took_ms if reduced else 0,
        tried=reduced.tried if reduced else 0,
    )


def is_missed(case: Case, found: Found) -> bool:
    """Whether nothing was found in time, or something else."""
    expected = (
        any(rule in found.rule for rule in case.rules)
        if case.phase == "static"
        else found.rule in case.rules
    )
    return not expected or found.took_ms > BUDGET_SECONDS * 1000


def _short(rule: str) -> str:
    """The rule; of a refused class what python said of it."""
    return "class refused" if rule.startswith("refused:") else rule


def text_of(row: Row) -> str:
    """A line for a terminal."""
    steps = f"{row.steps_found} -> {row.steps}" if row.tried else str(row.steps or "-")
    return (
        f"{row.bug:<34} {row.phase:<11}{row.found_as[:SHOWN_MAX]:<42}{row.took_ms:>6}"
        f"{steps:>12}{row.reduce_ms:>8}{'  MISSED' if row.missed else ''}"
    )


HEADER = f"{'bug':<34} {'phase':<11}{'found as':<42}{'ms':>6}{'steps':>12}{'reduce':>8}"


def summary(rows: Sequence[Row]) -> str:
    """The figures of the whole table."""
    times = [row.took_ms for row in rows]
    slowest = max(rows, key=lambda row: row.took_ms)
    missed = sum(row.missed for row in rows)
    return (
        f"{len(rows)} bugs, {missed} missed; found after {median(times):.0f} ms in the median, "
        f"at most {slowest.took_ms:,} ms ({slowest.bug}); "
        f"made simpler in at most {max(row.reduce_ms for row in rows):,} ms"
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table for the page."""
    lines = [
        "| bug | what is wrong | phase | found as | ms | steps |",
        "|---|---|---|---|---:|---:|",
        *(
            f"| {row.bug} | {row.what} | {row.phase} | {row.found_as} | {row.took_ms} | "
            f"{row.steps or '–'} |"
            for row in rows
        ),
    ]
    return "\n".join([*lines, "", summary(rows) + "."])


def write_page(rows: Iterable[Row], page: Path = PAGE) -> bool:
    """Put the table between the markers of the page; false if there are none."""
    text = page.read_text()
    if BEGIN not in text or END not in text:
        return False
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    page.write_text(f"{before}{BEGIN}\n{markdown(list(rows))}\n{END}{after}")
    return True
