"""What must hold in every state that a store can be in, and what may follow what.

Each oracle is a function that yields `Breach`es; none knows how the state came about, so tests,
the explorer, `doctor` and `verify --history` over a production database share them::

    storage         the rules of `engine.ports`, by the store's own inspector
    journal         folds to the run as it is stored
    replay          today's code decides every entry again alike
    after end       no entry follows the one in which the run ended
    contract        nothing was committed against a contract; invariants hold after every entry
    always          the properties that an author's environment declares hold after every entry
    effects         what is recorded as done was done; compensations are complete, newest first;
                    no cancel leaves behind an effect that was done
    effect          its name and key are those of the entry that decided it, and it was called
    cause           every transition has one: an event of the inbox, an effect, a timer
    fence           only grows along a journal, and belongs to one worker
    due             nothing is due later than its own timer or effect
    ended           a run that has ended never changes again
    child           a parent hears of the end of each child once
    quarantine      only what an author may expect sets a run aside: an effect given up or in
                    doubt, or an outcome that a guard or precondition of the machine refuses

They read a run by `Standing` and an effect by `Recorded`, which are fulfilled by what the explorer
reads from its snapshots and by `standing_of(stored)` and `engine.ports.PastEffect`.  Those that
need rows only a whole history has are in `engine.verification.records`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from engine import control
from engine.codec import Codec
from engine.contracts import Clause
from engine.errors import TurtlesError
from engine.journal import Entry, JournalBroken, fold, replay
from engine.ports import PastEffect, Store
from engine.run import TERMINAL
from engine.table import Place, Table
from engine.verification.breach import Breach, Recorded, Standing, Stored, standing_of
from engine.verification.environment import Done, Environment
from engine.verification.records import check_causes, check_due, check_fences, check_records

__all__ = [
    "Breach",
    "Recorded",
    "Standing",
    "Stored",
    "check_after_end",
    "check_always",
    "check_causes",
    "check_children",
    "check_context",
    "check_contracts",
    "check_due",
    "check_effects",
    "check_ended",
    "check_fences",
    "check_fold",
    "check_invariants",
    "check_journal",
    "check_quarantine",
    "check_reason",
    "check_records",
    "check_replay",
    "check_storage",
    "ended",
    "entries_of",
    "standing",
    "standing_of",
]
ENTRIES_MAX = 10_000


# -- the store and the journal --------------------------------------------------------------------


def check_storage(store: Store) -> Iterator[Breach]:
    """The rules of storage."""
    for finding in store.inspector.findings():
        yield Breach(f"storage: {finding.rule}", finding.problem)


def check_relations(store: Store) -> Iterator[Breach]:
    """What runs owe one another: children without a parent, parents that were not told."""
    for finding in store.inspector.relations():
        yield Breach(finding.rule, finding.problem)


def check_journal(row: Standing, table: Table, entries: Sequence[Entry]) -> Iterator[Breach]:
    """The entries lead to where the run is, and the code would write them again."""
    yield from check_fold(row, entries)
    yield from check_replay(table, entries)


def check_fold(row: Standing, entries: Sequence[Entry]) -> Iterator[Breach]:
    """The entries follow one another and lead to where the run is."""
    try:
        folded = fold(entries)
    except JournalBroken as error:
        yield Breach("journal", str(error))
        return
    if (folded.seq, folded.state) != (row.seq, row.state):
        yield Breach(
            "journal",
            f"stored at seq {row.seq} in {row.state}, "
            f"but the journal ends at seq {folded.seq} in {folded.state}",
        )


def check_context(context: Any, entries: Sequence[Entry]) -> Iterator[Breach]:
    """The run's context is that of its last entry; both decoded, or both encoded."""
    if entries and entries[-1].context != context:
        yield Breach(
            "journal", f"the stored context is not the one of journal entry {entries[-1].seq}"
        )


def check_replay(table: Table, entries: Sequence[Entry]) -> Iterator[Breach]:
    """The machine's code, as it is now, decides every entry again alike."""
    try:
        differences = replay(table, entries)
    except JournalBroken:
        return  # the entries contradict one another: `check_fold` says how
    except TurtlesError as error:
        yield Breach("replay", str(error))
        return
    for difference in differences:
        yield Breach("replay", f"its machine's code decides otherwise than recorded: {difference}")


def check_after_end(row: Standing, entries: Sequence[Entry]) -> Iterator[Breach]:
    """Nothing follows the end of a run, and it ended as it stands."""
    for entry in entries[:-1]:
        if entry.status in TERMINAL:
            yield Breach(
                "moved after end",
                f"entry {entry.seq} ended the run as {entry.status}, "
                f"but entry {entry.seq + 1} follows",
            )
            return
    last = entries[-1].status if entries else row.status
    if last != row.status and (last in TERMINAL or row.status in TERMINAL):
        yield Breach("moved after end", f"the run is {row.status}, its last entry left it {last}")


def check_contracts(entries: Sequence[Entry]) -> Iterator[Breach]:
    """Nothing was committed although a contract was seen not to hold."""
    for entry in entries:
        for verdict in entry.verdicts:
            if not verdict.ok and verdict.kind != "guard":
                yield Breach(
                    "contract",
                    f"entry {entry.seq} was committed although {verdict.kind} {verdict.clause} "
                    "did not hold",
                )


def check_invariants(table: Table, entries: Sequence[Entry]) -> Iterator[Breach]:
    """After every entry the context fulfils the invariants of its state and of the machine.

    Args:
        entries: decoded.
    """
    for entry in entries:
        place = table.places.get(entry.target)
        for clause in (*(place.invariants if place else ()), *table.invariants):
            problem = _judged(clause, entry)
            if problem:
                yield Breach("invariant", f"after entry {entry.seq}, in {entry.target}: {problem}")


