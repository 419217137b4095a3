"""`verify MACHINE`: the static checks, then every order of events, losses and crashes in a scope.

::

    turtles verify Payment                        explore for at most 30 seconds
    turtles verify shop/order.py:Order --out .    one in a file; failures also as tests and diagrams
    turtles verify Payment --replay tv1:...       one way again

Its exit codes are its own: 0 nothing found and all covered, 1 static errors, 2 a coverage gap or
the budget over (also a usage error, with a message), 3 a safety property broken, 4 progress lost,
5 the exploration contradicted itself.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli import output
from engine.cli.exits import OK
from engine.cli.front import AsJson, answering, report
from engine.cli.lint import _find
from engine.cli.place import AppFactory, Place, opened
from engine.errors import DefinitionError

if TYPE_CHECKING:
    from engine.ports import Store
    from engine.table import Table
    from engine.verification.result import Report

STATIC = 1
SAFETY = 3
LIVENESS = 4


def add_verify(cli: typer.Typer, factory: AppFactory) -> None:
    """Add the command `verify`."""

    @cli.command("verify")
    @answering
    def verify(
        machine: Annotated[str, typer.Argument(metavar="MACHINE", show_default=False)],
        budget: Annotated[float, typer.Option(help="Seconds to explore for, at most.")] = 30.0,
        seed: Annotated[int, typer.Option(help="Which ways are repeated from the start.")] = 0,
        messages: Annotated[int, typer.Option(help="Events from outside in one life.")] = 3,
        contexts: Annotated[int, typer.Option(help="First contexts to try, at most.")] = 6,
        out: Annotated[
            Path | None, typer.Option(help="Where failures go, as tests and diagrams.")
        ] = None,
        replay: Annotated[
            str | None, typer.Option(metavar="TOKEN", help="Go one way again.")
        ] = None,
        as_json: AsJson = False,
    ) -> int:
        """Explore a machine: every order of events, duplicate, loss and crash in a small scope."""
        from engine.cli.signals import run

        async def main() -> int:
            async with opened(factory, Place(data_dir=None)) as app:
                await app.stop()
                try:
                    table = _find(dict(app.tables), machine)
                except DefinitionError as error:
                    report("definition", str(error), as_json=as_json)
                    return STATIC
                known = [one.machine for one in app.tables.values()]
                with redirect_stdout(sys.stderr):  # machines that print must not garble the answer
                    if replay is not None:
                        code, answer = _replay(table, app.store, known, replay)
                    else:
                        from engine.verification.result import Scope

                        scope = Scope(messages=messages, contexts=contexts)
                        code, answer = _explore(
                            table, app.store, known, scope, budget, seed, out, as_json
                        )
                if as_json:
                    output.emit(answer)
                else:
                    output.write("\n".join(answer))
                return code

        return run(main())


def _replay(table: Table, store: Store, known: list[Any], text: str) -> tuple[int, Any]:
    from engine.verification.explore import repeat
    from engine.verification.report import read_token, said

    token = read_token(text)
    lines = []
    if (token.machine, token.fingerprint) != (table.name, table.fingerprint):
        lines.append(f"warning: the token is of {token.machine} {token.fingerprint}, "
                     f"this is {table.name} {table.fingerprint}")  # fmt: skip
    liveness = token.kind == "liveness"
    found = repeat(table.machine, store, token.steps, known=known, liveness=liveness)
    lines += [f"{number:>3}  {said(step)}" for number, step in enumerate(token.steps, start=1)]
    lines += [f"     then {state}" for state in found.states[-1:]]
    lines += [f"FAIL {breach.rule}: {breach.problem}" for breach in found.breaches]
    lines += [] if found.breaches else ["FIXED: nothing is wrong on this way any more"]
    return (LIVENESS if liveness else SAFETY) if found.breaches else OK, lines


def _explore(
    table: Table,
    store: Store,
    known: list[Any],
    scope: Any,
    budget_seconds: float,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> tuple[int, Any]:
    from engine.verification import report as words
    from engine.verification.explore import explore
    from engine.verification.lint import lint

    static = lint([table], known=known)
    found = explore(
        table.machine, store, known=known, budget_seconds=budget_seconds, seed=seed, scope=scope
    )
    written = _write(found, out) if out is not None else []
    code = words.exit_code(found, static)
    if as_json:
        return code, words.as_json(found, static)
    return code, [*words.lines(found, static), *written, f"exit {code}"]


def _write(found: Report, out: Path) -> list[str]:
    from engine.verification.report import diagram, pytest_file

    out.mkdir(parents=True, exist_ok=True)
    written = []
    for number, failure in enumerate(found.failures, start=1):
        stem = f"{found.table.name.lower()}_{number}"
        for name, text in (
            (f"test_{stem}.py", pytest_file(found.table, failure)),
            (f"{stem}.mmd", diagram(failure)),
        ):
            (out / name).write_text(text)
            written.append(f"written   {out / name}")
    return written
