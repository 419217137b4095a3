"""A verification as plain data: what `report`, `junit` and `page` print.

Plain data crosses processes (`verify --all` uses one for each core), and all forms say the same.
"""

from __future__ import annotations

import platform
import sqlite3
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from engine.verification import mutants as mutation
from engine.verification.coverage import (
    Coverage,
    Fault,
    Transition,
    cell_named,
    fault_named,
    named,
)
from engine.verification.result import Report, Scope
from engine.verification.schedules import ScheduleFailure, ScheduleReport
from engine.verification.sequences import SequencesReport
from engine.verification.tokens import (
    diagram,
    named_environment,
    pytest_file,
    said,
    said_with_states,
    token_of,
    token_of_way,
)
from engine.verification.trouble import Trouble
from engine.verification.verify import Doubled, Found, Verification


class Versions(msgspec.Struct, frozen=True):
    """What did the verifying."""

    turtles: str
    python: str
    sqlite: str


class StepTold(msgspec.Struct, frozen=True):
    """A step, and where the runs are after it if that has changed."""

    text: str
    state: str


class FailureTold(msgspec.Struct, frozen=True, kw_only=True):
    """A failure with everything to keep of it.

    Args:
        command: goes its way again.
        diagram: Mermaid.
        test: a pytest file.
        steps: the steps themselves; () for an interleaving, which the token holds.
    """

    phase: str
    kind: str
    rule: str
    problem: str
    way: tuple[StepTold, ...]
    steps: tuple[Any, ...]
    found_after_ms: int
    token: str
    command: str
    diagram: str
    test: str


class Gap(msgspec.Struct, frozen=True):
    """Something that was not touched, and a command that leads there, if one does."""

    kind: str
    name: str
    command: str


class CoverageTold(msgspec.Struct, frozen=True, kw_only=True):
    """What was touched: (touched, all) of each kind; `matrix` has one text for each state.

    A letter of it is an event: `#` applied there, `r` refused there, `e` excused, `.` missing.
    """

    transitions: tuple[int, int]
    cells: tuple[int, int]
    faults: tuple[int, int]
    marks: tuple[int, int]
    complete: bool
    gaps: tuple[Gap, ...]
    excused: dict[str, str]
    states: tuple[str, ...]
    events: tuple[str, ...]
    matrix: tuple[str, ...]
    missing_transitions: tuple[Transition, ...]
    missing_cells: tuple[tuple[str, str], ...]
    missing_faults: tuple[str, ...]
    missing_marks: tuple[str, ...]


