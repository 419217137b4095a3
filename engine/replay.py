"""Deciding a journal again with the machine's code as it is now, and comparing.

::

    entry 1 -> begin          $pause, $resume, $cancel, $undone, $child_ended -> engine.control
                              every other event -> decide
    compared: target, context, verdicts, and the status

Three facts are not in an entry, because they change without a transition: whether an event was the
outcome of the state's effect, whether an attempt was in doubt when a cancel request came, and
whether the run had been set aside.  Replay therefore carries every run that agrees with the entries
so far; a difference is reported when none of them leads to what is recorded.  For the same reason
`pending`, `running` and `waiting` count as equal: when an effect is due again is bookkeeping.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from engine import control
from engine.decide import Decision, Rejection, Violation, begin, decide
from engine.errors import TurtlesError
from engine.journal import START, Entry, fold
from engine.run import Run
from engine.table import Table

Result = Decision | Rejection | Violation
_LIVE = frozenset({"pending", "running", "waiting"})


def replay(table: Table, entries: Sequence[Entry]) -> list[str]:
    """What the machine's code would decide differently today; empty when nothing.

    Args:
        entries: the whole journal of one run, decoded.

    Raises:
        JournalBroken: the entries contradict each other before any code is asked.
    """
    fold(entries)
    differences: list[str] = []
    possible: list[Run] = []
    for entry in entries:
        results = list(_decisions(table, possible, entry))
        agreeing = [r.after for r in results if isinstance(r, Decision) and not _differs(r, entry)]
        if not agreeing:
            differences.append(_difference(results, entry))
            if entry.target not in table.places:
                return differences
            agreeing = [_as_recorded(table, possible, entry)]
        possible = [run for i, run in enumerate(agreeing) if run not in agreeing[:i]]
    return differences


def _decisions(table: Table, possible: Sequence[Run], entry: Entry) -> Iterable[Result | str]:
    """Every decision that the unrecorded facts allow; a text where the code cannot decide."""
    if entry.event == START:
        yield begin(table, run_id=entry.run_id, context=entry.context, now_ms=entry.at_ms)
        return
    for run in possible:
        try:
            if entry.event.startswith("$"):
                yield from _controls(table, run, entry)
            else:
                yield from _events(table, run, entry)
        except TurtlesError as error:
            yield str(error)


def _events(table: Table, run: Run, entry: Entry) -> Iterable[Result]:
    if entry.event == control.CANCEL_EVENT:
        run = run.but(cancel_requested=False)
    performed = run.effect is not None and entry.payload is not None
    for from_effect in (False, True) if performed else (False,):
        yield decide(table, run, entry.event, entry.payload, entry.at_ms, from_effect=from_effect)


def _controls(table: Table, run: Run, entry: Entry) -> Iterable[Result | str]:
    at_ms = entry.at_ms
    if entry.event == control.PAUSE:
        yield control.pause(run, at_ms)
    elif entry.event == control.RESUME:
        yield control.resume(table, _set_aside(run), at_ms)
    elif entry.event == control.CANCEL:
        for held in (run, _set_aside(run)):
            for in_doubt in (False, True):
                yield control.cancel(table, _as_asked(held, in_doubt), at_ms)
    elif run.closing is None:
        yield f"{entry.event} needs a run that is closing"
    elif entry.event == control.UNDONE:
        yield control.undone(table, run, at_ms)
    elif entry.event == control.CHILD_ENDED:
        yield control.child_ended(table, run, at_ms)
    else:
        yield f"{entry.event} is no event of the engine"


def _set_aside(run: Run) -> Run:
    return run if run.status == "paused" else control.quarantined(run, "")


def _as_asked(run: Run, in_doubt: bool) -> Run:
    effect = run.effect and msgspec.structs.replace(run.effect, open=in_doubt)
    return run.but(effect=effect, cancel_requested=False)


def _differs(result: Decision, entry: Entry) -> str:
    """What the decision says otherwise than the entry, or nothing."""
    ours = result.entry
    for what, seen, recorded in (
        ("seq", ours.seq, entry.seq),
        ("source", ours.source, entry.source),
        ("target", ours.target, entry.target),
        ("status", _kind(ours.status), _kind(entry.status)),
        ("verdicts", _verdicts(ours), _verdicts(entry)),
    ):
        if seen != recorded:
            return f"{what} {seen!r}, recorded {recorded!r}"
    return _field_that_differs(ours.context, entry.context)


def _field_that_differs(ours: Any, recorded: Any) -> str:
    if ours == recorded:
        return ""
    for field in ours.__struct_fields__:
        seen, kept = getattr(ours, field), getattr(recorded, field, None)
        if seen != kept:
            return f"context.{field} {seen!r}, recorded {kept!r}"
    return f"context {type(ours).__name__}, recorded {type(recorded).__name__}"


def _kind(status: str) -> str:
    return "live" if status in _LIVE else status


def _verdicts(entry: Entry) -> Any:
    """What was judged, and how."""
    return [(one.clause, one.kind, one.ok) for one in entry.verdicts]


def _difference(results: Sequence[Result | str], entry: Entry) -> str:
    where = f"entry {entry.seq} ({entry.event} in {entry.source or 'nothing'})"
    first = results[0] if results else "nothing to decide"
    if isinstance(first, Decision):
        return f"{where}: decided {_differs(first, entry)}"
    if isinstance(first, Rejection):
        return f"{where}: now rejected: {first.reason}"
    if isinstance(first, Violation):
        return f"{where}: now a violation: {first.reason}"
    return f"{where}: {first}"


def _as_recorded(table: Table, possible: Sequence[Run], entry: Entry) -> Run:
    """Where the entry says the run was, so that one difference is reported once."""
    place = table.places[entry.target]
    with_child = place.child is not None or place.follows_child
    blank = Run(
        run_id=entry.run_id,
        machine=table.name,
        version=table.fingerprint,
        key=None,
        state=entry.target,
        status=entry.status,
        seq=entry.seq,
        entered_seq=entry.seq,
        context=entry.context,
        created_ms=entry.at_ms,
    )
    before = possible[0] if possible else blank
    return before.but(
        state=entry.target,
        status=entry.status,
        seq=entry.seq,
        context=entry.context,
        child=(before.child or "unknown") if with_child else None,
    )
