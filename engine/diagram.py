"""A machine as a Mermaid state diagram.

With a run: its state is in class `current`, the states it has been in are in class `visited`, and
every edge it has taken is marked with how often (Mermaid cannot style the edges of this diagram).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.journal import Entry
    from engine.table import Edge, Table

_RESERVED = frozenset({"as", "class", "classDef", "direction", "end", "note", "state", "style"})
_STYLES = (
    "    classDef visited fill:#dbeafe,stroke:#2563eb",
    "    classDef current fill:#fde68a,stroke:#b45309,stroke-width:3px",
)


def mermaid(table: Table, *, current: str | None = None, journal: list[Entry] | None = None) -> str:
    """The diagram's text; pure."""
    taken = Counter((entry.source, entry.event, entry.target) for entry in journal or [])
    lines = ["stateDiagram-v2"]
    lines += [f'    state "{name}" as {_id(name)}' for name in table.places if name in _RESERVED]
    lines.append(f"    [*] --> {_id(table.initial)}")
    lines += [_edge(edge, taken) for edge in table.all_edges()]
    lines += [f"    {_id(name)} --> [*]" for name, place in table.places.items() if place.final]
    if journal is not None:
        seen = dict.fromkeys(entry.target for entry in journal)
        lines += _STYLES
        lines += [f"    class {_id(name)} visited" for name in seen if name != current]
    if current is not None:
        lines.append(f"    class {_id(current)} current")
    return "\n".join(lines)


def _edge(edge: Edge, taken: Counter[tuple[str, str, str]]) -> str:
    guard = f" [{edge.guard_text}]" if edge.guard_text else ""
    times = taken[(edge.source, edge.event, edge.target)]
    mark = f" ✓{times}" if times else ""
    return f"    {_id(edge.source)} --> {_id(edge.target)}: {edge.event}{guard}{mark}"


def _id(name: str) -> str:
    return f"{name}_state" if name in _RESERVED else name
