"""Annotations that cannot be resolved: the engine learns from them which payload an event carries.

`engine.table` reads the annotation of the parameter `event`; where it cannot (a class defined in a
function, or imported for type checkers only), the event is taken to carry nothing, every payload
that is sent is refused, and guards are given None.  Part of V000.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any, get_type_hints

from engine.table import Edge
from engine.verification.static.finding import Finding
from engine.verification.static.subject import Subject


def check_annotations(subject: Subject) -> Iterator[Finding]:
    """Every function of an edge whose event has no payload because its annotation says nothing."""
    told: set[Any] = set()
    for edge in subject.table.all_edges():
        for function, name, error in _unresolved(subject, (edge,)):
            if function in told:
                continue
            told.add(function)
            annotation = function.__annotations__.get(name)
            code = function.__code__
            besides = "" if name == "event" else " (annotations are resolved together)"
            yield subject.at_line("V000", "error", code.co_filename, code.co_firstlineno,
                f"parameter {name} of {function.__name__}: annotation {annotation!r} cannot be "
                f"resolved ({error}), so event {edge.event!r} is taken to carry no "
                f"payload{besides}",
                "Define or import the class at the top level of the module, not in a function or "
                "under TYPE_CHECKING, or list the event's class in `payloads`")  # fmt: skip


def is_payload_unknown(subject: Subject, edges: Iterable[Edge]) -> bool:
    """Whether the guards or preconditions of edges ask for a payload of an unknown class."""
    return next(_unresolved(subject, edges), None) is not None


def _unresolved(subject: Subject, edges: Iterable[Edge]) -> Iterator[tuple[Any, str, str]]:
    """(function, parameter, error) where no payload of the event is known for that reason."""
    for edge in edges:
        if edge.event in subject.table.payloads:
            continue
        clauses = (*edge.guards, *edge.requires, *edge.ensures)
        for call in (*(clause.call for clause in clauses), *edge.actions):
            for function in functions_behind(call):
                if "event" in function.__annotations__:
                    found = _first_unresolved(function)
                    if found is not None:
                        yield (function, *found)


def functions_behind(call: Any) -> Iterator[Any]:
    """The functions of the program that a compiled clause or action calls itself."""
    todo, seen = [call], set()
    while todo:
        one = todo.pop()
        one = getattr(one, "__func__", one)
        code = getattr(one, "__code__", None)
        if code is None or id(one) in seen:
            todo += one if isinstance(one, list | tuple) else []
            continue
        seen.add(id(one))
        if one.__name__ != "<lambda>" or not _is_bound(one):
            yield one
            continue
        todo += inspect.getclosurevars(one).nonlocals.values()


def _is_bound(function: Any) -> bool:
    return {"call", "parts"} & set(function.__code__.co_freevars) != set()


def _first_unresolved(function: Any) -> tuple[str, str] | None:
    """(parameter, error) of the first annotation that cannot be resolved."""
    try:
        get_type_hints(function)
    except (NameError, TypeError, AttributeError) as error:
        names = ["event", *(n for n in function.__annotations__ if n != "event")]
        for name in names:
            if not _resolves(function, name):
                return name, str(error)
        return "event", str(error)
    return None


def _resolves(function: Any, name: str) -> bool:
    """Whether one annotation alone can be resolved."""

    def alone() -> None:
        """Carries the annotation."""

    alone.__annotations__ = {name: function.__annotations__[name]}
    try:
        get_type_hints(alone, globalns=function.__globals__)
    except (NameError, TypeError, AttributeError):
        return False
    return True
