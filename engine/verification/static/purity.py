"""V013: guards, actions and contracts must be functions of their arguments, found in the source.

Looked at is every function that the engine calls as pure code, and what it calls in turn, as far
as it is the program's own (`engine.verification.reading`).  A name counts as what it stands for in
its module: `from time import time as moment` is found, a method of one's own named `time` is not.
"""

from __future__ import annotations

import ast
import builtins
import linecache
import os
from collections.abc import Iterator
from datetime import date
from functools import lru_cache
from types import FunctionType, ModuleType
from typing import Any

from engine.verification.static.finding import Finding
from engine.verification.static.subject import Subject

_CLOCK, _CHANCE, _OUTSIDE = "reads the clock", "draws at random", "reaches outside"
_MODULES: dict[str, str] = {
    "time": _CLOCK, "random": _CHANCE, "_random": _CHANCE, "secrets": _CHANCE,
    **dict.fromkeys(
        ("os", "posix", "nt", "genericpath", "shutil", "tempfile", "glob", "socket", "_socket",
         "ssl", "subprocess", "requests", "httpx", "urllib", "http", "asyncio", "threading",
         "_thread", "multiprocessing", "sqlite3", "sqlalchemy", "psycopg", "io", "_io", "pathlib",
         "platform", "getpass", "logging", "structlog", "sys", "locale"), _OUTSIDE),
}  # fmt: skip
_HARMLESS = frozenset({"urllib.parse", "http.HTTPStatus", "sys.maxsize", "os.path", "os.sep"})
_BUILTINS: dict[str, str] = {
    "open": _OUTSIDE, "input": _OUTSIDE, "print": "writes to the terminal",
    "id": "depends on where objects lie in memory",
    "hash": "depends on the process (texts hash differently in each)",
    "exec": "runs text as code", "eval": "runs text as code", "breakpoint": "stops the program",
}  # fmt: skip
_NOW = frozenset({"now", "utcnow", "today"})
_FILES = frozenset({"read_text", "read_bytes", "write_text", "write_bytes", "iterdir"})
_MUTATORS = frozenset({
    "append", "extend", "insert", "remove", "pop", "popitem", "clear", "add", "discard", "update",
    "setdefault", "sort", "reverse", "appendleft", "popleft",
})  # fmt: skip
_ORDERLESS = frozenset({"sorted", "len", "sum", "min", "max", "any", "all", "set", "frozenset"})
_REMEDY = "Let an effect find it out and put it into the event; time is the parameter now_ms"
_UNKNOWN = object()


def check_purity(subject: Subject) -> Iterator[Finding]:
    """V013."""
    calls = subject.functions()
    for function in subject.reading(calls.values()).functions:
        for line, problem in impurities(function):
            yield subject.at_line("V013", "error", function.__code__.co_filename, line,
                f"{function.__qualname__} {problem}", _REMEDY)  # fmt: skip


def impurities(function: FunctionType) -> list[tuple[int, str]]:
    """(line, what it does) of everything in a function that is not pure."""
    node = _definition(function)
    if node is None:
        return list(_by_names(function))
    found = [hit for one in ast.walk(node) for hit in _Scan(function).look(one)]
    return sorted(set(found))


def _definition(function: FunctionType) -> ast.AST | None:
    """The function's syntax tree, if its source can be read."""
    tree = _tree(function.__code__.co_filename)
    first = function.__code__.co_firstlineno
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if first in (node.lineno, *(d.lineno for d in node.decorator_list)):
                return ast.Module(body=list(node.body), type_ignores=[])
        elif isinstance(node, ast.Lambda) and node.lineno == first:
            return node
    return None


@lru_cache(maxsize=64)
def _tree(file: str) -> ast.Module | None:
    try:
        return ast.parse("".join(linecache.getlines(file)) or " syntax error")
    except (SyntaxError, ValueError):
        return None


def _by_names(function: FunctionType) -> Iterator[tuple[int, str]]:
    """Without source: the globals that its code names."""
    for name in function.__code__.co_names:
        value = function.__globals__.get(name, getattr(builtins, name, _UNKNOWN))
        why = _why(value, name)
        if why is not None:
            yield function.__code__.co_firstlineno, f"{why}: {name}"