class PhaseTold(msgspec.Struct, frozen=True, kw_only=True):
    """One phase: a line of what it did, further lines, and its figures."""

    name: str
    line: str
    more: tuple[str, ...] = ()
    took_seconds: float = 0.0
    figures: dict[str, Any] = {}
    problem: str = ""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A verification as plain data."""

    machine: str
    fingerprint: str
    seed: int
    versions: Versions
    budget_seconds: float
    took_seconds: float
    exit: int
    environment: str
    exhausted: bool
    mismatches: int
    phases: tuple[PhaseTold, ...]
    coverage: CoverageTold | None
    failures: tuple[FailureTold, ...]
    troubles: tuple[Trouble, ...]
    notes: tuple[str, ...]
    reached: tuple[StepTold, ...] = ()
    reached_token: str = ""
    goal: str = ""


def told(verification: Verification, *, subject: str = "") -> Told:
    """A verification as plain data.

    Args:
        subject: how the machine is named on a command line; by default its name.
    """
    found, subject = verification, subject or verification.table.name
    coverage = found.coverage if found.until is None else None
    reached = found.scope.reached if found.scope is not None else None
    return Told(
        machine=found.table.name,
        fingerprint=found.table.fingerprint,
        seed=found.seed,
        versions=versions(),
        budget_seconds=found.budget_seconds,
        took_seconds=found.took_seconds,
        exit=found.exit_code,
        environment=named_environment(found.environment),
        exhausted=found.exhausted,
        mismatches=found.mismatches,
        phases=tuple(_phases(found)),
        coverage=_coverage(coverage, subject) if coverage is not None else None,
        failures=tuple(_failure(found, one, subject) for one in found.found),
        troubles=tuple(found.troubles),
        notes=tuple(_notes(found)),
        goal=named(found.until) if found.until else "",
        reached=tuple(StepTold(said(step), "") for step in reached or ()),
        reached_token=token_of_way(found.table, reached, named(found.until), found.environment)
        if reached and found.until else "",
    )  # fmt: skip


def versions() -> Versions:
    """What does the verifying here."""
    try:
        turtles = version("turtles")
    except PackageNotFoundError:
        turtles = "from source"
    return Versions(turtles, platform.python_version(), sqlite3.sqlite_version)


# -- the parts ------------------------------------------------------------------------------------


def _phases(found: Verification) -> Iterator[PhaseTold]:
    troubles = {one.phase: one for one in found.troubles}
    makers: dict[str, tuple[Any, Any]] = {
        "static": (found.static, _static),
        "scope": (found.scope, lambda report: _scope(report, found)),
        "random": (found.random, _random),
        "schedules": (found.schedules, _schedules),
        "mutants": (found.mutants, _mutants),
        "doublecheck": (found.doubled, _doubled),
    }
    for phase in found.phases:
        report, make = makers[phase]
        if report is not None:
            yield make(report)
        elif phase in troubles:
            yield PhaseTold(name=phase, line="could not be finished",
                            problem=_of_trouble(troubles[phase]))  # fmt: skip
        else:
            line = "not begun, see above" if troubles else "no time was left"
            yield PhaseTold(name=phase, line=line)


def _of_trouble(trouble: Trouble) -> str:
    return f"{trouble.where}: {trouble.problem}" if trouble.where else trouble.problem


def _static(report: Any) -> PhaseTold:
    errors = len(report.errors)
    more = []
    for one in report.findings:
        where = one.edge or one.state or ""
        more.append(f"{one.code} {one.severity:<7} {_short(one.file)}:{one.line}  {where}")
        more.append(f"     {one.problem}. {one.remedy}.")
    warnings, ignored = len(report.findings) - errors, len(report.ignored)
    return PhaseTold(
        name="static",
        line=f"{report.checks} checks  {errors} errors  {warnings} warnings"
        + (f"  {ignored} ignored" if ignored else ""),
        more=tuple(more),
        took_seconds=report.took_ms / 1000,
        figures={"errors": errors, "warnings": warnings, "ignored": ignored,
                 "findings": msgspec.to_builtins(report.findings, enc_hook=repr, str_keys=True)},
    )  # fmt: skip


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file


def _scope(report: Report, found: Verification) -> PhaseTold:
    rate = report.executions / max(report.took_seconds, 0.001)
    end = "EXHAUSTED" if report.exhausted else f"BUDGET OVER, {report.left:,} states left"
    if report.reached:
        end = "REACHED"
    excused = "  with stand-ins for " + ", ".join(report.stand_ins) if report.stand_ins else ""
    where = type(found.environment).__name__ if found.environment else "small values"
    more = [
        f"{where}{excused}",
        f"states {report.states:,}  executions {report.executions:,}  depth {report.depth}  "
        f"deaths {report.deaths:,}  commits {report.commits:,}  {rate:,.0f}/s",
        f"{report.repeated} ways gone again from the start, {len(report.mismatches)} mismatches",
    ]
    if report.complete_after_seconds is not None:
        more.append(f"everything was covered after {report.complete_after_seconds:.1f} s")
    return PhaseTold(
        name="scope", line=f"{_bounds(report)}  {end}", more=tuple(more),
        took_seconds=report.took_seconds,
        figures={
            **msgspec.to_builtins(report.scope), "contexts_used": report.contexts,
            "exhausted": report.exhausted, "left": report.left, "states": report.states,
            "executions": report.executions, "commits": report.commits, "deaths": report.deaths,
            "depth": report.depth, "repeated": report.repeated, "digest": report.digest,
            "mismatches": len(report.mismatches), "stand_ins": report.stand_ins,
            "complete_after_seconds": report.complete_after_seconds,
        },
    )  # fmt: skip


def _bounds(report: Report) -> str:
    return f"{report.contexts} first contexts, {_scope_said(report.scope)}"


def _scope_said(scope: Scope) -> str:
    parts = [f"{scope.messages} messages x2 copies"]
    parts.append("one cancel" if scope.cancels else "no cancel")
    parts += ["one pause"] if scope.pauses else []
    parts.append("crashes unlimited" if scope.faults else "no faults")
    return ", ".join(parts)


def _random(report: SequencesReport) -> PhaseTold:
    rate = report.sequences / max(report.took_seconds, 0.001)
    return PhaseTold(
        name="random",
        line=f"{report.sequences:,} sequences  {report.steps:,} steps  crash {report.crashes:,}  "
        f"dup {report.duplicates:,}  lost {report.lost:,}  {rate:,.0f} seq/s",
        more=(f"{report.repeated} ways gone again from the start, "
              f"{len(report.mismatches)} mismatches",) if report.mismatches else (),
        took_seconds=report.took_seconds,
        figures={
            "sequences": report.sequences, "steps": report.steps, "commits": report.commits,
            "crashes": report.crashes, "lost": report.lost, "duplicates": report.duplicates,
            "finished": report.finished, "repeated": report.repeated,
            "mismatches": len(report.mismatches),
        },
    )  # fmt: skip


def _schedules(report: ScheduleReport) -> PhaseTold:
    by = ", ".join(f"{name} {count:,}" for name, count in sorted(report.by_strategy.items()))
    figures = report.figures
    return PhaseTold(
        name="schedules",
        line=f"{report.workers} workers, {report.distinct:,} interleavings ({by})  "
        f"zombies {figures.zombies:,}  deaths {figures.deaths:,}",
        more=(f"{report.repeated} schedules played again, {len(report.mismatches)} mismatches",)
        if report.mismatches else (),
        took_seconds=report.took_seconds,
        figures={
            "workers": report.workers, "runs": report.runs, "schedules": report.schedules,
            "distinct": report.distinct, "switches": report.switches,
            "by_strategy": report.by_strategy, "repeated": report.repeated,
            "mismatches": len(report.mismatches), **_numbers(figures),
        },
    )  # fmt: skip


def _numbers(figures: Any) -> dict[str, int]:
    names = ("calls", "commits", "lost", "zombies", "deaths", "duplicates", "unfinished")
    return {name: getattr(figures, name) for name in names}


def _mutants(report: Any) -> PhaseTold:
    head, *more = mutation.lines(report)
    line = head.removeprefix("mutants").strip().removeprefix(f"{report.machine}: ")
    return PhaseTold(name="mutants", line=line.rpartition("  ")[0], more=tuple(more),
                     took_seconds=report.took_seconds,
                     figures=mutation.as_json(report))  # fmt: skip


def _doubled(doubled: Doubled) -> PhaseTold:
    (states, executions, digest), second = doubled.first, doubled.second
    if second is None:
        end = "NO TIME for the second"
    else:
        other = f"{second[0]:,} states, {second[1]:,} executions, digest {second[2]:08x}"
        end = "alike" if doubled.alike else f"DIFFERENT: {other}"
    return PhaseTold(
        name="doublecheck",
        line=f"{states:,} states, {executions:,} executions, digest {digest:08x}, twice: {end}",
        more=(_scope_said(doubled.scope),),
        took_seconds=doubled.took_seconds,
        figures=msgspec.to_builtins(doubled) | {"alike": doubled.alike},
    )  # fmt: skip


def _coverage(coverage: Coverage, subject: str) -> CoverageTold:
    no_edges, no_cells = coverage.missing_transitions, coverage.missing_cells
    no_faults, no_marks = coverage.missing_faults, coverage.missing_marks
    edges, cells, faults = coverage.all_transitions, coverage.all_cells, coverage.all_faults
    return CoverageTold(
        transitions=(len(edges) - len(no_edges), len(edges)),
        cells=(len(cells) - len(no_cells), len(cells)),
        faults=(len(faults) - len(no_faults), len(faults)),
        marks=(len(coverage.marks) - len(no_marks), len(coverage.marks)),
        complete=coverage.complete,
        gaps=tuple(_gaps(coverage, subject)),
        excused=coverage.excused,
        states=tuple(coverage.table.places),
        events=tuple(coverage.table.events),
        matrix=tuple(_matrix(coverage)),
        missing_transitions=tuple(no_edges),
        missing_cells=tuple(no_cells),
        missing_faults=tuple(map(fault_named, no_faults)),
        missing_marks=tuple(no_marks),
    )


def _matrix(coverage: Coverage) -> Iterator[str]:
    table = coverage.table
    applied = {(source, event) for source, event, _ in coverage.transitions}
    for state in table.places:
        row = ""
        for event in table.events:
            cell = (state, event)
            excused = cell_named(cell) in coverage.reasons
            missing = "e" if excused else "."
            row += "#" if cell in applied else "r" if cell in coverage.cells else missing
        yield row


def _gaps(coverage: Coverage, subject: str) -> Iterator[Gap]:
    open_ = coverage.missing_transitions
    for transition in open_:
        yield Gap("transition", named(transition), _drive(subject, transition))
    for cell in coverage.missing_cells:
        into = next((one for one in coverage.all_transitions if one[2] == cell[0]), None)
        yield Gap("cell", cell_named(cell), _drive(subject, into) if into else "")
    seldom: list[Fault] = [one for one in coverage.missing_faults if one[0] not in open_]
    for fault in seldom:
        yield Gap("fault", fault_named(fault), _drive(subject, fault[0]))
    for mark in coverage.missing_marks:
        yield Gap("sometimes", f"sometimes {mark}", "")


def _drive(subject: str, transition: Transition) -> str:
    return f'turtles verify {subject} --until-edge "{named(transition)}"'


def _failure(found: Verification, one: Found, subject: str) -> FailureTold:
    failure = one.failure
    kind: str = "safety"
    steps: tuple[Any, ...] = ()
    token = token_of(found.table, failure, found.environment)
    if isinstance(failure, ScheduleFailure):
        way = [(f"{actor}: {done}", "") for actor, done in failure.trace]
    else:
        way = said_with_states(failure.steps, one.states)
        kind, steps = failure.kind, failure.steps
    problem = failure.problem
    if failure.rule == "replay":
        problem += (". The same decision made again came out differently: a guard, contract or "
                    "action is not a function of its arguments (not deterministic)")  # fmt: skip
    return FailureTold(
        phase=one.phase, kind=kind, rule=failure.rule, problem=problem,
        way=tuple(StepTold(*step) for step in way), steps=steps,
        found_after_ms=failure.found_after_ms, token=token,
        command=f"turtles verify {subject} --replay {token}",
        diagram=diagram(failure),
        test=pytest_file(found.table, failure, found.known, found.environment),
    )  # fmt: skip


def _notes(found: Verification) -> Iterator[str]:
    for report in (found.scope, found.random):
        if report is not None:
            yield from report.notes
    if found.environment is None and found.scope is not None:
        yield ("no environment is defined for this machine: payloads and first contexts are small "
               "values (docs/verification.md, Environments)")  # fmt: skip
    yield from _vain_reasons(found)
    if found.mismatches:
        yield ("NOT DETERMINISTIC: a way gone again from its start ended elsewhere. A guard, a "
               "contract or an action looks at something else than its arguments, or turtles has "
               "a defect: `turtles lint` (V013) tells them apart")  # fmt: skip


def _vain_reasons(found: Verification) -> Iterator[str]:
    """Reasons of an environment for gaps that there cannot be; a misspelt name excuses nothing."""
    coverage = found.coverage
    if coverage is None:
        return
    names = {named(one) for one in coverage.all_transitions}
    names |= {cell_named(one) for one in coverage.all_cells}
    names |= {fault_named(one) for one in coverage.all_faults}
    for name in coverage.reasons:
        if name not in names:
            yield f"reasons: {name!r} is none of the transitions, cells and faults"
