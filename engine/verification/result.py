"""What an exploration was bound by, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from engine.table import Table
from engine.verification.coverage import Coverage

Step = tuple[Any, ...]
"""An action or an answer, as `engine.verification.bench` and `outside` list them."""


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """How far the exploration goes.

    Args:
        contexts: at most so many first contexts: the smallest that the machine's invariants allow,
            then, while transitions are missing, others that differ in what their guards read.
        messages: so many events from outside in one life of the run; each may come twice.
        cancels: whether somebody may ask the run to stop, once.
        pauses: whether somebody may pause the run, once, and resume what is held.
        faults: whether calls fail, answers are lost and workers die.
        attempts: retry policies have at most so many (those of 1,000 and more stay endless).
    """

    contexts: int = 6
    messages: int = 3
    cancels: bool = True
    pauses: bool = False
    faults: bool = True
    attempts: int = 3


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A property that does not hold, and a shortest way there."""

    kind: Literal["safety", "liveness"]
    rule: str
    problem: str
    steps: tuple[Step, ...]
    found_after_ms: int


@dataclass
class Report:
    """What was explored, and what was found."""

    table: Table
    scope: Scope
    seed: int
    coverage: Coverage
    contexts: int = 0
    states: int = 0
    executions: int = 0
    commits: int = 0
    deaths: int = 0
    depth: int = 0
    left: int = 0
    repeated: int = 0
    mismatches: list[tuple[Step, ...]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    took_seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    reached: tuple[Step, ...] | None = None
    """The way to the transition that was asked for."""
    stand_ins: tuple[str, ...] = ()
    digest: int = 0
    """Of every state in the order in which they were found; two alike explorations have one."""
    complete_after_seconds: float | None = None
    """When nothing was missing in the coverage any more."""

    @property
    def exhausted(self) -> bool:
        """Whether nothing was left to try within the scope."""
        return self.left == 0

    @property
    def ok(self) -> bool:
        """Whether nothing was found, whatever was covered."""
        return not self.failures and not self.mismatches

    @property
    def exit_code(self) -> int:
        """0 nothing found and all covered, 2 gap, 3 safety, 4 liveness, 5 contradiction."""
        if self.mismatches:
            return 5
        kinds = {failure.kind for failure in self.failures}
        if kinds:
            return 3 if "safety" in kinds else 4
        return 0 if self.coverage.complete else 2
