"""Mutants of what a table says: its edges, its states and its contracts as wholes.

Not made, because nothing could tell them from the original or from another one: siblings that swap
guards of equal text, an edge led to where it leads, an edge with a guard removed (the same as a
guard that is always false), a duration doubled where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from engine.contracts import PARAMETERS, Clause, bind
from engine.definition import methods_of
from engine.effects import Effect
from engine.events import GaveUp
from engine.table import Edge, Place, Table
from engine.verification.mutating.mutant import Mutant
from engine.verification.static.subject import Subject, shown

Values = Mapping[str, Any]
TARGETS_MAX = 3
"""An edge is led to at most so many other states."""


class Structure:
    """The mutants of one table's edges, states and contracts."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._lines = Subject(table, {})

    def mutants(self) -> Iterator[Mutant]:
        """All of them, in the order of declaration."""
        for edge in self.table.all_edges():
            yield from self._of_guards(edge)
            yield from self._of_target(edge)
            yield from self._of_actions(edge)
        for place in self.table.places.values():
            yield from self._of_time(place)
            yield from self._of_events(place)
            yield from self._of_flags(place)
            yield from self._of_effects(place)
        yield from self._of_contracts()

    # -- edges ----------------------------------------------------------------------------------

    def _of_guards(self, edge: Edge) -> Iterator[Mutant]:
        if not edge.guards:
            yield self._at_edge(edge, "edge-removed", None, "the edge is gone",
                                f"no test takes {shown(edge)}")  # fmt: skip
            return
        yield self._at_edge(edge, "guard-dropped", replace(edge, guards=()),
                            "it is taken whatever its guard says",
                            f"no test refuses {shown(edge)} because of its guard")  # fmt: skip
        yield self._at_edge(edge, "guard-negated", replace(edge, guards=(_unless(edge.guards),)),
                            "it is taken when its guard does not hold",
                            f"no test depends on the guard of {shown(edge)}")  # fmt: skip
        yield self._at_edge(edge, "guard-false", replace(edge, guards=(_never(),)),
                            "its guard never holds",
                            f"no test takes {shown(edge)}")  # fmt: skip
        if len(edge.guards) > 1:
            for at, guard in enumerate(edge.guards):
                kept = (*edge.guards[:at], *edge.guards[at + 1 :])
                yield self._at_edge(edge, "guard-dropped", replace(edge, guards=kept),
                                    f"{guard.name} is not asked",
                                    f"no test refuses {shown(edge)} because of {guard.name}",
                                    guard.name)  # fmt: skip
        yield from self._swapped(edge)

    def _swapped(self, edge: Edge) -> Iterator[Mutant]:
        siblings = self.table.edges[edge.source, edge.event]
        following = siblings[siblings.index(edge) + 1 :]
        if not following or following[0].guard_text == edge.guard_text:
            return
        other = following[0]
        ours = replace(edge, guards=other.guards, guard_text=other.guard_text)
        theirs = replace(other, guards=edge.guards, guard_text=edge.guard_text)
        changed = tuple({edge.index: ours, other.index: theirs}.get(e.index, e) for e in siblings)
        yield self._made(self._with_edges(edge, changed), "guards-swapped", shown(edge), "",
            self._lines.edge_line(edge), f"its guard and that of {shown(other)} are swapped",
            f"no test tells {shown(edge)} from {shown(other)}")  # fmt: skip

    def _of_target(self, edge: Edge) -> Iterator[Mutant]:
        siblings = [e.target for e in self.table.edges[edge.source, edge.event]]
        neighbours = [e.target for e in self._lines.leaving(edge.source)]
        others = [t for t in dict.fromkeys([*siblings, *neighbours]) if t != edge.target]
        for target in others[:TARGETS_MAX]:
            yield self._at_edge(edge, "target", self._led_to(edge, target),
                                f"it leads to {target}",
                                f"no test looks where {shown(edge)} leads to", target)  # fmt: skip

    def _led_to(self, edge: Edge, target: str) -> Edge:
        """The edge with another target: what is done on leaving and entering changes with it."""
        actions = list(edge.actions)
        machine = self.table.machine
        if not edge.stays:
            if hasattr(machine, f"on_enter_{edge.target}"):
                actions.pop()
            if target == edge.source and hasattr(machine, f"on_exit_{edge.source}"):
                actions.pop(0)
        elif target != edge.source and hasattr(machine, f"on_exit_{edge.source}"):
            actions.insert(0, self._action(f"on_exit_{edge.source}"))
        if target != edge.source and hasattr(machine, f"on_enter_{target}"):
            actions.append(self._action(f"on_enter_{target}"))
        return replace(edge, target=target, actions=tuple(actions))

    def _action(self, name: str) -> Callable[[Values], Any]:
        machine = self.table.machine
        bound: Callable[[Values], Any] = bind(
            getattr(machine, name), methods_of(machine), PARAMETERS["action"]
        )
        return bound

    def _of_actions(self, edge: Edge) -> Iterator[Mutant]:
        for at in range(len(edge.actions)):
            kept = (*edge.actions[:at], *edge.actions[at + 1 :])
            yield self._at_edge(edge, "action-dropped", replace(edge, actions=kept),
                                f"its action {at + 1} is not done",
                                f"nothing looks at what action {at + 1} of {shown(edge)} keeps",
                                str(at + 1))  # fmt: skip

    def _at_edge(
        self, edge: Edge, kind: str, changed: Edge | None, says: str, missing: str, which: str = ""
    ) -> Mutant:
        siblings = self.table.edges[edge.source, edge.event]
        kept = tuple(changed if e.index == edge.index else e for e in siblings)
        table = self._with_edges(edge, tuple(e for e in kept if e is not None))
        line = self._lines.edge_line(edge)
        return self._made(table, kind, shown(edge), which, line, says, missing)

    def _with_edges(self, edge: Edge, siblings: tuple[Edge, ...]) -> Table:
        edges = {**self.table.edges, (edge.source, edge.event): siblings}
        return replace(self.table, edges={key: some for key, some in edges.items() if some})

    # -- states ---------------------------------------------------------------------------------

    def _of_time(self, place: Place) -> Iterator[Mutant]:
        timeout = place.timeout
        if timeout is None:
            return
        missing = f"no test waits for the timeout of {place.name}"
        yield self._at_place(place, "timeout-removed", {"timeout": None, "on_timeout": None},
                             "its time is never up", missing)  # fmt: skip
        yield self._at_place(place, "timeout-doubled", {"timeout": lambda v: 2 * timeout(v)},
                             "its time is up after twice as long",
                             f"{missing}, and no longer")  # fmt: skip

    def _of_events(self, place: Place) -> Iterator[Mutant]:
        for option in ("on_timeout", "on_exhausted"):
            event = getattr(place, option)
            for other in self._like(place, option, event) if event is not None else ():
                yield self._at_place(place, option, {option: other}, f"{option} is {other}",
                                     f"no test sees what {option} of {place.name} does",
                                     other)  # fmt: skip
        for option in ("on_exhausted", "on_child_moved"):
            if getattr(place, option) is not None:
                yield self._at_place(place, f"{option}-removed", {option: None},
                                     f"{option} is not sent",
                                     f"no test has {place.name} receive {option}")  # fmt: skip

    def _like(self, place: Place, option: str, event: str) -> list[str]:
        """Other events that this state handles and that carry what the engine would send."""
        found = []
        for edge in self._lines.leaving(place.name):
            kind = self.table.payloads.get(edge.event)
            fits = kind is None if option == "on_timeout" else _gives_up(kind)
            if fits and edge.event != event:
                found.append(edge.event)
        return list(dict.fromkeys(found))[:TARGETS_MAX]

    def _of_flags(self, place: Place) -> Iterator[Mutant]:
        if place.final:
            yield self._at_place(place, "failure", {"failure": not place.failure},
                                 f"it counts as a {'success' if place.failure else 'failure'}",
                                 f"no test looks at how a run ends in {place.name}")  # fmt: skip
            return
        yield self._at_place(place, "cancellable", {"cancellable": not place.cancellable},
                             "a cancel request has to wait here" if place.cancellable else
                             "a cancel request may end the run here",
                             f"no test cancels a run in {place.name}")  # fmt: skip
        yield self._at_place(place, "milestone", {"milestone": not place.milestone},
                             "the parent is not told of it" if place.milestone else
                             "the parent is told of it",
                             f"no test looks at what a parent is told of {place.name}")  # fmt: skip
        if place.follows_child:
            yield self._at_place(place, "follows-child", {"follows_child": False},
                                 "the child is left behind here",
                                 f"no test has a child live on in {place.name}")  # fmt: skip

    def _of_effects(self, place: Place) -> Iterator[Mutant]:
        if place.compensation is not None:
            yield self._at_place(place, "compensation", {"compensation": None},
                                 "what it made is not undone",
                                 f"no test has to undo what {place.name} made")  # fmt: skip
        if place.undoes is not None:
            yield self._at_place(place, "undoes", {"undoes": None},
                                 f"what {place.undoes} made counts as there afterwards",
                                 f"no test fails after {place.name} has undone it")  # fmt: skip
        for option in ("effect", "compensation"):
            one: Effect | None = getattr(place, option)
            if one is not None:
                says = "it is performed again without asking" if one.ask else "it is not repeatable"
                flipped = replace(one, idempotent=not one.idempotent, ask=None)
                yield self._at_place(place, "idempotent", {option: flipped},
                                     f"{option} {one.name}: {says}",
                                     f"no test loses the reply of {one.name}", option)  # fmt: skip

    def _at_place(
        self,
        place: Place,
        kind: str,
        changes: dict[str, Any],
        says: str,
        missing: str,
        which: str = "",
    ) -> Mutant:
        places = {**self.table.places, place.name: replace(place, **changes)}
        table = replace(self.table, places=places)
        line = self._lines.state_line(place.name)
        return self._made(table, kind, place.name, which, line, says, missing)

    # -- contracts ------------------------------------------------------------------------------

    def _of_contracts(self) -> Iterator[Mutant]:
        for clause in clauses_of(self.table):
            what = f"{clause.kind} {clause.name}"
            if clause.kind == "requires":
                yield self._of_clause(clause, "contract-dropped", None, f"{what} is not asked",
                                      f"no test sends what {clause.name} refuses")  # fmt: skip
            yield self._of_clause(clause, "contract-negated", _unless((clause,), clause),
                                  f"{what} is negated",
                                  f"no test comes to where {clause.name} is asked")  # fmt: skip

    def _of_clause(
        self, clause: Clause, kind: str, changed: Clause | None, says: str, missing: str
    ) -> Mutant:
        table = with_clause(self.table, clause, changed)
        line = clause.line or self._lines.span[0]
        return self._made(table, kind, clause.name, "", line, says, missing)

    def _made(
        self, table: Table, kind: str, subject: str, which: str, line: int, says: str, missing: str
    ) -> Mutant:
        name = f"{kind} {subject}" + (f" ({which})" if which else "")
        return Mutant(table=table, name=name, kind=kind, subject=subject, file=self._lines.file,
                      line=line, says=f"{subject}: {says}", missing=missing)  # fmt: skip


