"""The machines of this repository against their own mutants: would the tests notice?

    python -m tests.verification.mutants                       all six machines
    python -m tests.verification.mutants --machine Payment     one of them
    python -m tests.verification.mutants --sample 40           forty mutants, by `--seed`
    python -m tests.verification.mutants --tests tests/machines/decisions     these tests only
    python -m tests.verification.mutants --json                the last line is one JSON object

Every mutant is told as killed by a test, or (those that are left) by lint, or by an exploration of
at most `--explore` seconds; or as equivalent or accepted, with the reason in `survivors.py`; or as
a survivor, with what is missing.

Exit codes: 0 every survivor is listed with a reason and at least 95 % are killed, 1 not so, 2 a
wrong option, 3 the tests fail without any mutant.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from engine.verification.mutants import Fate, MutationReport, as_json, lines
from machines.app import MACHINES
from tests.verification.mutants.campaign import TESTS, BaselineError, Options, run
from tests.verification.mutants.survivors import SURVIVORS

KILLED_PERCENT_MIN = 95
NAMES = {machine.__name__: machine for machine in MACHINES}


def main() -> int:
    """The command; its exit code."""
    options = _options()
    machines = tuple(NAMES[name] for name in options.machine or NAMES)
    told = _Progress(quiet=options.json)
    began = time.monotonic()
    try:
        reports = run(
            Options(
                machines=machines,
                sample=options.sample,
                kinds=options.kind,
                seed=options.seed,
                jobs=options.jobs,
                explore_seconds=options.explore,
                each=told.one,
            ),
            tests=options.tests or TESTS,
        )
    except BaselineError as error:
        sys.stderr.write(f"mutants: {error}\n")
        return 3
    unlisted = [one for report in reports for one in report.survivors if _key(one) not in SURVIVORS]
    if not options.json:
        _show(reports)
    for line in _stale(reports, whole=options.sample is None and options.kind is None):
        sys.stderr.write(line + "\n")
    killed, judged = sum(r.killed for r in reports), sum(r.judged for r in reports)
    enough = 100 * killed >= KILLED_PERCENT_MIN * judged
    accepted = sum(len(r.survivors) for r in reports) - len(unlisted)
    if options.json:
        told_json = {
            "machines": [as_json(report) for report in reports],
            "killed": killed,
            "judged": judged,
            "accepted": accepted,
            "unlisted": [one.name for one in unlisted],
        }
        print(json.dumps(told_json))
    else:
        print(
            f"mutants: {killed:,} of {judged:,} killed ({100 * killed / max(judged, 1):.1f} %), "
            f"{accepted} accepted, {len(unlisted)} unlisted, {time.monotonic() - began:.0f} s"
        )
    return 0 if enough and not unlisted else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--machine", action="append", choices=sorted(NAMES))
    parser.add_argument("--sample", type=_positive, help="only so many mutants, chosen by chance")
    parser.add_argument("--kind", action="append", help="only mutants of this kind")
    parser.add_argument("--tests", action="append", help="a file or folder of tests to run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=_positive, default=2)
    parser.add_argument("--explore", type=float, default=2.0, help="seconds for each that is left")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {number}")
    return number


class _Progress:
    """A line on stderr for every hundredth mutant, and for each that survives."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._count = 0

    def one(self, fate: Fate) -> None:
        """One more is known."""
        self._count += 1
        if fate.by == "survived":
            sys.stderr.write(f"  survived: {fate.machine}: {fate.name}\n")
        if not self._quiet and self._count % 100 == 0:
            sys.stderr.write(f"  {self._count:,} mutants\n")


def _show(reports: list[MutationReport]) -> None:
    for report in reports:
        print("\n".join(lines(report)))
        for one in report.fates:
            why = one.evidence if one.by == "equivalent" else SURVIVORS.get(_key(one))
            if why and one.by in ("equivalent", "survived"):
                print(f"  {one.by}: {one.name}\n      {why}")


def _stale(reports: list[MutationReport], *, whole: bool) -> list[str]:
    """What `survivors.py` lists and is not so (any more)."""
    fates = {_key(one): one for report in reports for one in report.fates}
    machines = {report.machine for report in reports}
    told = []
    for key in SURVIVORS:
        found = fates.get(key)
        if found is not None and found.by not in ("survived", "equivalent"):
            told.append(f"listed as a survivor, but killed by {found.by}: {key[0]}: {key[1]}")
        elif found is None and whole and key[0] in machines:
            told.append(f"listed as a survivor, but there is no such mutant: {key[0]}: {key[1]}")
    return told


def _key(fate: Fate) -> tuple[str, str]:
    return (fate.machine, fate.name)


if __name__ == "__main__":
    sys.exit(main())
