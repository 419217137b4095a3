"""Install the peers, each by its ordinary package name, into a virtual environment of their own.

    python -m tests.benchmarks.peers.setup [DIRECTORY]      default: /tmp/turtles-peers

Their dependencies may clash with ours and with each other's taste, so they never share an
environment with turtles.  The list is the extra `bench` of pyproject.toml.  What cannot be
installed is told, and its rows then say "not installed".
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

DEFAULT = Path(tempfile.gettempdir()) / "turtles-peers"
SERVER = "@restatedev/restate-server"
_PROJECT = Path(__file__).parents[3] / "pyproject.toml"


def main() -> int:
    """Install all that can be; 0, or 1 when something could not."""
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT
    venv.create(directory, with_pip=True)
    project = tomllib.loads(_PROJECT.read_text())["project"]
    pip = [directory / "bin" / "python", "-m", "pip", "install", "--quiet"]
    commands = [[*pip, each] for each in project["optional-dependencies"]["bench"]]
    commands.append(["npm", "install", "--silent", "--prefix", directory, SERVER])
    failed = [command[-1] for command in commands if not ran(command)]
    for name in failed:
        print(f"{name}: could not be installed; its rows will say so")
    return 1 if failed else 0


def ran(command: list[str | Path]) -> bool:
    """Whether the command did what it should."""
    try:
        return subprocess.run(command, check=False).returncode == 0
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main())