def _judged(clause: Clause, entry: Entry) -> str | None:
    try:
        verdict = clause.judge({"context": entry.context})
    except Exception as error:  # noqa: BLE001 - code of the machine; its message may hold a secret
        return f"{clause.name} raised {type(error).__name__}"
    return None if verdict.ok else f"{clause.name} does not hold"


def check_always(
    environment: Environment, entries: Sequence[Entry], effects: Sequence[PastEffect]
) -> Iterator[Breach]:
    """The author's own properties hold after every entry, each said to be broken once.

    What the outside has done is taken from the records: a production database has no ledger.

    Args:
        entries: decoded.
    """
    answers = {entry.seq: entry.payload for entry in entries}
    ended = [one for one in effects if one.status == "done" and one.closed_seq is not None]
    known: set[str] = set()
    for entry in entries:
        done = [
            Done(one.name, one.key, None if one.undo_of else answers.get(one.closed_seq or 0))
            for one in ended
            if (one.closed_seq or 0) <= entry.seq
        ]
        for name in _broken(environment, entry, done):
            if name not in known:
                yield Breach("always", f"after entry {entry.seq}, in {entry.target}: {name}")
            known.add(name)


def _broken(environment: Environment, entry: Entry, done: list[Done]) -> list[str]:
    try:
        return list(
            environment.broken(
                context=entry.context,
                state=entry.target,
                status=entry.status,
                now_ms=entry.at_ms,
                done=done,
            )
        )
    except Exception as error:  # noqa: BLE001 - code of the author; its message may hold a secret
        return [f"a property raised {type(error).__name__}"]


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


# -- effects --------------------------------------------------------------------------------------


def check_effects(
    row: Standing,
    table: Table,
    entries: Sequence[Entry],
    effects: Sequence[Recorded],
    done: Mapping[str, Any] | None = None,
) -> Iterator[Breach]:
    """Effects by their records, and against the ledger of the outside, `done` by idempotency key.

    Args:
        done: None where nobody knows the outside, as in a production database.
    """
    stack: list[str] = []
    states = {entry.seq: entry.target for entry in entries}
    for one in effects:
        if done is not None:
            yield from _against_ledger(one, entries, done)
        if one.status == "done":
            yield from _undo(stack, table.places.get(states.get(one.seq, "")), one)
    if row.status in ("failed", "cancelled") and stack:
        yield Breach("compensation skipped",
                     f"the run is {row.status}, but {', '.join(stack)} was not undone")  # fmt: skip


def _against_ledger(
    one: Recorded, entries: Sequence[Entry], done: Mapping[str, Any]
) -> Iterator[Breach]:
    if one.status == "done" and one.key not in done:
        yield Breach("effect never done", f"effect {one.name} is recorded as done, but the "
                                          "outside never did it")  # fmt: skip
    if one.status == "abandoned" and one.key in done:
        by = next((entry.event for entry in entries if entry.seq == one.closed_seq), None)
        if by == control.CANCEL:
            yield Breach("cancel lost an effect",
                         f"effect {one.name} was done, and a cancel left it behind")  # fmt: skip


def _undo(stack: list[str], place: Place | None, one: Recorded) -> Iterator[Breach]:
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


# -- ends and quarantine --------------------------------------------------------------------------


def check_ended(
    rows: Sequence[Standing], before: Mapping[str, tuple[Any, ...]]
) -> Iterator[Breach]:
    """Runs that had ended are as they were; `before` is what `ended` gave then."""
    now = {row.run_id: standing(row) for row in rows}
    for run_id, was in before.items():
        if now.get(run_id) != was:
            yield Breach("ended run moved", f"it was {was}, it is {now.get(run_id)}")


def ended(rows: Sequence[Standing]) -> dict[str, tuple[Any, ...]]:
    """How the runs stand that have ended."""
    return {row.run_id: standing(row) for row in rows if not row.live}


def standing(row: Standing) -> tuple[Any, ...]:
    """State, status, transitions and context of a run."""
    return row.state, row.status, row.seq, row.context


def check_quarantine(
    row: Standing, table: Table, *, honest: Container[str] = ()
) -> Iterator[Breach]:
    """Nothing but faults and refused outcomes sets a run aside.

    Args:
        honest: states whose effect gives only what its outside could give: there a refusal is no
            excuse.
    """
    if row.status != "quarantined":
        return
    reason = row.last_error or "no reason"
    if "given up:" in reason:
        place = table.places.get(row.state)
        expected = row.undo_of is not None or place is None or place.on_exhausted is None
    else:
        expected = " unknown: " in reason or (
            row.state not in honest and _is_refused_outcome(reason)
        )
    if not expected:
        yield Breach("quarantined", f"in {row.state}: {reason}")


def check_reason(row: Standing) -> Iterator[Breach]:
    """Nothing is set aside without saying why."""
    if row.status == "quarantined" and not row.last_error:
        yield Breach("no reason", f"it is quarantined in {row.state}, and nobody says why")


def _is_refused_outcome(reason: str) -> bool:
    said = reason.partition(": ")[2]
    return reason.startswith("outcome of effect") and said.startswith(("guard ", "precondition "))


def entries_of(store: Store, codec: Codec, row: Standing) -> list[Entry]:
    """A run's journal, decoded."""
    entries = store.journal.read(row.run_id, limit=ENTRIES_MAX)
    return [codec.open_entry(row.machine, entry) for entry in entries]
