"""What an exploration has touched, and what it has not.

A transition is (state, event, target).  A cell is a state with an event, and counts when the event
was applied or refused there.  Counted for the machine explored; its children have their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.decide import Decision
from engine.table import Table

Cell = tuple[str, str]
Transition = tuple[str, str, str]


@dataclass
class Coverage:
    """Transitions and cells of one machine."""

    table: Table
    transitions: set[Transition] = field(default_factory=set)
    cells: set[Cell] = field(default_factory=set)
    visited: set[str] = field(default_factory=set)

    def moved(self, decision: Decision) -> None:
        """A transition of any machine."""
        entry = decision.entry
        if decision.after.machine == self.table.name:
            self.transitions.add((entry.source, entry.event, entry.target))
            self.cells.add((entry.source, entry.event))
            self.visited.add(entry.target)

    def refused(self, machine: str, state: str, event: str) -> None:
        """An event that a run did not take."""
        if machine == self.table.name:
            self.cells.add((state, event))

    @property
    def all_transitions(self) -> list[Transition]:
        """Every transition of the machine, in the order of declaration."""
        edges = self.table.all_edges()
        return list(dict.fromkeys((e.source, e.event, e.target) for e in edges))

    @property
    def all_cells(self) -> list[Cell]:
        """Every state with every event of the machine."""
        return [(state, event) for state in self.table.places for event in self.table.events]

    @property
    def missing_transitions(self) -> list[Transition]:
        """Those never taken."""
        return [one for one in self.all_transitions if one not in self.transitions]

    @property
    def missing_cells(self) -> list[Cell]:
        """Those never tried."""
        return [one for one in self.all_cells if one not in self.cells]
