"""`build_cli(app_factory)`: the commands of a program that embeds turtles, for its own machines.

::

    from engine.cli import Place, build_cli

    def make_app(place: Place) -> App:
        return App([Payment], store=open_store(place.store_url), work=place.work,
                   moved=place.moved)

    cli = build_cli(make_app)      # a typer.Typer: add commands of your own with @cli.command()

    if __name__ == "__main__":
        cli()

Commands import what they need when they are called, so `--help` is quick; keep heavy imports of
your own inside `make_app` for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import typer

from engine.cli import output
from engine.cli.doctor import Check, add_doctor
from engine.cli.exits import epilog
from engine.cli.front import Front
from engine.cli.gc import add_gc
from engine.cli.graph import add_graph
from engine.cli.lint import add_lint
from engine.cli.looking import add_looking
from engine.cli.page import add_page
from engine.cli.place import AppFactory, Schema
from engine.cli.running import add_running
from engine.cli.schema import add_schema
from engine.cli.sending import add_sending
from engine.cli.verify import add_verify


def build_cli(
    app_factory: AppFactory,
    *,
    about: str = "Durable runs of state machines.",
    version: str = "",
    schema: Callable[[], Schema] | None = None,
    checks: Iterable[Check] = (),
    environments: tuple[str, ...] = (),
) -> typer.Typer:
    """The generic commands over a program's machines.

    Args:
        app_factory: makes the app for a `Place`: a data directory (or a store in memory), whether
            to work, whom to tell of transitions.  It may return an `App`, or any async context
            manager of one.
        about: the first line of `--help`.
        version: what `--version` says, the program's name and its version; without it there is no
            such option.
        schema: gives the module that knows the database's schema
            (`lambda: persistence.schema`); without it there is no group `db`.
        checks: what `doctor` shall check besides the store, each a function of the data directory
            that gives `engine.ports.Finding`s.
        environments: modules, or packages of modules, that `verify` imports so that the
            environments of the machines register (`engine.verification.environment`).

    Returns:
        A `typer.Typer` to call, or to add commands to (wrap them with `engine.cli.front.answering`
        to share error messages and exit codes).
    """
    cli = typer.Typer(
        cls=Front,
        help=about,
        epilog=epilog(),
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    if version:
        _add_version(cli, version)
    add_running(cli, app_factory)
    add_looking(cli, app_factory)
    add_sending(cli, app_factory)
    add_graph(cli, app_factory)
    add_page(cli, app_factory)
    add_lint(cli, app_factory)
    add_verify(cli, app_factory, environments, schema)
    add_doctor(cli, app_factory, tuple(checks))
    add_gc(cli, app_factory)
    if schema is not None:
        add_schema(cli, schema)
    return cli


def _add_version(cli: typer.Typer, version: str) -> None:
    def tell(asked: bool) -> None:
        if asked:
            output.write(version)
            raise typer.Exit

    option = typer.Option(False, "--version", is_eager=True, callback=tell, help="Say the version.")

    @cli.callback()
    def front(_version: bool = option) -> None:
        """What comes before every command."""
