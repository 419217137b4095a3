"""Mutants of the functions behind a table: guards, actions, contracts, durations, their helpers.

A function is read from its source, one thing in it is changed, and the machine is compiled anew
with the changed function in place of the original.  A helper is a function of the machine's module
that such a function calls; for it, the module's functions are made once more around a namespace in
which the changed one stands.  Class and module stay as they are.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import CodeType, FunctionType
from typing import Any

from engine.checks import guard_names
from engine.contracts import contract_of
from engine.definition import Machine, actions_of, edges_of, guards_of
from engine.table import Table, _Compiler
from engine.verification.mutating.mutant import Mutant
from engine.verification.mutating.operators import Change, changes_of

STRICT = ("ensures", "invariant")
_MISSING = {
    "guard": "no test tells the two sides of this guard apart here",
    "action": "nothing looks at what this action keeps",
    "requires": "no test sends what this contract refuses",
    "ensures": "no test brings this contract to its limit",
    "invariant": "no test brings this contract to its limit",
    "output": "no test looks at this part of the output",
    "helper": "no test tells the two apart",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A function of the machine: what the engine calls it as, and whether it may only tighten."""

    function: FunctionType
    role: str
    strict: bool


def code_mutants(table: Table) -> Iterator[Mutant]:
    """One mutant for each change of each function; functions without source have none."""
    if sys.modules.get(table.machine.__module__) is None:
        return
    for part in parts_of(table.machine):
        for change in _changes(part):
            code = _compiled(change.tree, part.function)
            if _same(code, part.function.__code__):
                continue
            yield _mutant(table, part, change, code)


def _mutant(table: Table, part: Part, change: Change, code: CodeType) -> Mutant:
    name = part.function.__name__
    return Mutant(
        table=_with(table, part, code),
        name=f"{change.kind} {name} ({change.says})",
        kind=change.kind,
        subject=name,
        file=part.function.__code__.co_filename,
        line=change.line,
        says=f"{part.role} {name}: {change.says}",
        missing=_MISSING.get(part.role, "no test waits for this time"),
    )


# -- which functions ----------------------------------------------------------------------------


def parts_of(machine: type[Machine[Any]]) -> list[Part]:
    """What the engine calls of a machine, and the helpers of that in the same module."""
    roles: dict[FunctionType, str] = {}
    for function, role in _called(machine):
        if isinstance(function, FunctionType) and not function.__closure__:
            roles.setdefault(function, role)
    found = [Part(function, role, role in STRICT) for function, role in roles.items()]
    loose = set(_helpers([p.function for p in found if not p.strict], machine))
    every = _helpers([p.function for p in found], machine)
    return found + [Part(f, "helper", f not in loose) for f in every if f not in roles]


def _called(machine: type[Machine[Any]]) -> Iterator[tuple[Any, str]]:
    for edge in edges_of(machine):
        for expression, _ in guards_of(edge):
            for name in guard_names(expression):
                yield getattr(machine, name), "guard"
        ends = [edge.source.id, edge.target.id if edge.target else ""]
        hooks = [f"on_exit_{ends[0]}", f"on_enter_{ends[1]}"] if ends[0] != ends[1] else []
        for name in [*actions_of(edge), *(f"on_{event}" for event in edge.events), *hooks]:
            yield getattr(machine, name, None), "action"
    for name in dir(machine):
        function = inspect.getattr_static(machine, name)
        contract = contract_of(function)
        if contract:
            yield function, contract[0]
    for state in machine.states:
        settings: Any = state
        for kind in ("invariant", "timeout", "every", "child"):
            value = getattr(settings.turtles, kind)
            yield getattr(machine, value) if isinstance(value, str) else value, kind
    if machine.output is not Machine.output:
        yield machine.output, "output"


def _helpers(functions: Iterable[FunctionType], machine: type[Machine[Any]]) -> list[FunctionType]:
    found: dict[FunctionType, None] = {}
    todo = list(functions)
    while todo:
        function = todo.pop()
        for name in _names(function.__code__):
            one = function.__globals__.get(name)
            if not isinstance(one, FunctionType) or one in found:
                continue
            if one.__module__ == machine.__module__:
                found[one] = None
                todo.append(one)
    return list(found)


def _names(code: CodeType) -> set[str]:
    inner = [const for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*(_names(one) for one in inner))


# -- changing one -------------------------------------------------------------------------------


def _changes(part: Part) -> Iterator[Change]:
    tree = _tree(part.function)
    if tree is None:
        return
    for change in changes_of(tree, stricter=part.strict):
        if change.kind == "contract-part-negated" and _is_whole(tree):
            continue  # the contract as a whole is negated already
        yield change


