"""Statements compiled once by SQLAlchemy, then run on the driver's own connection.

Core builds a cache key and a result object at every call, which costs about ten times what SQLite
needs for the statement itself.  So a statement that was built at import is compiled once to text,
and its rows become plain named tuples.  What is run is exactly what Core would have run.

Values are bound by their place: the driver looks up every name of a named one at every call, which
doubles the price of a statement with twenty of them.

An `IN` over a list (an expanding parameter) is written per database::

    SQLite        IN (?, ?, ?)         one text for each length; they are kept, up to a limit
    PostgreSQL    = ANY($1::TEXT[])    one text and one prepared statement for all lengths
                  IN (SELECT * FROM unnest($1::TEXT[], $2::TEXT[]))     for pairs

PostgreSQL gets its own placeholders ($1), so the driver has nothing to look for in the text; that
goes for texts written by hand with `:name`, too (`numbered`).
"""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.sqltypes import TupleType

DialectName = Literal["sqlite", "postgresql"]

_SQLITE = sqlite.dialect(paramstyle="qmark")
_EXPANDING = re.compile(r"\(__\[POSTCOMPILE_(\w+)\]\)")
_IN = re.compile(r"(NOT )?IN \(__\[POSTCOMPILE_(\w+)\]\)|%\((\w+)\)s|%%")
# A claim must choose its rows once.  As a subquery of IN it may be run again for each row that is
# compared with it, and take more than its LIMIT; as an array it cannot.
_CHOSEN = re.compile(r"(?<!NOT )IN \((SELECT (?:(?!SELECT).)*FOR UPDATE SKIP LOCKED)\)", re.DOTALL)
# A quoted string, a cast, or a name to be given a value.
_NAMED = re.compile(r"('(?:[^']|'')*')|(::\w+)|:([a-zA-Z_]\w*)")


@lru_cache(maxsize=1)
def _postgresql() -> Dialect:
    """Imported when it is needed: most programs open a file, and soon."""
    from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

    return PGDialect_psycopg(paramstyle="pyformat")  # type: ignore[no-untyped-call]


class Plan(NamedTuple):
    """A statement as text, and how its values are put in order and its rows are made.

    `names` are its parameters in the order of the text, `constants` those it brings itself;
    `lists` are the expanding ones whose items are written out in the text, each with the width of
    its items: 0 for plain values, n for n-tuples.
    """

    text: str
    names: tuple[str, ...]
    constants: Mapping[str, Any]
    lists: Mapping[str, int]
    in_order: Callable[[Mapping[str, Any]], Sequence[Any]]
    row: Callable[[Sequence[Any]], Any]


@lru_cache(maxsize=1024)
def plan_for(
    statement: sa.Executable,
    columns: tuple[str, ...] | None = None,
    dialect: DialectName = "sqlite",
) -> Plan:
    """Compile a statement.

    Args:
        statement: built once and kept, because it is its own key in the cache.
        columns: for an INSERT, the columns that the rows name.
        dialect: of which database.
    """
    assert isinstance(statement, sa.ClauseElement)
    if dialect == "postgresql" and isinstance(statement, sa.Insert):
        statement = statement.inline()  # no RETURNING of its own
    compiled = statement.compile(
        dialect=_SQLITE if dialect == "sqlite" else _postgresql(),
        column_keys=None if columns is None else list(columns),
    )
    assert isinstance(compiled, SQLCompiler)
    return _of_sqlite(compiled) if dialect == "sqlite" else _of_postgresql(compiled)


def _of_sqlite(compiled: SQLCompiler) -> Plan:
    text, names = compiled.string, tuple(compiled.positiontup or ())
    lists = {name: _width(compiled, name) for name in _EXPANDING.findall(text)}
    return Plan(text, names, _constants(compiled), lists, _in_order(names), _row_maker(compiled))


def _of_postgresql(compiled: SQLCompiler) -> Plan:
    slots: dict[tuple[str, int | None], str] = {}
    """What is sent: a value, a list, or one place of every item of a list; and its `$n`."""

    def slot(name: str, place: int | None = None) -> str:
        return slots.setdefault((name, place), f"${len(slots) + 1}")

    def written(match: re.Match[str]) -> str:
        negated, listed, single = match.groups()
        if single is not None:
            return slot(single)
        if listed is None:
            return "%"
        kinds = _kinds(compiled, listed)
        if isinstance(kinds, str):
            return f"{'<> ALL' if negated else '= ANY'}({slot(listed, -1)}::{kinds}[])"
        arrays = (f"{slot(listed, n)}::{kind}[]" for n, kind in enumerate(kinds))
        return f"{negated or ''}IN (SELECT * FROM unnest({', '.join(arrays)}))"  # noqa: S608

    text = _CHOSEN.sub(r"= ANY (ARRAY(\1))", _IN.sub(written, compiled.string))
    assert "POSTCOMPILE" not in text, text
    names = tuple(name for name, _ in slots)
    in_order = _in_order(names) if all(p is None for _, p in slots) else _with_arrays(list(slots))
    return Plan(text, names, _constants(compiled), {}, in_order, _row_maker(compiled))


