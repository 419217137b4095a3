"""Oracles over what only a store's own rows tell: records of effects, causes, fences, due times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine import control
from engine.ids import idempotency_key
from engine.journal import START, Entry
from engine.ports import PastEffect, PastEvent, StoredRun
from engine.run import HELD
from engine.table import Table
from engine.verification.breach import Breach


def check_records(
    table: Table, entries: Sequence[Entry], effects: Sequence[PastEffect]
) -> Iterator[Breach]:
    """Each record is of the effect that its entry decided; it was called before it was settled.

    And the other way round: an entry that enters a state with an effect left a record.
    """
    found = {one.seq: one for one in effects}
    for one in effects:
        yield from _record(table, entries, one)
    for entry in entries:
        place = table.places.get(entry.target)
        entered = entry.source != entry.target
        if place is None or place.effect is None or not entered or entry.seq in found:
            continue
        yield Breach(
            "effect",
            f"entry {entry.seq} entered {entry.target}, but effect {place.effect.name} "
            "was not recorded",
        )


def _record(table: Table, entries: Sequence[Entry], one: PastEffect) -> Iterator[Breach]:
    what = f"effect {one.name} of seq {one.seq}"
    if one.status in ("done", "given_up") and one.calls == 0:
        yield Breach("effect", f"{what} is {one.status}, but no attempt was counted")
    if one.key != idempotency_key(one.run_id, one.seq, one.name):
        yield Breach("effect", f"{what} has another idempotency key than its own")
    if one.closed_seq is not None and one.closed_seq <= one.seq:
        yield Breach("effect", f"{what} was settled by entry {one.closed_seq}, before it began")
    state = entries[one.seq - 1].target if 0 < one.seq <= len(entries) else None
    place = table.places.get(one.undo_of or state or "")
    if place is None:
        return  # the storage rules, or `check_fold`, say what is missing
    defined = place.compensation if one.undo_of else place.effect
    if defined is None or defined.name != one.name:
        known = "none" if defined is None else defined.name
        yield Breach("effect", f"{what}: expected {known}, the one of {place.name}")


# -- what moved the run, and who --------------------------------------------------------------


def check_causes(
    table: Table,
    entries: Sequence[Entry],
    effects: Sequence[PastEffect],
    inbox: Sequence[PastEvent],
) -> Iterator[Breach]:
    """Every transition has exactly one cause, and an applied event caused its transition."""
    by_event: dict[int, PastEvent] = {}
    for event in inbox:
        seq = event.consumed_seq
        if seq is None:
            continue
        if seq in by_event:
            yield Breach(
                "inbox", f"events {by_event[seq].number} and {event.number} both caused entry {seq}"
            )
        by_event[seq] = event
    by_effect = {one.closed_seq for one in effects if one.status in ("done", "given_up")}
    asked = False
    for entry in entries:
        cause = by_event.get(entry.seq)
        if cause is not None and not _is_caused_by(entry, cause):
            yield Breach(
                "inbox", f"event {cause.number} ({cause.event}) is applied by entry "
                f"{entry.seq}, which is of {entry.event}"
            )  # fmt: skip
        elif (
            cause is None
            and entry.seq not in by_effect
            and not _moves_itself(table, entry, cancelling=asked)
        ):
            yield Breach(
                "no cause", f"entry {entry.seq} ({entry.event} in {entry.source}) was caused by "
                "no event, effect or timer"
            )  # fmt: skip
        asked = asked or entry.event == control.CANCEL


def _is_caused_by(entry: Entry, event: PastEvent) -> bool:
    if entry.event == event.event:
        return True
    if event.event == control.CANCEL:
        return entry.event == control.CANCEL_EVENT
    return entry.event == control.CHILD_ENDED and event.key.startswith("child:")


def _moves_itself(table: Table, entry: Entry, *, cancelling: bool) -> bool:
    """Whether the entry needs no event: a start, a timer, a cancel that had to wait, a give-up."""
    if entry.event == START:
        return entry.seq == 1
    if cancelling and entry.event in (control.CANCEL, control.CANCEL_EVENT):
        return True
    place = table.places.get(entry.source)
    return place is None or entry.event in (place.on_timeout, place.on_exhausted)


def check_fences(
    stored: StoredRun, entries: Sequence[Entry], fences: Sequence[int]
) -> Iterator[Breach]:
    """No write of an older claim came after one of a newer claim; a claim is of one worker."""
    newest, worker = 0, None
    for entry, fence in zip(entries, fences, strict=True):
        if fence < newest:
            yield Breach(
                "fence", f"entry {entry.seq} was written under fence {fence}, after {newest}"
            )
        elif fence == newest and fence and entry.worker != worker:
            yield Breach("fence", f"entry {entry.seq}: two workers wrote under fence {fence}")
        newest, worker = max(newest, fence), entry.worker
    if stored.fence < newest:
        yield Breach("fence", f"the run's fence is {stored.fence}, its journal has {newest}")


def check_due(stored: StoredRun) -> Iterator[Breach]:
    """A run that may move is due no later than its own timer and its effect."""
    run, due_ms = stored.run, stored.run.due_ms
    if due_ms is None or run.status in HELD or run.terminal:
        return
    if stored.due_ms is None or stored.due_ms > due_ms:
        seen = "never" if stored.due_ms is None else f"at {stored.due_ms} ms"
        yield Breach("due", f"its timer or effect is due at {due_ms} ms, the run itself {seen}")
