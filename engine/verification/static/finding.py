"""One finding of the static checks, and what the codes stand for."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Severity = Literal["error", "warning"]
Method = Literal["shape", "read", "checked", "proved"]

TITLES: dict[str, str] = {
    "V000": "an ignore comment without a reason or a use, or a check that could not be made",
    "V001": "state cannot be reached",
    "V002": "dead end",
    "V003": "no path to a final state",
    "V004": "an event from outside may meet a state that does not handle it",
    "V005": "guards overlap",
    "V006": "guards leave a gap",
    "V007": "an edge is never taken",
    "V008": "a cycle without timer, budget or external event",
    "V009": "waits without a time limit",
    "V010": "effect without idempotency or reconcile",
    "V011": "an outcome is not handled",
    "V012": "recursion without a depth bound",
    "V013": "not a function of its arguments",
    "V014": "cannot be stored and read back",
    "V015": "timer that never ends",
    "V016": "contract that is never evaluated",
}


class Finding(msgspec.Struct, frozen=True, kw_only=True, order=False):
    """What is wrong, where, and what to do.

    Args:
        method: `shape` (follows from states and edges), `read` (seen in the code), `checked`
            (seen by trying small values, see `engine.verification.scope`), or `proved` (for all
            values, by z3, see `engine.verification.static.prove`).
        witness: the values with which it shows, where there are any.
    """

    code: str
    severity: Severity
    file: str
    line: int
    machine: str
    state: str | None = None
    event: str | None = None
    edge: str | None = None
    problem: str
    remedy: str
    method: Method = "shape"
    witness: dict[str, Any] | None = None

    @property
    def order(self) -> tuple[str, int, str, str, str]:
        """Findings are listed by file, line and code."""
        return (self.file, self.line, self.code, self.machine, self.problem)


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one question about the guards of a state and event.

    Args:
        question: `overlap` (do two edges exclude one another?), `gap` (is one always taken?).
        edges: the guards in question.
        answer: `no` (no such values), `yes` (there are; a finding says which).
        method: `proved` for all values, or `checked` with small ones.
        why: why it is not proved, if z3 was asked.
    """

    machine: str
    state: str
    event: str
    question: Literal["overlap", "gap"]
    edges: tuple[str, ...]
    answer: Literal["no", "yes"]
    method: Literal["checked", "proved"]
    why: str = ""
