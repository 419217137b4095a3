"""What all commands share: their options, and how an error becomes a message and an exit code.

`answering` wraps every command::

    log set-up -> the command -> its exit code
                    TurtlesError -> "error: ..." on stderr, with --json also
                                    {"error": kind, "message": ...} on stdout, and its exit code
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from typer.core import TyperGroup

from engine.cli.exits import INTERRUPTED, USAGE, Interrupted, code_of
from engine.errors import TurtlesError

P = ParamSpec("P")

DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir", envvar="TURTLES_DATA_DIR", metavar="DIR", help="Where runs are kept."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="An id, its unique beginning, or MACHINE:KEY.")
]
DEFAULT_DATA_DIR = Path(".turtles")


class Front(TyperGroup):
    """A command group that also answers bad options in the form that was asked for."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line; exits, unless `standalone_mode` is false."""
        given = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(given, prog_name, complete_var, False, windows_expand_args, **extra)
        except typer.TyperException as error:
            if not standalone_mode:
                raise
            code = _refuse_options(error, given)
        except typer.Abort:
            code = USAGE
        if code == INTERRUPTED:
            # Said here, because typer itself answers a Ctrl-C outside of a command, with silence.
            say_stopped("--json" in given)
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code


def _refuse_options(error: typer.TyperException, given: Sequence[str]) -> int:
    message = error.format_message().rstrip(".") + _seen(error, given)
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help itself
        sys.stderr.write(error.format_message() + "\n")
        return USAGE
    context = getattr(error, "ctx", None)
    hint = f". See: {context.command_path} --help" if context is not None else ""
    report("usage", message + hint, as_json="--json" in given)
    return error.exit_code


def _seen(error: typer.TyperException, given: Sequence[str]) -> str:
    """The value of the option that the error is about; typer says only what was expected."""
    names = getattr(getattr(error, "param", None), "opts", ())
    for name, value in zip(given, [*given[1:], ""], strict=False):
        before, equals, after = name.partition("=")
        if before in names:
            return f", got {after if equals else value!r}"
    return ""


def report(kind: str, message: str, *, as_json: bool) -> None:
    """Say what went wrong: on stderr, and as JSON on stdout where that was asked for."""
    from engine.cli.output import complain, emit

    complain(f"error: {message}")
    if as_json:
        emit({"error": kind, "message": message})


def answering(command: Callable[P, int]) -> Callable[P, None]:
    """Decorator of a command that returns its exit code.  Its JSON switch is named `as_json`."""

    @wraps(command)
    def answered(*args: P.args, **options: P.kwargs) -> None:
        raise typer.Exit(_answer(lambda: command(*args, **options), bool(options.get("as_json"))))

    # typer reads the signature of the wrapped function, but its hints from this one.
    answered.__annotations__ = {**command.__annotations__, "return": None}
    return answered


def _answer(command: Callable[[], int], as_json: bool) -> int:
    from engine.log import configure_from

    os.umask(0o077)  # stores and keys are for their owner alone
    try:
        configure_from(os.environ)
        return command()
    except (Interrupted, KeyboardInterrupt):
        return INTERRUPTED
    except TurtlesError as error:
        report(_kind(error), str(error), as_json=as_json)
        return code_of(error)


def say_stopped(as_json: bool) -> int:
    """Say that an interruption was obeyed; the exit code."""
    from engine.cli.output import complain, emit

    message = "stopped; run the same command again to go on"
    complain(message)
    if as_json:
        emit({"error": "interrupted", "message": message})
    return INTERRUPTED


def _kind(error: TurtlesError) -> str:
    """`UnknownMachine` as `unknown_machine`."""
    name = type(error).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