class _Scan:
    def __init__(self, function: FunctionType) -> None:
        self.function = function
        code = function.__code__
        self.locals = {*code.co_varnames, *code.co_cellvars}

    def look(self, node: ast.AST) -> Iterator[tuple[int, str]]:
        """What is impure about one node itself."""
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Global() | ast.Nonlocal():
                yield line, f"changes what outlives the call: {', '.join(node.names)}"
            case ast.Name(ctx=ast.Load()) | ast.Attribute(ctx=ast.Load()):
                yield from self._named(node, line)
            case ast.Call():
                yield from self._called(node, line)
            case (
                ast.Attribute(ctx=ast.Store() | ast.Del())
                | ast.Subscript(ctx=ast.Store() | ast.Del())
            ):
                if self._outlives(node):
                    yield line, f"changes what outlives the call: {ast.unparse(node)}"
            case ast.For() | ast.comprehension():
                if _is_set(node.iter):
                    yield (getattr(node.iter, "lineno", line),
                           f"goes through a set, which has no order: {ast.unparse(node.iter)}. "
                           "Use sorted()")  # fmt: skip

    def _named(self, node: ast.Name | ast.Attribute, line: int) -> Iterator[tuple[int, str]]:
        chain = self._resolve(node)
        if chain is None:
            return
        text = ast.unparse(node)
        why = _why(chain[-1], text)
        if isinstance(chain[-1], ModuleType | type) and not _is_called_class(chain[-1]):
            return  # `time` in `time.time()`: the attribute is told, not the module
        if (
            why is None
            and len(chain) > 1
            and any(
                isinstance(one, ModuleType) and _MODULES.get(one.__name__.partition(".")[0])
                for one in chain[:-1]
            )
            and not _is_harmless(chain[-1], text)
        ):
            why = next(_MODULES[one.__name__.partition(".")[0]] for one in chain[:-1]
                       if isinstance(one, ModuleType)
                       and one.__name__.partition(".")[0] in _MODULES)  # fmt: skip
        if why is not None:
            yield line, f"{why}: {text}"

    def _called(self, node: ast.Call, line: int) -> Iterator[tuple[int, str]]:
        called = node.func
        if isinstance(called, ast.Attribute):
            holder = self._resolve(called.value)
            if called.attr in _MUTATORS and holder and isinstance(holder[-1], list | dict | set):
                yield line, f"changes what outlives the call: {ast.unparse(called)}"
            if called.attr in _FILES:
                yield line, f"{_OUTSIDE}: {ast.unparse(called)}"
            if called.attr == "join" and node.args and _is_set(node.args[0]):
                yield line, f"joins a set, which has no order: {ast.unparse(node.args[0])}"
        if isinstance(called, ast.Name) and called.id not in self.locals and node.args:
            if called.id in ("list", "tuple", "next", "iter") and _is_set(node.args[0]):
                yield line, f"orders a set, which has no order: {ast.unparse(node.args[0])}"
            if called.id == "next" and self._resolve(node.args[0]) is not None:
                yield line, f"changes what outlives the call: {ast.unparse(node)}"

    def _outlives(self, node: ast.AST) -> bool:
        """Whether an assignment changes a global, or the machine."""
        while isinstance(node, ast.Attribute | ast.Subscript):
            node = node.value
        if not isinstance(node, ast.Name):
            return False
        return node.id == "self" or self._resolve(node) is not None

    def _resolve(self, node: ast.AST) -> list[Any] | None:
        """The objects along a dotted name, from its root; None if the root is a local."""
        if isinstance(node, ast.Attribute):
            chain = self._resolve(node.value)
            if chain is None or not isinstance(chain[-1], ModuleType | type):
                return None
            value = getattr(chain[-1], node.attr, _UNKNOWN)
            return None if value is _UNKNOWN else [*chain, value]
        if not isinstance(node, ast.Name) or node.id in self.locals:
            return None
        value = self._global(node.id)
        return None if value is _UNKNOWN else [value]

    def _global(self, name: str) -> Any:
        free = self.function.__code__.co_freevars
        if name in free:
            try:
                return (self.function.__closure__ or ())[free.index(name)].cell_contents
            except ValueError:  # an empty cell
                return _UNKNOWN
        return self.function.__globals__.get(name, getattr(builtins, name, _UNKNOWN))


def _why(value: Any, text: str) -> str | None:
    """Why an object must not be used, if it must not."""
    name = text.rpartition(".")[2]
    if value is os.environ:
        return _OUTSIDE
    if getattr(builtins, name, _UNKNOWN) is value and name in _BUILTINS:
        return _BUILTINS[name]
    owner = getattr(value, "__self__", None)
    if name in _NOW and isinstance(owner, type) and issubclass(owner, date):
        return _CLOCK
    module = getattr(value, "__module__", None)
    if module == "uuid" and name in ("uuid1", "uuid4", "getnode"):
        return _CHANCE
    if not callable(value) or _is_harmless(value, text):
        return None
    if module is None and owner is not None:
        module = type(owner).__module__
    return _MODULES.get(str(module).partition(".")[0]) if module else None


def _is_harmless(value: Any, text: str) -> bool:
    module = getattr(value, "__module__", None) or ""
    if isinstance(value, type) and issubclass(value, BaseException):
        return True
    full = f"{module}.{getattr(value, '__name__', '')}"
    return any(one.startswith(known) for one in (full, text) for known in _HARMLESS) or (
        isinstance(value, int | float | str) and not isinstance(value, bool)
    )


def _is_called_class(value: Any) -> bool:
    return isinstance(value, type) and _why(value, value.__name__) is not None


def _is_set(node: ast.AST) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    return (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            and node.func.id in ("set", "frozenset"))  # fmt: skip
