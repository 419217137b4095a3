"""`verify [MACHINE]...`: the static checks, then every order of events, losses and crashes.

::

    turtles verify Payment                        everything about one machine, at most 30 seconds
    turtles verify --all --budget 60              every machine of the program
    turtles verify shop/order.py:Order --out .    one in a file; failures also as tests and diagrams
    turtles verify Payment --replay tv1:...       one way again
    turtles verify Payment --until-edge "paying --spent--> confirming"     a way to a transition
    turtles verify Payment --store postgresql://...    over scratch databases of that server
    turtles verify --history .turtles/runs.db     what production has recorded

Its exit codes are its own (`engine.verification.report.EXITS`): 1 to 6 say what was found, so wrong
use is 64 here and not 2, and a database that cannot be read 66.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from engine.cli import output
from engine.cli.board import Board
from engine.cli.exits import Interrupted
from engine.cli.front import AsJson, answering, report
from engine.cli.lint import _find, _tables
from engine.cli.place import STORE_VARIABLE, AppFactory, Schema
from engine.errors import DefinitionError, SecretsError, StoreError, TurtlesError, UsageError

if TYPE_CHECKING:
    from engine.cli.verifying import Job, Scratch
    from engine.table import Table
    from engine.verification.report import Told

STATIC = 1
WRONG_USE = 64
NO_INPUT = 66
NEVER = 2
Machines = Annotated[list[str] | None, typer.Argument(metavar="MACHINE", show_default=False)]
File = Path | None


class VerifyCommand(TyperCommand):
    """A command whose bad options do not end with 2, which says something else here."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        """Read the options."""
        try:
            return super().make_context(*args, **extra)
        except typer.TyperException as error:
            error.exit_code = WRONG_USE
            raise


def add_verify(
    cli: typer.Typer,
    factory: AppFactory,
    environments: Sequence[str] = (),
    schema: Callable[[], Schema] | None = None,
) -> None:
    """Add the command `verify`.

    Args:
        schema: makes scratch databases for `--store`.
        environments: modules (or packages of them) in which environments are defined.
    """

    @cli.command("verify", cls=VerifyCommand)
    @answering
    def verify(
        machines: Machines = None,
        everything: Annotated[
            bool, typer.Option("--all", help="Every machine; the budget is for all together.")
        ] = False,
        budget: Annotated[float, typer.Option(help="Seconds, at most.")] = 30.0,
        seed: Annotated[
            int | None, typer.Option(help="Of every choice by chance; default: a new one.")
        ] = None,
        messages: Annotated[
            int | None, typer.Option(min=0, help="Events from outside in one life.")
        ] = None,
        contexts: Annotated[
            int | None, typer.Option(min=1, help="First contexts to try, at most.")
        ] = None,
        pauses: Annotated[bool, typer.Option("--pauses", help="Somebody may pause it.")] = False,
        no_faults: Annotated[
            bool, typer.Option("--no-faults", help="Nothing fails and nobody dies.")
        ] = False,
        phases: Annotated[
            str, typer.Option(help="Which, of static,scope,random,schedules,mutants.")
        ] = "",
        mutate: Annotated[
            bool, typer.Option("--mutate", help="Also mutants; beyond the budget.")
        ] = False,
        jobs: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")] = 0,
        out: Annotated[File, typer.Option(help="Where failures go: tests, diagrams.")] = None,
        replay: Annotated[
            str | None, typer.Option(metavar="TOKEN", help="Go one way again.")
        ] = None,
        until_edge: Annotated[
            str | None, typer.Option(metavar="EDGE", help='Drive to "state --event--> target".')
        ] = None,
        doublecheck: Annotated[
            bool, typer.Option("--doublecheck", help="Explore twice; both must be alike.")
        ] = False,
        require_exhaustive: Annotated[
            bool, typer.Option("--require-exhaustive", help="Exit 6 if the budget ends first.")
        ] = False,
        history: Annotated[
            File, typer.Option(metavar="DB", help="Check a database; nothing is written.")
        ] = None,
        store: Annotated[
            str,
            typer.Option(
                metavar="URL",
                help="Over scratch databases of this server; `postgresql`: of TURTLES_STORE's.",
            ),
        ] = "memory",
        junit: Annotated[File, typer.Option(metavar="FILE", help="JUnit XML.")] = None,
        html: Annotated[File, typer.Option(metavar="FILE", help="A page to look at.")] = None,
        as_json: AsJson = False,
    ) -> int:
        """Explore machines: every order of events, duplicate, loss and crash in a small scope."""

        def main() -> int:
            if history is not None:
                from engine.cli.history import check

                return check(factory, environments, history, as_json=as_json)
            bounds = _bounds(messages, contexts, pauses=pauses, no_faults=no_faults)
            scratch = _scratch(store, schema)
            asked = _Asked(factory, environments, bounds, budget, seed, as_json, scratch)
            chosen = asked.choose(machines or [], everything=everything)
            if replay is not None:
                return asked.replay(_only(chosen, "--replay"), replay)
            if until_edge is not None:
                return asked.until(_only(chosen, "--until-edge"), until_edge)
            wanted = _phases(phases, mutate=mutate, doublecheck=doublecheck)
            options = {"phases": wanted, "require_exhaustive": require_exhaustive}
            return asked.verify(chosen, options, jobs, _Files(out, junit, html))

        return _answered(main, as_json)


def _answered(main: Callable[[], int], as_json: bool) -> int:
    """The exit code; that of an error does not collide with what a verification may find."""
    from engine.cli.verifying import interruptible

    try:
        with interruptible():
            return main()
    except Interrupted:
        raise
    except DefinitionError as error:
        report("definition", str(error), as_json=as_json)
        return STATIC
    except TurtlesError as error:
        unreadable = isinstance(error, StoreError | SecretsError)
        report("unreadable" if unreadable else "usage", str(error), as_json=as_json)
        return NO_INPUT if unreadable else WRONG_USE


def _scratch(store: str, schema: Callable[[], Schema] | None) -> Scratch | None:
    """What makes an empty database for each store; None: they are in memory."""
    if store == "memory":
        return None
    url = os.environ.get(STORE_VARIABLE, "") if store == "postgresql" else store
    if schema is None or not url.startswith(("postgresql://", "postgresql+psycopg://")):
        seen = f"{store} with {STORE_VARIABLE} unset or of another kind" if url != store else "it"
        raise UsageError(
            "--store: expected memory, postgresql://... (scratch databases are made on that "
            f"server and dropped again), or postgresql with {STORE_VARIABLE} such a url; got {seen}"
        )
    return partial(schema().scratch, url)


def _bounds(
    messages: int | None, contexts: int | None, *, pauses: bool, no_faults: bool
) -> dict[str, Any]:
    """Fields of a `Scope` that were asked for; the others stay the environment's."""
    found: dict[str, Any] = {"messages": messages, "contexts": contexts}
    found = {name: value for name, value in found.items() if value is not None}
    return found | ({"pauses": True} if pauses else {}) | ({"faults": False} if no_faults else {})


