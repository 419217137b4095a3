"""`graph MACHINE`: the machine as a Mermaid state diagram.

With a run: its state is in class `current`, the states it has been in are in class `visited`, and
every edge it has taken is marked with how often (Mermaid cannot style the edges of this diagram).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli import output
from engine.cli.front import DEFAULT_DATA_DIR, AsJson, DataDir, answering
from engine.cli.looking import look
from engine.cli.place import AppFactory, Place, opened
from engine.errors import UnknownRun

if TYPE_CHECKING:
    from engine.app import App
    from engine.journal import Entry
    from engine.table import Edge, Table

_RESERVED = frozenset({"as", "class", "classDef", "direction", "end", "note", "state", "style"})
_STYLES = (
    "    classDef visited fill:#dbeafe,stroke:#2563eb",
    "    classDef current fill:#fde68a,stroke:#b45309,stroke-width:3px",
)


def add_graph(cli: typer.Typer, factory: AppFactory) -> None:
    """Add the command `graph`."""

    @cli.command("graph")
    @answering
    def graph(
        machine: Annotated[str, typer.Argument(metavar="MACHINE")],
        run: Annotated[str | None, typer.Option(help="Mark where this run is and was.")] = None,
        data_dir: DataDir = DEFAULT_DATA_DIR,
        as_json: AsJson = False,
    ) -> int:
        """Draw a machine as a Mermaid state diagram."""
        if run is None:
            drawn = _without_store(factory, machine)
        else:
            drawn = look(factory, data_dir, lambda app: _draw(app, machine, run))
        if as_json:
            output.emit(drawn)
        else:
            output.write(drawn["mermaid"])
        return 0


def _without_store(factory: AppFactory, machine: str) -> dict[str, Any]:
    from engine.cli.signals import run

    async def main() -> dict[str, Any]:
        async with opened(factory, Place(data_dir=None)) as app:
            return await _draw(app, machine, None)

    return run(main())


async def _draw(app: App, machine: str, name: str | None) -> dict[str, Any]:
    from engine.cli.naming import find_run, find_table

    table = find_table(app, machine)
    if name is None:
        return {"machine": machine, "run_id": None, "mermaid": mermaid(table)}
    stored = await find_run(app, name)
    if stored.run.machine != machine:
        raise UnknownRun(f"run {stored.run.run_id} is one of {stored.run.machine}, not {machine}.")
    journal = app.store.journal.read(stored.run.run_id)
    return {
        "machine": machine,
        "run_id": stored.run.run_id,
        "current": stored.run.state,
        "visited": list(dict.fromkeys(entry.target for entry in journal)),
        "mermaid": mermaid(table, current=stored.run.state, journal=journal),
    }


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
