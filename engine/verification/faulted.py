"""Faults at transitions, counted while a random life goes on.

The explorer knows beforehand which transitions a move makes; a life knows it afterwards, from the
journal: what was committed since the step began, and how the step ended.
"""

from __future__ import annotations

from typing import Any

from engine.decide import Decision, decide
from engine.verification.bench import Hand
from engine.verification.coverage import CALL_FAULTS, DIED_AFTER, DIED_BEFORE, TWICE, Transition
from engine.verification.explore import Rig
from engine.verification.result import Step


class Faulted:
    """Notes in a rig's coverage what went wrong at which transition of its first run."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self._entries = 0
        self._died_before = False

    def before(self, step: Step, hand: Hand | None) -> None:
        """A step will be taken."""
        if step[0] == "start" or not self.rig.coverage.missing_faults:
            return
        self._entries = self._seq()
        if step[0] == "call":
            self._in_call(hand, step)
        elif step[0] == "again":
            self._twice(step[1])

    def after(self, step: Step, crash_at: int | None) -> None:
        """It was; `crash_at`: the worker died after that commit."""
        if step[0] not in ("move", "call"):
            return
        made = self._made() if self._seq() > self._entries else []
        if crash_at is not None and made:
            self.rig.coverage.failed(made[-1], DIED_AFTER)
        if self._died_before and crash_at is None and made:
            self.rig.coverage.failed(made[0], DIED_BEFORE)
        self._died_before = crash_at == 0 and step[1:] == (1,)

    def _seq(self) -> int:
        return self.rig.bench.rows().runs[0].seq

    def _made(self) -> list[Transition]:
        entries: tuple[Any, ...] = self.rig.bench.snapshots.journal(self.rig.bench.root)
        return [(e[2], e[1], e[3]) for e in entries if e[0] > self._entries]

    def _in_call(self, hand: Hand | None, step: Step) -> None:
        fault = CALL_FAULTS.get(step[1])
        if fault is None or hand is None or hand.asked.job.table is not self.rig.table:
            return
        job, table = hand.asked.job, self.rig.table
        edges = table.edges.get((job.run.state, step[2]), ())
        if not any(self.rig.coverage.lacks((e.source, e.event, e.target), fault) for e in edges):
            return
        kind = table.payloads.get(step[2])
        codec = self.rig.bench.codec
        payload = None if kind is None else codec.decode(kind, step[3].encode(), "payload")
        now_ms = hand.asked.call.now_ms
        result = decide(table, job.run, step[2], payload, now_ms, from_effect=True)
        if isinstance(result, Decision):
            entry = result.entry
            self.rig.coverage.failed((entry.source, entry.event, entry.target), fault)

    def _twice(self, event: str) -> None:
        coverage = self.rig.coverage
        if any(one[1] == event and coverage.lacks(one, TWICE) for one in coverage.all_transitions):
            entries = self.rig.bench.snapshots.journal(self.rig.bench.root)
            for entry in entries:
                if entry[1] == event:
                    coverage.failed((entry[2], entry[1], entry[3]), TWICE)
