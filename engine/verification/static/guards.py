"""What guards decide: V005, V006, V007, part of V013; by small values, and by z3 if it is there.

For each (state, event) with guards::

    contexts in which the invariants hold  x  payloads  x  moments
      -> which edges are enabled?   two: overlap    none: gap    never this one: dead

Values that the preconditions refuse count for neither overlaps nor gaps.  If no small context
fulfils the invariants, all are tried and overlaps and gaps are warnings: they may be unreachable.

What small values leave open goes to `engine.verification.static.prove`, if z3 is installed: an
answer for all values, or a witness that small values did not reach.  A guard that does not come
back is ended (`engine.verification.static.watch`) and named.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from engine.table import Edge
from engine.verification.scope import OutOfScope, holds, plain
from engine.verification.static import trying
from engine.verification.static.annotations import is_payload_unknown
from engine.verification.static.finding import Evidence, Finding, Severity
from engine.verification.static.prove import Answer, Proof, installed, sample
from engine.verification.static.subject import Subject, own_outcomes, sent_by_engine, shown
from engine.verification.static.trying import Row, Scope, Seen, asks_time, scope_of, tried_on

ALONE_FACTOR = 10
"""How many more values are tried before a guard is said to be never true."""


def check_guards(subject: Subject) -> Iterator[Finding]:
    """All of the above."""
    for edges in subject.table.edges.values():
        last = next((i for i, edge in enumerate(edges) if not edge.guards), len(edges) - 1)
        for edge in edges[last + 1 :]:
            yield subject.at_edge("V007", "error", edge,
                f"never taken: {shown(edges[last])} has no guard and comes before it",
                "Put the edge without a guard last")  # fmt: skip
        tried = edges[: last + 1]
        if any(edge.guards for edge in tried):
            yield from _check_choice(subject, tried)


def _check_choice(subject: Subject, edges: tuple[Edge, ...]) -> Iterator[Finding]:
    if is_payload_unknown(subject, edges):
        return  # V000 names the annotation; without payload every guard would raise
    try:
        scope = scope_of(subject, edges, constrained=True)
    except OutOfScope:
        return  # V014 names the type
    subject.again()
    seen = tried_on(edges, scope)
    if _is_over(seen):
        yield from _trouble(subject, seen)
        return
    choice = _Choice(subject, edges, scope, seen)
    yield from _trouble(subject, seen)
    subject.again()
    far = choice.raising()
    if far is not None:
        yield from _trouble(subject, far, method="proved")
        return
    yield from _dead(choice)
    yield from _overlaps(choice)
    yield from _gap(choice)


def _is_over(seen: Seen) -> bool:
    return bool(seen.raised) or seen.hung is not None


class _Choice:
    """The edges of one state and event, with what small values showed, and z3 if it is there."""

    def __init__(self, subject: Subject, edges: tuple[Edge, ...], scope: Scope, seen: Seen) -> None:
        self.subject = subject
        self.edges = edges
        self.scope = scope
        self.seen = seen
        z3 = installed() if subject.prove else None
        self.proof: Proof | None = None
        if z3 is not None and scope.contexts.values and scope.payloads.values:
            spaces = (scope.contexts, scope.payloads, scope.moments)
            rows = sample(*(space.values for space in spaces))
            self.proof = Proof(z3, subject.table, edges, rows)

    @property
    def constrained(self) -> bool:
        """Whether the invariants hold in the small contexts."""
        return self.scope.contexts.constrained

    def asked(self, question: Callable[..., Answer], test: Callable[[Seen], bool]) -> Answer:
        """The answer of z3; a witness counts if `test` holds for what the real guards do on it."""
        self.subject.again()
        return question(
            confirm=lambda row: self._is_legal(row) and test(tried_on(self.edges, [row]))
        )

    def _is_legal(self, row: Row) -> bool:
        table = self.subject.table
        clauses = (*table.invariants, *table.places[self.edges[0].source].invariants)
        return all(holds(clause, row) for clause in clauses)

    def raising(self) -> Seen | None:
        """What shows a guard that raises for values that are not small."""
        for number in range(len(self.edges)) if self.proof else ():
            assert self.proof is not None
            answer = self.asked(partial(self.proof.raises, number), lambda seen: bool(seen.raised))
            if answer.row is not None:
                return tried_on(self.edges, [answer.row])
        return None

    def note(
        self,
        question: Literal["overlap", "gap"],
        edges: Iterable[Edge],
        answer: Answer,
        *,
        small: bool,
    ) -> None:
        """Records what is known; `small`: small values show such a case."""
        proved = answer.verdict != "open"
        yes = small or answer.verdict == "found"
        self.subject.evidence.append(Evidence(
            machine=self.subject.table.name, state=self.edges[0].source, event=self.edges[0].event,
            question=question, edges=tuple(edge.guard_text for edge in edges),
            answer="yes" if yes else "no", method="proved" if proved else "checked",
            why=answer.why,
        ))  # fmt: skip


def _trouble(
    subject: Subject, seen: Seen, method: Literal["checked", "proved"] = "checked"
) -> Iterator[Finding]:
    for name, (edge, row) in seen.fickle.items():
        yield subject.at_edge("V013", "error", edge,
            f"guard {name} gave two answers for the same values",
            "Let it depend on context, event and now_ms only", method=method,
            witness=_witness(subject, (edge,), row))  # fmt: skip
    for name, (edge, error, row) in seen.raised.items():
        yield subject.at_edge("V006", "error", edge,
            f"guard {name} raises {error}, so no edge is chosen and the run is quarantined",
            "Answer False there, or exclude the values with an invariant or @requires",
            method=method, witness=_witness(subject, (edge,), row))  # fmt: skip
    if seen.hung is not None:
        clause, edge, row = seen.hung
        yield subject.at_edge("V006", "error", edge,
            f"{clause.kind} {clause.name} did not answer within {trying.CALL_SECONDS:g} s, so the "
            "worker that asks it hangs", "Let it end for all values; a guard has no time for loops",
            method=method, witness=_witness(subject, (edge,), row))  # fmt: skip


def _dead(choice: _Choice) -> Iterator[Finding]:
    for number, edge in enumerate(choice.edges):
        small = number in choice.seen.chosen
        if not edge.guards or (small and (choice.constrained or choice.proof is None)):
            continue
        answer = Answer("open")
        if choice.proof is not None:
            question = partial(choice.proof.chosen, number)
            answer = choice.asked(question, lambda seen, n=number: n in seen.chosen)  # type: ignore[misc]
        if answer.verdict == "never":
            yield _proved_dead(choice, number, edge)
        elif answer.verdict == "open" and not small:
            yield from _seen_dead(choice, number, edge)


def _proved_dead(choice: _Choice, number: int, edge: Edge) -> Finding:
    """Why no values take an edge."""
    proof, seen = choice.proof, choice.seen
    assert proof is not None
    row = seen.enabled.get(number) if choice.constrained else None
    verdict = "never"
    if row is None:
        question = partial(proof.true, number, free=False)
        answer = choice.asked(question, lambda seen: number in seen.enabled)
        verdict, row = answer.verdict, answer.row
    if verdict != "never" or row is not None:
        return _behind(choice, edge, "proved", row)
    anywhere = proof.true(
        number, lambda row: number in tried_on(choice.edges, [row]).enabled, free=True
    )
    if anywhere.verdict == "never":
        return choice.subject.at_edge("V007", "error", edge,
            f"guard {edge.guard_text} is false for every value", "Correct it, or remove the edge",
            method="proved")  # fmt: skip
    return _excluded(choice.subject, edge, "proved")


def _behind(
    choice: _Choice, edge: Edge, method: Literal["checked", "proved"], row: Row | None
) -> Finding:
    return choice.subject.at_edge("V007", "error", edge,
        "never taken: whenever its guard holds, an edge tried before it is taken",
        "Put it first, or remove it", method=method,
        witness=_witness(choice.subject, choice.edges, row) if row else None)  # fmt: skip


def _excluded(subject: Subject, edge: Edge, method: Literal["checked", "proved"]) -> Finding:
    return subject.at_edge("V007", "error", edge,
        f"never taken: the invariants of {edge.source} and of the machine exclude its "
        "guard", "Correct the guard or the invariant", method=method)  # fmt: skip


def _seen_dead(choice: _Choice, number: int, edge: Edge) -> Iterator[Finding]:
    """An edge that small values did not take."""
    if number not in choice.seen.enabled:
        yield from _never_true(choice.subject, edge)
    elif choice.scope.complete:
        row = choice.seen.enabled[number]
        yield _behind(choice, edge, "checked", row)


def _never_true(subject: Subject, edge: Edge) -> Iterator[Finding]:
    """Alone, it has fewer values and its own literals; first as a run may be, then freely."""
    alone = (edge,)
    scope = scope_of(subject, alone, constrained=True, factor=ALONE_FACTOR)
    subject.again()
    if tried_on(alone, scope).enabled:
        return
    free = scope_of(subject, alone, constrained=False, factor=ALONE_FACTOR)
    subject.again()
    tried = tried_on(alone, free)
    if tried.enabled:
        if scope.complete and scope.contexts.constrained:
            yield _excluded(subject, edge, "checked")
        return
    severity: Severity = "error" if free.complete else "warning"
    how = (
        "is false for every small value"
        if free.complete
        else (f"was false for all of the {tried.rows} values tried (there are more)")
    )
    yield subject.at_edge("V007", severity, edge, f"guard {edge.guard_text} {how}",
        "Correct it, or remove the edge; if only large values make it true, say so in an ignore "
        "comment", method="checked")  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Hit:
    """Two edges enabled together."""

    first: Edge
    row: Row
    method: Literal["checked", "proved"]
    legal: bool
    """Whether the invariants hold there."""


def _overlaps(choice: _Choice) -> Iterator[Finding]:
    """One finding for each edge that overlaps with edges tried before it."""
    edges = choice.edges
    for second, other in enumerate(edges):
        hits = []
        for first, one in enumerate(edges[:second]):
            if not _is_fallback(other, one) and not _same(one, other):
                hit = _overlap(choice, first, second)
                hits += [hit] if hit is not None else []
        if hits:
            yield _overlapping(choice.subject, other, hits)


def _overlap(choice: _Choice, first: int, second: int) -> _Hit | None:
    row = choice.seen.both.get((first, second))
    pair = (choice.edges[first], choice.edges[second])
    answer = Answer("open")
    if choice.proof is not None and not (row is not None and choice.constrained):
        question = partial(choice.proof.overlap, first, second)
        answer = choice.asked(question, lambda seen: (first, second) in seen.both)
    small = row is not None and answer.verdict != "never"
    choice.note("overlap", pair, answer, small=small)
    if answer.row is not None:
        return _Hit(pair[0], answer.row, "proved", legal=True)
    return _Hit(pair[0], row, "checked", choice.constrained) if small and row else None


def _overlapping(subject: Subject, other: Edge, hits: list[_Hit]) -> Finding:
    differ = any(hit.first.target != other.target for hit in hits)
    severity: Severity = "error" if differ and any(hit.legal for hit in hits) else "warning"
    how = "" if differ else " (same target, other actions)"
    names = " and ".join(hit.first.guard_text for hit in hits)
    return subject.at_edge("V005", severity, other,
        f"{other.guard_text} may hold when {names} does{how}; the order of the lines decides",
        "Let one exclude the other (cond='b and not a'), or say in an ignore comment that "
        "the order is meant", method=hits[0].method,
        witness=_witness(subject, (hits[0].first, other), hits[0].row))  # fmt: skip


def _is_fallback(later: Edge, earlier: Edge) -> bool:
    """Whether the later edge asks for less than the earlier: `a and b`, then `a`, then nothing."""
    return _conjuncts(later) < _conjuncts(earlier)


def _conjuncts(edge: Edge) -> set[str]:
    texts: set[str] = set()
    for clause in edge.guards:
        node = ast.parse(clause.name.strip(), mode="eval").body
        values = (
            node.values if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And) else [node]
        )
        texts.update(ast.unparse(value) for value in values)
    return texts


def _same(one: Edge, other: Edge) -> bool:
    names = [[getattr(c, "name", None) for c in e.ensures] for e in (one, other)]
    actions = [[_code(a) for a in e.actions] for e in (one, other)]
    return one.target == other.target and actions[0] == actions[1] and names[0] == names[1]


def _code(action: Any) -> Any:
    """The function behind a bound action."""
    for cell in getattr(action, "__closure__", None) or ():
        if callable(cell.cell_contents):
            function = getattr(cell.cell_contents, "__func__", cell.cell_contents)
            return getattr(function, "__code__", function)
    return action


def _gap(choice: _Choice) -> Iterator[Finding]:
    subject, edges, row = choice.subject, choice.edges, choice.seen.none
    if not edges[-1].guards:
        return
    place = subject.table.places[edges[0].source]
    event = edges[0].event
    option = sent_by_engine(place).get(event)
    if option == "on_child_moved":
        return  # a milestone that no guard takes is passed over; nothing waits for it
    answer = Answer("open")
    if choice.proof is not None and not (row is not None and choice.constrained):
        answer = choice.asked(choice.proof.gap, lambda seen: seen.none is not None)
    choice.note("gap", edges, answer, small=row is not None and answer.verdict != "never")
    legal = choice.constrained or answer.row is not None
    row = answer.row or row
    if row is None or answer.verdict == "never":
        return
    fatal = option is not None or event in own_outcomes(place)
    result = "the run is quarantined" if fatal else "the event is refused"
    severity: Severity = "error" if fatal and legal else "warning"
    yield subject.at_edge("V006", severity, edges[-1],
        f"no guard of {place.name} takes every {event!r}: {result}",
        "Add a last edge without a guard, or refuse the values with @requires",
        method="checked" if answer.row is None else "proved",
        witness=_witness(subject, edges, row))  # fmt: skip


def _witness(subject: Subject, edges: tuple[Edge, ...], row: Row) -> dict[str, Any]:
    """The values that the guards read, by name."""
    read = subject.reading([clause.call for edge in edges for clause in edge.guards])
    directly = {name for edge in edges for clause in edge.guards for name in clause.reads}
    found: dict[str, Any] = {}
    for holder in ("context", "event"):
        struct = row[holder]
        for name in getattr(struct, "__struct_fields__", ()):
            if name in read.names or (holder, name) in directly:
                found[f"{holder}.{name}"] = _pruned(plain(getattr(struct, name)), read.names)
    if asks_time(read):
        found["now_ms"] = row["now_ms"]
    return found


def _pruned(value: Any, names: frozenset[str]) -> Any:
    """Without the fields inside that nobody reads."""
    if isinstance(value, dict):
        return {k: _pruned(v, names) for k, v in value.items() if k in names} or value
    if isinstance(value, list | tuple):
        return [_pruned(one, names) for one in value]
    return value
