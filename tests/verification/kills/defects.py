"""Defects for the negative control: with one of them planted, the campaign has to find something.

Most are those of the corpus (`tests.verification.bugs`); these are added, which only show when a
process dies at the right moment:

- `intent after effect`: a worker performs an effect before its intent is committed;
- `no transactions`: every statement commits by itself, so that a death leaves half a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from engine.committer import Committer
from engine.ports import Write, Written
from persistence.database import Database, Session
from tests.verification.bugs.corpus import BUGS

_FROM_CORPUS = (
    "no dedupe",
    "effect inside the transaction",
    "performed again, no reconcile",
    "completion lost",
    "child not in the transaction",
    "compensation skipped",
    "dead workers keep their runs",
)


def _intent_after_effect() -> list[Any]:
    write = Committer.write
    held: dict[Committer, Write] = {}

    async def late(self: Committer, new: Write) -> Written:
        old = held.pop(self, None)
        if old is not None:
            written = await self._io(lambda: self._runs.commit([old, new]))
            return written[-1]
        effect = new.after.effect
        if new.entry is not None and effect is not None and effect.open:
            held[self] = new
            return Written(ok=True)
        return await write(self, new)

    return [patch.object(Committer, "write", late)]


def _no_transactions() -> list[Any]:
    transaction = Database.transaction

    @contextmanager
    def each_by_itself(self: Database) -> Iterator[Session]:
        with self.reading() as sql:
            made = sql.has_table("turtles_gone")
        if not made:  # the schema itself is made as it should be
            with transaction(self) as sql:
                yield sql
            return
        with self.reading() as sql:
            sql.run("COMMIT")
            yield sql
            sql.run("BEGIN")  # for the end of the block to have something to end

    return [patch.object(Database, "transaction", each_by_itself)]


DEFECTS: dict[str, Callable[[], list[Any]]] = {
    "intent after effect": _intent_after_effect,
    "no transactions": _no_transactions,
    **{bug.name: bug.patches for bug in BUGS if bug.name in _FROM_CORPUS},
}
NEEDS_STATEMENTS = frozenset({"no transactions"})
"""Not to be seen by crashes between transactions."""


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """The defect is there meanwhile; none for None."""
    with ExitStack() as stack:
        for one in DEFECTS[name]() if name is not None else ():
            stack.enter_context(one)
        yield
