"""`python -m machines`: the command `turtles`, where nobody installed its script (flow 5)."""

from __future__ import annotations

import sys

from machines.wheel import NAME, VERSION


def main() -> None:
    """Run the command; `--version` is answered at once, without loading any of it."""
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"{NAME} {VERSION}\n")
        return
    from machines.cli import main as run

    run()


if __name__ == "__main__":
    main()
