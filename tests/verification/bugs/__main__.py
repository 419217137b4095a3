"""The table of planted bugs: `python -m tests.verification.bugs`.

    --write-docs    put it into docs/verification.md, between the markers for it
    --json          as JSON
    --only WORD     those whose name or phase has this word

Exit 0: all were found; 1: some were not; 2: the page has no markers.
"""

from __future__ import annotations

import argparse
import sys

import msgspec

from tests.verification.bugs.hunt import cases
from tests.verification.bugs.table import HEADER, row_of, summary, text_of, write_page


def main() -> int:
    """Print the table."""
    options = _options()
    rows = []
    if not options.json:
        print(HEADER)
    for case in cases():
        if options.only in case.name or options.only in case.phase:
            rows.append(row_of(case, case.hunt()))
            if not options.json:
                print(text_of(rows[-1]), flush=True)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(rows)).decode())
    else:
        print(summary(rows))
    if options.write_docs and not write_page(rows):
        print("docs/verification.md: no markers for the table", file=sys.stderr)
        return 2
    return 1 if any(row.missed for row in rows) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.verification.bugs")
    parser.add_argument("--write-docs", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="", metavar="WORD")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
