"""`doctor`: everything that can be checked about a data directory, without changing it.

- everything that `verify --history` checks (`engine.verification.history`): the storage rules, that
  every journal folds to its run and is decided again alike, effects, children, causes, fences;
- nobody else can enter the directory or read the files in it;
- whatever checks the program adds.

A run may move while it is looked at, so a contradiction counts only if the run stood still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from engine.cli import output
from engine.cli.exits import FAILED, OK
from engine.cli.front import DEFAULT_DATA_DIR, AsJson, DataDir, answering
from engine.cli.looking import look
from engine.cli.place import AppFactory

if TYPE_CHECKING:
    from engine.app import App
    from engine.ports import Finding

Check = Callable[[Path], Iterable["Finding"]]
"""A check of the program's own, over the data directory."""


def add_doctor(cli: typer.Typer, factory: AppFactory, checks: Iterable[Check]) -> None:
    """Add the command `doctor`."""

    @cli.command("doctor")
    @answering
    def doctor(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> int:
        """Check the store, every journal, permissions, and what the program adds."""
        found, runs = look(factory, data_dir, examine)
        found = [*found, *permissions(data_dir)]
        for check in checks:
            found += check(data_dir)
        _tell(_once(found), runs, as_json)
        return FAILED if found else OK


async def examine(app: App) -> tuple[list[Finding], int]:
    """Broken promises of the store and of the runs, and how many runs were looked at."""
    from engine.ports import Finding
    from engine.verification.history import examine_history

    report = await examine_history(app)
    found = [Finding(one.rule, one.run_id, one.problem) for one in report.errors]
    if report.more:
        found.append(Finding("more", None, f"{report.more} findings beyond these"))
    return found, report.runs


def permissions(data_dir: Path) -> list[Finding]:
    """What others could enter or read; nothing where no directory is (the store is a server's)."""
    from engine.ports import Finding

    if not data_dir.is_dir():
        return []
    found = []
    for path in (data_dir, *sorted(data_dir.iterdir())):
        try:
            mode = path.stat().st_mode & 0o777
        except FileNotFoundError:
            continue  # removed meanwhile
        if mode & 0o077:
            right = "700" if path.is_dir() else "600"
            problem = f"{path}: mode {mode:o} lets others in. Run: chmod {right} {path}"
            found.append(Finding("permissions", None, problem))
    return found


def _once(found: list[Finding]) -> list[Finding]:
    return list(dict.fromkeys(found))


def _tell(found: list[Finding], runs: int, as_json: bool) -> None:
    if as_json:
        output.emit({"ok": not found, "runs": runs, "findings": output.plain(found)})
        return
    for one in found:
        where = f"run {one.run_id}: " if one.run_id else ""
        output.write(f"{one.rule}: {where}{one.problem}")
    output.write(f"{len(found)} findings in {runs} runs" if found else f"clean: {runs} runs")
