"""Following a run from its first entry to where it stands, once, by the shortest way.

`engine.replay` carries every run that agrees with the entries so far, because an entry does not say
whether its event was the outcome of an effect.  The records of effects do say it::

    entry n + records settled at n  ->  one decision  ->  the same entry, the same bytes?

So a history that is in order is followed with one decision for each entry and without decoding any
context but the first.  Whatever `follow` accepts, `replay` accepts too, and besides every record
of an effect is the decided one, settled when and how the journal says, and the run stands exactly
where its last entry leaves it.  At the first doubt it gives up: then the oracles look closely, one
by one, and only what they say is a finding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from engine import control
from engine.codec import Codec
from engine.contracts import pack
from engine.decide import Decision, Rejection, Violation, begin, decide
from engine.errors import SecretsError, TurtlesError
from engine.journal import START, Entry
from engine.ports import History, PastEffect
from engine.run import TERMINAL, Pending, Run
from engine.table import Table

_LIVE = frozenset({"pending", "running", "waiting"})


def follow(table: Table, codec: Codec, history: History) -> str | None:
    """Where today's code does not lead, entry by entry, to what is stored; None when it does.

    Raises:
        SecretsError: the key that sealed a secret is not here.
    """
    stored, entries = history.stored, history.entries
    if stored is None or not entries or entries[0].event != START:
        return "its journal has no beginning"
    way = _Way(table, codec, history)
    try:
        for entry, verdicts in zip(entries, history.verdicts, strict=True):
            if not (way.step if entry.seq > 1 else way.begin)(entry, verdicts):
                return f"entry {entry.seq} ({entry.event}) is not what is decided"
        return None if history.cut else way.misplaced()
    except SecretsError:
        raise
    except msgspec.MsgspecError as error:
        return f"its verdicts are not JSON: {error}"
    except TurtlesError as error:
        return str(error)


class _Way:
    def __init__(self, table: Table, codec: Codec, history: History) -> None:
        assert history.stored is not None
        self._table = table
        self._codec = codec
        self._stored = history.stored
        self._records = {one.key: one for one in history.effects}
        self._settled = 0
        self._told: set[str] = set()
        self._run = self._stored.run
        self._body: Any = b""

    def begin(self, entry: Entry, verdicts: bytes) -> bool:
        """The first entry: the run is accepted with the context that it says."""
        run = self._stored.run
        kind = self._table.context
        context: Any = self._codec.decode(kind, entry.context, f"entry 1 of run {run.run_id}")
        begun = begin(
            self._table,
            run_id=run.run_id,
            context=context,
            now_ms=entry.at_ms,
            key=run.key,
            parent=run.parent,
            depth=run.depth,
        )
        return isinstance(begun, Decision) and self._accept(
            begun, None, entry, verdicts, given=False
        )

    def step(self, entry: Entry, verdicts: bytes) -> bool:
        """One entry more."""
        before = self._run
        settled = given = False
        if before.effect is not None:
            record = self._records.get(before.effect.key)
            if record is None:
                return False
            settled = record.closed_seq == entry.seq
            given = settled and record.status == "done"
        for decision in (
            self._controlled(entry, given=given, settled=settled)
            if entry.event.startswith("$")
            else (self._decided(entry, given),)
        ):
            if isinstance(decision, Decision) and self._accept(
                decision, before, entry, verdicts, given=given
            ):
                return True
        return False

    def _controlled(
        self, entry: Entry, *, given: bool, settled: bool
    ) -> Iterator[Decision | Rejection]:
        table, run, at_ms = self._table, self._run, entry.at_ms
        match entry.event:
            case control.PAUSE:
                yield control.pause(run, at_ms)
            case control.RESUME:
                yield control.resume(table, run if run.status == "paused" else _aside(run), at_ms)
            case control.CANCEL:
                in_doubt = run.effect is not None and not settled
                for one in (run, _aside(run)):
                    yield control.cancel(table, _asked(one, in_doubt), at_ms)
            case control.UNDONE if run.closing is not None and given:
                yield control.undone(table, run, at_ms)
            case control.CHILD_ENDED if run.closing is not None:
                yield control.child_ended(table, run, at_ms)

    def _decided(self, entry: Entry, given: bool) -> Decision | Rejection | Violation:
        run, event, body = self._run, entry.event, entry.payload
        payload = None
        if body is not None:
            what = f"entry {entry.seq} of run {entry.run_id}"
            payload = self._codec.open_payload(self._table, event, body, what)  # type: ignore[arg-type]
        if event == control.CANCEL_EVENT:
            run = run.but(cancel_requested=False)
        child = getattr(payload, "run_id", None)
        if child is not None and self._table.places[run.state].on_child == event:
            if child in self._told:
                return Rejection(event=event, state=run.state, reason="told twice")
            self._told.add(child)
        return decide(self._table, run, event, payload, entry.at_ms, from_effect=given)

    def _accept(
        self,
        decision: Decision,
        before: Run | None,
        entry: Entry,
        verdicts: bytes,
        *,
        given: bool,
    ) -> bool:
        """Whether the decision is what is recorded; then the run goes on from it."""
        ours, after = decision.entry, decision.after
        if (
            ours.target != entry.target
            or ours.seq != entry.seq
            or ours.source != entry.source
            or not _alike(ours.status, entry.status)
            or not _say_alike(ours, verdicts)
        ):
            return False
        if before is None or after.context is not before.context:
            self._body = self._codec.encode(after.context)
        if self._body != entry.context and not self._is_worth(after.context, entry):
            return False
        self._body = entry.context
        if not self._recorded(before.effect if before else None, after.effect, entry.seq, given):
            return False
        self._run = after
        return True

    def _is_worth(self, context: Any, entry: Entry) -> bool:
        """Whether other bytes mean the same, as those written before a field was added do."""
        what = f"entry {entry.seq} of run {entry.run_id}"
        opened: Any = self._codec.decode(self._table.context, entry.context, what)
        return bool(opened == context)

    def _recorded(
        self, before: Pending | None, after: Pending | None, seq: int, given: bool
    ) -> bool:
        same = before is not None and after is not None and before.key == after.key
        if before is not None and not same:
            self._settled += 1
            record = self._records[before.key]
            if record.closed_seq != seq or (record.status == "done") != given:
                return False
            if record.status != "abandoned" and record.calls == 0:
                return False
        if after is not None and not same:
            return _is_of(self._records.get(after.key), after)
        return True

    def misplaced(self) -> str | None:
        """What of the stored run is not where the last entry leaves it."""
        run, stored = self._run, self._stored.run
        pending, left = run.effect, stored.effect
        for what, ours, recorded in (
            ("state", run.state, stored.state),
            ("seq", run.seq, stored.seq),
            ("entered_seq", run.entered_seq, stored.entered_seq),
            ("context", self._body, stored.context),
            ("undo", run.undo, stored.undo),
            ("closing", run.closing, stored.closing),
            ("child", run.child, stored.child),
            ("deadline_ms", run.deadline_ms, stored.deadline_ms),
            ("status", *_ends(run.status, stored.status)),
            ("pending effect", pending and pending.key, left and left.key),
            ("effects", self._settled + (pending is not None), len(self._records)),
            ("output", True, self._gave_its_output()),
        ):
            if ours != recorded:
                return what if what in ("context", "output") else (
                    f"{what} {recorded!r}, where its journal leads to {ours!r}"
                )  # fmt: skip
        return None

    def _gave_its_output(self) -> bool:
        run = self._run
        if not run.terminal or run.seq == 1:
            return True
        output = self._table.output({"context": run.context})
        return (None if output is None else self._codec.encode(output)) == self._stored.output


def _aside(run: Run) -> Run:
    return control.quarantined(run, "")


def _asked(run: Run, in_doubt: bool) -> Run:
    effect = run.effect and msgspec.structs.replace(run.effect, open=in_doubt)
    return run.but(effect=effect, cancel_requested=False)


def _alike(ours: str, recorded: str) -> bool:
    return ours == recorded or (ours in _LIVE and recorded in _LIVE)


def _say_alike(ours: Entry, recorded: bytes) -> bool:
    return pack(ours.verdicts) == recorded


def _ends(ours: str, recorded: str) -> tuple[str, str]:
    """Both statuses, as far as only a transition changes them: whether and how the run ended."""
    return (ours if ours in TERMINAL else "live", recorded if recorded in TERMINAL else "live")


def _is_of(record: PastEffect | None, effect: Pending) -> bool:
    return record is not None and (record.seq, record.name, record.undo_of) == (
        effect.seq, effect.name, effect.undo_of
    )  # fmt: skip
