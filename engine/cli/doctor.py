"""`doctor`: everything that can be checked about a data directory, without changing it.

- the storage rules, one query each (`engine.ports.Inspector`);
- every journal folds to the run as it is stored (`engine.journal.fold`);
- the code of the version that made a run decides the same again (`engine.journal.replay`);
- nobody else can enter the directory or read the files in it;
- whatever checks the program adds.

A run may move while it is looked at, so a contradiction counts only if the run stood still.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from engine.cli import output
from engine.cli.exits import FAILED, OK
from engine.cli.front import DEFAULT_DATA_DIR, AsJson, DataDir, answering
from engine.cli.looking import look
from engine.cli.place import AppFactory
from engine.errors import TurtlesError

if TYPE_CHECKING:
    from engine.app import App
    from engine.ports import Finding, StoredRun

Check = Callable[[Path], Iterable["Finding"]]
"""A check of the program's own, over the data directory."""
RUNS_MAX = 1_000_000
LOOKS = 5


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
    """Findings of the store and of the journals, and how many runs were looked at."""
    from engine.ports import Query

    found = list(app.store.inspector.findings())
    runs = app.store.runs.select(Query(limit=RUNS_MAX))
    for stored in runs:
        found += _journal(app, stored)
    return found, len(runs)


def _journal(app: App, stored: StoredRun) -> list[Finding]:
    from engine.ports import Finding

    run_id = stored.run.run_id
    for _ in range(LOOKS):
        problems = list(_contradictions(app, stored))
        after = app.store.runs.get(run_id)
        if not problems or after is None or after.run.seq == stored.run.seq:
            break
        stored = after
    return [Finding("journal", run_id, problem) for problem in problems]


def _contradictions(app: App, stored: StoredRun) -> Iterator[str]:
    """How the stored run differs from what its journal folds to."""
    from engine.journal import fold, replay

    run = stored.run
    try:
        entries = app.store.journal.read(run.run_id, limit=run.seq + 1)
        opened = [app.codec.open_entry(run.machine, entry) for entry in entries]
        folded = fold(opened)
        context = app.codec.open_run(run).context
        table = app.tables.get(run.machine)
        same_code = table is not None and table.fingerprint == run.version
        differences = replay(table, opened) if table and same_code else []
    except TurtlesError as error:
        yield str(error)
        return
    if (folded.seq, folded.state) != (run.seq, run.state):
        yield (
            f"stored at seq {run.seq} in {run.state}, "
            f"but the journal ends at seq {folded.seq} in {folded.state}"
        )
    if folded.context != context:
        yield f"the stored context is not the one of journal entry {folded.seq}"
    for difference in differences:
        yield f"its machine's code decides otherwise than recorded: {difference}"


def permissions(data_dir: Path) -> list[Finding]:
    """What others could enter or read."""
    from engine.ports import Finding

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
