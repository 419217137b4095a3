"""`send`, `pause`, `resume`, `cancel`: events from a person.

The event is durable first; then, if no worker holds the run, it is applied here and now, so that
the answer already says what became of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli import output
from engine.cli.exits import FAILED, OK
from engine.cli.front import DEFAULT_DATA_DIR, AsJson, DataDir, RunName, answering
from engine.cli.looking import look
from engine.cli.place import AppFactory

if TYPE_CHECKING:
    from engine.app import App
    from engine.ports import Receipt


def add_sending(cli: typer.Typer, factory: AppFactory) -> None:
    """Add the commands that send."""

    @cli.command("send")
    @answering
    def send(
        run: RunName,
        event: Annotated[str, typer.Argument(metavar="EVENT", help="The name of the event.")],
        payload: Annotated[str | None, typer.Option(help="JSON, or @file.")] = None,
        key: Annotated[str | None, typer.Option(help="Accept it once under this key.")] = None,
        data_dir: DataDir = DEFAULT_DATA_DIR,
        as_json: AsJson = False,
    ) -> int:
        """Send an event to a run."""
        return _answer(
            look(factory, data_dir, lambda app: _send(app, run, event, payload, key)), as_json
        )

    @cli.command("pause")
    @answering
    def pause(run: RunName, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> int:
        """Stop moving a run until it is resumed; its events are kept."""
        return _answer(look(factory, data_dir, lambda app: _control(app, run, "pause")), as_json)

    @cli.command("resume")
    @answering
    def resume(run: RunName, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> int:
        """Go on with a paused or quarantined run."""
        return _answer(look(factory, data_dir, lambda app: _control(app, run, "resume")), as_json)

    @cli.command("cancel")
    @answering
    def cancel(run: RunName, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> int:
        """Ask a run to stop, its children first; what it made is undone."""
        return _answer(look(factory, data_dir, lambda app: _control(app, run, "cancel")), as_json)


async def _send(app: App, name: str, event: str, payload: str | None, key: str | None) -> Any:
    from engine.cli.naming import find_run, read_event

    stored = await find_run(app, name)
    given = read_event(app.codec.table(stored.run.machine), event, payload)
    return await _applied(app, event, await app.send(stored.run.run_id, given, key=key))


async def _control(app: App, name: str, what: str) -> Any:
    from engine.cli.naming import find_run

    stored = await find_run(app, name)
    return await _applied(app, what, await getattr(app, what)(stored.run.run_id))


async def _applied(app: App, event: str, receipt: Receipt) -> dict[str, Any]:
    became = await app.apply(receipt)
    stored = app.store.runs.get(receipt.run_id)
    assert stored is not None
    return {
        "run_id": receipt.run_id,
        "event": event,
        "key": receipt.key,
        "receipt": became.status,
        "duplicate": receipt.duplicate,
        "seq": became.seq,
        "reason": became.reason,
        "state": stored.run.state,
        "status": stored.run.status,
    }


def _answer(became: dict[str, Any], as_json: bool) -> int:
    if as_json:
        output.emit(became)
    else:
        output.write(_told(became))
    return FAILED if became["receipt"] == "rejected" else OK


def _told(became: dict[str, Any]) -> str:
    again = " (its key had been used before)" if became["duplicate"] else ""
    head = f"{became['event']} {became['receipt']}{again}"
    now = f"run {became['run_id']} is {became['status']} in {became['state']}"
    if became["receipt"] == "rejected":
        return f"{head}: {became['reason']}; {now}"
    if became["receipt"] == "accepted":
        return f"{head}: a worker has the run and will apply it; {now}"
    return f"{head} as transition {became['seq']}: {now}"
