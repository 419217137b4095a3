"""Answers about guards for all values at once, by z3: the optional extra `turtles[prove]`.

::

    question ("do these two hold together, where the invariants hold?")
      -> z3 says no value exists             `never`: proved
      -> z3 gives one -> made a real context and payload -> tried on the real guards
           they agree                        `found`: proved, with the witness
           they do not, or no answer in 1 s  `open`:  the small values count, as without z3

A translation is used only if it agrees with the code on a sample of small values.  Whole numbers
are those of 64 bits, a moment is not negative; annotations are believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import islice, product
from typing import Any, Literal

from engine.contracts import Clause
from engine.table import Edge, Table
from engine.verification.scope import holds
from engine.verification.static.symbolic import (
    INT_MAX,
    Cases,
    Fixed,
    Record,
    Symbols,
    Unconfirmed,
    Untranslatable,
    Whole,
)
from engine.verification.static.translate import Translator

QUERY_MS = 1_000
"""So long z3 may think about one question."""
SAMPLE_ROWS = 8
BASES_MAX = 12
SMALL = (3, 100, 10_000, 10**9)
"""A witness with numbers not larger than these is looked for first."""

Row = dict[str, Any]
Verdict = Literal["never", "found", "open"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What z3 says of a question; `row` has the witness that was found, `why` what is open."""

    verdict: Verdict
    row: Row | None = None
    why: str = ""


def installed() -> Any | None:
    """The module z3, if the extra is installed."""
    try:
        return import_module("z3")
    except ImportError:
        return None