def _only(chosen: Sequence[_Chosen], option: str) -> _Chosen:
    if len(chosen) != 1:
        raise UsageError(f"{option}: expected one machine, got {len(chosen)}")
    return chosen[0]


def _phases(text: str, *, mutate: bool, doublecheck: bool) -> tuple[str, ...]:
    from engine.verification.verify import PHASES

    given = tuple(one.strip() for one in text.split(",") if one.strip())
    if text and not given:
        raise UsageError(f"--phases: expected names with commas between them, got {text!r}")
    if doublecheck:
        given = given or ("static",)
        return (*given, "doublecheck")
    return (*(given or PHASES), *(["mutants"] if mutate else []))


@dataclass(frozen=True)
class _Files:
    """Where the results go, besides the terminal."""

    out: Path | None
    junit: Path | None
    html: Path | None

    def check(self) -> None:
        """Refuse places that cannot be written before any time is spent."""
        for option, path in (("--junit", self.junit), ("--html", self.html)):
            if path is not None and (path.is_dir() or not path.resolve().parent.is_dir()):
                raise UsageError(f"{option} {path}: expected a file in a directory that exists")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise UsageError(f"--out {self.out}: expected a directory, found a file")

    def write(self, all_told: Sequence[Told]) -> list[str]:
        """Write them; what was written, a line for each."""
        from engine.verification.junit import junit
        from engine.verification.page import page

        texts: dict[Path, str] = {}
        if self.junit is not None:
            texts[self.junit] = junit(all_told)
        if self.html is not None:
            texts[self.html] = page(all_told)
        for data in all_told if self.out is not None else ():
            assert self.out is not None
            for number, failure in enumerate(data.failures, start=1):
                stem = f"{data.machine.lower()}_{data.seed}_{number}"
                texts[self.out / f"test_{stem}.py"] = failure.test
                texts[self.out / f"{stem}.mmd"] = failure.diagram
        try:
            if self.out is not None:
                self.out.mkdir(parents=True, exist_ok=True)
            for path, text in texts.items():
                path.write_text(text)
        except OSError as error:
            raise UsageError(f"{error.filename}: cannot be written ({error.strerror})") from error
        return [f"written     {path}" for path in texts]


