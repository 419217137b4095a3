"""Verifications as one page of HTML: nothing from outside, no script, every text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from engine.verification.report import EXITS, CoverageTold, FailureTold, PhaseTold, Told, heading

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em;
       color: #1b1b1b; background: #fff }
h1 { font-size: 1.3em } h2 { font-size: 1.15em; margin-top: 2.5em } h3 { font-size: 1em }
table { border-collapse: collapse; margin: .6em 0 } td, th { padding: .2em .7em; text-align: left;
       border-bottom: 1px solid #ddd; vertical-align: top }
pre { background: #f6f6f4; padding: .8em; overflow: auto } td.n { text-align: right }
code { overflow-wrap: anywhere }
.matrix { overflow: auto } .matrix td { text-align: center; padding: .1em .35em;
       border: 1px solid #ddd } .matrix th.e { writing-mode: vertical-rl; padding: .5em .15em }
.applied { background: #bfe3c0 } .refused { background: #e4eef7 } .excused { background: #eee }
.missing { background: #f2b8b5; font-weight: bold } .bad { color: #a3150c } .good { color: #1d6b21 }
"""
CELLS = {
    "#": ("applied", "&#9679;", "applied"),
    "r": ("refused", "&#8211;", "refused"),
    "e": ("excused", "e", "excused, see the reason"),
    ".": ("missing", "?", "never tried"),
}


def page(all_told: Sequence[Told]) -> str:
    """The document."""
    title = "turtles verify " + ", ".join(one.machine for one in all_told)
    parts = [
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
    ]  # fmt: skip
    parts += _summary(all_told)
    for data in all_told:
        parts += _machine(data)
    return "\n".join([*parts, "</body></html>", ""])


def _summary(all_told: Sequence[Told]) -> Iterator[str]:
    heads = ("machine", "scope", "transitions", "cells", "transition x fault", "sometimes",
             "failures", "seconds", "exit")  # fmt: skip
    rows = []
    for one in all_told:
        coverage = one.coverage
        pairs = (coverage.transitions, coverage.cells, coverage.faults, coverage.marks) if (
            coverage
        ) else ((0, 0),) * 4  # fmt: skip
        rows.append([
            f'<a href="#{escape(one.machine)}">{escape(one.machine)}</a>',
            "EXHAUSTED" if one.exhausted else "budget over",
            *(f"{a:,}/{b:,}" for a, b in pairs),
            str(len(one.failures)), f"{one.took_seconds:.1f}", _exit(one.exit),
        ])  # fmt: skip
    yield from _table(heads, rows)


def _exit(code: int) -> str:
    return f'<span class="{"bad" if code else "good"}">{code} {escape(EXITS[code])}</span>'


def _machine(data: Told) -> Iterator[str]:
    yield f'<h2 id="{escape(data.machine)}">{escape(data.machine)}</h2>'
    yield f"<p>{escape(heading(data.machine, data.fingerprint, data.seed))}"
    if data.environment:
        yield f"<br>environment {escape(data.environment)}"
    yield f"<br>{_exit(data.exit)}</p>"
    yield from _phases(data.phases)
    if data.troubles:
        rows = [[escape(t.phase), escape(t.problem), escape(t.where)] for t in data.troubles]
        yield "<h3>Could not be finished</h3>"
        yield from _table(("phase", "problem", "where"), rows)
    if data.coverage is not None:
        yield from _coverage(data.coverage)
    if data.notes:
        yield "<h3>Notes</h3><ul>"
        yield from (f"<li>{escape(note)}</li>" for note in dict.fromkeys(data.notes))
        yield "</ul>"
    for failure in data.failures:
        yield from _failure(failure)


def _phases(phases: Iterable[PhaseTold]) -> Iterator[str]:
    rows = []
    for phase in phases:
        text = "\n".join(one for one in (phase.line, phase.problem, *phase.more) if one)
        rows.append([escape(phase.name), f"{phase.took_seconds:.2f}",
                     escape(text).replace("\n", "<br>")])  # fmt: skip
    yield "<h3>Phases</h3>"
    yield from _table(("phase", "seconds", "what it did"), rows)


def _coverage(coverage: CoverageTold) -> Iterator[str]:
    yield "<h3>Coverage: states and events</h3>"
    yield '<div class="matrix"><table><tr><th></th>'
    yield "".join(f'<th class="e">{escape(event)}</th>' for event in coverage.events) + "</tr>"
    for state, row in zip(coverage.states, coverage.matrix, strict=True):
        cells = "".join(
            f'<td class="{kind}" title="{escape(event)} in {escape(state)}: {what}">{sign}</td>'
            for event, (kind, sign, what) in zip(
                coverage.events, (CELLS[letter] for letter in row), strict=True
            )
        )
        yield f"<tr><th>{escape(state)}</th>{cells}</tr>"
    yield "</table></div><p>&#9679; applied, &#8211; refused, e excused, ? never tried</p>"
    if coverage.gaps:
        rows = [[gap.kind, escape(gap.name), f"<code>{escape(gap.command)}</code>"]
                for gap in coverage.gaps]  # fmt: skip
        yield "<h3>Not touched</h3>"
        yield from _table(("what", "name", "leads there"), rows)
    if coverage.excused:
        excuses = [[escape(name), escape(why)] for name, why in coverage.excused.items()]
        yield "<h3>Excused</h3>"
        yield from _table(("what", "reason"), excuses)


def _failure(failure: FailureTold) -> Iterator[str]:
    yield f'<h3 class="bad">FAIL {escape(failure.kind)}: {escape(failure.rule)}</h3>'
    yield f"<p>{escape(failure.problem)}<br>found by {escape(failure.phase)}</p>"
    rows = [[str(number), escape(step.text), escape(step.state)]
            for number, step in enumerate(failure.way, start=1)]  # fmt: skip
    yield from _table(("", "step", "then"), rows)
    yield f"<p>replay: <code>{escape(failure.command)}</code></p>"
    for name, text in (("diagram (Mermaid)", failure.diagram), ("test", failure.test)):
        yield f"<details><summary>{name}</summary><pre>{escape(text)}</pre></details>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Heads are text; rows are HTML already."""
    yield "<table><tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"
    for row in rows:
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>"
    yield "</table>"