class Proof:
    """The guards of one state and event, translated.

    Args:
        table: the machine.
        edges: edges of one state and event, in their order.
        rows: small values, to compare the translation with the code, and to fill in what a
            witness leaves open.

    Attributes:
        trouble: why nothing can be asked; empty if everything is well.
    """

    def __init__(self, z3: Any, table: Table, edges: Sequence[Edge], rows: Sequence[Row]) -> None:
        self.z3 = z3
        self.edges = edges
        self.bases = list(rows[:BASES_MAX])
        self.symbols = Symbols(z3)
        self.translator = Translator(self.symbols)
        self.context = Record(table.context, "context", self.symbols)
        kind = table.payloads.get(edges[0].event)
        self.event = Record(kind, "event", self.symbols) if kind is not None else None
        self.now_ms = self.symbols.number("now_ms", 0, INT_MAX)
        self.trouble = ""
        self.clauses: list[tuple[Clause, Any]] = []
        self.values = self._values()
        place = table.places[edges[0].source]
        self.invariant = self._all([*table.invariants, *place.invariants])
        self.allowed = [self._all(edge.requires) for edge in edges]
        self.enabled, self.raised = self._guards()
        self._examine(rows[:SAMPLE_ROWS])

    def _values(self) -> dict[str, Cases]:
        true = self.z3.BoolVal(True)
        return {
            "context": ((true, self.context),),
            "event": ((true, self.event if self.event is not None else Fixed(None)),),
            "now_ms": ((true, Whole(self.now_ms)),),
        }

    def _clause(self, clause: Clause) -> tuple[Any, Any]:
        try:
            found = self.translator.clause(clause.call, self.values)
            self.clauses.append((clause, found[0]))
            return found
        except (Untranslatable, RecursionError) as error:
            why = f"{clause.kind} {clause.name}: {error}"
            self.translator.unknown[why] = None
            free = self.symbols.unknown(why)
            raises = self.symbols.of_unknown(free, "raises")
            return self.z3.And(self.symbols.of_unknown(free, "true"), self.z3.Not(raises)), raises

    def _all(self, clauses: Sequence[Clause]) -> Any:
        return self.z3.And([self.z3.BoolVal(True), *(self._clause(c)[0] for c in clauses)])

    def _guards(self) -> tuple[list[Any], list[Any]]:
        """When each edge is enabled, and when one of its guards raises."""
        enabled, raised = [], []
        for edge in self.edges:
            so_far, trouble = self.z3.BoolVal(True), self.z3.BoolVal(False)
            for clause in edge.guards:
                true, raises = self._clause(clause)
                trouble = self.z3.Or(trouble, self.z3.And(so_far, raises))
                so_far = self.z3.And(so_far, true)
            enabled.append(so_far)
            raised.append(self.z3.simplify(trouble))
        return enabled, raised

    def _examine(self, rows: Sequence[Row]) -> None:
        """Compares the translation with the code; and whether the invariants allow any value."""
        for row in rows:
            pairs = self._bound(row)
            for clause, term in self.clauses if pairs else ():
                said = self._said(term, pairs)
                if said is not None and said is not holds(clause, row):
                    self.trouble = f"the translation of {clause.name} disagrees with the code"
                    return
        solver = self._solver()
        solver.add(self.invariant)
        if solver.check() == self.z3.unsat:
            self.trouble = "the invariants exclude one another"

    def _bound(self, row: Row) -> list[tuple[Any, Any]]:
        """What each variable is, if the values are these; nothing if they have no translation."""
        try:
            pairs = [*self.context.bind(row["context"])]
            pairs += self.event.bind(row["event"]) if self.event is not None else ()
        except Unconfirmed:
            return []
        return [*pairs, (self.now_ms, self.z3.IntVal(row["now_ms"]))]

    def _said(self, term: Any, pairs: list[tuple[Any, Any]]) -> bool | None:
        """What the translation says of some values; None if it leaves that open."""
        found = self.z3.simplify(self.z3.substitute(term, *pairs))
        if self.z3.is_true(found) or self.z3.is_false(found):
            return bool(self.z3.is_true(found))
        return None

    # -- questions ---------------------------------------------------------------------------------

    def overlap(self, one: int, other: int, confirm: Callable[[Row], bool]) -> Answer:
        """Whether two edges may be enabled together."""
        both = [self.enabled[one], self.enabled[other], self.allowed[one], self.allowed[other]]
        return self._ask([self.invariant, *both], confirm)

    def gap(self, confirm: Callable[[Row], bool]) -> Answer:
        """Whether no edge may be enabled, where all preconditions hold."""
        none = [self.z3.Not(one) for one in self.enabled]
        return self._ask([self.invariant, *none, *self.allowed], confirm)

    def chosen(self, number: int, confirm: Callable[[Row], bool]) -> Answer:
        """Whether an edge may be enabled while none before it is."""
        earlier = [self.z3.Not(one) for one in self.enabled[:number]]
        return self._ask([self.invariant, self.enabled[number], *earlier], confirm)

    def true(self, number: int, confirm: Callable[[Row], bool], *, free: bool) -> Answer:
        """Whether an edge may be enabled; `free`: also where the invariants do not hold."""
        where = [] if free else [self.invariant]
        return self._ask([*where, self.enabled[number]], confirm)

    def raises(self, number: int, confirm: Callable[[Row], bool]) -> Answer:
        """Whether a guard of an edge may raise, where the edge's preconditions hold."""
        if self.z3.is_false(self.raised[number]):
            return Answer("never")
        return self._ask([self.invariant, self.raised[number], self.allowed[number]], confirm)

    def _solver(self) -> Any:
        solver = self.z3.Solver()
        solver.set("timeout", QUERY_MS)
        solver.add(*self.symbols.facts)
        return solver

    def _ask(self, conditions: list[Any], confirm: Callable[[Row], bool]) -> Answer:
        if self.trouble:
            return Answer("open", why=self.trouble)
        solver = self._solver()
        solver.add(*conditions)
        answer = solver.check()
        if answer == self.z3.unsat:
            return Answer("never")
        if answer == self.z3.sat:
            for row in self._rows(solver):
                if confirm(row):
                    return Answer("found", row)
        return Answer("open", why=self._why(answer))

    def _why(self, answer: Any) -> str:
        if answer != self.z3.sat:
            return f"z3 did not answer within {QUERY_MS} ms"
        unknown = [one for one in self.translator.unknown if one]
        if not unknown:
            return "a value found by z3 was not confirmed by the code"
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        return f"not translatable: {unknown[0]}{more}"

    # -- witnesses ---------------------------------------------------------------------------------

    def _rows(self, solver: Any) -> Iterator[Row]:
        """Real values out of models, small numbers first."""
        model = self._small(solver)
        for base in [*self.bases, None]:
            try:
                yield self._row(model, base)
            except Unconfirmed:
                continue

    def _small(self, solver: Any) -> Any:
        found = solver.model()
        for limit in SMALL:
            solver.push()
            solver.add(*(self.z3.And(n <= limit, n >= -limit) for n in self.symbols.numbers))
            if solver.check() == self.z3.sat:
                return solver.model()
            solver.pop()
        return found

    def _row(self, model: Any, base: Row | None) -> Row:
        old = base or {}
        event = None
        if self.event is not None:
            event = self.event.pick(model, old.get("event"))
        now_ms = model.eval(self.now_ms, model_completion=True).as_long()
        return {
            "context": self.context.pick(model, old.get("context")),
            "event": event,
            "now_ms": now_ms,
        }


def sample(contexts: Sequence[Any], payloads: Sequence[Any], moments: Sequence[int]) -> list[Row]:
    """Some small values, each context and payload among the first."""
    some = (contexts[:BASES_MAX], payloads[:2], moments[:2])
    rows = [{"context": c, "event": e, "now_ms": max(n, 0)} for c, e, n in product(*some)]
    step = max(1, len(rows) // (2 * BASES_MAX))
    return list(islice(rows, 0, None, step))
