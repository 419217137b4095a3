"""An exploration in words: for a terminal, as JSON, and each failure as something to keep.

A replay token is `tv1:` and the base64 of the compressed JSON of machine, fingerprint and steps.
It holds values, not numbers of choices, so it means the same in later versions; another fingerprint
of the machine is worth a warning, and a step that is not possible any more an error.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator
from typing import Any

import msgspec

from engine.errors import UsageError
from engine.table import Table
from engine.verification.lint import Report as LintReport
from engine.verification.result import Failure, Report, Step

PREFIX = "tv1:"
MISSING_SHOWN = 12
BY_FILE = "turtles_lint_"


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A way through a machine, to be gone again."""

    machine: str
    fingerprint: str
    kind: str
    rule: str
    steps: tuple[tuple[Any, ...], ...]


def token_of(table: Table, failure: Failure) -> str:
    """The token of a failure."""
    token = Token(machine=table.name, fingerprint=table.fingerprint, kind=failure.kind,
                  rule=failure.rule, steps=failure.steps)  # fmt: skip
    packed = zlib.compress(msgspec.json.encode(token), 9)
    return PREFIX + base64.urlsafe_b64encode(packed).decode()


def read_token(text: str) -> Token:
    """The way that a token names.

    Raises:
        UsageError: it is not a token, or was cut.
    """
    problem = "token: expected tv1: and what `turtles verify` printed after it"
    if not text.startswith(PREFIX):
        raise UsageError(f"{problem}, got {text[:20]!r}.")
    try:
        packed = base64.b64decode(text.removeprefix(PREFIX), altchars=b"-_", validate=True)
        return msgspec.json.decode(zlib.decompress(packed), type=Token)
    except (binascii.Error, zlib.error, msgspec.MsgspecError) as error:
        raise UsageError(f"{problem}; it is damaged ({type(error).__name__}).") from error


def exit_code(report: Report, static: LintReport) -> int:
    """0 ok, 1 static error, 2 gap or budget over, 3 safety, 4 liveness, 5 contradiction."""
    code = report.exit_code
    return 1 if code in (0, 2) and not static.ok else code


def lines(report: Report, static: LintReport) -> Iterator[str]:
    """The report for a terminal."""
    errors, scope = len(static.errors), report.scope
    yield f"verify {report.table.name}  {report.table.fingerprint}  seed {report.seed}"
    yield (f"static    {static.checks} checks  {errors} errors  "
           f"{len(static.findings) - errors} warnings  {static.took_ms / 1000:.2f} s")  # fmt: skip
    for finding in static.findings:
        where = finding.edge or finding.state or ""
        yield f"  {finding.code} {finding.severity} {where}: {finding.problem}"
    yield (f"scope     {report.contexts} first contexts, {scope.messages} messages x2 copies, "
           f"{'one cancel' if scope.cancels else 'no cancel'}, "
           f"{'crashes unlimited' if scope.faults else 'no faults'}")  # fmt: skip
    end = "EXHAUSTED" if report.exhausted else f"BUDGET OVER, {report.left} states left"
    rate = report.executions / max(report.took_seconds, 0.001)
    yield (f"explored  {report.states} states  {report.executions} executions  depth "
           f"{report.depth}  deaths {report.deaths}  commits {report.commits}  "
           f"{report.took_seconds:.2f} s  {rate:.0f}/s  {end}")  # fmt: skip
    yield f"repeated  {report.repeated} ways from the start  {len(report.mismatches)} mismatches"
    yield from _coverage_lines(report)
    for note in report.notes:
        yield f"note      {note}"
    for failure in report.failures:
        yield from failure_lines(report.table, failure)


def _coverage_lines(report: Report) -> Iterator[str]:
    coverage = report.coverage
    edges, cells = coverage.all_transitions, coverage.all_cells
    no_edges, no_cells = coverage.missing_transitions, coverage.missing_cells
    yield (f"coverage  transitions {len(edges) - len(no_edges)}/{len(edges)}  "
           f"cells {len(cells) - len(no_cells)}/{len(cells)}")  # fmt: skip
    missing = [f"{source} --{event}--> {target}" for source, event, target in no_edges]
    missing += [f"{event} in {state}" for state, event in no_cells]
    for one in missing[:MISSING_SHOWN]:
        yield f"  MISSING {one}"
    if len(missing) > MISSING_SHOWN:
        yield f"  and {len(missing) - MISSING_SHOWN} more"


def failure_lines(table: Table, failure: Failure) -> Iterator[str]:
    """A failure: what, the way there, and its token."""
    yield f"FAIL {failure.kind}: {failure.rule}  ({len(failure.steps)} steps)"
    yield f"  {failure.problem}"
    for number, step in enumerate(failure.steps, start=1):
        yield f"  {number:>3}  {said(step)}"
    yield f"  replay  turtles verify {table.name} --replay {token_of(table, failure)}"