def clauses_of(table: Table) -> list[Clause]:
    """Every contract of a machine, once, guards left out."""
    found: dict[tuple[str, str], Clause] = {}
    for edge in table.all_edges():
        for clause in (*edge.requires, *edge.ensures):
            found.setdefault((clause.kind, clause.name), clause)
    for place in table.places.values():
        for clause in place.invariants:
            found.setdefault((clause.kind, clause.name), clause)
    for clause in table.invariants:
        found.setdefault((clause.kind, clause.name), clause)
    return list(found.values())


def with_clause(table: Table, clause: Clause, changed: Clause | None) -> Table:
    """The table with a contract changed wherever it is asked; None: not asked at all."""

    def among(some: tuple[Clause, ...]) -> tuple[Clause, ...]:
        same = [(one.kind, one.name) == (clause.kind, clause.name) for one in some]
        kept = [changed if hit else one for hit, one in zip(same, some, strict=True)]
        return tuple(one for one in kept if one is not None)

    edges = {
        key: tuple(
            replace(edge, requires=among(edge.requires), ensures=among(edge.ensures))
            for edge in some
        )
        for key, some in table.edges.items()
    }
    places = {
        name: replace(place, invariants=among(place.invariants))
        for name, place in table.places.items()
    }
    return replace(table, edges=edges, places=places, invariants=among(table.invariants))


def _unless(clauses: tuple[Clause, ...], like: Clause | None = None) -> Clause:
    """A clause that holds when not all of these do."""
    like = like or clauses[0]
    reads = tuple(dict.fromkeys(read for clause in clauses for read in clause.reads))
    return replace(like, reads=reads, call=lambda v: not all(c.call(v) for c in clauses))


def _never() -> Clause:
    return Clause("never", "guard", lambda values: False, (), 0)


def _gives_up(kind: type[Any] | None) -> bool:
    return kind is not None and issubclass(kind, GaveUp)
