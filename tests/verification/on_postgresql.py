"""`turtles verify` over a real server of our own: the same exploration, slower, on PostgreSQL.

    python -m tests.verification.on_postgresql                       small machines, 90 s
    python -m tests.verification.on_postgresql Payment --budget 600

What is left over when the budget ends is no failure here: in memory all of it is explored.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tests.postgres_server import server

COVERAGE_GAP = 2


def main() -> int:
    """0 if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("machines", nargs="*", default=["Discovery", "Trust"])
    parser.add_argument("--budget", default="45")
    parser.add_argument("--seed", default="20261123")
    asked = parser.parse_args()
    with server() as postgres:
        environment = {**os.environ, "TURTLES_STORE": postgres.create_database()}
        codes = [
            subprocess.run(
                [sys.executable, "-m", "machines", "verify", machine, "--store", "postgresql",
                 "--budget", asked.budget, "--seed", asked.seed],
                env=environment, check=False,
            ).returncode
            for machine in asked.machines
        ]  # fmt: skip
    print(f"exit codes {codes}; {COVERAGE_GAP} is the end of the budget")
    return max((code for code in codes if code != COVERAGE_GAP), default=0)


if __name__ == "__main__":
    sys.exit(main())
