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
        listed = ", ".join(columns)
        given = ", ".join(f":from_{column}" for column in columns)
        self._one_more = (
            f"SELECT {listed} FROM turtles_run WHERE {where} AND ({listed}) > ({given})"  # noqa: S608 - constants of ours
            f" ORDER BY {listed} LIMIT 1"
        )

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
        names = [f"from_{column}" for column in self._columns]
        # Within one statement SQLite would seek by the first column only, and walk the rest.
        stepwise = sql.dialect == "sqlite" and len(names) > 1
        rows = sql.all(query, most=1 if stepwise else most, **dict(zip(names, start, strict=True)))
        found = [tuple(row[column] for column in self._columns) for row in rows]
        while stepwise and found and len(found) < most:
            more = sql.one(self._one_more, **dict(zip(names, found[-1], strict=True)))
            if more is None:
                break
            found.append(tuple(more[column] for column in self._columns))
        return found

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
