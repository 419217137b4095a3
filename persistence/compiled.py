"""Statements compiled once by SQLAlchemy, then run on the driver's own connection.

Core builds a cache key and a result object at every call, which costs about ten times what SQLite
needs for the statement itself (profile: `python -m tests.benchmarks --profile`).  So a statement
that was built at import is compiled once to text with named parameters, and its rows become plain
named tuples.  What is run is exactly what Core would have run.

An `IN` over a list (an expanding parameter) has one text for each length of the list; the texts
are kept, up to a limit, as Core keeps its own.
"""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.sqltypes import TupleType

_DIALECT = sqlite.dialect(paramstyle="named")
_EXPANDING = re.compile(r"\(__\[POSTCOMPILE_(\w+)\]\)")


class Plan(NamedTuple):
    """A statement as text, the parameters it brings itself, and how its rows are made."""

    text: str
    constants: Mapping[str, Any]
    expanding: tuple[tuple[str, int], ...]
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
    text = compiled.string
    expanding = tuple((name, _width(compiled, name)) for name in _EXPANDING.findall(text))
    constants = {
        name: parameter.effective_value
        for name, parameter in compiled.binds.items()
        if not parameter.required
    }
    return Plan(text, constants, expanding, _row_maker(compiled))


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


def bound(plan: Plan, parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The text and the values of one call, with every list written out."""
    values = {**plan.constants, **parameters}
    if not plan.expanding:
        return plan.text, values
    lists = {name: list(values.pop(name)) for name, _ in plan.expanding}
    lengths = tuple(len(lists[name]) for name, _ in plan.expanding)
    for name, items in lists.items():
        for i, item in enumerate(items):
            if isinstance(item, tuple):
                values.update({f"{name}_{i}_{j}": part for j, part in enumerate(item)})
            else:
                values[f"{name}_{i}"] = item
    return _expanded(plan.text, plan.expanding, lengths), values


def _width(compiled: SQLCompiler, name: str) -> int:
    """0 for a list of plain values, n for a list of n-tuples."""
    kind = compiled.binds[name].type
    return len(kind.types) if isinstance(kind, TupleType) else 0


@lru_cache(maxsize=2048)
def _expanded(text: str, lists: tuple[tuple[str, int], ...], lengths: tuple[int, ...]) -> str:
    sizes = {name: (n, width) for (name, width), n in zip(lists, lengths, strict=True)}

    def written(match: re.Match[str]) -> str:
        name = match.group(1)
        count, width = sizes[name]
        if count == 0:
            return "(SELECT " + ", ".join(["NULL"] * max(width, 1)) + " WHERE 1 = 0)"
        if width == 0:
            return "(" + ", ".join(f":{name}_{i}" for i in range(count)) + ")"
        rows = (
            "(" + ", ".join(f":{name}_{i}_{j}" for j in range(width)) + ")" for i in range(count)
        )
        return "(VALUES " + ", ".join(rows) + ")"

    return _EXPANDING.sub(written, text)
