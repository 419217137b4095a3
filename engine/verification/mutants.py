"""Mutation of tables: would anything notice if the machine were wrong?

::

    for mutant in mutants_of(compile_table(Payment)):
        mutant.table        # the machine with exactly one thing changed, in memory
        mutant.where        # file:line of what was changed

    report = mutate(Payment, lambda: open_store("sqlite://"), environment=PaymentOutside())
    print("\\n".join(lines(report)))

A mutant is killed by what notices it: `lint` finds an error that the original does not have, or an
exploration ends with a failure, or no longer takes a transition, that the original's does not.
The survivors are what the machine could get wrong without anybody noticing: each names the contract
or the test that is missing.  (`python -m tests.verification.mutants` runs a machine's own tests
against its mutants too.)

What is changed, one thing at a time:

    edge-removed, target, action-dropped, guard-dropped, guard-negated, guard-false, guards-swapped
    timeout-removed, timeout-doubled, on_timeout, on_exhausted, on_exhausted-removed,
    on_child_moved-removed, cancellable, milestone, failure, follows-child, compensation, undoes,
    idempotent
    contract-dropped (requires), contract-negated, contract-part-negated (ensures, invariants)
    comparison, arithmetic, logic, constant: in the code of guards, actions, contracts, durations,
    `child=`, `output` and the helpers that these call in the machine's module

Postconditions and invariants are treated the other way round, because a machine that is right
behaves alike without them: they are negated, whole and in parts, and drawn closer, and somewhere
that must show.  Which of them notice no mutant at all is told as `idle`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from time import perf_counter
from typing import Any, Literal

import msgspec

from engine.definition import Machine
from engine.ports import Store
from engine.table import Table, compile_table
from engine.verification.environment import Environment
from engine.verification.explore import explore
from engine.verification.lint import lint
from engine.verification.mutating.code import code_mutants
from engine.verification.mutating.mutant import Mutant
from engine.verification.mutating.structure import Structure
from engine.verification.result import Report

By = Literal["lint", "exploration", "tests", "equivalent", "survived"]
WAYS: tuple[By, ...] = ("lint", "exploration", "tests")


class Fate(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one mutant.

    Args:
        by: what noticed it; `equivalent` if nothing could, `survived` if nothing did.
        evidence: the finding, failure or test that noticed it, or why it is equivalent.
        missing: for a survivor, which contract or test would notice it.
    """

    machine: str
    name: str
    kind: str
    where: str
    says: str
    by: By
    evidence: str = ""
    missing: str = ""


class MutationReport(msgspec.Struct, frozen=True, kw_only=True):
    """The mutants of one machine.

    Args:
        idle: postconditions and invariants that noticed no mutant but those of themselves.
        notes: what limits the figures.
    """

    machine: str
    fates: tuple[Fate, ...]
    idle: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    took_seconds: float = 0.0

    @property
    def survivors(self) -> tuple[Fate, ...]:
        """The mutants that nothing noticed."""
        return tuple(one for one in self.fates if one.by == "survived")

    @property
    def killed(self) -> int:
        """How many were noticed."""
        return sum(one.by in WAYS for one in self.fates)

    @property
    def judged(self) -> int:
        """How many could have been noticed."""
        return sum(one.by != "equivalent" for one in self.fates)


def mutants_of(table: Table, *, kinds: Collection[str] | None = None) -> Iterator[Mutant]:
    """Every mutant of a machine, in a fixed order, names unique.

    Args:
        kinds: only these, see the module.
    """
    seen: Counter[str] = Counter()
    for mutant in _all(table):
        seen[mutant.name] += 1
        if seen[mutant.name] > 1:
            mutant = replace(mutant, name=f"{mutant.name} #{seen[mutant.name]}")
        if kinds is None or mutant.kind in kinds:
            yield mutant


def _all(table: Table) -> Iterator[Mutant]:
    yield from Structure(table).mutants()
    yield from code_mutants(table)


class Linted:
    """Says what `lint` finds in a mutant and not in the original."""

    def __init__(self, table: Table, known: Iterable[type[Machine[Any]]] = ()) -> None:
        self._known = tuple(known)
        self._before = self._errors(table)

    def finds(self, mutant: Mutant) -> str | None:
        """The first new error, as `V001 settled: cannot be reached`."""
        new = [e for e in self._errors(mutant.table) if e not in self._before]
        return new[0] if new else None

    def _errors(self, table: Table) -> list[str]:
        known = [m for m in self._known if m is not table.machine]
        found = lint([table], known=known).errors
        return [f"{e.code} {e.edge or e.state or e.machine}: {e.problem}" for e in found]