def _is_whole(tree: ast.FunctionDef) -> bool:
    """Whether what is returned is one part only."""
    returned = [node.value for node in ast.walk(tree) if isinstance(node, ast.Return)]
    return len(returned) == 1 and isinstance(returned[0], ast.Compare | ast.Attribute)


def _tree(function: FunctionType) -> ast.FunctionDef | None:
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError):
        return None
    (tree,) = ast.parse(textwrap.dedent("".join(lines))).body
    if not isinstance(tree, ast.FunctionDef):
        return None
    tree.decorator_list = []
    ast.increment_lineno(tree, first - 1)
    return tree


def _compiled(tree: ast.FunctionDef, original: FunctionType) -> CodeType:
    module = compile(
        ast.Module([tree], []),
        original.__code__.co_filename,
        "exec",
        flags=__future__.annotations.compiler_flag,
        dont_inherit=True,
    )
    return next(c for c in module.co_consts if isinstance(c, CodeType) and c.co_name == tree.name)


def _same(one: CodeType, other: CodeType) -> bool:
    """Whether the compiler makes the same of both."""
    flat = [c for c in one.co_consts if not isinstance(c, CodeType)]
    nested = [c for c in one.co_consts if isinstance(c, CodeType)]
    others = [c for c in other.co_consts if isinstance(c, CodeType)]
    return (
        one.co_code == other.co_code
        and one.co_names == other.co_names
        and repr(flat) == repr([c for c in other.co_consts if not isinstance(c, CodeType)])
        and len(nested) == len(others)
        and all(map(_same, nested, others))
    )


def _made(original: FunctionType, code: CodeType, names: dict[str, Any]) -> FunctionType:
    function = FunctionType(code, names, original.__name__, original.__defaults__)
    function.__kwdefaults__ = original.__kwdefaults__
    function.__annotations__ = original.__annotations__
    function.__qualname__, function.__module__ = original.__qualname__, original.__module__
    function.__dict__.update(original.__dict__)
    return function


# -- compiling the machine anew -----------------------------------------------------------------


def _with(table: Table, part: Part, code: CodeType) -> Table:
    """The table with one function changed."""
    machine = table.machine
    if part.role != "helper":
        changed = {part.function: _made(part.function, code, part.function.__globals__)}
        return _recompiled(table, changed)
    names = dict(vars(sys.modules[machine.__module__]))
    ours = [f for f in _helpers(_own(machine), machine) if f.__closure__ is None]
    for helper in ours:
        names[helper.__name__] = _made(helper, helper.__code__, names)
    names[part.function.__name__] = _made(part.function, code, names)
    methods = [f for f in _own(machine) if f.__closure__ is None]
    return _recompiled(table, {f: _made(f, f.__code__, names) for f in methods})


def _own(machine: type[Machine[Any]]) -> list[FunctionType]:
    """The machine's functions of its own module."""
    return [
        function
        for function in dict.fromkeys(function for function, _ in _called(machine))
        if isinstance(function, FunctionType) and function.__module__ == machine.__module__
    ]


def _recompiled(table: Table, changed: Mapping[FunctionType, FunctionType]) -> Table:
    machine = table.machine
    by_name = {
        name: changed[value]
        for name in dir(machine)
        if (value := inspect.getattr_static(machine, name)) in _hashable(changed, value)
    }
    with _replaced(machine, by_name):
        compiler = _Compiler(machine)
        vars(compiler.owner).update({n: f.__get__(compiler.owner) for n, f in by_name.items()})
        made = compiler.table()
        places = dict(made.places)
        for state in machine.states:
            settings: Any = state
            invariant = settings.turtles.invariant
            if invariant in _hashable(changed, invariant):
                clause = compiler._clause(invariant.__name__, changed[invariant])
                places[state.id] = replace(places[state.id], invariants=(clause,))
    return replace(made, places=places, fingerprint=table.fingerprint)


def _hashable(changed: Mapping[FunctionType, Any], value: Any) -> Iterable[Any]:
    return changed if isinstance(value, FunctionType) else ()


@contextmanager
def _replaced(machine: type[Machine[Any]], functions: Mapping[str, FunctionType]) -> Iterator[None]:
    """The class with other methods, for as long as it is compiled."""
    own = {name: vars(machine).get(name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(machine, name, function)
        yield
    finally:
        for name, function in own.items():
            if function is None:
                delattr(machine, name)
            else:
                setattr(machine, name, function)
