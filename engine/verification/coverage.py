"""What an exploration has touched, and what it has not.

::

    transition    (state, event, target)
    cell          a state with an event: applied or refused there
    fault         a transition with something that goes wrong at it, by who sends its event:

        anybody       the worker dies just after its commit
        outside       the worker dies with the event in hand; the event comes twice
        the engine    the worker dies with the timer or the child's end in hand
        an effect     the call is done and the worker dies, or its answer is lost, or the run is
                      lost to another worker meanwhile

    sometimes     the marks of the environment
    contract      a transition with a precondition, postcondition or invariant judged at it
    oracle        a state with an oracle asked in it (no gap is told of these two: counted only)

Counted for the machine explored; its children have their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.decide import Decision
from engine.table import Table
from engine.verification.outside import outcome_events
from engine.verification.static.subject import sent_by_engine

Cell = tuple[str, str]
Transition = tuple[str, str, str]
Fault = tuple[Transition, str]

DIED_AFTER = "dies after it"
DIED_BEFORE = "dies before it"
TWICE = "event twice"
CALL_FAULTS = {"died": "dies in the call", "lost": "answer lost", "zombie": "run lost"}


@dataclass
class Coverage:
    """What was touched of one machine.

    Args:
        marks: names of the environment's `sometimes`.
        reasons: gaps that cannot be closed, as `named`, with the reason; they count as covered.
    """

    table: Table
    marks: Sequence[str] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    transitions: set[Transition] = field(default_factory=set)
    cells: set[Cell] = field(default_factory=set)
    visited: set[str] = field(default_factory=set)
    faults: set[Fault] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    contracts: set[tuple[Transition, str]] = field(default_factory=set)
    judgements: int = 0
    oracles: set[tuple[str, str]] = field(default_factory=set)
    answers: int = 0

    def __post_init__(self) -> None:
        self.all_faults = list(self._faults())
        self._known = set(self.all_faults)

    def moved(self, decision: Decision) -> None:
        """A transition of any machine."""
        entry = decision.entry
        if decision.after.machine == self.table.name:
            transition = (entry.source, entry.event, entry.target)
            self.transitions.add(transition)
            self.cells.add((entry.source, entry.event))
            self.visited.add(entry.target)
            judged = [one.clause for one in entry.verdicts if one.kind != "guard"]
            self.judgements += len(judged)
            self.contracts.update((transition, clause) for clause in judged)

    def refused(self, machine: str, state: str, event: str) -> None:
        """An event that a run did not take."""
        if machine == self.table.name:
            self.cells.add((state, event))

    def asked(self, state: str, oracles: Iterable[str]) -> None:
        """Oracles that were asked while a run was in a state."""
        asked = [(oracle, state) for oracle in oracles]
        self.answers += len(asked)
        self.oracles.update(asked)

    def failed(self, transition: Transition, fault: str) -> None:
        """Something went wrong at a transition."""
        if (transition, fault) in self._known:
            self.faults.add((transition, fault))

    def lacks(self, transition: Transition, fault: str) -> bool:
        """Whether this has still to be tried."""
        one = (transition, fault)
        return one in self._known and one not in self.faults

    @property
    def all_transitions(self) -> list[Transition]:
        """Every transition of the machine, in the order of declaration."""
        edges = self.table.all_edges()
        return list(dict.fromkeys((e.source, e.event, e.target) for e in edges))

    @property
    def all_cells(self) -> list[Cell]:
        """Every state with every event of the machine."""
        return [(state, event) for state in self.table.places for event in self.table.events]

    def _faults(self) -> list[Fault]:
        found: list[Fault] = []
        for transition in self.all_transitions:
            state, event, _ = transition
            place = self.table.places[state]
            found.append((transition, DIED_AFTER))
            if event in sent_by_engine(place):
                if event != place.on_exhausted:  # decided at the end of an attempt, in one breath
                    found.append((transition, DIED_BEFORE))
            elif place.effect and event in outcome_events(self.table, state, place.effect):
                found += [(transition, fault) for fault in CALL_FAULTS.values()]
            else:
                found += [(transition, DIED_BEFORE), (transition, TWICE)]
        return found

    @property
    def missing_transitions(self) -> list[Transition]:
        """Those never taken."""
        return [
            one
            for one in self.all_transitions
            if one not in self.transitions and named(one) not in self.reasons
        ]

    @property
    def missing_cells(self) -> list[Cell]:
        """Those never tried."""
        return [
            one
            for one in self.all_cells
            if one not in self.cells and cell_named(one) not in self.reasons
        ]

    @property
    def missing_faults(self) -> list[Fault]:
        """Those never tried."""
        return [
            one
            for one in self.all_faults
            if one not in self.faults
            and named(one[0]) not in self.reasons
            and fault_named(one) not in self.reasons
        ]

    @property
    def missing_marks(self) -> list[str]:
        """Those never seen."""
        return [one for one in self.marks if one not in self.seen]

    @property
    def complete(self) -> bool:
        """Whether every transition, cell and mark was touched, and 98 % of the faults."""
        enough = 100 * len(self.missing_faults) <= 2 * len(self.all_faults)
        gaps = self.missing_transitions or self.missing_cells or self.missing_marks
        return not gaps and enough

    @property
    def excused(self) -> dict[str, str]:
        """The reasons that were needed."""
        open_ = {named(one) for one in self.all_transitions if one not in self.transitions}
        open_ |= {cell_named(one) for one in self.all_cells if one not in self.cells}
        open_ |= {fault_named(one) for one in self.all_faults if one not in self.faults}
        return {name: why for name, why in self.reasons.items() if name in open_}


def named(transition: Transition) -> str:
    """`paying --spent--> confirming`."""
    source, event, target = transition
    return f"{source} --{event}--> {target}"


def cell_named(cell: Cell) -> str:
    """`spent in paying`."""
    return f"{cell[1]} in {cell[0]}"


def fault_named(fault: Fault) -> str:
    """`paying --spent--> confirming x dies before it`."""
    return f"{named(fault[0])} x {fault[1]}"
