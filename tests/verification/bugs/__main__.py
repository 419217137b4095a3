"""The table of planted bugs: `python -m tests.verification.bugs`."""

from __future__ import annotations

import sys

from tests.verification.bugs.corpus import BUGS
from tests.verification.bugs.hunt import hunt


def main() -> int:
    """Print the table; 1 if a bug was missed."""
    print(f"{'bug':<36}{'found as':<28}{'ms':>7}{'steps':>7}")
    missed = 0
    for bug in BUGS:
        found = hunt(bug)
        missed += found.rule not in bug.rules
        mark = "" if found.rule in bug.rules else "  MISSED"
        print(f"{bug.name:<36}{found.rule:<28}{found.took_ms:>7}{found.steps:>7}{mark}")
    print(f"{len(BUGS)} bugs, {missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
