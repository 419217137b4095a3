"""Exploring with a bug planted, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from engine.verification.explore import Failure, Report, explore
from persistence.store import open_store
from tests.verification.bugs.corpus import Bug

BUDGET_SECONDS = 10.0


@dataclass(frozen=True)
class Found:
    """The first property that did not hold, how soon, and how long its way is."""

    rule: str
    took_ms: int
    steps: int
    failure: Failure | None
    report: Report


def hunt(bug: Bug) -> Found:
    """Explore the broken machine until the first failure."""
    with bug.planted():
        report = explore(
            bug.broken,
            open_store("sqlite://"),
            known=bug.known,
            budget_seconds=BUDGET_SECONDS,
            first_failure=True,
        )
    took_ms = round(report.took_seconds * 1000)
    if report.failures:
        first = report.failures[0]
        return Found(first.rule, took_ms, len(first.steps), first, report)
    gap = report.exhausted and report.coverage.missing_transitions
    return Found("coverage" if gap else "nothing", took_ms, 0, None, report)
