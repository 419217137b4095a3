"""`page`: a page for every machine, written to a directory or compared with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from engine.cli import output
from engine.cli.exits import FAILED, OK
from engine.cli.front import AsJson, answering
from engine.cli.place import AppFactory, Place, opened
from engine.errors import UsageError


def add_page(cli: typer.Typer, factory: AppFactory) -> None:
    """Add the command `page`."""

    @cli.command("page")
    @answering
    def page(
        directory: Annotated[Path, typer.Argument(metavar="DIR")],
        check: Annotated[
            bool, typer.Option("--check", help="Write nothing; exit 1 where a page differs.")
        ] = False,
        as_json: AsJson = False,
    ) -> int:
        """Write a Markdown page about every machine: diagram, transitions, contracts."""
        if not directory.is_dir():
            raise UsageError(f"directory {directory}: it is not there. Make it first.")
        wanted = _pages(factory)
        stale = [name for name, text in wanted.items() if _read(directory / name) != text]
        if not check:
            for name in stale:
                (directory / name).write_text(wanted[name], encoding="utf-8")
        word = "differs" if check else "written"
        if as_json:
            output.emit({word: stale, "pages": len(wanted)})
        else:
            for name in stale:
                output.write(f"{word}: {directory / name}")
            output.write(f"{len(wanted)} pages, {len(stale)} {word}")
        return FAILED if check and stale else OK


def _pages(factory: AppFactory) -> dict[str, str]:
    from engine.cli.signals import run
    from engine.page import index_page, machine_page

    async def machines() -> list[Any]:
        async with opened(factory, Place(data_dir=None)) as app:
            return [table.machine for table in app.tables.values()]

    found = sorted(run(machines()), key=lambda machine: str(machine.__module__))
    pages = {f"{machine.__name__.lower()}.md": machine_page(machine) for machine in found}
    return {**pages, "README.md": index_page(found)}


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
