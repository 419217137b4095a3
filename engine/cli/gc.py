"""`gc`: removes runs that ended long ago; their keys stay in use.

A run goes with all runs below it, and only when all of them have ended.  Nothing that is alive is
looked at.  The command may be stopped, or killed, at any moment: every run is there with its whole
journal, or gone.  Run it from time to time, from cron or a timer; any number at once is harmless.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from engine.cli import output
from engine.cli.exits import OK
from engine.cli.front import DEFAULT_DATA_DIR, AsJson, DataDir, answering
from engine.cli.looking import look
from engine.cli.place import AppFactory
from engine.errors import UsageError

if TYPE_CHECKING:
    from engine.app import App
    from engine.retention import Collected

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def add_gc(cli: typer.Typer, factory: AppFactory) -> None:
    """Add the command `gc`."""

    @cli.command("gc")
    @answering
    def gc(
        older_than: Annotated[
            str, typer.Option(metavar="AGE", help="Ended longer ago than this: 30d, 12h, 90m, 45s.")
        ],
        machine: Annotated[
            str | None, typer.Option(help="Only runs of this machine, and all below them.")
        ] = None,
        batch: Annotated[int, typer.Option(min=1, help="Trees of runs in a transaction.")] = 500,
        forget_keys_after: Annotated[
            str | None,
            typer.Option(metavar="AGE", help="Let keys of removed runs be used anew after this."),
        ] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
        data_dir: DataDir = DEFAULT_DATA_DIR,
        as_json: AsJson = False,
    ) -> int:
        """Remove runs that ended long ago, each with all runs below it."""
        older_ms = milliseconds("--older-than", older_than)
        forget_ms = (
            None
            if forget_keys_after is None
            else milliseconds("--forget-keys-after", forget_keys_after)
        )

        async def collect(app: App) -> Collected:
            return await app.collect(
                older_ms,
                machine=machine,
                batch=batch,
                forget_keys_after_ms=forget_ms,
                dry_run=dry_run,
            )

        _tell(look(factory, data_dir, collect), as_json)
        return OK


def milliseconds(option: str, given: str) -> int:
    """An age such as `30d`, `12h`, `90m`, `45s`, `2w`.

    Raises:
        UsageError: of another form.
    """
    match = re.fullmatch(r"(\d+)([smhdw])", given.strip())
    if match is None:
        raise UsageError(
            f"{option}: expected a whole number and a unit of {', '.join(_UNITS_MS)} "
            f"(30d, 12h, 90m), got {given!r}."
        )
    return int(match[1]) * _UNITS_MS[match[2]]


def _tell(done: Collected, as_json: bool) -> None:
    if as_json:
        output.emit(done)
        return
    verb = "would be removed" if done.dry_run else "removed"
    output.write(f"{verb}: {done.runs} runs in {done.trees} trees")
    if done.kept:
        output.write(f"kept: {done.kept} trees, for a run below has not ended, or ended later")
    if done.forgotten:
        output.write(f"forgotten: {done.forgotten} removed runs, whose keys may be used anew")
