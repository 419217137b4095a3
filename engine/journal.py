"""The journal: one entry for every transition of a run, and what can be proved from it.

`fold` needs the entries alone; `replay` decides each of them again with the machine's code and
compares, which is what shows that the code has changed its mind (`engine.replay` says how).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from engine.contracts import Clause, Verdict
from engine.errors import TurtlesError
from engine.events import Event
from engine.run import Status

if TYPE_CHECKING:
    from engine.table import Table

START = "$start"
"""Names with a dollar sign are the engine's own; no machine can declare them."""


class Entry(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One transition: what moved the run, from where to where, and what it had to satisfy."""

    run_id: str
    seq: int
    event: str
    source: str
    target: str
    payload: Event | None
    verdicts: tuple[Verdict, ...]
    context: Any
    status: Status
    at_ms: int
    worker: str = ""


def explained(table: Table, entries: Sequence[Entry]) -> list[Entry]:
    """The entries, decoded, with the values that their verdicts saw.

    A clause that the machine does not have any more is left without.
    """
    found, before = [], None
    for entry in entries:
        values = {"context": before, "old": before, "new": entry.context, "event": entry.payload}
        after = {**values, "context": entry.context}
        clauses = _clauses(table, entry)
        verdicts = tuple(
            msgspec.structs.replace(
                one,
                saw=clauses[one.kind, one.clause].seen(
                    values if one.kind in ("guard", "requires") else after
                ),
            )
            if (one.kind, one.clause) in clauses
            else one
            for one in entry.verdicts
        )
        found.append(msgspec.structs.replace(entry, verdicts=verdicts))
        before = entry.context
    return found


def _clauses(table: Table, entry: Entry) -> dict[tuple[str, str], Clause]:
    edges = table.edges.get((entry.source, entry.event), ())
    place = table.places.get(entry.target)
    return {
        (clause.kind, clause.name): clause
        for some in (
            *((*edge.guards, *edge.requires, *edge.ensures) for edge in edges),
            place.invariants if place else (),
            table.invariants,
        )
        for clause in some
    }


class Folded(msgspec.Struct, frozen=True, kw_only=True):
    """What the journal says the run is."""

    seq: int
    state: str
    status: Status
    context: Any


class JournalBroken(TurtlesError):
    """The journal contradicts itself; names the run, the entry and the contradiction."""


def fold(entries: Sequence[Entry]) -> Folded:
    """The state, status and context that the entries lead to.

    Raises:
        JournalBroken: a gap in the numbering, or an entry that does not begin where the one
            before it ended.
    """
    if not entries:
        raise JournalBroken("journal: no entries; every run begins with one")
    state = ""
    for number, entry in enumerate(entries, start=1):
        where = f"journal of {entry.run_id}, entry {number}"
        if entry.seq != number:
            raise JournalBroken(f"{where}: expected seq {number}, found {entry.seq}")
        if entry.source != state:
            raise JournalBroken(f"{where}: expected to begin in {state!r}, found {entry.source!r}")
        state = entry.target
    last = entries[-1]
    return Folded(seq=last.seq, state=last.target, status=last.status, context=last.context)


def replay(table: Table, entries: Sequence[Entry]) -> list[str]:
    """What the machine's code would decide differently today; empty when nothing.

    Args:
        entries: the whole journal of one run, decoded (`App.journal`).

    Raises:
        JournalBroken: the entries contradict each other before any code is asked.
    """
    # Loaded here because deciding makes entries: engine.decide imports this module.
    from engine.replay import replay as decide_again

    return decide_again(table, entries)
