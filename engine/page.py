"""A page about a machine, made of its class: what it promises, its diagram, its tables.

`machine_page(Payment)` is Markdown with a Mermaid diagram.  Nothing in it is written by hand, so
it can be compared with the class at any time (`turtles page --check`).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.diagram import mermaid
from engine.table import Edge, Place, Table, compile_table

if TYPE_CHECKING:
    from engine.contracts import Clause
    from engine.definition import Machine

HEAD = "<!-- made by `turtles page`; do not edit -->"


def machine_page(machine: type[Machine[Any]]) -> str:
    """The page of one machine."""
    table = compile_table(machine)
    parts = [
        f"{HEAD}\n# {table.name}",
        _promise(machine),
        f"```mermaid\n{mermaid(table)}\n```",
        "## States",
        _grid(("State", "What happens there", "Ends", "Holds"), _states(table)),
        "## Transitions",
        _grid(("From", "Event", "If", "To", "Requires", "Ensures"), _edges(table)),
        "## Contracts",
        _clauses(table),
        "## Context",
        _grid(("Field", "Type"), _fields(table)),
        f"Shape `{table.fingerprint}`, `{machine.__module__}`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def index_page(machines: list[type[Machine[Any]]]) -> str:
    """A list of the pages."""
    rows = []
    for machine in machines:
        table = compile_table(machine)
        name = f"[{table.name}]({table.name.lower()}.md)"
        counts = (len(table.places), len(table.all_edges()), len(_distinct(table)))
        rows.append((name, _line(table.doc), *map(str, counts)))
    heads = ("Machine", "What for", "States", "Transitions", "Contracts")
    return f"{HEAD}\n# Machines\n\n{_grid(heads, rows)}\n"


def _promise(machine: type[Machine[Any]]) -> str:
    """The docstring of its module when that speaks of this machine alone, and its own."""
    module = sys.modules[machine.__module__]
    whole = inspect.cleandoc(module.__doc__ or "").replace("\n::\n", "\n")
    own = inspect.cleandoc(machine.__doc__ or "")
    return f"{own}\n\n```text\n{whole.strip()}\n```" if whole else own


def _states(table: Table) -> list[tuple[str, ...]]:
    return [
        (f"`{name}`", _activity(place), _end(place), _names(place.invariants))
        for name, place in table.places.items()
    ]


def _activity(place: Place) -> str:
    told = []
    if place.effect is not None:
        again = " again and again" if place.every else ""
        told.append(f"`{place.effect.name}`{again}{_line(place.effect.perform.__doc__, ': ')}")
    if place.child is not None:
        told.append(f"child `{getattr(place.child, '__name__', 'run')}`")
    if place.follows_child:
        told.append("its child goes on")
    if place.timeout_text:
        told.append(f"until {_time(place.timeout_text)}, then `{place.on_timeout}`")
    if place.compensation is not None:
        told.append(f"undone by `{place.compensation.name}`")
    if place.waits:
        told.append("waits for events")
    if not place.cancellable:
        told.append("cannot be cancelled")
    return "; ".join(told)


def _end(place: Place) -> str:
    if not place.final:
        return ""
    return "refusal or failure" if place.failure else "success"


def _edges(table: Table) -> list[tuple[str, ...]]:
    return [_edge(edge) for edge in table.all_edges()]


def _edge(edge: Edge) -> tuple[str, ...]:
    guard = f"`{edge.guard_text}`" if edge.guard_text else ""
    ends = (f"`{edge.source}`", f"`{edge.event}`", guard, f"`{edge.target}`")
    return (*ends, _names(edge.requires), _names(edge.ensures))


def _distinct(table: Table) -> dict[tuple[str, str], Clause]:
    found = [*table.invariants]
    for place in table.places.values():
        found += place.invariants
    for edge in table.all_edges():
        found += [*edge.requires, *edge.ensures]
    return {(clause.kind, clause.name): clause for clause in found}


def _clauses(table: Table) -> str:
    rows = []
    for kind, name in _distinct(table):
        function = getattr(table.machine, name, None)
        rows.append((f"`{name}`", kind, _line(getattr(function, "__doc__", ""))))
    return _grid(("Name", "Kind", "Says"), rows)


def _fields(table: Table) -> list[tuple[str, ...]]:
    hints: dict[str, str] = {}
    for base in reversed(table.context.__mro__):
        hints.update(getattr(base, "__annotations__", {}))
    return [(f"`{name}`", f"`{hints[name]}`") for name in table.context.__struct_fields__]


def _names(clauses: tuple[Clause, ...]) -> str:
    return ", ".join(f"`{clause.name}`" for clause in clauses)


def _line(text: str | None, before: str = "") -> str:
    first = (text or "").strip().partition("\n\n")[0]
    return before + " ".join(first.split()) if first else ""


def _time(text: str) -> str:
    return f"{int(text):,} ms" if text.isdigit() else f"`{text}`"


def _grid(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '∣') for cell in row)} |" for row in lines)
