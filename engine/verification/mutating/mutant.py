"""One mutant: a machine with exactly one thing changed, in memory."""

from __future__ import annotations

from dataclasses import dataclass

from engine.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """A changed machine, and what was changed where.

    Args:
        table: the changed machine, of the original's name and fingerprint.
        name: tells the mutants of one machine apart; without line numbers, so that it stays the
            same when lines move.
        kind: what was done, as listed in `engine.verification.mutants`.
        subject: what it was done to: an edge, a state or a function.
        says: the change, in words.
        missing: what would notice it, if nothing does.
    """

    table: Table
    name: str
    kind: str
    subject: str
    file: str
    line: int
    says: str
    missing: str

    @property
    def where(self) -> str:
        """`file:line` of what was changed."""
        return f"{self.file}:{self.line}"
