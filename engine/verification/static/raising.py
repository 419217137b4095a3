"""V000: an invariant of the machine that raises for a small context instead of saying no."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from engine.contracts import Clause
from engine.events import Context
from engine.verification.scope import OutOfScope, hints_from, plain, reads
from engine.verification.static.finding import Finding
from engine.verification.static.subject import Subject
from engine.verification.values import columns_of, made

CONTEXTS_MAX = 200


def check_invariants(subject: Subject) -> Iterator[Finding]:
    """An invariant has an answer for every context that its type allows."""
    table = subject.table
    for clause in table.invariants:
        try:
            hints = hints_from(reads(table, [clause.call]))
            columns = columns_of(table.context, hints)
        except OutOfScope:
            return  # said elsewhere
        for context in islice(made(table.context, columns, CONTEXTS_MAX), CONTEXTS_MAX):
            subject.again()
            error = _raised(clause, context)
            if error is not None:
                shown = plain(context)
                yield subject.at_line("V000", "warning", "", clause.line,
                    f"invariant {clause.name} raises {type(error).__name__} instead of saying no, "
                    f"for instance for {shown}",
                    "Let it return False there, or say in the context's type that it cannot be",
                    method="checked", witness={"context": shown})  # fmt: skip
                break


def _raised(clause: Clause, context: Context) -> Exception | None:
    try:
        clause.call({"context": context})
    except Exception as error:  # noqa: BLE001 - the machine's own code
        return error
    return None
