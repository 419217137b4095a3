"""What one machine was checked for, by exploring it in its environment."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import perf_counter

import msgspec

from engine.cli.verifying import cores
from engine.errors import UsageError
from engine.table import compile_table
from engine.verification.environment import environment_of
from engine.verification.mutants import Explored, Linted, mutants_of
from engine.verification.result import Report
from persistence.store import open_store

SEED = 20261123
MUTANT_SHARE = 0.4
ORIGINAL_FACTOR = 10
"""How much longer than a mutant the original may be explored (`Explored`)."""


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """The checks of one machine; see the package for what is one.

    Attributes:
        judgements: how often a contract was judged.
        answers: how often an oracle was asked.
        broken: what did not hold.
        mutants, killed: a sample of machines that are wrong in one thing, and how many of them an
            exploration or lint noticed.
    """

    machine: str
    contracts: int
    cells: int
    faults: int
    oracles: int
    judgements: int
    answers: int
    states: int
    transitions: int
    executions: int
    exhausted: bool
    mutants: int
    killed: int
    broken: tuple[str, ...]
    took_seconds: float

    @property
    def checks(self) -> int:
        """Those that were asked once at least."""
        return self.contracts + self.cells + self.faults + self.oracles


def count_all(names: Sequence[str], budget_seconds: float) -> dict[str, Counted]:
    """Count for every machine, on all cores.

    Args:
        budget_seconds: for all together, about; two fifths of it for mutants.

    Raises:
        UsageError: there is no such machine.
    """
    processes = min(cores(), len(names))
    mutant_seconds = MUTANT_SHARE * budget_seconds * processes / len(names)
    share = (budget_seconds / 6, mutant_seconds)
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        found = pool.map(count, names, *([one] * len(names) for one in share))
        return {one.machine: one for one in found}


def count(name: str, explore_seconds: float, mutant_seconds: float) -> Counted:
    """Explore one machine, to its end if there is time, and some of its mutants.

    Args:
        explore_seconds, mutant_seconds: at most; most machines need a few seconds.
    """
    from machines import environments  # noqa: F401 - importing them registers them
    from machines.app import MACHINES

    began = perf_counter()
    machine = next((one for one in MACHINES if one.__name__ == name), None)
    if machine is None:
        raise UsageError(f"machine {name!r}: there is none of that name")
    table, environment = compile_table(machine), environment_of(machine)
    others = [one for one in MACHINES if one is not machine]
    explored = Explored(
        table,
        lambda: open_store("sqlite://"),
        known=others,
        environment=environment,
        budget_seconds=explore_seconds / ORIGINAL_FACTOR,
    )
    report = explored.original
    last = perf_counter() + mutant_seconds
    mutants, killed = _sample(explored, Linted(table, others), last)
    coverage = report.coverage
    return Counted(
        machine=name,
        contracts=len(coverage.contracts),
        cells=len(coverage.cells.intersection(coverage.all_cells)),
        faults=len(coverage.faults),
        oracles=len(coverage.oracles),
        judgements=coverage.judgements,
        answers=coverage.answers,
        states=report.states,
        transitions=len(coverage.transitions.intersection(coverage.all_transitions)),
        executions=report.executions,
        exhausted=report.exhausted,
        mutants=mutants,
        killed=killed,
        broken=tuple(_broken(report)),
        took_seconds=perf_counter() - began,
    )


def _sample(explored: Explored, linted: Linted, last: float) -> tuple[int, int]:
    """(mutants tried, mutants noticed) until the time is over, in an order of chance."""
    mutants = list(mutants_of(explored.original.table))
    random.Random(SEED).shuffle(mutants)  # noqa: S311 - which are tried
    tried = killed = 0
    for mutant in mutants:
        if perf_counter() > last:
            break
        tried += 1
        killed += bool(linted.finds(mutant) or explored.finds(mutant))
    return tried, killed


def _broken(report: Report) -> list[str]:
    found = [f"{one.rule}: {one.problem}" for one in report.failures]
    return found + ["two ways to one state differ"] * bool(report.mismatches)
