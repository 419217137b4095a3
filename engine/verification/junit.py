"""Verifications as JUnit XML: a suite for each machine, a case for each phase and each gap.

A safety or liveness failure, a gap and a static finding are failures; what could not be finished is
an error.  CI servers show the text of each, with the token that goes the way again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as Tree

from engine.verification.report import EXITS, PhaseTold, Told, failure_lines, phase_lines

_FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot say at all."""


def junit(all_told: Sequence[Told]) -> str:
    """The document."""
    root = Tree.Element("testsuites", name="turtles verify")
    for data in all_told:
        root.append(_suite(data))
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    Tree.indent(root)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n' + Tree.tostring(root, encoding="unicode") + "\n"
    )


def _suite(data: Told) -> Tree.Element:
    suite = Tree.Element("testsuite", name=data.machine, time=f"{data.took_seconds:.3f}")
    properties = Tree.SubElement(suite, "properties")
    for name, value in (("seed", data.seed), ("fingerprint", data.fingerprint),
                        ("exit", data.exit), ("turtles", data.versions.turtles)):  # fmt: skip
        Tree.SubElement(properties, "property", name=name, value=str(value))
    for phase in data.phases:
        suite.append(_phase(data, phase))
    for trouble in data.troubles:
        if trouble.phase not in {phase.name for phase in data.phases}:
            case = _case(data, trouble.phase)
            _add(case, "error", "trouble", trouble.problem, trouble.where)
            suite.append(case)
    suite.append(_coverage(data))
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", str(len(suite.findall("testcase/error"))))
    return suite


def _phase(data: Told, phase: PhaseTold) -> Tree.Element:
    case = _case(data, phase.name, phase.took_seconds)
    if phase.problem:
        _add(case, "error", "trouble", phase.problem, phase.problem)
    elif phase.name == "static" and phase.figures["errors"]:
        _add(case, "failure", "static", f"{phase.figures['errors']} errors", _text(phase))
    elif phase.figures.get("mismatches") or phase.figures.get("alike") is False:
        _add(case, "failure", "not deterministic", EXITS[5], _text(phase))
    for failure in data.failures:
        if failure.phase == phase.name:
            told = "\n".join(failure_lines(failure))
            _add(case, "failure", failure.kind, f"{failure.rule}: {failure.problem}", told)
    Tree.SubElement(case, "system-out").text = _clean(_text(phase))
    return case


def _coverage(data: Told) -> Tree.Element:
    case = _case(data, "coverage")
    coverage = data.coverage
    if coverage is not None and not coverage.complete:
        names = [f"{gap.kind}: {gap.name}\n  {gap.command}".rstrip() for gap in coverage.gaps]
        _add(case, "failure", "coverage", f"{len(names)} gaps", "\n".join(names))
    if data.exit in (2, 6) and case.find("failure") is None:
        _add(case, "failure", "exit", EXITS[data.exit], "")
    return case


def _case(data: Told, name: str, took_seconds: float = 0.0) -> Tree.Element:
    return Tree.Element(
        "testcase", classname=f"turtles.{data.machine}", name=name, time=f"{took_seconds:.3f}"
    )


def _add(case: Tree.Element, tag: str, kind: str, message: str, text: str) -> None:
    found = Tree.SubElement(case, tag, type=kind, message=_clean(message))
    found.text = _clean(text)


def _text(phase: PhaseTold) -> str:
    return "\n".join(phase_lines(phase))


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("?", text)
