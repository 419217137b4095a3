"""What a check of a history found, with what to do about it, in words and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

FINDINGS_MAX = 1_000

_RESTORE = (
    "Something other than turtles wrote to the database, or the disk lost a write. "
    "Restore a backup; `turtles show RUN` shows what is there"
)
_DECIDES = (
    "If the code was changed on purpose, it decides otherwise from now on; else undo the change"
)
DEFECT = "This is a defect of turtles or damage by hand; report it with `turtles show RUN --json`"
_PERSON = "Look with `turtles why RUN`, then `turtles resume RUN` or `turtles cancel RUN`"
REMEDIES = {
    "journal": _RESTORE,
    "moved after end": _RESTORE,
    "no run": _RESTORE,
    "unreadable": "Restore a backup, or the version of the machine that can read it",
    "replay": _DECIDES,
    "output": _DECIDES,
    "invariant": _DECIDES,
    "always": "The machine allows what its environment forbids: one of the two is wrong",
    "quarantined": _PERSON,
    "no reason": _PERSON,
    "stuck": "Start a worker that knows this machine and version; `turtles why RUN` says more",
    "orphan child": "Cancel it, if nobody needs it: `turtles cancel RUN`",
}


class HistoryFinding(msgspec.Struct, frozen=True):
    """Something wrong: the rule it breaks, the run, what was seen and what to do."""

    rule: str
    run_id: str | None
    problem: str
    remedy: str
    severity: Literal["error", "warning"] = "error"


class Note(msgspec.Struct, frozen=True):
    """Something that could not be checked: why, for how many runs, and one of them."""

    text: str
    runs: int
    run_id: str


@dataclass(slots=True, kw_only=True)
class HistoryReport:
    """What was looked at and what was found.

    `findings` holds the first 1,000; `more` counts those beyond.
    """

    store: str
    runs: int = 0
    transitions: int = 0
    effects: int = 0
    took_seconds: float = 0.0
    findings: list[HistoryFinding] = field(default_factory=list)
    more: int = 0
    notes: list[Note] = field(default_factory=list)

    @property
    def errors(self) -> list[HistoryFinding]:
        """Promises that were broken."""
        return [one for one in self.findings if one.severity == "error"]

    @property
    def ok(self) -> bool:
        """Whether no promise was broken."""
        return not self.errors and not self.more

    @property
    def transitions_per_second(self) -> float:
        """How fast it went."""
        return self.transitions / self.took_seconds if self.took_seconds else 0.0

    def add(self, finding: HistoryFinding) -> None:
        """Keep a finding, or count it when there are too many."""
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)
        elif finding.severity == "error":
            self.more += 1


def history_lines(report: HistoryReport) -> Iterator[str]:
    """The report as lines for a terminal."""
    rate = f"{report.transitions_per_second:,.0f} transitions/s"
    yield (f"history     {report.store}: {report.runs:,} runs  {report.transitions:,} transitions  "
           f"{report.effects:,} effects   {report.took_seconds:.2f} s  {rate}")  # fmt: skip
    for note in report.notes:
        yield f"  note      {note.runs:,} runs, such as {note.run_id}: {note.text}"
    for one in report.findings:
        word = "FAIL" if one.severity == "error" else "warning"
        where = f"run {one.run_id}: " if one.run_id else ""
        yield f"  {word:<8}  {one.rule}: {where}{one.problem}. {one.remedy}."
    if report.more:
        yield f"  and {report.more:,} more"
    warnings = len(report.findings) - len(report.errors)
    said = f"{len(report.errors) + report.more:,} findings, {warnings:,} warnings"
    yield "            clean" if not report.findings else f"            {said}"


def history_json(report: HistoryReport) -> dict[str, Any]:
    """The report as JSON."""
    return {
        "ok": report.ok,
        "store": report.store,
        "runs": report.runs,
        "transitions": report.transitions,
        "effects": report.effects,
        "took_seconds": round(report.took_seconds, 3),
        "transitions_per_second": round(report.transitions_per_second),
        "findings": _builtins(report.findings),
        "more": report.more,
        "notes": _builtins(report.notes),
    }


def _builtins(values: Iterable[Any]) -> list[Any]:
    return [msgspec.to_builtins(value) for value in values]
