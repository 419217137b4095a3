"""What must hold in every state that a store can be in, and what may follow what.

Each oracle is a function that yields `Breach`es; none knows how the state came about, so tests,
the explorer and a check of a production database can share them::

    storage         the rules of `engine.ports`, by the store's own inspector
    journal         folds; today's code decides every entry again alike
    effects         what is recorded as done was done; compensations are complete, newest first;
                    no cancel leaves behind an effect that was done
    ended           a run that has ended never changes again
    child           a parent hears of the end of each child once
    quarantine      only what an author may expect sets a run aside: an effect given up or in
                    doubt, or an outcome that a guard or precondition of the machine refuses
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from engine.codec import Codec
from engine.errors import TurtlesError
from engine.journal import Entry, fold, replay
from engine.ports import Store
from engine.table import Place, Table
from engine.verification.snapshot import EffectRow, Row

ENTRIES_MAX = 10_000


class Breach(msgspec.Struct, frozen=True):
    """A property that does not hold, and what was seen."""

    rule: str
    problem: str


def check_storage(store: Store) -> Iterator[Breach]:
    """The rules of storage."""
    for finding in store.inspector.findings():
        yield Breach(f"storage: {finding.rule}", finding.problem)


def check_journal(row: Row, table: Table, entries: Sequence[Entry]) -> Iterator[Breach]:
    """The entries lead to where the run is, and the code would write them again."""
    try:
        folded = fold(entries)
        differences = replay(table, entries)
    except TurtlesError as error:
        yield Breach("journal", str(error))
        return
    if (folded.seq, folded.state) != (row.seq, row.state):
        yield Breach("journal", f"it leads to {folded.state} (seq {folded.seq}), the run is in "
                                f"{row.state} (seq {row.seq})")  # fmt: skip
    for difference in differences:
        yield Breach("replay", difference)


def check_children(entries: Sequence[Entry], table: Table) -> Iterator[Breach]:
    """The end of a child moves its parent once."""
    told: set[tuple[str, str]] = set()
    for entry in entries:
        place = table.places.get(entry.source)
        child = getattr(entry.payload, "run_id", None)
        if place is None or place.on_child != entry.event or child is None:
            continue
        if (entry.event, child) in told:
            yield Breach("child told twice", f"{entry.event} of the same child moved the run again")
        told.add((entry.event, child))


def check_effects(
    row: Row,
    table: Table,
    entries: Sequence[Entry],
    effects: Sequence[EffectRow],
    done: Mapping[str, Any],
) -> Iterator[Breach]:
    """Effects against the ledger of the outside, `done` by idempotency key."""
    stack: list[str] = []
    states = {entry.seq: entry.target for entry in entries}
    by = {entry.seq: entry.event for entry in entries}
    for one in effects:
        if one.status == "done" and one.key not in done:
            yield Breach("effect never done", f"effect {one.name} is recorded as done, but the "
                                              "outside never did it")  # fmt: skip
        if (
            one.status == "abandoned"
            and one.key in done
            and by.get(one.closed_seq or 0) == "$cancel"
        ):
            yield Breach("cancel lost an effect",
                         f"effect {one.name} was done, and a cancel left it behind")  # fmt: skip
        if one.status == "done":
            yield from _undo(stack, table.places.get(states.get(one.seq, "")), one)
    if row.status in ("failed", "cancelled") and stack:
        yield Breach("compensation skipped",
                     f"the run is {row.status}, but {', '.join(stack)} was not undone")  # fmt: skip


def _undo(stack: list[str], place: Place | None, one: EffectRow) -> Iterator[Breach]:
    if one.undo_of is not None:
        if not stack or stack[-1] != one.undo_of:
            yield Breach("compensation order", f"{one.undo_of} was undone, the newest to undo was "
                                               f"{stack[-1] if stack else 'none'}")  # fmt: skip
        if one.undo_of in stack:
            stack.remove(one.undo_of)
        return
    if place is None:
        return
    if place.undoes in stack:
        stack.remove(place.undoes or "")
    if place.compensation is not None and place.name not in stack:
        stack.append(place.name)


def check_ended(rows: Sequence[Row], before: Mapping[str, tuple[Any, ...]]) -> Iterator[Breach]:
    """Runs that had ended are as they were; `before` is what `ended` gave then."""
    now = {row.run_id: standing(row) for row in rows}
    for run_id, was in before.items():
        if now.get(run_id) != was:
            yield Breach("ended run moved", f"it was {was}, it is {now.get(run_id)}")


def ended(rows: Sequence[Row]) -> dict[str, tuple[Any, ...]]:
    """How the runs stand that have ended."""
    return {row.run_id: standing(row) for row in rows if not row.live}


def standing(row: Row) -> tuple[Any, ...]:
    """State, status, transitions and context of a run."""
    return row.state, row.status, row.seq, row.context


def check_quarantine(row: Row, table: Table) -> Iterator[Breach]:
    """Nothing but faults and refused outcomes sets a run aside."""
    if row.status != "quarantined":
        return
    reason = row.last_error or "no reason"
    if "given up:" in reason:
        place = table.places[row.state]
        expected = row.undo_of is not None or place.on_exhausted is None
    else:
        expected = " unknown: " in reason or _is_refused_outcome(reason)
    if not expected:
        yield Breach("quarantined", f"in {row.state}: {reason}")


def _is_refused_outcome(reason: str) -> bool:
    said = reason.partition(": ")[2]
    return reason.startswith("outcome of effect") and said.startswith(("guard ", "precondition "))


def entries_of(store: Store, codec: Codec, row: Row) -> list[Entry]:
    """A run's journal, decoded."""
    entries = store.journal.read(row.run_id, limit=ENTRIES_MAX)
    return [codec.open_entry(row.machine, entry) for entry in entries]
