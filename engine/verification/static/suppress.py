"""`# turtles: ignore[V009] reason`: a finding that a person has looked at; V000 keeps them honest.

The comment stands on the line that the finding names, or on a line of its own right above it.
"""

from __future__ import annotations

import io
import linecache
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from engine.verification.static.finding import TITLES, Finding
from engine.verification.static.subject import Subject

_COMMENT = re.compile(r"#\s*turtles:\s*ignore\s*(?:\[([^\]]*)\])?\s*(.*)")


@dataclass(slots=True)
class Ignore:
    """One such comment; `lines` are those it speaks of."""

    file: str
    line: int
    lines: tuple[int, ...]
    codes: frozenset[str]
    reason: str
    used: set[str] = field(default_factory=set)


def ignores_in(file: str) -> list[Ignore]:
    """The ignore comments of a file; none if it cannot be read."""
    text = "".join(linecache.getlines(file))
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            match = _COMMENT.match(token.string) if token.type == tokenize.COMMENT else None
            if match is not None:
                found.append(_ignore(file, token, match))
    except (tokenize.TokenError, SyntaxError):
        return found
    return found


def _ignore(file: str, token: tokenize.TokenInfo, match: re.Match[str]) -> Ignore:
    line = token.start[0]
    alone = not token.line[: token.start[1]].strip()
    codes = frozenset(code.strip() for code in (match[1] or "").split(",") if code.strip())
    return Ignore(file, line, (line, line + 1) if alone else (line,), codes, match[2].strip())


def divide(
    findings: Iterable[Finding], ignores: Iterable[Ignore]
) -> tuple[list[Finding], list[tuple[Finding, str]]]:
    """Findings that count, and those that are ignored, each with the reason given."""
    kept, ignored = [], []
    by_line = {(one.file, line): one for one in ignores for line in one.lines}
    for finding in findings:
        one = by_line.get((finding.file, finding.line))
        if one is not None and finding.code in one.codes:
            one.used.add(finding.code)
        if one is not None and finding.code in one.codes and one.reason:
            ignored.append((finding, one.reason))
        else:
            kept.append(finding)
    return kept, ignored


def check_ignores(subject: Subject, ignores: Iterable[Ignore]) -> Iterator[Finding]:
    """V000, for the comments inside one machine class; call it after `divide`."""
    first, last = subject.span
    for one in ignores:
        if one.file != subject.file or not first <= one.line <= last:
            continue
        strange = sorted(one.codes - set(TITLES) | (one.codes & {"V000"}))
        unused = sorted(one.codes - one.used - set(strange))
        if not one.reason:
            yield subject.at_line("V000", "error", one.file, one.line,
                "ignores a finding without a reason",
                "Write why: # turtles: ignore[V009] an operator watches this")  # fmt: skip
        if strange or not one.codes:
            yield subject.at_line("V000", "error", one.file, one.line,
                f"names {', '.join(strange) or 'no code'}, which cannot be ignored",
                "Name a code: # turtles: ignore[V009] reason")  # fmt: skip
        if unused:
            yield subject.at_line("V000", "warning", one.file, one.line,
                f"ignores {', '.join(unused)}, which is not found there", "Remove it"
            )  # fmt: skip
