"""`list`, `show`, `why`: runs as they stand.  Nothing is moved."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from engine.cli import output
from engine.cli.front import DEFAULT_DATA_DIR, AsJson, DataDir, RunName, answering
from engine.cli.place import AppFactory, Place, opened, require_store
from engine.errors import UsageError

if TYPE_CHECKING:
    from engine.app import App
    from engine.journal import Entry
    from engine.ports import StoredRun


def look(factory: AppFactory, data_dir: Path, what: Any) -> Any:
    """What `what(app)` gives, for an app that only looks at the store of a directory."""
    from engine.cli.signals import run

    async def main() -> Any:
        async with opened(factory, Place(data_dir=data_dir)) as app:
            found: Coroutine[Any, Any, Any] = what(app)
            return await found

    require_store(data_dir)
    return run(main())


def add_looking(cli: typer.Typer, factory: AppFactory) -> None:
    """Add the commands that look."""

    @cli.command("list")
    @answering
    def list_runs(
        machine: Annotated[str | None, typer.Option(help="Only runs of this machine.")] = None,
        status: Annotated[list[str] | None, typer.Option(help="Only these; repeatable.")] = None,
        limit: Annotated[int, typer.Option(min=1, help="At most so many, newest first.")] = 100,
        data_dir: DataDir = DEFAULT_DATA_DIR,
        as_json: AsJson = False,
    ) -> int:
        """List runs, newest first."""
        statuses = _checked(status or [])
        found = look(factory, data_dir, lambda app: _list(app, machine, statuses, limit))
        _print_list(found, as_json)
        return 0

    @cli.command("show")
    @answering
    def show(run: RunName, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> int:
        """Show a run and its journal: transitions, contract verdicts, the values they saw."""
        shown = look(factory, data_dir, lambda app: _show(app, run))
        if as_json:
            output.emit(shown)
        else:
            _print_show(shown)
        return 0

    @cli.command("why")
    @answering
    def why(run: RunName, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> int:
        """Say what a run waits for, until when, and what would move it."""
        from engine.cli.why import explain, print_explanation

        explained = look(factory, data_dir, lambda app: explain(app, run))
        if as_json:
            output.emit(explained)
        else:
            print_explanation(explained)
        return 0


def _checked(statuses: list[str]) -> tuple[str, ...]:
    from engine.run import Status

    allowed = get_args(Status)
    for one in statuses:
        if one not in allowed:
            raise UsageError(f"--status: expected one of {', '.join(allowed)}, got {one!r}.")
    return tuple(statuses)


async def _list(app: App, machine: str | None, statuses: tuple[str, ...], limit: int) -> Any:
    from engine.cli.naming import find_table
    from engine.ports import Query

    if machine is not None:
        find_table(app, machine)
    return await app.runs(Query(machine=machine, statuses=statuses, limit=limit))


def _print_list(found: list[StoredRun], as_json: bool) -> None:
    if as_json:
        for one in found:
            output.emit(summary(one))
        return
    if not found:
        output.write("no runs")
        return
    rows = [
        (r.run_id, r.machine, r.key or "-", r.state, r.status, str(r.seq), output.moment(s.due_ms))
        for s in found
        for r in [s.run]
    ]
    output.table(("RUN", "MACHINE", "KEY", "STATE", "STATUS", "SEQ", "DUE"), rows)


def summary(stored: StoredRun) -> dict[str, Any]:
    """A run without its context, as JSON."""
    run = stored.run
    return {
        "run_id": run.run_id,
        "machine": run.machine,
        "version": run.version,
        "key": run.key,
        "state": run.state,
        "status": run.status,
        "seq": run.seq,
        "created_ms": run.created_ms,
        "updated_ms": stored.updated_ms,
        "due_ms": stored.due_ms,
        "owner": stored.owner,
        "parent_id": run.parent.run_id if run.parent else None,
        "depth": run.depth,
        "last_error": run.last_error,
    }


async def _show(app: App, name: str) -> dict[str, Any]:
    from engine.cli.naming import find_run

    stored = await find_run(app, name)
    run = app.codec.open_run(stored.run)
    journal = await app.journal(run.run_id)
    return {
        **summary(stored),
        "context": output.plain(run.context),
        "journal": [_entry(entry) for entry in journal],
        "effects": output.plain(await app.effects(run.run_id)),
    }


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "seq": entry.seq,
        "at_ms": entry.at_ms,
        "event": entry.event,
        "source": entry.source,
        "target": entry.target,
        "status": entry.status,
        "payload": output.plain(entry.payload),
        "verdicts": output.plain(entry.verdicts),
        "worker": entry.worker,
    }


def _print_show(shown: dict[str, Any]) -> None:
    key = f", key {shown['key']}" if shown["key"] else ""
    output.write(f"{shown['machine']} {shown['run_id']}{key}: {shown['state']} ({shown['status']})")
    if shown["parent_id"]:
        output.write(f"  child of {shown['parent_id']}, depth {shown['depth']}")
    if shown["last_error"]:
        output.write(f"  last error: {shown['last_error']}")
    output.write(f"  context: {output.one_line(shown['context'], 2000)}")
    for entry in shown["journal"]:
        _print_entry(entry)


def _print_entry(entry: dict[str, Any]) -> None:
    source, target = entry["source"] or "(new)", entry["target"]
    way = f"stays in {target}" if source == target else f"{source} -> {target}"
    output.write(f"{entry['seq']:>4}  {output.moment(entry['at_ms'])}  {entry['event']}: {way}")
    if entry["payload"] is not None:
        output.write(f"        payload {output.one_line(entry['payload'], 200)}")
    for verdict in entry["verdicts"]:
        mark = "holds" if verdict["ok"] else "FAILS"
        saw = ", ".join(f"{name}={value!r}" for name, value in verdict["saw"].items())
        seen = f" ({saw})" if saw else ""
        output.write(f"        {mark}  {verdict['kind']} {verdict['clause']}{seen}")
