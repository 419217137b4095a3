"""`db upgrade | check | current`: the schema of the database."""

from __future__ import annotations

from collections.abc import Callable

import typer

from engine.cli import output
from engine.cli.exits import FAILED, OK
from engine.cli.front import DEFAULT_DATA_DIR, AsJson, DataDir, Front, answering
from engine.cli.place import Schema, make_data_dir, require_store, url_of


def add_schema(cli: typer.Typer, schema: Callable[[], Schema]) -> None:
    """Add the group `db`.  `schema()` is called by its commands only."""
    group = typer.Typer(
        cls=Front, no_args_is_help=True, rich_markup_mode=None, help="The database's schema."
    )
    cli.add_typer(group, name="db")

    @group.command("upgrade")
    @answering
    def upgrade(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> int:
        """Bring the database up to date, making it if it is not there."""
        make_data_dir(data_dir)
        return _tell_revision(schema().upgrade(url_of(data_dir)), as_json)

    @group.command("current")
    @answering
    def current(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> int:
        """Show the database's revision."""
        require_store(data_dir)
        return _tell_revision(schema().current(url_of(data_dir)), as_json)

    @group.command("check")
    @answering
    def check(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> int:
        """Look for damage, and for a schema unlike this version's."""
        require_store(data_dir)
        problems = schema().check(url_of(data_dir))
        if as_json:
            output.emit({"ok": not problems, "problems": problems})
        else:
            for line in problems or ["ok"]:
                output.write(line)
        return FAILED if problems else OK


def _tell_revision(revision: str | None, as_json: bool) -> int:
    if as_json:
        output.emit({"revision": revision})
    else:
        output.write(revision or "none")
    return OK
