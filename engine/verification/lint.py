"""`lint(machines)`: the sixteen static checks, all findings at once.

::

    report = lint([Payment, Confirmation])
    assert report.ok, report.findings

Machines are classes or compiled tables (also such as were changed in memory).  Nothing is run but
guards, contracts, `child=` methods and constructors of contexts and payloads, on small values; a
machine whose code raises is a finding, never the end of the tool.  docs/lint.md lists the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter_ns
from typing import Any

import msgspec

from engine.definition import Machine
from engine.table import Table, compile_table
from engine.verification.static.annotations import check_annotations
from engine.verification.static.children import check_recursion
from engine.verification.static.coding import check_coding
from engine.verification.static.finding import TITLES, Evidence, Finding
from engine.verification.static.guards import check_guards
from engine.verification.static.loops import check_loops
from engine.verification.static.outcomes import check_effects, check_external, check_outcomes
from engine.verification.static.purity import check_purity
from engine.verification.static.raising import check_invariants
from engine.verification.static.shape import (
    check_contracts,
    check_graph,
    check_timers,
    check_waiting,
)
from engine.verification.static.subject import Subject
from engine.verification.static.suppress import check_ignores, divide, ignores_in
from engine.verification.static.watch import TookTooLong, Watch, where_it_hung

Check = Callable[[Subject], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    check_graph,
    check_external,
    check_annotations,
    check_guards,
    check_loops,
    check_waiting,
    check_effects,
    check_outcomes,
    check_invariants,
    check_recursion,
    check_purity,
    check_coding,
    check_timers,
    check_contracts,
)


STEP_SECONDS = 20.0
"""So long one step of a check may take; a check of guards has many."""


class Ignored(msgspec.Struct, frozen=True, kw_only=True):
    """A finding that a comment ignores, with the reason given there."""

    finding: Finding
    reason: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was found: `findings` count, `ignored` do not.

    Args:
        guards: what is known of each pair of guards and of each possible gap, and how.
    """

    machines: tuple[str, ...]
    findings: tuple[Finding, ...]
    ignored: tuple[Ignored, ...]
    took_ms: int
    checks: int = len(TITLES) - 1
    guards: tuple[Evidence, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings of severity error."""
        return tuple(one for one in self.findings if one.severity == "error")

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return not self.errors


def lint(
    machines: Iterable[type[Machine[Any]] | Table],
    *,
    known: Iterable[type[Machine[Any]] | Table] = (),
    prove: bool = True,
) -> Report:
    """Check machines.

    Args:
        machines: those to be checked.
        known: machines that they may start as children, besides one another.
        prove: ask z3, if it is installed, what small values leave open about guards.
    """
    began_ns = perf_counter_ns()
    tables = [_table(one) for one in machines]
    names = {table.name: table for table in (*(_table(one) for one in known), *tables)}
    subjects = [Subject(table, names, prove=prove) for table in tables]
    found = _without_repeats(one for s in subjects for check in CHECKS for one in _made(check, s))
    files = dict.fromkeys([*(s.file for s in subjects), *(f.file for f in found)])
    ignores = [one for file in files for one in ignores_in(file)]
    kept, ignored = divide(found, ignores)
    kept += [one for subject in subjects for one in check_ignores(subject, ignores)]
    return Report(
        machines=tuple(table.name for table in tables),
        findings=tuple(sorted(kept, key=lambda one: one.order)),
        ignored=tuple(
            Ignored(finding=one, reason=reason)
            for one, reason in sorted(ignored, key=lambda pair: pair[0].order)
        ),
        took_ms=(perf_counter_ns() - began_ns) // 1_000_000,
        guards=tuple(one for subject in subjects for one in subject.evidence),
    )


def unhandled(table: Table, known: Iterable[type[Machine[Any]] | Table]) -> dict[str, str]:
    """States that do not handle all that their effect may give, and why their author says so."""
    subject = Subject(table, {t.name: t for t in (*map(_table, known), table)}, prove=False)
    found = list(_made(check_outcomes, subject))
    _, ignored = divide(found, ignores_in(subject.file))
    return {one.state: reason for one, reason in ignored if one.code == "V011" and one.state}


def _made(check: Check, subject: Subject) -> Iterator[Finding]:
    """A check's findings; one that the machine's code breaks off is a finding itself."""
    watch = Watch(limit_seconds=STEP_SECONDS)
    subject.again = watch.again
    found: list[Finding] = []
    try:
        watch.run(lambda: found.extend(check(subject)))
    except TookTooLong as error:
        file, line, name = where_it_hung(error)
        found.append(subject.at_line("V000", "error", file, line,
            f"{check.__name__} could not be finished: {name or 'the code'} did not come back "
            f"within {STEP_SECONDS:g} s", "Let it end for all values",
            method="checked"))  # fmt: skip
    except Exception as error:  # noqa: BLE001 - code of the machine, in a place not foreseen
        trace = error.__traceback__
        while trace and trace.tb_next:
            trace = trace.tb_next
        file = trace.tb_frame.f_code.co_filename if trace else ""
        found.append(subject.at_line("V000", "error", file, trace.tb_lineno if trace else 0,
            f"{check.__name__} could not be finished: {type(error).__name__}: {error}",
            "Correct the machine's code there; if it is not the machine's, report this",
            method="checked"))  # fmt: skip
    yield from found


def _table(machine: type[Machine[Any]] | Table) -> Table:
    return machine if isinstance(machine, Table) else compile_table(machine)


def _without_repeats(findings: Iterable[Finding]) -> list[Finding]:
    """A helper or payload that several machines share is told once."""
    found: dict[Any, Finding] = {}
    for one in findings:
        shared = one.state is None and one.edge is None
        key = (one.code, one.file, one.line, one.problem, None if shared else one.machine, one.edge)
        found.setdefault(key, one)
    return list(found.values())