def _named(kind: Any) -> str:
    """A type for a cast: without how its texts are sorted, which is the column's affair."""
    text: str = kind.compile(dialect=_postgresql())
    return text.partition(" COLLATE")[0]


def _kinds(compiled: SQLCompiler, name: str) -> str | list[str]:
    kind = compiled.binds[name].type
    if isinstance(kind, TupleType):
        return [_named(each) for each in kind.types]
    return _named(kind)


def _with_arrays(
    slots: Sequence[tuple[str, int | None]],
) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    def in_order(values: Mapping[str, Any]) -> Sequence[Any]:
        return [
            values[name]
            if place is None
            else list(values[name])
            if place < 0
            else [item[place] for item in values[name]]
            for name, place in slots
        ]

    return in_order


def _constants(compiled: SQLCompiler) -> dict[str, Any]:
    return {
        name: parameter.effective_value
        for name, parameter in compiled.binds.items()
        if not parameter.required
    }


@lru_cache(maxsize=1024)
def plan_rows(
    statement: sa.Executable, names: tuple[str, ...], dialect: DialectName = "sqlite"
) -> tuple[str, Callable[[Sequence[Any]], Sequence[Any]] | None]:
    """The text for rows whose values are in the order of `names`, and how each is put in order.

    None instead of a function: the rows are in the order of the text already.
    """
    plan = plan_for(statement, names if isinstance(statement, sa.Insert) else None, dialect)
    assert not plan.lists, plan.text
    if plan.names == names:
        return plan.text, None
    constants = dict(plan.constants)
    if not any(name in constants for name in plan.names):
        return plan.text, itemgetter(*map(names.index, plan.names))
    return plan.text, lambda row: plan.in_order({**constants, **dict(zip(names, row, strict=True))})


@lru_cache(maxsize=1024)
def plan_set(
    statement: sa.Executable, names: tuple[str, ...]
) -> tuple[str, tuple[str, ...], tuple[Any, ...]]:
    """For PostgreSQL: the text that takes many rows at once, as one array for each column.

    ::

        INSERT INTO t (a) VALUES (:a)       INSERT INTO t (a) SELECT given.a FROM unnest($1) ...
        UPDATE t SET a = :a WHERE t.b = :b  UPDATE t SET a = given.a FROM unnest($1, $2) ...

    The rows of an UPDATE must each concern other rows of the table, or one of them wins.

    Returns:
        The text, the type of the items of each array, in the order of `names`, and the values
        that the statement brings itself, which come after the arrays.
    """
    assert isinstance(statement, sa.Insert | sa.Update)
    columns = None
    if isinstance(statement, sa.Insert):
        statement, columns = statement.inline(), list(names)  # no RETURNING of its own
    compiled = statement.compile(dialect=_postgresql(), column_keys=columns)
    assert isinstance(compiled, SQLCompiler)
    constants = _constants(compiled)
    kinds = tuple(_named(compiled.binds[name].type) for name in names)
    brought: dict[str, str] = {}

    def written(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return "%"
        if name in names:
            return f"given.{_quoted(name)}"
        kind = _named(compiled.binds[name].type)
        return brought.setdefault(name, f"${len(names) + len(brought) + 1}::{kind}")

    text = re.sub(r"%\((\w+)\)s(?:::\w+)?|%%", written, compiled.string)
    values_brought = tuple(constants[name] for name in brought)
    arrays = ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(kinds, 1))
    given = f"unnest({arrays}) AS given({', '.join(map(_quoted, names))})"
    if isinstance(statement, sa.Insert):
        head, _, values = text.partition(" VALUES ")
        return f"{head} SELECT {values[1:-1]} FROM {given}", kinds, values_brought  # noqa: S608
    head, _, condition = text.partition(" WHERE ")
    return f"{head} FROM {given} WHERE {condition}", kinds, values_brought


def rows_text(statement: sa.Executable, names: tuple[str, ...]) -> str:
    """The text of a statement for PostgreSQL with its values numbered in the order of `names`."""
    plan = plan_for(statement, names if isinstance(statement, sa.Insert) else None, "postgresql")
    assert set(plan.names) == set(names), set(plan.names) ^ set(names)
    number = {f"${n}": f"${names.index(name) + 1}" for n, name in enumerate(plan.names, 1)}
    return re.sub(r"\$\d+", lambda match: number[match[0]], plan.text)


def _quoted(name: str) -> str:
    return f'"{name}"'


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
    if not booleans or compiled.dialect is not _SQLITE:
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


@lru_cache(maxsize=1024)
def numbered(statement: str) -> tuple[str, Callable[[Mapping[str, Any]], tuple[Any, ...]]]:
    """A text with `:name` as PostgreSQL reads it (`$1`), and how its values are put in order."""
    places: dict[str, str] = {}

    def written(match: re.Match[str]) -> str:
        name = match[3]
        return match[0] if name is None else places.setdefault(name, f"${len(places) + 1}")

    text = _NAMED.sub(written, statement)
    return text, _in_order(tuple(places))


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
        # A bare VALUES of several rows makes SQLite walk the table instead of its index.
        return "(SELECT * FROM (VALUES " + ", ".join([item] * count) + "))"  # noqa: S608

    return _EXPANDING.sub(written, text)
