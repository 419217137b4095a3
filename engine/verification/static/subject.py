"""A compiled table with the places in the source it comes from, as the checks look at it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, get_args, get_type_hints

from engine.definition import edges_of
from engine.effects import Again, Effect
from engine.events import Event, event_id
from engine.table import Edge, Place, Table
from engine.verification.reading import Reading
from engine.verification.scope import reads
from engine.verification.static.finding import Evidence, Finding, Method, Severity

ENGINE_EVENTS = ("on_timeout", "on_exhausted", "on_child", "on_child_moved")


class Subject:
    """One machine under the checks.

    Args:
        table: the machine; it need not be what its class compiles to.
        tables: all machines that are known, by name, for child runs.
        prove: questions about guards go to z3, if it is installed.

    Attributes:
        evidence: what the checks found out about the guards, finding or not.
        again: called by checks that take long, after each step (see `watch`).
    """

    def __init__(self, table: Table, tables: Mapping[str, Table], *, prove: bool = True) -> None:
        self.table = table
        self.prove = prove
        self.tables = tables
        self.evidence: list[Evidence] = []
        self.again: Callable[[], None] = lambda: None
        self._readings: dict[tuple[Any, ...], Reading] = {}

    @cached_property
    def file(self) -> str:
        """The file of the machine class."""
        module = sys.modules.get(self.table.machine.__module__)
        return getattr(module, "__file__", None) or self.table.machine.__module__

    @cached_property
    def span(self) -> tuple[int, int]:
        """First and last line of the machine class; (0, 0) without source."""
        try:
            lines, first = inspect.getsourcelines(self.table.machine)
        except (OSError, TypeError):
            return (0, 0)
        return (first, first + len(lines) - 1)

    @cached_property
    def _edge_lines(self) -> list[int]:
        found = []
        for transition in edges_of(self.table.machine):
            found += [int(getattr(transition, "turtles_line", 0))] * len(list(transition.events))
        return found

    @cached_property
    def _state_lines(self) -> dict[str, int]:
        return {s.id: getattr(s, "turtles").line for s in self.table.machine.states}  # noqa: B009

    def edge_line(self, edge: Edge) -> int:
        """The line on which an edge was written."""
        lines = self._edge_lines
        return lines[edge.index] if edge.index < len(lines) else self.span[0]

    def state_line(self, state: str) -> int:
        """The line on which a state was written."""
        return self._state_lines.get(state, self.span[0])

    def at_state(
        self,
        code: str,
        severity: Severity,
        state: str,
        problem: str,
        remedy: str,
        *,
        method: Method = "shape",
        witness: dict[str, Any] | None = None,
    ) -> Finding:
        """A finding about a state."""  # fmt: skip
        return Finding(code=code, severity=severity, file=self.file, line=self.state_line(state),
                       machine=self.table.name, state=state, problem=problem, remedy=remedy,
                       method=method, witness=witness)  # fmt: skip

    def at_edge(
        self,
        code: str,
        severity: Severity,
        edge: Edge,
        problem: str,
        remedy: str,
        *,
        method: Method = "shape",
        witness: dict[str, Any] | None = None,
    ) -> Finding:
        """A finding about an edge."""  # fmt: skip
        return Finding(code=code, severity=severity, file=self.file, line=self.edge_line(edge),
                       machine=self.table.name, state=edge.source, event=edge.event,
                       edge=shown(edge), problem=problem, remedy=remedy, method=method,
                       witness=witness)  # fmt: skip

    def at_line(
        self,
        code: str,
        severity: Severity,
        file: str,
        line: int,
        problem: str,
        remedy: str,
        *,
        method: Method = "read",
        witness: dict[str, Any] | None = None,
    ) -> Finding:
        """A finding about a line of code, or about the machine (line 0)."""  # fmt: skip
        return Finding(code=code, severity=severity, file=file or self.file,
                       line=line or self.span[0], machine=self.table.name, problem=problem,
                       remedy=remedy, method=method, witness=witness)  # fmt: skip

    def reading(self, calls: Iterable[Any]) -> Reading:
        """What functions of this machine may read; remembered."""
        key = tuple(calls)
        if key not in self._readings:
            self._readings[key] = reads(self.table, key)
        return self._readings[key]

    def leaving(self, state: str) -> list[Edge]:
        """The edges of a state, in the order of declaration."""
        return [edge for edge in self.table.all_edges() if edge.source == state]

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Everything the engine calls as pure code: what it is -> the bound function."""
        found: dict[str, Callable[..., Any]] = {}
        for edge in self.table.all_edges():
            for clause in (*edge.guards, *edge.requires, *edge.ensures):
                found[f"{clause.kind} {clause.name}"] = clause.call
            for number, action in enumerate(edge.actions):
                found[f"action {number + 1} of {shown(edge)}"] = action
        for place in self.table.places.values():
            for clause in place.invariants:
                found[f"invariant {clause.name}"] = clause.call
            for option in ("timeout", "every", "child"):
                if getattr(place, option) is not None:
                    found[f"{option} of {place.name}"] = getattr(place, option)
        for clause in self.table.invariants:
            found[f"invariant {clause.name}"] = clause.call
        found["output"] = self.table.output
        return found


def shown(edge: Edge) -> str:
    """`open --paid [enough]--> settled`."""
    guard = f" [{edge.guard_text}]" if edge.guard_text else ""
    return f"{edge.source} --{edge.event}{guard}--> {edge.target}"


def outcomes_of(effect: Effect) -> tuple[dict[str, type[Event]], bool, bool]:
    """What an effect may return, by its annotations and those of its reconcile.

    Returns:
        event -> payload type; whether it may answer `Again`; whether all of it is known.
    """
    found: dict[str, type[Event]] = {}
    again, known = False, True
    for function in (effect.perform, effect.ask):
        if function is None:
            continue
        try:
            returned = get_type_hints(function).get("return", Event)
        except (NameError, TypeError):
            returned = Event
        for one in _options(returned):
            if one is Again:
                again = True
            elif isinstance(one, type) and issubclass(one, Event) and one is not Event:
                found[event_id(one)] = one
            elif one is Event or one is Any:
                known = False
    return found, again, known


def _options(annotation: Any) -> Iterable[Any]:
    if hasattr(annotation, "__value__"):  # type X = A | B
        annotation = annotation.__value__
    arguments = get_args(annotation)
    return [o for a in arguments for o in _options(a)] if arguments else [annotation]


def sent_by_engine(place: Place) -> dict[str, str]:
    """Event -> the option of the state that makes the engine send it."""
    return {getattr(place, o): o for o in ENGINE_EVENTS if getattr(place, o) is not None}


def own_outcomes(place: Place) -> dict[str, type[Event]]:
    """The events that the state's effect may give."""
    return outcomes_of(place.effect)[0] if place.effect else {}
