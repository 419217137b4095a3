"""Whose turn it is: claims go round those who have ready work, by an index scan that skips.

::

    who has work      after the last one served, around the end; each costs one seek in an index,
                      however much work it has
    equal shares      of what may be claimed, for each of them; within a share: priority, then time
    the rest          goes to whoever has more, in the same order

A worker begins at a random place, so that many workers do not all begin with the same tenant.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from persistence.database import Session

Key = tuple[str, ...]
AT_ONCE = 256
"""Of how many one claim looks at the work."""


class Turns:
    """Goes round the distinct values of some columns among the runs of a partial index.

    Args:
        columns: text columns, the first ones of the index.
        where: the predicate of the index.
    """

    def __init__(self, columns: tuple[str, ...], where: str) -> None:
        self._columns = columns
        self._after_last = _distinct(columns, where, ">")
        self._from_first = _distinct(columns, where, ">=")
        self._last: Key | None = None
        self._steps = [_step(columns, where, place) for place in reversed(range(len(columns)))]

    def next(self, sql: Session, most: int = AT_ONCE) -> list[Key]:
        """Those who have work, beginning after the last one served."""
        if self._last is None:
            found = self._listed(sql, self._from_first, ("",) * len(self._columns), most)
            at = random.randrange(len(found)) if len(found) > 1 else 0  # noqa: S311 - whose turn
            return found[at:] + found[:at]
        found = self._listed(sql, self._after_last, self._last, most)
        if len(found) < most:
            first = ("",) * len(self._columns)
            known = set(found)
            found += [
                key for key in self._listed(sql, self._from_first, first, most) if key not in known
            ]
        return found[:most]

    def _listed(self, sql: Session, query: str, start: Key, most: int) -> list[Key]:
        if sql.dialect != "sqlite" or len(self._columns) == 1:
            rows = sql.all(query, most=most, **self._given(start))
            return [tuple(row[column] for column in self._columns) for row in rows]
        # SQLite compares several columns by walking all rows that are equal to the start.
        found: list[Key] = []
        if query is self._from_first:
            rows = sql.all(query, most=1, **self._given(start))
            found = [tuple(row[column] for column in self._columns) for row in rows]
        more = self._stepped(sql, found[-1] if found else start)
        while more is not None and len(found) < most:
            found.append(more)
            more = self._stepped(sql, more)
        return found

    def _given(self, key: Key) -> dict[str, str]:
        return {f"from_{column}": one for column, one in zip(self._columns, key, strict=True)}

    def _stepped(self, sql: Session, key: Key) -> Key | None:
        """The next one: with the same first columns if there is one, else beyond them."""
        for place, query in zip(reversed(range(len(key))), self._steps, strict=True):
            given = list(self._given(key).items())[: place + 1]
            row = sql.one(query, **dict(given))
            if row is not None:
                return tuple(row[column] for column in self._columns)
        return None

    def serve(
        self, keys: Sequence[Key], most: int, take: Callable[[Key, int], Sequence[Any]]
    ) -> list[Any]:
        """What `take` gives of each: equal shares of `most`, then the rest."""
        taken: list[Any] = []
        share = max(most // max(len(keys), 1), 1)
        more = []
        for key in keys[:most]:
            found = take(key, share)
            taken += found
            self._last = key
            if len(found) == share:
                more.append(key)
        for key in more:
            if len(taken) < most:
                taken += take(key, most - len(taken))
        return taken


def _step(columns: tuple[str, ...], where: str, place: int) -> str:
    equal = "".join(f" AND {column} = :from_{column}" for column in columns[:place])
    listed, last = ", ".join(columns), columns[place]
    return (
        f"SELECT {listed} FROM turtles_run WHERE {where}{equal} AND {last} > :from_{last}"  # noqa: S608 - constants of ours
        f" ORDER BY {listed} LIMIT 1"
    )


def _distinct(columns: tuple[str, ...], where: str, operator: str) -> str:
    """A loose index scan: each step seeks the next value instead of reading its equals."""
    listed = ", ".join(columns)

    def seek(column: str, sign: str, values: str) -> str:
        return (
            f"(SELECT r.{column} FROM turtles_run r WHERE {where} AND ({listed}) {sign} ({values})"  # noqa: S608
            f" ORDER BY {listed} LIMIT 1)"
        )

    given = ", ".join(f":from_{column}" for column in columns)
    before = ", ".join(f"met.{column}" for column in columns)
    first = ", ".join(seek(column, operator, given) for column in columns)
    then = ", ".join(seek(column, ">", before) for column in columns)
    return (
        f"WITH RECURSIVE met({listed}, number) AS ("  # noqa: S608 - constants of ours
        f"SELECT {first}, 1 UNION ALL SELECT {then}, met.number + 1 FROM met"
        f" WHERE met.{columns[0]} IS NOT NULL AND met.number < :most)"
        f" SELECT {listed} FROM met WHERE {columns[0]} IS NOT NULL"
    )