def said(step: Step) -> str:
    """A step in words."""
    match step:
        case ("start", machine, context):
            return f"a run of {machine} is accepted with {context}"
        case ("clock", moment):
            return f"time goes on to due moment {moment + 1}"
        case ("send", event, text, number):
            return f"{event} arrives at run {number} {text}".rstrip()
        case ("again", event, text, number):
            return f"{event} arrives at run {number} again, under the same key {text}".rstrip()
        case ("cancel",):
            return "somebody asks the run to stop"
        case ("probe", event, text):
            return f"{event} arrives, which this state does not handle {text}".rstrip()
        case ("move", number):
            return f"a worker takes run {number}"
        case ("crash", number):
            return f"CRASH after commit {number} of this move"
        case ("call", "arrives", event, text, number):
            return f"meanwhile {event} arrives at run {number} {text}".rstrip()
        case ("call", kind, *rest):
            return f"{_ANSWERS.get(kind, kind)} {' '.join(one for one in rest[1:] if one)}".rstrip()
    return " ".join(str(one) for one in step)


_ANSWERS = {
    "ok": "the call answers",
    "again": "the call has nothing to report yet",
    "transient": "the call fails, to be tried again",
    "permanent": "the call is refused for good",
    "unsent": "the call is NOT done, and nobody knows",
    "lost": "the call is DONE, the answer is lost:",
    "died": "the call is DONE, and the worker dies:",
    "zombie": "the call is DONE, but the worker has lost the run meanwhile:",
    "told": "reconcile tells the truth",
    "unknown": "reconcile cannot say",
}


def diagram(failure: Failure) -> str:
    """The way to a failure as a Mermaid sequence diagram."""
    found = [
        "sequenceDiagram",
        "  participant World",
        "  participant Worker",
        "  participant Outside",
    ]
    for step in failure.steps:
        text = said(step).replace(";", ",").replace("#", "no ")
        if step[0] == "call":
            arrow = "--x" if step[1] in ("lost", "died", "unsent", "zombie", "unknown") else "-->>"
            found += ["  Worker->>Outside: call", f"  Outside{arrow}Worker: {text}"]
        elif step[0] in ("send", "again", "cancel", "start", "probe"):
            found.append(f"  World->>Worker: {text}")
        else:
            found.append(f"  Note over Worker: {text}")
    problem = failure.problem.replace(";", ",").replace("#", "no ").replace("\n", " ")
    return "\n".join([*found, f"  Note over World,Outside: {failure.rule}: {problem}", ""])


def pytest_file(table: Table, failure: Failure) -> str:
    """A pytest file that goes the way again; it fails on the defect and passes on the fix."""
    place = table.machine.__module__.removeprefix(BY_FILE)  # a file is imported by its own name
    name = table.machine.__qualname__
    token = token_of(table, failure)
    parts = [token[i : i + 80] for i in range(0, len(token), 80)]
    pasted = "\n".join(f'    "{part}"' for part in parts)
    rule = "".join(c if c.isalnum() else "_" for c in failure.rule.lower())
    told = [f"{failure.rule}: {failure.problem}", "", *map(said, failure.steps)]
    comment = "\n".join(f"# {line}".rstrip() for one in told for line in one.splitlines() or [""])
    return f"""{comment}

from {place} import {name}

from engine.verification.explore import repeat
from engine.verification.report import read_token
from persistence.store import open_store

TOKEN = (
{pasted}
)


def test_{table.name.lower()}_{rule}() -> None:
    token = read_token(TOKEN)
    liveness = token.kind == "liveness"
    found = repeat({name}, open_store("sqlite://"), token.steps, liveness=liveness)
    assert found.breaches == (), found
"""


def as_json(report: Report, static: LintReport) -> dict[str, Any]:
    """The report for programs; failures with token, diagram and test."""
    coverage = report.coverage
    return {
        "machine": report.table.name,
        "fingerprint": report.table.fingerprint,
        "seed": report.seed,
        "exit": exit_code(report, static),
        "static": {"errors": len(static.errors), "findings": len(static.findings)},
        "scope": {**msgspec.to_builtins(report.scope), "contexts_used": report.contexts},
        "exhausted": report.exhausted,
        "left": report.left,
        "states": report.states,
        "executions": report.executions,
        "commits": report.commits,
        "deaths": report.deaths,
        "depth": report.depth,
        "took_ms": round(report.took_seconds * 1000),
        "repeated": report.repeated,
        "mismatches": len(report.mismatches),
        "coverage": {
            "transitions": len(coverage.all_transitions),
            "cells": len(coverage.all_cells),
            "missing_transitions": coverage.missing_transitions,
            "missing_cells": coverage.missing_cells,
        },
        "notes": report.notes,
        "failures": [
            {
                **msgspec.to_builtins(failure),
                "token": token_of(report.table, failure),
                "diagram": diagram(failure),
                "test": pytest_file(report.table, failure),
            }
            for failure in report.failures
        ],
    }
