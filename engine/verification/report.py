"""A verification in words: `told` makes plain data of it, everything else only prints that data.

::

    data = told(verify(Payment, ...))
    lines(data)          a terminal
    as_json(data)        programs
    junit.junit([data])  a CI server
    page.page([data])    a browser

Plain data crosses processes (`verify --all` uses one for each core), and all forms say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from engine.verification.account import (
    CoverageTold,
    FailureTold,
    Gap,
    PhaseTold,
    StepTold,
    Told,
    Versions,
    told,
    versions,
)
from engine.verification.tokens import (
    Token,
    diagram,
    pytest_file,
    read_token,
    said,
    token_of,
)

__all__ = ["EXITS", "CoverageTold", "FailureTold", "Gap", "PhaseTold", "StepTold", "Token",
           "Told", "Versions", "all_json", "as_json", "diagram", "failure_lines", "heading",
           "lines", "phase_lines", "pytest_file", "read_token", "said", "summary", "token_of",
           "told"]  # fmt: skip
MISSING_SHOWN = 12
WAY_ENDS_SHOWN = 30
"""So many steps of each end of a longer way are printed."""
EXITS: dict[int, str] = {
    0: "ok",
    1: "static error, or the machine or its environment cannot be verified",
    2: "coverage gap",
    3: "a safety property is broken",
    4: "progress is lost",
    5: "not deterministic",
    6: "budget over before everything was tried",
    64: "wrong use",
    66: "a database that cannot be read",
    70: "a defect of turtles itself",
    130: "interrupted",
}


# -- a terminal -----------------------------------------------------------------------------------


def lines(data: Told) -> Iterator[str]:
    """The report for a terminal."""
    yield heading(data.machine, data.fingerprint, data.seed)
    for phase in data.phases:
        yield from phase_lines(phase)
    if data.coverage is not None:
        yield from _coverage_lines(data.coverage)
    for note in dict.fromkeys(data.notes):
        yield f"note        {note}"
    for failure in data.failures:
        yield from failure_lines(failure)
    if data.goal:
        yield from _goal_lines(data)


def heading(machine: str, fingerprint: str, seed: int) -> str:
    """The first line: what, and by what."""
    by = versions()
    what = f"{machine}  {fingerprint}".rstrip()
    return (f"verify {what}  seed {seed}  turtles {by.turtles}  python {by.python}  "
            f"sqlite {by.sqlite}")  # fmt: skip


def phase_lines(phase: PhaseTold) -> Iterator[str]:
    """A phase, with what it took."""
    took = f"  {phase.took_seconds:.2f} s" if phase.took_seconds else ""
    yield f"{phase.name:<11} {phase.line}{took}"
    if phase.problem:
        yield f"ERROR       {phase.problem}"
    for one in phase.more:
        yield f"            {one}" if phase.name != "static" else f"  {one}"


def _coverage_lines(coverage: CoverageTold) -> Iterator[str]:
    said_ = [("transitions", coverage.transitions), ("cells", coverage.cells),
             ("transition x fault", coverage.faults), ("sometimes", coverage.marks)]  # fmt: skip
    parts = [f"{name} {touched:,}/{whole:,}" for name, (touched, whole) in said_ if whole]
    yield f"coverage    {'   '.join(parts)}"
    fine = coverage.complete  # up to 2 % of the faults may be missing
    word = "untried" if fine else "MISSING"
    for gap in coverage.gaps[:MISSING_SHOWN]:
        yield f"  {word}   {gap.name}"
        if gap.command and not fine:
            yield f"            {gap.command}"
    if len(coverage.gaps) > MISSING_SHOWN:
        yield f"  and {len(coverage.gaps) - MISSING_SHOWN} more, see --json or --html"
    for name, reason in coverage.excused.items():
        yield f"  excused   {name}: {reason}"


def failure_lines(failure: FailureTold) -> Iterator[str]:
    """A failure: what, the way there with its states, and what to keep."""
    size = f"{len(failure.way)} steps"
    yield f"FAIL {failure.kind}: {failure.rule}  ({size})  found by {failure.phase}"
    yield f"  {failure.problem}"
    skipped = len(failure.way) - 2 * WAY_ENDS_SHOWN
    for number, step in enumerate(failure.way, start=1):
        if skipped > 1 and 0 <= number - WAY_ENDS_SHOWN - 1 < skipped:
            if number == WAY_ENDS_SHOWN + 1:
                yield f"       ... {skipped:,} steps: replay tells them all"
            continue
        yield f"  {number:>3}  {step.text}"
        if step.state:
            yield f"         -> {step.state}"
    yield f"  replay  {failure.command}"


def _goal_lines(data: Told) -> Iterator[str]:
    if not data.reached:
        end = "cannot be reached in this scope" if data.exhausted else "not reached in the budget"
        yield f"until       {data.goal}: {end}"
        return
    yield f"until       {data.goal}: reached in {len(data.reached)} steps"
    for number, step in enumerate(data.reached, start=1):
        yield f"  {number:>3}  {step.text}"
    yield f"  replay  turtles verify {data.machine} --replay {data.reached_token}"


def summary(all_told: Sequence[Told]) -> Iterator[str]:
    """One line for each machine, after several."""
    width = max(len(one.machine) for one in all_told)
    yield ""
    for one in all_told:
        coverage = one.coverage
        covered = "not explored"
        if coverage is not None:
            parts = (coverage.transitions, coverage.cells, coverage.faults, coverage.marks)
            covered = "   ".join(f"{a:,}/{b:,}" for a, b in parts)
        end = "EXHAUSTED" if one.exhausted else "budget over" if coverage else ""
        yield (f"{one.machine:<{width}}  {end:<11}  {covered}   {one.took_seconds:6.1f} s  "
               f"{len(one.failures)} failures  exit {one.exit} ({EXITS[one.exit]})")  # fmt: skip
    yield ("power loss: a matter of the store and not of a machine; docs/verification.md says "
           "how it is tested")  # fmt: skip


# -- programs -------------------------------------------------------------------------------------


def as_json(data: Told) -> dict[str, Any]:
    """The report for programs; the figures of a phase under its name."""
    found: dict[str, Any] = msgspec.to_builtins(data, str_keys=True)
    phases = {
        one.name: {**one.figures, "took_ms": round(one.took_seconds * 1000)}
        | ({"problem": one.problem} if one.problem else {})
        for one in data.phases
    }
    return found | {"phases": phases, "took_ms": round(data.took_seconds * 1000)}


def all_json(all_told: Iterable[Told], exit_code: int) -> dict[str, Any]:
    """Several machines for programs."""
    some = list(all_told)
    return {"exit": exit_code, "machines": [as_json(one) for one in some]}