@dataclass(frozen=True)
class _Chosen:
    """A machine, and how it was named."""

    table: Table
    subject: str


class _Asked:
    """What the options say, done."""

    def __init__(
        self,
        factory: AppFactory,
        environments: Sequence[str],
        bounds: dict[str, Any],
        budget_seconds: float,
        seed: int | None,
        as_json: bool,
        scratch: Scratch | None = None,
    ) -> None:
        from engine.table import compile_table
        from engine.verification.environment import with_environment
        from engine.verification.verify import checked_budget, new_seed

        self.factory = factory
        self.scratch = scratch
        self.bounds = bounds
        self.budget_seconds = checked_budget(budget_seconds)
        self.seed = new_seed() if seed is None else seed
        self.as_json = as_json
        with _guarded():
            self.tables = _tables(factory)
            import_environments(environments)
            for machine in with_environment():
                self.tables.setdefault(machine.__name__, compile_table(machine))
        self.known = [one.machine for one in self.tables.values()]

    def choose(self, names: Sequence[str], *, everything: bool) -> list[_Chosen]:
        """The machines that were named, or all."""
        if everything == bool(names):
            end = " and not both" if names else "; see: turtles verify --help"
            raise UsageError(f"expected names of machines, or --all{end}")
        with _guarded():
            found = [_Chosen(_find(self.tables, name), name)
                     for name in dict.fromkeys(names or sorted(self.tables))]  # fmt: skip
        own = {one.__name__: one for chosen in found for one in machines_beside(chosen.table)}
        self.known = [one for one in self.known if one.__name__ not in own] + list(own.values())
        return found

    def _job(self, chosen: _Chosen, options: dict[str, Any]) -> Job:
        from engine.cli.verifying import Job

        options = {"known": self.known, "seed": self.seed, "scope": self._scope(chosen), **options}
        return Job(table=chosen.table, subject=chosen.subject, factory=self.factory,
                   options=options, scratch=self.scratch)  # fmt: skip

    def _scope(self, chosen: _Chosen) -> Any:
        import msgspec

        from engine.verification.environment import environment_of
        from engine.verification.result import Scope

        if not self.bounds:
            return None
        environment = environment_of(chosen.table.machine)
        base = environment.scope if environment else Scope()
        return msgspec.structs.replace(base, **self.bounds)

    def _do(self, jobs: Sequence[Job], processes: int) -> list[Told]:
        from engine.cli.verifying import cores, do_all

        with Board(quiet=self.as_json) as board, _guarded():
            return do_all(jobs, self.budget_seconds, processes or cores(), board.tick)

    def verify(
        self, chosen: Sequence[_Chosen], options: dict[str, Any], processes: int, files: _Files
    ) -> int:
        """All phases over all of them."""
        from engine.verification.report import EXITS, all_json, as_json, lines, summary
        from engine.verification.verify import worst

        files.check()
        jobs = [self._job(one, options) for one in chosen]
        self._say_first(chosen)
        found = self._do(jobs, processes)
        code = worst(one.exit for one in found)
        written = files.write(found)
        if self.as_json:
            output.emit(as_json(found[0]) if len(found) == 1 else all_json(found, code))
            return code
        told = [line for one in found for line in lines(one)][len(found) == 1 :]
        told += list(summary(found)) if len(found) > 1 else []
        output.write("\n".join([*told, *written, f"exit {code}      {EXITS[code]}"]))
        return code

    def _say_first(self, chosen: Sequence[_Chosen]) -> None:
        """The seed, before anything else."""
        from engine.verification.report import heading

        if self.as_json:
            return
        if len(chosen) == 1:
            table = chosen[0].table
            output.write(heading(table.name, table.fingerprint, self.seed))
        else:
            output.write(heading(f"{len(chosen)} machines", "", self.seed)
                         + f"  budget {self.budget_seconds:g} s")  # fmt: skip

    def until(self, chosen: _Chosen, text: str) -> int:
        """Drive to a transition."""
        from engine.verification.report import EXITS, as_json, lines

        options = {"phases": ("scope",), "until": edge_of(chosen.table, text)}
        job = self._job(chosen, options)
        self._say_first([chosen])
        data = self._do([job], 1)[0]
        if self.as_json:
            output.emit(as_json(data))
            return data.exit
        end = EXITS[data.exit] if data.exit != NEVER else "the transition was not reached"
        output.write("\n".join([*list(lines(data))[1:], f"exit {data.exit}      {end}"]))
        return data.exit

    def replay(self, chosen: _Chosen, text: str) -> int:
        """Go the way of a token again."""
        from engine.cli.verifying import Stores
        from engine.verification.replaying import replayed

        with _guarded(), Stores(self.factory) as stores:
            found = replayed(chosen.table, stores, text, known=self.known)
        if self.as_json:
            output.emit(found.as_json())
        else:
            output.write("\n".join([*found.lines(), f"exit {found.exit_code}"]))
        return found.exit_code


