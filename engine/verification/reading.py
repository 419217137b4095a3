"""What a piece of a machine's code may read: the functions it reaches, and what they mention.

::

    guard -> its helpers -> properties of the structs it is given -> ...

Followed are functions of the program itself, found through globals, closures, methods of the
machine and properties of the types in play; never the standard library, installed packages, or
turtles.  It is an over-approximation: a name that is mentioned counts as read, whatever holds it.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from inspect import getattr_static
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, get_args

import msgspec

NUMBER_MAX = 10**18
TEXT_CHARACTERS_MAX = 40
FUNCTIONS_MAX = 500
_ENGINE = str(Path(__file__).resolve().parents[1])
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


@dataclass(frozen=True, slots=True)
class Reading:
    """What some functions mention.

    Args:
        functions: they and all that they reach, of the program itself.
        names: every global, attribute and method name.
        keywords: names given as keyword arguments, among other tuples of texts.
        numbers: whole numbers written in the code or held by constants it names.
        texts: short texts, likewise.
    """

    functions: tuple[FunctionType, ...]
    names: frozenset[str]
    keywords: frozenset[str]
    numbers: tuple[int, ...]
    texts: tuple[str, ...]


def reading_of(calls: Iterable[Any], types: Iterable[type] = ()) -> Reading:
    """What `calls` mention; `types` are those whose properties and methods they may use."""
    walk = _Walk(tuple(types))
    for call in calls:
        walk.visit(call)
    return walk.reading()


def types_in(kind: Any) -> frozenset[type]:
    """The structs, enums and other classes in a type annotation, also inside fields."""
    return _types_in(kind)


@lru_cache(maxsize=1024)
def _types_in(kind: Any) -> frozenset[type]:
    found: set[type] = set()
    todo = [kind]
    while todo:
        one = todo.pop()
        todo += get_args(one)
        if not isinstance(one, type) or one in found:
            continue
        found.add(one)
        if issubclass(one, msgspec.Struct):
            todo += [field.type for field in msgspec.structs.fields(one)]
    return frozenset(found)


class _Walk:
    def __init__(self, types: tuple[type, ...]) -> None:
        self.types = [t for t in types if t.__module__ not in sys.stdlib_module_names]
        self.fields = {n for t in self.types for n in getattr(t, "__struct_fields__", ())}
        self.functions: dict[FunctionType, None] = {}
        self.seen: set[FunctionType] = set()
        self.names: set[str] = set()
        self.keywords: set[str] = set()
        self.numbers: dict[int, None] = {}
        self.texts: dict[str, None] = {}

    def reading(self) -> Reading:
        return Reading(
            functions=tuple(self.functions),
            names=frozenset(self.names),
            keywords=frozenset(self.keywords),
            numbers=tuple(self.numbers),
            texts=tuple(self.texts),
        )

    def visit(self, value: Any) -> None:
        """A callable, or something that holds callables or constants."""
        if isinstance(value, MethodType):
            owner = type(value.__self__)
            if owner not in self.types and not _is_foreign(value.__func__):
                self.types.append(owner)
            self.visit(value.__func__)
        elif isinstance(value, property):
            self.visit(value.fget)
        elif isinstance(value, staticmethod | classmethod):
            self.visit(value.__func__)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, Enum):
            self._constant(value.value)
        elif isinstance(value, tuple | list | set | frozenset):
            for one in value:
                self.visit(one)
        elif isinstance(value, dict):
            for one in (*value, *value.values()):
                self.visit(one)
        else:
            self._constant(value)

    def _function(self, function: FunctionType) -> None:
        if function in self.seen or len(self.seen) >= FUNCTIONS_MAX:
            return
        engine = _is_engine(function)
        if _is_foreign(function) and not engine:
            return
        self.seen.add(function)
        for value in _cells(function):
            if not engine or _are_calls(value):
                self.visit(value)
        if engine:
            return  # our own wrappers lead to the machine's code and say nothing themselves
        self.functions[function] = None
        for code in nested(function.__code__):
            self._consts(code, function)
            self._mentioned(code, function)

    def _consts(self, code: CodeType, function: FunctionType) -> None:
        docstring = function.__doc__
        for value in code.co_consts:
            if isinstance(value, tuple) and value and all(isinstance(v, str) for v in value):
                self.keywords.update(value)
            if value is not docstring and not isinstance(value, CodeType):
                self.visit(value)

    def _mentioned(self, code: CodeType, function: FunctionType) -> None:
        self.names.update(code.co_names)
        modules = []
        for name in code.co_names:
            if name in function.__globals__:
                value = function.__globals__[name]
                if isinstance(value, ModuleType):
                    modules.append(value)
                elif not isinstance(value, type):
                    self.visit(value)
        for name in code.co_names:
            for holder in (*modules, *self.types):
                if name in self.fields and not isinstance(holder, ModuleType):
                    continue  # `event.output` is the field, not the machine's method
                value = getattr_static(holder, name, None)
                if isinstance(holder, ModuleType) and _is_library(getattr(holder, "__file__", "")):
                    continue
                if value is not None and not isinstance(value, type | ModuleType):
                    self.visit(value)

    def _constant(self, value: Any) -> None:
        if isinstance(value, bool):
            return
        if isinstance(value, int) and abs(value) <= NUMBER_MAX:
            self.numbers[int(value)] = None
        elif isinstance(value, str) and 0 < len(value) <= TEXT_CHARACTERS_MAX:
            self.texts[str(value)] = None


def nested(code: CodeType) -> Iterator[CodeType]:
    """A code object and those inside it: lambdas, comprehensions, inner functions."""
    yield code
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from nested(value)


def _cells(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # an empty cell
            continue


def _are_calls(value: Any) -> bool:
    some = value if isinstance(value, tuple | list) else (value,)
    return all(callable(one) for one in some)


def _is_engine(function: FunctionType) -> bool:
    return function.__code__.co_filename.startswith(_ENGINE)


def _is_foreign(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is None or _is_library(code.co_filename) or _is_engine(function)


def _is_library(file: str | None) -> bool:
    if not file or file.startswith("<frozen"):
        return True
    return "site-packages" in file or file.startswith(_LIBRARIES)
