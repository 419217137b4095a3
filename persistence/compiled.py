"""Statements compiled once by SQLAlchemy, then run on the driver's own connection.

Core builds a cache key and a result object at every call, which costs about ten times what SQLite
needs for the statement itself.  So a statement that was built at import is compiled once to text,
and its rows become plain named tuples.  What is run is exactly what Core would have run.

Values are bound by their place: the driver looks up every name of a named one at every call, which
doubles the price of a statement with twenty of them.

An `IN` over a list (an expanding parameter) has one text for each length of the list; the texts
are kept, up to a limit, as Core keeps its own.
"""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.sqltypes import TupleType

_DIALECT = sqlite.dialect(paramstyle="qmark")
_EXPANDING = re.compile(r"\(__\[POSTCOMPILE_(\w+)\]\)")


class Plan(NamedTuple):
    """A statement as text, and how its values are put in order and its rows are made.

    `names` are its parameters in the order of the text, `constants` those it brings itself;
    `lists` are the expanding ones, each with the width of its items: 0 for plain values, n for
    n-tuples.
    """

    text: str
    names: tuple[str, ...]
    constants: Mapping[str, Any]
    lists: Mapping[str, int]
    in_order: Callable[[Mapping[str, Any]], tuple[Any, ...]]
    row: Callable[[Sequence[Any]], Any]


@lru_cache(maxsize=512)
def plan_for(statement: sa.Executable, columns: tuple[str, ...] | None = None) -> Plan:
    """Compile a statement.

    Args:
        statement: built once and kept, because it is its own key in the cache.
        columns: for an INSERT, the columns that the rows name.
    """
    assert isinstance(statement, sa.ClauseElement)
    compiled = statement.compile(
        dialect=_DIALECT, column_keys=None if columns is None else list(columns)
    )
    assert isinstance(compiled, SQLCompiler)
    text, names = compiled.string, tuple(compiled.positiontup or ())
    constants = {
        name: parameter.effective_value
        for name, parameter in compiled.binds.items()
        if not parameter.required
    }
    lists = {name: _width(compiled, name) for name in _EXPANDING.findall(text)}
    return Plan(text, names, constants, lists, _in_order(names), _row_maker(compiled))


def _in_order(names: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    return lambda values: tuple(values[name] for name in names)


def _row_maker(compiled: SQLCompiler) -> Callable[[Sequence[Any]], Any]:
    columns = compiled._result_columns
    if not columns:
        return tuple
    kind = namedtuple("Row", [column.keyname for column in columns])  # type: ignore[misc]
    booleans = [i for i, column in enumerate(columns) if isinstance(column.type, sa.Boolean)]
    if not booleans:
        return kind._make

    def make(values: Sequence[Any]) -> Any:
        changed = list(values)
        for i in booleans:
            if changed[i] is not None:
                changed[i] = bool(changed[i])
        return kind._make(changed)

    return make


def bound(plan: Plan, parameters: Mapping[str, Any]) -> tuple[str, Sequence[Any]]:
    """The text and the values of one call, with every list written out.

    Raises:
        KeyError: a value is missing.
    """
    given = {**plan.constants, **parameters} if plan.constants else parameters
    if not plan.lists:
        return plan.text, plan.in_order(given)
    values: list[Any] = []
    sizes: list[tuple[int, int]] = []
    for name in plan.names:
        width = plan.lists.get(name)
        if width is None:
            values.append(given[name])
        else:
            items = given[name]
            sizes.append((len(items), width))
            values.extend(chain.from_iterable(items) if width else items)
    return _expanded(plan.text, tuple(sizes)), values


def _width(compiled: SQLCompiler, name: str) -> int:
    """0 for a list of plain values, n for a list of n-tuples."""
    kind = compiled.binds[name].type
    return len(kind.types) if isinstance(kind, TupleType) else 0


@lru_cache(maxsize=2048)
def _expanded(text: str, sizes: tuple[tuple[int, int], ...]) -> str:
    left = iter(sizes)

    def written(_match: re.Match[str]) -> str:
        count, width = next(left)
        if count == 0:
            return "(SELECT " + ", ".join(["NULL"] * max(width, 1)) + " WHERE 1 = 0)"
        if width == 0:
            return "(" + ", ".join("?" * count) + ")"
        item = "(" + ", ".join("?" * width) + ")"
        return "(VALUES " + ", ".join([item] * count) + ")"

    return _EXPANDING.sub(written, text)
