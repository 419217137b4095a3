"""`graph MACHINE`: the machine as a Mermaid state diagram; with a run, where it is and was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli import output
from engine.cli.front import DEFAULT_DATA_DIR, AsJson, DataDir, answering
from engine.cli.looking import look
from engine.cli.place import AppFactory, Place, opened
from engine.errors import UnknownRun

if TYPE_CHECKING:
    from engine.app import App


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
    from engine.diagram import mermaid

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