class Explored:
    """Says what an exploration of a mutant shows and that of the original does not."""

    def __init__(
        self,
        table: Table,
        store_factory: Callable[[], Store],
        *,
        known: Iterable[type[Machine[Any]]] = (),
        environment: Environment | None = None,
        budget_seconds: float = 1.0,
    ) -> None:
        self._options: dict[str, Any] = {"known": tuple(known), "environment": environment}
        self._store_factory = store_factory
        self._budget_seconds = budget_seconds
        self.original = self._explore(table, budget_seconds * 10, first_failure=False)
        self._known = {failure.rule for failure in self.original.failures}

    def finds(self, mutant: Mutant) -> str | None:
        """The first failure, or a transition that is not taken any more."""
        try:
            report = self._explore(mutant.table, self._budget_seconds, first_failure=True)
        except Exception as error:  # noqa: BLE001 - the mutant's code may raise whatever it likes
            return f"exploration: {type(error).__name__}: {error}"
        new = [one for one in report.failures if one.rule not in self._known]
        if new:
            return f"{new[0].rule}: {new[0].problem}"
        return self._lost(report) if report.exhausted and self.original.exhausted else None

    def _lost(self, report: Report) -> str | None:
        """What of the mutant is never taken or reached, and was in the original."""
        before, after = self.original.coverage, report.coverage
        for source, event, target in after.missing_transitions:
            if (source, event, target) not in before.missing_transitions:
                return f"{source} --{event}--> {target} is never taken"
        for state in after.table.places:
            if state in before.visited and state not in after.visited:
                return f"{state} is not reached any more"
        return None

    def _explore(self, table: Table, budget_seconds: float, *, first_failure: bool) -> Report:
        store = self._store_factory()
        try:
            return explore(table, store, budget_seconds=budget_seconds,
                           first_failure=first_failure, **self._options)  # fmt: skip
        finally:
            store.close()


def mutate(
    machine: type[Machine[Any]] | Table,
    store_factory: Callable[[], Store],
    *,
    known: Iterable[type[Machine[Any]]] = (),
    environment: Environment | None = None,
    budget_seconds: float = 1.0,
    kinds: Collection[str] | None = None,
    each: Callable[[Fate], None] | None = None,
) -> MutationReport:
    """Change a machine in every small way, and see whether lint or exploration notice.

    Args:
        machine: the machine, or what it compiles to.
        store_factory: makes stores in memory: `lambda: open_store("sqlite://")`.
        known: machines that it may start as children.
        environment: what its outside may do; by default the one defined for it.
        budget_seconds: for the exploration of one mutant; the original has ten times as much.
        kinds: only these kinds of mutants.
        each: called with every fate as soon as it is known.

    Raises:
        UsageError: the budget is not positive, or the store is a file.
    """
    began = perf_counter()
    table = machine if isinstance(machine, Table) else compile_table(machine)
    known = tuple(known)
    linted = Linted(table, known)
    explored = Explored(table, store_factory, known=known, environment=environment,
                        budget_seconds=budget_seconds)  # fmt: skip
    fates = []
    for mutant in mutants_of(table, kinds=kinds):
        fates.append(_fate(table, mutant, linted, explored))
        if each is not None:
            each(fates[-1])
    return MutationReport(
        machine=table.name,
        fates=tuple(fates),
        notes=tuple(_notes(explored.original)),
        took_seconds=perf_counter() - began,
    )


def _fate(table: Table, mutant: Mutant, linted: Linted, explored: Explored) -> Fate:
    evidence = linted.finds(mutant)
    if evidence is not None:
        return fate(table.name, mutant, "lint", evidence)
    evidence = explored.finds(mutant)
    if evidence is not None:
        return fate(table.name, mutant, "exploration", evidence)
    return fate(table.name, mutant, "survived")


def _notes(original: Report) -> Iterator[str]:
    if original.failures:
        rules = ", ".join(sorted({one.rule for one in original.failures}))
        yield f"the machine itself fails ({rules}); such failures of a mutant say nothing"
    if not original.exhausted:
        yield "the exploration of the machine was not exhausted; what it misses, mutants may do"


def fate(machine: str, mutant: Mutant, by: By, evidence: str = "") -> Fate:
    """What became of a mutant; a survivor is told with what is missing."""
    missing = mutant.missing if by == "survived" else ""
    return Fate(machine=machine, name=mutant.name, kind=mutant.kind, where=mutant.where,
                says=mutant.says, by=by, evidence=evidence, missing=missing)  # fmt: skip


def lines(report: MutationReport) -> list[str]:
    """The report as text: one line of figures, then every survivor with what is missing."""
    counts = Counter(one.by for one in report.fates)
    by = ", ".join(f"{counts[way]} by {way}" for way in WAYS if counts[way])
    percent = 100 * report.killed // report.judged if report.judged else 100
    told = [
        f"mutants     {report.machine}: {report.killed} of {report.judged} killed ({percent} %)"
        + (f": {by}" if by else "")
        + (f"; {counts['equivalent']} equivalent" if counts["equivalent"] else "")
        + f"  {report.took_seconds:.1f} s"
    ]
    told += [f"  {one.where}  {one.name}\n      {one.missing}" for one in report.survivors]
    if report.idle:
        told.append(f"  contracts that noticed no mutant: {', '.join(report.idle)}")
    return told + [f"  note: {note}" for note in report.notes]


def as_json(report: MutationReport) -> dict[str, Any]:
    """The report as plain data."""
    found: dict[str, Any] = msgspec.to_builtins(report)
    return found | {"killed": report.killed, "judged": report.judged}


__all__ = ["Fate", "Mutant", "MutationReport", "as_json", "lines", "mutants_of", "mutate"]
