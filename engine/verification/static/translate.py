"""Guards and contracts as terms of z3: an interpreter of Python's syntax over symbolic values.

::

    source -> ast -> cases          each (condition, value); where no condition holds, it has raised

Translated are expressions over fields, constants, `and`, `or`, `not`, comparisons, `in` tuples,
whole-number arithmetic (`//` and `%` by constants, with Python's floor), `abs`, `min`, `max`,
`len` of what is written down, `isinstance`, `x if c else y`; functions, methods and properties of
the program's own, inlined; in them assignments, `if`, `assert`, `raise` and `return`.

Anything else is not refused but unknown: it may hold any value, and may raise.  The same code over
the same values is the same unknown, and a function annotated `-> int` gives some whole number.
So whatever is proved holds for the code; what is found has to be tried on the code.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import operator
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from engine import contracts, table
from engine.verification.reading import _is_library
from engine.verification.static.operations import Operations, shown
from engine.verification.static.symbolic import (
    Cases,
    Fixed,
    Method,
    Record,
    Several,
    Symbols,
    Text,
    Truth,
    Unknown,
    Untranslatable,
    Value,
    Whole,
)

DEPTH_MAX = 8
STEPS_MAX = 4_000
CASES_MAX = 64

Env = dict[str, Cases]


class Translator(Operations):
    """Translates clauses over given values."""

    def __init__(self, symbols: Symbols) -> None:
        super().__init__(symbols)
        self._owners: dict[int, Cases] = {}
        self._scope: FunctionType | None = None
        self._depth = 0
        self._steps = 0

    def clause(self, call: Any, values: Mapping[str, Cases]) -> tuple[Any, Any]:
        """(when it is true, when it raises) of a compiled clause over the values."""
        self._raises, self._steps = [], 0
        truth = self._clause(call, values)
        raises = self._either(self._raises)
        return self._both(truth, self._not(raises)), raises

    def _clause(self, call: Any, values: Mapping[str, Cases]) -> Any:
        code = getattr(call, "__code__", None)
        cells = inspect.getclosurevars(call).nonlocals if code is not None else {}
        if code is not None and code.co_filename == table.__file__ and "parts" in cells:
            return self._parts(cells["parts"], values, every="all" in code.co_names)
        if code is not None and code.co_filename == table.__file__ and "call" in cells:
            return self._not(self._clause(cells["call"], values))
        if code is not None and code.co_filename == contracts.__file__ and "call" in cells:
            wanted = cells.get("wanted") or tuple(
                cells[name] for name in ("a", "b") if name in cells
            )
            given = tuple(values[name] for name in wanted)
            return self._truth(self._inline(cells["call"], given, {}))
        return self._truth(self._some(("clause", id(call)), f"{call!r}", ()))

    def _parts(self, parts: Any, values: Mapping[str, Cases], *, every: bool) -> Any:
        found = self.z3.BoolVal(every)
        for part in parts:
            with self._where(found if every else self._not(found)):
                one = self._clause(part, values)
            found = self._both(found, one) if every else self._either([found, one])
        return found

    def _inline(self, function: Any, given: tuple[Cases, ...], named: Mapping[str, Cases]) -> Cases:
        owner: tuple[Cases, ...] = ()
        if isinstance(function, MethodType):
            owner = (self._owner(function.__self__),)
            function = function.__func__
        mark = len(self._raises)
        returns: ast.expr | None = None
        try:
            node = _definition(function)
            returns = node.returns
            env = self._arguments(function, node, (*owner, *given), named)
            found = self._called(function, node, env)
        except Untranslatable as error:
            del self._raises[mark:]
            key = ("function", function, *sorted(named))
            found = self._some(key, str(error), (*given, *named.values()))
        return self._as_annotated(found, returns)

    def _owner(self, machine: Any) -> Cases:
        """The same value for the same `self`, so that what is unknown of it is the same, too."""
        return self._owners.setdefault(id(machine), self._sure(Fixed(machine)))

    def _called(self, function: FunctionType, node: ast.FunctionDef, env: Env) -> Cases:
        if self._depth >= DEPTH_MAX:
            raise Untranslatable(f"{function.__name__}: calls nested too deeply")
        before = self._scope
        self._depth += 1
        self._scope = function
        try:
            found = self._block(node.body, env, self.z3.BoolVal(True))
        finally:
            self._depth -= 1
            self._scope = before
        if len(found) > CASES_MAX:
            raise Untranslatable(f"{function.__name__} has too many cases")
        return found

    def _arguments(
        self,
        function: FunctionType,
        node: ast.FunctionDef,
        given: tuple[Cases, ...],
        named: Mapping[str, Cases],
    ) -> Env:
        try:
            bound = inspect.signature(function).bind(*given, **named)
        except (TypeError, ValueError) as error:
            raise Untranslatable(f"{function.__name__}: {error}") from error
        if node.args.vararg or node.args.kwarg:
            raise Untranslatable(f"{function.__name__} takes any number of arguments")
        env = dict(bound.arguments)
        for name, parameter in bound.signature.parameters.items():
            if name not in env:
                env[name] = self._sure(Fixed(parameter.default))
        return env

    def _as_annotated(self, cases: Cases, returns: ast.expr | None) -> Cases:
        """Unknowns of a function that says what it returns are some value of that type."""
        kind = ast.unparse(returns).strip("'\"") if returns is not None else ""
        return tuple((c, self._of_kind(v, kind) if isinstance(v, Unknown) else v) for c, v in cases)

    def _of_kind(self, value: Unknown, kind: str) -> Value:
        if kind == "int":
            return Whole(self.symbols.of_unknown(value, "int"))
        if kind == "bool":
            return Truth(self.symbols.of_unknown(value, "true"))
        if kind == "str":
            return Text(self.symbols.of_unknown(value, "text"))
        return value

    def _block(self, statements: list[ast.stmt], env: Env, path: Any) -> Cases:
        """What is returned, from here to the end of the function."""
        for number, one in enumerate(statements):
            self._spend()
            rest = statements[number + 1 :]
            if isinstance(one, ast.Pass) or _is_docstring(one):
                continue
            with self._where(path):
                if isinstance(one, ast.Return):
                    value = one.value or ast.Constant(None)
                    return self._given(self._value(value, env), path)
                if isinstance(one, ast.Raise):
                    self._raise(self.z3.BoolVal(True))
                    return ()
                if isinstance(one, ast.Assign | ast.AnnAssign):
                    self._assign(one, env)
                    continue
                if not isinstance(one, ast.If | ast.Assert):
                    raise Untranslatable(f"statement {type(one).__name__.lower()}")
                test = self._truth(self._value(one.test, env))
                if isinstance(one, ast.Assert):
                    self._raise(self._not(test))
            if isinstance(one, ast.Assert):
                path = self._both(path, test)
                continue
            yes = self._block([*one.body, *rest], dict(env), self._both(path, test))
            no = self._block([*one.orelse, *rest], dict(env), self._both(path, self._not(test)))
            return (*yes, *no)
        return ((path, Fixed(None)),)

    def _assign(self, one: ast.Assign | ast.AnnAssign, env: Env) -> None:
        if one.value is None:
            return
        targets = one.targets if isinstance(one, ast.Assign) else [one.target]
        for target in targets:
            if isinstance(target, ast.Name):
                env[target.id] = self._value(one.value, env)
                continue
            values = one.value.elts if isinstance(one.value, ast.Tuple) else None
            names = target.elts if isinstance(target, ast.Tuple) else None
            if not names or not values or len(names) != len(values):
                raise Untranslatable(f"assignment to {ast.unparse(target)}")
            found = [self._value(value, env) for value in values]
            for name, value in zip(names, found, strict=True):
                if not isinstance(name, ast.Name):
                    raise Untranslatable(f"assignment to {ast.unparse(name)}")
                env[name.id] = value

    def _value(self, node: ast.expr, env: Env) -> Cases:
        """What an expression gives; unknown if it has no translation."""
        self._spend()
        mark = len(self._raises)
        try:
            method = getattr(self, f"_on_{type(node).__name__.lower()}", None)
            if method is None or any(isinstance(n, ast.NamedExpr) for n in ast.walk(node)):
                raise Untranslatable(ast.unparse(node))
            found: Cases = method(node, env)
            if len(found) > CASES_MAX:
                raise Untranslatable(f"{ast.unparse(node)} (too many cases)")
        except Untranslatable as error:
            if any(isinstance(n, ast.NamedExpr) for n in ast.walk(node)):
                raise
            del self._raises[mark:]
            used = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in env}
            cases = tuple(env[name] for name in sorted(used))
            return self._some((node, self._scope), str(error), cases)
        return found

    def _spend(self) -> None:
        self._steps += 1
        if self._steps > STEPS_MAX:
            raise Untranslatable("code that is too long")

    def _on_constant(self, node: ast.Constant, env: Env) -> Cases:
        return self._sure(Fixed(node.value))

    def _on_name(self, node: ast.Name, env: Env) -> Cases:
        if node.id in env:
            return env[node.id]
        function = self._scope
        assert function is not None
        if node.id in function.__code__.co_varnames:
            raise Untranslatable(f"{node.id} may not be set")
        for place in (_cells(function), function.__globals__, vars(_builtins(function))):
            if node.id in place:
                return self._sure(self._fixed(place[node.id], node.id))
        raise Untranslatable(f"name {node.id}")

    def _fixed(self, value: Any, name: str) -> Fixed:
        """A constant; a container that may change meanwhile is one only if its name says so."""
        if isinstance(value, list | dict | set) and not name.isupper():
            raise Untranslatable(f"{name} is no constant")
        return Fixed(value)

    def _on_attribute(self, node: ast.Attribute, env: Env) -> Cases:
        return self._each(self._value(node.value, env), lambda v: self._attribute(v, node.attr))

    def _attribute(self, holder: Value, name: str) -> Cases:
        if isinstance(holder, Record):
            if name in holder.kind.__struct_fields__:  # type: ignore[attr-defined]
                return holder.slot(name).cases
            found = inspect.getattr_static(holder.kind, name, None)
            if isinstance(found, property):
                return self._inline(found.fget, (self._record(holder),), {})
            if isinstance(found, FunctionType):
                return self._sure(Method(found, holder))
            raise Untranslatable(f"{holder.kind.__name__}.{name}")
        if not isinstance(holder, Fixed):
            raise Untranslatable(f".{name} of {shown(holder)}")
        if holder.value is None:
            self._raise(self.z3.BoolVal(True))
            return ()
        if not isinstance(holder.value, ModuleType | type | Enum) and not _is_methods(holder.value):
            raise Untranslatable(f".{name} of {holder.value!r}")
        try:
            return self._sure(self._fixed(getattr(holder.value, name), name))
        except AttributeError as error:
            raise Untranslatable(str(error)) from error

    def _record(self, holder: Record) -> Cases:
        key = ("record", id(holder))
        if key not in self._memo:
            self._memo[key] = (self.symbols.unknown(""), self._sure(holder))
        found: Cases = self._memo[key][1]
        return found

    def _on_boolop(self, node: ast.BoolOp, env: Env) -> Cases:
        every = isinstance(node.op, ast.And)
        found: list[tuple[Any, Value]] = []
        going = self.z3.BoolVal(True)
        for one in node.values[:-1]:
            with self._where(going):
                cases = self._value(one, env)
                ends = []
                for condition, value in cases:
                    true = self._true(value)
                    stop = self._both(condition, self._not(true) if every else true)
                    found.append((self._both(going, stop), value))
                    ends.append(self._both(condition, true if every else self._not(true)))
            going = self._both(going, self._either(ends))
        with self._where(going):
            found += self._given(self._value(node.values[-1], env), going)
        return tuple((c, v) for c, v in found if not self.z3.is_false(c))

    def _on_ifexp(self, node: ast.IfExp, env: Env) -> Cases:
        test = self._truth(self._value(node.test, env))
        with self._where(test):
            yes = self._given(self._value(node.body, env), test)
        other = self._not(test)
        with self._where(other):
            no = self._given(self._value(node.orelse, env), other)
        return tuple((c, v) for c, v in (*yes, *no) if not self.z3.is_false(c))

    def _on_tuple(self, node: ast.Tuple | ast.List | ast.Set, env: Env) -> Cases:
        if any(isinstance(one, ast.Starred) for one in node.elts):
            raise Untranslatable(ast.unparse(node))
        items = tuple(self._value(one, env) for one in node.elts)
        return self._sure(Several(items, type(node).__name__.lower()))

    _on_list = _on_tuple

    _on_set = _on_tuple

    def _on_unaryop(self, node: ast.UnaryOp, env: Env) -> Cases:
        cases = self._value(node.operand, env)
        if isinstance(node.op, ast.Not):
            return self._sure(Truth(self._not(self._truth(cases))))
        if isinstance(node.op, ast.Invert):
            raise Untranslatable(ast.unparse(node))
        sign = -1 if isinstance(node.op, ast.USub) else 1
        return self._each(cases, lambda v: self._sure(self._signed(v, sign)))

    def _on_binop(self, node: ast.BinOp, env: Env) -> Cases:
        left, right = self._value(node.left, env), self._value(node.right, env)
        return self._each(left, lambda a: self._each(
            right, lambda b: self._arithmetic(node.op, a, b)))  # fmt: skip

    def _on_compare(self, node: ast.Compare, env: Env) -> Cases:
        left = self._value(node.left, env)
        found = self.z3.BoolVal(True)
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            with self._where(found):
                right = self._value(right_node, env)
                one = self._either([
                    self._both(self._both(c, d), self._pair(op, a, b, self._both(c, d)))
                    for c, a in left for d, b in right
                ])  # fmt: skip
            found = self._both(found, one)
            left = right
        return self._sure(Truth(found))

    def _on_subscript(self, node: ast.Subscript, env: Env) -> Cases:
        if isinstance(node.slice, ast.Slice):
            raise Untranslatable(ast.unparse(node))
        holders, keys = self._value(node.value, env), self._value(node.slice, env)
        return self._each(holders, lambda a: self._each(keys, lambda b: self._item(a, b)))

    def _on_call(self, node: ast.Call, env: Env) -> Cases:
        if any(isinstance(a, ast.Starred) for a in node.args) or any(
            k.arg is None for k in node.keywords
        ):
            raise Untranslatable(ast.unparse(node))
        functions = self._value(node.func, env)
        given = tuple(self._value(one, env) for one in node.args)
        named = {str(one.arg): self._value(one.value, env) for one in node.keywords}
        return self._each(functions, lambda one: self._call(one, given, named, node))

    def _call(
        self, function: Value, given: tuple[Cases, ...], named: Mapping[str, Cases], node: ast.Call
    ) -> Cases:
        if isinstance(function, Method):
            return self._inline(function.function, (self._record(function.owner), *given), named)
        value = function.value if isinstance(function, Fixed) else None
        if isinstance(value, FunctionType | MethodType):
            return self._inline(value, given, named)
        builtin = self._builtins().get(value) if isinstance(value, _BUILTIN) else None
        if builtin is None or named or not given:
            raise Untranslatable(ast.unparse(node))
        return builtin(given)

    def _builtins(self) -> dict[Any, Callable[[tuple[Cases, ...]], Cases]]:
        return {
            abs: lambda given: self._each(given[0], self._abs),
            min: lambda given: self._extreme(given, operator.lt),
            max: lambda given: self._extreme(given, operator.gt),
            len: lambda given: self._each(given[0], self._len),
            bool: lambda given: self._sure(Truth(self._truth(given[0]))),
            int: lambda given: self._each(given[0], lambda v: self._sure(Whole(self._whole(v)))),
            isinstance: self._isinstance,
        }


_BUILTIN = (BuiltinFunctionType, type)


def _is_docstring(one: ast.stmt) -> bool:
    return isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)


def _is_methods(value: Any) -> bool:
    """Whether it is the machine that `self` stands for."""
    from engine.definition import Machine

    return isinstance(value, Machine)


def _cells(function: FunctionType) -> Mapping[str, Any]:
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # an empty cell
            continue
    return found


def _builtins(function: FunctionType) -> Any:
    import builtins

    return builtins


@lru_cache(maxsize=64)
def _definitions(file: str, size: int) -> dict[tuple[str, int], list[ast.FunctionDef]]:
    """The functions of a file by name and first line."""
    found: dict[tuple[str, int], list[ast.FunctionDef]] = {}
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            line = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found.setdefault((node.name, line), []).append(node)
    return found


def _definition(function: Any) -> ast.FunctionDef:
    """The syntax of a function.

    Raises:
        Untranslatable: it is none of the program's, or its source is not there.
    """
    if not isinstance(function, FunctionType):
        raise Untranslatable(f"{getattr(function, '__name__', function)!r} is no python function")
    code = function.__code__
    if _is_library(code.co_filename):
        raise Untranslatable(f"{function.__qualname__} of a library")
    lines = linecache.getlines(code.co_filename)
    found = _definitions(code.co_filename, len(lines)).get((code.co_name, code.co_firstlineno), [])
    if len(found) != 1 or code.co_flags & (
        inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    ):
        raise Untranslatable(f"the source of {function.__qualname__}")
    return found[0]
