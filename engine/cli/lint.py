"""`lint [MACHINE]...`: the static checks over a program's machines, or over any by file and name.

::

    turtles lint                              every machine of the program
    turtles lint Payment                      one of them
    turtles lint shop/order.py:Order          one in a file; shop.order:Order does the same
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli import output
from engine.cli.exits import FAILED, OK
from engine.cli.front import AsJson, answering, report
from engine.cli.place import AppFactory, Place, opened
from engine.errors import DefinitionError, UnknownMachine

if TYPE_CHECKING:
    from engine.table import Table
    from engine.verification.lint import Report
    from engine.verification.static.finding import Finding


def add_lint(cli: typer.Typer, factory: AppFactory) -> None:
    """Add the command `lint`."""

    @cli.command("lint")
    @answering
    def lint(
        machines: Annotated[
            list[str] | None, typer.Argument(metavar="MACHINE", show_default=False)
        ] = None,
        as_json: AsJson = False,
    ) -> int:
        """Check machines without running them: shape, guards, effects, purity, contracts."""
        from engine.verification.lint import lint as check

        try:
            known = _tables(factory)
            chosen = [_find(known, name) for name in machines or sorted(known)]
        except DefinitionError as error:  # the class itself is refused, with every finding
            report("definition", str(error), as_json=as_json)
            return FAILED
        with redirect_stdout(sys.stderr):  # a guard that prints must not garble the answer
            found = check(chosen, known=known.values())
        if as_json:
            output.emit({"ok": found.ok, **output.plain(found)})
        else:
            _print(found)
        return OK if found.ok else FAILED


def _tables(factory: AppFactory) -> dict[str, Table]:
    from engine.cli.signals import run

    async def main() -> dict[str, Table]:
        async with opened(factory, Place(data_dir=None)) as app:
            return dict(app.tables)

    return run(main())


def _find(known: dict[str, Table], name: str) -> Table:
    """A machine of the program, or `FILE.py:CLASS`, or `MODULE:CLASS`.

    Raises:
        UnknownMachine: names those there are, or what is wrong with the file.
        DefinitionError: the class breaks the rules of the definition layer.
    """
    if ":" in name:
        return _load(name)
    if name not in known:
        raise UnknownMachine(
            f"no machine {name!r}. There are: {', '.join(sorted(known)) or 'none'}. "
            "For another, give FILE.py:CLASS."
        )
    return known[name]


def _load(name: str) -> Table:
    from engine.definition import Machine
    from engine.table import compile_table

    place, _, attribute = name.rpartition(":")
    try:
        module = _import(place)
    except DefinitionError:
        raise
    except Exception as error:
        raise UnknownMachine(
            f"machine {name!r}: {place} cannot be imported ({type(error).__name__}: {error})"
        ) from error
    machine = getattr(module, attribute, None)
    if not (isinstance(machine, type) and issubclass(machine, Machine)):
        raise UnknownMachine(f"machine {name!r}: {place} has no machine class {attribute!r}")
    return compile_table(machine)


def _import(place: str) -> Any:
    """A module by its name or its file."""
    import importlib.util

    if not place.endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
        try:
            return importlib.import_module(place)
        finally:
            sys.path.remove(str(Path.cwd()))
    path = Path(place).resolve()
    found = importlib.util.spec_from_file_location(f"turtles_lint_{path.stem}", path)
    if found is None or found.loader is None or not path.is_file():
        raise UnknownMachine(f"file {place}: not there, or no Python")
    module = importlib.util.module_from_spec(found)
    sys.modules[module.__name__] = module  # type hints of the machine are looked up there
    found.loader.exec_module(module)
    return module


def _print(found: Report) -> None:
    for one in found.findings:
        _print_finding(one)
    errors = len(found.errors)
    warnings = len(found.findings) - errors
    ignored = f"  {len(found.ignored)} ignored" if found.ignored else ""
    output.write(
        f"static  {found.checks} checks  {len(found.machines)} machines  {errors} errors  "
        f"{warnings} warnings{ignored}  {output.lasting(found.took_ms)}"
    )
    if found.guards:
        output.write(f"guards  {_evidence(found, 'overlap')}; {_evidence(found, 'gap')}")


_NOUNS = {"overlap": ("pairs", "overlap"), "gap": ("choices without a last edge", "gaps")}


def _evidence(found: Report, question: str) -> str:
    """`14 pairs: 9 proved, 4 checked, 1 overlap`."""
    some = [one for one in found.guards if one.question == question]
    fine = [one for one in some if one.answer == "no"]
    proved = sum(one.method == "proved" for one in fine)
    noun, defect = _NOUNS[question]
    found_text = f", {len(some) - len(fine)} {defect}" if len(some) > len(fine) else ""
    return f"{len(some)} {noun}: {proved} proved, {len(fine) - proved} checked{found_text}"


def _print_finding(one: Finding) -> None:
    where = one.edge or one.state or ""
    place = f"{one.machine}  {where}".rstrip()
    output.write(f"{one.code} {one.severity:<7}  {_relative(one.file)}:{one.line}  {place}")
    output.write(f"     {one.problem}. {one.remedy}.")
    if one.witness is not None:
        values = ", ".join(f"{k}={output.one_line(v)}" for k, v in one.witness.items())
        output.write(f"     {one.method}: {values}")


def _relative(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