@contextmanager
def _guarded() -> Iterator[None]:
    """Machines that print must not garble the answer."""
    with redirect_stdout(sys.stderr):
        yield


def machines_beside(table: Table) -> list[type[Any]]:
    """A machine that was given by its file may start the others in that file."""
    from engine.definition import Machine

    module = sys.modules.get(table.machine.__module__)
    return [
        one
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, Machine) and one is not Machine
        and one.__module__ == table.machine.__module__
    ]  # fmt: skip


def import_environments(names: Iterable[str]) -> None:
    """Import modules, and the modules in packages, so that the environments in them register.

    Raises:
        DefinitionError: one cannot be imported.
    """
    import importlib
    import pkgutil

    for name in names:
        try:
            module = importlib.import_module(name)
            for found in pkgutil.iter_modules(getattr(module, "__path__", ())):
                importlib.import_module(f"{name}.{found.name}")
        except TurtlesError:
            raise
        except Exception as error:
            raise DefinitionError(
                f"environments {name}: cannot be imported ({type(error).__name__}: {error})"
            ) from error


_EDGE = re.compile(r"^\s*(\w+)\s*--\s*(\$?\w+)\s*-->\s*(\w+)\s*$")
CLOSE_SHOWN = 5


def edge_of(table: Table, text: str) -> tuple[str, str, str]:
    """The transition that a text names.

    Raises:
        UsageError: it has another form, or the machine has no such transition; lists close ones.
    """
    from engine.verification.coverage import named

    edges = list(dict.fromkeys((e.source, e.event, e.target) for e in table.all_edges()))
    match = _EDGE.match(text)
    if match is not None and match.groups() in edges:
        return edges[edges.index(match.groups())]  # type: ignore[arg-type]
    names = [named(one) for one in edges]
    close = difflib.get_close_matches(text, names, n=CLOSE_SHOWN, cutoff=0.3) or names[:CLOSE_SHOWN]
    what = f"{table.name} has no transition {text!r}" if match else (
        f'expected "state --event--> target", got {text!r}'
    )  # fmt: skip
    raise UsageError(f"--until-edge: {what}. There are: {'; '.join(close)}")
