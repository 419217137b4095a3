"""`run MACHINE` and `work`: the commands that move runs."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer

from engine.cli import output
from engine.cli.exits import OK, Interrupted, NotEnded, code_of_status
from engine.cli.front import DEFAULT_DATA_DIR, AsJson, DataDir, answering
from engine.cli.place import AppFactory, Place, make_data_dir, opened

if TYPE_CHECKING:
    from engine.app import App, Outcome

T = TypeVar("T")


def add_running(cli: typer.Typer, factory: AppFactory) -> None:
    """Add the commands that move runs."""

    @cli.command("run")
    @answering
    def run(
        machine: Annotated[str, typer.Argument(metavar="MACHINE")],
        input_: Annotated[
            str, typer.Option("--input", metavar="JSON", help="The first context, or @file.")
        ] = "{}",
        key: Annotated[
            str | None, typer.Option(help="Start it once: the same key is the same run.")
        ] = None,
        tenant: Annotated[str, typer.Option(help="For whom; tenants have equal shares.")] = "",
        priority: Annotated[int, typer.Option(help="The higher goes first in its tenant.")] = 0,
        wait: Annotated[bool, typer.Option(help="Move it until it has ended.")] = True,
        timeout: Annotated[float | None, typer.Option(min=0, help="Seconds to wait.")] = None,
        data_dir: DataDir = DEFAULT_DATA_DIR,
        as_json: AsJson = False,
    ) -> int:
        """Start a run of a machine, or go on with the one of that key."""
        _check(factory, machine, input_)
        asked = _Asked(key, tenant, priority)
        if wait:
            return _run(factory, data_dir, machine, input_, asked, timeout, as_json)
        return _start(factory, data_dir, machine, input_, asked, as_json)

    @cli.command("work")
    @answering
    def work(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> int:
        """Move whatever is due, until SIGTERM or SIGINT; then finish the steps in hand."""
        from engine.cli.signals import run as run_until_signal

        make_data_dir(data_dir)
        try:
            run_until_signal(_work(factory, data_dir, as_json))
        except Interrupted:
            output.complain("stopped: every step in hand is finished")
        return OK


class _Asked(NamedTuple):
    """What `App.start` is told besides the machine and its context."""

    key: str | None
    tenant: str
    priority: int


def _check(factory: AppFactory, machine: str, given: str) -> None:
    """Refuse what cannot be, before anything is made or started for it."""
    from engine.cli.naming import find_table, read_context
    from engine.cli.signals import run

    async def main() -> None:
        async with opened(factory, Place(data_dir=None)) as app:
            read_context(find_table(app, machine), given)

    run(main())


def _run(
    factory: AppFactory,
    data_dir: Path,
    machine: str,
    given: str,
    asked: _Asked,
    timeout_seconds: float | None,
    as_json: bool,
) -> int:
    from engine.cli.progress import Progress
    from engine.cli.signals import run

    make_data_dir(data_dir)
    with Progress(as_json=as_json) as progress:
        place = Place(data_dir=data_dir, work=True, moved=progress.moved)
        outcome = run(_until_ended(factory, place, machine, given, asked, timeout_seconds))
    _tell(outcome, as_json)
    return code_of_status(outcome.status)


async def _until_ended(
    factory: AppFactory,
    place: Place,
    machine: str,
    given: str,
    asked: _Asked,
    timeout_seconds: float | None,
) -> Outcome:
    async with opened(factory, place) as app:
        run_id, _ = await _started(app, machine, given, asked)
        try:
            return await while_working(app, app.wait(run_id, timeout_seconds=timeout_seconds))
        except TimeoutError:
            stands = await app.outcome(run_id)
    raise NotEnded(
        f"run {run_id} is {stands.status} in {stands.state} after {timeout_seconds:g} s. "
        f"Go on with `turtles work`, or ask: turtles why {run_id}"
    )


async def while_working(app: App, waiting: Coroutine[Any, Any, T]) -> T:
    """What `waiting` gives; raises what the app's worker raises, should that end first."""
    import asyncio

    task = asyncio.ensure_future(waiting)
    worker = app._serving
    try:
        await asyncio.wait({task, worker} if worker else {task}, return_when="FIRST_COMPLETED")
        if not task.done() and worker is not None:
            worker.result()  # a full disk, a damaged database: raises
        return await task
    finally:
        task.cancel()


async def _started(app: App, machine: str, given: str, asked: _Asked) -> tuple[str, bool]:
    from engine.cli.naming import find_table, read_context

    context = read_context(find_table(app, machine), given)
    started = await app.start(machine, context, **asked._asdict())
    return started.run_id, started.created


def _start(
    factory: AppFactory, data_dir: Path, machine: str, given: str, asked: _Asked, as_json: bool
) -> int:
    from engine.cli.signals import run

    async def main() -> tuple[str, bool]:
        async with opened(factory, Place(data_dir=data_dir)) as app:
            return await _started(app, machine, given, asked)

    make_data_dir(data_dir)
    run_id, created = run(main())
    if as_json:
        output.emit({"run_id": run_id, "machine": machine, "created": created})
    else:
        output.write(f"{run_id} {'accepted' if created else 'was there already'}")
    return OK


def _tell(outcome: Outcome, as_json: bool) -> None:
    if as_json:
        output.emit(outcome)
        return
    output.write(
        f"{outcome.machine} {outcome.run_id}: {outcome.status} in {outcome.state} "
        f"after {outcome.seq} transitions"
    )
    if outcome.last_error:
        output.write(f"last error: {outcome.last_error}")
    if outcome.status in ("failed", "cancelled"):
        output.write(f"context: {output.one_line(outcome.context, 2000)}")
    if outcome.output is not None:
        output.write(f"output: {output.one_line(outcome.output, 2000)}")


async def _work(factory: AppFactory, data_dir: Path, as_json: bool) -> None:
    import asyncio

    from engine.cli.progress import Progress

    # A worker may see any number of runs: lines or JSON lines, never a table of all of them.
    lines: Any = _json_line if as_json else Progress(as_json=False, live=False).moved
    place = Place(data_dir=data_dir, work=True, moved=lines)
    async with opened(factory, place) as app:
        output.complain(f"working on {app.store.name}; stop with SIGTERM or Ctrl-C")
        await while_working(app, asyncio.Event().wait())


def _json_line(decision: Any) -> None:
    entry = decision.entry
    output.emit(
        {
            "run_id": entry.run_id,
            "machine": decision.after.machine,
            "seq": entry.seq,
            "at_ms": entry.at_ms,
            "event": entry.event,
            "source": entry.source,
            "target": entry.target,
            "status": decision.after.status,
        }
    )
